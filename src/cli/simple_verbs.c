/* The subcommands that are one request: pause, resume, reset. */
#include "cli/arguments.h"
#include "cli/remote.h"

static int put_each(enum command_id id, const char *path, int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, id, 1, -1, argc, argv);
    return status >= 0 ? status : remote_put_each(arguments.word, arguments.count, path);
}

int command_pause(int argc, char **argv)
{
    return put_each(COMMAND_pause, "/api/v1/vm.pause", argc, argv);
}

int command_resume(int argc, char **argv)
{
    return put_each(COMMAND_resume, "/api/v1/vm.resume", argc, argv);
}

int command_reset(int argc, char **argv)
{
    return put_each(COMMAND_reset, "/api/v1/vm.reboot", argc, argv);
}
