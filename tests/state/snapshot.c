/* Machines saved and restored: what comes back is what was kept, on each engine, along chains; and what cannot be used is refused. */
#include "mem/fetch.h"
#include "state/tiny.h"

#include "vcpu/vcpu.h"

/* --- what comes back --- */

static void goes_on(const char *saved_under, const char *restored_under)
{
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, saved_under, 1);
    tiny_await_work(&tiny);
    tiny_save(&tiny, "one", NULL);
    tiny_await_work(&tiny);
    if (!tiny_restore(&tiny, &copy, "one", restored_under, false, &err))
        fail_msg("%s", err.text);
    uint32_t saved = tiny_count(&copy);
    assert_true(saved > 0 && saved < tiny_count(&tiny));
    tiny_go(&copy);
    tiny_await_work(&copy);
    assert_true(tiny_count(&copy) > saved);
    tiny_stop(&copy);
    tiny_end(&tiny);
}

static void both_machines_go_on(void **state)
{
    goes_on("interp", "interp");
    goes_on("interp", "dbt");
    goes_on("dbt", "interp");
    goes_on("dbt", "dbt");
}

static void saved_loaded_and_saved_again_is_the_same(void **state)
{
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, NULL, 3);
    for (unsigned round = 0; round < 5; round++) {
        char first[16], second[16];
        snprintf(first, sizeof(first), "a%u", round);
        snprintf(second, sizeof(second), "b%u", round);
        usleep(TINY_RUN_US);
        tiny_save(&tiny, first, NULL);
        if (!tiny_restore(&tiny, &copy, first, NULL, true, &err))
            fail_msg("%s", err.text);
        tiny_save(&copy, second, NULL);
        tiny_stop(&copy);
        tiny_same(&tiny, first, second);
    }
    tiny_end(&tiny);
}

/* The clock stands still in both: the same instructions must lead to the same state. */
static void in_step(const char *engine)
{
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, NULL, 1);
    tiny_await_work(&tiny);
    machine_pause(tiny.machine);
    tiny_save(&tiny, "begin", NULL);
    if (!tiny_restore(&tiny, &copy, "begin", engine, true, &err))
        fail_msg("%s", err.text);
    for (unsigned i = 0; i < 3; i++) {
        machine_step(tiny.machine, 0, 12345);
        machine_step(copy.machine, 0, 12345);
    }
    tiny_save(&tiny, "original", NULL);
    tiny_save(&copy, "copy", NULL);
    tiny_same(&tiny, "original", "copy");
    tiny_stop(&copy);
    tiny_end(&tiny);
}

static void a_copy_stays_in_step_with_its_original(void **state)
{
    in_step("interp");
    in_step("dbt");
}

/* --- chains --- */

static void a_chain_holds_what_a_full_one_holds(const char *engine)
{
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, engine, 1);
    tiny_await_work(&tiny);
    tiny_save(&tiny, "d0", NULL);
    for (unsigned i = 1; i <= 3; i++) {
        char name[16], parent[16];
        snprintf(name, sizeof(name), "d%u", i);
        snprintf(parent, sizeof(parent), "d%u", i - 1);
        tiny_await_work(&tiny);
        machine_pause(tiny.machine);
        tiny_save(&tiny, name, parent);
        if (i == 3)
            tiny_save(&tiny, "full", NULL);
        machine_resume(tiny.machine);
    }
    tiny_same(&tiny, "d3", "full");
    if (!snapshot_flatten(tiny_path(&tiny, "d3"), tiny_path(&tiny, "flat"), &err))
        fail_msg("%s", err.text);
    tiny_same(&tiny, "flat", "full");
    /* A restored machine's changes are known from the first instruction on. */
    if (!tiny_restore(&tiny, &copy, "d2", engine, false, &err))
        fail_msg("%s", err.text);
    tiny_go(&copy);
    tiny_await_work(&copy);
    machine_pause(copy.machine);
    tiny_save(&copy, "branch", "d2");
    tiny_save(&copy, "branch-full", NULL);
    tiny_same(&tiny, "branch", "branch-full");
    tiny_stop(&copy);
    tiny_end(&tiny);
}

static void chains_hold_what_full_ones_hold(void **state)
{
    a_chain_holds_what_a_full_one_holds("interp");
    a_chain_holds_what_a_full_one_holds("dbt");
}

static void compressed_is_the_same(void **state)
{
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, NULL, 1);
    tiny_await_work(&tiny);
    machine_pause(tiny.machine);
    tiny_save(&tiny, "plain", NULL);
    const struct snapshot_options options = { .compress = true };
    assert_true(machine_snapshot(tiny.machine, tiny_path(&tiny, "packed"), &options, &err));
    const struct snapshot_options child = { .compress = true, .parent = tiny_path(&tiny, "packed") };
    assert_true(machine_snapshot(tiny.machine, tiny_path(&tiny, "child"), &child, &err));
    tiny_same(&tiny, "plain", "packed");
    tiny_same(&tiny, "plain", "child");
    if (!tiny_restore(&tiny, &copy, "child", NULL, true, &err))
        fail_msg("%s", err.text);
    tiny_save(&copy, "again", NULL);
    tiny_same(&tiny, "plain", "again");
    tiny_go(&copy);
    tiny_await_work(&copy);
    tiny_stop(&copy);
    tiny_end(&tiny);
}

/* The memory of a chain of two, by each of the ways. */
static void restored_memory_is_the_same(enum restore_memory how, bool descriptor)
{
    struct tiny tiny;
    struct error err;
    const struct restore_options options = { .memory = how, .exact = true };
    tiny_new(&tiny, NULL, 1);
    tiny_await_work(&tiny);
    tiny_save(&tiny, "base", NULL);
    tiny_await_work(&tiny);
    tiny_save(&tiny, "child", "base");
    tiny_stop(&tiny);
    tiny.snapshot = snapshot_open(tiny_path(&tiny, "child"), &err);
    tiny.machine = tiny.snapshot ? machine_restore(tiny.snapshot, &options, &err) : NULL;
    if (!tiny.machine)
        fail_msg("%s", err.text);
    for (unsigned i = 0; i < tiny.machine->ram->slot_count; i++)
        assert_true((tiny.machine->ram->slot[i].fd >= 0) == descriptor && tiny.machine->ram->slot[i].private_mapping != descriptor);
    tiny_save(&tiny, "again", NULL);
    tiny_same(&tiny, "child", "again");
    assert_true(machine_start(tiny.machine, &err));
    tiny_await_work(&tiny);
    tiny_end(&tiny);
}

static void copied_memory_is_the_same_and_has_a_descriptor(void **state) { restored_memory_is_the_same(RESTORE_COPIED, true); }

static void shared_memory_is_the_same(void **state) { restored_memory_is_the_same(RESTORE_SHARED, false); }

static void memory_that_is_fetched_on_demand_is_the_same_and_has_a_descriptor_where_the_host_allows_it(void **state)
{
    struct error err;
    struct ram_fetcher *fetcher = ram_fetcher_create(&err);
    bool allowed = fetcher;
    ram_fetcher_destroy(fetcher);
    restored_memory_is_the_same(RESTORE_ON_DEMAND, allowed);
}

/* --- refusals while saving --- */

static void expect_refusal(const struct tiny *tiny, const char *name, const char *parent, const char *words)
{
    struct error err;
    const struct snapshot_options options = { .parent = parent ? tiny_path(tiny, parent) : NULL };
    if (machine_snapshot(tiny->machine, tiny_path(tiny, name), &options, &err))
        fail_msg("taken, although %s", words);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

static void what_cannot_be_saved_leaves_nothing_behind(void **state)
{
    struct tiny tiny;
    tiny_new(&tiny, NULL, 1);
    tiny_await_work(&tiny);
    expect_refusal(&tiny, "early", "missing", "cannot open the snapshot");
    tiny_save(&tiny, "one", NULL);
    tiny_save(&tiny, "two", NULL);
    expect_refusal(&tiny, "one", NULL, "exists already");
    expect_refusal(&tiny, "three", "one", "not the last snapshot");
    expect_refusal(&tiny, "no/such/place", NULL, "cannot make the directory");
    tiny_save(&tiny, "three", "two");
    char command[128];
    snprintf(command, sizeof(command), "[ $(ls %s | wc -l) = 4 ]", tiny.folder);     /* the guest's code, too */
    assert_int_equal(system(command), 0);
    tiny_await_work(&tiny);
    tiny_end(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_machines_go_on),
        cmocka_unit_test(saved_loaded_and_saved_again_is_the_same),
        cmocka_unit_test(a_copy_stays_in_step_with_its_original),
        cmocka_unit_test(chains_hold_what_full_ones_hold),
        cmocka_unit_test(compressed_is_the_same),
        cmocka_unit_test(copied_memory_is_the_same_and_has_a_descriptor),
        cmocka_unit_test(shared_memory_is_the_same),
        cmocka_unit_test(memory_that_is_fetched_on_demand_is_the_same_and_has_a_descriptor_where_the_host_allows_it),
        cmocka_unit_test(what_cannot_be_saved_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
