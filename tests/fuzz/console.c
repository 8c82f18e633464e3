/*
 * What is typed on a console whose device takes it in fits and starts: whatever is read while there is no room must arrive later, in order and once, at
 * whom it was typed for, and the escape key must work meanwhile. The queue that holds it is also driven alone, beside a plain array.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/chardev.h"
#include "base/base.h"
#include "base/byte_queue.h"
#include "base/error.h"
#include "base/loop.h"
#include "mutate.h"

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* --- the queue --- */

enum { QUEUE_MOST = 1 << 16, QUEUE_STEPS = 400, PIECE_MOST = 2000 };

static void fill(uint8_t *bytes, size_t size, uint64_t *seed)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)fuzz_random(seed);
}

static void add(struct byte_queue *queue, uint8_t *want, size_t waiting, size_t size, uint64_t *seed)
{
    fill(want + waiting, size, seed);
    if (!byte_queue_reserve(queue, size + fuzz_below(seed, 64)))
        die("no memory");
    size_t part = fuzz_below(seed, size + 1);
    byte_queue_add(queue, want + waiting, part);
    byte_queue_add(queue, want + waiting + part, size - part);
}

static void drive_queue(uint64_t *seed)
{
    static uint8_t want[QUEUE_MOST];
    struct byte_queue queue = { 0 };
    size_t waiting = 0;
    for (unsigned step = 0; step < QUEUE_STEPS; step++) {
        size_t size = fuzz_below(seed, fuzz_below(seed, 8) ? 64 : PIECE_MOST);
        if (fuzz_below(seed, 2) && waiting + size <= QUEUE_MOST) {
            add(&queue, want, waiting, size, seed);
            waiting += size;
        } else {
            size = min_u64(size, waiting);
            byte_queue_drop(&queue, size);
            memmove(want, want + size, waiting -= size);
        }
        if (queue.size != waiting || (waiting && memcmp(byte_queue_first(&queue), want, waiting)))
            die("step %u: not what was added waits", step);
    }
    byte_queue_free(&queue);
}

/* --- a console --- */

enum { CTRL_A = 1, STEPS = 60, TYPED_MOST = 1 << 18, CHUNK_MOST = 3000, DRAIN_TURNS = 100000 };

/* The device, or who diverts its input. */
struct reader {
    uint64_t seed;
    size_t room, taken, wanted;
    uint8_t want[TYPED_MOST];
};

struct console {
    struct loop *loop;
    struct chardev *chardev;
    int typist;                         /* where it is typed */
    bool escapes;                       /* it is a terminal */
    bool escaped, diverted;             /* as of what was typed */
    bool really_diverted;
    size_t typed;
    struct reader reader[2];
};

/* A processor may just have taken some more. */
static size_t reader_room(void *owner)
{
    struct reader *reader = owner;
    reader->room += fuzz_below(&reader->seed, 8) ? 0 : fuzz_below(&reader->seed, 30);
    return reader->room;
}

static void reader_receive(void *owner, const uint8_t *data, size_t size)
{
    struct reader *reader = owner;
    if (size > reader->room)
        die("%zu bytes come where there is room for %zu", size, reader->room);
    if (reader->taken + size > reader->wanted || memcmp(reader->want + reader->taken, data, size))
        die("byte %zu or one after it was not typed here", reader->taken);
    reader->taken += size;
    reader->room -= size;
}

static void toggle(struct console *console)
{
    const struct chardev_client client = { reader_room, reader_receive, &console->reader[1] };
    console->really_diverted = !console->really_diverted;
    chardev_divert(console->chardev, console->really_diverted ? &client : NULL);
}

static void on_key(void *owner, char key)
{
    if (key == 'c')
        toggle(owner);
}

static void expect(struct console *console, uint8_t byte)
{
    struct reader *reader = &console->reader[console->diverted];
    reader->want[reader->wanted++] = byte;
}

/* What becomes of a byte that the terminal has taken. */
static void type(struct console *console, uint8_t byte)
{
    if (!console->escapes || (!console->escaped && byte != CTRL_A))
        expect(console, byte);
    else if (!console->escaped)
        console->escaped = true;
    else {
        console->escaped = false;
        if (byte == CTRL_A || byte == 'a')
            expect(console, CTRL_A);
        else if (byte == 'c')
            console->diverted = !console->diverted;
    }
}

/* Much of it is the escape key, and what that means; help is left out, which waits for a terminal that shows it. */
static uint8_t key(uint64_t *seed)
{
    static const uint8_t keys[] = { CTRL_A, CTRL_A, 'a', 'c', 0, '\r', 0xFF };
    uint8_t byte = fuzz_below(seed, 8) ? (uint8_t)fuzz_random(seed) : keys[fuzz_below(seed, sizeof(keys))];
    return byte == 'h' ? 'H' : byte;
}

static void type_some(struct console *console, uint64_t *seed)
{
    uint8_t bytes[CHUNK_MOST];
    size_t size = 1 + fuzz_below(seed, fuzz_below(seed, 4) ? 20 : CHUNK_MOST);
    bool plain = !fuzz_below(seed, 3);
    for (size_t i = 0; i < size; i++)
        bytes[i] = plain ? (uint8_t)('A' + i % 26) : key(seed);
    ssize_t written = write(console->typist, bytes, min_u64(size, TYPED_MOST - console->typed));
    for (ssize_t i = 0; i < written; i++)
        type(console, bytes[i]);
    console->typed += written > 0 ? (size_t)written : 0;
}

static void make_room(struct console *console, struct reader *reader, size_t room)
{
    reader->room = room;
    chardev_accept_input(console->chardev);
}

static void step(struct console *console, uint64_t *seed)
{
    struct reader *reader = &console->reader[fuzz_below(seed, 2)];
    switch (fuzz_below(seed, 4)) {
    case 0:
        make_room(console, reader, fuzz_below(seed, fuzz_below(seed, 4) ? 17 : CHUNK_MOST));
        break;
    case 1:
        loop_run_once(console->loop, 0);
        break;
    default:
        type_some(console, seed);
    }
}

static void drain(struct console *console)
{
    struct reader *a = &console->reader[0], *b = &console->reader[1];
    for (unsigned i = 0; i < DRAIN_TURNS && (a->taken < a->wanted || b->taken < b->wanted); i++) {
        make_room(console, a, 700);
        make_room(console, b, 700);
        loop_run_once(console->loop, 0);
    }
    if (a->taken < a->wanted || b->taken < b->wanted)
        die("%zu of %zu and %zu of %zu bytes arrive", a->taken, a->wanted, b->taken, b->wanted);
}

/* Its standard descriptors are those of the terminal. */
static void open_terminal(struct console *console)
{
    console->typist = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    int slave = console->typist < 0 || grantpt(console->typist) || unlockpt(console->typist) ? -1 : open(ptsname(console->typist), O_RDWR | O_NOCTTY);
    if (slave < 0)
        die("there is no pseudo-terminal");
    dup2(slave, STDIN_FILENO);
    close(slave);
    console->escapes = true;
}

static void open_pipe(struct console *console)
{
    int fds[2];
    if (pipe(fds))
        die("no pipe");
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    dup2(fds[0], STDIN_FILENO);
    close(fds[0]);
    console->typist = fds[1];
    console->escapes = true;
}

static void drive(unsigned kind, uint64_t *seed)
{
    static struct console console;
    char name[16] = "stdio";
    int pair[2] = { -1, -1 };
    struct error err;
    console = (struct console){ .loop = loop_create(&err), .reader = { { .seed = fuzz_random(seed) }, { .seed = fuzz_random(seed) } } };
    if (kind == 0) {
        open_terminal(&console);
    } else if (kind == 1) {
        open_pipe(&console);
    } else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0) {
        console.typist = pair[0];
        snprintf(name, sizeof(name), "fd:%d", pair[1]);
    }
    console.chardev = chardev_open(name, console.loop, NULL, NULL, &err);
    if (!console.chardev)
        die("%s: %s", name, err.text);
    chardev_connect(console.chardev, &(struct chardev_client){ reader_room, reader_receive, &console.reader[0] });
    chardev_on_escape(console.chardev, &(struct chardev_escape){ on_key, &console });
    for (unsigned i = 0; i < STEPS; i++)
        step(&console, seed);
    drain(&console);
    chardev_close(console.chardev);
    loop_destroy(console.loop);
    close(console.typist);
    close(pair[1]);
}

int main(int argc, char **argv)
{
    unsigned long rounds = fuzz_rounds(argc, argv, 600);
    uint64_t seed = 0x9E3779B97F4A7C15ull;
    int report = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDOUT_FILENO);       /* where the console shows */
    for (unsigned long round = 0; round < rounds; round++) {
        drive_queue(&seed);
        drive(round % 3, &seed);
    }
    dprintf(report, "%lu consoles\n", rounds);
    return 0;
}
