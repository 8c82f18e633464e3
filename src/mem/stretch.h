/*
 * Memory that is gone through from one end to the other (by a kernel's decompressor, by who loads an image) is granted ahead by a thread of its own
 * (base/ahead.h): the host takes as long to clear pages and to enter them in its tables as the guest to fill them. At most as much is granted as was
 * gone through or granted before, and 1 MiB.
 */
#ifndef DOPPEL_MEM_STRETCH_H
#define DOPPEL_MEM_STRETCH_H

#include "mem/ram.h"

struct ram_stretches;

/* NULL: no memory, or no thread, and nothing will be granted ahead. */
struct ram_stretches *ram_stretches_create(struct ram *ram);
/* Waits for what is being granted. May be NULL. */
void ram_stretches_destroy(struct ram_stretches *stretches);

/* Any thread: somebody is about to touch the piece at `offset` of the slot, the first to do so. */
void ram_stretch_to(struct ram_stretches *stretches, struct ram_slot *slot, uint64_t offset);

#endif
