#include "dev/gsi.h"

static void drive(struct gsi *gsi, enum gsi_source source, unsigned n, bool level)
{
    if (n >= GSI_COUNT || n == GSI_CASCADE)
        return;
    if (level && gsi->counters)
        counter_add_shared(gsi->counters, COUNTER_irqs_raised, 1);
    uint8_t bit = (uint8_t)(1u << source);
    gsi->drivers[n] = level ? gsi->drivers[n] | bit : gsi->drivers[n] & ~bit;
    if (n < GSI_ISA_COUNT && gsi->pic.set)
        gsi->pic.set(gsi->pic.sink, n, gsi->drivers[n]);
    if (gsi->ioapic.set && source != GSI_PIRQ)
        gsi->ioapic.set(gsi->ioapic.sink, n == GSI_PIT ? IOAPIC_PIN_PIT : n, gsi->drivers[n] & ~(1u << GSI_PIRQ));
}

static void set_board(void *sink, unsigned n, bool level) { drive(sink, GSI_BOARD, n, level); }
static void set_hpet(void *sink, unsigned n, bool level) { drive(sink, GSI_HPET, n, level); }
static void set_testdev(void *sink, unsigned n, bool level) { drive(sink, GSI_TESTDEV, n, level); }
static void set_pirq(void *sink, unsigned n, bool level) { drive(sink, GSI_PIRQ, n, level); }

static void set_replaceable(void *sink, unsigned n, bool level)
{
    struct gsi *gsi = sink;
    gsi->legacy_level[n % GSI_ISA_COUNT] = level;
    if (!gsi->hpet_legacy)
        drive(gsi, GSI_BOARD, n, level);
}

static void set_hpet_legacy(void *sink, unsigned n, bool level)
{
    struct gsi *gsi = sink;
    if (gsi->hpet_legacy == level)
        return;
    gsi->hpet_legacy = level;
    drive(gsi, GSI_BOARD, GSI_PIT, !level && gsi->legacy_level[GSI_PIT]);
    drive(gsi, GSI_BOARD, GSI_RTC, !level && gsi->legacy_level[GSI_RTC]);
}

struct irq_line gsi_line(struct gsi *gsi, unsigned n) { return (struct irq_line){ set_board, gsi, n }; }

struct irq_line gsi_shared_line(struct gsi *gsi, enum gsi_source source, unsigned n)
{
    static void (*const set[GSI_SOURCES])(void *, unsigned, bool) = { set_board, set_hpet, set_testdev, set_pirq };
    return (struct irq_line){ set[source], gsi, n };
}

struct irq_line gsi_replaceable_line(struct gsi *gsi, unsigned n) { return (struct irq_line){ set_replaceable, gsi, n }; }
struct irq_line gsi_hpet_legacy_line(struct gsi *gsi) { return (struct irq_line){ set_hpet_legacy, gsi, 0 }; }
