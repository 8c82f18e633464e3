/* RAM slots: what is refused, copies over borders, lazy granting, large pages of the host's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/stats.h"
#include "mem/code_map.h"
#include "mem/gather.h"
#include "mem/ram.h"
#include "mem/stretch.h"

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

/* --- large pages --- */

enum { LARGE_PAGES = 16 };

/* 1 MiB to 33 MiB, as most machines' low RAM begins: 15 whole large pages, and half of one on either side. */
static struct ram *ram_from_1m(struct counters *counters)
{
    struct ram *ram = ram_create();
    assert_true(ram_add(ram, "low", MiB, LARGE_PAGES * RAM_LARGE, false, NULL));
    ram->counters = counters;
    return ram;
}

static uint64_t large_counted(const struct counters *counters) { return counter_get(counters, COUNTER_ram_large_pages); }

static void write_pages(struct ram *ram)
{
    for (uint64_t gpa = MiB; gpa < MiB + LARGE_PAGES * RAM_LARGE; gpa += 5 * PAGE_SIZE)
        assert_true(ram_write(ram, gpa, &gpa, sizeof(gpa)));
}

static void check_pages(struct ram *ram)
{
    for (uint64_t gpa = MiB; gpa < MiB + LARGE_PAGES * RAM_LARGE; gpa += PAGE_SIZE) {
        uint64_t value;
        assert_true(ram_read(ram, gpa, &value, sizeof(value)));
        assert_int_equal(value, (gpa - MiB) % (5 * PAGE_SIZE) ? 0 : gpa);
    }
}

static void host_address_and_file_offset_are_congruent_with_gpa(void **state)
{
    struct ram *ram = ram_from_1m(NULL);
    struct ram_slot *slot = &ram->slot[0];
    uint64_t bitmap[LARGE_PAGES * 512 / 64] = { 0 };
    char buffer[4];
    assert_int_equal(((uintptr_t)slot->host - slot->gpa) % RAM_LARGE, 0);
    assert_int_equal((slot->fd_offset - slot->gpa) % RAM_LARGE, 0);
    assert_true(ram_write(ram, 5 * MiB, "abcd", 4));
    assert_int_equal(pread(slot->fd, buffer, 4, (off_t)(slot->fd_offset + 4 * MiB)), 4);
    assert_memory_equal(buffer, "abcd", 4);
    ram_find_granted(slot, bitmap);
    assert_true(bitmap[4 * MiB / PAGE_SIZE / 64] & 1);
    for (unsigned i = 0; i < ARRAY_SIZE(bitmap); i++)
        assert_true(!bitmap[i] || i == 4 * MiB / PAGE_SIZE / 64);
    ram_destroy(ram);
}

/* Not by way of mem/: does it make large pages of shared memory? */
static bool host_makes_large_pages(void)
{
    enum { COLLAPSE = 25, SIZE = 4 * RAM_LARGE };
    int fd = memfd_create("probe", MFD_CLOEXEC);
    assert_return_code(ftruncate(fd, SIZE), 0);
    uint8_t *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(at, MAP_FAILED);
    memset(at, 1, SIZE);
    bool done = !madvise(at + (-(uintptr_t)at % RAM_LARGE), RAM_LARGE, COLLAPSE);
    munmap(at, SIZE);
    close(fd);
    return done;
}

static void large_pages_are_asked_for_once_and_keep_what_is_there(void **state)
{
    struct counters counters = { 0 };
    struct ram *ram = ram_from_1m(&counters);
    struct ram_slot *slot = &ram->slot[0];
    write_pages(ram);
    assert_false(ram_make_large(ram, slot, MiB));                                       /* no 2 MiB of the slot */
    assert_false(ram_make_large(ram, slot, MiB + LARGE_PAGES * RAM_LARGE - 1));
    for (unsigned i = 1; i < LARGE_PAGES; i++) {
        assert_true(ram_make_large(ram, slot, i * RAM_LARGE + i * PAGE_SIZE));
        assert_false(ram_make_large(ram, slot, i * RAM_LARGE));
    }
    check_pages(ram);
    unsigned large = 0;
    for (unsigned i = 0; i <= LARGE_PAGES; i++)
        large += ram_is_large(slot, max_u64(i * RAM_LARGE, MiB));
    assert_int_equal(large_counted(&counters), large);
    assert_true(large || !host_makes_large_pages());
    assert_true(ram_granted(ram) <= LARGE_PAGES * RAM_LARGE);
    ram_destroy(ram);
}

static void a_host_that_refuses_large_pages_does_no_harm(void **state)
{
    struct counters counters = { 0 };
    struct ram *ram = ram_from_1m(&counters);
    struct ram_slot *slot = &ram->slot[0];
    write_pages(ram);
    assert_return_code(madvise(slot->host, slot->size, MADV_NOHUGEPAGE), 0);            /* EINVAL, as where there are none */
    for (unsigned i = 1; i < LARGE_PAGES; i++) {
        assert_true(ram_make_large(ram, slot, i * RAM_LARGE));
        assert_false(ram_make_large(ram, slot, i * RAM_LARGE));
        assert_false(ram_is_large(slot, i * RAM_LARGE));
    }
    check_pages(ram);
    assert_int_equal(large_counted(&counters), 0);
    ram_destroy(ram);
}

static void pages_of_a_snapshot_stay_small(void **state)
{
    struct counters counters = { 0 };
    struct ram *ram = ram_from_1m(&counters);
    assert_true(ram_make_private(&ram->slot[0], NULL));
    write_pages(ram);
    for (unsigned i = 0; i < LARGE_PAGES; i++)
        assert_false(ram_make_large(ram, &ram->slot[0], MiB + i * RAM_LARGE));
    check_pages(ram);
    assert_int_equal(large_counted(&counters), 0);
    ram_destroy(ram);
}

static void what_is_mostly_granted_is_gathered_once(void **state)
{
    enum { PIECES = RAM_LARGE / RAM_PIECE, ENOUGH = PIECES * 3 / 4 };
    struct counters counters = { 0 };
    struct ram *ram = ram_from_1m(&counters);
    struct ram_slot *slot = &ram->slot[0];
    ram->gatherer = ram_gatherer_create(ram);
    assert_non_null(ram->gatherer);
    for (unsigned i = 1; i < PIECES / 2; i++)               /* half a large page before the first whole one: never */
        ram_grant(ram, slot, MiB + i * RAM_PIECE);
    for (unsigned i = 0; i < ENOUGH - 1; i++)
        ram_grant(ram, slot, 2 * RAM_LARGE + (PIECES - 1 - i) * RAM_PIECE);
    assert_false(ram_gather_next(ram->gatherer));
    assert_true(ram_write(ram, 2 * RAM_LARGE, "abcd", 4));  /* grants one more */
    for (unsigned i = 0; i < PIECES; i++)
        ram_grant(ram, slot, 4 * RAM_LARGE + i * RAM_PIECE);
    for (unsigned i = 0; i < 2; i++)
        assert_true(ram_gather_next(ram->gatherer));
    assert_false(ram_gather_next(ram->gatherer));
    assert_memory_equal(ram_host(ram, 2 * RAM_LARGE), "abcd", 4);
    assert_int_equal(large_counted(&counters), ram_is_large(slot, 2 * RAM_LARGE) + ram_is_large(slot, 4 * RAM_LARGE));
    for (unsigned i = 0; i < PIECES; i++)
        ram_grant(ram, slot, 2 * RAM_LARGE + i * RAM_PIECE);
    assert_false(ram_gather_next(ram->gatherer));
    assert_false(ram_make_large(ram, slot, 4 * RAM_LARGE)); /* was asked for */
    ram_destroy(ram);
}

static void a_gatherer_ends_when_it_is_told(void **state)
{
    struct ram *ram = ram_from_1m(NULL);
    ram->gatherer = ram_gatherer_create(ram);
    ram_gatherer_start(ram->gatherer);
    write_pages(ram);
    check_pages(ram);
    ram_destroy(ram);
}

static bool piece_is_granted(const struct ram_slot *slot, unsigned piece)
{
    return *ram_page(slot, slot->gpa + piece * RAM_PIECE) & PAGE_GRANTED;
}

static void only_stretches_are_granted_ahead(void **state)
{
    struct ram *ram = ram_from_1m(NULL);
    struct ram_slot *slot = &ram->slot[0];
    static const unsigned touched[] = { 40, 3, 60, 4, 20 };
    ram->stretches = ram_stretches_create(ram);
    assert_non_null(ram->stretches);
    for (unsigned i = 0; i < ARRAY_SIZE(touched); i++)
        ram_grant(ram, slot, MiB + touched[i] * RAM_PIECE);
    while (!piece_is_granted(slot, 5) || !piece_is_granted(slot, 6))
        usleep(1000);
    for (unsigned piece = 0; piece < 70; piece++) {
        bool wanted = piece == 5 || piece == 6;
        for (unsigned i = 0; i < ARRAY_SIZE(touched); i++)
            wanted |= piece == touched[i];
        assert_int_equal(piece_is_granted(slot, piece), wanted);
    }
    ram_destroy(ram);
}

static void memory_is_granted_ahead_downwards(void **state)
{
    struct ram *ram = ram_from_1m(NULL);
    struct ram_slot *slot = &ram->slot[0];
    ram->stretches = ram_stretches_create(ram);
    assert_non_null(ram->stretches);
    for (unsigned piece = 63; piece > 0; piece--)
        ram_grant(ram, slot, MiB + piece * RAM_PIECE);
    while (!piece_is_granted(slot, 0))
        usleep(1000);
    assert_false(piece_is_granted(slot, 64));
    write_pages(ram);
    check_pages(ram);
    ram_destroy(ram);
}

static void nothing_is_granted_beyond_the_end(void **state)
{
    struct ram *ram = ram_from_1m(NULL);
    struct ram_slot *slot = &ram->slot[0];
    ram->stretches = ram_stretches_create(ram);
    assert_non_null(ram->stretches);
    for (uint64_t gpa = slot->gpa + slot->size - 3 * RAM_PIECE; gpa < slot->gpa + slot->size; gpa += RAM_PIECE)
        ram_grant(ram, slot, gpa);
    write_pages(ram);
    check_pages(ram);
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
        cmocka_unit_test(host_address_and_file_offset_are_congruent_with_gpa),
        cmocka_unit_test(large_pages_are_asked_for_once_and_keep_what_is_there),
        cmocka_unit_test(a_host_that_refuses_large_pages_does_no_harm),
        cmocka_unit_test(pages_of_a_snapshot_stay_small),
        cmocka_unit_test(what_is_mostly_granted_is_gathered_once),
        cmocka_unit_test(a_gatherer_ends_when_it_is_told),
        cmocka_unit_test(only_stretches_are_granted_ahead),
        cmocka_unit_test(memory_is_granted_ahead_downwards),
        cmocka_unit_test(nothing_is_granted_beyond_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
