/*
 * Memory that the host grants before it is needed, by a thread of its own (`ahead`). A large page must be cleared, which takes a tenth of a
 * millisecond, and several milliseconds where the host is itself a virtual machine; whoever touches it first would wait for all of that.
 */
#ifndef DOPPEL_BASE_AHEAD_H
#define DOPPEL_BASE_AHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    AHEAD_PIECE = 2 << 20,              /* bytes asked for at once: a large page */
    AHEAD_MARGIN = 1 << 20,             /* so much before the last piece is full the next one is asked for: some milliseconds of translating */
};

struct ahead;

/* Has the host grant the page, whoever may be writing there meanwhile: a byte is written as it is, in a step that no compiler and no checker of races sees. */
static inline void ahead_touch(uint8_t *at) { __asm__ volatile("lock orb $0, %0" : "+m"(*at)); }

/* NULL: no memory, or no thread. Then nothing is granted ahead. */
struct ahead *ahead_create(void);
/* Waits for what has begun; what has not is not done. May be NULL. */
void ahead_destroy(struct ahead *ahead);

/*
 * Any thread: has the thread call `grant`, soon. The memory must stay mapped until ahead_destroy. False: it has so much to do that it will
 * not, or there is no thread (ahead may be NULL).
 */
typedef void ahead_fn(void *owner, uint8_t *at, size_t size);
bool ahead_ask(struct ahead *ahead, ahead_fn *grant, void *owner, uint8_t *at, size_t size);

/* Memory that is filled from its beginning on. Any thread, but only one at a time. */
struct ahead_arena {
    uint8_t *base;
    size_t size, asked;                 /* asked: bytes from the beginning on that were */
};
/* So many bytes of it are in use. */
void ahead_of_arena(struct ahead *ahead, struct ahead_arena *arena, size_t used);

#endif
