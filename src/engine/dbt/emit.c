#include "engine/dbt/emit.h"

static void emit_constant32(struct emitter *e, uint32_t value, bool note)
{
    emit32(e, value);
    if (note)
        reloc_note_constant(e->relocs, e->at - 4);
}

void emit_modrm(struct emitter *e, unsigned reg, const struct rm *rm, unsigned after, bool wide)
{
    reg = (reg & 7) << 3;
    switch (rm->kind) {
    case RM_REG:
        emit8(e, 0xC0 | reg | (rm->base & 7));
        break;
    case RM_VCPU:
        emit8(e, reg | 4);
        emit8(e, 0x25);                         /* SIB: no base, no index: an absolute displacement, relative to GS */
        emit32(e, (uint32_t)rm->disp);
        break;
    case RM_DATA:
        emit8(e, reg | 5);
        emit_data(e, rm->data, after);
        break;
    default: {
        wide |= rm->guest;
        bool no_base = rm->base == HOST_NONE, small = rm->disp == (int8_t)rm->disp && !wide;
        unsigned mod = no_base || (rm->disp == 0 && (rm->base & 7) != 5 && !wide) ? 0 : small ? 0x40 : 0x80;
        if (rm->index != HOST_NONE || no_base || (rm->base & 7) == 4) {
            emit8(e, mod | reg | 4);
            emit8(e, (unsigned)rm->scale << 6 | (rm->index == HOST_NONE ? 4 : rm->index & 7u) << 3 |
                     (no_base ? 5 : rm->base & 7u));
        } else {
            emit8(e, mod | reg | (rm->base & 7));
        }
        if (rm->guest)
            reloc_note_guest(e->relocs, e->at, RELOC_GUEST_SIGN, (uint64_t)rm->disp);
        if (mod == 0x40)
            emit8(e, (uint8_t)rm->disp);
        else if (mod == 0x80 || no_base)
            emit_constant32(e, (uint32_t)rm->disp, !rm->guest);
    }
    }
}

void emit_insn(struct emitter *e, unsigned how, unsigned opcode, unsigned reg, struct rm rm, unsigned after)
{
    unsigned rex = (how & EMIT_W ? 8 : 0) | (reg & 8 ? 4 : 0);
    if (rm.kind == RM_REG || rm.kind == RM_MEMORY)
        rex |= rm.base != HOST_NONE && rm.base & 8 ? 1 : 0;
    if (rm.kind == RM_MEMORY && rm.index != HOST_NONE && rm.index & 8)
        rex |= 2;
    if (rm.kind == RM_VCPU)
        emit8(e, 0x65);
    if (how & EMIT_LOCK)
        emit8(e, 0xF0);
    if (how & EMIT_16)
        emit8(e, 0x66);
    if (how & EMIT_F3)
        emit8(e, 0xF3);
    if (rex || how & EMIT_REX)
        emit8(e, 0x40 | rex);
    if (how & EMIT_0F)
        emit8(e, 0x0F);
    emit8(e, opcode);
    emit_modrm(e, reg, &rm, after, how & EMIT_WIDE);
}

void emit_data(struct emitter *e, const void *data, unsigned after)
{
    reloc_note(e->relocs, e->at, RELOC_RELATIVE, 0);
    emit32(e, (uint32_t)((const uint8_t *)data - (emit_here(e) + 4 + after)));
}

void emit_load(struct emitter *e, unsigned reg, struct rm from) { emit_insn(e, EMIT_W, 0x8B, reg, from, 0); }
void emit_store(struct emitter *e, struct rm to, unsigned reg) { emit_insn(e, EMIT_W, 0x89, reg, to, 0); }
void emit_lea(struct emitter *e, unsigned reg, struct rm rm) { emit_insn(e, EMIT_W, 0x8D, reg, rm, 0); }

void emit_move(struct emitter *e, unsigned to, unsigned from)
{
    if (to != from)
        emit_insn(e, EMIT_W, 0x8B, to, rm_reg(from), 0);
}

/* With what is added to the address of the next instruction. */
static void emit_lea_relative(struct emitter *e, unsigned reg)
{
    emit8(e, 0x48 | (reg & 8 ? 4 : 0));
    emit8(e, 0x8D);
    emit8(e, (reg & 7) << 3 | 5);
    emit32(e, 0);
}

void emit_lea_next(struct emitter *e, unsigned reg) { emit_lea_relative(e, reg); }

void emit_rotate(struct emitter *e, unsigned to, unsigned from, unsigned count)
{
    emit8(e, 0xC4);
    emit8(e, (to & 8 ? 0 : 0x80u) | 0x40u | (from & 8 ? 0 : 0x20u) | 3);
    emit8(e, 0xFB);
    emit8(e, 0xF0);
    emit8(e, 0xC0u | (to & 7) << 3 | (from & 7));
    emit8(e, count);
}

static void emit_long_constant(struct emitter *e, unsigned reg, uint64_t value)
{
    emit8(e, 0x48 | (reg >> 3));
    emit8(e, 0xB8 | (reg & 7));
    emit64(e, value);
}

static void emit_short_constant(struct emitter *e, unsigned reg, uint64_t value, bool note)
{
    if (value == (uint32_t)value) {
        if (reg & 8)
            emit8(e, 0x41);
        emit8(e, 0xB8 | (reg & 7));
        emit_constant32(e, (uint32_t)value, note);
    } else if (value == (uint64_t)(int64_t)(int32_t)value) {
        emit_insn(e, EMIT_W, 0xC7, 0, rm_reg(reg), 4);
        emit_constant32(e, (uint32_t)value, note);
    } else {
        emit_long_constant(e, reg, value);
    }
}

uint8_t *emit_blank_constant(struct emitter *e, unsigned reg)
{
    emit_long_constant(e, reg, 0);
    return e->at - 8;
}

void emit_constant(struct emitter *e, unsigned reg, uint64_t value) { emit_short_constant(e, reg, value, true); }

void emit_guest_address(struct emitter *e, unsigned reg, uint64_t gla)
{
    bool zero = gla == (uint32_t)gla, sign = gla == (uint64_t)(int64_t)(int32_t)gla;
    emit_short_constant(e, reg, gla, false);
    if (zero || sign)
        reloc_note_guest(e->relocs, e->at - 4, zero ? RELOC_GUEST_ZERO : RELOC_GUEST_SIGN, gla);
    else
        reloc_note_guest(e->relocs, e->at - 8, RELOC_GUEST64, gla);
}

void emit_minus_guest_address(struct emitter *e, unsigned reg, uint64_t gla)
{
    emit8(e, reg & 8 ? 0x49 : 0x48);
    emit8(e, 0xB8 | (reg & 7));
    emit64(e, -gla);
    reloc_note_guest(e->relocs, e->at - 8, RELOC_GUEST_MINUS, gla);
}

void emit_target(const struct emitter *e, uint8_t *field, const uint8_t *target)
{
    int32_t relative = (int32_t)(target - (field + e->shift + 4));
    memcpy(field, &relative, 4);
    reloc_note_jump(e->relocs, field, target - e->shift);
}

void emit_lea_target(struct emitter *e, unsigned reg, const uint8_t *target)
{
    emit_lea_relative(e, reg);
    emit_target(e, e->at - 4, target);
}

uint8_t *emit_jump(struct emitter *e, unsigned opcode, const uint8_t *target)
{
    emit8(e, opcode);
    if (e->relocs && target < e->relocs->code + e->shift)      /* shared code, which lies before all translations */
        reloc_note(e->relocs, e->at, RELOC_RELATIVE, 0);
    e->at += 4;
    emit_target(e, e->at - 4, target);
    return e->at - 4;
}

uint8_t *emit_jcc(struct emitter *e, unsigned cc, const uint8_t *target)
{
    emit8(e, 0x0F);
    return emit_jump(e, 0x80 | cc, target);
}
