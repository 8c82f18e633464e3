/*
 * What arrives at a local APIC: messages from the bus, its two pins, and its own sources; and which of it the processor may take (SDM3 §11.6.2,
 * §11.8).
 */
#include "dev/lapic_internal.h"

/* --- priorities --- */

/* SDM3 §11.8.3.1 "Task and Processor Priorities" */
uint32_t lapic_processor_priority(const struct lapic *lapic)
{
    int in_service = vector_highest(lapic->isr);
    uint32_t isr_class = in_service < 0 ? 0 : (uint32_t)in_service & 0xF0;
    return (lapic->tpr & 0xF0) >= isr_class ? lapic->tpr & 0xFF : isr_class;
}

int lapic_deliverable(const struct lapic *lapic)
{
    if (!lapic_enabled(lapic) || lapic->host)
        return -1;
    int vector = vector_highest(lapic->irr);
    return vector >= 0 && ((uint32_t)vector & 0xF0) > (lapic_processor_priority(lapic) & 0xF0) ? vector : -1;
}

bool lapic_extint_waits(const struct lapic *lapic)
{
    if (lapic->extint_pending)
        return true;
    if (lapic->host)
        return lapic->lint_level[0];    /* who has the registers knows what LINT0 means */
    uint32_t lint0 = lapic->lvt[LVT_LINT0];
    return lapic->lint_level[0] &&
           (!lapic_enabled(lapic) || (!(lint0 & LVT_MASKED) && bits(lint0, 10, 8) == DELIVERY_EXTINT));
}

/* --- acceptance --- */

void lapic_record_error(struct lapic *lapic, uint32_t bit, struct lapic_after *after)
{
    uint32_t lvt = lapic->lvt[LVT_ERROR];
    lapic->esr |= bit;
    if (!(lvt & LVT_MASKED) && (lvt & LVT_VECTOR) >= 16)
        lapic_accept(lapic, lvt & LVT_VECTOR, false, after);
}

/* A fixed interrupt for this APIC (SDM3 §11.8.4 "Interrupt Acceptance for Fixed Interrupts"). */
void lapic_accept(struct lapic *lapic, uint8_t vector, bool level, struct lapic_after *after)
{
    if (vector < 16) {
        lapic_record_error(lapic, ESR_RECEIVE_ILLEGAL_VECTOR, after);
        return;
    }
    vector_set(lapic->irr, vector);
    if (level)
        vector_set(lapic->tmr, vector);
    else
        vector_clear(lapic->tmr, vector);
    after->request |= REQUEST_INTERRUPT;
}

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
        lapic_accept(lapic, lvt & LVT_VECTOR, lvt & LVT_LEVEL, after);
        break;
    case DELIVERY_NMI: after->request |= REQUEST_NMI; break;
    case DELIVERY_INIT: after->request |= REQUEST_INIT; break;
    case DELIVERY_EXTINT: after->request |= REQUEST_INTERRUPT; break;
    default: break;
    }
}

/* --- messages --- */

uint32_t lapic_logical_id(const struct lapic *lapic)
{
    /* SDM3 §11.12.10.2 "Deriving Logical x2APIC ID from the Local x2APIC ID" */
    return lapic_x2apic(lapic) ? (lapic->apic_id & ~0xFu) << 12 | 1u << (lapic->apic_id & 0xF) : lapic->ldr;
}

static bool matches_physical(const struct lapic *lapic, const struct apic_message *message)
{
    if (message->destination == (message->wide ? UINT32_MAX : 0xFF))
        return true;
    return message->destination == (lapic_x2apic(lapic) ? lapic->apic_id : lapic->apic_id & 0xFF);
}

/* SDM3 §11.6.2.2 "Logical Destination Mode", §11.12.10.1 for x2APIC */
static bool matches_logical(const struct lapic *lapic, const struct apic_message *message)
{
    uint32_t destination = message->destination, id = lapic_logical_id(lapic);
    if (message->wide && destination == UINT32_MAX)
        return true;
    if (lapic_x2apic(lapic))
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
    bool match = lapic_enabled(lapic);
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
        accepted = lapic_enabled(lapic) && (lapic->svr & SVR_ENABLE);
        if (accepted)
            lapic_accept(lapic, message->vector, message->level, &after);
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
    uint32_t priority = lapic->svr & SVR_ENABLE ? lapic_processor_priority(lapic) : 0xFF;
    pthread_mutex_unlock(&lapic->lock);
    return (uint8_t)priority;
}

/* --- pins --- */

void lapic_set_lint(struct lapic *lapic, unsigned lint, bool level)
{
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    bool rises = level && !lapic->lint_level[lint & 1];
    lapic->lint_level[lint & 1] = level;
    if (rises && lapic->host)
        after.request = lint & 1 ? 0 : REQUEST_INTERRUPT;       /* of the two only the 8259's is connected there */
    else if (rises && !lapic_enabled(lapic))
        after.request = lint & 1 ? REQUEST_NMI : REQUEST_INTERRUPT;
    else if (rises)
        lapic_deliver_local(lapic, LVT_LINT0 + (lint & 1), &after);
    lapic_finish(lapic, &after);
}

void lapic_lint_line(void *sink, unsigned n, bool level) { lapic_set_lint(sink, n, level); }
