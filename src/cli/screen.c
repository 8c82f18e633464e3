/* The subcommands about the screen and the keyboard: screenshot, sendkey, type, pointer. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/arguments.h"
#include "cli/remote.h"

enum { TYPING_SECONDS = 600 };

/* One PUT with one string in its body. */
static int put_text(const char *name, const char *path, const char *key, const char *text)
{
    struct client_answer answer = { 0 };
    struct error err;
    int status = EXIT_DONE;
    json_t *body = json_pack("{s:s}", key, text);
    if (!body) {
        fprintf(stderr, "doppel: %s: the %s must be UTF-8\n", name, key);
        return EXIT_USAGE;
    }
    struct client *client = remote_open(name, TYPING_SECONDS, &status);
    if (!client) {
        json_decref(body);
        return status;
    }
    if (!client_call(client, "PUT", path, body, -1, &answer, &err))
        status = remote_failed(name, &answer, &err);
    client_answer_end(&answer);
    client_close(client);
    return status;
}

/* The machine's process writes the file; it may work in another directory. */
int command_screenshot(int argc, char **argv)
{
    struct arguments arguments;
    char path[PATH_MAX], folder[PATH_MAX];
    int status = arguments_parse(&arguments, COMMAND_screenshot, 2, 2, argc, argv);
    if (status >= 0)
        return status;
    const char *file = arguments.word[1];
    int used = *file == '/' || !getcwd(folder, sizeof(folder)) ? snprintf(path, sizeof(path), "%s", file)
                                                               : snprintf(path, sizeof(path), "%s/%s", folder, file);
    if (used >= (int)sizeof(path)) {
        fprintf(stderr, "doppel: the name of the picture is too long\n");
        return EXIT_USAGE;
    }
    return put_text(arguments.word[0], "/doppel/v1/screenshot", "path", path);
}

int command_sendkey(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_sendkey, 2, -1, argc, argv);
    for (int i = 1; status < 0 && i < arguments.count; i++) {
        int sent = put_text(arguments.word[0], "/doppel/v1/send-keys", "keys", arguments.word[i]);
        if (sent != EXIT_DONE)
            return sent;
    }
    return status >= 0 ? status : EXIT_DONE;
}

int command_type(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_type, 2, 2, argc, argv);
    return status >= 0 ? status : put_text(arguments.word[0], "/doppel/v1/type", "text", arguments.word[1]);
}

int command_pointer(int argc, char **argv)
{
    struct arguments arguments;
    char action[256] = "";
    int status = arguments_parse(&arguments, COMMAND_pointer, 2, -1, argc, argv);
    if (status >= 0)
        return status;
    for (int i = 1; i < arguments.count; i++) {
        size_t used = strlen(action);
        if (snprintf(action + used, sizeof(action) - used, "%s%s", used ? " " : "", arguments.word[i]) >= (int)(sizeof(action) - used)) {
            fprintf(stderr, "doppel: these are too many actions at once\n");
            return EXIT_USAGE;
        }
    }
    return put_text(arguments.word[0], "/doppel/v1/pointer", "action", action);
}
