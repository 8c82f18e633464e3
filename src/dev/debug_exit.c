/* Debug exit, as QEMU's isa-debug-exit: four ports from 0xF4. The machine decides what exit status a value becomes. */
#include "dev/debug_exit.h"

#include "base/base.h"

static const uint64_t debug_exit_port = 0xF4, debug_exit_size = 4;

static enum access_result debug_exit_access(void *owner, struct access *access)
{
    struct debug_exit *exit = owner;
    if (!access->write) {
        access->value = 0;
        return ACCESS_OK;
    }
    exit->code = (uint32_t)access->value;
    system_signal_send(&exit->signal, SYSTEM_REQUEST_DEBUG_EXIT, exit->code);
    return ACCESS_OK;
}

static void debug_exit_reset(struct device *device) { ((struct debug_exit *)device)->code = 0; }

static bool debug_exit_init(struct device *device, struct error *err)
{
    struct debug_exit *exit = (struct debug_exit *)device;
    exit->region = (struct region){
        .name = "debug-exit", .base = exit->port ? exit->port : debug_exit_port, .size = debug_exit_size, .access_max = 4,
        .access = debug_exit_access, .owner = exit, .lock = device->world.lock,
    };
    bus_map(device->world.ports, &exit->region);
    return true;
}

static void debug_exit_fini(struct device *device)
{
    bus_unmap(device->world.ports, &((struct debug_exit *)device)->region);
}

static const struct state_field debug_exit_fields[] = { STATE_SCALAR(struct debug_exit, code) };
static const struct state_list debug_exit_state = STATE_LIST("debug-exit", 1, debug_exit_fields);

static const struct config_field debug_exit_config[] = {
    { "port", CONFIG_UINT, offsetof(struct debug_exit, port), "first port" },
    { NULL },
};

const struct device_type device_debug_exit = {
    .name = "debug-exit",
    .text = "a write to port 0xF4 ends the machine with a code",
    .size = sizeof(struct debug_exit),
    .config = debug_exit_config,
    .state = &debug_exit_state,
    .init = debug_exit_init,
    .reset = debug_exit_reset,
    .fini = debug_exit_fini,
};
