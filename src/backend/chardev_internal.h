/* What chardev.c and chardev_open.c share. */
#ifndef DOPPEL_BACKEND_CHARDEV_INTERNAL_H
#define DOPPEL_BACKEND_CHARDEV_INTERNAL_H

#include <sys/types.h>

#include "backend/chardev.h"
#include "base/base.h"
#include "base/byte_queue.h"
#include "base/error.h"
#include "base/loop.h"

enum { CHARDEV_READ = 512, CHARDEV_BUFFER = 64 * 1024, CHARDEV_SAFE_WRITE = 512, CHARDEV_HELD_MOST = 1 << 20 };

enum chardev_kind { CHARDEV_NONE, CHARDEV_STDIO, CHARDEV_PTY, CHARDEV_FILE, CHARDEV_SOCKET };

/* Who input is for. */
struct chardev_reader {
    struct chardev_client client;
    struct byte_queue held;             /* read while it had no room; at most CHARDEV_HELD_MOST bytes and one read */
};

struct chardev {
    enum chardev_kind kind;
    struct loop *loop;
    pthread_mutex_t *lock;
    struct log *log;
    struct chardev_reader device, divert;
    bool diverted;                      /* what is typed is for `divert` */
    struct chardev_escape escape;
    bool escaped;                       /* the last key was the escape key */
    char name[128];

    int in_fd;                          /* -1: no input */
    bool in_watched, in_ended, is_terminal;
    struct loop_fd in_event;
    struct loop_work accept_work;

    int out_fd;                         /* -1: output goes nowhere; never the same number as in_fd: epoll has one entry each */
    bool out_blocks;                    /* not in non-blocking mode, because the description is shared with others */
    bool out_watched, slow;
    struct loop_fd out_event;
    uint8_t buffer[CHARDEV_BUFFER];
    size_t pending;

    int other_fd;                       /* pty: our hold on the slave side; socket: the listener */
    struct loop_fd listen_event;
};

void chardev_input_ready(void *owner, uint32_t events);
void chardev_output_ready(void *owner, uint32_t events);
void chardev_accept_work(void *owner);
/* The peer of a socket went away; the next one may come. */
void chardev_socket_hung_up(struct chardev *chardev);

#endif
