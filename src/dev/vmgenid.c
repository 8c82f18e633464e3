/*
 * Virtual machine generation id (Microsoft, "Virtual Machine Generation ID", 2012): a random id in a page of its own, found through
 * ACPI by the name VM_Gen_Counter. A guest that sees it change knows that its memory may be in use a second time, and makes
 * its random numbers anew. NOTE(spec): the document wants the page to be memory; here the bus answers, which a guest
 * that reads sixteen bytes cannot tell.
 */
#include "dev/vmgenid.h"

#include <string.h>
#include <sys/random.h>

#include "base/base.h"
#include "base/clock.h"

static const uint64_t vmgenid_base_default = 0xFEDFF000;

static void make_id(struct vmgenid *vmgenid)
{
    if (clock_counted(vmgenid->device.world.clock))
        return;     /* the run can be repeated: always the same */
    /* Cannot fail for so few bytes once the host has been up for some seconds. */
    if (getrandom(vmgenid->id, sizeof(vmgenid->id), 0) != sizeof(vmgenid->id))
        log_message(vmgenid->device.world.log, LOG_WARNING, "the host gives no random numbers: the generation id stays as it was");
}

void vmgenid_renew(struct vmgenid *vmgenid)
{
    make_id(vmgenid);
    irq_set(&vmgenid->changed, true);
    irq_set(&vmgenid->changed, false);
}

static enum access_result vmgenid_access(void *owner, struct access *access)
{
    const struct vmgenid *vmgenid = owner;
    if (access->write)
        return ACCESS_OK;
    access->value = 0;
    if (access->address + access->size <= sizeof(vmgenid->id))
        memcpy(&access->value, vmgenid->id + access->address, access->size);
    return ACCESS_OK;
}

/* A reset makes no copy of the machine. */
static void vmgenid_reset(struct device *device) {}

static bool vmgenid_init(struct device *device, struct error *err)
{
    struct vmgenid *vmgenid = (struct vmgenid *)device;
    vmgenid->region = (struct region){ .name = "vmgenid", .base = vmgenid->base ? vmgenid->base : vmgenid_base_default,
                                       .size = PAGE_SIZE, .access = vmgenid_access, .owner = vmgenid, .lock = device->world.lock };
    if (vmgenid->changed.set)
        make_id(vmgenid);
    bus_map(device->world.mmio, &vmgenid->region);
    return true;
}

static void vmgenid_fini(struct device *device) { bus_unmap(device->world.mmio, &((struct vmgenid *)device)->region); }

static const struct state_field vmgenid_fields[] = { STATE_BLOB(struct vmgenid, id) };
static const struct state_list vmgenid_state = STATE_LIST("vmgenid", 1, vmgenid_fields);

static const struct config_field vmgenid_config[] = {
    { "base", CONFIG_UINT, offsetof(struct vmgenid, base), "address" },
    { NULL },
};

const struct device_type device_vmgenid = {
    .name = "vmgenid",
    .text = "generation id",
    .size = sizeof(struct vmgenid),
    .config = vmgenid_config,
    .state = &vmgenid_state,
    .init = vmgenid_init,
    .reset = vmgenid_reset,
    .fini = vmgenid_fini,
};
