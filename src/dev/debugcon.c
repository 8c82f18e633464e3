/*
 * Debug console, as Bochs and QEMU have it: a byte written to port 0xE9 or 0x402 appears on the host; reading gives 0xE9,
 * by which firmware finds it.
 */
#include "dev/debugcon.h"

#include "backend/chardev.h"
#include "base/base.h"

enum { DEBUGCON_PRESENT = 0xE9 };

static const uint64_t debugcon_port[2] = { 0xE9, 0x402 };

static enum access_result debugcon_access(void *owner, struct access *access)
{
    struct debugcon *debugcon = owner;
    uint8_t byte = (uint8_t)access->value;
    if (!access->write) {
        access->value = DEBUGCON_PRESENT;
        return ACCESS_OK;
    }
    debugcon->written++;
    if (debugcon->chardev)
        chardev_write(debugcon->chardev, &byte, 1);
    return ACCESS_OK;
}

static void debugcon_reset(struct device *device) { ((struct debugcon *)device)->written = 0; }

static bool debugcon_init(struct device *device, struct error *err)
{
    struct debugcon *debugcon = (struct debugcon *)device;
    for (unsigned n = 0; n < 2; n++) {
        debugcon->region[n] = (struct region){
            .name = "debugcon", .base = debugcon_port[n], .size = 1, .access_max = 1, .access = debugcon_access,
            .priority = 1,      /* 0xE9 lies within testdev's latch ports */
            .owner = debugcon, .lock = device->world.lock,
        };
        bus_map(device->world.ports, &debugcon->region[n]);
    }
    return true;
}

static void debugcon_fini(struct device *device)
{
    struct debugcon *debugcon = (struct debugcon *)device;
    for (unsigned n = 0; n < 2; n++)
        bus_unmap(device->world.ports, &debugcon->region[n]);
}

static const struct state_field debugcon_fields[] = { STATE_SCALAR(struct debugcon, written) };
static const struct state_list debugcon_state = STATE_LIST("debugcon", 1, debugcon_fields);

static const struct config_field debugcon_config[] = {
    { "chardev", CONFIG_POINTER, offsetof(struct debugcon, chardev), "where the bytes go" },
    { NULL },
};

const struct device_type device_debugcon = {
    .name = "debugcon",
    .text = "debug console, ports 0xE9 and 0x402",
    .size = sizeof(struct debugcon),
    .config = debugcon_config,
    .state = &debugcon_state,
    .init = debugcon_init,
    .reset = debugcon_reset,
    .fini = debugcon_fini,
};
