#include "dev/gsi.h"

static void drive(struct gsi *gsi, unsigned n, bool level)
{
    if (n >= GSI_COUNT)
        return;
    if (level && gsi->counters)
        counter_add_shared(gsi->counters, COUNTER_irqs_raised, 1);
    if (n < GSI_ISA_COUNT && n != GSI_CASCADE && gsi->pic.set)
        gsi->pic.set(gsi->pic.sink, n, level);
    unsigned pin = n == GSI_PIT ? IOAPIC_PIN_PIT : n;
    if ((n != GSI_CASCADE) && gsi->ioapic.set)
        gsi->ioapic.set(gsi->ioapic.sink, pin, level);
}

static void set_line(void *sink, unsigned n, bool level) { drive(sink, n, level); }

static void set_replaceable(void *sink, unsigned n, bool level)
{
    struct gsi *gsi = sink;
    gsi->legacy_level[n % GSI_ISA_COUNT] = level;
    if (!gsi->hpet_legacy)
        drive(gsi, n, level);
}

static void set_hpet_legacy(void *sink, unsigned n, bool level)
{
    struct gsi *gsi = sink;
    if (gsi->hpet_legacy == level)
        return;
    gsi->hpet_legacy = level;
    drive(gsi, GSI_PIT, !level && gsi->legacy_level[GSI_PIT]);
    drive(gsi, GSI_RTC, !level && gsi->legacy_level[GSI_RTC]);
}

struct irq_line gsi_line(struct gsi *gsi, unsigned n) { return (struct irq_line){ set_line, gsi, n }; }
struct irq_line gsi_replaceable_line(struct gsi *gsi, unsigned n) { return (struct irq_line){ set_replaceable, gsi, n }; }
struct irq_line gsi_hpet_legacy_line(struct gsi *gsi) { return (struct irq_line){ set_hpet_legacy, gsi, 0 }; }
