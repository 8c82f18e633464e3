/* IRET in every mode (SDM2 IRET/IRETD/IRETQ). */
#include "vmx/vmx.h"
#include "x86/descriptor.h"

/* What IRET and POPF replace at any privilege, by the width of the image. */
enum {
    FLAGS_ANY = RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT,
    FLAGS_WIDE = RFLAGS_RF | RFLAGS_AC | RFLAGS_ID,
};

static uint64_t merge_flags(const struct vcpu *vcpu, unsigned operand_size, uint64_t image)
{
    uint64_t mask = FLAGS_ANY;

    if (operand_size > 2)
        mask |= FLAGS_WIDE;
    if (vcpu->cpl <= vcpu_iopl(vcpu))
        mask |= RFLAGS_IF;
    if (vcpu->cpl == 0) {
        mask |= RFLAGS_IOPL;
        if (operand_size > 2)
            mask |= RFLAGS_VIF | RFLAGS_VIP;
    }
    return (vcpu->rflags & ~mask) | (image & mask) | RFLAGS_FIXED;
}

static void commit_return(struct vcpu *vcpu, const struct segment *cs, uint64_t rip, uint64_t rflags, unsigned cpl)
{
    vcpu->seg[CS] = *cs;
    vcpu->rip = rip;
    vcpu->rflags = rflags | RFLAGS_FIXED;
    commit_privilege(vcpu, cpl);
}

static bool pop_frame(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t *rip, uint64_t *cs, uint64_t *flags)
{
    return stack_pop(vcpu, stack, size, rip) && stack_pop(vcpu, stack, size, cs) && stack_pop(vcpu, stack, size, flags);
}

static bool iret_real(struct vcpu *vcpu, unsigned operand_size)
{
    enum { WIDE = FLAGS_ANY | FLAGS_WIDE | RFLAGS_IF | RFLAGS_IOPL };
    struct stack stack = stack_present(vcpu, 0);
    uint64_t ip, selector, flags, mask = operand_size > 2 ? WIDE : WIDE & 0xFFFF;

    if (!pop_frame(vcpu, &stack, operand_size, &ip, &selector, &flags))
        return false;
    if (ip > vcpu->seg[CS].limit)
        return x86_raise_error(vcpu, VEC_GP, 0);
    stack_commit(vcpu, &stack);
    segment_load_real_code(&vcpu->seg[CS], selector);
    commit_return(vcpu, &vcpu->seg[CS], ip, (vcpu->rflags & ~mask) | (flags & mask), 0);
    return true;
}

/* SDM3 §21.2.7, §21.3.3: IOPL 3 pops all; below that only the 16-bit form under VME, with IF in VIF's place. */
static bool iret_v86(struct vcpu *vcpu, unsigned operand_size)
{
    bool virtual_if = vcpu_iopl(vcpu) < 3;
    struct stack stack = stack_present(vcpu, 0);
    uint64_t ip, selector, flags, mask = FLAGS_ANY | RFLAGS_IF;

    if (virtual_if && (!(vcpu->cr4 & CR4_VME) || operand_size != 2))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!pop_frame(vcpu, &stack, operand_size, &ip, &selector, &flags))
        return false;
    if (ip > vcpu->seg[CS].limit)
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (virtual_if) {
        if ((flags & RFLAGS_TF) || ((flags & RFLAGS_IF) && (vcpu->rflags & RFLAGS_VIP)))
            return x86_raise_error(vcpu, VEC_GP, 0);
        mask = FLAGS_ANY | RFLAGS_VIF;
        flags = (flags & ~(uint64_t)RFLAGS_VIF) | (flags & RFLAGS_IF ? RFLAGS_VIF : 0);
    } else if (operand_size > 2) {
        mask |= FLAGS_WIDE;
    }
    stack_commit(vcpu, &stack);
    segment_load_v86(&vcpu->seg[CS], selector);
    commit_return(vcpu, &vcpu->seg[CS], ip, (vcpu->rflags & ~mask) | (flags & mask), 3);
    return true;
}

/* From CPL 0 into a V86 task: the frame goes on with ESP, SS, ES, DS, FS, GS. */
static bool iret_to_v86(struct vcpu *vcpu, struct stack *stack, uint64_t ip, uint16_t cs, uint64_t flags)
{
    enum { REST = 6 };
    static const enum seg order[REST] = { SEG_COUNT, SS, ES, DS, FS, GS };
    uint64_t value[REST];

    for (unsigned i = 0; i < REST; i++)
        if (!stack_pop(vcpu, stack, 4, &value[i]))
            return false;
    if ((ip & 0xFFFFFFFF) > 0xFFFF)
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->gpr[RSP] = value[0];
    for (unsigned i = 1; i < REST; i++)
        segment_load_v86(&vcpu->seg[order[i]], value[i]);
    segment_load_v86(&vcpu->seg[CS], cs);
    uint64_t mask = FLAGS_ANY | FLAGS_WIDE | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VM | RFLAGS_VIF | RFLAGS_VIP;
    commit_return(vcpu, &vcpu->seg[CS], ip & 0xFFFF, flags & mask, 3);
    return true;
}

/* NT set in legacy protected mode: back to the task in the link field (SDM3 §8.4 "Task Linking"). */
static bool iret_task(struct vcpu *vcpu, uint64_t next_rip)
{
    uint64_t link;

    if (!mmu_load(vcpu, vcpu->tr.base, 2, mmu_implicit(vcpu), &link))
        return false;
    return x86_task_switch(vcpu, link, TASK_IRET, next_rip, false, 0);
}

static bool iret_protected(struct vcpu *vcpu, unsigned operand_size)
{
    struct stack stack = stack_present(vcpu, 0);
    uint64_t rip, selector, flags, sp, ss_selector;
    struct descriptor d;
    struct segment cs, ss;

    if (!pop_frame(vcpu, &stack, operand_size, &rip, &selector, &flags))
        return false;
    if (operand_size == 4 && (flags & RFLAGS_VM) && vcpu->cpl == 0 && !vcpu_long_mode(vcpu))
        return iret_to_v86(vcpu, &stack, rip, selector, flags);
    if (!check_return_code(vcpu, selector, &d))
        return false;
    unsigned cpl = selector & SELECTOR_RPL;
    bool outer = cpl != vcpu->cpl || vcpu->mode == MODE_LONG64;
    segment_from_descriptor(&cs, &d, selector);
    bool code64 = vcpu_long_mode(vcpu) && (cs.attr & SEG_L);
    if (outer && (!stack_pop(vcpu, &stack, operand_size, &sp) || !stack_pop(vcpu, &stack, operand_size, &ss_selector) ||
                  !check_return_stack(vcpu, ss_selector, cpl, code64, &ss)))
        return false;
    if (!check_code_offset(vcpu, &cs, rip, 0) || !descriptor_set_accessed(vcpu, &d))
        return false;
    cs.attr |= SEG_ACCESSED;
    if (outer) {
        stack = stack_other(vcpu, &ss, sp, cpl, code64, 0);
        vcpu->seg[SS] = ss;
    }
    stack_commit(vcpu, &stack);
    bool outwards = cpl > vcpu->cpl;
    commit_return(vcpu, &cs, rip, merge_flags(vcpu, operand_size, flags), cpl);
    if (outwards)
        drop_inner_data_segments(vcpu, cpl);
    return true;
}

bool x86_iret(struct vcpu *vcpu, unsigned operand_size, uint64_t next_rip)
{
    bool ok, unblocks = vcpu->shadow & SHADOW_NMI;

    /* IRET ends NMI blocking even where it then faults (SDM3 §6.7.1 "Handling Multiple NMIs"). */
    if (!vmx_pin(vcpu, PIN_NMI_EXITING) || vmx_pin(vcpu, PIN_VIRTUAL_NMIS))
        vcpu->shadow &= ~SHADOW_NMI;
    if (vcpu->mode == MODE_REAL)
        ok = iret_real(vcpu, operand_size);
    else if (vcpu->mode == MODE_V86)
        ok = iret_v86(vcpu, operand_size);
    else if (vcpu->rflags & RFLAGS_NT)
        ok = vcpu_long_mode(vcpu) ? x86_raise_error(vcpu, VEC_GP, 0) : iret_task(vcpu, next_rip);
    else
        ok = iret_protected(vcpu, operand_size);
    if (!ok)
        vcpu->pending.unblocked_nmi = unblocks;
    x86_interrupts_unblocked(vcpu);
    return ok;
}
