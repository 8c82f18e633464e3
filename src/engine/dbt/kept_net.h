/*
 * A net under whoever writes emitters: no address of ours, nor of guest code close by, may be in code that is kept for others, but those that were
 * noted for them (reloc.h) and are 0 by now.
 */
#ifndef DOPPEL_ENGINE_DBT_KEPT_NET_H
#define DOPPEL_ENGINE_DBT_KEPT_NET_H

#include "engine/dbt/plan.h"

/* True: there is one in these bytes. */
bool kept_net_catches(const struct work *w, const uint8_t *code, size_t size);

#endif
