/* The guest's tables, read as a processor reads them that fills its TLB ahead of need: SDM3 §4.10.2.3 "Details of TLB Use". */
#include "mem/ram.h"
#include "mmu/walk.h"
#include "mmu/window_impl.h"
#include "mmu/writer.h"
#include "vmx/vmx.h"

/* What was found for the page before: the next one is likely near it. */
struct nearby {
    struct ept_look ept;
    const struct ram_slot *slot;
};

/* What the host can show of guest memory: a shareable page, not to be written if it is ROM or by EPT, and not the APIC-access page. */
static uint64_t showable(struct vcpu *vcpu, struct nearby *nearby, uint64_t view)
{
    uint64_t frame = view & ~PAGE_MASK;
    bool writable = view & VIEW_WRITABLE;
    if (!view || !mmu_look_through_ept(vcpu, &nearby->ept, &frame, &writable) || vmx_is_apic_access_page(vcpu, frame))
        return 0;
    const struct ram_slot *slot = nearby->slot;
    if (!slot || frame - slot->gpa >= slot->size || slot->mixed)
        slot = nearby->slot = ram_find(vcpu->ram, frame);
    if (!slot || slot->fd < 0)
        return 0;
    return frame | VIEW_MAPPED | (writable && !ram_is_rom(slot, frame) ? VIEW_WRITABLE : 0);
}

/* The view of a leaf with the rights of `above`; 0: the processor would hold no translation for user data. */
static uint64_t view_of(const struct mmu *mmu, uint64_t gpa, uint64_t entry, uint64_t above)
{
    enum { NEEDED = PTE_P | PTE_U | PTE_A };
    if ((entry & NEEDED) != NEEDED || !(above & PTE_U) || (mmu->pke && PTE_PKEY(entry)))
        return 0;
    bool writable = (entry & PTE_W) && (above & PTE_W) && (entry & PTE_D);
    return gpa | VIEW_MAPPED | (writable ? VIEW_WRITABLE : 0);
}

static void scan_table(struct vcpu *vcpu, const struct leaves *leaves, struct window_scan *scan)
{
    const struct mmu *mmu = vcpu->mmu;
    struct nearby nearby = { 0 };
    for (unsigned i = scan->first; i < scan->end; i++) {
        uint64_t entry = __atomic_load_n(&leaves->entry[i], __ATOMIC_RELAXED);
        scan->view[i] = 0;
        if (!(entry & PTE_P) || (entry & mmu->format.level[0].leaf_reserved))
            continue;
        scan->view[i] = showable(vcpu, &nearby, view_of(mmu, entry & mmu->format.address_mask, entry, leaves->above));
        scan->global |= mmu->pge && (entry & PTE_G);
    }
}

static void scan_large(struct vcpu *vcpu, const struct leaves *leaves, struct window_scan *scan)
{
    struct nearby nearby = { 0 };
    scan->first = 0;
    scan->end = PIECE_PAGES;
    for (unsigned i = 0; i < PIECE_PAGES; i++)
        scan->view[i] = showable(vcpu, &nearby, view_of(vcpu->mmu, leaves->large_gpa + i * PAGE_SIZE, leaves->large, leaves->above));
    scan->large = true;
    scan->huge = leaves->page_shift > PIECE_SHIFT;
    scan->global = vcpu->mmu->pge && (leaves->large & PTE_G);
}

void window_scan(struct vcpu *vcpu, uint64_t gla, unsigned first, unsigned end, struct window_scan *scan)
{
    struct leaves leaves;
    scan->first = first;
    scan->end = end;
    scan->large = scan->huge = scan->global = false;
    if (!mmu_walk_leaves(vcpu, gla, &leaves))
        memset(&scan->view[first], 0, (end - first) * sizeof(scan->view[0]));
    else if (leaves.entry)
        scan_table(vcpu, &leaves, scan);
    else
        scan_large(vcpu, &leaves, scan);
}

static const uint64_t *table_at(struct vcpu *vcpu, uint64_t gpa)
{
    struct ept_look look = { 0 };
    bool writable = true;
    return mmu_look_through_ept(vcpu, &look, &gpa, &writable) ? (const uint64_t *)ram_host(vcpu->ram, gpa) : NULL;
}

/* The next table that an entry points to, if user data may lie under it. */
static const uint64_t *table_under(struct vcpu *vcpu, uint64_t entry)
{
    enum { NEEDED = PTE_P | PTE_U | PTE_A };
    return (entry & NEEDED) == NEEDED && !(entry & PTE_PS) ? table_at(vcpu, entry & vcpu->mmu->format.address_mask) : NULL;
}

void window_find_chunks(struct vcpu *vcpu, bool *used)
{
    enum { CHUNK_ENTRIES = 1 << (WINDOW_CHUNK_SHIFT - 30), USER_ENTRIES = PAGING_ENTRIES / 2, CHUNKS_PER_ENTRY = PAGING_ENTRIES / CHUNK_ENTRIES };
    const struct mmu *mmu = vcpu->mmu;
    const uint64_t *top = table_at(vcpu, vcpu->cr3 & mmu->format.address_mask);
    if (top && mmu->format.levels == PAGING_LEVELS_MAX)
        top = table_under(vcpu, top[0]);
    for (unsigned i = 0; top && i < USER_ENTRIES; i++) {
        const uint64_t *table = table_under(vcpu, top[i]);
        for (unsigned j = 0; table && j < PAGING_ENTRIES; j++)
            used[i * CHUNKS_PER_ENTRY + j / CHUNK_ENTRIES] |= (table[j] & (PTE_P | PTE_U)) == (PTE_P | PTE_U);
    }
}

uint64_t window_claim(struct vcpu *vcpu, uint64_t view)
{
    if (!(view & VIEW_WRITABLE))
        return view;
    struct ram_slot *slot = ram_find(vcpu->ram, view & ~PAGE_MASK);
    _Atomic uint32_t *page = slot ? ram_page(slot, view & ~PAGE_MASK) : NULL;
    bool mine = page && writer_is_free(vcpu->ram, page) && writer_claim(vcpu, page);
    return mine ? view : view & ~(uint64_t)VIEW_WRITABLE;
}
