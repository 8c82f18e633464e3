/* A bare board for PCI devices: RAM, buses, DMA, a clock that moves by hand, a host bridge. No processor. */
#ifndef DOPPEL_TESTS_DEV_RIG_H
#define DOPPEL_TESTS_DEV_RIG_H

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/loop.h"
#include "dev/pci/host_bridge.h"
#include "machine/dma.h"
#include "mem/ram.h"
#include "unit/cmocka_all.h"

enum { RIG_RAM = 4 * 1024 * 1024, RIG_MSI_LOG = 64 };

#define RIG_ECAM 0xB0000000ull
#define RIG_MMIO 0xC0000000ull

struct rig {
    struct ram *ram;
    struct bus *mmio, *ports;
    struct clock *clock;
    struct loop *loop;
    struct log log;
    struct counters counters;
    struct dma_space space;
    struct dma dma;
    struct device_world world;
    struct device *bridge;
    bool line[PCI_INTX_LINES];
    unsigned resets;
    struct { uint64_t address; uint32_t data; uint16_t requester; } msi[RIG_MSI_LOG];
    unsigned msi_count;
    FILE *null;
};

static inline void rig_msi(void *sink, uint64_t address, uint32_t data, uint16_t requester)
{
    struct rig *rig = sink;
    unsigned at = rig->msi_count++ % RIG_MSI_LOG;
    rig->msi[at].address = address;
    rig->msi[at].data = data;
    rig->msi[at].requester = requester;
}

static inline void rig_line(void *sink, unsigned n, bool level) { ((struct rig *)sink)->line[n] = level; }

static inline void rig_reset_line(void *sink, unsigned n, bool level) { ((struct rig *)sink)->resets += level; }

static inline void rig_configure_bridge(struct device *device, void *opaque)
{
    struct host_bridge *bridge = (struct host_bridge *)device;
    bridge->ecam_base = RIG_ECAM;
    bridge->ecam_size = 0x10000000;
    bridge->reset = (struct irq_line){ rig_reset_line, opaque, 0 };
    for (unsigned i = 0; i < PCI_INTX_LINES; i++)
        bridge->bus.intx[i] = (struct irq_line){ rig_line, opaque, i };
}

static inline void rig_create(struct rig *rig)
{
    struct error err;
    memset(rig, 0, sizeof(*rig));
    rig->null = fopen("/dev/null", "w");
    log_init(&rig->log, rig->null);
    rig->ram = ram_create();
    assert_true(ram_add(rig->ram, "ram", 0, RIG_RAM, false, &err));
    rig->mmio = bus_create("mmio", 1ull << 52, &rig->log);
    rig->ports = bus_create("port", 0x10000, &rig->log);
    rig->clock = clock_create_manual();
    rig->loop = loop_create(&err);
    rig->space = (struct dma_space){ .ram = rig->ram, .mmio = rig->mmio, .msi = rig_msi, .msi_sink = rig };
    rig->dma = dma_direct(&rig->space, 0);
    rig->world = (struct device_world){ rig->mmio, rig->ports, rig->clock, rig->loop, NULL, &rig->log, &rig->counters };
    rig->bridge = device_create(&device_host_bridge, "pci", &rig->world, &rig->dma, rig_configure_bridge, rig, &err);
    assert_non_null(rig->bridge);
}

static inline void rig_destroy(struct rig *rig)
{
    device_destroy(rig->bridge);
    loop_destroy(rig->loop);
    clock_destroy(rig->clock);
    bus_destroy(rig->mmio);
    bus_destroy(rig->ports);
    ram_destroy(rig->ram);
    fclose(rig->null);
}

/* Runs what is posted and ready. */
static inline void rig_spin(struct rig *rig, int rounds)
{
    while (rounds--)
        loop_run_once(rig->loop, 0);
}

static inline uint64_t rig_access(struct bus *bus, uint64_t address, unsigned size, bool write, uint64_t value)
{
    struct access access = { .address = address, .size = (uint8_t)size, .write = write, .value = value,
                             .requester = REQUESTER_CPU };
    bus_access(bus, &access);
    return access.value;
}

static inline uint64_t rig_read(struct rig *rig, uint64_t address, unsigned size)
{
    return rig_access(rig->mmio, address, size, false, 0);
}

static inline void rig_write(struct rig *rig, uint64_t address, unsigned size, uint64_t value)
{
    rig_access(rig->mmio, address, size, true, value);
}

static inline uint32_t rig_config_read(struct rig *rig, uint8_t devfn, unsigned offset, unsigned size)
{
    return (uint32_t)rig_read(rig, RIG_ECAM + ((uint64_t)devfn << 12) + offset, size);
}

static inline void rig_config_write(struct rig *rig, uint8_t devfn, unsigned offset, unsigned size, uint32_t value)
{
    rig_write(rig, RIG_ECAM + ((uint64_t)devfn << 12) + offset, size, value);
}

/* Offset of a capability, the n-th of its kind; 0 if there is none. */
static inline unsigned rig_capability(struct rig *rig, uint8_t devfn, uint8_t id, unsigned n)
{
    unsigned at = rig_config_read(rig, devfn, PCI_CAPABILITY_LIST, 1);
    for (unsigned guard = 0; at && guard < 64; guard++) {
        if (rig_config_read(rig, devfn, at, 1) == id && !n--)
            return at;
        at = rig_config_read(rig, devfn, at + 1, 1);
    }
    return 0;
}

/* Gives out addresses and switches everything on, as firmware and a driver would. */
static inline void rig_assign(struct rig *rig)
{
    static const struct pci_windows windows = { 0x1000, 0xE000, RIG_MMIO, 0x20000000, 0x800000000, 0x800000000 };
    pci_bus_assign(pci_bus_of(rig->bridge), &windows);
}

static inline void rig_bus_master(struct rig *rig, uint8_t devfn, bool on)
{
    rig_config_write(rig, devfn, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_IO | (on ? PCI_COMMAND_MASTER : 0));
}

struct rig_place {
    struct rig *rig;
    uint8_t devfn;
    void (*more)(struct device *device, void *opaque);
    void *opaque;
};

static inline void rig_configure(struct device *device, void *opaque)
{
    struct rig_place *place = opaque;
    struct pci_function *function = (struct pci_function *)device;
    function->bus = pci_bus_of(place->rig->bridge);
    function->devfn = place->devfn;
    if (place->more)
        place->more(device, place->opaque);
}

static inline struct pci_function *rig_add(struct rig *rig, const struct device_type *type, uint8_t devfn,
                                           void (*more)(struct device *device, void *opaque), void *opaque)
{
    struct error err = { "" };
    struct rig_place place = { rig, devfn, more, opaque };
    struct device *device = device_create(type, type->name, &rig->world, &rig->dma, rig_configure, &place, &err);
    if (!device)
        fail_msg("%s", err.text);
    rig_assign(rig);
    rig_bus_master(rig, devfn, true);
    return (struct pci_function *)device;
}

/* Where a memory BAR was put. */
static inline uint64_t rig_bar(struct rig *rig, uint8_t devfn, unsigned bar)
{
    unsigned at = PCI_BASE_ADDRESS_0 + 4 * bar;
    uint64_t low = rig_config_read(rig, devfn, at, 4);
    if ((low & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64)
        low |= (uint64_t)rig_config_read(rig, devfn, at + 4, 4) << 32;
    return low & ~15ull;
}

#endif
