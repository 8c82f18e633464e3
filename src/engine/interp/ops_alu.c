/*
 * ADD OR ADC SBB AND SUB XOR CMP TEST in all operand forms: register and memory on either side, immediates, four sizes,
 * three families of addresses. The host's own instruction gives result and flags.
 */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

/* X(enum, instruction, input flags, writes its destination) */
#define ALU_OPS(X, w, s)        \
    X(ADD, add, PLAIN, 1, w, s) \
    X(OR, or, PLAIN, 1, w, s)   \
    X(ADC, adc, CARRY, 1, w, s) \
    X(SBB, sbb, CARRY, 1, w, s) \
    X(AND, and, PLAIN, 1, w, s) \
    X(SUB, sub, PLAIN, 1, w, s) \
    X(XOR, xor, PLAIN, 1, w, s) \
    X(CMP, cmp, PLAIN, 0, w, s) \
    X(TEST, test, PLAIN, 0, w, s)

#define WIDTHS(X) X(8, "b") X(16, "w") X(32, "l") X(64, "q")

#define INPUT_PLAIN ""
#define INPUT_CARRY "btl $0, %k[rflags]\n\t"

/* The instruction itself: alu_add32(vcpu, a, b) sets the flags and returns the result. */
#define DEFINE_EXECUTE(id, name, input, writes, w, s)                                                         \
    static inline __attribute__((always_inline)) uint##w##_t alu_##name##w(struct vcpu *vcpu, uint##w##_t a, uint##w##_t b) \
    {                                                                                                         \
        uint32_t packed;                                                                                      \
        asm(INPUT_##input #name s " %[b], %[a]\n\t" FLAGS_SAVE                                                \
            : [a] "+r"(a), "=&a"(packed)                                                                      \
            : [b] "r"(b), [rflags] "r"(vcpu->rflags)                                                          \
            : "cc");                                                                                          \
        flags_set(vcpu, packed);                                                                              \
        return a;                                                                                             \
    }

/* The slow form of memory destinations: MMIO, page-crossing, LOCK, far addresses. */
#define LOCKED_CASE(id, name, input, writes, w, s)                                                            \
    case ALU_##id:                                                                                            \
        asm volatile(INPUT_##input "lock " #name s " %[b], %[a]\n\t" FLAGS_SAVE                               \
                     : [a] "+m"(*(uint##w##_t *)at), "=&a"(packed)                                            \
                     : [b] "r"(b), [rflags] "r"(vcpu->rflags)                                                 \
                     : "cc", "memory");                                                                       \
        break;
#define PLAIN_CASE(id, name, input, writes, w, s)                                                             \
    case ALU_##id:                                                                                            \
        asm volatile(INPUT_##input #name s " %[b], %[a]\n\t" FLAGS_SAVE                                       \
                     : [a] "+m"(*(uint##w##_t *)at), "=&a"(packed)                                            \
                     : [b] "r"(b), [rflags] "r"(vcpu->rflags)                                                 \
                     : "cc", "memory");                                                                       \
        break;
#define LOCKABLE_OPS(X, w, s)                                                                                 \
    X(ADD, add, PLAIN, 1, w, s)                                                                               \
    X(OR, or, PLAIN, 1, w, s)                                                                                 \
    X(ADC, adc, CARRY, 1, w, s)                                                                               \
    X(SBB, sbb, CARRY, 1, w, s)                                                                               \
    X(AND, and, PLAIN, 1, w, s)                                                                               \
    X(SUB, sub, PLAIN, 1, w, s)                                                                               \
    X(XOR, xor, PLAIN, 1, w, s)

#define DEFINE_PLACE(w, s)                                                                                    \
    static uint32_t alu_in_place##w(struct vcpu *vcpu, void *at, unsigned sub, bool locked, uint##w##_t b)    \
    {                                                                                                         \
        uint32_t packed = 0;                                                                                  \
        if (locked) {                                                                                         \
            switch (sub) { LOCKABLE_OPS(LOCKED_CASE, w, s) }                                                  \
        } else {                                                                                              \
            switch (sub) { LOCKABLE_OPS(PLAIN_CASE, w, s) }                                                   \
        }                                                                                                     \
        return packed;                                                                                        \
    }                                                                                                         \
    static __attribute__((noinline)) bool alu_slow##w(struct vcpu *vcpu, const struct op *op)                 \
    {                                                                                                         \
        struct place place;                                                                                   \
        place_open(vcpu, op, w / 8, &place);                                                                  \
        if (!place.at)                                                                                        \
            return false;                                                                                     \
        uint##w##_t b = op->flags & OP_IMMEDIATE ? (uint##w##_t)op->imm : reg##w(vcpu, op->src);              \
        uint32_t packed = alu_in_place##w(vcpu, place.at, op->sub, op->flags & OP_LOCK, b);                   \
        if (!place_close(vcpu, &place))                                                                       \
            return false;                                                                                     \
        flags_set(vcpu, packed);                                                                              \
        return true;                                                                                          \
    }                                                                                                         \
    static struct block *alu_place##w(struct vcpu *vcpu, const struct op *op)                                 \
    {                                                                                                         \
        if (!alu_slow##w(vcpu, op))                                                                           \
            return leave_fault(vcpu, op);                                                                     \
        NEXT;                                                                                                 \
    }
WIDTHS(DEFINE_PLACE)

#define DEFINE_REGISTER_FORMS(id, name, input, writes, w, s)                                                  \
    static struct block *name##w##_rr(struct vcpu *vcpu, const struct op *op)                                 \
    {                                                                                                         \
        uint##w##_t result = alu_##name##w(vcpu, reg##w(vcpu, op->dst), reg##w(vcpu, op->src));               \
        if (writes)                                                                                           \
            set_reg##w(vcpu, op->dst, result);                                                                \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *name##w##_ri(struct vcpu *vcpu, const struct op *op)                                 \
    {                                                                                                         \
        uint##w##_t result = alu_##name##w(vcpu, reg##w(vcpu, op->dst), (uint##w##_t)op->imm);                \
        if (writes)                                                                                           \
            set_reg##w(vcpu, op->dst, result);                                                                \
        NEXT;                                                                                                 \
    }

/* By all the rules: memory on the right; and, for CMP and TEST, on the left. Others with memory on the left: alu_place. */
#define DEFINE_FAR_FORMS(name, writes, w)                                                                     \
    static struct block *name##w##_rm_far(struct vcpu *vcpu, const struct op *op)                             \
    {                                                                                                         \
        struct slow_value slow = far_load(vcpu, op, w / 8);                                                   \
        if (!slow.ok)                                                                                         \
            return leave_fault(vcpu, op);                                                                     \
        uint##w##_t result = alu_##name##w(vcpu, reg##w(vcpu, op->dst), (uint##w##_t)slow.value);             \
        if (writes)                                                                                           \
            set_reg##w(vcpu, op->dst, result);                                                                \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *name##w##_far(struct vcpu *vcpu, const struct op *op)                                \
    {                                                                                                         \
        if (writes)                                                                                           \
            return alu_place##w(vcpu, op);                                                                    \
        struct slow_value slow = far_load(vcpu, op, w / 8);                                                   \
        if (!slow.ok)                                                                                         \
            return leave_fault(vcpu, op);                                                                     \
        uint##w##_t b = op->flags & OP_IMMEDIATE ? (uint##w##_t)op->imm : reg##w(vcpu, op->src);              \
        alu_##name##w(vcpu, (uint##w##_t)slow.value, b);                                                      \
        NEXT;                                                                                                 \
    }

/* What the TLB allows; a miss jumps to the forms above. */
#define DEFINE_LOAD_FORM(name, writes, w, family)                                                             \
    static struct block *name##w##_rm_##family(struct vcpu *vcpu, const struct op *op)                        \
    {                                                                                                         \
        uint##w##_t *at = family##_direct(vcpu, op, MMU_READ, w / 8), value;                                  \
        if (unlikely(!at))                                                                                    \
            return name##w##_rm_far(vcpu, op);                                                                \
        __builtin_memcpy(&value, at, w / 8);                                                                  \
        uint##w##_t result = alu_##name##w(vcpu, reg##w(vcpu, op->dst), value);                               \
        if (writes)                                                                                           \
            set_reg##w(vcpu, op->dst, result);                                                                \
        NEXT;                                                                                                 \
    }
#define DEFINE_STORE_FORM(name, writes, w, family, form, source)                                              \
    static struct block *name##w##_##form##_##family(struct vcpu *vcpu, const struct op *op)                  \
    {                                                                                                         \
        uint##w##_t *at = family##_direct(vcpu, op, (writes) ? MMU_WRITE : MMU_READ, w / 8), value;           \
        if (unlikely(!at))                                                                                    \
            return name##w##_far(vcpu, op);                                                                   \
        __builtin_memcpy(&value, at, w / 8);                                                                  \
        value = alu_##name##w(vcpu, value, source);                                                           \
        if (writes)                                                                                           \
            __builtin_memcpy(at, &value, w / 8);                                                              \
        NEXT;                                                                                                 \
    }
#define DEFINE_FAMILY_FORMS(name, writes, w, family)                                                          \
    DEFINE_LOAD_FORM(name, writes, w, family)                                                                 \
    DEFINE_STORE_FORM(name, writes, w, family, mr, reg##w(vcpu, op->src))                                     \
    DEFINE_STORE_FORM(name, writes, w, family, mi, (uint##w##_t)op->imm)

#define DEFINE_ALU(id, name, input, writes, w, s)    \
    DEFINE_EXECUTE(id, name, input, writes, w, s)    \
    DEFINE_REGISTER_FORMS(id, name, input, writes, w, s) \
    DEFINE_FAR_FORMS(name, writes, w)                \
    DEFINE_FAMILY_FORMS(name, writes, w, flat64)     \
    DEFINE_FAMILY_FORMS(name, writes, w, flat32)
#define DEFINE_ALU_WIDTH(w, s) ALU_OPS(DEFINE_ALU, w, s)
WIDTHS(DEFINE_ALU_WIDTH)

enum alu_form { FORM_RR, FORM_RI, FORM_RM, FORM_MR = FORM_RM + FAMILIES, FORM_MI = FORM_MR + FAMILIES, FORMS = FORM_MI + FAMILIES };

#define TABLE_ROW(id, name, input, writes, w, s)                                                              \
    [ALU_##id] = {                                                                                            \
        [FORM_RR] = name##w##_rr, [FORM_RI] = name##w##_ri,                                                   \
        [FORM_RM + FLAT64] = name##w##_rm_flat64, [FORM_RM + FLAT32] = name##w##_rm_flat32, [FORM_RM + FAR_] = name##w##_rm_far, \
        [FORM_MR + FLAT64] = name##w##_mr_flat64, [FORM_MR + FLAT32] = name##w##_mr_flat32,                   \
        [FORM_MR + FAR_] = name##w##_far,                                                    \
        [FORM_MI + FLAT64] = name##w##_mi_flat64, [FORM_MI + FLAT32] = name##w##_mi_flat32,                   \
        [FORM_MI + FAR_] = name##w##_far,                                                    \
    },
static op_fn *const alu_table[4][ALU_COUNT][FORMS] = {
    { ALU_OPS(TABLE_ROW, 8, "b") },
    { ALU_OPS(TABLE_ROW, 16, "w") },
    { ALU_OPS(TABLE_ROW, 32, "l") },
    { ALU_OPS(TABLE_ROW, 64, "q") },
};
static op_fn *const alu_place_table[4] = { alu_place8, alu_place16, alu_place32, alu_place64 };

op_fn *pick_alu(const struct insn *insn, struct op *op, enum family family, unsigned which)
{
    unsigned width = size_index(op->size), form;
    op->sub = (uint8_t)which;
    if (insn->lock)
        return alu_place_table[width];
    if (insn->operand[0].kind == OPERAND_MEMORY)
        form = (op->flags & OP_IMMEDIATE ? FORM_MI : FORM_MR) + family;
    else if (insn->operand[1].kind == OPERAND_MEMORY)
        form = FORM_RM + family;
    else
        form = op->flags & OP_IMMEDIATE ? FORM_RI : FORM_RR;
    return alu_table[width][which][form];
}
