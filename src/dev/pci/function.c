/*
 * A PCI function: its configuration space with a write mask and a write-1-to-clear mask for every bit, its life from
 * init to fini, and its DMA handle. What a guest can do to configuration space is in the masks; what must follow from a
 * write is in config_effects.
 */
#include "dev/pci/internal.h"

#include <string.h>

enum {
    COMMAND_WRITABLE = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
                       PCI_COMMAND_INTX_DISABLE,
    STATUS_W1C = PCI_STATUS_PARITY | PCI_STATUS_SIG_TARGET_ABORT | PCI_STATUS_REC_TARGET_ABORT |
                 PCI_STATUS_REC_MASTER_ABORT | PCI_STATUS_SIG_SYSTEM_ERROR | PCI_STATUS_DETECTED_PARITY,
    EXPRESS_SIZE = 0x3C,
    CLASS_BRIDGE = 0x06,        /* PCI Code and ID Assignment 1.11 §1.7: bridges have no pin of their own */
};

/* PCI Express Base 3.1 §7.8 "PCI Express Capability Structure": version 2, root complex integrated endpoint. */
static void add_express(struct pci_function *function)
{
    uint16_t at = pci_add_capability(function, PCI_CAP_ID_EXP, EXPRESS_SIZE);
    uint16_t control = PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE | PCI_EXP_DEVCTL_FERE | PCI_EXP_DEVCTL_URRE |
                       PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_PAYLOAD | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ;
    pci_set(function->config, at + PCI_EXP_FLAGS, 2, 2 | PCI_EXP_TYPE_RC_END << 4);
    pci_set(function->config, at + PCI_EXP_DEVCAP, 4, PCI_EXP_DEVCAP_RBER);
    pci_set(function->write_mask, at + PCI_EXP_DEVCTL, 2, control);
    pci_set(function->w1c_mask, at + PCI_EXP_DEVSTA, 2,
            PCI_EXP_DEVSTA_CED | PCI_EXP_DEVSTA_NFED | PCI_EXP_DEVSTA_FED | PCI_EXP_DEVSTA_URD);
}

static void init_header(struct pci_function *function, const struct pci_identity *identity)
{
    uint8_t *config = function->config;
    pci_set(config, PCI_VENDOR_ID, 2, identity->vendor);
    pci_set(config, PCI_DEVICE_ID, 2, identity->device);
    pci_set(config, PCI_CLASS_REVISION, 4, identity->class_code << 8 | identity->revision);
    pci_set(config, PCI_SUBSYSTEM_VENDOR_ID, 2, identity->subsystem_vendor);
    pci_set(config, PCI_SUBSYSTEM_ID, 2, identity->subsystem);
    pci_set(config, PCI_STATUS, 2, 0);
    if (identity->class_code >> 16 != CLASS_BRIDGE)
        config[PCI_INTERRUPT_PIN] = 1;          /* INTA */
    pci_set(function->write_mask, PCI_COMMAND, 2, COMMAND_WRITABLE);
    pci_set(function->w1c_mask, PCI_STATUS, 2, STATUS_W1C);
    function->write_mask[PCI_CACHE_LINE_SIZE] = 0xFF;
    function->write_mask[PCI_INTERRUPT_LINE] = 0xFF;
    function->capability_end = PCI_STD_HEADER_SIZEOF;
}

bool pci_function_init(struct pci_function *function, const struct pci_identity *identity, struct error *err)
{
    function->upstream = function->device.dma;
    function->upstream.requester = function->devfn;
    function->device.dma = (struct dma){ &pci_dma_ops, function, function->devfn };
    init_header(function, identity);
    if (!function->conventional)
        add_express(function);
    if (function->bus && !pci_bus_attach(function->bus, function))
        return error_set(err, "PCI slot %02x.%x is taken, %s cannot go there", function->devfn >> 3, function->devfn & 7,
                         function->device.name);
    return true;
}

/* Every bit that the guest can change goes to 0: that is the reset value of all of them here. */
void pci_function_reset(struct pci_function *function)
{
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
        function->config[i] &= (uint8_t)~(function->write_mask[i] | function->w1c_mask[i]);
    pci_msix_reset(function);
    pci_intx(function, false);
    pci_bars_update(function);
}

void pci_function_resume(struct pci_function *function)
{
    pci_bars_update(function);
    pci_intx_update(function);
}

void pci_function_fini(struct pci_function *function)
{
    pci_bars_unmap(function);
    if (function->bus && pci_bus_find(function->bus, function->devfn) == function) {
        pci_intx(function, false);
        pci_bus_detach(function->bus, function);
    }
}

/* PCI Local Bus 3.0 §6.7 "Capabilities List": the new one goes to the end of the chain. */
uint16_t pci_add_capability(struct pci_function *function, uint8_t id, uint8_t size)
{
    uint16_t at = function->capability_end;
    assert(at + size <= PCI_CFG_SPACE_SIZE);
    uint8_t *link = &function->config[PCI_CAPABILITY_LIST];
    while (*link)
        link = &function->config[*link + PCI_CAP_LIST_NEXT];
    *link = (uint8_t)at;
    function->config[at + PCI_CAP_LIST_ID] = id;
    function->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    function->capability_end = (uint16_t)align_up(at + size, 4);
    return at;
}

uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size)
{
    if (function->dma_depth)
        return (uint32_t)size_mask(size);
    if (function->config_reading)
        function->config_reading(function, offset, size);
    return pci_get(function->config, offset, size);
}

static bool touches(unsigned offset, unsigned size, unsigned first, unsigned bytes)
{
    return offset < first + bytes && first < offset + size;
}

static void config_effects(struct pci_function *function, unsigned offset, unsigned size)
{
    bool command = touches(offset, size, PCI_COMMAND, 2);
    if (command || touches(offset, size, PCI_BASE_ADDRESS_0, 4 * PCI_BARS) || touches(offset, size, PCI_ROM_ADDRESS, 4))
        pci_bars_update(function);
    if (offset >= PCI_STD_HEADER_SIZEOF)
        pci_msi_update(function);
    if (command || offset >= PCI_STD_HEADER_SIZEOF)
        pci_intx_update(function);
}

void pci_config_write(struct pci_function *function, unsigned offset, unsigned size, uint32_t value)
{
    if (function->dma_depth)
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i)), *at = &function->config[offset + i];
        uint8_t writable = function->write_mask[offset + i], w1c = function->w1c_mask[offset + i];
        *at = (uint8_t)(((*at & ~writable) | (byte & writable)) & ~(byte & w1c));
    }
    config_effects(function, offset, size);
    if (function->config_written)
        function->config_written(function, offset, size);
}

bool pci_bus_master(const struct pci_function *function)
{
    return function->config[PCI_COMMAND] & PCI_COMMAND_MASTER;
}

/* --- DMA: the machine's handle, with the bus-master bit before it --- */

static bool function_dma_read(const struct dma *dma, uint64_t address, void *buffer, size_t size)
{
    struct pci_function *function = dma->space;
    if (!pci_bus_master(function))
        return false;
    function->dma_depth++;
    bool ok = dma_read(&function->upstream, address, buffer, size);
    function->dma_depth--;
    return ok;
}

static bool function_dma_write(const struct dma *dma, uint64_t address, const void *buffer, size_t size)
{
    struct pci_function *function = dma->space;
    if (!pci_bus_master(function))
        return false;
    function->dma_depth++;
    bool ok = dma_write(&function->upstream, address, buffer, size);
    function->dma_depth--;
    return ok;
}

static int function_dma_map(const struct dma *dma, uint64_t address, size_t size, bool device_writes, struct iovec *iov,
                            int max)
{
    struct pci_function *function = dma->space;
    return pci_bus_master(function) ? dma_map(&function->upstream, address, size, device_writes, iov, max) : -1;
}

/* Whatever the bus-master bit says by now: what was pinned is let go. */
static void function_dma_unmap(const struct dma *dma, uint64_t address, size_t size, bool device_writes)
{
    struct pci_function *function = dma->space;
    dma_unmap(&function->upstream, address, size, device_writes);
}

const struct dma_ops pci_dma_ops = {
    .read = function_dma_read,
    .write = function_dma_write,
    .map = function_dma_map,
    .unmap = function_dma_unmap,
};

/* --- state --- */

static const struct state_field function_fields[] = {
    STATE_BLOB(struct pci_function, config),
    STATE_NESTED_ARRAY(struct pci_function, msix.entry, pci_msix_entry_state),
    STATE_SCALAR(struct pci_function, msix.pending),
    STATE_SCALAR(struct pci_function, intx_level),
};
const struct state_list pci_function_state = STATE_LIST("pci_function", 1, function_fields);
