#include "cli/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/console.h"
#include "cli/options_internal.h"
#include "cli/suggest.h"

static const struct option_row rows[] = {
#define OPTION(id, name, argument, group, text) { name, argument, group, text, option_##id },
#include "cli/options.def"
#undef OPTION
};

bool options_own(struct options *options, char *text, struct error *err)
{
    if (!text || options->owned_count == OPTIONS_STRINGS_MAX) {
        free(text);
        return error_set(err, "there are too many options");
    }
    options->owned[options->owned_count++] = text;
    return true;
}

const struct option_row *option_row(unsigned i)
{
    return i < ARRAY_SIZE(rows) ? &rows[i] : NULL;
}

static const char *name_at(unsigned i)
{
    return i < ARRAY_SIZE(rows) ? rows[i].name : NULL;
}

/* By the name in `text`, which ends at '=' or at the end. */
static const struct option_row *find(const char *text, struct error *err)
{
    char name[64];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, "="), text);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    const char *near = suggest(name, name_at);
    if (near)
        error_set(err, "there is no option '--%s'; did you mean '--%s'?", name, near);
    else
        error_set(err, "there is no option '--%s'; 'doppel help run' lists them", name);
    return NULL;
}

/* One option and its argument, from argv[*at] on. */
static bool parse_one(struct options *options, int argc, char **argv, int *at, struct error *err)
{
    const char *text = argv[*at];
    if (!strcmp(text, "-h"))
        text = "--help";
    if (!strcmp(text, "-d"))
        text = "--detach";
    if (*text != '-' && *text)
        return options_add_file(options, text, err);
    if (strncmp(text, "--", 2) || !text[2])
        return error_set(err, "'%s' is not an option; they begin with two dashes, see 'doppel help run'", text);
    const struct option_row *row = find(text + 2, err);
    if (!row)
        return false;
    const char *value = strchr(text, '=');
    if (!row->argument)
        return value ? error_set(err, "--%s takes no argument", row->name) : row->set(options, NULL, err);
    if (value)
        value++;
    else if (*at + 1 < argc)
        value = argv[++*at];
    else
        return error_set(err, "--%s needs an argument: %s", row->name, row->argument);
    return row->set(options, value, err);
}

static void set_defaults(struct options *options)
{
    *options = (struct options){ 0 };
    machine_config_defaults(&options->config);
    options->config.console = NULL;
}

static bool uses_terminal(const char *chardev)
{
    return chardev && !strcmp(chardev, "stdio");
}

static bool boots_from_net(const struct machine_config *config)
{
    for (unsigned i = 0; i < config->net_count; i++)
        if (config->net[i].boot)
            return true;
    return false;
}

/* What a kernel is started with is of no use to a boot loader from a disk, which starts its own, and the reverse. */
static bool suits_what_is_booted(const struct machine_config *config, struct error *err)
{
    if (!config->kernel && (config->append || config->initrd_count || config->boot != BOOT_AUTO))
        return error_set(err, "--append, --initrd and --boot are for a kernel, which --kernel FILE names; what boots from a disk or CD brings its own");
    return !config->kernel || !config->uefi_variables || error_set(err, "--uefi-variables is for firmware, not for a kernel that --kernel names");
}

/* What depends on several options. */
static bool finish(struct options *options, struct error *err)
{
    struct machine_config *config = &options->config;
    if (!config->console)
        config->console = options->detach || options->serving ? CONSOLE_SHARED : "stdio";
    if (options->detach && (uses_terminal(config->console) || uses_terminal(config->virtio_console) || uses_terminal(config->debug_console)))
        return error_set(err, "a machine in the background (--detach) has no terminal: connect its consoles to something other than stdio");
    if (uses_terminal(config->console) && uses_terminal(config->virtio_console))
        return error_set(err, "the terminal can be one console's only: with --virtio-console stdio say also --console none, pty or file:FILE");
    if (config->vnc && config->no_display)
        return error_set(err, "--vnc needs a display: leave --display none out");
    config->display |= config->vnc != NULL && !options->restoring;
    return true;
}

bool options_parse(struct options *options, int argc, char **argv, struct error *err)
{
    set_defaults(options);
    for (int i = 1; i < argc; i++)
        if (!parse_one(options, argc, argv, &i, err))
            return false;
    if (options->restore_disks || options->restore_verify || options->restore_clone || options->restore_memory)
        return error_set(err, "--disks, --verify, --clone, --copy-memory and --share-memory are for 'doppel restore'");
    for (unsigned i = 0; i < options->config.disk_count; i++)
        options->config.disk[i].image.ephemeral |= options->ephemeral && !options->config.disk[i].image.read_only;
    bool anything = options->config.kernel || options->config.disk_count || options->config.firmware || boots_from_net(&options->config);
    options->serving = options->api_socket && !anything;
    if (!finish(options, err))
        return false;
    if (options->help || options->cpu_help || options->trace_help || options->serving)
        return true;
    if (!anything)
        return error_set(err, "there is nothing to run: name a disk image, or a kernel with --kernel FILE");
    if (!options->config.kernel && !options->config.firmware)
        options->config.firmware = FIRMWARE_BY_DISK;
    return suits_what_is_booted(&options->config, err);
}

static bool is_one_of(const struct option_row *row, const char *const *names)
{
    for (; *names; names++)
        if (!strcmp(row->name, *names))
            return true;
    return false;
}

bool options_for_run(const struct option_row *row) { return strcmp(row->group, "Restoring") != 0; }

bool options_for_restore(const struct option_row *row)
{
    static const char *const names[] = { "engine", "net", "vnc", "console", "virtio-console", "debug-console", "no-reboot", "disks", "clone", "copy-memory", "share-memory", "verify",
                                         "name", "detach", "api-socket", "monitor", "trace", "log", "code-cache", "translation-cache", "counters", "help", NULL };
    return is_one_of(row, names);
}

bool options_for_serve(const struct option_row *row)
{
    static const char *const names[] = { "engine", "cpu", "no-reboot", "name", "detach", "api-socket", "monitor", "trace", "log", "code-cache", "translation-cache", "counters",
                                         "help", NULL };
    return is_one_of(row, names);
}

bool options_parse_restore(struct options *options, int argc, char **argv, struct error *err)
{
    set_defaults(options);
    options->restoring = true;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-' && !options->restore) {
            options->restore = argv[i];
            continue;
        }
        const struct option_row *row = strncmp(argv[i], "--", 2) ? NULL : find(argv[i] + 2, err);
        if (row && !options_for_restore(row))
            return error_set(err, "--%s cannot be changed: the snapshot says what the machine is made of", row->name);
        if (!parse_one(options, argc, argv, &i, err))
            return false;
    }
    return (options->restore || options->help || error_set(err, "say which snapshot to restore: its directory")) && finish(options, err);
}

bool options_parse_serve(struct options *options, int argc, char **argv, struct error *err)
{
    set_defaults(options);
    options->serving = true;
    for (int i = 1; i < argc; i++) {
        const struct option_row *row = strncmp(argv[i], "--", 2) ? NULL : find(argv[i] + 2, err);
        if (row && !options_for_serve(row))
            return error_set(err, "--%s is for 'doppel run'; here, vm.create says what the machine is made of", row->name);
        if (!parse_one(options, argc, argv, &i, err))
            return false;
    }
    return finish(options, err);
}

void options_free(struct options *options)
{
    for (unsigned i = 0; i < options->owned_count; i++)
        free(options->owned[i]);
    options->owned_count = 0;
}
