/* What the files of this room share with each other only. */
#ifndef DOPPEL_DEV_PCI_INTERNAL_H
#define DOPPEL_DEV_PCI_INTERNAL_H

#include "dev/pci/pci.h"

struct pci_bus {
    struct pci_function *function[256];         /* by devfn */
    struct irq_line intx[PCI_INTX_LINES];
};

/* Maps and unmaps BARs as the command register and the addresses now say (bar.c). */
void pci_bars_update(struct pci_function *function);
void pci_bars_unmap(struct pci_function *function);
/* A configuration write touched the capability: masks may have fallen (msi.c). */
void pci_msi_update(struct pci_function *function);
void pci_msix_reset(struct pci_function *function);
/* Drives the line of the function's pin from all functions that share it (bus.c). */
void pci_intx_update(struct pci_function *function);

extern const struct dma_ops pci_dma_ops;
extern const struct state_list pci_msix_entry_state;

#endif
