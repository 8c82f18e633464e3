/* The 8259 pair and ELCR: priorities, EOI in all its forms, cascade, spurious interrupts, levels. */
#include <stdlib.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/pic.h"

enum { INTR = 0 };

struct fixture {
    struct board *board;
    struct pic *pic;
};

static void configure(struct device *device, void *opaque) { ((struct pic *)device)->intr = board_line(opaque, INTR); }

static void initialise(struct board *board, uint8_t icw4)
{
    out8(board, 0x20, 0x11);
    out8(board, 0x21, 0x20);
    out8(board, 0x21, 0x04);
    out8(board, 0x21, icw4);
    out8(board, 0xA0, 0x11);
    out8(board, 0xA1, 0x28);
    out8(board, 0xA1, 0x02);
    out8(board, 0xA1, icw4);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->pic = board_device(f->board, &device_pic, configure, f->board);
    initialise(f->board, 0x01);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->pic->device);
    board_destroy(f->board);
    free(f);
    return 0;
}

static void raise_irq(struct fixture *f, unsigned n) { pic_set_irq(f->pic, n, true); }
static void lower(struct fixture *f, unsigned n) { pic_set_irq(f->pic, n, false); }
static bool intr(struct fixture *f) { return f->board->level[INTR]; }

static void is_masked_until_initialised(void **state)
{
    struct fixture *f = *state;
    device_pic.reset(&f->pic->device);
    raise_irq(f, 0);
    assert_false(intr(f));
    assert_int_equal(in8(f->board, 0x21), 0xFF);
}

static void edge_gives_one_interrupt(void **state)
{
    struct fixture *f = *state;
    raise_irq(f, 4);
    assert_true(intr(f));
    assert_int_equal(pic_acknowledge(f->pic), 0x24);
    assert_false(intr(f));
    out8(f->board, 0x20, 0x20);
    assert_false(intr(f));
    lower(f, 4);
    raise_irq(f, 4);
    assert_true(intr(f));
}

static void higher_priority_interrupts_lower_and_not_the_reverse(void **state)
{
    struct fixture *f = *state;
    raise_irq(f, 4);
    assert_int_equal(pic_acknowledge(f->pic), 0x24);
    raise_irq(f, 5);
    assert_false(intr(f));
    raise_irq(f, 1);
    assert_int_equal(pic_acknowledge(f->pic), 0x21);
    out8(f->board, 0x20, 0x0B);
    assert_int_equal(in8(f->board, 0x20), 1 << 4 | 1 << 1);
    out8(f->board, 0x20, 0x20);
    assert_false(intr(f));
    out8(f->board, 0x20, 0x20);
    assert_true(intr(f));
    assert_int_equal(pic_acknowledge(f->pic), 0x25);
}

static void slave_comes_through_the_cascade(void **state)
{
    struct fixture *f = *state;
    raise_irq(f, 12);
    raise_irq(f, 3);
    assert_int_equal(pic_acknowledge(f->pic), 0x2C);
    assert_false(intr(f));
    out8(f->board, 0xA0, 0x20);
    out8(f->board, 0x20, 0x20);
    assert_int_equal(pic_acknowledge(f->pic), 0x23);
}

static void masked_request_waits(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x21, 0x10);
    assert_int_equal(in8(f->board, 0x21), 0x10);
    raise_irq(f, 4);
    assert_false(intr(f));
    out8(f->board, 0x20, 0x0A);
    assert_int_equal(in8(f->board, 0x20), 0x10);
    out8(f->board, 0x21, 0);
    assert_true(intr(f));
}

static void vanished_request_is_answered_as_spurious(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(pic_acknowledge(f->pic), 0x27);
    out8(f->board, 0x20, 0x0B);
    assert_int_equal(in8(f->board, 0x20), 0);
}

static void level_input_asks_again_until_it_is_released(void **state)
{
    struct fixture *f = *state;
    board_write(f->board->ports, 0x4D0, 2, 0xFFFF);
    assert_int_equal(board_read(f->board->ports, 0x4D0, 2), 0xDEF8);
    raise_irq(f, 11);
    assert_int_equal(pic_acknowledge(f->pic), 0x2B);
    out8(f->board, 0xA0, 0x20);
    out8(f->board, 0x20, 0x20);
    assert_true(intr(f));
    lower(f, 11);
    assert_false(intr(f));
}

static void rotation_moves_the_lowest_priority(void **state)
{
    struct fixture *f = *state;
    raise_irq(f, 0);
    assert_int_equal(pic_acknowledge(f->pic), 0x20);
    out8(f->board, 0x20, 0xA0);     /* rotate on non-specific EOI: 0 becomes the lowest */
    lower(f, 0);
    raise_irq(f, 0);
    raise_irq(f, 7);
    assert_int_equal(pic_acknowledge(f->pic), 0x27);
    out8(f->board, 0x20, 0x67);     /* specific EOI */
    assert_int_equal(pic_acknowledge(f->pic), 0x20);
    out8(f->board, 0x20, 0x60);
    out8(f->board, 0x20, 0xC3);     /* set priority: 3 lowest, 4 highest */
    raise_irq(f, 3);
    raise_irq(f, 4);
    assert_int_equal(pic_acknowledge(f->pic), 0x24);
}

static void automatic_eoi_leaves_nothing_in_service(void **state)
{
    struct fixture *f = *state;
    initialise(f->board, 0x03);
    raise_irq(f, 5);
    assert_int_equal(pic_acknowledge(f->pic), 0x25);
    out8(f->board, 0x20, 0x0B);
    assert_int_equal(in8(f->board, 0x20), 0);
}

static void special_mask_lets_lower_priorities_through(void **state)
{
    struct fixture *f = *state;
    raise_irq(f, 1);
    assert_int_equal(pic_acknowledge(f->pic), 0x21);
    out8(f->board, 0x21, 0x02);
    out8(f->board, 0x20, 0x68);
    raise_irq(f, 6);
    assert_int_equal(pic_acknowledge(f->pic), 0x26);
}

static void poll_acknowledges(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x20, 0x0C);
    assert_int_equal(in8(f->board, 0x20), 0);
    raise_irq(f, 6);
    out8(f->board, 0x20, 0x0C);
    assert_int_equal(in8(f->board, 0x20), 0x86);
    assert_false(intr(f));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(is_masked_until_initialised),
        CASE(edge_gives_one_interrupt),
        CASE(higher_priority_interrupts_lower_and_not_the_reverse),
        CASE(slave_comes_through_the_cascade),
        CASE(masked_request_waits),
        CASE(vanished_request_is_answered_as_spurious),
        CASE(level_input_asks_again_until_it_is_released),
        CASE(rotation_moves_the_lowest_priority),
        CASE(automatic_eoi_leaves_nothing_in_service),
        CASE(special_mask_lets_lower_priorities_through),
        CASE(poll_acknowledges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
