/* The RTC: formats, setting, update and periodic interrupts, alarms, memory over a reset. The clock starts 2024-03-05 06:07:08. */
#include <stdlib.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/rtc.h"

enum { IRQ = 8 };

struct fixture {
    struct board *board;
    struct rtc *rtc;
};

static void configure(struct device *device, void *opaque) { ((struct rtc *)device)->irq = board_line(opaque, IRQ); }

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->rtc = board_device(f->board, &device_rtc, configure, f->board);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->rtc->device);
    board_destroy(f->board);
    free(f);
    return 0;
}

static uint8_t get(struct fixture *f, uint8_t reg)
{
    out8(f->board, 0x70, reg);
    return in8(f->board, 0x71);
}

static void set(struct fixture *f, uint8_t reg, uint8_t value)
{
    out8(f->board, 0x70, reg);
    out8(f->board, 0x71, value);
}

static void check_time(struct fixture *f, const uint8_t expected[8])
{
    static const uint8_t reg[8] = { 0x32, 9, 8, 7, 6, 4, 2, 0 };
    for (unsigned i = 0; i < 8; i++)
        if (get(f, reg[i]) != expected[i])
            fail_msg("register %#x is %#x, not %#x", reg[i], get(f, reg[i]), expected[i]);
}

static void shows_the_wall_clock_in_each_format(void **state)
{
    struct fixture *f = *state;
    check_time(f, (uint8_t[]){ 0x20, 0x24, 0x03, 0x05, 0x03, 0x06, 0x07, 0x08 });       /* a Tuesday */
    set(f, 0x0B, 0x06);
    check_time(f, (uint8_t[]){ 20, 24, 3, 5, 3, 6, 7, 8 });
    board_advance(f->board, 12 * 3600 * NS_PER_SECOND);
    check_time(f, (uint8_t[]){ 20, 24, 3, 5, 3, 18, 7, 8 });
    set(f, 0x0B, 0x00);
    check_time(f, (uint8_t[]){ 0x20, 0x24, 0x03, 0x05, 0x03, 0x86, 0x07, 0x08 });
    assert_int_equal(get(f, 0x0D), 0x80);
}

static void can_be_set_and_goes_on_from_there(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0B, 0x82);
    const uint8_t values[][2] = { { 0x32, 0x20 }, { 9, 0x23 }, { 8, 0x12 }, { 7, 0x31 }, { 4, 0x23 }, { 2, 0x59 }, { 0, 0x58 } };
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
        set(f, values[i][0], values[i][1]);
    board_advance(f->board, 10 * NS_PER_SECOND);        /* stands while SET */
    assert_int_equal(get(f, 0), 0x58);
    set(f, 0x0B, 0x02);
    board_advance(f->board, 3 * NS_PER_SECOND);
    check_time(f, (uint8_t[]){ 0x20, 0x24, 0x01, 0x01, 0x02, 0x00, 0x00, 0x01 });
    device_rtc.reset(&f->rtc->device);
    check_time(f, (uint8_t[]){ 0x20, 0x24, 0x01, 0x01, 0x02, 0x00, 0x00, 0x01 });
}

static void single_register_can_be_set_while_it_runs(void **state)
{
    struct fixture *f = *state;
    set(f, 4, 0x15);
    check_time(f, (uint8_t[]){ 0x20, 0x24, 0x03, 0x05, 0x03, 0x15, 0x07, 0x08 });
}

static void update_in_progress_precedes_each_second(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 0x0A), 0x26);
    board_advance(f->board, NS_PER_SECOND - 100000);
    assert_int_equal(get(f, 0x0A), 0xA6);
    board_advance(f->board, 100000);
    assert_int_equal(get(f, 0x0A), 0x26);
}

static void update_interrupt_comes_each_second(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0B, 0x12);
    for (unsigned i = 0; i < 5; i++) {
        board_advance(f->board, NS_PER_SECOND);
        assert_true(f->board->level[IRQ]);
        assert_int_equal(get(f, 0x0C) & 0x90, 0x90);
        assert_false(f->board->level[IRQ]);
        assert_int_equal(get(f, 0x0C), 0);
    }
}

static void periodic_interrupt_has_the_chosen_rate(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0A, 0x26);         /* 1024 Hz */
    set(f, 0x0B, 0x42);
    unsigned count = 0;
    for (unsigned i = 0; i < 10000; i++) {
        board_advance(f->board, 100000);
        if (f->board->level[IRQ]) {
            count++;
            assert_int_equal(get(f, 0x0C) & 0xC0, 0xC0);
        }
    }
    assert_in_range(count, 1023, 1025);
}

/* However near to the next tick the read is: else an input that looks for edges has seen its last. */
static void read_of_the_flags_lowers_the_line_while_time_goes_on(void **state)
{
    struct fixture f = { .board = board_create() };
    clock_destroy(f.board->clock);
    f.board->clock = clock_create(f.board->loop, &f.board->lock, 0);
    f.rtc = board_device(f.board, &device_rtc, configure, f.board);
    set(&f, 0x0A, 0x23);        /* 8192 Hz */
    set(&f, 0x0B, 0x42);
    for (unsigned i = 0; i < 200000; i++) {
        get(&f, 0x0C);
        assert_false(f.board->level[IRQ]);
    }
    device_destroy(&f.rtc->device);
    board_destroy(f.board);
}

static void flags_can_be_polled_without_interrupts(void **state)
{
    struct fixture *f = *state;
    get(f, 0x0C);
    board_advance(f->board, 2 * NS_PER_SECOND);
    assert_int_equal(get(f, 0x0C) & 0x50, 0x50);
    assert_false(f->board->level[IRQ]);
}

static void alarm_matches_time_and_wildcards(void **state)
{
    struct fixture *f = *state;
    set(f, 1, 0x10);
    set(f, 3, 0x07);
    set(f, 5, 0x06);
    set(f, 0x0B, 0x22);
    board_advance(f->board, NS_PER_SECOND);
    assert_false(f->board->level[IRQ]);
    board_advance(f->board, NS_PER_SECOND);
    assert_true(f->board->level[IRQ]);
    assert_int_equal(get(f, 0x0C) & 0xA0, 0xA0);
    board_advance(f->board, 3600 * NS_PER_SECOND);
    assert_false(f->board->level[IRQ]);
    set(f, 5, 0xFF);            /* any hour */
    board_advance(f->board, 3600 * NS_PER_SECOND);
    assert_true(f->board->level[IRQ]);
}

static void memory_is_kept_over_a_reset(void **state)
{
    struct fixture *f = *state;
    set(f, 0x40, 0x77);
    set(f, 0x0B, 0x72);
    device_rtc.reset(&f->rtc->device);
    assert_int_equal(get(f, 0x40), 0x77);
    assert_int_equal(get(f, 0x0B), 0x02);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(shows_the_wall_clock_in_each_format),
        CASE(can_be_set_and_goes_on_from_there),
        CASE(single_register_can_be_set_while_it_runs),
        CASE(update_in_progress_precedes_each_second),
        CASE(update_interrupt_comes_each_second),
        CASE(periodic_interrupt_has_the_chosen_rate),
        cmocka_unit_test(read_of_the_flags_lowers_the_line_while_time_goes_on),
        CASE(flags_can_be_polled_without_interrupts),
        CASE(alarm_matches_time_and_wildcards),
        CASE(memory_is_kept_over_a_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
