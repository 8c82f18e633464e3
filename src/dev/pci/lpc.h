/* The LPC bridge: where the chips of the old PC sit, and the router of PCI interrupts to the 8259s. */
#ifndef DOPPEL_DEV_PCI_LPC_H
#define DOPPEL_DEV_PCI_LPC_H

#include "dev/pci/pci.h"

enum { LPC_DEVFN = 31 << 3, LPC_ISA_IRQS = 16 };

struct lpc {
    struct pci_function pci;
    /* --- configuration --- */
    struct irq_line irq[LPC_ISA_IRQS];          /* to the 8259s */
    struct irq_line apic[PCI_INTX_LINES];       /* I/O APIC inputs 16 to 23 */
    /* --- state --- */
    bool pirq[PCI_INTX_LINES];                  /* levels of PIRQA to PIRQH */
};

/* As an irq_line's `set`: drives PIRQ n. sink: struct lpc. Board lock held. */
void lpc_set_pirq(void *sink, unsigned n, bool level);
/* What firmware does: PIRQ n goes to an input of the 8259s. */
void lpc_route(struct lpc *lpc, unsigned n, uint8_t irq);

#endif
