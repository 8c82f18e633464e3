/* The subcommands, from commands.def. */
#ifndef DOPPEL_CLI_COMMANDS_H
#define DOPPEL_CLI_COMMANDS_H

struct command {
    const char *name, *arguments, *text;
    int (*run)(int argc, char **argv);      /* argv[0] is the command's name; returns the exit status */
};

enum command_id {
#define COMMAND(name, arguments, text) COMMAND_##name,
#include "cli/commands.def"
#undef COMMAND
    COMMAND_COUNT
};

#define COMMAND(name, arguments, text) int command_##name(int argc, char **argv);
#include "cli/commands.def"
#undef COMMAND

/* By name; NULL if there is none: then a sentence with the nearest name was printed. */
const struct command *command_find(const char *name);
const struct command *command_at(enum command_id id);

#endif
