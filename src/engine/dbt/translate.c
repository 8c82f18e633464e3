/* A block of the interpreter becomes host code. */
#include "engine/dbt/plan.h"

/*
 * Counts the block's instructions and looks at requests and the budget: leaves unless all is well. Where flags are alive nothing may
 * touch them: RCX carries the sum of the request and the sign of what is left.
 */
static uint8_t *emit_entry(struct work *w, bool flags_dead, uint8_t **second)
{
    struct emitter *e = &w->e;
    int32_t count = w->block->count;
    *second = NULL;
    if (flags_dead) {
        emit_insn(e, EMIT_W, 0x83, ALU_SUB, rm_data(&w->dbt->interp.left), 1);
        emit8(e, (unsigned)count);
        *second = emit_jcc(e, CC_S, emit_here(e));
        emit_insn(e, 0, 0x83, ALU_CMP, rm_vcpu(offsetof(struct vcpu, request)), 1);
        emit8(e, 0);
        return emit_jcc(e, CC_NZ, emit_here(e));
    }
    emit_load(e, S1, rm_data(&w->dbt->interp.left));
    emit_lea(e, S1, rm_mem(S1, -count));
    emit_store(e, rm_data(&w->dbt->interp.left), S1);
    emit_move(e, S3, RCX);
    static const uint8_t pext_rcx[] = { 0xC4, 0xE2, 0xAA, 0xF5, 0x0D };         /* pext rcx, r10, [rip+disp] */
    for (unsigned i = 0; i < sizeof(pext_rcx); i++)
        emit8(e, pext_rcx[i]);
    emit32(e, (uint32_t)((const uint8_t *)&w->dbt->sign - (emit_here(e) + 4)));
    emit_insn(e, 0, 0x8B, S2, rm_vcpu(offsetof(struct vcpu, request)), 0);
    emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S2 });
    emit8(e, 0xE3);                                     /* jrcxz over the jump */
    emit8(e, 5);
    uint8_t *field = emit_jump(e, JUMP, emit_here(e));
    emit_move(e, RCX, S3);
    return field;
}

static void emit_entry_exit(struct work *w, uint8_t *field, uint8_t *second, bool flags_dead)
{
    struct emitter *e = &w->e;
    emit_target(e, field, emit_here(e));
    if (second)
        emit_target(e, second, emit_here(e));
    if (!flags_dead)
        emit_move(e, RCX, S3);
    emit_load(e, S1, rm_data(&w->dbt->interp.left));
    emit_lea(e, S1, rm_mem(S1, w->block->count));
    emit_store(e, rm_data(&w->dbt->interp.left), S1);
    emit_constant(e, S1, w->t->rip);
    emit_constant(e, S2, 0);
    emit_jump(e, JUMP, w->dbt->leave);
}

static void translate_insn(struct work *w)
{
    const struct planned *p = &w->plan[w->i];
    w->site = NULL;
    switch (p->kind) {
    case KIND_NOTHING:
        break;
    case KIND_VERBATIM:
        if (p->reads_flags)
            want_flags_in_host(w);
        memcpy(w->e.at, p->bytes, p->z.length);
        w->e.at += p->z.length;
        if (p->writes_flags) {
            w->in_host = true;
            w->in_memory = false;
        }
        break;
    case KIND_MODRM: translate_modrm(w, p); break;
    case KIND_OPCODE_REG: translate_opcode_reg(w, p); break;
    case KIND_LEA: translate_lea(w, p); break;
    case KIND_PUSH: translate_push(w, p); break;
    case KIND_POP: translate_pop(w, p); break;
    case KIND_LEAVE: translate_leave(w, p); break;
    case KIND_JCC: translate_jcc(w, p); break;
    case KIND_JMP: translate_jmp(w, p); break;
    case KIND_CALL: translate_call(w, p); break;
    case KIND_RET: translate_ret(w, p); break;
    case KIND_SITE: emit_site(w); break;
    }
    if (p->kind < KIND_JCC)
        close_slow(w);
    w->slow_first = w->slow_count;
}

/* What the block's last op is: an instruction that ends it, or the pseudo-op that goes on behind it. */
static bool falls_through(const struct block *block)
{
    return block->op_count > block->count;
}

static void translate_block(struct work *w, bool flags_dead)
{
    uint8_t *second, *field;
    w->t->indirect_entry = emit_here(&w->e);
    emit_unpack_flags(&w->e);
    emit_load(&w->e, RAX, rm_data(&w->dbt->saved_rax));
    w->t->entry = emit_here(&w->e);
    w->in_host = true;
    w->in_memory = false;
    field = emit_entry(w, flags_dead, &second);
    for (w->i = 0; w->i < w->block->count; w->i++)
        translate_insn(w);
    if (falls_through(w->block))
        translate_goto(w, w->t->rip + w->block->bytes);
    emit_insn(&w->e, EMIT_0F, 0x0B, 0, rm_reg(0), 0);   /* a last op never comes back */
    emit_slow_paths(w);
    close_edges(w);
    emit_entry_exit(w, field, second, flags_dead);
}

struct translation *dbt_translate(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    struct work *w = dbt->work;
    if (block->gpa2 != BLOCK_DROPPED || block == dbt->interp.scratch || block->stale)
        return NULL;
    dbt_make_room(dbt);
    w->e = (struct emitter){ .at = dbt->code, .shift = dbt->shift };
    w->dbt = dbt;
    w->block = block;
    w->slow_count = w->slow_first = w->edge_count = 0;
    for (unsigned i = 0; i < block->count; i++)
        plan_insn(w, vcpu, &block->op[i], block_code(block), &w->plan[i]);
    w->t = dbt_alloc(dbt, sizeof(*w->t));
    w->t->gpa = block->gpa;
    w->t->rip = vcpu->rip;
    w->t->bytes = block->bytes;
    w->t->count = block->count;
    translate_block(w, plan_flags_dead(w));
    dbt->code = (uint8_t *)align_up((uintptr_t)w->e.at, 16);
    dbt_add(dbt, w->t);
    return w->t;
}
