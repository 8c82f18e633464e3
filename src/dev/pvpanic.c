/*
 * pvpanic (QEMU documentation, "PVPANIC DEVICE"): one port, which reads as the events that are understood; a kernel writes the one that
 * happened. Linux finds it by the ACPI id QEMU0001 (dsdt.asl).
 */
#include "dev/pvpanic.h"

#include "base/base.h"

/* The guest panicked; it panicked and its own crash kernel takes over. */
enum { PVPANIC_PANICKED = 1 << 0, PVPANIC_CRASH_LOADED = 1 << 1 };

static const uint64_t pvpanic_port = 0x505;

static enum access_result pvpanic_access(void *owner, struct access *access)
{
    struct pvpanic *pvpanic = owner;
    if (!access->write) {
        access->value = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
        return ACCESS_OK;
    }
    pvpanic->events = (uint8_t)access->value & (PVPANIC_PANICKED | PVPANIC_CRASH_LOADED);
    if (pvpanic->events)
        system_signal_send(&pvpanic->signal, pvpanic->events & PVPANIC_PANICKED ? SYSTEM_REQUEST_PANICKED : SYSTEM_REQUEST_CRASH_KERNEL, 0);
    return ACCESS_OK;
}

static void pvpanic_reset(struct device *device) { ((struct pvpanic *)device)->events = 0; }

static bool pvpanic_init(struct device *device, struct error *err)
{
    struct pvpanic *pvpanic = (struct pvpanic *)device;
    pvpanic->region = (struct region){ .name = "pvpanic", .base = pvpanic_port, .size = 1, .access_max = 1, .access = pvpanic_access,
                                       .owner = pvpanic, .lock = device->world.lock };
    bus_map(device->world.ports, &pvpanic->region);
    return true;
}

static void pvpanic_fini(struct device *device) { bus_unmap(device->world.ports, &((struct pvpanic *)device)->region); }

static const struct state_field fields[] = { STATE_SCALAR(struct pvpanic, events) };
static const struct state_list state = STATE_LIST("pvpanic", 1, fields);

const struct device_type device_pvpanic = {
    .name = "pvpanic",
    .text = "tells that the guest's kernel panicked",
    .size = sizeof(struct pvpanic),
    .state = &state,
    .init = pvpanic_init,
    .reset = pvpanic_reset,
    .fini = pvpanic_fini,
};
