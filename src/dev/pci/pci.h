/*
 * PCI functions and the bus they sit on (PCI Local Bus 3.0; PCI Express Base 3.1 for ECAM and the express capability).
 * A PCI device's own struct starts with `struct pci_function` (which starts with struct device). The host bridge device
 * owns the configuration mechanisms (0xCF8/0xCFC, ECAM), the INTx routing and the list of functions.
 */
#ifndef DOPPEL_DEV_PCI_PCI_H
#define DOPPEL_DEV_PCI_PCI_H

#include "dev/device.h"

enum { PCI_CONFIG_SIZE = 4096, PCI_BARS = 6, PCI_MSIX_MAX = 64 };

struct pci_bus;

struct pci_bar {
    uint64_t size;              /* power of two; 0: not present */
    bool io, is64, prefetch;
    struct region region;       /* access, owner set by the device before pci_function_init's return */
};

struct pci_msix {
    uint16_t count;             /* vectors; 0: no MSI-X */
    uint16_t capability;        /* offset in configuration space */
    uint8_t bar;
    uint32_t table_offset, pba_offset;
    struct { uint64_t address; uint32_t data, control; } entry[PCI_MSIX_MAX];
    uint64_t pending;
};

struct pci_function {
    struct device device;
    struct pci_bus *bus;
    uint8_t devfn;
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t write_mask[PCI_CONFIG_SIZE];        /* bits the guest may write */
    uint8_t w1c_mask[PCI_CONFIG_SIZE];          /* bits cleared by writing 1 */
    struct pci_bar bar[PCI_BARS];
    uint16_t msi_capability;                    /* 0: no MSI */
    struct pci_msix msix;
    bool intx_level;
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

/* From the type's init: header, express capability. The function must have been given its bus and devfn by configure. */
void pci_function_init(struct pci_function *function, const struct pci_identity *identity);
void pci_function_reset(struct pci_function *function);
void pci_function_resume(struct pci_function *function);        /* remaps BARs and INTx from the loaded config */
void pci_function_fini(struct pci_function *function);
/* Declares a BAR; region.access and owner come from the caller. */
void pci_bar_init(struct pci_function *function, unsigned bar, const char *name, uint64_t size, bool is64, bool io,
                  enum access_result (*access)(void *owner, struct access *access), void *owner);
/* Appends a capability; returns its offset. */
uint16_t pci_add_capability(struct pci_function *function, uint8_t id, uint8_t size);
void pci_add_msi(struct pci_function *function);
/* Table and PBA live at offsets in a memory BAR of their own (the helper makes it). */
void pci_add_msix(struct pci_function *function, unsigned bar, uint16_t vectors);

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

#endif
