/* A VmConfig in JSON to a configuration. The JSON is hostile; every refusal names the member. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/console.h"
#include "api/vm_config.h"
#include "backend/vnc.h"
#include "base/base.h"
#include "base/error.h"
#include "machine/hotplug.h"
#include "machine/layout.h"
#include "machine/seed_file.h"

/* --- which members there may be --- */

enum use { USED, HINT, OFF };

static const struct field {
    const char *section, *name;
    enum use use;
} fields[] = {
#define FIELD(section, name, use) { #section, #name, use },
#include "api/vm_config_fields.def"
#undef FIELD
};

/* Asks for nothing. Depth is bounded by the parser's. */
static bool is_off(json_t *value)
{
    const char *key;
    json_t *member;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        json_object_foreach(value, key, member)
            if (!is_off(member))
                return false;
        return true;
    case JSON_ARRAY:
        return json_array_size(value) == 0;
    case JSON_STRING:
        return json_string_length(value) == 0;
    case JSON_INTEGER:
        return json_integer_value(value) == 0;
    case JSON_FALSE:
    case JSON_NULL:
        return true;
    default:
        return false;
    }
}

static bool check_field(const char *section, const char *name, json_t *value, struct error *err)
{
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (!strcmp(fields[i].section, section) && !strcmp(fields[i].name, name))
            return fields[i].use != OFF || is_off(value) || error_set(err, "'%s' of '%s' is not offered here", name, section);
    return error_set(err, "'%s' has no member '%.64s'", section, name);
}

static bool check_fields(json_t *object, const char *section, struct error *err)
{
    const char *name;
    json_t *value;
    if (!json_is_object(object))
        return error_set(err, "'%s' must be an object", section);
    json_object_foreach(object, name, value)
        if (!check_field(section, name, value, err))
            return false;
    return true;
}

/* --- values: a member that is missing or null leaves what is there --- */

static const char *own(struct vm_config *config, char *text, struct error *err)
{
    char **more = text ? realloc(config->owned, (config->owned_count + 1) * sizeof(*more)) : NULL;
    if (more) {
        config->owned = more;
        return config->owned[config->owned_count++] = text;
    }
    free(text);
    error_set(err, "no memory for the configuration");
    return NULL;
}

/* The JSON's own. */
static bool borrow_text(json_t *object, const char *name, const char **to, struct error *err)
{
    json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value))
        return true;
    *to = json_string_value(value);
    return (*to && strlen(*to) == json_string_length(value)) || error_set(err, "'%s' must be a text", name);
}

static bool take_text(struct vm_config *config, json_t *object, const char *name, const char **to, struct error *err)
{
    const char *text = NULL;
    return borrow_text(object, name, &text, err) && (!text || (*to = own(config, strdup(text), err)));
}

static bool take_bool(json_t *object, const char *name, bool *to, struct error *err)
{
    json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value))
        return true;
    *to = json_is_true(value);
    return json_is_boolean(value) || error_set(err, "'%s' must be true or false", name);
}

static bool take_number(json_t *object, const char *name, uint64_t least, uint64_t most, uint64_t *to, struct error *err)
{
    json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value))
        return true;
    json_int_t number = json_integer_value(value);
    *to = (uint64_t)number;
    return (json_is_integer(value) && number >= 0 && *to >= least && *to <= most) ||
           error_set(err, "'%s' must be a number from %llu to %llu", name, (unsigned long long)least, (unsigned long long)most);
}

/* The member, an object of that section; NULL: there is none, or (then *ok is false) it is wrong. */
static json_t *take_object(json_t *object, const char *name, const char *section, bool *ok, struct error *err)
{
    json_t *value = json_object_get(object, name);
    if (!*ok || !value || json_is_null(value))
        return NULL;
    *ok = check_fields(value, section, err);
    return *ok ? value : NULL;
}

/* --- sections --- */

static bool parse_cpus(struct vm_config *config, json_t *cpus, struct error *err)
{
    uint64_t count = config->own.cpus;
    if (!take_number(cpus, "boot_vcpus", 1, MACHINE_CPUS_MAX, &count, err))
        return false;
    uint64_t most = count;
    if (!take_number(cpus, "max_vcpus", 1, MACHINE_CPUS_MAX, &most, err))
        return false;
    config->own.cpus = (unsigned)count;
    return most == count || error_set(err, "processors cannot be added later: 'max_vcpus' must be as 'boot_vcpus'");
}

static bool take_memory(json_t *json, const char *name, uint64_t *size, struct error *err)
{
    const uint64_t most = LOW_RAM_MAX_BASE + (PCI_MMIO64_BASE - HIGH_RAM_BASE);
    return take_number(json, name, MiB, most, size, err) &&
           (!(*size & PAGE_MASK) || error_set(err, "'%s' must be a multiple of 4096", name));
}

static bool parse_payload(struct vm_config *config, json_t *payload, struct error *err)
{
    struct machine_config *machine = &config->own;
    const char *initramfs = NULL;
    if (!take_text(config, payload, "kernel", &machine->kernel, err) || !take_text(config, payload, "cmdline", &machine->append, err) ||
        !take_text(config, payload, "firmware", &machine->firmware, err) || !take_text(config, payload, "initramfs", &initramfs, err))
        return false;
    if (initramfs)
        machine->initrd[machine->initrd_count++] = initramfs;
    return true;
}

static bool parse_image_type(const char *type, enum disk_format *format, struct error *err)
{
    if (!type || !strcmp(type, "Unknown"))
        return true;
    if (strcmp(type, "Raw") && strcmp(type, "Qcow2"))
        return error_set(err, "'image_type' must be Raw or Qcow2, not '%.32s'", type);
    *format = strcmp(type, "Raw") ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
    return true;
}

/* With 'vhost_user' the disk is in the process behind 'vhost_socket'; a CD-ROM drive may be empty. */
static bool take_disk_path(struct vm_config *config, json_t *json, struct disk_config *disk, struct error *err)
{
    const char **path = &disk->path;
    bool vhost_user = false;
    const char *socket = NULL;
    char *text;
    if (!take_text(config, json, "path", path, err) || !take_bool(json, "vhost_user", &vhost_user, err) ||
        !take_text(config, json, "vhost_socket", &socket, err))
        return false;
    if (!vhost_user)
        return (*path ? **path : disk->bus == DISK_CDROM) || error_set(err, "a disk needs a 'path'");
    if (*path || !socket || !*socket)
        return error_set(err, "a disk with 'vhost_user' needs a 'vhost_socket' and has no 'path'");
    return asprintf(&text, "vhost-user:%s", socket) >= 0 && (*path = own(config, text, err));
}

static bool parse_bus(const char *bus, struct disk_config *disk, struct error *err)
{
    if (!disk_bus_parse(bus, &disk->bus))
        return error_set(err, "'doppel_bus' must be virtio, ahci, cdrom, nvme or usb, not '%.32s'", bus);
    disk->image.read_only |= disk->bus == DISK_CDROM;
    return true;
}

static bool take_id(struct vm_config *config, json_t *json, const char **id, struct error *err)
{
    if (!take_text(config, json, "id", id, err))
        return false;
    return !*id || (**id && strlen(*id) < DEVICE_ID_SIZE) || error_set(err, "'id' must have 1 to %d bytes", DEVICE_ID_SIZE - 1);
}

bool vm_config_parse_disk(struct vm_config *config, json_t *json, struct disk_config *disk, struct error *err)
{
    const char *type = NULL, *bus = "virtio";
    *disk = (struct disk_config){ 0 };
    return check_fields(json, "disk", err) && take_id(config, json, &disk->id, err) &&
           take_text(config, json, "serial", &disk->serial, err) &&
           take_text(config, json, "image_type", &type, err) && parse_image_type(type, &disk->image.format, err) &&
           take_bool(json, "readonly", &disk->image.read_only, err) && take_bool(json, "direct", &disk->image.direct, err) &&
           take_bool(json, "backing_files", &disk->image.backing, err) && take_text(config, json, "doppel_bus", &bus, err) &&
           parse_bus(bus, disk, err) && take_disk_path(config, json, disk, err);
}

/* 52:54:00:12:34:56, not a group address. */
static bool parse_mac(const char *text, uint8_t mac[6], struct error *err)
{
    int used = 0;
    if (!text)
        return true;
    return (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5], &used) == 6 &&
            !text[used] && !(mac[0] & 1)) || error_set(err, "'mac' must be like 52:54:00:12:34:56");
}

bool vm_config_parse_net(struct vm_config *config, json_t *json, struct net_config *net, struct error *err)
{
    const char *tap = NULL, *mac = NULL, *model = "virtio";
    *net = (struct net_config){ .backend = "user" };
    if (!check_fields(json, "net", err) || !take_id(config, json, &net->id, err) ||
        !take_text(config, json, "doppel_backend", &net->backend, err) || !take_text(config, json, "tap", &tap, err) ||
        !take_text(config, json, "doppel_model", &model, err) || !take_text(config, json, "mac", &mac, err) || !parse_mac(mac, net->mac, err))
        return false;
    net->model = strcmp(model, "e1000") ? NET_MODEL_VIRTIO : NET_MODEL_E1000;
    if (net->model == NET_MODEL_VIRTIO && strcmp(model, "virtio"))
        return error_set(err, "'doppel_model' must be virtio or e1000, not '%.32s'", model);
    char *text = NULL;
    if (tap && (strchr(tap, ',') || asprintf(&text, "tap,ifname=%s", tap) < 0))
        return error_set(err, "'tap' must be the name of an interface");
    return !text || (net->backend = own(config, text, err));
}

static bool parse_list(struct vm_config *config, json_t *json, const char *name, bool (*parse)(struct vm_config *, json_t *, struct error *),
                       struct error *err)
{
    json_t *list = json_object_get(json, name), *item;
    size_t i;
    if (!list || json_is_null(list))
        return true;
    if (!json_is_array(list))
        return error_set(err, "'%s' must be an array", name);
    json_array_foreach(list, i, item)
        if (!parse(config, item, err))
            return false;
    return true;
}

static bool with_place(struct vm_config *config, const char *kind, const char *place, const char **to, struct error *err)
{
    char *text;
    if (!place || !*place)
        return error_set(err, "a console in this mode needs a '%s'", kind);
    return asprintf(&text, "%s:%s", kind, place) >= 0 && (*to = own(config, text, err));
}

/* A ConsoleConfig to a character backend's text. */
static bool parse_console(struct vm_config *config, json_t *json, const char **to, struct error *err)
{
    const char *mode = NULL, *file = NULL, *socket = NULL;
    if (!take_text(config, json, "mode", &mode, err) || !take_text(config, json, "file", &file, err) ||
        !take_text(config, json, "socket", &socket, err))
        return false;
    if (!mode)
        return error_set(err, "a console needs a 'mode'");
    if (!strcmp(mode, "File"))
        return with_place(config, "file", file, to, err);
    if (!strcmp(mode, "Socket"))
        return with_place(config, "socket", socket, to, err);
    *to = !strcmp(mode, "Off") || !strcmp(mode, "Null") ? "none" : !strcmp(mode, "Tty") ? "stdio" : !strcmp(mode, "Pty") ? "pty" : NULL;
    return *to || error_set(err, "there is no console mode '%.32s'", mode);
}

static bool parse_consoles(struct vm_config *config, json_t *json, struct error *err)
{
    struct machine_config *machine = &config->own;
    bool ok = true;
    json_t *serial = take_object(json, "serial", "console", &ok, err), *virtio = take_object(json, "console", "console", &ok, err);
    json_t *debug = take_object(json, "debug_console", "console", &ok, err);
    if (!ok || (serial && !parse_console(config, serial, &machine->console, err)) ||
        (virtio && !parse_console(config, virtio, &machine->virtio_console, err)) ||
        (debug && !parse_console(config, debug, &machine->debug_console, err)))
        return false;
    if (machine->virtio_console && !strcmp(machine->virtio_console, "none"))
        machine->virtio_console = NULL;         /* Off is no device */
    if (machine->debug_console && !strcmp(machine->debug_console, "none"))
        machine->debug_console = NULL;
    return true;
}

/* A VNC server brings a display with it. */
static bool parse_vnc(struct vm_config *config, json_t *json, struct error *err)
{
    if (!take_text(config, json, "vnc", &config->own.vnc, err))
        return false;
    config->own.display |= config->own.vnc != NULL;
    return !config->own.vnc || vnc_check(config->own.vnc, err);
}

static bool parse_own(struct vm_config *config, json_t *json, struct error *err)
{
    return take_text(config, json, "engine", &config->own.engine, err) && take_text(config, json, "cpu", &config->own.cpu_model, err) &&
           take_bool(json, "no_reboot", &config->own.no_reboot, err) && parse_vnc(config, json, err);
}

/* Disks first, then cards. */
static bool is_absent(const struct machine_config *machine, unsigned i)
{
    return i < machine->disk_count ? machine->disk[i].absent : machine->net[i - machine->disk_count].absent;
}

/* A name that is taken would make one of the two unreachable. */
static bool id_is_new(const struct machine_config *machine, struct error *err)
{
    char id[DEVICE_ID_SIZE], other[DEVICE_ID_SIZE];
    unsigned disks = machine->disk_count, all = disks + machine->net_count;
    for (unsigned i = 0; i < all; i++)
        for (unsigned n = i + 1; n < all; n++) {
            i < disks ? machine_disk_id(machine, i, id) : machine_net_id(machine, i - disks, id);
            n < disks ? machine_disk_id(machine, n, other) : machine_net_id(machine, n - disks, other);
            if (!is_absent(machine, i) && !is_absent(machine, n) && !strcmp(id, other))
                return error_set(err, "two devices have the id '%s'", id);
        }
    return true;
}

/* As a further disk, behind the others: the first is what firmware boots from. */
static bool add_seed(struct vm_config *config, json_t *json, const char *name, struct error *err)
{
    struct seed_contents contents = { .name = name, .keys_from = "'ssh_keys'" };
    if (!borrow_text(json, "user_data", &contents.user_data, err) || !borrow_text(json, "ssh_keys", &contents.ssh_keys, err))
        return false;
    if (!contents.user_data && !contents.ssh_keys)
        return true;
    if (contents.user_data && !seed_user_data_is_known(contents.user_data))
        return error_set(err, "cloud-init would not understand 'user_data': its first line should be '#cloud-config', or '#!' and a shell");
    char *path = seed_add_disk(&contents, &config->own, err);
    return path && own(config, path, err) && id_is_new(&config->own, err);
}

static bool parse_all(struct vm_config *config, json_t *json, const char *name, struct error *err)
{
    bool ok = check_fields(json, "vm", err);
    json_t *cpus = take_object(json, "cpus", "cpus", &ok, err), *memory = take_object(json, "memory", "memory", &ok, err);
    json_t *payload = take_object(json, "payload", "payload", &ok, err), *rng = take_object(json, "rng", "rng", &ok, err);
    json_t *doppel = take_object(json, "doppel", "doppel", &ok, err);
    if (!ok || !parse_cpus(config, cpus, err) || !take_memory(memory, "size", &config->own.memory, err) || !parse_payload(config, payload, err) ||
        !parse_list(config, json, "disks", vm_config_add_disk, err) || !parse_list(config, json, "net", vm_config_add_net, err) ||
        !take_bool(json, "watchdog", &config->own.watchdog, err) || !parse_consoles(config, json, err) || !parse_own(config, doppel, err))
        return false;
    config->own.rng |= rng != NULL;
    config->own.on_watchdog = MACHINE_ACTION_RESET;     /* Cloud Hypervisor's */
    if (!config->own.kernel && !config->own.firmware) {
        config->own.firmware = "bios";
        if (!config->own.disk_count)
            return error_set(err, "there is nothing to boot: a 'kernel' or 'firmware' in 'payload', or a disk");
    }
    return add_seed(config, doppel, name, err);
}

struct vm_config *vm_config_parse(json_t *json, const struct machine_config *defaults, const char *name, struct error *err)
{
    struct vm_config *config = vm_config_create(defaults, err);
    if (!config)
        return NULL;
    if (parse_all(config, json, name, err))
        return config;
    vm_config_destroy(config);
    return NULL;
}

bool vm_config_add_disk(struct vm_config *config, json_t *json, struct error *err)
{
    struct machine_config *machine = &config->own;
    struct disk_config disk;
    unsigned i = 0;
    while (i < machine->disk_count && !machine->disk[i].absent)
        i++;
    if (i == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks", MACHINE_DISKS_MAX);
    if (!vm_config_parse_disk(config, json, &disk, err))
        return false;
    machine->disk[i] = disk;
    machine->disk_count = (unsigned)max_u64(machine->disk_count, i + 1);
    machine->disk[i].absent = !id_is_new(machine, err);
    return !machine->disk[i].absent;
}

bool vm_config_add_net(struct vm_config *config, json_t *json, struct error *err)
{
    struct machine_config *machine = &config->own;
    struct net_config net;
    unsigned i = 0;
    while (i < machine->net_count && !machine->net[i].absent)
        i++;
    if (i == MACHINE_NETS_MAX)
        return error_set(err, "a machine has at most %d network cards", MACHINE_NETS_MAX);
    if (!vm_config_parse_net(config, json, &net, err))
        return false;
    machine->net[i] = net;
    machine->net_count = (unsigned)max_u64(machine->net_count, i + 1);
    machine->net[i].absent = !id_is_new(machine, err);
    return !machine->net[i].absent;
}

bool vm_config_remove_device(struct vm_config *config, const char *id, struct error *err)
{
    struct machine_config *machine = &config->own;
    char other[DEVICE_ID_SIZE];
    for (unsigned i = 0; i < machine->disk_count; i++) {
        machine_disk_id(machine, i, other);
        if (!machine->disk[i].absent && !strcmp(id, other)) {
            machine->disk[i].absent = true;
            machine->disk[i].bus = DISK_VIRTIO;         /* no place on another bus's controller */
            return true;
        }
    }
    for (unsigned i = 0; i < machine->net_count; i++) {
        machine_net_id(machine, i, other);
        if (!machine->net[i].absent && !strcmp(id, other)) {
            machine->net[i].absent = true;
            return true;
        }
    }
    return error_set(err, "there is no disk or network card '%.80s'", id);
}

bool vm_config_parse_medium(json_t *json, struct medium_change *change, struct error *err)
{
    const char *type = NULL;
    *change = (struct medium_change){ 0 };
    if (!check_fields(json, "medium", err) || !borrow_text(json, "id", &change->id, err) || !borrow_text(json, "path", &change->path, err) ||
        !borrow_text(json, "image_type", &type, err) || !parse_image_type(type, &change->format, err) ||
        !take_bool(json, "force", &change->force, err))
        return false;
    return (json_object_get(json, "path") && (!change->path || *change->path)) ||
           error_set(err, "'path' must name an image, or be null: then the medium is taken out");
}

bool vm_config_change_medium(struct vm_config *config, json_t *json, struct error *err)
{
    struct medium_change change;
    unsigned i;
    if (!vm_config_parse_medium(json, &change, err) || !machine_find_cdrom(&config->own, change.id, &i, err) ||
        (change.path && !(change.path = own(config, strdup(change.path), err))))
        return false;
    config->own.disk[i] = machine_disk_with(&config->own.disk[i], &change);
    return true;
}

bool vm_config_resize(struct vm_config *config, json_t *json, struct error *err)
{
    uint64_t cpus = config->own.cpus, memory = config->own.memory;
    if (!check_fields(json, "resize", err) || !take_number(json, "desired_vcpus", 1, MACHINE_CPUS_MAX, &cpus, err) ||
        !take_memory(json, "desired_ram", &memory, err))
        return false;
    config->own.cpus = (unsigned)cpus;
    config->own.memory = memory;
    return true;
}
