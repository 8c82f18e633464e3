/*
 * The monitor's terminals and thread. Input arrives on the loop's thread and is queued; the monitor's thread makes lines of it,
 * executes them and prints. So a command may wait for a processor that itself waits for the board lock.
 */
#include "api/monitor.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "api/monitor_internal.h"
#include "backend/chardev.h"
#include "base/thread.h"

enum { QUEUE_SIZE = 1024, TERMINALS = 2 };

/* A place where somebody types: the console while it is diverted, and the socket. */
struct terminal {
    struct monitor *monitor;
    struct chardev *chardev;        /* NULL: there is none */
    bool raw;                       /* echo and line editing are ours to do */
    uint8_t queue[QUEUE_SIZE];      /* under monitor->mutex */
    size_t queued;
    bool greet;                     /* under monitor->mutex: print a prompt */
    char line[MONITOR_LINE_MAX];
    size_t length;
    struct monitor_session session;
};

struct monitor {
    struct machine *machine;
    struct chardev *socket;
    struct terminal terminal[TERMINALS];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    atomic_bool quitting;            /* set under the mutex; feed reads it without */
    bool diverted;
};

/* --- output --- */

static void print(struct terminal *terminal, const char *text, size_t size)
{
    struct machine *machine = terminal->monitor->machine;
    if (terminal->raw) {
        chardev_divert_write(terminal->chardev, text, size);
        return;
    }
    pthread_mutex_lock(&machine->lock);
    chardev_write(terminal->chardev, text, size);
    pthread_mutex_unlock(&machine->lock);
}

static void print_text(struct terminal *terminal, const char *text)
{
    print(terminal, text, strlen(text));
}

static void execute(struct terminal *terminal)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return;
    terminal->line[terminal->length] = 0;
    terminal->length = 0;
    monitor_execute(&terminal->session, terminal->line, out);
    fclose(out);
    print(terminal, text, size);
    print_text(terminal, "(doppel) ");
    free(text);
}

/* --- input --- */

static void erase(struct terminal *terminal)
{
    if (!terminal->length)
        return;
    terminal->length--;
    print_text(terminal, "\b \b");
}

/* One byte; true if it ends a line. */
static bool type(struct terminal *terminal, uint8_t byte)
{
    enum { BACKSPACE = 8, CTRL_U = 0x15, DELETE = 0x7F };
    if (byte == '\n' || (terminal->raw && byte == '\r'))
        return true;
    if (terminal->raw && (byte == BACKSPACE || byte == DELETE))
        erase(terminal);
    else if (terminal->raw && byte == CTRL_U)
        while (terminal->length)
            erase(terminal);
    else if (byte >= ' ' && byte < DELETE && terminal->length < sizeof(terminal->line) - 1) {
        terminal->line[terminal->length++] = (char)byte;
        if (terminal->raw)
            print(terminal, (const char *)&byte, 1);
    }
    return false;
}

static void feed(struct terminal *terminal, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size && !terminal->monitor->quitting; i++)
        if (type(terminal, bytes[i])) {
            if (terminal->raw)
                print_text(terminal, "\n");
            execute(terminal);
        }
}

/* The loop's thread. */
static size_t room(void *owner)
{
    struct terminal *terminal = owner;
    pthread_mutex_lock(&terminal->monitor->mutex);
    size_t free_bytes = QUEUE_SIZE - terminal->queued;
    pthread_mutex_unlock(&terminal->monitor->mutex);
    return free_bytes;
}

static void receive(void *owner, const uint8_t *data, size_t size)
{
    struct terminal *terminal = owner;
    struct monitor *monitor = terminal->monitor;
    pthread_mutex_lock(&monitor->mutex);
    size_t part = QUEUE_SIZE - terminal->queued;
    part = part < size ? part : size;
    memcpy(terminal->queue + terminal->queued, data, part);
    terminal->queued += part;
    pthread_cond_signal(&monitor->changed);
    pthread_mutex_unlock(&monitor->mutex);
}

/* --- the thread --- */

static bool something_to_do(const struct monitor *monitor)
{
    bool any = monitor->quitting;
    for (unsigned i = 0; i < TERMINALS; i++)
        any |= monitor->terminal[i].queued || monitor->terminal[i].greet;
    return any;
}

/* Takes what was typed and works on it, with the mutex let go meanwhile. */
static void serve(struct terminal *terminal)
{
    struct monitor *monitor = terminal->monitor;
    uint8_t bytes[QUEUE_SIZE];
    size_t size = terminal->queued;
    bool greet = terminal->greet;
    memcpy(bytes, terminal->queue, size);
    terminal->queued = 0;
    terminal->greet = false;
    if (!size && !greet)
        return;
    pthread_mutex_unlock(&monitor->mutex);
    if (greet)
        print_text(terminal, "\nThis is the monitor; 'help' lists its commands, Ctrl-A c goes back to the guest.\n(doppel) ");
    feed(terminal, bytes, size);
    pthread_mutex_lock(&monitor->machine->lock);
    if (size)
        chardev_accept_input(terminal->chardev);
    pthread_mutex_unlock(&monitor->machine->lock);
    pthread_mutex_lock(&monitor->mutex);
}

static void *monitor_main(void *argument)
{
    struct monitor *monitor = argument;
    pthread_mutex_lock(&monitor->mutex);
    while (!monitor->quitting) {
        while (!something_to_do(monitor))
            pthread_cond_wait(&monitor->changed, &monitor->mutex);
        for (unsigned i = 0; i < TERMINALS && !monitor->quitting; i++)
            serve(&monitor->terminal[i]);
    }
    pthread_mutex_unlock(&monitor->mutex);
    return NULL;
}

void monitor_toggle(struct monitor *monitor)
{
    struct terminal *terminal = &monitor->terminal[0];
    if (!terminal->chardev)
        return;
    const struct chardev_client client = { room, receive, terminal };
    pthread_mutex_lock(&monitor->mutex);
    monitor->diverted = !monitor->diverted;
    terminal->greet = monitor->diverted;
    pthread_cond_signal(&monitor->changed);
    pthread_mutex_unlock(&monitor->mutex);
    chardev_divert(terminal->chardev, monitor->diverted ? &client : NULL);
    if (!monitor->diverted)
        chardev_divert_write(terminal->chardev, "\n", 1);
}

/* --- life --- */

struct monitor *monitor_create(struct machine *machine, const char *socket, struct error *err)
{
    struct monitor *monitor = calloc(1, sizeof(*monitor));
    if (!monitor) {
        error_set(err, "no memory for the monitor");
        return NULL;
    }
    monitor->machine = machine;
    for (unsigned i = 0; i < TERMINALS; i++) {
        monitor->terminal[i].monitor = monitor;
        monitor->terminal[i].session.machine = machine;
    }
    monitor->terminal[0].raw = true;
    monitor->terminal[0].chardev = machine->console;
    if (socket && !(monitor->socket = chardev_open(socket, machine->loop, &machine->lock, &machine->log, err))) {
        free(monitor);
        return NULL;
    }
    monitor->terminal[1].chardev = monitor->socket;
    const struct chardev_client client = { room, receive, &monitor->terminal[1] };
    if (monitor->socket)
        chardev_connect(monitor->socket, &client);
    pthread_mutex_init(&monitor->mutex, NULL);
    pthread_cond_init(&monitor->changed, NULL);
    if (thread_start(&monitor->thread, "monitor", monitor_main, monitor)) {
        error_set(err, "cannot start the monitor's thread");
        if (monitor->socket)
            chardev_close(monitor->socket);
        free(monitor);
        return NULL;
    }
    return monitor;
}

static void let_thread_finish(struct monitor *monitor)
{
    pthread_mutex_lock(&monitor->mutex);
    monitor->quitting = true;
    pthread_cond_signal(&monitor->changed);
    pthread_mutex_unlock(&monitor->mutex);
    pthread_join(monitor->thread, NULL);
}

void monitor_destroy(struct monitor *monitor)
{
    if (!monitor)
        return;
    let_thread_finish(monitor);
    if (monitor->diverted)
        chardev_divert(monitor->terminal[0].chardev, NULL);
    if (monitor->socket)
        chardev_close(monitor->socket);
    pthread_cond_destroy(&monitor->changed);
    pthread_mutex_destroy(&monitor->mutex);
    free(monitor);
}
