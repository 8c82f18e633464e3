/* Completion for bash: commands, options, names of machines, and the words or files that an option's argument may be. */
#include <stdbool.h>
#include <string.h>

#include "cli/arguments.h"
#include "cli/help.h"
#include "cli/options.h"

/* The words between bars, without what follows a bracket; those in capitals stand for something else. */
static void print_words(FILE *out, const char *argument)
{
    while (*argument) {
        size_t length = strcspn(argument, "|"), word = strcspn(argument, "|[");
        bool placeholder = *argument >= 'A' && *argument <= 'Z';
        size_t fixed = strcspn(argument, "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        if (!placeholder)
            fprintf(out, "%.*s ", (int)(fixed < word ? fixed : word), argument);
        argument += length + (argument[length] == '|');
    }
}

static void print_case(FILE *out, const struct option_row *row)
{
    fprintf(out, "    --%s) COMPREPLY=(", row->name);
    if (!strncmp(row->argument, "FILE", 4))
        fputs("$(compgen -f -- \"$word\")", out);
    else {
        fputs("$(compgen -W '", out);
        print_words(out, row->argument);
        fputs("' -- \"$word\")", out);
    }
    fputs("); return ;;\n", out);
}

/* Options of a command, and the names of machines where it takes one. */
static void print_command(FILE *out, const struct command *command)
{
    fprintf(out, "    %s) words='", command->name);
    for (unsigned i = 0; i < FLAG_COUNT; i++)
        if (command == command_at(flag_at(i)->command))
            fprintf(out, "--%s ", flag_at(i)->name);
    fputs("'", out);
    if (!strncmp(command->arguments, "NAME", 4))
        fputs("\n      [[ $word == -* ]] || words=$(\"${COMP_WORDS[0]}\" ps --names 2>/dev/null)", out);
    fputs(" ;;\n", out);
}

void help_bash_completion(FILE *out)
{
    const struct option_row *row;
    fputs("# bash completion for doppel\n_doppel() {\n  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
          "  if [ \"$COMP_CWORD\" = 1 ] || [ \"$before\" = help ]; then\n    COMPREPLY=($(compgen -W '", out);
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "%s ", command_at(i)->name);
    fputs("' -- \"$word\")); return\n  fi\n  if [ \"${COMP_WORDS[1]}\" != run ]; then\n    local words=\n    case ${COMP_WORDS[1]} in\n", out);
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        print_command(out, command_at(i));
    fputs("    esac\n    COMPREPLY=($(compgen -W \"$words\" -- \"$word\")); return\n  fi\n  case $before in\n", out);
    for (unsigned i = 0; (row = option_row(i)); i++)
        if (row->argument)
            print_case(out, row);
    fputs("  esac\n  COMPREPLY=($(compgen -W '", out);
    for (unsigned i = 0; (row = option_row(i)); i++)
        fprintf(out, "--%s ", row->name);
    fputs("' -- \"$word\"))\n}\ncomplete -o filenames -F _doppel doppel\n", out);
}
