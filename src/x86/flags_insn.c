/*
 * PUSHF, POPF, CLI and STI: the instructions whose right to RFLAGS.IF depends on IOPL, and on VME and PVI, which give code
 * without that right a virtual IF (SDM3 §21.3 "Interrupt and Exception Handling in Virtual-8086 Mode", §21.4 "Protected-Mode
 * Virtual Interrupts"; SDM2 table "Decision Table for CLI/STI Results").
 */
#include "x86/x86.h"

static bool has_iopl(const struct vcpu *vcpu)
{
    return vcpu->mode == MODE_V86 ? vcpu_iopl(vcpu) == 3 : vcpu->cpl <= vcpu_iopl(vcpu);
}

/* Without the right to IF: does this code have a virtual one? */
static bool has_virtual_if(const struct vcpu *vcpu)
{
    if (vcpu->mode == MODE_V86)
        return vcpu->cr4 & CR4_VME;
    return vcpu->cpl == 3 && (vcpu->cr4 & CR4_PVI);
}

bool x86_pushf_value(struct vcpu *vcpu, unsigned operand_size, uint64_t *value)
{
    uint64_t image = vcpu->rflags & ~(uint64_t)(RFLAGS_VM | RFLAGS_RF);

    if (vcpu->mode == MODE_V86 && !has_iopl(vcpu)) {
        if (!(vcpu->cr4 & CR4_VME) || operand_size != 2)
            return x86_raise_error(vcpu, VEC_GP, 0);
        image = (image & ~(uint64_t)RFLAGS_IF) | RFLAGS_IOPL | (image & RFLAGS_VIF ? RFLAGS_IF : 0);
    }
    *value = image & size_mask(operand_size);
    return true;
}

enum { POPF_ANY = RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT, POPF_WIDE = RFLAGS_AC | RFLAGS_ID };

bool x86_popf(struct vcpu *vcpu, unsigned operand_size, uint64_t value)
{
    uint64_t mask = POPF_ANY | (operand_size > 2 ? POPF_WIDE : 0);
    uint64_t kept = vcpu->rflags;

    if (vcpu->mode == MODE_V86 && !has_iopl(vcpu)) {
        if (!(vcpu->cr4 & CR4_VME) || operand_size != 2 || (value & RFLAGS_TF) ||
            ((value & RFLAGS_IF) && (vcpu->rflags & RFLAGS_VIP)))
            return x86_raise_error(vcpu, VEC_GP, 0);
        kept = (kept & ~(uint64_t)RFLAGS_VIF) | (value & RFLAGS_IF ? RFLAGS_VIF : 0);
    } else {
        if (has_iopl(vcpu))
            mask |= RFLAGS_IF;
        if (vcpu->cpl == 0)
            mask |= RFLAGS_IOPL;
    }
    if (operand_size > 2)
        kept &= ~(uint64_t)RFLAGS_RF;
    x86_set_rflags(vcpu, (kept & ~mask) | (value & mask));
    return true;
}

bool x86_cli(struct vcpu *vcpu)
{
    if (has_iopl(vcpu))
        vcpu->rflags &= ~(uint64_t)RFLAGS_IF;
    else if (has_virtual_if(vcpu))
        vcpu->rflags &= ~(uint64_t)RFLAGS_VIF;
    else
        return x86_raise_error(vcpu, VEC_GP, 0);
    return true;
}

bool x86_sti(struct vcpu *vcpu)
{
    if (has_iopl(vcpu)) {
        if (!(vcpu->rflags & RFLAGS_IF))
            vcpu->shadow |= SHADOW_STI;
        x86_set_rflags(vcpu, vcpu->rflags | RFLAGS_IF);
        return true;
    }
    if (!has_virtual_if(vcpu) || (vcpu->rflags & RFLAGS_VIP))
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->rflags |= RFLAGS_VIF;
    return true;
}
