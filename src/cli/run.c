/*
 * `doppel run`: options, machine, terminal, signals. Everything that can be refused is refused before the machine starts; from then
 * on there is one way out, the end of machine_wait, which signals and the escape key lead to as well.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/monitor.h"
#include "backend/chardev.h"
#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/options.h"
#include "cli/restore.h"
#include "x86/x86.h"

struct run {
    struct options options;
    struct snapshot *snapshot;      /* what the machine is restored from; NULL: it is new */
    struct machine *machine;
    struct monitor *monitor;
    FILE *log;
    pthread_t signal_thread;
    sigset_t signals;
};

static int complain(enum exit_status status, const struct error *err)
{
    fprintf(stderr, "doppel: %s\n", err->text);
    return status;
}

/* --- lists that options can ask for --- */

static void print_model(const char *name, const char *text, void *out)
{
    fprintf(out, "  %-16s %s\n", name, text);
}

static int print_lists(const struct options *options)
{
    if (options->help && options->restoring)
        help_restore(stdout);
    else if (options->help)
        help_run(stdout);
    if (options->cpu_help)
        x86_model_list(print_model, stdout);
    for (unsigned i = 0; options->trace_help && i < TRACE_COUNT; i++)
        print_model(trace_name((enum trace_point)i), trace_text((enum trace_point)i), stdout);
    return EXIT_DONE;
}

/* --- ways out --- */

/* Our own crash: give the terminal back, then die as if nobody had caught it (SA_RESETHAND). */
static void crashed(int number)
{
    chardev_restore_terminals();
    raise(number);
}

static void restore_terminals_on_a_crash(void)
{
    static const int crashes[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT };
    struct sigaction action = { .sa_handler = crashed, .sa_flags = (int)SA_RESETHAND | SA_NODEFER }, old;
    for (unsigned i = 0; i < ARRAY_SIZE(crashes); i++)
        if (!sigaction(crashes[i], NULL, &old) && old.sa_handler == SIG_DFL)
            sigaction(crashes[i], &action, NULL);
}

/* Waits for the signals that mean "end". The second one does not wait for the machine any more. */
static void *signal_main(void *argument)
{
    struct run *run = argument;
    for (bool asked = false;; asked = true) {
        int number;
        if (sigwait(&run->signals, &number))
            continue;
        if (number == SIGUSR1)      /* the machine has ended */
            return NULL;
        if (asked) {
            chardev_restore_terminals();
            _exit(EXIT_SIGNAL + number);
        }
        machine_end(run->machine, END_QUIT, (uint32_t)number);
    }
}

/* Before any thread is made, so that all of them leave these signals to signal_main. */
static void block_signals(struct run *run)
{
    sigemptyset(&run->signals);
    sigaddset(&run->signals, SIGINT);
    sigaddset(&run->signals, SIGTERM);
    sigaddset(&run->signals, SIGHUP);
    sigaddset(&run->signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &run->signals, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void escape_key(void *owner, char key)
{
    struct run *run = owner;
    if (key == 'x')
        machine_end(run->machine, END_QUIT, 0);
    if (key == 'c')
        monitor_toggle(run->monitor);
}

/* --- start and end --- */

static bool open_log(struct run *run, struct error *err)
{
    if (!run->options.log)
        return true;
    run->log = fopen(run->options.log, "we");
    if (!run->log)
        return error_errno(err, errno, "cannot write the log %s", run->options.log);
    setvbuf(run->log, NULL, _IOLBF, 0);
    run->options.config.log = run->log;
    return true;
}

static bool create(struct run *run, struct error *err)
{
    if (run->options.restoring)
        run->machine = restore_machine(&run->options, &run->snapshot, err);
    else
        run->machine = machine_create(&run->options.config, err);
    if (!run->machine)
        return false;
    for (unsigned i = 0; i < run->options.trace_count; i++)
        trace_switch(&run->machine->log, run->options.trace[i], true);
    run->monitor = monitor_create(run->machine, run->options.monitor, err);
    if (!run->monitor)
        return false;
    const struct chardev_escape escape = { escape_key, run };
    if (run->machine->console)
        chardev_on_escape(run->machine->console, &escape);
    if (run->machine->virtio_console)
        chardev_on_escape(run->machine->virtio_console, &escape);
    return true;
}

static void say_name(const char *what, const struct chardev *chardev)
{
    if (chardev && chardev_name(chardev))
        fprintf(stderr, "doppel: the %s is %s\n", what, chardev_name(chardev));
}

static void print_counters(const struct machine *machine)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++)
        fprintf(stderr, "%-20s %14" PRIu64 "  %s\n", counter_name(i), machine_counter(machine, i), counter_text(i));
}

static int run_machine(struct run *run, struct error *err)
{
    say_name("console", run->machine->console);
    say_name("virtio console", run->machine->virtio_console);
    say_name("debug console", run->machine->debug_console);
    if (pthread_create(&run->signal_thread, NULL, signal_main, run)) {
        error_set(err, "cannot start a thread for signals");
        return EXIT_HOST_ERROR;
    }
    bool started = machine_start(run->machine, err);
    enum machine_end end = started ? machine_wait(run->machine) : END_HOST_ERROR;
    pthread_kill(run->signal_thread, SIGUSR1);
    pthread_join(run->signal_thread, NULL);
    chardev_restore_terminals();
    if (run->options.counters)
        print_counters(run->machine);
    if (end == END_TRIPLE_FAULT)
        fprintf(stderr, "doppel: a guest processor shut down (triple fault)\n");
    return exit_status_of(end, run->machine->end_code);
}

static int run_options(struct run *run)
{
    struct error err = { "" };
    if (!open_log(run, &err))
        return complain(EXIT_USAGE, &err);
    block_signals(run);
    restore_terminals_on_a_crash();
    int status = EXIT_USAGE;
    if (create(run, &err))
        status = run_machine(run, &err);
    monitor_destroy(run->monitor);
    if (run->machine)
        machine_destroy(run->machine);
    snapshot_close(run->snapshot);
    chardev_restore_terminals();
    if (*err.text)
        complain(status, &err);
    if (run->log)
        fclose(run->log);
    return status;
}

static int run_command(int argc, char **argv, bool (*parse)(struct options *, int, char **, struct error *))
{
    struct run run = { 0 };
    struct error err;
    int status;
    if (!parse(&run.options, argc, argv, &err))
        status = complain(EXIT_USAGE, &err);
    else if (run.options.help || run.options.cpu_help || run.options.trace_help)
        status = print_lists(&run.options);
    else
        status = run_options(&run);
    options_free(&run.options);
    return status;
}

int command_run(int argc, char **argv) { return run_command(argc, argv, options_parse); }

int command_restore(int argc, char **argv) { return run_command(argc, argv, options_parse_restore); }
