/*
 * AAA AAS AAM AAD DAA DAS: gone from 64-bit mode, so the host cannot run them and their flags are written out here
 * (SDM2, each instruction's "Operation"). Flags that the manual leaves undefined follow Intel processors: AAA and AAS
 * give SF, ZF, PF of AL and OF clear; DAA and DAS leave OF clear; AAM clears CF, AF and OF.
 */
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

static uint64_t sign_zero_parity(uint8_t al)
{
    return (al & 0x80 ? RFLAGS_SF : 0) | (al ? 0 : RFLAGS_ZF) | (__builtin_parity(al) ? 0 : RFLAGS_PF);
}

static void finish(struct vcpu *vcpu, uint8_t al, bool carry, bool adjust)
{
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_STATUS) | sign_zero_parity(al) | (carry ? RFLAGS_CF : 0) |
                   (adjust ? RFLAGS_AF : 0);
}

static bool low_digit_adjusts(const struct vcpu *vcpu, uint8_t al)
{
    return (al & 15) > 9 || (vcpu->rflags & RFLAGS_AF);
}

OP_BODY(op_aaa)
{
    uint16_t ax = (uint16_t)vcpu->gpr[RAX];
    bool adjust = low_digit_adjusts(vcpu, (uint8_t)ax);
    if (adjust)
        ax = (uint16_t)(ax + 0x106);
    ax &= 0xFF0F;
    set_reg16(vcpu, GPR_OFFSET(RAX), ax);
    finish(vcpu, (uint8_t)ax, adjust, adjust);
    return true;
}

OP_BODY(op_aas)
{
    uint16_t ax = (uint16_t)vcpu->gpr[RAX];
    bool adjust = low_digit_adjusts(vcpu, (uint8_t)ax);
    if (adjust)
        ax = (uint16_t)(ax - 0x106);
    ax &= 0xFF0F;
    set_reg16(vcpu, GPR_OFFSET(RAX), ax);
    finish(vcpu, (uint8_t)ax, adjust, adjust);
    return true;
}

OP_BODY(op_daa)
{
    uint8_t old = (uint8_t)vcpu->gpr[RAX], al = old;
    bool carry = vcpu->rflags & RFLAGS_CF, adjust = low_digit_adjusts(vcpu, al);
    if (adjust)
        al = (uint8_t)(al + 6);
    carry = carry || old > 0x99;
    if (carry)
        al = (uint8_t)(al + 0x60);
    set_reg8(vcpu, GPR_OFFSET(RAX), al);
    finish(vcpu, al, carry, adjust);
    return true;
}

OP_BODY(op_das)
{
    uint8_t old = (uint8_t)vcpu->gpr[RAX], al = old;
    bool high = (vcpu->rflags & RFLAGS_CF) || old > 0x99, adjust = low_digit_adjusts(vcpu, al), borrow = false;
    if (adjust) {
        borrow = al < 6;
        al = (uint8_t)(al - 6);
    }
    if (high)
        al = (uint8_t)(al - 0x60);
    set_reg8(vcpu, GPR_OFFSET(RAX), al);
    finish(vcpu, al, high || borrow, adjust);
    return true;
}

OP_BODY(op_aam)
{
    uint8_t base = (uint8_t)op->imm, al = (uint8_t)vcpu->gpr[RAX];
    if (!base)
        return x86_raise(vcpu, VEC_DE);
    set_reg16(vcpu, GPR_OFFSET(RAX), (uint16_t)((al / base) << 8 | al % base));
    finish(vcpu, al % base, false, false);
    return true;
}

/* The flags are those of the 8-bit addition. */
OP_BODY(op_aad)
{
    uint8_t al = (uint8_t)vcpu->gpr[RAX], more = (uint8_t)((uint8_t)(vcpu->gpr[RAX] >> 8) * (uint8_t)op->imm);
    uint32_t packed;
    asm("addb %[more], %[al]\n\t" FLAGS_SAVE : [al] "+r"(al), "=&a"(packed) : [more] "r"(more) : "cc");
    set_reg16(vcpu, GPR_OFFSET(RAX), al);
    flags_set(vcpu, packed);
    return true;
}
