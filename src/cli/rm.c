/* `doppel rm`: what machines that have ended leave behind. */
#include <stdio.h>

#include "api/instance.h"
#include "cli/arguments.h"
#include "cli/remote.h"
#include "cli/stop.h"

static int remove_one(const char *name, bool force)
{
    struct instance_status status;
    struct error err;
    if (force && instance_look(name, &status) && status.state == INSTANCE_RUNS) {
        int ended = stop_forced(name);
        if (ended != EXIT_DONE)
            return ended;
        if (!instance_look(name, &status))
            return EXIT_DONE;           /* it had no name of its own, and took its directory along */
    }
    if (!instance_look(name, &status)) {
        error_set(&err, "there is no such machine; 'doppel ps' lists them");
        return remote_complain(name, &err, EXIT_NO_MACHINE);
    }
    if (status.state == INSTANCE_RUNS) {
        error_set(&err, "it runs; stop it first, or use --force");
        return remote_complain(name, &err, EXIT_REFUSED);
    }
    return instance_remove(name, &err) ? EXIT_DONE : remote_complain(name, &err, EXIT_REFUSED);
}

static void remove_idle(const struct instance_status *status, void *owner)
{
    int *first = owner;
    int result = status->state == INSTANCE_RUNS ? EXIT_DONE : remove_one(status->name, false);
    *first = *first ? *first : result;
}

int command_rm(int argc, char **argv)
{
    struct arguments arguments;
    struct error err;
    int status = arguments_parse(&arguments, COMMAND_rm, 0, -1, argc, argv), first = EXIT_DONE;
    if (status >= 0)
        return status;
    bool all = arguments.value[FLAG_rm_all];
    if (all == (arguments.count > 0)) {
        fprintf(stderr, "doppel: 'doppel rm' needs names, or --all\n");
        return EXIT_USAGE;
    }
    if (all && !instance_list(remove_idle, &first, &err)) {
        fprintf(stderr, "doppel: %s\n", err.text);
        return EXIT_HOST_ERROR;
    }
    for (int i = 0; i < arguments.count; i++) {
        status = remove_one(arguments.word[i], arguments.value[FLAG_rm_force]);
        first = first ? first : status;
    }
    return first;
}
