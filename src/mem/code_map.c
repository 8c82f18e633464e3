#include "mem/code_map.h"

/* Bits of the granules that [gpa, gpa+size) touches; both ends in one page. */
static uint64_t granules(uint64_t gpa, uint64_t size)
{
    unsigned first = (gpa & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    unsigned last = ((gpa + size - 1) & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    return (~0ull << first) & (~0ull >> (63 - last));
}

static bool page_add(struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    uint64_t mask = granules(gpa, size);
    _Atomic uint64_t *code = &slot->code[(gpa - slot->gpa) >> PAGE_SHIFT];
    atomic_fetch_or(code, mask);
    return atomic_fetch_or(ram_page(slot, gpa), PAGE_CODE) & PAGE_WRITE_CACHED;
}

/* With the mutex held nobody adds, so no granules can appear between the two steps. */
static void page_remove(struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    uint64_t mask = granules(gpa, size);
    _Atomic uint64_t *code = &slot->code[(gpa - slot->gpa) >> PAGE_SHIFT];
    if ((atomic_fetch_and(code, ~mask) & ~mask) == 0)
        atomic_fetch_and(ram_page(slot, gpa), ~(uint32_t)PAGE_CODE);
}

static bool page_hit(struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    return atomic_load(&slot->code[(gpa - slot->gpa) >> PAGE_SHIFT]) & granules(gpa, size);
}

bool code_map_add(struct ram *ram, uint64_t gpa, uint64_t size)
{
    bool write_cached = false;
    pthread_mutex_lock(&ram->code_mutex);
    for (uint64_t part; size; gpa += part, size -= part) {
        struct ram_slot *slot = ram_find(ram, gpa);
        part = min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
        if (slot)
            write_cached |= page_add(slot, gpa, part);
    }
    pthread_mutex_unlock(&ram->code_mutex);
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
