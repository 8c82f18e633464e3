/* `doppel monitor`: one command, or each line of standard input, in one session. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/arguments.h"
#include "cli/remote.h"

static int execute(struct client *client, const char *name, const char *line)
{
    struct client_answer answer;
    struct error err;
    int status = EXIT_DONE;
    if (client_call(client, "PUT", "/doppel/v1/monitor", json_pack("{s:s}", "command", line), -1, &answer, &err)) {
        const char *text = json_string_value(json_object_get(answer.body, "output"));
        fputs(text ? text : "", stdout);
        fflush(stdout);
    } else {
        status = remote_failed(name, &answer, &err);
    }
    client_answer_end(&answer);
    return status;
}

static int execute_input(struct client *client, const char *name)
{
    bool prompts = isatty(STDIN_FILENO);
    char line[512];
    int status = EXIT_DONE;
    while (status == EXIT_DONE) {
        if (prompts)
            fputs("(doppel) ", stdout), fflush(stdout);
        if (!fgets(line, sizeof(line), stdin))
            break;
        line[strcspn(line, "\n")] = 0;
        status = execute(client, name, line);
    }
    if (prompts)
        putchar('\n');
    return status;
}

int command_monitor(int argc, char **argv)
{
    struct arguments arguments;
    char line[512] = "";
    int status = arguments_parse(&arguments, COMMAND_monitor, 1, -1, argc, argv);
    if (status >= 0)
        return status;
    for (int i = 1; i < arguments.count; i++)
        snprintf(line + strlen(line), sizeof(line) - strlen(line), "%s%s", i > 1 ? " " : "", arguments.word[i]);
    struct client *client = remote_open(arguments.word[0], 0, &status);
    if (client)
        status = *line ? execute(client, arguments.word[0], line) : execute_input(client, arguments.word[0]);
    client_close(client);
    return status;
}
