/* `doppel run`, `doppel restore` and `doppel serve`: options, or lists that options can ask for; the rest is process.c. */
#include <stdio.h>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/process.h"
#include "cli/seed.h"
#include "x86/x86.h"

static void print_model(const char *name, const char *text, void *out)
{
    fprintf(out, "  %-16s %s\n", name, text);
}

static int print_lists(const struct options *options)
{
    if (options->help && options->restoring)
        help_restore(stdout);
    else if (options->help && options->serving)
        help_serve(stdout);
    else if (options->help)
        help_run(stdout);
    if (options->cpu_help)
        x86_model_list(print_model, stdout);
    for (unsigned i = 0; options->trace_help && i < TRACE_COUNT; i++)
        print_model(trace_name((enum trace_point)i), trace_text((enum trace_point)i), stdout);
    return EXIT_DONE;
}

static int run_command(int argc, char **argv, bool (*parse)(struct options *, int, char **, struct error *))
{
    struct options options;
    struct error err;
    int status = EXIT_USAGE;
    if (!parse(&options, argc, argv, &err))
        fprintf(stderr, "doppel: %s\n", err.text);
    else if (options.help || options.cpu_help || options.trace_help)
        status = print_lists(&options);
    else if (!seed_add(&options, &err))
        fprintf(stderr, "doppel: %s\n", err.text);
    else
        status = process_run(&options);
    options_free(&options);
    return status;
}

int command_run(int argc, char **argv) { return run_command(argc, argv, options_parse); }

int command_restore(int argc, char **argv) { return run_command(argc, argv, options_parse_restore); }

int command_serve(int argc, char **argv) { return run_command(argc, argv, options_parse_serve); }
