/* doppel COMMAND [OPTION]... */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/help.h"

int main(int argc, char **argv)
{
    if (argc < 2) {
        help_overview(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h"))
        name = "help";
    if (!strcmp(name, "--version"))
        name = "version";
    const struct command *command = command_find(name);
    return command ? command->run(argc - 1, argv + 1) : EXIT_USAGE;
}
