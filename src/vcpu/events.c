/*
 * Which event comes next (SDM3 §6.9 "Priority Among Concurrent Events").
 *
 * A request bit means "look again"; the truth is in the interrupt controller and in vcpu->nmi_held. A bit is cleared
 * before its source is read, so an event that arrives in between sets it again and is seen on the next round. An interrupt
 * that cannot be taken is remembered in interrupt_held; the rule that unblocks it (x86_interrupts_unblocked) sets the
 * bit again, so a vCPU with interrupts off runs at full speed while one waits.
 */
#include "vcpu/loop.h"

#include "base/log.h"
#include "engine/engine.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

/* Returns what was asked for before. */
static uint32_t take_request(struct vcpu *vcpu, uint32_t request)
{
    return atomic_fetch_and(&vcpu->request, ~request);
}

/* SDM3 §9.4.1 "BSP and AP Processors": after INIT the boot processor starts at the reset vector, the others wait. */
static void take_init(struct vcpu *vcpu)
{
    take_request(vcpu, REQUEST_INIT);
    if (vmx_take_init(vcpu))
        return;
    trace(vcpu->log, cpu_state, "vcpu%u INIT", vcpu->index);
    x86_reset(vcpu, true);
    if (vcpu->intc_ops)
        vcpu->intc_ops->init(vcpu->intc);
    vcpu->activity = vcpu->index == 0 ? ACTIVITY_ACTIVE : ACTIVITY_WAIT_SIPI;
}

/* A start-up IPI counts only while the processor waits for one (SDM3 §9.4.4.2). */
static void take_sipi(struct vcpu *vcpu)
{
    take_request(vcpu, REQUEST_SIPI);
    uint8_t vector = __atomic_load_n(&vcpu->sipi_vector, __ATOMIC_ACQUIRE);
    if (vmx_take_sipi(vcpu, vector) || vcpu->activity != ACTIVITY_WAIT_SIPI)
        return;
    trace(vcpu->log, cpu_state, "vcpu%u SIPI, page %#x", vcpu->index, vector);
    vcpu->seg[CS].selector = (uint16_t)(vector << 8);
    vcpu->seg[CS].base = (uint64_t)vector << 12;
    vcpu->rip = 0;
    vcpu->activity = ACTIVITY_ACTIVE;
}

static void deliver(struct vcpu *vcpu, enum event_kind kind, uint8_t vector)
{
    struct event event = { .kind = kind, .vector = vector };
    bool was_shut_down = vcpu->activity == ACTIVITY_SHUTDOWN;
    vcpu->insn_length = 0;
    vcpu->activity = ACTIVITY_ACTIVE;
    x86_deliver_event(vcpu, &event);
    if (was_shut_down)                  /* interrupts were blocked */
        vcpu_ask_again(vcpu);
}

static bool take_nmi(struct vcpu *vcpu)
{
    take_request(vcpu, REQUEST_NMI);
    vcpu->nmi_held = true;
    bool exits = vmx_pin(vcpu, PIN_NMI_EXITING), blocked = (vcpu->shadow & SHADOW_NMI) && !vmx_pin(vcpu, PIN_VIRTUAL_NMIS);
    if (blocked)
        return false;
    if (vcpu->shadow & SHADOW_MOV_SS)
        return true;
    vcpu->nmi_held = false;
    if (exits) {
        vmx_exit_nmi(vcpu);
        return false;
    }
    vcpu->shadow = SHADOW_NMI;
    deliver(vcpu, EVENT_NMI, VEC_NMI);
    return false;
}

static bool take_interrupt(struct vcpu *vcpu)
{
    take_request(vcpu, REQUEST_INTERRUPT);
    if (!vcpu->intc_ops || vcpu->intc_ops->pending(vcpu->intc) < 0) {
        vcpu->interrupt_held = false;
        return false;
    }
    vcpu->interrupt_held = true;
    bool exits = vmx_pin(vcpu, PIN_EXTERNAL_INTERRUPT_EXITING);
    if ((!(vcpu->rflags & RFLAGS_IF) && !exits) || vcpu->activity == ACTIVITY_SHUTDOWN)         /* §27.7.2: even if they exit */
        return false;
    if (vcpu->shadow & (SHADOW_STI | SHADOW_MOV_SS))
        return true;
    if (exits) {
        vmx_exit_interrupt(vcpu);
        return false;
    }
    int vector = vcpu->intc_ops->acknowledge(vcpu->intc);
    if (vector >= 0) {
        counter_add(&vcpu->counters, COUNTER_interrupts, 1);
        trace(vcpu->log, cpu_interrupt, "vcpu%u vector %#x at %#lx", vcpu->index, vector, vcpu->rip);
        deliver(vcpu, EVENT_INTERRUPT, (uint8_t)vector);
    }
    vcpu->interrupt_held = vcpu->intc_ops->pending(vcpu->intc) >= 0;
    x86_interrupts_unblocked(vcpu);
    return false;
}

/* Waiting for SIPI, or shut down; a VT-x guest that is shut down still makes its monitor run (SDM3 §25.4.2). */
static bool sleeps_on(const struct vcpu *vcpu)
{
    return vcpu->activity == ACTIVITY_WAIT_SIPI || (vcpu->activity == ACTIVITY_SHUTDOWN && !vmx_guest(vcpu));
}

/* With an engine that delivers events itself. NMIs are blocked in HLT only by the NMI that the HLT stands in. */
static void end_halt(struct vcpu *vcpu)
{
    if (vcpu->activity != ACTIVITY_HLT)
        return;
    bool nmi = (atomic_load(&vcpu->request) & REQUEST_NMI) && !(vcpu->shadow & SHADOW_NMI);
    take_request(vcpu, REQUEST_INTERRUPT | REQUEST_VMX);
    bool interrupt = (vcpu->rflags & RFLAGS_IF) && vcpu->intc_ops && vcpu->intc_ops->pending(vcpu->intc) >= 0;
    if (nmi || interrupt)
        vcpu->activity = ACTIVITY_ACTIVE;
    else if (take_request(vcpu, REQUEST_NMI) & REQUEST_NMI)
        vcpu->nmi_held = true;
}

/*
 * A shadow holds something back for one instruction. Whatever else waits is held back with it: an engine runs nothing while a
 * request stands, so that the shadow would never end.
 */
static void hold_back(struct vcpu *vcpu)
{
    uint32_t request = take_request(vcpu, REQUEST_NMI | REQUEST_INTERRUPT);
    vcpu->nmi_held = vcpu->nmi_held || (request & REQUEST_NMI);
    vcpu->interrupt_held = vcpu->interrupt_held || (request & REQUEST_INTERRUPT);
}

void vcpu_ask_again(struct vcpu *vcpu)
{
    atomic_fetch_or(&vcpu->request, (vcpu->interrupt_held ? REQUEST_INTERRUPT : 0) | (vcpu->nmi_held ? REQUEST_NMI : 0) |
                                    (vcpu->vmx.awaits ? REQUEST_VMX : 0));
}

bool vcpu_take_events(struct vcpu *vcpu)
{
    uint32_t request = atomic_load(&vcpu->request);
    if (request & REQUEST_INIT) {
        take_init(vcpu);
        request = atomic_load(&vcpu->request);
    }
    if (request & REQUEST_SIPI)
        take_sipi(vcpu);
    if (vcpu->engine->takes_events && vcpu->engine->takes_events(vcpu)) {
        if (!vcpu->engine->waits || !vcpu->engine->waits(vcpu))
            end_halt(vcpu);
        return false;
    }
    bool one_instruction = false;
    if (request & REQUEST_VMX) {
        take_request(vcpu, REQUEST_VMX);
        one_instruction = vmx_take_events(vcpu);
    }
    if (sleeps_on(vcpu))
        return false;
    if (!one_instruction && request & REQUEST_NMI)
        one_instruction = take_nmi(vcpu);
    if (!one_instruction && request & REQUEST_INTERRUPT)
        one_instruction = take_interrupt(vcpu);
    if (one_instruction)
        hold_back(vcpu);
    else if (vmx_guest(vcpu))
        vmx_take_virtual_interrupt(vcpu);
    return one_instruction;
}
