#include "engine/dbt/kept_net.h"

#include <emmintrin.h>
#include <string.h>

/* Bytes from `start` on. */
struct extent {
    uintptr_t start;
    size_t size;
};

enum { OURS = 6, CLOSE_SHIFT = 16, CLOSE = 1 << CLOSE_SHIFT, CLOSE_MIDDLES = 3 };    /* of what is 64 KiB long on either side */

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

static bool is_in_one(const uint8_t *at, const struct extent *extent, unsigned extents)
{
    uint64_t v;
    memcpy(&v, at, sizeof(v));
    for (unsigned i = 0; i < extents; i++)
        if (v - extent[i].start < extent[i].size)
            return true;
    return false;
}

static __m128i equal_to_one(__m128i words, const __m128i *to, unsigned count)
{
    __m128i equal = _mm_setzero_si128();
    for (unsigned i = 0; i < count; i++)
        equal = _mm_or_si128(equal, _mm_cmpeq_epi32(words, to[i]));
    return equal;
}

/* What addresses of ours, and of guest code close by, have in common. */
struct marks {
    __m128i upper[2 * OURS];            /* bits 32 to 63 of ours, each once */
    unsigned count;
    __m128i middle[CLOSE_MIDDLES];      /* bits 16 to 47 of the others: a program's code may lie below 4 GiB, and zeroes are everywhere */
};

static void add_upper_half(struct marks *marks, uint64_t address)
{
    uint32_t upper = (uint32_t)(address >> 32);
    for (unsigned i = 0; i < marks->count; i++)
        if ((uint32_t)_mm_cvtsi128_si32(marks->upper[i]) == upper)
            return;
    marks->upper[marks->count++] = _mm_set1_epi32((int)upper);
}

/* Does one of the four words at `at`, or one to three bytes behind each, have such bits? */
static bool may_be_in_one(const uint8_t *at, const struct marks *marks)
{
    __m128i equal = _mm_setzero_si128();
    for (unsigned shift = 0; shift < 4; shift++) {
        equal = _mm_or_si128(equal, equal_to_one(_mm_loadu_si128((const __m128i *)(at + shift + 4)), marks->upper, marks->count));
        equal = _mm_or_si128(equal, equal_to_one(_mm_loadu_si128((const __m128i *)(at + shift + 2)), marks->middle, CLOSE_MIDDLES));
    }
    return _mm_movemask_epi8(equal);
}

/* Addresses stand anywhere, so they are looked for at each byte, at sixteen at a time. */
bool kept_net_catches(const struct work *w, const uint8_t *code, size_t size)
{
    struct extent extent[OURS + 1];
    struct marks marks;
    marks.count = 0;
    list_ours(w, extent);
    extent[OURS] = (struct extent){ w->t->rip - CLOSE, 2 * CLOSE };
    for (unsigned i = 0; i < OURS; i++) {       /* each may lie across a border of 4 GiB */
        add_upper_half(&marks, extent[i].start);
        add_upper_half(&marks, extent[i].start + extent[i].size - 1);
    }
    for (unsigned i = 0; i < CLOSE_MIDDLES; i++)
        marks.middle[i] = _mm_set1_epi32((int)(uint32_t)((extent[OURS].start + i * CLOSE) >> CLOSE_SHIFT));
    enum { PLACES = 16, READ = PLACES + 7 };
    for (size_t i = 0; i + sizeof(uint64_t) <= size;) {
        bool whole = i + READ <= size;
        if (whole && !may_be_in_one(code + i, &marks)) {
            i += PLACES;
            continue;
        }
        for (size_t end = whole ? i + PLACES : size; i < end && i + sizeof(uint64_t) <= size; i++)
            if (is_in_one(code + i, extent, OURS + 1))
                return true;
    }
    return false;
}
