#include "engine/dbt/kept_net.h"

#include <emmintrin.h>
#include <string.h>

/* Bytes from `start` on. */
struct extent {
    uintptr_t start;
    size_t size;
};

enum { OURS = 6, CLOSE = 64 << 10 };

static void list_ours(const struct work *w, struct extent ours[OURS])
{
    extern const char __executable_start[], end[];
    const struct dbt *dbt = w->dbt;
    ours[0] = (struct extent){ (uintptr_t)dbt, sizeof(*dbt) };
    ours[1] = (struct extent){ (uintptr_t)dbt->hot.base, DBT_CODE_SIZE };
    ours[2] = (struct extent){ (uintptr_t)dbt->hot.base + (uintptr_t)dbt->shift, DBT_CODE_SIZE };
    ours[3] = (struct extent){ (uintptr_t)dbt->data, DBT_DATA_SIZE };
    ours[4] = (struct extent){ (uintptr_t)w->vcpu, sizeof(*w->vcpu) };
    ours[5] = (struct extent){ (uintptr_t)__executable_start, (size_t)(end - __executable_start) };
}

/* The upper halves that its addresses have: it may lie across a border of 4 GiB. */
static unsigned add_upper_halves(__m128i *upper, unsigned count, const struct extent *e)
{
    uint32_t first = (uint32_t)(e->start >> 32), last = (uint32_t)((e->start + e->size - 1) >> 32);
    upper[count++] = _mm_set1_epi32((int)first);
    if (last != first)
        upper[count++] = _mm_set1_epi32((int)last);
    return count;
}

static bool is_in_one(const uint8_t *at, const struct extent *extent, unsigned extents)
{
    uint64_t v;
    memcpy(&v, at, sizeof(v));
    for (unsigned i = 0; i < extents; i++)
        if (v - extent[i].start < extent[i].size)
            return true;
    return false;
}

/* Does one of the four words at `at`, or one to three bytes behind each, have such an upper half? */
static bool may_be_in_one(const uint8_t *at, const __m128i *upper, unsigned count)
{
    __m128i equal = _mm_setzero_si128();
    for (unsigned shift = 0; shift < 4; shift++) {
        __m128i words = _mm_loadu_si128((const __m128i *)(at + shift + 4));
        for (unsigned i = 0; i < count; i++)
            equal = _mm_or_si128(equal, _mm_cmpeq_epi32(words, upper[i]));
    }
    return _mm_movemask_epi8(equal);
}

/* Addresses stand anywhere, so they are looked for at each byte, at sixteen at a time. */
bool kept_net_catches(const struct work *w, const uint8_t *code, size_t size)
{
    struct extent extent[OURS + 1];
    __m128i upper[2 * (OURS + 1)];
    unsigned count = 0;
    list_ours(w, extent);
    extent[OURS] = (struct extent){ w->t->rip - CLOSE, 2 * CLOSE };
    for (unsigned i = 0; i <= OURS; i++)
        count = add_upper_halves(upper, count, &extent[i]);
    enum { PLACES = 16, READ = PLACES + 7 };
    for (size_t i = 0; i + sizeof(uint64_t) <= size;) {
        bool whole = i + READ <= size;
        if (whole && !may_be_in_one(code + i, upper, count)) {
            i += PLACES;
            continue;
        }
        for (size_t end = whole ? i + PLACES : size; i < end && i + sizeof(uint64_t) <= size; i++)
            if (is_in_one(code + i, extent, OURS + 1))
                return true;
    }
    return false;
}
