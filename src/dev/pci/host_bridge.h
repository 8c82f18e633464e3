/*
 * The host bridge. The machine's configure callback fills in where ECAM is, the lines to the I/O APIC, and the line that
 * the reset register pulses.
 */
#ifndef DOPPEL_DEV_PCI_HOST_BRIDGE_H
#define DOPPEL_DEV_PCI_HOST_BRIDGE_H

#include "dev/pci/internal.h"

struct host_bridge {
    struct pci_function pci;
    struct pci_bus bus;             /* bus.intx: lines 0 to 7, I/O APIC inputs 16 to 23; set by configure */
    uint64_t ecam_base, ecam_size;  /* size 0: no ECAM */
    uint64_t config_port;           /* 0xCF8 */
    struct irq_line reset;          /* raised by a write to 0xCF9 that asks for a reset */
    uint32_t config_address;
    uint8_t reset_control;
    struct region config_region, ecam_region;
};

#endif
