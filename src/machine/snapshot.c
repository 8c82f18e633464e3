/*
 * Taking a snapshot. The directory is made under another name, and gets its own when everything is in it and on the disk; the
 * machine stands still only while state and memory are copied to the host's page cache.
 */
#include "machine/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "backend/block.h"
#include "base/clock.h"
#include "dev/device.h"
#include "engine/engine.h"
#include "machine/snapshot_internal.h"
#include "mmu/mmu.h"
#include "vcpu/work.h"
#include "x86/x86.h"

struct saving {
    struct machine *machine;
    struct snapshot_options options;
    struct snapshot_draft draft;
    char id[SNAPSHOT_ID_SIZE];
    struct snapshot_layer parent;
    unsigned switched;              /* disks that are in overlays now */
    struct container state;
    struct error *err;
};

/* --- processors, devices --- */

static void save_vcpu(struct vcpu *vcpu, void *out)
{
    x86_state_tidy(vcpu);
    state_save(&vcpu_state_list, vcpu, out);
}

static void save_vcpus(struct saving *saving)
{
    for (unsigned i = 0; i < saving->machine->config.cpus; i++) {
        char name[CONTAINER_NAME_MAX];
        snprintf(name, sizeof(name), "vcpu/%u", i);
        vcpu_run_on(NULL, saving->machine->vcpu[i], save_vcpu, container_add(&saving->state, name));
    }
}

/* Messages between processors that are still on their way; an interrupt is asked of the local APIC again. */
static void save_requests(struct saving *saving)
{
    for (unsigned i = 0; i < saving->machine->config.cpus; i++) {
        char name[CONTAINER_NAME_MAX];
        snprintf(name, sizeof(name), "requests/%u", i);
        const struct snapshot_requests requests = {
            atomic_load(&saving->machine->vcpu[i]->request) & (REQUEST_NMI | REQUEST_INIT | REQUEST_SIPI)
        };
        state_save(&snapshot_requests_list, &requests, container_add(&saving->state, name));
    }
}

/* All are quiet before the first is saved: what one finishes may change another. */
static void quiesce_devices(struct machine *machine)
{
    for (struct device *device = machine->devices; device; device = device->next)
        if (device->type->quiesce)
            device->type->quiesce(device);
}

static void resume_devices(struct machine *machine)
{
    for (struct device *device = machine->devices; device; device = device->next)
        if (device->type->resume)
            device->type->resume(device);
}

static void save_devices(struct saving *saving)
{
    for (struct device *device = saving->machine->devices; device; device = device->next) {
        char name[CONTAINER_NAME_MAX];
        snprintf(name, sizeof(name), "device/%s", device->name);
        state_save(device->type->state, device, container_add(&saving->state, name));
    }
}

static void save_clock(struct saving *saving)
{
    struct clock *clock = saving->machine->clock;
    const struct snapshot_clock now = { clock_tsc(clock), clock_tsc_hz(clock), clock_wall_ns(clock) };
    state_save(&snapshot_clock_list, &now, container_add(&saving->state, SECTION_CLOCK));
}

/* --- memory --- */

static void drop_write_entries(struct vcpu *vcpu, void *argument) { mmu_drop_all_write_entries(vcpu); }

/* Takes the marks of a slot. Nobody writes until the processors' entries are dropped, too: they stand still. */
static uint64_t *collect_dirty(struct saving *saving, const struct ram_slot *slot)
{
    uint64_t *bitmap = calloc((slot->size >> PAGE_SHIFT) / 64 + 1, sizeof(*bitmap));
    if (bitmap)
        ram_dirty_collect(saving->machine->ram, DIRTY_SNAPSHOT, slot, bitmap);
    return bitmap;
}

/* Processors may hold the right to write to pages whose marks were just taken. */
static void drop_all_write_entries(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_run_on(NULL, machine->vcpu[i], drop_write_entries, NULL);
}

/* From here on pages are marked that differ from this snapshot. */
static bool save_memory(struct saving *saving)
{
    struct ram *ram = saving->machine->ram;
    bool ok = true;
    ram_dirty_start(ram, DIRTY_SNAPSHOT);
    for (unsigned i = 0; i < ram->slot_count && ok; i++) {
        uint64_t *dirty = collect_dirty(saving, &ram->slot[i]);
        ok = dirty || error_set(saving->err, "no memory for the snapshot");
        ok = ok && snapshot_save_slot(&saving->state, saving->draft.directory, &ram->slot[i], i,
                                      saving->options.parent ? dirty : NULL, saving->options.compress, saving->err);
        free(dirty);
    }
    return ok;
}

/* --- disks: of those that are written to, while nothing is under way --- */

static bool is_written_to(const struct disk_config *disk) { return !disk->absent && !disk->image.read_only; }

/* Afterwards their files hold all of them. */
static bool settle_disks(struct saving *saving)
{
    const struct machine_config *config = &saving->machine->config;
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (config->disk[i].image.ephemeral)
            return error_set(saving->err, "the disk %s is ephemeral; a snapshot cannot keep what was written to it", config->disk[i].path);
        if (is_written_to(&config->disk[i]) && !block_settle(saving->machine->block[i], saving->err))
            return false;
    }
    return true;
}

static bool copy_disks(struct saving *saving)
{
    const struct machine_config *config = &saving->machine->config;
    for (unsigned i = 0; i < config->disk_count; i++) {
        char name[CONTAINER_NAME_MAX];
        snprintf(name, sizeof(name), "disk-%u", i);
        if (is_written_to(&config->disk[i]) &&
            !snapshot_copy_file(AT_FDCWD, config->disk[i].path, saving->draft.directory, name, saving->err))
            return false;
    }
    return true;
}

/* What is noted of images that stay in place. */
static bool note_disks(const struct saving *saving, json_t *disks)
{
    const struct machine_config *config = &saving->machine->config;
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (!is_written_to(&config->disk[i]))
            continue;
        json_t *note = snapshot_disk_note(config->disk[i].path, saving->err);
        if (!note)
            return false;
        json_object_set_new(json_array_get(disks, i), DISK_IN_PLACE, note);
    }
    return true;
}

static bool switch_disks(struct saving *saving)
{
    const struct machine_config *config = &saving->machine->config;
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (!is_written_to(&config->disk[i]))
            continue;
        if (!snapshot_disk_go_over(saving->machine, i, saving->options.disks, saving->err))
            return false;
        saving->switched++;
    }
    return true;
}

/* --- the manifest --- */

static void make_id(char id[SNAPSHOT_ID_SIZE])
{
    uint8_t bytes[(SNAPSHOT_ID_SIZE - 1) / 2];
    if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
        abort();        /* small requests do not fail on any kernel that we run on */
    for (unsigned i = 0; i < sizeof(bytes); i++)
        sprintf(id + i * 2, "%02x", bytes[i]);
}

/* Relative where both lie side by side, so that a chain can be moved as a whole. */
static json_t *parent_json(const struct saving *saving)
{
    char path[PATH_MAX], own[PATH_MAX];
    if (!saving->options.parent)
        return json_null();
    if (!realpath(saving->options.parent, path) || !realpath(saving->draft.path, own))
        return NULL;
    const char *base = strrchr(path, '/'), *own_base = strrchr(own, '/');
    bool siblings = base - path == own_base - own && !memcmp(path, own, (size_t)(base - path));
    return json_pack("{s:o, s:s}", "directory", siblings ? json_sprintf("..%s", base) : json_string(path), "id", saving->parent.id);
}

static json_t *time_json(void)
{
    char text[32];
    time_t now = time(NULL);
    struct tm tm;
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    return json_string(text);
}

/* The engine that runs it now; whether anybody chose that, on the command line or since. */
static void note_engine(const struct machine *machine, json_t *config)
{
    bool by_default = (!machine->config.engine || machine->config.engine_was_default) && machine->vcpu[0]->engine == machine->first_engine;
    json_object_set_new(config, "engine", json_string(machine->vcpu[0]->engine->name));
    json_object_set_new(config, "engine_was_default", json_boolean(by_default));
}

/* Into the section `manifest`, which is there. The disks are settled. */
static bool save_manifest(struct saving *saving)
{
    json_t *config = snapshot_config_save(&saving->machine->config);
    if (saving->options.disks && !note_disks(saving, json_object_get(config, "disks"))) {
        json_decref(config);
        return false;
    }
    note_engine(saving->machine, config);
    json_t *manifest = json_pack("{s:s, s:o, s:o, s:o}", "id", saving->id, "parent", parent_json(saving), "created", time_json(),
                                 "config", config);
    char *text = manifest ? json_dumps(manifest, JSON_INDENT(2)) : NULL;
    json_decref(manifest);
    if (!text)
        return error_set(saving->err, "the machine's configuration cannot be written as JSON");
    size_t size = strlen(text);
    memcpy(state_buffer_append(&saving->state.section[0].content, size), text, size);
    free(text);
    return true;
}

/* --- the whole --- */

/* All but the processors. Disks go over to overlays last, when little can go wrong any more. */
static bool save_board(struct saving *saving)
{
    save_devices(saving);
    save_requests(saving);
    return settle_disks(saving) && save_manifest(saving) && save_memory(saving) && (saving->options.disks || copy_disks(saving)) &&
           container_write(&saving->state, saving->draft.directory, SNAPSHOT_STATE_FILE, saving->err) &&
           (!saving->options.disks || switch_disks(saving));
}

/* The machine stands still. Processors first, with no lock held; then everything that the board lock guards. */
static bool save_machine(struct saving *saving)
{
    struct machine *machine = saving->machine;
    container_add(&saving->state, SECTION_MANIFEST);        /* the first section, filled in later */
    save_clock(saving);
    save_vcpus(saving);
    pthread_mutex_lock(&machine->lock);
    quiesce_devices(machine);
    bool ok = save_board(saving);
    resume_devices(machine);
    pthread_mutex_unlock(&machine->lock);
    drop_all_write_entries(machine);
    return ok;
}

/* Only what changed since the last snapshot is known, so that must be the parent. */
static bool check_parent(struct saving *saving)
{
    const char *parent = saving->options.parent;
    if (!parent)
        return true;
    if (!snapshot_layer_open(&saving->parent, parent, saving->err))
        return false;
    if (!strcmp(saving->parent.id, saving->machine->snapshot_id))
        return true;
    if (!*saving->machine->snapshot_id)
        return error_set(saving->err, "there is no snapshot yet that this machine's could be based on; take a full one first");
    return error_set(saving->err, "%s is not the last snapshot of this machine, and only what changed since that is known; "
                     "base it on the last one, or take a full one", parent);
}

static bool check_place(struct saving *saving)
{
    const char *disks = saving->options.disks;
    return !disks || snapshot_disk_directory(disks, saving->err);
}

bool machine_snapshot(struct machine *machine, const char *directory, const struct snapshot_options *options, struct error *err)
{
    struct saving saving = { .machine = machine, .parent = { .directory = -1 }, .err = err };
    if (options)
        saving.options = *options;
    make_id(saving.id);
    pthread_mutex_lock(&machine->snapshot_lock);
    machine_pause(machine);
    bool ok = snapshot_draft_begin(&saving.draft, directory, err) && check_parent(&saving) && check_place(&saving);
    if (ok) {
        ok = save_machine(&saving);
        strcpy(machine->snapshot_id, ok ? saving.id : "");
    }
    machine_resume(machine);
    if (ok && !snapshot_draft_complete(&saving.draft, directory, err)) {
        *machine->snapshot_id = 0;
        ok = false;
    }
    if (!ok && saving.switched)
        log_message(&machine->log, LOG_WARNING, "the snapshot has failed, but the machine writes to its overlays in %s from now on", saving.options.disks);
    pthread_mutex_unlock(&machine->snapshot_lock);
    snapshot_draft_end(&saving.draft);
    snapshot_layer_close(&saving.parent);
    container_free(&saving.state);
    return ok;
}
