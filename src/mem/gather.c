#include "mem/gather.h"

#include <stdlib.h>
#include <time.h>

#include "base/thread.h"

enum {
    PIECES = RAM_LARGE / RAM_PIECE, ENOUGH = PIECES * 3 / 4,
    FIRST_MS = 3000,
    REST = 4,                               /* times as long as it worked */
};

struct ram_gatherer {
    struct ram *ram;
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;                  /* guards what follows */
    pthread_cond_t changed;
    bool stop;
    uint64_t *gpa;                          /* what is to be gathered, each once; those before `next` have been */
    size_t next, count, room;
};

struct ram_gatherer *ram_gatherer_create(struct ram *ram)
{
    struct ram_gatherer *gatherer = calloc(1, sizeof(*gatherer));
    pthread_condattr_t monotonic;
    if (!gatherer)
        return NULL;
    gatherer->ram = ram;
    pthread_mutex_init(&gatherer->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&gatherer->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return gatherer;
}

void ram_gatherer_destroy(struct ram_gatherer *gatherer)
{
    if (!gatherer)
        return;
    pthread_mutex_lock(&gatherer->mutex);
    gatherer->stop = true;
    pthread_cond_signal(&gatherer->changed);
    pthread_mutex_unlock(&gatherer->mutex);
    if (gatherer->started)
        pthread_join(gatherer->thread, NULL);
    pthread_cond_destroy(&gatherer->changed);
    pthread_mutex_destroy(&gatherer->mutex);
    free(gatherer->gpa);
    free(gatherer);
}

/* --- what is to be done --- */

/* Mutex held. Without memory for the list it is left as it is. */
static void add(struct ram_gatherer *gatherer, uint64_t gpa)
{
    if (gatherer->count == gatherer->room) {
        size_t room = gatherer->room ? 2 * gatherer->room : 64;
        uint64_t *grown = realloc(gatherer->gpa, room * sizeof(*grown));
        if (!grown)
            return;
        gatherer->gpa = grown;
        gatherer->room = room;
    }
    gatherer->gpa[gatherer->count++] = gpa;
    pthread_cond_signal(&gatherer->changed);
}

static unsigned granted_pieces(const struct ram_slot *slot, uint64_t gpa)
{
    unsigned granted = 0;
    for (uint64_t at = gpa; at < gpa + RAM_LARGE; at += RAM_PIECE)
        granted += (atomic_load_explicit(ram_page(slot, at), memory_order_relaxed) & PAGE_GRANTED) != 0;
    return granted;
}

void ram_gather_later(struct ram_gatherer *gatherer, const struct ram_slot *slot, uint64_t gpa)
{
    static const uint32_t known = PAGE_LARGE_WANTED | PAGE_LARGE | PAGE_LARGE_REFUSED;
    uint64_t from = align_down(gpa, RAM_LARGE);
    if (slot->gpa % RAM_PIECE || !ram_can_be_large(slot, gpa) || atomic_load_explicit(ram_page(slot, from), memory_order_relaxed) & known)
        return;
    if (granted_pieces(slot, from) < ENOUGH || atomic_fetch_or(ram_page(slot, from), PAGE_LARGE_WANTED) & known)
        return;
    pthread_mutex_lock(&gatherer->mutex);
    add(gatherer, from);
    pthread_mutex_unlock(&gatherer->mutex);
}

bool ram_gather_next(struct ram_gatherer *gatherer)
{
    pthread_mutex_lock(&gatherer->mutex);
    bool some = gatherer->next < gatherer->count;
    uint64_t gpa = some ? gatherer->gpa[gatherer->next++] : 0;
    pthread_mutex_unlock(&gatherer->mutex);
    struct ram_slot *slot = some ? ram_find(gatherer->ram, gpa) : NULL;
    if (slot)
        ram_make_large(gatherer->ram, slot, gpa);
    return some;
}

/* --- the thread --- */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Until it is that late, or with 0 until there is something to do. False: it is time to end. */
static bool rest_until(struct ram_gatherer *gatherer, uint64_t ns)
{
    const struct timespec time = { .tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000) };
    pthread_mutex_lock(&gatherer->mutex);
    while (!gatherer->stop && ns && now_ns() < ns)
        pthread_cond_timedwait(&gatherer->changed, &gatherer->mutex, &time);
    while (!gatherer->stop && !ns && gatherer->next == gatherer->count)
        pthread_cond_wait(&gatherer->changed, &gatherer->mutex);
    bool stop = gatherer->stop;
    pthread_mutex_unlock(&gatherer->mutex);
    return !stop;
}

static void *gather(void *opaque)
{
    struct ram_gatherer *gatherer = opaque;
    bool go_on = rest_until(gatherer, now_ns() + FIRST_MS * 1000000ull);
    while (go_on) {
        uint64_t begin = now_ns();
        bool some = ram_gather_next(gatherer);
        uint64_t end = now_ns();
        go_on = rest_until(gatherer, some ? end + REST * (end - begin) : 0);
    }
    return NULL;
}

void ram_gatherer_start(struct ram_gatherer *gatherer)
{
    if (gatherer)
        gatherer->started = !thread_start(&gatherer->thread, "memory", gather, gatherer);
}
