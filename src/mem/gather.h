/*
 * RAM of which most has been granted is gathered into large pages of the host's, by a thread of its own (`memory`), since each takes the host a
 * while (large.c). It begins when the machine has run for some seconds, so that what is over sooner does not pay for it; it takes at most a fifth
 * of a processor, and sleeps when there is nothing to do.
 */
#ifndef DOPPEL_MEM_GATHER_H
#define DOPPEL_MEM_GATHER_H

#include "mem/ram.h"

struct ram_gatherer;

/* NULL: no memory, and nothing will be gathered. */
struct ram_gatherer *ram_gatherer_create(struct ram *ram);
/* Ends the thread, if there is one. May be NULL. */
void ram_gatherer_destroy(struct ram_gatherer *gatherer);
/* Starts the thread; if the host gives none, nothing will be gathered. May be NULL. */
void ram_gatherer_start(struct ram_gatherer *gatherer);

/* Any thread: something of the RAM_LARGE around gpa was granted. If most of it has been by now, it is to be gathered, once. */
void ram_gather_later(struct ram_gatherer *gatherer, const struct ram_slot *slot, uint64_t gpa);
/* What the thread does: one large page. False: there is nothing to do. */
bool ram_gather_next(struct ram_gatherer *gatherer);

#endif
