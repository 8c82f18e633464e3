/*
 * Global system interrupts: one line for each, fanned out to the 8259 pair (the first 16) and the I/O APIC, with the board's
 * one twist: IRQ 0 arrives at I/O APIC input 2 (an interrupt source override in the MADT), and the 8259's cascade
 * IRQ 2 nowhere. With the HPET's legacy replacement (HPET 1.0a §2.3.5 LEG_RT_CNF) the PIT and the RTC are cut off
 * from lines 0 and 8, which the HPET then drives. What the PCI interrupt router drives reaches the 8259s alone.
 *
 * Plain wiring, no registers and no state of its own: after a load the devices drive their lines again. Board lock held.
 */
#ifndef DOPPEL_DEV_GSI_H
#define DOPPEL_DEV_GSI_H

#include "base/stats.h"
#include "bus/handles.h"

enum { GSI_COUNT = 24, GSI_ISA_COUNT = 16, GSI_PIT = 0, GSI_CASCADE = 2, GSI_RTC = 8, IOAPIC_PIN_PIT = 2 };

/* Who drives a line; those of one line are ORed. */
enum gsi_source { GSI_BOARD, GSI_HPET, GSI_TESTDEV, GSI_PIRQ, GSI_SOURCES };

struct gsi {
    struct irq_line pic, ioapic;    /* `n` of these is not used: each line gets its own number */
    struct counters *counters;      /* may be NULL */
    uint8_t drivers[GSI_COUNT];     /* a bit for each source that asserts the line */
    bool hpet_legacy;
    bool legacy_level[GSI_ISA_COUNT];   /* what the PIT and RTC drive while they are cut off */
};

/* A line for a device of the board. */
struct irq_line gsi_line(struct gsi *gsi, unsigned n);
/* The lines of the HPET, of testdev and of the PCI interrupt router, which may be those of other devices. */
struct irq_line gsi_shared_line(struct gsi *gsi, enum gsi_source source, unsigned n);
/* The line of the PIT or RTC, which HPET's legacy replacement cuts off. */
struct irq_line gsi_replaceable_line(struct gsi *gsi, unsigned n);
/* Driven by the HPET with the level of LEG_RT_CNF. */
struct irq_line gsi_hpet_legacy_line(struct gsi *gsi);

#endif
