#include "cli/commands.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/suggest.h"

static const struct command commands[COMMAND_COUNT] = {
#define COMMAND(name, arguments, text) [COMMAND_##name] = { #name, arguments, text, command_##name },
#include "cli/commands.def"
#undef COMMAND
};

static const char *name_at(unsigned i)
{
    return i < COMMAND_COUNT ? commands[i].name : NULL;
}

const struct command *command_at(enum command_id id)
{
    return &commands[id];
}

const struct command *command_find(const char *name)
{
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(commands[i].name, name))
            return &commands[i];
    const char *near = suggest(name, name_at);
    if (access(name, F_OK) == 0)
        fprintf(stderr, "doppel: there is no command '%s'; 'doppel run %s' starts a machine from that file\n", name, name);
    else if (near)
        fprintf(stderr, "doppel: there is no command '%s'; did you mean '%s'?\n", name, near);
    else
        fprintf(stderr, "doppel: there is no command '%s'; 'doppel help' lists them\n", name);
    return NULL;
}
