#include "cli/snapshot_take.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/arguments.h"
#include "cli/remote.h"

/* The directory is made by the machine's process, which has another working directory. False: ours has no name, or it is too long. */
static bool make_absolute(const char *path, char absolute[PATH_MAX])
{
    size_t length = 0;
    if (*path != '/') {
        if (!getcwd(absolute, PATH_MAX - 1))
            return false;
        length = strlen(absolute);
        absolute[length++] = '/';
    }
    size_t used = strlen(path);
    while (used > 1 && path[used - 1] == '/')       /* it need not be there yet, so this is no name of its own */
        used--;
    return (size_t)snprintf(absolute + length, PATH_MAX - length, "%.*s", (int)used, path) < PATH_MAX - length;
}

static json_t *request(const struct arguments *arguments)
{
    char directory[PATH_MAX], parent[PATH_MAX], disks[PATH_MAX];
    const char *base = arguments->value[FLAG_snapshot_parent], *overlays = arguments->value[FLAG_snapshot_disks];
    if (!make_absolute(arguments->word[1], directory) || (base && !make_absolute(base, parent)) ||
        (overlays && !make_absolute(overlays, disks)))
        return NULL;
    json_t *body = json_pack("{s:s, s:b}", "directory", directory, "compress", arguments->value[FLAG_snapshot_compress] != NULL);
    if (base)
        json_object_set_new(body, "parent", json_string(parent));
    if (overlays)
        json_object_set_new(body, "disks", json_string(disks));
    return body;
}

int snapshot_take(int argc, char **argv)
{
    struct arguments arguments;
    struct client_answer answer = { 0 };
    struct error err;
    int status = arguments_parse(&arguments, COMMAND_snapshot, 2, 2, argc, argv);
    if (status >= 0)
        return status;
    json_t *body = request(&arguments);
    if (!body) {
        fprintf(stderr, "doppel: cannot make an absolute path of %s\n", arguments.word[1]);
        return EXIT_USAGE;
    }
    struct client *client = remote_open(arguments.word[0], 0, &status);
    if (!client)
        json_decref(body);
    else
        status = client_call(client, "PUT", "/doppel/v1/snapshot", body, -1, &answer, &err)
                     ? EXIT_DONE : remote_failed(arguments.word[0], &answer, &err);
    client_answer_end(&answer);
    client_close(client);
    return status;
}
