/*
 * Base address registers (PCI Local Bus 3.0 §6.2.5 "Base Addresses"). Sizing needs no code: the bits below a BAR's size
 * are not writable, so that all ones read back as the size's mask.
 */
#include "dev/pci/internal.h"

#include <string.h>

enum {
    PHYSICAL_BITS = 52,         /* SDM3 §4.1.4: no processor addresses more */
    /* Board chips stand above BARs: a guest cannot cover the I/O APIC with a device. */
    BAR_PRIORITY = -1,
};

static unsigned bar_offset(unsigned bar) { return bar == PCI_ROM_BAR ? PCI_ROM_ADDRESS : PCI_BASE_ADDRESS_0 + 4 * bar; }

static enum access_result bar_access(void *owner, struct access *access)
{
    struct pci_bar *bar = owner;
    if (bar->function->dma_depth)
        return ACCESS_FAULT;
    return bar->access(bar->owner, access);
}

void pci_bar_init(struct pci_function *function, unsigned number, const char *name, uint64_t size, bool is64, bool io,
                  enum access_result (*access)(void *owner, struct access *access), void *owner)
{
    assert(number + is64 < PCI_BARS && size && !(size & (size - 1)) && size >= (io ? 4 : 16));
    struct pci_bar *bar = &function->bar[number];
    *bar = (struct pci_bar){ .size = size, .io = io, .is64 = is64, .function = function, .access = access, .owner = owner };
    bar->region = (struct region){ .name = name, .size = size, .priority = BAR_PRIORITY, .access = bar_access,
                                   .owner = bar, .lock = function->device.world.lock };
    unsigned at = bar_offset(number);
    uint64_t mask = ~(size - 1);
    uint32_t flags = io ? PCI_BASE_ADDRESS_SPACE_IO : is64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0;
    pci_set(function->config, at, 4, flags);
    pci_set(function->write_mask, at, 4, (uint32_t)mask);
    if (is64)
        pci_set(function->write_mask, at + 4, 4, (uint32_t)(mask >> 32));
}

static enum access_result rom_access(void *owner, struct access *access)
{
    struct pci_function *function = owner;
    if (access->write)
        return ACCESS_OK;
    access->value = 0;
    memcpy(&access->value, function->rom + access->address, access->size);
    return ACCESS_OK;
}

void pci_rom_init(struct pci_function *function, const uint8_t *data, uint32_t size)
{
    function->rom = data;
    struct pci_bar *bar = &function->bar[PCI_ROM_BAR];
    assert(size >= 2048 && !(size & (size - 1)));
    *bar = (struct pci_bar){ .size = size, .function = function, .access = rom_access, .owner = function };
    bar->region = (struct region){ .name = "rom", .size = size, .priority = BAR_PRIORITY, .access = bar_access, .owner = bar,
                                   .lock = function->device.world.lock };
    pci_set(function->write_mask, PCI_ROM_ADDRESS, 4, ~(size - 1) | PCI_ROM_ADDRESS_ENABLE);
}

static uint64_t bar_address(const struct pci_function *function, unsigned number)
{
    const struct pci_bar *bar = &function->bar[number];
    uint64_t address = pci_get(function->config, bar_offset(number), 4);
    if (bar->is64)
        address |= (uint64_t)pci_get(function->config, bar_offset(number) + 4, 4) << 32;
    return address & ~(bar->size - 1);
}

/* An address of 0 means that none was assigned. */
static bool bar_decodes(const struct pci_function *function, const struct pci_bar *bar, uint64_t address)
{
    uint16_t command = function->config[PCI_COMMAND];
    uint64_t limit = bar->io ? 0x10000 : BIT(PHYSICAL_BITS);
    bool enabled = bar != &function->bar[PCI_ROM_BAR] || function->config[PCI_ROM_ADDRESS] & PCI_ROM_ADDRESS_ENABLE;
    return enabled && (command & (bar->io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)) && address && address < limit &&
           bar->size <= limit - address;
}

static void bar_unmap(struct pci_function *function, struct pci_bar *bar)
{
    struct bus *bus = bar->io ? function->device.world.ports : function->device.world.mmio;
    if (bar->region.mapped)
        bus_unmap(bus, &bar->region);
}

static void bar_update(struct pci_function *function, unsigned number)
{
    struct pci_bar *bar = &function->bar[number];
    struct bus *bus = bar->io ? function->device.world.ports : function->device.world.mmio;
    uint64_t address = bar_address(function, number);
    bool wanted = bar_decodes(function, bar, address);
    if (bar->region.mapped && wanted && bar->region.base == address)
        return;
    bar_unmap(function, bar);
    if (wanted) {
        bar->region.base = address;
        bus_map(bus, &bar->region);
    }
}

void pci_bars_update(struct pci_function *function)
{
    for (unsigned i = 0; i <= PCI_ROM_BAR; i++)
        if (function->bar[i].size)
            bar_update(function, i);
}

void pci_bars_unmap(struct pci_function *function)
{
    for (unsigned i = 0; i <= PCI_ROM_BAR; i++)
        if (function->bar[i].size)
            bar_unmap(function, &function->bar[i]);
}
