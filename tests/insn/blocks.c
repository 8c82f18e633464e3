/*
 * Random small programs on the host CPU and on the engines: all must agree at every fault and at the end, and the engines on the number of
 * instructions, too.
 *   blocks [--engine NAME] [--cases N | --blocks N] [--seed S] [--only SEED] [--failures N] [--keep DIRECTORY] [FILE...]
 * Without --engine each program runs on the interpreter and on the translator: at first sight, a second time with what is there by then,
 * in pieces with TLB flushes in between, with windows, where only what is hot is translated, and as it is made beside a vCPU: at once, and by a
 * thread, which may be done with it long after the program. What processors of the host's vendor do in their own way is in some programs too: there
 * the interpreter judges the translator, as it does where a program gets by accident to an instruction that is the host's kernel's (host_judges). Such
 * programs are counted, and those that do not end. A case that differs is made as small as it will get and printed, with its seed, in the form that
 * FILE has (kept in DIRECTORY if that is given); --only runs a seed again.
 *
 * A worker process runs the cases, so that one which kills it is found as well.
 */
#include "generate.h"
#include "program.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"

struct options {
    const char *engine, *keep;
    uint64_t cases, blocks, seed, only;     /* it ends after so many cases, or blocks in them */
    bool has_only;
    unsigned failures_max;
    char **files;
    unsigned file_count;
};

/* What the worker tells; it outlives it. */
struct progress {
    uint64_t next, seed;            /* case to come; seed of the one under way */
    uint64_t programs, blocks, faults, lost, failed;
    uint64_t unjudged;              /* not judged by the host: it has its own way in them */
    uint64_t endless;               /* passed over: the host or the interpreter came to no end, or it was in a batch that was lost */
    bool done;
};

enum { HOT_RUNS = 2, CUTS_MAX = 16 };

struct bench {
    struct host *host;
    struct guest *interp, *dbt, *hot, *beside, *thread, *windows;    /* NULL: not wanted */
    struct progress *progress;
};

static const struct options *options;
static const char *failed_way;      /* what did not agree, of the last case that failed */

static void bench_start(struct bench *bench, struct progress *progress)
{
    static const char model[] = "host,-rdrand,-rdseed";     /* whose answers would be as many as there are engines */
    bool all = !options->engine;
    *bench = (struct bench){ .host = host_start(), .progress = progress };
    if (all || !strcmp(options->engine, "interp"))
        bench->interp = guest_start("interp", model);
    if (all || !strcmp(options->engine, "dbt")) {
        bench->dbt = guest_start("dbt", model);
        bench->hot = guest_start("dbt", model);
        guest_set_hot(bench->hot, HOT_RUNS);
        bench->beside = guest_start("dbt", model);
        guest_set_beside(bench->beside, HOT_RUNS, true);
        bench->thread = guest_start("dbt", model);
        guest_set_beside(bench->thread, HOT_RUNS, false);
        bench->windows = guest_start("dbt", model);
    }
}

/* --- one program --- */

/* Runs it and compares with what must be. */
static bool agrees(struct guest *guest, const struct run *run, struct guest_how how, const char *name, const struct outcome *wanted,
                   const char *wanted_name, const struct host_features *features, struct outcome *outcome, bool print)
{
    guest_run(guest, run, how, outcome);
    const char *const names[2] = { wanted_name, name };
    if (outcomes_equal(run, wanted, outcome, names, features, false))
        return true;
    failed_way = name;
    if (print) {
        printf("%s and %s differ:\n", wanted_name, name);
        outcomes_equal(run, wanted, outcome, names, features, true);
    }
    return false;
}

/*
 * Where a repeated CMPS or SCAS faults after some comparisons, the flags are those of before by Intel's manual, and of the last comparison on
 * AMD's processors. There the host judges the engine when it does that, too, and this what the engine does of its own.
 */
static bool agrees_as_amd(struct guest *guest, const struct run *run, const char *name, const struct outcome *native,
                          const struct host_features *features, struct outcome *outcome, bool print)
{
    static struct outcome slow;
    if (!agrees(guest, run, (struct guest_how){ .one_by_one = true, .flags_as_amd = true }, name, native, "host", features, &slow, print))
        return false;
    guest_run(guest, run, (struct guest_how){ .one_by_one = true }, &slow);
    return agrees(guest, run, (struct guest_how){ 0 }, name, &slow, "one by one", features, outcome, print);
}

static bool host_agrees(struct bench *bench, struct guest *guest, const struct run *run, const char *name, const struct outcome *native,
                        struct outcome *outcome, bool print)
{
    const struct host_features *features = host_features(bench->host);
    return agrees(guest, run, (struct guest_how){ 0 }, name, native, "host", features, outcome, print && !features->amd) ||
           (features->amd && agrees_as_amd(guest, run, name, native, features, outcome, print));
}

static bool host_does_not_judge(const struct insn_bytes *insn) { return !host_judges(insn); }

/*
 * Did they differ by instructions of which the host is no judge? HLT, as around the code, takes the place of each that is met: then they
 * must agree.
 */
static bool agrees_when_cut(struct bench *bench, struct guest *guest, const struct run *run, const char *name)
{
    static struct outcome native, outcome;
    static struct run cut;
    cut = *run;
    for (unsigned i = 0; i < CUTS_MAX; i++) {
        guest_run(guest, &cut, (struct guest_how){ .until = host_does_not_judge }, &outcome);
        uint64_t at = outcome.end.rip - run->start.rip;
        if (!outcome.stopped || at >= run->code_length || cut.code[at] == CODE_FILL)
            return false;
        cut.code[at] = CODE_FILL;
        if (!host_run(bench->host, &cut, 1, &native) || native.timed_out ||
            host_agrees(bench, guest, &cut, name, &native, &outcome, false))
            return true;
    }
    return false;
}

static bool agrees_with_host(struct bench *bench, struct guest *guest, const struct run *run, const char *name, const struct outcome *native,
                             struct outcome *outcome, bool print)
{
    if (host_agrees(bench, guest, run, name, native, outcome, false))
        return true;
    if (agrees_when_cut(bench, guest, run, name)) {
        bench->progress->unjudged++;
        guest_run(guest, run, (struct guest_how){ 0 }, outcome);
        return true;
    }
    return host_agrees(bench, guest, run, name, native, outcome, print);
}

static bool dbt_agrees(struct bench *bench, const struct run *run, uint64_t luck, const struct outcome *wanted,
                       const char *wanted_name, bool print)
{
    const struct host_features *features = host_features(bench->host);
    static struct outcome out;
    struct guest_how how = { .flush = luck >> 8 & 1 };
    if (!agrees(bench->dbt, run, how, "dbt", wanted, wanted_name, features, &out, print))
        return false;
    how = (struct guest_how){ .same_code = out.code_kept, .flush = luck >> 9 & 1 };
    if (!agrees(bench->dbt, run, how, "dbt again", wanted, wanted_name, features, &out, print))
        return false;
    how = (struct guest_how){ .same_code = out.code_kept, .chop = luck | 1 };
    if ((luck >> 10 & 1) && !agrees(bench->dbt, run, how, "dbt in pieces", wanted, wanted_name, features, &out, print))
        return false;
    how = (struct guest_how){ .windows = true, .flush = luck >> 8 & 1 };
    if ((luck >> 13 & 1) && !agrees(bench->windows, run, how, "dbt with windows", wanted, wanted_name, features, &out, print))
        return false;
    how = (struct guest_how){ .windows = true, .same_code = out.code_kept, .chop = luck >> 15 & 1 ? luck | 1 : 0 };
    if ((luck >> 13 & 3) == 3 && !agrees(bench->windows, run, how, "dbt with windows again", wanted, wanted_name, features, &out, print))
        return false;
    how = (struct guest_how){ 0 };
    for (unsigned i = 0; i < 2 && (luck >> 16 & 1); i++) {
        if (!agrees(bench->beside, run, how, "dbt, made beside", wanted, wanted_name, features, &out, print))
            return false;
        how = (struct guest_how){ .same_code = out.code_kept, .windows = luck >> 17 & 1 };
    }
    how = (struct guest_how){ 0 };
    for (unsigned i = 0; i < 2 * HOT_RUNS && (luck >> 18 & 3) == 3; i++) {
        if (!agrees(bench->thread, run, how, "dbt, made by a thread", wanted, wanted_name, features, &out, print))
            return false;
        if (luck >> 20 & 1)
            guest_await_beside(bench->thread);
        how = (struct guest_how){ .same_code = out.code_kept, .windows = luck >> 17 & 1 };
    }
    how = (struct guest_how){ 0 };
    for (unsigned i = 0; i < 2 * HOT_RUNS && (luck >> 11 & 3) == 3; i++) {
        if (!agrees(bench->hot, run, how, "dbt, hot only", wanted, wanted_name, features, &out, print))
            return false;
        how.same_code = out.code_kept;
    }
    return true;
}

/* `luck` decides which of the ways to run it are taken. The host judges the first, which judges the others. */
static bool run_agrees(struct bench *bench, const struct run *run, uint64_t luck, const struct outcome *native, bool print)
{
    static struct outcome first, pieces;
    struct guest *guest = bench->interp ? bench->interp : bench->dbt;
    const char *name = bench->interp ? "interp" : "dbt";
    if (run->engines_only)
        guest_run(guest, run, (struct guest_how){ 0 }, &first);
    else if (!native->timed_out && !agrees_with_host(bench, guest, run, name, native, &first, print))
        return false;
    if (run->engines_only ? first.timed_out : native->timed_out) {
        bench->progress->endless++;
        return true;
    }
    if (bench->interp && luck % 8 == 0 && !agrees(guest, run, (struct guest_how){ .chop = luck | 1 }, "interp in pieces", &first, name,
                                                  host_features(bench->host), &pieces, print))
        return false;
    return !bench->dbt || dbt_agrees(bench, run, luck, &first, name, print);
}

static uint64_t luck_of(const struct run *run)
{
    uint64_t seed = run->data_seed;
    return next_random(&seed);
}

/* --- failures --- */

enum { ALL_WAYS = ~255 };

/* An exit status that stands for what did not agree. */
static int status_of_failure(void)
{
    unsigned sum = 0;
    for (const char *at = failed_way; *at; at++)
        sum = sum * 31 + (unsigned char)*at;
    return 1 + (int)(sum % 100);
}

/* In a process of its own, with new engines, in all ways. 0: it agrees; else a number for how it fails. */
static int fails_alone(const struct run *run, bool print)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        static struct outcome native;
        static struct progress alone;
        struct bench bench;
        bench_start(&bench, &alone);
        host_run(bench.host, run, 1, &native);
        bool agree = run_agrees(&bench, run, luck_of(run), &native, print) &&
                     run_agrees(&bench, run, (uint64_t)ALL_WAYS, &native, print);
        if (print && alone.unjudged)
            printf("not judged by the host\n");
        fflush(stdout);
        _exit(agree ? 0 : status_of_failure());
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status) && print)
        printf("killed by signal %d\n", WTERMSIG(status));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* In the same way: else one failure would turn into another as it gets smaller. */
static bool program_fails(const struct program *program, int how)
{
    struct run run;
    return assemble(program, &run) && fails_alone(&run, false) == how;
}

/* Units go, in halves and down to one, while it still fails. */
static void drop_units(struct program *program, int how)
{
    for (unsigned size = program->unit_count / 2; size; size /= 2)
        for (unsigned first = 0; first + size <= program->unit_count;) {
            struct program less = *program;
            for (unsigned i = 0; i < size; i++)
                drop_unit(&less, first);
            if (program_fails(&less, how))
                *program = less;
            else
                first += size;
        }
}

/* The state becomes plain where that does not matter. */
static void plain_state(struct program *program, int how)
{
    struct program plain = *program;
    memset(plain.start.zmm, 0, sizeof(plain.start.zmm));
    memset(plain.start.k, 0, sizeof(plain.start.k));
    if (program_fails(&plain, how))
        *program = plain;
    plain = *program;
    memset(plain.start.fxsave, 0, sizeof(plain.start.fxsave));
    memcpy(plain.start.fxsave, "\x7F\x03", 2);
    memcpy(plain.start.fxsave + 24, "\x80\x1F", 2);
    if (program_fails(&plain, how))
        *program = plain;
    for (unsigned i = 0; i < 16; i++) {
        plain = *program;
        plain.start.gpr[i] = 0;
        if (program->start.gpr[i] && program_fails(&plain, how))
            *program = plain;
    }
    plain = *program;
    plain.start.rflags = 0x202;
    if (program_fails(&plain, how))
        *program = plain;
}

static void keep_case(uint64_t seed, const struct run *run)
{
    char path[4096];
    if (!options->keep)
        return;
    snprintf(path, sizeof(path), "%s/%016lx.case", options->keep, seed);
    FILE *out = fopen(path, "w");
    if (out) {
        write_run(out, run);
        fclose(out);
    }
}

static void show_failure(const struct program *program)
{
    struct program small = *program;
    struct run run;
    assemble(&small, &run);
    printf("--- case seed %#lx\n", program->seed);
    int how = fails_alone(&run, false);
    if (!how) {
        printf("does not fail alone: depends on what ran before it\n");
        return;
    }
    drop_units(&small, how);
    plain_state(&small, how);
    drop_units(&small, how);
    assemble(&small, &run);
    print_run(&run);
    fails_alone(&run, true);
    write_run(stdout, &run);
    keep_case(program->seed, &run);
    fflush(stdout);
}

/* --- many --- */

static uint64_t case_seed(uint64_t index) { return options->seed * 0x100000000ull + index; }

/* The program of a case; seeds that give none are passed over. */
static void make_program(uint64_t seed, const struct host_features *features, struct program *program, struct run *run)
{
    for (uint64_t try = 0; !generate_program(seed + (try << 56), features, program) || !assemble(program, run); try++)
        ;
    program->seed = seed;
}

static void count(struct progress *progress, const struct program *program, const struct outcome *native)
{
    progress->programs++;
    progress->blocks += program->block_count;
    progress->faults += native->fault_count;
}

static void work(struct progress *progress)
{
    static struct program programs[HOST_BATCH];
    static struct run runs[HOST_BATCH];
    static struct outcome natives[HOST_BATCH];
    struct bench bench;
    bench_start(&bench, progress);
    const struct host_features *features = host_features(bench.host);
    while (progress->next < options->cases && progress->blocks < options->blocks && progress->failed < options->failures_max) {
        unsigned n = (unsigned)min_u64(HOST_BATCH, options->cases - progress->next);
        for (unsigned i = 0; i < n; i++)
            make_program(case_seed(progress->next + i), features, &programs[i], &runs[i]);
        if (!host_run(bench.host, runs, n, natives))
            progress->lost++;
        for (unsigned i = 0; i < n && progress->failed < options->failures_max; i++) {
            progress->seed = programs[i].seed;
            progress->next++;
            uint64_t endless = progress->endless;
            bool agree = run_agrees(&bench, &runs[i], luck_of(&runs[i]), &natives[i], true);
            if (progress->endless > endless)
                continue;
            count(progress, &programs[i], &natives[i]);
            if (agree)
                continue;
            progress->failed++;
            show_failure(&programs[i]);
        }
    }
    progress->done = true;
}

/* The worker died: the case under way killed it. */
static void show_killer(struct progress *progress, int status)
{
    static struct program program;
    struct run run;
    struct host *host = host_start();
    printf("--- the engines' process ended with status %#x\n", status);
    progress->programs++;
    progress->failed++;
    make_program(progress->seed, host_features(host), &program, &run);
    host_stop(host);
    show_failure(&program);
}

static void run_cases(struct progress *progress)
{
    while (!progress->done && progress->failed < options->failures_max) {
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            work(progress);
            fflush(stdout);
            _exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        if (!progress->done && status)
            show_killer(progress, status);
    }
}

static void run_only(struct progress *progress)
{
    static struct program program;
    struct run run;
    struct host *host = host_start();
    make_program(options->only, host_features(host), &program, &run);
    host_stop(host);
    print_run(&run);
    progress->programs = 1;
    progress->failed = fails_alone(&run, true) != 0;
    if (progress->failed)
        show_failure(&program);
}

static void run_files(struct progress *progress)
{
    struct run run;
    for (unsigned i = 0; i < options->file_count; i++) {
        progress->programs++;
        if (read_run(options->files[i], &run) && !fails_alone(&run, false))
            continue;
        progress->failed++;
        printf("--- %s\n", options->files[i]);
        print_run(&run);
        fails_alone(&run, true);
    }
}

static bool parse(int argc, char **argv, struct options *out)
{
    *out = (struct options){ .cases = 50000, .blocks = UINT64_MAX, .seed = 1, .failures_max = 10 };
    int i = 1;
    for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
        uint64_t number = strtoull(argv[i + 1], NULL, 0);
        if (!strcmp(argv[i], "--engine"))
            out->engine = argv[i + 1];
        else if (!strcmp(argv[i], "--cases"))
            out->cases = number;
        else if (!strcmp(argv[i], "--blocks"))
            out->blocks = number, out->cases = UINT64_MAX;
        else if (!strcmp(argv[i], "--seed"))
            out->seed = number;
        else if (!strcmp(argv[i], "--failures"))
            out->failures_max = (unsigned)number;
        else if (!strcmp(argv[i], "--keep"))
            out->keep = argv[i + 1];
        else if (!strcmp(argv[i], "--only"))
            out->only = number, out->has_only = true;
        else
            return false;
    }
    out->files = argv + i;
    out->file_count = (unsigned)(argc - i);
    return !out->file_count || strncmp(argv[i], "--", 2);
}

int main(int argc, char **argv)
{
    struct options parsed;
    if (!parse(argc, argv, &parsed)) {
        fprintf(stderr, "usage: blocks [--engine NAME] [--cases N | --blocks N] [--seed S] [--only SEED] [--failures N] [--keep DIRECTORY] "
                        "[FILE...]\n");
        return 2;
    }
    options = &parsed;
    struct progress *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (parsed.has_only)
        run_only(progress);
    else if (parsed.file_count)
        run_files(progress);
    else
        run_cases(progress);
    printf("seed %lu: %lu blocks, %lu faults, %lu batches lost to the host; of the programs %lu not judged by the host, %lu passed over "
           "without an end\n", parsed.seed, progress->blocks, progress->faults, progress->lost, progress->unjudged, progress->endless);
    printf("%lu passed, %lu failed, 0 skipped\n", progress->programs - progress->failed, progress->failed);
    return progress->failed || progress->lost > parsed.cases / 1000 + 1;
}
