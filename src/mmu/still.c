#include "mmu/still.h"

#include "mmu/tlb.h"

enum { PIECE_SHIFT = 21, LEVELS_64_BIT = 4 };

static void look(struct vcpu *vcpu, struct still *still, uint64_t gla)
{
    if (still->known && still->piece == gla >> PIECE_SHIFT)
        return;
    still->known = true;
    still->piece = gla >> PIECE_SHIFT;
    still->mapped = mmu_walk_leaves(vcpu, gla, &still->leaves);
}

/* SDM3 §4.6.1: instruction fetches; without A there would be no translation in the TLB. */
static bool may_fetch(const struct vcpu *vcpu, const struct leaves *leaves, uint64_t entry)
{
    enum { NEEDED = PTE_P | PTE_A };
    bool user = leaves->above & entry & PTE_U;
    if ((entry & NEEDED) != NEEDED || user != (vcpu->cpl == 3))
        return false;
    return !vcpu->mmu->nx || !((leaves->any_above | entry) & PTE_NX);
}

bool mmu_still_fetches(struct vcpu *vcpu, struct still *still, uint64_t gla, uint64_t gpa, bool global)
{
    struct mmu *mmu = vcpu->mmu;
    const struct leaves *leaves = &still->leaves;
    if (mmu->format.levels < LEVELS_64_BIT)
        return false;
    look(vcpu, still, gla);
    if (!still->mapped)
        return false;
    unsigned i = (gla >> PAGE_SHIFT) & (PAGING_ENTRIES - 1);
    uint64_t entry = leaves->entry ? __atomic_load_n(&leaves->entry[i], __ATOMIC_RELAXED) : leaves->large;
    uint64_t page = leaves->entry ? entry & mmu->format.address_mask : leaves->large_gpa + i * PAGE_SIZE;
    if (!may_fetch(vcpu, leaves, entry) || !mmu_fetch_through_ept(vcpu, &still->ept, &page) || page != gpa || global != (mmu->pge && (entry & PTE_G)))
        return false;
    if (leaves->entry && (entry & mmu->format.level[0].leaf_reserved))
        return false;
    if (!leaves->entry)
        large_filter_add(global ? &mmu->large : &mmu->context->large, leaves->page_shift, gla);
    mmu_note_fetch(vcpu, gla, global);
    return true;
}
