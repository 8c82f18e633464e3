/* Instructions that end a block. */
#include "engine/dbt/plan.h"

static bool same_page(const struct work *w, uint64_t target)
{
    return (target ^ w->t->rip) < PAGE_SIZE;
}

static void jump_indirect(struct work *w)
{
    want_flags_in_rax(w);
    emit_jump(&w->e, JUMP, w->dbt->indirect);
}

/* S1 holds a target: if it is not canonical the interpreter raises the fault. Stricter than needed under LA57. */
static void check_target(struct work *w)
{
    emit_move(&w->e, S2, S1);
    emit_insn(&w->e, EMIT_W, 0xC1, 4, rm_reg(S2), 1);   /* shl, sar */
    emit8(&w->e, 16);
    emit_insn(&w->e, EMIT_W, 0xC1, 7, rm_reg(S2), 1);
    emit8(&w->e, 16);
    emit_insn(&w->e, EMIT_W, 0x3B, S2, rm_reg(S1), 0);
    emit_slow(w, CC_NZ);
}

static void add_edge(struct work *w, uint8_t *field, uint64_t target)
{
    w->edge[w->edge_count++] = (struct edge){ .field = field, .target = target };
}

void translate_goto(struct work *w, uint64_t target)
{
    if (same_page(w, target)) {
        want_flags_in_host(w);
        add_edge(w, emit_jump(&w->e, JUMP, emit_here(&w->e)), target);
    } else {
        emit_constant(&w->e, S1, target);
        jump_indirect(w);
    }
}

static uint64_t direct_target(const struct work *w, const struct planned *p)
{
    return next_rip(w) + p->operand[0].imm.value.u;
}

void translate_jcc(struct work *w, const struct planned *p)
{
    want_flags_in_host(w);
    add_edge(w, emit_jcc(&w->e, p->z.opcode & 15, emit_here(&w->e)), direct_target(w, p));
    add_edge(w, emit_jump(&w->e, JUMP, emit_here(&w->e)), next_rip(w));
}

/* S1 = the canonical target of an indirect branch. */
static void load_target(struct work *w, const struct planned *p)
{
    if (p->memory) {
        emit_address(w, p->memory);
        emit_check(w, 8, MMU_READ, false);
        emit_load(&w->e, S1, rm_mem(S1, 0));
    } else {
        want_flags_in_memory(w);
        emit_move(&w->e, S1, emit_get(w, plan_gpr(&p->operand[0]), S1));
    }
    check_target(w);
}

void translate_jmp(struct work *w, const struct planned *p)
{
    if (p->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        translate_goto(w, direct_target(w, p));
        return;
    }
    load_target(w, p);
    jump_indirect(w);
}

static void push_return(struct work *w)
{
    emit_lea(&w->e, S1, rm_mem(R14, -8));
    emit_check(w, 8, MMU_WRITE, false);
    emit_constant(&w->e, S3, next_rip(w));
    emit_store(&w->e, rm_mem(S1, 0), S3);
    emit_move_rsp(w, -8);
}

void translate_call(struct work *w, const struct planned *p)
{
    if (p->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        push_return(w);
        translate_goto(w, direct_target(w, p));
        return;
    }
    load_target(w, p);
    emit_store(&w->e, rm_data(&w->dbt->target), S1);
    push_return(w);
    emit_load(&w->e, S1, rm_data(&w->dbt->target));
    jump_indirect(w);
}

void translate_ret(struct work *w, const struct planned *p)
{
    int32_t more = p->z.operand_count_visible ? (int32_t)p->operand[0].imm.value.u : 0;
    emit_move(&w->e, S1, R14);
    emit_check(w, 8, MMU_READ, false);
    emit_load(&w->e, S1, rm_mem(S1, 0));
    check_target(w);
    emit_move_rsp(w, 8 + more);
    jump_indirect(w);
}

/* Direct edges within the page leave with a link, to be patched; the others look up their target each time. */
void close_edges(struct work *w)
{
    for (unsigned i = 0; i < w->edge_count; i++) {
        const struct edge *edge = &w->edge[i];
        emit_target(&w->e, edge->field, emit_here(&w->e));
        w->in_host = true;
        if (!same_page(w, edge->target)) {
            emit_constant(&w->e, S1, edge->target);
            jump_indirect(w);
            continue;
        }
        struct link *link = dbt_alloc(w->dbt, sizeof(*link));
        *link = (struct link){ .field = edge->field, .stub = emit_here(&w->e), .from = w->t };
        emit_constant(&w->e, S1, edge->target);
        emit_constant(&w->e, S2, (uintptr_t)link);
        emit_jump(&w->e, JUMP, w->dbt->leave);
    }
}
