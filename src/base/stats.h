/*
 * Counters, by name: one row of counters.def each. Every vCPU has a set of its own, written by its thread alone and
 * summed when somebody looks; devices count into the machine's shared set. Relaxed atomics: no order is implied.
 */
#ifndef DOPPEL_BASE_STATS_H
#define DOPPEL_BASE_STATS_H

#include <stdint.h>

enum counter {
#define COUNTER(name, text) COUNTER_##name,
#include "base/counters.def"
#undef COUNTER
    COUNTER_COUNT
};

struct counters {
    _Atomic uint64_t value[COUNTER_COUNT];
};

const char *counter_name(enum counter counter);
const char *counter_text(enum counter counter);

/* Only the owning thread adds to a vCPU's set, so a plain load and store do. */
static inline void counter_add(struct counters *counters, enum counter counter, uint64_t n)
{
    uint64_t old = __atomic_load_n((uint64_t *)&counters->value[counter], __ATOMIC_RELAXED);
    __atomic_store_n((uint64_t *)&counters->value[counter], old + n, __ATOMIC_RELAXED);
}

/* For the machine's set, which many threads share. */
static inline void counter_add_shared(struct counters *counters, enum counter counter, uint64_t n)
{
    __atomic_fetch_add((uint64_t *)&counters->value[counter], n, __ATOMIC_RELAXED);
}

static inline uint64_t counter_get(const struct counters *counters, enum counter counter)
{
    return __atomic_load_n((const uint64_t *)&counters->value[counter], __ATOMIC_RELAXED);
}

#endif
