/* Guest linear memory to and from a buffer of any size, at the present privilege; what the TLB knows goes without a call. */
#ifndef DOPPEL_MMU_BLOCK_H
#define DOPPEL_MMU_BLOCK_H

#include "mmu/mmu.h"

/* Host address if the TLB lets this access go straight to memory: one page, no alignment checks. NULL otherwise. */
static inline void *mmu_direct(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_use use)
{
    const struct tlb_entry *entry = &vcpu->tlb_data->entry[tlb_index(gla)];
    if (unlikely(entry->tag[use] != (gla & ~PAGE_MASK) || (gla & PAGE_MASK) + size > PAGE_SIZE || vcpu->mmu->alignment_check))
        return NULL;
    return (void *)(gla + entry->addend);
}

/* Both go in pieces of 64 bytes. False: fault pending; pieces before the one that faulted stay copied. */
static inline bool mmu_copy_in(struct vcpu *vcpu, uint64_t gla, void *out, unsigned size)
{
    uint8_t *to = out;
    while (size) {
        unsigned part = size < 64 ? size : 64;
        const void *from = mmu_direct(vcpu, gla, part, MMU_READ);
        if (from)
            memcpy(to, from, part);
        else if (!mmu_load_slow(vcpu, gla, to, part, vcpu->mmu->data_class))
            return false;
        gla += part, to += part, size -= part;
    }
    return true;
}

static inline bool mmu_copy_out(struct vcpu *vcpu, uint64_t gla, const void *in, unsigned size)
{
    const uint8_t *from = in;
    while (size) {
        unsigned part = size < 64 ? size : 64;
        void *to = mmu_direct(vcpu, gla, part, MMU_WRITE);
        if (to)
            memcpy(to, from, part);
        else if (!mmu_store_slow(vcpu, gla, from, part, vcpu->mmu->data_class))
            return false;
        gla += part, from += part, size -= part;
    }
    return true;
}

#endif
