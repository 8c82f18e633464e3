/*
 * The host bridge. The machine's configure callback fills in where ECAM is after a reset, the lines of the interrupt pins,
 * the line that the reset register pulses, and who carries out what the PAM registers say.
 */
#ifndef DOPPEL_DEV_PCI_HOST_BRIDGE_H
#define DOPPEL_DEV_PCI_HOST_BRIDGE_H

#include "dev/pci/internal.h"

/* The programmable attribute map: 0 is 0xF0000 to 0xFFFFF, 1 to 12 are 16 KiB each from 0xC0000 on. */
enum { PAM_SEGMENTS = 13 };

struct pam_segment {
    uint32_t base, size;
};
struct pam_segment pam_segment(unsigned segment);

/* Tells where reads and writes of a segment go: to RAM, or (false) to the bus. Board lock held. set may be NULL. */
struct pam_sink {
    void (*set)(void *owner, unsigned segment, bool read, bool write);
    void *owner;
};

struct host_bridge {
    struct pci_function pci;
    struct pci_bus bus;             /* bus.intx: lines 0 to 7, PIRQA to PIRQH; set by configure */
    uint64_t ecam_base, ecam_size;  /* PCIEXBAR after a reset; size 0: no ECAM at all */
    struct pam_sink pam;
    uint64_t config_port;           /* 0xCF8 */
    struct irq_line reset;          /* raised by a write to 0xCF9 that asks for a reset */
    uint32_t config_address;
    uint8_t reset_control;
    struct region config_region, ecam_region;
};

/* What firmware does early: all of 0xC0000 to 0xFFFFF becomes RAM. */
void host_bridge_open_shadow(struct host_bridge *bridge);
/* Where PCIEXBAR has ECAM at present; 0: it is off. */
uint64_t host_bridge_ecam(const struct host_bridge *bridge);

#endif
