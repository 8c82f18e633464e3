/*
 * Block requests through a few threads with ordinary calls: for formats, which need several calls one after the other, where
 * io_uring is forbidden (containers, seccomp), and for what io_uring would leave to threads of the kernel's. The pool's own mutex guards the two lists; it
 * is taken inside the board lock, never the other way round. A worker only tries to get the board lock: who has it may be waiting for the worker.
 */
#include "backend/block_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/thread.h"

enum { POOL_THREADS = 8 };    /* at most, and what formats get */

struct request_list {
    struct block_request *first, *last;
};

struct block_pool {
    struct block *block;
    pthread_t thread[POOL_THREADS];
    unsigned threads;
    unsigned under_way;                 /* under the board lock */
    pthread_mutex_t lock;
    pthread_cond_t work, completed;
    struct request_list todo, finished;
    bool stop;
    struct loop_work reap_work;
};

static void append(struct request_list *list, struct block_request *request)
{
    request->next = NULL;
    *(list->first ? &list->last->next : &list->first) = request;
    list->last = request;
}

static struct block_request *take_first(struct request_list *list)
{
    struct block_request *request = list->first;
    if (request)
        list->first = request->next;
    return request;
}

static int64_t host_call(int fd, const struct block_part *part)
{
    int64_t result = -1;
    switch (part->call) {
    case CALL_READV: result = preadv(fd, part->iov, part->iov_count, (off_t)part->offset); break;
    case CALL_WRITEV: result = pwritev(fd, part->iov, part->iov_count, (off_t)part->offset); break;
    case CALL_FSYNC: result = fdatasync(fd); break;
    case CALL_FALLOCATE: result = fallocate(fd, part->mode, (off_t)part->offset, (off_t)part->size); break;
    }
    return result < 0 ? -errno : result;
}

/* Without any lock: the request is the worker's alone. Leaves the status in `progress`. */
static void carry_out(struct block *block, struct block_request *request)
{
    int status = 0;
    if (!request->backend)
        status = block_call_image(block, request);
    else
        while (block_part_next(request, host_call(block->fd, request->backend), &status))
            ;
    request->progress = status;
}

static struct block_request *take_finished(struct block_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct block_request *request = take_first(&pool->finished);
    pthread_mutex_unlock(&pool->lock);
    return request;
}

static void reap(struct block_pool *pool)
{
    struct block_request *request;
    while ((request = take_finished(pool))) {
        pool->under_way--;
        block_complete(pool->block, request, (int)request->progress);
    }
}

static void reap_run(void *owner)
{
    struct block_pool *pool = owner;
    block_board_lock(pool->block);
    reap(pool);
    block_board_unlock(pool->block);
}

/* The worker's; without the pool's lock. */
static void tell(struct block_pool *pool)
{
    if (!block_board_trylock(pool->block)) {
        loop_post(pool->block->loop, &pool->reap_work);
        return;
    }
    reap(pool);
    block_board_unlock(pool->block);
}

static void *worker(void *opaque)
{
    struct block_pool *pool = opaque;
    pthread_mutex_lock(&pool->lock);
    while (!pool->stop) {
        struct block_request *request = take_first(&pool->todo);
        if (!request) {
            pthread_cond_wait(&pool->work, &pool->lock);
            continue;
        }
        pthread_mutex_unlock(&pool->lock);
        carry_out(pool->block, request);
        pthread_mutex_lock(&pool->lock);
        append(&pool->finished, request);
        pthread_cond_signal(&pool->completed);
        pthread_mutex_unlock(&pool->lock);
        tell(pool);
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

void block_pool_submit(struct block_pool *pool, struct block_request *request)
{
    pool->under_way++;
    pthread_mutex_lock(&pool->lock);
    append(&pool->todo, request);
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

bool block_pool_busy(const struct block_pool *pool) { return pool->under_way; }

void block_pool_wait(struct block_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    while (!pool->finished.first)
        pthread_cond_wait(&pool->completed, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    reap(pool);
}

void block_pool_destroy(struct block_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->thread[i], NULL);
    loop_cancel(pool->block->loop, &pool->reap_work);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->completed);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static void start_workers(struct block_pool *pool, unsigned threads)
{
    while (pool->threads < threads && !thread_start(&pool->thread[pool->threads], "disk", worker, pool))
        pool->threads++;
}

struct block_pool *block_pool_create(struct block *block, unsigned threads, struct error *err)
{
    struct block_pool *pool = calloc(1, sizeof(*pool));
    assert(threads <= POOL_THREADS);
    if (!pool) {
        error_set(err, "out of memory");
        return NULL;
    }
    pool->block = block;
    pool->reap_work = (struct loop_work){ .run = reap_run, .owner = pool };
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->completed, NULL);
    start_workers(pool, threads);
    if (pool->threads)
        return pool;
    block_pool_destroy(pool);
    error_set(err, "cannot start threads for the disk");
    return NULL;
}

/* --- as an engine --- */

static bool threads_start(struct block *block, struct error *err)
{
    block->engine_state = block_pool_create(block, POOL_THREADS, err);
    return block->engine_state;
}

static void threads_stop(struct block *block) { block_pool_destroy(block->engine_state); }

static void threads_submit(struct block *block, struct block_request *request) { block_pool_submit(block->engine_state, request); }

static void threads_wait(struct block *block) { block_pool_wait(block->engine_state); }

const struct block_engine block_threads = {
    .name = "threads",
    .start = threads_start,
    .stop = threads_stop,
    .submit = threads_submit,
    .wait = threads_wait,
};
