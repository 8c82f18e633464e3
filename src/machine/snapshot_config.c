/*
 * The configuration of a machine as JSON: a row for each field. Who adds a field to struct machine_config that the board
 * depends on adds a row here.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "machine/snapshot_internal.h"

enum field_kind { FIELD_TEXT, FIELD_PATH, FIELD_BOOL, FIELD_UINT, FIELD_MAC };

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset, size;
};

#define FIELD(type, member, kind) { #member, kind, offsetof(type, member), sizeof(((type *)0)->member) }

static const struct field machine_fields[] = {
    FIELD(struct machine_config, memory, FIELD_UINT), FIELD(struct machine_config, cpus, FIELD_UINT),
    FIELD(struct machine_config, cpu_model, FIELD_TEXT), FIELD(struct machine_config, engine, FIELD_TEXT),
    FIELD(struct machine_config, engine_was_default, FIELD_BOOL), FIELD(struct machine_config, clock_instructions, FIELD_UINT), FIELD(struct machine_config, boot, FIELD_UINT),
    FIELD(struct machine_config, kernel, FIELD_PATH), FIELD(struct machine_config, firmware, FIELD_PATH),
    FIELD(struct machine_config, uefi_variables, FIELD_PATH), FIELD(struct machine_config, append, FIELD_TEXT),
    FIELD(struct machine_config, flat_address, FIELD_UINT),
    FIELD(struct machine_config, console, FIELD_TEXT), FIELD(struct machine_config, virtio_console, FIELD_TEXT),
    FIELD(struct machine_config, debug_console, FIELD_TEXT), FIELD(struct machine_config, debug_exit, FIELD_BOOL),
    FIELD(struct machine_config, no_reboot, FIELD_BOOL), FIELD(struct machine_config, rng, FIELD_BOOL),
    FIELD(struct machine_config, no_display, FIELD_BOOL), FIELD(struct machine_config, watchdog, FIELD_BOOL), FIELD(struct machine_config, usb, FIELD_BOOL),
    FIELD(struct machine_config, on_watchdog, FIELD_UINT), FIELD(struct machine_config, on_panic, FIELD_UINT), FIELD(struct machine_config, display, FIELD_BOOL),
};

#define IMAGE_FIELD(member, kind) { #member, kind, offsetof(struct disk_config, image.member), sizeof(((struct disk_config *)0)->image.member) }

static const struct field disk_fields[] = {
    FIELD(struct disk_config, id, FIELD_TEXT), FIELD(struct disk_config, absent, FIELD_BOOL), FIELD(struct disk_config, slot, FIELD_UINT),
    FIELD(struct disk_config, path, FIELD_PATH), FIELD(struct disk_config, serial, FIELD_TEXT),
    IMAGE_FIELD(read_only, FIELD_BOOL), IMAGE_FIELD(direct, FIELD_BOOL), IMAGE_FIELD(format, FIELD_UINT),
    IMAGE_FIELD(backing, FIELD_BOOL), IMAGE_FIELD(base_path, FIELD_PATH), IMAGE_FIELD(base_format, FIELD_UINT),
    FIELD(struct disk_config, engine, FIELD_UINT), FIELD(struct disk_config, bus, FIELD_UINT),
};

static const struct field net_fields[] = {
    FIELD(struct net_config, id, FIELD_TEXT), FIELD(struct net_config, absent, FIELD_BOOL), FIELD(struct net_config, slot, FIELD_UINT),
    FIELD(struct net_config, backend, FIELD_TEXT), FIELD(struct net_config, mac, FIELD_MAC),
    FIELD(struct net_config, model, FIELD_UINT), FIELD(struct net_config, boot, FIELD_BOOL),
};

/* --- saving --- */

/* The restored machine may run in another working directory. Text that names no file (arguments may follow) stays. */
static json_t *path_json(const char *path)
{
    char absolute[PATH_MAX];
    return json_string(realpath(path, absolute) ? absolute : path);
}

static json_t *mac_json(const uint8_t mac[6])
{
    return json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static json_t *field_json(const struct field *field, const void *object)
{
    const uint8_t *member = (const uint8_t *)object + field->offset;
    if (field->kind == FIELD_BOOL)
        return json_boolean(*(const bool *)member);
    if (field->kind == FIELD_UINT) {
        uint64_t value = 0;
        memcpy(&value, member, field->size);
        return json_integer((json_int_t)value);
    }
    if (field->kind == FIELD_MAC)
        return mac_json(member);
    const char *text = *(const char *const *)member;
    if (!text)
        return json_null();
    return field->kind == FIELD_PATH ? path_json(text) : json_string(text);
}

static json_t *object_json(const struct field *fields, unsigned count, const void *object)
{
    json_t *json = json_object();
    for (unsigned i = 0; i < count; i++)
        json_object_set_new(json, fields[i].name, field_json(&fields[i], object));
    return json;
}

json_t *snapshot_config_save(const struct machine_config *config)
{
    json_t *json = object_json(machine_fields, ARRAY_SIZE(machine_fields), config);
    json_t *initrds = json_array(), *disks = json_array(), *nets = json_array(), *extras = json_array();
    for (unsigned i = 0; i < config->initrd_count; i++)
        json_array_append_new(initrds, path_json(config->initrd[i]));
    for (unsigned i = 0; i < config->disk_count; i++)
        json_array_append_new(disks, object_json(disk_fields, ARRAY_SIZE(disk_fields), &config->disk[i]));
    for (unsigned i = 0; i < config->net_count; i++)
        json_array_append_new(nets, object_json(net_fields, ARRAY_SIZE(net_fields), &config->net[i]));
    for (unsigned i = 0; i < config->extra_count; i++)
        json_array_append_new(extras, json_string(config->extra[i]));
    json_object_set_new(json, "initrds", initrds);
    json_object_set_new(json, "disks", disks);
    json_object_set_new(json, "nets", nets);
    json_object_set_new(json, "extras", extras);
    return json;
}

/* --- loading: the JSON may say anything --- */

static bool load_uint(const struct field *field, uint8_t *member, const json_t *value)
{
    json_int_t number = json_integer_value(value);
    uint64_t most = field->size >= 8 ? INT64_MAX : BIT(field->size * 8) - 1;
    if (!json_is_integer(value) || number < 0 || (uint64_t)number > most)
        return false;
    memcpy(member, &number, field->size);
    return true;
}

static bool load_mac(uint8_t *mac, const json_t *value)
{
    const char *text = json_string_value(value);
    int used = 0;
    return text && sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5],
                          &used) == 6 && !text[used];
}

/* A field that is not there keeps its default: it is newer than the snapshot. */
static bool load_field(const struct field *field, void *object, const json_t *json, struct error *err)
{
    uint8_t *member = (uint8_t *)object + field->offset;
    const json_t *value = json_object_get(json, field->name);
    bool ok;
    if (!value)
        return true;
    switch (field->kind) {
    case FIELD_UINT: ok = load_uint(field, member, value); break;
    case FIELD_MAC: ok = load_mac(member, value); break;
    case FIELD_BOOL:
        ok = json_is_boolean(value);
        *(bool *)member = json_is_true(value);
        break;
    default:
        ok = json_is_string(value) || json_is_null(value);
        *(const char **)member = json_string_value(value);
        break;
    }
    return ok || error_set(err, "the snapshot's configuration is damaged at '%s'", field->name);
}

static bool load_object(const struct field *fields, unsigned count, void *object, const json_t *json, struct error *err)
{
    if (!json_is_object(json))
        return error_set(err, "the snapshot's configuration is damaged");
    for (unsigned i = 0; i < count; i++)
        if (!load_field(&fields[i], object, json, err))
            return false;
    return true;
}

/* The array `name`: its length, at most `most`. */
static bool load_count(const json_t *json, const char *name, unsigned most, unsigned *count, struct error *err)
{
    const json_t *array = json_object_get(json, name);
    size_t size = json_array_size(array);
    *count = (unsigned)size;
    return (json_is_array(array) && size <= most) || error_set(err, "the snapshot's configuration is damaged at '%s'", name);
}

static bool load_texts(const json_t *json, const char *name, const char **text, unsigned most, unsigned *count, struct error *err)
{
    if (!load_count(json, name, most, count, err))
        return false;
    for (unsigned i = 0; i < *count; i++) {
        text[i] = json_string_value(json_array_get(json_object_get(json, name), i));
        if (!text[i])
            return error_set(err, "the snapshot's configuration is damaged at '%s'", name);
    }
    return true;
}

static bool load_devices(struct machine_config *config, const json_t *json, struct error *err)
{
    if (!load_count(json, "disks", MACHINE_DISKS_MAX, &config->disk_count, err) ||
        !load_count(json, "nets", MACHINE_NETS_MAX, &config->net_count, err))
        return false;
    for (unsigned i = 0; i < config->disk_count; i++) {
        const json_t *disk = json_array_get(json_object_get(json, "disks"), i);
        if (!load_object(disk_fields, ARRAY_SIZE(disk_fields), &config->disk[i], disk, err))
            return false;
        if (!config->disk[i].path && config->disk[i].bus != DISK_CDROM)
            return error_set(err, "the snapshot's configuration is damaged: disk %u has no path", i);
    }
    for (unsigned i = 0; i < config->net_count; i++) {
        const json_t *net = json_array_get(json_object_get(json, "nets"), i);
        if (!load_object(net_fields, ARRAY_SIZE(net_fields), &config->net[i], net, err))
            return false;
        if (!config->net[i].backend)
            return error_set(err, "the snapshot's configuration is damaged: network card %u has no backend", i);
    }
    return true;
}

bool snapshot_config_load(struct machine_config *config, const json_t *json, struct error *err)
{
    machine_config_defaults(config);
    return load_object(machine_fields, ARRAY_SIZE(machine_fields), config, json, err) &&
           load_texts(json, "initrds", config->initrd, MACHINE_INITRDS_MAX, &config->initrd_count, err) &&
           load_texts(json, "extras", config->extra, MACHINE_EXTRA_MAX, &config->extra_count, err) &&
           load_devices(config, json, err);
}
