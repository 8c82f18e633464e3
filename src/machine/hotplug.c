/*
 * Who asks waits while the loop's thread does the work: backends are opened and closed there, as its descriptors are. A device that goes is taken off the bus at
 * once, and ended by the loop. Its memory is kept until the vCPUs stand still the next time, since one of them may just have found its region and wait for the
 * board lock.
 */
#include "machine/hotplug.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/loop.h"
#include "dev/pci/pci.h"
#include "dev/pci_hotplug.h"
#include "machine/pc.h"

/* --- names --- */

void machine_disk_id(const struct machine_config *config, unsigned i, char id[DEVICE_ID_SIZE])
{
    const char *own = config->disk[i].id;
    snprintf(id, DEVICE_ID_SIZE, own ? "%s" : "_disk%.0s%u", own ? own : "", i);
}

void machine_net_id(const struct machine_config *config, unsigned i, char id[DEVICE_ID_SIZE])
{
    const char *own = config->net[i].id;
    snprintf(id, DEVICE_ID_SIZE, own ? "%s" : "_net%.0s%u", own ? own : "", i);
}

enum kind { KIND_DISK, KIND_NET, KIND_NONE };

static enum kind find(const struct machine_config *config, const char *id, unsigned *index)
{
    char other[DEVICE_ID_SIZE];
    for (*index = 0; *index < config->disk_count; ++*index) {
        machine_disk_id(config, *index, other);
        if (!config->disk[*index].absent && !strcmp(id, other))
            return KIND_DISK;
    }
    for (*index = 0; *index < config->net_count; ++*index) {
        machine_net_id(config, *index, other);
        if (!config->net[*index].absent && !strcmp(id, other))
            return KIND_NET;
    }
    return KIND_NONE;
}

static unsigned count_cdroms(const struct machine_config *config, char *names, size_t size)
{
    unsigned count = 0;
    size_t used = 0;
    char id[DEVICE_ID_SIZE];
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (config->disk[i].absent || config->disk[i].bus != DISK_CDROM)
            continue;
        machine_disk_id(config, i, id);
        used += used < size ? (size_t)snprintf(names + used, size - used, "%s%s", count ? ", " : "", id) : 0;
        count++;
    }
    return count;
}

bool machine_find_cdrom(const struct machine_config *config, const char *id, unsigned *index, struct error *err)
{
    char names[256] = "", other[DEVICE_ID_SIZE];
    unsigned count = count_cdroms(config, names, sizeof(names));
    if (!count)
        return error_set(err, "the machine has no CD-ROM drive; one is there from the start, with --cdrom FILE or --cdrom none");
    if (!id && count > 1)
        return error_set(err, "which of the CD-ROM drives is meant? There are %s", names);
    for (*index = 0; *index < config->disk_count; ++*index) {
        machine_disk_id(config, *index, other);
        if (!config->disk[*index].absent && config->disk[*index].bus == DISK_CDROM && (!id || !strcmp(id, other)))
            return true;
    }
    return error_set(err, "'%.80s' is no CD-ROM drive; there %s %s", id, count > 1 ? "are" : "is", names);
}

/* --- errands for the loop's thread --- */

struct errand {
    struct loop_work work;
    struct machine *machine;
    bool (*run)(struct machine *machine, const struct errand *errand, struct error *err);
    const struct disk_config *disk;
    const struct net_config *net;
    const struct medium_change *medium;
    unsigned drive;                     /* the medium's */
    struct hotplug_place *place;
    struct error *err;
    bool ok, done;                      /* under state_lock */
};

static void run_errand(void *owner)
{
    struct errand *errand = owner;
    struct machine *machine = errand->machine;
    pthread_mutex_lock(&machine->lock);
    bool ok = errand->run(machine, errand, errand->err);
    pthread_mutex_unlock(&machine->lock);
    pthread_mutex_lock(&machine->state_lock);
    errand->ok = ok;
    errand->done = true;
    pthread_cond_broadcast(&machine->state_changed);
    pthread_mutex_unlock(&machine->state_lock);
}

/* The loop may have stopped with the machine's end: then the errand is taken back, or just being run. */
static bool wait_for(struct errand *errand)
{
    struct machine *machine = errand->machine;
    pthread_mutex_lock(&machine->state_lock);
    while (!errand->done && machine->end == END_NONE)
        pthread_cond_wait(&machine->state_changed, &machine->state_lock);
    bool done = errand->done;
    pthread_mutex_unlock(&machine->state_lock);
    return done;
}

static bool send(struct errand *errand)
{
    struct machine *machine = errand->machine;
    errand->work = (struct loop_work){ .run = run_errand, .owner = errand };
    machine_pause(machine);
    pc_free_removed(machine);
    loop_post(machine->loop, &errand->work);
    if (!wait_for(errand) && loop_cancel(machine->loop, &errand->work)) {
        machine_resume(machine);
        return error_set(errand->err, "the machine is ending");
    }
    pthread_mutex_lock(&machine->state_lock);
    while (!errand->done)
        pthread_cond_wait(&machine->state_changed, &machine->state_lock);
    pthread_mutex_unlock(&machine->state_lock);
    machine_resume(machine);
    return errand->ok;
}

/* --- adding --- */

static bool id_is_free(const struct machine_config *config, const char *id, struct error *err)
{
    unsigned index;
    if (id && strlen(id) >= DEVICE_ID_SIZE)
        return error_set(err, "an id has at most %d characters", DEVICE_ID_SIZE - 1);
    return !id || find(config, id, &index) == KIND_NONE || error_set(err, "there is a device '%s' already", id);
}

static void tell_guest(struct machine *machine, uint8_t devfn)
{
    pci_hotplug_came((struct pci_hotplug *)machine->pci_hotplug, devfn >> 3);
}

static bool add_disk(struct machine *machine, const struct errand *errand, struct error *err)
{
    struct machine_config *config = &machine->config;
    unsigned i = 0;
    while (i < config->disk_count && !config->disk[i].absent)
        i++;
    if (i == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks", MACHINE_DISKS_MAX);
    if (errand->disk->bus != DISK_VIRTIO)
        return error_set(err, "only virtio disks can be added to a machine that runs");
    if (!id_is_free(config, errand->disk->id, err))
        return false;
    const struct disk_config before = config->disk[i];
    config->disk[i] = *errand->disk;
    if (!pc_add_disk(machine, i, err)) {
        config->disk[i] = before;
        return false;
    }
    config->disk_count = max_u64(config->disk_count, i + 1);
    machine_disk_id(config, i, errand->place->id);
    errand->place->devfn = (uint8_t)(config->disk[i].slot << 3);
    tell_guest(machine, errand->place->devfn);
    return true;
}

static bool add_net(struct machine *machine, const struct errand *errand, struct error *err)
{
    struct machine_config *config = &machine->config;
    unsigned i = 0;
    while (i < config->net_count && !config->net[i].absent)
        i++;
    if (i == MACHINE_NETS_MAX)
        return error_set(err, "a machine has at most %d network cards", MACHINE_NETS_MAX);
    if (!id_is_free(config, errand->net->id, err))
        return false;
    const struct net_config before = config->net[i];
    config->net[i] = *errand->net;
    if (!pc_add_net(machine, i, err)) {
        config->net[i] = before;
        return false;
    }
    config->net_count = max_u64(config->net_count, i + 1);
    machine_net_id(config, i, errand->place->id);
    errand->place->devfn = (uint8_t)(config->net[i].slot << 3);
    tell_guest(machine, errand->place->devfn);
    return true;
}

bool machine_add_disk(struct machine *machine, const struct disk_config *disk, struct hotplug_place *place, struct error *err)
{
    struct errand errand = { .machine = machine, .run = add_disk, .disk = disk, .place = place, .err = err };
    return send(&errand);
}

bool machine_add_net(struct machine *machine, const struct net_config *net, struct hotplug_place *place, struct error *err)
{
    struct errand errand = { .machine = machine, .run = add_net, .net = net, .place = place, .err = err };
    return send(&errand);
}

/* --- removing --- */

bool machine_remove_device(struct machine *machine, const char *id, struct error *err)
{
    unsigned i;
    pthread_mutex_lock(&machine->lock);
    enum kind kind = find(&machine->config, id, &i);
    unsigned slot = kind == KIND_DISK ? machine->config.disk[i].slot : kind == KIND_NET ? machine->config.net[i].slot : 0;
    if (slot)
        pci_hotplug_ask_back((struct pci_hotplug *)machine->pci_hotplug, slot);
    pthread_mutex_unlock(&machine->lock);
    if (kind == KIND_NONE)
        return error_set(err, "there is no disk or network card '%s'", id);
    return slot || error_set(err, "'%s' cannot be removed: it is not in a PCI slot of its own", id);
}

/* --- media --- */

struct disk_config machine_disk_with(const struct disk_config *disk, const struct medium_change *change)
{
    struct disk_config other = *disk;
    other.path = change->path;
    other.image = (struct disk_image_options){ .format = change->format, .read_only = true };
    return other;
}

static bool change_medium(struct machine *machine, const struct errand *errand, struct error *err)
{
    struct medium_change change = *errand->medium;
    if (change.path && !(change.path = machine_keep_text(machine, change.path)))
        return error_set(err, "no memory for the name of the image");
    const struct disk_config disk = machine_disk_with(&machine->config.disk[errand->drive], &change);
    return pc_change_medium(machine, errand->drive, &disk, change.force, err);
}

bool machine_change_medium(struct machine *machine, const struct medium_change *change, struct error *err)
{
    struct errand errand = { .machine = machine, .run = change_medium, .medium = change, .err = err };
    pthread_mutex_lock(&machine->lock);
    bool found = machine_find_cdrom(&machine->config, change->id, &errand.drive, err);
    pthread_mutex_unlock(&machine->lock);
    return found && send(&errand);          /* drives neither come nor go */
}
