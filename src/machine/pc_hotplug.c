/* Disks, cards and media that come and go while the machine runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block.h"
#include "backend/net.h"
#include "dev/net/e1000.h"
#include "dev/storage/ahci.h"
#include "dev/virtio/devices.h"
#include "machine/pc.h"
#include "machine/pc_internal.h"

/* --- coming --- */

/* A slot that was promised to one that is gone is free for another. */
static void take_slot(struct machine *machine, uint8_t *slot)
{
    struct machine_config *config = &machine->config;
    uint8_t found = pc_free_slot(machine, NULL);
    for (unsigned i = 0; i < config->disk_count; i++)
        config->disk[i].slot = config->disk[i].slot == found ? 0 : config->disk[i].slot;
    for (unsigned i = 0; i < config->net_count; i++)
        config->net[i].slot = config->net[i].slot == found ? 0 : config->net[i].slot;
    *slot = found;
}

bool pc_add_disk(struct machine *machine, unsigned i, struct error *err)
{
    if (!pc_open_disk(machine, i, err))
        return false;
    take_slot(machine, &machine->config.disk[i].slot);
    if (pc_make_disk(machine, i, err))
        return true;
    block_close(machine->block[i]);
    machine->block[i] = NULL;
    return false;
}

bool pc_add_net(struct machine *machine, unsigned i, struct error *err)
{
    if (!pc_open_net(machine, i, err))
        return false;
    take_slot(machine, &machine->config.net[i].slot);
    if (pc_make_net(machine, i, err))
        return true;
    net_close(machine->net[i]);
    machine->net[i] = NULL;
    return false;
}

/* --- media --- */

/* The configuration names it. */
static bool open_medium(struct machine *machine, unsigned i, bool force, struct error *err)
{
    struct ata_drive *drive = &((struct ahci *)machine->ahci)->port[pc_ahci_port(&machine->config, i)].drive;
    machine->block[i] = NULL;
    if (machine->config.disk[i].path && !pc_open_disk(machine, i, err))
        return false;
    if (force || !atapi_medium_is_locked(drive))
        return true;
    atapi_press_eject(drive);
    if (machine->block[i])
        block_close(machine->block[i]);
    return error_set(err, "the guest has locked the medium in, perhaps as it is mounted. It has been asked for it: unmount or eject it there and try "
                     "again, or take it by force");
}

bool pc_change_medium(struct machine *machine, unsigned i, const struct disk_config *medium, bool force, struct error *err)
{
    struct machine_config *config = &machine->config;
    const struct disk_config before = config->disk[i];
    struct block *old = machine->block[i];
    config->disk[i] = *medium;
    if (!open_medium(machine, i, force, err)) {
        config->disk[i] = before;
        machine->block[i] = old;
        return false;
    }
    ahci_change_medium((struct ahci *)machine->ahci, pc_ahci_port(config, i), machine->block[i]);
    if (old)
        block_close(old);
    return true;
}

/* --- going --- */

static void end_device(struct machine *machine, struct device *device)
{
    struct device **at = &machine->devices;
    while (*at != device)
        at = &(*at)->next;
    *at = device->next;
    device->type->fini(device);
    device->next = machine->pc->removed;
    machine->pc->removed = device;
}

static struct device *find_device(const struct machine *machine, const char *prefix, unsigned i)
{
    char name[32];
    snprintf(name, sizeof(name), "%s%u", prefix, i);
    struct device *device = machine->devices;
    while (device && strcmp(device->name, name))
        device = device->next;
    return device;
}

static void end_disk(struct machine *machine, unsigned i)
{
    end_device(machine, find_device(machine, "virtio-blk", i));
    block_close(machine->block[i]);
    machine->block[i] = NULL;
    machine->disk_device[i] = NULL;
    machine->config.disk[i].absent = true;
}

static void end_net(struct machine *machine, unsigned i)
{
    end_device(machine, find_device(machine, pc_net_prefix(machine, i), i));
    net_close(machine->net[i]);
    machine->net[i] = NULL;
    machine->net_device[i] = NULL;
    machine->config.net[i].absent = true;
}

/* On the loop's thread. */
void pc_end_ejected(void *owner)
{
    struct machine *machine = owner;
    const struct machine_config *config = &machine->config;
    pthread_mutex_lock(&machine->lock);
    uint32_t ejected = machine->pc->ejected;
    machine->pc->ejected = 0;
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disk[i].absent && ejected >> config->disk[i].slot & 1)
            end_disk(machine, i);
    for (unsigned i = 0; i < config->net_count; i++)
        if (!config->net[i].absent && ejected >> config->net[i].slot & 1)
            end_net(machine, i);
    pthread_mutex_unlock(&machine->lock);
}

/* Only disks and cards go; what the guest lets go besides stays. */
void pc_on_eject(void *owner, unsigned slot)
{
    struct machine *machine = owner;
    struct pci_function *function = pci_bus_find(machine->pci, (uint8_t)(slot << 3));
    const struct device_type *type = slot && function ? function->device.type : NULL;
    if (type != &device_virtio_blk && type != &device_virtio_net && type != &device_e1000)
        return;
    pci_intx(function, false);
    pci_bus_detach(machine->pci, function);
    machine->pc->ejected |= 1u << slot;
    loop_post(machine->loop, &machine->pc->eject_work);
}

void pc_free_removed(struct machine *machine)
{
    pthread_mutex_lock(&machine->lock);
    while (machine->pc->removed) {
        struct device *device = machine->pc->removed;
        machine->pc->removed = device->next;
        free(device);
    }
    pthread_mutex_unlock(&machine->lock);
}
