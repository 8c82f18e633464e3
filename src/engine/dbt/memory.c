/*
 * How translated code reaches memory.
 *
 * Checked: the linear address is made in S1 unless it is a register's and a displacement, the TLB's entry looked up, its tag compared with the page of the
 * operand's last byte (the entry is chosen by the first, so what crosses pages misses), and the entry's addend makes it a host address. What is added by
 * an operand's own addressing costs nothing, so the table's address is no part of a sum where a register is free for it. A miss goes to the instruction's site. Neighbouring accesses are looked up at once (near.c).
 *
 * Windows: the host's own page tables do all that (mmu/window.h). The addend of a 64 GiB chunk is fetched from the table in S3 by
 * the upper bits of the base register; a window has room on both sides, so any displacement is safe. The addend stays in S2 as
 * long as the same base register is used: neighbouring accesses need no code at all. No flags are touched.
 */
#include "engine/dbt/plan.h"

#include "mmu/window.h"

static_assert(PAGE_SHIFT + TLB_BITS <= 32 && sizeof(struct tlb_entry) == 32 && offsetof(struct tlb_table, entry) == 0, "shifts below");

void emit_tlb_offset(struct emitter *e, unsigned to, unsigned gla)
{
    enum { ENTRY_SHIFT = 5 };
    emit_rotate(e, to, gla, PAGE_SHIFT - ENTRY_SHIFT);
    emit_insn(e, 0, 0x81, ALU_AND, rm_reg(to), 4);
    emit32(e, (TLB_SIZE - 1) << ENTRY_SHIFT);
}

void emit_tlb_entry(struct emitter *e, unsigned to, unsigned gla, struct rm table)
{
    emit_tlb_offset(e, to, gla);
    emit_insn(e, EMIT_W, 0x03, to, table, 0);
}

/* --- what is in S1 --- */

bool is_held(const struct work *w, unsigned guest)
{
    return w->indexed.base == guest && w->indexed.index == HOST_NONE;
}

void lose_held(struct work *w)
{
    w->indexed.base = HOST_NONE;
    if (w->window && w->addend_of == ADDEND_INDEXED)
        w->addend_of = NO_ADDEND;
}

void hold(struct work *w, unsigned guest)
{
    if (!w->window || is_held(w, guest))
        return;
    lose_held(w);
    w->indexed = (struct indexed){ .base = (uint8_t)guest, .index = HOST_NONE };
}

bool looks_after_held(const struct planned *p)
{
    switch (p->kind) {
    case KIND_NOTHING: case KIND_VERBATIM: case KIND_MODRM: case KIND_OPCODE_REG: case KIND_LEA: case KIND_POP: case KIND_PREFETCH: case KIND_JCC:
        return true;
    case KIND_PUSH:
        return !p->memory;
    case KIND_JMP:
        return p->follows == FOLLOWS_TARGET;
    default:
        return false;
    }
}

/* --- effective addresses --- */

static bool has_base(const ZydisDecodedOperandMem *m) { return m->base != ZYDIS_REGISTER_NONE; }
static bool has_index(const ZydisDecodedOperandMem *m) { return m->index != ZYDIS_REGISTER_NONE; }

static bool is_constant(const ZydisDecodedOperandMem *m)
{
    return m->base == ZYDIS_REGISTER_RIP || (!has_base(m) && !has_index(m));
}

static bool is_rip_relative(const ZydisDecodedOperandMem *m) { return m->base == ZYDIS_REGISTER_RIP; }

static uint64_t constant_address(struct work *w, const ZydisDecodedOperandMem *m)
{
    uint64_t address = (is_rip_relative(m) ? present(w)->next_rip : 0) + (uint64_t)m->disp.value;
    return w->narrow ? (uint32_t)address : address;
}

static void emit_constant_address(struct work *w, const ZydisDecodedOperandMem *m, unsigned to)
{
    if (is_rip_relative(m) && !plan_is_per_cpu(w, present(w)))
        emit_guest_address(&w->e, to, constant_address(w, m));
    else
        emit_constant(&w->e, to, constant_address(w, m));
}

/* From the base as the host has it. */
static int32_t displacement(struct work *w, const ZydisDecodedOperandMem *m)
{
    if (m->base != ZYDIS_REGISTER_RSP)
        return (int32_t)m->disp.value;
    if (m->disp.value + w->rsp_ahead != (int32_t)(m->disp.value + w->rsp_ahead))
        emit_settle_rsp(w);
    return (int32_t)(m->disp.value + w->rsp_ahead);
}

void emit_effective(struct work *w, const ZydisDecodedOperand *operand, unsigned size, unsigned to)
{
    const ZydisDecodedOperandMem *m = &operand->mem;
    struct rm rm = { .kind = RM_MEMORY, .base = HOST_NONE, .index = HOST_NONE, .disp = displacement(w, m) };
    if (is_constant(m)) {
        if (to == S1)
            lose_held(w);
        emit_constant_address(w, m, to);
        if (size == 4)
            emit_insn(&w->e, 0, 0x8B, to, rm_reg(to), 0);           /* mov */
        return;
    }
    if (has_base(m)) {
        rm.base = (uint8_t)emit_get(w, (unsigned)ZydisRegisterGetId(m->base), S1);
        if (rm.base == S1)
            hold(w, (unsigned)ZydisRegisterGetId(m->base));
    }
    if (has_index(m)) {
        if (host_register((unsigned)ZydisRegisterGetId(m->index)) == HOST_NONE)
            w->addend_of = NO_ADDEND;
        rm.index = (uint8_t)emit_get(w, (unsigned)ZydisRegisterGetId(m->index), S2);
        rm.scale = (uint8_t)__builtin_ctz(m->scale);
    }
    bool half = w->narrow || size == 4;
    if (rm.index == HOST_NONE && rm.disp == 0 && !half)
        emit_move(&w->e, to, rm.base);
    else
        emit_insn(&w->e, half ? 0 : EMIT_W, 0x8D, to, rm, 0);       /* lea */
    if (to == S1)
        lose_held(w);
}

static bool has_segment_base(const ZydisDecodedOperandMem *m)
{
    return m->segment == ZYDIS_REGISTER_FS || m->segment == ZYDIS_REGISTER_GS;
}

bool plan_is_constant_address(const struct planned *p) { return is_constant(&p->memory->mem) && !has_segment_base(&p->memory->mem); }

static struct rm segment_base(const ZydisDecodedOperandMem *m)
{
    size_t seg = m->segment == ZYDIS_REGISTER_FS ? FS : GS;
    return rm_vcpu(offsetof(struct vcpu, seg) + seg * sizeof(struct segment) + offsetof(struct segment, base));
}

/* S1 = the linear address. */
static void emit_linear(struct work *w, const ZydisDecodedOperand *operand)
{
    emit_effective(w, operand, word_size(w), S1);
    if (!has_segment_base(&operand->mem))
        return;
    emit_load(&w->e, S2, segment_base(&operand->mem));
    emit_lea_word(w, S1, (struct rm){ .kind = RM_MEMORY, .base = S1, .index = S2 });
    w->addend_of = NO_ADDEND;
}

/* --- checked --- */

/* May the operand's address and addend fill two scratch registers? Not beside registers that want one themselves. */
static bool leaves_room(const struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (plan_is_gpr(&p->operand[i]) && (plan_is_high_byte(&p->operand[i]) || host_register(plan_gpr(&p->operand[i])) == HOST_NONE))
            return false;
    return p->kind == KIND_MODRM;
}

/* What is said where the look-up has found the page: the linear address of an x87 operand, in S3. */
static void emit_noted_address(struct work *w, struct rm at)
{
    if (!present(w)->noted)
        return;
    if (at.disp)
        emit_lea(&w->e, S3, at);
    else
        emit_move(&w->e, S3, at.base);
}

/*
 * `at` is a register of the guest's and a displacement, or S1. Locked accesses must be aligned: a split lock may get the process killed,
 * so the interpreter makes those under the bus lock.
 */
static struct rm emit_check(struct work *w, struct rm at, unsigned size, enum mmu_use use, bool locked)
{
    struct emitter *e = &w->e;
    bool made = at.base == S1;
    unsigned page = made ? S3 : S1;
    struct rm entry = { .kind = RM_MEMORY, .base = S2, .index = HOST_NONE }, last = at;
    lose_host_flags(w);
    w->addend_of = NO_ADDEND;
    if (at.disp)
        emit_lea(e, S1, at);
    emit_tlb_offset(e, S2, at.disp ? S1 : at.base);
    if (made) {
        emit_insn(e, EMIT_W, 0x03, S2, rm_frame(FRAME_TLB), 0);             /* add */
    } else {
        emit_load(e, S3, rm_frame(FRAME_TLB));
        entry.index = S3;
    }
    last.disp += locked ? 0 : (int32_t)size - 1;
    if (last.disp)
        emit_lea(e, page, last);
    else
        emit_move(e, page, at.base);
    emit_alu_constant(e, ALU_AND, page, -(int32_t)PAGE_SIZE | (locked ? (int32_t)size - 1 : 0));
    entry.disp = (int32_t)use * 8;
    emit_insn(e, EMIT_W, 0x3B, page, entry, 0);
    emit_slow(w, CC_NZ);
    entry.disp = offsetof(struct tlb_entry, addend);
    if (made && !leaves_room(present(w))) {
        emit_noted_address(w, at);
        emit_insn(e, EMIT_W, 0x03, S1, entry, 0);
        return at;
    }
    emit_load(e, S2, entry);
    emit_noted_address(w, at);
    at.index = S2;
    return at;
}

/* SDM2 BT: the operand is moved by the offset's upper bits, which are signed. */
struct rm emit_bit_element(struct work *w, const ZydisDecodedOperand *memory, const ZydisDecodedOperand *offset, enum mmu_use use, bool locked)
{
    bool wide = offset->size == 64;
    emit_linear(w, memory);
    lose_host_flags(w);
    emit_insn(&w->e, EMIT_W, wide ? 0x8B : 0x63, S2, rm_reg(emit_get(w, plan_gpr(offset), S2)), 0);     /* mov or movsxd */
    emit_insn(&w->e, EMIT_W, 0xC1, 7, rm_reg(S2), 1);                                                   /* sar */
    emit8(&w->e, wide ? 6 : 5);
    emit_lea_word(w, S1, (struct rm){ .kind = RM_MEMORY, .base = S1, .index = S2, .scale = wide ? 3 : 2 });
    return emit_check(w, rm_mem(S1, 0), offset->size / 8, use, locked);
}

enum { DISPLACEMENT_MOST = 1 << 20 };           /* no address of the kernel's own (kept.c) */

/* The operand's linear address: a register of the guest's that the host has, and a displacement; else it is made in S1. */
static struct rm linear_address(struct work *w, const ZydisDecodedOperand *operand)
{
    const ZydisDecodedOperandMem *m = &operand->mem;
    if (has_base(m) && !is_rip_relative(m) && !has_index(m) && !has_segment_base(m) && !w->narrow &&
        m->disp.value >= -DISPLACEMENT_MOST && m->disp.value <= DISPLACEMENT_MOST) {
        unsigned base = host_register((unsigned)ZydisRegisterGetId(m->base));
        if (base != HOST_NONE)
            return rm_mem(base, (int32_t)m->disp.value);
    }
    emit_linear(w, operand);
    return rm_mem(S1, 0);
}

/* --- windows --- */

/* The lowest six bits of S3 are the bias, which is also the shift to the chunk. */
void emit_addend(struct work *w, unsigned address)
{
    static const uint8_t shrx[] = { 0xC4, 0x00, 0x83, 0xF7 };
    emit8(&w->e, shrx[0]);                              /* shrx S2, address, S3 */
    emit8(&w->e, (S2 & 8 ? 0 : 0x80u) | 0x40u | (address & 8 ? 0 : 0x20u) | 2);
    emit8(&w->e, 0x80u | (~S3 & 15u) << 3 | 3);
    emit8(&w->e, shrx[3]);
    emit8(&w->e, 0xC0u | (S2 & 7u) << 3 | (address & 7u));
    emit_load(&w->e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2, .scale = 3, .disp = -WINDOW_BIAS });
    w->addend_of = NO_ADDEND;
}

static void emit_addend_of(struct work *w, unsigned guest)
{
    if (w->addend_of == guest)
        return;
    emit_addend(w, host_register(guest));
    w->addend_of = guest;
    w->drift = guest == RSP ? w->rsp_ahead : 0;
}

static struct rm emit_window_constant(struct work *w, const ZydisDecodedOperandMem *m)
{
    uint64_t address = constant_address(w, m), chunk = address >> WINDOW_CHUNK_SHIFT;
    emit_insn(&w->e, EMIT_W | EMIT_WIDE, 0x8B, S2, rm_mem(S3, (int32_t)(chunk * 8) - WINDOW_BIAS), 0);         /* mov */
    if (is_rip_relative(m))
        reloc_note_guest(w->e.relocs, w->e.at - 4, RELOC_GUEST_CHUNK, address);
    w->addend_of = NO_ADDEND;
    if (address == (uint64_t)(int64_t)(int32_t)address)
        return (struct rm){ .kind = RM_MEMORY, .base = S2, .index = HOST_NONE, .guest = is_rip_relative(m), .disp = (int32_t)address };
    lose_held(w);
    emit_constant_address(w, m, S1);
    return (struct rm){ .kind = RM_MEMORY, .base = S1, .index = S2 };
}

static bool same_indexed(struct indexed a, struct indexed b) { return a.base == b.base && a.index == b.index && a.scale == b.scale; }

/*
 * An address that has to be made in S1: of two registers, or of one that lives in the frame. A program often loads, changes and stores an
 * element, or several of a structure: it is made once, and its addend is fetched once.
 */
static struct rm emit_window_indexed(struct work *w, const ZydisDecodedOperand *operand)
{
    const ZydisDecodedOperandMem *m = &operand->mem;
    const struct indexed indexed = {
        .base = (uint8_t)ZydisRegisterGetId(m->base),
        .index = has_index(m) ? (uint8_t)ZydisRegisterGetId(m->index) : HOST_NONE,
        .scale = has_index(m) ? (uint8_t)__builtin_ctz(m->scale) : 0,
    };
    if (!same_indexed(w->indexed, indexed)) {
        ZydisDecodedOperand sum = *operand;
        sum.mem.disp.value = 0;
        emit_effective(w, &sum, word_size(w), S1);
        w->indexed = indexed;
    }
    if (w->addend_of != ADDEND_INDEXED)
        emit_addend(w, S1);
    w->addend_of = ADDEND_INDEXED;
    return (struct rm){ .kind = RM_MEMORY, .base = S1, .index = S2, .disp = (int32_t)m->disp.value };
}

static struct rm emit_window(struct work *w, const ZydisDecodedOperand *operand)
{
    const ZydisDecodedOperandMem *m = &operand->mem;
    struct rm rm = { .kind = RM_MEMORY, .base = S1, .index = S2 };
    if (is_constant(m) && !has_segment_base(m))
        return emit_window_constant(w, m);
    if (has_base(m) && !has_index(m) && !has_segment_base(m)) {
        unsigned guest = (unsigned)ZydisRegisterGetId(m->base);
        if (host_register(guest) == HOST_NONE)
            return emit_window_indexed(w, operand);
        emit_addend_of(w, guest);
        rm.base = (uint8_t)host_register(guest);
        rm.disp = displacement(w, m);
        return rm;
    }
    if (has_base(m) && has_index(m) && !has_segment_base(m))
        return emit_window_indexed(w, operand);
    emit_linear(w, operand);
    emit_addend(w, S1);
    return rm;
}

void emit_context_back(struct work *w)
{
    if (w->window)
        emit_load(&w->e, S3, rm_frame(FRAME_CONTEXT));
}

/* --- both --- */

struct rm emit_memory(struct work *w, const ZydisDecodedOperand *memory, unsigned size, enum mmu_use use, bool locked)
{
    struct rm rm;
    if (w->window)
        return emit_window(w, memory);
    if (emit_near_memory(w, memory, &rm))
        return rm;
    return emit_check(w, linear_address(w, memory), size, use, locked);
}

struct rm emit_stack(struct work *w, unsigned guest, int32_t offset, enum mmu_use use)
{
    if (w->window) {
        emit_addend_of(w, guest);
        return (struct rm){ .kind = RM_MEMORY, .base = (uint8_t)host_register(guest), .index = S2, .disp = offset + (guest == RSP ? w->rsp_ahead : 0) };
    }
    struct rm rm;
    if (emit_near_stack(w, guest, offset, use, &rm))
        return rm;
    if (!w->narrow)
        return emit_check(w, rm_mem(host_register(guest), offset), 8, use, false);
    emit_lea_word(w, S1, rm_mem(host_register(guest), offset));
    return emit_check(w, rm_mem(S1, 0), word_size(w), use, false);
}

struct rm emit_fold(struct work *w, struct rm rm)
{
    lose_held(w);
    emit_lea(&w->e, S1, rm);
    return rm_mem(S1, 0);
}

unsigned scratch_beside(const struct rm *rm, unsigned n)
{
    static const uint8_t scratch[] = { S1, S2, S3 };
    for (unsigned i = 0; i < ARRAY_SIZE(scratch); i++) {
        bool taken = rm->kind == RM_MEMORY && (rm->base == scratch[i] || rm->index == scratch[i]);
        if (!taken && n-- == 0)
            return scratch[i];
    }
    return HOST_NONE;
}
