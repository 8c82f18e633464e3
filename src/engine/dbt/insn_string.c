/*
 * REP STOS and REP MOVS upward whose elements lie in one page each of source and destination: the host's own instruction, between
 * two look-ups in the TLB. Kernels clear and copy a few words so all the time. Everything else is for the instruction's site, and so
 * is what is longer than the elements that the interpreter has left (interp.h), so that both stop at the same element.
 */
#include "engine/dbt/plan.h"

enum { CC_A = 7, OPCODE_MOVS = 0xA4, OPCODE_STOS = 0xAA };

bool plan_string(const struct work *w, struct planned *p)
{
    unsigned opcode = p->z.opcode & 0xFE;
    bool moves = opcode == OPCODE_MOVS;
    if (w->window || p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || p->z.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
        (!moves && opcode != OPCODE_STOS) || !(p->op->flags & OP_REP) || p->op->address_size != 8 ||
        (moves && (p->op->seg == FS || p->op->seg == GS)))
        return false;
    p->writes = (uint16_t)(1u << RCX | 1u << RDI | (moves ? 1u << RSI : 0));
    return true;
}

/* Leaves unless it goes upward, by no more elements than the interpreter would do and than a page has. */
static void emit_bounds(struct work *w, unsigned size)
{
    struct emitter *e = &w->e;
    emit_insn(e, 0, 0xF6, 0, rm_vcpu(offsetof(struct vcpu, rflags) + 1), 1);        /* test */
    emit8(e, RFLAGS_DF >> 8);
    emit_slow(w, CC_NZ);
    emit_insn(e, EMIT_W, 0x3B, RCX, rm_data(&w->dbt->interp.elements), 0);          /* cmp */
    emit_slow(w, CC_A);
    emit_alu_constant(e, ALU_CMP, RCX, (int32_t)(PAGE_SIZE / size));
    emit_slow(w, CC_A);
}

/* S2 = the TLB's entry of all the elements from `reg` on, at most a page of them. */
static void emit_entry_of_all(struct work *w, unsigned reg, unsigned size, enum mmu_use use)
{
    struct emitter *e = &w->e;
    emit_tlb_entry(e, S2, reg, offsetof(struct vcpu, tlb_data));
    emit_lea(e, S3, (struct rm){ .kind = RM_MEMORY, .base = (uint8_t)reg, .index = RCX, .scale = (uint8_t)__builtin_ctz(size), .disp = -1 });
    emit_alu_constant(e, ALU_AND, S3, -(int32_t)PAGE_SIZE);
    emit_insn(e, EMIT_W, 0x3B, S3, rm_mem(S2, (int32_t)use * 8), 0);
    emit_slow(w, CC_NZ);
}

static void emit_repeated(struct emitter *e, const struct planned *p)
{
    if (p->op->size == 2)
        emit8(e, 0x66);
    emit8(e, 0xF3);
    if (p->op->size == 8)
        emit8(e, 0x48);
    emit8(e, p->z.opcode);
}

enum { ADD = 0x03, SUB = 0x2B };

void translate_string(struct work *w, const struct planned *p)
{
    struct emitter *e = &w->e;
    unsigned size = p->op->size;
    bool moves = (p->z.opcode & 0xFE) == OPCODE_MOVS;
    lose_host_flags(w);
    emit_bounds(w, size);
    if (moves) {
        emit_entry_of_all(w, RSI, size, MMU_READ);
        emit_load(e, S1, rm_mem(S2, offsetof(struct tlb_entry, addend)));
    }
    emit_entry_of_all(w, RDI, size, MMU_WRITE);
    registers_written(w);
    emit_insn(e, EMIT_W, 0x29, RCX, rm_data(&w->dbt->interp.elements), 0);          /* sub */
    emit_load(e, S2, rm_mem(S2, offsetof(struct tlb_entry, addend)));
    emit_insn(e, EMIT_W, ADD, RDI, rm_reg(S2), 0);
    if (moves)
        emit_insn(e, EMIT_W, ADD, RSI, rm_reg(S1), 0);
    emit_repeated(e, p);
    emit_insn(e, EMIT_W, SUB, RDI, rm_reg(S2), 0);
    if (moves)
        emit_insn(e, EMIT_W, SUB, RSI, rm_reg(S1), 0);
}
