/* fw_cfg: what SeaBIOS and EDK II do with it, and what a hostile guest may try. */
#include <endian.h>
#include <string.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/fw_cfg.h"

enum { SELECT = 0x510, DATA = 0x511, DMA_HIGH = 0x514, DMA_LOW = 0x518, CONTROL = 0x100, BUFFER = 0x1000 };
enum { ERROR = 1, READ = 2, SKIP = 4, SELECT_KEY = 8, WRITE = 16 };

struct fixture {
    struct board *board;
    struct fw_cfg *fw_cfg;
};

static int setup(void **state)
{
    static struct fixture fixture;
    fixture.board = board_create();
    fixture.fw_cfg = board_device(fixture.board, &device_fw_cfg, NULL, NULL);
    fixture.fw_cfg->device.dma = fixture.board->dma;
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_destroy(&f->fw_cfg->device);
    board_destroy(f->board);
    return 0;
}

static void read_item(struct fixture *f, uint16_t key, void *out, unsigned size)
{
    board_write(f->board->ports, SELECT, 2, key);
    for (unsigned i = 0; i < size; i++)
        ((uint8_t *)out)[i] = in8(f->board, DATA);
}

static uint32_t dma(struct fixture *f, uint32_t control, uint32_t length, uint64_t address)
{
    const struct { uint32_t control, length; uint64_t address; } block = { htobe32(control), htobe32(length), htobe64(address) };
    uint32_t result;
    memcpy(f->board->memory + CONTROL, &block, sizeof(block));
    board_write(f->board->ports, DMA_HIGH, 4, 0);
    board_write(f->board->ports, DMA_LOW, 4, htobe32(CONTROL));
    memcpy(&result, f->board->memory + CONTROL, 4);
    return be32toh(result);
}

static void signatures_are_there(void **state)
{
    struct fixture *f = *state;
    char text[8];
    uint32_t id;
    read_item(f, FW_CFG_SIGNATURE, text, 4);
    assert_memory_equal(text, "QEMU", 4);
    read_item(f, FW_CFG_ID, &id, 4);
    assert_int_equal(id, 3);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t half = (uint32_t)board_read(f->board->ports, DMA_HIGH + 4 * i, 4);
        memcpy(text + 4 * i, &half, 4);
    }
    assert_memory_equal(text, "QEMU CFG", 8);
}

static void files_are_found_through_the_directory(void **state)
{
    struct fixture *f = *state;
    uint8_t directory[4 + 2 * 64], contents[8];
    assert_true(fw_cfg_add_file(f->fw_cfg, "etc/one", "first", 5, NULL));
    assert_true(fw_cfg_add_file(f->fw_cfg, "etc/two", "second", 6, NULL));
    read_item(f, FW_CFG_FILE_DIR, directory, sizeof(directory));
    assert_int_equal(directory[3], 2);
    assert_int_equal(directory[4 + 64 + 3], 6);
    assert_string_equal((char *)directory + 4 + 64 + 8, "etc/two");
    read_item(f, (uint16_t)(directory[4 + 64 + 4] << 8 | directory[4 + 64 + 5]), contents, 8);
    assert_memory_equal(contents, "second\0\0", 8);
}

static void dma_selects_skips_and_reads(void **state)
{
    struct fixture *f = *state;
    assert_true(fw_cfg_add(f->fw_cfg, 0x30, "0123456789", 10));
    memset(f->board->memory + BUFFER, 'x', 16);
    assert_int_equal(dma(f, 0x30 << 16 | SELECT_KEY | SKIP, 3, 0), 0);
    assert_int_equal(dma(f, READ, 4, BUFFER), 0);
    assert_memory_equal(f->board->memory + BUFFER, "3456xxxx", 8);
    assert_int_equal(dma(f, READ, 5, BUFFER), 0);
    assert_memory_equal(f->board->memory + BUFFER, "789\0\0xxx", 8);
}

static void dma_that_cannot_be_done_is_an_error(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(dma(f, SELECT_KEY | READ, 4, 1ull << 40), ERROR);
    assert_int_equal(dma(f, SELECT_KEY | READ, 0xFFFFFFFF, BUFFER), ERROR);
    assert_int_equal(dma(f, SELECT_KEY | WRITE, 4, BUFFER), ERROR);
    board_write(f->board->ports, DMA_HIGH, 4, 0xFFFFFFFF);
    board_write(f->board->ports, DMA_LOW, 4, 0xFFFFFFFF);       /* no such memory: nothing happens */
    char text[4];
    read_item(f, FW_CFG_SIGNATURE, text, 4);
    assert_memory_equal(text, "QEMU", 4);
}

static void make_new(void *owner) { fw_cfg_refresh(owner, "etc/late", "late", 4); }

static void a_source_refreshes_its_file_when_it_is_selected(void **state)
{
    struct fixture *f = *state;
    const struct fw_cfg_source source = { make_new, f->fw_cfg };
    char contents[4];
    assert_true(fw_cfg_add_file(f->fw_cfg, "etc/late", "soon", 4, &source));
    read_item(f, FW_CFG_FILE_FIRST, contents, 4);
    assert_memory_equal(contents, "late", 4);
    fw_cfg_refresh(f->fw_cfg, "etc/late", "longer", 6);         /* not of the same size: ignored */
    assert_false(fw_cfg_add_file(f->fw_cfg, "a name that is longer than the fifty-five characters there are", "", 0, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(signatures_are_there, setup, teardown),
        cmocka_unit_test_setup_teardown(files_are_found_through_the_directory, setup, teardown),
        cmocka_unit_test_setup_teardown(dma_selects_skips_and_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(dma_that_cannot_be_done_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(a_source_refreshes_its_file_when_it_is_selected, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
