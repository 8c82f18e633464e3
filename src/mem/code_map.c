#include "mem/code_map.h"

/* Bits of the granules that [gpa, gpa+size) touches; both ends in one page. */
static uint64_t granules(uint64_t gpa, uint64_t size)
{
    unsigned first = (gpa & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    unsigned last = ((gpa + size - 1) & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    return (~0ull << first) & (~0ull >> (63 - last));
}

/*
 * Are all marks there? Then nothing is to be done: whoever removes them after our look tells every vCPU afterwards, so
 * that what we decode now is dropped at our next block border.
 */
static bool page_has(struct ram_slot *slot, uint64_t gpa, uint64_t size, bool *write_cached)
{
    uint64_t mask = granules(gpa, size);
    uint32_t word = atomic_load(ram_page(slot, gpa));
    *write_cached |= (word & PAGE_WRITE_CACHED) != 0;
    return (word & PAGE_CODE) && (atomic_load(&slot->code[(gpa - slot->gpa) >> PAGE_SHIFT]) & mask) == mask;
}

static bool page_add(struct ram *ram, struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    pthread_mutex_lock(&ram->code_mutex);
    atomic_fetch_or(&slot->code[(gpa - slot->gpa) >> PAGE_SHIFT], granules(gpa, size));
    uint32_t word = atomic_fetch_or(ram_page(slot, gpa), PAGE_CODE);
    pthread_mutex_unlock(&ram->code_mutex);
    return word & PAGE_WRITE_CACHED;
}

bool code_map_wear(struct ram_slot *slot, uint64_t gpa)
{
    _Atomic uint32_t *page = ram_page(slot, gpa);
    uint32_t word = atomic_load_explicit(page, memory_order_relaxed);
    if ((word & PAGE_CODE_HITS) == PAGE_CODE_HITS)
        return true;
    /* One that is lost to a race does not matter. */
    atomic_compare_exchange_strong(page, &word, word + PAGE_CODE_HIT);
    return false;
}

/* With the mutex held nobody adds, so no granules can appear between the two steps. */
static void page_remove(struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    uint64_t mask = granules(gpa, size);
    _Atomic uint64_t *code = &slot->code[(gpa - slot->gpa) >> PAGE_SHIFT];
    if ((atomic_fetch_and(code, ~mask) & ~mask) == 0)
        atomic_fetch_and(ram_page(slot, gpa), ~(uint32_t)(PAGE_CODE | PAGE_CODE_HITS));
}

static bool page_hit(struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    return atomic_load(&slot->code[(gpa - slot->gpa) >> PAGE_SHIFT]) & granules(gpa, size);
}

bool code_map_add(struct ram *ram, uint64_t gpa, uint64_t size)
{
    bool write_cached = false;
    for (uint64_t part; size; gpa += part, size -= part) {
        struct ram_slot *slot = ram_find(ram, gpa);
        part = min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
        if (slot && !page_has(slot, gpa, part, &write_cached))
            write_cached |= page_add(ram, slot, gpa, part);
    }
    return write_cached;
}

bool code_map_hit(struct ram *ram, uint64_t gpa, uint64_t size)
{
    for (uint64_t part; size; gpa += part, size -= part) {
        struct ram_slot *slot = ram_find(ram, gpa);
        part = min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
        if (slot && page_hit(slot, gpa, part))
            return true;
    }
    return false;
}

void code_map_remove(struct ram *ram, uint64_t gpa, uint64_t size)
{
    pthread_mutex_lock(&ram->code_mutex);
    for (uint64_t part; size; gpa += part, size -= part) {
        struct ram_slot *slot = ram_find(ram, gpa);
        part = min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
        if (slot)
            page_remove(slot, gpa, part);
    }
    pthread_mutex_unlock(&ram->code_mutex);
}
