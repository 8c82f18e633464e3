/* The HPET: counter, one-shot and periodic matches, levels, legacy replacement, messages. */
#include <stdlib.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/gsi.h"
#include "dev/hpet.h"

static const uint64_t base = 0xFED00000;
enum { GEN_CONF = 0x10, STATUS = 0x20, COUNTER = 0xF0, TIMER = 0x100, STRIDE = 0x20, COMP = 8, FSB = 0x10, LEGACY_LINE = 40 };

struct fixture {
    struct board *board;
    struct hpet *hpet;
};

static void configure(struct device *device, void *opaque)
{
    struct hpet *hpet = (struct hpet *)device;
    for (unsigned n = 0; n < HPET_LINES; n++)
        hpet->irq[n] = board_line(opaque, n);
    hpet->legacy = board_line(opaque, LEGACY_LINE);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->hpet = board_device(f->board, &device_hpet, configure, f->board);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->hpet->device);
    board_destroy(f->board);
    free(f);
    return 0;
}

static uint64_t get(struct fixture *f, unsigned offset) { return board_read(f->board->mmio, base + offset, 8); }
static void set(struct fixture *f, unsigned offset, uint64_t value) { board_write(f->board->mmio, base + offset, 8, value); }

static void counter_runs_at_the_stated_rate_and_stops(void **state)
{
    struct fixture *f = *state;
    uint64_t id = get(f, 0);
    assert_int_equal(id >> 32, 10000000);       /* femtoseconds */
    assert_int_equal(id >> 8 & 0x1F, 2);
    board_advance(f->board, 1000);
    assert_int_equal(get(f, COUNTER), 0);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 1000000);
    assert_int_equal(get(f, COUNTER), 100000);
    assert_int_equal(read32(f->board, base + COUNTER), 100000);
    assert_int_equal(read32(f->board, base + COUNTER + 4), 0);
    set(f, GEN_CONF, 0);
    board_advance(f->board, 1000000);
    assert_int_equal(get(f, COUNTER), 100000);
    set(f, COUNTER, 0xFFFFFFFFFFFFFFF0);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 320);
    assert_int_equal(get(f, COUNTER), 0x10);
}

static void one_shot_fires_once_at_its_comparator(void **state)
{
    struct fixture *f = *state;
    set(f, TIMER, 20 << 9 | 4);
    set(f, TIMER + COMP, 10000);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 99990);
    assert_int_equal(f->board->rises[20], 0);
    board_advance(f->board, 10);
    assert_int_equal(f->board->rises[20], 1);
    assert_false(f->board->level[20]);
    board_advance(f->board, NS_PER_SECOND);
    assert_int_equal(f->board->rises[20], 1);
    set(f, TIMER + COMP, get(f, COUNTER) + 500);
    board_advance(f->board, 5000);
    assert_int_equal(f->board->rises[20], 2);
}

static void periodic_timer_keeps_its_phase(void **state)
{
    struct fixture *f = *state;
    set(f, TIMER, 20 << 9 | 4 | 8 | 0x40);
    set(f, TIMER + COMP, 50000);        /* VAL_SET: first match */
    set(f, TIMER + COMP, 100000);       /* period: 1 ms */
    set(f, GEN_CONF, 1);
    board_advance(f->board, 500000);
    assert_int_equal(f->board->rises[20], 1);
    assert_int_equal(get(f, TIMER + COMP), 150000);
    board_advance(f->board, 100 * 1000000);
    assert_int_equal(f->board->rises[20], 101);
    set(f, TIMER, 20 << 9 | 8);
    board_advance(f->board, 100 * 1000000);
    assert_int_equal(f->board->rises[20], 101);
}

static void level_stays_until_its_status_is_cleared(void **state)
{
    struct fixture *f = *state;
    set(f, TIMER + STRIDE, 21 << 9 | 4 | 2);
    set(f, TIMER + STRIDE + COMP, 1000);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 10000);
    assert_true(f->board->level[21]);
    assert_int_equal(get(f, STATUS), 2);
    set(f, STATUS, 1);
    assert_true(f->board->level[21]);
    set(f, STATUS, 2);
    assert_false(f->board->level[21]);
}

static void legacy_replacement_uses_lines_0_and_8(void **state)
{
    struct fixture *f = *state;
    set(f, TIMER, 4);
    set(f, TIMER + COMP, 1000);
    set(f, TIMER + STRIDE, 4);
    set(f, TIMER + STRIDE + COMP, 2000);
    set(f, GEN_CONF, 3);
    assert_true(f->board->level[LEGACY_LINE]);
    board_advance(f->board, 20000);
    assert_int_equal(f->board->rises[0], 1);
    assert_int_equal(f->board->rises[8], 1);
    set(f, GEN_CONF, 1);
    assert_false(f->board->level[LEGACY_LINE]);
}

static void messages_are_written_to_memory(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, TIMER) & 0x8000, 0x8000);
    set(f, TIMER + FSB, 0xFEE01000ull << 32 | 0x41);
    set(f, TIMER, 1 << 14 | 4);
    set(f, TIMER + COMP, 1000);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 10000);
    assert_int_equal(f->board->msi_count, 1);
    assert_int_equal(f->board->msi[0].address, 0xFEE01000);
    assert_int_equal(f->board->msi[0].data, 0x41);
}

static void narrow_timer_wraps_at_32_bits(void **state)
{
    struct fixture *f = *state;
    set(f, COUNTER, 0x1FFFFFF00);
    set(f, TIMER, 20 << 9 | 4 | 0x100);
    set(f, TIMER + COMP, 0x100);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 0x200 * 10);
    assert_int_equal(f->board->rises[20], 1);
    board_advance(f->board, 43 * NS_PER_SECOND);        /* 2^32 ticks: 42.9 s */
    assert_int_equal(f->board->rises[20], 2);
}

static void short_periods_do_not_flood_the_host(void **state)
{
    struct fixture *f = *state;
    set(f, TIMER, 20 << 9 | 4 | 8 | 0x40);
    set(f, TIMER + COMP, 1);
    set(f, TIMER + COMP, 1);
    set(f, GEN_CONF, 1);
    board_advance(f->board, 1000000);
    assert_in_range(f->board->rises[20], 40, 51);
}

/* The wiring around it: the PIT is cut off from line 0 and comes back. */
static void replaced_lines_come_back(void **state)
{
    struct fixture *f = *state;
    struct gsi gsi = { .pic = board_line(f->board, 0), .ioapic = { NULL } };
    struct irq_line pit = gsi_replaceable_line(&gsi, 0), hpet = gsi_shared_line(&gsi, GSI_HPET, 0), legacy = gsi_hpet_legacy_line(&gsi);
    irq_set(&pit, true);
    assert_true(f->board->level[0]);
    irq_set(&legacy, true);
    assert_false(f->board->level[0]);
    irq_set(&pit, false);
    irq_set(&pit, true);
    assert_false(f->board->level[0]);
    irq_set(&hpet, true);
    assert_true(f->board->level[0]);
    irq_set(&hpet, false);
    irq_set(&legacy, false);
    assert_true(f->board->level[0]);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* Nobody is woken for it, and its comparator is where it would be. */
static void periodic_timer_without_interrupts_keeps_its_phase(void **state)
{
    enum { PERIOD = 1000, SECONDS = 90 };
    struct fixture *f = *state;
    set(f, TIMER, 8 | 1 << 6 | 1 << 8);         /* periodic, the first write sets the comparator, 32 bits */
    set(f, TIMER + COMP, PERIOD + 7);
    set(f, TIMER + COMP, PERIOD);
    set(f, GEN_CONF, 1);
    assert_false(timer_armed(&f->hpet->timer[0].timer));
    board_advance(f->board, 10 * (PERIOD + 6));
    assert_int_equal(get(f, TIMER + COMP), PERIOD + 7);
    board_advance(f->board, 10);
    assert_int_equal(get(f, TIMER + COMP), 2 * PERIOD + 7);
    board_advance(f->board, SECONDS * NS_PER_SECOND);          /* more than 32 bits of ticks, twice */
    uint64_t ticks = PERIOD + 7 + SECONDS * NS_PER_SECOND / 10;
    assert_int_equal(get(f, TIMER + COMP), (uint32_t)(ticks + PERIOD));
    set(f, TIMER, 20 << 9 | 8 | 4 | 1 << 8);                    /* with interrupts from now on */
    assert_true(timer_armed(&f->hpet->timer[0].timer));
    board_advance(f->board, 10 * (PERIOD - 1));
    assert_int_equal(f->board->rises[20], 0);
    board_advance(f->board, 10);
    assert_int_equal(f->board->rises[20], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(counter_runs_at_the_stated_rate_and_stops),
        CASE(one_shot_fires_once_at_its_comparator),
        CASE(periodic_timer_keeps_its_phase),
        CASE(periodic_timer_without_interrupts_keeps_its_phase),
        CASE(level_stays_until_its_status_is_cleared),
        CASE(legacy_replacement_uses_lines_0_and_8),
        CASE(messages_are_written_to_memory),
        CASE(narrow_timer_wraps_at_32_bits),
        CASE(short_periods_do_not_flood_the_host),
        CASE(replaced_lines_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
