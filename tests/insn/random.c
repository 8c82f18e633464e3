/*
 * Random instruction sequences on the host CPU and on an engine: all state must agree.
 *   random [--engine NAME] [--cases N] [--seed S] [--only SEED] [--failures N]
 * A failing case is reduced (instructions are removed while it still fails) and printed with its seed; --only runs it again.
 */
#include "case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    const char *engine;
    uint64_t cases, seed, only;
    bool has_only;
    unsigned failures_max;
};

static struct outcome host_outcomes[HOST_BATCH];
static struct test_case cases[HOST_BATCH];
static struct run runs[HOST_BATCH];
static struct outcome guest_outcome, lone_outcome;
static const char *const sides[2] = { "host", "guest" };

static bool fails(struct host *host, struct guest *guest, const struct test_case *test, bool print)
{
    struct run run;
    make_run(test, &run);
    host_run(host, &run, 1, &lone_outcome);
    guest_run(guest, &run, (struct guest_how){ 0 }, &guest_outcome);
    return !outcomes_equal(&run, &lone_outcome, &guest_outcome, sides, host_features(host), print);
}

static void print_case(const struct test_case *test)
{
    struct run run;
    make_run(test, &run);
    printf("case seed %#lx, %s\n", test->seed, test->mode == CODE_64 ? "64-bit" : "32-bit");
    print_run(&run);
}

/* Drops instructions one at a time while the case still fails. */
static void reduce(struct host *host, struct guest *guest, struct test_case *test)
{
    for (unsigned i = 0; i < test->insn_count && test->insn_count > 1;) {
        struct test_case shorter = *test;
        memmove(&shorter.insn[i], &shorter.insn[i + 1], (shorter.insn_count - i - 1) * sizeof(shorter.insn[0]));
        shorter.insn_count--;
        if (fails(host, guest, &shorter, false))
            *test = shorter;
        else
            i++;
    }
}

static void show_failure(struct host *host, struct guest *guest, const struct test_case *test)
{
    struct test_case reduced = *test;
    reduce(host, guest, &reduced);
    print_case(&reduced);
    if (!fails(host, guest, &reduced, true))
        printf("  (does not fail alone: depends on the case before it)\n");
    fflush(stdout);
}

static bool parse(int argc, char **argv, struct options *options)
{
    *options = (struct options){ .engine = "interp", .cases = 1000000, .seed = 1, .failures_max = 10 };
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t number = strtoull(argv[i + 1], NULL, 0);
        if (!strcmp(argv[i], "--engine"))
            options->engine = argv[i + 1];
        else if (!strcmp(argv[i], "--cases"))
            options->cases = number;
        else if (!strcmp(argv[i], "--seed"))
            options->seed = number;
        else if (!strcmp(argv[i], "--failures"))
            options->failures_max = (unsigned)number;
        else if (!strcmp(argv[i], "--only"))
            options->only = number, options->has_only = true;
        else
            return false;
    }
    return argc % 2 == 1;
}

/* Three of four cases are 64-bit code. */
static enum code_mode mode_of(uint64_t seed) { return seed % 4 == 3 ? CODE_32 : CODE_64; }

int main(int argc, char **argv)
{
    struct options options;
    if (!parse(argc, argv, &options)) {
        fprintf(stderr, "usage: random [--engine NAME] [--cases N] [--seed S] [--only SEED] [--failures N]\n");
        return 2;
    }
    struct host *host = host_start();
    struct guest *guest = guest_start(options.engine, "host");
    const struct host_features *features = host_features(host);
    uint64_t passed = 0, failed = 0, lost = 0, faults = 0;
    if (options.has_only) {
        generate_case(options.only, mode_of(options.only), features, &cases[0]);
        print_case(&cases[0]);
        failed = fails(host, guest, &cases[0], true);
        printf("%s\n", failed ? "differs" : "agrees");
        options.cases = 0;
    }
    for (uint64_t done = 0; done < options.cases && failed < options.failures_max;) {
        unsigned count = options.cases - done < HOST_BATCH ? (unsigned)(options.cases - done) : HOST_BATCH;
        for (unsigned i = 0; i < count; i++) {
            generate_case(options.seed * 0x100000000ull + done + i, mode_of(done + i), features, &cases[i]);
            make_run(&cases[i], &runs[i]);
        }
        if (!host_run(host, runs, count, host_outcomes))
            lost++;
        for (unsigned i = 0; i < count && failed < options.failures_max; i++) {
            if (host_outcomes[i].timed_out)
                continue;
            faults += host_outcomes[i].fault[0].vector != 6;
            guest_run(guest, &runs[i], (struct guest_how){ 0 }, &guest_outcome);
            if (outcomes_equal(&runs[i], &host_outcomes[i], &guest_outcome, sides, features, false)) {
                passed++;
                continue;
            }
            failed++;
            show_failure(host, guest, &cases[i]);
        }
        done += count;
    }
    guest_stop(guest);
    host_stop(host);
    printf("engine %s, seed %lu: %lu faulted, %lu batches lost to the host\n", options.engine, options.seed, faults, lost);
    printf("%lu passed, %lu failed, 0 skipped\n", passed, failed);
    return failed || lost > options.cases / 10000 + 1;
}
