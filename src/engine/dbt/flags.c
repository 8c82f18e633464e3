/*
 * Where the guest's flags are. They are in H after the instruction that wrote them, and stay there as long as code of ours
 * clobbers none. Before it does (the check of an access, which may leave), they must be elsewhere as well: in M, or in the
 * registers of the instruction that wrote them, from which it can be made again (`replay`) as long as these are as they were. That
 * costs nothing unless somebody reads them or the access leaves. With windows no code of ours touches flags, so they are always in H.
 */
#include "engine/dbt/plan.h"

#include "engine/interp/flags.h"

void emit_pack_flags(struct emitter *e)
{
    emit8(e, 0x9F);                                     /* lahf */
    emit_insn(e, EMIT_0F, 0x90, 0, rm_reg(RAX), 0);     /* seto al */
}

void emit_unpack_flags(struct emitter *e)
{
    emit8(e, 0x04);                                     /* add al, 7Fh: sets OF if AL was 1 */
    emit8(e, 0x7F);
    emit8(e, 0x9E);                                     /* sahf */
}

/* --- what this host makes of undefined ones --- */

#define SHIFT(name, count) \
    static uint32_t name##count(uint32_t value, uint16_t before) \
    { \
        uint32_t packed = before; \
        asm(FLAGS_LOAD #name " $" #count ", %[v]\n\t" FLAGS_SAVE : [v] "+r"(value), "+&a"(packed) : : "cc"); \
        return (uint16_t)packed; \
    }
SHIFT(shl, 1) SHIFT(shl, 5) SHIFT(shr, 1) SHIFT(shr, 5) SHIFT(sar, 1) SHIFT(sar, 5)

bool dbt_shifts_write_all_flags(void)
{
    enum { NONE_SET = 0x0200, ALL_SET = 0xD701 };       /* packed as in flags.h */
    static uint32_t (*const shift[])(uint32_t, uint16_t) = { shl1, shl5, shr1, shr5, sar1, sar5 };
    static const uint32_t value[] = { 0, 1, 0x10, 0x40000000, 0x80000000, 0x5A5A5A5A, 0xFFFFFFFF };
    bool same = true;
    for (unsigned i = 0; i < ARRAY_SIZE(shift); i++)
        for (unsigned j = 0; j < ARRAY_SIZE(value); j++)
            same = same && shift[i](value[j], NONE_SET) == shift[i](value[j], ALL_SET);
    return same;
}

/* --- making them again --- */

static bool in_host_register(const ZydisDecodedOperand *operand)
{
    return plan_is_gpr(operand) && !plan_is_high_byte(operand) && host_register(plan_gpr(operand)) != HOST_NONE;
}

/* May the instruction, already carried out, be replayed? Its operands are registers of the host and constants. */
static bool replayable(const struct planned *p)
{
    const ZydisDecodedOperand *a = &p->operand[0], *b = &p->operand[1];
    if ((p->kind != KIND_MODRM && p->kind != KIND_VERBATIM) || p->memory || p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
        p->z.operand_count_visible != 2 || !in_host_register(a) ||
        (b->type == ZYDIS_OPERAND_TYPE_REGISTER ? !in_host_register(b) : b->type != ZYDIS_OPERAND_TYPE_IMMEDIATE))
        return false;
    bool same = b->type == ZYDIS_OPERAND_TYPE_REGISTER && plan_gpr(a) == plan_gpr(b);
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST: case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR:
        return true;
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB:
        return !same;
    default:
        return false;
    }
}

static uint16_t replay_registers(const struct planned *p)
{
    uint16_t mask = (uint16_t)(1u << plan_gpr(&p->operand[0]));
    if (p->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
        mask |= (uint16_t)(1u << plan_gpr(&p->operand[1]));
    return mask;
}

static unsigned operand_register(const struct planned *p, ZydisOperandEncoding encoding, unsigned otherwise)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (p->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER && p->operand[i].encoding == encoding)
            return host_register(plan_gpr(&p->operand[i]));
    return otherwise;
}

/* The instruction with the opcode changed by `change`: an addition becomes a subtraction and the reverse. */
static void emit_again(struct work *w, const struct planned *p, unsigned change)
{
    if (p->kind == KIND_VERBATIM) {     /* AL or EAX and a constant */
        unsigned opcode_at = p->op->length - 1u - p->z.raw.imm[0].size / 8u;
        for (unsigned i = 0; i < p->op->length; i++)
            emit8(&w->e, i == opcode_at ? p->bytes[i] ^ change : p->bytes[i]);
        if (p->z.raw.imm[0].size == 32)
            reloc_note_constant(w->e.relocs, w->e.at - 4);
        return;
    }
    unsigned reg = operand_register(p, ZYDIS_OPERAND_ENCODING_MODRM_REG, p->z.raw.modrm.reg);
    unsigned rm = operand_register(p, ZYDIS_OPERAND_ENCODING_MODRM_RM, 0);
    bool group = (p->z.opcode & 0xFC) == 0x80;          /* ModRM.reg is part of the opcode */
    emit_copy(&w->e, p, group ? p->z.opcode : p->z.opcode ^ change, group ? reg ^ change >> 3 : reg, 0, rm_reg(rm));
}

enum { ADD_TO_SUB = 0x28 };

/* TEST of the result with itself leaves what AND, OR and XOR left. */
static void emit_test_result(struct work *w, const struct planned *p)
{
    unsigned reg = host_register(plan_gpr(&p->operand[0])), size = p->operand[0].size;
    unsigned how = size == 64 ? EMIT_W : size == 16 ? EMIT_16 : size == 8 ? EMIT_REX : 0;
    emit_insn(&w->e, how, size == 8 ? 0x84 : 0x85, reg, rm_reg(reg), 0);
}

void emit_replay(struct work *w, unsigned from)
{
    const struct planned *p = &w->plan[from];
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR:
        emit_test_result(w, p);
        break;
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB:
        emit_again(w, p, ADD_TO_SUB);
        emit_again(w, p, 0);
        break;
    default:
        emit_again(w, p, 0);
        break;
    }
}

/* --- moving them --- */

static void emit_flags_to_memory(struct work *w, unsigned scratch)
{
    emit_move(&w->e, scratch, RAX);
    emit_pack_flags(&w->e);
    emit_insn(&w->e, 0, 0x89, RAX, rm_data(&w->dbt->flags), 0);
    emit_move(&w->e, RAX, scratch);
    w->in_memory = true;
}

void want_flags_in_memory(struct work *w)
{
    if (w->in_memory)
        return;
    if (!w->in_host)
        emit_replay(w, w->replay);
    w->in_host = true;
    drop_near_now(w);
    emit_flags_to_memory(w, S3);
}

void emit_flags_to_host(struct work *w)
{
    emit_move(&w->e, S3, RAX);
    emit_insn(&w->e, 0, 0x8B, RAX, rm_data(&w->dbt->flags), 0);
    emit_unpack_flags(&w->e);
    emit_move(&w->e, RAX, S3);
}

void want_flags_in_host(struct work *w)
{
    if (w->in_host)
        return;
    if (w->in_memory) {
        drop_near_now(w);
        emit_flags_to_host(w);
    } else {
        assert(w->replay != NO_REPLAY);
        emit_replay(w, w->replay);
    }
    w->in_host = true;
}

void lose_host_flags(struct work *w)
{
    if (w->in_host && w->replay == NO_REPLAY)
        want_flags_in_memory(w);
    w->in_host = false;
}

void lose_host_flags_near(struct work *w)
{
    if (w->in_host && w->replay == NO_REPLAY && !w->in_memory)
        emit_flags_to_memory(w, S1);
    w->in_host = false;
}

/* --- what the present instruction does to all that --- */

static void keep_replay(struct work *w, const struct planned *p)
{
    if (w->replay == NO_REPLAY || !(p->writes & replay_registers(&w->plan[w->replay])))
        return;
    bool overwritten = p->writes_flags && !p->reads_flags;
    if (!w->in_host && p->flags_needed && !overwritten)
        want_flags_in_memory(w);
    w->replay = NO_REPLAY;
}

enum { DRIFT_MAX = 32 << 10 };  /* of the room that a window has on both sides for displacements */

static unsigned registers_of(struct indexed indexed)
{
    return 1u << indexed.base | (indexed.index == HOST_NONE ? 0 : 1u << indexed.index);
}

static void keep_addend(struct work *w, const struct planned *p)
{
    if (w->indexed.base != HOST_NONE && (p->writes & registers_of(w->indexed)))
        lose_held(w);
    if (w->addend_of >= ADDEND_INDEXED || !(p->writes & 1u << w->addend_of))
        return;
    if (p->adjust && p->adjust == (int16_t)p->adjust && p->adjusted == w->addend_of) {
        w->drift += p->adjust;
        if (w->drift <= DRIFT_MAX && w->drift >= -DRIFT_MAX)
            return;
    }
    w->addend_of = NO_ADDEND;
}

void registers_written(struct work *w)
{
    keep_replay(w, present(w));
    keep_addend(w, present(w));
}

void flags_written(struct work *w)
{
    const struct planned *p = present(w);
    if (!p->writes_flags)
        return;
    w->in_host = true;
    w->in_memory = false;
    w->replay = replayable(p) ? (uint16_t)w->i : NO_REPLAY;
}
