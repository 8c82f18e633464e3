/* Arithmetic beyond ops_alu.c: one-operand forms, multiply, divide, exchange-and-add, compare-and-exchange, BCD. */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

#define WIDTHS(X) X(8, "b") X(16, "w") X(32, "l") X(64, "q")

/* --- INC DEC NEG NOT --- */

/* INC and DEC keep CF, NOT keeps all: their flags are loaded first. */
#define DEFINE_UNARY_OP(name, w, s)                                                                           \
    static struct block *name##w##_r(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        uint##w##_t value = reg##w(vcpu, op->dst);                                                            \
        uint32_t packed = (uint32_t)flags_pack(vcpu->rflags);                                                 \
        asm(FLAGS_LOAD #name s " %[v]\n\t" FLAGS_SAVE : [v] "+r"(value), "+&a"(packed) : : "cc");             \
        flags_set(vcpu, packed);                                                                              \
        set_reg##w(vcpu, op->dst, value);                                                                     \
        NEXT;                                                                                                 \
    }                                                                                                         \
    OP_BODY_STATIC(name##w##_m)                                                                               \
    {                                                                                                         \
        struct place place;                                                                                   \
        place_open(vcpu, op, w / 8, &place);                                                                  \
        if (!place.at)                                                                                        \
            return false;                                                                                     \
        uint32_t packed = (uint32_t)flags_pack(vcpu->rflags);                                                 \
        if (op->flags & OP_LOCK)                                                                              \
            asm volatile(FLAGS_LOAD "lock " #name s " %[v]\n\t" FLAGS_SAVE                                    \
                         : [v] "+m"(*(uint##w##_t *)place.at), "+&a"(packed) : : "cc", "memory");             \
        else                                                                                                  \
            asm volatile(FLAGS_LOAD #name s " %[v]\n\t" FLAGS_SAVE                                            \
                         : [v] "+m"(*(uint##w##_t *)place.at), "+&a"(packed) : : "cc", "memory");             \
        if (!place_close(vcpu, &place))                                                                       \
            return false;                                                                                     \
        flags_set(vcpu, packed);                                                                              \
        return true;                                                                                          \
    }
#define DEFINE_UNARY(w, s) DEFINE_UNARY_OP(inc, w, s) DEFINE_UNARY_OP(dec, w, s) DEFINE_UNARY_OP(neg, w, s) DEFINE_UNARY_OP(not, w, s)
WIDTHS(DEFINE_UNARY)

#define UNARY_ROW(name) { { name##8_r, name##16_r, name##32_r, name##64_r }, { name##8_m, name##16_m, name##32_m, name##64_m } }
static op_fn *const unary_table[UNARY_COUNT][2][4] = {
    [UNARY_INC] = UNARY_ROW(inc), [UNARY_DEC] = UNARY_ROW(dec), [UNARY_NEG] = UNARY_ROW(neg), [UNARY_NOT] = UNARY_ROW(not),
};

op_fn *pick_unary(const struct insn *insn, struct op *op, enum family family, unsigned which)
{
    return unary_table[which][insn->operand[0].kind == OPERAND_MEMORY][size_index(op->size)];
}

/* --- MUL, IMUL --- */

/*
 * The one-operand forms need AX for themselves, so the flags travel through another register: PUSHF-free, by loading
 * them before RAX is set up (MOV changes no flags) and saving the product before LAHF.
 */
#define DEFINE_MULTIPLY(name, w, s, rax)                                                                      \
    static uint32_t name##_wide##w(uint64_t rflags, uint##w##_t a, uint##w##_t b, uint##w##_t *low, uint##w##_t *high) \
    {                                                                                                         \
        uint64_t packed = flags_pack(rflags), lo, hi = 0;                                                     \
        asm(FLAGS_LOAD "mov %[a], %%rax\n\t" #name s " %[b]\n\tmov %%rax, %[lo]\n\t" FLAGS_SAVE               \
            : "+&a"(packed), [lo] "=&r"(lo), "+&d"(hi)                                                        \
            : [a] "r"((uint64_t)a), [b] "r"(b) : "cc");                                                       \
        *low = (uint##w##_t)lo;                                                                               \
        *high = w == 8 ? (uint##w##_t)(lo >> 8) : (uint##w##_t)hi;                                            \
        return (uint32_t)packed;                                                                              \
    }
#define DEFINE_MULTIPLIES(w, s) DEFINE_MULTIPLY(mul, w, s, ) DEFINE_MULTIPLY(imul, w, s, )
WIDTHS(DEFINE_MULTIPLIES)

#define MULTIPLY_CASE(w, s)                                                                                   \
    case w / 8: {                                                                                             \
        uint##w##_t low, high;                                                                                \
        uint##w##_t a = reg##w(vcpu, GPR_OFFSET(RAX)), b = (uint##w##_t)source;                               \
        packed = is_signed ? imul_wide##w(vcpu->rflags, a, b, &low, &high) : mul_wide##w(vcpu->rflags, a, b, &low, &high); \
        set_reg##w(vcpu, GPR_OFFSET(RAX), low);                                                               \
        set_reg##w(vcpu, w == 8 ? GPR_OFFSET(RAX) + 1 : GPR_OFFSET(RDX), high);                               \
        break;                                                                                                \
    }

static void multiply_wide(struct vcpu *vcpu, unsigned size, bool is_signed, uint64_t source)
{
    uint32_t packed = 0;
    switch (size) { WIDTHS(MULTIPLY_CASE) }
    flags_set(vcpu, packed);
}

/* The single operand of MUL, DIV and their signed forms is op->dst or memory. */
static struct slow_value single_source(struct vcpu *vcpu, const struct op *op)
{
    if (op->flags & OP_MEMORY)
        return far_load(vcpu, op, op->size);
    return (struct slow_value){ reg_get(vcpu, op->dst, op->size), 1 };
}

OP_BODY(op_mul)
{
    struct slow_value source = single_source(vcpu, op);
    if (source.ok)
        multiply_wide(vcpu, op->size, false, source.value);
    return source.ok;
}

OP_BODY(op_imul_wide)
{
    struct slow_value source = single_source(vcpu, op);
    if (source.ok)
        multiply_wide(vcpu, op->size, true, source.value);
    return source.ok;
}

/* Two and three operands: the source is a register (r) or memory (m), the other factor the destination or an immediate (i). */
#define DEFINE_IMUL(w, s)                                                                                     \
    static inline void imul_truncating##w(struct vcpu *vcpu, const struct op *op, uint##w##_t a, uint##w##_t b) \
    {                                                                                                         \
        uint32_t packed = (uint32_t)flags_pack(vcpu->rflags);                                                 \
        asm(FLAGS_LOAD "imul" s " %[b], %[a]\n\t" FLAGS_SAVE : [a] "+r"(a), "+&a"(packed) : [b] "r"(b) : "cc"); \
        flags_set(vcpu, packed);                                                                              \
        set_reg##w(vcpu, op->dst, a);                                                                         \
    }                                                                                                         \
    static struct block *imul##w##_r(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        imul_truncating##w(vcpu, op, reg##w(vcpu, op->dst), reg##w(vcpu, op->src));                           \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *imul##w##_ri(struct vcpu *vcpu, const struct op *op)                                 \
    {                                                                                                         \
        imul_truncating##w(vcpu, op, reg##w(vcpu, op->src), (uint##w##_t)op->imm);                            \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *imul##w##_m(struct vcpu *vcpu, const struct op *op)                                  \
    {                                                                                                         \
        struct slow_value source = far_load(vcpu, op, w / 8);                                                 \
        if (!source.ok)                                                                                       \
            return leave_fault(vcpu, op);                                                                     \
        uint##w##_t factor = op->flags & OP_IMMEDIATE ? (uint##w##_t)op->imm : reg##w(vcpu, op->dst);         \
        imul_truncating##w(vcpu, op, (uint##w##_t)source.value, factor);                                      \
        NEXT;                                                                                                 \
    }
DEFINE_IMUL(16, "w")
DEFINE_IMUL(32, "l")
DEFINE_IMUL(64, "q")

static op_fn *const imul_table[3][3] = {
    { imul16_r, imul16_ri, imul16_m }, { imul32_r, imul32_ri, imul32_m }, { imul64_r, imul64_ri, imul64_m },
};

op_fn *pick_imul(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    if (insn->operand_count == 1)
        return op_imul_wide;
    unsigned form = op->flags & OP_MEMORY ? 2 : insn->operand_count == 3 ? 1 : 0;
    return imul_table[size_index(op->size) - 1][form];
}

/* --- DIV, IDIV: the quotient is checked before the host divides, so that #DE is the guest's and not ours --- */

static bool div_fits(unsigned __int128 dividend, uint64_t divisor, unsigned size)
{
    return divisor && (uint64_t)(dividend >> (size * 8)) < divisor;
}

static bool idiv_fits(__int128 dividend, int64_t divisor, unsigned size)
{
    if (!divisor)
        return false;
    unsigned __int128 n = dividend < 0 ? -(unsigned __int128)dividend : (unsigned __int128)dividend;
    uint64_t d = divisor < 0 ? -(uint64_t)divisor : (uint64_t)divisor;
    uint64_t limit = 1ull << (size * 8 - 1);        /* magnitude of the most negative quotient */
    unsigned __int128 quotient = n / d;
    bool negative = (dividend < 0) != (divisor < 0);
    return negative ? quotient <= limit : quotient < limit;
}

#define DIVIDE_HOST(name, s)                                                                                  \
    asm(FLAGS_LOAD "mov %[low], %%rax\n\t" name s " %[d]\n\tmov %%rax, %[q]\n\t" FLAGS_SAVE                   \
        : "+&a"(packed), [q] "=&r"(quotient), "+&d"(high) : [low] "r"(low), [d] "r"(d) : "cc")

#define DIVIDE_CASE(w, s)                                                                                     \
    case w / 8: {                                                                                             \
        uint##w##_t d = (uint##w##_t)divisor;                                                                 \
        if (is_signed)                                                                                        \
            DIVIDE_HOST("idiv", s);                                                                           \
        else                                                                                                  \
            DIVIDE_HOST("div", s);                                                                            \
        break;                                                                                                \
    }

static bool divide(struct vcpu *vcpu, unsigned size, bool is_signed, uint64_t divisor)
{
    uint64_t packed = flags_pack(vcpu->rflags), quotient = 0, low, high;
    unsigned width = size * 8;
    low = reg_get(vcpu, GPR_OFFSET(RAX), size == 1 ? 2 : size);
    high = size == 1 ? (uint8_t)(low >> 8) : reg_get(vcpu, GPR_OFFSET(RDX), size);
    unsigned __int128 dividend = (unsigned __int128)high << width | (low & size_mask(size));
    bool fits = is_signed ? idiv_fits((__int128)(dividend << (128 - 2 * width)) >> (128 - 2 * width),
                                      (int64_t)sign_extend(divisor, width), size)
                          : div_fits(dividend, divisor, size);
    if (!fits)
        return x86_raise(vcpu, VEC_DE);
    switch (size) { WIDTHS(DIVIDE_CASE) }
    if (size == 1) {
        set_reg16(vcpu, GPR_OFFSET(RAX), (uint16_t)quotient);
    } else {
        reg_set(vcpu, GPR_OFFSET(RAX), size, quotient);
        reg_set(vcpu, GPR_OFFSET(RDX), size, high);
    }
    flags_set(vcpu, (uint32_t)packed);
    return true;
}

OP_BODY(op_div)
{
    struct slow_value source = single_source(vcpu, op);
    return source.ok && divide(vcpu, op->size, false, source.value);
}

OP_BODY(op_idiv)
{
    struct slow_value source = single_source(vcpu, op);
    return source.ok && divide(vcpu, op->size, true, source.value);
}

/* --- XADD, CMPXCHG --- */

#define XADD_REGISTER_CASE(w, s)                                                                              \
    case w / 8: {                                                                                             \
        uint##w##_t a = reg##w(vcpu, op->dst), b = reg##w(vcpu, op->src);                                     \
        uint##w##_t sum = a;                                                                                  \
        asm("add" s " %[b], %[sum]\n\t" FLAGS_SAVE : [sum] "+r"(sum), "=&a"(packed) : [b] "r"(b) : "cc");     \
        set_reg##w(vcpu, op->src, a);                                                                         \
        set_reg##w(vcpu, op->dst, sum);                                                                       \
        break;                                                                                                \
    }

/* XADD r, r: the destination is written last and holds the sum, even if both are one register. */
static bool xadd_registers(struct vcpu *vcpu, const struct op *op)
{
    uint32_t packed = 0;
    switch (op->size) { WIDTHS(XADD_REGISTER_CASE) }
    flags_set(vcpu, packed);
    return true;
}

#define XADD_CASE(w, s)                                                                                       \
    case w / 8: {                                                                                             \
        uint##w##_t v = reg##w(vcpu, op->src);                                                                \
        asm volatile("lock xadd" s " %[v], %[m]\n\t" FLAGS_SAVE                                               \
                     : [v] "+r"(v), [m] "+m"(*(uint##w##_t *)place.at), "=&a"(packed) : : "cc", "memory");    \
        old = v;                                                                                              \
        break;                                                                                                \
    }

OP_BODY(op_xadd)
{
    struct place place;
    uint32_t packed = 0;
    uint64_t old = 0;
    place_open(vcpu, op, op->size, &place);
    if (!place.at)
        return false;
    if (place.register_)
        return xadd_registers(vcpu, op);
    switch (op->size) { WIDTHS(XADD_CASE) }
    if (!place_close(vcpu, &place))
        return false;
    reg_set(vcpu, op->src, op->size, old);
    flags_set(vcpu, packed);
    return true;
}

#define CMPXCHG_CASE(w, s)                                                                                    \
    case w / 8: {                                                                                             \
        uint##w##_t a = reg##w(vcpu, GPR_OFFSET(RAX)), b = reg##w(vcpu, op->src), seen;                       \
        uint64_t saved;                                                                                       \
        asm volatile("lock cmpxchg" s " %[b], %[m]\n\tmov %%rax, %[saved]\n\t" FLAGS_SAVE                     \
                     : "=&a"(packed), [saved] "=&r"(saved), [m] "+m"(*(uint##w##_t *)place.at)                \
                     : "0"((uint64_t)a), [b] "r"(b) : "cc", "memory");                                        \
        seen = (uint##w##_t)saved;                                                                            \
        old = seen;                                                                                           \
        break;                                                                                                \
    }

/* The memory form writes in either case (SDM2 CMPXCHG); the accumulator is loaded only when the comparison failed. */
OP_BODY(op_cmpxchg)
{
    struct place place;
    uint64_t packed = 0, old = 0;
    place_open(vcpu, op, op->size, &place);
    if (!place.at)
        return false;
    switch (op->size) { WIDTHS(CMPXCHG_CASE) }
    bool equal = packed & (RFLAGS_ZF << 8);
    if (place.register_ && !equal && op->size == 4)
        place.register_ = false;        /* a register destination is not written then */
    if (!place_close(vcpu, &place))
        return false;
    if (!equal)
        reg_set(vcpu, GPR_OFFSET(RAX), op->size, old);
    flags_set(vcpu, (uint32_t)packed);
    return true;
}

/* CMPXCHG8B, CMPXCHG16B: only ZF changes. */
OP_BODY(op_cmpxchg8b)
{
    struct place place;
    place_open(vcpu, op, 8, &place);
    if (!place.at)
        return false;
    uint64_t expected = (uint64_t)reg32(vcpu, GPR_OFFSET(RDX)) << 32 | reg32(vcpu, GPR_OFFSET(RAX));
    uint64_t desired = (uint64_t)reg32(vcpu, GPR_OFFSET(RCX)) << 32 | reg32(vcpu, GPR_OFFSET(RBX));
    bool equal = __atomic_compare_exchange_n((uint64_t *)place.at, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    if (!place_close(vcpu, &place))
        return false;
    if (!equal) {
        set_reg32(vcpu, GPR_OFFSET(RAX), (uint32_t)expected);
        set_reg32(vcpu, GPR_OFFSET(RDX), (uint32_t)(expected >> 32));
    }
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_ZF) | (equal ? RFLAGS_ZF : 0);
    return true;
}

OP_BODY(op_cmpxchg16b)
{
    struct place place;
    /* Misaligned is #GP(0) even where the address is not canonical and the stack's: that would be #SS. */
    if ((op_offset(vcpu, op) + reg64(vcpu, op->seg_base)) & 15)
        return x86_raise_error(vcpu, VEC_GP, 0);
    struct slow_value linear = far_linear(vcpu, op, 16, true);
    if (!linear.ok)
        return false;
    place_open_at(vcpu, op, linear.value, 16, &place);
    if (!place.at)
        return false;
    bool equal;
    uint64_t low = vcpu->gpr[RAX], high = vcpu->gpr[RDX];
    struct { uint64_t half[2]; } *at = place.at;
    asm volatile("lock cmpxchg16b %[m]\n\tsete %[equal]"
                 : [m] "+m"(*at), [equal] "=q"(equal), "+a"(low), "+d"(high)
                 : "b"(vcpu->gpr[RBX]), "c"(vcpu->gpr[RCX]) : "cc", "memory");
    if (!place_close(vcpu, &place))
        return false;
    if (!equal) {
        vcpu->gpr[RAX] = low;
        vcpu->gpr[RDX] = high;
    }
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_ZF) | (equal ? RFLAGS_ZF : 0);
    return true;
}
