/*
 * Host bridge in the likeness of the Intel Q35 MCH (Intel 3 Series Express Chipset Family datasheet, 316966): its
 * identity, PCIEXBAR (§5.1.16), the programmable attribute map PAM0 to PAM6 (§5.1.19 ff.), configuration mechanism 1 (PCI
 * Local Bus 3.0 §3.2.2.3.2) with the reset register 0xCF9 of the ICH9 (316972 §13.7.5), and ECAM (PCI Express Base 3.1
 * §7.2.2). Only bus 0 has functions.
 * Not modelled: SMRAM (there is no system management mode: its control registers read 0), DMI and the graphics port.
 * NOTE(spec): PCIEXBAR is enabled after a reset, for guests that no firmware comes before.
 */
#include "dev/pci/host_bridge.h"

#include <string.h>

/* --- registers --- */

enum {
    MCH_VENDOR = 0x8086,
    MCH_DEVICE = 0x29C0,
    MCH_CLASS = 0x060000,
    MCH_PCIEXBAR = 0x60,
    PCIEXBAR_ENABLE = 1 << 0,
    PCIEXBAR_LENGTH_SHIFT = 1,          /* 256, 128 or 64 MiB; the fourth value is reserved */
    PCIEXBAR_LENGTH = 3 << PCIEXBAR_LENGTH_SHIFT,
    MCH_PAM0 = 0x90,
    PAM_READ = 1 << 0,                  /* of the low half; the high half's bits are 4 further */
    PAM_WRITE = 1 << 1,
    PAM_HIGH_SHIFT = 4,
    PAM_RAM = PAM_READ | PAM_WRITE,
    PAM_REGISTERS = 7,
    CONFIG_SIZE = 8,
    CONFIG_DATA = 4,
    RESET_CONTROL = 1,                  /* 0xCF9 */
    RESET_CPU = 1 << 2,                 /* a 0 to 1 change starts the reset */
    RESET_WRITABLE = 0x0E,
};
static const uint32_t config_enable = 1u << 31;
static const uint64_t pciexbar_base = 0xFF0000000;      /* bits 35:28; shorter windows use bits 27 and 26, too */

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

/* --- the memory map that the bridge makes --- */

struct pam_segment pam_segment(unsigned segment)
{
    if (segment == 0)
        return (struct pam_segment){ 0xF0000, 0x10000 };
    return (struct pam_segment){ 0xC0000 + (segment - 1) * 0x4000, 0x4000 };
}

/* Segment 0 is the high half of PAM0, whose low half is reserved; 1 and 2 are the halves of PAM1, and so on. */
static unsigned pam_attributes(const struct host_bridge *bridge, unsigned segment)
{
    uint8_t value = bridge->pci.config[MCH_PAM0 + (segment + 1) / 2];
    return (segment & 1 ? value : value >> PAM_HIGH_SHIFT) & PAM_RAM;
}

static void pam_update(struct host_bridge *bridge)
{
    for (unsigned i = 0; bridge->pam.set && i < PAM_SEGMENTS; i++) {
        unsigned attributes = pam_attributes(bridge, i);
        bridge->pam.set(bridge->pam.owner, i, attributes & PAM_READ, attributes & PAM_WRITE);
    }
}

void host_bridge_open_shadow(struct host_bridge *bridge)
{
    for (unsigned i = 0; i < PAM_REGISTERS; i++)
        pci_config_write(&bridge->pci, MCH_PAM0 + i, 1, i ? PAM_RAM | PAM_RAM << PAM_HIGH_SHIFT : PAM_RAM << PAM_HIGH_SHIFT);
}

static uint64_t pciexbar(const struct host_bridge *bridge)
{
    return pci_get(bridge->pci.config, MCH_PCIEXBAR, 4) | (uint64_t)pci_get(bridge->pci.config, MCH_PCIEXBAR + 4, 4) << 32;
}

static uint64_t ecam_length(uint64_t bar)
{
    return 256 * MiB >> ((bar & PCIEXBAR_LENGTH) >> PCIEXBAR_LENGTH_SHIFT);
}

uint64_t host_bridge_ecam(const struct host_bridge *bridge)
{
    uint64_t bar = pciexbar(bridge);
    bool valid = bar & PCIEXBAR_ENABLE && (bar & PCIEXBAR_LENGTH) != PCIEXBAR_LENGTH;
    return valid ? bar & (pciexbar_base | 0xC000000) & ~(ecam_length(bar) - 1) : 0;
}

static void ecam_update(struct host_bridge *bridge)
{
    struct bus *bus = bridge->pci.device.world.mmio;
    struct region *region = &bridge->ecam_region;
    uint64_t base = host_bridge_ecam(bridge), size = ecam_length(pciexbar(bridge));
    if (!bus || !bridge->ecam_size || (region->mapped && region->base == base && region->size == size))
        return;
    if (region->mapped)
        bus_unmap(bus, region);
    region->base = base;
    region->size = size;
    if (base)
        bus_map(bus, region);
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
    struct host_bridge *bridge = (struct host_bridge *)function;
    if (offset < MCH_PCIEXBAR + 8 && offset + size > MCH_PCIEXBAR)
        ecam_update(bridge);
    if (offset < MCH_PAM0 + PAM_REGISTERS && offset + size > MCH_PAM0)
        pam_update(bridge);
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
    if (bridge->ecam_size) {
        pci_set(bridge->pci.config, MCH_PCIEXBAR, 4, (uint32_t)bridge->ecam_base | PCIEXBAR_ENABLE);
        pci_set(bridge->pci.config, MCH_PCIEXBAR + 4, 4, (uint32_t)(bridge->ecam_base >> 32));
    }
    bridge->config_address = 0;
    bridge->reset_control = 0;
    ecam_update(bridge);
    pam_update(bridge);
}

static void host_bridge_resume(struct device *device)
{
    struct host_bridge *bridge = (struct host_bridge *)device;
    pci_function_resume(&bridge->pci);
    ecam_update(bridge);
    pam_update(bridge);
}

static void map_regions(struct host_bridge *bridge)
{
    struct device_world *world = &bridge->pci.device.world;
    bridge->config_region = (struct region){ .name = "pci-config", .base = bridge->config_port, .size = CONFIG_SIZE,
                                             .access_max = 4, .access = config_port_access, .owner = bridge,
                                             .lock = world->lock };
    bridge->ecam_region = (struct region){ .name = "pci-ecam", .access_max = 4, .access = ecam_access, .owner = bridge,
                                           .lock = world->lock };
    if (world->ports)
        bus_map(world->ports, &bridge->config_region);
}

static void add_memory_registers(struct host_bridge *bridge)
{
    uint8_t *mask = bridge->pci.write_mask;
    if (bridge->ecam_size) {
        pci_set(mask, MCH_PCIEXBAR, 4, (uint32_t)pciexbar_base | 0xC000000 | PCIEXBAR_LENGTH | PCIEXBAR_ENABLE);
        pci_set(mask, MCH_PCIEXBAR + 4, 4, (uint32_t)(pciexbar_base >> 32));
    }
    mask[MCH_PAM0] = PAM_RAM << PAM_HIGH_SHIFT;
    for (unsigned i = 1; i < PAM_REGISTERS; i++)
        mask[MCH_PAM0 + i] = PAM_RAM << PAM_HIGH_SHIFT | PAM_RAM;
    bridge->pci.config_written = config_written;
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
    add_memory_registers(bridge);
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
