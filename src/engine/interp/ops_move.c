/* MOV and its relatives: data movement that touches no flags. */
#include <sched.h>

#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"
#include "vmx/vmx.h"

/*
 * The fast families do only what the TLB allows; a miss is handed, as a jump, to the `far` handler of the same instruction,
 * which does it by all the rules. So the fast ones need no stack frame.
 */
#define FAST_FAMILIES(X, ...) X(flat64, __VA_ARGS__) X(flat32, __VA_ARGS__)

/* --- MOV --- */

#define DEFINE_MOV_FAR(w)                                                                                     \
    static struct block *mov##w##_rm_far(struct vcpu *vcpu, const struct op *op)                              \
    {                                                                                                         \
        struct slow_value slow = far_load(vcpu, op, w / 8);                                                   \
        if (!slow.ok)                                                                                         \
            return leave_fault(vcpu, op);                                                                     \
        set_reg##w(vcpu, op->dst, (uint##w##_t)slow.value);                                                   \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *mov##w##_mr_far(struct vcpu *vcpu, const struct op *op)                              \
    {                                                                                                         \
        if (!far_store(vcpu, op, reg##w(vcpu, op->src), w / 8))                                               \
            return leave_fault(vcpu, op);                                                                     \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *mov##w##_mi_far(struct vcpu *vcpu, const struct op *op)                              \
    {                                                                                                         \
        if (!far_store(vcpu, op, op->imm, w / 8))                                                             \
            return leave_fault(vcpu, op);                                                                     \
        NEXT;                                                                                                 \
    }
#define DEFINE_MOV_MEMORY(family, w)                                                                          \
    static struct block *mov##w##_rm_##family(struct vcpu *vcpu, const struct op *op)                         \
    {                                                                                                         \
        uint##w##_t *at = family##_direct(vcpu, op, MMU_READ, w / 8), value;                                  \
        if (unlikely(!at))                                                                                    \
            return mov##w##_rm_far(vcpu, op);                                                                 \
        __builtin_memcpy(&value, at, w / 8);                                                                  \
        set_reg##w(vcpu, op->dst, value);                                                                     \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *mov##w##_mr_##family(struct vcpu *vcpu, const struct op *op)                         \
    {                                                                                                         \
        uint##w##_t *at = family##_direct(vcpu, op, MMU_WRITE, w / 8), value = reg##w(vcpu, op->src);         \
        if (unlikely(!at))                                                                                    \
            return mov##w##_mr_far(vcpu, op);                                                                 \
        __builtin_memcpy(at, &value, w / 8);                                                                  \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *mov##w##_mi_##family(struct vcpu *vcpu, const struct op *op)                         \
    {                                                                                                         \
        uint##w##_t *at = family##_direct(vcpu, op, MMU_WRITE, w / 8), value = (uint##w##_t)op->imm;          \
        if (unlikely(!at))                                                                                    \
            return mov##w##_mi_far(vcpu, op);                                                                 \
        __builtin_memcpy(at, &value, w / 8);                                                                  \
        NEXT;                                                                                                 \
    }
#define DEFINE_MOV(w)                                                                                         \
    static struct block *mov##w##_rr(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        set_reg##w(vcpu, op->dst, reg##w(vcpu, op->src));                                                     \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *mov##w##_ri(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        set_reg##w(vcpu, op->dst, (uint##w##_t)op->imm);                                                      \
        NEXT;                                                                                                 \
    }                                                                                                         \
    DEFINE_MOV_FAR(w)                                                                                         \
    FAST_FAMILIES(DEFINE_MOV_MEMORY, w)
DEFINE_MOV(8)
DEFINE_MOV(16)
DEFINE_MOV(32)
DEFINE_MOV(64)

#define MOV_ROW(w)                                                                                            \
    { { mov##w##_rr, mov##w##_ri },                                                                           \
      { mov##w##_rm_flat64, mov##w##_rm_flat32, mov##w##_rm_far },                                            \
      { mov##w##_mr_flat64, mov##w##_mr_flat32, mov##w##_mr_far },                                            \
      { mov##w##_mi_flat64, mov##w##_mi_flat32, mov##w##_mi_far } }
static const struct {
    op_fn *reg[2], *load[FAMILIES], *store[FAMILIES], *store_imm[FAMILIES];
} mov_table[4] = { MOV_ROW(8), MOV_ROW(16), MOV_ROW(32), MOV_ROW(64) };

op_fn *pick_mov(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    const struct insn_operand *dst = &insn->operand[0], *src = &insn->operand[1];
    if (dst->kind == OPERAND_SEGMENT || src->kind == OPERAND_SEGMENT || dst->kind == OPERAND_CONTROL ||
        src->kind == OPERAND_CONTROL || dst->kind == OPERAND_DEBUG || src->kind == OPERAND_DEBUG)
        return pick_mov_system(insn, op, family, argument);
    unsigned width = size_index(op->size);
    if (dst->kind == OPERAND_MEMORY)
        return src->kind == OPERAND_IMMEDIATE ? mov_table[width].store_imm[family] : mov_table[width].store[family];
    if (src->kind == OPERAND_MEMORY)
        return mov_table[width].load[family];
    return mov_table[width].reg[src->kind == OPERAND_IMMEDIATE];
}

/* --- MOVZX, MOVSX, MOVSXD --- */

#define DEFINE_EXTEND_FAR(name, type, from, to)                                                               \
    static struct block *name##from##_##to##_far(struct vcpu *vcpu, const struct op *op)                      \
    {                                                                                                         \
        struct slow_value slow = far_load(vcpu, op, from / 8);                                                \
        if (!slow.ok)                                                                                         \
            return leave_fault(vcpu, op);                                                                     \
        set_reg##to(vcpu, op->dst, (uint##to##_t)(type##to##_t)(type##from##_t)slow.value);                   \
        NEXT;                                                                                                 \
    }
#define DEFINE_EXTEND_MEMORY(family, name, type, from, to)                                                    \
    static struct block *name##from##_##to##_##family(struct vcpu *vcpu, const struct op *op)                 \
    {                                                                                                         \
        uint##from##_t *at = family##_direct(vcpu, op, MMU_READ, from / 8), value;                            \
        if (unlikely(!at))                                                                                    \
            return name##from##_##to##_far(vcpu, op);                                                         \
        __builtin_memcpy(&value, at, from / 8);                                                               \
        set_reg##to(vcpu, op->dst, (uint##to##_t)(type##to##_t)(type##from##_t)value);                        \
        NEXT;                                                                                                 \
    }
#define DEFINE_EXTEND(name, type, from, to)                                                                   \
    static struct block *name##from##_##to(struct vcpu *vcpu, const struct op *op)                            \
    {                                                                                                         \
        set_reg##to(vcpu, op->dst, (uint##to##_t)(type##to##_t)(type##from##_t)reg##from(vcpu, op->src));     \
        NEXT;                                                                                                 \
    }                                                                                                         \
    DEFINE_EXTEND_FAR(name, type, from, to)                                                                   \
    FAST_FAMILIES(DEFINE_EXTEND_MEMORY, name, type, from, to)
#define EXTEND_PAIRS(X, name, type) \
    X(name, type, 8, 16) X(name, type, 8, 32) X(name, type, 8, 64) X(name, type, 16, 16) X(name, type, 16, 32) \
    X(name, type, 16, 64) X(name, type, 32, 16) X(name, type, 32, 32) X(name, type, 32, 64)
EXTEND_PAIRS(DEFINE_EXTEND, movzx, uint)
EXTEND_PAIRS(DEFINE_EXTEND, movsx, int)

#define EXTEND_ROW(name, type, from, to) \
    [from / 16][to / 32] = { name##from##_##to, name##from##_##to##_flat64, name##from##_##to##_flat32, name##from##_##to##_far },
static op_fn *const extend_table[2][3][3][1 + FAMILIES] = {
    { EXTEND_PAIRS(EXTEND_ROW, movzx, uint) },
    { EXTEND_PAIRS(EXTEND_ROW, movsx, int) },
};

op_fn *pick_extend(const struct insn *insn, struct op *op, enum family family, unsigned is_signed)
{
    unsigned from = op->source_size * 8 / 16, to = op->size * 8 / 32;
    bool memory = insn->operand[1].kind == OPERAND_MEMORY;
    return extend_table[is_signed][from][to][memory ? 1 + family : 0];
}

/* --- LEA --- */

static struct block *lea64_64(struct vcpu *vcpu, const struct op *op)
{
    set_reg64(vcpu, op->dst, reg64(vcpu, op->base) + (reg64(vcpu, op->index) << op->scale) + (int64_t)op->disp);
    NEXT;
}

static struct block *lea32_any(struct vcpu *vcpu, const struct op *op)
{
    set_reg32(vcpu, op->dst, (uint32_t)(reg32(vcpu, op->base) + (reg32(vcpu, op->index) << op->scale) + (uint32_t)op->disp));
    NEXT;
}

static struct block *lea_any(struct vcpu *vcpu, const struct op *op)
{
    reg_set(vcpu, op->dst, op->size, op_offset(vcpu, op));
    NEXT;
}

op_fn *pick_lea(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    if (op->flags & (OP_MOFFS | OP_RIP_FAR))
        return lea_any;
    if (op->size == 8 && op->address_size == 8)
        return lea64_64;
    if (op->size == 4 && op->address_size >= 4)
        return lea32_any;
    return lea_any;
}

/* --- conditional --- */

#define CONDITIONS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define DEFINE_CONDITIONAL(cc)                                                                                \
    static struct block *cmov64_##cc(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        uint64_t old = reg64(vcpu, op->dst), new = reg64(vcpu, op->src);                                      \
        set_reg64(vcpu, op->dst, condition(vcpu->rflags, cc) ? new : old);                                    \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *cmov32_##cc(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        uint32_t old = reg32(vcpu, op->dst), new = reg32(vcpu, op->src);                                      \
        set_reg32(vcpu, op->dst, condition(vcpu->rflags, cc) ? new : old);                                    \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *setcc_##cc(struct vcpu *vcpu, const struct op *op)                                   \
    {                                                                                                         \
        set_reg8(vcpu, op->dst, condition(vcpu->rflags, cc));                                                 \
        NEXT;                                                                                                 \
    }
CONDITIONS(DEFINE_CONDITIONAL)
#define ROW_CMOV64(cc) cmov64_##cc,
#define ROW_CMOV32(cc) cmov32_##cc,
#define ROW_SETCC(cc) setcc_##cc,
static op_fn *const cmov_table[2][16] = { { CONDITIONS(ROW_CMOV32) }, { CONDITIONS(ROW_CMOV64) } };
static op_fn *const setcc_table[16] = { CONDITIONS(ROW_SETCC) };

/* The source is read, and may fault, whatever the condition. */
static struct block *cmov_any(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value value = source_get(vcpu, op, op->size);
    if (!value.ok)
        return leave_fault(vcpu, op);
    if (condition(vcpu->rflags, op->sub))
        reg_set(vcpu, op->dst, op->size, value.value);
    else if (op->size == 4)
        set_reg32(vcpu, op->dst, reg32(vcpu, op->dst));
    NEXT;
}

static struct block *setcc_memory(struct vcpu *vcpu, const struct op *op)
{
    if (!far_store(vcpu, op, condition(vcpu->rflags, op->sub), 1))
        return leave_fault(vcpu, op);
    NEXT;
}

op_fn *pick_cmov(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    op->sub = insn->opcode & 15;
    if (insn->operand[1].kind == OPERAND_MEMORY || op->size == 2)
        return cmov_any;
    return cmov_table[op->size == 8][op->sub];
}

op_fn *pick_setcc(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    op->sub = insn->opcode & 15;
    return insn->operand[0].kind == OPERAND_MEMORY ? setcc_memory : setcc_table[op->sub];
}

/* --- the rest --- */

OP_BODY(op_xchg)
{
    struct place place;
    place_open(vcpu, op, op->size, &place);
    if (!place.at)
        return false;
    uint64_t value = reg_get(vcpu, op->src, op->size), old;
    switch (op->size) {
    case 1: old = __atomic_exchange_n((uint8_t *)place.at, (uint8_t)value, __ATOMIC_SEQ_CST); break;
    case 2: old = __atomic_exchange_n((uint16_t *)place.at, (uint16_t)value, __ATOMIC_SEQ_CST); break;
    case 4: old = __atomic_exchange_n((uint32_t *)place.at, (uint32_t)value, __ATOMIC_SEQ_CST); break;
    default: old = __atomic_exchange_n((uint64_t *)place.at, value, __ATOMIC_SEQ_CST);
    }
    if (!place_close(vcpu, &place))
        return false;
    reg_set(vcpu, op->src, op->size, old);
    return true;
}

OP_BODY(op_bswap)
{
    if (op->size == 8)
        set_reg64(vcpu, op->dst, __builtin_bswap64(reg64(vcpu, op->dst)));
    else if (op->size == 4)
        set_reg32(vcpu, op->dst, __builtin_bswap32(reg32(vcpu, op->dst)));
    else
        set_reg16(vcpu, op->dst, 0);    /* undefined by SDM2 BSWAP; processors clear it */
    return true;
}

static uint64_t swap_bytes(uint64_t value, unsigned size)
{
    return __builtin_bswap64(value) >> (64 - size * 8);
}

OP_BODY(op_movbe)
{
    if (op->flags & OP_STORE)
        return far_store(vcpu, op, swap_bytes(reg_get(vcpu, op->src, op->size), op->size), op->size);
    struct slow_value value = source_get(vcpu, op, op->size);
    if (value.ok)
        reg_set(vcpu, op->dst, op->size, swap_bytes(value.value, op->size));
    return value.ok;
}

OP_BODY(op_movnti)
{
    return far_store(vcpu, op, reg_get(vcpu, op->src, op->size), op->size);
}

OP_BODY(op_xlat)
{
    uint64_t offset = (vcpu->gpr[RBX] + (uint8_t)vcpu->gpr[RAX]) & size_mask(op->address_size), gla;
    if (!x86_linear(vcpu, op->seg, offset, 1, false, &gla))
        return false;
    struct slow_value value = load_slow(vcpu, gla, 1, op->seg);
    if (value.ok)
        set_reg8(vcpu, GPR_OFFSET(RAX), (uint8_t)value.value);
    return value.ok;
}

struct block *op_cbw(struct vcpu *vcpu, const struct op *op)
{
    set_reg16(vcpu, GPR_OFFSET(RAX), (uint16_t)(int8_t)vcpu->gpr[RAX]);
    NEXT;
}

struct block *op_cwde(struct vcpu *vcpu, const struct op *op)
{
    set_reg32(vcpu, GPR_OFFSET(RAX), (uint32_t)(int16_t)vcpu->gpr[RAX]);
    NEXT;
}

struct block *op_cdqe(struct vcpu *vcpu, const struct op *op)
{
    vcpu->gpr[RAX] = (uint64_t)(int32_t)vcpu->gpr[RAX];
    NEXT;
}

struct block *op_cwd(struct vcpu *vcpu, const struct op *op)
{
    set_reg16(vcpu, GPR_OFFSET(RDX), (uint16_t)((int16_t)vcpu->gpr[RAX] >> 15));
    NEXT;
}

struct block *op_cdq(struct vcpu *vcpu, const struct op *op)
{
    set_reg32(vcpu, GPR_OFFSET(RDX), (uint32_t)((int32_t)vcpu->gpr[RAX] >> 31));
    NEXT;
}

struct block *op_cqo(struct vcpu *vcpu, const struct op *op)
{
    vcpu->gpr[RDX] = (uint64_t)((int64_t)vcpu->gpr[RAX] >> 63);
    NEXT;
}

/* NOPs, hints and prefetches; multi-byte NOPs do not touch their operand. */
struct block *op_nop(struct vcpu *vcpu, const struct op *op)
{
    NEXT;
}

/* Who spins may be waiting for a vCPU that the host has no processor for just now. */
OP_BODY(op_pause)
{
    enum { PAUSES_BEFORE_YIELD = 128 };
    if (vmx_guest(vcpu) && vmx_pause_exits(vcpu))
        return vmx_exit_now(vcpu, REASON_PAUSE, 0);
    struct interp *interp = interp_of(vcpu);
    if (++interp->pauses % PAUSES_BEFORE_YIELD == 0 && vcpu->all_count > 1)
        sched_yield();
    return true;
}

struct block *op_fence(struct vcpu *vcpu, const struct op *op)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    NEXT;
}
