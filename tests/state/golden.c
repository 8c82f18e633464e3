/*
 * Snapshots that earlier versions wrote stay readable: each directory below tests/state/golden is restored on both engines, and its
 * guest goes on. From the first release on such a directory never changes; fields that are new in a state list say
 * since which version they are there.
 *
 * Usage: state-golden DIRECTORY; or state-golden --make DIRECTORY, for a new version of the format
 */
#include "state/tiny.h"

static const char *directory;

static void goes_on(const char *engine)
{
    struct tiny tiny = { .log = stderr };
    struct error err;
    tiny.snapshot = snapshot_open(directory, &err);
    if (!tiny.snapshot)
        fail_msg("%s", err.text);
    snapshot_config(tiny.snapshot)->engine = engine;
    snapshot_config(tiny.snapshot)->log = stderr;
    tiny.machine = machine_restore(tiny.snapshot, NULL, &err);
    if (!tiny.machine || !machine_start(tiny.machine, &err))
        fail_msg("%s", err.text);
    assert_true(tiny_count(&tiny) > 1000);
    tiny_await_work(&tiny);
    tiny_stop(&tiny);
}

static void it_goes_on_under_the_interpreter(void **state) { goes_on("interp"); }
static void it_goes_on_under_the_translator(void **state) { goes_on("dbt"); }

static void every_checksum_matches(void **state)
{
    struct error err;
    if (!snapshot_check(directory, &err))
        fail_msg("%s", err.text);
}

static void every_field_can_be_shown(void **state)
{
    struct error err;
    FILE *out = fopen("/dev/null", "w");
    if (!snapshot_show(directory, "*", out, &err))
        fail_msg("%s", err.text);
    fclose(out);
}

/* The guest's code is not there any more when the snapshot is taken, so no path of this host gets into it. */
static int make(const char *to)
{
    struct tiny tiny;
    struct error err;
    const struct snapshot_options options = { .compress = true };
    tiny_new(&tiny, "interp", 2);
    while (tiny_count(&tiny) < 10000)
        usleep(1000);
    unlink(tiny.kernel);
    strcpy(tiny.kernel, "guest");
    bool ok = machine_snapshot(tiny.machine, to, &options, &err);
    if (!ok)
        fprintf(stderr, "%s\n", err.text);
    tiny_end(&tiny);
    return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_checksum_matches),
        cmocka_unit_test(every_field_can_be_shown),
        cmocka_unit_test(it_goes_on_under_the_interpreter),
        cmocka_unit_test(it_goes_on_under_the_translator),
    };
    if (argc == 3)
        return make(argv[2]);
    if (argc != 2)
        return 2;
    directory = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
