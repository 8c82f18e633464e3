/*
 * `doppel run`: options, name and control socket, machine, terminal, signals. Everything that can be refused is refused before the
 * machine starts; from then on there is one way out, the end of vmm_run, which signals and the escape key lead to as well.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/instance.h"
#include "api/monitor.h"
#include "api/server.h"
#include "api/vm_config.h"
#include "api/vmm.h"
#include "backend/chardev.h"
#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/options.h"
#include "cli/restore.h"
#include "x86/x86.h"

struct run {
    struct options options;
    struct instance *instance;          /* NULL: there is no place for one */
    struct vmm *vmm;
    struct server *server;
    struct monitor *monitor;            /* of the machine that is booted */
    FILE *log;
    bool keep;                          /* what there is to tell of it outlives it */
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

/*
 * Our own crash: write it down, give the terminal back, then die as if nobody had caught it. An engine that catches signals, too,
 * calls this from its own handler, so SA_RESETHAND alone does not do.
 */
static void crashed(int number)
{
    instance_record_crash(number);
    chardev_restore_terminals();
    signal(number, SIG_DFL);
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
        if (number == SIGUSR1)      /* all has ended */
            return NULL;
        if (asked) {
            chardev_restore_terminals();
            _exit(EXIT_SIGNAL + number);
        }
        vmm_quit(run->vmm, END_QUIT, (uint32_t)number);
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
        vmm_quit(run->vmm, END_QUIT, 0);
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

static void say_name(const char *what, const struct chardev *chardev)
{
    if (chardev && chardev_name(chardev))
        fprintf(stderr, "doppel: the %s is %s\n", what, chardev_name(chardev));
}

static bool machine_made(void *owner, struct machine *machine, struct error *err)
{
    struct run *run = owner;
    for (unsigned i = 0; i < run->options.trace_count; i++)
        trace_switch(&machine->log, run->options.trace[i], true);
    run->monitor = monitor_create(machine, run->options.monitor, err);
    if (!run->monitor)
        return false;
    const struct chardev_escape escape = { escape_key, run };
    if (machine->console)
        chardev_on_escape(machine->console, &escape);
    if (machine->virtio_console)
        chardev_on_escape(machine->virtio_console, &escape);
    say_name("console", machine->console);
    say_name("virtio console", machine->virtio_console);
    say_name("debug console", machine->debug_console);
    return true;
}

static void print_counters(const struct machine *machine)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++)
        fprintf(stderr, "%-20s %14" PRIu64 "  %s\n", counter_name(i), machine_counter(machine, i), counter_text(i));
}

static void machine_ended(void *owner, struct machine *machine)
{
    struct run *run = owner;
    monitor_destroy(run->monitor);
    run->monitor = NULL;
    chardev_restore_terminals();
    if (run->options.counters)
        print_counters(machine);
    if (machine->end == END_TRIPLE_FAULT)
        fprintf(stderr, "doppel: a guest processor shut down (triple fault)\n");
}

/* A machine that nobody named may do without a name, too. */
static bool claim_name(struct run *run, struct error *err)
{
    run->instance = instance_claim(run->options.name, err);
    if (!run->instance && !run->options.name) {
        fprintf(stderr, "doppel: warning: no control socket: %s\n", err->text);
        err->text[0] = 0;
        return true;
    }
    return run->instance;
}

static bool open_control_socket(struct run *run, struct error *err)
{
    const struct server_subject subject = { run->vmm, run->instance ? instance_name(run->instance) : NULL, NULL };
    run->server = server_create(&subject, err);
    if (!run->server)
        return false;
    int listener = run->instance ? instance_listen(run->instance, err) : -1;
    if (run->instance && (listener < 0 || !server_add_listener(run->server, listener, err)))
        return false;
    return server_start(run->server, err);
}

static bool configure(struct run *run, struct error *err)
{
    const struct options *options = &run->options;
    struct vm_config *config = options->restoring ? restore_open(options, err) : vm_config_create(&options->config, err);
    return config && vmm_create_vm(run->vmm, config, err) == VMM_DONE;
}

/* Everything around the machine; what was made is undone by the caller. */
static bool set_up(struct run *run, struct error *err)
{
    const struct vmm_hooks hooks = { .made = machine_made, .ended = machine_ended, .owner = run };
    if (!claim_name(run, err))
        return false;
    run->vmm = vmm_create(&hooks, err);
    return run->vmm && configure(run, err) && open_control_socket(run, err);
}

static int boot_and_run(struct run *run, struct error *err)
{
    if (pthread_create(&run->signal_thread, NULL, signal_main, run)) {
        error_set(err, "cannot start a thread for signals");
        return EXIT_HOST_ERROR;
    }
    pthread_setname_np(run->signal_thread, "signals");
    enum vmm_result result = vmm_boot_first(run->vmm, err);
    struct vmm_outcome outcome = { END_HOST_ERROR, 0 };
    if (result == VMM_DONE)
        outcome = vmm_run(run->vmm);
    pthread_kill(run->signal_thread, SIGUSR1);
    pthread_join(run->signal_thread, NULL);
    int status = result == VMM_INVALID ? EXIT_USAGE : exit_status_of(outcome.end, outcome.code);
    if (run->instance && result == VMM_DONE)
        instance_record_end(run->instance, status, exit_reason_of(outcome.end));
    run->keep = run->options.name && result == VMM_DONE;
    return status;
}

static int run_options(struct run *run)
{
    struct error err = { "" };
    if (!open_log(run, &err))
        return complain(EXIT_USAGE, &err);
    block_signals(run);
    restore_terminals_on_a_crash();
    int status = EXIT_USAGE;
    if (set_up(run, &err))
        status = boot_and_run(run, &err);
    server_destroy(run->server);
    vmm_destroy(run->vmm);
    chardev_restore_terminals();
    if (*err.text)
        complain(status, &err);
    instance_release(run->instance, run->keep);
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
