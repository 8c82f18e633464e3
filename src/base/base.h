/* The few macros and inline helpers that every room uses. */
#ifndef DOPPEL_BASE_BASE_H
#define DOPPEL_BASE_BASE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

#define KiB (1024ull)
#define MiB (1024ull * KiB)
#define GiB (1024ull * MiB)

#define PAGE_SHIFT 12
#define PAGE_SIZE (1ull << PAGE_SHIFT)
#define PAGE_MASK (PAGE_SIZE - 1)

#define NS_PER_SECOND 1000000000ull

#define BIT(n) (1ull << (n))

/* Bits hi..lo of v, moved down to bit 0. */
static inline uint64_t bits(uint64_t v, unsigned hi, unsigned lo)
{
    return (v >> lo) & (hi - lo == 63 ? ~0ull : BIT(hi - lo + 1) - 1);
}

/* All ones in the low `size` bytes (size 1 to 8). */
static inline uint64_t size_mask(unsigned size)
{
    return size >= 8 ? ~0ull : BIT(size * 8) - 1;
}

static inline uint64_t sign_extend(uint64_t v, unsigned bit_count)
{
    unsigned shift = 64 - bit_count;
    return (uint64_t)((int64_t)(v << shift) >> shift);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

static inline uint64_t align_up(uint64_t v, uint64_t to) { return (v + to - 1) & ~(to - 1); }
static inline uint64_t align_down(uint64_t v, uint64_t to) { return v & ~(to - 1); }

#endif
