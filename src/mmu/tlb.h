/* Within mmu/: entries of the software TLB. */
#ifndef DOPPEL_MMU_TLB_H
#define DOPPEL_MMU_TLB_H

#include "mmu/mmu.h"

static inline bool tlb_tag_maps(uint64_t tag, uint64_t gla)
{
    return (tag & ~(uint64_t)TLB_SLOW) == (gla & ~PAGE_MASK);
}

/*
 * Walks and installs an entry that allows the use (perhaps with TLB_SLOW bits). False: #PF pending. On success the
 * tag of the use maps gla.
 */
bool tlb_fill(struct vcpu *vcpu, uint64_t gla, enum mmu_use use, enum mmu_class class);

/* A write is about to take the slow path because of TLB_WATCHED: makes the entry direct if no code is left in the page. */
void tlb_try_unwatch(struct vcpu *vcpu, struct tlb_table *table, unsigned index);

void tlb_entry_clear(struct tlb_table *table, unsigned index);

static inline void tlb_note_filled(struct tlb_table *table, unsigned index)
{
    table->filled[index / TLB_PIECE / 64] |= 1ull << (index / TLB_PIECE % 64);
}

/* The first entry of the first piece from that of `index` on in which one may be valid; TLB_SIZE: there is none. */
static inline unsigned tlb_next_filled(const struct tlb_table *table, unsigned index)
{
    for (unsigned piece = index / TLB_PIECE; piece < TLB_SIZE / TLB_PIECE; piece = (piece | 63) + 1) {
        uint64_t rest = table->filled[piece / 64] >> (piece % 64);
        if (rest)
            return (piece + (unsigned)__builtin_ctzll(rest)) * TLB_PIECE;
    }
    return TLB_SIZE;
}
#define FOR_FILLED(first, table) \
    for (unsigned first = tlb_next_filled(table, 0); first < TLB_SIZE; first = tlb_next_filled(table, first + TLB_PIECE))

void large_filter_add(struct large_filter *filter, unsigned page_shift, uint64_t gla);
/* May a page of one of the large sizes around gla be in the TLB? */
bool large_filter_hit(const struct large_filter *filter, uint64_t gla);
void large_filter_clear(struct large_filter *filter);

#endif
