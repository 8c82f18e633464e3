/* Instructions that only touch flags. */
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

struct block *op_clc(struct vcpu *vcpu, const struct op *op) { vcpu->rflags &= ~(uint64_t)RFLAGS_CF; NEXT; }
struct block *op_stc(struct vcpu *vcpu, const struct op *op) { vcpu->rflags |= RFLAGS_CF; NEXT; }
struct block *op_cmc(struct vcpu *vcpu, const struct op *op) { vcpu->rflags ^= RFLAGS_CF; NEXT; }
struct block *op_cld(struct vcpu *vcpu, const struct op *op) { vcpu->rflags &= ~(uint64_t)RFLAGS_DF; NEXT; }
struct block *op_std(struct vcpu *vcpu, const struct op *op) { vcpu->rflags |= RFLAGS_DF; NEXT; }

struct block *op_lahf(struct vcpu *vcpu, const struct op *op)
{
    set_reg8(vcpu, GPR_OFFSET(RAX) + 1, (uint8_t)vcpu->rflags);
    NEXT;
}

struct block *op_sahf(struct vcpu *vcpu, const struct op *op)
{
    uint64_t mask = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF;
    vcpu->rflags = (vcpu->rflags & ~mask) | (reg8(vcpu, GPR_OFFSET(RAX) + 1) & mask);
    NEXT;
}

struct block *op_salc(struct vcpu *vcpu, const struct op *op)
{
    set_reg8(vcpu, GPR_OFFSET(RAX), vcpu->rflags & RFLAGS_CF ? 0xFF : 0);
    NEXT;
}

OP_BODY(op_cli)
{
    counter_add(&vcpu->counters, COUNTER_trap_cli, 1);
    return x86_cli(vcpu);
}

struct block *op_sti(struct vcpu *vcpu, const struct op *op)
{
    op_at(vcpu, op);
    counter_add(&vcpu->counters, COUNTER_trap_sti, 1);
    return leave_system(vcpu, op, x86_sti(vcpu));
}

/* CLAC and STAC: #UD outside ring 0 or without SMAP (SDM2 CLAC). The MMU's table changes, but nothing that code was decoded for. */
static bool set_ac(struct vcpu *vcpu, uint64_t ac)
{
    if (vcpu->cpl || !x86_has(vcpu, FEATURE_SMAP))
        return x86_raise(vcpu, VEC_UD);
    x86_set_rflags(vcpu, (vcpu->rflags & ~(uint64_t)RFLAGS_AC) | ac);
    return true;
}

OP_BODY(op_clac) { return set_ac(vcpu, 0); }
OP_BODY(op_stac) { return set_ac(vcpu, RFLAGS_AC); }
