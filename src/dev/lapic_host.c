/*
 * A local APIC whose registers are in the host's kernel (bus/intc_host.h). What the host does not model stays here and waits for them: errors
 * that ESR does not show yet, and the levels of the LINT pins. A count that has run out is 0 there, for a host may let it run out again.
 */
#include "dev/lapic_internal.h"

#include <string.h>

static void to_host(const struct lapic *lapic, uint32_t current, struct intc_registers *r)
{
    *r = (struct intc_registers){ .base = lapic->apic_base, .deadline = lapic_timer_has_deadline(lapic) ? lapic->tsc_deadline : 0 };
    bool x2apic = lapic->apic_base & APIC_BASE_EXTD;
    r->reg[APIC_ID] = x2apic ? lapic->apic_id : lapic->apic_id << 24;
    r->reg[APIC_VERSION] = LAPIC_VERSION;
    r->reg[APIC_TPR] = lapic->tpr;
    r->reg[APIC_LDR] = lapic->ldr;
    r->reg[APIC_DFR] = lapic->dfr;
    r->reg[APIC_SVR] = lapic->svr;
    memcpy(&r->reg[APIC_ISR], lapic->isr, sizeof(lapic->isr));
    memcpy(&r->reg[APIC_TMR], lapic->tmr, sizeof(lapic->tmr));
    memcpy(&r->reg[APIC_IRR], lapic->irr, sizeof(lapic->irr));
    r->reg[APIC_ESR] = lapic->esr_latched;
    r->reg[APIC_ICR_LOW] = (uint32_t)lapic->icr;
    r->reg[APIC_ICR_HIGH] = (uint32_t)(lapic->icr >> 32);
    memcpy(&r->reg[APIC_LVT_FIRST], lapic->lvt, sizeof(lapic->lvt));
    r->reg[APIC_TIMER_CURRENT] = current;
    r->reg[APIC_TIMER_INITIAL] = current ? lapic->initial_count : 0;
    r->reg[APIC_TIMER_DIVIDE] = lapic->divide;
}

/* The timer stands until lapic_timer_resume. */
static void from_host(struct lapic *lapic, const struct intc_registers *r)
{
    lapic->tpr = r->reg[APIC_TPR] & 0xFF;
    if (!(lapic->apic_base & APIC_BASE_EXTD)) {         /* else derived from the ID, or there is none */
        lapic->ldr = r->reg[APIC_LDR] & 0xFF000000;
        lapic->dfr = r->reg[APIC_DFR] | 0x0FFFFFFF;
    }
    lapic->svr = r->reg[APIC_SVR] & SVR_WRITABLE;
    memcpy(lapic->isr, &r->reg[APIC_ISR], sizeof(lapic->isr));
    memcpy(lapic->tmr, &r->reg[APIC_TMR], sizeof(lapic->tmr));
    memcpy(lapic->irr, &r->reg[APIC_IRR], sizeof(lapic->irr));
    lapic->esr_latched = r->reg[APIC_ESR];
    lapic->icr = (r->reg[APIC_ICR_LOW] & ~(uint32_t)LVT_STATUS) | (uint64_t)r->reg[APIC_ICR_HIGH] << 32;
    for (unsigned n = 0; n < LVT_COUNT; n++)
        lapic->lvt[n] = r->reg[APIC_LVT_FIRST + n] & (lapic_lvt_writable[n] | LVT_REMOTE_IRR);
    lapic->divide = r->reg[APIC_TIMER_DIVIDE] & 0xB;
    lapic->initial_count = r->reg[APIC_TIMER_INITIAL];
    lapic_timer_load(lapic, r->reg[APIC_TIMER_CURRENT]);
    lapic->tsc_deadline = r->deadline;
}

bool lapic_lend(struct lapic *lapic, const struct intc_host *host)
{
    struct intc_registers registers;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    uint32_t current = lapic_timer_catch_up(lapic, &after);         /* its interrupt goes along, in IRR */
    to_host(lapic, current, &registers);
    bool done = host->store(host->owner, lapic->apic_id, &registers);
    if (done) {
        lapic->host = host;
        lapic_timer_arm(lapic, CLOCK_NEVER);
    }
    lapic_finish(lapic, &after);
    return done;
}

void lapic_reclaim(struct lapic *lapic)
{
    struct lapic_after after = { .request = REQUEST_INTERRUPT };
    pthread_mutex_lock(&lapic->lock);
    if (!lapic->host) {
        pthread_mutex_unlock(&lapic->lock);
        return;
    }
    lapic_host_look(lapic);
    lapic->host = NULL;
    lapic_timer_resume(lapic, &after);
    lapic_finish(lapic, &after);
}

void lapic_host_look(struct lapic *lapic)
{
    struct intc_registers registers;
    if (lapic->host && lapic->host->fetch(lapic->host->owner, lapic->apic_id, &registers))
        from_host(lapic, &registers);
}

void lapic_host_put(struct lapic *lapic)
{
    struct intc_registers registers;
    if (!lapic->host)
        return;
    to_host(lapic, lapic_timer_current(lapic), &registers);
    lapic->host->store(lapic->host->owner, lapic->apic_id, &registers);
    lapic_timer_arm(lapic, CLOCK_NEVER);
}
