/* `doppel run`, `doppel restore` and `doppel serve`: options, or lists that options can ask for; the rest is process.c. */
#include <ctype.h>
#include <stdio.h>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/process.h"
#include "cli/seed.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

static void print_model(const char *name, const char *text, void *out)
{
    fprintf(out, "  %-16s %s\n", name, text);
}

/* As it is written on the command line. */
static void print_vmx_feature(const char *name, void *out)
{
    fputs("  vmx-", out);
    for (; *name; name++)
        fputc(*name == '_' ? '-' : tolower((unsigned char)*name), out);
    fputc('\n', out);
}

static void print_cpu_help(FILE *out)
{
    x86_model_list(print_model, out);
    fprintf(out, "\nFeatures of VT-x, which vmx=on offers all; NAME=off switches one off, and what needs it. NAME=off@N does so on processor N\n"
            "alone, so that a hypervisor can be seen to notice; vmx-lowest-common behind that has all offer what each does:\n");
    vmx_list_features(print_vmx_feature, out);
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
        print_cpu_help(stdout);
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
