/*
 * Where indirect jumps look their targets up. An entry says: code at this linear address, in this context and mode, is that
 * translation. It is made when the target was fetched through the MMU, and holds until the MMU says that a fetch of that page
 * may now find something else (the epochs in mmu.h). So nothing is checked but the address: by whoever looks in `entry`, and on the
 * translation's own way in, whose places `way` has. There it is a constant, and jumps and returns find their way with six
 * instructions (insn_branch.c).
 *
 * When an epoch has changed, the pages that entries lie in are looked up in the guest's tables (mmu/still.h), and only the entries of those
 * that are elsewhere go. Programs give memory back hundreds of times a second, and each time the kernel flushes all that is not global; learning
 * the targets anew took a fifth of Python's time.
 *
 * The supervisor has one table for all contexts, since a kernel's pages are global; if some are not, it is looked through with every change of
 * context, and goes with a change of the space that contexts belong to: global translations are of one VPID and EPT only
 * (SDM3 §29.4.1). VT-x guests have another one, so that entries and exits change nothing. User code has a table for each context.
 */
#include "engine/dbt/plan.h"

#include "mmu/block.h"
#include "mmu/still.h"
#include "vmx/vmx.h"

/* More changed pages than these, and the table is for another program: it goes as a whole. */
enum { CHANGED_MOST = 8 };

/* An empty place holds what no address that looks there can match: 0, but for the place of address 0. */
static uint64_t nothing(unsigned i) { return i == jump_index(0); }

/* Patched jumps between pages rely on the pages of a table: of the supervisor's, of that of the user code that ran last, or of the only one that they are in. */
static void pages_changed(struct dbt *dbt, struct jump_table *table)
{
    dbt_unlink_far_of(dbt, table);
    if (table < &dbt->tables[JUMPS_USER])
        dbt_unlink_far(dbt);
    if (table == dbt->user_far_table)
        dbt_unlink_user_far(dbt);
}

static void empty_place(const struct dbt *dbt, struct jump_table *table, unsigned i)
{
    table->entry[i].minus_rip = nothing(i);
    table->way[i] = dbt->missed;
}

static void empty_second(struct jump_table *table, unsigned i) { table->second[i] = (struct jump_entry){ .minus_rip = nothing(i) }; }

/* A table that was never used is 0, and costs memory for its ways only. */
static void empty_all(const struct dbt *dbt, struct jump_table *table)
{
    if (table->ready)
        memset(table->entry, 0, sizeof(table->entry));
    for (unsigned i = 0; i < ARRAY_SIZE(table->way); i++)
        table->way[i] = dbt->missed;
    table->entry[jump_index(0)].minus_rip = nothing(jump_index(0));
    table->ready = true;
}

static void empty(struct dbt *dbt, struct jump_table *table)
{
    pages_changed(dbt, table);
    if (table->ready && table->filled <= DBT_JUMPS_LISTED)
        for (unsigned i = 0; i < table->filled; i++)
            empty_place(dbt, table, table->list[i]);
    else
        empty_all(dbt, table);
    for (unsigned i = 0; i < DBT_SECONDS; i++)
        empty_second(table, i);
    table->filled = 0;
    table->local = false;
    for (unsigned i = 0; i < table->page_count; i++)
        table->page[table->page_list[i]].gpa = 0;
    table->page_count = 0;
}

/* --- pages --- */

/* The place of a page, or a free one. There is always one: half of them are never taken. */
static struct jump_page *find_page(struct jump_table *table, uint64_t gla)
{
    unsigned mask = ARRAY_SIZE(table->page) - 1, i = (unsigned)(gla >> PAGE_SHIFT ^ gla >> (PAGE_SHIFT + 16)) & mask;
    while (table->page[i].gpa && table->page[i].gla != gla)
        i = (i + 1) & mask;
    return &table->page[i];
}

/* The entries of a page, and of what may reach into it from the one before. */
static void forget_page(struct dbt *dbt, struct jump_table *table, uint64_t page)
{
    uint64_t first = page - INSN_LENGTH_MAX, bytes = PAGE_SIZE + INSN_LENGTH_MAX;
    pages_changed(dbt, table);
    for (uint64_t at = first; at - first < bytes + (1 << DBT_JUMP_SHIFT); at += 1 << DBT_JUMP_SHIFT)
        if (-table->entry[jump_index(at)].minus_rip - first < bytes)
            empty_place(dbt, table, jump_index(at));
    for (unsigned i = 0; i < DBT_SECONDS; i++)
        if (-table->second[i].minus_rip - first < bytes)
            empty_second(table, i);
}

static bool is_of_user(const struct dbt *dbt, const struct jump_table *table) { return table >= &dbt->tables[JUMPS_USER]; }

/* Has nothing changed since a table of user code was looked through? */
static bool is_current(const struct dbt *dbt, const struct mmu *mmu, const struct jump_table *table)
{
    return table->global_epoch == mmu->fetch_epoch && table->epoch == mmu->contexts[table - &dbt->tables[JUMPS_USER]].fetch_epoch;
}

/*
 * Is the page, with the same code at the same linear address, in another table of user code as well? Then jumps out of it, which may lead elsewhere
 * there, hold for the present table only. Whoever comes to a page has it in his table, by remembering a translation there: jumps within the
 * page lead no further, and those from other pages were patched when their target had been remembered. A table that is not current may no longer have the
 * page: that is asked when it is looked through again. (Kernels move a process from PCID to PCID as others come and go: it would seem to be its own neighbour.)
 */
static bool share_page(struct dbt *dbt, const struct mmu *mmu, const struct jump_table *table, uint64_t gla, uint64_t gpa)
{
    bool shared = false;
    for (struct jump_table *other = &dbt->tables[JUMPS_USER]; other < &dbt->tables[JUMPS_TABLES]; other++) {
        if (other == table || !other->ready || other->mode != table->mode || !other->page_count)
            continue;
        struct jump_page *page = find_page(other, gla);
        if ((page->gpa & ~PAGE_MASK) != gpa || !(page->gpa & JUMP_PAGE_TAKEN) || page->gpa & JUMP_PAGE_GONE)
            continue;
        page->gpa |= JUMP_PAGE_SHARED;
        dbt_unlink_far_of(dbt, other);
        shared |= is_current(dbt, mmu, other);
    }
    return shared;
}

bool dbt_is_only_here(const struct dbt *dbt, const struct translation *t)
{
    const struct jump_page *page = find_page(dbt->jumps, t->rip & ~PAGE_MASK);
    return is_of_user(dbt, dbt->jumps) && t->gpa2 == BLOCK_DROPPED &&
           (page->gpa & ~(uint64_t)JUMP_PAGE_GLOBAL) == ((t->gpa & ~PAGE_MASK) | JUMP_PAGE_TAKEN);
}

/* With a free place for it. */
static void note_page(struct dbt *dbt, const struct mmu *mmu, struct jump_table *table, uint64_t gla, uint64_t gpa, bool global)
{
    struct jump_page *page = find_page(table, gla);
    uint64_t is = gpa | JUMP_PAGE_TAKEN | (global ? JUMP_PAGE_GLOBAL : 0);
    if ((page->gpa & ~(uint64_t)JUMP_PAGE_SHARED) == is)
        return;
    if (page->gpa)
        forget_page(dbt, table, gla);
    else
        table->page_list[table->page_count++] = (uint16_t)(page - table->page);
    bool shared = is_of_user(dbt, table) && share_page(dbt, mmu, table, gla, gpa);
    *page = (struct jump_page){ .gla = gla, .gpa = is | (shared ? JUMP_PAGE_SHARED : 0) };
}

/* Forgets the pages that are elsewhere now, and says how many; CHANGED_MOST: too many to go on. */
static unsigned forget_changed(struct vcpu *vcpu, struct dbt *dbt, struct jump_table *table)
{
    struct still still = { 0 };
    unsigned changed = 0;
    for (unsigned i = 0; i < table->page_count && changed < CHANGED_MOST; i++) {
        struct jump_page *page = &table->page[table->page_list[i]];
        if (page->gpa & JUMP_PAGE_GONE)
            continue;
        if (mmu_still_fetches(vcpu, &still, page->gla, page->gpa & ~PAGE_MASK, page->gpa & JUMP_PAGE_GLOBAL)) {
            if (page->gpa & JUMP_PAGE_SHARED && !share_page(dbt, vcpu->mmu, table, page->gla, page->gpa & ~PAGE_MASK))
                page->gpa &= ~(uint64_t)JUMP_PAGE_SHARED;
            continue;
        }
        forget_page(dbt, table, page->gla);
        page->gpa = JUMP_PAGE_TAKEN | JUMP_PAGE_GONE;
        changed++;
    }
    return changed;
}

/* --- which table --- */

/* Of the same rules, but for what the epochs tell. */
static bool suits(const struct jump_table *table, const struct mmu *mmu, uint8_t mode)
{
    const struct tlb_context *context = mmu->context;
    return table->ready && table->mode == mode && table->vpid == context->vpid && table->eptp == context->eptp && table->rule_bits == context->rule_bits;
}

static bool holds(const struct jump_table *table, const struct mmu *mmu, bool supervisor)
{
    if (table->global_epoch != mmu->fetch_epoch)
        return false;
    return (supervisor && !table->local) || (table->context == mmu->context && table->epoch == mmu->context->fetch_epoch);
}

static struct jump_table *table_of(const struct vcpu *vcpu, struct dbt *dbt, bool supervisor)
{
    const struct mmu *mmu = vcpu->mmu;
    if (supervisor)
        return &dbt->tables[vmx_guest(vcpu) ? JUMPS_VMX_SUPERVISOR : JUMPS_SUPERVISOR];
    return &dbt->tables[JUMPS_USER + (mmu->context - mmu->contexts)];
}

void dbt_pick_jumps(struct vcpu *vcpu, struct dbt *dbt)
{
    const struct mmu *mmu = vcpu->mmu;
    bool supervisor = !(dbt->mode & MODE_USER);
    struct jump_table *table = table_of(vcpu, dbt, supervisor);
    bool suitable = suits(table, mmu, dbt->mode);
    if (!supervisor && table != dbt->user_far_table) {
        dbt_unlink_user_far(dbt);
        dbt->user_far_table = table;
    }
    if (likely(suitable && holds(table, mmu, supervisor))) {
        dbt->jumps = table;
        return;
    }
    if (!suitable || forget_changed(vcpu, dbt, table) == CHANGED_MOST)
        empty(dbt, table);
    table->mode = dbt->mode;
    table->context = mmu->context;
    table->vpid = mmu->context->vpid;
    table->eptp = mmu->context->eptp;
    table->rule_bits = mmu->context->rule_bits;
    table->epoch = mmu->context->fetch_epoch;
    table->global_epoch = mmu->fetch_epoch;
    dbt->jumps = table;
}

/* --- entries --- */

/* Is the page of the code at rip global? False with the page not in the TLB, too. */
static bool is_global(const struct vcpu *vcpu, uint64_t rip)
{
    unsigned i = tlb_index(rip);
    return vcpu->tlb_code->entry[i].tag[MMU_FETCH] == (rip & ~PAGE_MASK) && (vcpu->tlb_code->info[i] & TLB_GLOBAL);
}

static void remember_page(struct vcpu *vcpu, struct dbt *dbt, struct jump_table *table, uint64_t rip, uint64_t gpa)
{
    bool global = is_global(vcpu, rip);
    mmu_note_fetch(vcpu, rip, global);
    table->local |= !global;
    note_page(dbt, vcpu->mmu, table, rip & ~PAGE_MASK, gpa & ~PAGE_MASK, global);
}

/* Two that go by turns, as a function's address and that behind the call it begins with do, would drive each other out each time. */
static void move_to_second(struct jump_table *table, const struct jump_entry *entry) { table->second[second_index(-entry->minus_rip)] = *entry; }

void dbt_remember_jump(struct vcpu *vcpu, struct dbt *dbt, const struct translation *t)
{
    struct jump_table *table = dbt->jumps;
    unsigned i = jump_index(t->rip);
    if (table->page_count + 2 > DBT_JUMP_PAGES)
        empty(dbt, table);
    remember_page(vcpu, dbt, table, t->rip, t->gpa);
    if (t->gpa2 != BLOCK_DROPPED)
        remember_page(vcpu, dbt, table, t->rip + PAGE_SIZE, t->gpa2);
    if (table->entry[i].minus_rip == nothing(i)) {
        if (table->filled < DBT_JUMPS_LISTED)
            table->list[table->filled] = (uint16_t)i;
        if (table->filled <= DBT_JUMPS_LISTED)
            table->filled++;
    } else if (table->entry[i].minus_rip != -t->rip) {
        move_to_second(table, &table->entry[i]);
    }
    table->entry[i] = (struct jump_entry){ .minus_rip = -t->rip, .code = t->entry };
    table->way[i] = t->code;
}

const uint8_t *dbt_find_jump(const struct dbt *dbt, uint64_t rip)
{
    const struct jump_entry *entry = &dbt->jumps->entry[jump_index(rip)], *second = &dbt->jumps->second[second_index(rip)];
    if (entry->minus_rip == -rip)
        return entry->code;
    return second->minus_rip == -rip ? second->code : NULL;
}

void dbt_forget_jump(struct dbt *dbt, const struct translation *t)
{
    unsigned i = jump_index(t->rip), second = second_index(t->rip);
    for (unsigned n = 0; n < JUMPS_TABLES; n++) {
        struct jump_table *table = &dbt->tables[n];
        if (!table->filled)
            continue;
        if (table->entry[i].code == t->entry)
            empty_place(dbt, table, i);
        if (table->second[second].code == t->entry)
            empty_second(table, second);
    }
}

void dbt_forget_jumps(struct dbt *dbt)
{
    for (unsigned n = 0; n < JUMPS_TABLES; n++)
        if (dbt->tables[n].ready)
            empty(dbt, &dbt->tables[n]);
}
