/* ACPI power management, the keyboard controller, debug console and exit, testdev. */
#include <stdlib.h>

#include "unit/cmocka_all.h"

#include "dev/acpi_pm.h"
#include "dev/board.h"
#include "dev/debug_exit.h"
#include "dev/debugcon.h"
#include "dev/i8042.h"
#include "dev/pvpanic.h"
#include "dev/testdev.h"

enum { SCI = 9, KEYBOARD = 1, MOUSE = 12, PM = 0x600 };

struct fixture {
    struct board *board;
    struct acpi_pm *pm;
    struct device *i8042, *debugcon, *debug_exit, *testdev;
};

static void configure_pm(struct device *device, void *opaque)
{
    ((struct acpi_pm *)device)->sci = board_line(opaque, SCI);
    ((struct acpi_pm *)device)->signal = board_signal(opaque);
}

static void configure_i8042(struct device *device, void *opaque)
{
    ((struct i8042 *)device)->irq = board_line(opaque, KEYBOARD);
    ((struct i8042 *)device)->irq_aux = board_line(opaque, MOUSE);
    ((struct i8042 *)device)->signal = board_signal(opaque);
}

static void configure_exit(struct device *device, void *opaque) { ((struct debug_exit *)device)->signal = board_signal(opaque); }

static void configure_testdev(struct device *device, void *opaque)
{
    for (unsigned n = 0; n < TESTDEV_IRQS; n++)
        ((struct testdev *)device)->irq[n] = board_line(opaque, 32 + n);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->pm = board_device(f->board, &device_acpi_pm, configure_pm, f->board);
    f->i8042 = board_device(f->board, &device_i8042, configure_i8042, f->board);
    f->debug_exit = board_device(f->board, &device_debug_exit, configure_exit, f->board);
    f->testdev = board_device(f->board, &device_testdev, configure_testdev, f->board);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(f->testdev);
    device_destroy(f->debug_exit);
    device_destroy(f->i8042);
    device_destroy(&f->pm->device);
    device_destroy(f->debugcon);
    board_destroy(f->board);
    free(f);
    return 0;
}

static uint64_t in(struct fixture *f, uint16_t port, unsigned size) { return board_read(f->board->ports, port, size); }
static void out(struct fixture *f, uint16_t port, unsigned size, uint64_t value) { board_write(f->board->ports, port, size, value); }

/* --- ACPI --- */

static void pm_timer_counts_at_3_579545_mhz(void **state)
{
    struct fixture *f = *state;
    uint32_t before = (uint32_t)in(f, PM + 8, 4);
    board_advance(f->board, NS_PER_SECOND);
    assert_in_range((uint32_t)in(f, PM + 8, 4) - before, 3579544, 3579546);
}

static void timer_carry_sets_its_status_and_interrupts(void **state)
{
    struct fixture *f = *state;
    out(f, PM + 2, 2, 1);
    board_advance(f->board, 599 * NS_PER_SECOND);
    assert_false(f->board->level[SCI]);
    board_advance(f->board, 2 * NS_PER_SECOND);         /* bit 31 changes after 599.9 s */
    assert_true(f->board->level[SCI]);
    assert_int_equal(in(f, PM, 2) & 1, 1);
    out(f, PM, 2, 1);
    assert_false(f->board->level[SCI]);
}

static void power_button_raises_the_sci_until_it_is_acknowledged(void **state)
{
    struct fixture *f = *state;
    acpi_pm_power_button(f->pm);
    assert_false(f->board->level[SCI]);
    out(f, PM + 2, 2, 0x100);
    assert_true(f->board->level[SCI]);
    assert_int_equal(in(f, PM, 4), 0x01000100);
    out(f, PM, 1, 0xFF);                                /* the other byte */
    assert_true(f->board->level[SCI]);
    out(f, PM, 2, 0x100);
    assert_false(f->board->level[SCI]);
}

static void general_purpose_events(void **state)
{
    struct fixture *f = *state;
    out(f, PM + 0x22, 1, 0x04);
    acpi_pm_gpe(f->pm, 2);
    assert_true(f->board->level[SCI]);
    assert_int_equal(in(f, PM + 0x20, 1), 0x04);
    out(f, PM + 0x20, 1, 0x04);
    assert_false(f->board->level[SCI]);
}

static void soft_off(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in(f, PM + 4, 2) & 1, 1);          /* SCI_EN */
    out(f, PM + 4, 2, 5 << 10);
    assert_int_equal(f->board->requests, 0);
    out(f, PM + 4, 2, 5 << 10 | 1 << 13);
    assert_int_equal(f->board->requests, 1);
    assert_int_equal(f->board->request, SYSTEM_REQUEST_POWER_OFF);
}

static void fast_reset_acts_on_the_rising_bit(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in8(f->board, 0x92), 2);
    out8(f->board, 0x92, 1);
    out8(f->board, 0x92, 1);
    assert_int_equal(f->board->requests, 1);
    assert_int_equal(f->board->request, SYSTEM_REQUEST_RESET);
    assert_int_equal(in8(f->board, 0x92), 1);
}

/* --- the keyboard controller --- */

static void controller_tests_itself(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x64, 0xAA);
    assert_int_equal(in8(f->board, 0x64) & 1, 1);
    assert_int_equal(in8(f->board, 0x60), 0x55);
    assert_int_equal(in8(f->board, 0x64) & 1, 0);
    out8(f->board, 0x64, 0x60);
    out8(f->board, 0x60, 0x65);
    out8(f->board, 0x64, 0x20);
    assert_int_equal(in8(f->board, 0x60), 0x65);
}

static void absent_keyboard_and_mouse_answer_with_a_timeout(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x64, 0x60);
    out8(f->board, 0x60, 0x01);                         /* interrupts on */
    out8(f->board, 0x60, 0xED);
    assert_true(f->board->level[KEYBOARD]);
    assert_int_equal(in8(f->board, 0x64) & 0x41, 0x41);
    assert_int_equal(in8(f->board, 0x60), 0xFE);
    assert_false(f->board->level[KEYBOARD]);
    out8(f->board, 0x64, 0xD3);
    out8(f->board, 0x60, 0x5A);
    assert_int_equal(in8(f->board, 0x64) & 0x21, 0x01);         /* not from an auxiliary port */
    in8(f->board, 0x60);
    out8(f->board, 0x64, 0xA9);
    assert_int_not_equal(in8(f->board, 0x60), 0);
}

static void controller_resets_the_machine(void **state)
{
    struct fixture *f = *state;
    out8(f->board, 0x64, 0xFE);
    assert_int_equal(f->board->requests, 1);
    assert_int_equal(f->board->request, SYSTEM_REQUEST_RESET);
    out8(f->board, 0x64, 0xD1);
    out8(f->board, 0x60, 0x02);
    assert_int_equal(f->board->requests, 2);
    out8(f->board, 0x64, 0xFF);
    assert_int_equal(f->board->requests, 2);
}

/* --- debug console and exit --- */

static void debug_console_is_found_and_takes_bytes(void **state)
{
    struct fixture *f = *state;
    struct debugcon *debugcon = board_device(f->board, &device_debugcon, NULL, NULL);
    f->debugcon = &debugcon->device;
    assert_int_equal(in8(f->board, 0xE9), 0xE9);
    assert_int_equal(in8(f->board, 0x402), 0xE9);
    out8(f->board, 0xE9, 'a');
    out8(f->board, 0x402, 'b');
    assert_int_equal(debugcon->written, 2);
}

static void debug_exit_reports_its_value(void **state)
{
    struct fixture *f = *state;
    out(f, 0xF4, 4, 0x12345678);
    assert_int_equal(f->board->request, SYSTEM_REQUEST_DEBUG_EXIT);
    assert_int_equal(f->board->request_code, 0x12345678);
    out8(f->board, 0xF4, 0x10);
    assert_int_equal(f->board->request_code, 0x10);
}

/* --- testdev --- */

static void latch_is_one_at_both_places_and_all_sizes(void **state)
{
    struct fixture *f = *state;
    out(f, 0xE0, 4, 0x44332211);
    assert_int_equal(in(f, 0xE8, 4), 0x44332211);
    assert_int_equal(in(f, 0xE1, 1), 0x22);
    assert_int_equal(in(f, 0xEA, 2), 0x4433);
    out(f, 0xE9, 1, 0xAA);
    out(f, 0xE2, 2, 0xBBCC);
    assert_int_equal(in(f, 0xE0, 4), 0xBBCCAA11);
    out(f, 0xE4, 4, 0x1000);                            /* page flush: accepted */
    assert_int_equal(in(f, 0xE0, 4), 0xBBCCAA11);
}

static void ports_drive_interrupt_lines(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < TESTDEV_IRQS; n++) {
        out8(f->board, (uint16_t)(0x2000 + n), 1);
        assert_true(f->board->level[32 + n]);
        out8(f->board, (uint16_t)(0x2000 + n), 0);
        assert_false(f->board->level[32 + n]);
    }
    assert_int_equal(in8(f->board, 0x2018), 0xFF);
}

static void memory_remembers_all_sizes(void **state)
{
    struct fixture *f = *state;
    board_write(f->board->mmio, 0xFF000000, 8, 0x8877665544332211);
    assert_int_equal(board_read(f->board->mmio, 0xFF000004, 2), 0x6655);
    board_write(f->board->mmio, 0xFF00FFFF, 1, 0x5A);
    assert_int_equal(board_read(f->board->mmio, 0xFF00FFFE, 2), 0x5A00);
    assert_int_equal(board_read(f->board->mmio, 0xFF00FFFF, 2), 0xFF5A);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* --- the keyboard --- */

static void configure_with_keyboard(struct device *device, void *opaque)
{
    configure_i8042(device, opaque);
    ((struct i8042 *)device)->plugged = true;
}

static uint8_t from_keyboard(struct fixture *f)
{
    assert_true(in8(f->board, 0x64) & 1);
    return in8(f->board, 0x60);
}

static void keyboard_answers_and_reports_keys(void **state)
{
    struct fixture *f = *state;
    device_destroy(f->i8042);
    struct i8042 *i8042 = board_device(f->board, &device_i8042, configure_with_keyboard, f->board);
    f->i8042 = &i8042->device;
    out8(f->board, 0x60, 0xFF);
    assert_int_equal(from_keyboard(f), 0xFA);
    assert_int_equal(from_keyboard(f), 0xAA);
    assert_true(i8042_key(i8042, KEY_A, true));                 /* set 2, untranslated */
    assert_true(i8042_key(i8042, KEY_A, false));
    assert_int_equal(from_keyboard(f), 0x1C);
    assert_int_equal(from_keyboard(f), 0xF0);
    assert_int_equal(from_keyboard(f), 0x1C);
    out8(f->board, 0x64, 0x60);
    out8(f->board, 0x60, 0x41);                                 /* translation and interrupts on */
    unsigned rises = f->board->rises[KEYBOARD];
    assert_true(i8042_key(i8042, KEY_LEFT, true));
    assert_true(i8042_key(i8042, KEY_LEFT, false));
    assert_int_equal(from_keyboard(f), 0xE0);
    assert_int_equal(from_keyboard(f), 0x4B);
    assert_int_equal(from_keyboard(f), 0xE0);
    assert_int_equal(from_keyboard(f), 0xCB);
    assert_int_equal(f->board->rises[KEYBOARD] - rises, 4);     /* an edge for each byte */
    out8(f->board, 0x60, 0xF5);
    assert_int_equal(from_keyboard(f), 0xFA);
    assert_true(i8042_key(i8042, KEY_A, true));                 /* nobody looks */
    assert_false(in8(f->board, 0x64) & 1);
    assert_int_equal(key_find("delete"), KEY_DELETE);
    assert_int_equal(key_find("no such key"), KEY_COUNT);
}

/* --- the mouse --- */

static void to_mouse(struct fixture *f, uint8_t value)
{
    out8(f->board, 0x64, 0xD4);
    out8(f->board, 0x60, value);
}

static uint8_t from_mouse(struct fixture *f)
{
    assert_int_equal(in8(f->board, 0x64) & 0x21, 0x21);
    return in8(f->board, 0x60);
}

static struct i8042 *plug_mouse(struct fixture *f)
{
    device_destroy(f->i8042);
    struct i8042 *i8042 = board_device(f->board, &device_i8042, configure_with_keyboard, f->board);
    f->i8042 = &i8042->device;
    out8(f->board, 0x64, 0x60);
    out8(f->board, 0x60, 0x43);                                 /* interrupts of both, translation */
    out8(f->board, 0x64, 0xA9);
    assert_int_equal(in8(f->board, 0x60), 0);
    to_mouse(f, 0xFF);
    assert_int_equal(from_mouse(f), 0xFA);
    assert_int_equal(from_mouse(f), 0xAA);
    assert_int_equal(from_mouse(f), 0x00);
    return i8042;
}

static void expect_packet(struct fixture *f, unsigned count, const uint8_t *bytes)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(from_mouse(f), bytes[i]);
    assert_false(in8(f->board, 0x64) & 1);
}

static void mouse_reports_motion_and_buttons(void **state)
{
    struct fixture *f = *state;
    struct i8042 *i8042 = plug_mouse(f);
    i8042_move(i8042, 5, 5, 0, MOUSE_LEFT);                     /* nobody looks */
    assert_false(in8(f->board, 0x64) & 1);
    i8042_move(i8042, 0, 0, 0, 0);
    to_mouse(f, 0xF4);
    assert_int_equal(from_mouse(f), 0xFA);
    unsigned rises = f->board->rises[MOUSE], keys = f->board->rises[KEYBOARD];
    i8042_move(i8042, 3, -4, 0, MOUSE_RIGHT);
    expect_packet(f, 3, (const uint8_t[]){ 0x0A, 3, 4 });
    assert_int_equal(f->board->rises[MOUSE] - rises, 3);
    assert_int_equal(f->board->rises[KEYBOARD], keys);
    i8042_move(i8042, -1, 0, 1, MOUSE_RIGHT);                   /* no wheel: it is not said */
    i8042_move(i8042, -300, 0, 0, MOUSE_RIGHT);                 /* waits, and is more than one packet holds */
    i8042_move(i8042, 0, 2, 0, 0);
    expect_packet(f, 9, (const uint8_t[]){ 0x1A, 0xFF, 0, 0x38, 1, 0xFE, 0x18, 0xD3, 0 });
}

static void mouse_shows_its_wheel_and_buttons_to_those_who_knock(void **state)
{
    static const uint8_t knock[] = { 200, 100, 80, 200, 200, 80 };
    struct fixture *f = *state;
    struct i8042 *i8042 = plug_mouse(f);
    for (unsigned i = 0; i < ARRAY_SIZE(knock); i++) {
        to_mouse(f, 0xF3);
        assert_int_equal(from_mouse(f), 0xFA);
        to_mouse(f, knock[i]);
        assert_int_equal(from_mouse(f), 0xFA);
        if (i == 2 || i == 5) {
            to_mouse(f, 0xF2);
            assert_int_equal(from_mouse(f), 0xFA);
            assert_int_equal(from_mouse(f), i == 2 ? 3 : 4);
        }
    }
    to_mouse(f, 0xF4);
    assert_int_equal(from_mouse(f), 0xFA);
    i8042_move(i8042, 0, 0, -1, MOUSE_SIDE);
    expect_packet(f, 4, (const uint8_t[]){ 0x08, 0, 0, 0x1F });
    to_mouse(f, 0xE9);
    expect_packet(f, 4, (const uint8_t[]){ 0xFA, 0x20, 2, 80 });
}

/* --- pvpanic --- */

static void configure_pvpanic(struct device *device, void *opaque) { ((struct pvpanic *)device)->signal = board_signal(opaque); }

static void panics_are_told(void **state)
{
    struct fixture *f = *state;
    struct device *pvpanic = board_device(f->board, &device_pvpanic, configure_pvpanic, f->board);
    assert_int_equal(in8(f->board, 0x505), 3);
    out8(f->board, 0x505, 0xFC);                        /* events that it does not know */
    assert_int_equal(f->board->requests, 0);
    out8(f->board, 0x505, 2);
    assert_int_equal(f->board->request, SYSTEM_REQUEST_CRASH_KERNEL);
    out8(f->board, 0x505, 1);
    assert_int_equal(f->board->request, SYSTEM_REQUEST_PANICKED);
    device_destroy(pvpanic);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(mouse_reports_motion_and_buttons, setup, teardown),
        cmocka_unit_test_setup_teardown(mouse_shows_its_wheel_and_buttons_to_those_who_knock, setup, teardown),
        cmocka_unit_test_setup_teardown(keyboard_answers_and_reports_keys, setup, teardown),
        CASE(pm_timer_counts_at_3_579545_mhz),
        CASE(panics_are_told),
        CASE(timer_carry_sets_its_status_and_interrupts),
        CASE(power_button_raises_the_sci_until_it_is_acknowledged),
        CASE(general_purpose_events),
        CASE(soft_off),
        CASE(fast_reset_acts_on_the_rising_bit),
        CASE(controller_tests_itself),
        CASE(absent_keyboard_and_mouse_answer_with_a_timeout),
        CASE(controller_resets_the_machine),
        CASE(debug_console_is_found_and_takes_bytes),
        CASE(debug_exit_reports_its_value),
        CASE(latch_is_one_at_both_places_and_all_sizes),
        CASE(ports_drive_interrupt_lines),
        CASE(memory_remembers_all_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
