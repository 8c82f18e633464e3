/* The I/O APIC: 24 inputs. */
#ifndef DOPPEL_DEV_IOAPIC_H
#define DOPPEL_DEV_IOAPIC_H

#include "dev/apic_bus.h"
#include "dev/device.h"

enum { IOAPIC_PINS = 24 };

struct ioapic {
    struct device device;
    /* --- configuration --- */
    struct apic_bus *bus;       /* messages go there, EOIs come from there; may be NULL in tests */
    uint64_t base;              /* 0: 0xFEC00000 */
    /* --- state --- */
    uint8_t select, id;
    uint32_t lines;             /* levels of the inputs */
    uint64_t redirection[IOAPIC_PINS];
    /* --- not state --- */
    struct region region;
    struct apic_eoi_listener eoi;
};

/* Board lock held. As an irq_line's `set`: sink is the struct ioapic. level true: asserted, whatever the polarity. */
void ioapic_set_irq(void *sink, unsigned n, bool level);

#endif
