/* `doppel snapshot`: looks into snapshots that are there, or takes one (snapshot_take.c). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/instance.h"
#include "base/base.h"
#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/snapshot_take.h"
#include "cli/suggest.h"
#include "machine/snapshot_inspect.h"

/* argv[0] is the first argument. Returns the exit status. */
struct subcommand {
    const char *name, *arguments, *text;
    int least, most;
    int (*run)(int argc, char **argv);
};

static int finish(bool ok, const struct error *err)
{
    if (ok)
        return EXIT_DONE;
    fprintf(stderr, "doppel: %s\n", err->text);
    return EXIT_USAGE;
}

static int show(int argc, char **argv)
{
    struct error err;
    return finish(snapshot_show(argv[0], argc > 1 ? argv[1] : NULL, stdout, &err), &err);
}

static int list(int argc, char **argv)
{
    struct error err;
    return finish(snapshot_list(argv[0], stdout, &err), &err);
}

/* As diff(1): 1 where there are differences. */
static int diff(int argc, char **argv)
{
    struct error err;
    uint64_t differences;
    int status = finish(snapshot_diff(argv[0], argv[1], &differences, stdout, &err), &err);
    if (status == EXIT_DONE && !differences)
        puts("no differences");
    return status == EXIT_DONE && differences ? 1 : status;
}

static int check(int argc, char **argv)
{
    struct error err;
    int status = finish(snapshot_check(argv[0], &err), &err);
    if (status == EXIT_DONE)
        puts("every checksum matches");
    return status;
}

static int flatten(int argc, char **argv)
{
    struct error err;
    return finish(snapshot_flatten(argv[0], argv[1], &err), &err);
}

static const struct subcommand subcommands[] = {
    { "show", "DIRECTORY [SECTION]", "what a snapshot is made of; with SECTION (a pattern such as 'vcpu/*') its fields", 1, 2, show },
    { "list", "DIRECTORY", "the snapshot and those that it is based on", 1, 1, list },
    { "diff", "DIRECTORY DIRECTORY", "the differences of configuration, registers, devices and memory; status 1 if there are any", 2, 2, diff },
    { "check", "DIRECTORY", "compares all of it with its checksums", 1, 1, check },
    { "flatten", "DIRECTORY NEW", "makes a full snapshot of a differential one and those that it is based on", 2, 2, flatten },
};

static const char *name_at(unsigned i)
{
    return i < ARRAY_SIZE(subcommands) ? subcommands[i].name : NULL;
}

void help_snapshot(FILE *out)
{
    help_command(out, command_at(COMMAND_snapshot));
    fputs("\nusage: doppel snapshot WHAT DIRECTORY...\n\n", out);
    for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++)
        fprintf(out, "  %s %s\n      %s\n", subcommands[i].name, subcommands[i].arguments, subcommands[i].text);
}

int command_snapshot(int argc, char **argv)
{
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        help_snapshot(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_USAGE : EXIT_DONE;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++) {
        const struct subcommand *subcommand = &subcommands[i];
        if (strcmp(subcommand->name, argv[1]))
            continue;
        if (argc - 2 >= subcommand->least && argc - 2 <= subcommand->most)
            return subcommand->run(argc - 2, argv + 2);
        fprintf(stderr, "doppel: usage: doppel snapshot %s %s\n", subcommand->name, subcommand->arguments);
        return EXIT_USAGE;
    }
    struct instance_status status;
    const char *near = *argv[1] == '-' || instance_look(argv[1], &status) ? NULL : suggest(argv[1], name_at);
    if (!near)
        return snapshot_take(argc, argv);
    fprintf(stderr, "doppel: 'snapshot' does not know '%s'; did you mean '%s'?\n", argv[1], near);
    return EXIT_USAGE;
}
