/* The command lines of all subcommands but run: words, and options by the table flags.def. */
#ifndef DOPPEL_CLI_ARGUMENTS_H
#define DOPPEL_CLI_ARGUMENTS_H

#include "cli/commands.h"

enum flag_id {
#define FLAG(command, id, letter, name, argument, text) FLAG_##command##_##id,
#include "cli/flags.def"
#undef FLAG
    FLAG_COUNT
};

struct flag {
    enum command_id command;
    char letter;
    const char *name, *argument, *text;
};

/* The table's rows. */
const struct flag *flag_at(enum flag_id id);

struct arguments {
    char **word;                        /* those of argv that are no options, in order */
    int count;
    const char *value[FLAG_COUNT];      /* by FLAG_COMMAND_ID: NULL if not given, "" if it takes no argument */
};

/*
 * Reads what follows argv[0]; there must be `least` to `most` words (most -1: any number). Negative: go on; otherwise the command is
 * over, with that exit status: help or a complaint was printed.
 */
int arguments_parse(struct arguments *arguments, enum command_id id, int least, int most, int argc, char **argv);

#endif
