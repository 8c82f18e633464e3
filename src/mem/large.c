/*
 * Large pages of the host's under guest RAM. A program that is larger than the processor's TLB reaches waits for walks of the page tables, in a
 * host that is itself virtual for the walks of two; with 2 MiB pages it waits less often, and each time for less. What the guest has in
 * its tables as 2 MiB should therefore be one page of the host's, too: a window then maps it by one entry (mmu/window.c).
 *
 * RAM is shared memory, for which MADV_COLLAPSE is the only way to large pages that needs no setting of the host's. It allocates a large page,
 * copies what was there, and keeps every mapping. It is not free: half a millisecond was measured, and 5 where the host has to
 * get the memory first. So RAM is granted in small pieces all the same. Large pages are asked for by windows for what runs hot in them (mmu/window.c), and by
 * a thread for what has been granted anyway (gather.h).
 */
#include "base/large_page.h"
#include "base/stats.h"
#include "mem/ram.h"

/* The word of the RAM_LARGE around gpa; NULL: no large page can lie there, or what is there is a snapshot's. */
static _Atomic uint32_t *large_word(const struct ram_slot *slot, uint64_t gpa)
{
    uint64_t from = align_down(gpa, RAM_LARGE);
    bool whole = from >= slot->gpa && slot->size >= RAM_LARGE && from - slot->gpa <= slot->size - RAM_LARGE;
    return whole && !slot->source ? ram_page(slot, from) : NULL;
}

bool ram_can_be_large(const struct ram_slot *slot, uint64_t gpa) { return large_word(slot, gpa); }

bool ram_is_large(const struct ram_slot *slot, uint64_t gpa)
{
    const _Atomic uint32_t *word = large_word(slot, gpa);
    return word && atomic_load_explicit(word, memory_order_relaxed) & PAGE_LARGE;
}

bool ram_make_large(struct ram *ram, struct ram_slot *slot, uint64_t gpa)
{
    _Atomic uint32_t *word = large_word(slot, gpa);
    if (!word || atomic_load_explicit(word, memory_order_relaxed) & (PAGE_LARGE | PAGE_LARGE_REFUSED))
        return false;
    bool done = large_page_collapse(slot->host + (align_down(gpa, RAM_LARGE) - slot->gpa), RAM_LARGE);
    uint32_t before = atomic_fetch_or(word, done ? PAGE_LARGE : PAGE_LARGE_REFUSED);
    if (done && ram->counters && !(before & PAGE_LARGE))
        counter_add_shared(ram->counters, COUNTER_ram_large_pages, 1);
    return true;
}
