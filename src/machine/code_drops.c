#include "machine/code_drops.h"

#include <string.h>

#include "base/base.h"

void code_drops_init(struct code_drops *drops)
{
    pthread_mutex_init(&drops->lock, NULL);
    drops->count = 0;
}

void code_drops_fini(struct code_drops *drops) { pthread_mutex_destroy(&drops->lock); }

static uint64_t end_of(const struct code_drop *drop) { return drop->gpa + drop->size; }

/* Bytes of a page that it has some of, or of the next one. */
static bool is_near(const struct code_drop *drop, uint64_t gpa)
{
    return gpa >= align_down(drop->gpa, PAGE_SIZE) && gpa <= align_up(end_of(drop), PAGE_SIZE);
}

/* What lies between is dropped, too. */
static void widen(struct code_drop *drop, uint64_t gpa, uint64_t size)
{
    uint64_t end = max_u64(end_of(drop), gpa + size);
    drop->gpa = min_u64(drop->gpa, gpa);
    drop->size = end - drop->gpa;
}

bool code_drops_add(struct code_drops *drops, uint64_t gpa, uint64_t size)
{
    pthread_mutex_lock(&drops->lock);
    unsigned before = drops->count, i = before;
    while (i > 0 && !is_near(&drops->drop[i - 1], gpa))
        i--;
    if (i > 0)
        widen(&drops->drop[i - 1], gpa, size);
    else if (before == CODE_DROPS_MOST)
        widen(&drops->drop[before - 1], gpa, size);
    else
        drops->drop[drops->count++] = (struct code_drop){ gpa, size };
    pthread_mutex_unlock(&drops->lock);
    return !before;
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
