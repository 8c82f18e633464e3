#include "mmu/walk_cache.h"

#include <stdlib.h>

bool mmu_set_policy(struct mmu *mmu, enum mmu_policy policy)
{
    mmu->policy = policy;
    free(mmu->walk_cache);
    mmu->walk_cache = policy == MMU_STALE ? calloc(1, sizeof(*mmu->walk_cache)) : NULL;
    return policy != MMU_STALE || mmu->walk_cache;
}

struct structure *structure_place(struct mmu *mmu, uint64_t gla, unsigned shift)
{
    return mmu->walk_cache ? &mmu->walk_cache->structure[mmu->context - mmu->contexts][(gla >> shift) % STRUCTURES] : NULL;
}

void structures_forget(struct mmu *mmu, const struct tlb_context *context)
{
    if (mmu->walk_cache)
        memset(mmu->walk_cache->structure[context - mmu->contexts], 0, sizeof(mmu->walk_cache->structure[0]));
}

/* SDM3 §29.4.1: guest-physical mappings belong to bits 51:12 of the EPT pointer, whatever its other bits. */
static uint64_t root_of(uint64_t eptp) { return eptp >> PAGE_SHIFT; }

struct guest_physical *guest_physical_place(struct mmu *mmu, uint64_t gpa)
{
    uint64_t page = gpa >> PAGE_SHIFT;
    return mmu->walk_cache ? &mmu->walk_cache->guest_physical[(page ^ page >> 12 ^ root_of(mmu->space.eptp)) % GUEST_PHYSICALS] : NULL;
}

bool guest_physical_is(const struct mmu *mmu, const struct guest_physical *place, uint64_t gpa)
{
    return place->key == (gpa >> PAGE_SHIFT) + 1 && place->root == root_of(mmu->space.eptp);
}

void guest_physical_set(const struct mmu *mmu, struct guest_physical *place, uint64_t gpa, uint64_t page, uint64_t all, bool dirty)
{
    *place = (struct guest_physical){ (gpa >> PAGE_SHIFT) + 1, root_of(mmu->space.eptp), page, all, dirty };
}

void guest_physical_forget(struct mmu *mmu, uint64_t gpa)
{
    struct guest_physical *place = guest_physical_place(mmu, gpa);
    if (place && guest_physical_is(mmu, place, gpa))
        place->key = 0;
}

void guest_physicals_forget(struct mmu *mmu, uint64_t eptp)
{
    for (unsigned i = 0; mmu->walk_cache && i < GUEST_PHYSICALS; i++)
        if (mmu->walk_cache->guest_physical[i].root == root_of(eptp))
            mmu->walk_cache->guest_physical[i].key = 0;
}

void guest_physicals_forget_all(struct mmu *mmu)
{
    if (mmu->walk_cache)
        memset(mmu->walk_cache->guest_physical, 0, sizeof(mmu->walk_cache->guest_physical));
}
