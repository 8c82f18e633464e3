#include "base/ahead.h"

#include <sched.h>
#include <stdlib.h>

#include "base/base.h"
#include "base/thread.h"

enum { REQUESTS = 32 };

struct request {
    ahead_fn *grant;
    void *owner;
    uint8_t *at;
    size_t size;
};

struct ahead {
    pthread_t thread;
    pthread_mutex_t mutex;              /* guards what follows */
    pthread_cond_t changed;
    bool stop;
    unsigned first, count;              /* of a ring */
    struct request request[REQUESTS];
};

/* False: it is time to end. */
static bool next_request(struct ahead *ahead, struct request *request)
{
    pthread_mutex_lock(&ahead->mutex);
    while (!ahead->stop && !ahead->count)
        pthread_cond_wait(&ahead->changed, &ahead->mutex);
    bool some = !ahead->stop;
    if (some) {
        *request = ahead->request[ahead->first++ % REQUESTS];
        ahead->count--;
    }
    pthread_mutex_unlock(&ahead->mutex);
    return some;
}

/* A batch thread takes a processor that is free at once, and does not drive those away for whom it grants from theirs. */
static void *work(void *opaque)
{
    struct request request;
    sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 });     /* a refusal does no harm */
    while (next_request(opaque, &request))
        request.grant(request.owner, request.at, request.size);
    return NULL;
}

static void release(struct ahead *ahead)
{
    pthread_cond_destroy(&ahead->changed);
    pthread_mutex_destroy(&ahead->mutex);
    free(ahead);
}

struct ahead *ahead_create(void)
{
    struct ahead *ahead = calloc(1, sizeof(*ahead));
    if (!ahead)
        return NULL;
    pthread_mutex_init(&ahead->mutex, NULL);
    pthread_cond_init(&ahead->changed, NULL);
    if (!thread_start(&ahead->thread, "ahead", work, ahead))
        return ahead;
    release(ahead);
    return NULL;
}

void ahead_destroy(struct ahead *ahead)
{
    if (!ahead)
        return;
    pthread_mutex_lock(&ahead->mutex);
    ahead->stop = true;
    pthread_cond_signal(&ahead->changed);
    pthread_mutex_unlock(&ahead->mutex);
    pthread_join(ahead->thread, NULL);
    release(ahead);
}

bool ahead_ask(struct ahead *ahead, ahead_fn *grant, void *owner, uint8_t *at, size_t size)
{
    if (!ahead)
        return false;
    pthread_mutex_lock(&ahead->mutex);
    bool room = ahead->count < REQUESTS;
    if (room) {
        ahead->request[(ahead->first + ahead->count++) % REQUESTS] = (struct request){ .grant = grant, .owner = owner, .at = at, .size = size };
        pthread_cond_signal(&ahead->changed);
    }
    pthread_mutex_unlock(&ahead->mutex);
    return room;
}

/* --- arenas --- */

/* The large pages that begin in the piece. */
static void touch_large_pages(void *owner, uint8_t *at, size_t size)
{
    (void)owner;
    for (uint8_t *page = (uint8_t *)align_up((uintptr_t)at, AHEAD_PIECE); page < at + size; page += AHEAD_PIECE)
        ahead_touch(page);
}

void ahead_of_arena(struct ahead *ahead, struct ahead_arena *arena, size_t used)
{
    while (ahead && used + AHEAD_MARGIN > arena->asked && arena->asked < arena->size) {
        size_t size = arena->size - arena->asked < AHEAD_PIECE ? arena->size - arena->asked : AHEAD_PIECE;
        ahead_ask(ahead, touch_large_pages, NULL, arena->base + arena->asked, size);
        arena->asked += size;
    }
}
