/*
 * Block requests through io_uring. The ring is touched only with the board lock held; the kernel signals completions
 * through an eventfd that the loop watches, and whoever holds the lock next (the loop's handler, or a drain) reaps them.
 */
#include "backend/block_internal.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"

/*
 * What the host has in its cache is copied by whoever submits, a processor of the guest that holds the board lock. Large transfers are
 * left to threads, where several run at once. So are writes that go through the host's cache: few file systems of the host take them without
 * waiting, and for all others the ring would have threads of the kernel's, each write with its own, and slower.
 */
enum { RING_ENTRIES = 128, LARGE = 128 * 1024, THREADS = 2 };

struct uring {
    struct block *block;
    struct io_uring ring;
    struct loop_fd event;
    unsigned in_kernel;                                 /* submitted or in the submission queue */
    bool plugged;
    struct block_request *waiting, *waiting_last;       /* no room in the ring */
    struct loop_work retry;                             /* the kernel would not take submissions */
    struct block_pool *pool;
};

static void prepare(struct io_uring_sqe *sqe, int fd, struct block_request *request)
{
    const struct block_part *part = request->backend;
    switch (part->call) {
    case CALL_READV: io_uring_prep_readv(sqe, fd, part->iov, (unsigned)part->iov_count, part->offset); break;
    case CALL_WRITEV: io_uring_prep_writev(sqe, fd, part->iov, (unsigned)part->iov_count, part->offset); break;
    case CALL_FSYNC: io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC); break;
    case CALL_FALLOCATE:
        io_uring_prep_fallocate(sqe, fd, part->mode, (off_t)part->offset, (off_t)part->size);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
}

static void wait_in_line(struct uring *uring, struct block_request *request)
{
    request->next = NULL;
    *(uring->waiting ? &uring->waiting_last->next : &uring->waiting) = request;
    uring->waiting_last = request;
}

/* Never more in the kernel than the completion queue holds, so it cannot overflow. */
static bool queue(struct uring *uring, struct block_request *request)
{
    struct io_uring_sqe *sqe = uring->in_kernel < RING_ENTRIES ? io_uring_get_sqe(&uring->ring) : NULL;
    if (!sqe)
        return false;
    prepare(sqe, uring->block->fd, request);
    uring->in_kernel++;
    return true;
}

static void kick(struct uring *uring)
{
    while (uring->waiting && queue(uring, uring->waiting))
        uring->waiting = uring->waiting->next;
    if (io_uring_sq_ready(&uring->ring) && io_uring_submit(&uring->ring) < 0)
        loop_post(uring->block->loop, &uring->retry);
}

static void finish_one(struct uring *uring, struct block_request *request, int result)
{
    int status = 0;
    uring->in_kernel--;
    if (block_part_next(request, result, &status))
        wait_in_line(uring, request);
    else
        block_complete(uring->block, request, status);
}

static unsigned reap(struct uring *uring)
{
    struct io_uring_cqe *cqe;
    unsigned count = 0;
    while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        struct block_request *request = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        finish_one(uring, request, result);
        count++;
    }
    kick(uring);
    return count;
}

static void event_ready(void *owner, uint32_t events)
{
    struct uring *uring = owner;
    uint64_t count;
    ssize_t got = read(uring->event.fd, &count, sizeof(count));
    (void)got;                  /* only to make it quiet again */
    block_board_lock(uring->block);
    reap(uring);
    block_board_unlock(uring->block);
}

static void retry_run(void *owner)
{
    struct uring *uring = owner;
    block_board_lock(uring->block);
    reap(uring);
    block_board_unlock(uring->block);
}

static bool is_for_threads(const struct block *block, const struct block_part *part)
{
    bool transfer = part->call == CALL_READV || part->call == CALL_WRITEV;
    return !block->direct && transfer && (part->call == CALL_WRITEV || part->size >= LARGE);
}

static void uring_submit(struct block *block, struct block_request *request)
{
    struct uring *uring = block->engine_state;
    if (is_for_threads(block, request->backend)) {
        block_pool_submit(uring->pool, request);
        return;
    }
    wait_in_line(uring, request);
    if (!uring->plugged)
        kick(uring);
}

static void uring_plug(struct block *block)
{
    struct uring *uring = block->engine_state;
    uring->plugged = true;
}

/*
 * What the host's cache holds is read before io_uring_enter returns. Nobody needs to be woken for that: the event is off
 * until we look. A completion that comes before the fence is seen here, one that comes after it raises the event.
 */
static void uring_unplug(struct block *block)
{
    struct uring *uring = block->engine_state;
    uring->plugged = false;
    if (!uring->waiting)
        return;
    io_uring_cq_eventfd_toggle(&uring->ring, false);
    kick(uring);
    io_uring_cq_eventfd_toggle(&uring->ring, true);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    reap(uring);
}

static void uring_wait(struct block *block)
{
    struct uring *uring = block->engine_state;
    struct io_uring_cqe *cqe;
    if (block_pool_busy(uring->pool)) {
        block_pool_wait(uring->pool);
        return;
    }
    kick(uring);
    io_uring_wait_cqe(&uring->ring, &cqe);
    reap(uring);
}

/* What there is of it. */
static void end(struct uring *uring)
{
    if (uring->pool)
        block_pool_destroy(uring->pool);
    if (uring->event.fd >= 0)
        close(uring->event.fd);
    if (uring->ring.ring_fd >= 0)
        io_uring_queue_exit(&uring->ring);
    free(uring);
}

static bool uring_start(struct block *block, struct error *err)
{
    struct uring *uring = calloc(1, sizeof(*uring));
    if (!uring)
        return error_set(err, "out of memory");
    uring->block = block;
    uring->retry = (struct loop_work){ .run = retry_run, .owner = uring };
    uring->event = (struct loop_fd){ .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .events = EPOLLIN,
                                     .ready = event_ready, .owner = uring };
    int result = uring->event.fd < 0 ? -errno : io_uring_queue_init(RING_ENTRIES, &uring->ring, 0);
    if (result < 0)
        uring->ring.ring_fd = -1;
    else
        result = io_uring_register_eventfd(&uring->ring, uring->event.fd);
    if (result < 0)
        error_errno(err, -result, "io_uring cannot be used");
    else
        uring->pool = block_pool_create(block, THREADS, err);
    if (!uring->pool) {
        end(uring);
        return false;
    }
    block->engine_state = uring;
    loop_add(block->loop, &uring->event);
    return true;
}

static void uring_stop(struct block *block)
{
    struct uring *uring = block->engine_state;
    loop_remove(block->loop, &uring->event);
    loop_cancel(block->loop, &uring->retry);
    end(uring);
}

const struct block_engine block_uring = {
    .name = "io_uring",
    .start = uring_start,
    .stop = uring_stop,
    .submit = uring_submit,
    .wait = uring_wait,
    .plug = uring_plug,
    .unplug = uring_unplug,
};
