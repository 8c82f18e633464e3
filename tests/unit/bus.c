/* The bus: who wins, how accesses are cut, and readers while the map changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"
#include "bus/bus.h"

/* A device that remembers what it saw and reads as bytes of its tag plus the offset. */
struct recorder {
    struct access seen[32];
    unsigned count;
    uint8_t tag;
};

static enum access_result record(void *owner, struct access *access)
{
    struct recorder *r = owner;
    if (r->count < ARRAY_SIZE(r->seen))
        r->seen[r->count++] = *access;
    if (!access->write)
        for (unsigned i = 0; i < access->size; i++)
            access->value |= (uint64_t)(uint8_t)(r->tag + access->address + i) << (8 * i);
    return ACCESS_OK;
}

static uint64_t read_bus(struct bus *bus, uint64_t address, unsigned size)
{
    struct access access = { .address = address, .size = size };
    bus_access(bus, &access);
    return access.value;
}

static enum access_result write_bus(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    struct access access = { .address = address, .size = size, .write = true, .value = value };
    return bus_access(bus, &access);
}

static void unclaimed_reads_give_ones(void **state)
{
    struct bus *bus = bus_create("port", 0x10000, NULL);
    struct access access = { .address = 0x80, .size = 2 };
    assert_int_equal(bus_access(bus, &access), ACCESS_UNHANDLED);
    assert_int_equal(access.value, 0xFFFF);
    assert_int_equal(read_bus(bus, 0xFFFF, 4), 0xFFFFFFFF);
    assert_int_equal(write_bus(bus, 0x20000, 4, 1), ACCESS_UNHANDLED);
    assert_null(bus_find(bus, 0x80));
    bus_destroy(bus);
}

static void priority_decides_overlaps(void **state)
{
    struct bus *bus = bus_create("mmio", 1ull << 52, NULL);
    struct recorder low = { .tag = 0x10 }, high = { .tag = 0x80 };
    struct region wide = { .name = "wide", .base = 0x1000, .size = 0x100, .access = record, .owner = &low };
    struct region narrow = { .name = "narrow", .base = 0x1010, .size = 4, .priority = 1, .access = record, .owner = &high };
    bus_map(bus, &narrow);
    bus_map(bus, &wide);
    assert_int_equal(read_bus(bus, 0x100F, 1), 0x1F);
    assert_int_equal(read_bus(bus, 0x1010, 1), 0x80);
    assert_int_equal(read_bus(bus, 0x1014, 1), 0x24);
    /* An access over the border of the claim goes to both. */
    assert_int_equal(read_bus(bus, 0x1010, 8), 0x2726252483828180ull);
    bus_unmap(bus, &narrow);
    assert_int_equal(read_bus(bus, 0x1010, 1), 0x20);
    assert_false(narrow.mapped);
    assert_ptr_equal(bus_find(bus, 0x1010), &wide);
    bus_unmap(bus, &wide);
    assert_int_equal(read_bus(bus, 0x1010, 1), 0xFF);
    bus_destroy(bus);
}

static void equal_priority_goes_to_the_older(void **state)
{
    struct bus *bus = bus_create("mmio", 1ull << 52, NULL);
    struct recorder a = { .tag = 1 }, b = { .tag = 2 };
    struct region first = { .base = 0, .size = 16, .access = record, .owner = &a };
    struct region second = { .base = 8, .size = 16, .access = record, .owner = &b };
    bus_map(bus, &first);
    bus_map(bus, &second);
    assert_ptr_equal(bus_find(bus, 8), &first);
    assert_ptr_equal(bus_find(bus, 16), &second);
    bus_destroy(bus);
}

static void wide_accesses_are_split(void **state)
{
    struct bus *bus = bus_create("port", 0x10000, NULL);
    struct recorder r = { .tag = 0 };
    struct region bytes = { .base = 0x3F8, .size = 8, .access_max = 1, .access = record, .owner = &r };
    bus_map(bus, &bytes);
    assert_int_equal(read_bus(bus, 0x3F8, 4), 0x03020100);
    assert_int_equal(r.count, 4);
    r.count = 0;
    assert_int_equal(write_bus(bus, 0x3FA, 2, 0xBEEF), ACCESS_OK);
    assert_int_equal(r.count, 2);
    assert_int_equal(r.seen[0].value, 0xEF);
    assert_int_equal(r.seen[1].value, 0xBE);
    assert_int_equal(r.seen[1].address, 3);
    bus_destroy(bus);
}

static void misaligned_accesses_are_split(void **state)
{
    struct bus *bus = bus_create("mmio", 1ull << 52, NULL);
    struct recorder r = { .tag = 0 };
    struct region region = { .base = 0x1000, .size = 64, .access = record, .owner = &r };
    bus_map(bus, &region);
    assert_int_equal(read_bus(bus, 0x1001, 8), 0x0807060504030201ull);
    for (unsigned i = 0; i < r.count; i++)
        assert_int_equal(r.seen[i].address % r.seen[i].size, 0);
    bus_destroy(bus);
}

static void narrow_reads_are_widened_and_writes_dropped(void **state)
{
    struct bus *bus = bus_create("mmio", 1ull << 52, NULL);
    struct recorder r = { .tag = 0 };
    struct region region = { .name = "dwords", .base = 0, .size = 64, .access_min = 4, .access_max = 4, .access = record, .owner = &r };
    bus_map(bus, &region);
    assert_int_equal(read_bus(bus, 6, 1), 6);
    assert_int_equal(r.seen[0].size, 4);
    assert_int_equal(r.seen[0].address, 4);
    r.count = 0;
    write_bus(bus, 6, 1, 1);
    assert_int_equal(r.count, 0);
    region.accept_narrow = true;
    write_bus(bus, 6, 1, 1);
    assert_int_equal(r.count, 1);
    bus_destroy(bus);
}

static void the_top_of_the_space_is_reachable(void **state)
{
    struct bus *bus = bus_create("mmio", 0, NULL);      /* all 64 bits */
    struct recorder r = { .tag = 0 };
    struct region top = { .base = ~0xFFFull, .size = 0x2000, .access = record, .owner = &r };
    bus_map(bus, &top);
    assert_ptr_equal(bus_find(bus, ~0ull), &top);
    assert_int_equal(read_bus(bus, ~0ull, 1), 0xFF);
    assert_null(bus_find(bus, 0));
    bus_destroy(bus);
}

/* --- readers and writers at once --- */

enum { REMAPS = 20000, CROWD = 40 };

struct arena {
    struct bus *bus;
    pthread_mutex_t lock;
    struct region moving, crowd[CROWD];
    struct recorder recorder;
    atomic_bool stop;
    _Atomic uint64_t reads, late;
};

static enum access_result moving_access(void *owner, struct access *access)
{
    struct arena *arena = owner;
    /* The lock is held by us and by whoever moves the region, so it must be where it was found. */
    if (!arena->moving.mapped)
        atomic_fetch_add(&arena->late, 1);
    access->value = 0x55;
    return ACCESS_OK;
}

static void *reader(void *opaque)
{
    struct arena *arena = opaque;
    while (!atomic_load(&arena->stop)) {
        uint64_t value = read_bus(arena->bus, 0x5000, 1);
        if (value != 0x55 && value != 0xFF)
            atomic_fetch_add(&arena->late, 1);
        /* A region that never moves is always found. */
        if (read_bus(arena->bus, 0x100, 1) != 0)
            atomic_fetch_add(&arena->late, 1);
        atomic_fetch_add(&arena->reads, 1);
    }
    return NULL;
}

static void readers_never_see_a_half_made_map(void **state)
{
    struct arena arena = { .bus = bus_create("mmio", 1ull << 52, NULL), .lock = PTHREAD_MUTEX_INITIALIZER };
    struct region fixed = { .base = 0x100, .size = 16, .access = record, .owner = &arena.recorder };
    arena.recorder.count = ARRAY_SIZE(arena.recorder.seen);
    arena.moving = (struct region){ .base = 0x5000, .size = 16, .access = moving_access, .owner = &arena, .lock = &arena.lock };
    for (unsigned i = 0; i < CROWD; i++)
        arena.crowd[i] = (struct region){ .base = 0x6000 + i * 0x100, .size = 0x80, .access = record, .owner = &arena.recorder };
    bus_map(arena.bus, &fixed);
    pthread_t thread[2];
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&thread[i], NULL, reader, &arena);
    for (unsigned i = 0; i < REMAPS; i++) {
        pthread_mutex_lock(&arena.lock);
        if (arena.moving.mapped)
            bus_unmap(arena.bus, &arena.moving);
        else
            bus_map(arena.bus, &arena.moving);
        pthread_mutex_unlock(&arena.lock);
        struct region *extra = &arena.crowd[i % CROWD];
        if (extra->mapped)
            bus_unmap(arena.bus, extra);
        else
            bus_map(arena.bus, extra);
    }
    atomic_store(&arena.stop, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    assert_int_equal(atomic_load(&arena.late), 0);
    assert_true(atomic_load(&arena.reads) > 0);
    bus_destroy(arena.bus);
}

static void count_region(const struct region *region, void *opaque)
{
    uint64_t *last = opaque;
    assert_true(region->base >= *last);
    *last = region->base;
}

static void regions_are_listed_by_base(void **state)
{
    struct bus *bus = bus_create("mmio", 1ull << 52, NULL);
    struct recorder r = { .tag = 0 };
    struct region region[50];
    for (unsigned i = 0; i < 50; i++) {
        region[i] = (struct region){ .base = ((i * 37) % 50) * 0x1000, .size = 0x1000, .access = record, .owner = &r };
        bus_map(bus, &region[i]);
    }
    uint64_t last = 0;
    bus_for_each(bus, count_region, &last);
    assert_int_equal(last, 49 * 0x1000);
    bus_destroy(bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unclaimed_reads_give_ones),
        cmocka_unit_test(priority_decides_overlaps),
        cmocka_unit_test(equal_priority_goes_to_the_older),
        cmocka_unit_test(wide_accesses_are_split),
        cmocka_unit_test(misaligned_accesses_are_split),
        cmocka_unit_test(narrow_reads_are_widened_and_writes_dropped),
        cmocka_unit_test(the_top_of_the_space_is_reachable),
        cmocka_unit_test(regions_are_listed_by_base),
        cmocka_unit_test(readers_never_see_a_half_made_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
