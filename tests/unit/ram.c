/* RAM slots: what is refused, copies over borders, lazy granting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "mem/code_map.h"
#include "mem/ram.h"

static void absurd_slots_are_refused(void **state)
{
    struct ram *ram = ram_create();
    struct error err;
    assert_false(ram_add(ram, "empty", 0, 0, false, &err));
    assert_false(ram_add(ram, "crooked", 0x800, 0x1000, false, &err));
    assert_false(ram_add(ram, "huge", 0, 1ull << 50, false, &err));
    assert_non_null(strstr(err.text, "huge"));
    assert_false(ram_add(ram, "high", (1ull << 52) - 0x1000, 0x2000, false, &err));
    assert_true(ram_add(ram, "low", 0, 0x100000, false, &err));
    assert_false(ram_add(ram, "again", 0xFF000, 0x2000, false, &err));
    assert_non_null(strstr(err.text, "overlaps low"));
    assert_int_equal(ram_total(ram), 0x100000);
    ram_destroy(ram);
}

static void memory_is_granted_when_touched(void **state)
{
    struct ram *ram = ram_create();
    struct error err;
    assert_true(ram_add(ram, "large", 0, 64 * GiB, false, &err));
    assert_int_equal(ram_granted(ram), 0);
    assert_true(ram_write(ram, 33 * GiB, "x", 1));
    assert_true(ram_granted(ram) >= PAGE_SIZE && ram_granted(ram) <= 4 * MiB);
    ram_destroy(ram);
}

static void copies_cross_slots_and_stop_at_holes(void **state)
{
    struct ram *ram = ram_create();
    char buffer[16] = { 0 };
    assert_true(ram_add(ram, "one", 0, 0x1000, false, NULL));
    assert_true(ram_add(ram, "two", 0x1000, 0x1000, false, NULL));
    assert_true(ram_write(ram, 0xFFC, "abcdefgh", 8));
    assert_true(ram_read(ram, 0xFFC, buffer, 8));
    assert_memory_equal(buffer, "abcdefgh", 8);
    assert_memory_equal(ram_host(ram, 0x1000), "efgh", 4);
    assert_false(ram_read(ram, 0x1FFC, buffer, 8));
    assert_false(ram_write(ram, ~0ull - 3, buffer, 8));
    assert_null(ram_host(ram, 0x2000));
    ram_destroy(ram);
}

static void code_map_knows_granules(void **state)
{
    struct ram *ram = ram_create();
    assert_true(ram_add(ram, "ram", 0, 0x4000, false, NULL));
    assert_false(code_map_add(ram, 0x1FF0, 0x20));      /* over a page border */
    assert_true(code_map_hit(ram, 0x1FC0, 1));
    assert_false(code_map_hit(ram, 0x1FBF, 1));
    assert_true(code_map_hit(ram, 0x203F, 1));
    assert_false(code_map_hit(ram, 0x2040, 0x1000));
    assert_true(code_map_hit(ram, 0, 0x4000));
    code_map_remove(ram, 0x1FC0, 0x40);
    assert_false(code_map_hit(ram, 0x1000, 0x1000));
    assert_false(*ram_page(ram_find(ram, 0x1000), 0x1000) & PAGE_CODE);
    assert_true(*ram_page(ram_find(ram, 0x2000), 0x2000) & PAGE_CODE);
    assert_false(code_map_add(ram, 0x100000, 64));      /* not RAM: nothing to watch */
    ram_destroy(ram);
}

static void note_drop(void *owner, uint64_t gpa, uint64_t size) { *(uint64_t *)owner += size; }

static void pages_of_a_slot_hide_and_become_rom(void **state)
{
    struct ram *ram = ram_create();
    uint64_t dropped = 0;
    char buffer[8] = "";
    assert_true(ram_add(ram, "ram", 0, 0x4000, false, NULL));
    ram->watcher = (struct ram_watcher){ note_drop, &dropped };
    assert_true(ram_write(ram, 0xFFC, "abcdefgh", 8));
    code_map_add(ram, 0x1000, 16);
    assert_true(ram_set_pages(ram, 0x1000, 0x1000, PAGE_HIDDEN));
    assert_false(ram_set_pages(ram, 0x1000, 0x1000, PAGE_HIDDEN));
    assert_int_equal(dropped, 0x1000);
    assert_null(ram_find(ram, 0x1000));
    assert_false(ram_read(ram, 0xFFC, buffer, 8));
    assert_true(ram_load(ram, 0x1000, "EFGH", 4));
    assert_true(ram_set_pages(ram, 0x1000, 0x1000, PAGE_ROM));
    assert_true(ram_write(ram, 0xFFC, "12345678", 8));
    assert_true(ram_read(ram, 0xFFC, buffer, 8));
    assert_memory_equal(buffer, "1234EFGH", 8);
    assert_true(ram_is_rom(ram_find(ram, 0x1000), 0x1FFF));
    assert_false(ram_is_rom(ram_find(ram, 0x1000), 0x2000));
    assert_true(ram_set_pages(ram, 0x1000, 0x1000, 0));
    assert_true(ram_write(ram, 0xFFC, "abcdefgh", 8));
    assert_memory_equal(ram_host(ram, 0x1000), "efgh", 4);
    ram_destroy(ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absurd_slots_are_refused),
        cmocka_unit_test(memory_is_granted_when_touched),
        cmocka_unit_test(copies_cross_slots_and_stop_at_holes),
        cmocka_unit_test(code_map_knows_granules),
        cmocka_unit_test(pages_of_a_slot_hide_and_become_rom),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
