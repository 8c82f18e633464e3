/*
 * The event loop over epoll. Other threads reach it in three ways only: they change the epoll set (the kernel's lock), they
 * push work on a list and write an eventfd, or, where it is lazy work, set a timer. Everything else is touched by the loop's thread alone.
 */
#include "base/loop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/base.h"
#include "base/error.h"

enum { BATCH_MAX = 64, POLLER_FDS_MAX = 256 };

struct loop {
    int epoll_fd, wake_fd;
    atomic_bool stop;
    pthread_mutex_t lock;               /* guards the work lists and the always-ready list */
    struct loop_work *work_head, **work_tail;
    struct loop_work *work_now;         /* under the lock, too: the rest of what this round runs */
    _Atomic(struct loop_work *) lazy;   /* read without the lock to see whether there is any */
    struct loop_fd lazy_timer;
    struct loop_fd *always_ready;       /* descriptors that epoll refuses: regular files are always ready */
    struct loop_fd *ready_now;          /* the one of them that this round handles; loop_remove clears it */
    struct loop_poller *pollers;
    struct epoll_event batch[BATCH_MAX];
    int batch_count, batch_next;        /* the events being handled; loop_remove blanks entries in it */
};

static void lazy_time_over(void *owner, uint32_t events)
{
    struct loop *loop = owner;
    uint64_t count;
    ssize_t got = read(loop->lazy_timer.fd, &count, sizeof(count));
    (void)got;                          /* only to make it quiet again */
    loop_run_lazy(loop);
}

struct loop *loop_create(struct error *err)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        error_set(err, "out of memory for the event loop");
        return NULL;
    }
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->lazy_timer = (struct loop_fd){ .fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), .events = EPOLLIN,
                                         .ready = lazy_time_over, .owner = loop };
    pthread_mutex_init(&loop->lock, NULL);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 || loop->lazy_timer.fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event)) {
        error_errno(err, errno, "cannot make the event loop");
        loop_destroy(loop);
        return NULL;
    }
    loop_add(loop, &loop->lazy_timer);
    loop->work_tail = &loop->work_head;
    return loop;
}

void loop_destroy(struct loop *loop)
{
    if (!loop)
        return;
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    if (loop->lazy_timer.fd >= 0)
        close(loop->lazy_timer.fd);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static void wake(struct loop *loop)
{
    /* Fails only when the counter is full, and then the loop wakes anyway. */
    ssize_t written = write(loop->wake_fd, &(uint64_t){ 1 }, sizeof(uint64_t));
    (void)written;
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stop, true);
    wake(loop);
}

void loop_post(struct loop *loop, struct loop_work *work)
{
    pthread_mutex_lock(&loop->lock);
    bool queued = work->queued;
    if (!queued) {
        work->queued = true;
        work->next = NULL;
        *loop->work_tail = work;
        loop->work_tail = &work->next;
    }
    pthread_mutex_unlock(&loop->lock);
    if (!queued)
        wake(loop);
}

/* With the lock held. ns: 0 takes back what was set. */
static void set_lazy_timer(struct loop *loop, long ns)
{
    timerfd_settime(loop->lazy_timer.fd, 0, &(struct itimerspec){ .it_value = { 0, ns } }, NULL);
}

void loop_post_lazily(struct loop *loop, struct loop_work *work)
{
    pthread_mutex_lock(&loop->lock);
    if (!work->queued) {
        work->queued = true;
        work->next = atomic_load_explicit(&loop->lazy, memory_order_relaxed);
        atomic_store_explicit(&loop->lazy, work, memory_order_relaxed);
        if (!work->next)
            set_lazy_timer(loop, LOOP_LAZY_NS);
    }
    pthread_mutex_unlock(&loop->lock);
}

/* One at a time, so that loop_cancel finds those that have not begun. What is posted meanwhile is done, too; it does not come from here. */
void loop_run_lazy(struct loop *loop)
{
    while (atomic_load_explicit(&loop->lazy, memory_order_relaxed)) {
        pthread_mutex_lock(&loop->lock);
        struct loop_work *work = atomic_load_explicit(&loop->lazy, memory_order_relaxed);
        if (work) {
            work->queued = false;
            atomic_store_explicit(&loop->lazy, work->next, memory_order_relaxed);
            if (!work->next)
                set_lazy_timer(loop, 0);
        }
        pthread_mutex_unlock(&loop->lock);
        if (work)
            work->run(work->owner);
    }
}

/* With the lock held. */
static bool unlink_work(struct loop_work **link, struct loop_work ***tail, struct loop_work *work)
{
    while (*link && *link != work)
        link = &(*link)->next;
    if (!*link)
        return false;
    *link = work->next;
    if (tail && *tail == &work->next)
        *tail = link;
    work->queued = false;
    return true;
}

static void unlink_lazy(struct loop *loop, struct loop_work *work)
{
    struct loop_work *first = atomic_load_explicit(&loop->lazy, memory_order_relaxed);
    unlink_work(&first, NULL, work);
    atomic_store_explicit(&loop->lazy, first, memory_order_relaxed);
}

bool loop_cancel(struct loop *loop, struct loop_work *work)
{
    pthread_mutex_lock(&loop->lock);
    bool queued = work->queued;
    if (queued && !unlink_work(&loop->work_now, NULL, work) && !unlink_work(&loop->work_head, &loop->work_tail, work))
        unlink_lazy(loop, work);
    pthread_mutex_unlock(&loop->lock);
    return queued;
}

/* Runs what was posted before this call; work that posts itself again waits for the next round. */
static void run_work(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    loop->work_now = loop->work_head;
    loop->work_head = NULL;
    loop->work_tail = &loop->work_head;
    while (loop->work_now) {
        struct loop_work *work = loop->work_now;
        loop->work_now = work->next;
        work->queued = false;
        pthread_mutex_unlock(&loop->lock);
        work->run(work->owner);         /* may free the work */
        pthread_mutex_lock(&loop->lock);
    }
    pthread_mutex_unlock(&loop->lock);
}

static void unlink_always_ready(struct loop *loop, struct loop_fd *fd)
{
    pthread_mutex_lock(&loop->lock);
    for (struct loop_fd **link = &loop->always_ready; *link; link = &(*link)->next)
        if (*link == fd) {
            *link = fd->next;
            break;
        }
    pthread_mutex_unlock(&loop->lock);
}

void loop_add(struct loop *loop, struct loop_fd *fd)
{
    struct epoll_event event = { .events = fd->events, .data.ptr = fd };
    fd->always_ready = false;
    fd->added = true;           /* before the loop's thread may see it and remove it */
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd->fd, &event)) {
        /* EPERM: a file for which poll() makes no sense. */
        fd->always_ready = true;
        pthread_mutex_lock(&loop->lock);
        fd->next = loop->always_ready;
        loop->always_ready = fd;
        pthread_mutex_unlock(&loop->lock);
        wake(loop);
    }
}

void loop_change(struct loop *loop, struct loop_fd *fd, uint32_t events)
{
    if (!fd->added || fd->events == events)
        return;
    fd->events = events;
    struct epoll_event event = { .events = events, .data.ptr = fd };
    if (fd->always_ready)
        wake(loop);
    else
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, fd->fd, &event);
}

void loop_remove(struct loop *loop, struct loop_fd *fd)
{
    if (!fd->added)
        return;
    fd->added = false;
    if (fd->always_ready)
        unlink_always_ready(loop, fd);
    else
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, fd->fd, NULL);
    if (loop->ready_now == fd)
        loop->ready_now = NULL;
    for (int i = loop->batch_next; i < loop->batch_count; i++)
        if (loop->batch[i].data.ptr == fd)
            loop->batch[i].events = 0;
}

static void handle_events(struct loop *loop, int count)
{
    loop->batch_count = count;
    for (loop->batch_next = 0; loop->batch_next < loop->batch_count;) {
        struct epoll_event event = loop->batch[loop->batch_next++];
        struct loop_fd *fd = event.data.ptr;
        if (!fd) {
            uint64_t ignored;
            ssize_t got = read(loop->wake_fd, &ignored, sizeof(ignored));
            (void)got;
        } else if (event.events) {
            fd->ready(fd->owner, event.events);
        }
    }
    loop->batch_count = 0;
}

/* One that is always ready: at most one a round, moved to the end of its list, so that none starves another. */
static struct loop_fd *next_always_ready(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    struct loop_fd **link = &loop->always_ready;
    while (*link && !((*link)->events & (EPOLLIN | EPOLLOUT)))
        link = &(*link)->next;
    struct loop_fd *fd = *link;
    if (fd) {
        *link = fd->next;
        fd->next = NULL;
        while (*link)
            link = &(*link)->next;
        *link = fd;
    }
    pthread_mutex_unlock(&loop->lock);
    return fd;
}

/* Waits with the pollers' descriptors beside our own; they are level-triggered and rebuilt for each wait. */
static void wait_with_pollers(struct loop *loop, int timeout_ms)
{
    struct pollfd fds[1 + POLLER_FDS_MAX] = { { .fd = loop->epoll_fd, .events = POLLIN } };
    int start[8], used[8], pollers = 0, count = 1;
    for (struct loop_poller *p = loop->pollers; p && pollers < 8; p = p->next, pollers++) {
        start[pollers] = count;
        used[pollers] = p->prepare(p->owner, fds + count, 1 + POLLER_FDS_MAX - count, &timeout_ms);
        count += used[pollers];
    }
    if (poll(fds, (nfds_t)count, timeout_ms) < 0)
        for (int i = 0; i < count; i++)
            fds[i].revents = 0;
    int n = 0;
    for (struct loop_poller *p = loop->pollers, *next; p && n < pollers; p = next, n++) {
        next = p->next;
        p->finish(p->owner, fds + start[n], used[n]);
    }
}

void loop_run_once(struct loop *loop, int timeout_ms)
{
    loop->ready_now = next_always_ready(loop);
    if (loop->ready_now)
        timeout_ms = 0;
    if (loop->pollers) {
        wait_with_pollers(loop, timeout_ms);
        timeout_ms = 0;
    }
    int count = epoll_wait(loop->epoll_fd, loop->batch, BATCH_MAX, timeout_ms);
    handle_events(loop, count < 0 ? 0 : count);
    struct loop_fd *ready = loop->ready_now;
    loop->ready_now = NULL;
    if (ready)
        ready->ready(ready->owner, ready->events & (EPOLLIN | EPOLLOUT));
    run_work(loop);
}

void loop_run(struct loop *loop)
{
    while (!atomic_load(&loop->stop))
        loop_run_once(loop, -1);
    atomic_store(&loop->stop, false);
}

void loop_add_poller(struct loop *loop, struct loop_poller *poller)
{
    poller->next = loop->pollers;
    loop->pollers = poller;
}

void loop_remove_poller(struct loop *loop, struct loop_poller *poller)
{
    for (struct loop_poller **link = &loop->pollers; *link; link = &(*link)->next)
        if (*link == poller) {
            *link = poller->next;
            break;
        }
}
