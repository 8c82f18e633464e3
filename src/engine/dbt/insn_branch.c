/* Instructions that end a block. */
#include "engine/dbt/plan.h"

static bool same_page(const struct work *w, uint64_t target)
{
    return (target ^ w->t->rip) < PAGE_SIZE;
}

static void add_edge(struct work *w, uint8_t *field, uint64_t target)
{
    w->edge[w->edge_count++] = (struct edge){
        .field = field, .target = target, .done = w->i < w->count ? w->i + 1 : w->count, .early = w->i < w->check, .rsp_ahead = w->rsp_ahead,
    };
}

void translate_goto(struct work *w, uint64_t target)
{
    want_flags_in_host(w);
    emit_settle_rsp(w);
    add_edge(w, emit_jump(&w->e, JUMP, emit_here(&w->e)), target);
}

static uint64_t direct_target(const struct work *w, const struct planned *p)
{
    uint64_t target = p->next_rip + p->operand[0].imm.value.u;
    return w->narrow ? (uint32_t)target : target;
}

/* It reaches as far as the jumps of 32 bits behind it: over the first one, to what is done if RCX is 0. */
static void translate_jrcxz(struct work *w, const struct planned *p)
{
    struct emitter *e = &w->e;
    static const uint8_t over_short[] = { 0xE3, 2, 0xEB, 5 }, over_jump[] = { 0xE3, 5 };
    if (p->follows == FOLLOWS_NEXT) {
        emit_bytes(e, over_short, sizeof(over_short));
        add_edge(w, emit_jump(e, JUMP, emit_here(e)), direct_target(w, p));
        return;
    }
    emit_bytes(e, over_jump, sizeof(over_jump));
    add_edge(w, emit_jump(e, JUMP, emit_here(e)), p->next_rip);
    if (p->follows == FOLLOWS_NOTHING)
        add_edge(w, emit_jump(e, JUMP, emit_here(e)), direct_target(w, p));
}

void translate_jcc(struct work *w, const struct planned *p)
{
    unsigned cc = p->z.opcode & 15;
    want_flags_in_host(w);
    if (p->z.mnemonic == ZYDIS_MNEMONIC_JRCXZ) {
        translate_jrcxz(w, p);
        return;
    }
    if (p->follows == FOLLOWS_TARGET) {
        add_edge(w, emit_jcc(&w->e, cc ^ 1, emit_here(&w->e)), p->next_rip);
        return;
    }
    add_edge(w, emit_jcc(&w->e, cc, emit_here(&w->e)), direct_target(w, p));
    if (p->follows == FOLLOWS_NOTHING)
        add_edge(w, emit_jump(&w->e, JUMP, emit_here(&w->e)), p->next_rip);
}

/* --- indirect --- */

enum { CODE_OF_ENTRY = offsetof(struct jump_entry, code) };
static_assert(DBT_JUMP_BITS == 16, "MOVZX makes the index");
static_assert(sizeof(struct jump_entry) == 16 && offsetof(struct jump_table, way) == 0, "scales and addresses below");

/* S2 = jump_index(S1). */
static void emit_jump_index(struct emitter *e)
{
    emit_rotate(e, S2, S1, DBT_JUMP_SHIFT);
    emit_insn(e, EMIT_0F, 0xB7, S2, rm_reg(S2), 0);             /* movzx */
}

/* S2 = the way in of what may be the target in S1; clobbers S3. */
static void emit_find_way(struct emitter *e)
{
    emit_jump_index(e);
    emit_load(e, S3, rm_frame(FRAME_JUMPS));
    emit_load(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2, .scale = 3 });
}

/*
 * To the target in S1, by its way in, which compares it (translate.c). In S3 it finds where the jump was: one to an address that is not
 * canonical has not happened (trap.c). No flags are touched.
 */
static void emit_way(struct work *w)
{
    struct emitter *e = &w->e;
    want_flags_in_host(w);
    emit_settle_rsp(w);
    emit_find_way(e);
    emit_lea_next(e, S3);
    emit_note_trap(w, false);
    emit_insn(e, 0, 0xFF, 4, rm_reg(S2), 0);
}

/*
 * S1 = a target: S2 becomes the address of its entry in the jump table. An entry is only made for a target that the
 * interpreter has gone to, so a hit needs no check of the address. No flags are touched.
 */
static void emit_entry_of(struct emitter *e, const struct dbt *dbt)
{
    emit_jump_index(e);
    emit_load(e, S3, rm_data(&dbt->jumps));
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S2, .index = S2 });
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2, .scale = 3, .disp = offsetof(struct jump_table, entry) });
}

/* RCX, kept in S3, carries the difference between the target and the entry's address. */
static void emit_difference(struct emitter *e)
{
    emit_move(e, S3, RCX);
    emit_load(e, RCX, rm_mem(S2, 0));
    emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S1 });
}

/*
 * With the code's address at [S2 + CODE_OF_ENTRY] after a hit; a miss is the site's. With flags in H none may be touched: JRCXZ tests
 * the difference.
 */
static void emit_find_target(struct work *w)
{
    struct emitter *e = &w->e;
    w->addend_of = NO_ADDEND;
    if (!w->in_host || w->in_memory) {
        w->in_host = false;
        emit_entry_of(e, w->dbt);
        emit_move(e, S3, S1);
        emit_insn(e, EMIT_W, 0x03, S3, rm_mem(S2, 0), 0);
        emit_slow(w, CC_NZ);
        return;
    }
    emit_entry_of(e, w->dbt);
    emit_difference(e);
    emit8(e, 0xE3);                                             /* jrcxz over the way out */
    uint8_t *hit = e->at++;
    emit_move(e, RCX, S3);
    emit_slow_jump(w);
    *hit = (uint8_t)(e->at - (hit + 1));
    emit_move(e, RCX, S3);
}

static void jump_to_found(struct work *w)
{
    want_flags_in_host(w);
    emit_context_back(w);
    emit_insn(&w->e, 0, 0xFF, 4, rm_mem(S2, CODE_OF_ENTRY), 0);
}

/* S1 = the target of an indirect branch. */
static void load_target(struct work *w, const struct planned *p)
{
    if (p->memory) {
        struct rm rm = emit_memory(w, p->memory, word_size(w), MMU_READ, false);
        if (w->window)
            emit_may_trap(w, true);
        emit_load_word(w, S1, rm);
    } else {
        emit_insn(&w->e, word_how(w), 0x8B, S1, rm_reg(emit_get(w, plan_gpr(&p->operand[0]), S1)), 0);
    }
}

static bool is_direct(const struct planned *p)
{
    return p->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

/*
 * Jumps through a word at an address that is known: those of a procedure linkage table, which lead to the same place nearly always. The target
 * is compared with the one that the jump had the last time, and if it is that, a direct jump goes there, which is patched and undone as those
 * between pages are. Young user code has none of these. No flags are touched.
 */
static bool is_cached(const struct work *w, const struct planned *p)
{
    return p->memory && plan_is_constant_address(p) && (w->window || !w->user) && !w->exact;
}

/* To the target in S1. */
static void emit_cached(struct work *w)
{
    struct emitter *e = &w->e;
    want_flags_in_host(w);
    emit_settle_rsp(w);
    emit_move(e, S2, RCX);
    w->cached.expected = emit_blank_constant(e, RCX);
    emit_lea(e, RCX, (struct rm){ .kind = RM_MEMORY, .base = RCX, .index = S1 });
    emit8(e, 0xE3);                                             /* jrcxz over the way out */
    uint8_t *hit = e->at++;
    w->cached.missed = emit_jump(e, JUMP, emit_here(e));
    *hit = (uint8_t)(e->at - (hit + 1));
    emit_move(e, RCX, S2);
    emit_note_trap(w, false);
    w->cached.at = emit_here(e);
    w->cached.field = emit_jump(e, JUMP, emit_here(e));
}

void translate_jmp(struct work *w, const struct planned *p)
{
    if (p->follows == FOLLOWS_TARGET)
        return;
    if (is_direct(p)) {
        translate_goto(w, direct_target(w, p));
        return;
    }
    load_target(w, p);
    if (is_cached(w, p))
        emit_cached(w);
    else
        emit_way(w);
}

static void push_return(struct work *w, const struct planned *p)
{
    struct rm rm = emit_stack(w, RSP, -(int32_t)word_size(w), MMU_WRITE);
    bool small = w->narrow || p->next_rip == (uint64_t)(int64_t)(int32_t)p->next_rip;
    unsigned from = scratch_beside(&rm, 0);
    registers_written(w);
    if (!small)
        emit_guest_address(&w->e, from, p->next_rip);
    if (w->window)
        emit_may_trap(w, true);
    if (small) {
        emit_insn(&w->e, word_how(w), 0xC7, 0, rm, 4);
        reloc_note_guest(w->e.relocs, w->e.at, RELOC_GUEST_SIGN, p->next_rip);
        emit32(&w->e, (uint32_t)p->next_rip);
    } else {
        emit_store(&w->e, rm, from);
    }
    emit_move_rsp(w, -(int32_t)word_size(w));
}

void translate_call(struct work *w, const struct planned *p)
{
    if (is_direct(p)) {
        push_return(w, p);
        if (p->follows != FOLLOWS_TARGET)
            translate_goto(w, direct_target(w, p));
        return;
    }
    load_target(w, p);
    emit_find_target(w);
    if (w->window)
        want_flags_in_host(w);          /* a trap of the push finds them there */
    emit_context_back(w);
    emit_store(&w->e, rm_data(&w->dbt->target), S2);
    push_return(w, p);
    emit_settle_rsp(w);
    emit_load(&w->e, S2, rm_data(&w->dbt->target));
    jump_to_found(w);
}

void translate_ret(struct work *w, const struct planned *p)
{
    int32_t more = p->z.operand_count_visible ? (int32_t)p->operand[0].imm.value.u : 0;
    struct rm rm = emit_stack(w, RSP, 0, MMU_READ);
    if (w->window)
        emit_may_trap(w, true);
    emit_load_word(w, S1, rm);
    registers_written(w);
    emit_move_rsp(w, (int32_t)word_size(w) + more);
    emit_way(w);
}

/* --- ways out --- */

/* At the check all instructions of the trace were counted; before it, none. */
static void emit_count_right(struct work *w, const struct edge *edge)
{
    int32_t uncounted = edge->early ? -(int32_t)edge->done : (int32_t)(w->count - edge->done);
    if (!uncounted)
        return;
    emit_load(&w->e, S1, rm_frame(FRAME_LEFT));
    emit_lea(&w->e, S1, rm_mem(S1, uncounted));
    emit_store(&w->e, rm_frame(FRAME_LEFT), S1);
}

struct link *add_link(struct work *w, uint64_t target)
{
    struct link *link = w->room ? &w->room->link[w->link_count] : dbt_alloc(w->dbt, sizeof(*link));
    w->link_list[w->link_count++] = link;
    *link = (struct link){ .target = target, .from = w->t, .live = w->t->live };
    return link;
}

void emit_leave(struct work *w, struct link *link)
{
    link->ask = emit_here(&w->e);
    if (!link->stub)
        link->stub = link->ask;
    emit_jump(&w->e, CALL, w->dbt->leave);
    emit_data_offset(&w->e, w->dbt, link, RELOC_LINK, w->link_count - 1);
}

/* Through the jump table; what is not there asks. */
static void emit_by_table(struct work *w, const struct link *link)
{
    struct emitter *e = &w->e;
    emit_offset_to(e, S2, w->dbt, link, RELOC_LINK, w->link_count - 1);
    emit_jump(e, JUMP, w->dbt->by_table);
}

void make_by_table(struct emitter *e, struct dbt *dbt, const uint8_t *leave_by)
{
    dbt->by_table = emit_here(e);
    emit_constant(e, S3, (uintptr_t)dbt->data);
    emit_lea(e, S2, (struct rm){ .kind = RM_MEMORY, .base = S3, .index = S2 });
    emit_store(e, rm_data(&dbt->link), S2);
    emit_load(e, S1, rm_mem(S2, offsetof(struct link, target)));
    emit_entry_of(e, dbt);
    emit_difference(e);
    emit8(e, 0xE3);                                             /* jrcxz over the way out */
    uint8_t *hit = e->at++;
    emit_move(e, RCX, S3);
    emit_load(e, S2, rm_data(&dbt->link));
    emit_jump(e, JUMP, leave_by);
    *hit = (uint8_t)(e->at - (hit + 1));
    emit_move(e, RCX, S3);
    emit_load(e, S3, rm_data(&dbt->context));
    emit_insn(e, 0, 0xFF, 4, rm_mem(S2, CODE_OF_ENTRY), 0);
}

/* With nothing to do before the link, the edge itself is what is patched. */
static void emit_link(struct work *w, const struct edge *edge, bool far, bool bare)
{
    struct link *link = add_link(w, edge->target);
    link->far = far;
    link->field = bare ? edge->field : emit_jump(&w->e, JUMP, emit_here(&w->e));
    link->stub = emit_here(&w->e);
    if (far && w->user)
        emit_by_table(w, link);
    emit_leave(w, link);
    emit_target(&w->e, link->field, !w->user || w->window || !far ? link->ask : link->stub);
}

/*
 * A jump within the page that may be patched: not to an instruction that reaches into another one, which may come to be elsewhere. Where that can
 * not be seen, it is one that is never patched (dbt_link).
 */
static bool is_near(const struct work *w, uint64_t target)
{
    if (!same_page(w, target) || w->t->gpa2 != BLOCK_DROPPED)
        return false;
    if (w->room)
        return true;
    const struct block *block = block_lookup(w->dbt->interp.cache, w->t->gpa + (target - w->t->rip), w->dbt->interp.key);
    return !block || block->gpa2 == BLOCK_DROPPED;
}

/* The ways of one that has another target, which is learnt, or not any more, and of one that was undone. The jump that chooses ends at `stub`. */
static void close_cached(struct work *w)
{
    struct emitter *e = &w->e;
    struct link *link = add_link(w, w->t->rip);
    link->far = true;
    link->field = w->cached.field;
    link->expected = w->cached.expected;
    emit_target(e, w->cached.missed, emit_here(e));
    emit_move(e, RCX, S2);
    uint8_t *choice = emit_jump(e, JUMP, emit_here(e));
    link->stub = emit_here(e);
    emit_find_way(e);
    emit_lea_target(e, S3, w->cached.at);
    emit_insn(e, 0, 0xFF, 4, rm_reg(S2), 0);
    link->ask = emit_here(e);
    emit_lea_target(e, S3, w->cached.at);
    emit_offset_to(e, S2, w->dbt, link, RELOC_LINK, w->link_count - 1);
    emit_jump(e, JUMP, w->dbt->learn);
    emit_target(e, choice, link->ask);
    emit_target(e, link->field, link->ask);
}

void close_edges(struct work *w)
{
    if (w->cached.field)
        close_cached(w);
    for (unsigned i = 0; i < w->edge_count; i++) {
        const struct edge *edge = &w->edge[i];
        bool near = is_near(w, edge->target);
        const uint8_t *start = w->e.at, *here = emit_here(&w->e);
        w->rsp_ahead = edge->rsp_ahead;
        emit_settle_rsp(w);
        emit_count_right(w, edge);
        emit_x87_noted(w, edge->done);
        bool bare = w->e.at == start;
        if (!bare)
            emit_target(&w->e, edge->field, here);
        emit_link(w, edge, !near, bare);
    }
}
