/* The monitor's commands: words, the table, and the commands that control the machine. */
#include <ctype.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "api/monitor_internal.h"
#include "base/error.h"
#include "engine/engine.h"
#include "machine/hotplug.h"
#include "machine/screen.h"
#include "machine/snapshot.h"
#include "vcpu/work.h"

/* --- helpers --- */

void monitor_refuse(struct monitor_command *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(command->out, format, arguments);
    va_end(arguments);
    fputc('\n', command->out);
    command->refused = true;
}

struct vcpu *monitor_vcpu(const struct monitor_command *command)
{
    return command->machine->vcpu[command->session->cpu];
}

void monitor_on_vcpu(struct machine *machine, struct vcpu *vcpu, void (*run)(struct vcpu *vcpu, void *argument), void *argument)
{
    vcpu_run_on(NULL, vcpu, run, argument);
}

static bool register_value(const struct vcpu *vcpu, const char *name, size_t length, uint64_t *value)
{
    static const char *const names[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (strlen(names[i]) == length && !strncmp(name, names[i], length)) {
            *value = vcpu->gpr[i];
            return true;
        }
    const struct { const char *name; uint64_t value; } others[] = {
        { "rip", vcpu->rip }, { "pc", monitor_code_address(vcpu) }, { "cr2", vcpu->cr2 }, { "cr3", vcpu->cr3 },
        { "gdtr", vcpu->gdtr.base }, { "idtr", vcpu->idtr.base }, { "fs", vcpu->seg[FS].base }, { "gs", vcpu->seg[GS].base },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
        if (strlen(others[i].name) == length && !strncmp(name, others[i].name, length)) {
            *value = others[i].value;
            return true;
        }
    return false;
}

struct evaluation {
    const char *text;
    uint64_t value;
    bool done;
};

/* TERM [+|- TERM]..., where a term is a register or a number. */
static void evaluate(struct vcpu *vcpu, void *argument)
{
    struct evaluation *evaluation = argument;
    const char *at = evaluation->text;
    bool minus = false;
    for (;;) {
        uint64_t term;
        at += *at == '$';
        size_t length = strcspn(at, "+-");
        if (!register_value(vcpu, at, length, &term)) {
            char *end;
            if (!isdigit((unsigned char)*at))
                return;
            term = strtoull(at, &end, 0);
            if (end != at + length)
                return;
        }
        evaluation->value += minus ? -term : term;
        at += length;
        if (!*at)
            break;
        minus = *at++ == '-';
    }
    evaluation->done = true;
}

bool monitor_number(struct monitor_command *command, int i, uint64_t *value)
{
    if (i >= command->count) {
        monitor_refuse(command, "%s needs an address: a number, a register, or a sum of them", command->word[0]);
        return false;
    }
    struct evaluation evaluation = { .text = command->word[i] };
    monitor_on_vcpu(command->machine, monitor_vcpu(command), evaluate, &evaluation);
    *value = evaluation.value;
    if (!evaluation.done)
        monitor_refuse(command, "'%s' is neither a number nor a register", command->word[i]);
    return evaluation.done;
}

bool monitor_count(struct monitor_command *command, int i, uint64_t standard, uint64_t max, uint64_t *value)
{
    *value = standard;
    if (i >= command->count)
        return true;
    char *end;
    *value = strtoull(command->word[i], &end, 0);
    if (isdigit((unsigned char)*command->word[i]) && !*end && *value && *value <= max)
        return true;
    monitor_refuse(command, "'%s' is not a number from 1 to %" PRIu64, command->word[i], max);
    return false;
}

/* --- commands; those about memory and state are in the other files --- */

static void monitor_cpu(struct monitor_command *command)
{
    uint64_t wanted;
    if (command->count > 1) {
        char *end;
        wanted = strtoull(command->word[1], &end, 0);
        if (*end || !isdigit((unsigned char)*command->word[1]) || wanted >= command->machine->config.cpus) {
            monitor_refuse(command, "there are processors 0 to %u", command->machine->config.cpus - 1);
            return;
        }
        command->session->cpu = (unsigned)wanted;
    }
    fprintf(command->out, "processor %u\n", command->session->cpu);
}

static void monitor_stop(struct monitor_command *command)
{
    if (!command->session->stopped)
        machine_pause(command->machine);
    command->session->stopped = true;
    monitor_print_code(command, monitor_code_address(monitor_vcpu(command)), 1);
}

static void monitor_continue(struct monitor_command *command)
{
    if (!command->session->stopped)
        monitor_refuse(command, "the machine was not stopped from here");
    monitor_session_end(command->session);
}

static void monitor_step(struct monitor_command *command)
{
    enum { STEPS_MAX = 10000000 };
    uint64_t count;
    if (!monitor_count(command, 1, 1, STEPS_MAX, &count))
        return;
    if (!command->session->stopped) {
        monitor_refuse(command, "stop the machine first");
        return;
    }
    machine_step(command->machine, command->session->cpu, count);
    monitor_print_code(command, monitor_code_address(monitor_vcpu(command)), 1);
}

static void monitor_trace(struct monitor_command *command)
{
    struct log *log = &command->machine->log;
    if (command->count == 1) {
        monitor_print_trace(log, command->out);
        return;
    }
    const char *how = command->count > 2 ? command->word[2] : "on";
    if (strcmp(how, "on") && strcmp(how, "off"))
        monitor_refuse(command, "'%s' is neither on nor off", how);
    else if (!trace_switch(log, command->word[1], !strcmp(how, "on")))
        monitor_refuse(command, "no trace point matches '%s'; 'trace' lists them", command->word[1]);
}

static void monitor_counters(struct monitor_command *command)
{
    monitor_print_counters(command->machine, command->count > 1 ? command->word[1] : "*", command->out);
}

static void monitor_engine(struct monitor_command *command)
{
    struct error err;
    if (command->count > 1 && !machine_set_engine(command->machine, command->word[1], &err))
        monitor_refuse(command, "%s", err.text);
    else
        fprintf(command->out, "engine %s\n", monitor_vcpu(command)->engine->name);
}

static void monitor_screenshot(struct monitor_command *command)
{
    struct error err;
    if (command->count < 2)
        monitor_refuse(command, "screenshot needs the name of a file");
    else if (!screen_save(command->machine, command->word[1], &err))
        monitor_refuse(command, "%s", err.text);
}

static void monitor_sendkey(struct monitor_command *command)
{
    struct error err;
    for (int i = 1; i < command->count; i++)
        if (!screen_send_keys(command->machine, command->word[i], &err)) {
            monitor_refuse(command, "%s", err.text);
            return;
        }
}

static void monitor_type(struct monitor_command *command)
{
    struct error err;
    for (int i = 1; i < command->count; i++)
        if (!screen_type(command->machine, command->word[i], &err) ||
            !screen_type(command->machine, i + 1 < command->count ? " " : "\n", &err)) {
            monitor_refuse(command, "%s", err.text);
            return;
        }
}

/* The words of an action are one text. */
static void monitor_pointer(struct monitor_command *command)
{
    char action[256] = "";
    struct error err;
    for (int i = 1; i < command->count; i++) {
        size_t used = strlen(action);
        snprintf(action + used, sizeof(action) - used, "%s ", command->word[i]);
    }
    if (!screen_pointer(command->machine, action, &err))
        monitor_refuse(command, "%s", err.text);
}

static void monitor_power(struct monitor_command *command)
{
    machine_power_button(command->machine);
}

/* A reset has to wait for processors that run. */
static void monitor_reset(struct monitor_command *command)
{
    machine_reset(command->machine);
    monitor_session_end(command->session);
}

static void monitor_snapshot(struct monitor_command *command)
{
    struct error err;
    struct snapshot_options options = { .parent = NULL };
    if (command->count < 2) {
        monitor_refuse(command, "say in which directory");
        return;
    }
    for (int i = 2; i < command->count; i++)
        if (strncmp(command->word[i], "disks=", 6))
            options.parent = command->word[i];
        else
            options.disks = command->word[i] + 6;
    if (machine_snapshot(command->machine, command->word[1], &options, &err))
        fputs("done\n", command->out);
    else
        monitor_refuse(command, "%s", err.text);
}

static void monitor_media(struct monitor_command *command)
{
    struct error err;
    int count = command->count - (command->count > 2 && !strcmp(command->word[command->count - 1], "force"));
    if (count < 2 || count > 3) {
        monitor_refuse(command, "say which image, or none");
        return;
    }
    const char *path = command->word[count - 1];
    const struct medium_change change = { .id = count > 2 ? command->word[1] : NULL, .path = strcmp(path, "none") ? path : NULL,
                                          .force = count < command->count };
    if (machine_change_medium(command->machine, &change, &err))
        fputs("done\n", command->out);
    else
        monitor_refuse(command, "%s", err.text);
}

static void monitor_quit(struct monitor_command *command)
{
    machine_end(command->machine, END_QUIT, 0);
}

static void monitor_help(struct monitor_command *command);

/* --- the table --- */

static const struct {
    const char *name, *arguments, *text;
    void (*run)(struct monitor_command *command);
} commands[] = {
#define MONITOR(name, arguments, text) { #name, arguments, text, monitor_##name },
#include "api/monitor.def"
#undef MONITOR
};

#define NO_SUCH_COMMAND "there is no command '%s'; 'help' lists them"

static void monitor_help(struct monitor_command *command)
{
    const char *only = command->count > 1 ? command->word[1] : NULL;
    bool found = false;
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
        if (!only || !strcmp(only, commands[i].name)) {
            fprintf(command->out, "%s %-*s %s\n", commands[i].name, 29 - (int)strlen(commands[i].name), commands[i].arguments,
                    commands[i].text);
            found = true;
        }
    if (!found)
        monitor_refuse(command, NO_SUCH_COMMAND, only);
    if (only && !strcmp(only, "info"))
        monitor_info_help(command->out);
}

/* An index of the table, NONE or SEVERAL. A prefix will do where it means only one command; a whole name always does. */
enum { NONE = -1, SEVERAL = -2 };

static int find(const char *word)
{
    int found = NONE;
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (!strcmp(commands[i].name, word))
            return (int)i;
        if (!strncmp(commands[i].name, word, strlen(word)))
            found = found == NONE ? (int)i : SEVERAL;
    }
    return found;
}

bool monitor_execute(struct monitor_session *session, const char *line, FILE *out)
{
    char text[MONITOR_LINE_MAX], *rest = text, *word;
    struct monitor_command command = { .session = session, .machine = session->machine, .out = out };
    snprintf(text, sizeof(text), "%s", line);
    while (command.count < MONITOR_WORDS_MAX && (word = strtok_r(rest, " \t\r\n", &rest)))
        command.word[command.count++] = word;
    if (!command.count)
        return true;
    int found = find(command.word[0]);
    if (found >= 0)
        commands[found].run(&command);
    else if (found == SEVERAL)
        monitor_refuse(&command, "'%s' may mean several commands; 'help' lists them", command.word[0]);
    else
        monitor_refuse(&command, NO_SUCH_COMMAND, command.word[0]);
    return !command.refused;
}

void monitor_session_end(struct monitor_session *session)
{
    if (session->stopped)
        machine_resume(session->machine);
    session->stopped = false;
}
