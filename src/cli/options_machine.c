/* The machine itself, what it boots, how it runs and what is seen of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options_internal.h"
#include "cli/size.h"
#include "machine/layout.h"

bool option_memory(struct options *options, const char *value, struct error *err)
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

bool option_cpus(struct options *options, const char *value, struct error *err)
{
    uint64_t count;
    if (!number_parse(value, MACHINE_CPUS_MAX, &count) || !count)
        return error_set(err, "--cpus %s: a machine has 1 to %d processors", value, MACHINE_CPUS_MAX);
    options->config.cpus = (unsigned)count;
    return true;
}

bool option_cpu(struct options *options, const char *value, struct error *err)
{
    options->cpu_help = !strcmp(value, "help");
    options->config.cpu_model = value;
    return true;
}

bool option_engine(struct options *options, const char *value, struct error *err)
{
    options->config.engine = value;
    return true;
}

bool option_clock(struct options *options, const char *value, struct error *err)
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

bool option_firmware(struct options *options, const char *value, struct error *err)
{
    options->config.firmware = value;
    return true;
}

bool option_uefi_variables(struct options *options, const char *value, struct error *err)
{
    options->config.uefi_variables = value;
    return true;
}

bool option_boot(struct options *options, const char *value, struct error *err)
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

bool option_kernel(struct options *options, const char *value, struct error *err)
{
    options->config.kernel = value;
    return true;
}

bool option_initrd(struct options *options, const char *value, struct error *err)
{
    if (options->config.initrd_count == MACHINE_INITRDS_MAX)
        return error_set(err, "a machine takes at most %d initrds", MACHINE_INITRDS_MAX);
    options->config.initrd[options->config.initrd_count++] = value;
    return true;
}

bool option_append(struct options *options, const char *value, struct error *err)
{
    options->config.append = value;
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
        const char *value = options_value_of(part, numbers[i].key);
        if (value && number_parse(value, INT64_MAX, (uint64_t *)((char *)config + numbers[i].offset)))
            return true;
    }
    return error_set(err, "'%s' is not a setting of a state log; there are every, from, to and memory, each with =NUMBER, "
                          "and registers", part);
}

bool option_state_log(struct options *options, const char *value, struct error *err)
{
    char *text = strdup(value);
    if (!options_own(options, text, err))
        return false;
    char *part = options_cut_at_comma(text);
    options->config.state_log = (struct state_log_config){ .path = text };
    while (part) {
        char *next = options_cut_at_comma(part);
        if (!state_log_part(&options->config.state_log, part, err))
            return false;
        part = next;
    }
    return *text || error_set(err, "--state-log needs the name of a file");
}

bool option_name(struct options *options, const char *value, struct error *err)
{
    options->name = value;
    return true;
}

bool option_detach(struct options *options, const char *value, struct error *err)
{
    options->detach = true;
    return true;
}

bool option_api_socket(struct options *options, const char *value, struct error *err)
{
    options->api_socket = value;
    return *value || error_set(err, "--api-socket needs a path, or fd=N");
}

bool option_no_reboot(struct options *options, const char *value, struct error *err)
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

/* A slash tells a directory from a misspelt word. */
bool option_translation_cache(struct options *options, const char *value, struct error *err)
{
    options->config.translations_try = !strcmp(value, "on");
    options->config.translations = options->config.translations_try ? standard_cache(options) : strcmp(value, "off") ? value : NULL;
    return !options->config.translations || options->config.translations_try || !strcmp(value, "memory") || strchr(value, '/') ||
           error_set(err, "'%s' is not a place for translations; there are on, off, memory, and directories, whose names need a slash: ./%s",
                     value, *value ? value : "translations");
}

bool option_perf_map(struct options *options, const char *value, struct error *err)
{
    options->config.perf_map = true;
    return true;
}

bool option_tlb(struct options *options, const char *value, struct error *err)
{
    static const char *const names[] = { [MMU_NORMAL] = "normal", [MMU_STALE] = "stale", [MMU_FRESH] = "fresh" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (!strcmp(value, names[i])) {
            options->config.tlb = i;
            return true;
        }
    return error_set(err, "--tlb is normal, stale or fresh, not '%s'", value);
}

bool option_kvm_irqchip(struct options *options, const char *value, struct error *err)
{
    options->config.board_apic = !strcmp(value, "off");
    return options->config.board_apic || !strcmp(value, "split") || error_set(err, "--kvm-irqchip is split or off, not '%s'", value);
}

bool option_code_cache(struct options *options, const char *value, struct error *err)
{
    return (size_parse(value, &options->config.code_cache) && options->config.code_cache >= 256 * KiB && options->config.code_cache <= 128 * MiB) ||
           error_set(err, "--code-cache is a size from 256K to 128M, not '%s'", value);
}

bool option_jitdump(struct options *options, const char *value, struct error *err)
{
    options->config.jitdump = value;
    return *value || error_set(err, "--jitdump needs a directory");
}

bool option_counters(struct options *options, const char *value, struct error *err)
{
    options->counters = true;
    return true;
}

bool option_disks(struct options *options, const char *value, struct error *err)
{
    options->restore_disks = value;
    return true;
}

bool option_clone(struct options *options, const char *value, struct error *err)
{
    options->restore_clone = true;
    return true;
}

bool option_copy_memory(struct options *options, const char *value, struct error *err)
{
    options->restore_memory = RESTORE_COPIED;
    return true;
}

bool option_share_memory(struct options *options, const char *value, struct error *err)
{
    options->restore_memory = RESTORE_SHARED;
    return true;
}

bool option_verify(struct options *options, const char *value, struct error *err)
{
    options->restore_verify = true;
    return true;
}

bool option_trace(struct options *options, const char *value, struct error *err)
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

bool option_log(struct options *options, const char *value, struct error *err)
{
    options->log = value;
    return true;
}

bool option_help(struct options *options, const char *value, struct error *err)
{
    options->help = true;
    return true;
}
