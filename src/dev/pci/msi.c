/*
 * Message-signalled interrupts: MSI with one vector (PCI Local Bus 3.0 §6.8.1) and MSI-X (§6.8.2). A message is a write
 * through the function's DMA handle, so the bus-master bit and an IOMMU apply to it as to any other.
 */
#include "dev/pci/internal.h"

enum {
    MSI_SIZE = 0x18,            /* 64-bit address, per-vector masking */
    MSIX_SIZE = 0x0C,
    MSIX_BAR_SIZE = 0x1000,     /* at the least: the table in the first half, the PBA after it */
};

/* --- MSI --- */

void pci_add_msi(struct pci_function *function)
{
    uint16_t at = pci_add_capability(function, PCI_CAP_ID_MSI, MSI_SIZE);
    function->msi_capability = at;
    pci_set(function->config, at + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT);
    pci_set(function->write_mask, at + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE);
    pci_set(function->write_mask, at + PCI_MSI_ADDRESS_LO, 4, 0xFFFFFFFC);
    pci_set(function->write_mask, at + PCI_MSI_ADDRESS_HI, 4, 0xFFFFFFFF);
    pci_set(function->write_mask, at + PCI_MSI_DATA_64, 2, 0xFFFF);
    pci_set(function->write_mask, at + PCI_MSI_MASK_64, 4, 1);
}

bool pci_msi_enabled(const struct pci_function *function)
{
    return function->msi_capability &&
           pci_get(function->config, function->msi_capability + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_ENABLE;
}

static void send_message(struct pci_function *function, uint64_t address, uint32_t data)
{
    trace(function->device.world.log, irq_msi, "%s: %#lx <- %#x", function->device.name, (unsigned long)address, data);
    if (!dma_write(&function->device.dma, address, &data, sizeof(data)))
        guest_error(function->device.world.log, "%s: message to %#lx was refused", function->device.name,
                    (unsigned long)address);
}

void pci_msi_send(struct pci_function *function, unsigned vector)
{
    uint16_t at = function->msi_capability;
    if (vector != 0 || !pci_msi_enabled(function))
        return;
    if (pci_get(function->config, at + PCI_MSI_MASK_64, 4) & 1) {
        pci_set(function->config, at + PCI_MSI_PENDING_64, 4, 1);
        return;
    }
    pci_set(function->config, at + PCI_MSI_PENDING_64, 4, 0);
    uint64_t address = pci_get(function->config, at + PCI_MSI_ADDRESS_LO, 4) |
                       (uint64_t)pci_get(function->config, at + PCI_MSI_ADDRESS_HI, 4) << 32;
    send_message(function, address, pci_get(function->config, at + PCI_MSI_DATA_64, 2));
}

/* --- MSI-X --- */

static uint16_t msix_control(const struct pci_function *function)
{
    return (uint16_t)pci_get(function->config, function->msix.capability + PCI_MSIX_FLAGS, 2);
}

bool pci_msix_enabled(const struct pci_function *function)
{
    return function->msix.count && msix_control(function) & PCI_MSIX_FLAGS_ENABLE;
}

static bool msix_masked(const struct pci_function *function, unsigned vector)
{
    return msix_control(function) & PCI_MSIX_FLAGS_MASKALL ||
           function->msix.entry[vector].control & PCI_MSIX_ENTRY_CTRL_MASKBIT;
}

void pci_msix_send(struct pci_function *function, unsigned vector)
{
    struct pci_msix *msix = &function->msix;
    if (vector >= msix->count || !pci_msix_enabled(function))
        return;
    if (msix_masked(function, vector)) {
        msix->pending |= BIT(vector);
        return;
    }
    msix->pending &= ~BIT(vector);
    send_message(function, msix->entry[vector].address, msix->entry[vector].data);
}

static void send_pending(struct pci_function *function)
{
    if (pci_msi_enabled(function) && function->config[function->msi_capability + PCI_MSI_PENDING_64] & 1)
        pci_msi_send(function, 0);
    if (!function->msix.pending || !pci_msix_enabled(function))
        return;
    for (unsigned i = 0; i < function->msix.count; i++)
        if (function->msix.pending & BIT(i) && !msix_masked(function, i))
            pci_msix_send(function, i);
}

void pci_msi_update(struct pci_function *function) { send_pending(function); }

static void table_access(struct pci_function *function, unsigned offset, struct access *access)
{
    struct pci_msix_entry *entry = &function->msix.entry[offset / PCI_MSIX_ENTRY_SIZE];
    unsigned word = offset % PCI_MSIX_ENTRY_SIZE / 4;
    uint32_t value = (uint32_t)access->value;
    if (!access->write) {
        uint32_t words[] = { (uint32_t)entry->address, (uint32_t)(entry->address >> 32), entry->data, entry->control };
        access->value = words[word];
        return;
    }
    switch (word) {
    case 0: entry->address = (entry->address & ~0xFFFFFFFFull) | (value & ~3u); break;
    case 1: entry->address = (uint32_t)entry->address | (uint64_t)value << 32; break;
    case 2: entry->data = value; break;
    case 3:
        entry->control = value & PCI_MSIX_ENTRY_CTRL_MASKBIT;
        send_pending(function);
        break;
    }
}

/* The bus hands over aligned accesses of four bytes only. */
static enum access_result msix_access(void *owner, struct access *access)
{
    struct pci_function *function = owner;
    struct pci_msix *msix = &function->msix;
    unsigned offset = (unsigned)access->address & ~3u;
    if (offset - msix->table_offset < msix->count * (unsigned)PCI_MSIX_ENTRY_SIZE)
        table_access(function, offset - msix->table_offset, access);
    else if (!access->write)
        access->value = offset - msix->pba_offset < 8 ? (uint32_t)(msix->pending >> (offset - msix->pba_offset) * 8) : 0;
    return ACCESS_OK;
}

void pci_add_msix(struct pci_function *function, unsigned bar, uint16_t vectors)
{
    struct pci_msix *msix = &function->msix;
    assert(vectors && vectors <= PCI_MSIX_MAX);
    msix->capability = pci_add_capability(function, PCI_CAP_ID_MSIX, MSIX_SIZE);
    msix->count = vectors;
    msix->bar = (uint8_t)bar;
    msix->table_offset = 0;
    msix->pba_offset = MSIX_BAR_SIZE / 2;
    pci_set(function->config, msix->capability + PCI_MSIX_FLAGS, 2, vectors - 1);
    pci_set(function->write_mask, msix->capability + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    pci_set(function->config, msix->capability + PCI_MSIX_TABLE, 4, msix->table_offset | bar);
    pci_set(function->config, msix->capability + PCI_MSIX_PBA, 4, msix->pba_offset | bar);
    pci_bar_init(function, bar, "msix", MSIX_BAR_SIZE, false, false, msix_access, function);
    function->bar[bar].region.access_min = 4;
    function->bar[bar].region.access_max = 4;
}
_Static_assert(PCI_MSIX_MAX * PCI_MSIX_ENTRY_SIZE <= MSIX_BAR_SIZE / 2, "the table ends before the PBA");

void pci_msix_reset(struct pci_function *function)
{
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        function->msix.entry[i] = (struct pci_msix_entry){ .control = PCI_MSIX_ENTRY_CTRL_MASKBIT };
    function->msix.pending = 0;
    if (function->msi_capability)
        pci_set(function->config, function->msi_capability + PCI_MSI_PENDING_64, 4, 0);
}

static const struct state_field entry_fields[] = {
    STATE_SCALAR(struct pci_msix_entry, address),
    STATE_SCALAR(struct pci_msix_entry, data),
    STATE_SCALAR(struct pci_msix_entry, control),
};
const struct state_list pci_msix_entry_state = STATE_LIST("pci_msix_entry", 1, entry_fields);
