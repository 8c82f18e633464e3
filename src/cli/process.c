/*
 * The process of a virtual machine, from its options to its exit status: name and control socket, console, signals, and the machines that
 * run in it. Everything that can be refused is refused before a machine starts; from then on there is one way out, the end of
 * vmm_run, which signals, the escape key and the control socket lead to as well.
 */
#include "cli/process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/console.h"
#include "api/instance.h"
#include "api/log_file.h"
#include "api/monitor.h"
#include "api/server.h"
#include "api/service.h"
#include "api/vm_config.h"
#include "api/vmm.h"
#include "backend/chardev.h"
#include "backend/vnc.h"
#include "cli/detach.h"
#include "cli/exit_status.h"
#include "cli/restore.h"
#include "cli/signals.h"

struct process {
    struct options *options;
    struct detach detach;
    struct instance *instance;          /* NULL: there is no place for one */
    struct console *console;            /* the shared one; NULL: nobody asks for it */
    char console_log[4096];             /* where that is written to */
    struct vmm *vmm;
    struct server *server;
    struct monitor *monitor;            /* of the machine that is booted */
    FILE *log;
    struct log_file messages;           /* in the background, what would go to the terminal */
    bool started;                       /* there is something to tell of it */
    struct signals *signals;
};

/* --- around each machine --- */

static void escape_key(void *owner, char key)
{
    struct process *process = owner;
    if (key == 'x')
        vmm_quit(process->vmm, END_QUIT, 0);
    if (key == 'c')
        monitor_toggle(process->monitor);
}

static void say_name(const char *what, const struct chardev *chardev)
{
    if (chardev && chardev_name(chardev))
        fprintf(stderr, "doppel: the %s is %s\n", what, chardev_name(chardev));
}

/* Firmware and boot loaders write to the screen, so that a terminal may stay empty for a while, or for good. */
static void say_where_the_screen_is(const struct process *process, const struct machine *machine)
{
    struct error unused;
    const char *console = process->options->config.console, *name = process->instance ? instance_name(process->instance) : "NAME";
    if (!machine->vga || machine->vnc || !console || strcmp(console, "stdio") || !isatty(STDOUT_FILENO))
        return;
    fprintf(stderr, "doppel: this terminal is the serial port; the screen is seen with %s'doppel screenshot %s FILE'. Ctrl-A x ends the machine\n",
            vnc_check(":0", &unused) ? "--vnc :0, or " : "", name);
}

static bool machine_made(void *owner, struct machine *machine, struct error *err)
{
    struct process *process = owner;
    for (unsigned i = 0; i < process->options->trace_count; i++)
        trace_switch(&machine->log, process->options->trace[i], true);
    process->monitor = monitor_create(machine, process->options->monitor, err);
    if (!process->monitor)
        return false;
    const struct chardev_escape escape = { escape_key, process };
    if (machine->console)
        chardev_on_escape(machine->console, &escape);
    if (machine->virtio_console)
        chardev_on_escape(machine->virtio_console, &escape);
    say_name("console", machine->console);
    say_name("virtio console", machine->virtio_console);
    say_name("debug console", machine->debug_console);
    say_where_the_screen_is(process, machine);
    return true;
}

static void print_counters(const struct machine *machine)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++)
        fprintf(stderr, "%-20s %14" PRIu64 "  %s\n", counter_name(i), machine_counter(machine, i), counter_text(i));
}

static void machine_ended(void *owner, struct machine *machine)
{
    struct process *process = owner;
    monitor_destroy(process->monitor);
    process->monitor = NULL;
    chardev_restore_terminals();
    if (process->options->counters)
        print_counters(machine);
    if (machine->end == END_TRIPLE_FAULT)
        fprintf(stderr, "doppel: a guest processor shut down (triple fault)\n");
}

/* --- start --- */

static bool open_log(struct process *process, struct error *err)
{
    if (!process->options->log)
        return true;
    process->log = fopen(process->options->log, "we");
    if (!process->log)
        return error_errno(err, errno, "cannot write the log %s", process->options->log);
    setvbuf(process->log, NULL, _IOLBF, 0);
    process->options->config.log = process->log;
    return true;
}

/* In the background, messages go where `doppel logs --messages` finds them, unless they have a log of their own. */
static bool open_messages(struct process *process, struct error *err)
{
    if (!process->options->detach)
        return true;
    if (!log_file_open(&process->messages, instance_directory(process->instance), INSTANCE_MESSAGES, err))
        return false;
    if (process->log)
        return true;
    process->log = log_file_stream(&process->messages);
    process->options->config.log = process->log;
    return process->log || error_set(err, "no memory for the log");
}

/* A machine that nobody named may do without a name, too, if it has a terminal. */
static bool claim_name(struct process *process, struct error *err)
{
    const struct options *options = process->options;
    process->instance = instance_claim(options->name, options->name || options->detach, err);
    if (process->instance || options->name || options->detach || options->serving)
        return process->instance;
    fprintf(stderr, "doppel: warning: no control socket: %s\n", err->text);
    err->text[0] = 0;
    return true;
}

static bool open_console(struct process *process, struct error *err)
{
    const struct options *options = process->options;
    if (!options->serving && strcmp(options->config.console, CONSOLE_SHARED))
        return true;
    process->console = console_create(process->instance ? instance_directory(process->instance) : -1, INSTANCE_CONSOLE, err);
    return process->console;
}

static bool add_listeners(struct process *process, int inherited, struct error *err)
{
    if (process->instance) {
        int fd = instance_listen(process->instance, err);
        if (fd < 0 || !server_add_listener(process->server, fd, NULL, err))
            return false;
    }
    if (process->options->api_socket) {
        const char *path;
        int fd = service_open_listener(process->options->api_socket, &path, err);
        if (fd < 0 || !server_add_listener(process->server, fd, path, err))
            return false;
    }
    for (int fd = SERVICE_FIRST_FD; fd < SERVICE_FIRST_FD + inherited; fd++)
        if (!service_check_listener(fd, err) || !server_add_listener(process->server, fd, NULL, err))
            return false;
    return true;
}

static bool open_control_socket(struct process *process, int inherited, struct error *err)
{
    const struct server_subject subject = {
        .vmm = process->vmm,
        .name = process->instance ? instance_name(process->instance) : NULL,
        .console = process->console,
        .console_log = process->instance ? process->console_log : NULL,
        .defaults = &process->options->config,
    };
    if (process->instance)
        instance_path(process->instance, INSTANCE_CONSOLE, process->console_log, sizeof(process->console_log));
    process->server = server_create(&subject, err);
    return process->server && add_listeners(process, inherited, err) && server_start(process->server, err);
}

static bool configure(struct process *process, struct error *err)
{
    struct options *options = process->options;
    if (options->serving)
        return true;
    struct vm_config *config = options->restoring ? restore_open(options, err) : vm_config_create(&options->config, err);
    return config && vmm_create_vm(process->vmm, config, err) == VMM_DONE;
}

/* Everything around the machine; what was made is undone by the caller. */
static bool set_up(struct process *process, int inherited, struct error *err)
{
    const struct vmm_hooks hooks = { .made = machine_made, .ended = machine_ended, .owner = process };
    if (!claim_name(process, err) || !open_messages(process, err) || !open_console(process, err))
        return false;
    process->vmm = vmm_create(&hooks, process->console, err);
    if (!process->vmm || !configure(process, err) || !open_control_socket(process, inherited, err))
        return false;
    process->signals = signals_start(process->vmm, process->options->detach, err);
    return process->signals;
}

static void tell_ready(struct process *process)
{
    if (process->options->detach) {
        printf("%s\n", instance_name(process->instance));
        detach_ready(&process->detach, process->messages.fd);
    }
    service_notify("READY=1\nSTATUS=Ready");
}

/* --- run and end --- */

static int run_machines(struct process *process, struct error *err)
{
    enum vmm_result result = process->options->serving ? VMM_DONE : vmm_boot_first(process->vmm, err);
    if (result != VMM_DONE)
        return result == VMM_INVALID ? EXIT_USAGE : EXIT_HOST_ERROR;
    tell_ready(process);
    struct vmm_outcome outcome = vmm_run(process->vmm);
    service_notify("STOPPING=1");
    int status = exit_status_of(outcome.end, outcome.code);
    if (process->instance)
        instance_record_end(process->instance, status, exit_reason_of(outcome.end));
    process->started = true;
    return status;
}

/* The name is given back last: until then nobody else can take it. */
static void take_down(struct process *process)
{
    server_destroy(process->server);
    signals_stop(process->signals);
    vmm_destroy(process->vmm);
    console_destroy(process->console);
    chardev_restore_terminals();
    if (process->log)
        fclose(process->log);
    if (process->messages.name)
        log_file_close(&process->messages);
    instance_release(process->instance, process->started);
}

static int run_here(struct process *process, int inherited)
{
    struct error err = { "" };
    int status = EXIT_USAGE;
    signals_prepare();
    if (open_log(process, &err) && set_up(process, inherited, &err))
        status = run_machines(process, &err);
    take_down(process);
    if (*err.text)
        fprintf(stderr, "doppel: %s\n", err.text);
    return status;
}

int process_run(struct options *options)
{
    struct process process = { .options = options, .detach = { -1 } };
    struct error err;
    bool over = false;
    int status = EXIT_HOST_ERROR, inherited = service_listeners();
    if (options->detach && !detach_begin(&process.detach, &over, &status, &err))
        fprintf(stderr, "doppel: %s\n", err.text);
    else if (!over)
        status = run_here(&process, inherited);
    return status;
}
