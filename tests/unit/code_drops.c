/* What a vCPU has to drop covers what it was told of, and never is more than a fixed number of pieces. */
#include "cmocka_all.h"

#include <sched.h>
#include <stdlib.h>

#include "base/base.h"
#include "machine/code_drops.h"

enum { GRANULE = 64, PAGES = 1024, GRANULES = PAGES * PAGE_SIZE / GRANULE, ROUNDS = 200 };

static bool covers(const struct code_drop *drop, unsigned count, uint64_t gpa, uint64_t size)
{
    for (unsigned i = 0; i < count; i++)
        if (drop[i].gpa <= gpa && gpa + size <= drop[i].gpa + drop[i].size)
            return true;
    return false;
}

static void count(struct code_drops *drops) { ++*(unsigned *)drops->owner; }

static void the_vcpu_is_told_of_each_piece(void **state)
{
    struct code_drops drops;
    struct code_drop taken[CODE_DROPS_MOST];
    unsigned told = 0;
    code_drops_init(&drops, count, &told);
    assert_int_equal(code_drops_take(&drops, taken), 0);
    code_drops_add(&drops, 0x1000, GRANULE);
    assert_int_equal(told, 1);
    code_drops_add(&drops, 0x9000, GRANULE);
    assert_int_equal(told, 2);
    code_drops_add(&drops, 0x9000 + GRANULE, GRANULE);
    assert_int_equal(told, 2);
    assert_int_equal(code_drops_take(&drops, taken), 2);
    code_drops_add(&drops, 0x1000, GRANULE);
    assert_int_equal(told, 3);
    code_drops_fini(&drops);
}

/* Two threads write to the same code. */
struct writers {
    struct code_drops drops;
    _Atomic bool told;
    _Atomic unsigned too_early;
};

static void tell_slowly(struct code_drops *drops)
{
    struct writers *writers = drops->owner;
    for (unsigned i = 0; i < 10; i++)
        sched_yield();
    writers->told = true;
}

static void *write_code(void *opaque)
{
    struct writers *writers = opaque;
    code_drops_add(&writers->drops, 0x1000, GRANULE);
    writers->too_early += !writers->told;
    return NULL;
}

static void nobody_goes_on_before_the_vcpu_is_told(void **state)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct writers writers = { .told = false };
        pthread_t other;
        code_drops_init(&writers.drops, tell_slowly, &writers);
        assert_int_equal(pthread_create(&other, NULL, write_code, &writers), 0);
        write_code(&writers);
        pthread_join(other, NULL);
        assert_int_equal(writers.too_early, 0);
        code_drops_fini(&writers.drops);
    }
}

static void writes_to_one_page_wait_as_one(void **state)
{
    struct code_drops drops;
    struct code_drop taken[CODE_DROPS_MOST];
    unsigned told = 0;
    code_drops_init(&drops, count, &told);
    for (unsigned i = 0; i < 1000000; i++)
        code_drops_add(&drops, 0x5000 + i % 7 * GRANULE, GRANULE);
    assert_int_equal(code_drops_take(&drops, taken), 1);
    assert_int_equal(taken[0].gpa, 0x5000);
    assert_int_equal(taken[0].size, 7 * GRANULE);
    code_drops_fini(&drops);
}

static void as_long_as_there_is_room_no_more_is_dropped_than_was_written(void **state)
{
    struct code_drops drops;
    struct code_drop taken[CODE_DROPS_MOST];
    unsigned told = 0;
    code_drops_init(&drops, count, &told);
    for (unsigned i = 0; i < CODE_DROPS_MANY; i++)
        code_drops_add(&drops, 0x5000 + i * 4 * GRANULE, GRANULE);
    assert_int_equal(told, CODE_DROPS_MANY);
    assert_int_equal(code_drops_take(&drops, taken), CODE_DROPS_MANY);
    for (unsigned i = 0; i < CODE_DROPS_MANY; i++)
        assert_int_equal(taken[i].size, GRANULE);
    code_drops_fini(&drops);
}

static void all_that_was_written_is_dropped(void **state)
{
    struct code_drops drops;
    struct code_drop taken[CODE_DROPS_MOST];
    static uint64_t written[4 * CODE_DROPS_MOST];
    unsigned told = 0;
    code_drops_init(&drops, count, &told);
    srand(1);
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned writes = 1 + (unsigned)rand() % ARRAY_SIZE(written);
        for (unsigned i = 0; i < writes; i++) {
            written[i] = (uint64_t)(rand() % GRANULES) * GRANULE;
            code_drops_add(&drops, written[i], GRANULE);
        }
        unsigned count = code_drops_take(&drops, taken);
        assert_true(count <= CODE_DROPS_MOST);
        for (unsigned i = 0; i < writes; i++)
            assert_true(covers(taken, count, written[i], GRANULE));
    }
    code_drops_fini(&drops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_vcpu_is_told_of_each_piece),
        cmocka_unit_test(nobody_goes_on_before_the_vcpu_is_told),
        cmocka_unit_test(writes_to_one_page_wait_as_one),
        cmocka_unit_test(as_long_as_there_is_room_no_more_is_dropped_than_was_written),
        cmocka_unit_test(all_that_was_written_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
