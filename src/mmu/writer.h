/* Within mmu/: when a vCPU may write to a page with nobody being told (fill.c has the rules). */
#ifndef DOPPEL_MMU_WRITER_H
#define DOPPEL_MMU_WRITER_H

#include "mem/ram.h"
#include "vcpu/vcpu.h"

/* Registers the vCPU as a writer of the page; false if code is there. */
static inline bool writer_claim(struct vcpu *vcpu, _Atomic uint32_t *page)
{
    uint32_t word = atomic_load_explicit(page, memory_order_relaxed);
    uint32_t writer = (uint32_t)PAGE_WRITER << (vcpu->index % PAGE_WRITERS);
    if (word & PAGE_CODE)
        return false;
    if (word & writer)
        return true;
    return !(atomic_fetch_or(page, writer) & PAGE_CODE);
}

/* Bits of the clients of dirty tracking that are still to be set. */
static inline uint32_t writer_dirty_missing(const struct ram *ram, _Atomic uint32_t *page)
{
    return atomic_load_explicit(&ram->dirty_clients, memory_order_relaxed) & ~atomic_load_explicit(page, memory_order_relaxed);
}

/* Would becoming a writer cost nobody anything? */
static inline bool writer_is_free(const struct ram *ram, _Atomic uint32_t *page)
{
    return !writer_dirty_missing(ram, page) && !(atomic_load_explicit(page, memory_order_relaxed) & PAGE_CODE);
}

#endif
