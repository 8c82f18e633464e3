/* The registers of a local APIC, but for what is an MSR in x2APIC mode (lapic_msr.c), and the page that they are in (SDM3 §11.4.1). */
#include "dev/lapic_internal.h"

#include <string.h>

const uint32_t lapic_lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
    [LVT_THERMAL] = LVT_VECTOR | LVT_DELIVERY | LVT_MASKED,
    [LVT_PERFMON] = LVT_VECTOR | LVT_DELIVERY | LVT_MASKED,
    [LVT_LINT0] = LVT_VECTOR | LVT_DELIVERY | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_LINT1] = LVT_VECTOR | LVT_DELIVERY | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    [LVT_ERROR] = LVT_VECTOR | LVT_MASKED,
};

/* --- reset --- */

void lapic_reset_registers(struct lapic *lapic)
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

/* --- local vector table, spurious vector, priority, end of interrupt --- */

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
    int vector = vector_highest(lapic->isr);
    if (vector < 0)
        return;
    vector_clear(lapic->isr, (unsigned)vector);
    if (vector_test(lapic->tmr, (unsigned)vector)) {
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
    if (lapic_deliverable(lapic) >= 0)
        after->request |= REQUEST_INTERRUPT;
}

void lapic_write_tpr(struct lapic *lapic, uint32_t value, struct lapic_after *after)
{
    lapic->tpr = value & 0xFF;
    if (lapic_deliverable(lapic) >= 0)
        after->request |= REQUEST_INTERRUPT;
}

/* --- interrupt command register --- */

enum icr_shorthand { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

/* SDM3 §11.6.1; Tables 11-3 and 11-4 say which combinations mean anything. */
void lapic_send_ipi(struct lapic *lapic, uint64_t icr, struct lapic_after *after)
{
    uint8_t delivery = bits(icr, 10, 8), vector = (uint8_t)icr;
    enum icr_shorthand shorthand = bits(icr, 19, 18);
    bool fixed = delivery == DELIVERY_FIXED || delivery == DELIVERY_LOWEST_PRIORITY;
    trace(lapic->device.world.log, lapic, "%s sends 0x%llx", lapic->device.name, (unsigned long long)icr);
    if (fixed && vector < 16) {
        lapic_record_error(lapic, ESR_SEND_ILLEGAL_VECTOR, after);
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
        .destination = lapic_x2apic(lapic) ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56),
        .wide = lapic_x2apic(lapic),
        .logical = icr & ICR_LOGICAL,
        .delivery = delivery,
        .vector = vector,
        .only = shorthand == SHORTHAND_SELF ? lapic : NULL,
        .everyone = shorthand == SHORTHAND_ALL || shorthand == SHORTHAND_OTHERS,
        .except = shorthand == SHORTHAND_OTHERS ? lapic : NULL,
    };
}

/* --- all of them --- */

bool lapic_read_register(struct lapic *lapic, unsigned reg, uint32_t *value)
{
    *value = 0;
    switch (reg) {
    case APIC_ID: *value = lapic_x2apic(lapic) ? lapic->apic_id : lapic->apic_id << 24; return true;
    case APIC_VERSION: *value = LAPIC_VERSION; return true;
    case APIC_TPR: *value = lapic->tpr; return true;
    case APIC_PPR: *value = lapic_processor_priority(lapic); return true;
    case APIC_LDR: *value = lapic_logical_id(lapic); return true;
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
    if (lapic_x2apic(lapic))
        return false;
    switch (reg) {
    case APIC_APR: *value = lapic_processor_priority(lapic); return true;
    case APIC_EOI: case APIC_RRD: return true;
    case APIC_DFR: *value = lapic->dfr; return true;
    case APIC_ICR_HIGH: *value = (uint32_t)(lapic->icr >> 32); return true;
    default: return false;
    }
}

bool lapic_write_register(struct lapic *lapic, unsigned reg, uint32_t value, struct lapic_after *after)
{
    switch (reg) {
    case APIC_TPR: lapic_write_tpr(lapic, value, after); return true;
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
        lapic_send_ipi(lapic, lapic->icr, after);
        return true;
    default: return lapic_write_register(lapic, reg, value, after);
    }
}

/* --- the page --- */

static void page_read(struct lapic *lapic, struct access *access, struct lapic_after *after)
{
    unsigned offset = access->address & PAGE_MASK, within = offset & 15;
    uint32_t value;
    access->value = 0;
    if (within >= 4 || !lapic_read_register(lapic, offset >> 4, &value)) {
        lapic_record_error(lapic, ESR_ILLEGAL_REGISTER, after);
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
        lapic_record_error(lapic, ESR_ILLEGAL_REGISTER, after);
}

bool lapic_mmio(void *intc, struct access *access)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    bool ours = lapic_enabled(lapic) && !lapic_x2apic(lapic) &&
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
