#include "cli/restore.h"

#include <string.h>
#include <sys/random.h>

/* The consoles and the screen are this process's: the terminal, unless the command line says something else. */
static void connect_consoles(struct machine_config *config, const struct options *options)
{
    config->console = options->config.console;
    config->vnc = options->config.vnc;
    if (options->config.virtio_console)
        config->virtio_console = options->config.virtio_console;
    if (options->config.debug_console)
        config->debug_console = options->config.debug_console;
}

/* --net stands for the machine's cards one after the other; the cards' addresses stay unless it names another. */
static bool connect_networks(struct machine_config *config, const struct options *options, struct error *err)
{
    static const uint8_t none[6];
    if (options->config.net_count > config->net_count)
        return error_set(err, "the snapshot's machine has %u network cards, not %u", config->net_count, options->config.net_count);
    for (unsigned i = 0; i < options->config.net_count; i++) {
        const struct net_config *net = &options->config.net[i];
        config->net[i].backend = net->backend;
        if (memcmp(net->mac, none, sizeof(none)))
            memcpy(config->net[i].mac, net->mac, sizeof(none));
    }
    return true;
}

/* Takes "hostfwd=..." parts out of a backend's text, in place. */
static void forward_nothing(char *text)
{
    for (char *part; (part = strstr(text, ",hostfwd="));) {
        const char *next = part + 1 + strcspn(part + 1, ",");
        memmove(part, next, strlen(next) + 1);
    }
}

/* What two machines on one host or one network must not both have. Addresses are locally administered ones. */
static bool become_another(struct options *options, struct machine_config *config, struct error *err)
{
    for (unsigned i = 0; i < config->net_count; i++) {
        uint8_t *mac = config->net[i].mac;
        char *text = strdup(config->net[i].backend);
        if (!options_own(options, text, err))
            return false;
        if (i >= options->config.net_count)
            forward_nothing(text);
        config->net[i].backend = text;
        if (getrandom(mac, 6, 0) != 6)
            return error_set(err, "the host gives no random numbers");
        mac[0] = (mac[0] & ~1) | 2;
    }
    config->uefi_variables = NULL;      /* that file is the other's: this one's is beside its disk */
    return true;
}

struct vm_config *restore_open(struct options *options, struct error *err)
{
    const struct restore_options restore = { .disks = options->restore_disks, .verify = options->restore_verify,
                                             .memory = options->restore_memory };
    struct snapshot *snapshot = snapshot_open(options->restore, err);
    if (!snapshot)
        return NULL;
    struct machine_config *config = snapshot_config(snapshot);
    connect_consoles(config, options);
    if (!connect_networks(config, options, err) || (options->restore_clone && !become_another(options, config, err))) {
        snapshot_close(snapshot);
        return NULL;
    }
    if (options->config.engine) {
        config->engine = options->config.engine;
        config->engine_was_default = false;
    }
    if (options->config.no_reboot)
        config->no_reboot = true;
    config->log = options->config.log;
    config->code_cache = options->config.code_cache;
    config->board_apic = options->config.board_apic;
    config->tlb = options->config.tlb;
    config->translations = options->config.translations;
    config->translations_try = options->config.translations_try;
    return vm_config_of_snapshot(snapshot, &restore, err);
}
