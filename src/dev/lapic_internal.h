/* Between the files of the local APIC. All of it under the APIC's lock, but the functions of lapic_intc_ops, which take it. */
#ifndef DOPPEL_DEV_LAPIC_INTERNAL_H
#define DOPPEL_DEV_LAPIC_INTERNAL_H

#include "dev/lapic.h"

/* SDM3 Table 11-1 "Local APIC Register Address Map"; the offset divided by 16. Table 11-6 for x2APIC MSRs: 0x800 plus it. */
enum lapic_register {
    APIC_ID = 0x02,
    APIC_VERSION = 0x03,
    APIC_TPR = 0x08,
    APIC_APR = 0x09,
    APIC_PPR = 0x0A,
    APIC_EOI = 0x0B,
    APIC_RRD = 0x0C,
    APIC_LDR = 0x0D,
    APIC_DFR = 0x0E,
    APIC_SVR = 0x0F,
    APIC_ISR = 0x10,            /* eight of each */
    APIC_TMR = 0x18,
    APIC_IRR = 0x20,
    APIC_ESR = 0x28,
    APIC_ICR_LOW = 0x30,
    APIC_ICR_HIGH = 0x31,
    APIC_LVT_FIRST = 0x32,      /* in the order of enum lapic_lvt */
    APIC_LVT_LAST = 0x37,
    APIC_TIMER_INITIAL = 0x38,
    APIC_TIMER_CURRENT = 0x39,
    APIC_TIMER_DIVIDE = 0x3E,
    APIC_SELF_IPI = 0x3F,       /* x2APIC only */
};

enum { MSR_IA32_APIC_BASE = 0x1B, MSR_IA32_TSC_DEADLINE = 0x6E0, MSR_X2APIC_FIRST = 0x800, MSR_X2APIC_LAST = 0x83F };

/* SDM3 §11.4.4 "Local APIC Status and Location" */
enum { APIC_BASE_BSP = 1 << 8, APIC_BASE_EXTD = 1 << 10, APIC_BASE_EN = 1 << 11 };

/* SDM3 §11.9 "Spurious Interrupt" */
enum { SVR_ENABLE = 1 << 8, SVR_SUPPRESS_EOI = 1 << 12, SVR_WRITABLE = 0x13FF };

/* §11.4.8 "Local APIC Version Register": an integrated APIC, six LVT entries, EOI-broadcast suppression. */
enum { LAPIC_VERSION = 0x14 | (LVT_COUNT - 1) << 16 | 1 << 24 };

/* SDM3 §11.5.1 "Local Vector Table" */
enum {
    LVT_VECTOR = 0xFF,
    LVT_DELIVERY = 7 << 8,
    LVT_STATUS = 1 << 12,
    LVT_POLARITY = 1 << 13,
    LVT_REMOTE_IRR = 1 << 14,
    LVT_LEVEL = 1 << 15,
    LVT_MASKED = 1 << 16,
    LVT_TIMER_MODE = 3 << 17,
};

/* SDM3 §11.5.3 "Error Handling" */
enum { ESR_SEND_ILLEGAL_VECTOR = 1 << 5, ESR_RECEIVE_ILLEGAL_VECTOR = 1 << 6, ESR_ILLEGAL_REGISTER = 1 << 7 };

/* SDM3 §11.6.1 "Interrupt Command Register (ICR)" */
enum {
    ICR_LOGICAL = 1 << 11,
    ICR_ASSERT = 1 << 14,
    ICR_LEVEL = 1 << 15,
    ICR_WRITABLE = 0x000CCFFF,
};

static inline bool lapic_enabled(const struct lapic *lapic) { return lapic->apic_base & APIC_BASE_EN; }

static inline bool lapic_x2apic(const struct lapic *lapic)
{
    return (lapic->apic_base & (APIC_BASE_EN | APIC_BASE_EXTD)) == (APIC_BASE_EN | APIC_BASE_EXTD);
}

/* Sets of vectors: IRR, ISR, TMR. */
static inline bool vector_test(const uint32_t *set, unsigned vector) { return set[vector >> 5] >> (vector & 31) & 1; }
static inline void vector_set(uint32_t *set, unsigned vector) { set[vector >> 5] |= 1u << (vector & 31); }
static inline void vector_clear(uint32_t *set, unsigned vector) { set[vector >> 5] &= ~(1u << (vector & 31)); }
/* -1: the set is empty. */
static inline int vector_highest(const uint32_t *set)
{
    for (int i = 7; i >= 0; i--)
        if (set[i])
            return i * 32 + 31 - __builtin_clz(set[i]);
    return -1;
}

/* What is to be done once the lock is released. */
struct lapic_after {
    uint32_t request;
    uint8_t sipi_vector;
    bool eoi, send;
    uint8_t eoi_vector;
    struct apic_message message;
};

/* --- lapic.c --- */
/* Releases the lock and does what was noted. */
void lapic_finish(struct lapic *lapic, const struct lapic_after *after);

/* --- lapic_deliver.c --- */
/* The PPR. */
uint32_t lapic_processor_priority(const struct lapic *lapic);
/* The vector that the processor may take now, or -1. */
int lapic_deliverable(const struct lapic *lapic);
/* Does the 8259 ask for an interrupt that may go to the processor? A disabled APIC connects LINT0 to INTR. */
bool lapic_extint_waits(const struct lapic *lapic);
/* Records an error and tells of it by LVT error (which cannot tell of its own illegal vector). */
void lapic_record_error(struct lapic *lapic, uint32_t bit, struct lapic_after *after);
/* A fixed interrupt for this APIC. */
void lapic_accept(struct lapic *lapic, uint8_t vector, bool level, struct lapic_after *after);
/* A local source, with the delivery mode of its LVT entry. */
void lapic_deliver_local(struct lapic *lapic, enum lapic_lvt n, struct lapic_after *after);
/* The LDR: what it answers to in logical destination mode. */
uint32_t lapic_logical_id(const struct lapic *lapic);

/* --- lapic_registers.c --- */
extern const uint32_t lapic_lvt_writable[LVT_COUNT];
/* As after power-up, but for IA32_APIC_BASE. */
void lapic_reset_registers(struct lapic *lapic);
void lapic_write_tpr(struct lapic *lapic, uint32_t value, struct lapic_after *after);
/* What a write of the ICR asks for. */
void lapic_send_ipi(struct lapic *lapic, uint64_t icr, struct lapic_after *after);
/* Those that both modes have, and write alike; reading also knows xAPIC mode's own. False: there is no such register. */
bool lapic_read_register(struct lapic *lapic, unsigned reg, uint32_t *value);
bool lapic_write_register(struct lapic *lapic, unsigned reg, uint32_t value, struct lapic_after *after);
bool lapic_mmio(void *intc, struct access *access);

/* --- lapic_msr.c --- */
bool lapic_read_msr(void *intc, uint32_t msr, uint64_t *value);
bool lapic_write_msr(void *intc, uint32_t msr, uint64_t value);
void lapic_set_tsc_offset(void *intc, uint64_t offset);

/* --- lapic_timer.c --- */
/* Is it in TSC-deadline mode? */
bool lapic_timer_has_deadline(const struct lapic *lapic);
/* The current-count register. */
uint32_t lapic_timer_current(const struct lapic *lapic);
void lapic_timer_write_initial(struct lapic *lapic, uint32_t value);
void lapic_timer_write_divide(struct lapic *lapic, uint32_t value);
/* Its LVT entry has another mode than `old_lvt`. */
void lapic_timer_mode_changed(struct lapic *lapic, uint32_t old_lvt);
/* The host's timer for the next expiry, in ns of the machine's clock; CLOCK_NEVER: none. */
void lapic_timer_arm(struct lapic *lapic, uint64_t deadline_ns);
/* The same by lapic->tsc_deadline; expires at once if that has passed. */
void lapic_timer_arm_deadline(struct lapic *lapic, struct lapic_after *after);
/* What is left of a count that goes on, as of now; 0: it has run out, or there is none; one that is periodic is about to. Armed by lapic_timer_resume. */
void lapic_timer_load(struct lapic *lapic, uint32_t left);
/*
 * A count that has run out, of which the host's timer has not told yet, is told of. Returns the current-count register of the same moment: 0
 * only if it is told.
 */
uint32_t lapic_timer_catch_up(struct lapic *lapic, struct lapic_after *after);
/* The host's timer for whatever is loaded. */
void lapic_timer_resume(struct lapic *lapic, struct lapic_after *after);
/* The host's timer, with the APIC for `owner`; without the lock, on the loop's thread. */
void lapic_timer_fired(void *owner);

/* --- lapic_host.c; nothing where the registers are ours --- */
/* What the host has, for a look. */
void lapic_host_look(struct lapic *lapic);
/* The host is to have what is here now. */
void lapic_host_put(struct lapic *lapic);

#endif
