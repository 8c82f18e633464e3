/*
 * How fast is the processor that this runs on? Short pieces of work of a fixed size, each done many times; printed is the best time of
 * one, so that it does not matter what else the host has to do. In ticks of the TSC, whose rate a guest's guest may not have found
 * out. For a guest (L1) and its guest (L2): bench/vmx.py.
 *   speed [TICKS]      how long to do each, two billion ticks unless told otherwise
 */
#include <cpuid.h>
#include <x86intrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS_MIN = 30, WORDS = 1024, STEPS = 200000, PASSES = 400, CPUIDS = 20 };

static uint32_t table[WORDS];
static float vector[WORDS] __attribute__((aligned(32)));
static sigjmp_buf cannot;

/* A hash with look-ups, as checksums and interpreters do. */
static uint32_t integers(uint32_t x)
{
    for (unsigned i = 0; i < STEPS; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x = (x ^ x << 5) + table[x % WORDS];
        table[x / WORDS % WORDS] = x;
    }
    return x;
}

__attribute__((target("avx2,fma"))) static uint32_t vectors(uint32_t x)
{
    __m256 factor = _mm256_set1_ps(0.999f), addend = _mm256_set1_ps((float)(x & 7));
    for (unsigned pass = 0; pass < PASSES; pass++)
        for (unsigned i = 0; i < WORDS; i += 8)
            _mm256_store_ps(vector + i, _mm256_fmadd_ps(_mm256_load_ps(vector + i), factor, addend));
    return (uint32_t)vector[0];
}

static uint32_t cpuids(uint32_t x)
{
    unsigned a, b, c, d;
    for (unsigned i = 0; i < CPUIDS; i++) {
        __cpuid(1, a, b, c, d);
        x += a + b + c + d;
    }
    return x;
}

static void on_illegal_instruction(int signal_number)
{
    (void)signal_number;
    siglongjmp(cannot, 1);
}

/* Work that this processor cannot do has taken no rounds. */
static void measure(const char *name, uint32_t (*work)(uint32_t), uint64_t ticks)
{
    uint64_t best = UINT64_MAX, begin = __rdtsc(), end = begin;
    uint32_t x = 1;
    unsigned rounds = 0;
    if (sigsetjmp(cannot, 1)) {
        printf("SPEED %s 0 ticks 0 rounds\n", name);
        return;
    }
    while (rounds < ROUNDS_MIN || end - begin < ticks) {
        uint64_t start = __rdtsc();
        x = work(x);
        end = __rdtsc();
        best = end - start < best ? end - start : best;
        rounds++;
    }
    printf("SPEED %s %llu ticks %u rounds (%u)\n", name, (unsigned long long)best, rounds, x);
    fflush(stdout);
}

/* SDM2 CPUID leaf 16H: the TSC's rate here; 0 where nobody tells. */
static void tell_rate(void)
{
    unsigned mhz = 0, b, c, d;
    if (__get_cpuid_max(0, NULL) >= 0x16)
        __cpuid(0x16, mhz, b, c, d);
    printf("SPEED mhz %u\n", mhz);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint64_t ticks = argc > 1 ? strtoull(argv[1], NULL, 10) : 2000000000;
    signal(SIGILL, on_illegal_instruction);
    tell_rate();
    measure("integers", integers, ticks);
    measure("vectors", vectors, ticks);
    measure("cpuids", cpuids, ticks);
    return 0;
}
