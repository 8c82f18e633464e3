/* Instructions that are copied, and the stack. */
#include "engine/dbt/plan.h"

/* --- registers --- */

unsigned emit_get(struct work *w, unsigned guest, unsigned scratch)
{
    unsigned host = host_register(guest);
    if (host != HOST_NONE)
        return host;
    emit_load(&w->e, scratch, rm_vcpu(GPR_OFFSET(guest)));
    return scratch;
}

void emit_put(struct work *w, unsigned guest, unsigned from)
{
    if (host_register(guest) == HOST_NONE)
        emit_store(&w->e, rm_vcpu(GPR_OFFSET(guest)), from);
}

void emit_set(struct work *w, unsigned guest, unsigned from)
{
    if (host_register(guest) == HOST_NONE)
        emit_store(&w->e, rm_vcpu(GPR_OFFSET(guest)), from);
    else
        emit_move(&w->e, host_register(guest), from);
}

void emit_move_rsp(struct work *w, int32_t by)
{
    emit_lea_word(w, R14, rm_mem(R14, by));
}

void emit_load_word(struct work *w, unsigned reg, struct rm from) { emit_insn(&w->e, word_how(w), 0x8B, reg, from, 0); }
void emit_store_word(struct work *w, struct rm to, unsigned reg) { emit_insn(&w->e, word_how(w), 0x89, reg, to, 0); }
void emit_lea_word(struct work *w, unsigned reg, struct rm rm) { emit_insn(&w->e, word_how(w), 0x8D, reg, rm, 0); }

void emit_alu_constant(struct emitter *e, unsigned alu, unsigned reg, int32_t value)
{
    bool small = value == (int8_t)value;
    emit_insn(e, EMIT_W, small ? 0x83 : 0x81, alu, rm_reg(reg), small ? 1 : 4);
    if (small)
        emit8(e, (uint8_t)value);
    else
        emit32(e, (uint32_t)value);
}

/* --- with ModRM --- */

/* Register operands and the host registers that they get. */
struct placed {
    unsigned guest, host;
    bool read, written;
};

struct places {
    struct placed place[3];
    unsigned count;
    unsigned reg, rm, vvvv;     /* what the encoding's fields shall say */
};

/* Is all of it written, whatever happens? Then its old value need not be there. BSF and BSR of 0 leave it alone. */
static bool written_whole(const struct planned *p, const ZydisDecodedOperand *operand)
{
    return p->z.mnemonic != ZYDIS_MNEMONIC_BSF && p->z.mnemonic != ZYDIS_MNEMONIC_BSR && !(operand->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_CONDWRITE)) && operand->size >= 32;
}

static unsigned place_gpr(struct work *w, const struct planned *p, struct places *places, const ZydisDecodedOperand *operand, struct rm *memory)
{
    unsigned guest = plan_gpr(operand), host = host_register(guest);
    if (host != HOST_NONE)
        return host;
    for (unsigned i = 0; i < places->count; i++) {
        if (places->place[i].guest != guest)
            continue;
        places->place[i].read |= !written_whole(p, operand);
        places->place[i].written |= plan_writes(operand);
        return places->place[i].host;
    }
    host = scratch_beside(memory, places->count);
    if (host == S3 && places->count == 0) {         /* address and addend fill the others */
        *memory = emit_fold(w, *memory);
        host = scratch_beside(memory, 0);
    }
    places->place[places->count++] = (struct placed){
        .guest = guest, .host = host, .read = !written_whole(p, operand), .written = plan_writes(operand),
    };
    return host;
}

static void place_operands(struct work *w, const struct planned *p, struct places *places, struct rm *memory)
{
    *places = (struct places){ .reg = p->z.raw.modrm.reg };
    for (unsigned i = 0; i < p->z.operand_count_visible; i++) {
        const ZydisDecodedOperand *o = &p->operand[i];
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        unsigned number = plan_is_gpr(o) ? place_gpr(w, p, places, o, memory) : (unsigned)ZydisRegisterGetId(o->reg.value);
        if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            places->reg = number;
        else if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            places->rm = number;
        else if (o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
            places->vvvv = number;
    }
}

static void use_scratch(struct work *w, const struct places *places, bool after)
{
    for (unsigned i = 0; i < places->count; i++) {
        const struct placed *place = &places->place[i];
        if (after && place->written)
            emit_store(&w->e, rm_vcpu(GPR_OFFSET(place->guest)), place->host);
        if (after && place->host == S3)
            emit_context_back(w);
        if (!after && place->read)
            emit_load(&w->e, place->host, rm_vcpu(GPR_OFFSET(place->guest)));
        if (!after && place->host == S2)
            w->addend_of = NO_ADDEND;
        if (!after && place->host == S3)
            drop_near_now(w);
    }
}

void translate_modrm(struct work *w, const struct planned *p)
{
    struct rm rm = { .kind = RM_REG };
    struct places places;
    if (p->memory)
        rm = emit_memory(w, p->memory, p->memory->size / 8, plan_writes(p->memory) ? MMU_WRITE : MMU_READ, plan_is_locked(p));
    if (p->reads_flags)
        want_flags_in_host(w);
    place_operands(w, p, &places, &rm);
    if (!p->memory)
        rm.base = (uint8_t)places.rm;
    registers_written(w);
    use_scratch(w, &places, false);
    if (p->may_trap || (w->window && p->memory))
        emit_may_trap(w, w->window && p->memory);
    emit_copy(&w->e, p, p->z.opcode, places.reg, places.vvvv, rm);
    if (p->noted)
        emit_x87_operand(w, rm);
    use_scratch(w, &places, true);
    flags_written(w);
}

/* --- without --- */

/* INC and DEC in one byte, which 64-bit mode takes for REX. */
static bool is_short_inc(const struct work *w, const struct planned *p)
{
    return w->narrow && p->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (p->z.opcode & 0xF0) == 0x40;
}

void translate_opcode_reg(struct work *w, const struct planned *p)
{
    const ZydisDecodedOperand *operand = &p->operand[0];
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (p->operand[i].encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
            operand = &p->operand[i];
    if (p->reads_flags)
        want_flags_in_host(w);
    registers_written(w);
    unsigned reg = emit_get(w, plan_gpr(operand), S1);
    if (is_short_inc(w, p)) {
        emit_insn(&w->e, operand->size == 16 ? EMIT_16 : 0, 0xFF, p->z.opcode >> 3 & 1, rm_reg(reg), 0);
        flags_written(w);
        return;
    }
    bool wide = (p->z.attributes & ZYDIS_ATTRIB_HAS_REX) && p->z.raw.rex.W;
    if (p->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
        emit8(&w->e, 0x66);
    if (wide || operand->size == 8 || reg & 8)
        emit8(&w->e, 0x40 | (wide ? 8 : 0) | (reg >> 3));
    if (p->z.opcode_map == ZYDIS_OPCODE_MAP_0F)
        emit8(&w->e, 0x0F);
    emit8(&w->e, (p->z.opcode & 0xF8u) | (reg & 7));
    for (unsigned i = 0; i < p->z.raw.imm[0].size / 8u; i++)
        emit8(&w->e, p->bytes[p->z.raw.imm[0].offset + i]);
    if (p->z.raw.imm[0].size == 32)
        reloc_note_constant(w->e.relocs, w->e.at - 4);
    emit_put(w, plan_gpr(operand), reg);
    flags_written(w);
}

/* A0 to A3; the same instructions with ModRM are 8A, 8B, 88 and 89. */
void translate_mov_offset(struct work *w, const struct planned *p)
{
    bool to_memory = p->z.opcode & 2, byte = !(p->z.opcode & 1);
    struct rm rm = emit_memory(w, p->memory, byte ? 1 : 4, to_memory ? MMU_WRITE : MMU_READ, false);
    registers_written(w);
    emit_insn(&w->e, 0, (to_memory ? 0x88u : 0x8Au) | (byte ? 0 : 1), RAX, rm, 0);
}

void translate_lea(struct work *w, const struct planned *p)
{
    unsigned to = host_register(plan_gpr(&p->operand[0]));
    registers_written(w);
    if (to == HOST_NONE)
        to = S1;
    emit_effective(w, p->memory, to);
    if (p->operand[0].size == 32)
        emit_insn(&w->e, 0, 0x8B, to, rm_reg(to), 0);
    emit_put(w, plan_gpr(&p->operand[0]), to);
}

/* --- the stack --- */

/* What is pushed waits in dbt->target while the stack is looked up. */
static void push_memory(struct work *w, const struct planned *p)
{
    struct rm from = emit_memory(w, p->memory, word_size(w), MMU_READ, false);
    if (w->window)
        emit_may_trap(w, true);
    emit_load_word(w, S1, from);
    emit_store(&w->e, rm_data(&w->dbt->target), S1);
    struct rm to = emit_stack(w, RSP, -(int32_t)word_size(w), MMU_WRITE);
    unsigned value = scratch_beside(&to, 0);
    registers_written(w);
    emit_load(&w->e, value, rm_data(&w->dbt->target));
    if (w->window)
        emit_may_trap(w, true);
    emit_store_word(w, to, value);
    emit_move_rsp(w, -(int32_t)word_size(w));
}

void translate_push(struct work *w, const struct planned *p)
{
    const ZydisDecodedOperand *operand = &p->operand[0];
    if (p->memory) {
        push_memory(w, p);
        return;
    }
    struct rm rm = emit_stack(w, RSP, -(int32_t)word_size(w), MMU_WRITE);
    unsigned from = scratch_beside(&rm, 0);
    registers_written(w);
    if (operand->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
        from = emit_get(w, plan_gpr(operand), from);
    if (w->window)
        emit_may_trap(w, true);
    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        emit_insn(&w->e, word_how(w), 0xC7, 0, rm, 4);
        emit32(&w->e, (uint32_t)operand->imm.value.s);
        reloc_note_constant(w->e.relocs, w->e.at - 4);
    } else {
        emit_store_word(w, rm, from);
    }
    emit_move_rsp(w, -(int32_t)word_size(w));
}

void translate_pop(struct work *w, const struct planned *p)
{
    unsigned guest = plan_gpr(&p->operand[0]), to = host_register(guest);
    struct rm rm = emit_stack(w, RSP, 0, MMU_READ);
    registers_written(w);
    if (to == HOST_NONE)
        to = S1;
    if (w->window)
        emit_may_trap(w, true);
    emit_load_word(w, to, rm);
    if (guest != RSP)
        emit_move_rsp(w, (int32_t)word_size(w));
    emit_put(w, guest, to);
}

void translate_leave(struct work *w, const struct planned *p)
{
    struct rm rm = emit_stack(w, RBP, 0, MMU_READ);
    registers_written(w);
    if (w->window)
        emit_may_trap(w, true);
    emit_load_word(w, S1, rm);
    emit_lea_word(w, R14, rm_mem(RBP, (int32_t)word_size(w)));
    emit_move(&w->e, RBP, S1);
    w->addend_of = NO_ADDEND;
}
