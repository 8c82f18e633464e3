/*
 * The front of a block backend: opening an image, checking requests, and the three rules that hold for both
 * engines (block_uring.c, block_threads.c): `done` runs on the loop's thread or a worker's, in block_unplug or in block_drain, with the board lock
 * held, never before submit returns; a request is finished piece by piece until it is whole or failed; a discard that the
 * host cannot do is no error.
 */
#include "backend/block_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

enum { FAILURES_SHOWN = 20 };   /* a full host disk would fill the log too */

/* --- opening --- */

bool block_is_raw(const struct block *block)
{
    return block->image->ops->format == DISK_FORMAT_RAW && disk_file_fd(block->image->file) >= 0;
}

static bool open_image(struct block *block, const struct block_options *options, struct error *err)
{
    block->image = options->opened ? options->opened : disk_image_open(options->path, &options->image, err);
    if (!block->image)
        return false;
    if (!block_is_raw(block))
        return true;
    block->fd = disk_file_fd(block->image->file);
    uint64_t rest = block->image->file->ops->size(block->image->file) - block->image->size;
    if (rest)
        log_message(block->log, LOG_WARNING, "the size of %s is no multiple of 512; its last %u bytes are not used",
                    options->path, (unsigned)rest);
    return true;
}

static bool start_engine(struct block *block, const struct block_options *options, struct error *err)
{
    struct error why = { "" };
    if (block_is_raw(block) && options->engine != BLOCK_ENGINE_THREADS) {
        block->engine = &block_uring;
        if (block->engine->start(block, &why))
            return true;
        if (options->engine == BLOCK_ENGINE_URING)
            return error_set(err, "%s", why.text);
        log_message(block->log, LOG_DEBUG, "%s; the disk uses threads", why.text);
    }
    block->engine = &block_threads;
    return block->engine->start(block, err);
}

static void run_refused(void *owner);

struct block *block_open(const struct block_options *options, struct loop *loop, pthread_mutex_t *lock, struct log *log,
                         struct error *err)
{
    struct block *block = calloc(1, sizeof(*block));
    if (!block) {
        disk_image_close(options->opened);
        error_set(err, "out of memory");
        return NULL;
    }
    block->loop = loop;
    block->lock = lock;
    block->log = log;
    block->direct = options->image.direct && !options->image.ephemeral;
    block->refused_work = (struct loop_work){ .run = run_refused, .owner = block };
    if (!open_image(block, options, err) || !start_engine(block, options, err)) {
        disk_image_close(block->image);
        free(block);
        return NULL;
    }
    return block;
}

void block_close(struct block *block)
{
    if (!block)
        return;
    block_board_lock(block);
    block_drain(block);
    block_board_unlock(block);
    block->engine->stop(block);
    if (block->retired) {
        block->engine_state = block->retired_state;
        block->retired->stop(block);
    }
    loop_cancel(block->loop, &block->refused_work);
    int status = disk_image_close(block->image);
    if (status)
        log_message(block->log, LOG_ERROR, "disk: the last changes could not be written: %s", strerror(status));
    free(block);
}

uint64_t block_size(const struct block *block) { return block->image->size; }
bool block_read_only(const struct block *block) { return block->image->read_only; }
bool block_can_discard(const struct block *block) { return !block->image->read_only; }
const char *block_engine_name(const struct block *block) { return block->engine->name; }
const char *block_path(const struct block *block) { return block->image->file->name; }
enum disk_format block_format(const struct block *block) { return block->image->ops->format; }

bool block_settle(struct block *block, struct error *err)
{
    assert(!block->under_way);
    int status = block_read_only(block) ? 0 : block->image->ops->settle(block->image);
    return status ? error_errno(err, status, "cannot write %s", block_path(block)) : true;
}

bool block_switch_to_overlay(struct block *block, const char *path, struct error *err)
{
    assert(!block->under_way);
    struct block_engine const *engine = block->engine;
    void *state = block->engine_state;
    if (block_read_only(block))
        return error_set(err, "%s is read-only and needs no overlay", block_path(block));
    if (block->engine != &block_threads && !block_threads.start(block, err)) {
        block->engine_state = state;
        return false;
    }
    struct disk_image *top = disk_image_overlay(block->image, path, err);
    if (top)
        block->image = top;
    if (engine == &block_threads)
        return top;
    if (!top) {
        block_threads.stop(block);
        block->engine_state = state;
        return false;
    }
    block->engine = &block_threads;
    block->retired = engine;
    block->retired_state = state;
    return true;
}

/* --- locks: NULL in tests --- */

void block_board_lock(struct block *block)
{
    if (block->lock)
        pthread_mutex_lock(block->lock);
}

bool block_board_trylock(struct block *block)
{
    return block->lock && pthread_mutex_trylock(block->lock) == 0;
}

void block_board_unlock(struct block *block)
{
    if (block->lock)
        pthread_mutex_unlock(block->lock);
}

/* --- requests --- */

void block_complete(struct block *block, struct block_request *request, int status)
{
    block_part_free(request);
    block->under_way--;
    if (status && block->failures++ < FAILURES_SHOWN)
        log_message(block->log, LOG_WARNING, "disk: %s of %lu bytes at %lu failed: %s", block_op_name(request->op),
                    (unsigned long)request->size, (unsigned long)request->offset, strerror(status));
    request->done(request, status);
}

const char *block_op_name(enum block_op op)
{
    static const char *const name[] = { "read", "write", "flush", "discard", "write-zeroes" };
    return name[op];
}

int block_call_image(struct block *block, const struct block_request *request)
{
    struct disk_image *image = block->image;
    switch (request->op) {
    case BLOCK_READ: return image->ops->read(image, request->iov, request->iov_count, request->offset);
    case BLOCK_WRITE: return image->ops->write(image, request->iov, request->iov_count, request->offset);
    case BLOCK_FLUSH: return image->ops->flush(image);
    case BLOCK_DISCARD: return image->ops->discard(image, request->offset, request->size);
    case BLOCK_WRITE_ZEROES: break;
    }
    return image->ops->write_zeroes(image, request->offset, request->size, request->unmap);
}

static int check(const struct block *block, const struct block_request *request)
{
    if (request->op == BLOCK_FLUSH)
        return 0;
    if (request->op != BLOCK_READ && block_read_only(block))
        return EROFS;
    if (request->offset % DISK_SECTOR || request->size % DISK_SECTOR || request->iov_count > DISK_IOV_MAX)
        return EINVAL;
    if (request->offset > block_size(block) || request->size > block_size(block) - request->offset)
        return EINVAL;
    return 0;
}

/* Requests that need no host: refused ones, empty ones. They too complete after submit has returned. */
static void refuse(struct block *block, struct block_request *request, int status)
{
    request->progress = status;
    request->next = NULL;
    *(block->refused ? &block->refused_last->next : &block->refused) = request;
    block->refused_last = request;
    loop_post(block->loop, &block->refused_work);
}

static void complete_refused(struct block *block)
{
    while (block->refused) {
        struct block_request *request = block->refused;
        block->refused = request->next;
        block_complete(block, request, (int)request->progress);
    }
}

static void run_refused(void *owner)
{
    struct block *block = owner;
    block_board_lock(block);
    complete_refused(block);
    block_board_unlock(block);
}

void block_submit(struct block *block, struct block_request *request)
{
    request->progress = 0;
    request->backend = NULL;
    request->next = NULL;
    block->under_way++;
    trace(block->log, block, "%s %lu bytes at %lu", block_op_name(request->op), (unsigned long)request->size,
          (unsigned long)request->offset);
    int status = check(block, request);
    bool empty = (request->op != BLOCK_FLUSH && !request->size) || (request->op == BLOCK_FLUSH && block_read_only(block));
    if (status || empty)
        refuse(block, request, status);
    else if (block_is_raw(block) && !block_part_init(block, request))
        refuse(block, request, ENOMEM);
    else
        block->engine->submit(block, request);
}

void block_plug(struct block *block)
{
    if (block->engine->plug)
        block->engine->plug(block);
}

void block_unplug(struct block *block)
{
    if (block->engine->unplug)
        block->engine->unplug(block);
}

void block_drain(struct block *block)
{
    while (block->under_way) {
        complete_refused(block);
        if (block->under_way)
            block->engine->wait(block);
    }
}
