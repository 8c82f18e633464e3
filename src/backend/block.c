/*
 * The front of a block backend: opening and locking an image, checking requests, and the three rules that hold for both
 * engines (block_uring.c, block_threads.c): `done` runs on the loop's thread or in block_drain, with the board lock held,
 * never before submit returns; a request is finished piece by piece until it is whole or failed; a discard that the
 * host cannot do is no error.
 */
#include "backend/block_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

enum { FAILURES_SHOWN = 20 };   /* a full host disk would fill the log too */

/* --- opening --- */

/* F_OFD_SETLK: the lock belongs to this open file, so that a second run, or a second machine here, is refused. */
static bool lock_image(int fd, const struct block_options *options, struct error *err)
{
    struct flock lock = { .l_type = options->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return true;
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, "the image %s is in use by another run", options->path);
    return error_errno(err, errno, "cannot lock the image %s", options->path);
}

static bool measure(struct block *block, const struct block_options *options, struct error *err)
{
    struct stat st;
    if (fstat(block->fd, &st) != 0)
        return error_errno(err, errno, "cannot examine the image %s", options->path);
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(block->fd, BLKGETSIZE64, &block->size) != 0)
            return error_errno(err, errno, "cannot tell the size of %s", options->path);
        block->is_device = true;
    } else if (S_ISREG(st.st_mode)) {
        block->size = (uint64_t)st.st_size;
    } else {
        return error_set(err, "%s is neither a file nor a block device", options->path);
    }
    if (block->size % BLOCK_SECTOR)
        log_message(block->log, LOG_WARNING, "the size of %s is no multiple of 512; its last %u bytes are not used",
                    options->path, (unsigned)(block->size % BLOCK_SECTOR));
    block->size = align_down(block->size, BLOCK_SECTOR);
    return true;
}

static bool open_image(struct block *block, const struct block_options *options, struct error *err)
{
    int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | (options->direct ? O_DIRECT : 0);
    block->fd = open(options->path, flags);
    if (block->fd < 0)
        return error_errno(err, errno, "cannot open the image %s", options->path);
    return measure(block, options, err) && lock_image(block->fd, options, err);
}

static bool start_engine(struct block *block, const struct block_options *options, struct error *err)
{
    struct error why = { "" };
    if (options->engine != BLOCK_ENGINE_THREADS) {
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
        error_set(err, "out of memory");
        return NULL;
    }
    block->loop = loop;
    block->lock = lock;
    block->log = log;
    block->read_only = options->read_only;
    block->direct = options->direct;
    block->refused_work = (struct loop_work){ .run = run_refused, .owner = block };
    if (!open_image(block, options, err) || !start_engine(block, options, err)) {
        if (block->fd >= 0)
            close(block->fd);
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
    loop_cancel(block->loop, &block->refused_work);
    if (!block->read_only)
        fdatasync(block->fd);
    close(block->fd);           /* gives the lock back */
    free(block);
}

uint64_t block_size(const struct block *block) { return block->size; }
bool block_read_only(const struct block *block) { return block->read_only; }
bool block_can_discard(const struct block *block) { return !block->read_only; }
const char *block_engine_name(const struct block *block) { return block->engine->name; }

/* --- locks: NULL in tests --- */

void block_board_lock(struct block *block)
{
    if (block->lock)
        pthread_mutex_lock(block->lock);
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

static int check(const struct block *block, const struct block_request *request)
{
    if (request->op == BLOCK_FLUSH)
        return 0;
    if (request->op != BLOCK_READ && block->read_only)
        return EROFS;
    if (request->offset % BLOCK_SECTOR || request->size % BLOCK_SECTOR)
        return EINVAL;
    if (request->offset > block->size || request->size > block->size - request->offset)
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
    bool empty = (request->op != BLOCK_FLUSH && !request->size) || (request->op == BLOCK_FLUSH && block->read_only);
    if (status || empty)
        refuse(block, request, status);
    else if (!block_part_init(block, request))
        refuse(block, request, ENOMEM);
    else
        block->engine->submit(block, request);
}

void block_drain(struct block *block)
{
    while (block->under_way) {
        complete_refused(block);
        if (block->under_way)
            block->engine->wait(block);
    }
}
