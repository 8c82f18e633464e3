#include "machine/code_drops.h"

#include <stdbool.h>
#include <string.h>

#include "base/base.h"

void code_drops_init(struct code_drops *drops, void (*added)(struct code_drops *drops), void *owner)
{
    pthread_mutex_init(&drops->lock, NULL);
    drops->added = added;
    drops->owner = owner;
    drops->count = 0;
}

void code_drops_fini(struct code_drops *drops) { pthread_mutex_destroy(&drops->lock); }

static uint64_t end_of(const struct code_drop *drop) { return drop->gpa + drop->size; }

static bool touches(const struct code_drop *drop, uint64_t gpa, uint64_t size) { return gpa <= end_of(drop) && drop->gpa <= gpa + size; }

static bool same_page(const struct code_drop *drop, uint64_t gpa) { return align_down(drop->gpa, PAGE_SIZE) == align_down(gpa, PAGE_SIZE); }

/* What lies between is dropped, too. */
static void widen(struct code_drop *drop, uint64_t gpa, uint64_t size)
{
    uint64_t end = max_u64(end_of(drop), gpa + size);
    drop->gpa = min_u64(drop->gpa, gpa);
    drop->size = end - drop->gpa;
}

/* There is no room for another one. */
static struct code_drop *nearest(struct code_drops *drops, uint64_t gpa)
{
    unsigned i = drops->count - 1;
    while (i > 0 && !same_page(&drops->drop[i], gpa))
        i--;
    return &drops->drop[i];
}

void code_drops_add(struct code_drops *drops, uint64_t gpa, uint64_t size)
{
    pthread_mutex_lock(&drops->lock);
    struct code_drop *last = drops->count ? &drops->drop[drops->count - 1] : NULL;
    if (last && touches(last, gpa, size)) {
        widen(last, gpa, size);
    } else if (drops->count == CODE_DROPS_MOST) {
        widen(nearest(drops, gpa), gpa, size);
    } else {
        drops->drop[drops->count++] = (struct code_drop){ gpa, size };
        drops->added(drops);
    }
    pthread_mutex_unlock(&drops->lock);
}

unsigned code_drops_take(struct code_drops *drops, struct code_drop taken[CODE_DROPS_MOST])
{
    pthread_mutex_lock(&drops->lock);
    unsigned count = drops->count;
    memcpy(taken, drops->drop, count * sizeof(*taken));
    drops->count = 0;
    pthread_mutex_unlock(&drops->lock);
    return count;
}
