/*
 * A thread between the guest's line (one end of a socket pair; the character backend has the other) and those attached. Output is kept in a
 * ring; each client has a place in it, so that none holds up another.
 */
#include "api/console.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/log_file.h"
#include "base/base.h"
#include "base/error.h"
#include "base/thread.h"

enum { RING_SIZE = 64 * 1024, CLIENTS_MAX = 8, INPUT_SIZE = 512 };

struct client {
    int fd;                     /* -1: no client */
    uint64_t seen;              /* how far it has been shown what was written */
    bool gone;                  /* shown nothing any more; what it typed last is still taken */
};

struct console {
    pthread_t thread;
    pthread_mutex_t mutex;      /* guards what other threads touch: guest, client, written */
    int wake;
    bool stopping;
    int guest;                  /* our end of the line; -1: no guest */
    int line;                   /* the other end, which the guest's character backend duplicates */
    char text[32];
    struct client client[CLIENTS_MAX];
    struct log_file log;
    bool logs;
    uint64_t written;           /* bytes since the start; the ring holds the last of them */
    char ring[RING_SIZE];
    char input[INPUT_SIZE];     /* typed, and not yet taken by the guest */
    size_t input_size;
};

static void wake(struct console *console)
{
    ssize_t result = write(console->wake, &(uint64_t){ 1 }, sizeof(uint64_t));
    (void)result;
}

/* --- the thread; the mutex is held in all of these --- */

static void drop_client(struct client *client)
{
    close(client->fd);
    client->fd = -1;
}

static void keep(struct console *console, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        console->ring[(console->written + i) % RING_SIZE] = data[i];
    console->written += size;
    if (console->logs)
        log_file_write(&console->log, data, size);
}

/* True while there may be more. */
static bool read_guest(struct console *console)
{
    char data[4096];
    ssize_t size = recv(console->guest, data, sizeof(data), MSG_DONTWAIT);
    if (size > 0) {
        keep(console, data, (size_t)size);
        return true;
    }
    return false;               /* nothing now; it has no end while we hold `line` */
}

/* What one that was too slow has missed is gone. */
static void show(struct console *console, struct client *client)
{
    if (console->written - client->seen > RING_SIZE)
        client->seen = console->written - RING_SIZE;
    while (client->seen < console->written) {
        size_t at = client->seen % RING_SIZE, size = (size_t)min_u64(console->written - client->seen, RING_SIZE - at);
        ssize_t sent = send(client->fd, console->ring + at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            client->gone = true;
        if (sent <= 0)
            return;
        client->seen += (uint64_t)sent;
    }
}

static bool wants_output(const struct console *console, const struct client *client)
{
    return client->fd >= 0 && !client->gone && client->seen < console->written;
}

static void read_client(struct console *console, struct client *client)
{
    char data[INPUT_SIZE];
    ssize_t size = recv(client->fd, data, sizeof(data) - console->input_size, MSG_DONTWAIT);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR))
        drop_client(client);
    if (size <= 0 || console->guest < 0)
        return;
    memcpy(console->input + console->input_size, data, (size_t)size);
    console->input_size += (size_t)size;
}

static void type(struct console *console)
{
    ssize_t sent = send(console->guest, console->input, console->input_size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0)
        return;
    console->input_size -= (size_t)sent;
    memmove(console->input, console->input + sent, console->input_size);
}

/* --- the thread --- */

struct poll_set {
    struct pollfd fd[2 + CLIENTS_MAX];      /* wake, guest, clients */
};

static void prepare(const struct console *console, struct poll_set *set)
{
    bool room = console->input_size < INPUT_SIZE;
    set->fd[0] = (struct pollfd){ .fd = console->wake, .events = POLLIN };
    set->fd[1] = (struct pollfd){ .fd = console->guest, .events = (short)(POLLIN | (console->input_size ? POLLOUT : 0)) };
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        const struct client *client = &console->client[i];
        bool output = wants_output(console, client);       /* one that has gone shows that all the time: it waits for room without being asked */
        set->fd[2 + i] = (struct pollfd){ .fd = room || output ? client->fd : -1, .events = (short)((room ? POLLIN : 0) | (output ? POLLOUT : 0)) };
    }
}

/* Descriptors may have changed since they were polled: every call is one that does not block. */
static void handle(struct console *console, const struct poll_set *set)
{
    uint64_t count;
    if (set->fd[0].revents) {
        ssize_t result = read(console->wake, &count, sizeof(count));
        (void)result;
    }
    if (set->fd[1].revents && console->guest >= 0)
        read_guest(console);
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &console->client[i];
        if (wants_output(console, client))
            show(console, client);
        if (client->fd >= 0 && set->fd[2 + i].revents && console->input_size < INPUT_SIZE)
            read_client(console, client);
    }
    if (console->input_size && console->guest >= 0)
        type(console);
}

static void *console_main(void *argument)
{
    struct console *console = argument;
    struct poll_set set;
    pthread_mutex_lock(&console->mutex);
    while (!console->stopping) {
        prepare(console, &set);
        pthread_mutex_unlock(&console->mutex);
        int ready = poll(set.fd, ARRAY_SIZE(set.fd), -1);
        pthread_mutex_lock(&console->mutex);
        if (ready > 0)
            handle(console, &set);
    }
    while (console->guest >= 0 && read_guest(console))
        ;
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (console->client[i].fd >= 0)
            show(console, &console->client[i]);
    pthread_mutex_unlock(&console->mutex);
    return NULL;
}

/* --- requests --- */

static void close_line(struct console *console)
{
    if (console->guest >= 0)
        close(console->guest);
    if (console->line >= 0)
        close(console->line);
    console->guest = console->line = -1;
}

const char *console_connect(struct console *console, struct error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        error_errno(err, errno, "cannot make a line for the console");
        return NULL;
    }
    pthread_mutex_lock(&console->mutex);
    while (console->guest >= 0 && read_guest(console))
        ;
    close_line(console);
    console->guest = pair[0];
    console->line = pair[1];
    console->input_size = 0;
    snprintf(console->text, sizeof(console->text), "fd:%d", pair[1]);
    pthread_mutex_unlock(&console->mutex);
    wake(console);
    return console->text;
}

static bool has_hung_up(const struct client *client)
{
    struct pollfd look = { .fd = client->fd };
    return poll(&look, 1, 0) == 1 && look.revents & POLLHUP;
}

/* NULL: all are in use. One that has gone, and waits for the guest to take what it typed last, need not. Mutex held. */
static struct client *free_client(struct console *console)
{
    struct client *gone = NULL;
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        if (console->client[i].fd < 0)
            return &console->client[i];
        if (has_hung_up(&console->client[i]))
            gone = &console->client[i];
    }
    if (gone)
        drop_client(gone);
    return gone;
}

bool console_attach(struct console *console, int fd, size_t backlog, struct error *err)
{
    int type;
    socklen_t size = sizeof(type);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM)
        return error_set(err, "what is to be attached must be a stream socket");
    pthread_mutex_lock(&console->mutex);
    struct client *client = free_client(console);
    uint64_t kept = min_u64(console->written, RING_SIZE);
    if (client)
        *client = (struct client){ .fd = fd, .seen = console->written - min_u64(backlog, kept) };
    pthread_mutex_unlock(&console->mutex);
    wake(console);
    return client || error_set(err, "%d are attached to the console already", CLIENTS_MAX);
}

/* --- life --- */

static void release(struct console *console)
{
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (console->client[i].fd >= 0)
            close(console->client[i].fd);
    close_line(console);
    if (console->wake >= 0)
        close(console->wake);
    if (console->logs)
        log_file_close(&console->log);
    pthread_mutex_destroy(&console->mutex);
    free(console);
}

struct console *console_create(int directory, const char *log, struct error *err)
{
    struct console *console = calloc(1, sizeof(*console));
    if (!console) {
        error_set(err, "no memory for the console");
        return NULL;
    }
    pthread_mutex_init(&console->mutex, NULL);
    console->guest = console->line = -1;
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        console->client[i].fd = -1;
    console->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    console->logs = directory >= 0 && log_file_open(&console->log, directory, log, err);
    bool ready = (directory < 0 || console->logs) && (console->wake >= 0 || error_errno(err, errno, "cannot make the console"));
    int status = ready ? thread_start(&console->thread, "console", console_main, console) : 0;
    if (status)
        error_errno(err, status, "cannot start the console's thread");
    if (!ready || status) {
        release(console);
        return NULL;
    }
    return console;
}

void console_destroy(struct console *console)
{
    if (!console)
        return;
    pthread_mutex_lock(&console->mutex);
    console->stopping = true;
    pthread_mutex_unlock(&console->mutex);
    wake(console);
    pthread_join(console->thread, NULL);
    release(console);
}
