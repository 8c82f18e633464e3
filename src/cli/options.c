#include "cli/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/console.h"
#include "backend/block.h"
#include "backend/vnc.h"
#include "cli/size.h"
#include "cli/suggest.h"
#include "machine/layout.h"

/* --- helpers --- */

bool options_own(struct options *options, char *text, struct error *err)
{
    if (!text || options->owned_count == OPTIONS_STRINGS_MAX) {
        free(text);
        return error_set(err, "there are too many options");
    }
    options->owned[options->owned_count++] = text;
    return true;
}

/*
 * Cuts the text at single commas, in place, and makes one comma of two. Returns the rest after the first part, or NULL. To
 * be called again with that.
 */
static char *cut_at_comma(char *text)
{
    char *to = text;
    for (char *from = text; *from; from++) {
        if (*from == ',' && from[1] != ',') {
            *to = 0;
            return from + 1;
        }
        from += *from == ',';
        *to++ = *from;
    }
    *to = 0;
    return NULL;
}

/* The text after "key=", or NULL if part is something else. */
static char *value_of(char *part, const char *key)
{
    size_t length = strlen(key);
    return !strncmp(part, key, length) && part[length] == '=' ? part + length + 1 : NULL;
}

/* The beginning of every text for a character backend. */
static bool check_chardev(const char *value, bool stdio, struct error *err)
{
    if ((stdio && !strcmp(value, "stdio")) || !strcmp(value, "pty") || !strcmp(value, "none") ||
        (!strncmp(value, "file:", 5) && value[5]) || (!strncmp(value, "socket:", 7) && value[7]) ||
        (!strncmp(value, "fd:", 3) && value[3]))
        return true;
    return error_set(err, "'%s' is not something to connect to; there are %spty, file:FILE, socket:FILE, fd:N and none", value,
                     stdio ? "stdio, " : "");
}

/* --- one handler for each row of options.def --- */

static bool option_memory(struct options *options, const char *value, struct error *err)
{
    const uint64_t most = LOW_RAM_MAX_BASE + (PCI_MMIO64_BASE - HIGH_RAM_BASE);
    if (!size_parse(value, &options->config.memory))
        return error_set(err, "'%s' is not a memory size; write a number with K, M, G or T, such as 512M", value);
    if (options->config.memory < MiB)
        return error_set(err, "a machine has at least 1M of memory, not %s", value);
    if (options->config.memory > most)
        return error_set(err, "a machine has at most %lluG of memory, not %s", (unsigned long long)(most / GiB), value);
    if (options->config.memory & PAGE_MASK)
        return error_set(err, "the memory size must be a multiple of 4K");
    return true;
}

static bool option_cpus(struct options *options, const char *value, struct error *err)
{
    uint64_t count;
    if (!number_parse(value, MACHINE_CPUS_MAX, &count) || !count)
        return error_set(err, "--cpus %s: a machine has 1 to %d processors", value, MACHINE_CPUS_MAX);
    options->config.cpus = (unsigned)count;
    return true;
}

static bool option_cpu(struct options *options, const char *value, struct error *err)
{
    options->cpu_help = !strcmp(value, "help");
    options->config.cpu_model = value;
    return true;
}

static bool option_engine(struct options *options, const char *value, struct error *err)
{
    options->config.engine = value;
    return true;
}

static bool option_clock(struct options *options, const char *value, struct error *err)
{
    enum { DEFAULT_RATE = 1000, MOST = 100000 };
    uint64_t *rate = &options->config.clock_instructions;
    *rate = 0;
    if (!strcmp(value, "host"))
        return true;
    if (!strcmp(value, "instructions"))
        *rate = DEFAULT_RATE;
    else if (strncmp(value, "instructions=", 13) || !number_parse(value + 13, MOST, rate) || !*rate)
        return error_set(err, "'%s' is not a clock; there are host, instructions and instructions=N with N from 1 to %d", value, MOST);
    options->config.rng = false;
    return true;
}

static bool option_firmware(struct options *options, const char *value, struct error *err)
{
    options->config.firmware = value;
    return true;
}

static bool option_uefi_variables(struct options *options, const char *value, struct error *err)
{
    options->config.uefi_variables = value;
    return true;
}

static bool option_boot(struct options *options, const char *value, struct error *err)
{
    static const char *const methods[] = { [BOOT_AUTO] = "auto", [BOOT_LINUX] = "linux", [BOOT_PVH] = "pvh",
                                           [BOOT_MULTIBOOT] = "multiboot" };
    for (unsigned i = 0; i < ARRAY_SIZE(methods); i++)
        if (!strcmp(value, methods[i])) {
            options->config.boot = (enum boot_method)i;
            return true;
        }
    options->config.boot = BOOT_FLAT;
    if (!strncmp(value, "flat=", 5) && number_parse(value + 5, UINT32_MAX, &options->config.flat_address))
        return true;
    return error_set(err, "'%s' is not a way to boot; there are auto, linux, pvh, multiboot and flat=ADDRESS", value);
}

static bool option_kernel(struct options *options, const char *value, struct error *err)
{
    options->config.kernel = value;
    return true;
}

static bool option_initrd(struct options *options, const char *value, struct error *err)
{
    if (options->config.initrd_count == MACHINE_INITRDS_MAX)
        return error_set(err, "a machine takes at most %d initrds", MACHINE_INITRDS_MAX);
    options->config.initrd[options->config.initrd_count++] = value;
    return true;
}

static bool option_append(struct options *options, const char *value, struct error *err)
{
    options->config.append = value;
    return true;
}

static bool disk_bus(struct disk_config *disk, const char *value, struct error *err)
{
    return (disk_bus_parse(value, &disk->bus) && disk->bus != DISK_CDROM) ||
           error_set(err, "a disk cannot be put on '%s'; there are virtio, ahci, nvme and usb (and --cdrom)", value);
}

static bool disk_part(struct disk_config *disk, char *part, struct error *err)
{
    const char *value;
    if (!strcmp(part, "ro"))
        disk->image.read_only = true;
    else if (!strcmp(part, "direct"))
        disk->image.direct = true;
    else if (!strcmp(part, "ephemeral"))
        disk->image.ephemeral = true;
    else if (!strcmp(part, "backing=on") || !strcmp(part, "backing=off"))
        disk->image.backing = !strcmp(part, "backing=on");
    else if ((value = value_of(part, "format")) && disk_format_parse(value, &disk->image.format))
        return true;
    else if (value)
        return error_set(err, "'%s' is not a format of a disk image; there are raw and qcow2", value);
    else if ((value = value_of(part, "serial")))
        disk->serial = value;
    else if ((value = value_of(part, "bus")))
        return disk_bus(disk, value, err);
    else if ((value = value_of(part, "engine")) && !strcmp(value, "uring"))
        disk->engine = BLOCK_ENGINE_URING;
    else if (value && !strcmp(value, "threads"))
        disk->engine = BLOCK_ENGINE_THREADS;
    else
        return error_set(err, "'%s' is not a setting of a disk; there are ro, format=raw|qcow2, backing=on, ephemeral, serial=TEXT, "
                              "bus=virtio|ahci|nvme|usb, direct and engine=uring|threads (a comma in a file name is written twice)", part);
    return true;
}

static bool state_log_part(struct state_log_config *config, char *part, struct error *err)
{
    static const struct { const char *key; size_t offset; } numbers[] = {
        { "every", offsetof(struct state_log_config, every) }, { "from", offsetof(struct state_log_config, from) },
        { "to", offsetof(struct state_log_config, to) }, { "memory", offsetof(struct state_log_config, memory) },
    };
    if (!strcmp(part, "registers")) {
        config->registers = true;
        return true;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
        const char *value = value_of(part, numbers[i].key);
        if (value && number_parse(value, INT64_MAX, (uint64_t *)((char *)config + numbers[i].offset)))
            return true;
    }
    return error_set(err, "'%s' is not a setting of a state log; there are every, from, to and memory, each with =NUMBER, "
                          "and registers", part);
}

static bool option_state_log(struct options *options, const char *value, struct error *err)
{
    char *text = strdup(value);
    if (!options_own(options, text, err))
        return false;
    char *part = cut_at_comma(text);
    options->config.state_log = (struct state_log_config){ .path = text };
    while (part) {
        char *next = cut_at_comma(part);
        if (!state_log_part(&options->config.state_log, part, err))
            return false;
        part = next;
    }
    return *text || error_set(err, "--state-log needs the name of a file");
}

/* A disk whose name is the whole text. */
static bool add_disk(struct options *options, const char *path, struct error *err)
{
    if (options->config.disk_count == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks", MACHINE_DISKS_MAX);
    options->config.disk[options->config.disk_count++] = (struct disk_config){ .path = path };
    return true;
}

/* The CD's own mark tells it from a disk (ECMA-119 §8.1 "Format of a volume descriptor"): in its 17th block. */
static bool is_cd(const char *path)
{
    enum { DESCRIPTOR = 16 * 2048, MARK = 1, MARK_SIZE = 5 };
    char mark[MARK_SIZE] = "";
    FILE *file = fopen(path, "rbe");
    if (!file)
        return false;
    bool read = fseek(file, DESCRIPTOR + MARK, SEEK_SET) == 0 && fread(mark, sizeof(mark), 1, file) == 1;
    fclose(file);
    return read && !memcmp(mark, "CD001", MARK_SIZE);
}

static bool option_cdrom(struct options *options, const char *value, struct error *err)
{
    if (!add_disk(options, strcmp(value, "none") ? value : NULL, err))
        return false;
    struct disk_config *disk = &options->config.disk[options->config.disk_count - 1];
    disk->bus = DISK_CDROM;
    disk->image.read_only = true;
    return true;
}

/* The argument that is no option. */
static bool add_file(struct options *options, const char *path, struct error *err)
{
    return is_cd(path) ? option_cdrom(options, path, err) : add_disk(options, path, err);
}

static bool option_disk(struct options *options, const char *value, struct error *err)
{
    if (options->config.disk_count == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks", MACHINE_DISKS_MAX);
    char *text = strdup(value);
    if (!options_own(options, text, err))
        return false;
    struct disk_config *disk = &options->config.disk[options->config.disk_count++];
    char *part = cut_at_comma(text);
    disk->path = text;
    while (part) {
        char *next = cut_at_comma(part);
        if (!disk_part(disk, part, err))
            return false;
        part = next;
    }
    return *disk->path || error_set(err, "--disk needs the name of an image");
}

static bool option_user_data(struct options *options, const char *value, struct error *err)
{
    options->user_data = value;
    return true;
}

static bool option_ssh_key(struct options *options, const char *value, struct error *err)
{
    options->ssh_key = value;
    return true;
}

static bool option_ephemeral(struct options *options, const char *value, struct error *err)
{
    options->ephemeral = true;
    return true;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
    int used = 0;
    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5],
                  &used) == 6 && !text[used] && !(mac[0] & 1);
}

/* Takes the value of ",NAME=" out of the text, if that is there; the rest is the backend's. False: there is none. */
static bool take_part(char *text, const char *name, char *value, size_t size)
{
    char *part = text;
    size_t length = strlen(name);
    while ((part = strchr(part, ',')) && (strncmp(part + 1, name, length) || part[1 + length] != '='))
        part++;
    if (!part)
        return false;
    char *begin = part + length + 2, *end = begin + strcspn(begin, ",");
    snprintf(value, size, "%.*s", (int)(end - begin), begin);
    memmove(part, end, strlen(end) + 1);
    return true;
}

static bool option_net(struct options *options, const char *value, struct error *err)
{
    if (!strcmp(value, "none")) {
        options->config.net_count = 0;
        return true;
    }
    if (strncmp(value, "user", 4) && strncmp(value, "tap", 3))
        return error_set(err, "'%s' is not a network; there are user, tap and none", value);
    if (options->config.net_count == MACHINE_NETS_MAX)
        return error_set(err, "a machine has at most %d network cards", MACHINE_NETS_MAX);
    char *text = strdup(value);
    if (!options_own(options, text, err))
        return false;
    struct net_config *net = &options->config.net[options->config.net_count++];
    *net = (struct net_config){ .backend = text };
    char address[32], model[32], boot[8];
    if (take_part(text, "mac", address, sizeof(address)) && !parse_mac(address, net->mac))
        return error_set(err, "'%s' is not a network card's address; write it like 52:54:00:12:34:56", address);
    if (take_part(text, "boot", boot, sizeof(boot)) && !(net->boot = !strcmp(boot, "on")) && strcmp(boot, "off"))
        return error_set(err, "boot= is on or off, not '%s'", boot);
    if (!take_part(text, "model", model, sizeof(model)))
        return true;
    net->model = strcmp(model, "e1000") ? NET_MODEL_VIRTIO : NET_MODEL_E1000;
    return net->model == NET_MODEL_E1000 || !strcmp(model, "virtio") ||
           error_set(err, "'%s' is not a network card; there are virtio and e1000", model);
}

static bool boots_from_net(const struct machine_config *config)
{
    for (unsigned i = 0; i < config->net_count; i++)
        if (config->net[i].boot)
            return true;
    return false;
}

static bool option_display(struct options *options, const char *value, struct error *err)
{
    options->config.no_display = !strcmp(value, "none");
    options->config.display = !strcmp(value, "vga");
    return options->config.no_display || options->config.display ||
           error_set(err, "'%s' is not a display; there are vga and none", value);
}

static bool option_input(struct options *options, const char *value, struct error *err)
{
    options->config.usb = !strcmp(value, "usb");
    options->config.display |= options->config.usb;
    return options->config.usb || !strcmp(value, "ps2") || error_set(err, "'%s' is no input; there are ps2 and usb", value);
}

static bool option_vnc(struct options *options, const char *value, struct error *err)
{
    options->config.vnc = value;
    return vnc_check(value, err);
}

static bool option_console(struct options *options, const char *value, struct error *err)
{
    options->config.console = value;
    return !strcmp(value, CONSOLE_SHARED) || check_chardev(value, true, err);
}

static bool option_virtio_console(struct options *options, const char *value, struct error *err)
{
    options->config.virtio_console = value;
    return check_chardev(value, true, err);
}

static bool option_debug_console(struct options *options, const char *value, struct error *err)
{
    options->config.debug_console = value;
    return check_chardev(value, true, err);
}

static bool option_debug_exit(struct options *options, const char *value, struct error *err)
{
    options->config.debug_exit = true;
    return true;
}

static bool option_rng(struct options *options, const char *value, struct error *err)
{
    options->config.rng = true;
    return true;
}

static bool option_no_rng(struct options *options, const char *value, struct error *err)
{
    options->config.rng = false;
    return true;
}

static bool parse_action(const char *value, enum machine_action *action, struct error *err)
{
    static const char *const names[] = { [MACHINE_ACTION_END] = "end", [MACHINE_ACTION_RESET] = "reset", [MACHINE_ACTION_NONE] = "none" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (!strcmp(value, names[i])) {
            *action = (enum machine_action)i;
            return true;
        }
    return error_set(err, "'%s' is nothing that can be done then; there are end, reset and none", value);
}

static bool option_watchdog(struct options *options, const char *value, struct error *err)
{
    options->config.watchdog = true;
    return parse_action(value, &options->config.on_watchdog, err);
}

static bool option_on_panic(struct options *options, const char *value, struct error *err)
{
    return parse_action(value, &options->config.on_panic, err);
}

static bool option_device(struct options *options, const char *value, struct error *err)
{
    if (options->config.extra_count == MACHINE_EXTRA_MAX)
        return error_set(err, "a machine takes at most %d further devices", MACHINE_EXTRA_MAX);
    options->config.extra[options->config.extra_count++] = value;
    return true;
}

static bool option_name(struct options *options, const char *value, struct error *err)
{
    options->name = value;
    return true;
}

static bool option_detach(struct options *options, const char *value, struct error *err)
{
    options->detach = true;
    return true;
}

static bool option_api_socket(struct options *options, const char *value, struct error *err)
{
    options->api_socket = value;
    return *value || error_set(err, "--api-socket needs a path, or fd=N");
}

static bool option_no_reboot(struct options *options, const char *value, struct error *err)
{
    options->config.no_reboot = true;
    return true;
}

/* XDG Base Directory Specification 0.8: what can be made again. */
static const char *standard_cache(struct options *options)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int length = cache && *cache == '/' ? asprintf(&path, "%s/doppel/translations", cache)
               : home && *home == '/' ? asprintf(&path, "%s/.cache/doppel/translations", home) : -1;
    struct error unused;
    return length >= 0 && options_own(options, path, &unused) ? path : "memory";
}

static bool option_translation_cache(struct options *options, const char *value, struct error *err)
{
    options->config.translations_try = !strcmp(value, "on");
    options->config.translations = options->config.translations_try ? standard_cache(options) : strcmp(value, "off") ? value : NULL;
    return *value || error_set(err, "--translation-cache needs on, off, memory or a directory");
}

static bool option_perf_map(struct options *options, const char *value, struct error *err)
{
    options->config.perf_map = true;
    return true;
}

static bool option_code_cache(struct options *options, const char *value, struct error *err)
{
    return (size_parse(value, &options->config.code_cache) && options->config.code_cache >= 256 * KiB && options->config.code_cache <= 128 * MiB) ||
           error_set(err, "--code-cache is a size from 256K to 128M, not '%s'", value);
}

static bool option_jitdump(struct options *options, const char *value, struct error *err)
{
    options->config.jitdump = value;
    return *value || error_set(err, "--jitdump needs a directory");
}

static bool option_counters(struct options *options, const char *value, struct error *err)
{
    options->counters = true;
    return true;
}

static bool option_disks(struct options *options, const char *value, struct error *err)
{
    options->restore_disks = value;
    return true;
}

static bool option_clone(struct options *options, const char *value, struct error *err)
{
    options->restore_clone = true;
    return true;
}

static bool option_copy_memory(struct options *options, const char *value, struct error *err)
{
    options->restore_memory = RESTORE_COPIED;
    return true;
}

static bool option_share_memory(struct options *options, const char *value, struct error *err)
{
    options->restore_memory = RESTORE_SHARED;
    return true;
}

static bool option_verify(struct options *options, const char *value, struct error *err)
{
    options->restore_verify = true;
    return true;
}

static bool option_monitor(struct options *options, const char *value, struct error *err)
{
    options->monitor = strcmp(value, "none") ? value : NULL;
    return check_chardev(value, false, err);
}

static bool option_trace(struct options *options, const char *value, struct error *err)
{
    struct log probe;
    log_init(&probe, NULL);
    if (!strcmp(value, "help")) {
        options->trace_help = true;
        return true;
    }
    if (!trace_switch(&probe, value, true))
        return error_set(err, "no trace point matches '%s'; --trace help lists them", value);
    if (options->trace_count == OPTIONS_TRACES_MAX)
        return error_set(err, "--trace can be given at most %d times; a pattern such as 'cpu_*' covers many", OPTIONS_TRACES_MAX);
    options->trace[options->trace_count++] = value;
    return true;
}

static bool option_log(struct options *options, const char *value, struct error *err)
{
    options->log = value;
    return true;
}

static bool option_help(struct options *options, const char *value, struct error *err)
{
    options->help = true;
    return true;
}

/* --- the table, and the parser over it --- */

static const struct option_row rows[] = {
#define OPTION(id, name, argument, group, text) { name, argument, group, text, option_##id },
#include "cli/options.def"
#undef OPTION
};

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
        return add_file(options, text, err);
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

/* What depends on several options. */
static bool finish(struct options *options, struct error *err)
{
    struct machine_config *config = &options->config;
    if (!config->console)
        config->console = options->detach || options->serving ? CONSOLE_SHARED : "stdio";
    if (options->detach && (uses_terminal(config->console) || uses_terminal(config->virtio_console) || uses_terminal(config->debug_console)))
        return error_set(err, "a machine in the background (--detach) has no terminal: connect its consoles to something other than stdio");
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
    if (options->help || options->cpu_help || options->trace_help || options->config.kernel || options->serving)
        return true;
    if (!anything)
        return error_set(err, "there is nothing to run: name a disk image, or a kernel with --kernel FILE");
    if (!options->config.firmware)
        options->config.firmware = FIRMWARE_BY_DISK;
    return true;
}

static bool is_one_of(const struct option_row *row, const char *const *names)
{
    for (; *names; names++)
        if (!strcmp(row->name, *names))
            return true;
    return false;
}

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
