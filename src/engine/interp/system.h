/* What the handlers of system instructions share: how they end, their memory operands, and how VM exits describe these. */
#ifndef DOPPEL_INTERP_SYSTEM_H
#define DOPPEL_INTERP_SYSTEM_H

#include "engine/interp/address.h"
#include "vmx/vmx.h"

/*
 * SYSTEM_OP(name, counter) { ... return ok; }: rip is the instruction's, the block ends, rip moves on when done.
 * Whether it succeeds or faults, the instruction is counted: a monitor that traps would have been entered.
 */
#define SYSTEM_OP(name, counter)                                                           \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op);                       \
    struct block *name(struct vcpu *vcpu, const struct op *op)                             \
    {                                                                                      \
        op_at(vcpu, op);                                                                   \
        counter_add(&vcpu->counters, COUNTER_##counter, 1);                                \
        return leave_system(vcpu, op, vcpu_time_known(vcpu) && name##_rule(vcpu, op));     \
    }                                                                                      \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op)
/* The same for rules that set rip themselves. */
#define TRANSFER_OP(name, counter)                                                         \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op);                       \
    struct block *name(struct vcpu *vcpu, const struct op *op)                             \
    {                                                                                      \
        op_at(vcpu, op);                                                                   \
        counter_add(&vcpu->counters, COUNTER_##counter, 1);                                \
        return leave_transfer(vcpu, op, name##_rule(vcpu, op));                            \
    }                                                                                      \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op)

/* Memory operands, relative to the block's start, must be resolved with rip there: rip_back undoes op_at for that. */
static inline uint64_t memory_offset(struct vcpu *vcpu, const struct op *op)
{
    uint64_t rip = vcpu->rip;
    vcpu->rip = rip - op->where;
    uint64_t offset = op_offset(vcpu, op);
    vcpu->rip = rip;
    return offset;
}

static inline struct slow_value memory_linear(struct vcpu *vcpu, const struct op *op, unsigned size, bool write)
{
    struct slow_value out = { 0, 0 };
    out.ok = x86_linear(vcpu, op->seg, memory_offset(vcpu, op), size, write, &out.value);
    return out;
}

static inline struct slow_value operand_read(struct vcpu *vcpu, const struct op *op, uint16_t reg, unsigned size)
{
    if (!(op->flags & OP_MEMORY))
        return (struct slow_value){ reg_get(vcpu, reg, size), 1 };
    struct slow_value linear = memory_linear(vcpu, op, size, false);
    return linear.ok ? load_slow(vcpu, linear.value, size, op->seg) : linear;
}

static inline uint64_t after(const struct vcpu *vcpu, const struct op *op)
{
    return rip_wrap(vcpu, vcpu->rip + op->length);
}

/* --- for VM exits: SDM3 §28.2.5 "Information for VM Exits Due to Instruction Execution", tables 28-9 to 28-16 --- */

enum { INFO_REGISTER = 1 << 10 };       /* the operand is a register */

static inline unsigned gpr_number(uint16_t offset) { return (offset - offsetof(struct vcpu, gpr)) / 8; }
static inline bool is_gpr(uint16_t offset) { return offset <= GPR_OFFSET(R15); }

/* Scale, address size, segment, index and base of the memory operand. */
static inline uint32_t memory_info(const struct op *op)
{
    uint32_t index = is_gpr(op->index) ? gpr_number(op->index) << 18 : 1u << 22;
    uint32_t base = is_gpr(op->base) ? gpr_number(op->base) << 23 : 1u << 27;
    return op->scale | (op->address_size / 4u) << 7 | (uint32_t)op->seg << 15 | index | base;
}

/* An operand that may be a register: `reg` then. */
static inline uint32_t operand_info(const struct op *op, uint16_t reg)
{
    return op->flags & OP_MEMORY ? memory_info(op) : INFO_REGISTER | gpr_number(reg) << 3;
}

/* The exit qualification of an instruction with a memory operand: its displacement, with RIP where that is the base. */
static inline uint64_t displacement(struct vcpu *vcpu, const struct op *op)
{
    if (!(op->flags & OP_MEMORY))
        return 0;
    if (op->base == offsetof(struct vcpu, rip))
        return memory_offset(vcpu, op);
    return op->flags & OP_MOFFS ? op->imm : (uint64_t)(int64_t)op->disp;
}

#endif
