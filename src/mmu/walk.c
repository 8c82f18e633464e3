/*
 * Walks the guest's tables through host pointers. Two passes: down to the page, collecting rights and reserved bits; then, when
 * the access is allowed, A and D bits are set where they are missing, each by compare-exchange against the value that was
 * used. If an entry changed meanwhile the walk starts again, as the processor's own locked update would find it changed.
 *
 * NOTE(spec): a walk that faults sets no A bits, not even in the upper levels it used. SDM3 §4.8 allows the bits to be set
 * whenever an entry is used; processors differ.
 */
#include "mmu/walk.h"

#include "mem/ram.h"

enum outcome { WALK_DONE, WALK_FAULT, WALK_AGAIN };

/* One entry on the way, for the second pass. */
struct step {
    void *host;                 /* NULL: the table is not in RAM */
    struct ram_slot *slot;
    uint64_t gpa;
    uint64_t entry;
};

struct path {
    struct step step[PAGING_LEVELS_MAX];        /* [0] is the leaf */
    unsigned count;
    uint64_t all, any;          /* AND and OR of the entries */
};

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

/* First pass. */
static enum outcome descend(struct vcpu *vcpu, struct walk *walk, struct path *path)
{
    const struct mmu *mmu = vcpu->mmu;
    const struct paging_format *format = &mmu->format;
    uint64_t table = vcpu->cr3 & format->address_mask;
    if (format->pdpte_registers) {
        uint64_t pdpte = vcpu->pdpte[(walk->gla >> 30) & 3];
        if (!(pdpte & PTE_P))
            return fault(mmu, walk, 0);
        table = pdpte & format->address_mask;
    }
    path->all = ~0ull;
    path->any = 0;
    for (unsigned n = format->levels - 1;; n--) {
        const struct paging_level *level = &format->level[n];
        struct step *step = &path->step[n];
        uint64_t index = (walk->gla >> level->shift) & (BIT(level->index_bits) - 1);
        step->gpa = table + index * format->entry_bytes;
        uint64_t entry = step->entry = read_entry(vcpu->ram, step, format->entry_bytes);
        if (unlikely(walk->report))
            walk->report(walk->report_owner, n, step->gpa, entry);
        if (!(entry & PTE_P))
            return fault(mmu, walk, 0);
        bool leaf = maps_page(level, entry);
        if (unlikely(entry & (leaf ? level->leaf_reserved : level->reserved)))
            return fault(mmu, walk, PF_P | PF_RSVD);
        path->all &= entry;
        path->any |= entry;
        if (leaf) {
            path->count = format->levels - n;
            walk->page_shift = level->shift;
            walk->gpa = page_address(format, level, entry) | (walk->gla & (BIT(level->shift) - 1));
            walk->global = mmu->pge && (entry & PTE_G);
            walk->dirty = entry & PTE_D;
            walk->pkey = mmu->pke ? PTE_PKEY(entry) : 0;
            walk->user = path->all & PTE_U;
            return WALK_DONE;
        }
        table = entry & format->address_mask;
    }
}

/* The guest's tables may themselves be watched for code or dirty tracking. */
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

/* Second pass (SDM3 §4.8 "Accessed and Dirty Flags"). */
static enum outcome mark_used(struct vcpu *vcpu, struct walk *walk, struct path *path)
{
    const struct paging_format *format = &vcpu->mmu->format;
    unsigned leaf = format->levels - path->count;
    for (unsigned n = format->levels; n-- > leaf;) {
        struct step *step = &path->step[n];
        uint64_t flags = n == leaf && walk->use == MMU_WRITE ? PTE_A | PTE_D : PTE_A;
        if (likely((step->entry & flags) == flags) || !step->host || ram_is_rom(step->slot, step->gpa))
            continue;
        if (!set_bits(vcpu, step, format->entry_bytes, flags))
            return WALK_AGAIN;
        if (n == leaf)
            walk->dirty |= walk->use == MMU_WRITE;
    }
    return WALK_DONE;
}

static enum outcome walk_once(struct vcpu *vcpu, struct walk *walk)
{
    const struct mmu *mmu = vcpu->mmu;
    struct path path;
    enum outcome outcome = descend(vcpu, walk, &path);
    if (outcome != WALK_DONE)
        return outcome;
    counter_add(&vcpu->counters, COUNTER_walk_reads, path.count);
    if (walk->peek)
        return WALK_DONE;
    bool key = key_forbids(mmu, walk, walk->use);
    if (key || !rights_allow(mmu, walk, &path, walk->use))
        return fault(mmu, walk, PF_P | (key ? PF_PK : 0));
    walk->writable = rights_allow(mmu, walk, &path, MMU_WRITE) && !key_forbids(mmu, walk, MMU_WRITE);
    return mark_used(vcpu, walk, &path);
}

bool mmu_walk(struct vcpu *vcpu, struct walk *walk)
{
    if (!vcpu->mmu->format.levels) {
        walk->gpa = walk->gla;
        walk->page_shift = PAGE_SHIFT;
        walk->pkey = 0;
        walk->global = false;
        walk->user = walk->writable = walk->dirty = true;
        return true;
    }
    counter_add(&vcpu->counters, COUNTER_walks, 1);
    enum outcome outcome;
    do
        outcome = walk_once(vcpu, walk);
    while (unlikely(outcome == WALK_AGAIN));
    return outcome == WALK_DONE;
}

bool mmu_walk_leaves(struct vcpu *vcpu, uint64_t gla, struct leaves *leaves)
{
    const struct paging_format *format = &vcpu->mmu->format;
    uint64_t table = vcpu->cr3 & format->address_mask;
    leaves->above = ~0ull;
    leaves->entry = NULL;
    for (unsigned n = format->levels - 1; n; n--) {
        const struct paging_level *level = &format->level[n];
        struct step step = { .gpa = table + ((gla >> level->shift) & (BIT(level->index_bits) - 1)) * sizeof(uint64_t) };
        uint64_t entry = read_entry(vcpu->ram, &step, sizeof(entry));
        bool large = maps_page(level, entry);
        if ((entry & (PTE_P | PTE_A)) != (PTE_P | PTE_A) || (entry & (large ? level->leaf_reserved : level->reserved)))
            return false;
        if (large) {
            leaves->large = entry;
            leaves->page_shift = level->shift;
            leaves->large_gpa = page_address(format, level, entry) | (gla & (BIT(level->shift) - 1) & ~(BIT(21) - 1));
            return true;
        }
        leaves->above &= entry;
        table = entry & format->address_mask;
    }
    leaves->page_shift = PAGE_SHIFT;
    leaves->entry = (const uint64_t *)ram_host(vcpu->ram, table);
    return leaves->entry;
}
