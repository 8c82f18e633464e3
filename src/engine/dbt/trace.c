/*
 * Which blocks make a trace: from the first, at each branch whose ways are known, the way that was gone more often (the
 * interpreter counted), as long as it stays in the page and finds a block that is not in the trace yet. What ends a trace goes
 * on with the next one, so nothing here decides what is right.
 *
 * A short loop that leads back to the trace's beginning, and does so often, is in it several times: what is done where a trace begins
 * costs as much as a handful of instructions.
 */
#include "engine/dbt/plan.h"

#include "mem/code_map.h"

static void note_bytes(struct translation *t, const struct block *block)
{
    uint64_t first = (block->gpa & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    uint64_t last = ((block->gpa & PAGE_MASK) + block->bytes - 1) >> CODE_GRANULE_SHIFT;
    for (uint64_t i = first; i <= last; i++)
        t->granules[i / 64] |= 1ull << i % 64;
}

static void add_block(struct work *w, struct block *block)
{
    uint64_t rip = w->t->rip + (block->gpa - w->t->gpa);
    for (unsigned i = 0; i < block->count; i++) {
        struct planned *p = &w->plan[w->count++];
        p->op = &block->op[i];
        p->block_rip = rip;
        p->rip = rip + p->op->where;
        p->next_rip = w->narrow ? (uint32_t)(p->rip + p->op->length) : p->rip + p->op->length;
        p->follows = FOLLOWS_NOTHING;
        plan_insn(w, p, block_code(block));
    }
    note_bytes(w->t, block);
}

/*
 * Does a trace begin there already? Then this one leads to it, so that what follows is translated once; but not in code with windows,
 * which runs so long that the longer line is worth it.
 */
static bool has_own_trace(const struct work *w, const struct block *block)
{
    const struct translation *t = block->translation;
    return !w->window && block->generation == w->dbt->generation && t->mode == w->t->mode && !t->dropped && t->rip == w->t->rip + (block->gpa - w->t->gpa);
}

static bool suits(const struct work *w, const struct block *first, const struct block *block, const uint64_t *seen, unsigned blocks)
{
    if (!block || block->stale || block->gpa2 != BLOCK_DROPPED || block->key != first->key || (block->gpa ^ first->gpa) >= PAGE_SIZE)
        return false;
    if (has_own_trace(w, block))
        return false;
    for (unsigned i = 0; i < blocks; i++)
        if (seen[i] == block->gpa)
            return false;
    return w->count + block->count <= TRACE_MAX;
}

/* The block that the trace goes on with, NULL: it ends here. */
static struct block *successor(struct work *w, const struct block *block)
{
    struct planned *last = &w->plan[w->count - 1];
    struct block *taken = block->link[0], *next = block->link[1];
    if (block->op_count > block->count)             /* the pseudo-op that goes on behind the block */
        return next;
    switch (last->kind) {
    case KIND_JCC:
        if (taken && (!next || taken->heat > next->heat)) {
            last->follows = FOLLOWS_TARGET;
            return taken;
        }
        last->follows = FOLLOWS_NEXT;
        return next;
    case KIND_JMP: case KIND_CALL:
        if (last->operand[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return NULL;
        last->follows = FOLLOWS_TARGET;
        return taken;
    default:
        return NULL;
    }
}

enum { LOOP_MOST = 48, TURNS_OFTEN = 4 };       /* instructions of all its turns; runs for each time that it is left */

/* Back to the trace's beginning, from its end `last`: is there room for another turn, and will it be needed? */
static bool turns_again(const struct work *w, const struct block *first, const struct block *last, unsigned loop, unsigned loop_blocks,
                        unsigned blocks)
{
    const struct planned *p = &w->plan[w->count - 1];
    const struct block *out = last->link[p->follows == FOLLOWS_TARGET ? 1 : 0];
    return p->kind == KIND_JCC && w->count + loop <= LOOP_MOST && blocks + loop_blocks <= TRACE_BLOCKS &&
           (!out || first->heat / TURNS_OFTEN >= out->heat);
}

void trace_form(struct work *w, struct block *block)
{
    const struct block *first = block;
    uint64_t seen[TRACE_BLOCKS];
    unsigned blocks = 0, most = w->dbt->drops[dbt_page(block->gpa)] ? 1 : TRACE_BLOCKS;
    unsigned seen_from = 0, loop = 0, loop_blocks = 0;
    w->count = 0;
    for (;;) {
        add_block(w, block);
        seen[blocks++] = block->gpa;
        struct block *next = blocks < most ? successor(w, block) : NULL;
        if (next == first && !loop) {
            loop = w->count;
            loop_blocks = blocks;
        }
        if (next == first && turns_again(w, first, block, loop, loop_blocks, blocks))
            seen_from = blocks;
        if (!suits(w, first, next, seen + seen_from, blocks - seen_from)) {
            w->plan[w->count - 1].follows = FOLLOWS_NOTHING;
            break;
        }
        block = next;
    }
    w->t->count = (uint16_t)w->count;
}
