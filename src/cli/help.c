/* `doppel help [COMMAND]`; --man and --completion bash are for the build, which installs what they print. */
#include "cli/help.h"

#include <stdbool.h>
#include <string.h>

#include "base/base.h"
#include "cli/arguments.h"
#include "cli/exit_status.h"
#include "cli/options.h"

static const char examples[] = "  doppel run disk.img                                       # a system's disk, or a CD: FILE.iso\n"
                               "  doppel run --kernel vmlinuz --initrd initrd.img           # a kernel, with its console here\n"
                               "  doppel run -d --name web --memory 1G --net user disk.img  # in the background: doppel ps, console, stop\n";

void help_overview(FILE *out)
{
    int width = 0;
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        width = (int)max_u64((uint64_t)width, strlen(command_at(i)->name));
    fputs("usage: doppel COMMAND [OPTION]...\n\n", out);
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-*s  %s\n", width, command_at(i)->name, command_at(i)->text);
    fprintf(out, "\n'doppel help COMMAND' tells more of each. A first try:\n%s", examples);
}

enum { INDENT = 6, WIDTH = 100 };

/* Prints the text with line breaks after at most `width` columns, each further line indented. */
static void print_wrapped(FILE *out, const char *text, unsigned indent, unsigned width)
{
    unsigned column = indent;
    while (*text) {
        unsigned word = (unsigned)strcspn(text, " ");
        if (column > indent && column + 1 + word > width) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, word, out);
        column += word;
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

void help_command(FILE *out, const struct command *command)
{
    bool headed = false;
    fprintf(out, "usage: doppel %s%s%s\n\n", command->name, *command->arguments ? " " : "", command->arguments);
    print_wrapped(out, command->text, 0, WIDTH);
    for (unsigned i = 0; i < FLAG_COUNT; i++) {
        const struct flag *flag = flag_at(i);
        if (command != command_at(flag->command))
            continue;
        fprintf(out, "%s  --%s%s%s", headed ? "" : "\n", flag->name, flag->argument ? " " : "", flag->argument ? flag->argument : "");
        if (flag->letter)
            fprintf(out, ", -%c", flag->letter);
        fprintf(out, "\n%*s", INDENT, "");
        print_wrapped(out, flag->text, INDENT, WIDTH);
        headed = true;
    }
}

static void print_options(FILE *out, bool (*wanted)(const struct option_row *row))
{
    const char *group = "";
    const struct option_row *row;
    for (unsigned i = 0; (row = option_row(i)); i++) {
        if (wanted && !wanted(row))
            continue;
        if (strcmp(group, row->group))
            fprintf(out, "\n%s\n", row->group);
        group = row->group;
        fprintf(out, "  --%s%s%s\n%*s", row->name, row->argument ? " " : "", row->argument ? row->argument : "", INDENT, "");
        print_wrapped(out, row->text, INDENT, WIDTH);
    }
}

void help_restore(FILE *out)
{
    fputs("usage: doppel restore DIRECTORY [OPTION]...\n\n"
          "Starts the machine that a snapshot holds, where it was. The snapshot stays as it is and can be restored again; see docs/snapshots.md.\n",
          out);
    print_options(out, options_for_restore);
}

void help_serve(FILE *out)
{
    fputs("usage: doppel serve [OPTION]...\n\n"
          "Waits for a virtual machine to be created and booted through the control socket; see docs/api.md.\n", out);
    print_options(out, options_for_serve);
}

void help_run(FILE *out)
{
    fprintf(out, "usage: doppel run [OPTION]... [FILE]...\n\n"
                 "Starts a virtual machine from disk images and CDs, FILE..., or from a kernel, --kernel FILE, and ends with it.\n%s", examples);
    print_options(out, options_for_run);
    fputs("\nKeys on the terminal\n  Ctrl-A x quits, Ctrl-A c opens and closes the monitor, Ctrl-A a sends a Ctrl-A\n"
          "\nExit status\n", out);
#define EXIT_STATUS(name, value, when) fprintf(out, "  %4d  ", value), print_wrapped(out, when, 8, WIDTH);
#include "cli/exit_status.def"
#undef EXIT_STATUS
    fputs("   odd  ", out);
    print_wrapped(out, "the guest wrote V to the debug-exit port: (V << 1) | 1", 8, WIDTH);
}

int command_help(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--man"))
        help_man(stdout);
    else if (argc > 2 && !strcmp(argv[1], "--completion") && !strcmp(argv[2], "bash"))
        help_bash_completion(stdout);
    else if (argc > 1) {
        const struct command *command = command_find(argv[1]);
        if (!command)
            return EXIT_USAGE;
        if (command == command_at(COMMAND_run))
            help_run(stdout);
        else if (command == command_at(COMMAND_restore))
            help_restore(stdout);
        else if (command == command_at(COMMAND_snapshot))
            help_snapshot(stdout);
        else if (command == command_at(COMMAND_serve))
            help_serve(stdout);
        else
            help_command(stdout, command);
    } else {
        help_overview(stdout);
    }
    return EXIT_DONE;
}
