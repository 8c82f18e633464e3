/*
 * Which blocks make a trace: from the first, at each branch whose ways are known, the way that was gone more often (the
 * interpreter counted), as long as it stays in the page and finds a block that is not in the trace yet. What ends a trace goes
 * on with the next one, so nothing here decides what is right.
 *
 * A short loop that leads back to the trace's beginning, and does so often, is in it several times: what is done where a trace begins
 * costs as much as a handful of instructions.
 */
#include "engine/dbt/plan.h"

#include "engine/interp/native.h"
#include "mem/code_map.h"

/* --- choosing --- */

/* Bytes of the instruction that may come before its opcode and do not change what a short or near conditional jump is; with 66 it is none that is translated. */
static bool is_prefix(uint8_t byte)
{
    switch (byte) {
    case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: case 0x67: case 0xF2: case 0xF3:
        return true;
    default:
        return byte >= 0x40 && byte <= 0x4F;
    }
}

/* SDM2 Jcc. */
static bool ends_in_jcc(struct block *block)
{
    const struct op *op = &block->op[block->count - 1];
    const uint8_t *at = block_code(block) + op->where, *end = at + op->length;
    while (at < end && is_prefix(*at))
        at++;
    return at < end && ((*at & 0xF0) == 0x70 || (*at == 0x0F && at + 1 < end && (at[1] & 0xF0) == 0x80));
}

static void add_part(const struct vcpu *vcpu, struct trace *trace, struct block *block)
{
    for (unsigned i = 0; i < block->count; i++) {
        const struct native_stub *stub = op_native_stub(&block->op[i]);
        trace->copies[trace->count++] = (uint8_t)(stub ? native_copies(vcpu, stub) : NATIVE_COPY_NOT);
    }
    trace->part[trace->parts++] = (struct trace_part){ .op = block->op, .code = block_code(block), .gpa = block->gpa, .count = block->count, .bytes = block->bytes,
                                                        .follows = FOLLOWS_NOTHING };
}

/*
 * Does a trace begin there already? Then this one leads to it, so that what follows is translated once; but not in code with windows,
 * which runs so long that the longer line is worth it.
 */
static bool has_own_trace(const struct dbt *dbt, const struct trace *trace, const struct block *block)
{
    const struct translation *t = block->translation;
    return !(trace->mode & MODE_WINDOW) && block->generation == dbt->generation && t->mode == trace->mode && !t->dropped &&
           t->rip == trace->rip + (block->gpa - trace->gpa);
}

static bool suits(const struct dbt *dbt, const struct trace *trace, const struct block *first, const struct block *block, unsigned seen_from)
{
    if (!block || block->stale || block->gpa2 != BLOCK_DROPPED || block->key != first->key || (block->gpa ^ first->gpa) >= PAGE_SIZE)
        return false;
    if (has_own_trace(dbt, trace, block))
        return false;
    for (unsigned i = seen_from; i < trace->parts; i++)
        if (trace->part[i].gpa == block->gpa)
            return false;
    return trace->count + block->count <= TRACE_MAX;
}

/* The block that the trace goes on with, NULL: it ends here. Whether its last instruction is one that the translator knows is seen when it is planned. */
static struct block *successor(const struct block *block, bool jcc, enum follows *follows)
{
    struct block *taken = block->link[0], *next = block->link[1];
    *follows = FOLLOWS_NOTHING;
    if (block->op_count > block->count)             /* the pseudo-op that goes on behind the block */
        return next;
    if (jcc && !(taken && (!next || taken->heat > next->heat))) {
        *follows = FOLLOWS_NEXT;
        return next;
    }
    *follows = FOLLOWS_TARGET;
    return taken;
}

enum { LOOP_MOST = 48, TURNS_OFTEN = 4 };       /* instructions of all its turns; runs for each time that it is left */

/* Back to the trace's beginning, from its end `last`, a conditional jump: is there room for another turn, and will it be needed? */
static bool turns_again(const struct trace *trace, const struct block *first, const struct block *last, enum follows follows, unsigned loop, unsigned loop_blocks)
{
    const struct block *out = last->link[follows == FOLLOWS_TARGET ? 1 : 0];
    return trace->count + loop <= LOOP_MOST && trace->parts + loop_blocks <= TRACE_BLOCKS && (!out || first->heat / TURNS_OFTEN >= out->heat);
}

void trace_choose(const struct vcpu *vcpu, const struct dbt *dbt, struct trace *trace, struct block *block)
{
    const struct block *first = block;
    unsigned most = dbt->drops[dbt_page(block->gpa)] ? 1 : TRACE_BLOCKS;
    unsigned seen_from = 0, loop = 0, loop_blocks = 0;
    trace->gpa = block->gpa;
    trace->gpa2 = block->gpa2;
    trace->rip = vcpu->rip;
    trace->mode = dbt->mode;
    trace->exact = dbt->exact;
    trace->parts = trace->count = 0;
    for (;;) {
        add_part(vcpu, trace, block);
        bool jcc = ends_in_jcc(block);
        enum follows follows = FOLLOWS_NOTHING;
        struct block *next = trace->parts < most ? successor(block, jcc, &follows) : NULL;
        if (next == first && !loop) {
            loop = trace->count;
            loop_blocks = trace->parts;
        }
        if (next == first && jcc && turns_again(trace, first, block, follows, loop, loop_blocks))
            seen_from = trace->parts;
        if (!suits(dbt, trace, first, next, seen_from))
            break;
        trace->part[trace->parts - 1].follows = follows;
        block = next;
    }
}

/* --- planning --- */

static void note_bytes(struct translation *t, const struct trace_part *part)
{
    uint64_t first = (part->gpa & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    uint64_t last = ((part->gpa & PAGE_MASK) + part->bytes - 1) >> CODE_GRANULE_SHIFT;
    for (uint64_t i = first; i <= last; i++)
        t->granules[i / 64] |= 1ull << i % 64;
}

static void plan_part(struct work *w, const struct trace *trace, const struct trace_part *part)
{
    uint64_t rip = w->t->rip + (part->gpa - w->t->gpa);
    for (unsigned i = 0; i < part->count; i++) {
        struct planned *p = &w->plan[w->count];
        p->op = &part->op[i];
        p->copies = trace->copies[w->count++];
        p->block_rip = rip;
        p->rip = rip + p->op->where;
        p->next_rip = w->narrow ? (uint32_t)(p->rip + p->op->length) : p->rip + p->op->length;
        p->follows = FOLLOWS_NOTHING;
        plan_insn(w, p, part->code);
    }
    note_bytes(w->t, part);
}

/* Is the part's last instruction one that goes on there? */
static bool goes_on(const struct planned *last, enum follows follows)
{
    switch (follows) {
    case FOLLOWS_NEXT:
        return last->kind == KIND_JCC;
    case FOLLOWS_TARGET:
        return last->kind == KIND_JCC || ((last->kind == KIND_JMP || last->kind == KIND_CALL) && last->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE);
    default:
        return true;
    }
}

void trace_plan(struct work *w, const struct trace *trace)
{
    w->count = 0;
    for (unsigned i = 0; i < trace->parts; i++) {
        plan_part(w, trace, &trace->part[i]);
        struct planned *last = &w->plan[w->count - 1];
        if (!goes_on(last, trace->part[i].follows))
            break;
        last->follows = trace->part[i].follows;
    }
    w->t->count = (uint16_t)w->count;
}
