/* A machine's state among the engines: moved at a pause, saved under one and restored under another, with what was written known to all. */
#include "state/tiny.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "dev/lapic.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"

static const char *const engines[] = { "interp", "dbt", "kvm" };

/* All of them, where the host has a KVM. */
static unsigned engine_count(void)
{
    struct error err;
    if (kvm_usable(&err))
        return ARRAY_SIZE(engines);
    print_message("without kvm: %s\n", err.text);
    return ARRAY_SIZE(engines) - 1;
}

static void move(const struct tiny *tiny, const char *engine)
{
    struct error err;
    if (!machine_set_engine(tiny->machine, engine, &err))
        fail_msg("%s", err.text);
    assert_string_equal(tiny->machine->vcpu[0]->engine->name, engine);
}

static void a_running_guest_goes_on_wherever_it_is_moved(void **state)
{
    struct tiny tiny;
    unsigned count = engine_count();
    tiny_new(&tiny, NULL, 2);
    for (unsigned i = 0; i < 4 * count; i++) {
        uint32_t before = tiny_count(&tiny);
        move(&tiny, engines[i % count]);
        tiny_await_work(&tiny);
        assert_true((int32_t)(tiny_count(&tiny) - before) >= 1000);
    }
    tiny_end(&tiny);
}

enum { FILLERS = 1024 };

/* Opens all numbers below one that nobody has, and returns that one. */
static int fill_descriptors(int filler[FILLERS], unsigned *count)
{
    int most = 0, fd;
    for (fd = 0; fd < FILLERS; fd++)
        most = fcntl(fd, F_GETFD) < 0 ? most : fd;
    for (*count = 0; (fd = dup(STDERR_FILENO)) < most; ++*count) {
        assert_true(*count < FILLERS);
        filler[*count] = fd;
    }
    close(fd);
    return fd;
}

/* KVM gets ever more descriptors, until there are enough: at first for none of the processors, then for some. */
static void a_change_of_engines_is_made_by_all_processors_or_by_none(void **state)
{
    enum { MORE_THAN_ENOUGH = 64 };
    struct tiny tiny;
    struct rlimit limit, before;
    struct error err;
    bool done = engine_count() < ARRAY_SIZE(engines);
    unsigned failed = 0, fillers;
    int filler[FILLERS];
    tiny_new(&tiny, "dbt", 3);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    limit = before;
    int next = fill_descriptors(filler, &fillers);
    for (unsigned more = 0; !done && more < MORE_THAN_ENOUGH; more++) {
        limit.rlim_cur = (rlim_t)next + more;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        done = machine_set_engine(tiny.machine, "kvm", &err);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        for (unsigned i = 0; i < 3; i++)
            assert_string_equal(tiny.machine->vcpu[i]->engine->name, done ? "kvm" : "dbt");
        failed += !done;
        tiny_await_work(&tiny);
    }
    while (fillers > 0)
        close(filler[--fillers]);
    assert_true(done && (failed > 3 || engine_count() < ARRAY_SIZE(engines)));
    tiny_end(&tiny);
}

/* Also where the machine begins with that engine, before it has a local APIC. */
static void the_hosts_kernel_has_the_local_apics_while_the_guest_runs_and_no_longer(void **state)
{
    struct tiny tiny;
    bool has = engine_count() == ARRAY_SIZE(engines) && kvm_has_apics();
    tiny_new(&tiny, has ? "kvm" : NULL, 2);
    for (unsigned i = 0; i < 5; i++) {
        const struct lapic *const lapic[] = { (struct lapic *)tiny.machine->lapic[0], (struct lapic *)tiny.machine->lapic[1] };
        bool kvm = has && i % 2 == 0;
        move(&tiny, kvm ? "kvm" : "dbt");
        tiny_await_work(&tiny);
        assert_int_equal(lapic[0]->host && lapic[1]->host, kvm);
        machine_pause(tiny.machine);
        assert_null(lapic[0]->host);
        assert_null(lapic[1]->host);
        machine_step(tiny.machine, 0, 3);
        assert_null(lapic[0]->host);
        machine_resume(tiny.machine);
    }
    tiny_end(&tiny);
}

/* A few instructions under `through`, which all engines carry out alike, and then the state is looked at. */
static void steps_are_the_same(const struct tiny *tiny, const char *name, const char *through, const char *result)
{
    struct tiny copy;
    struct error err;
    if (!tiny_restore(tiny, &copy, name, through, true, &err))
        fail_msg("%s", err.text);
    machine_step(copy.machine, 0, 70);
    tiny_save(&copy, result, NULL);
    tiny_stop(&copy);
}

static void pair(const char *from, const char *to)
{
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, from, 1);
    tiny_await_work(&tiny);
    machine_pause(tiny.machine);
    tiny_save(&tiny, "first", NULL);
    if (!tiny_restore(&tiny, &copy, "first", to, true, &err))
        fail_msg("%s", err.text);
    tiny_save(&copy, "again", NULL);
    tiny_same(&tiny, "first", "again");
    tiny_go(&copy);
    tiny_await_work(&copy);
    tiny_stop(&copy);
    tiny_end(&tiny);
}

static void saved_under_one_it_goes_on_under_another(void **state)
{
    unsigned count = engine_count();
    for (unsigned from = 0; from < count; from++)
        for (unsigned to = 0; to < count; to++)
            if (from != to)
                pair(engines[from], engines[to]);
}

static void every_engine_steps_into_the_same_state(void **state)
{
    struct tiny tiny;
    unsigned count = engine_count();
    tiny_new(&tiny, NULL, 1);
    tiny_await_work(&tiny);
    machine_pause(tiny.machine);
    tiny_save(&tiny, "start", NULL);
    for (unsigned i = 0; i < count; i++) {
        steps_are_the_same(&tiny, "start", engines[i], engines[i]);
        tiny_same(&tiny, engines[0], engines[i]);
    }
    tiny_end(&tiny);
}

/* What one leaves out is what its parent holds, written under another engine. */
static void what_changed_is_known_across_engines(void **state)
{
    enum { SNAPSHOTS = 7 };
    struct tiny tiny;
    unsigned count = engine_count();
    tiny_new(&tiny, NULL, 1);
    tiny_save(&tiny, "full0", NULL);
    for (unsigned i = 1; i <= SNAPSHOTS; i++) {
        char name[16], parent[16], full[16];
        snprintf(name, sizeof(name), "changes%u", i);
        snprintf(parent, sizeof(parent), "full%u", i - 1);
        snprintf(full, sizeof(full), "full%u", i);
        move(&tiny, engines[(count - 1 + i) % count]);
        tiny_await_work(&tiny);
        machine_pause(tiny.machine);
        tiny_save(&tiny, name, parent);
        tiny_save(&tiny, full, NULL);
        tiny_same(&tiny, name, full);
        machine_resume(tiny.machine);
    }
    tiny_end(&tiny);
}

/* KVM cannot count instructions, so with such a clock it cannot be had on any host. */
static void an_engine_that_was_only_the_default_is_replaced_where_it_cannot_be_had(void **state)
{
    struct tiny tiny, copy = { 0 };
    struct error err = { "" };
    tiny_new(&tiny, NULL, 1);
    tiny_save(&tiny, "chosen", NULL);
    tiny.machine->config.engine = NULL;
    tiny_save(&tiny, "default", NULL);
    for (unsigned i = 0; i < 2; i++) {
        copy.snapshot = snapshot_open(tiny_path(&tiny, i ? "default" : "chosen"), &err);
        assert_non_null(copy.snapshot);
        struct machine_config *config = snapshot_config(copy.snapshot);
        assert_int_equal(config->engine_was_default, i);
        config->engine = "kvm";
        config->clock_instructions = 1000;
        config->log = tiny.log;
        copy.machine = machine_restore(copy.snapshot, NULL, &err);
        assert_int_equal(copy.machine != NULL, i);
        if (copy.machine)
            assert_string_equal(copy.machine->vcpu[0]->engine->name, "dbt");
        else
            assert_non_null(strstr(err.text, "use --engine dbt"));
        if (!copy.machine)
            snapshot_close(copy.snapshot);
    }
    tiny_stop(&copy);
    tiny_end(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_running_guest_goes_on_wherever_it_is_moved),
        cmocka_unit_test(a_change_of_engines_is_made_by_all_processors_or_by_none),
        cmocka_unit_test(the_hosts_kernel_has_the_local_apics_while_the_guest_runs_and_no_longer),
        cmocka_unit_test(saved_under_one_it_goes_on_under_another),
        cmocka_unit_test(every_engine_steps_into_the_same_state),
        cmocka_unit_test(what_changed_is_known_across_engines),
        cmocka_unit_test(an_engine_that_was_only_the_default_is_replaced_where_it_cannot_be_had),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
