/*
 * The local APIC (SDM3 §11), xAPIC and x2APIC. Each vCPU's intc: `vcpu->intc_ops = &lapic_intc_ops; vcpu->intc = device`.
 *
 * It does its own locking: IPIs and MSIs arrive on any thread, register accesses on the vCPU's, its timer on the loop's.
 * Lock order: board lock, lapic->lock; nothing is called with lapic->lock held (neither the signal nor the bus).
 */
#ifndef DOPPEL_DEV_LAPIC_H
#define DOPPEL_DEV_LAPIC_H

#include "dev/apic_bus.h"
#include "dev/device.h"
#include "bus/intc_host.h"
#include "vcpu/vcpu.h"

/* The timer's input clock where the configuration says nothing: one tick is a nanosecond. */
enum { LAPIC_TIMER_HZ = 1000000000 };

/* pending() for an 8259 interrupt whose vector only the acknowledge cycle tells. */
enum { LAPIC_VECTOR_EXTINT = 256 };

/* Where ExtINT vectors come from: the 8259 pair. Takes the board lock itself; the caller holds none. */
struct extint_source {
    int (*acknowledge)(void *owner);
    void *owner;
};

/* SDM3 Table 11-1 "Local APIC Register Address Map": LVT entries. */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERFMON, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

struct lapic {
    struct device device;

    /* --- configuration --- */
    uint32_t apic_id;           /* initial APIC ID: 8 bits of it in xAPIC mode */
    bool bsp;                   /* boot processor */
    uint64_t timer_hz;          /* 0: LAPIC_TIMER_HZ; must agree with CPUID 0x15 and 0x40000010 */
    uint8_t physical_bits;      /* MAXPHYADDR, for reserved bits of IA32_APIC_BASE; 0: 52 */
    bool no_x2apic;             /* CPUID hides x2APIC: EXTD is reserved */
    bool no_tsc_deadline;
    struct apic_bus *bus;
    struct cpu_signal signal;   /* of its vCPU; raise may be NULL in tests */
    struct extint_source extint;

    /* --- guarded by lock --- */
    pthread_mutex_t lock;
    uint64_t apic_base;         /* IA32_APIC_BASE */
    uint32_t tpr, ldr, dfr, svr;
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t esr, esr_latched;  /* accumulated; what reads return */
    uint64_t icr;
    uint32_t lvt[LVT_COUNT];
    uint32_t initial_count, divide;
    bool counting;              /* loaded, and not run out in one-shot mode */
    uint64_t timer_start_ns;    /* when initial_count was loaded */
    uint64_t timer_next_ns;     /* next expiry; CLOCK_NEVER */
    uint64_t tsc_deadline;      /* guest TSC; 0: not armed */
    uint64_t tsc_offset;        /* guest TSC minus the clock's */
    bool lint_level[2];
    bool extint_pending;        /* an ExtINT message came over the bus */

    /* --- not state --- */
    struct timer timer;
    const struct intc_host *host;   /* guarded by lock: it has the registers (bus/intc_host.h); NULL: they are here */
};

extern const struct intc_ops lapic_intc_ops;

/* Any thread: the wires. LINT0 carries the 8259's INTR of the boot processor. */
void lapic_set_lint(struct lapic *lapic, unsigned lint, bool level);
/* The same as an irq_line's `set`: sink is the lapic, n the pin. */
void lapic_lint_line(void *sink, unsigned n, bool level);

/* --- for apic_bus.c; any thread --- */
/* The registers go to the host and come back. */
bool lapic_lend(struct lapic *lapic, const struct intc_host *host);
void lapic_reclaim(struct lapic *lapic);
bool lapic_matches(struct lapic *lapic, const struct apic_message *message);
/* False: not accepted (disabled). */
bool lapic_deliver(struct lapic *lapic, const struct apic_message *message);
/* For lowest-priority arbitration: the task's priority now (PPR). */
uint8_t lapic_priority(struct lapic *lapic);

#endif
