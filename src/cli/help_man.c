/* The man page doppel(1), in the man macros of roff. */
#include "cli/arguments.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/options.h"
#include "base/version.h"

/* A dash is a minus sign, and a backslash or a leading dot is itself. */
static void print_roff(FILE *out, const char *text)
{
    if (*text == '.' || *text == '\'')
        fputs("\\&", out);
    for (; *text; text++) {
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
    }
}

static void print_item(FILE *out, const char *tag, const char *argument, const char *text)
{
    fputs(".TP\n\\fB", out);
    print_roff(out, tag);
    fputs("\\fR", out);
    if (argument) {
        fputs(" \\fI", out);
        print_roff(out, argument);
        fputs("\\fR", out);
    }
    fputc('\n', out);
    print_roff(out, text);
    fputc('\n', out);
}

static void print_command(FILE *out, const struct command *command)
{
    char tag[64];
    print_item(out, command->name, *command->arguments ? command->arguments : NULL, command->text);
    for (unsigned i = 0; i < FLAG_COUNT; i++) {
        const struct flag *flag = flag_at(i);
        if (command != command_at(flag->command))
            continue;
        snprintf(tag, sizeof(tag), flag->letter ? "--%s, -%c" : "--%s", flag->name, flag->letter);
        fputs(".RS\n", out);
        print_item(out, tag, flag->argument, flag->text);
        fputs(".RE\n", out);
    }
}

void help_man(FILE *out)
{
    const struct option_row *row;
    char tag[64];
    fprintf(out, ".TH DOPPEL 1 \"\" \"doppel %s\" \"User Commands\"\n", DOPPEL_VERSION);
    fputs(".SH NAME\ndoppel \\- run virtual machines, with or without hardware support\n"
          ".SH SYNOPSIS\n.B doppel\n.I COMMAND\n.RI [ OPTION ]...\n"
          ".SH DESCRIPTION\n"
          "Doppel runs unmodified x86 operating systems. It needs no privileges and no support from the host's kernel: it carries out the guest's "
          "instructions itself, and its devices are those of a modern PC. Where the host's KVM is fast, that is used.\n"
          ".SH COMMANDS\n", out);
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        print_command(out, command_at(i));
    fputs(".SH OPTIONS OF RUN\n", out);
    for (unsigned i = 0; (row = option_row(i)); i++) {
        snprintf(tag, sizeof(tag), "--%s", row->name);
        print_item(out, tag, row->argument, row->text);
    }
    fputs(".SH KEYS\nOn a terminal console:\n", out);
    print_item(out, "Ctrl-A x", NULL, "quit");
    print_item(out, "Ctrl-A c", NULL, "open or close the monitor; its command 'help' lists the others");
    print_item(out, "Ctrl-A a", NULL, "send a Ctrl-A to the guest");
    fputs(".SH EXIT STATUS\n", out);
#define EXIT_STATUS(name, value, when) print_item(out, #value, NULL, when);
#include "cli/exit_status.def"
#undef EXIT_STATUS
    print_item(out, "odd", NULL, "the guest wrote V to the debug-exit port: (V << 1) | 1");
    fputs(".SH EXAMPLES\n.nf\n", out);
    print_roff(out, "doppel run disk.img\ndoppel run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --disk disk.img --net user\n");
    fputs(".fi\n", out);
}
