/* The table walker: one for every format (formats.h). */
#ifndef DOPPEL_MMU_WALK_H
#define DOPPEL_MMU_WALK_H

#include "mmu/mmu.h"

struct walk {
    /* asked */
    uint64_t gla;
    enum mmu_use use;
    enum mmu_class class;
    bool peek;              /* translate only: no permission checks, no A and D bits */
    /* Told each entry on the way, from the root (level counts down to 0); for the monitor. NULL: nobody. */
    void (*report)(void *owner, unsigned level, uint64_t entry_gpa, uint64_t entry);
    void *report_owner;
    /* answered */
    uint64_t gpa;           /* of gla itself */
    uint8_t page_shift;     /* log2 of the size of the page that maps it */
    uint8_t pkey;           /* protection key; 0 where there are none */
    bool user;              /* a user-mode address (SDM3 §4.6) */
    bool global;
    bool writable;          /* a write of the same class would be allowed ... */
    bool dirty;             /* ... and would find D set */
    uint32_t error;         /* when not mapped or not allowed: #PF error code */
};

/* The vCPU's own paging, with its present CR3. False: walk->error tells why. */
bool mmu_walk(struct vcpu *vcpu, struct walk *walk);

#endif
