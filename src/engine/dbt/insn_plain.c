/* Instructions that are copied, and the stack. */
#include "engine/dbt/plan.h"

static unsigned prefixes(const struct planned *p)
{
    unsigned how = 0;
    if ((p->z.attributes & ZYDIS_ATTRIB_HAS_REX) && p->z.raw.rex.W)
        how |= EMIT_W;
    if (p->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
        how |= EMIT_16;
    if (p->z.opcode_map == ZYDIS_OPCODE_MAP_0F)
        how |= EMIT_0F;
    if (p->z.attributes & ZYDIS_ATTRIB_HAS_LOCK)
        how |= EMIT_LOCK;
    if (p->z.mnemonic == ZYDIS_MNEMONIC_POPCNT)
        how |= EMIT_F3;
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (p->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER && p->operand[i].size == 8)
            how |= EMIT_REX;
    return how;
}

static void copy_immediate(struct work *w, const struct planned *p)
{
    for (unsigned i = 0; i < p->z.raw.imm[0].size / 8u; i++)
        emit8(&w->e, p->bytes[p->z.raw.imm[0].offset + i]);
}

static void flags_written(struct work *w, const struct planned *p)
{
    if (p->writes_flags) {
        w->in_host = true;
        w->in_memory = false;
    }
}

static const ZydisDecodedOperand *operand_in(const struct planned *p, ZydisOperandEncoding encoding)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (p->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER && p->operand[i].encoding == encoding)
            return &p->operand[i];
    return NULL;
}

void translate_modrm(struct work *w, const struct planned *p)
{
    const ZydisDecodedOperand *reg = operand_in(p, ZYDIS_OPERAND_ENCODING_MODRM_REG);
    const ZydisDecodedOperand *rm = operand_in(p, ZYDIS_OPERAND_ENCODING_MODRM_RM);
    struct rm place = rm_mem(S1, 0);
    unsigned number = p->z.raw.modrm.reg;
    if (p->memory) {
        bool locked = (p->z.attributes & ZYDIS_ATTRIB_HAS_LOCK) || p->z.mnemonic == ZYDIS_MNEMONIC_XCHG;
        emit_address(w, p->memory);
        emit_check(w, p->memory->size / 8, plan_writes(p->memory) ? MMU_WRITE : MMU_READ, locked);
    }
    if (p->reads_flags)
        want_flags_in_host(w);
    if (rm)
        place = rm_reg(emit_get(w, plan_gpr(rm), S1));
    if (reg)
        number = rm && plan_gpr(rm) == plan_gpr(reg) ? place.base : emit_get(w, plan_gpr(reg), S3);
    emit_insn(&w->e, prefixes(p), p->z.opcode, number, place, p->z.raw.imm[0].size / 8);
    copy_immediate(w, p);
    flags_written(w, p);
    if (rm && plan_writes(rm))
        emit_put(w, plan_gpr(rm), place.base);
    if (reg && plan_writes(reg))
        emit_put(w, plan_gpr(reg), number);
}

void translate_opcode_reg(struct work *w, const struct planned *p)
{
    const ZydisDecodedOperand *operand = operand_in(p, ZYDIS_OPERAND_ENCODING_OPCODE);
    unsigned how = prefixes(p), reg = emit_get(w, plan_gpr(operand), S1);
    if (how & EMIT_16)
        emit8(&w->e, 0x66);
    if (how & (EMIT_W | EMIT_REX) || reg & 8)
        emit8(&w->e, 0x40 | (how & EMIT_W ? 8 : 0) | (reg >> 3));
    if (how & EMIT_0F)
        emit8(&w->e, 0x0F);
    emit8(&w->e, (p->z.opcode & 0xF8u) | (reg & 7));
    copy_immediate(w, p);
    emit_put(w, plan_gpr(operand), reg);
}

void translate_lea(struct work *w, const struct planned *p)
{
    ZydisDecodedOperand memory = *p->memory;
    unsigned guest = plan_gpr(&p->operand[0]);
    memory.mem.segment = ZYDIS_REGISTER_DS;             /* LEA knows no segments */
    emit_address(w, &memory);
    if (p->operand[0].size == 32)
        emit_insn(&w->e, 0, 0x8B, S1, rm_reg(S1), 0);
    emit_set(w, guest, S1);
}

/* --- the stack --- */

void translate_push(struct work *w, const struct planned *p)
{
    const ZydisDecodedOperand *operand = &p->operand[0];
    emit_lea(&w->e, S1, rm_mem(R14, -8));
    emit_check(w, 8, MMU_WRITE, false);
    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        emit_insn(&w->e, EMIT_W, 0xC7, 0, rm_mem(S1, 0), 4);
        emit32(&w->e, (uint32_t)operand->imm.value.s);
    } else {
        emit_store(&w->e, rm_mem(S1, 0), emit_get(w, plan_gpr(operand), S3));
    }
    emit_move_rsp(w, -8);
}

void translate_pop(struct work *w, const struct planned *p)
{
    unsigned guest = plan_gpr(&p->operand[0]);
    emit_move(&w->e, S1, R14);
    emit_check(w, 8, MMU_READ, false);
    emit_load(&w->e, S3, rm_mem(S1, 0));
    emit_move_rsp(w, 8);
    emit_set(w, guest, S3);
}

void translate_leave(struct work *w, const struct planned *p)
{
    emit_move(&w->e, S1, RBP);
    emit_check(w, 8, MMU_READ, false);
    emit_lea(&w->e, R14, rm_mem(RBP, 8));
    emit_load(&w->e, RBP, rm_mem(S1, 0));
}
