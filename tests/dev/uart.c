/* The 16550A: FIFOs, interrupts in their order, loopback, and a host that is slow or types. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "backend/chardev.h"
#include "dev/board.h"
#include "dev/uart.h"

enum { IRQ = 4, BASE = 0x3F8, IER = BASE + 1, IIR = BASE + 2, FCR = BASE + 2, LCR = BASE + 3, MCR = BASE + 4, LSR = BASE + 5,
       MSR = BASE + 6, SCR = BASE + 7 };

struct fixture {
    struct board *board;
    struct uart *uart;
    struct chardev *chardev;
    char directory[64], path[96], text[112];
    int peer;
};

static void configure(struct device *device, void *opaque)
{
    struct fixture *f = opaque;
    ((struct uart *)device)->irq = board_line(f->board, IRQ);
    ((struct uart *)device)->chardev = f->chardev;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->peer = -1;
    f->uart = board_device(f->board, &device_uart, configure, f);
    *state = f;
    return 0;
}

/* With a socket chardev and a peer connected to it. */
static int setup_connected(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct error err = { "" };
    f->board = board_create();
    strcpy(f->directory, "/tmp/doppel-uart-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    snprintf(f->path, sizeof(f->path), "%s/s", f->directory);
    snprintf(f->text, sizeof(f->text), "socket:%s", f->path);
    f->chardev = chardev_open(f->text, f->board->loop, &f->board->lock, &f->board->log, &err);
    if (!f->chardev)
        fail_msg("%s", err.text);
    f->uart = board_device(f->board, &device_uart, configure, f);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strcpy(address.sun_path, f->path);
    f->peer = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(f->peer, (struct sockaddr *)&address, sizeof(address)), 0);
    for (int i = 0; i < 4; i++)
        loop_run_once(f->board->loop, 10);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->uart->device);
    if (f->chardev)
        chardev_close(f->chardev);
    if (f->peer >= 0)
        close(f->peer);
    if (f->path[0]) {
        unlink(f->path);
        rmdir(f->directory);
    }
    board_destroy(f->board);
    free(f);
    return 0;
}

static void type(struct fixture *f, const char *text)
{
    assert_int_equal(write(f->peer, text, strlen(text)), (ssize_t)strlen(text));
    for (int i = 0; i < 4; i++)
        loop_run_once(f->board->loop, 10);
}

static void registers_keep_what_they_should(void **state)
{
    struct fixture *f = *state;
    out8(f->board, SCR, 0xA5);
    assert_int_equal(in8(f->board, SCR), 0xA5);
    out8(f->board, IER, 0xFF);
    assert_int_equal(in8(f->board, IER), 0x0F);
    out8(f->board, LCR, 0x83);
    out8(f->board, BASE, 0x01);
    out8(f->board, IER, 0x02);
    assert_int_equal(in8(f->board, BASE), 0x01);
    assert_int_equal(in8(f->board, IER), 0x02);
    out8(f->board, LCR, 0x03);
    assert_int_equal(in8(f->board, IER), 0x0F);
    out8(f->board, FCR, 0x01);
    assert_int_equal(in8(f->board, IIR) & 0xC0, 0xC0);
    out8(f->board, FCR, 0x00);
    assert_int_equal(in8(f->board, IIR) & 0xC0, 0);
    assert_int_equal(in8(f->board, LSR), 0x60);
}

static void transmitter_empty_interrupts_until_its_identification_is_read(void **state)
{
    struct fixture *f = *state;
    out8(f->board, IER, 0x02);
    assert_true(f->board->level[IRQ]);
    assert_int_equal(in8(f->board, IIR), 0x02);
    assert_false(f->board->level[IRQ]);
    assert_int_equal(in8(f->board, IIR), 0x01);
    out8(f->board, BASE, 'x');
    assert_true(f->board->level[IRQ]);
    out8(f->board, IER, 0x00);
    assert_false(f->board->level[IRQ]);
}

/* How drivers find the chip: outputs appear at the inputs, characters come back. */
static void loopback(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in8(f->board, MSR) & 0xF0, 0xB0);
    out8(f->board, MCR, 0x1A);
    assert_int_equal(in8(f->board, MSR) & 0xF0, 0x90);
    out8(f->board, FCR, 0x01);
    out8(f->board, BASE, 'a');
    out8(f->board, BASE, 'b');
    assert_int_equal(in8(f->board, LSR) & 1, 1);
    assert_int_equal(in8(f->board, BASE), 'a');
    assert_int_equal(in8(f->board, BASE), 'b');
    assert_int_equal(in8(f->board, LSR) & 1, 0);
    for (int i = 0; i < 17; i++)
        out8(f->board, BASE, 'c');
    assert_int_equal(in8(f->board, LSR) & 2, 2);        /* overrun */
    assert_int_equal(in8(f->board, LSR) & 2, 0);
}

static void modem_changes_interrupt(void **state)
{
    struct fixture *f = *state;
    out8(f->board, IER, 0x08);
    out8(f->board, MCR, 0x10);
    assert_int_equal(in8(f->board, IIR) & 0x0F, 0x00);
    assert_true(f->board->level[IRQ]);
    in8(f->board, MSR);
    assert_false(f->board->level[IRQ]);
}

static void received_bytes_interrupt_at_the_trigger_level_or_after_a_while(void **state)
{
    struct fixture *f = *state;
    out8(f->board, FCR, 0x81);          /* level 8 */
    out8(f->board, IER, 0x01);
    type(f, "1234567");
    assert_false(f->board->level[IRQ]);
    board_advance(f->board, 10000000);
    assert_true(f->board->level[IRQ]);
    assert_int_equal(in8(f->board, IIR) & 0x0F, 0x0C);
    assert_int_equal(in8(f->board, BASE), '1');
    assert_false(f->board->level[IRQ]);
    type(f, "89");
    assert_true(f->board->level[IRQ]);
    assert_int_equal(in8(f->board, IIR) & 0x0F, 0x04);
    for (char c = '2'; c <= '9'; c++)
        assert_int_equal(in8(f->board, BASE), c);
    assert_false(f->board->level[IRQ]);
}

/* 100 KB at once, and a guest that takes a byte now and then. */
static void nothing_typed_is_lost_however_much(void **state)
{
    enum { BYTES = 100 * 1024, EMPTY_ROUNDS = 10000 };
    struct fixture *f = *state;
    static uint8_t text[BYTES];
    size_t sent = 0, empty = 0;
    for (size_t i = 0; i < BYTES; i++)
        text[i] = (uint8_t)('!' + (i ^ i >> 8) % 90);
    out8(f->board, FCR, 0x01);
    for (size_t i = 0; i < BYTES && empty < EMPTY_ROUNDS;) {
        ssize_t done = send(f->peer, text + sent, BYTES - sent, MSG_DONTWAIT);
        sent += done > 0 ? (size_t)done : 0;
        bool ready = in8(f->board, LSR) & 1;
        loop_run_once(f->board->loop, ready ? 0 : 10);
        empty = ready ? 0 : empty + 1;
        if (ready)
            assert_int_equal(in8(f->board, BASE), text[i++]);
    }
    assert_true(empty < EMPTY_ROUNDS);
    assert_int_equal(in8(f->board, LSR) & 3, 0);        /* no more, and no overrun */
}

static void written_bytes_arrive_in_order(void **state)
{
    struct fixture *f = *state;
    char text[16] = "";
    out8(f->board, FCR, 0x01);
    for (const char *c = "hello, world"; *c; c++)
        out8(f->board, BASE, (uint8_t)*c);
    loop_run_once(f->board->loop, 0);
    assert_int_equal(read(f->peer, text, sizeof(text)), 12);
    assert_string_equal(text, "hello, world");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define CASE_CONNECTED(name) cmocka_unit_test_setup_teardown(name, setup_connected, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(registers_keep_what_they_should),
        CASE(transmitter_empty_interrupts_until_its_identification_is_read),
        CASE(loopback),
        CASE(modem_changes_interrupt),
        CASE_CONNECTED(received_bytes_interrupt_at_the_trigger_level_or_after_a_while),
        CASE_CONNECTED(nothing_typed_is_lost_however_much),
        CASE_CONNECTED(written_bytes_arrive_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
