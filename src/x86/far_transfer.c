/*
 * Far JMP, CALL and RET (SDM2 JMP, CALL, RET; SDM3 §5.8 "Privilege Level Checking When Transferring Program Control Between
 * Code Segments"). Every check is made, and every stack byte written, before a register changes.
 */
#include "x86/descriptor.h"

static uint64_t truncate_ip(uint64_t ip, unsigned operand_size)
{
    return ip & size_mask(operand_size);
}

static void load_real_cs(struct vcpu *vcpu, uint16_t selector)
{
    if (vcpu_v86(vcpu))
        segment_load_v86(&vcpu->seg[CS], selector);
    else
        segment_load_real_code(&vcpu->seg[CS], selector);
    x86_update_mode(vcpu);
}

/* --- code segment checks --- */

/* In IA-32e mode a descriptor with both L and D set is reserved. */
static bool bad_code_bits(const struct vcpu *vcpu, const struct descriptor *d)
{
    return vcpu_long_mode(vcpu) && descriptor_is_code64(d) && descriptor_is_code32(d);
}

/* SDM3 §5.8.1.1, §5.8.1.2: direct transfers stay at the present CPL. */
static bool check_direct_target(struct vcpu *vcpu, const struct descriptor *d)
{
    uint32_t error = selector_error(d->selector, 0);
    unsigned dpl = descriptor_dpl(d);
    bool allowed = descriptor_is_conforming(d) ? dpl <= vcpu->cpl
                                               : dpl == vcpu->cpl && (d->selector & SELECTOR_RPL) <= vcpu->cpl;

    if (!allowed || bad_code_bits(vcpu, d))
        return x86_raise_error(vcpu, VEC_GP, error);
    return descriptor_present(d) || x86_raise_error(vcpu, VEC_NP, error);
}

static bool prepare_cs(struct vcpu *vcpu, struct descriptor *d, unsigned rpl, struct segment *cs)
{
    if (!descriptor_set_accessed(vcpu, d))
        return false;
    segment_from_descriptor(cs, d, (d->selector & ~SELECTOR_RPL) | rpl);
    return true;
}

static void enter_code(struct vcpu *vcpu, const struct segment *cs, uint64_t rip, unsigned cpl)
{
    vcpu->seg[CS] = *cs;
    vcpu->rip = rip;
    commit_privilege(vcpu, cpl);
}

/* --- gates --- */

/* A call gate's own checks, then its target's descriptor (SDM3 §5.8.4 "Accessing a Code Segment Through a Call Gate"). */
static bool read_call_gate(struct vcpu *vcpu, struct descriptor *gate, bool jump, struct descriptor *code)
{
    uint32_t error = selector_error(gate->selector, 0);
    bool long_mode = vcpu_long_mode(vcpu);

    if (descriptor_dpl(gate) < vcpu->cpl || descriptor_dpl(gate) < (gate->selector & SELECTOR_RPL))
        return x86_raise_error(vcpu, VEC_GP, error);
    if (long_mode && !descriptor_read_high(vcpu, gate, VEC_GP, 0))
        return false;
    if (!descriptor_present(gate))
        return x86_raise_error(vcpu, VEC_NP, error);
    uint16_t selector = gate_selector(gate);
    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, code))
        return false;
    unsigned dpl = descriptor_dpl(code);
    bool allowed = descriptor_is_code(code) &&
                   (jump && !descriptor_is_conforming(code) ? dpl == vcpu->cpl : dpl <= vcpu->cpl);
    if (!allowed || (long_mode && (!descriptor_is_code64(code) || descriptor_is_code32(code))))
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    return descriptor_present(code) || x86_raise_error(vcpu, VEC_NP, selector_error(selector, 0));
}

static uint64_t call_gate_target(const struct descriptor *gate)
{
    return descriptor_type(gate) == SYS_CALL16 ? gate_offset(gate) & 0xFFFF : gate_offset(gate);
}

/* A task gate or TSS named by a far JMP or CALL (SDM3 §8.3, checks 1 and 2). */
static bool transfer_to_task(struct vcpu *vcpu, const struct descriptor *d, enum task_source source, uint64_t next_rip)
{
    uint32_t error = selector_error(d->selector, 0);

    if (descriptor_dpl(d) < vcpu->cpl || descriptor_dpl(d) < (d->selector & SELECTOR_RPL))
        return x86_raise_error(vcpu, VEC_GP, error);
    if (descriptor_type(d) != SYS_TASK_GATE)
        return x86_task_switch(vcpu, d->selector, source, next_rip, false, 0);
    if (!descriptor_present(d))
        return x86_raise_error(vcpu, VEC_NP, error);
    return x86_task_switch(vcpu, gate_selector(d), source, next_rip, false, 0);
}

static bool is_call_gate(const struct vcpu *vcpu, const struct descriptor *d)
{
    return descriptor_is_system(d) &&
           (descriptor_type(d) == SYS_CALL32 || (descriptor_type(d) == SYS_CALL16 && !vcpu_long_mode(vcpu)));
}

static bool is_task(const struct vcpu *vcpu, const struct descriptor *d)
{
    unsigned tasks = 1 << SYS_TSS16 | 1 << SYS_TSS16_BUSY | 1 << SYS_TASK_GATE | 1 << SYS_TSS32 | 1 << SYS_TSS32_BUSY;
    return descriptor_is_system(d) && !vcpu_long_mode(vcpu) && (tasks >> descriptor_type(d) & 1);
}

/* --- JMP --- */

static bool jump_call_gate(struct vcpu *vcpu, struct descriptor *gate)
{
    struct descriptor code;
    struct segment cs;

    if (!read_call_gate(vcpu, gate, true, &code))
        return false;
    segment_from_descriptor(&cs, &code, code.selector);
    uint64_t target = call_gate_target(gate);
    if (!check_code_offset(vcpu, &cs, target, 0) || !prepare_cs(vcpu, &code, vcpu->cpl, &cs))
        return false;
    enter_code(vcpu, &cs, target, vcpu->cpl);
    return true;
}

bool x86_far_jump(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip)
{
    uint64_t target = truncate_ip(offset, operand_size);
    struct descriptor d;
    struct segment cs;

    if (vcpu->mode <= MODE_V86) {
        if (target > vcpu->seg[CS].limit)
            return x86_raise_error(vcpu, VEC_GP, 0);
        load_real_cs(vcpu, selector);
        vcpu->rip = target;
        return true;
    }
    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, &d))
        return false;
    if (is_call_gate(vcpu, &d))
        return jump_call_gate(vcpu, &d);
    if (is_task(vcpu, &d))
        return transfer_to_task(vcpu, &d, TASK_JMP, next_rip);
    if (!descriptor_is_code(&d))
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    if (!check_direct_target(vcpu, &d))
        return false;
    segment_from_descriptor(&cs, &d, selector);
    if (!check_code_offset(vcpu, &cs, target, 0) || !prepare_cs(vcpu, &d, vcpu->cpl, &cs))
        return false;
    enter_code(vcpu, &cs, target, vcpu->cpl);
    return true;
}

/* --- CALL --- */

static bool push_return(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t next_rip)
{
    return stack_push(vcpu, stack, size, vcpu->seg[CS].selector) && stack_push(vcpu, stack, size, next_rip);
}

/* Copies the gate's parameters from the caller's stack, the last one first (SDM3 §5.8.5). */
static bool copy_parameters(struct vcpu *vcpu, struct stack *to, unsigned size, unsigned count)
{
    struct stack from = stack_present(vcpu, 0);
    uint64_t value[31];

    for (unsigned i = 0; i < count; i++)
        if (!stack_pop(vcpu, &from, size, &value[i]))
            return false;
    while (count)
        if (!stack_push(vcpu, to, size, value[--count]))
            return false;
    return true;
}

static bool call_inner(struct vcpu *vcpu, const struct descriptor *gate, struct descriptor *code, uint64_t next_rip)
{
    unsigned cpl = descriptor_dpl(code), type = descriptor_type(gate);
    bool long_mode = vcpu_long_mode(vcpu);
    unsigned size = long_mode ? 8 : type == SYS_CALL16 ? 2 : 4;
    uint64_t sp, target = call_gate_target(gate);
    uint16_t ss_selector;
    struct segment ss, cs;

    if (!tss_inner_stack(vcpu, cpl, 0, &ss_selector, &sp) || !load_inner_ss(vcpu, ss_selector, cpl, 0, &ss))
        return false;
    segment_from_descriptor(&cs, code, code->selector);
    if (!check_code_offset(vcpu, &cs, target, 0))
        return false;
    struct stack stack = stack_other(vcpu, &ss, sp, cpl, long_mode, selector_error(ss_selector, 0));
    if (!stack_push(vcpu, &stack, size, vcpu->seg[SS].selector) || !stack_push(vcpu, &stack, size, vcpu->gpr[RSP]))
        return false;
    if (!long_mode && !copy_parameters(vcpu, &stack, size, bits(gate->low, 36, 32)))
        return false;
    if (!push_return(vcpu, &stack, size, next_rip) || !prepare_cs(vcpu, code, cpl, &cs))
        return false;
    vcpu->seg[SS] = ss;
    vcpu->gpr[RSP] = stack.sp & (long_mode ? ~0ull : 0xFFFFFFFF);
    enter_code(vcpu, &cs, target, cpl);
    return true;
}

static bool call_gate(struct vcpu *vcpu, struct descriptor *gate, uint64_t next_rip)
{
    struct descriptor code;
    struct segment cs;

    if (!read_call_gate(vcpu, gate, false, &code))
        return false;
    if (!descriptor_is_conforming(&code) && descriptor_dpl(&code) < vcpu->cpl)
        return call_inner(vcpu, gate, &code, next_rip);

    bool long_mode = vcpu_long_mode(vcpu);
    unsigned size = long_mode ? 8 : descriptor_type(gate) == SYS_CALL16 ? 2 : 4;
    uint64_t target = call_gate_target(gate);
    struct stack stack = stack_present(vcpu, 0);
    if (long_mode)
        stack = stack_other(vcpu, &vcpu->seg[SS], vcpu->gpr[RSP], vcpu->cpl, true, 0);
    segment_from_descriptor(&cs, &code, code.selector);
    if (!check_code_offset(vcpu, &cs, target, 0) || !push_return(vcpu, &stack, size, next_rip) ||
        !prepare_cs(vcpu, &code, vcpu->cpl, &cs))
        return false;
    stack_commit(vcpu, &stack);
    enter_code(vcpu, &cs, target, vcpu->cpl);
    return true;
}

bool x86_far_call(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip)
{
    uint64_t target = truncate_ip(offset, operand_size);
    struct stack stack = stack_present(vcpu, 0);
    struct descriptor d;
    struct segment cs;

    if (vcpu->mode <= MODE_V86) {
        if (!push_return(vcpu, &stack, operand_size, next_rip))
            return false;
        if (target > vcpu->seg[CS].limit)
            return x86_raise_error(vcpu, VEC_GP, 0);
        stack_commit(vcpu, &stack);
        load_real_cs(vcpu, selector);
        vcpu->rip = target;
        return true;
    }
    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, &d))
        return false;
    if (is_call_gate(vcpu, &d))
        return call_gate(vcpu, &d, next_rip);
    if (is_task(vcpu, &d))
        return transfer_to_task(vcpu, &d, TASK_CALL, next_rip);
    if (!descriptor_is_code(&d))
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    if (!check_direct_target(vcpu, &d))
        return false;
    segment_from_descriptor(&cs, &d, selector);
    if (!push_return(vcpu, &stack, operand_size, next_rip) || !check_code_offset(vcpu, &cs, target, 0) ||
        !prepare_cs(vcpu, &d, vcpu->cpl, &cs))
        return false;
    stack_commit(vcpu, &stack);
    enter_code(vcpu, &cs, target, vcpu->cpl);
    return true;
}

/* --- RET --- */

bool check_return_code(struct vcpu *vcpu, uint16_t selector, struct descriptor *d)
{
    uint32_t error = selector_error(selector, 0);
    unsigned rpl = selector & SELECTOR_RPL;

    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, d))
        return false;
    unsigned dpl = descriptor_dpl(d);
    if (!descriptor_is_code(d) || rpl < vcpu->cpl || (descriptor_is_conforming(d) ? dpl > rpl : dpl != rpl) ||
        bad_code_bits(vcpu, d))
        return x86_raise_error(vcpu, VEC_GP, error);
    return descriptor_present(d) || x86_raise_error(vcpu, VEC_NP, error);
}

bool check_return_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, bool code64, struct segment *ss)
{
    uint32_t error = selector_error(selector, 0);
    struct descriptor d;

    if (selector_is_null(selector)) {
        if (!code64 || cpl == 3 || (selector & SELECTOR_RPL) != cpl)
            return x86_raise_error(vcpu, VEC_GP, 0);
        *ss = segment_null(selector, cpl);
        return true;
    }
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, &d))
        return false;
    if ((selector & SELECTOR_RPL) != cpl || !descriptor_is_writable_data(&d) || descriptor_dpl(&d) != cpl)
        return x86_raise_error(vcpu, VEC_GP, error);
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_SS, error);
    if (!descriptor_set_accessed(vcpu, &d))
        return false;
    segment_from_descriptor(ss, &d, selector);
    return true;
}

static bool return_real(struct vcpu *vcpu, struct stack *stack, unsigned operand_size, uint16_t pop_bytes)
{
    uint64_t ip, selector;

    if (!stack_pop(vcpu, stack, operand_size, &ip) || !stack_pop(vcpu, stack, operand_size, &selector))
        return false;
    if (ip > vcpu->seg[CS].limit)
        return x86_raise_error(vcpu, VEC_GP, 0);
    stack->sp += pop_bytes;
    stack_commit(vcpu, stack);
    load_real_cs(vcpu, selector);
    vcpu->rip = ip;
    return true;
}

bool x86_far_return(struct vcpu *vcpu, unsigned operand_size, uint16_t pop_bytes)
{
    struct stack stack = stack_present(vcpu, 0);
    uint64_t rip, selector, sp, ss_selector;
    struct descriptor d;
    struct segment cs, ss;

    if (vcpu->mode <= MODE_V86)
        return return_real(vcpu, &stack, operand_size, pop_bytes);
    if (!stack_pop(vcpu, &stack, operand_size, &rip) || !stack_pop(vcpu, &stack, operand_size, &selector) ||
        !check_return_code(vcpu, selector, &d))
        return false;
    unsigned cpl = selector & SELECTOR_RPL;
    segment_from_descriptor(&cs, &d, selector);
    if (cpl == vcpu->cpl) {
        if (!check_code_offset(vcpu, &cs, rip, 0) || !prepare_cs(vcpu, &d, cpl, &cs))
            return false;
        stack.sp += pop_bytes;
        stack_commit(vcpu, &stack);
        enter_code(vcpu, &cs, rip, cpl);
        return true;
    }
    bool code64 = vcpu_long_mode(vcpu) && (cs.attr & SEG_L);
    stack.sp = (stack.sp & ~stack.mask) | ((stack.sp + pop_bytes) & stack.mask);
    if (!stack_pop(vcpu, &stack, operand_size, &sp) || !stack_pop(vcpu, &stack, operand_size, &ss_selector) ||
        !check_return_stack(vcpu, ss_selector, cpl, code64, &ss) || !check_code_offset(vcpu, &cs, rip, 0) ||
        !prepare_cs(vcpu, &d, cpl, &cs))
        return false;
    struct stack outer = stack_other(vcpu, &ss, sp, cpl, code64, 0);
    outer.sp += pop_bytes;
    vcpu->seg[SS] = ss;
    stack_commit(vcpu, &outer);
    enter_code(vcpu, &cs, rip, cpl);
    drop_inner_data_segments(vcpu, cpl);
    return true;
}
