/*
 * Character backends: the terminal (raw mode, escape key), a pty, a file, a Unix socket, or nothing.
 * The terminal's settings are restored on every way out, signals included.
 */
#ifndef DOPPEL_BACKEND_CHARDEV_H
#define DOPPEL_BACKEND_CHARDEV_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct loop;
struct log;
struct chardev;

struct chardev_client {
    /* How many bytes the device can take now. While it is 0 no input is read, but from a terminal, whose escape key must be seen: that is held. */
    size_t (*room)(void *owner);
    void (*receive)(void *owner, const uint8_t *data, size_t size);
    void *owner;
};

/* What the escape key asks for; runs on the loop's thread, board lock not held. */
struct chardev_escape {
    void (*key)(void *owner, char key);         /* 'x' quit, 'c' monitor ...; 'h' is answered here */
    void *owner;
};

/*
 * "stdio", "pty", "file:PATH", "socket:PATH" (listens), "fd:N" (a stream socket that is open already, duplicated), "none".
 * NULL: err says why.
 */
struct chardev *chardev_open(const char *text, struct loop *loop, pthread_mutex_t *lock, struct log *log, struct error *err);
void chardev_close(struct chardev *chardev);
/* The client's functions run on the loop's thread with the board lock held. */
void chardev_connect(struct chardev *chardev, const struct chardev_client *client);
/* stdio only: Ctrl-A is the escape; Ctrl-A Ctrl-A (or Ctrl-A a) sends one. */
void chardev_on_escape(struct chardev *chardev, const struct chardev_escape *escape);
/* Board lock held, any thread. Returns bytes taken; a reader that went away takes all. Never blocks for long. */
size_t chardev_write(struct chardev *chardev, const void *data, size_t size);
/* The device has room again. */
void chardev_accept_input(struct chardev *chardev);
/* "pty": the name of its terminal; else NULL. */
const char *chardev_name(const struct chardev *chardev);
/*
 * Diverts input of a stdio chardev (the monitor takes the terminal over; its functions run without the board lock);
 * what the device writes meanwhile is kept, as far as the buffer goes, and shown when NULL gives the terminal back.
 * Loop's thread, board lock not held.
 */
void chardev_divert(struct chardev *chardev, const struct chardev_client *client);
/* What the diverting client prints. */
void chardev_divert_write(struct chardev *chardev, const void *data, size_t size);
/* Puts every terminal that was made raw back as it was; async-signal-safe. */
void chardev_restore_terminals(void);

#endif
