/* A trace becomes host code. */
#include "engine/dbt/kept.h"
#include "engine/dbt/plan.h"

/* Where the trace is left at the check. */
struct check {
    uint8_t *field[2];
    unsigned fields;
    int32_t rsp_ahead;
};

static void leave_if(struct work *w, struct check *check, unsigned cc)
{
    check->field[check->fields++] = emit_jcc(&w->e, cc, emit_here(&w->e));
}

static struct rm request(void) { return rm_vcpu(offsetof(struct vcpu, request)); }

static void emit_check(struct work *w, struct check *check)
{
    struct emitter *e = &w->e;
    emit_insn(e, EMIT_W, 0x83, ALU_SUB, rm_frame(FRAME_LEFT), 1);
    emit8(e, w->count);
    if (!plan_looks_at_requests(w))
        return;
    emit_insn(e, 0, 0x83, ALU_CMP, request(), 1);
    emit8(e, 0);
    leave_if(w, check, CC_NZ);
}

/* With flags that nothing may touch RCX carries what JRCXZ tests: the request, and the sign of what is left of an exact budget. */
static void emit_check_keeping_flags(struct work *w, struct check *check)
{
    struct emitter *e = &w->e;
    emit_load(e, S1, rm_frame(FRAME_LEFT));
    emit_lea(e, S1, rm_mem(S1, -(int32_t)w->count));
    emit_store(e, rm_frame(FRAME_LEFT), S1);
    if (!plan_looks_at_requests(w))
        return;
    emit_move(e, S2, RCX);
    if (w->exact) {
        static const uint8_t pext_rcx[] = { 0xC4, 0xE2, 0xAA, 0xF5, 0x0D };     /* pext rcx, r10, [rip+disp] */
        for (unsigned i = 0; i < sizeof(pext_rcx); i++)
            emit8(e, pext_rcx[i]);
        emit_data(e, &w->dbt->sign, 0);
        emit_insn(e, 0, 0x8B, S1, request(), 0);
        emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S1 });
    } else {
        emit_insn(e, 0, 0x8B, RCX, request(), 0);
    }
    emit8(e, 0xE3);                                     /* jrcxz over the jump */
    emit8(e, 5);
    check->field[check->fields++] = emit_jump(e, JUMP, emit_here(e));
    emit_move(e, RCX, S2);
}

/*
 * Counts the trace's instructions and looks at requests, and with an exact budget at what is left of it: leaves unless all is well.
 */
static void emit_checks(struct work *w, struct check *check)
{
    check->rsp_ahead = w->rsp_ahead;
    if (w->check_keeps_flags) {
        emit_check_keeping_flags(w, check);
        return;
    }
    emit_check(w, check);
    w->in_host = true;
    w->in_memory = false;
    w->replay = NO_REPLAY;
}

static void emit_check_exit(struct work *w, const struct check *check)
{
    struct emitter *e = &w->e;
    if (!check->fields)
        return;
    for (unsigned i = 0; i < check->fields; i++)
        emit_target(e, check->field[i], emit_here(e));
    if (w->check_keeps_flags)
        emit_move(e, RCX, S2);
    w->rsp_ahead = check->rsp_ahead;
    emit_settle_rsp(w);
    emit_x87_noted(w, w->check);
    struct link *link = add_link(w, w->plan[w->check].rip);
    link->uncount = (uint16_t)(w->count - w->check);
    emit_leave(w, link);
}

/* Vector state is loaded before the first instruction of a trace that has some; what it may use is part of the mode. */
static void emit_live(struct work *w)
{
    struct emitter *e = &w->e;
    emit_move(e, S2, RCX);
    emit_insn(e, 0, 0x8B, RCX, rm_data(&w->dbt->simd_live), 0);
    emit8(e, 0xE3);                                     /* jrcxz to the load */
    emit8(e, 5);
    uint8_t *live = emit_jump(e, JUMP, emit_here(e));
    emit_jump(e, CALL, w->dbt->simd_load[simd_level_of(w->t->mode)]);
    emit_target(e, live, emit_here(e));
    emit_move(e, RCX, S2);
}

/*
 * The way in for indirect jumps, with the target in S1 and the jump's address in S3. Flags live on, even if nobody here needs them: who jumps
 * elsewhere comes by as well, and there they may be read (RFLAGS.CF is how hand-written functions tell their callers things).
 */
static void emit_way_in(struct work *w)
{
    struct emitter *e = &w->e;
    emit_move(e, S2, RCX);
    emit_minus_guest_address(e, RCX, w->t->rip);
    emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S1 });
    emit8(e, 0xE3);                                     /* jrcxz over the way out */
    uint8_t *hit = e->at++;
    emit_jump(e, JUMP, w->dbt->missed_rcx);
    *hit = (uint8_t)(e->at - (hit + 1));
    emit_move(e, RCX, S2);
    emit_context_back(w);
}

/* Through the jump tables, and not by one of the trace's edges. */
static bool is_indirect(const struct planned *p)
{
    return p->kind == KIND_RET || ((p->kind == KIND_JMP || p->kind == KIND_CALL) && p->operand[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE);
}

static void translate_insn(struct work *w)
{
    const struct planned *p = present(w);
    w->site = NULL;
    if (!looks_after_held(p))
        lose_held(w);
    settle_rsp_for(w, p);
    if (is_indirect(p))
        emit_x87_noted(w, w->i);
    switch (p->kind) {
    case KIND_NOTHING:
        break;
    case KIND_VERBATIM:
        if (p->reads_flags)
            want_flags_in_host(w);
        registers_written(w);
        if (p->may_trap)
            emit_may_trap(w, false);
        emit_bytes(&w->e, p->bytes, p->z.length);
        if (p->z.raw.imm[0].size == 32)
            reloc_note_constant(w->e.relocs, w->e.at - (p->z.length - p->z.raw.imm[0].offset));
        flags_written(w);
        break;
    case KIND_MODRM: translate_modrm(w, p); break;
    case KIND_OPCODE_REG: translate_opcode_reg(w, p); break;
    case KIND_LEA: translate_lea(w, p); break;
    case KIND_MOV_OFFSET: translate_mov_offset(w, p); break;
    case KIND_PUSH: translate_push(w, p); break;
    case KIND_POP: translate_pop(w, p); break;
    case KIND_LEAVE: translate_leave(w, p); break;
    case KIND_PREFETCH: translate_prefetch(w, p); break;
    case KIND_BIT_STRING: translate_bit_string(w, p); break;
    case KIND_SYSTEM: translate_system(w, p); break;
    case KIND_STRING: translate_string(w, p); break;
    case KIND_JCC: translate_jcc(w, p); break;
    case KIND_JMP: translate_jmp(w, p); break;
    case KIND_CALL: translate_call(w, p); break;
    case KIND_RET: translate_ret(w, p); break;
    case KIND_SITE: emit_site(w); break;
    }
    if (!looks_after_held(p))
        lose_held(w);
    drop_near(w);
    if (p->kind < KIND_JCC)
        close_slow(w);
    w->slow_first = w->slow_count;
    w->trap_first = w->trap_count;
}

static bool ends_by_itself(const struct planned *p)
{
    return p->kind >= KIND_JCC;
}

/* What follows is seldom needed. */
static void go_cold(struct work *w)
{
    w->hot_end = w->e.at;
    w->relocs.hot_size = (size_t)(w->e.at - w->relocs.code);
    w->e.at = w->cold;
}

static void translate_trace(struct work *w)
{
    struct check check = { .fields = 0 };
    plan_flags(w);
    emit_way_in(w);
    w->t->entry = emit_here(&w->e);
    if (w->t->live & LIVE_X87)
        emit_x87_live(w);
    if (w->t->live & LIVE_VECTORS)
        emit_live(w);
    w->t->live_entry = emit_here(&w->e);
    w->in_host = true;
    w->in_memory = false;
    w->replay = NO_REPLAY;
    w->indexed.base = HOST_NONE;
    w->addend_of = NO_ADDEND;
    w->rsp_ahead = 0;
    for (w->i = 0; w->i < w->count; w->i++) {
        if (w->i == w->check)
            emit_checks(w, &check);
        translate_insn(w);
    }
    if (!ends_by_itself(&w->plan[w->count - 1]))
        translate_goto(w, w->plan[w->count - 1].next_rip);
    emit_insn(&w->e, EMIT_0F, 0x0B, 0, rm_reg(0), 0);   /* the last instruction never comes back */
    go_cold(w);
    emit_slow_paths(w);
    close_edges(w);
    emit_check_exit(w, &check);
}

static void keep_traps(struct work *w)
{
    w->t->trap_count = w->trap_count;
    if (!w->trap_count)
        return;
    w->t->trap = dbt_alloc(w->dbt, w->trap_count * sizeof(struct trap));
    memcpy(w->t->trap, w->trap, w->trap_count * sizeof(struct trap));
}

void work_translate(struct work *w, const struct trace *trace, uint8_t *hot, uint8_t *cold, intptr_t shift, bool movable)
{
    w->exact = trace->exact;
    w->narrow = trace->mode & MODE_32;
    w->user = trace->mode & MODE_USER;
    w->window = trace->mode & MODE_WINDOW;
    w->e = (struct emitter){ .at = hot, .shift = shift, .relocs = movable ? &w->relocs : NULL };
    w->cold = cold;
    w->relocs.code = hot;
    w->relocs.cold = cold;
    w->relocs.rip = trace->rip;
    w->relocs.count = 0;
    w->relocs.incomplete = false;
    w->cached.field = NULL;
    w->slow_count = w->slow_first = w->edge_count = w->trap_count = w->trap_first = w->site_count = w->link_count = 0;
    w->t->gpa = trace->gpa;
    w->t->gpa2 = trace->gpa2;
    w->t->rip = trace->rip;
    w->t->mode = trace->mode;
    w->t->code = emit_here(&w->e);
    trace_plan(w, trace);
    for (unsigned i = 0; i < w->count; i++)
        w->t->live |= w->plan[i].live;
    translate_trace(w);
}

struct translation *dbt_translate(struct vcpu *vcpu, struct dbt *dbt, struct block *block)
{
    struct work *w = dbt->work;
    struct trace trace;
    if (block == dbt->interp.scratch || block->stale)
        return NULL;
    dbt_make_room(vcpu, dbt);
    trace_choose(vcpu, dbt, &trace, block);
    w->dbt = dbt;
    w->vcpu = vcpu;
    w->decoder = &dbt->interp.cache->decoder[dbt->interp.key & KEY_MODE];
    w->t = dbt_alloc(dbt, sizeof(*w->t));
    work_translate(w, &trace, dbt->hot.next, dbt->cold.next, dbt->shift, kept_suits(dbt));
    keep_traps(w);
    if (kept_suits(dbt))
        kept_add(w);
    dbt_publish(vcpu, dbt, w->t, w->hot_end, w->e.at);
    counter_add(&vcpu->counters, COUNTER_translations, 1);
    return w->t;
}
