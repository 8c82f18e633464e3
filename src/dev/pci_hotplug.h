/* Hot-plug of PCI slots by ACPI: what the DSDT's methods read and write (machine/dsdt.asl). */
#ifndef DOPPEL_DEV_PCI_HOTPLUG_H
#define DOPPEL_DEV_PCI_HOTPLUG_H

#include "dev/device.h"

struct pci_hotplug {
    struct device device;
    /* --- configuration --- */
    uint64_t base;                      /* 0: port 0x640 */
    struct irq_line changed;            /* rises when there is something to be read; edge-triggered */
    void (*eject)(void *owner, unsigned slot);          /* the guest has let the device go. May be NULL */
    void *owner;
    /* --- state: a bit for each slot --- */
    uint32_t came, leave;               /* a device has come; the host wants it back */
    /* --- not state --- */
    struct region region;
};

/* Board lock held. */
void pci_hotplug_came(struct pci_hotplug *hotplug, unsigned slot);
void pci_hotplug_ask_back(struct pci_hotplug *hotplug, unsigned slot);

#endif
