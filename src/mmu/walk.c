/*
 * Walks the guest's tables through host pointers. Two passes: down to the page, collecting rights and reserved bits; then, when
 * the access is allowed, A and D bits are set where they are missing, each by compare-exchange against the value that was
 * used. If an entry changed meanwhile the walk starts again, as the processor's own locked update would find it changed.
 *
 * NOTE(spec): a walk that faults sets no A bits, not even in the upper levels it used. SDM3 §4.8 allows the bits to be set
 * whenever an entry is used; processors differ.
 *
 * In a VT-x guest with EPT the addresses in the guest's tables, and the page's own, are guest-physical: each goes through
 * EPT by a walk of the same kind, with EPT's format (SDM3 §29.3). What that walk forbids is an exit, not a fault.
 */
#include "mmu/walk.h"

#include "mem/ram.h"
#include "mmu/walk_cache.h"
#include "vmx/vmx.h"

enum outcome { WALK_DONE, WALK_FAULT, WALK_AGAIN, WALK_ABSENT, WALK_RESERVED, WALK_EXIT };

/* One entry on the way, for the second pass. */
struct step {
    void *host;                 /* NULL: the table is not in RAM */
    struct ram_slot *slot;
    uint64_t guest_gpa;         /* before EPT */
    uint64_t gpa;
    uint64_t entry;
};

struct path {
    const struct paging_format *format;
    struct step step[PAGING_LEVELS_MAX];        /* [0] is the leaf */
    unsigned top, leaf;         /* the levels that began (counted from 1) and ended the walk */
    uint64_t all, any;          /* AND and OR of the entries */
    uint64_t all_above, any_above;      /* the same without the last one */
    uint64_t address;           /* of the page, with the low bits of the address asked for */
};

static enum outcome ept_translate(struct vcpu *vcpu, struct walk *walk, uint64_t *gpa, uint32_t access, bool of_table);
static bool locate_table_entry(struct vcpu *vcpu, struct walk *walk, uint64_t *gpa);

/* A table that is not RAM reads as an unclaimed bus does: all ones. */
static uint64_t read_entry(struct ram *ram, struct step *step, unsigned bytes)
{
    step->slot = ram_find(ram, step->gpa);
    if (unlikely(!step->slot)) {
        step->host = NULL;
        return size_mask(bytes);
    }
    step->host = step->slot->host + (step->gpa - step->slot->gpa);
    if (bytes == 8)
        return __atomic_load_n((uint64_t *)step->host, __ATOMIC_RELAXED);
    return __atomic_load_n((uint32_t *)step->host, __ATOMIC_RELAXED);
}

static inline bool maps_page(const struct paging_level *level, uint64_t entry)
{
    return level->leaf == LEAF_ALWAYS || (level->leaf == LEAF_LARGE && (entry & PTE_PS));
}

static inline uint64_t page_address(const struct paging_format *format, const struct paging_level *level, uint64_t entry)
{
    uint64_t base = entry & format->address_mask & (~0ull << level->shift);
    if (level->high_bits)
        base |= ((entry >> level->high_shift) & (BIT(level->high_bits) - 1)) << 32;
    return base;
}

/* SDM3 §29.3.3.1 "EPT Misconfigurations", besides reserved bits: rights that need that to read, and memory types that do not exist. */
static bool ept_misconfigured(const struct paging_format *format, uint64_t entry, bool leaf)
{
    unsigned type = EPTE_MEMORY_TYPE(entry);
    return ((entry & format->needs_read) && !(entry & EPTE_READ)) || (leaf && (type == 2 || type == 3 || type == 7));
}

static void path_begin(struct path *path, const struct paging_format *format, unsigned top, uint64_t all, uint64_t any)
{
    path->format = format;
    path->top = top;
    path->all = all;
    path->any = any;
}

/* First pass, from the table of the path's top level on. nested: the tables' addresses are guest-physical. */
static enum outcome descend(struct vcpu *vcpu, struct walk *walk, uint64_t table, uint64_t address, bool nested, struct path *path)
{
    const struct paging_format *format = path->format;
    for (unsigned n = path->top - 1;; n--) {
        const struct paging_level *level = &format->level[n];
        struct step *step = &path->step[n];
        uint64_t index = (address >> level->shift) & (BIT(level->index_bits) - 1);
        path->leaf = n;
        step->gpa = step->guest_gpa = table + index * format->entry_bytes;
        if (unlikely(nested) && !locate_table_entry(vcpu, walk, &step->gpa))
            return WALK_EXIT;
        uint64_t entry = step->entry = read_entry(vcpu->ram, step, format->entry_bytes);
        if (unlikely(walk->report))
            walk->report(walk->report_owner, n, step->gpa, entry);
        path->all_above = path->all;
        path->any_above = path->any;
        path->all &= entry;
        path->any |= entry;
        if (!(entry & format->present))
            return WALK_ABSENT;
        bool leaf = maps_page(level, entry);
        if (unlikely(entry & (leaf ? level->leaf_reserved : level->reserved)) || (format->ept && ept_misconfigured(format, entry, leaf)))
            return WALK_RESERVED;
        if (leaf) {
            path->address = page_address(format, level, entry) | (address & (BIT(level->shift) - 1));
            return WALK_DONE;
        }
        table = entry & format->address_mask;
    }
}

/* The tables may themselves be watched for code or dirty tracking. */
static bool set_bits(struct vcpu *vcpu, struct step *step, unsigned bytes, uint64_t flags)
{
    uint64_t old64 = step->entry;
    uint32_t old32 = (uint32_t)step->entry;
    bool done = bytes == 8 ? __atomic_compare_exchange_n((uint64_t *)step->host, &old64, old64 | flags, false,
                                                         __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)
                           : __atomic_compare_exchange_n((uint32_t *)step->host, &old32, old32 | (uint32_t)flags, false,
                                                         __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    if (done)
        ram_written(vcpu->ram, step->gpa, bytes);
    return done;
}

/* What must be in order before flags of an entry are written: the right to, and the log of dirty pages. */
static bool may_set(struct vcpu *vcpu, struct walk *walk, const struct path *path, struct step *step, uint64_t missing, uint64_t gpa)
{
    if (path->format->ept)
        return !(missing & path->format->dirty) || vmx_log_modification(vcpu, gpa);
    return !vcpu->mmu->space.ept || ept_translate(vcpu, walk, &(uint64_t){ step->guest_gpa }, EPT_READ | EPT_WRITE, true) == WALK_DONE;
}

/*
 * Second pass (SDM3 §4.8 "Accessed and Dirty Flags", §29.3.5 "Accessed and Dirty Flags for EPT"). gpa: the address that an EPT walk
 * was for.
 */
static enum outcome mark_used(struct vcpu *vcpu, struct walk *walk, struct path *path, bool write, uint64_t gpa)
{
    const struct paging_format *format = path->format;
    for (unsigned n = path->top; n-- > path->leaf;) {
        struct step *step = &path->step[n];
        uint64_t flags = n == path->leaf && write ? format->accessed | format->dirty : format->accessed;
        uint64_t missing = flags & ~step->entry;
        if (likely(!missing) || !step->host || ram_is_rom(step->slot, step->gpa))
            continue;
        if (!may_set(vcpu, walk, path, step, missing, gpa))
            return WALK_EXIT;
        if (!set_bits(vcpu, step, format->entry_bytes, flags))
            return WALK_AGAIN;
        step->entry |= flags;
    }
    return WALK_DONE;
}

/* --- EPT --- */

/* SDM3 table 28-7 "Exit Qualification for EPT Violations". */
static uint64_t violation_qualification(const struct vcpu *vcpu, const struct walk *walk, const struct path *path, uint32_t access, bool of_table)
{
    enum { USER_EXECUTABLE = 1 << 6, GLA_VALID = 1 << 7, FINAL = 1 << 8, USER = 1 << 9, WRITABLE = 1 << 10, NO_EXECUTE = 1 << 11 };
    uint64_t qualification = access | (path->all & EPTE_RIGHTS) << 3 | (path->all & EPTE_USER_EXECUTE ? USER_EXECUTABLE : 0);
    if (walk->no_gla)
        return qualification;
    qualification |= GLA_VALID;
    if (of_table)
        return qualification;
    if (!vmx_can(vcpu, CAPABILITY_EPT_VIOLATION_INFORMATION))
        return qualification | FINAL;
    return qualification | FINAL | (walk->user ? USER : 0) | (walk->guest_writable ? WRITABLE : 0) | (walk->guest_nx ? NO_EXECUTE : 0);
}

static enum outcome ept_refuse(struct vcpu *vcpu, struct walk *walk, const struct path *path, uint64_t gpa, uint32_t access,
                               bool of_table, bool misconfigured)
{
    if (walk->peek)
        return WALK_FAULT;
    walk->exits = true;
    guest_physical_forget(vcpu->mmu, gpa);      /* §29.4.3.1 */
    if (misconfigured)
        vmx_ept_misconfiguration(vcpu, gpa);
    else
        vmx_ept_violation(vcpu, violation_qualification(vcpu, walk, path, access, of_table), walk->gla, gpa,
                          !(path->step[path->leaf].entry & EPTE_SUPPRESS_VE));
    return WALK_EXIT;
}

/* The right that a fetch needs: with mode-based execute control it depends on whose page the guest's tables say it is. */
static uint64_t rights_needed(const struct vcpu *vcpu, const struct walk *walk, uint32_t access)
{
    if ((access & EPT_EXECUTE) && vcpu->mmu->space.mode_based_execute && walk->user)
        return (access & ~(uint32_t)EPT_EXECUTE) | EPTE_USER_EXECUTE;
    return access;
}

/* What EPT says of writes to the guest's page. */
static void take_rights(const struct mmu *mmu, struct walk *walk, uint64_t all, bool dirty)
{
    walk->writable &= (all & EPTE_WRITE) != 0;
    walk->dirty &= !mmu->ept_format.dirty || dirty;
}

/* By a guest-physical mapping that is kept, if it allows the access and no flag has to be set. */
static bool take_kept(const struct vcpu *vcpu, struct walk *walk, const struct guest_physical *kept, uint64_t *gpa, uint32_t access, bool of_table)
{
    const struct mmu *mmu = vcpu->mmu;
    if (!guest_physical_is(mmu, kept, *gpa) || (rights_needed(vcpu, walk, access) & ~kept->all) ||
        ((access & EPT_WRITE) && mmu->ept_format.dirty && !kept->dirty))
        return false;
    if (!of_table)
        take_rights(mmu, walk, kept->all, kept->dirty);
    *gpa = kept->page | (*gpa & PAGE_MASK);
    return true;
}

/*
 * A guest-physical address to a physical one, for EPT_READ.. bits of access. With A and D flags the guest's tables are accessed as
 * if written (SDM3 §29.3.5).
 */
static enum outcome ept_translate(struct vcpu *vcpu, struct walk *walk, uint64_t *gpa, uint32_t access, bool of_table)
{
    const struct mmu *mmu = vcpu->mmu;
    struct path path;
    enum outcome outcome;
    if (of_table && mmu->ept_format.dirty)
        access |= EPT_WRITE;
    struct guest_physical *kept = walk->peek ? NULL : guest_physical_place(vcpu->mmu, *gpa);
    if (unlikely(kept) && take_kept(vcpu, walk, kept, gpa, access, of_table))
        return WALK_DONE;
    do {
        path_begin(&path, &mmu->ept_format, mmu->ept_format.levels, ~0ull, 0);
        outcome = descend(vcpu, walk, mmu->space.eptp & mmu->ept_format.address_mask, *gpa, false, &path);
        bool refused = outcome != WALK_DONE || (rights_needed(vcpu, walk, access) & ~path.all);
        if (refused && !(walk->peek && outcome == WALK_DONE))
            return ept_refuse(vcpu, walk, &path, *gpa, access, of_table, outcome == WALK_RESERVED);
        if (!walk->peek)
            outcome = mark_used(vcpu, walk, &path, access & EPT_WRITE, *gpa);
    } while (outcome == WALK_AGAIN);
    if (outcome == WALK_EXIT)
        walk->exits = true;
    bool dirty = path.step[path.leaf].entry & EPTE_D;
    if (!of_table)
        take_rights(mmu, walk, path.all, dirty);
    if (unlikely(kept) && outcome == WALK_DONE)
        guest_physical_set(mmu, kept, *gpa, path.address & ~PAGE_MASK, path.all, dirty);
    *gpa = path.address;
    return outcome;
}

/* An entry of the guest's tables. In the APIC-access page it is not read: that exits (SDM3 §30.4.6.1). */
static bool locate_table_entry(struct vcpu *vcpu, struct walk *walk, uint64_t *gpa)
{
    if (ept_translate(vcpu, walk, gpa, EPT_READ, true) != WALK_DONE)
        return false;
    if (likely(!vmx_is_apic_access_page(vcpu, *gpa)))
        return true;
    if (!walk->peek) {
        walk->exits = true;
        vmx_exit_apic_table(vcpu);
    }
    return false;
}

/* --- the guest's own tables --- */

/* W, U and I/D of the error code (SDM3 §4.7): what the access was. */
static uint32_t error_of_access(const struct mmu *mmu, const struct walk *walk)
{
    uint32_t error = 0;
    if (walk->use == MMU_WRITE)
        error |= PF_W;
    if (walk->class == MMU_USER)
        error |= PF_U;
    if (walk->use == MMU_FETCH && (mmu->nx || mmu->smep))
        error |= PF_I;
    return error;
}

static enum outcome fault(const struct mmu *mmu, struct walk *walk, uint32_t why)
{
    walk->error = error_of_access(mmu, walk) | why;
    return WALK_FAULT;
}

/* SDM3 §4.6.2 "Protection Keys": does PKRU forbid this data access? */
static bool key_forbids(const struct mmu *mmu, const struct walk *walk, enum mmu_use use)
{
    if (!mmu->pke || !walk->user || use == MMU_FETCH)
        return false;
    uint32_t rights = mmu->pkru >> (2 * walk->pkey);
    if (rights & 1)
        return true;
    return (rights & 2) && use == MMU_WRITE && (walk->class == MMU_USER || mmu->wp);
}

/* SDM3 §4.6.1 "Determination of Access Rights". */
static bool rights_allow(const struct mmu *mmu, const struct walk *walk, const struct path *path, enum mmu_use use)
{
    bool executable = !(mmu->nx && (path->any & PTE_NX));
    bool writable = path->all & PTE_W;
    if (walk->class == MMU_USER) {
        if (!walk->user)
            return false;
        return use == MMU_FETCH ? executable : use == MMU_WRITE ? writable : true;
    }
    if (use == MMU_FETCH)
        return executable && !(walk->user && mmu->smep);
    if (walk->user && walk->class == MMU_SUPERVISOR_SMAP)
        return false;
    return use == MMU_READ || writable || !mmu->wp;
}

/* What the entry of a page says of it. */
static void take_page(const struct mmu *mmu, struct walk *walk, const struct path *path)
{
    uint64_t entry = path->step[path->leaf].entry;
    walk->gpa = path->address;
    walk->page_shift = path->format->level[path->leaf].shift;
    walk->global = mmu->pge && (entry & PTE_G);
    walk->pkey = mmu->pke ? PTE_PKEY(entry) : 0;
    walk->user = path->all & PTE_U;
    walk->guest_writable = path->all & PTE_W;
    walk->guest_nx = mmu->nx && (path->any & PTE_NX);
}

/* From the table of the path's top level; nothing is kept of it. */
static enum outcome walk_from(struct vcpu *vcpu, struct walk *walk, uint64_t table, struct path *path)
{
    const struct mmu *mmu = vcpu->mmu;
    enum outcome outcome = descend(vcpu, walk, table, walk->gla, mmu->space.ept, path);
    if (outcome == WALK_ABSENT || outcome == WALK_RESERVED)
        return fault(mmu, walk, outcome == WALK_RESERVED ? PF_P | PF_RSVD : 0);
    if (outcome != WALK_DONE)
        return outcome;
    take_page(mmu, walk, path);
    counter_add(&vcpu->counters, COUNTER_walk_reads, path->top - path->leaf);
    if (walk->peek)
        return WALK_DONE;
    bool key = key_forbids(mmu, walk, walk->use);
    if (key || !rights_allow(mmu, walk, path, walk->use))
        return fault(mmu, walk, PF_P | (key ? PF_PK : 0));
    walk->writable = rights_allow(mmu, walk, path, MMU_WRITE) && !key_forbids(mmu, walk, MMU_WRITE);
    outcome = mark_used(vcpu, walk, path, walk->use == MMU_WRITE, 0);
    walk->dirty = path->step[path->leaf].entry & PTE_D;
    return outcome;
}

/* By the page table that is known to be for the address. A fault is not believed: the tables as they are have the last word. */
static enum outcome walk_by_structure(struct vcpu *vcpu, struct walk *walk, struct structure *kept)
{
    struct path path;
    path_begin(&path, &vcpu->mmu->format, 1, kept->all, kept->any);
    enum outcome outcome = walk_from(vcpu, walk, kept->table, &path);
    if (outcome == WALK_FAULT || outcome == WALK_EXIT)
        kept->key = 0;
    return outcome;
}

static void keep_structure(const struct walk *walk, const struct path *path, struct structure *place)
{
    const struct step *last = &path->step[0];
    unsigned bytes = path->format->entry_bytes;
    uint64_t index = (walk->gla >> PAGE_SHIFT) & (BIT(path->format->level[0].index_bits) - 1);
    if (path->leaf == 0)
        *place = (struct structure){ structure_key(walk->gla, path->format->level[1].shift), last->guest_gpa - index * bytes,
                                     path->all_above, path->any_above };
}

static enum outcome walk_tables(struct vcpu *vcpu, struct walk *walk)
{
    const struct mmu *mmu = vcpu->mmu;
    const struct paging_format *format = &mmu->format;
    struct path path;
    uint64_t table = vcpu->cr3 & format->address_mask;
    struct structure *kept = walk->peek ? NULL : structure_place(vcpu->mmu, walk->gla, format->level[1].shift);
    if (unlikely(kept) && kept->key == structure_key(walk->gla, format->level[1].shift)) {
        enum outcome outcome = walk_by_structure(vcpu, walk, kept);
        if (outcome != WALK_FAULT)
            return outcome;
    }
    if (format->pdpte_registers) {
        uint64_t pdpte = vcpu->pdpte[(walk->gla >> 30) & 3];
        if (!(pdpte & PTE_P))
            return fault(mmu, walk, 0);
        table = pdpte & format->address_mask;
    }
    path_begin(&path, format, format->levels, ~0ull, 0);
    enum outcome outcome = walk_from(vcpu, walk, table, &path);
    if (unlikely(kept) && outcome == WALK_DONE)
        keep_structure(walk, &path, kept);
    return outcome;
}

static enum outcome walk_once(struct vcpu *vcpu, struct walk *walk)
{
    static const uint8_t access_of[] = { [MMU_READ] = EPT_READ, [MMU_WRITE] = EPT_WRITE, [MMU_FETCH] = EPT_EXECUTE };
    enum outcome outcome = WALK_DONE;
    if (vcpu->mmu->format.levels) {
        outcome = walk_tables(vcpu, walk);
    } else {
        walk->gpa = walk->gla;
        walk->page_shift = PAGE_SHIFT;
        walk->pkey = 0;
        walk->global = walk->guest_nx = false;
        walk->user = walk->writable = walk->dirty = walk->guest_writable = true;
    }
    if (likely(outcome != WALK_DONE || !vcpu->mmu->space.ept))
        return outcome;
    return ept_translate(vcpu, walk, &walk->gpa, access_of[walk->use], false);
}

bool mmu_walk(struct vcpu *vcpu, struct walk *walk)
{
    enum outcome outcome;
    if (vcpu->mmu->format.levels)
        counter_add(&vcpu->counters, COUNTER_walks, 1);
    walk->exits = false;
    do
        outcome = walk_once(vcpu, walk);
    while (unlikely(outcome == WALK_AGAIN));
    return outcome == WALK_DONE;
}

/* --- the tables as they are --- */

/* Of the guest's tables: with A and D flags in EPT, reading one counts as a write (SDM3 §29.3.5). */
static bool look_for_table(struct vcpu *vcpu, struct ept_look *look, uint64_t *gpa)
{
    bool writable = true;
    return mmu_look_through_ept(vcpu, look, gpa, &writable) && (writable || !vcpu->mmu->ept_format.dirty) &&
           !vmx_is_apic_access_page(vcpu, *gpa);
}

/* From the root at `table`. look: what the tables' addresses go through; NULL: nothing. */
static bool find_leaves(struct vcpu *vcpu, const struct paging_format *format, uint64_t table, uint64_t address, struct ept_look *look,
                        struct leaves *leaves)
{
    uint64_t needed = format->accessed | (format->ept ? EPTE_READ : PTE_P);
    leaves->above = ~0ull;
    leaves->any_above = 0;
    leaves->entry = NULL;
    for (unsigned n = format->levels - 1; n; n--) {
        const struct paging_level *level = &format->level[n];
        struct step step = { .gpa = table + ((address >> level->shift) & (BIT(level->index_bits) - 1)) * sizeof(uint64_t) };
        if (look && !look_for_table(vcpu, look, &step.gpa))
            return false;
        uint64_t entry = read_entry(vcpu->ram, &step, sizeof(entry));
        bool large = maps_page(level, entry);
        if ((entry & needed) != needed || (entry & (large ? level->leaf_reserved : level->reserved)) ||
            (format->ept && ept_misconfigured(format, entry, large)))
            return false;
        if (large) {
            leaves->large = entry;
            leaves->page_shift = level->shift;
            leaves->large_gpa = page_address(format, level, entry) | (address & (BIT(level->shift) - 1) & ~(BIT(21) - 1));
            return true;
        }
        leaves->above &= entry;
        leaves->any_above |= entry;
        table = entry & format->address_mask;
    }
    if (look && !look_for_table(vcpu, look, &table))
        return false;
    leaves->page_shift = PAGE_SHIFT;
    leaves->entry = (const uint64_t *)ram_host(vcpu->ram, table);
    return leaves->entry;
}

bool mmu_walk_leaves(struct vcpu *vcpu, uint64_t gla, struct leaves *leaves)
{
    const struct mmu *mmu = vcpu->mmu;
    struct ept_look look = { 0 };
    return find_leaves(vcpu, &mmu->format, vcpu->cr3 & mmu->format.address_mask, gla, mmu->space.ept ? &look : NULL, leaves);
}

/* The 2 MiB around gpa. */
static void look_at(struct vcpu *vcpu, struct ept_look *look, uint64_t gpa)
{
    const struct mmu *mmu = vcpu->mmu;
    if (look->known && look->piece == gpa >> 21)
        return;
    look->known = true;
    look->piece = gpa >> 21;
    look->mapped = find_leaves(vcpu, &mmu->ept_format, mmu->space.eptp & mmu->ept_format.address_mask, gpa, NULL, &look->leaves);
}

/* *rights: those of all entries, if the page can be read. */
static bool look_through(struct vcpu *vcpu, struct ept_look *look, uint64_t *gpa, uint64_t *rights)
{
    const struct paging_format *format = &vcpu->mmu->ept_format;
    const struct leaves *leaves = &look->leaves;
    look_at(vcpu, look, *gpa);
    if (!look->mapped)
        return false;
    unsigned i = (*gpa >> PAGE_SHIFT) & (PAGING_ENTRIES - 1);
    uint64_t needed = EPTE_READ | format->accessed;
    uint64_t entry = leaves->entry ? __atomic_load_n(&leaves->entry[i], __ATOMIC_RELAXED) : leaves->large;
    if ((entry & needed) != needed)
        return false;
    if (leaves->entry && ((entry & format->level[0].leaf_reserved) || ept_misconfigured(format, entry, true)))
        return false;
    uint64_t page = leaves->entry ? entry & format->address_mask : leaves->large_gpa + i * PAGE_SIZE;
    *rights = entry & leaves->above & EPTE_RIGHTS;
    if ((entry & format->dirty) != format->dirty)
        *rights &= ~(uint64_t)EPTE_WRITE;
    *gpa = page | (*gpa & PAGE_MASK);
    return true;
}

bool mmu_look_through_ept(struct vcpu *vcpu, struct ept_look *look, uint64_t *gpa, bool *writable)
{
    uint64_t rights = EPTE_RIGHTS;
    if (vcpu->mmu->space.ept && !look_through(vcpu, look, gpa, &rights))
        return false;
    *writable &= (rights & EPTE_WRITE) != 0;
    return true;
}

bool mmu_fetch_through_ept(struct vcpu *vcpu, struct ept_look *look, uint64_t *gpa)
{
    uint64_t rights;
    if (!vcpu->mmu->space.ept)
        return true;
    return !vcpu->mmu->space.mode_based_execute && look_through(vcpu, look, gpa, &rights) && (rights & EPTE_EXECUTE) &&
           !vmx_is_apic_access_page(vcpu, *gpa);
}

bool mmu_walk_guest_physical(struct vcpu *vcpu, uint64_t *gpa)
{
    struct walk walk = { .no_gla = true };
    return locate_table_entry(vcpu, &walk, gpa);
}
