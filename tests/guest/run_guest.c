/*
 * Runs one bare-metal guest in a machine of its own in this process and counts its PASS and FAIL lines.
 *   run_guest [--cpus N] [--memory MIB] [--cpu MODEL] [--engine NAME] [--kvm-irqchip off] [--tlb stale|fresh] [--device NAME]... [--machines N] [--counted GLOB]
 *             [--victim 1] [--at-speed 1] [--rows 1] [--append WORDS] ELF
 * With --machines, that many run at the same time, each on its own threads. The guest must end itself by the debug-exit
 * port; anything else is a failure. With --counted, each counter whose name matches must have counted something.
 * With --victim, another machine stands in the process (victim.h). With --rows, the guest's lines "ROW name" must be the checks of VM entry
 * that fail, one after the other, as the trace tells them.
 * With --engine kvm it is skipped where there is no KVM; and checks in which the host's KVM is known to depart from the manual
 * (kvm_departures.def) are shown with the reason, and count as skipped. A KVM that emulates the guest's kernel takes interrupts some
 * instructions late or early, as it comes; so there a guest that fails runs up to three times, and fails if it never passes.
 */
#include <fnmatch.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "engine/dbt/hot.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"
#include "machine/machine.h"
#include "victim.h"

enum { TIMEOUT_SECONDS = 240, RUNS_MAX = 8, TRIES = 3, SKIPPED = 77 /* as Meson wants it */ };

/* One machine and where its debug console goes. */
struct run {
    struct machine_config config;
    char console[48];
    char *path;                         /* the file, within `console` */
    struct machine *machine;
    FILE *trace;                        /* with --rows: what the trace prints */
};

/* What else was asked for. */
struct plan {
    unsigned machines;
    const char *counted;
    bool victim;
    bool rows;
    bool at_speed;                      /* not on a KVM that emulates: it would take too long there, or never end */
};

/* How the guest runs. */
enum kvm { KVM_NOT_ASKED, KVM_NONE, KVM_EMULATES, KVM_RUNS };

static const struct departure {
    enum kvm kvm;
    const char *guest, *check, *why;
} departures[] = {
#define DEPARTS(kvm, guest, check, why) { kvm, guest, check, why },
#include "kvm_departures.def"
#undef DEPARTS
};

struct tally {
    unsigned passed, failed, skipped;
    enum kvm kvm;
    char guest[32];                     /* its name */
};

static enum kvm find_kvm(void)
{
    struct error err;
    double nanoseconds;
    enum kvm kvm = !kvm_usable(&err) ? KVM_NONE : !kvm_fast(&nanoseconds, &err) ? KVM_EMULATES : KVM_RUNS;
    if (kvm != KVM_RUNS)
        printf("%s\n", err.text);
    return kvm;
}

static bool on_kvm(const struct machine_config *config) { return config->engine && !strcmp(config->engine, "kvm"); }

static bool parse(int argc, char **argv, struct machine_config *config, struct plan *plan)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (argv[i][0] != '-') {
            config->kernel = argv[i];
            continue;
        }
        if (!value)
            return false;
        if (!strcmp(argv[i], "--cpus"))
            config->cpus = (unsigned)atoi(value);
        else if (!strcmp(argv[i], "--memory"))
            config->memory = strtoull(value, NULL, 0) * MiB;
        else if (!strcmp(argv[i], "--cpu"))
            config->cpu_model = value;
        else if (!strcmp(argv[i], "--tlb"))
            config->tlb = !strcmp(value, "stale") ? MMU_STALE : MMU_FRESH;
        else if (!strcmp(argv[i], "--engine"))
            config->engine = value;
        else if (!strcmp(argv[i], "--kvm-irqchip"))
            config->board_apic = !strcmp(value, "off");
        else if (!strcmp(argv[i], "--machines"))
            plan->machines = (unsigned)atoi(value);
        else if (!strcmp(argv[i], "--counted"))
            plan->counted = value;
        else if (!strcmp(argv[i], "--append"))
            config->append = value;
        else if (!strcmp(argv[i], "--victim"))
            plan->victim = atoi(value);
        else if (!strcmp(argv[i], "--at-speed"))
            plan->at_speed = atoi(value);
        else if (!strcmp(argv[i], "--rows"))
            plan->rows = atoi(value);
        else if (!strcmp(argv[i], "--device") && config->extra_count < MACHINE_EXTRA_MAX)
            config->extra[config->extra_count++] = value;
        else
            return false;
        i++;
    }
    return config->kernel && plan->machines >= 1 && plan->machines <= RUNS_MAX;
}

/* Why the check of a line "FAIL check: ..." may fail here; NULL: it may not. */
static const char *departure_of(const struct tally *tally, const char *line)
{
    for (const struct departure *d = departures; d < departures + ARRAY_SIZE(departures); d++) {
        size_t length = strlen(d->check);
        if (d->kvm == tally->kvm && !strcmp(d->guest, tally->guest) && !strncmp(line + 5, d->check, length) && strchr(":,\n", line[5 + length]))
            return d->why;
    }
    return NULL;
}

static void count_line(struct tally *tally, const char *line)
{
    const char *why = strncmp(line, "FAIL ", 5) ? NULL : departure_of(tally, line);
    if (why) {
        printf("skip %.*s (%s)\n", (int)strcspn(line + 5, "\n"), line + 5, why);
        tally->skipped++;
        return;
    }
    tally->passed += !strncmp(line, "PASS ", 5);
    tally->failed += !strncmp(line, "FAIL ", 5);
    fputs(line, stdout);
}

/* Prints the guest's lines and counts them. */
static void count_lines(const char *path, struct tally *tally)
{
    char line[1024];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof(line), file))
        count_line(tally, line);
    if (file)
        fclose(file);
}

static void on_alarm(int number)
{
    static const char text[] = "FAIL the guest did not end in time\n0 passed, 1 failed, 0 skipped\n";
    if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
        _exit(2);
    _exit(1);
}

static bool start(struct run *run, const struct machine_config *config, bool rows)
{
    struct error err;
    run->config = *config;
    if (rows && !(run->trace = run->config.log = tmpfile())) {
        perror("tmpfile");
        return false;
    }
    strcpy(run->console, "file:/tmp/doppel-guest-XXXXXX");
    run->path = run->console + strlen("file:");
    int fd = mkstemp(run->path);
    if (fd < 0) {
        perror("mkstemp");
        return false;
    }
    close(fd);
    run->config.debug_console = run->console;
    run->machine = machine_create(&run->config, &err);
    if (run->machine && rows)
        trace_switch(&run->machine->log, "vmx", true);
    for (unsigned i = 0; run->machine && i < run->config.cpus; i++)     /* these guests run nothing often */
        if (run->machine->vcpu[i]->engine == &engine_dbt)
            dbt_set_hot(run->machine->vcpu[i], i & 1 ? 2 : 0);
    if (run->machine && machine_start(run->machine, &err))
        return true;
    fprintf(stderr, "%s\n", err.text);
    if (run->machine)
        machine_destroy(run->machine);
    unlink(run->path);
    return false;
}

static void check_counted(const struct machine *machine, const char *glob, struct tally *tally)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++) {
        if (fnmatch(glob, counter_name(i), 0))
            continue;
        bool ok = machine_counter(machine, i);
        printf("%s the counter %s has counted\n", ok ? "PASS" : "FAIL", counter_name(i));
        tally->passed += ok;
        tally->failed += !ok;
    }
}

/* The name behind the next `mark` of the file; false: there is none. */
static bool next_name(FILE *file, const char *mark, char name[64])
{
    char line[1024], format[64];
    snprintf(format, sizeof(format), "%s%%63s", mark);
    while (fgets(line, sizeof(line), file)) {
        const char *found = strstr(line, mark);
        if (found && sscanf(found, format, name) == 1)
            return true;
    }
    return false;
}

static void check_rows(struct run *run, struct tally *tally)
{
    char want[64], got[64] = "any";
    FILE *guest = fopen(run->path, "r");
    rewind(run->trace);
    while (guest && next_name(guest, "ROW ", want)) {
        bool ok = next_name(run->trace, "fails the check ", got) && !strcmp(want, got);
        printf("%s entry fails by %s%s%s\n", ok ? "PASS" : "FAIL", want, ok ? "" : ", not by ", ok ? "" : got);
        tally->passed += ok;
        tally->failed += !ok;
        if (!ok)
            break;
    }
    if (guest)
        fclose(guest);
    fclose(run->trace);
}

static void finish(struct run *run, const char *counted, struct tally *tally)
{
    enum machine_end end = machine_wait(run->machine);
    unsigned code = run->machine->end_code, failed_before;
    if (counted)
        check_counted(run->machine, counted, tally);
    failed_before = tally->failed + tally->skipped;
    machine_destroy(run->machine);
    count_lines(run->path, tally);
    if (end != END_DEBUG_EXIT || code != tally->failed + tally->skipped - failed_before) {
        printf("FAIL the guest ended by %d, code %u\n", end, code);
        tally->failed++;
    }
    if (run->trace)
        check_rows(run, tally);
    unlink(run->path);
}

/* The image's name without folder and ending. */
static void name_guest(struct tally *tally, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    snprintf(tally->guest, sizeof(tally->guest), "%.*s", (int)strcspn(name, "."), name);
}

/* In a child process each; returns in a child, which is to run the guest. The parent ends with the status of the last. */
static void try_often(void)
{
    for (unsigned try = 1;; try++) {
        int status;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0)
            return;
        if (child < 0 || waitpid(child, &status, 0) < 0)
            exit(1);
        if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || try == TRIES)
            exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
        printf("it failed; try %u\n", try + 1);
    }
}

int main(int argc, char **argv)
{
    static struct run runs[RUNS_MAX];
    struct machine_config config = { 0 };
    struct plan plan = { .machines = 1 };
    struct victim victim;
    struct error err;
    struct tally tally = { 0 };
    unsigned started = 0;
    machine_config_defaults(&config);
    config.memory = 64 * MiB;
    config.no_reboot = true;
    config.debug_exit = true;
    config.rng = false;
    if (!parse(argc, argv, &config, &plan)) {
        fprintf(stderr, "usage: run_guest [--cpus N] [--memory MIB] [--cpu MODEL] [--engine NAME] [--kvm-irqchip off] [--tlb stale|fresh] [--device NAME]... "
                        "[--machines N] [--counted GLOB] [--victim 1] [--at-speed 1] [--rows 1] [--append WORDS] ELF\n");
        return 2;
    }
    name_guest(&tally, config.kernel);
    tally.kvm = on_kvm(&config) ? find_kvm() : KVM_NOT_ASKED;
    if (tally.kvm == KVM_NONE || (plan.at_speed && tally.kvm == KVM_EMULATES))
        return SKIPPED;
    if (tally.kvm == KVM_EMULATES)
        try_often();
    signal(SIGALRM, on_alarm);
    alarm(TIMEOUT_SECONDS);
    if (plan.victim && !victim_create(&victim, &config, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    while (started < plan.machines && start(&runs[started], &config, plan.rows))
        started++;
    tally.failed += started < plan.machines;
    for (unsigned i = 0; i < started; i++)
        finish(&runs[i], plan.counted, &tally);
    if (plan.victim)
        victim_check(&victim, &tally.passed, &tally.failed);
    printf("%u passed, %u failed, %u skipped\n", tally.passed, tally.failed, tally.skipped);
    return tally.failed || tally.passed == 0;
}
