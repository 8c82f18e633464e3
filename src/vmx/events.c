/*
 * What happens between two instructions of a guest (SDM3 §26.4, §26.5.1, §26.5.2, §27.7): trap-like exits, MTF, the preemption
 * timer, windows, NMIs, external interrupts, INIT and SIPI, virtual interrupts.
 */
#include "vmx/internal.h"

/* --- the preemption timer: SDM3 §26.5.1 "VMX-Preemption Timer" --- */

/* On the loop's thread. */
static void timer_fires(void *owner) { vcpu_kick(owner, REQUEST_VMX); }

/*
 * The clock's timer is left armed over exits: if it fires for an entry that is gone the vCPU looks once in vain, which costs less
 * than arming it at each entry.
 */
static void arm_timer(struct vcpu *vcpu, uint64_t deadline_ns)
{
    struct vmx *vmx = &vcpu->vmx;
    if (!vmx->timer.clock)
        timer_init(&vmx->timer, vcpu->clock, timer_fires, vcpu);
    if (vmx->timer_ns > clock_ns(vcpu->clock) && vmx->timer_ns <= deadline_ns)
        return;
    vmx->timer_ns = deadline_ns;
    timer_arm(&vmx->timer, deadline_ns);
}

void vmx_start_timer(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    vmx->timer_deadline = clock_tsc(vcpu->clock) + (FIELD(PREEMPTION_TIMER_VALUE) << VMX_TIMER_SHIFT);
    if (FIELD(PREEMPTION_TIMER_VALUE))
        arm_timer(vcpu, clock_tsc_to_ns(vcpu->clock, vmx->timer_deadline));
}

uint32_t vmx_timer_value(struct vcpu *vcpu)
{
    uint64_t now = clock_tsc(vcpu->clock), deadline = vcpu->vmx.timer_deadline;
    return now >= deadline ? 0 : (deadline - now) >> VMX_TIMER_SHIFT;
}

static bool timer_ran_out(struct vcpu *vcpu)
{
    if (!vmx_pin(vcpu, PIN_ACTIVATE_PREEMPTION_TIMER) || vcpu->activity == ACTIVITY_WAIT_SIPI)
        return false;
    if (clock_tsc(vcpu->clock) >= vcpu->vmx.timer_deadline)
        return true;
    arm_timer(vcpu, clock_tsc_to_ns(vcpu->clock, vcpu->vmx.timer_deadline));
    return false;
}

void vmx_fini(struct vcpu *vcpu)
{
    if (vcpu->vmx.timer.clock)
        timer_disarm(&vcpu->vmx.timer);
}

void vmx_reset(struct vcpu *vcpu)
{
    vmx_fini(vcpu);
    struct timer timer = vcpu->vmx.timer;
    vcpu->vmx = (struct vmx){ .current = VMCS_NONE, .vmxon_pointer = VMCS_NONE, .timer = timer };
}

/* --- windows and virtual interrupts --- */

void vmx_update_awaits(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    vmx->awaits = (vmx_proc(vcpu, PROC_INTERRUPT_WINDOW_EXITING) || vmx->virtual_interrupt ? VMX_AWAITS_IF : 0) |
                  (vmx_proc(vcpu, PROC_NMI_WINDOW_EXITING) ? VMX_AWAITS_NMI_UNBLOCKING : 0);
    if (vmx->awaits)
        atomic_fetch_or(&vcpu->request, REQUEST_VMX);
}

/* Between two instructions, so there is none whose length could be told. */
static void find_exit(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification)
{
    vcpu->insn_length = 0;
    vmx_exit_now(vcpu, reason, qualification);
}

static void leave(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification)
{
    find_exit(vcpu, reason, qualification);
    vmx_exit(vcpu);
}

/* The exits that are due whatever the guest blocks. True: one was. */
static bool take_unconditional(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    if (vmx->trap)
        leave(vcpu, vmx->trap, vmx->trap_qualification);
    else if (vmx->mtf_pending)
        leave(vcpu, REASON_MONITOR_TRAP_FLAG, 0);
    else if (timer_ran_out(vcpu))
        leave(vcpu, REASON_PREEMPTION_TIMER, 0);
    return !vmx->guest;
}

static bool sleeps_beyond_interrupts(const struct vcpu *vcpu)
{
    return vcpu->activity == ACTIVITY_SHUTDOWN || vcpu->activity == ACTIVITY_WAIT_SIPI;
}

/*
 * SDM3 §27.7.6 "NMI-Window Exiting", §27.7.5 "Interrupt-Window Exiting and Virtual-Interrupt Delivery". True: a shadow holds one
 * back, so one instruction must run.
 */
static bool take_windows(struct vcpu *vcpu)
{
    if (vmx_proc(vcpu, PROC_NMI_WINDOW_EXITING) && !(vcpu->shadow & SHADOW_NMI) && vcpu->activity != ACTIVITY_WAIT_SIPI) {
        if (vcpu->shadow & SHADOW_MOV_SS)
            return true;
        leave(vcpu, REASON_NMI_WINDOW, 0);
        return false;
    }
    if (!(vcpu->vmx.awaits & VMX_AWAITS_IF) || !(vcpu->rflags & RFLAGS_IF) || sleeps_beyond_interrupts(vcpu))
        return false;
    if (vcpu->shadow & (SHADOW_STI | SHADOW_MOV_SS))
        return true;
    if (vmx_proc(vcpu, PROC_INTERRUPT_WINDOW_EXITING))
        leave(vcpu, REASON_INTERRUPT_WINDOW, 0);
    return false;
}

bool vmx_take_events(struct vcpu *vcpu)
{
    return vcpu->vmx.guest && !take_unconditional(vcpu) && take_windows(vcpu);
}

void vmx_take_virtual_interrupt(struct vcpu *vcpu)
{
    if (vcpu->vmx.virtual_interrupt && (vcpu->rflags & RFLAGS_IF) && !(vcpu->shadow & (SHADOW_STI | SHADOW_MOV_SS)) &&
        !sleeps_beyond_interrupts(vcpu))
        vmx_deliver_virtual_interrupt(vcpu);
}

/* MTF: an exit follows the instruction, or the event that took its place (SDM3 §26.5.2 "Monitor Trap Flag"). */
void vmx_stepped(struct vcpu *vcpu)
{
    vcpu->vmx.step_wanted = false;
    if (vmx_proc(vcpu, PROC_MONITOR_TRAP_FLAG) && !vcpu->vmx.trap)
        vmx_set_trap(vcpu, REASON_MONITOR_TRAP_FLAG, 0);
}

/* --- events from outside: SDM3 §26.2 --- */

void vmx_exit_nmi(struct vcpu *vcpu)
{
    find_exit(vcpu, REASON_EXCEPTION_OR_NMI, 0);
    vcpu->vmx.exit.interruption = INTERRUPTION_VALID | INTERRUPTION_NMI << 8 | VEC_NMI;
    vmx_exit(vcpu);
}

static void leave_for_interrupt(struct vcpu *vcpu, int vector)
{
    find_exit(vcpu, REASON_EXTERNAL_INTERRUPT, 0);
    if (vector >= 0)
        vcpu->vmx.exit.interruption = INTERRUPTION_VALID | INTERRUPTION_EXTERNAL << 8 | (uint32_t)vector;
    vmx_exit(vcpu);
}

/* SDM3 §30.6 "Posted-Interrupt Processing": the notification is ended at the local APIC, and nobody else hears of it. */
static void end_of_interrupt(struct vcpu *vcpu)
{
    enum { EOI = 0xB0, MSR_APIC_BASE = 0x1B, MSR_X2APIC_EOI = 0x80B };
    uint64_t base;
    if (!vcpu->intc_ops->read_msr(vcpu->intc, MSR_APIC_BASE, &base))
        return;
    struct access access = { .address = (base & ~PAGE_MASK) + EOI, .size = 4, .write = true, .requester = REQUESTER_CPU };
    if (!vcpu->intc_ops->mmio(vcpu->intc, &access))
        vcpu->intc_ops->write_msr(vcpu->intc, MSR_X2APIC_EOI, 0);
}

void vmx_exit_interrupt(struct vcpu *vcpu)
{
    if (!(vcpu->vmx.control[VMX_EXIT] & EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT)) {
        leave_for_interrupt(vcpu, -1);
        return;
    }
    int vector = vcpu->intc_ops->acknowledge(vcpu->intc);
    if (vector < 0)
        return;
    if (vmx_pin(vcpu, PIN_PROCESS_POSTED_INTERRUPTS) && (uint64_t)vector == FIELD(POSTED_INTERRUPT_VECTOR)) {
        end_of_interrupt(vcpu);
        vmx_process_posted_interrupts(vcpu);
        /* More may wait behind the notification. */
        atomic_fetch_or(&vcpu->request, REQUEST_INTERRUPT);
        return;
    }
    leave_for_interrupt(vcpu, vector);
}

/*
 * SDM3 §24.8: root operation blocks INIT, which then comes with VMXOFF or exits after the next entry. So does the wait for SIPI (§27.7.2).
 * NOTE(spec): whether one that comes in that wait is kept is not said; it is dropped, since a processor that waits is just after an INIT.
 */
bool vmx_take_init(struct vcpu *vcpu)
{
    if (!vcpu->vmx.on)
        return false;
    if (!vcpu->vmx.guest)
        vcpu->vmx.init_held = true;
    else if (vcpu->activity != ACTIVITY_WAIT_SIPI)
        leave(vcpu, REASON_INIT, 0);
    return true;
}

bool vmx_take_sipi(struct vcpu *vcpu, uint8_t vector)
{
    if (!vcpu->vmx.guest)
        return false;
    if (vcpu->activity == ACTIVITY_WAIT_SIPI)
        leave(vcpu, REASON_SIPI, vector);
    return true;
}
