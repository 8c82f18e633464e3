/* `doppel monitor`: one command, or each line of standard input, in one session. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/arguments.h"
#include "cli/remote.h"

/* What a machine says that refuses the command is an error's text. */
static int tell(const json_t *answer)
{
    const char *text = json_string_value(json_object_get(answer, "output"));
    bool refused = json_is_true(json_object_get(answer, "refused"));
    FILE *to = refused ? stderr : stdout;
    fputs(text ? text : "", to);
    fflush(to);
    return refused ? EXIT_REFUSED : EXIT_DONE;
}

static int execute(struct client *client, const char *name, const char *line)
{
    struct client_answer answer;
    struct error err;
    int status;
    if (client_call(client, "PUT", "/doppel/v1/monitor", json_pack("{s:s}", "command", line), -1, &answer, &err))
        status = tell(answer.body);
    else
        status = remote_failed(name, &answer, &err);
    client_answer_end(&answer);
    return status;
}

/* After a command that was refused it goes on, as a shell does; the first one's status is that of the session. */
static int execute_input(struct client *client, const char *name)
{
    bool prompts = isatty(STDIN_FILENO);
    char line[512];
    int first = EXIT_DONE, status = EXIT_DONE;
    while (status == EXIT_DONE || status == EXIT_REFUSED) {
        if (prompts)
            fputs("(doppel) ", stdout), fflush(stdout);
        if (!fgets(line, sizeof(line), stdin))
            break;
        line[strcspn(line, "\n")] = 0;
        status = execute(client, name, line);
        first = first ? first : status;
    }
    if (prompts)
        putchar('\n');
    return first;
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
