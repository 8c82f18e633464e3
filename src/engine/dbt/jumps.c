/*
 * Where indirect jumps look their targets up. An entry says: code at this linear address, in this context and mode, is that
 * translation. It is made when the target was fetched through the MMU, and holds until the MMU says that a fetch of that page
 * may now find something else (the epochs in mmu.h); then the whole table goes. So nothing is checked at the jump but the address.
 *
 * The supervisor has one table for all contexts, since a kernel's pages are global; if some are not, it goes with every change of
 * context, and always with a change of the space that contexts belong to: global translations are of one VPID and EPT only
 * (SDM3 §29.4.1). User code has a table for each context.
 */
#include "engine/dbt/plan.h"

#include "mmu/block.h"

/* An empty place holds what no address that looks there can match: 0, but for the place of address 0. */
static uint64_t nothing(unsigned i) { return i == jump_index(0); }

static void empty(struct jump_table *table)
{
    if (table->filled > DBT_JUMPS_LISTED)
        memset(table->minus_rip, 0, sizeof(table->minus_rip));
    else
        for (unsigned i = 0; i < table->filled; i++)
            table->minus_rip[table->list[i]] = 0;
    table->minus_rip[jump_index(0)] = nothing(jump_index(0));
    table->filled = 0;
    table->local = false;
}

static bool holds(const struct jump_table *table, const struct mmu *mmu, uint8_t mode, bool supervisor)
{
    const struct tlb_context *context = mmu->context;
    if (table->mode != mode || table->global_epoch != mmu->fetch_epoch || table->vpid != context->vpid ||
        table->eptp != context->eptp || table->rule_bits != context->rule_bits)
        return false;
    if (supervisor && !table->local)
        return true;
    return table->context == mmu->context && table->epoch == mmu->context->fetch_epoch;
}

void dbt_pick_jumps(struct vcpu *vcpu, struct dbt *dbt)
{
    const struct mmu *mmu = vcpu->mmu;
    bool supervisor = !(dbt->mode & MODE_USER);
    struct jump_table *table = &dbt->tables[supervisor ? 0 : 1 + (mmu->context - mmu->contexts)];
    if (unlikely(!holds(table, mmu, dbt->mode, supervisor))) {
        empty(table);
        if (supervisor)
            dbt_unlink_far(dbt);
    }
    table->mode = dbt->mode;
    table->context = mmu->context;
    table->vpid = mmu->context->vpid;
    table->eptp = mmu->context->eptp;
    table->rule_bits = mmu->context->rule_bits;
    table->epoch = mmu->context->fetch_epoch;
    table->global_epoch = mmu->fetch_epoch;
    dbt->jumps = table;
}

/* Is the page of the code at rip global? False with the page not in the TLB, too. */
static bool is_global(const struct vcpu *vcpu, uint64_t rip)
{
    unsigned i = tlb_index(rip);
    return vcpu->tlb_code->entry[i].tag[MMU_FETCH] == (rip & ~PAGE_MASK) && (vcpu->tlb_code->info[i] & TLB_GLOBAL);
}

void dbt_remember_jump(struct vcpu *vcpu, struct dbt *dbt, const struct translation *t)
{
    struct jump_table *table = dbt->jumps;
    unsigned i = jump_index(t->rip);
    bool global = is_global(vcpu, t->rip);
    mmu_note_fetch(vcpu, t->rip, global);
    if (t->gpa2 != BLOCK_DROPPED)
        mmu_note_fetch(vcpu, t->rip + PAGE_SIZE, global &= is_global(vcpu, t->rip + PAGE_SIZE));
    table->minus_rip[i] = -t->rip;
    table->code[i] = t->entry;
    if (table->filled < DBT_JUMPS_LISTED)
        table->list[table->filled] = (uint16_t)i;
    if (table->filled <= DBT_JUMPS_LISTED)
        table->filled++;
    table->local |= !global;
}

const uint8_t *dbt_find_jump(const struct dbt *dbt, uint64_t rip)
{
    unsigned i = jump_index(rip);
    return dbt->jumps->minus_rip[i] == -rip ? dbt->jumps->code[i] : NULL;
}

void dbt_forget_jump(struct dbt *dbt, const struct translation *t)
{
    unsigned i = jump_index(t->rip);
    for (unsigned n = 0; n <= TLB_CONTEXTS; n++)
        if (dbt->tables[n].filled && dbt->tables[n].code[i] == t->entry)
            dbt->tables[n].minus_rip[i] = nothing(i);
}

void dbt_forget_jumps(struct dbt *dbt)
{
    for (unsigned n = 0; n <= TLB_CONTEXTS; n++)
        empty(&dbt->tables[n]);
}
