/* The flash chip of UEFI's variables, with the eyes of EDK II's driver. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/storage/flash.h"

enum { BASE = 0x400000, SIZE = 0x10000 };

struct fixture {
    struct board *board;
    struct flash *flash;
    FILE *file;
    uint8_t contents[SIZE];
};

static void configure(struct device *device, void *opaque)
{
    struct fixture *f = opaque;
    struct flash *flash = (struct flash *)device;
    flash->base = BASE;
    flash->size = SIZE;
    flash->contents = f->contents;
    flash->fd = fileno(f->file);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->file = tmpfile();
    memset(f->contents, 0x5A, SIZE);
    f->flash = board_device(f->board, &device_flash, configure, f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->flash->device);
    fclose(f->file);
    board_destroy(f->board);
    free(f);
    return 0;
}

static uint8_t read8(struct fixture *f, uint32_t at) { return (uint8_t)board_read(f->board->mmio, BASE + at, 1); }
static void write8(struct fixture *f, uint32_t at, uint8_t value) { board_write(f->board->mmio, BASE + at, 1, value); }

/* How the driver tells flash from RAM and ROM. */
static void it_is_recognised_as_flash(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(read8(f, 0), 0x5A);
    write8(f, 0, 0x50);
    assert_int_equal(read8(f, 0), 0x5A);
    write8(f, 0, 0x70);
    assert_int_equal(read8(f, 0), 0);
    write8(f, 0, 0xFF);
    assert_int_equal(read8(f, 0), 0x5A);
    assert_int_equal(board_read(f->board->mmio, BASE + 8, 8), 0x5A5A5A5A5A5A5A5A);
}

static void blocks_are_erased_and_bytes_programmed_in_chip_and_file(void **state)
{
    struct fixture *f = *state;
    uint8_t byte;
    write8(f, 0x1234, 0x20);
    write8(f, 0x1234, 0xD0);
    assert_int_equal(read8(f, 0x1234), 0x80);                   /* status: ready */
    write8(f, 0x1234, 0xFF);
    assert_int_equal(read8(f, 0x1000), 0xFF);
    assert_int_equal(read8(f, 0x1FFF), 0xFF);
    assert_int_equal(read8(f, 0x2000), 0x5A);
    write8(f, 0x1800, 0x10);
    write8(f, 0x1800, 0x3C);
    write8(f, 0x1800, 0x10);
    write8(f, 0x1800, 0xF0);                                    /* bits go from 1 to 0 only */
    write8(f, 0x1800, 0xFF);
    assert_int_equal(read8(f, 0x1800), 0x30);
    assert_int_equal(pread(fileno(f->file), &byte, 1, 0x1800), 1);
    assert_int_equal(byte, 0x30);
    assert_int_equal(pread(fileno(f->file), &byte, 1, 0x1000), 1);
    assert_int_equal(byte, 0xFF);
}

/* Four cycles of a chip that is a byte wide: the data of the third is a command. */
static void wide_accesses_are_one_cycle_for_each_byte(void **state)
{
    struct fixture *f = *state;
    board_write(f->board->mmio, BASE + 0x100, 4, 0x70120010);
    assert_int_equal(board_read(f->board->mmio, BASE, 4), 0x80808080);
    write8(f, 0, 0xFF);
    assert_int_equal(board_read(f->board->mmio, BASE + 0x100, 4), 0x5A5A005A);
}

static void an_erase_that_is_not_confirmed_does_nothing(void **state)
{
    struct fixture *f = *state;
    write8(f, 0, 0x20);
    write8(f, 0, 0xFF);
    assert_int_equal(read8(f, 0), 0xB0);                        /* ready, command sequence error */
    write8(f, 0, 0xFF);
    assert_int_equal(read8(f, 0), 0x5A);
    write8(f, 0, 0x20);
    device_flash.reset(&f->flash->device);
    assert_int_equal(read8(f, 0), 0x5A);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_recognised_as_flash, setup, teardown),
        cmocka_unit_test_setup_teardown(blocks_are_erased_and_bytes_programmed_in_chip_and_file, setup, teardown),
        cmocka_unit_test_setup_teardown(wide_accesses_are_one_cycle_for_each_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(an_erase_that_is_not_confirmed_does_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
