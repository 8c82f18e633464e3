/*
 * The event loop: one thread per machine that waits for descriptors and for work posted by other threads (epoll, eventfd).
 * Handlers run on the loop's thread; they must not block.
 */
#ifndef DOPPEL_BASE_LOOP_H
#define DOPPEL_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct error;

/* A watched descriptor; embedded in its owner. events/ready: EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR. */
struct loop_fd {
    int fd;
    uint32_t events;
    void (*ready)(void *owner, uint32_t events);
    void *owner;
    bool added;         /* kept by the loop */
    bool always_ready;  /* kept by the loop: a regular file, which epoll does not take */
    struct loop_fd *next;       /* kept by the loop */
};

/* Work to be done once on the loop's thread (but see loop_post_lazily); embedded in its owner; posting it twice before it runs runs it once. */
enum { LOOP_LAZY_NS = 1000000 };
struct loop_work {
    void (*run)(void *owner);
    void *owner;
    struct loop_work *next;     /* kept by the loop */
    bool queued;                /* kept by the loop, under its lock */
};

struct loop *loop_create(struct error *err);
void loop_destroy(struct loop *loop);

/* Runs until loop_stop; called by the machine's loop thread. loop_run_once waits at most timeout_ms (-1: for ever). */
void loop_run(struct loop *loop);
void loop_run_once(struct loop *loop, int timeout_ms);

/* Any thread. */
void loop_stop(struct loop *loop);
void loop_post(struct loop *loop, struct loop_work *work);
/*
 * For work that is better done when more of it has come together: it is done by the next loop_run_lazy, on that caller's thread, or on the
 * loop's after LOOP_LAZY_NS. Posted already, in either way: nothing changes.
 */
void loop_post_lazily(struct loop *loop, struct loop_work *work);
/* A processor that has nothing to do calls this before it sleeps. Cheap where there is nothing; no lock held. */
void loop_run_lazy(struct loop *loop);
/* Takes back what was posted and has not begun; false: there was nothing to take back. Its owner may then go, unless another thread is running it just now. */
bool loop_cancel(struct loop *loop, struct loop_work *work);
void loop_add(struct loop *loop, struct loop_fd *fd);
void loop_change(struct loop *loop, struct loop_fd *fd, uint32_t events);
/* After this returns on the loop's thread no handler of fd runs; from another thread, post work that removes it. */
void loop_remove(struct loop *loop, struct loop_fd *fd);

/*
 * A hook for libraries with a poll() interface (libslirp): before each wait `prepare` may lower *timeout_ms and add
 * descriptors; after it, `finish` runs. Registered once, on the loop's thread or before it starts.
 */
struct pollfd;
struct loop_poller {
    /* Appends up to `room` entries to fds; returns how many. */
    int (*prepare)(void *owner, struct pollfd *fds, int room, int *timeout_ms);
    void (*finish)(void *owner, const struct pollfd *fds, int count);
    void *owner;
    struct loop_poller *next;
};
void loop_add_poller(struct loop *loop, struct loop_poller *poller);
void loop_remove_poller(struct loop *loop, struct loop_poller *poller);

#endif
