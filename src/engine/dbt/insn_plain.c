/* Instructions that are copied, and the stack. */
#include "engine/dbt/plan.h"

/* --- registers --- */

unsigned emit_get(struct work *w, unsigned guest, unsigned scratch)
{
    unsigned host = host_register(guest);
    if (host != HOST_NONE)
        return host;
    if (is_held(w, guest))
        return S1;
    if (scratch == S1)
        lose_held(w);
    emit_load(&w->e, scratch, rm_home(guest));
    return scratch;
}

void emit_put(struct work *w, unsigned guest, unsigned from)
{
    if (host_register(guest) == HOST_NONE)
        emit_store(&w->e, rm_home(guest), from);
}

void emit_set(struct work *w, unsigned guest, unsigned from)
{
    if (host_register(guest) == HOST_NONE)
        emit_store(&w->e, rm_home(guest), from);
    else
        emit_move(&w->e, host_register(guest), from);
}

/*
 * With windows a word that is pushed or popped does not move r14: what follows is reached that much further away, until somebody needs the register
 * itself. So a function's beginning moves it once. A way out at the side puts it right, and a trap says how far it is (trap.c).
 */
enum { RSP_AHEAD_MOST = 4096 };

void emit_settle_rsp(struct work *w)
{
    if (w->rsp_ahead)
        emit_lea_word(w, R14, rm_mem(R14, w->rsp_ahead));
    w->rsp_ahead = 0;
}

void emit_move_rsp(struct work *w, int32_t by)
{
    w->rsp_ahead += by;
    if (!w->window || w->rsp_ahead > RSP_AHEAD_MOST || w->rsp_ahead < -RSP_AHEAD_MOST)
        emit_settle_rsp(w);
}

/* Moves it and does nothing else that somebody would see. */
static bool only_moves_rsp(const struct work *w, const struct planned *p)
{
    bool sum = p->kind == KIND_LEA || ((p->kind == KIND_MODRM || p->kind == KIND_OPCODE_REG) && !p->flags_needed);
    return w->window && sum && p->adjust && p->adjusted == RSP && p->adjust == (int16_t)p->adjust;
}

static bool translate_rsp_sum(struct work *w, const struct planned *p)
{
    if (!only_moves_rsp(w, p))
        return false;
    registers_written(w);
    emit_move_rsp(w, p->adjust);
    return true;
}

static bool names_rsp(const struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count; i++)
        if (plan_is_gpr(&p->operand[i]) && !plan_is_high_byte(&p->operand[i]) && plan_gpr(&p->operand[i]) == RSP)
            return true;
    return false;
}

void settle_rsp_for(struct work *w, const struct planned *p)
{
    switch (p->kind) {
    case KIND_NOTHING: case KIND_LEA: case KIND_LEAVE: case KIND_PREFETCH: case KIND_RET:
        return;
    case KIND_VERBATIM: case KIND_MODRM: case KIND_OPCODE_REG:
        if (names_rsp(p) && !only_moves_rsp(w, p))
            emit_settle_rsp(w);
        return;
    case KIND_PUSH: case KIND_POP:
        if (plan_is_gpr(&p->operand[0]) && plan_gpr(&p->operand[0]) == RSP)
            emit_settle_rsp(w);
        return;
    case KIND_JCC: case KIND_JMP:
        if (p->follows == FOLLOWS_NOTHING)
            emit_settle_rsp(w);
        return;
    case KIND_CALL:
        if (p->operand[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            emit_settle_rsp(w);
        return;
    default:
        emit_settle_rsp(w);
    }
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
    bool held;                  /* it is there already */
    bool high;                  /* bits 8 to 15 of it */
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

/* XOR of a register with itself. */
static bool is_zeroing(const struct planned *p)
{
    return p->z.mnemonic == ZYDIS_MNEMONIC_XOR && !p->memory && p->operand[0].size >= 32 && p->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           p->operand[0].reg.value == p->operand[1].reg.value;
}

/* By any of the operands that name it. */
static bool reads_gpr(const struct planned *p, unsigned guest)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (plan_is_gpr(&p->operand[i]) && plan_gpr(&p->operand[i]) == guest && !written_whole(p, &p->operand[i]))
            return true;
    return false;
}

static bool is_placed(const struct places *places, unsigned host)
{
    for (unsigned i = 0; i < places->count; i++)
        if (places->place[i].host == host)
            return true;
    return false;
}

/* Is a register in S1 that the instruction names as one? */
static bool names_held(const struct work *w, const struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (plan_is_gpr(&p->operand[i]) && is_held(w, plan_gpr(&p->operand[i])))
            return true;
    return false;
}

/* An address has been used before a register is written: what is not read may have the place of the address's register. */
static unsigned choose_scratch(const struct work *w, const struct planned *p, const struct places *places, unsigned guest, bool read, const struct rm *memory)
{
    unsigned host, n = 0;
    if (is_held(w, guest))
        return S1;
    bool free = !is_placed(places, S1) && !names_held(w, p);
    if (w->window && free && !read && p->memory && !plan_writes(p->memory))
        return S1;
    do
        host = scratch_beside(memory, n++);
    while (is_placed(places, host) || (host == S1 && !free));
    return host;
}

static unsigned place_gpr(struct work *w, const struct planned *p, struct places *places, const ZydisDecodedOperand *operand, struct rm *memory)
{
    bool high = memory->kind == RM_MEMORY && plan_is_high_byte(operand);
    unsigned guest = plan_gpr(operand), host = host_register(guest);
    if (host != HOST_NONE && !high)
        return host;
    for (unsigned i = 0; i < places->count; i++) {
        if (places->place[i].guest != guest)
            continue;
        places->place[i].written |= plan_writes(operand);
        return places->place[i].host;
    }
    bool read = reads_gpr(p, guest) && !is_zeroing(p);
    host = choose_scratch(w, p, places, guest, read, memory);
    if (host == S3 && places->count == 0) {         /* address and addend fill the others */
        *memory = emit_fold(w, *memory);
        host = choose_scratch(w, p, places, guest, read, memory);
    }
    places->place[places->count++] = (struct placed){
        .guest = guest, .host = host, .read = read, .written = plan_writes(operand), .held = is_held(w, guest),
        .high = high,
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
            emit_store(&w->e, rm_home(place->guest), place->host);
        if (after && place->host == S1 && !place->high)
            hold(w, place->guest);
        if (after && place->host == S3)
            emit_context_back(w);
        if (!after && place->high && place->host == S1)
            lose_held(w);
        if (!after && place->high)
            emit_rotate(&w->e, place->host, place->guest, 8);
        else if (!after && place->read && !place->held)
            emit_load(&w->e, place->host, rm_home(place->guest));
        if (!after && place->host == S2)
            w->addend_of = NO_ADDEND;
        if (!after && place->host == S3)
            drop_near_now(w);
    }
}

/* --- registers as the memory that they live in --- */

/* Is the register worth being in S1, because one of the next instructions uses it? */
static bool is_wanted(const struct work *w, unsigned guest)
{
    enum { AHEAD = 4 };
    for (unsigned i = w->i + 1; i < w->count && i <= w->i + AHEAD && looks_after_held(&w->plan[i]); i++) {
        const struct planned *p = &w->plan[i];
        for (unsigned n = 0; p->kind != KIND_NOTHING && n < p->z.operand_count_visible; n++)
            if ((plan_is_gpr(&p->operand[n]) && plan_gpr(&p->operand[n]) == guest) ||
                (p->operand[n].type == ZYDIS_OPERAND_TYPE_MEMORY && p->operand[n].mem.base != ZYDIS_REGISTER_NONE &&
                 p->operand[n].mem.base != ZYDIS_REGISTER_RIP && (unsigned)ZydisRegisterGetId(p->operand[n].mem.base) == guest))
                return true;
    }
    return false;
}

/*
 * Processors forward a store to a MOV, or to what stores there again, without waiting, and to the memory operand of other instructions
 * after several cycles: a register that was written lately is better fetched first.
 */
static bool waits_for_store(const struct work *w, const struct planned *p, unsigned guest)
{
    enum { BACK = 12 };
    if (p->z.mnemonic == ZYDIS_MNEMONIC_MOV || p->writes >> guest & 1)
        return false;
    for (unsigned i = w->i; i > 0 && i + BACK > w->i; i--)
        if (w->plan[i - 1].writes >> guest & 1)
            return true;
    return false;
}

/* Does the instruction do the same with memory in the place of a register? What is written must not be half of it. */
static bool suits_memory(const struct planned *p, const ZydisDecodedOperand *operand)
{
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD: case ZYDIS_MNEMONIC_IMUL:
        return !plan_writes(operand) || operand->size == 64;
    default:
        return false;
    }
}

/* Of two registers the encoding says which may be memory; with another opcode it is the other one. TEST does the same with both. */
static bool swaps(const struct planned *p, unsigned *opcode)
{
    unsigned op = p->z.opcode;
    if (p->z.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        return false;
    if ((op & 0xFE) == 0x84)
        return true;
    *opcode = op ^ 2;
    return ((op & 0xC4) == 0) || (op & 0xFC) == 0x88;
}

static const ZydisDecodedOperand *operand_at(const struct planned *p, ZydisOperandEncoding encoding)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (plan_is_gpr(&p->operand[i]) && p->operand[i].encoding == encoding)
            return &p->operand[i];
    return NULL;
}

/* One of its registers lives in the frame, and no instruction wants that soon: then no scratch register is needed. */
static bool translate_at_home(struct work *w, const struct planned *p)
{
    const ZydisDecodedOperand *rm = operand_at(p, ZYDIS_OPERAND_ENCODING_MODRM_RM), *reg = operand_at(p, ZYDIS_OPERAND_ENCODING_MODRM_REG);
    unsigned opcode = p->z.opcode;
    if (p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || p->memory || !rm)
        return false;
    if (reg && host_register(plan_gpr(reg)) == HOST_NONE) {
        const ZydisDecodedOperand *other = rm;
        if (!swaps(p, &opcode))
            return false;
        rm = reg;
        reg = other;
    }
    unsigned guest = plan_gpr(rm);
    if (host_register(guest) != HOST_NONE || (reg && (host_register(plan_gpr(reg)) == HOST_NONE || plan_is_high_byte(reg))) ||
        !suits_memory(p, rm) || waits_for_store(w, p, guest) || is_held(w, guest) || (w->window && is_wanted(w, guest)))
        return false;
    if (p->reads_flags)
        want_flags_in_host(w);
    registers_written(w);
    emit_copy(&w->e, p, opcode, reg ? host_register(plan_gpr(reg)) : p->z.raw.modrm.reg, 0, rm_home(guest));
    flags_written(w);
    return true;
}

void translate_modrm(struct work *w, const struct planned *p)
{
    if (translate_rsp_sum(w, p))
        return;
    keep_original(w);
    if (translate_at_home(w, p))
        return;
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
    unsigned guest = plan_gpr(operand), reg = host_register(guest);
    if (reg == HOST_NONE)
        reg = written_whole(p, operand) ? S1 : emit_get(w, guest, S1);
    registers_written(w);
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
    emit_put(w, guest, reg);
    if (reg == S1)
        hold(w, guest);
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
    if (translate_rsp_sum(w, p))
        return;
    unsigned guest = plan_gpr(&p->operand[0]), to = host_register(guest);
    if (!w->window)                     /* flags may have to be made again from what is overwritten */
        registers_written(w);
    if (to == HOST_NONE)
        to = S1;
    emit_effective(w, p->memory, p->operand[0].size / 8, to);
    if (guest == RSP)
        w->rsp_ahead = 0;
    emit_put(w, guest, to);
    if (w->window)
        registers_written(w);
    if (to == S1)
        hold(w, guest);
}

/* --- hints --- */

/* Of no page that no window shows, and of no address that is none: so it needs no trap. */
void translate_prefetch(struct work *w, const struct planned *p)
{
    struct rm rm = emit_memory(w, p->memory, 1, MMU_READ, false);
    emit_insn(&w->e, EMIT_0F, p->z.opcode, p->z.raw.modrm.reg, rm, 0);
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
    if (from == S1 && operand->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
        hold(w, plan_gpr(operand));
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
    if (to == S1)
        hold(w, guest);
}

void translate_leave(struct work *w, const struct planned *p)
{
    struct rm rm = emit_stack(w, RBP, 0, MMU_READ);
    registers_written(w);
    if (w->window)
        emit_may_trap(w, true);
    emit_load_word(w, S1, rm);
    emit_lea_word(w, R14, rm_mem(RBP, (int32_t)word_size(w)));
    w->rsp_ahead = 0;
    emit_move(&w->e, RBP, S1);
    w->addend_of = NO_ADDEND;
}
