/* The guest's tables, read as a processor reads them that fills its TLB ahead of need: SDM3 §4.10.2.3 "Details of TLB Use". */
#include "mem/ram.h"
#include "mmu/walk.h"
#include "mmu/window_impl.h"
#include "mmu/writer.h"

/* The view of a leaf with the rights of `above`; 0: the processor would hold no translation for user data. */
static uint64_t view_of(const struct mmu *mmu, uint64_t gpa, uint64_t entry, uint64_t above)
{
    enum { NEEDED = PTE_P | PTE_U | PTE_A };
    if ((entry & NEEDED) != NEEDED || !(above & PTE_U) || (mmu->pke && PTE_PKEY(entry)))
        return 0;
    bool writable = (entry & PTE_W) && (above & PTE_W) && (entry & PTE_D);
    return gpa | VIEW_MAPPED | (writable ? VIEW_WRITABLE : 0);
}

bool window_scan(struct vcpu *vcpu, uint64_t gla, struct window_scan *scan)
{
    const struct mmu *mmu = vcpu->mmu;
    struct leaves leaves;
    *scan = (struct window_scan){ 0 };
    if (!mmu_walk_leaves(vcpu, gla, &leaves))
        return false;
    scan->large = leaves.page_shift >= PIECE_SHIFT;
    scan->huge = leaves.page_shift > PIECE_SHIFT;
    scan->global = mmu->pge && (leaves.large & PTE_G);
    for (unsigned i = 0; i < PIECE_PAGES; i++) {
        if (scan->large) {
            scan->view[i] = view_of(mmu, leaves.large_gpa + i * PAGE_SIZE, leaves.large, leaves.above);
            continue;
        }
        uint64_t entry = __atomic_load_n(&leaves.entry[i], __ATOMIC_RELAXED);
        if (entry & mmu->format.level[0].leaf_reserved)
            continue;
        scan->view[i] = view_of(mmu, entry & mmu->format.address_mask, entry, leaves.above);
        scan->global |= mmu->pge && scan->view[i] && (entry & PTE_G);
    }
    return true;
}

bool window_may_show(const struct vcpu *vcpu, uint64_t view)
{
    const struct ram_slot *slot = view ? ram_find(vcpu->ram, view & ~PAGE_MASK) : NULL;
    return slot && slot->fd >= 0 && !((view & VIEW_WRITABLE) && ram_is_rom(slot, view & ~PAGE_MASK));
}

uint64_t window_permit(struct vcpu *vcpu, uint64_t view)
{
    uint64_t readable = view & ~(uint64_t)VIEW_WRITABLE;
    if (!window_may_show(vcpu, readable))
        return 0;
    if (!window_may_show(vcpu, view))
        return readable;
    if (view & VIEW_WRITABLE) {
        _Atomic uint32_t *page = ram_page(ram_find(vcpu->ram, readable & ~PAGE_MASK), readable & ~PAGE_MASK);
        if (!writer_is_free(vcpu->ram, page) || !writer_claim(vcpu, page))
            return readable;
    }
    return view;
}
