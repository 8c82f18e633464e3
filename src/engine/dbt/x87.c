/*
 * x87 and MMX in translated code. Their state stays in the processor from the first instruction that needs it until the engine
 * returns, or a handler of the interpreter wants it in the vCPU (engine/interp/native_x87.c); a trace that uses it makes sure at its
 * entry, and helpers before they come back.
 *
 * The last instruction's address, opcode and operand belong to that state. Which instruction is the last is known wherever a trace is
 * left, so only ways out note it: sites and traps with what is written down for them, the others with code. An operand's offset is
 * noted at once.
 */
#include "engine/dbt/plan.h"

#include "engine/interp/native.h"

void emit_x87_live(struct work *w)
{
    struct emitter *e = &w->e;
    emit_move(e, S2, RCX);
    emit_insn(e, 0, 0x8B, RCX, rm_vcpu(offsetof(struct vcpu, x87.live)), 0);
    emit8(e, 0xE3);                                     /* jrcxz to the load */
    emit8(e, 5);
    uint8_t *live = emit_jump(e, JUMP, emit_here(e));
    emit_jump(e, CALL, w->dbt->x87_load);
    emit_target(e, live, emit_here(e));
    emit_move(e, RCX, S2);
}

/* The check has left the linear address in S3; with windows the addend is in S2, and S1 is free or holds a part of the address. */
void emit_x87_operand(struct work *w, struct rm rm)
{
    unsigned offset = S3;
    if (w->window) {
        offset = S1;
        if (rm.base == S2)
            rm.base = HOST_NONE;
        else
            rm.index = HOST_NONE;
        lose_held(w);
        emit_lea(&w->e, S1, rm);
    }
    emit_store(&w->e, rm_vcpu(offsetof(struct vcpu, x87.last.fdp)), offset);
}

static uint16_t opcode_of(const struct planned *p)
{
    return (uint16_t)((p->z.opcode & 7) << 8 | p->z.raw.modrm.mod << 6 | p->z.raw.modrm.reg << 3 | p->z.raw.modrm.rm);
}

struct x87_noted x87_noted(const struct work *w, unsigned done)
{
    uint16_t fop = 0;
    if (!(w->t->live & LIVE_X87))
        done = 0;
    for (; done-- > 0 && w->plan[done].kind != KIND_SITE;) {
        const struct planned *p = &w->plan[done];
        if (p->noted)
            return (struct x87_noted){ .in_page = p->rip & PAGE_MASK, .fop = fop ? fop : opcode_of(p) };
        if (p->z.mnemonic == ZYDIS_MNEMONIC_FLDCW)
            fop = X87_NONE;
    }
    return (struct x87_noted){ .in_page = X87_NONE, .fop = fop };
}

void emit_x87_noted(struct work *w, unsigned done)
{
    const struct x87_noted noted = x87_noted(w, done);
    const struct rm fop = rm_vcpu(offsetof(struct vcpu, x87.last.fop));
    if (noted.in_page != X87_NONE) {
        emit_guest_address(&w->e, S1, (w->t->rip & ~PAGE_MASK) | noted.in_page);
        emit_store(&w->e, rm_vcpu(offsetof(struct vcpu, x87.last.fip)), S1);
    }
    if (noted.fop == X87_NONE) {
        emit_insn(&w->e, 0, 0x8B, S1, rm_vcpu(offsetof(struct vcpu, x87.before.fop)), 0);
        emit_insn(&w->e, 0, 0x89, S1, fop, 0);
    } else if (noted.in_page != X87_NONE) {
        emit_insn(&w->e, 0, 0xC7, 0, fop, 4);
        emit32(&w->e, noted.fop);
    }
}

void dbt_note_x87(struct vcpu *vcpu, const struct translation *t, struct x87_noted noted)
{
    struct x87_live *x87 = &vcpu->x87;
    if (noted.in_page != X87_NONE) {
        x87->last.fip = (t->rip & ~PAGE_MASK) | noted.in_page;
        x87->last.fop = noted.fop;
    }
    if (noted.fop == X87_NONE)
        x87->last.fop = x87->before.fop;
}
