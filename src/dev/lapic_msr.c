/* A local APIC's MSRs: where and what it is, x2APIC mode, and the TSC deadline (SDM3 §11.4.4, §11.5.4.1, §11.12). */
#include "dev/lapic_internal.h"

static bool write_apic_base(struct lapic *lapic, uint64_t value)
{
    unsigned physical = lapic->physical_bits ? lapic->physical_bits : 52;
    uint64_t valid = (BIT(physical) - 1) & ~PAGE_MASK;
    valid |= APIC_BASE_BSP | APIC_BASE_EN | (lapic->no_x2apic ? 0 : APIC_BASE_EXTD);
    bool en = value & APIC_BASE_EN, extd = value & APIC_BASE_EXTD;
    if (value & ~valid || (extd && !en))
        return false;
    /* SDM3 §11.12.5 "x2APIC State Transitions" */
    if (lapic_x2apic(lapic) && en && !extd)
        return false;
    if (!lapic_enabled(lapic) && extd)
        return false;
    bool was = lapic_enabled(lapic);
    lapic->apic_base = value;
    if (was == en)
        return !lapic->host || lapic->host->write_msr(lapic->host->owner, lapic->apic_id, MSR_IA32_APIC_BASE, value);
    lapic_reset_registers(lapic);
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
        lapic_send_ipi(lapic, value, after);
        return true;
    }
    if (value >> 32 || (value & x2apic_reserved(reg)))
        return false;
    if (reg == APIC_SELF_IPI) {
        if (value < 16)
            lapic_record_error(lapic, ESR_SEND_ILLEGAL_VECTOR, after);
        else
            lapic_accept(lapic, (uint8_t)value, false, after);
        return true;
    }
    return lapic_write_register(lapic, reg, (uint32_t)value, after);
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
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_x2apic(lapic))
        return false;
    if (reg == APIC_ICR_LOW) {
        *value = lapic->icr;
        return true;
    }
    uint32_t low;
    if (!lapic_read_register(lapic, reg, &low))
        return false;
    *value = low;
    return true;
}

bool lapic_read_msr(void *intc, uint32_t msr, uint64_t *value)
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
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_x2apic(lapic))
        return false;
    return write_x2apic(lapic, msr - MSR_X2APIC_FIRST, value, after);
}

bool lapic_write_msr(void *intc, uint32_t msr, uint64_t value)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    bool ok = write_msr_locked(lapic, msr, value, &after);
    lapic_finish(lapic, &after);
    return ok;
}

void lapic_set_tsc_offset(void *intc, uint64_t offset)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    lapic->tsc_offset = offset;
    if (!lapic->host && lapic_timer_has_deadline(lapic) && lapic->tsc_deadline)
        lapic_timer_arm_deadline(lapic, &after);
    lapic_finish(lapic, &after);
}
