/*
 * Host faults in translated code: a page that no window shows (yet), an unmasked exception, a misaligned vector, a division error.
 * The signal handler (trap_signal.c) asks here where to go on: the instruction is found in its translation's list of traps, and
 * the interpreter's handler carries it out, which raises whatever there is to raise. The processor has changed nothing but
 * the program counter. Indirect jumps to where nobody can jump come here as well, when they have already happened.
 */
#include "engine/dbt/dbt.h"
#include "engine/interp/native.h"
#include "mmu/window.h"

static struct trap *find_trap(const struct translation *t, uint32_t at)
{
    unsigned low = 0, high = t->trap_count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (t->trap[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low < t->trap_count && t->trap[low].at == at ? &t->trap[low] : NULL;
}

/* In the signal handler. */
static uintptr_t find_way(void *owner, const struct trap_fault *fault)
{
    struct dbt *dbt = owner;
    struct translation *t = dbt_at(dbt, fault->rip);
    struct trap *trap = t ? find_trap(t, (uint32_t)(fault->rip - (uintptr_t)t->code)) : NULL;
    if (!trap)
        return 0;
    if (trap->stub)
        return (uintptr_t)(t->code + trap->stub);
    dbt->trap = trap;
    dbt->trapped = t;
    dbt->fault = *fault;
    return (uintptr_t)dbt->trap_entry;
}

bool dbt_install_traps(void) { return trap_signal_install(); }

void dbt_traps_for(struct dbt *dbt) { trap_signal_handle(find_way, dbt); }

/* --- on the vCPU, out of the handler --- */

/* Of a repeated string some elements are done; those that are not do not count as such, either. */
static void leave_string(struct vcpu *vcpu, struct dbt *dbt, const struct trap *trap)
{
    vcpu->gpr[RDI] -= dbt->string_to;
    if (trap->string_moves)
        vcpu->gpr[RSI] -= dbt->string_from;
    dbt->interp.elements += vcpu->gpr[RCX];
}

/* One instruction by the interpreter. True: done, and the next one follows it. */
static bool run_one(struct vcpu *vcpu, struct interp *interp, uint64_t next_rip)
{
    struct block *block = block_get(vcpu, true);
    if (!block) {
        interp->left++;                 /* it was counted */
        return false;
    }
    block->op[0].run(vcpu, &block->op[0]);
    interp->link_from = NULL;
    return vcpu->pending.kind == EVENT_NONE && !interp->changed && vcpu->rip == next_rip;
}

static uint64_t value_of(const struct vcpu *vcpu, struct indexed indexed)
{
    return vcpu->gpr[indexed.base] + (indexed.index == HOST_NONE ? 0 : vcpu->gpr[indexed.index] << indexed.scale);
}

struct onward dbt_run_trap(struct vcpu *vcpu)
{
    struct dbt *dbt = dbt_of(vcpu);
    const struct trap *trap = dbt->trap;
    struct translation *t = dbt->trapped;
    uint64_t gla;
    int uncounted = trap->early ? t->count : 0;
    dbt->interp.left -= uncounted;
    bool missed = dbt->fault.page && window_linear(vcpu, dbt->fault.page, &gla);
    flags_set(vcpu, dbt->flags);
    vcpu->rip = (t->rip & ~PAGE_MASK) | trap->in_page;
    count_site(dbt, trap->mnemonic, vcpu->rip);
    dbt_note_x87(vcpu, t, trap->x87);
    vcpu->gpr[RSP] += (uint64_t)(int64_t)trap->rsp_ahead;
    if (trap->string)
        leave_string(vcpu, dbt, trap);
    bool goes_on = run_one(vcpu, &dbt->interp, vcpu->rip + trap->length);
    dbt->flags = flags_pack(vcpu->rflags);
    if (missed)
        window_fill(vcpu, gla, dbt->fault.write);
    else if (trap->memory)
        window_missed(vcpu);
    bool cold = (t->mode & MODE_WINDOW) && window_table(vcpu) + WINDOW_BIAS != dbt->context;
    dbt->interp.changed |= cold;        /* another mode */
    if (unlikely(dbt->stub_flushes != dbt->interp.cache->stub_flushes)) {         /* what the sites rely on is gone */
        dbt_forget_jumps(dbt);
        goes_on = false;
    }
    if (!goes_on || !trap->back || t->dropped || cold) {
        dbt->interp.left += trap->remaining - 1;
        return dbt_go_on(vcpu);
    }
    if (trap->indexed.base != HOST_NONE)
        dbt->trap_indexed = value_of(vcpu, trap->indexed);
    if (trap->addend_of != NO_ADDEND)
        dbt->trap_addend = window_addend(dbt->context - WINDOW_BIAS,
                                         trap->addend_of == ADDEND_INDEXED ? dbt->trap_indexed : vcpu->gpr[trap->addend_of]);
    if (t->live & LIVE_X87)
        native_load_x87(vcpu);
    dbt->interp.left += uncounted;
    vcpu->gpr[RSP] -= (uint64_t)(int64_t)trap->rsp_ahead_behind;
    return (struct onward){ .code = t->code + trap->back, .same = true };
}

/* Its last effect was to take the address off the stack. */
static void undo(struct vcpu *vcpu, const struct trap *jump)
{
    if (jump->mnemonic == ZYDIS_MNEMONIC_RET)
        vcpu->gpr[RSP] += (uint64_t)-8;
}

struct onward dbt_run_missed(struct vcpu *vcpu)
{
    struct dbt *dbt = dbt_of(vcpu);
    if (likely(vcpu->mode != MODE_LONG64 || x86_canonical(vcpu, vcpu->rip))) {
        flags_set(vcpu, dbt->flags);
        return dbt_go_on(vcpu);
    }
    dbt->trapped = dbt_at(dbt, dbt->missed_at);
    dbt->trap = find_trap(dbt->trapped, (uint32_t)(dbt->missed_at - (uintptr_t)dbt->trapped->code));
    dbt->fault = (struct trap_fault){ 0 };
    undo(vcpu, dbt->trap);
    return dbt_run_trap(vcpu);
}

/* One that was found at once, in the same mode: else something had to be seen to, and the next time will do. */
struct onward dbt_run_learn(struct vcpu *vcpu)
{
    struct dbt *dbt = dbt_of(vcpu);
    uint64_t target = vcpu->rip;
    uint32_t generation = dbt->generation;
    struct onward onward = dbt_run_missed(vcpu);
    struct translation *to = onward.code && dbt->generation == generation ? dbt_at(dbt, (uintptr_t)onward.code) : NULL;
    if (to && to->entry == onward.code && to->rip == target && to->mode == dbt->link->from->mode)
        dbt_relink(dbt, dbt->link, to);
    return onward;
}
