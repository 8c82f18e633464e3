/* PUSH and POP in all forms, ENTER, LEAVE, PUSHA, POPA, PUSHF, POPF. */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"

/* --- 64-bit mode --- */

static struct block *push_reg64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t rsp = vcpu->gpr[RSP] - 8;
    if (!store_at64(vcpu, rsp, SS, reg64(vcpu, op->dst)))
        return leave_fault(vcpu, op);
    vcpu->gpr[RSP] = rsp;
    NEXT;
}

static struct block *push_imm64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t rsp = vcpu->gpr[RSP] - 8;
    if (!store_at64(vcpu, rsp, SS, op->imm))
        return leave_fault(vcpu, op);
    vcpu->gpr[RSP] = rsp;
    NEXT;
}

static struct block *push_mem64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t value, rsp = vcpu->gpr[RSP] - 8;
    if (!flat64_load64(vcpu, op, &value) || !store_at64(vcpu, rsp, SS, value))
        return leave_fault(vcpu, op);
    vcpu->gpr[RSP] = rsp;
    NEXT;
}

static struct block *pop_reg64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t value;
    if (!load_at64(vcpu, vcpu->gpr[RSP], SS, &value))
        return leave_fault(vcpu, op);
    vcpu->gpr[RSP] += 8;
    set_reg64(vcpu, op->dst, value);
    NEXT;
}

static struct block *leave64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t value, rbp = vcpu->gpr[RBP];
    if (!load_at64(vcpu, rbp, SS, &value))
        return leave_fault(vcpu, op);
    vcpu->gpr[RSP] = rbp + 8;
    vcpu->gpr[RBP] = value;
    NEXT;
}

/* --- every mode --- */

OP_BODY_STATIC(push_any)
{
    struct slow_value value = { op->imm, 1 };
    if (op->flags & OP_MEMORY)
        value = far_load(vcpu, op, op->size);
    else if (!(op->flags & OP_IMMEDIATE))
        value.value = reg_get(vcpu, op->dst, op->size);
    return value.ok && interp_stack_push(vcpu, value.value, op->size);
}

/* A selector is stored as 16 bits; the rest of its slot is left as it was, as present processors do (SDM2 PUSH). */
OP_BODY_STATIC(push_segment)
{
    if (!interp_stack_store(vcpu, -(int64_t)op->size, vcpu->seg[op->sub].selector, 2))
        return false;
    interp_stack_adjust(vcpu, -(int64_t)op->size);
    return true;
}

OP_BODY_STATIC(pop_any)
{
    struct slow_value value = interp_stack_load(vcpu, 0, op->size);
    if (!value.ok)
        return false;
    uint64_t rsp = vcpu->gpr[RSP];
    interp_stack_adjust(vcpu, op->size);
    if (!(op->flags & OP_MEMORY)) {
        reg_set(vcpu, op->dst, op->size, value.value);
        return true;
    }
    /* An address that uses RSP sees it already moved (SDM2 POP). */
    if (!far_store(vcpu, op, value.value, op->size)) {
        vcpu->gpr[RSP] = rsp;
        return false;
    }
    return true;
}

static struct block *pop_segment(struct vcpu *vcpu, const struct op *op)
{
    counter_add(&vcpu->counters, COUNTER_trap_segment_loads, 1);
    op_at(vcpu, op);
    struct slow_value value = interp_stack_load(vcpu, 0, 2);
    if (!value.ok || !x86_load_segment(vcpu, op->sub, (uint16_t)value.value))
        return leave_system(vcpu, op, false);
    interp_stack_adjust(vcpu, op->size);
    if (op->sub == SS)
        vcpu->shadow |= SHADOW_MOV_SS;
    return leave_system(vcpu, op, true);
}

op_fn *pick_push(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    op->sub = insn->operand[0].reg;
    if (insn->operand[0].kind == OPERAND_SEGMENT)
        return push_segment;
    if (insn->operand[0].kind == OPERAND_IMMEDIATE && op->size == 1)
        op->size = family == FLAT64 ? 8 : op->source_size;
    if (family != FLAT64 || op->size != 8)
        return push_any;
    return op->flags & OP_MEMORY ? push_mem64 : op->flags & OP_IMMEDIATE ? push_imm64 : push_reg64;
}

op_fn *pick_pop(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    op->sub = insn->operand[0].reg;
    if (insn->operand[0].kind == OPERAND_SEGMENT)
        return pop_segment;
    return family == FLAT64 && op->size == 8 && !(op->flags & OP_MEMORY) ? pop_reg64 : pop_any;
}

OP_BODY_STATIC(leave_any)
{
    int64_t to_frame = (int64_t)(vcpu->gpr[RBP] - vcpu->gpr[RSP]);
    struct slow_value value = interp_stack_load(vcpu, to_frame, op->size);
    if (!value.ok)
        return false;
    interp_stack_adjust(vcpu, to_frame + op->size);
    reg_set(vcpu, GPR_OFFSET(RBP), op->size, value.value);
    return true;
}

op_fn *pick_leave(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    return family == FLAT64 && op->size == 8 ? leave64 : leave_any;
}

/* SDM2 ENTER: the level is taken modulo 32; the frame pointers of outer levels are copied down. */
OP_BODY(op_enter)
{
    unsigned level = (uint8_t)op->disp & 31, size = op->size;
    int64_t down = -(int64_t)size;
    if (!interp_stack_store(vcpu, down, vcpu->gpr[RBP], size))
        return false;
    uint64_t frame = vcpu->gpr[RSP] - size;
    int64_t to_frame = (int64_t)(vcpu->gpr[RBP] - vcpu->gpr[RSP]);
    for (unsigned i = 1; i < level; i++) {
        struct slow_value value = interp_stack_load(vcpu, to_frame - (int64_t)(i * size), size);
        down -= size;
        if (!value.ok || !interp_stack_store(vcpu, down, value.value, size))
            return false;
    }
    if (level) {
        down -= size;
        if (!interp_stack_store(vcpu, down, frame, size))
            return false;
    }
    down -= (int64_t)op->imm;
    if (!interp_stack_probe(vcpu, down, size))     /* the new top must be writable, before anything changes */
        return false;
    interp_stack_adjust(vcpu, down);
    reg_set(vcpu, GPR_OFFSET(RBP), size, frame);
    return true;
}

OP_BODY(op_pusha)
{
    for (unsigned i = 0; i < 8; i++)
        if (!interp_stack_store(vcpu, -(int64_t)(op->size * (i + 1)), vcpu->gpr[RAX + i], op->size))
            return false;
    interp_stack_adjust(vcpu, -(int64_t)op->size * 8);
    return true;
}

/* Registers popped before a fault keep their new values; (E)SP moves only at the end. */
OP_BODY(op_popa)
{
    for (unsigned i = 0; i < 8; i++) {
        struct slow_value slot = interp_stack_load(vcpu, (int64_t)op->size * i, op->size);
        if (!slot.ok)
            return false;
        if (RDI - i != RSP)
            reg_set(vcpu, GPR_OFFSET(RDI - i), op->size, slot.value);
    }
    interp_stack_adjust(vcpu, (int64_t)op->size * 8);
    return true;
}

OP_BODY(op_pushf)
{
    uint64_t value;
    counter_add(&vcpu->counters, COUNTER_trap_pushf, 1);
    return x86_pushf_value(vcpu, op->size, &value) && interp_stack_push(vcpu, value, op->size);
}

struct block *op_popf(struct vcpu *vcpu, const struct op *op)
{
    op_at(vcpu, op);
    counter_add(&vcpu->counters, COUNTER_trap_popf, 1);
    struct slow_value value = interp_stack_load(vcpu, 0, op->size);
    if (!value.ok || !x86_popf(vcpu, op->size, value.value))
        return leave_system(vcpu, op, false);
    interp_stack_adjust(vcpu, op->size);
    return leave_system(vcpu, op, true);
}
