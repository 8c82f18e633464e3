#include "api/vm_config.h"

#include <stdlib.h>
#include <string.h>

#include "api/console.h"
#include "api/json_text.h"
#include "backend/disk_vhost_user.h"
#include "base/base.h"
#include "base/error.h"
#include "machine/hotplug.h"

static struct vm_config *allocate(struct error *err)
{
    struct vm_config *config = calloc(1, sizeof(*config));
    if (!config)
        error_set(err, "no memory for the configuration");
    return config;
}

struct vm_config *vm_config_create(const struct machine_config *machine, struct error *err)
{
    struct vm_config *config = allocate(err);
    if (!config)
        return NULL;
    config->own = *machine;
    config->machine = &config->own;
    return config;
}

struct vm_config *vm_config_of_snapshot(struct snapshot *snapshot, const struct restore_options *restore,
                                        struct error *err)
{
    struct vm_config *config = allocate(err);
    if (!config) {
        snapshot_close(snapshot);
        return NULL;
    }
    config->snapshot = snapshot;
    config->restore = *restore;
    config->machine = snapshot_config(snapshot);
    return config;
}

void vm_config_destroy(struct vm_config *config)
{
    if (!config)
        return;
    for (unsigned i = 0; i < config->owned_count; i++)
        free(config->owned[i]);
    free(config->owned);
    machine_free_texts(config->kept);
    snapshot_close(config->snapshot);
    free(config);
}

struct machine *vm_config_build(struct vm_config *config, const char *console, struct error *err)
{
    if (config->shared_console)
        config->machine->console = console;
    if (!config->snapshot)
        return machine_create(config->machine, err);
    if (config->restored) {
        error_set(err, "it was restored from a snapshot, which makes one machine; restore it again");
        return NULL;
    }
    config->restored = true;
    return machine_restore(config->snapshot, &config->restore, err);
}

static void take_texts(struct vm_config *config, struct machine *machine)
{
    struct machine_text **last = &config->kept;
    while (*last)
        last = &(*last)->next;
    *last = machine->texts;
    machine->texts = NULL;
}

void vm_config_keep(struct vm_config *config, struct machine *machine)
{
    struct machine_config *own = config->machine, *now = &machine->config;
    memcpy(own->disk, now->disk, sizeof(own->disk));
    memcpy(own->net, now->net, sizeof(own->net));
    own->disk_count = now->disk_count;
    own->net_count = now->net_count;
    own->uefi_variables = now->uefi_variables;
    take_texts(config, machine);
}

/* --- to JSON --- */

static void set_text(json_t *object, const char *key, const char *text)
{
    if (text)
        json_object_set_new(object, key, json_text(text));
}

static json_t *payload_to_json(const struct machine_config *machine)
{
    json_t *payload = json_object();
    set_text(payload, "firmware", machine->firmware);
    set_text(payload, "kernel", machine->kernel);
    set_text(payload, "cmdline", machine->append);
    if (machine->initrd_count)
        set_text(payload, "initramfs", machine->initrd[0]);
    return payload;
}

static json_t *disk_to_json(const struct machine_config *machine, unsigned index)
{
    const struct disk_config *disk = &machine->disk[index];
    char id[DEVICE_ID_SIZE];
    machine_disk_id(machine, index, id);
    static const char *const types[] = { [DISK_FORMAT_BY_NAME] = "Unknown", [DISK_FORMAT_RAW] = "Raw", [DISK_FORMAT_QCOW2] = "Qcow2" };
    json_t *json = json_pack("{s:o, s:b, s:b, s:b, s:s}", "id", json_text(id), "readonly", disk->image.read_only, "direct",
                             disk->image.direct, "backing_files", disk->image.backing, "image_type", types[disk->image.format]);
    bool vhost_user = disk->path && disk_vhost_user_is(disk->path);
    set_text(json, vhost_user ? "vhost_socket" : "path", vhost_user ? strchr(disk->path, ':') + 1 : disk->path);
    if (vhost_user)
        json_object_set_new(json, "vhost_user", json_true());
    set_text(json, "serial", disk->serial);
    if (disk->bus != DISK_VIRTIO)
        set_text(json, "doppel_bus", disk_bus_name(disk->bus));
    return json;
}

/* The text of a backend as a NetConfig: a TAP interface by its name, anything else under a key of ours. */
static json_t *net_to_json(const struct machine_config *machine, unsigned index)
{
    static const uint8_t derived[6];
    const struct net_config *net = &machine->net[index];
    char id[DEVICE_ID_SIZE];
    machine_net_id(machine, index, id);
    const uint8_t *mac = net->mac;
    json_t *json = json_pack("{s:o}", "id", json_text(id));
    if (!strncmp(net->backend, "tap,ifname=", 11))
        set_text(json, "tap", net->backend + 11);
    else
        set_text(json, "doppel_backend", net->backend);
    if (net->model == NET_MODEL_E1000)
        set_text(json, "doppel_model", "e1000");
    if (memcmp(mac, derived, sizeof(derived)))
        json_object_set_new(json, "mac", json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]));
    return json;
}

static json_t *console_mode(const char *mode, const char *key, const char *value)
{
    json_t *json = json_pack("{s:s}", "mode", mode);
    set_text(json, key, value);
    return json;
}

/* A character backend's text as a ConsoleConfig. */
static json_t *console_to_json(const char *text)
{
    if (!text || !strcmp(text, "none"))
        return console_mode("Off", "file", NULL);
    if (!strcmp(text, "stdio"))
        return console_mode("Tty", "file", NULL);
    if (!strcmp(text, "pty"))
        return console_mode("Pty", "file", NULL);
    if (!strncmp(text, "file:", 5))
        return console_mode("File", "file", text + 5);
    return console_mode("Socket", "socket", strncmp(text, "socket:", 7) ? text : text + 7);
}

json_t *vm_config_to_json(const struct vm_config *config, const struct machine_config *machine, const char *console_log)
{
    json_t *serial = config->shared_console ? console_mode("File", "file", console_log) : console_to_json(machine->console);
    json_t *disks = json_array(), *nets = json_array();
    for (unsigned i = 0; i < machine->disk_count; i++)
        if (!machine->disk[i].absent)
            json_array_append_new(disks, disk_to_json(machine, i));
    for (unsigned i = 0; i < machine->net_count; i++)
        if (!machine->net[i].absent)
            json_array_append_new(nets, net_to_json(machine, i));
    json_t *json = json_pack("{s:{s:i, s:i}, s:{s:I}, s:o, s:o, s:o, s:o, s:o, s:o}", "cpus", "boot_vcpus", (int)machine->cpus, "max_vcpus",
                             (int)machine->cpus, "memory", "size", (json_int_t)machine->memory, "payload", payload_to_json(machine),
                             "disks", disks, "net", nets, "serial", serial, "console",
                             console_to_json(machine->virtio_console), "debug_console", console_to_json(machine->debug_console));
    if (machine->rng)
        json_object_set_new(json, "rng", json_pack("{s:s}", "src", "/dev/urandom"));
    json_object_set_new(json, "watchdog", json_boolean(machine->watchdog));
    json_object_set_new(json, "pvpanic", json_true());
    json_t *own = json_pack("{s:b}", "no_reboot", machine->no_reboot);
    set_text(own, "engine", machine->engine);
    set_text(own, "cpu", machine->cpu_model);
    set_text(own, "vnc", machine->vnc);
    json_object_set_new(json, "doppel", own);
    return json;
}
