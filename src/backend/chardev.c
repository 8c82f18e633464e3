/*
 * Character backends. All kinds share one shape: a descriptor to read, one to write (often the same), a buffer for output
 * that the reader is too slow for. What differs is how they open (chardev_open.c) and, for stdio, the escape key.
 *
 * Locks: input runs on the loop's thread and takes the board lock around the device's functions; output comes with the
 * board lock held. The diverted flag and the output buffer are guarded by the board lock.
 */
#include "backend/chardev_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/terminal.h"

enum {
    CTRL_A = 0x01,
    SLOW_READER_MS = 20,        /* how long a write waits for a reader while the buffer is full */
};

static void board_lock(struct chardev *chardev)
{
    if (chardev->lock)
        pthread_mutex_lock(chardev->lock);
}

static void board_unlock(struct chardev *chardev)
{
    if (chardev->lock)
        pthread_mutex_unlock(chardev->lock);
}

/* --- output --- */

static ssize_t write_some(struct chardev *chardev, const uint8_t *data, size_t size)
{
    struct pollfd ready = { .fd = chardev->out_fd, .events = POLLOUT };
    if (chardev->out_blocks) {          /* only what cannot block: after POLLOUT a pipe takes PIPE_BUF bytes */
        if (poll(&ready, 1, 0) != 1)
            return errno = EAGAIN, -1;
        size = size < CHARDEV_SAFE_WRITE ? size : CHARDEV_SAFE_WRITE;
    }
    if (chardev->kind == CHARDEV_SOCKET)
        return send(chardev->out_fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    return write(chardev->out_fd, data, size);
}

/* Returns how much the descriptor took; *gone when there will never be a reader again. */
static size_t write_now(struct chardev *chardev, const uint8_t *data, size_t size, bool *gone)
{
    size_t done = 0;
    while (done < size) {
        ssize_t result = write_some(chardev, data + done, size - done);
        if (result < 0 && errno == EINTR)
            continue;
        if (result < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
            *gone = true;
        if (result <= 0)
            break;
        done += (size_t)result;
    }
    return done;
}

static void watch_output(struct chardev *chardev, bool on)
{
    if (on == chardev->out_watched || chardev->out_fd < 0)
        return;
    chardev->out_watched = on;
    if (on)
        loop_add(chardev->loop, &chardev->out_event);
    else
        loop_remove(chardev->loop, &chardev->out_event);
}

static void flush_output(struct chardev *chardev)
{
    bool gone = false;
    if (chardev->out_fd < 0)
        chardev->pending = 0;
    size_t done = chardev->pending ? write_now(chardev, chardev->buffer, chardev->pending, &gone) : 0;
    if (gone)
        done = chardev->pending;
    chardev->pending -= done;
    memmove(chardev->buffer, chardev->buffer + done, chardev->pending);
}

static size_t buffer_output(struct chardev *chardev, const uint8_t *data, size_t size)
{
    size_t room = sizeof(chardev->buffer) - chardev->pending;
    size_t taken = size < room ? size : room;
    memcpy(chardev->buffer + chardev->pending, data, taken);
    chardev->pending += taken;
    return taken;
}

static size_t put(struct chardev *chardev, const uint8_t *data, size_t size)
{
    bool gone = false;
    size_t done = chardev->pending ? 0 : write_now(chardev, data, size, &gone);
    if (gone)
        return size;
    done += buffer_output(chardev, data + done, size - done);
    return done;
}

size_t chardev_write(struct chardev *chardev, const void *data, size_t size)
{
    if (chardev->diverted)              /* kept for later; what does not fit is lost */
        return buffer_output(chardev, data, size), size;
    if (chardev->out_fd < 0)
        return size;
    size_t done = put(chardev, data, size);
    if (done < size && !chardev->slow) {
        struct pollfd ready = { .fd = chardev->out_fd, .events = POLLOUT };
        poll(&ready, 1, SLOW_READER_MS);
        flush_output(chardev);
        done += put(chardev, (const uint8_t *)data + done, size - done);
        chardev->slow = done < size;
    } else if (done == size && !chardev->pending) {
        chardev->slow = false;
    }
    /* A pty or socket that nobody reads takes all: the guest must not wait for a person. */
    if (chardev->kind == CHARDEV_PTY || chardev->kind == CHARDEV_SOCKET)
        done = size;
    if (chardev->pending)
        watch_output(chardev, true);    /* only the loop's thread ends the watch */
    return done;
}

void chardev_output_ready(void *owner, uint32_t events)
{
    struct chardev *chardev = owner;
    board_lock(chardev);
    flush_output(chardev);
    watch_output(chardev, chardev->pending != 0);
    board_unlock(chardev);
}

/* --- input --- */

static void watch_input(struct chardev *chardev, bool on)
{
    if (chardev->in_fd < 0 || on == chardev->in_watched)
        return;
    chardev->in_watched = on;
    if (on)
        loop_add(chardev->loop, &chardev->in_event);
    else
        loop_remove(chardev->loop, &chardev->in_event);
}

static struct chardev_reader *present(struct chardev *chardev) { return chardev->diverted ? &chardev->divert : &chardev->device; }

/* The device's functions want the board lock, those of who diverts the input do not. */
static pthread_mutex_t *lock_of(const struct chardev *chardev, const struct chardev_reader *reader)
{
    return reader == &chardev->device ? chardev->lock : NULL;
}

/* Room is asked for and taken under one hold of the lock: meanwhile a processor may change what the device takes. Returns the bytes taken. */
static size_t give(const struct chardev *chardev, const struct chardev_reader *reader, const uint8_t *data, size_t size)
{
    pthread_mutex_t *lock = lock_of(chardev, reader);
    size_t taken = 0;
    if (lock)
        pthread_mutex_lock(lock);
    if (reader->client.receive)
        taken = reader->client.room ? min_u64(reader->client.room(reader->client.owner), size) : size;
    if (taken && data)
        reader->client.receive(reader->client.owner, data, taken);
    if (lock)
        pthread_mutex_unlock(lock);
    return taken;
}

static size_t room_of(const struct chardev *chardev, const struct chardev_reader *reader) { return give(chardev, reader, NULL, CHARDEV_READ); }

static void give_held(const struct chardev *chardev, struct chardev_reader *reader)
{
    if (reader->held.size)
        byte_queue_drop(&reader->held, give(chardev, reader, byte_queue_first(&reader->held), reader->held.size));
}

static void give_all_held(struct chardev *chardev)
{
    give_held(chardev, &chardev->device);
    give_held(chardev, &chardev->divert);
}

/* As much as there is room for; the rest is held. The escape key may have changed who reads, and with it the room. */
static void give_or_hold(struct chardev *chardev, const uint8_t *data, size_t size)
{
    struct chardev_reader *reader = present(chardev);
    size_t taken = reader->held.size || !size ? 0 : give(chardev, reader, data, size);
    byte_queue_add(&reader->held, data + taken, size - taken);
}

static const char escape_help[] = "\r\nCtrl-A x  end the machine\r\nCtrl-A c  monitor, and back\r\n"
                                  "Ctrl-A a  send Ctrl-A to the guest\r\nCtrl-A h  this help\r\n";

static void escape_key(struct chardev *chardev, uint8_t key)
{
    uint8_t literal = CTRL_A;
    if (key == CTRL_A || key == 'a')
        give_or_hold(chardev, &literal, 1);
    else if (key == 'h')
        chardev_divert_write(chardev, escape_help, sizeof(escape_help) - 1);
    else if (chardev->escape.key)
        chardev->escape.key(chardev->escape.owner, (char)key);
}

/* Takes the escape sequences out. */
static void receive_stdio(struct chardev *chardev, const uint8_t *data, size_t size)
{
    size_t first = 0;
    for (size_t i = 0; i < size; i++) {
        if (chardev->escaped) {
            chardev->escaped = false;
            first = i + 1;
            escape_key(chardev, data[i]);
        } else if (data[i] == CTRL_A) {
            give_or_hold(chardev, data + first, i - first);      /* the key may divert what comes after it */
            first = i + 1;
            chardev->escaped = true;
        }
    }
    give_or_hold(chardev, data + first, size - first);
}

static void input_ended(struct chardev *chardev)
{
    watch_input(chardev, false);
    if (chardev->kind == CHARDEV_SOCKET)
        chardev_socket_hung_up(chardev);
    else
        chardev->in_ended = true;
}

/*
 * How much to read now; 0: nothing until there is room again. On a terminal the escape key must work even while the guest takes no input: then more
 * is read than there is room for, up to a limit that nobody types to.
 */
static size_t read_size(struct chardev *chardev)
{
    const struct chardev_reader *reader = present(chardev);
    if (!byte_queue_reserve(&chardev->device.held, CHARDEV_READ) || !byte_queue_reserve(&chardev->divert.held, CHARDEV_READ))
        return 0;
    if (chardev->kind == CHARDEV_STDIO && chardev->is_terminal)
        return reader->held.size < CHARDEV_HELD_MOST ? CHARDEV_READ : 0;
    return reader->held.size ? 0 : room_of(chardev, reader);
}

static void read_input(struct chardev *chardev)
{
    uint8_t data[CHARDEV_READ];
    give_all_held(chardev);
    size_t most = read_size(chardev);
    if (!most) {
        watch_input(chardev, false);
        return;
    }
    ssize_t size = read(chardev->in_fd, data, most);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) {
        input_ended(chardev);
        return;
    }
    if (size > 0 && chardev->kind == CHARDEV_STDIO)
        receive_stdio(chardev, data, (size_t)size);
    else if (size > 0)
        give_or_hold(chardev, data, (size_t)size);
}

void chardev_input_ready(void *owner, uint32_t events)
{
    read_input(owner);
}

void chardev_accept_work(void *owner)
{
    struct chardev *chardev = owner;
    give_all_held(chardev);
    if (!chardev->in_ended)
        watch_input(chardev, true);
}

/* The watch changes on the loop's thread, which alone reads. */
void chardev_accept_input(struct chardev *chardev)
{
    loop_post(chardev->loop, &chardev->accept_work);
}

/* --- the rest --- */

void chardev_connect(struct chardev *chardev, const struct chardev_client *client)
{
    chardev->device.client = client ? *client : (struct chardev_client){ NULL };
    if (client)
        chardev_accept_input(chardev);
}

void chardev_on_escape(struct chardev *chardev, const struct chardev_escape *escape)
{
    chardev->escape = *escape;
}

const char *chardev_name(const struct chardev *chardev)
{
    return chardev->kind == CHARDEV_PTY ? chardev->name : NULL;
}

void chardev_divert(struct chardev *chardev, const struct chardev_client *client)
{
    board_lock(chardev);
    if (client)
        chardev->divert.client = *client;
    chardev->diverted = client != NULL;
    if (!client) {
        flush_output(chardev);
        watch_output(chardev, chardev->pending != 0);
    }
    board_unlock(chardev);
    chardev_accept_input(chardev);
}

/* The person at the terminal waits for it, and it is short: blocking is right here. */
void chardev_divert_write(struct chardev *chardev, const void *data, size_t size)
{
    const uint8_t *at = data;
    bool gone = false;
    while (size && !gone && chardev->out_fd >= 0) {
        size_t done = write_now(chardev, at, size, &gone);
        struct pollfd ready = { .fd = chardev->out_fd, .events = POLLOUT };
        at += done;
        size -= done;
        if (size && !gone && poll(&ready, 1, 1000) == 0)
            return;
    }
}
