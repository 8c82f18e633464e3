/* Local APIC, APIC bus and I/O APIC together: acceptance, priorities, IPIs, both modes, the timer, levels and EOI. */
#include <stdlib.h>
#include <string.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/ioapic.h"
#include "dev/lapic.h"
#include "state/state.h"

enum { CPUS = 4 };
static const uint64_t page = 0xFEE00000, ioapic_base = 0xFEC00000;

struct cpu {
    struct lapic *lapic;
    /* Raised on any thread. */
    _Atomic uint32_t requests;
    _Atomic uint8_t sipi_vector;
    _Atomic unsigned sipis, nmis, inits;
};

struct fixture {
    struct board *board;
    struct apic_bus *bus;
    struct cpu cpu[CPUS];
    struct ioapic *ioapic;
    int extint_vector;
};

static const struct intc_ops *const ops = &lapic_intc_ops;

static void raise_request(void *vcpu, uint32_t request, uint8_t sipi_vector)
{
    struct cpu *cpu = vcpu;
    cpu->requests |= request;
    cpu->nmis += !!(request & REQUEST_NMI);
    cpu->inits += !!(request & REQUEST_INIT);
    cpu->sipis += !!(request & REQUEST_SIPI);
    if (request & REQUEST_SIPI)
        cpu->sipi_vector = sipi_vector;
}

static int extint_acknowledge(void *owner) { return ((struct fixture *)owner)->extint_vector; }

struct wanted {
    struct fixture *f;
    unsigned n;
};

static void configure_lapic(struct device *device, void *opaque)
{
    struct wanted *wanted = opaque;
    struct lapic *lapic = (struct lapic *)device;
    lapic->apic_id = wanted->n;
    lapic->bsp = wanted->n == 0;
    lapic->bus = wanted->f->bus;
    lapic->signal = (struct cpu_signal){ raise_request, &wanted->f->cpu[wanted->n] };
    lapic->extint = (struct extint_source){ extint_acknowledge, wanted->f };
}

static void configure_ioapic(struct device *device, void *opaque) { ((struct ioapic *)device)->bus = opaque; }

static void reg_write(struct fixture *f, unsigned cpu, unsigned offset, uint32_t value)
{
    struct access access = { .address = page + offset, .size = 4, .write = true, .value = value };
    assert_true(ops->mmio(f->cpu[cpu].lapic, &access));
}

static uint32_t reg_read(struct fixture *f, unsigned cpu, unsigned offset)
{
    struct access access = { .address = page + offset, .size = 4 };
    assert_true(ops->mmio(f->cpu[cpu].lapic, &access));
    return (uint32_t)access.value;
}

static uint64_t msr_read(struct fixture *f, unsigned cpu, uint32_t msr)
{
    uint64_t value;
    assert_true(ops->read_msr(f->cpu[cpu].lapic, msr, &value));
    return value;
}

static bool msr_write(struct fixture *f, unsigned cpu, uint32_t msr, uint64_t value)
{
    return ops->write_msr(f->cpu[cpu].lapic, msr, value);
}

static int take(struct fixture *f, unsigned cpu) { return ops->acknowledge(f->cpu[cpu].lapic); }
static void eoi(struct fixture *f, unsigned cpu) { reg_write(f, cpu, 0xB0, 0); }

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->board = board_create();
    f->bus = apic_bus_create(&f->board->log, &f->board->counters);
    for (unsigned n = 0; n < CPUS; n++) {
        f->cpu[n].lapic = board_device(f->board, &device_lapic, configure_lapic, &(struct wanted){ f, n });
        reg_write(f, n, 0xF0, 0x1FF);
        reg_write(f, n, 0xD0, 1u << (24 + n));
    }
    f->ioapic = board_device(f->board, &device_ioapic, configure_ioapic, f->bus);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < CPUS; n++)
        device_destroy(&f->cpu[n].lapic->device);
    device_destroy(&f->ioapic->device);
    apic_bus_destroy(f->bus);
    board_destroy(f->board);
    free(f);
    return 0;
}

static void ipi(struct fixture *f, unsigned from, uint32_t high, uint32_t low)
{
    reg_write(f, from, 0x310, high);
    reg_write(f, from, 0x300, low);
}

static void x2apic_on(struct fixture *f, unsigned cpu)
{
    assert_true(msr_write(f, cpu, 0x1B, msr_read(f, cpu, 0x1B) | 0xC00));
}

/* --- registers and modes --- */

static void power_on_state(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < CPUS; n++)
        device_lapic.reset(&f->cpu[n].lapic->device);
    assert_int_equal(msr_read(f, 0, 0x1B), 0xFEE00900);
    assert_int_equal(msr_read(f, 1, 0x1B), 0xFEE00800);
    assert_int_equal(reg_read(f, 2, 0x20), 2u << 24);
    assert_int_equal(reg_read(f, 0, 0x30) & 0xFF, 0x14);
    assert_int_equal(reg_read(f, 0, 0xF0), 0xFF);
    assert_int_equal(reg_read(f, 0, 0xE0), 0xFFFFFFFF);
    assert_int_equal(reg_read(f, 0, 0x350), 0x700);
    assert_int_equal(reg_read(f, 1, 0x350), 0x10000);
    assert_int_equal(reg_read(f, 1, 0x320), 0x10000);
}

static void page_follows_the_base_and_the_enable_bit(void **state)
{
    struct fixture *f = *state;
    struct access elsewhere = { .address = 0xFED00000, .size = 4 };
    assert_false(ops->mmio(f->cpu[0].lapic, &elsewhere));
    reg_write(f, 0, 0x80, 0x55);
    assert_true(msr_write(f, 0, 0x1B, 0xFEE00100));
    struct access access = { .address = page + 0x80, .size = 4 };
    assert_false(ops->mmio(f->cpu[0].lapic, &access));
    assert_true(msr_write(f, 0, 0x1B, 0xFEE00900));
    assert_int_equal(reg_read(f, 0, 0x80), 0);
    assert_int_equal(reg_read(f, 0, 0xF0), 0xFF);
    assert_true(msr_write(f, 0, 0x1B, 0xFED40900));
    assert_false(ops->mmio(f->cpu[0].lapic, &access));
}

static void mode_changes_follow_the_manual(void **state)
{
    struct fixture *f = *state;
    assert_false(msr_write(f, 0, 0x1B, 0xFEE00400));         /* EXTD without EN */
    assert_false(msr_write(f, 0, 0x1B, 0xFEE00901));         /* reserved bit */
    assert_true(msr_write(f, 0, 0x1B, 0xFEE00D00));
    assert_false(msr_write(f, 0, 0x1B, 0xFEE00900));         /* x2APIC to xAPIC */
    assert_true(msr_write(f, 0, 0x1B, 0xFEE00100));
    assert_false(msr_write(f, 0, 0x1B, 0xFEE00D00));         /* disabled to x2APIC */
    assert_true(msr_write(f, 0, 0x1B, 0xFEE00900));
}

static void x2apic_msrs_fault_where_the_manual_says(void **state)
{
    struct fixture *f = *state;
    uint64_t value;
    assert_false(ops->read_msr(f->cpu[1].lapic, 0x802, &value));     /* not in xAPIC mode */
    x2apic_on(f, 1);
    struct access access = { .address = page + 0x20, .size = 4 };
    assert_false(ops->mmio(f->cpu[1].lapic, &access));
    assert_int_equal(msr_read(f, 1, 0x802), 1);
    assert_int_equal(msr_read(f, 1, 0x80D), 2);
    assert_false(ops->read_msr(f->cpu[1].lapic, 0x80E, &value));     /* no DFR */
    assert_false(ops->read_msr(f->cpu[1].lapic, 0x831, &value));     /* no ICR high */
    assert_false(ops->read_msr(f->cpu[1].lapic, 0x80B, &value));     /* EOI is write-only */
    assert_false(msr_write(f, 1, 0x80B, 1));
    assert_false(msr_write(f, 1, 0x802, 0));
    assert_false(msr_write(f, 1, 0x808, 0x100));
    assert_false(msr_write(f, 1, 0x832, 1ull << 32));
    assert_true(msr_write(f, 1, 0x80B, 0));
    assert_true(msr_write(f, 1, 0x83F, 0x44));
    assert_int_equal(take(f, 1), 0x44);
}

static void init_keeps_mode_and_id(void **state)
{
    struct fixture *f = *state;
    x2apic_on(f, 3);
    msr_write(f, 3, 0x808, 0x40);
    ops->init(f->cpu[3].lapic);
    assert_int_equal(msr_read(f, 3, 0x802), 3);
    assert_int_equal(msr_read(f, 3, 0x808), 0);
    assert_int_equal(msr_read(f, 3, 0x80F), 0xFF);
}

/* --- acceptance and priority --- */

static void priorities_nest(void **state)
{
    struct fixture *f = *state;
    ipi(f, 0, 0, 0x40041);
    ipi(f, 0, 0, 0x40081);
    assert_int_equal(ops->pending(f->cpu[0].lapic), 0x81);
    assert_int_equal(take(f, 0), 0x81);
    assert_int_equal(ops->pending(f->cpu[0].lapic), -1);
    assert_int_equal(reg_read(f, 0, 0xA0), 0x80);
    ipi(f, 0, 0, 0x40085);      /* same class: waits */
    assert_int_equal(take(f, 0), -1);
    ipi(f, 0, 0, 0x40091);
    assert_int_equal(take(f, 0), 0x91);
    eoi(f, 0);
    eoi(f, 0);
    assert_int_equal(take(f, 0), 0x85);
    eoi(f, 0);
    assert_int_equal(take(f, 0), 0x41);
    eoi(f, 0);
    assert_int_equal(reg_read(f, 0, 0xA0), 0);
}

static void tpr_holds_back(void **state)
{
    struct fixture *f = *state;
    ops->set_tpr(f->cpu[0].lapic, 8);
    assert_int_equal(reg_read(f, 0, 0x80), 0x80);
    ipi(f, 0, 0, 0x40085);
    assert_int_equal(ops->pending(f->cpu[0].lapic), -1);
    f->cpu[0].requests = 0;
    ops->set_tpr(f->cpu[0].lapic, 7);
    assert_int_equal(f->cpu[0].requests & REQUEST_INTERRUPT, REQUEST_INTERRUPT);
    assert_int_equal(take(f, 0), 0x85);
}

static void software_disabled_accepts_no_fixed_interrupts(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 1, 0x350, 0x00040);
    reg_write(f, 1, 0xF0, 0x0FF);
    assert_int_equal(reg_read(f, 1, 0x350), 0x10040);
    reg_write(f, 1, 0x350, 0x00040);
    assert_int_equal(reg_read(f, 1, 0x350), 0x10040);       /* cannot be unmasked */
    ipi(f, 0, 1u << 24, 0x0050);
    assert_int_equal(ops->pending(f->cpu[1].lapic), -1);
    ipi(f, 0, 1u << 24, 0x0400);
    assert_int_equal(f->cpu[1].nmis, 1);
}

static void illegal_vectors_are_errors(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x370, 0xE0);
    ipi(f, 0, 1u << 24, 0x0005);
    assert_int_equal(take(f, 0), 0xE0);
    assert_int_equal(reg_read(f, 0, 0x280), 0);
    reg_write(f, 0, 0x280, 0);
    assert_int_equal(reg_read(f, 0, 0x280), 0x20);
    reg_write(f, 0, 0x280, 0);
    assert_int_equal(reg_read(f, 0, 0x280), 0);
    apic_bus_msi(f->bus, 0xFEE01000, 0x03);
    reg_write(f, 1, 0x280, 0);
    assert_int_equal(reg_read(f, 1, 0x280), 0x40);
    reg_read(f, 2, 0x3A0);
    reg_write(f, 2, 0x280, 0);
    assert_int_equal(reg_read(f, 2, 0x280), 0x80);
}

/* --- IPIs --- */

static unsigned receivers(struct fixture *f, int vector)
{
    unsigned set = 0;
    for (unsigned n = 0; n < CPUS; n++)
        if (take(f, n) == vector) {
            set |= 1u << n;
            if (f->cpu[n].lapic->apic_base & 0x400)
                msr_write(f, n, 0x80B, 0);
            else
                eoi(f, n);
        }
    return set;
}

static void destinations(void **state)
{
    struct fixture *f = *state;
    ipi(f, 0, 2u << 24, 0x0050);
    assert_int_equal(receivers(f, 0x50), 1 << 2);
    ipi(f, 0, 0xFFu << 24, 0x0050);
    assert_int_equal(receivers(f, 0x50), 0xF);
    ipi(f, 1, 0, 0x40050);
    assert_int_equal(receivers(f, 0x50), 1 << 1);
    ipi(f, 1, 0, 0x80050);
    assert_int_equal(receivers(f, 0x50), 0xF);
    ipi(f, 1, 0, 0xC0050);
    assert_int_equal(receivers(f, 0x50), 0xD);
    ipi(f, 0, 0x0Au << 24, 0x0850);                     /* logical, flat */
    assert_int_equal(receivers(f, 0x50), 0xA);
    for (unsigned n = 0; n < CPUS; n++) {               /* clusters of two */
        reg_write(f, n, 0xE0, 0x0FFFFFFF);
        reg_write(f, n, 0xD0, (n / 2) << 28 | 1u << (24 + n % 2));
    }
    ipi(f, 0, 0x13u << 24, 0x0850);
    assert_int_equal(receivers(f, 0x50), 0xC);
    ipi(f, 0, 0x02u << 24, 0x0850);
    assert_int_equal(receivers(f, 0x50), 0x2);
}

static void destinations_in_x2apic_mode(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < CPUS; n++)
        x2apic_on(f, n);
    assert_true(msr_write(f, 0, 0x830, 3ull << 32 | 0x50));
    assert_int_equal(receivers(f, 0x50), 1 << 3);
    assert_true(msr_write(f, 0, 0x830, 0xFFFFFFFFull << 32 | 0x50));
    assert_int_equal(receivers(f, 0x50), 0xF);
    assert_true(msr_write(f, 0, 0x830, 0x6ull << 32 | 0x850));
    assert_int_equal(receivers(f, 0x50), 0x6);
    assert_true(msr_write(f, 0, 0x830, 0x10006ull << 32 | 0x850));      /* cluster 1: nobody */
    assert_int_equal(receivers(f, 0x50), 0);
    assert_int_equal(msr_read(f, 0, 0x830), 0x10006ull << 32 | 0x850);
    apic_bus_msi(f->bus, 0xFEEFF000, 0x51);
    assert_int_equal(receivers(f, 0x51), 0xF);
}

static void init_and_start_up_reach_their_targets(void **state)
{
    struct fixture *f = *state;
    ipi(f, 0, 1u << 24, 0xC500);                /* INIT, level assert */
    ipi(f, 0, 1u << 24, 0x8500);                /* de-assert: nothing */
    assert_int_equal(f->cpu[1].inits, 1);
    ipi(f, 0, 1u << 24, 0x0699);
    assert_int_equal(f->cpu[1].sipis, 1);
    assert_int_equal(f->cpu[1].sipi_vector, 0x99);
    ipi(f, 0, 0, 0xC4500);                      /* broadcast, start page 0 */
    ipi(f, 0, 0, 0xC4600);
    for (unsigned n = 1; n < CPUS; n++) {
        assert_true(f->cpu[n].inits >= 1 && f->cpu[n].sipis >= 1);
        assert_int_equal(f->cpu[n].sipi_vector, 0);
    }
    assert_int_equal(f->cpu[0].inits + f->cpu[0].sipis, 0);
    ipi(f, 0, 0, 0xC0400);
    assert_int_equal(f->cpu[3].nmis, 1);
    assert_int_equal(f->cpu[0].nmis, 0);
}

static void lowest_priority_goes_to_one_of_the_least_busy(void **state)
{
    struct fixture *f = *state;
    for (unsigned n = 0; n < CPUS; n++)
        ops->set_tpr(f->cpu[n].lapic, n == 2 ? 0 : 4);
    for (unsigned i = 0; i < 8; i++) {
        ipi(f, 0, 0xFFu << 24, 0x0990);
        assert_int_equal(receivers(f, 0x90), 1 << 2);
    }
    ops->set_tpr(f->cpu[2].lapic, 4);
    unsigned seen = 0;
    for (unsigned i = 0; i < 8; i++) {
        apic_bus_msi(f->bus, 0xFEEFF00C, 0x190);
        unsigned set = receivers(f, 0x90);
        assert_int_equal(__builtin_popcount(set), 1);
        seen |= set;
    }
    assert_int_equal(seen, 0xF);        /* equals take turns */
}

static void disabled_apics_hear_nothing(void **state)
{
    struct fixture *f = *state;
    assert_true(msr_write(f, 1, 0x1B, 0xFEE00000));
    ipi(f, 0, 0, 0xC0400);
    assert_int_equal(f->cpu[1].nmis, 0);
    assert_int_equal(f->cpu[2].nmis, 1);
}

/* --- the 8259's wire --- */

static void extint_comes_through_lint0(void **state)
{
    struct fixture *f = *state;
    f->extint_vector = 0x30;
    reg_write(f, 0, 0x350, 0x700);
    lapic_set_lint(f->cpu[0].lapic, 0, true);
    assert_int_equal(ops->pending(f->cpu[0].lapic), LAPIC_VECTOR_EXTINT);
    assert_int_equal(take(f, 0), 0x30);
    assert_int_equal(reg_read(f, 0, 0xA0), 0);          /* not in the ISR */
    reg_write(f, 0, 0x350, 0x10700);
    assert_int_equal(ops->pending(f->cpu[0].lapic), -1);
    assert_true(msr_write(f, 0, 0x1B, 0xFEE00100));     /* disabled: LINT0 is INTR */
    assert_int_equal(take(f, 0), 0x30);
    lapic_set_lint(f->cpu[0].lapic, 0, false);
    assert_int_equal(ops->pending(f->cpu[0].lapic), -1);
}

static void lint1_gives_an_nmi(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x360, 0x400);
    lapic_set_lint(f->cpu[0].lapic, 1, true);
    lapic_set_lint(f->cpu[0].lapic, 1, true);
    assert_int_equal(f->cpu[0].nmis, 1);
}

/* --- the timer --- */

static void one_shot_timer_counts_down_and_fires_once(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x3E0, 0x3);            /* divide by 16 */
    reg_write(f, 0, 0x320, 0x60);
    reg_write(f, 0, 0x380, 1000);           /* 16 us */
    board_advance(f->board, 8000);
    assert_int_equal(reg_read(f, 0, 0x390), 500);
    assert_int_equal(ops->pending(f->cpu[0].lapic), -1);
    board_advance(f->board, 8000);
    assert_int_equal(take(f, 0), 0x60);
    assert_int_equal(reg_read(f, 0, 0x390), 0);
    eoi(f, 0);
    board_advance(f->board, 1000000);
    assert_int_equal(take(f, 0), -1);
}

static void periodic_timer_keeps_its_phase(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x3E0, 0xB);
    reg_write(f, 0, 0x320, 0x20060);
    reg_write(f, 0, 0x380, 100000);
    unsigned fired = 0;
    for (unsigned i = 0; i < 1000; i++) {
        board_advance(f->board, 10000);
        if (take(f, 0) == 0x60) {
            fired++;
            eoi(f, 0);
        }
    }
    assert_int_equal(fired, 100);
    reg_write(f, 0, 0x380, 0);
    board_advance(f->board, 1000000);
    assert_int_equal(take(f, 0), -1);
}

static void count_goes_on_over_a_change_of_mode_and_stays_at_zero_once_run_out(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x3E0, 0xB);
    reg_write(f, 0, 0x320, 0x10060);
    reg_write(f, 0, 0x380, 100000);
    board_advance(f->board, 60000);
    reg_write(f, 0, 0x320, 0x30060);                    /* periodic */
    assert_int_equal(reg_read(f, 0, 0x390), 40000);
    board_advance(f->board, 50000);
    assert_int_equal(reg_read(f, 0, 0x390), 90000);     /* wrapped */
    board_advance(f->board, 1000000);
    reg_write(f, 0, 0x320, 0x10060);                    /* one-shot: this period is the last */
    assert_int_equal(reg_read(f, 0, 0x390), 90000);
    board_advance(f->board, 90000);
    assert_int_equal(reg_read(f, 0, 0x390), 0);
    reg_write(f, 0, 0x320, 0x30060);
    board_advance(f->board, 10000);
    assert_int_equal(reg_read(f, 0, 0x390), 0);
    reg_write(f, 0, 0x380, 100000);
    board_advance(f->board, 10000);
    assert_int_equal(reg_read(f, 0, 0x390), 90000);
}

static void masked_timer_counts_silently(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x3E0, 0xB);
    reg_write(f, 0, 0x320, 0x10060);
    reg_write(f, 0, 0x380, 50000);
    board_advance(f->board, 25000);
    assert_int_equal(reg_read(f, 0, 0x390), 25000);
    board_advance(f->board, 25000);
    assert_int_equal(take(f, 0), -1);
}

static void divisors_are_those_of_the_table(void **state)
{
    struct fixture *f = *state;
    static const struct { uint32_t code, divisor; } rows[] = {
        { 0x0, 2 }, { 0x1, 4 }, { 0x2, 8 }, { 0x3, 16 }, { 0x8, 32 }, { 0x9, 64 }, { 0xA, 128 }, { 0xB, 1 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        reg_write(f, 0, 0x3E0, rows[i].code);
        reg_write(f, 0, 0x380, 1000000);
        board_advance(f->board, 128000);
        assert_int_equal(reg_read(f, 0, 0x390), 1000000 - 128000 / rows[i].divisor);
    }
}

static void tsc_deadline_fires_at_the_guests_tsc(void **state)
{
    struct fixture *f = *state;
    struct clock *clock = f->board->clock;
    assert_true(msr_write(f, 0, 0x6E0, 12345));
    assert_int_equal(msr_read(f, 0, 0x6E0), 0);         /* another mode: ignored */
    reg_write(f, 0, 0x320, 0x40070);
    ops->set_tsc_offset(f->cpu[0].lapic, 5000000);
    uint64_t wait = clock_ns_to_tsc(clock, 100000);
    uint64_t deadline = clock_tsc(clock) + 5000000 + wait;
    assert_true(msr_write(f, 0, 0x6E0, deadline));
    assert_int_equal(msr_read(f, 0, 0x6E0), deadline);
    board_advance(f->board, 99000);
    assert_int_equal(take(f, 0), -1);
    board_advance(f->board, 2000);
    assert_int_equal(take(f, 0), 0x70);
    assert_int_equal(msr_read(f, 0, 0x6E0), 0);
    eoi(f, 0);
    assert_true(msr_write(f, 0, 0x6E0, 1));             /* past: at once */
    assert_int_equal(take(f, 0), 0x70);
    eoi(f, 0);
    assert_true(msr_write(f, 0, 0x6E0, ~0ull));
    assert_true(msr_write(f, 0, 0x6E0, 0));             /* disarmed */
    board_advance(f->board, 1000000);
    assert_int_equal(take(f, 0), -1);
    reg_write(f, 0, 0x380, 10);                         /* ignored in this mode */
    assert_int_equal(reg_read(f, 0, 0x390), 0);
}

static void short_periods_do_not_flood_the_host(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0x3E0, 0xB);
    reg_write(f, 0, 0x320, 0x20060);
    reg_write(f, 0, 0x380, 1);
    board_advance(f->board, 1000000);
    assert_int_equal(take(f, 0), 0x60);
}

/* --- with the I/O APIC --- */

static void redirect(struct fixture *f, unsigned pin, uint64_t entry)
{
    write32(f->board, ioapic_base, 0x10 + pin * 2 + 1);
    write32(f->board, ioapic_base + 0x10, (uint32_t)(entry >> 32));
    write32(f->board, ioapic_base, 0x10 + pin * 2);
    write32(f->board, ioapic_base + 0x10, (uint32_t)entry);
}

static uint64_t redirection(struct fixture *f, unsigned pin)
{
    write32(f->board, ioapic_base, 0x10 + pin * 2 + 1);
    uint64_t high = read32(f->board, ioapic_base + 0x10);
    write32(f->board, ioapic_base, 0x10 + pin * 2);
    return high << 32 | read32(f->board, ioapic_base + 0x10);
}

static void set_pin(struct fixture *f, unsigned pin, bool level)
{
    pthread_mutex_lock(&f->board->lock);
    ioapic_set_irq(f->ioapic, pin, level);
    pthread_mutex_unlock(&f->board->lock);
}

static void ioapic_identifies_itself(void **state)
{
    struct fixture *f = *state;
    write32(f->board, ioapic_base, 1);
    assert_int_equal(read32(f->board, ioapic_base + 0x10), 0x00170020);
    write32(f->board, ioapic_base, 0);
    write32(f->board, ioapic_base + 0x10, 0xFFFFFFFF);
    assert_int_equal(read32(f->board, ioapic_base + 0x10), 0x0F000000);
    assert_int_equal(redirection(f, 23), 0x10000);
}

static void edge_inputs_send_once_a_rise(void **state)
{
    struct fixture *f = *state;
    redirect(f, 4, 1ull << 56 | 0x34);
    set_pin(f, 4, true);
    set_pin(f, 4, true);
    assert_int_equal(receivers(f, 0x34), 1 << 1);
    assert_int_equal(receivers(f, 0x34), 0);
    set_pin(f, 4, false);
    redirect(f, 4, 1ull << 56 | 0x10034);
    set_pin(f, 4, true);
    redirect(f, 4, 1ull << 56 | 0x34);
    assert_int_equal(receivers(f, 0x34), 0);        /* an edge while masked is lost */
}

static void level_inputs_wait_for_eoi_and_ask_again(void **state)
{
    struct fixture *f = *state;
    redirect(f, 16, 0x8051);
    set_pin(f, 16, true);
    assert_int_equal(redirection(f, 16), 0xC051);       /* remote IRR */
    assert_int_equal(take(f, 0), 0x51);
    assert_int_equal(reg_read(f, 0, 0x180 + 0x51 / 32 * 16), 1u << (0x51 % 32));
    eoi(f, 0);
    assert_int_equal(take(f, 0), 0x51);                 /* still asserted */
    set_pin(f, 16, false);
    eoi(f, 0);
    assert_int_equal(take(f, 0), -1);
    assert_int_equal(redirection(f, 16), 0x8051);
}

static void masked_level_is_sent_when_unmasked(void **state)
{
    struct fixture *f = *state;
    redirect(f, 17, 0x18052);
    set_pin(f, 17, true);
    assert_int_equal(take(f, 0), -1);
    redirect(f, 17, 0x8052);
    assert_int_equal(take(f, 0), 0x52);
}

static void directed_eoi(void **state)
{
    struct fixture *f = *state;
    reg_write(f, 0, 0xF0, 0x11FF);                      /* suppress the broadcast */
    redirect(f, 18, 0x8053);
    set_pin(f, 18, true);
    assert_int_equal(take(f, 0), 0x53);
    set_pin(f, 18, false);
    eoi(f, 0);
    assert_int_equal(redirection(f, 18) & 0x4000, 0x4000);
    write32(f->board, ioapic_base + 0x40, 0x53);
    assert_int_equal(redirection(f, 18) & 0x4000, 0);
}

static void becoming_edge_clears_a_stuck_remote_irr(void **state)
{
    struct fixture *f = *state;
    redirect(f, 19, 0x8054);
    set_pin(f, 19, true);
    set_pin(f, 19, false);
    assert_int_equal(redirection(f, 19) & 0x4000, 0x4000);
    redirect(f, 19, 0x10054);
    redirect(f, 19, 0x18054);
    assert_int_equal(redirection(f, 19) & 0x4000, 0);
}

/* --- threads --- */

struct sender {
    struct fixture *f;
    unsigned n;
};

static void *send_many(void *argument)
{
    struct sender *sender = argument;
    for (unsigned i = 0; i < 20000; i++) {
        if (sender->n & 1)
            apic_bus_msi(sender->f->bus, 0xFEE00000, 0x60 + (i & 31));
        else
            reg_write(sender->f, sender->n, 0x300, 0xC0050);
    }
    return NULL;
}

static void messages_of_many_threads_do_not_get_lost_or_lock_up(void **state)
{
    struct fixture *f = *state;
    pthread_t thread[CPUS];
    struct sender sender[CPUS];
    for (unsigned n = 0; n < CPUS; n++) {
        sender[n] = (struct sender){ f, n };
        pthread_create(&thread[n], NULL, send_many, &sender[n]);
    }
    for (unsigned i = 0; i < 20000; i++)
        if (take(f, 1) >= 0)
            eoi(f, 1);
    for (unsigned n = 0; n < CPUS; n++)
        pthread_join(thread[n], NULL);
    for (unsigned vector = 0x7F; vector >= 0x60; vector--) {
        assert_int_equal(take(f, 0), (int)vector);
        eoi(f, 0);
    }
    assert_int_equal(take(f, 0), 0x50);
}

/* --- registers that are lent --- */

enum { SENT_MAX = 8 };

/* A host's kernel that only keeps what it is given. */
struct kernel {
    struct intc_host host;
    struct intc_registers held[CPUS];
    unsigned stores, sent;
    struct intc_route message[SENT_MAX], route[INTC_ROUTES];
    uint32_t refuses;                       /* this APIC ID */
};

static bool kernel_store(void *owner, uint32_t apic_id, const struct intc_registers *registers)
{
    struct kernel *kernel = owner;
    kernel->held[apic_id] = *registers;
    kernel->stores++;
    return apic_id != kernel->refuses;
}

static bool kernel_fetch(void *owner, uint32_t apic_id, struct intc_registers *registers)
{
    *registers = ((struct kernel *)owner)->held[apic_id];
    return true;
}

static bool kernel_read_msr(void *owner, uint32_t apic_id, uint32_t msr, uint64_t *value)
{
    const struct intc_registers *held = &((struct kernel *)owner)->held[apic_id];
    *value = msr == 0x6E0 ? held->deadline : held->reg[(msr - 0x800) % INTC_REGISTERS];
    return msr != 0x83E;
}

static bool kernel_write_msr(void *owner, uint32_t apic_id, uint32_t msr, uint64_t value)
{
    struct intc_registers *held = &((struct kernel *)owner)->held[apic_id];
    if (msr == 0x1B)
        held->base = value;
    else
        held->reg[(msr - 0x800) % INTC_REGISTERS] = (uint32_t)value;
    return true;
}

static bool kernel_send(void *owner, uint64_t address, uint32_t data)
{
    struct kernel *kernel = owner;
    assert_true(kernel->sent < SENT_MAX);
    kernel->message[kernel->sent++] = (struct intc_route){ address, data };
    return true;
}

static void kernel_route(void *owner, const struct intc_route route[INTC_ROUTES])
{
    memcpy(((struct kernel *)owner)->route, route, sizeof(((struct kernel *)owner)->route));
}

static void lend(struct fixture *f, struct kernel *kernel)
{
    *kernel = (struct kernel){
        .host = { kernel_store, kernel_fetch, kernel_read_msr, kernel_write_msr, kernel_send, kernel_route, kernel }, .refuses = UINT32_MAX,
    };
    assert_true(ops->lend(f->cpu[0].lapic, &kernel->host));
}

static void reclaim(struct fixture *f) { ops->reclaim(f->cpu[0].lapic); }

/* Every field of every local APIC, as text. */
static char *dump(const struct fixture *f)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    for (unsigned n = 0; n < CPUS; n++)
        state_dump(device_lapic.state, f->cpu[n].lapic, "", out);
    fclose(out);
    return text;
}

static void stays_the_same_lent_and_back(struct fixture *f)
{
    struct kernel kernel;
    char *before = dump(f);
    lend(f, &kernel);
    assert_int_equal(kernel.stores, CPUS);
    reclaim(f);
    char *after = dump(f);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void what_is_lent_comes_back_as_it_was(void **state)
{
    struct fixture *f = *state;
    stays_the_same_lent_and_back(f);
    x2apic_on(f, 1);
    reg_write(f, 0, 0x80, 0x23);
    reg_write(f, 0, 0xE0, 0x0FFFFFFF);
    reg_write(f, 0, 0x350, 0x8733);
    reg_write(f, 0, 0x280, 0);
    ipi(f, 2, 0, 0x51);
    ipi(f, 2, 0, 0x91);
    ipi(f, 2, 3u << 24, 0x05);                          /* an error of 2's */
    assert_int_equal(take(f, 0), 0x91);
    redirect(f, 16, 0x80E1);
    set_pin(f, 16, true);                               /* level-triggered, in TMR and IRR */
    reg_write(f, 2, 0x3E0, 0x3);
    reg_write(f, 2, 0x320, 0x60);
    reg_write(f, 2, 0x380, 1000);
    reg_write(f, 3, 0x320, 0x20061);
    reg_write(f, 3, 0x380, 100000);
    assert_true(msr_write(f, 1, 0x832, 0x40062));
    assert_true(msr_write(f, 1, 0x6E0, 1000000));
    board_advance(f->board, 8000);
    stays_the_same_lent_and_back(f);
}

static void timers_run_on_only_where_they_are(void **state)
{
    struct fixture *f = *state;
    struct kernel kernel;
    reg_write(f, 0, 0x3E0, 0xB);
    reg_write(f, 0, 0x320, 0x60);
    reg_write(f, 0, 0x380, 1000);
    reg_write(f, 1, 0x320, 0x40061);
    assert_true(msr_write(f, 1, 0x6E0, 1000));
    board_advance(f->board, 400);
    lend(f, &kernel);
    assert_int_equal(kernel.held[0].reg[0x38], 1000);
    assert_int_equal(kernel.held[0].reg[0x39], 600);
    assert_int_equal(kernel.held[1].deadline, 1000);
    board_advance(f->board, 5000);
    kernel.held[0].reg[0x39] = 100;                     /* slower there than here */
    reclaim(f);
    assert_int_equal(take(f, 1), 0x61);                 /* the deadline has passed, and the kernel did not say so */
    assert_int_equal(take(f, 0), -1);
    board_advance(f->board, 99);
    assert_int_equal(take(f, 0), -1);
    board_advance(f->board, 1);
    assert_int_equal(take(f, 0), 0x60);
    lend(f, &kernel);
    assert_int_equal(kernel.held[0].reg[0x38], 0);      /* run out: not to be started again */
    reclaim(f);
    reg_write(f, 2, 0x320, 0x62);
    reg_write(f, 2, 0x380, 1000);
    timer_disarm(&f->cpu[2].lapic->timer);              /* the host is late with it */
    board_advance(f->board, 5000);
    lend(f, &kernel);
    assert_int_equal(kernel.held[2].reg[0x23], 1u << 2);
    reclaim(f);
    assert_int_equal(take(f, 2), 0x62);
}

/* Between two periods the host's current count is 0 for a moment, and its interrupt is not there yet. */
static void a_period_that_ends_as_it_is_taken_back_is_followed_by_the_next(void **state)
{
    struct fixture *f = *state;
    struct kernel kernel;
    board_advance(f->board, 1000000);
    reg_write(f, 0, 0x3E0, 0xB);
    reg_write(f, 0, 0x320, 0x20060);
    reg_write(f, 0, 0x380, 100000);
    board_advance(f->board, 400);
    lend(f, &kernel);
    assert_int_equal(kernel.held[0].reg[0x39], 99600);
    kernel.held[0].reg[0x39] = 0;
    reclaim(f);
    board_advance(f->board, 20000);                     /* the least time between two interrupts of a periodic count */
    assert_int_equal(take(f, 0), 0x60);
    eoi(f, 0);
    board_advance(f->board, 80000);
    assert_int_equal(take(f, 0), -1);
    board_advance(f->board, 1);                         /* a period after the end of that */
    assert_int_equal(take(f, 0), 0x60);
    eoi(f, 0);
    reg_write(f, 0, 0x380, 0);
    lend(f, &kernel);
    reclaim(f);                                         /* neither has it a count */
    board_advance(f->board, 1000000);
    assert_int_equal(take(f, 0), -1);
}

static void messages_go_where_the_registers_are(void **state)
{
    struct fixture *f = *state;
    struct kernel kernel;
    redirect(f, 5, 0x0044);
    redirect(f, 16, 2ull << 56 | 0x8951);
    lend(f, &kernel);
    assert_true(kernel.route[16].address == 0xFEE02004 && kernel.route[16].data == 0xC151);
    assert_int_equal(kernel.route[5].address, 0);       /* an edge needs no EOI */
    apic_bus_msi(f->bus, 0xFEE01000, 0x61);
    set_pin(f, 5, true);
    set_pin(f, 16, true);
    assert_int_equal(kernel.sent, 3);
    assert_true(kernel.message[0].address == 0xFEE01000 && kernel.message[0].data == 0x61);
    assert_true(kernel.message[1].address == 0xFEE00000 && kernel.message[1].data == 0x44);
    assert_true(kernel.message[2].address == 0xFEE02004 && kernel.message[2].data == 0xC151);
    assert_int_equal(redirection(f, 16), 2ull << 56 | 0xC951);
    ops->eoi(f->cpu[1].lapic, 0x51);
    assert_int_equal(kernel.sent, 4);                   /* still asserted */
    set_pin(f, 16, false);
    ops->eoi(f->cpu[1].lapic, 0x51);
    assert_int_equal(kernel.sent, 4);
    redirect(f, 16, 0x0051);
    assert_int_equal(kernel.route[16].address, 0);
    for (unsigned n = 0; n < CPUS; n++)
        assert_int_equal(take(f, n), -1);
    reclaim(f);
    apic_bus_msi(f->bus, 0xFEE01000, 0x61);
    assert_int_equal(kernel.sent, 4);
    assert_int_equal(take(f, 1), 0x61);
}

/* By an instruction that the host's kernel cannot carry out. */
static void accesses_reach_registers_that_are_lent(void **state)
{
    struct fixture *f = *state;
    struct kernel kernel;
    uint64_t value;
    lend(f, &kernel);
    kernel.held[0].reg[0x21] |= 1u << 0x10;             /* IRR: vector 0x30 */
    reg_write(f, 0, 0x80, 0x40);
    assert_int_equal(kernel.held[0].reg[0x08], 0x40);
    assert_int_equal(kernel.held[0].reg[0x21], 1u << 0x10);
    ipi(f, 0, 0, 0xC0071);                              /* all but itself: an MSI for each */
    assert_int_equal(kernel.sent, CPUS - 1);
    assert_true(kernel.message[0].address == 0xFEE01000 && kernel.message[0].data == 0x71);
    x2apic_on(f, 0);
    assert_int_equal(kernel.held[0].base & 0xC00, 0xC00);
    assert_true(msr_write(f, 0, 0x808, 0x50));
    assert_int_equal(msr_read(f, 0, 0x808), 0x50);
    assert_false(ops->read_msr(f->cpu[0].lapic, 0x83E, &value));
    ops->init(f->cpu[0].lapic);
    assert_int_equal(kernel.held[0].reg[0x08], 0);
    assert_int_equal(kernel.held[0].reg[0x21], 0);
    reclaim(f);
}

static void the_8259s_interrupt_is_for_who_has_the_registers_to_judge(void **state)
{
    struct fixture *f = *state;
    struct kernel kernel;
    f->extint_vector = 0x30;
    reg_write(f, 0, 0x350, 0x10700);
    lend(f, &kernel);
    f->cpu[0].requests = 0;
    lapic_set_lint(f->cpu[0].lapic, 0, true);
    assert_true(f->cpu[0].requests & REQUEST_INTERRUPT);
    assert_int_equal(ops->pending(f->cpu[0].lapic), LAPIC_VECTOR_EXTINT);
    assert_int_equal(take(f, 0), 0x30);
    reclaim(f);
    assert_int_equal(ops->pending(f->cpu[0].lapic), -1);        /* masked */
}

static void a_host_that_refuses_one_gets_none(void **state)
{
    struct fixture *f = *state;
    struct kernel kernel = { .refuses = 2 };
    kernel.host = (struct intc_host){ kernel_store, kernel_fetch, kernel_read_msr, kernel_write_msr, kernel_send, kernel_route, &kernel };
    assert_false(ops->lend(f->cpu[0].lapic, &kernel.host));
    apic_bus_msi(f->bus, 0xFEE01000, 0x61);
    assert_int_equal(kernel.sent, 0);
    assert_int_equal(take(f, 1), 0x61);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(power_on_state),
        CASE(page_follows_the_base_and_the_enable_bit),
        CASE(mode_changes_follow_the_manual),
        CASE(x2apic_msrs_fault_where_the_manual_says),
        CASE(init_keeps_mode_and_id),
        CASE(priorities_nest),
        CASE(tpr_holds_back),
        CASE(software_disabled_accepts_no_fixed_interrupts),
        CASE(illegal_vectors_are_errors),
        CASE(destinations),
        CASE(destinations_in_x2apic_mode),
        CASE(init_and_start_up_reach_their_targets),
        CASE(lowest_priority_goes_to_one_of_the_least_busy),
        CASE(disabled_apics_hear_nothing),
        CASE(extint_comes_through_lint0),
        CASE(lint1_gives_an_nmi),
        CASE(one_shot_timer_counts_down_and_fires_once),
        CASE(periodic_timer_keeps_its_phase),
        CASE(count_goes_on_over_a_change_of_mode_and_stays_at_zero_once_run_out),
        CASE(masked_timer_counts_silently),
        CASE(divisors_are_those_of_the_table),
        CASE(tsc_deadline_fires_at_the_guests_tsc),
        CASE(short_periods_do_not_flood_the_host),
        CASE(ioapic_identifies_itself),
        CASE(edge_inputs_send_once_a_rise),
        CASE(level_inputs_wait_for_eoi_and_ask_again),
        CASE(masked_level_is_sent_when_unmasked),
        CASE(directed_eoi),
        CASE(becoming_edge_clears_a_stuck_remote_irr),
        CASE(what_is_lent_comes_back_as_it_was),
        CASE(timers_run_on_only_where_they_are),
        CASE(a_period_that_ends_as_it_is_taken_back_is_followed_by_the_next),
        CASE(messages_go_where_the_registers_are),
        CASE(accesses_reach_registers_that_are_lent),
        CASE(the_8259s_interrupt_is_for_who_has_the_registers_to_judge),
        CASE(a_host_that_refuses_one_gets_none),
        CASE(messages_of_many_threads_do_not_get_lost_or_lock_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
