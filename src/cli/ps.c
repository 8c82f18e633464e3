/* `doppel ps`: every virtual machine of this user, those that have ended or crashed included. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "api/instance.h"
#include "base/base.h"
#include "cli/arguments.h"
#include "cli/remote.h"

struct list {
    const struct arguments *arguments;
    json_t *json;
    bool headed;
};

/* What a machine that runs says of itself; one that cannot answer is shown all the same. */
struct answer {
    char state[16];
    long long cpus, memory;
};

enum { ANSWER_SECONDS = 2 };         /* one that hangs must not hold up the list for long */

static void ask(const char *name, struct answer *answer)
{
    struct error err;
    struct client_answer info = { 0 };
    struct client *client = client_open(name, ANSWER_SECONDS, &err);
    bool answered = client && client_call(client, "GET", "/api/v1/vm.info", NULL, -1, &info, &err);
    const char *state = json_string_value(json_object_get(info.body, "state"));
    json_t *config = json_object_get(info.body, "config");
    snprintf(answer->state, sizeof(answer->state), "%s", answered && state ? state : info.status == 404 ? "Empty" : "No answer");
    answer->cpus = json_integer_value(json_object_get(json_object_get(config, "cpus"), "boot_vcpus"));
    answer->memory = json_integer_value(json_object_get(json_object_get(config, "memory"), "size"));
    client_answer_end(&info);
    client_close(client);
}

static void print_age(char *text, size_t size, long long seconds)
{
    if (seconds < 120)
        snprintf(text, size, "%lld s", seconds);
    else if (seconds < 120 * 60)
        snprintf(text, size, "%lld min", seconds / 60);
    else if (seconds < 48 * 3600)
        snprintf(text, size, "%lld h", seconds / 3600);
    else
        snprintf(text, size, "%lld days", seconds / 86400);
}

static void print_row(struct list *list, const struct instance_status *status, const struct answer *answer)
{
    char since[32], memory[32] = "-", cpus[16] = "-", pid[16] = "-";
    long long from = status->state == INSTANCE_RUNS || !status->ended ? status->started : status->ended;
    print_age(since, sizeof(since), from ? (long long)time(NULL) - from : 0);
    if (answer->cpus) {
        snprintf(cpus, sizeof(cpus), "%lld", answer->cpus);
        snprintf(memory, sizeof(memory), "%lld MiB", answer->memory / (long long)MiB);
    }
    if (status->pid)
        snprintf(pid, sizeof(pid), "%d", status->pid);
    if (!list->headed)
        printf("%-20s %-10s %8s %5s %10s %9s  %s\n", "NAME", "STATE", "PID", "CPUS", "MEMORY", "SINCE", "HOW IT ENDED");
    list->headed = true;
    printf("%-20s %-10s %8s %5s %10s %9s  %s\n", status->name, answer->state, pid, cpus, memory, since, status->reason);
}

static json_t *row_json(const struct instance_status *status, const struct answer *answer)
{
    json_t *row = json_pack("{s:s, s:s, s:I}", "name", status->name, "state", answer->state, "started", (json_int_t)status->started);
    if (status->pid)
        json_object_set_new(row, "pid", json_integer(status->pid));
    if (answer->cpus)
        json_object_update_new(row, json_pack("{s:I, s:I}", "cpus", (json_int_t)answer->cpus, "memory", (json_int_t)answer->memory));
    if (status->state == INSTANCE_ENDED)
        json_object_update_new(row, json_pack("{s:I, s:i}", "ended", (json_int_t)status->ended, "exit_status", status->exit_status));
    if (*status->reason)
        json_object_set_new(row, "reason", json_string(status->reason));
    return row;
}

static void visit(const struct instance_status *status, void *owner)
{
    struct list *list = owner;
    struct answer answer = { .state = "" };
    if (list->arguments->value[FLAG_ps_names]) {
        puts(status->name);
        return;
    }
    if (status->state == INSTANCE_RUNS)
        ask(status->name, &answer);
    else
        strcpy(answer.state, status->state == INSTANCE_ENDED ? "Ended" : "Crashed");
    if (list->json)
        json_array_append_new(list->json, row_json(status, &answer));
    else
        print_row(list, status, &answer);
}

int command_ps(int argc, char **argv)
{
    struct arguments arguments;
    struct error err;
    int status = arguments_parse(&arguments, COMMAND_ps, 0, 0, argc, argv);
    if (status >= 0)
        return status;
    struct list list = { &arguments, arguments.value[FLAG_ps_json] ? json_array() : NULL, false };
    status = EXIT_DONE;
    if (!instance_list(visit, &list, &err)) {
        fprintf(stderr, "doppel: %s\n", err.text);
        status = EXIT_HOST_ERROR;
    } else if (list.json) {
        json_dumpf(list.json, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(list.json);
    return status;
}
