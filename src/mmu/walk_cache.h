/*
 * What a processor may remember of its walks besides whole translations: entries that lead to page tables (SDM3 §4.10.3
 * "Paging-Structure Caches"), and guest-physical mappings (§29.4.1). The walker needs neither to be fast, so both are kept only with
 * `--tlb stale`, for guests whose authors want to know whether they invalidate all that they must.
 *
 * Within mmu/; on the vCPU's thread.
 */
#ifndef DOPPEL_MMU_WALK_CACHE_H
#define DOPPEL_MMU_WALK_CACHE_H

#include "mmu/mmu.h"

/* An entry that leads to a page table. */
struct structure {
    uint64_t key;               /* of the linear addresses that the table is for; 0: none */
    uint64_t table;             /* its address, guest-physical with EPT */
    uint64_t all, any;          /* AND and OR of the entries on the way there */
};

/* 4 KiB of guest-physical memory through EPT. */
struct guest_physical {
    uint64_t key;               /* of the address; 0: none */
    uint64_t root;              /* of the EPT pointer */
    uint64_t page;              /* where it lies */
    uint64_t all;               /* AND of the entries */
    bool dirty;                 /* D is set in the last one */
};

enum { STRUCTURES = 512, GUEST_PHYSICALS = 4096 };

/* Structures by the context's place in mmu.contexts. */
struct walk_cache {
    struct structure structure[TLB_CONTEXTS][STRUCTURES];
    struct guest_physical guest_physical[GUEST_PHYSICALS];
};

/* For the present context. shift: log2 of what a page table maps. NULL: nothing is kept at all. */
struct structure *structure_place(struct mmu *mmu, uint64_t gla, unsigned shift);
static inline uint64_t structure_key(uint64_t gla, unsigned shift) { return (gla >> shift) + 1; }
void structures_forget(struct mmu *mmu, const struct tlb_context *context);

/* Under the present EPT pointer. NULL: nothing is kept at all. */
struct guest_physical *guest_physical_place(struct mmu *mmu, uint64_t gpa);
bool guest_physical_is(const struct mmu *mmu, const struct guest_physical *place, uint64_t gpa);
void guest_physical_set(const struct mmu *mmu, struct guest_physical *place, uint64_t gpa, uint64_t page, uint64_t all, bool dirty);
void guest_physical_forget(struct mmu *mmu, uint64_t gpa);              /* one page, under the present EPT pointer */
void guest_physicals_forget(struct mmu *mmu, uint64_t eptp);            /* all of an EPT pointer */
void guest_physicals_forget_all(struct mmu *mmu);

#endif
