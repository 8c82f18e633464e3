/* Instructions that the interpreter's handler runs: in the line, or out of it where the host's way does not lead through. */
#include "engine/dbt/plan.h"

static struct site *site_of(struct work *w)
{
    if (!w->site) {
        w->site = w->room ? &w->room->site[w->site_count] : dbt_alloc(w->dbt, sizeof(*w->site));
        w->site_list[w->site_count++] = w->site;
        w->site->number = (uint16_t)(w->site_count - 1);
        w->site->op = *present(w)->op;
        w->site->translation = w->t;
        w->site->rip = present(w)->block_rip;
        w->site->remaining = (uint16_t)(w->count - w->i);
        w->site->early = w->i < w->check;
        w->site->mnemonic = (uint16_t)present(w)->z.mnemonic;
        w->site->x87 = x87_noted(w, w->i);
    }
    return w->site;
}

static void emit_call_site(struct work *w, const struct site *site, const uint8_t *helper)
{
    emit_offset_to(&w->e, S1, w->dbt, site, RELOC_SITE, site->number);
    emit_jump(&w->e, CALL, helper);
}

/* H and M are both right behind the helper that moves flags itself. */
void emit_site(struct work *w)
{
    if (!w->in_host && !w->in_memory) {
        emit_replay(w, w->replay);
        w->in_host = true;
    }
    bool from_host = !w->in_memory;
    emit_call_site(w, site_of(w), from_host || w->window ? w->dbt->help_host : w->dbt->help);
    w->in_host = from_host || w->window;
    w->in_memory = true;
    w->replay = NO_REPLAY;
    w->addend_of = NO_ADDEND;
}

static struct slow *add_slow(struct work *w)
{
    struct slow *slow = &w->slow[w->slow_count++];
    *slow = (struct slow){ .site = site_of(w), .in_memory = w->in_memory && !(w->window && w->in_host), .replay = w->in_host ? NO_REPLAY : w->replay };
    return slow;
}

void emit_slow(struct work *w, unsigned cc)
{
    struct slow *slow = add_slow(w);
    slow->field = emit_jcc(&w->e, cc, emit_here(&w->e));
}

void emit_slow_jump(struct work *w)
{
    struct slow *slow = add_slow(w);
    slow->field = emit_jump(&w->e, JUMP, emit_here(&w->e));
}

struct trap *emit_note_trap(struct work *w, bool memory)
{
    struct trap *trap = &w->trap[w->trap_count++];
    *trap = (struct trap){
        .at = (uint32_t)(emit_here(&w->e) - w->t->code),
        .in_page = (uint16_t)(present(w)->rip & PAGE_MASK),
        .remaining = (uint16_t)(w->count - w->i),
        .early = w->i < w->check,
        .length = present(w)->op->length,
        .memory = memory,
        .rsp_ahead = (int16_t)w->rsp_ahead,
        .mnemonic = (uint16_t)present(w)->z.mnemonic,
        .x87 = x87_noted(w, w->i),
    };
    return trap;
}

void emit_may_trap(struct work *w, bool memory)
{
    struct trap *trap = emit_note_trap(w, memory);
    if (!w->window)
        add_slow(w)->trap = trap;
}

void close_slow(struct work *w)
{
    for (; w->slow_first < w->slow_count; w->slow_first++) {
        w->slow[w->slow_first].back = emit_here(&w->e);
        w->slow[w->slow_first].flags = w->in_host;
        w->slow[w->slow_first].near_lives = !w->window && w->addend_of != NO_ADDEND;
    }
    for (; w->trap_first < w->trap_count; w->trap_first++) {
        w->trap[w->trap_first].back = (uint32_t)(emit_here(&w->e) - w->t->code);
        w->trap[w->trap_first].addend_of = (uint8_t)w->addend_of;
        w->trap[w->trap_first].indexed = w->indexed;
        w->trap[w->trap_first].rsp_ahead_behind = (int16_t)w->rsp_ahead;
    }
}

static void emit_slow_path(struct work *w, const struct slow *slow)
{
    if (slow->field)
        emit_target(&w->e, slow->field, emit_here(&w->e));
    else
        slow->trap->stub = (uint32_t)(emit_here(&w->e) - w->t->code);
    if (slow->again)
        emit_slow_near_way(w, slow);
    if (!slow->in_memory && slow->replay != NO_REPLAY)
        emit_replay(w, slow->replay);
    emit_call_site(w, slow->site, slow->in_memory ? w->dbt->help : w->dbt->help_host);
    if (slow->in_memory && slow->flags)
        emit_flags_to_host(w);
    if (slow->near_lives)
        emit_constant(&w->e, S3, 1);
    if (slow->back)
        emit_jump(&w->e, JUMP, slow->back);
    else
        emit_insn(&w->e, EMIT_0F, 0x0B, 0, rm_reg(0), 0);       /* it never comes back */
}

void emit_slow_paths(struct work *w)
{
    for (unsigned i = 0; i < w->slow_count; i++)
        emit_slow_path(w, &w->slow[i]);
}
