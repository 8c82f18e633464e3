/* The shared console: what is typed reaches the guest in order, however slowly it reads, and though who typed it has gone; output reaches all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>
#include <unistd.h>

#include "api/console.h"
#include "base/base.h"
#include "base/error.h"
#include "base/io.h"

enum { PIECE = 4096, MOST = 1 << 22 };

struct fixture {
    struct console *console;
    int guest;                          /* the guest's end of the line */
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct error err;
    assert_non_null(f->console = console_create(-1, NULL, &err));
    const char *text = console_connect(f->console, &err);
    assert_true(text && !strncmp(text, "fd:", 3));
    f->guest = atoi(text + 3);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    console_destroy(f->console);
    free(f);
    return 0;
}

static int attach(struct fixture *f)
{
    struct error err;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_true(console_attach(f->console, pair[1], 0, &err));
    return pair[0];
}

static uint8_t typed(size_t i) { return (uint8_t)(i ^ i >> 8); }

/* Until nobody takes any more for now. Returns the bytes. */
static size_t type_much(int line)
{
    uint8_t data[PIECE];
    for (size_t sent = 0; sent < MOST;) {
        for (unsigned i = 0; i < PIECE; i++)
            data[i] = typed(sent + i);
        ssize_t result = send(line, data, PIECE, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (result <= 0)
            return sent;
        sent += (size_t)result;
    }
    fail_msg("there is no end to what is taken from it");
    return 0;
}

static void what_was_typed_last_reaches_a_guest_that_did_not_read(void **state)
{
    struct fixture *f = *state;
    uint8_t byte;
    int line = attach(f);
    size_t size = type_much(line);
    assert_true(size >= PIECE);
    close(line);
    assert_true(io_write_all(f->guest, "somebody who has gone is shown nothing", 38));
    for (size_t i = 0; i < size; i++) {
        assert_true(io_read_all(f->guest, &byte, 1));
        assert_int_equal(byte, typed(i));
    }
    line = attach(f);                   /* and others are served */
    assert_true(io_write_all(line, "x", 1));
    assert_true(io_read_all(f->guest, &byte, 1));
    assert_int_equal(byte, 'x');
    close(line);
}

static void those_who_have_gone_keep_nobody_out(void **state)
{
    enum { MANY = 20 };
    struct fixture *f = *state;
    for (unsigned i = 0; i < MANY; i++) {
        int line = attach(f);
        type_much(line);
        close(line);
    }
}

static void what_the_guest_writes_reaches_all(void **state)
{
    struct fixture *f = *state;
    char text[6];
    int lines[] = { attach(f), attach(f) };
    assert_true(io_write_all(f->guest, "hello", 5));
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        assert_true(io_read_all(lines[i], text, 5));
        assert_memory_equal(text, "hello", 5);
        close(lines[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_typed_last_reaches_a_guest_that_did_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(those_who_have_gone_keep_nobody_out, setup, teardown),
        cmocka_unit_test_setup_teardown(what_the_guest_writes_reaches_all, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
