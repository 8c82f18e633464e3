/*
 * Jumps, calls and returns. Direct branches have their target relative to the block's start in op->imm; `near` handlers
 * serve 64-bit mode and flat 32-bit code, `far` ones (as in ops: the general family) check the code segment's limit first.
 */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

/* Goes to a direct target: the linked block, or a look-up that will link. */
static inline struct block *go(struct vcpu *vcpu, const struct op *op, uint64_t delta, unsigned link)
{
    struct block *block = block_of(op), *next = block->link[link];
    vcpu->rip += delta;
    if (likely(next))
        return next;
    interp_of(vcpu)->link_from = block;
    interp_of(vcpu)->link_delta = delta;
    interp_of(vcpu)->link_slot = link;
    return NULL;
}

static inline uint64_t next_delta(const struct op *op) { return (uint64_t)op->where + op->length; }

/* A near target by all rules: truncated to the operand size, canonical or inside the code segment (#GP(0) before anything changes). */
static bool target_ok(struct vcpu *vcpu, uint64_t target)
{
    uint64_t gla;
    if (vcpu->mode == MODE_LONG64)
        return canonical(vcpu, target) || x86_raise_error(vcpu, VEC_GP, 0);
    return x86_linear_fetch(vcpu, target, &gla);
}

static uint64_t wrap_target(const struct op *op, uint64_t target) { return target & size_mask(op->size); }

static __attribute__((noinline)) struct block *far_go(struct vcpu *vcpu, const struct op *op)
{
    uint64_t target = wrap_target(op, vcpu->rip + op->imm);
    if (!target_ok(vcpu, target))
        return leave_fault(vcpu, op);
    vcpu->rip = target;
    return NULL;
}

static struct block *far_next(struct vcpu *vcpu, const struct op *op)
{
    vcpu->rip = op_next_rip(vcpu, op);
    return NULL;
}

/* --- JMP, Jcc --- */

static struct block *jmp_near(struct vcpu *vcpu, const struct op *op) { return go(vcpu, op, op->imm, 0); }
static struct block *jmp_far_family(struct vcpu *vcpu, const struct op *op) { return far_go(vcpu, op); }

#define CONDITIONS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define DEFINE_JCC(cc)                                                                                        \
    static struct block *jcc_##cc(struct vcpu *vcpu, const struct op *op)                                     \
    {                                                                                                         \
        if (condition(vcpu->rflags, cc))                                                                      \
            return go(vcpu, op, op->imm, 0);                                                                  \
        return go(vcpu, op, next_delta(op), 1);                                                               \
    }
CONDITIONS(DEFINE_JCC)
#define ROW_JCC(cc) jcc_##cc,
static op_fn *const jcc_table[16] = { CONDITIONS(ROW_JCC) };

static struct block *jcc_far_family(struct vcpu *vcpu, const struct op *op)
{
    return condition(vcpu->rflags, op->sub) ? far_go(vcpu, op) : far_next(vcpu, op);
}

/* Is the fast form right: 64-bit targets in 64-bit mode, 32-bit ones in flat 32-bit code? */
static bool near_form(const struct op *op)
{
    return op->flags & OP_NEAR;
}

op_fn *pick_jcc(const struct insn *insn, struct op *op, enum family family, unsigned cc)
{
    op->sub = insn->opcode & 15;
    return near_form(op) ? jcc_table[op->sub] : jcc_far_family;
}

struct block *op_fallthrough(struct vcpu *vcpu, const struct op *op)
{
    if (block_of(op)->linkable)
        return go(vcpu, op, op->where, 1);
    vcpu->rip = rip_wrap(vcpu, vcpu->rip + op->where);
    return NULL;
}

/* --- LOOP, JCXZ: the count register has the address size --- */

static struct block *branch_if(struct vcpu *vcpu, const struct op *op, bool taken)
{
    return taken ? far_go(vcpu, op) : far_next(vcpu, op);
}

static struct block *loop_if(struct vcpu *vcpu, const struct op *op, bool flag)
{
    uint64_t count = (vcpu->gpr[RCX] - 1) & size_mask(op->address_size);
    bool taken = count && flag;
    if (taken && !target_ok(vcpu, wrap_target(op, vcpu->rip + op->imm)))
        return leave_fault(vcpu, op);
    reg_set(vcpu, GPR_OFFSET(RCX), op->address_size, count);
    return branch_if(vcpu, op, taken);
}

struct block *op_loop(struct vcpu *vcpu, const struct op *op) { return loop_if(vcpu, op, true); }
struct block *op_loope(struct vcpu *vcpu, const struct op *op) { return loop_if(vcpu, op, vcpu->rflags & RFLAGS_ZF); }
struct block *op_loopne(struct vcpu *vcpu, const struct op *op) { return loop_if(vcpu, op, !(vcpu->rflags & RFLAGS_ZF)); }

struct block *op_jcxz(struct vcpu *vcpu, const struct op *op)
{
    bool taken = !(vcpu->gpr[RCX] & size_mask(op->address_size));
    if (!near_form(op))
        return branch_if(vcpu, op, taken);
    return taken ? go(vcpu, op, op->imm, 0) : go(vcpu, op, next_delta(op), 1);
}

/* --- CALL, RET, indirect JMP in 64-bit mode --- */

static struct block *call_near64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t rsp = vcpu->gpr[RSP] - 8;
    if (!store_at64(vcpu, rsp, SS, vcpu->rip + next_delta(op)))
        return leave_fault(vcpu, op);
    vcpu->gpr[RSP] = rsp;
    return go(vcpu, op, op->imm, 0);
}

static inline struct block *go_indirect64(struct vcpu *vcpu, uint64_t target)
{
    vcpu->rip = target;
    return NULL;
}

static struct block *ret64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t target;
    if (!load_at64(vcpu, vcpu->gpr[RSP], SS, &target))
        return leave_fault(vcpu, op);
    if (unlikely(!canonical(vcpu, target)))
        return leave_raise(vcpu, op, VEC_GP);
    vcpu->gpr[RSP] += 8 + op->imm;
    return go_indirect64(vcpu, target);
}

/* The return address is in memory, though RSP has not moved, when the target turns out not to be canonical. */
static inline struct block *call_to64(struct vcpu *vcpu, const struct op *op, uint64_t target)
{
    uint64_t rsp = vcpu->gpr[RSP] - 8;
    if (!store_at64(vcpu, rsp, SS, vcpu->rip + next_delta(op)))
        return leave_fault(vcpu, op);
    if (unlikely(!canonical(vcpu, target)))
        return leave_raise(vcpu, op, VEC_GP);
    vcpu->gpr[RSP] = rsp;
    return go_indirect64(vcpu, target);
}

static struct block *call_reg64(struct vcpu *vcpu, const struct op *op)
{
    return call_to64(vcpu, op, reg64(vcpu, op->dst));
}

static struct block *call_mem64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t target;
    if (!flat64_load64(vcpu, op, &target))
        return leave_fault(vcpu, op);
    return call_to64(vcpu, op, target);
}

static struct block *jmp_reg64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t target = reg64(vcpu, op->dst);
    if (unlikely(!canonical(vcpu, target)))
        return leave_raise(vcpu, op, VEC_GP);
    return go_indirect64(vcpu, target);
}

static struct block *jmp_mem64(struct vcpu *vcpu, const struct op *op)
{
    uint64_t target;
    if (!flat64_load64(vcpu, op, &target))
        return leave_fault(vcpu, op);
    if (unlikely(!canonical(vcpu, target)))
        return leave_raise(vcpu, op, VEC_GP);
    return go_indirect64(vcpu, target);
}

/* --- the same by all rules --- */

static struct slow_value branch_operand(struct vcpu *vcpu, const struct op *op)
{
    if (op->flags & OP_MEMORY)
        return far_load(vcpu, op, op->size);
    return (struct slow_value){ reg_get(vcpu, op->dst, op->size), 1 };
}

static struct block *call_any(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value target = { wrap_target(op, vcpu->rip + op->imm), 1 };
    if (!(op->flags & OP_IMMEDIATE))
        target = branch_operand(vcpu, op);
    if (!target.ok || !interp_stack_store(vcpu, -(int64_t)op->size, op_next_rip(vcpu, op), op->size) ||
        !target_ok(vcpu, target.value))
        return leave_fault(vcpu, op);
    interp_stack_adjust(vcpu, -(int64_t)op->size);
    vcpu->rip = target.value;
    return NULL;
}

static struct block *jmp_any(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value target = branch_operand(vcpu, op);
    if (!target.ok || !target_ok(vcpu, target.value))
        return leave_fault(vcpu, op);
    vcpu->rip = target.value;
    return NULL;
}

static struct block *ret_any(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value target = interp_stack_load(vcpu, 0, op->size);
    if (!target.ok || !target_ok(vcpu, target.value))
        return leave_fault(vcpu, op);
    interp_stack_adjust(vcpu, op->size + (int64_t)op->imm);
    vcpu->rip = target.value;
    return NULL;
}

/* --- far transfers: the rules are in x86/ --- */

static struct block *far_pointer(struct vcpu *vcpu, const struct op *op, bool call)
{
    uint64_t offset = op->imm, next;
    uint16_t selector = (uint16_t)op->disp;
    op_at(vcpu, op);
    counter_add(&vcpu->counters, call ? COUNTER_trap_far_calls : COUNTER_trap_far_jumps, 1);
    next = rip_wrap(vcpu, vcpu->rip + op->length);
    bool done = call ? x86_far_call(vcpu, selector, offset, op->size, next) : x86_far_jump(vcpu, selector, offset, op->size, next);
    return leave_transfer(vcpu, op, done);
}

static struct block *far_memory(struct vcpu *vcpu, const struct op *op, bool call)
{
    struct slow_value linear = far_linear(vcpu, op, op->size + 2u, false), offset = { 0, 0 }, selector = { 0, 0 };
    op_at(vcpu, op);
    counter_add(&vcpu->counters, call ? COUNTER_trap_far_calls : COUNTER_trap_far_jumps, 1);
    uint64_t next = rip_wrap(vcpu, vcpu->rip + op->length);
    if (linear.ok)
        offset = load_slow(vcpu, linear.value, op->size, op->seg);
    if (offset.ok)
        selector = load_slow(vcpu, linear.value + op->size, 2, op->seg);
    if (!selector.ok)
        return leave_transfer(vcpu, op, false);
    uint16_t sel = (uint16_t)selector.value;
    return leave_transfer(vcpu, op, call ? x86_far_call(vcpu, sel, offset.value, op->size, next)
                                         : x86_far_jump(vcpu, sel, offset.value, op->size, next));
}

static struct block *jmp_far_pointer(struct vcpu *vcpu, const struct op *op) { return far_pointer(vcpu, op, false); }
static struct block *call_far_pointer(struct vcpu *vcpu, const struct op *op) { return far_pointer(vcpu, op, true); }
static struct block *jmp_far_memory(struct vcpu *vcpu, const struct op *op) { return far_memory(vcpu, op, false); }
static struct block *call_far_memory(struct vcpu *vcpu, const struct op *op) { return far_memory(vcpu, op, true); }

struct block *op_ret_far(struct vcpu *vcpu, const struct op *op)
{
    op_at(vcpu, op);
    counter_add(&vcpu->counters, COUNTER_trap_far_returns, 1);
    return leave_transfer(vcpu, op, x86_far_return(vcpu, op->size, (uint16_t)op->imm));
}

struct block *op_iret(struct vcpu *vcpu, const struct op *op)
{
    op_at(vcpu, op);
    counter_add(&vcpu->counters, COUNTER_trap_iret, 1);
    return leave_transfer(vcpu, op, x86_iret(vcpu, op->size, rip_wrap(vcpu, vcpu->rip + op->length)));
}

/* --- pickers --- */

/* FF /3 and FF /5: the pointer in memory is wider than the offset. */
static bool is_far_memory(const struct insn *insn)
{
    return insn->opcode == 0xFF && (insn->modrm_reg == 3 || insn->modrm_reg == 5);
}

op_fn *pick_jmp(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    switch (insn->operand[0].kind) {
    case OPERAND_FAR: return jmp_far_pointer;
    case OPERAND_IMMEDIATE: return near_form(op) ? jmp_near : jmp_far_family;
    case OPERAND_GPR: return family == FLAT64 && op->size == 8 ? jmp_reg64 : jmp_any;
    default:
        if (is_far_memory(insn))
            return jmp_far_memory;
        return family == FLAT64 && op->size == 8 ? jmp_mem64 : jmp_any;
    }
}

op_fn *pick_call(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    bool fast = family == FLAT64 && op->size == 8;
    switch (insn->operand[0].kind) {
    case OPERAND_FAR: return call_far_pointer;
    case OPERAND_IMMEDIATE: return fast ? call_near64 : call_any;
    case OPERAND_GPR: return fast ? call_reg64 : call_any;
    default:
        if (is_far_memory(insn))
            return call_far_memory;
        return fast ? call_mem64 : call_any;
    }
}

op_fn *pick_ret(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    if (insn->opcode == 0xCA || insn->opcode == 0xCB)
        return op_ret_far;
    return family == FLAT64 && op->size == 8 ? ret64 : ret_any;
}
