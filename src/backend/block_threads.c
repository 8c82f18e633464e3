/*
 * Block requests through a few threads with ordinary calls: for formats, which need several calls one after the other, and where
 * io_uring is forbidden (containers, seccomp). The pool's own mutex guards the two lists; it is taken inside the board lock, never the other way round.
 */
#include "backend/block_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"

enum { POOL_THREADS = 8 };

struct request_list {
    struct block_request *first, *last;
};

struct pool {
    struct block *block;
    pthread_t thread[POOL_THREADS];
    unsigned threads;
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

static void *worker(void *opaque)
{
    struct pool *pool = opaque;
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
        loop_post(pool->block->loop, &pool->reap_work);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static struct block_request *take_finished(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct block_request *request = take_first(&pool->finished);
    pthread_mutex_unlock(&pool->lock);
    return request;
}

static void reap(struct pool *pool)
{
    struct block_request *request;
    while ((request = take_finished(pool)))
        block_complete(pool->block, request, (int)request->progress);
}

static void reap_run(void *owner)
{
    struct pool *pool = owner;
    block_board_lock(pool->block);
    reap(pool);
    block_board_unlock(pool->block);
}

static void threads_submit(struct block *block, struct block_request *request)
{
    struct pool *pool = block->engine_state;
    pthread_mutex_lock(&pool->lock);
    append(&pool->todo, request);
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

static void threads_wait(struct block *block)
{
    struct pool *pool = block->engine_state;
    pthread_mutex_lock(&pool->lock);
    while (!pool->finished.first)
        pthread_cond_wait(&pool->completed, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    reap(pool);
}

static void threads_stop(struct block *block)
{
    struct pool *pool = block->engine_state;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->thread[i], NULL);
    loop_cancel(block->loop, &pool->reap_work);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->completed);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* Signals are the main thread's affair. */
static void start_workers(struct pool *pool)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool->threads < POOL_THREADS && pthread_create(&pool->thread[pool->threads], NULL, worker, pool) == 0)
        pool->threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static bool threads_start(struct block *block, struct error *err)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    if (!pool)
        return error_set(err, "out of memory");
    pool->block = block;
    pool->reap_work = (struct loop_work){ .run = reap_run, .owner = pool };
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->completed, NULL);
    block->engine_state = pool;
    start_workers(pool);
    if (pool->threads)
        return true;
    threads_stop(block);
    return error_set(err, "cannot start threads for the disk");
}

const struct block_engine block_threads = {
    .name = "threads",
    .start = threads_start,
    .stop = threads_stop,
    .submit = threads_submit,
    .wait = threads_wait,
};
