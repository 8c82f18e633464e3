/* The 8254: every mode's output and count, latches, read-back, BCD, and channel 2 behind port B. */
#include <stdlib.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/pit.h"

enum { IRQ = 0 };

struct fixture {
    struct board *board;
    struct pit *pit;
};

static void configure(struct device *device, void *opaque) { ((struct pit *)device)->irq = board_line(opaque, IRQ); }

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->pit = board_device(f->board, &device_pit, configure, f->board);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->pit->device);
    board_destroy(f->board);
    free(f);
    return 0;
}

static void program(struct fixture *f, unsigned channel, unsigned mode, uint16_t count)
{
    out8(f->board, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    out8(f->board, (uint16_t)(0x40 + channel), (uint8_t)count);
    out8(f->board, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static void advance_ticks(struct fixture *f, uint64_t ticks)
{
    board_advance(f->board, (ticks * NS_PER_SECOND + PIT_HZ - 1) / PIT_HZ);
}

static uint16_t read_count(struct fixture *f, unsigned channel)
{
    out8(f->board, 0x43, (uint8_t)(channel << 6));
    uint8_t low = in8(f->board, (uint16_t)(0x40 + channel));
    return (uint16_t)(low | in8(f->board, (uint16_t)(0x40 + channel)) << 8);
}

static uint8_t read_status(struct fixture *f, unsigned channel)
{
    out8(f->board, 0x43, (uint8_t)(0xE0 | 2 << channel));
    return in8(f->board, (uint16_t)(0x40 + channel));
}

static void rate_generator_interrupts_each_period(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 11932);        /* 100 Hz */
    unsigned before = f->board->rises[IRQ];
    board_advance(f->board, NS_PER_SECOND);
    assert_in_range(f->board->rises[IRQ] - before, 99, 100);
}

static void square_wave_interrupts_each_period_and_is_low_half_the_time(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 3, 10000);
    unsigned before = f->board->rises[IRQ];
    advance_ticks(f, 100000);
    assert_in_range(f->board->rises[IRQ] - before, 9, 10);
    program(f, 0, 3, 10000);
    advance_ticks(f, 1000);
    assert_int_equal(read_status(f, 0) & 0x80, 0x80);
    assert_in_range(read_count(f, 0), 10000 - 2010, 10000 - 1990);
    advance_ticks(f, 5000);
    assert_int_equal(read_status(f, 0) & 0x80, 0);
}

static void terminal_count_rises_once_and_stays(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0, 1000);
    assert_false(f->board->level[IRQ]);
    advance_ticks(f, 990);
    assert_false(f->board->level[IRQ]);
    assert_in_range(read_count(f, 0), 8, 11);
    advance_ticks(f, 20);
    assert_true(f->board->level[IRQ]);
    unsigned before = f->board->rises[IRQ];
    advance_ticks(f, 200000);
    assert_int_equal(f->board->rises[IRQ], before);
    program(f, 0, 0, 1000);
    assert_false(f->board->level[IRQ]);
}

static void first_byte_of_a_count_stops_mode_0(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0, 1000);
    out8(f->board, 0x40, 0x10);
    advance_ticks(f, 5000);
    assert_false(f->board->level[IRQ]);
    out8(f->board, 0x40, 0x00);
    advance_ticks(f, 20);
    assert_true(f->board->level[IRQ]);
}

static void software_strobe_pulses_once(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 4, 500);
    assert_true(f->board->level[IRQ]);
    unsigned before = f->board->rises[IRQ];
    advance_ticks(f, 100000);
    assert_int_equal(f->board->rises[IRQ], before + 1);
}

static void latched_count_stands_until_it_is_read(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 50000);
    advance_ticks(f, 1000);
    out8(f->board, 0x43, 0x00);
    advance_ticks(f, 5000);
    out8(f->board, 0x43, 0x00);
    unsigned value = in8(f->board, 0x40);
    value |= (unsigned)in8(f->board, 0x40) << 8;
    assert_in_range(value, 48998, 49001);
    assert_in_range(read_count(f, 0), 43996, 44001);
}

static void read_back_gives_status_then_count(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 5000);
    advance_ticks(f, 10);
    out8(f->board, 0x43, 0xC2);
    assert_int_equal(in8(f->board, 0x40), 0x80 | 0x30 | 2 << 1);
    unsigned value = in8(f->board, 0x40);
    value |= (unsigned)in8(f->board, 0x40) << 8;
    assert_in_range(value, 4988, 4991);
    out8(f->board, 0x43, 0x34);
    assert_int_equal(read_status(f, 0) & 0x40, 0x40);   /* null count: nothing loaded yet */
}

static void bcd_counts_in_decimal(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x43, 0x35);
    out8(f->board, 0x40, 0x00);
    out8(f->board, 0x40, 0x20);
    advance_ticks(f, 1);
    unsigned value = read_count(f, 0);
    assert_true(value == 0x1999 || value == 0x1998);
}

static void single_byte_counts(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x43, 0x14);     /* low byte only, mode 2 */
    out8(f->board, 0x40, 200);
    assert_int_equal(in8(f->board, 0x40), 200);
    out8(f->board, 0x43, 0x24);     /* high byte only */
    out8(f->board, 0x40, 0x12);
    assert_int_equal(in8(f->board, 0x40), 0x12);
}

/* How old kernels calibrate: gate channel 2, mode 0, poll its output in port B. */
static void channel_2_is_gated_and_seen_through_port_b(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x61, 0x00);
    program(f, 2, 0, 1000);
    advance_ticks(f, 2000);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0);
    out8(f->board, 0x61, 0x01);
    advance_ticks(f, 990);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0);
    out8(f->board, 0x61, 0x00);
    advance_ticks(f, 1000);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0);
    out8(f->board, 0x61, 0x01);
    advance_ticks(f, 20);
    assert_int_equal(in8(f->board, 0x61) & 0x21, 0x21);
}

static void one_shot_waits_for_the_gate_and_can_be_retriggered(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x61, 0x00);
    program(f, 2, 1, 1000);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0x20);
    out8(f->board, 0x61, 0x01);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0);
    advance_ticks(f, 900);
    out8(f->board, 0x61, 0x00);
    out8(f->board, 0x61, 0x01);
    advance_ticks(f, 900);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0);
    advance_ticks(f, 110);
    assert_int_equal(in8(f->board, 0x61) & 0x20, 0x20);
}

static void refresh_bit_toggles(void **state)
{
    struct fixture *f = *state;
    unsigned changes = 0;
    uint8_t last = in8(f->board, 0x61) & 0x10;
    for (unsigned i = 0; i < 100; i++) {
        board_advance(f->board, 5000);
        uint8_t now = in8(f->board, 0x61) & 0x10;
        changes += now != last;
        last = now;
    }
    assert_in_range(changes, 30, 36);
}

static void absurdly_short_periods_do_not_flood_the_host(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 2);
    unsigned before = f->board->rises[IRQ];
    board_advance(f->board, 10000000);
    assert_in_range(f->board->rises[IRQ] - before, 400, 501);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(rate_generator_interrupts_each_period),
        CASE(square_wave_interrupts_each_period_and_is_low_half_the_time),
        CASE(terminal_count_rises_once_and_stays),
        CASE(first_byte_of_a_count_stops_mode_0),
        CASE(software_strobe_pulses_once),
        CASE(latched_count_stands_until_it_is_read),
        CASE(read_back_gives_status_then_count),
        CASE(bcd_counts_in_decimal),
        CASE(single_byte_counts),
        CASE(channel_2_is_gated_and_seen_through_port_b),
        CASE(one_shot_waits_for_the_gate_and_can_be_retriggered),
        CASE(refresh_bit_toggles),
        CASE(absurdly_short_periods_do_not_flood_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
