/*
 * Delivery of interrupts and exceptions (SDM3 §6 "Interrupt and Exception Handling", SDM2 INT n).
 *
 * One attempt (`attempt`) either ends at the handler or leaves a fault in vcpu->pending and every register as it was. For
 * INT n and its like that fault is simply the instruction's. For the rest, x86_deliver_event combines it with the event
 * that was being delivered into a double or triple fault, or delivers it in the other's place.
 */
#include "x86/descriptor.h"

#include "base/log.h"
#include "vmx/vmx.h"

struct delivery {
    struct event event;
    uint64_t return_rip;
    bool software;              /* INT n, INT3, INTO: the gate's DPL is checked and EXT is clear */
    uint32_t ext;               /* bit 0 of error codes */
};

static bool is_exception(const struct event *event)
{
    return event->kind == EVENT_FAULT || event->kind == EVENT_TRAP;
}

static uint32_t gate_error(const struct delivery *d)
{
    return (uint32_t)d->event.vector << 3 | 2 | d->ext;
}

/* SDM3 §18.3.1.1: faults push RF set, so that the instruction runs past its breakpoint; #DB by a breakpoint does not. */
static uint64_t pushed_flags(const struct vcpu *vcpu, const struct delivery *d)
{
    if (d->event.kind == EVENT_FAULT && d->event.vector != VEC_DB)
        return vcpu->rflags | RFLAGS_RF;
    return vcpu->rflags;
}

/* --- real-address mode: SDM3 §21.1.4 "Interrupt and Exception Handling" --- */

static bool attempt_real(struct vcpu *vcpu, const struct delivery *d)
{
    struct stack stack = stack_present(vcpu, d->ext);
    uint64_t entry;

    if (d->event.vector * 4 + 3 > vcpu->idtr.limit)
        return x86_raise_error(vcpu, VEC_GP, gate_error(d));
    if (!mmu_load(vcpu, vcpu->idtr.base + d->event.vector * 4, 4, mmu_implicit(vcpu), &entry))
        return false;
    if (!stack_push(vcpu, &stack, 2, vcpu->rflags) || !stack_push(vcpu, &stack, 2, vcpu->seg[CS].selector) ||
        !stack_push(vcpu, &stack, 2, d->return_rip))
        return false;
    if ((entry & 0xFFFF) > vcpu->seg[CS].limit)
        return x86_raise_error(vcpu, VEC_GP, d->ext);
    stack_commit(vcpu, &stack);
    segment_load_real_code(&vcpu->seg[CS], entry >> 16);
    vcpu->rip = entry & 0xFFFF;
    vcpu->rflags &= ~(uint64_t)(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
    commit_privilege(vcpu, 0);
    return true;
}

/* --- V86 with VME: SDM3 §21.3.3 "Class 3: Software Interrupt Handling in Virtual-8086 Mode" --- */

/* The redirection bit of INT n: 32 bytes right below the I/O map of the TSS. A fault in reading it leaves *ok false. */
static bool redirected(struct vcpu *vcpu, uint8_t vector, bool *ok)
{
    uint64_t io_map, byte;

    *ok = true;
    if (!(vcpu->tr.attr & 8) || vcpu->tr.limit < 103)
        return false;
    if (!mmu_load(vcpu, vcpu->tr.base + 102, 2, mmu_implicit(vcpu), &io_map))
        return *ok = false;
    uint64_t offset = io_map - 32 + vector / 8;
    if (io_map < 32 || offset > vcpu->tr.limit) {
        *ok = x86_raise_error(vcpu, VEC_GP, 0);
        return false;
    }
    if (!mmu_load(vcpu, vcpu->tr.base + offset, 1, mmu_implicit(vcpu), &byte))
        return *ok = false;
    return !(byte >> (vector & 7) & 1);
}

static bool attempt_redirected(struct vcpu *vcpu, const struct delivery *d)
{
    struct stack stack = stack_present(vcpu, 0);
    bool virtual_if = vcpu_iopl(vcpu) < 3;
    uint64_t entry, flags = vcpu->rflags;

    if (virtual_if)
        flags = (flags & ~(uint64_t)RFLAGS_IF) | RFLAGS_IOPL | (flags & RFLAGS_VIF ? RFLAGS_IF : 0);
    if (!mmu_load(vcpu, d->event.vector * 4, 4, mmu_implicit(vcpu), &entry) || !stack_push(vcpu, &stack, 2, flags) ||
        !stack_push(vcpu, &stack, 2, vcpu->seg[CS].selector) || !stack_push(vcpu, &stack, 2, d->return_rip))
        return false;
    stack_commit(vcpu, &stack);
    segment_load_v86(&vcpu->seg[CS], entry >> 16);
    vcpu->rip = entry & 0xFFFF;
    vcpu->rflags &= ~(uint64_t)((virtual_if ? RFLAGS_VIF : RFLAGS_IF) | RFLAGS_TF | RFLAGS_NT | RFLAGS_RF);
    commit_privilege(vcpu, 3);
    return true;
}

/* --- protected and IA-32e mode --- */

static bool read_gate(struct vcpu *vcpu, const struct delivery *d, struct descriptor *gate)
{
    bool long_mode = vcpu_long_mode(vcpu);
    unsigned size = long_mode ? 16 : 8, offset = d->event.vector * size;

    *gate = (struct descriptor){ .gla = vcpu->idtr.base + offset };
    if (offset + size - 1 > vcpu->idtr.limit)
        return x86_raise_error(vcpu, VEC_GP, gate_error(d));
    if (!mmu_load(vcpu, gate->gla, 8, mmu_implicit(vcpu), &gate->low))
        return false;
    if (long_mode && !mmu_load(vcpu, gate->gla + 8, 8, mmu_implicit(vcpu), &gate->high))
        return false;
    unsigned types = 1 << SYS_INT32 | 1 << SYS_TRAP32;
    if (!long_mode)
        types |= 1 << SYS_TASK_GATE | 1 << SYS_INT16 | 1 << SYS_TRAP16;
    if (!descriptor_is_system(gate) || !(types >> descriptor_type(gate) & 1))
        return x86_raise_error(vcpu, VEC_GP, gate_error(d));
    if (d->software && descriptor_dpl(gate) < vcpu->cpl)
        return x86_raise_error(vcpu, VEC_GP, gate_error(d));
    return descriptor_present(gate) || x86_raise_error(vcpu, VEC_NP, gate_error(d));
}

static bool read_handler(struct vcpu *vcpu, const struct delivery *d, const struct descriptor *gate, struct descriptor *code,
                         unsigned *cpl)
{
    uint16_t selector = gate_selector(gate);
    uint32_t error = selector_error(selector, d->ext);

    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_GP, d->ext);
    if (!descriptor_read(vcpu, selector, VEC_GP, d->ext, code))
        return false;
    if (!descriptor_is_code(code) || descriptor_dpl(code) > vcpu->cpl)
        return x86_raise_error(vcpu, VEC_GP, error);
    if (vcpu_long_mode(vcpu) && (!descriptor_is_code64(code) || descriptor_is_code32(code)))
        return x86_raise_error(vcpu, VEC_GP, error);
    if (!descriptor_present(code))
        return x86_raise_error(vcpu, VEC_NP, error);
    *cpl = descriptor_is_conforming(code) ? vcpu->cpl : descriptor_dpl(code);
    if (vcpu_v86(vcpu) && *cpl != 0)
        return x86_raise_error(vcpu, VEC_GP, error);
    return true;
}

/* SDM3 §6.14.5 "Interrupt Stack Table". */
static bool ist_stack(struct vcpu *vcpu, unsigned ist, uint32_t ext, uint64_t *sp)
{
    unsigned offset = 36 + (ist - 1) * 8;

    if (offset + 7 > vcpu->tr.limit)
        return x86_raise_error(vcpu, VEC_TS, selector_error(vcpu->tr.selector, ext));
    return mmu_load(vcpu, vcpu->tr.base + offset, 8, mmu_implicit(vcpu), sp);
}

/* The stack that the handler will use; *ss is what SS will hold. */
static bool choose_stack(struct vcpu *vcpu, const struct delivery *d, const struct descriptor *gate, unsigned cpl,
                         struct segment *ss, struct stack *stack)
{
    bool long_mode = vcpu_long_mode(vcpu), inner = cpl != vcpu->cpl;
    unsigned ist = long_mode ? bits(gate->low, 34, 32) : 0;
    uint64_t sp = vcpu->gpr[RSP];
    uint16_t selector = 0;

    *ss = vcpu->seg[SS];
    if (inner) {
        if (ist == 0 && !tss_inner_stack(vcpu, cpl, d->ext, &selector, &sp))
            return false;
        if (!load_inner_ss(vcpu, selector, cpl, d->ext, ss))
            return false;
    }
    if (ist && !ist_stack(vcpu, ist, d->ext, &sp))
        return false;
    if (long_mode)
        sp &= ~15ull;           /* SDM3 §6.14.2 "64-Bit Mode Stack Frame" */
    *stack = stack_other(vcpu, ss, sp, cpl, long_mode, inner ? selector_error(ss->selector, d->ext) : d->ext);
    return true;
}

static bool push_frame(struct vcpu *vcpu, const struct delivery *d, struct stack *stack, unsigned size, bool inner)
{
    static const enum seg v86_order[] = { GS, FS, DS, ES };

    if (vcpu_v86(vcpu))
        for (unsigned i = 0; i < ARRAY_SIZE(v86_order); i++)
            if (!stack_push(vcpu, stack, size, vcpu->seg[v86_order[i]].selector))
                return false;
    if (inner || size == 8)
        if (!stack_push(vcpu, stack, size, vcpu->seg[SS].selector) || !stack_push(vcpu, stack, size, vcpu->gpr[RSP]))
            return false;
    return stack_push(vcpu, stack, size, pushed_flags(vcpu, d)) &&
           stack_push(vcpu, stack, size, vcpu->seg[CS].selector) && stack_push(vcpu, stack, size, d->return_rip) &&
           (!d->event.has_error || stack_push(vcpu, stack, size, d->event.error));
}

static void enter_handler(struct vcpu *vcpu, const struct descriptor *gate, const struct segment *cs, uint64_t rip, unsigned cpl)
{
    static const enum seg data[] = { ES, DS, FS, GS };

    if (vcpu_v86(vcpu))
        for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
            vcpu->seg[data[i]] = segment_null(0, 0);
    vcpu->seg[CS] = *cs;
    vcpu->rip = rip;
    vcpu->rflags &= ~(uint64_t)(RFLAGS_TF | RFLAGS_NT | RFLAGS_VM | RFLAGS_RF);
    if (!(descriptor_type(gate) & 1))
        vcpu->rflags &= ~(uint64_t)RFLAGS_IF;
    commit_privilege(vcpu, cpl);
}

static bool attempt_task_gate(struct vcpu *vcpu, const struct delivery *d, const struct descriptor *gate)
{
    return task_switch(vcpu, &(struct task_transfer){
        .tss_selector = gate_selector(gate), .source = TASK_GATE, .return_rip = d->return_rip, .rflags = pushed_flags(vcpu, d),
        .has_error = d->event.has_error, .error = d->event.error, .ext = d->ext,
    });
}

static bool attempt_protected(struct vcpu *vcpu, const struct delivery *d)
{
    struct descriptor gate, code;
    struct segment cs, ss;
    struct stack stack;
    unsigned cpl = vcpu->cpl;

    if (!read_gate(vcpu, d, &gate))
        return false;
    if (descriptor_type(&gate) == SYS_TASK_GATE)
        return attempt_task_gate(vcpu, d, &gate);
    if (!read_handler(vcpu, d, &gate, &code, &cpl))
        return false;
    bool inner = cpl != vcpu->cpl, gate32 = descriptor_type(&gate) & 8;
    unsigned size = vcpu_long_mode(vcpu) ? 8 : gate32 ? 4 : 2;
    uint64_t target = gate32 ? gate_offset(&gate) : gate_offset(&gate) & 0xFFFF;
    segment_from_descriptor(&cs, &code, (code.selector & ~SELECTOR_RPL) | cpl);
    if (!choose_stack(vcpu, d, &gate, cpl, &ss, &stack) || !push_frame(vcpu, d, &stack, size, inner) ||
        !check_code_offset(vcpu, &cs, target, d->ext) || !descriptor_set_accessed(vcpu, &code))
        return false;
    cs.attr |= SEG_ACCESSED;
    vcpu->seg[SS] = ss;
    if (inner)
        vcpu->gpr[RSP] = stack.flat64 ? stack.sp : stack.sp & 0xFFFFFFFF;
    else
        stack_commit(vcpu, &stack);
    enter_handler(vcpu, &gate, &cs, target, cpl);
    return true;
}

/* --- one attempt --- */

static bool attempt_v86(struct vcpu *vcpu, const struct delivery *d)
{
    if (d->event.kind != EVENT_SOFT_INT)
        return attempt_protected(vcpu, d);
    if (vcpu->cr4 & CR4_VME) {
        bool ok, redirect = redirected(vcpu, d->event.vector, &ok);
        if (!ok)
            return false;
        if (redirect)
            return attempt_redirected(vcpu, d);
    }
    if (vcpu_iopl(vcpu) < 3)
        return x86_raise_error(vcpu, VEC_GP, 0);
    return attempt_protected(vcpu, d);
}

static bool attempt_in_mode(struct vcpu *vcpu, struct delivery *d)
{
    if (vcpu->mode == MODE_REAL) {
        d->event.has_error = false;
        return attempt_real(vcpu, d);
    }
    return vcpu->mode == MODE_V86 ? attempt_v86(vcpu, d) : attempt_protected(vcpu, d);
}

/* What comes up on the way, fault or VM exit, remembers the event (SDM3 §28.2.4). */
static bool attempt(struct vcpu *vcpu, const struct event *event, uint64_t return_rip)
{
    struct delivery d = { .event = *event, .return_rip = return_rip };

    d.software = event->kind == EVENT_SOFT_INT ||
                 (event->kind == EVENT_TRAP && (event->vector == VEC_BP || event->vector == VEC_OF));
    d.ext = !d.software;
    vcpu->pending.kind = EVENT_NONE;
    vcpu->delivering = true;
    bool done = attempt_in_mode(vcpu, &d);
    vcpu->delivering = false;
    if (done)
        return true;
    vcpu->pending.vectoring = vmx_vectoring(vcpu, event);
    vcpu->pending.vectoring_error = event->has_error && vcpu_protected(vcpu) ? event->error : 0;
    vcpu->pending.length = event->length;
    return false;
}

/* SDM3 §18.2.3: only the breakpoint bits are cleared by the processor; GD opens for the handler (§18.2.4). */
static void set_debug_status(struct vcpu *vcpu, uint64_t dr6_bits)
{
    enum { DEBUGCTL_LBR = 1, DEBUGCTL_BTF = 2 };

    vcpu->dr6 = (vcpu->dr6 & ~0xFull) | dr6_bits;
    vcpu->dr7 &= ~(uint64_t)DR7_GD;
    vcpu->debugctl &= ~(uint64_t)(DEBUGCTL_LBR | DEBUGCTL_BTF);
}

bool x86_interrupt(struct vcpu *vcpu, uint8_t vector, uint8_t kind, uint64_t next_rip)
{
    struct event event = { .kind = kind, .vector = vector };

    if (vmx_event_exits(vcpu, &event) || !attempt(vcpu, &event, next_rip))
        return false;
    if (kind == EVENT_ICEBP) {
        /* A debug trap that MOV SS held back is the same #DB, not one more. */
        set_debug_status(vcpu, vcpu->pending_debug);
        vcpu->pending_debug = 0;
    }
    vcpu->shadow &= ~(SHADOW_STI | SHADOW_MOV_SS);
    return true;
}

/* --- faults while delivering: SDM3 §6.15 "Interrupt 8 - Double Fault Exception", table 6-5 --- */

enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum fault_class classify(const struct event *event)
{
    if (!is_exception(event))
        return BENIGN;
    switch (event->vector) {
    case VEC_DE:
    case VEC_TS:
    case VEC_NP:
    case VEC_SS:
    case VEC_GP:
        return CONTRIBUTORY;
    case VEC_PF:
        return PAGE_FAULT;
    case VEC_DF:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

static bool doubles(enum fault_class first, enum fault_class second)
{
    return (first == CONTRIBUTORY && second == CONTRIBUTORY) ||
           (first == PAGE_FAULT && (second == CONTRIBUTORY || second == PAGE_FAULT));
}

static void triple_fault(struct vcpu *vcpu)
{
    if (vmx_guest(vcpu)) {
        vmx_exit_triple_fault(vcpu);
        return;
    }
    trace(vcpu->log, cpu_state, "vcpu%u triple fault at %#lx", vcpu->index, vcpu->rip);
    vcpu->activity = ACTIVITY_SHUTDOWN;
    if (vcpu->system_event)
        vcpu->system_event(vcpu->system_owner, vcpu, SYSTEM_TRIPLE_FAULT);
}

/* What the event changes besides control flow, before its delivery starts. */
static void apply_payload(struct vcpu *vcpu, const struct event *event)
{
    if (!is_exception(event))
        return;
    if (event->kind == EVENT_FAULT)     /* of an instruction behind MOV SS: what that held back is lost */
        vcpu->pending_debug = 0;
    counter_add(&vcpu->counters, COUNTER_exceptions, 1);
    trace(vcpu->log, cpu_exception, "vcpu%u vector %u error %#x at %#lx payload %#lx", vcpu->index, event->vector,
          event->error, vcpu->rip, event->payload);
    if (event->injected)                /* SDM3 §27.6.1.1: CR2, DR6, DR7 and IA32_DEBUGCTL are the monitor's to set */
        return;
    if (event->vector == VEC_PF) {
        counter_add(&vcpu->counters, COUNTER_page_faults, 1);
        vcpu->cr2 = event->payload;
    } else if (event->vector == VEC_DB) {
        set_debug_status(vcpu, event->payload);
    }
}

void x86_deliver_event(struct vcpu *vcpu, const struct event *event)
{
    struct event present = *event;

    for (;;) {
        if (present.kind == EVENT_VM_EXIT || vmx_event_exits(vcpu, &present)) {
            vmx_exit(vcpu);
            return;
        }
        apply_payload(vcpu, &present);
        if (attempt(vcpu, &present, vcpu->rip + present.length))
            break;
        struct event met = vcpu->pending;
        enum fault_class first = classify(&present), second = classify(&met);
        if (met.kind == EVENT_VM_EXIT || vmx_event_exits(vcpu, &met)) {
            vmx_exit(vcpu);
            return;
        }
        vcpu->pending.kind = EVENT_NONE;
        if (first == DOUBLE_FAULT && second != BENIGN) {
            triple_fault(vcpu);
            return;
        }
        present = met;
        if (doubles(first, second))
            present = (struct event){ .kind = EVENT_FAULT, .vector = VEC_DF, .has_error = true };
    }
    if (event->kind == EVENT_NMI)
        vcpu->shadow |= SHADOW_NMI;
    vcpu->shadow &= ~(SHADOW_STI | SHADOW_MOV_SS);
    vcpu->activity = ACTIVITY_ACTIVE;
    if (vmx_guest(vcpu))
        vmx_stepped(vcpu);
}
