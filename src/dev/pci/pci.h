/*
 * PCI functions and the bus they sit on (PCI Local Bus 3.0; PCI Express Base 3.1 for ECAM and the express capability).
 * A PCI device's own struct starts with `struct pci_function` (which starts with struct device). The host bridge device
 * owns the configuration mechanisms (0xCF8/0xCFC, ECAM), the INTx routing and the list of functions.
 *
 * All with the board lock held.
 */
#ifndef DOPPEL_DEV_PCI_PCI_H
#define DOPPEL_DEV_PCI_PCI_H

#include <linux/pci_regs.h>     /* register names and bits, as the specifications number them */

#include "base/base.h"
#include "dev/device.h"

enum { PCI_CONFIG_SIZE = 4096, PCI_BARS = 6, PCI_ROM_BAR = PCI_BARS, PCI_MSIX_MAX = 64, PCI_INTX_LINES = 8, PCI_SLOT_LAST = 30 };

struct pci_bus;
struct pci_function;

struct pci_bar {
    uint64_t size;              /* power of two; 0: not present */
    bool io, is64, prefetch;
    struct region region;       /* mapped while the command register enables it and an address was assigned */
    struct pci_function *function;
    enum access_result (*access)(void *owner, struct access *access);
    void *owner;
};

struct pci_msix_entry {
    uint64_t address;
    uint32_t data, control;
};

struct pci_msix {
    uint16_t count;             /* vectors; 0: no MSI-X */
    uint16_t capability;        /* offset in configuration space */
    uint8_t bar;
    uint32_t table_offset, pba_offset;
    struct pci_msix_entry entry[PCI_MSIX_MAX];
    uint64_t pending;
};

struct pci_function {
    struct device device;
    struct pci_bus *bus;
    uint8_t devfn;
    bool conventional;          /* set before pci_function_init: no express capability */
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t write_mask[PCI_CONFIG_SIZE];        /* bits the guest may write */
    uint8_t w1c_mask[PCI_CONFIG_SIZE];          /* bits cleared by writing 1 */
    struct pci_bar bar[PCI_BARS + 1];           /* the last one is the expansion ROM's */
    const uint8_t *rom;                         /* what it shows */
    uint16_t capability_end;                    /* where the next capability goes */
    uint16_t msi_capability;                    /* 0: no MSI */
    struct pci_msix msix;
    bool intx_level;
    /*
     * The handle that the machine gave. device.dma of a function stands before it: it adds the requester id, obeys the
     * bus-master bit, and counts in dma_depth, while which the function refuses register accesses: a guest that aims a
     * device's DMA at the device's own registers must not re-enter it.
     */
    struct dma upstream;
    unsigned dma_depth;
    /* Before a configuration read, to refresh what lies there. May be NULL. */
    void (*config_reading)(struct pci_function *function, unsigned offset, unsigned size);
    /* After the generic handling of a configuration write. May be NULL. */
    void (*config_written)(struct pci_function *function, unsigned offset, unsigned size);
};

/* The state of a PCI function, to nest in a device's list: STATE_NESTED(struct x, pci, pci_function_state). */
extern const struct state_list pci_function_state;

/* Identity of a function, written to configuration space. */
struct pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code;        /* base << 16 | sub << 8 | interface */
    uint8_t revision;
};

/*
 * From the type's init: header, express capability, place on the bus. The function must have been given its bus and devfn
 * by configure; with no bus it works alone (tests). False: the slot is taken.
 */
bool pci_function_init(struct pci_function *function, const struct pci_identity *identity, struct error *err);
void pci_function_reset(struct pci_function *function);
void pci_function_resume(struct pci_function *function);        /* remaps BARs and INTx from the loaded config */
void pci_function_fini(struct pci_function *function);
/* Declares a BAR. For a larger granularity of accesses change bar[].region.access_min/max afterwards. */
void pci_bar_init(struct pci_function *function, unsigned bar, const char *name, uint64_t size, bool is64, bool io,
                  enum access_result (*access)(void *owner, struct access *access), void *owner);
/* Expansion ROM (PCI Local Bus 3.0 §6.2.5.2): a power of two of bytes, borrowed. */
void pci_rom_init(struct pci_function *function, const uint8_t *data, uint32_t size);
/* Appends a capability; returns its offset. */
uint16_t pci_add_capability(struct pci_function *function, uint8_t id, uint8_t size);
void pci_add_msi(struct pci_function *function);
/* Table and PBA live at offsets in a memory BAR of their own (the helper makes it). */
void pci_add_msix(struct pci_function *function, unsigned bar, uint16_t vectors);

/* Configuration space of one function, as the guest accesses it. offset + size <= PCI_CONFIG_SIZE; size 1, 2 or 4. */
uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size);
void pci_config_write(struct pci_function *function, unsigned offset, unsigned size, uint32_t value);

/* Little-endian fields of configuration space and of the masks, for a device's init. */
static inline uint32_t pci_get(const uint8_t *space, unsigned offset, unsigned size)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)space[offset + i] << (8 * i);
    return value;
}

static inline void pci_set(uint8_t *space, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++)
        space[offset + i] = (uint8_t)(value >> (8 * i));
}

/* Interrupts of a function. */
void pci_intx(struct pci_function *function, bool level);
bool pci_msi_enabled(const struct pci_function *function);
bool pci_msix_enabled(const struct pci_function *function);
void pci_msi_send(struct pci_function *function, unsigned vector);
void pci_msix_send(struct pci_function *function, unsigned vector);     /* masks and the PBA are honoured */

/* Bus mastering: DMA through these is refused while the command register says no. */
bool pci_bus_master(const struct pci_function *function);

/* The bus: made by the host bridge. */
struct pci_bus *pci_bus_of(struct device *host_bridge);
/* Called by pci_function_init and _fini. False: the slot is taken. */
bool pci_bus_attach(struct pci_bus *bus, struct pci_function *function);
void pci_bus_detach(struct pci_bus *bus, struct pci_function *function);
struct pci_function *pci_bus_find(struct pci_bus *bus, uint8_t devfn);

/*
 * Where an interrupt pin (0: INTA ... 3: INTD) of a slot goes: line 0 to 7, which are PIRQA to PIRQH and I/O APIC inputs 16
 * to 23. Slots up to 24 take turns; those of the chipset's own functions have INTA at PIRQA, as firmware expects. The
 * DSDT's _PRT says the same.
 */
static inline unsigned pci_intx_line(uint8_t devfn, unsigned pin)
{
    unsigned slot = devfn >> 3;
    return slot <= 24 ? (slot + pin) % PCI_INTX_LINES : pin;
}

/* Address space that BARs may be placed in. */
struct pci_windows {
    uint64_t io_base, io_size, mmio_base, mmio_size, mmio64_base, mmio64_size;
    uint8_t irq[PCI_INTX_LINES];        /* 8259 inputs that the interrupt lines are routed to */
};

/*
 * What firmware would do: gives every BAR an address, enables decoding, fills in the interrupt line. For guests that
 * expect it (Multiboot, flat binaries); Linux does as well with or without. After a reset, before the guest starts.
 */
void pci_bus_assign(struct pci_bus *bus, const struct pci_windows *windows);

/* Calls `each` for every function, by devfn; for the monitor. */
void pci_bus_for_each(struct pci_bus *bus, void (*each)(struct pci_function *function, void *opaque), void *opaque);

#endif
