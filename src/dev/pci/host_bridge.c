/*
 * Host bridge in the likeness of the Intel Q35 MCH (Intel 3 Series Express Chipset Family datasheet, 316966): its
 * identity, PCIEXBAR, configuration mechanism 1 (PCI Local Bus 3.0 §3.2.2.3.2) with the reset register 0xCF9 of the ICH9
 * (316972 §13.7.5), and ECAM (PCI Express Base 3.1 §7.2.2). Only bus 0 has functions.
 * Not modelled: PAM and SMRAM control (memory below 1 MiB is always RAM), moving ECAM, DMI and the graphics port.
 */
#include "dev/pci/host_bridge.h"

#include <string.h>

/* --- registers --- */

enum {
    MCH_VENDOR = 0x8086,
    MCH_DEVICE = 0x29C0,
    MCH_CLASS = 0x060000,
    MCH_PCIEXBAR = 0x60,
    PCIEXBAR_ENABLE = 1 << 0,           /* length field 0: 256 MiB, buses 0 to 255 */
    CONFIG_SIZE = 8,
    CONFIG_DATA = 4,
    RESET_CONTROL = 1,                  /* 0xCF9 */
    RESET_CPU = 1 << 2,                 /* a 0 to 1 change starts the reset */
    RESET_WRITABLE = 0x0E,
};
static const uint32_t config_enable = 1u << 31;

/* --- helpers --- */

static uint32_t all_ones(unsigned size) { return (uint32_t)size_mask(size); }

static void config_access(struct host_bridge *bridge, unsigned bus, uint8_t devfn, unsigned offset, struct access *access)
{
    struct pci_function *function = bus == 0 ? pci_bus_find(&bridge->bus, devfn) : NULL;
    if (!access->write)
        access->value = function ? pci_config_read(function, offset, access->size) : all_ones(access->size);
    else if (function)
        pci_config_write(function, offset, access->size, (uint32_t)access->value);
    trace(bridge->pci.device.world.log, pci_config, "%02x:%02x.%x %s %#x size %u: %#lx", bus, devfn >> 3, devfn & 7,
          access->write ? "write" : "read", offset, access->size, (unsigned long)access->value);
}

static void reset_control_write(struct host_bridge *bridge, uint8_t value)
{
    bool rises = value & RESET_CPU && !(bridge->reset_control & RESET_CPU);
    bridge->reset_control = value & RESET_WRITABLE;
    if (rises) {
        irq_set(&bridge->reset, true);
        irq_set(&bridge->reset, false);
    }
}

/* --- access --- */

/* Only a doubleword at 0xCF8 is CONFIG_ADDRESS; narrower accesses there pass by, and 0xCF9 is the reset register. */
static enum access_result address_access(struct host_bridge *bridge, struct access *access)
{
    if (access->address == 0 && access->size == 4) {
        if (access->write)
            bridge->config_address = (uint32_t)access->value & (config_enable | 0x00FFFFFC);
        else
            access->value = bridge->config_address;
        return ACCESS_OK;
    }
    if (access->address == RESET_CONTROL && access->size == 1) {
        if (access->write)
            reset_control_write(bridge, (uint8_t)access->value);
        else
            access->value = bridge->reset_control;
        return ACCESS_OK;
    }
    access->value = all_ones(access->size);
    return ACCESS_UNHANDLED;
}

static enum access_result config_port_access(void *owner, struct access *access)
{
    struct host_bridge *bridge = owner;
    uint32_t target = bridge->config_address;
    if (access->address < CONFIG_DATA)
        return address_access(bridge, access);
    unsigned byte = (unsigned)access->address - CONFIG_DATA;
    if (!(target & config_enable) || byte + access->size > 4) {
        access->value = all_ones(access->size);
        return ACCESS_UNHANDLED;
    }
    config_access(bridge, (unsigned)bits(target, 23, 16), (uint8_t)bits(target, 15, 8), (target & 0xFC) + byte, access);
    return ACCESS_OK;
}

static enum access_result ecam_access(void *owner, struct access *access)
{
    struct host_bridge *bridge = owner;
    unsigned offset = (unsigned)bits(access->address, 11, 0);
    if (offset + access->size > PCI_CONFIG_SIZE) {
        access->value = all_ones(access->size);
        return ACCESS_UNHANDLED;
    }
    config_access(bridge, (unsigned)(access->address >> 20), (uint8_t)bits(access->address, 19, 12), offset, access);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void host_bridge_reset(struct device *device)
{
    struct host_bridge *bridge = (struct host_bridge *)device;
    pci_function_reset(&bridge->pci);
    bridge->config_address = 0;
    bridge->reset_control = 0;
}

static void host_bridge_resume(struct device *device)
{
    pci_function_resume((struct pci_function *)device);
}

static void map_regions(struct host_bridge *bridge)
{
    struct device_world *world = &bridge->pci.device.world;
    bridge->config_region = (struct region){ .name = "pci-config", .base = bridge->config_port, .size = CONFIG_SIZE,
                                             .access_max = 4, .access = config_port_access, .owner = bridge,
                                             .lock = world->lock };
    bridge->ecam_region = (struct region){ .name = "pci-ecam", .base = bridge->ecam_base, .size = bridge->ecam_size,
                                           .access_max = 4, .access = ecam_access, .owner = bridge, .lock = world->lock };
    if (world->ports)
        bus_map(world->ports, &bridge->config_region);
    if (world->mmio && bridge->ecam_size)
        bus_map(world->mmio, &bridge->ecam_region);
}

static bool host_bridge_init(struct device *device, struct error *err)
{
    struct host_bridge *bridge = (struct host_bridge *)device;
    static const struct pci_identity identity = { MCH_VENDOR, MCH_DEVICE, 0x1AF4, 0x1100, MCH_CLASS, 2 };
    bridge->pci.bus = &bridge->bus;
    bridge->pci.devfn = 0;
    bridge->pci.conventional = true;
    if (!bridge->config_port)
        bridge->config_port = 0xCF8;
    if (!pci_function_init(&bridge->pci, &identity, err))
        return false;
    if (bridge->ecam_size) {
        pci_set(bridge->pci.config, MCH_PCIEXBAR, 4, (uint32_t)bridge->ecam_base | PCIEXBAR_ENABLE);
        pci_set(bridge->pci.config, MCH_PCIEXBAR + 4, 4, (uint32_t)(bridge->ecam_base >> 32));
    }
    map_regions(bridge);
    return true;
}

static void host_bridge_fini(struct device *device)
{
    struct host_bridge *bridge = (struct host_bridge *)device;
    if (bridge->config_region.mapped)
        bus_unmap(device->world.ports, &bridge->config_region);
    if (bridge->ecam_region.mapped)
        bus_unmap(device->world.mmio, &bridge->ecam_region);
    pci_function_fini(&bridge->pci);
}

struct pci_bus *pci_bus_of(struct device *host_bridge) { return &((struct host_bridge *)host_bridge)->bus; }

/* --- state, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct host_bridge, pci, pci_function_state),
    STATE_SCALAR(struct host_bridge, config_address),
    STATE_SCALAR(struct host_bridge, reset_control),
};
static const struct state_list state = STATE_LIST("host_bridge", 1, fields);

const struct device_type device_host_bridge = {
    .name = "host-bridge",
    .text = "PCIe host bridge (Q35)",
    .size = sizeof(struct host_bridge),
    .state = &state,
    .init = host_bridge_init,
    .reset = host_bridge_reset,
    .resume = host_bridge_resume,
    .fini = host_bridge_fini,
};
