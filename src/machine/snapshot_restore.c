/*
 * A machine from a snapshot: it is built as any other, and then memory, processors and devices get the saved state in place of
 * what images and a reset would have given them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "dev/device.h"
#include "dev/vmgenid.h"
#include "machine/snapshot_internal.h"
#include "vcpu/work.h"
#include "x86/pvclock.h"
#include "x86/x86.h"

struct restoring {
    struct snapshot *snapshot;
    const struct restore_options *options;
};

/* Loads one section that must hold exactly one object. */
static bool load_section(const struct snapshot *snapshot, const char *name, const struct state_list *list, void *object,
                         struct error *err)
{
    const struct state_buffer *section = container_find(&snapshot->layer[0].state, name);
    struct error why;
    size_t used;
    if (!section)
        return error_set(err, "the snapshot has no section %s", name);
    if (!state_load(list, object, section->data, section->size, &used, &why))
        return error_set(err, "section %s of the snapshot: %s", name, why.text);
    return used == section->size || error_set(err, "section %s of the snapshot is longer than what it holds", name);
}

/* --- processors --- */

static bool load_vcpu(const struct restoring *restoring, struct vcpu *vcpu, struct error *err)
{
    char name[CONTAINER_NAME_MAX];
    struct snapshot_requests requests = { 0 };
    snprintf(name, sizeof(name), "vcpu/%u", vcpu->index);
    if (!load_section(restoring->snapshot, name, &vcpu_state_list, vcpu, err) || !x86_state_loaded(vcpu, err))
        return false;
    snprintf(name, sizeof(name), "requests/%u", vcpu->index);
    if (!load_section(restoring->snapshot, name, &snapshot_requests_list, &requests, err))
        return false;
    vcpu_kick(vcpu, requests.pending & (REQUEST_NMI | REQUEST_INIT | REQUEST_SIPI));
    return true;
}

/* --- devices: none goes on before all have their state, as their lines lead to each other --- */

static bool load_devices(const struct restoring *restoring, struct machine *machine, struct error *err)
{
    for (struct device *device = machine->devices; device; device = device->next)
        if (device->type->quiesce)
            device->type->quiesce(device);
    for (struct device *device = machine->devices; device; device = device->next) {
        char name[CONTAINER_NAME_MAX];
        snprintf(name, sizeof(name), "device/%s", device->name);
        /* The guest knows nothing of a device that came with a later version. */
        if (!container_find(&restoring->snapshot->layer[0].state, name))
            log_message(&machine->log, LOG_WARNING, "the snapshot is older than device %s, which begins as after a reset", device->name);
        else if (!load_section(restoring->snapshot, name, device->type->state, device, err) ||
                 (device->type->accepts && !device->type->accepts(device, err)))
            return false;
    }
    for (struct device *device = machine->devices; device; device = device->next)
        if (device->type->resume)
            device->type->resume(device);
    return true;
}

/* A device of the snapshot that this machine does not have would be lost without a word. */
static bool every_device_is_here(const struct restoring *restoring, const struct machine *machine, struct error *err)
{
    const struct container *state = &restoring->snapshot->layer[0].state;
    for (unsigned i = 0; i < state->count; i++) {
        const char *name = state->section[i].name;
        if (strncmp(name, "device/", 7))
            continue;
        const struct device *device = machine->devices;
        while (device && strcmp(device->name, name + 7))
            device = device->next;
        if (!device)
            return error_set(err, "the snapshot has a device %s, which this machine has not", name + 7);
    }
    return true;
}

/* --- the whole --- */

static void tell_stopped(struct vcpu *vcpu, void *argument) { pvclock_tell_stopped(vcpu); }

static bool load_clock(const struct restoring *restoring, struct machine *machine, struct error *err)
{
    struct snapshot_clock saved;
    if (!load_section(restoring->snapshot, SECTION_CLOCK, &snapshot_clock_list, &saved, err))
        return false;
    uint64_t hz = clock_tsc_hz(machine->clock);
    if (hz == saved.tsc_hz)
        clock_set_tsc(machine->clock, saved.tsc);
    else
        clock_set_ns(machine->clock, (uint64_t)((unsigned __int128)saved.tsc * NS_PER_SECOND / saved.tsc_hz));
    if (hz / 1000 != saved.tsc_hz / 1000)
        log_message(&machine->log, LOG_WARNING, "the snapshot was taken where the TSC runs at %lu kHz; here it is %lu kHz, and a guest "
                    "that keeps time by it goes wrong", (unsigned long)(saved.tsc_hz / 1000), (unsigned long)(hz / 1000));
    return true;
}

static bool load_machine(void *owner, struct machine *machine, struct error *err)
{
    const struct restoring *restoring = owner;
    struct snapshot *snapshot = restoring->snapshot;
    enum restore_memory how = restoring->options->memory;
    if (!load_clock(restoring, machine, err) || !snapshot_load_memory(machine->ram, snapshot->layer, snapshot->layers, how, err))
        return false;
    for (unsigned i = 0; i < machine->config.cpus; i++)
        if (!load_vcpu(restoring, machine->vcpu[i], err))
            return false;
    pthread_mutex_lock(&machine->lock);
    bool ok = every_device_is_here(restoring, machine, err) && load_devices(restoring, machine, err);
    if (ok && !restoring->options->exact)
        vmgenid_renew((struct vmgenid *)machine->vmgenid);
    pthread_mutex_unlock(&machine->lock);
    ram_dirty_start(machine->ram, DIRTY_SNAPSHOT);
    strcpy(machine->snapshot_id, snapshot->layer[0].id);
    for (unsigned i = 0; ok && !restoring->options->exact && i < machine->config.cpus; i++)
        vcpu_run_on(NULL, machine->vcpu[i], tell_stopped, NULL);
    return ok;
}

/* A qcow2 overlay on the snapshot's disk, which all machines that come of it read. */
static bool make_overlay(const struct disk_config *disk, const char *base, const char *path, struct error *err)
{
    struct disk_image_options look = disk->image;
    look.read_only = true;
    struct disk_image *image = disk_image_open(base, &look, err);
    if (!image)
        return false;
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = image->size, .backing_name = base,
                                          .backing_format = image->ops->format };
    disk_image_close(image);
    return disk_image_create(path, &plan, err);
}

/*
 * One disk that the guest writes to. Where the snapshot's own copy is an overlay itself (of a machine that was restored) it is copied again: it
 * only holds what was written since, and chains of images do not grow with each round.
 */
static bool make_disk(struct snapshot *snapshot, unsigned i, const char *directory, struct error *err)
{
    struct disk_config *disk = &snapshot->config.disk[i];
    char base[PATH_MAX];
    bool in_place;
    if (!snapshot_disk_find(snapshot, i, base, &in_place, err))
        return false;
    bool copy = !in_place && disk->image.format == DISK_FORMAT_QCOW2 && disk->image.backing;
    if (asprintf(&snapshot->disk_path[i], "%s/disk-%u.qcow2", directory, i) < 0)
        return error_set(err, "no memory for a machine");
    if (!(copy ? snapshot_copy_file(AT_FDCWD, base, AT_FDCWD, snapshot->disk_path[i], err)
               : make_overlay(disk, base, snapshot->disk_path[i], err)))
        return false;
    disk->path = snapshot->disk_path[i];
    disk->image.format = DISK_FORMAT_QCOW2;
    disk->image.backing = true;
    disk->image.direct = false;         /* for raw images only */
    return true;
}

static bool make_disks(const struct restoring *restoring, struct error *err)
{
    const struct machine_config *config = &restoring->snapshot->config;
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (config->disk[i].image.read_only || config->disk[i].absent)
            continue;
        if (!restoring->options->disks)
            return error_set(err, "the snapshot has disks that the guest writes to: say in which directory those of this machine are to be (--disks DIR)");
        if (!snapshot_disk_directory(restoring->options->disks, err) || !make_disk(restoring->snapshot, i, restoring->options->disks, err))
            return false;
    }
    return true;
}

struct machine *machine_restore(struct snapshot *snapshot, const struct restore_options *options, struct error *err)
{
    static const struct restore_options none;
    struct restoring restoring = { snapshot, options ? options : &none };
    struct snapshot_clock clock;
    for (unsigned i = 0; restoring.options->verify && i < snapshot->layers; i++)
        if (!snapshot_verify_memory(&snapshot->layer[i], err))
            return NULL;
    if (!load_section(snapshot, SECTION_CLOCK, &snapshot_clock_list, &clock, err))
        return NULL;
    if (!clock.tsc_hz) {
        error_set(err, "section %s of the snapshot is damaged", SECTION_CLOCK);
        return NULL;
    }
    if (!make_disks(&restoring, err))
        return NULL;
    const struct machine_origin origin = { .tsc_hz = clock.tsc_hz, .load = load_machine, .owner = &restoring };
    return machine_create_from(&snapshot->config, &origin, err);
}
