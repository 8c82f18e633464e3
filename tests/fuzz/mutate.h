/*
 * Deterministic mutations of valid inputs, for fuzz targets that run in the test command. The same file built with
 * -DFUZZ_LIBFUZZER and clang's -fsanitize=fuzzer is an entry for libFuzzer instead (the function is the same).
 */
#ifndef DOPPEL_TESTS_FUZZ_MUTATE_H
#define DOPPEL_TESTS_FUZZ_MUTATE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* xorshift64*: small, and the same everywhere. */
static inline uint64_t fuzz_random(uint64_t *seed)
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * 0x2545F4914F6CDD1Dull;
}

static inline uint64_t fuzz_below(uint64_t *seed, uint64_t limit)
{
    return limit ? fuzz_random(seed) % limit : 0;
}

/* Numbers at which sums overflow and comparisons change. */
static inline uint64_t fuzz_number(uint64_t *seed)
{
    static const uint64_t edges[] = { 0, 1, 0x7F, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x100000, 0x3FFFFF, 0x400000, 0x7FFFFFFF,
                                      0x80000000, 0xFFFFF000, 0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFF000 };
    uint64_t value = edges[fuzz_below(seed, sizeof(edges) / sizeof(edges[0]))];
    switch (fuzz_below(seed, 4)) {
    case 0: return value - 1;
    case 1: return -value;
    case 2: return fuzz_random(seed) >> fuzz_below(seed, 64);
    default: return value;
    }
}

/* One change in place; `hot` bytes at the start, where headers are, are hit more often. Returns the new size. */
static inline size_t fuzz_mutate(uint8_t *data, size_t size, size_t hot, uint64_t *seed)
{
    if (!size)
        return 0;
    size_t range = fuzz_below(seed, 4) && hot < size ? hot : size, at = fuzz_below(seed, range);
    uint64_t number = fuzz_number(seed);
    size_t width = (size_t)1 << fuzz_below(seed, 4);
    switch (fuzz_below(seed, 8)) {
    case 0:
        data[at] ^= (uint8_t)(1u << fuzz_below(seed, 8));
        return size;
    case 1:
        data[at] = (uint8_t)fuzz_random(seed);
        return size;
    case 2:
        return fuzz_below(seed, size);
    case 3: {
        size_t from = fuzz_below(seed, size), length = fuzz_below(seed, 64);
        length = length < size - from ? length : size - from;
        length = length < size - at ? length : size - at;
        memmove(data + at, data + from, length);
        return size;
    }
    default:
        at &= ~(width - 1);
        memcpy(data + at, &number, width < size - at ? width : size - at);
        return size;
    }
}

/* Rounds of a run: the first argument, or `standard`. */
static inline unsigned long fuzz_rounds(int argc, char **argv, unsigned long standard)
{
    return argc > 1 ? strtoul(argv[1], NULL, 0) : standard;
}

#endif
