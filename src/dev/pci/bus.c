/* The bus: who sits in which slot, shared interrupt lines, and placing BARs as firmware would. */
#include "dev/pci/internal.h"

bool pci_bus_attach(struct pci_bus *bus, struct pci_function *function)
{
    if (bus->function[function->devfn])
        return false;
    bus->function[function->devfn] = function;
    return true;
}

void pci_bus_detach(struct pci_bus *bus, struct pci_function *function)
{
    bus->function[function->devfn] = NULL;
}

struct pci_function *pci_bus_find(struct pci_bus *bus, uint8_t devfn) { return bus->function[devfn]; }

void pci_bus_for_each(struct pci_bus *bus, void (*each)(struct pci_function *function, void *opaque), void *opaque)
{
    for (unsigned i = 0; i < ARRAY_SIZE(bus->function); i++)
        if (bus->function[i])
            each(bus->function[i], opaque);
}

/* --- INTx --- */

static bool drives_intx(const struct pci_function *function)
{
    uint16_t command = (uint16_t)pci_get(function->config, PCI_COMMAND, 2);
    return function->intx_level && function->config[PCI_INTERRUPT_PIN] && !(command & PCI_COMMAND_INTX_DISABLE) &&
           !pci_msi_enabled(function) && !pci_msix_enabled(function);
}

static unsigned line_of(const struct pci_function *function)
{
    return pci_intx_line(function->devfn, (function->config[PCI_INTERRUPT_PIN] - 1u) & 3);
}

void pci_intx_update(struct pci_function *function)
{
    struct pci_bus *bus = function->bus;
    if (!bus || !function->config[PCI_INTERRUPT_PIN])
        return;
    unsigned line = line_of(function);
    bool level = false;
    for (unsigned i = 0; i < ARRAY_SIZE(bus->function) && !level; i++)
        level = bus->function[i] && drives_intx(bus->function[i]) && line_of(bus->function[i]) == line;
    irq_set(&bus->intx[line], level);
}

void pci_intx(struct pci_function *function, bool level)
{
    function->intx_level = level;
    function->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTERRUPT;
    if (level)
        function->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
    pci_intx_update(function);
}

/* --- firmware's part --- */

/* Takes `size` bytes, aligned to themselves, from the window's front; 0 when it is used up. */
static uint64_t take(uint64_t *next, uint64_t end, uint64_t size)
{
    uint64_t at = align_up(*next, size);
    if (!at || at >= end || size > end - at)
        return 0;
    *next = at + size;
    return at;
}

static void assign_bar(struct pci_function *function, unsigned number, struct pci_windows *next, const struct pci_windows *end)
{
    const struct pci_bar *bar = &function->bar[number];
    uint64_t at;
    if (bar->io)
        at = take(&next->io_base, end->io_base + end->io_size, bar->size);
    else
        at = take(&next->mmio_base, end->mmio_base + end->mmio_size, bar->size);
    if (!at && bar->is64)
        at = take(&next->mmio64_base, end->mmio64_base + end->mmio64_size, bar->size);
    pci_config_write(function, PCI_BASE_ADDRESS_0 + 4 * number, 4, (uint32_t)at);
    if (bar->is64)
        pci_config_write(function, PCI_BASE_ADDRESS_0 + 4 * number + 4, 4, (uint32_t)(at >> 32));
}

void pci_bus_assign(struct pci_bus *bus, const struct pci_windows *windows)
{
    struct pci_windows next = *windows;
    for (unsigned i = 0; i < ARRAY_SIZE(bus->function); i++) {
        struct pci_function *function = bus->function[i];
        if (!function)
            continue;
        for (unsigned bar = 0; bar < PCI_BARS; bar++)
            if (function->bar[bar].size)
                assign_bar(function, bar, &next, windows);
        uint32_t command = pci_config_read(function, PCI_COMMAND, 2);
        pci_config_write(function, PCI_COMMAND, 2, command | PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
        if (function->config[PCI_INTERRUPT_PIN])
            pci_config_write(function, PCI_INTERRUPT_LINE, 1, windows->irq[line_of(function)]);
    }
}
