/*
 * Flags made again: the instruction that wrote them is carried out once more on what it had, where nobody sees the result. That is in its registers yet (CMP,
 * TEST), follows from what it made of them (logic, ADD, SUB, NEG), or else is kept in the frame before it overwrites it, if something
 * that may want it is near: a shift's operand, and that of ADC and SBB, from which with the result the carry follows that went in.
 */
#include "engine/dbt/plan.h"

enum again {
    AGAIN_NOT,
    AGAIN_AS_IT_IS,
    AGAIN_RESULT,               /* TEST of it with itself */
    AGAIN_UNDONE,               /* the reverse, and the instruction once more */
    AGAIN_NEGATED,
    AGAIN_SHIFT, AGAIN_CARRY, AGAIN_LOADED,     /* with what is kept; the last: a sum with what was in memory */
};

static bool in_register(const ZydisDecodedOperand *operand) { return plan_is_gpr(operand) && !plan_is_high_byte(operand); }

static bool in_register_or_constant(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER ? in_register(operand) : operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static enum again way_of(const struct planned *p)
{
    const ZydisDecodedOperand *a = &p->operand[0], *b = &p->operand[1];
    bool encoded = p->kind == KIND_MODRM, two = p->z.operand_count_visible == 2;
    if ((!encoded && p->kind != KIND_VERBATIM) || p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || !p->z.operand_count_visible || !in_register(a))
        return AGAIN_NOT;
    bool same = two && plan_is_gpr(b) && plan_gpr(a) == plan_gpr(b), reads = two && in_register_or_constant(b);
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST:
        return reads ? AGAIN_AS_IT_IS : AGAIN_NOT;
    case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR:
        return AGAIN_RESULT;
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB:
        return same ? AGAIN_NOT : reads ? AGAIN_UNDONE : p->memory ? AGAIN_LOADED : AGAIN_NOT;
    case ZYDIS_MNEMONIC_NEG:
        return encoded ? AGAIN_NEGATED : AGAIN_NOT;
    case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR:
        return encoded && !p->reads_flags ? AGAIN_SHIFT : AGAIN_NOT;
    case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SBB:
        return encoded && reads && !same && a->size >= 32 ? AGAIN_CARRY : AGAIN_NOT;
    default:
        return AGAIN_NOT;
    }
}

bool is_replayable(const struct planned *p)
{
    enum again way = way_of(p);
    return way != AGAIN_NOT && (way < AGAIN_SHIFT || p->kept);
}

static uint16_t bit_of(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER ? (uint16_t)(1u << plan_gpr(operand)) : 0;
}

uint16_t replay_registers(const struct planned *p)
{
    switch (way_of(p)) {
    case AGAIN_SHIFT:
        return 0;
    case AGAIN_RESULT: case AGAIN_NEGATED: case AGAIN_LOADED:
        return bit_of(&p->operand[0]);
    default:
        return bit_of(&p->operand[0]) | bit_of(&p->operand[1]);
    }
}

/* --- what is kept --- */

/* May something of ours overwrite the flags, before the guest does? */
static bool may_be_lost(const struct work *w)
{
    for (unsigned i = w->i + 1; i < w->count; i++) {
        if (w->plan[i].may_fault)
            return true;
        if (w->plan[i].writes_flags && !w->plan[i].reads_flags)
            return false;
    }
    return false;
}

/* Two places, since until the instruction is through the flags before it may be wanted, too. */
void keep_original(struct work *w)
{
    struct planned *p = present(w);
    if (w->window || way_of(p) < AGAIN_SHIFT || !may_be_lost(w))
        return;
    p->kept = w->replay != NO_REPLAY && w->plan[w->replay].kept == FRAME_KEPT ? FRAME_KEPT_TOO : FRAME_KEPT;
    emit_store(&w->e, rm_frame(p->kept), emit_get(w, plan_gpr(&p->operand[0]), S1));
}

/* --- once more --- */

static struct rm rm_guest(unsigned guest)
{
    return host_register(guest) == HOST_NONE ? rm_home(guest) : rm_reg(host_register(guest));
}

static unsigned how_of(unsigned size)
{
    return size == 64 ? EMIT_W : size == 16 ? EMIT_16 : size == 8 ? EMIT_REX : 0;
}

/* S3 is used. */
static void emit_to_scratch(struct work *w, struct rm from)
{
    drop_near_now(w);
    emit_load(&w->e, S3, from);
}

/* The register of the host that has the guest's, or S3 with its value. */
static unsigned emit_value(struct work *w, unsigned guest)
{
    if (host_register(guest) != HOST_NONE)
        return host_register(guest);
    emit_to_scratch(w, rm_home(guest));
    return S3;
}

/* The instruction with its first operand in `a`, and the opcode changed by `change`: an addition becomes a subtraction and the reverse. */
static void emit_again(struct work *w, const struct planned *p, unsigned a, unsigned change)
{
    if (p->kind == KIND_VERBATIM) {     /* AL or EAX and a constant */
        unsigned opcode_at = p->op->length - 1u - p->z.raw.imm[0].size / 8u;
        for (unsigned i = 0; i < p->op->length; i++)
            emit8(&w->e, i == opcode_at ? p->bytes[i] ^ change : p->bytes[i]);
        if (p->z.raw.imm[0].size == 32)
            reloc_note_constant(w->e.relocs, w->e.at - 4);
        return;
    }
    const ZydisDecodedOperand *b = &p->operand[1];
    if (!plan_is_gpr(b)) {              /* a constant: ModRM.reg is part of the opcode */
        emit_copy(&w->e, p, p->z.opcode, p->z.raw.modrm.reg ^ change >> 3, 0, rm_reg(a));
        return;
    }
    enum { TO_REGISTER = 2 };           /* of two operands: ModRM.reg is the first one */
    unsigned opcode = p->z.mnemonic == ZYDIS_MNEMONIC_TEST ? p->z.opcode : (p->z.opcode | TO_REGISTER) ^ change;
    emit_copy(&w->e, p, opcode, a, 0, rm_guest(plan_gpr(b)));
}

enum { ADD_TO_SUB = 0x28, ADC_TO_SUB = 0x38, SBB_TO_SUB = 0x30 };
enum { OPCODE_SUB_TO_REGISTER = 0x2B, OPCODE_ADD_TO_REGISTER = 0x03, OPCODE_CMP = 0x39, OPCODE_TEST = 0x85, GROUP_NEG = 3 };

/* The full-size opcode, or that of bytes. */
static void emit_sized(struct work *w, unsigned size, unsigned opcode, unsigned reg, struct rm rm)
{
    emit_insn(&w->e, how_of(size), size == 8 ? opcode & ~1u : opcode, reg, rm, 0);
}

/* S3 = by how much the result is more than what is kept, or less. */
static void emit_difference(struct work *w, const struct planned *p, bool adds)
{
    struct rm result = rm_guest(plan_gpr(&p->operand[0])), kept = rm_frame(p->kept);
    emit_to_scratch(w, adds ? result : kept);
    emit_sized(w, p->operand[0].size, OPCODE_SUB_TO_REGISTER, S3, adds ? kept : result);
}

/* Result = what is kept + the other operand + carry, or the same with minus. */
static void emit_carry_again(struct work *w, const struct planned *p)
{
    bool adds = p->z.mnemonic == ZYDIS_MNEMONIC_ADC;
    emit_difference(w, p, adds);
    emit_again(w, p, S3, adds ? ADC_TO_SUB : SBB_TO_SUB);
    emit_sized(w, p->operand[0].size, 0xF7, GROUP_NEG, rm_reg(S3));
    emit_load(&w->e, S3, rm_frame(p->kept));
    emit_again(w, p, S3, 0);
}

static void emit_loaded_again(struct work *w, const struct planned *p)
{
    unsigned size = p->operand[0].size;
    struct rm kept = rm_frame(p->kept);
    bool adds = p->z.mnemonic == ZYDIS_MNEMONIC_ADD;
    emit_difference(w, p, adds);
    if (adds)
        emit_sized(w, size, OPCODE_ADD_TO_REGISTER, S3, kept);
    else
        emit_sized(w, size, OPCODE_CMP, S3, kept);
}

void emit_replay(struct work *w, unsigned from)
{
    const struct planned *p = &w->plan[from];
    unsigned guest = plan_gpr(&p->operand[0]), a;
    switch (way_of(p)) {
    case AGAIN_RESULT:
        a = emit_value(w, guest);
        emit_sized(w, p->operand[0].size, OPCODE_TEST, a, rm_reg(a));
        break;
    case AGAIN_UNDONE:
        a = emit_value(w, guest);
        emit_again(w, p, a, ADD_TO_SUB);
        emit_again(w, p, a, 0);
        break;
    case AGAIN_NEGATED:
        a = emit_value(w, guest);
        emit_sized(w, p->operand[0].size, 0xF7, GROUP_NEG, rm_reg(a));
        emit_sized(w, p->operand[0].size, 0xF7, GROUP_NEG, rm_reg(a));
        break;
    case AGAIN_SHIFT:
        emit_to_scratch(w, rm_frame(p->kept));
        emit_copy(&w->e, p, p->z.opcode, p->z.raw.modrm.reg, 0, rm_reg(S3));
        break;
    case AGAIN_CARRY:
        emit_carry_again(w, p);
        break;
    case AGAIN_LOADED:
        emit_loaded_again(w, p);
        break;
    default:
        emit_again(w, p, emit_value(w, guest), 0);
        break;
    }
}
