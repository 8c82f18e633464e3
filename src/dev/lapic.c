/*
 * The local APIC: Intel SDM3 chapter 11 "Advanced Programmable Interrupt Controller (APIC)".
 *
 * One lock guards the registers, since messages come from any thread. What follows from a register access (waking the
 * processor, an IPI, an EOI broadcast) is noted in a `struct lapic_after` under the lock and done when it is released:
 * IPIs would otherwise take two APICs' locks in either order, and the EOI broadcast needs the board lock, which
 * stands before ours. Here is the device, and what its processor asks of it; the registers are in lapic_registers.c and lapic_msr.c, what arrives in
 * lapic_deliver.c, the timer in lapic_timer.c.
 *
 * Not modelled: SMIs, the CMCI, thermal and performance-counter sources (their LVT entries hold what is written), focus
 * processors, arbitration priority. The xAPIC ID register is read-only, as in current processors.
 */
#include "dev/lapic_internal.h"

static const uint64_t apic_base_default = 0xFEE00000;

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

/* --- the processor's side --- */

static int lapic_pending(void *intc)
{
    struct lapic *lapic = intc;
    pthread_mutex_lock(&lapic->lock);
    int vector = lapic_extint_waits(lapic) ? LAPIC_VECTOR_EXTINT : lapic_deliverable(lapic);
    pthread_mutex_unlock(&lapic->lock);
    return vector;
}

static int lapic_acknowledge(void *intc)
{
    struct lapic *lapic = intc;
    int vector = -1;
    pthread_mutex_lock(&lapic->lock);
    bool extint = lapic_extint_waits(lapic) && lapic->extint.acknowledge;
    lapic->extint_pending = false;
    if (extint) {
        pthread_mutex_unlock(&lapic->lock);     /* the 8259 is behind the board lock */
        vector = lapic->extint.acknowledge(lapic->extint.owner);
        if (vector >= 0)
            return vector;
        pthread_mutex_lock(&lapic->lock);
    }
    vector = lapic_deliverable(lapic);
    if (vector >= 0) {
        vector_clear(lapic->irr, (unsigned)vector);
        vector_set(lapic->isr, (unsigned)vector);
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
    lapic_write_tpr(lapic, (uint32_t)(cr8 & 0xF) << 4, &after);
    lapic_finish(lapic, &after);
}

/* SDM3 §11.4.7.3 "Local APIC State After an INIT Reset": all but the ID, and IA32_APIC_BASE (the mode) stays. */
static void lapic_init_received(void *intc)
{
    struct lapic *lapic = intc;
    pthread_mutex_lock(&lapic->lock);
    lapic_reset_registers(lapic);
    lapic_host_put(lapic);
    pthread_mutex_unlock(&lapic->lock);
}

static void lapic_send(void *intc, uint32_t destination, uint8_t vector)
{
    struct lapic *lapic = intc;
    struct lapic_after after = { .send = true };
    pthread_mutex_lock(&lapic->lock);
    after.message = (struct apic_message){ .destination = destination, .wide = lapic_x2apic(lapic), .delivery = DELIVERY_FIXED, .vector = vector };
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

/* --- reset, init --- */

static void lapic_reset(struct device *device)
{
    struct lapic *lapic = (struct lapic *)device;
    pthread_mutex_lock(&lapic->lock);
    lapic->apic_base = apic_base_default | APIC_BASE_EN | (lapic->bsp ? APIC_BASE_BSP : 0);
    lapic->tsc_offset = 0;
    lapic->lint_level[0] = lapic->lint_level[1] = false;
    lapic_reset_registers(lapic);
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
