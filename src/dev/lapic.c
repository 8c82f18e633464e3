/*
 * The local APIC: Intel SDM3 chapter 11 "Advanced Programmable Interrupt Controller (APIC)".
 *
 * One lock guards the registers, since messages come from any thread. What follows from a register access (waking the
 * processor, an IPI, an EOI broadcast) is noted in a `struct lapic_after` under the lock and done when it is released:
 * IPIs would otherwise take two APICs' locks in either order, and the EOI broadcast needs the board lock, which
 * stands before ours. The timer is in lapic_timer.c.
 *
 * Not modelled: SMIs, the CMCI, thermal and performance-counter sources (their LVT entries hold what is written), focus
 * processors, arbitration priority. The xAPIC ID register is read-only, as in current processors.
 */
#include "dev/lapic_internal.h"

#include <string.h>

static const uint64_t apic_base_default = 0xFEE00000;

const uint32_t lapic_lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
    [LVT_THERMAL] = LVT_VECTOR | LVT_DELIVERY | LVT_MASKED,
    [LVT_PERFMON] = LVT_VECTOR | LVT_DELIVERY | LVT_MASKED,
    [LVT_LINT0] = LVT_VECTOR | LVT_DELIVERY | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_LINT1] = LVT_VECTOR | LVT_DELIVERY | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_ERROR] = LVT_VECTOR | LVT_MASKED,
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
enum icr_shorthand { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

/* --- helpers --- */

void lapic_finish(struct lapic *lapic, const struct lapic_after *after)
{
    pthread_mutex_unlock(&lapic->lock);
    if (after->request && lapic->signal.raise)
        lapic->signal.raise(lapic->signal.vcpu, after->request, after->sipi_vector);
    if (after->eoi && lapic->bus)
        apic_bus_eoi(lapic->bus, after->eoi_vector);
    if (after->send && lapic->bus)
        apic_bus_send(lapic->bus, &after->message);
}

static bool enabled(const struct lapic *lapic) { return lapic->apic_base & APIC_BASE_EN; }

static bool x2apic(const struct lapic *lapic)
{
    return (lapic->apic_base & (APIC_BASE_EN | APIC_BASE_EXTD)) == (APIC_BASE_EN | APIC_BASE_EXTD);
}

static bool test_vector(const uint32_t *set, unsigned vector) { return set[vector >> 5] >> (vector & 31) & 1; }
static void set_vector(uint32_t *set, unsigned vector) { set[vector >> 5] |= 1u << (vector & 31); }
static void clear_vector(uint32_t *set, unsigned vector) { set[vector >> 5] &= ~(1u << (vector & 31)); }

static int highest_vector(const uint32_t *set)
{
    for (int i = 7; i >= 0; i--)
        if (set[i])
            return i * 32 + 31 - __builtin_clz(set[i]);
    return -1;
}

/* SDM3 §11.8.3.1 "Task and Processor Priorities" */
static uint32_t processor_priority(const struct lapic *lapic)
{
    int in_service = highest_vector(lapic->isr);
    uint32_t isr_class = in_service < 0 ? 0 : (uint32_t)in_service & 0xF0;
    return (lapic->tpr & 0xF0) >= isr_class ? lapic->tpr & 0xFF : isr_class;
}

/* The vector that the processor may take now, or -1. */
static int deliverable(const struct lapic *lapic)
{
    if (!enabled(lapic) || lapic->host)
        return -1;
    int vector = highest_vector(lapic->irr);
    return vector >= 0 && ((uint32_t)vector & 0xF0) > (processor_priority(lapic) & 0xF0) ? vector : -1;
}

static void accept(struct lapic *lapic, uint8_t vector, bool level, struct lapic_after *after);

/* Records an error and tells of it by LVT error (which cannot tell of its own illegal vector). */
static void record_error(struct lapic *lapic, uint32_t bit, struct lapic_after *after)
{
    uint32_t lvt = lapic->lvt[LVT_ERROR];
    lapic->esr |= bit;
    if (!(lvt & LVT_MASKED) && (lvt & LVT_VECTOR) >= 16)
        accept(lapic, lvt & LVT_VECTOR, false, after);
}

/* A fixed interrupt for this APIC (SDM3 §11.8.4 "Interrupt Acceptance for Fixed Interrupts"). */
static void accept(struct lapic *lapic, uint8_t vector, bool level, struct lapic_after *after)
{
    if (vector < 16) {
        record_error(lapic, ESR_RECEIVE_ILLEGAL_VECTOR, after);
        return;
    }
    set_vector(lapic->irr, vector);
    if (level)
        set_vector(lapic->tmr, vector);
    else
        clear_vector(lapic->tmr, vector);
    after->request |= REQUEST_INTERRUPT;
}

/* A local source with delivery mode of its LVT entry. */
void lapic_deliver_local(struct lapic *lapic, enum lapic_lvt n, struct lapic_after *after)
{
    uint32_t lvt = lapic->lvt[n];
    if (lvt & LVT_MASKED)
        return;
    switch (bits(lvt, 10, 8)) {
    case DELIVERY_FIXED:
        if (lvt & LVT_LEVEL) {
            if (lvt & LVT_REMOTE_IRR)
                return;
            lapic->lvt[n] |= LVT_REMOTE_IRR;
        }
        accept(lapic, lvt & LVT_VECTOR, lvt & LVT_LEVEL, after);
        break;
    case DELIVERY_NMI: after->request |= REQUEST_NMI; break;
    case DELIVERY_INIT: after->request |= REQUEST_INIT; break;
    case DELIVERY_EXTINT: after->request |= REQUEST_INTERRUPT; break;
    default: break;
    }
}

/* Does the 8259 ask for an interrupt that may go to the processor? A disabled APIC connects LINT0 to INTR. */
static bool extint_waits(const struct lapic *lapic)
{
    if (lapic->extint_pending)
        return true;
    if (lapic->host)
        return lapic->lint_level[0];    /* who has the registers knows what LINT0 means */
    uint32_t lint0 = lapic->lvt[LVT_LINT0];
    return lapic->lint_level[0] &&
           (!enabled(lapic) || (!(lint0 & LVT_MASKED) && bits(lint0, 10, 8) == DELIVERY_EXTINT));
}

/* --- registers --- */

static void reset_registers(struct lapic *lapic)
{
    /* SDM3 §11.4.7.1 "Local APIC State After Power-Up or Reset" */
    memset(lapic->isr, 0, sizeof(lapic->isr));
    memset(lapic->tmr, 0, sizeof(lapic->tmr));
    memset(lapic->irr, 0, sizeof(lapic->irr));
    lapic->tpr = lapic->ldr = lapic->esr = lapic->esr_latched = 0;
    lapic->icr = 0;
    lapic->dfr = 0xFFFFFFFF;
    lapic->svr = 0xFF;
    for (int i = 0; i < LVT_COUNT; i++)
        lapic->lvt[i] = LVT_MASKED;
    lapic->initial_count = lapic->divide = 0;
    lapic->counting = false;
    lapic->timer_start_ns = lapic->tsc_deadline = 0;
    lapic->extint_pending = false;
    lapic_timer_arm(lapic, CLOCK_NEVER);
}

static void write_lvt(struct lapic *lapic, enum lapic_lvt n, uint32_t value, struct lapic_after *after)
{
    uint32_t old = lapic->lvt[n];
    uint32_t kept = value & LVT_LEVEL ? old & LVT_REMOTE_IRR : 0;
    lapic->lvt[n] = (value & lapic_lvt_writable[n]) | kept;
    if (!(lapic->svr & SVR_ENABLE))
        lapic->lvt[n] |= LVT_MASKED;    /* SDM3 §11.4.7.2: cannot be unmasked while software-disabled */
    if (n == LVT_TIMER && ((old ^ value) & LVT_TIMER_MODE))
        lapic_timer_mode_changed(lapic, old);
    /* A level that has been waiting at an input is seen when the entry is unmasked. */
    if ((n == LVT_LINT0 || n == LVT_LINT1) && lapic->lint_level[n - LVT_LINT0]) {
        bool waits = bits(value, 10, 8) == DELIVERY_EXTINT || (bits(value, 10, 8) == DELIVERY_FIXED && value & LVT_LEVEL);
        if (waits)
            lapic_deliver_local(lapic, n, after);
    }
}

static void write_svr(struct lapic *lapic, uint32_t value)
{
    lapic->svr = value & SVR_WRITABLE;
    if (lapic->svr & SVR_ENABLE)
        return;
    for (int i = 0; i < LVT_COUNT; i++)
        lapic->lvt[i] |= LVT_MASKED;
}

static void write_eoi(struct lapic *lapic, struct lapic_after *after)
{
    int vector = highest_vector(lapic->isr);
    if (vector < 0)
        return;
    clear_vector(lapic->isr, (unsigned)vector);
    if (test_vector(lapic->tmr, (unsigned)vector)) {
        after->eoi = !(lapic->svr & SVR_SUPPRESS_EOI);
        after->eoi_vector = (uint8_t)vector;
        for (unsigned lint = 0; lint < 2; lint++) {
            uint32_t *lvt = &lapic->lvt[LVT_LINT0 + lint];
            if (!(*lvt & LVT_REMOTE_IRR) || (int)(*lvt & LVT_VECTOR) != vector)
                continue;
            *lvt &= ~(uint32_t)LVT_REMOTE_IRR;
            if (lapic->lint_level[lint])
                lapic_deliver_local(lapic, LVT_LINT0 + lint, after);
        }
    }
    if (deliverable(lapic) >= 0)
        after->request |= REQUEST_INTERRUPT;
}

static void write_tpr(struct lapic *lapic, uint32_t value, struct lapic_after *after)
{
    lapic->tpr = value & 0xFF;
    if (deliverable(lapic) >= 0)
        after->request |= REQUEST_INTERRUPT;
}

/* SDM3 §11.6.1; Tables 11-3 and 11-4 say which combinations mean anything. */
static void send_ipi(struct lapic *lapic, uint64_t icr, struct lapic_after *after)
{
    uint8_t delivery = bits(icr, 10, 8), vector = (uint8_t)icr;
    enum icr_shorthand shorthand = bits(icr, 19, 18);
    bool fixed = delivery == DELIVERY_FIXED || delivery == DELIVERY_LOWEST_PRIORITY;
    trace(lapic->device.world.log, lapic, "%s sends 0x%llx", lapic->device.name, (unsigned long long)icr);
    if (fixed && vector < 16) {
        record_error(lapic, ESR_SEND_ILLEGAL_VECTOR, after);
        return;
    }
    if (delivery == DELIVERY_INIT && (icr & ICR_LEVEL) && !(icr & ICR_ASSERT))
        return;         /* INIT level de-assert: only synchronised arbitration IDs, long ago */
    if (delivery == DELIVERY_SMI) {
        unimplemented(lapic->device.world.log, "%s: SMIs", lapic->device.name);
        return;
    }
    if (delivery == DELIVERY_EXTINT || delivery == 3 ||
        ((shorthand == SHORTHAND_SELF || shorthand == SHORTHAND_ALL) && delivery != DELIVERY_FIXED)) {
        guest_error(lapic->device.world.log, "%s: ICR 0x%llx is not a valid combination", lapic->device.name,
                    (unsigned long long)icr);
        return;
    }
    after->send = true;
    after->message = (struct apic_message){
        .destination = x2apic(lapic) ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56),
        .wide = x2apic(lapic),
        .logical = icr & ICR_LOGICAL,
        .delivery = delivery,
        .vector = vector,
        .only = shorthand == SHORTHAND_SELF ? lapic : NULL,
        .everyone = shorthand == SHORTHAND_ALL || shorthand == SHORTHAND_OTHERS,
        .except = shorthand == SHORTHAND_OTHERS ? lapic : NULL,
    };
}

static uint32_t logical_id(const struct lapic *lapic)
{
    /* SDM3 §11.12.10.2 "Deriving Logical x2APIC ID from the Local x2APIC ID" */
    return x2apic(lapic) ? (lapic->apic_id & ~0xFu) << 12 | 1u << (lapic->apic_id & 0xF) : lapic->ldr;
}

/* False: there is no such register. */
static bool read_register(struct lapic *lapic, unsigned reg, uint32_t *value)
{
    *value = 0;
    switch (reg) {
    case APIC_ID: *value = x2apic(lapic) ? lapic->apic_id : lapic->apic_id << 24; return true;
    case APIC_VERSION: *value = LAPIC_VERSION; return true;
    case APIC_TPR: *value = lapic->tpr; return true;
    case APIC_PPR: *value = processor_priority(lapic); return true;
    case APIC_LDR: *value = logical_id(lapic); return true;
    case APIC_SVR: *value = lapic->svr; return true;
    case APIC_ISR ... APIC_ISR + 7: *value = lapic->isr[reg - APIC_ISR]; return true;
    case APIC_TMR ... APIC_TMR + 7: *value = lapic->tmr[reg - APIC_TMR]; return true;
    case APIC_IRR ... APIC_IRR + 7: *value = lapic->irr[reg - APIC_IRR]; return true;
    case APIC_ESR: *value = lapic->esr_latched; return true;
    case APIC_ICR_LOW: *value = (uint32_t)lapic->icr; return true;
    case APIC_LVT_FIRST ... APIC_LVT_LAST: *value = lapic->lvt[reg - APIC_LVT_FIRST]; return true;
    case APIC_TIMER_INITIAL: *value = lapic->initial_count; return true;
    case APIC_TIMER_CURRENT: *value = lapic_timer_current(lapic); return true;
    case APIC_TIMER_DIVIDE: *value = lapic->divide; return true;
    default: break;
    }
    if (x2apic(lapic))
        return false;
    switch (reg) {
    case APIC_APR: *value = processor_priority(lapic); return true;
    case APIC_EOI: case APIC_RRD: return true;
    case APIC_DFR: *value = lapic->dfr; return true;
    case APIC_ICR_HIGH: *value = (uint32_t)(lapic->icr >> 32); return true;
    default: return false;
    }
}

/* Registers that both modes write alike. False: there is no such register. */
static bool write_register(struct lapic *lapic, unsigned reg, uint32_t value, struct lapic_after *after)
{
    switch (reg) {
    case APIC_TPR: write_tpr(lapic, value, after); return true;
    case APIC_EOI: write_eoi(lapic, after); return true;
    case APIC_SVR: write_svr(lapic, value); return true;
    case APIC_ESR:
        lapic->esr_latched = lapic->esr;
        lapic->esr = 0;
        return true;
    case APIC_LVT_FIRST ... APIC_LVT_LAST: write_lvt(lapic, reg - APIC_LVT_FIRST, value, after); return true;
    case APIC_TIMER_INITIAL: lapic_timer_write_initial(lapic, value); return true;
    case APIC_TIMER_DIVIDE: lapic_timer_write_divide(lapic, value); return true;
    default: return false;
    }
}

static bool write_register_xapic(struct lapic *lapic, unsigned reg, uint32_t value, struct lapic_after *after)
{
    switch (reg) {
    case APIC_ID: case APIC_VERSION: case APIC_APR: case APIC_PPR: case APIC_RRD: case APIC_TIMER_CURRENT:
    case APIC_ISR ... APIC_IRR + 7:
        return true;    /* read-only */
    case APIC_LDR: lapic->ldr = value & 0xFF000000; return true;
    case APIC_DFR: lapic->dfr = value | 0x0FFFFFFF; return true;
    case APIC_ICR_HIGH: lapic->icr = (lapic->icr & UINT32_MAX) | (uint64_t)(value & 0xFF000000) << 32; return true;
    case APIC_ICR_LOW:
        lapic->icr = (lapic->icr & ~(uint64_t)UINT32_MAX) | (value & ICR_WRITABLE);
        send_ipi(lapic, lapic->icr, after);
        return true;
    default: return write_register(lapic, reg, value, after);
    }
}

/* --- access: the APIC page --- */

static void page_read(struct lapic *lapic, struct access *access, struct lapic_after *after)
{
    unsigned offset = access->address & PAGE_MASK, within = offset & 15;
    uint32_t value;
    access->value = 0;
    if (within >= 4 || !read_register(lapic, offset >> 4, &value)) {
        record_error(lapic, ESR_ILLEGAL_REGISTER, after);
        return;
    }
    access->value = (uint64_t)value >> (within * 8) & size_mask(access->size);
}

static void page_write(struct lapic *lapic, const struct access *access, struct lapic_after *after)
{
    unsigned offset = access->address & PAGE_MASK;
    /* SDM3 §11.4.1: registers are to be accessed with aligned 32-bit loads and stores; the rest is undefined. */
    if (access->size < 4 || offset & 15) {
        guest_error(lapic->device.world.log, "%s: %u-byte write at 0x%x", lapic->device.name, access->size, offset);
        return;
    }
    if (!write_register_xapic(lapic, offset >> 4, (uint32_t)access->value, after))
        record_error(lapic, ESR_ILLEGAL_REGISTER, after);
}

static bool lapic_mmio(void *intc, struct access *access)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    bool ours = enabled(lapic) && !x2apic(lapic) &&
                align_down(access->address, PAGE_SIZE) == align_down(lapic->apic_base, PAGE_SIZE);
    if (ours)
        lapic_host_look(lapic);
    if (ours && access->write)
        page_write(lapic, access, &after);
    else if (ours)
        page_read(lapic, access, &after);
    if (ours && access->write)
        lapic_host_put(lapic);
    lapic_finish(lapic, &after);
    return ours;
}

/* --- access: MSRs --- */

static bool write_apic_base(struct lapic *lapic, uint64_t value)
{
    unsigned physical = lapic->physical_bits ? lapic->physical_bits : 52;
    uint64_t valid = (BIT(physical) - 1) & ~PAGE_MASK;
    valid |= APIC_BASE_BSP | APIC_BASE_EN | (lapic->no_x2apic ? 0 : APIC_BASE_EXTD);
    bool en = value & APIC_BASE_EN, extd = value & APIC_BASE_EXTD;
    if (value & ~valid || (extd && !en))
        return false;
    /* SDM3 §11.12.5 "x2APIC State Transitions" */
    if (x2apic(lapic) && en && !extd)
        return false;
    if (!enabled(lapic) && extd)
        return false;
    bool was = enabled(lapic);
    lapic->apic_base = value;
    if (was == en)
        return !lapic->host || lapic->host->write_msr(lapic->host->owner, lapic->apic_id, MSR_IA32_APIC_BASE, value);
    reset_registers(lapic);
    lapic_host_put(lapic);
    return true;
}

static uint32_t x2apic_reserved(unsigned reg)
{
    switch (reg) {
    case APIC_TPR: case APIC_SELF_IPI: return ~0xFFu;
    case APIC_EOI: case APIC_ESR: return ~0u;
    case APIC_SVR: return ~(uint32_t)SVR_WRITABLE;
    case APIC_LVT_FIRST ... APIC_LVT_LAST: return ~(lapic_lvt_writable[reg - APIC_LVT_FIRST] | LVT_STATUS | LVT_REMOTE_IRR);
    case APIC_TIMER_DIVIDE: return ~0xBu;
    default: return 0;
    }
}

static bool write_x2apic(struct lapic *lapic, unsigned reg, uint64_t value, struct lapic_after *after)
{
    if (reg == APIC_ICR_LOW) {
        if (value & UINT32_MAX & ~(uint64_t)(ICR_WRITABLE | LVT_STATUS))
            return false;
        lapic->icr = value & ~(uint64_t)LVT_STATUS;
        send_ipi(lapic, value, after);
        return true;
    }
    if (value >> 32 || (value & x2apic_reserved(reg)))
        return false;
    if (reg == APIC_SELF_IPI) {
        if (value < 16)
            record_error(lapic, ESR_SEND_ILLEGAL_VECTOR, after);
        else
            accept(lapic, (uint8_t)value, false, after);
        return true;
    }
    return write_register(lapic, reg, (uint32_t)value, after);
}

static bool read_msr_locked(struct lapic *lapic, uint32_t msr, uint64_t *value)
{
    *value = 0;
    if (msr == MSR_IA32_APIC_BASE) {
        *value = lapic->apic_base;
        return true;
    }
    if (lapic->host && !(msr == MSR_IA32_TSC_DEADLINE && lapic->no_tsc_deadline))
        return lapic->host->read_msr(lapic->host->owner, lapic->apic_id, msr, value);
    if (msr == MSR_IA32_TSC_DEADLINE) {
        *value = lapic_timer_has_deadline(lapic) ? lapic->tsc_deadline : 0;
        return !lapic->no_tsc_deadline;
    }
    unsigned reg = msr - MSR_X2APIC_FIRST;
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(lapic))
        return false;
    if (reg == APIC_ICR_LOW) {
        *value = lapic->icr;
        return true;
    }
    uint32_t low;
    if (!read_register(lapic, reg, &low))
        return false;
    *value = low;
    return true;
}

static bool lapic_read_msr(void *intc, uint32_t msr, uint64_t *value)
{
    struct lapic *lapic = intc;
    pthread_mutex_lock(&lapic->lock);
    bool ok = read_msr_locked(lapic, msr, value);
    pthread_mutex_unlock(&lapic->lock);
    return ok;
}

static bool write_msr_locked(struct lapic *lapic, uint32_t msr, uint64_t value, struct lapic_after *after)
{
    if (msr == MSR_IA32_APIC_BASE)
        return write_apic_base(lapic, value);
    if (lapic->host && !(msr == MSR_IA32_TSC_DEADLINE && lapic->no_tsc_deadline))
        return lapic->host->write_msr(lapic->host->owner, lapic->apic_id, msr, value);
    if (msr == MSR_IA32_TSC_DEADLINE) {
        if (lapic->no_tsc_deadline)
            return false;
        if (lapic_timer_has_deadline(lapic)) {      /* SDM3 §11.5.4.1: else the write is ignored */
            lapic->tsc_deadline = value;
            lapic_timer_arm_deadline(lapic, after);
        }
        return true;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(lapic))
        return false;
    return write_x2apic(lapic, msr - MSR_X2APIC_FIRST, value, after);
}

static bool lapic_write_msr(void *intc, uint32_t msr, uint64_t value)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    bool ok = write_msr_locked(lapic, msr, value, &after);
    lapic_finish(lapic, &after);
    return ok;
}

static void lapic_set_tsc_offset(void *intc, uint64_t offset)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    lapic->tsc_offset = offset;
    if (!lapic->host && lapic_timer_has_deadline(lapic) && lapic->tsc_deadline)
        lapic_timer_arm_deadline(lapic, &after);
    lapic_finish(lapic, &after);
}

/* --- the processor's side --- */

static int lapic_pending(void *intc)
{
    struct lapic *lapic = intc;
    pthread_mutex_lock(&lapic->lock);
    int vector = extint_waits(lapic) ? LAPIC_VECTOR_EXTINT : deliverable(lapic);
    pthread_mutex_unlock(&lapic->lock);
    return vector;
}

static int lapic_acknowledge(void *intc)
{
    struct lapic *lapic = intc;
    int vector = -1;
    pthread_mutex_lock(&lapic->lock);
    bool extint = extint_waits(lapic) && lapic->extint.acknowledge;
    lapic->extint_pending = false;
    if (extint) {
        pthread_mutex_unlock(&lapic->lock);     /* the 8259 is behind the board lock */
        vector = lapic->extint.acknowledge(lapic->extint.owner);
        if (vector >= 0)
            return vector;
        pthread_mutex_lock(&lapic->lock);
    }
    vector = deliverable(lapic);
    if (vector >= 0) {
        clear_vector(lapic->irr, (unsigned)vector);
        set_vector(lapic->isr, (unsigned)vector);
    }
    pthread_mutex_unlock(&lapic->lock);
    return vector;
}

static uint64_t lapic_get_tpr(void *intc)
{
    struct lapic *lapic = intc;
    pthread_mutex_lock(&lapic->lock);
    uint64_t cr8 = lapic->tpr >> 4 & 0xF;
    pthread_mutex_unlock(&lapic->lock);
    return cr8;
}

static void lapic_set_tpr(void *intc, uint64_t cr8)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    write_tpr(lapic, (uint32_t)(cr8 & 0xF) << 4, &after);
    lapic_finish(lapic, &after);
}

/* SDM3 §11.4.7.3 "Local APIC State After an INIT Reset": all but the ID, and IA32_APIC_BASE (the mode) stays. */
static void lapic_init_received(void *intc)
{
    struct lapic *lapic = intc;
    pthread_mutex_lock(&lapic->lock);
    reset_registers(lapic);
    lapic_host_put(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

static void lapic_send(void *intc, uint32_t destination, uint8_t vector)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { .send = true };
    pthread_mutex_lock(&lapic->lock);
    after.message = (struct apic_message){ .destination = destination, .wide = x2apic(lapic), .delivery = DELIVERY_FIXED, .vector = vector };
    lapic_finish(lapic, &after);
}

static bool lapic_lend_all(void *intc, const struct intc_host *host)
{
    struct lapic *lapic = intc;
    return lapic->bus && apic_bus_lend(lapic->bus, host);
}

static void lapic_reclaim_all(void *intc) { apic_bus_reclaim(((struct lapic *)intc)->bus); }
static void lapic_eoi(void *intc, uint8_t vector) { apic_bus_eoi(((struct lapic *)intc)->bus, vector); }

const struct intc_ops lapic_intc_ops = {
    .pending = lapic_pending,
    .acknowledge = lapic_acknowledge,
    .get_tpr = lapic_get_tpr,
    .set_tpr = lapic_set_tpr,
    .read_msr = lapic_read_msr,
    .write_msr = lapic_write_msr,
    .init = lapic_init_received,
    .send = lapic_send,
    .mmio = lapic_mmio,
    .set_tsc_offset = lapic_set_tsc_offset,
    .lend = lapic_lend_all,
    .reclaim = lapic_reclaim_all,
    .eoi = lapic_eoi,
};

/* --- the bus's side and the wires --- */

static bool matches_physical(const struct lapic *lapic, const struct apic_message *message)
{
    if (message->destination == (message->wide ? UINT32_MAX : 0xFF))
        return true;
    return message->destination == (x2apic(lapic) ? lapic->apic_id : lapic->apic_id & 0xFF);
}

/* SDM3 §11.6.2.2 "Logical Destination Mode", §11.12.10.1 for x2APIC */
static bool matches_logical(const struct lapic *lapic, const struct apic_message *message)
{
    uint32_t destination = message->destination, id = logical_id(lapic);
    if (message->wide && destination == UINT32_MAX)
        return true;
    if (x2apic(lapic))
        return destination >> 16 == id >> 16 && (destination & id & 0xFFFF);
    if (destination > 0xFF)
        return false;
    if (destination == 0xFF)
        return true;
    id >>= 24;
    if (lapic->dfr >> 28 == 0xF)
        return destination & id;
    return destination >> 4 == id >> 4 && (destination & id & 0xF);
}

bool lapic_matches(struct lapic *lapic, const struct apic_message *message)
{
    pthread_mutex_lock(&lapic->lock);
    bool match = enabled(lapic);
    if (match && !message->everyone)
        match = message->logical ? matches_logical(lapic, message) : matches_physical(lapic, message);
    pthread_mutex_unlock(&lapic->lock);
    return match;
}

bool lapic_deliver(struct lapic *lapic, const struct apic_message *message)
{
    struct lapic_after after = { 0 };
    bool accepted = true;
    pthread_mutex_lock(&lapic->lock);
    switch (message->delivery) {
    case DELIVERY_FIXED: case DELIVERY_LOWEST_PRIORITY:
        accepted = enabled(lapic) && (lapic->svr & SVR_ENABLE);
        if (accepted)
            accept(lapic, message->vector, message->level, &after);
        break;
    case DELIVERY_NMI: after.request = REQUEST_NMI; break;
    case DELIVERY_INIT: after.request = REQUEST_INIT; break;
    case DELIVERY_START_UP:
        after.request = REQUEST_SIPI;
        after.sipi_vector = message->vector;
        break;
    case DELIVERY_EXTINT:
        lapic->extint_pending = true;
        after.request = REQUEST_INTERRUPT;
        break;
    default: accepted = false; break;
    }
    lapic_finish(lapic, &after);
    return accepted;
}

uint8_t lapic_priority(struct lapic *lapic)
{
    pthread_mutex_lock(&lapic->lock);
    /* A software-disabled APIC is the last choice. */
    uint32_t priority = lapic->svr & SVR_ENABLE ? processor_priority(lapic) : 0xFF;
    pthread_mutex_unlock(&lapic->lock);
    return (uint8_t)priority;
}

void lapic_set_lint(struct lapic *lapic, unsigned lint, bool level)
{
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    bool rises = level && !lapic->lint_level[lint & 1];
    lapic->lint_level[lint & 1] = level;
    if (rises && lapic->host)
        after.request = lint & 1 ? 0 : REQUEST_INTERRUPT;       /* of the two only the 8259's is connected there */
    else if (rises && !enabled(lapic))
        after.request = lint & 1 ? REQUEST_NMI : REQUEST_INTERRUPT;
    else if (rises)
        lapic_deliver_local(lapic, LVT_LINT0 + (lint & 1), &after);
    lapic_finish(lapic, &after);
}

void lapic_lint_line(void *sink, unsigned n, bool level) { lapic_set_lint(sink, n, level); }

/* --- reset, init --- */

static void lapic_reset(struct device *device)
{
    struct lapic *lapic = (struct lapic *)device;
    pthread_mutex_lock(&lapic->lock);
    lapic->apic_base = apic_base_default | APIC_BASE_EN | (lapic->bsp ? APIC_BASE_BSP : 0);
    lapic->tsc_offset = 0;
    lapic->lint_level[0] = lapic->lint_level[1] = false;
    reset_registers(lapic);
    /* NOTE(spec): power-on masks LINT0; firmware then makes it the virtual wire (MP 1.4 §3.6.2.2). Kernels start here
     * without firmware, so it is done for them. */
    if (lapic->bsp) {
        lapic->lvt[LVT_LINT0] = DELIVERY_EXTINT << 8;
        lapic->lvt[LVT_LINT1] = DELIVERY_NMI << 8;
    }
    pthread_mutex_unlock(&lapic->lock);
}

static bool lapic_init(struct device *device, struct error *err)
{
    struct lapic *lapic = (struct lapic *)device;
    pthread_mutex_init(&lapic->lock, NULL);
    timer_init(&lapic->timer, device->world.clock, lapic_timer_fired, lapic);
    if (lapic->bus)
        apic_bus_attach(lapic->bus, lapic);
    return true;
}

static void lapic_quiesce(struct device *device) { timer_disarm(&((struct lapic *)device)->timer); }

static void lapic_resume(struct device *device)
{
    struct lapic *lapic = (struct lapic *)device;
    struct lapic_after after = { .request = REQUEST_INTERRUPT };
    pthread_mutex_lock(&lapic->lock);
    if (lapic_timer_has_deadline(lapic))
        lapic_timer_arm_deadline(lapic, &after);
    else
        lapic_timer_arm(lapic, lapic->timer_next_ns);
    lapic_finish(lapic, &after);
}

static void lapic_fini(struct device *device)
{
    struct lapic *lapic = (struct lapic *)device;
    if (lapic->bus)
        apic_bus_detach(lapic->bus, lapic);
    timer_disarm(&lapic->timer);
    pthread_mutex_destroy(&lapic->lock);
}

/* --- state list, type --- */

static const struct state_field lapic_fields[] = {
    STATE_SCALAR(struct lapic, apic_base),
    STATE_SCALAR(struct lapic, tpr),
    STATE_SCALAR(struct lapic, ldr),
    STATE_SCALAR(struct lapic, dfr),
    STATE_SCALAR(struct lapic, svr),
    STATE_ARRAY(struct lapic, isr),
    STATE_ARRAY(struct lapic, tmr),
    STATE_ARRAY(struct lapic, irr),
    STATE_SCALAR(struct lapic, esr),
    STATE_SCALAR(struct lapic, esr_latched),
    STATE_SCALAR(struct lapic, icr),
    STATE_ARRAY(struct lapic, lvt),
    STATE_SCALAR(struct lapic, initial_count),
    STATE_SCALAR(struct lapic, divide),
    STATE_SCALAR(struct lapic, counting),
    STATE_SCALAR(struct lapic, timer_start_ns),
    STATE_SCALAR(struct lapic, timer_next_ns),
    STATE_SCALAR(struct lapic, tsc_deadline),
    STATE_SCALAR(struct lapic, tsc_offset),
    STATE_ARRAY(struct lapic, lint_level),
    STATE_SCALAR(struct lapic, extint_pending),
};
static const struct state_list lapic_state = STATE_LIST("lapic", 1, lapic_fields);

static const struct config_field lapic_config[] = {
    { "apic-id", CONFIG_UINT, offsetof(struct lapic, apic_id), "initial APIC ID" },
    { "bsp", CONFIG_BOOL, offsetof(struct lapic, bsp), "of the boot processor" },
    { "timer-hz", CONFIG_UINT, offsetof(struct lapic, timer_hz), "input clock of the timer" },
    { "bus", CONFIG_POINTER, offsetof(struct lapic, bus), "the APIC bus" },
    { NULL },
};

const struct device_type device_lapic = {
    .name = "lapic",
    .text = "local APIC, xAPIC and x2APIC",
    .size = sizeof(struct lapic),
    .config = lapic_config,
    .state = &lapic_state,
    .init = lapic_init,
    .reset = lapic_reset,
    .quiesce = lapic_quiesce,
    .resume = lapic_resume,
    .fini = lapic_fini,
};
