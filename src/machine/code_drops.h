/*
 * Code that a vCPU has to drop at its next block border, since others have written to it. A processor can write faster than another
 * one drops, so what waits is kept together: there is never more of it than fits here, and what is dropped is at least what was asked for.
 */
#ifndef DOPPEL_MACHINE_CODE_DROPS_H
#define DOPPEL_MACHINE_CODE_DROPS_H

#include <pthread.h>
#include <stdint.h>

/* A vCPU that sleeps is woken for CODE_DROPS_MANY of them, before there is so little room that more is dropped than was written. */
enum { CODE_DROPS_MOST = 256, CODE_DROPS_MANY = 128 };

/* Guest-physical bytes. */
struct code_drop {
    uint64_t gpa, size;
};

/* Of one vCPU. */
struct code_drops {
    void (*added)(struct code_drops *drops);    /* one more waits; with the lock held */
    void *owner;                        /* of `added`: the vCPU */
    pthread_mutex_t lock;               /* guards the rest */
    unsigned count;
    struct code_drop drop[CODE_DROPS_MOST];
};

void code_drops_init(struct code_drops *drops, void (*added)(struct code_drops *drops), void *owner);
void code_drops_fini(struct code_drops *drops);

/* --- any thread --- */

/*
 * When it returns `added` has been called, even if it was another thread that added the first: the guest may now tell the vCPU by ways of its
 * own to run the new code.
 */
void code_drops_add(struct code_drops *drops, uint64_t gpa, uint64_t size);
/* All that waits, no longer; returns how many. */
unsigned code_drops_take(struct code_drops *drops, struct code_drop taken[CODE_DROPS_MOST]);

#endif
