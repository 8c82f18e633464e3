/*
 * The TLB holds large pages in pieces of 4 KiB. INVLPG of any address in a large page must drop all pieces (SDM3 §4.10.4.1),
 * and it comes far more often for small pages; so large pages leave a bit in a filter by which the rare case is known.
 */
#include "mmu/tlb.h"

static const uint8_t shift_of_size[LARGE_SIZES] = { 21, 22, 30 };

static unsigned hash(uint64_t number) { return (number ^ (number >> 10) ^ (number >> 20)) % LARGE_BITS; }

void large_filter_add(struct large_filter *filter, unsigned page_shift, uint64_t gla)
{
    unsigned size = page_shift == 21 ? 0 : page_shift == 22 ? 1 : 2;
    unsigned bit = hash(gla >> page_shift);
    filter->bit[size][bit / 64] |= BIT(bit % 64);
    filter->lowest = min_u64(filter->lowest, align_down(gla, BIT(page_shift)));
    filter->highest = max_u64(filter->highest, gla | (BIT(page_shift) - 1));
}

bool large_filter_hit(const struct large_filter *filter, uint64_t gla)
{
    if (gla < filter->lowest || gla > filter->highest)
        return false;
    for (unsigned size = 0; size < LARGE_SIZES; size++) {
        unsigned bit = hash(gla >> shift_of_size[size]);
        if (filter->bit[size][bit / 64] & BIT(bit % 64))
            return true;
    }
    return false;
}

void large_filter_clear(struct large_filter *filter)
{
    if (filter->lowest <= filter->highest)
        memset(filter->bit, 0, sizeof(filter->bit));
    filter->lowest = ~0ull;
    filter->highest = 0;
}
