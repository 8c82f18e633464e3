/*
 * REP STOS and REP MOVS upward: the host's own instruction. Everything else is for the instruction's site.
 *
 * What is longer than the elements that the interpreter has left (interp.h) is the site's, so that both stop at the same element.
 *
 * Checked, elements must lie in one page each of source and destination, and it comes between two look-ups in the TLB. Kernels clear and copy a
 * few words so all the time.
 *
 * With windows the processor itself finds where it cannot go on: what begins in a window meets a page that is not shown, or the guard, at the
 * latest. What it has done by then is done, and RCX, RSI and RDI say how much (SDM2 REP); trap.c makes guest addresses of them, and the
 * interpreter goes on there. So many elements that somebody might wait for them are the site's, which looks at requests in between.
 */
#include "engine/dbt/plan.h"

enum { CC_A = 7, OPCODE_MOVS = 0xA4, OPCODE_STOS = 0xAA };
enum { MANY_SHIFT = 12 };       /* 4096 elements are too many to be done without a look at requests */

bool plan_string(const struct work *w, struct planned *p)
{
    unsigned opcode = p->z.opcode & 0xFE;
    bool moves = opcode == OPCODE_MOVS;
    if (p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || p->z.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
        (!moves && opcode != OPCODE_STOS) || !(p->op->flags & OP_REP) || p->op->address_size != 8 ||
        (moves && (p->op->seg == FS || p->op->seg == GS)))
        return false;
    p->writes = (uint16_t)(1u << RCX | 1u << RDI | (moves ? 1u << RSI : 0));
    return true;
}

/* --- checked --- */

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
    emit_tlb_entry(e, S2, reg, rm_frame(FRAME_TLB));
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

static void translate_checked(struct work *w, const struct planned *p, bool moves)
{
    struct emitter *e = &w->e;
    unsigned size = p->op->size;
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

/* --- with windows: no flags are touched --- */

enum { SHIFT_LEFT = 1, SHIFT_RIGHT = 3 };       /* the prefixes of SHLX and SHRX as VEX has them */

/* `reg` -= `other`, which becomes its complement: minus a number is that and 1. */
static void emit_minus(struct emitter *e, unsigned reg, unsigned other)
{
    emit_insn(e, EMIT_W, 0xF7, 2, rm_reg(other), 0);    /* not */
    emit_lea(e, reg, (struct rm){ .kind = RM_MEMORY, .base = (uint8_t)reg, .index = (uint8_t)other, .disp = 1 });
}

/* `to` = `from` shifted by what is in RCX, of the low six bits. */
static void emit_shift_by_rcx(struct emitter *e, unsigned direction, unsigned to, unsigned from)
{
    emit8(e, 0xC4);
    emit8(e, (to & 8 ? 0 : 0x80u) | 0x40u | (from & 8 ? 0 : 0x20u) | 2);
    emit8(e, 0x80u | (~RCX & 15u) << 3 | direction);
    emit8(e, 0xF7);
    emit8(e, 0xC0u | (to & 7u) << 3 | (from & 7u));
}

static void emit_shift(struct emitter *e, unsigned direction, unsigned to, unsigned from, unsigned by)
{
    emit_constant(e, RCX, by);
    emit_shift_by_rcx(e, direction, to, from);
}

/*
 * Leaves if it goes downward, by more elements than are left, or by many: those bits are added up in RCX, for JRCXZ. Its value is in S2 meanwhile.
 */
static void emit_bounds_keeping_flags(struct work *w)
{
    enum { ABOVE_DF = 53, SIGN = 63 };
    static_assert(RFLAGS_DF == 1u << (SIGN - ABOVE_DF), "shifted by that much it is the sign");
    struct emitter *e = &w->e;
    emit_move(e, S2, RCX);
    emit_load(e, S1, rm_data(&w->dbt->interp.elements));
    emit_minus(e, S1, RCX);
    emit_load(e, S3, rm_vcpu(offsetof(struct vcpu, rflags)));
    emit_shift(e, SHIFT_LEFT, S3, S3, ABOVE_DF);
    emit_shift(e, SHIFT_RIGHT, S3, S3, SIGN);
    emit_shift(e, SHIFT_RIGHT, RCX, S1, SIGN);
    emit_lea(e, S3, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = RCX });
    emit_shift(e, SHIFT_RIGHT, RCX, S2, MANY_SHIFT);
    emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S3 });
    emit8(e, 0xE3);                                     /* jrcxz over the way out */
    uint8_t *fits = e->at++;
    emit_move(e, RCX, S2);
    emit_slow_jump(w);
    *fits = (uint8_t)(e->at - (fits + 1));
    emit_move(e, RCX, S2);
    emit_store(e, rm_data(&w->dbt->interp.elements), S1);
    emit_context_back(w);
    w->addend_of = NO_ADDEND;
}

/* `reg` becomes the host's address; the addend stays in S2 and in *addend. */
static void emit_to_host(struct work *w, unsigned reg, const uint64_t *addend)
{
    emit_addend(w, reg);
    emit_store(&w->e, rm_data(addend), S2);
    emit_lea(&w->e, reg, (struct rm){ .kind = RM_MEMORY, .base = (uint8_t)reg, .index = S2 });
}

static void translate_in_windows(struct work *w, const struct planned *p, bool moves)
{
    emit_bounds_keeping_flags(w);
    registers_written(w);
    if (moves) {
        emit_to_host(w, RSI, &w->dbt->string_from);
        emit_move(&w->e, S1, S2);
    }
    emit_to_host(w, RDI, &w->dbt->string_to);
    struct trap *trap = emit_note_trap(w, true);
    trap->string = true;
    trap->string_moves = moves;
    emit_repeated(&w->e, p);
    emit_minus(&w->e, RDI, S2);
    if (moves)
        emit_minus(&w->e, RSI, S1);
}

void translate_string(struct work *w, const struct planned *p)
{
    bool moves = (p->z.opcode & 0xFE) == OPCODE_MOVS;
    if (w->window)
        translate_in_windows(w, p, moves);
    else
        translate_checked(w, p, moves);
}
