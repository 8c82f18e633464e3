/* Shifts, rotates, bit tests and bit scans. */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

#define WIDTHS(X) X(8, "b") X(16, "w") X(32, "l") X(64, "q")
#define WIDE_WIDTHS(X) X(16, "w") X(32, "l") X(64, "q")
#define SHIFTS(X, w, s)                                                                                       \
    X(ROL, rol, w, s) X(ROR, ror, w, s) X(RCL, rcl, w, s) X(RCR, rcr, w, s) X(SHL, shl, w, s) X(SHR, shr, w, s) X(SAR, sar, w, s)

/*
 * --- shifts and rotates: with the guest's flags loaded, counts of zero and what is undefined come out by themselves.
 * NOTE(spec): the host runs the form with CL for all. ROL and ROR of a register by an immediate other than 1 leave OF as it was
 * on Intel processors (SDM2 RCL says undefined), where the CL and memory forms set it; AMD's set it in all. We do what the
 * host does, as its other instructions come out that way by themselves, and translated code does, too.
 */

/* Of this host; ROL of 0 by 2 with OF set. */
static bool rotate_keeps_overflow(void)
{
    uint32_t zero = 0;
    uint8_t overflow, al = 0x7F;
    asm("addb $1, %[al]\n\t roll $2, %[zero]\n\t seto %[overflow]"
        : [al] "+&r"(al), [zero] "+&r"(zero), [overflow] "=r"(overflow) : : "cc");
    return overflow;
}

#define DEFINE_SHIFT(id, name, w, s)                                                                          \
    static inline uint##w##_t name##w(struct vcpu *vcpu, uint##w##_t value, uint8_t count, bool keep_overflow)\
    {                                                                                                         \
        uint32_t packed = (uint32_t)flags_pack(vcpu->rflags), old = packed;                                   \
        asm(FLAGS_LOAD #name s " %%cl, %[v]\n\t" FLAGS_SAVE                                                   \
            : [v] "+r"(value), "+&a"(packed) : "c"(count) : "cc");                                            \
        if (SHIFT_##id <= SHIFT_ROR && keep_overflow && (count & 31) != 1)                                    \
            packed = (packed & 0xFF00) | (old & 1);                                                           \
        flags_set(vcpu, packed);                                                                              \
        return value;                                                                                         \
    }                                                                                                         \
    static struct block *name##w##_ri(struct vcpu *vcpu, const struct op *op)                                 \
    {                                                                                                         \
        set_reg##w(vcpu, op->dst, name##w(vcpu, reg##w(vcpu, op->dst), (uint8_t)op->imm, op->source_size));            \
        NEXT;                                                                                                 \
    }                                                                                                         \
    static struct block *name##w##_rc(struct vcpu *vcpu, const struct op *op)                                 \
    {                                                                                                         \
        set_reg##w(vcpu, op->dst, name##w(vcpu, reg##w(vcpu, op->dst), (uint8_t)vcpu->gpr[RCX], false));      \
        NEXT;                                                                                                 \
    }
#define DEFINE_SHIFT_WIDTH(w, s) SHIFTS(DEFINE_SHIFT, w, s)
WIDTHS(DEFINE_SHIFT_WIDTH)

#define SHIFT_CASE(id, name, w, s) case SHIFT_##id: return name##w(vcpu, value, count, false);
#define DEFINE_SHIFT_MEMORY(w, s)                                                                             \
    static uint##w##_t shift_value##w(struct vcpu *vcpu, unsigned which, uint##w##_t value, uint8_t count)    \
    {                                                                                                         \
        switch (which) { SHIFTS(SHIFT_CASE, w, s) }                                                           \
        return value;                                                                                         \
    }                                                                                                         \
    OP_BODY_STATIC(shift##w##_m)                                                                              \
    {                                                                                                         \
        struct place place;                                                                                   \
        place_open(vcpu, op, w / 8, &place);                                                                  \
        if (!place.at)                                                                                        \
            return false;                                                                                     \
        uint64_t old_flags = vcpu->rflags;                                                                    \
        uint8_t count = op->flags & OP_IMMEDIATE ? (uint8_t)op->imm : (uint8_t)vcpu->gpr[RCX];                \
        uint##w##_t value;                                                                                    \
        memcpy(&value, place.at, w / 8);                                                                      \
        value = shift_value##w(vcpu, op->sub, value, count);                                                  \
        memcpy(place.at, &value, w / 8);                                                                      \
        if (!place_close(vcpu, &place)) {                                                                     \
            vcpu->rflags = old_flags;                                                                         \
            return false;                                                                                     \
        }                                                                                                     \
        return true;                                                                                          \
    }
WIDTHS(DEFINE_SHIFT_MEMORY)

#define SHIFT_ROW(id, name, w, s) [SHIFT_##id] = { name##w##_ri, name##w##_rc, shift##w##_m },
static op_fn *const shift_table[4][SHIFT_COUNT][3] = {
    { SHIFTS(SHIFT_ROW, 8, "b") }, { SHIFTS(SHIFT_ROW, 16, "w") }, { SHIFTS(SHIFT_ROW, 32, "l") }, { SHIFTS(SHIFT_ROW, 64, "q") },
};

op_fn *pick_shift(const struct insn *insn, struct op *op, enum family family, unsigned which)
{
    op->sub = (uint8_t)which;
    unsigned form = op->flags & OP_MEMORY ? 2 : op->flags & OP_IMMEDIATE ? 0 : 1;
    op->source_size = rotate_keeps_overflow();
    return shift_table[size_index(op->size)][which][form];
}

/* --- SHLD, SHRD --- */

#define DOUBLE_SHIFT(name, w, s)                                                                              \
    asm(FLAGS_LOAD name s " %%cl, %[b], %[a]\n\t" FLAGS_SAVE                                                  \
        : [a] "+r"(a), "+&a"(packed) : [b] "r"(reg##w(vcpu, op->src)), "c"(count) : "cc")
#define DOUBLE_SHIFT_CASE(w, s)                                                                               \
    case w / 8: {                                                                                             \
        uint##w##_t a;                                                                                        \
        memcpy(&a, place.at, w / 8);                                                                          \
        if (op->sub)                                                                                          \
            DOUBLE_SHIFT("shrd", w, s);                                                                       \
        else                                                                                                  \
            DOUBLE_SHIFT("shld", w, s);                                                                       \
        memcpy(place.at, &a, w / 8);                                                                          \
        break;                                                                                                \
    }

OP_BODY_STATIC(op_double_shift)
{
    struct place place;
    place_open(vcpu, op, op->size, &place);
    if (!place.at)
        return false;
    uint32_t packed = (uint32_t)flags_pack(vcpu->rflags);
    uint8_t count = op->flags & OP_IMMEDIATE ? (uint8_t)op->imm : (uint8_t)vcpu->gpr[RCX];
    switch (op->size) { WIDE_WIDTHS(DOUBLE_SHIFT_CASE) }
    if (!place_close(vcpu, &place))
        return false;
    flags_set(vcpu, packed);
    return true;
}

op_fn *pick_double_shift(const struct insn *insn, struct op *op, enum family family, unsigned right)
{
    op->sub = (uint8_t)right;
    return op_double_shift;
}

/* --- BT BTS BTR BTC --- */

#define BIT_ASM(prefix, name, w, s)                                                                           \
    asm volatile(FLAGS_LOAD prefix name s " %[b], %[m]\n\t" FLAGS_SAVE                                        \
                 : [m] "+m"(*(uint##w##_t *)at), "+&a"(packed) : [b] "r"((uint##w##_t)bit) : "cc", "memory")
#define BIT_CASE(w, s)                                                                                        \
    case w / 8:                                                                                               \
        switch (which) {                                                                                      \
        case BIT_TEST: BIT_ASM("", "bt", w, s); break;                                                        \
        case BIT_SET: if (locked) BIT_ASM("lock ", "bts", w, s); else BIT_ASM("", "bts", w, s); break;        \
        case BIT_RESET: if (locked) BIT_ASM("lock ", "btr", w, s); else BIT_ASM("", "btr", w, s); break;      \
        default: if (locked) BIT_ASM("lock ", "btc", w, s); else BIT_ASM("", "btc", w, s);                    \
        }                                                                                                     \
        break;

/* The bit is already modulo the size, so that the host's memory form stays within *at. */
static uint32_t bit_in_place(struct vcpu *vcpu, void *at, unsigned which, unsigned size, uint64_t bit, bool locked)
{
    uint32_t packed = (uint32_t)flags_pack(vcpu->rflags);
    switch (size) { WIDE_WIDTHS(BIT_CASE) }
    return packed;
}

/* A register bit offset is signed and reaches beyond the operand (SDM2 BT); an immediate one is taken modulo the size. */
static struct slow_value bit_address(struct vcpu *vcpu, const struct op *op, bool write)
{
    uint64_t offset = op_offset(vcpu, op);
    struct slow_value linear = { 0, 0 };
    if (!(op->flags & OP_IMMEDIATE)) {
        unsigned width = op->size * 8;
        int64_t bit = (int64_t)sign_extend(reg_get(vcpu, op->src, op->size), width);
        offset += (uint64_t)((bit >> __builtin_ctz(width)) * (int64_t)op->size);
    }
    linear.ok = x86_linear(vcpu, op->seg, offset & size_mask(op->address_size), op->size, write, &linear.value);
    return linear;
}

OP_BODY_STATIC(op_bit)
{
    uint64_t bit = (op->flags & OP_IMMEDIATE ? op->imm : reg_get(vcpu, op->src, op->size)) & (op->size * 8 - 1);
    struct place place = { 0 };
    if (op->flags & OP_MEMORY) {
        struct slow_value linear = bit_address(vcpu, op, op->sub != BIT_TEST);
        if (!linear.ok)
            return false;
        if (op->sub == BIT_TEST) {
            struct slow_value value = load_slow(vcpu, linear.value, op->size, op->seg);
            if (!value.ok)
                return false;
            flags_set(vcpu, bit_in_place(vcpu, &value.value, BIT_TEST, op->size, bit, false));
            return true;
        }
        place_open_at(vcpu, op, linear.value, op->size, &place);
    } else {
        place_open(vcpu, op, op->size, &place);
        if (op->sub == BIT_TEST)
            place.register_ = false;    /* nothing is written, so the upper half stays */
    }
    if (!place.at)
        return false;
    uint32_t packed = bit_in_place(vcpu, place.at, op->sub, op->size, bit, op->flags & OP_LOCK);
    if (!place_close(vcpu, &place))
        return false;
    flags_set(vcpu, packed);
    return true;
}

op_fn *pick_bit(const struct insn *insn, struct op *op, enum family family, unsigned which)
{
    op->sub = (uint8_t)which;
    return op_bit;
}

/* --- BSF BSR POPCNT LZCNT TZCNT: the destination goes in, since BSF and BSR leave it alone for a zero source --- */

/* The whole 64-bit destination goes through the host, so that what a zero source leaves in its upper half is the host's, too. */
#define SCAN(name, sfx, k)                                                                                    \
    asm(FLAGS_LOAD name sfx " %" k "[s], %" k "[v]\n\t" FLAGS_SAVE                                              \
        : [v] "+r"(value), "+&a"(packed) : [s] "r"(source.value) : "cc")
#define DEFINE_SCAN(name, instruction)                                                                        \
    OP_BODY(name)                                                                                             \
    {                                                                                                         \
        struct slow_value source = source_get(vcpu, op, op->size);                                            \
        if (!source.ok)                                                                                       \
            return false;                                                                                     \
        uint32_t packed = (uint32_t)flags_pack(vcpu->rflags);                                                 \
        uint64_t value = reg64(vcpu, op->dst);                                                                \
        switch (op->size) {                                                                                   \
        case 2: SCAN(instruction, "w", "w"); break;                                                           \
        case 4: SCAN(instruction, "l", "k"); break;                                                           \
        default: SCAN(instruction, "q", "q");                                                                 \
        }                                                                                                     \
        set_reg64(vcpu, op->dst, value);                                                                      \
        flags_set(vcpu, packed);                                                                              \
        return true;                                                                                          \
    }
DEFINE_SCAN(op_bsf, "bsf")
DEFINE_SCAN(op_bsr, "bsr")
DEFINE_SCAN(op_popcnt, "popcnt")
DEFINE_SCAN(op_lzcnt, "lzcnt")
DEFINE_SCAN(op_tzcnt, "tzcnt")
