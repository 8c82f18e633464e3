#include "engine/dbt/plan.h"

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

void emit_alu_constant(struct emitter *e, unsigned alu, unsigned reg, int32_t value)
{
    bool small = value == (int8_t)value;
    emit_insn(e, EMIT_W, small ? 0x83 : 0x81, alu, rm_reg(reg), small ? 1 : 4);
    if (small)
        emit8(e, (uint8_t)value);
    else
        emit32(e, (uint32_t)value);
}

static_assert(sizeof(struct tlb_entry) == 32 && offsetof(struct tlb_table, entry) == 0, "shifts below");

void emit_tlb_entry(struct emitter *e, unsigned to, unsigned gla, size_t table_field)
{
    enum { ENTRY_SHIFT = 5 };
    emit_insn(e, 0, 0x8B, to, rm_reg(gla), 0);
    emit_insn(e, 0, 0xC1, 5, rm_reg(to), 1);            /* shr */
    emit8(e, PAGE_SHIFT - ENTRY_SHIFT);
    emit_insn(e, 0, 0x81, ALU_AND, rm_reg(to), 4);
    emit32(e, (TLB_SIZE - 1) << ENTRY_SHIFT);
    emit_insn(e, EMIT_W, 0x03, to, rm_vcpu(table_field), 0);
}

/* --- where the flags are --- */

void want_flags_in_memory(struct work *w)
{
    if (w->in_memory)
        return;
    emit_move(&w->e, S3, RAX);
    emit_pack_flags(&w->e);
    emit_insn(&w->e, 0, 0x89, RAX, rm_data(&w->dbt->flags), 0);
    emit_move(&w->e, RAX, S3);
    w->in_memory = true;
}

static void flags_to_host(struct work *w)
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
    flags_to_host(w);
    w->in_host = true;
}

void want_flags_in_rax(struct work *w)
{
    emit_store(&w->e, rm_data(&w->dbt->saved_rax), RAX);
    if (w->in_host)
        emit_pack_flags(&w->e);
    else
        emit_insn(&w->e, 0, 0x8B, RAX, rm_data(&w->dbt->flags), 0);
}

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
    emit_lea(&w->e, R14, rm_mem(R14, by));
}

/* --- sites --- */

static struct site *site_of(struct work *w)
{
    if (!w->site) {
        w->site = dbt_alloc(w->dbt, sizeof(*w->site));
        w->site->op = w->block->op[w->i];
        w->site->translation = w->t;
        w->site->remaining = (uint16_t)(w->block->count - w->i);
    }
    return w->site;
}

void emit_site(struct work *w)
{
    want_flags_in_memory(w);
    emit_constant(&w->e, S1, (uintptr_t)site_of(w));
    emit_jump(&w->e, CALL, w->dbt->help);
    w->in_host = false;
}

void emit_slow(struct work *w, unsigned cc)
{
    struct slow *slow = &w->slow[w->slow_count++];
    *slow = (struct slow){ .site = site_of(w) };
    slow->field = emit_jcc(&w->e, cc, emit_here(&w->e));
    w->in_host = false;
}

void close_slow(struct work *w)
{
    for (; w->slow_first < w->slow_count; w->slow_first++) {
        w->slow[w->slow_first].back = emit_here(&w->e);
        w->slow[w->slow_first].flags = w->in_host;
    }
}

void emit_slow_paths(struct work *w)
{
    for (unsigned i = 0; i < w->slow_count; i++) {
        struct slow *slow = &w->slow[i];
        emit_target(&w->e, slow->field, emit_here(&w->e));
        emit_constant(&w->e, S1, (uintptr_t)slow->site);
        emit_jump(&w->e, CALL, w->dbt->help);
        if (slow->flags)
            flags_to_host(w);
        if (slow->back)
            emit_jump(&w->e, JUMP, slow->back);
        else
            emit_insn(&w->e, EMIT_0F, 0x0B, 0, rm_reg(0), 0);
    }
}

/* --- memory --- */

void emit_address(struct work *w, const ZydisDecodedOperand *operand)
{
    const ZydisDecodedOperandMem *m = &operand->mem;
    struct rm rm = { .kind = RM_MEMORY, .base = HOST_NONE, .index = HOST_NONE, .disp = (int32_t)m->disp.value };
    if (m->base == ZYDIS_REGISTER_RIP) {
        emit_constant(&w->e, S1, next_rip(w) + (uint64_t)m->disp.value);
    } else if (m->base == ZYDIS_REGISTER_NONE && m->index == ZYDIS_REGISTER_NONE) {
        emit_constant(&w->e, S1, (uint64_t)m->disp.value);
    } else {
        if (m->base != ZYDIS_REGISTER_NONE)
            rm.base = (uint8_t)emit_get(w, (unsigned)ZydisRegisterGetId(m->base), S1);
        if (m->index != ZYDIS_REGISTER_NONE) {
            rm.index = (uint8_t)emit_get(w, (unsigned)ZydisRegisterGetId(m->index), S2);
            rm.scale = (uint8_t)__builtin_ctz(m->scale);
        }
        if (rm.index == HOST_NONE && rm.disp == 0)
            emit_move(&w->e, S1, rm.base);
        else
            emit_lea(&w->e, S1, rm);
    }
    if (m->segment == ZYDIS_REGISTER_FS || m->segment == ZYDIS_REGISTER_GS) {
        size_t seg = m->segment == ZYDIS_REGISTER_FS ? FS : GS;
        emit_load(&w->e, S2, rm_vcpu(offsetof(struct vcpu, seg) + seg * sizeof(struct segment) + offsetof(struct segment, base)));
        emit_lea(&w->e, S1, (struct rm){ .kind = RM_MEMORY, .base = S1, .index = S2 });
    }
}

/*
 * The entry is chosen by the first byte, its tag compared with the page of the last one. Locked accesses must be aligned: a split
 * lock may get the process killed, so the interpreter makes those under the bus lock.
 */
void emit_check(struct work *w, unsigned size, enum mmu_use use, bool locked)
{
    want_flags_in_memory(w);
    emit_tlb_entry(&w->e, S2, S1, offsetof(struct vcpu, tlb_data));
    if (locked || size == 1)
        emit_move(&w->e, S3, S1);
    else
        emit_lea(&w->e, S3, rm_mem(S1, (int32_t)size - 1));
    emit_alu_constant(&w->e, ALU_AND, S3, -(int32_t)PAGE_SIZE | (locked ? (int32_t)size - 1 : 0));
    emit_insn(&w->e, EMIT_W, 0x3B, S3, rm_mem(S2, (int32_t)use * 8), 0);
    emit_slow(w, CC_NZ);
    emit_insn(&w->e, EMIT_W, 0x03, S1, rm_mem(S2, offsetof(struct tlb_entry, addend)), 0);
}
