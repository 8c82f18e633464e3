/* What the devices of the board stand for on the host. */
#include <string.h>

#include "backend/block.h"
#include "backend/chardev.h"
#include "backend/net.h"
#include "machine/pc_internal.h"
#include "mem/ram.h"

/* What other processes may be given: the large pieces of RAM, whose pages are where they are for good. */
static const struct shared_memory *shared_memory(struct machine *machine)
{
    struct shared_memory *shared = &machine->pc->shared_memory;
    shared->count = 0;
    for (unsigned i = 0; i < machine->ram->slot_count && shared->count < SHARED_REGIONS_MAX && !machine->restored; i++) {
        const struct ram_slot *slot = &machine->ram->slot[i];
        if (!slot->rom && slot->size >= MiB)
            shared->region[shared->count++] = (struct shared_region){ slot->host - slot->fd_offset, slot->fd_offset + slot->size, slot->fd };
    }
    return shared;
}

static bool open_chardev(struct machine *machine, const char *text, struct chardev **chardev, struct error *err)
{
    if (!text || !strcmp(text, "none"))
        return true;
    *chardev = chardev_open(text, machine->loop, &machine->lock, &machine->log, err);
    return *chardev;
}

bool pc_open_disk(struct machine *machine, unsigned i, struct error *err)
{
    struct disk_config *disk = &machine->config.disk[i];
    struct block_options options = { .path = disk->path, .image = disk->image, .engine = disk->engine };
    options.image.memory = shared_memory(machine);
    if (i == 0) {
        options.opened = machine->first_image;
        machine->first_image = NULL;
    }
    machine->block[i] = block_open(&options, machine->loop, &machine->lock, &machine->log, err);
    /* Settled once, as the image may be found under another name later: a snapshot's copy. */
    if (disk->image.format == DISK_FORMAT_BY_NAME)
        disk->image.format = disk_format_of_name(disk->path);
    return machine->block[i];
}

bool pc_open_net(struct machine *machine, unsigned i, struct error *err)
{
    machine->net[i] = net_open(machine->config.net[i].backend, machine->loop, machine->clock, &machine->lock, &machine->log, err);
    return machine->net[i];
}

bool pc_open_backends(struct machine *machine, struct error *err)
{
    struct machine_config *config = &machine->config;
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disk[i].absent && config->disk[i].path && !pc_open_disk(machine, i, err))
            return false;
    for (unsigned i = 0; i < config->net_count; i++)
        if (!config->net[i].absent && !pc_open_net(machine, i, err))
            return false;
    /* The terminal last: nothing that fails after it was made raw. */
    return open_chardev(machine, config->debug_console, &machine->debug_console, err) &&
           open_chardev(machine, config->virtio_console, &machine->virtio_console, err) &&
           open_chardev(machine, config->console, &machine->console, err);
}

void pc_close_backends(struct machine *machine)
{
    struct chardev *const chardevs[] = { machine->console, machine->virtio_console, machine->debug_console };
    for (unsigned i = 0; i < ARRAY_SIZE(chardevs); i++)
        if (chardevs[i])
            chardev_close(chardevs[i]);
    for (unsigned i = 0; i < machine->config.net_count; i++)
        if (machine->net[i])
            net_close(machine->net[i]);
    for (unsigned i = 0; i < machine->config.disk_count; i++)
        if (machine->block[i])
            block_close(machine->block[i]);
}
