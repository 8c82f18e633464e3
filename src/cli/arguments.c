#include "cli/arguments.h"

#include <stdarg.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "cli/exit_status.h"
#include "cli/help.h"

static const struct flag flags[] = {
#define FLAG(command, id, letter, name, argument, text) { COMMAND_##command, letter, name, argument, text },
#include "cli/flags.def"
#undef FLAG
};

const struct flag *flag_at(enum flag_id id)
{
    return &flags[id];
}

static int complain(enum command_id id, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int complain(enum command_id id, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("doppel: ", stderr);
    vfprintf(stderr, format, args);
    fprintf(stderr, "; see 'doppel help %s'\n", command_at(id)->name);
    va_end(args);
    return EXIT_USAGE;
}

/* By "--name", "--name=VALUE" or "-l"; FLAG_COUNT if the command has no such option. */
static enum flag_id find(enum command_id id, const char *text)
{
    for (unsigned i = 0; i < FLAG_COUNT; i++) {
        size_t length = strlen(flags[i].name);
        bool is_long = text[1] == '-' && !strncmp(text + 2, flags[i].name, length) && (!text[2 + length] || text[2 + length] == '=');
        bool is_short = text[1] != '-' && text[1] == flags[i].letter && !text[2];
        if (flags[i].command == id && (is_long || is_short))
            return (enum flag_id)i;
    }
    return FLAG_COUNT;
}

/* One option and its argument, from argv[*at] on. */
static int parse_flag(struct arguments *arguments, enum command_id id, int argc, char **argv, int *at)
{
    const char *text = argv[*at], *value = text[1] == '-' ? strchr(text, '=') : NULL;
    if (!strcmp(text, "--help") || !strcmp(text, "-h")) {
        help_command(stdout, command_at(id));
        return EXIT_DONE;
    }
    enum flag_id flag = find(id, text);
    if (flag == FLAG_COUNT)
        return complain(id, "'doppel %s' has no option '%s'", command_at(id)->name, text);
    if (!flags[flag].argument && value)
        return complain(id, "--%s takes no argument", flags[flag].name);
    if (!flags[flag].argument)
        value = "";
    else if (value)
        value++;
    else if (*at + 1 < argc)
        value = argv[++*at];
    else
        return complain(id, "--%s needs an argument: %s", flags[flag].name, flags[flag].argument);
    arguments->value[flag] = value;
    return -1;
}

int arguments_parse(struct arguments *arguments, enum command_id id, int least, int most, int argc, char **argv)
{
    bool only_words = false;
    *arguments = (struct arguments){ .word = argv + 1 };
    for (int i = 1; i < argc; i++) {
        if (!only_words && !strcmp(argv[i], "--")) {
            only_words = true;
        } else if (!only_words && argv[i][0] == '-' && argv[i][1] && !isdigit((unsigned char)argv[i][1])) {
            int status = parse_flag(arguments, id, argc, argv, &i);
            if (status >= 0)
                return status;
        } else {
            arguments->word[arguments->count++] = argv[i];      /* never ahead of i */
        }
    }
    if (arguments->count < least)
        return complain(id, "'doppel %s' needs %s", command_at(id)->name, command_at(id)->arguments);
    if (most >= 0 && arguments->count > most)
        return complain(id, "'%s' is too much for 'doppel %s'", arguments->word[most], command_at(id)->name);
    return -1;
}
