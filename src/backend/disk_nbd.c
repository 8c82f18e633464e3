/*
 * NBD through libnbd. Any number of threads start commands on one connection and sleep until theirs is answered; one thread of ours moves the
 * bytes. A server that does not answer for long, or whose connection breaks, is given up: everything under way and everything
 * later fails, and nobody waits for ever.
 */
#include "backend/disk_nbd.h"

#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "backend/iov.h"
#include "base/base.h"
#include "base/error.h"
#include "base/library.h"
#include "base/thread.h"

enum { PIECE_MAX = 1 << 20, MINIMUM_MAX = 512, PATIENCE_SECONDS = 60 };

struct libnbd {
#define FUNCTION LIBRARY_POINTER
#include "backend/libnbd.def"
#undef FUNCTION
};

static const char *const libnbd_names[] = {
#define FUNCTION LIBRARY_NAME
#include "backend/libnbd.def"
#undef FUNCTION
};

struct nbd_file {
    struct disk_file file;
    struct libnbd lib;
    struct nbd_handle *nbd;             /* libnbd locks it itself */
    uint64_t size, piece;               /* bytes; of one command */
    bool can_flush, can_trim;
    pthread_t mover;
    int wake_fd;                        /* there is something to send */
    bool started;                       /* there is a mover to join */
    pthread_mutex_t issue_lock;         /* held while a command is handed to libnbd; outside `lock` */
    pthread_mutex_t lock;               /* guards what follows, and `done` and `status` of commands */
    pthread_cond_t answered;
    bool moves;                         /* the mover runs */
    bool stop, gone;
};

struct command {
    struct nbd_file *nbd;
    bool done;
    int status;
};

static struct nbd_file *nbd_of(const struct disk_file *file)
{
    return container_of(file, struct nbd_file, file);
}

/* --- the mover --- */

static void give_up(struct nbd_file *nbd)
{
    pthread_mutex_lock(&nbd->lock);
    nbd->gone = true;
    pthread_cond_broadcast(&nbd->answered);
    pthread_mutex_unlock(&nbd->lock);
}

static bool is_over(struct nbd_file *nbd)
{
    pthread_mutex_lock(&nbd->lock);
    bool over = nbd->stop || nbd->gone;
    pthread_mutex_unlock(&nbd->lock);
    return over;
}

static bool connection_lost(struct nbd_file *nbd)
{
    return nbd->lib.nbd_aio_is_dead(nbd->nbd) || nbd->lib.nbd_aio_is_closed(nbd->nbd);
}

/* One wait, and what came of it. */
static void move_once(struct nbd_file *nbd)
{
    unsigned direction = nbd->lib.nbd_aio_get_direction(nbd->nbd);
    struct pollfd fds[] = { { .fd = nbd->wake_fd, .events = POLLIN }, { .fd = nbd->lib.nbd_aio_get_fd(nbd->nbd) } };
    uint64_t count;
    if (direction & LIBNBD_AIO_DIRECTION_READ)
        fds[1].events |= POLLIN;
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        fds[1].events |= POLLOUT;
    if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
        return;
    if (fds[0].revents && read(nbd->wake_fd, &count, sizeof(count)) < 0)
        return;
    direction = nbd->lib.nbd_aio_get_direction(nbd->nbd);        /* another thread may have sent meanwhile */
    if (fds[1].revents & (POLLIN | POLLHUP | POLLERR) && direction & LIBNBD_AIO_DIRECTION_READ)
        nbd->lib.nbd_aio_notify_read(nbd->nbd);
    else if (fds[1].revents & POLLOUT && direction & LIBNBD_AIO_DIRECTION_WRITE)
        nbd->lib.nbd_aio_notify_write(nbd->nbd);
}

static void *move(void *opaque)
{
    struct nbd_file *nbd = opaque;
    while (!is_over(nbd)) {
        if (connection_lost(nbd))
            give_up(nbd);
        else
            move_once(nbd);
    }
    pthread_mutex_lock(&nbd->lock);
    nbd->moves = false;
    pthread_cond_broadcast(&nbd->answered);
    pthread_mutex_unlock(&nbd->lock);
    return NULL;
}

static void wake_mover(struct nbd_file *nbd)
{
    ssize_t written = write(nbd->wake_fd, &(uint64_t){ 1 }, sizeof(uint64_t));
    (void)written;              /* fails only when the counter is full, and then it wakes anyway */
}

/* --- commands --- */

static int answered(void *user, int *error)
{
    struct command *command = user;
    pthread_mutex_lock(&command->nbd->lock);
    command->status = *error;
    command->done = true;
    pthread_cond_broadcast(&command->nbd->answered);
    pthread_mutex_unlock(&command->nbd->lock);
    return 1;                   /* libnbd forgets the command */
}

/* Afterwards nobody touches the memory of commands that were not answered. */
static void wait_until_quiet(struct nbd_file *nbd)
{
    wake_mover(nbd);
    pthread_mutex_lock(&nbd->lock);
    while (nbd->moves)
        pthread_cond_wait(&nbd->answered, &nbd->lock);
    pthread_mutex_unlock(&nbd->lock);
    pthread_mutex_lock(&nbd->issue_lock);       /* who comes later sees that it is over */
    pthread_mutex_unlock(&nbd->issue_lock);
}

static int wait_for(struct nbd_file *nbd, struct command *command)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PATIENCE_SECONDS;
    pthread_mutex_lock(&nbd->lock);
    while (!command->done && !nbd->gone)
        if (pthread_cond_clockwait(&nbd->answered, &nbd->lock, CLOCK_MONOTONIC, &until) == ETIMEDOUT && !command->done) {
            nbd->gone = true;
            pthread_cond_broadcast(&nbd->answered);
        }
    bool done = command->done;
    pthread_mutex_unlock(&nbd->lock);
    if (done)
        return command->status;
    wait_until_quiet(nbd);
    return command->done ? command->status : EIO;
}

enum what { READ, WRITE, FLUSH, TRIM };

static int64_t issue(struct nbd_file *nbd, enum what what, void *buffer, uint64_t size, uint64_t offset,
                     nbd_completion_callback callback)
{
    switch (what) {
    case READ: return nbd->lib.nbd_aio_pread(nbd->nbd, buffer, size, offset, callback, 0);
    case WRITE: return nbd->lib.nbd_aio_pwrite(nbd->nbd, buffer, size, offset, callback, 0);
    case FLUSH: return nbd->lib.nbd_aio_flush(nbd->nbd, callback, 0);
    case TRIM: break;
    }
    return nbd->lib.nbd_aio_trim(nbd->nbd, size, offset, callback, 0);
}

static int run(struct nbd_file *nbd, enum what what, void *buffer, uint64_t size, uint64_t offset)
{
    struct command command = { .nbd = nbd };
    const nbd_completion_callback callback = { .callback = answered, .user_data = &command };
    pthread_mutex_lock(&nbd->issue_lock);
    bool issued = !is_over(nbd) && issue(nbd, what, buffer, size, offset, callback) >= 0;
    pthread_mutex_unlock(&nbd->issue_lock);
    if (!issued)
        return EIO;
    wake_mover(nbd);
    return wait_for(nbd, &command);
}

/* Piece by piece through one buffer, unless the caller's is one already. */
static int transfer(struct nbd_file *nbd, const struct iovec *iov, int count, uint64_t offset, bool write)
{
    uint64_t size = iov_size(iov, count), piece = min_u64(size, nbd->piece);
    uint8_t *bounce = count > 1 ? malloc(piece) : NULL;
    struct iovec *part = count > 1 ? malloc((size_t)count * sizeof(*part)) : NULL;
    int status = count > 1 && (!bounce || !part) ? ENOMEM : 0;
    for (uint64_t done = 0; done < size && !status; done += piece) {
        piece = min_u64(size - done, nbd->piece);
        uint8_t *buffer = bounce ? bounce : (uint8_t *)iov->iov_base + done;
        int parts = bounce ? iov_slice(iov, count, done, piece, part) : 0;
        if (write)
            iov_gather(part, parts, buffer);
        status = run(nbd, write ? WRITE : READ, buffer, piece, offset + done);
        if (!write && !status)
            iov_fill(part, parts, buffer);
    }
    free(bounce);
    free(part);
    return status;
}

/* --- operations --- */

static int nbd_read(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    struct nbd_file *nbd = nbd_of(file);
    uint64_t size = iov_size(iov, count), there = offset < nbd->size ? min_u64(size, nbd->size - offset) : 0;
    if (there == size)
        return transfer(nbd, iov, count, offset, false);
    struct iovec *part = malloc((size_t)count * sizeof(*part));
    if (!part)
        return ENOMEM;
    iov_clear(part, iov_slice(iov, count, there, size - there, part));
    int status = there ? transfer(nbd, part, iov_slice(iov, count, 0, there, part), offset, false) : 0;
    free(part);
    return status;
}

static int nbd_write(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    struct nbd_file *nbd = nbd_of(file);
    uint64_t size = iov_size(iov, count);
    if (offset > nbd->size || size > nbd->size - offset)
        return ENOSPC;
    return transfer(nbd, iov, count, offset, true);
}

static int nbd_flush_file(struct disk_file *file)
{
    struct nbd_file *nbd = nbd_of(file);
    return nbd->can_flush && !file->read_only ? run(nbd, FLUSH, NULL, 0, 0) : 0;
}

static void nbd_punch(struct disk_file *file, uint64_t offset, uint64_t size)
{
    struct nbd_file *nbd = nbd_of(file);
    for (uint64_t done = 0, piece; done < size && nbd->can_trim; done += piece) {
        piece = min_u64(size - done, GiB);
        if (run(nbd, TRIM, NULL, piece, offset + done))
            return;
    }
}

static int nbd_truncate(struct disk_file *file, uint64_t size)
{
    return size == nbd_of(file)->size ? 0 : ENOTSUP;
}

static uint64_t nbd_size(struct disk_file *file)
{
    return nbd_of(file)->size;
}

static void nbd_close_file(struct disk_file *file)
{
    struct nbd_file *nbd = nbd_of(file);
    if (nbd->started) {
        pthread_mutex_lock(&nbd->lock);
        nbd->stop = true;
        pthread_mutex_unlock(&nbd->lock);
        wake_mover(nbd);
        pthread_join(nbd->mover, NULL);
    }
    if (nbd->nbd && nbd->lib.nbd_aio_is_ready(nbd->nbd) > 0 && !nbd->gone)
        nbd->lib.nbd_shutdown(nbd->nbd, 0);
    if (nbd->nbd)
        nbd->lib.nbd_close(nbd->nbd);
    if (nbd->wake_fd >= 0)
        close(nbd->wake_fd);
    pthread_cond_destroy(&nbd->answered);
    pthread_mutex_destroy(&nbd->lock);
    pthread_mutex_destroy(&nbd->issue_lock);
    free(file->name);
    free(nbd);
}

static const struct disk_file_ops nbd_ops = {
    .read = nbd_read,
    .write = nbd_write,
    .flush = nbd_flush_file,
    .punch = nbd_punch,
    .truncate = nbd_truncate,
    .size = nbd_size,
    .close = nbd_close_file,
};

/* --- opening --- */

bool disk_nbd_is_uri(const char *name)
{
    static const char *const schemes[] = { "nbd://", "nbds://", "nbd+unix://", "nbds+unix://" };
    for (unsigned i = 0; i < ARRAY_SIZE(schemes); i++)
        if (!strncmp(name, schemes[i], strlen(schemes[i])))
            return true;
    return false;
}

static bool library_error(const struct nbd_file *nbd, struct error *err)
{
    return error_set(err, "cannot use %s: %s", nbd->file.name, nbd->lib.nbd_get_error() ? nbd->lib.nbd_get_error() : "unknown reason");
}

static bool connect_to(struct nbd_file *nbd, struct error *err)
{
    if (!library_load("libnbd.so.0", libnbd_names, ARRAY_SIZE(libnbd_names), &nbd->lib, err))
        return false;
    nbd->nbd = nbd->lib.nbd_create();
    if (!nbd->nbd)
        return library_error(nbd, err);
    nbd->lib.nbd_set_uri_allow_transports(nbd->nbd, LIBNBD_ALLOW_TRANSPORT_TCP | LIBNBD_ALLOW_TRANSPORT_UNIX);
    if (nbd->lib.nbd_connect_uri(nbd->nbd, nbd->file.name) < 0)
        return library_error(nbd, err);
    int64_t size = nbd->lib.nbd_get_size(nbd->nbd), most = nbd->lib.nbd_get_block_size(nbd->nbd, LIBNBD_SIZE_MAXIMUM);
    if (size < 0)
        return library_error(nbd, err);
    if (nbd->lib.nbd_get_block_size(nbd->nbd, LIBNBD_SIZE_MINIMUM) > MINIMUM_MAX)
        return error_set(err, "%s takes no requests as small as a sector", nbd->file.name);
    if (!nbd->file.read_only && nbd->lib.nbd_is_read_only(nbd->nbd) > 0)
        return error_set(err, "%s can only be read; use it with ro", nbd->file.name);
    nbd->size = (uint64_t)size;
    nbd->piece = most > 0 ? min_u64(PIECE_MAX, align_down((uint64_t)most, MINIMUM_MAX)) : PIECE_MAX;
    nbd->can_flush = nbd->lib.nbd_can_flush(nbd->nbd) > 0;
    nbd->can_trim = nbd->lib.nbd_can_trim(nbd->nbd) > 0;
    return true;
}

static bool start_mover(struct nbd_file *nbd, struct error *err)
{
    nbd->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (nbd->wake_fd < 0)
        return error_errno(err, errno, "cannot use %s", nbd->file.name);
    nbd->moves = true;
    nbd->started = !thread_start(&nbd->mover, "nbd", move, nbd);
    return nbd->started || error_set(err, "cannot start a thread for %s", nbd->file.name);
}

struct disk_file *disk_nbd_open(const char *uri, bool read_only, struct error *err)
{
    struct nbd_file *nbd = calloc(1, sizeof(*nbd));
    char *name = strdup(uri);
    if (!nbd || !name) {
        free(nbd);
        free(name);
        error_set(err, "out of memory");
        return NULL;
    }
    nbd->file = (struct disk_file){ .ops = &nbd_ops, .name = name, .read_only = read_only };
    nbd->wake_fd = -1;
    pthread_mutex_init(&nbd->issue_lock, NULL);
    pthread_mutex_init(&nbd->lock, NULL);
    pthread_cond_init(&nbd->answered, NULL);
    if (connect_to(nbd, err) && start_mover(nbd, err))
        return &nbd->file;
    nbd_close_file(&nbd->file);
    return NULL;
}
