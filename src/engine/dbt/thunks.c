/* The pieces of code that all translations share: the way in, the way out, the helpers, the end of a trap, vector state. */
#include "engine/dbt/kept.h"
#include "engine/dbt/plan.h"

#include "engine/interp/native.h"

/* RAX goes last and comes back first: flags travel through it. */
static const uint8_t homes[] = { RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R12, R13, RSP };
static const uint8_t callee_saved[] = { RBX, RBP, R12, R13, R14, R15 };

/* Between the frame, `above` bytes from RSP, and where everybody else looks. RAX is in its home. */
static void carry_frame(struct emitter *e, struct dbt *dbt, unsigned above, bool in)
{
    static const uint8_t guest[] = { [FRAME_R10] = R10, [FRAME_R11] = R11, [FRAME_R14] = R14, [FRAME_R15] = R15 };
    for (enum frame slot = 0; slot < FRAME_CARRIED; slot++) {
        struct rm inside = rm_frame(slot), outside = slot == FRAME_LEFT ? rm_data(&dbt->interp.left) : rm_vcpu(GPR_OFFSET(guest[slot]));
        inside.disp += (int32_t)above;
        emit_load(e, RAX, in ? outside : inside);
        emit_store(e, in ? inside : outside, RAX);
    }
}

static void spill(struct emitter *e, struct dbt *dbt, unsigned above)
{
    for (unsigned i = 0; i < ARRAY_SIZE(homes); i++)
        emit_store(e, rm_vcpu(GPR_OFFSET(homes[i])), host_register(homes[i]));
    carry_frame(e, dbt, above, false);
}

/* What only helpers change. */
static void copy_to_frame(struct emitter *e, unsigned above, enum frame slot, struct rm from)
{
    struct rm inside = rm_frame(slot);
    inside.disp += (int32_t)above;
    emit_load(e, RAX, from);
    emit_store(e, inside, RAX);
}

/* R15 is of use to translations with windows only, but costs nothing. */
static void reload(struct emitter *e, struct dbt *dbt, unsigned above)
{
    carry_frame(e, dbt, above, true);
    copy_to_frame(e, above, FRAME_CONTEXT, rm_data(&dbt->context));
    copy_to_frame(e, above, FRAME_JUMPS, rm_data(&dbt->jumps));
    copy_to_frame(e, above, FRAME_TLB, rm_vcpu(offsetof(struct vcpu, tlb_data)));
    for (unsigned i = 0; i < ARRAY_SIZE(homes); i++)
        emit_load(e, host_register(homes[i]), rm_vcpu(GPR_OFFSET(homes[i])));
    emit_load(e, S3, rm_data(&dbt->context));
}

static void emit_push(struct emitter *e, unsigned reg)
{
    if (reg & 8)
        emit8(e, 0x41);
    emit8(e, 0x50 | (reg & 7));
}

static void emit_pop(struct emitter *e, unsigned reg)
{
    if (reg & 8)
        emit8(e, 0x41);
    emit8(e, 0x58 | (reg & 7));
}

static void adjust_stack(struct emitter *e, int8_t by)
{
    emit_lea(e, RSP, (struct rm){ .kind = RM_MEMORY, .base = RSP, .index = HOST_NONE, .disp = by });
}

static void emit_call(struct emitter *e, uintptr_t function)
{
    emit_constant(e, RAX, function);
    emit_insn(e, 0, 0xFF, 2, rm_reg(RAX), 0);
}

/* H to M, and RAX to its home. */
static void save_rax_and_flags(struct emitter *e, struct dbt *dbt)
{
    emit_store(e, rm_vcpu(GPR_OFFSET(RAX)), RAX);
    emit_pack_flags(e);
    emit_store(e, rm_data(&dbt->flags), RAX);
}

static void restore_flags_and_rax(struct emitter *e, struct dbt *dbt)
{
    emit_load(e, RAX, rm_data(&dbt->flags));
    emit_unpack_flags(e);
    emit_load(e, RAX, rm_vcpu(GPR_OFFSET(RAX)));
}

/* --- vector state --- */

/* VMOVUPS or MOVUPS of all that the host's registers hold, between register n and its home; no flags. */
static void emit_vector(struct emitter *e, bool store, unsigned n)
{
    unsigned width = native_host_vector_bytes(), opcode = store ? 0x11 : 0x10;
    struct rm home = rm_vcpu(offsetof(struct vcpu, fpu.zmm) + n * 64);
    emit8(e, 0x65);
    if (width == 64) {
        emit8(e, 0x62);
        emit8(e, (n & 8 ? 0 : 0x80u) | 0x60u | (n & 16 ? 0 : 0x10u) | 1);
        emit8(e, 0x7C);
        emit8(e, 0x48);
    } else if (width == 32) {
        emit8(e, 0xC5);
        emit8(e, (n & 8 ? 0 : 0x80u) | 0x7C);
    } else {
        if (n & 8)
            emit8(e, 0x44);
        emit8(e, 0x0F);
    }
    emit8(e, opcode);
    emit_modrm(e, n, &home, 0, true);
}

/* MOVUPS from the low 128 bits of its home. */
static void emit_low_vector(struct emitter *e, unsigned n)
{
    struct rm home = rm_vcpu(offsetof(struct vcpu, fpu.zmm) + n * 64);
    emit8(e, 0x65);
    if (n & 8)
        emit8(e, 0x44);
    emit8(e, 0x0F);
    emit8(e, 0x10);
    emit_modrm(e, n, &home, 0, true);
}

/* KMOVQ. */
static void emit_mask(struct emitter *e, bool store, unsigned n)
{
    struct rm home = rm_vcpu(offsetof(struct vcpu, fpu.k) + n * 8);
    emit8(e, 0x65);
    emit8(e, 0xC4);
    emit8(e, 0xE1);
    emit8(e, 0xF8);
    emit8(e, store ? 0x91 : 0x90);
    emit_modrm(e, n, &home, 0, true);
}

static void emit_mxcsr(struct emitter *e, bool store, struct rm where)
{
    emit_insn(e, EMIT_0F, 0xAE, store ? 3 : 2, where, 0);
}

static struct rm guest_mxcsr(void)
{
    return rm_vcpu(offsetof(struct vcpu, fpu.fxsave) + 24);
}

/* VORPS of vector 0 or 1 with 128 or 256 bits of a register's home. */
static void emit_gather(struct emitter *e, unsigned to, bool wide, unsigned n, unsigned offset)
{
    struct rm home = rm_vcpu(offsetof(struct vcpu, fpu.zmm) + n * 64 + offset);
    emit8(e, 0x65);
    emit8(e, 0xC5);
    emit8(e, 0x80u | (~to & 15u) << 3 | (wide ? 4 : 0));
    emit8(e, 0x56);
    emit_modrm(e, to, &home, 0, true);
}

static const uint8_t vzeroall[] = { 0xC5, 0xFC, 0x77 };

/* ZF = all that lies above XMM0 to XMM15, in the vCPU, is 0. */
static void test_upper(struct emitter *e)
{
    static const uint8_t join[] = { 0xC5, 0xFC, 0x56, 0xC1 }, vptest[] = { 0xC4, 0xE2, 0x7D, 0x17, 0xC0 };
    emit_bytes(e, vzeroall, sizeof(vzeroall));
    for (unsigned n = 0; n < 16; n++) {
        emit_gather(e, 0, false, n, 16);
        if (native_host_vector_bytes() == 64)
            emit_gather(e, 1, true, n, 32);
    }
    emit_bytes(e, join, sizeof(join));                  /* vorps ymm0, ymm0, ymm1 */
    emit_bytes(e, vptest, sizeof(vptest));              /* vptest ymm0, ymm0 */
}

/* Vectors 0 to 15; no flags are kept. */
static void load_vectors(struct emitter *e)
{
    test_upper(e);
    uint8_t *low = emit_jcc(e, CC_Z, emit_here(e));
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, false, n);
    uint8_t *done = emit_jump(e, JUMP, emit_here(e));
    emit_target(e, low, emit_here(e));
    emit_bytes(e, vzeroall, sizeof(vzeroall));
    for (unsigned n = 0; n < 16; n++)
        emit_low_vector(e, n);
    emit_target(e, done, emit_here(e));
}

/* What AVX-512 adds. */
static void emit_more_vectors(struct emitter *e, bool store)
{
    for (unsigned n = 16; n < 32; n++)
        emit_vector(e, store, n);
    for (unsigned n = 0; n < 8; n++)
        emit_mask(e, store, n);
}

/*
 * Called; changes no general register and no flags. A processor that knows the upper halves to be 0 runs SSE instructions several times
 * faster than one that has to keep them, and it takes what is loaded with them for something to keep, whatever it is. So
 * where they are 0 they are not loaded but cleared.
 */
static void make_simd_load(struct emitter *e, struct dbt *dbt, enum simd_level level)
{
    dbt->simd_load[level] = emit_here(e);
    if (native_host_vector_bytes() > 16) {
        emit_store(e, rm_data(&dbt->saved_rax), RAX);
        emit_pack_flags(e);
        emit_store(e, rm_data(&dbt->saved_flags), RAX);
        load_vectors(e);
        emit_load(e, RAX, rm_data(&dbt->saved_flags));
        emit_unpack_flags(e);
        emit_load(e, RAX, rm_data(&dbt->saved_rax));
    } else {
        for (unsigned n = 0; n < 16; n++)
            emit_vector(e, false, n);
    }
    if (level == SIMD_AVX512)
        emit_more_vectors(e, false);
    emit_mxcsr(e, false, guest_mxcsr());
    emit_insn(e, 0, 0xC7, 0, rm_data(&dbt->simd_live), 4);
    emit32(e, level);
    emit8(e, 0xC3);
}

/*
 * RBX = the level that is live, which then is none: for the code of the compiler. Guest general registers have been spilled, and
 * flags are in M.
 */
static void save_vectors(struct emitter *e, struct dbt *dbt)
{
    emit_insn(e, 0, 0x8B, RBX, rm_data(&dbt->simd_live), 0);
    emit_insn(e, 0, 0x85, RBX, rm_reg(RBX), 0);
    uint8_t *none = emit_jcc(e, CC_Z, emit_here(e));
    uint8_t *low = NULL;
    if (native_host_vector_bytes() == 64) {
        emit_insn(e, 0, 0x83, ALU_CMP, rm_reg(RBX), 1);
        emit8(e, SIMD_AVX512);
        low = emit_jcc(e, CC_NZ, emit_here(e));
        emit_more_vectors(e, true);
        emit_target(e, low, emit_here(e));
    }
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, true, n);
    emit_mxcsr(e, true, guest_mxcsr());
    emit_mxcsr(e, false, rm_data(&dbt->host_mxcsr));
    static const uint8_t vzeroupper[] = { 0xC5, 0xF8, 0x77 };           /* the compiler's code is SSE */
    if (native_host_vector_bytes() > 16)
        emit_bytes(e, vzeroupper, sizeof(vzeroupper));
    emit_insn(e, 0, 0xC7, 0, rm_data(&dbt->simd_live), 4);
    emit32(e, SIMD_NONE);
    emit_target(e, none, emit_here(e));
}

/* What save_vectors found live becomes so again. */
static void restore_vectors(struct emitter *e, struct dbt *dbt)
{
    uint8_t *done[SIMD_LEVELS];
    for (enum simd_level level = SIMD_SSE; level < SIMD_LEVELS; level++) {
        emit_insn(e, 0, 0x83, ALU_CMP, rm_reg(RBX), 1);
        emit8(e, level);
        done[level] = emit_jcc(e, CC_NZ, emit_here(e));
        emit_jump(e, CALL, dbt->simd_load[level]);
        emit_target(e, done[level], emit_here(e));
    }
}

/* --- in and out --- */

/* struct link *enter(const uint8_t *code): one return address, six registers and the frame leave the stack at a multiple of 16. */
enum { FRAME_BYTES = (FRAME_SLOTS | 1) * 8 };
static_assert(FRAME_BYTES % 16 == 8, "see above");

static void make_enter(struct emitter *e, struct dbt *dbt)
{
    dbt->enter = emit_here(e);
    for (unsigned i = 0; i < ARRAY_SIZE(callee_saved); i++)
        emit_push(e, callee_saved[i]);
    adjust_stack(e, -FRAME_BYTES);
    emit_move(e, S1, RDI);
    reload(e, dbt, 0);
    restore_flags_and_rax(e, dbt);
    emit_insn(e, 0, 0xFF, 4, rm_reg(S1), 0);
}

/* With the result in RAX and all guest state in the vCPU. */
static void emit_return(struct emitter *e)
{
    adjust_stack(e, FRAME_BYTES);
    for (unsigned i = ARRAY_SIZE(callee_saved); i-- > 0;)
        emit_pop(e, callee_saved[i]);
    emit8(e, 0xC3);
}

/* `leave` is called with flags in H, never to return: behind the call is the link's offset. */
static void make_leaves(struct emitter *e, struct dbt *dbt)
{
    dbt->leave = emit_here(e);
    emit_pop(e, S2);
    emit_constant(e, S3, (uintptr_t)dbt->data);
    emit_insn(e, 0, 0x8B, S2, rm_mem(S2, 0), 0);
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2 });
    const uint8_t *leave_by = emit_here(e);
    save_rax_and_flags(e, dbt);
    spill(e, dbt, 0);
    save_vectors(e, dbt);
    emit_move(e, RAX, S2);
    emit_return(e);
    make_by_table(e, dbt, leave_by);
}

/* RAX: the entry of a translation, or 0; all guest state is in the vCPU, vector state too. */
static void make_go_on(struct emitter *e, struct dbt *dbt)
{
    dbt->go_on = emit_here(e);
    emit_insn(e, EMIT_W, 0x85, RAX, rm_reg(RAX), 0);
    uint8_t *leave = emit_jcc(e, CC_Z, emit_here(e));
    emit_store(e, rm_data(&dbt->onward), RAX);
    reload(e, dbt, 0);
    restore_flags_and_rax(e, dbt);
    emit_insn(e, 0, 0xFF, 4, rm_data(&dbt->onward), 0);
    emit_target(e, leave, emit_here(e));
    emit_return(e);
}

/* --- sites --- */

static struct onward run_site(struct vcpu *vcpu, struct site *site)
{
    struct dbt *dbt = dbt_of(vcpu);
    struct block *block = &dbt->mini->block;
    int uncounted = site->early ? site->translation->count : 0;
    dbt->interp.left -= uncounted;
    flags_set(vcpu, dbt->flags);
    dbt_note_x87(vcpu, site->translation, site->x87);
    if (unlikely(!site->op.run) && !kept_bind(vcpu, site)) {
        vcpu->rip = site->rip;
        dbt->interp.left += site->remaining;
        dbt_forget_jumps(dbt);          /* the blocks were flushed, and so will we be */
        return dbt_go_on(vcpu);
    }
    dbt->mini->op[0] = site->op;
    dbt->mini->op[0].back = (uint16_t)((char *)&dbt->mini->op[0] - (char *)block);
    block->count = site->remaining;
    vcpu->rip = site->rip;
    count_site(dbt, site->mnemonic, site->rip + site->op.where);
    int64_t left = dbt->interp.left;
    struct block *next = site->op.run(vcpu, &dbt->mini->op[0]);
    dbt->interp.link_from = NULL;
    dbt->flags = flags_pack(vcpu->rflags);
    if (next != block) {
        if (dbt->interp.left - left < site->remaining)          /* done, and not by a handler that uncounts the rest */
            dbt->interp.left += site->remaining - 1;
        return dbt_go_on(vcpu);
    }
    if (likely(!site->translation->dropped)) {
        if (site->translation->live & LIVE_X87)
            native_load_x87(vcpu);
        dbt->interp.left += uncounted;
        return (struct onward){ .same = true };
    }
    vcpu->rip = rip_wrap(vcpu, site->rip + site->op.where + site->op.length);
    dbt->interp.left += site->remaining - 1;
    return dbt_go_on(vcpu);
}

static struct block *site_done(struct vcpu *vcpu, const struct op *op)
{
    return &dbt_of(vcpu)->mini->block;
}

/* After a function that returned a struct onward. */
static uint8_t *jump_unless_same(struct emitter *e)
{
    emit_insn(e, 0, 0x85, RDX, rm_reg(RDX), 0);
    return emit_jcc(e, CC_Z, emit_here(e));
}

/*
 * Called, S1: the site's offset; returns only if the trace goes on. `host`: flags are in H before, and behind it in H and M; else they
 * are in M.
 */
static void make_help(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt, bool host)
{
    *(host ? &dbt->help_host : &dbt->help) = emit_here(e);
    if (host)
        save_rax_and_flags(e, dbt);
    else
        emit_store(e, rm_vcpu(GPR_OFFSET(RAX)), RAX);
    spill(e, dbt, 8);
    save_vectors(e, dbt);
    emit_constant(e, RDI, (uintptr_t)vcpu);
    emit_constant(e, RSI, (uintptr_t)dbt->data);
    emit_lea(e, RSI, (struct rm){ .kind = RM_MEMORY, .base = RSI, .index = S1 });
    adjust_stack(e, -8);
    emit_call(e, (uintptr_t)run_site);
    adjust_stack(e, 8);
    uint8_t *elsewhere = jump_unless_same(e);
    restore_vectors(e, dbt);
    reload(e, dbt, 8);
    if (host)
        restore_flags_and_rax(e, dbt);
    else
        emit_load(e, RAX, rm_vcpu(GPR_OFFSET(RAX)));
    emit8(e, 0xC3);
    emit_target(e, elsewhere, emit_here(e));
    adjust_stack(e, 8);
    emit_jump(e, JUMP, dbt->go_on);
}

/* Where the signal handler goes on: flags in H. */
static void make_trap_entry(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt)
{
    dbt->trap_entry = emit_here(e);
    save_rax_and_flags(e, dbt);
    spill(e, dbt, 0);
    save_vectors(e, dbt);
    emit_constant(e, RDI, (uintptr_t)vcpu);
    emit_call(e, (uintptr_t)dbt_run_trap);
    uint8_t *elsewhere = jump_unless_same(e);
    emit_store(e, rm_data(&dbt->onward), RAX);
    restore_vectors(e, dbt);
    reload(e, dbt, 0);
    emit_load(e, S1, rm_data(&dbt->trap_indexed));
    emit_load(e, S2, rm_data(&dbt->trap_addend));
    restore_flags_and_rax(e, dbt);
    emit_insn(e, 0, 0xFF, 4, rm_data(&dbt->onward), 0);
    emit_target(e, elsewhere, dbt->go_on);
}

/*
 * Called by what looks alone for one of several neighbours (near.c): S1 its address, S3 that of its last byte. ZF: it is in the TLB, and S2 its
 * addend; S3 is not 0.
 */
static void make_look_up(struct emitter *e, struct dbt *dbt, enum mmu_use use)
{
    dbt->look_up[use] = emit_here(e);
    struct rm table = rm_frame(FRAME_TLB);
    table.disp += 8;
    emit_tlb_entry(e, S2, S1, table);
    emit_alu_constant(e, ALU_AND, S3, -(int32_t)PAGE_SIZE);
    emit_insn(e, EMIT_W, 0x3B, S3, rm_mem(S2, (int32_t)use * 8), 0);    /* cmp */
    emit_load(e, S2, rm_mem(S2, offsetof(struct tlb_entry, addend)));
    emit_constant(e, S3, 1);
    emit8(e, 0xC3);
}

static void go_on_by(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt, struct onward (*find)(struct vcpu *))
{
    save_rax_and_flags(e, dbt);
    spill(e, dbt, 0);
    save_vectors(e, dbt);
    emit_constant(e, RDI, (uintptr_t)vcpu);
    emit_call(e, (uintptr_t)find);
    emit_jump(e, JUMP, dbt->go_on);
}

/* Goes on at the target in S1 if its place among the second ones has it; else falls through. Clobbers S2 and S3, and no flags. */
static void go_by_second(struct emitter *e, struct dbt *dbt)
{
    emit_rotate(e, S2, S1, DBT_SECOND_SHIFT);
    emit_insn(e, EMIT_0F, 0xB6, S2, rm_reg(S2), 0);             /* movzx */
    emit_load(e, S3, rm_frame(FRAME_JUMPS));
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S2, .index = S2 });
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2, .scale = 3, .disp = offsetof(struct jump_table, second) });
    emit_move(e, S3, RCX);
    emit_load(e, RCX, rm_mem(S2, offsetof(struct jump_entry, minus_rip)));
    emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S1 });
    emit8(e, 0xE3);                                             /* jrcxz over the other way */
    uint8_t *hit = e->at++;
    emit_move(e, RCX, S3);
    uint8_t *miss = emit_jump(e, JUMP, emit_here(e));
    *hit = (uint8_t)(e->at - (hit + 1));
    emit_move(e, RCX, S3);
    emit_load(e, S3, rm_frame(FRAME_CONTEXT));
    emit_insn(e, 0, 0xFF, 4, rm_mem(S2, offsetof(struct jump_entry, code)), 0);
    emit_target(e, miss, emit_here(e));
}
static_assert(DBT_SECONDS == 256 && sizeof(struct jump_entry) == 16, "MOVZX makes the index, LEA the address");

/* An indirect jump found nobody at its way in: S1 is its target, S3 where it was, at missed_rcx S2 is RCX; flags in H. */
static void make_missed(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt)
{
    dbt->missed_rcx = emit_here(e);
    emit_move(e, RCX, S2);
    dbt->missed = emit_here(e);
    emit_store(e, rm_data(&dbt->missed_at), S3);
    go_by_second(e, dbt);
    emit_store(e, rm_vcpu(offsetof(struct vcpu, rip)), S1);
    go_on_by(e, vcpu, dbt, dbt_run_missed);
}

/* The same by one that remembers its target: S2 is the link's offset. */
static void make_learn(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt)
{
    dbt->learn = emit_here(e);
    emit_store(e, rm_vcpu(offsetof(struct vcpu, rip)), S1);
    emit_store(e, rm_data(&dbt->missed_at), S3);
    emit_constant(e, S3, (uintptr_t)dbt->data);
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2 });
    emit_store(e, rm_data(&dbt->link), S2);
    go_on_by(e, vcpu, dbt, dbt_run_learn);
}

/* Called where a trace begins, flags in H, RCX in S2, as it leaves them. */
static void make_x87_load(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt)
{
    dbt->x87_load = emit_here(e);
    emit_move(e, RCX, S2);
    save_rax_and_flags(e, dbt);
    spill(e, dbt, 8);
    save_vectors(e, dbt);
    emit_constant(e, RDI, (uintptr_t)vcpu);
    adjust_stack(e, -8);
    emit_call(e, (uintptr_t)native_load_x87);
    adjust_stack(e, 8);
    restore_vectors(e, dbt);
    reload(e, dbt, 8);
    restore_flags_and_rax(e, dbt);
    emit_move(e, S2, RCX);
    emit8(e, 0xC3);
}

void dbt_make_thunks(struct vcpu *vcpu, struct dbt *dbt)
{
    struct emitter e = { .at = dbt->hot.next, .shift = dbt->shift };
    dbt->mini->op[1] = (struct op){ .run = site_done };
    dbt->mini->block.gpa2 = BLOCK_DROPPED;
    for (enum simd_level level = SIMD_SSE; level < SIMD_LEVELS; level++)
        if (level != SIMD_AVX512 || native_host_vector_bytes() == 64)
            make_simd_load(&e, dbt, level);
        else
            dbt->simd_load[level] = dbt->simd_load[SIMD_AVX];
    make_enter(&e, dbt);
    make_leaves(&e, dbt);
    make_go_on(&e, dbt);
    make_help(&e, vcpu, dbt, false);
    make_help(&e, vcpu, dbt, true);
    make_trap_entry(&e, vcpu, dbt);
    make_missed(&e, vcpu, dbt);
    make_learn(&e, vcpu, dbt);
    make_x87_load(&e, vcpu, dbt);
    make_look_up(&e, dbt, MMU_READ);
    make_look_up(&e, dbt, MMU_WRITE);
    dbt->hot.next = dbt->code_start = (uint8_t *)align_up((uintptr_t)e.at, 16);
}
