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
    bool no_gla;            /* EPT only: the access does not come from a linear address */
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
    bool guest_writable, guest_nx;      /* rights in the guest's tables, for EPT violations */
    bool exits;             /* not mapped or not allowed by EPT: a VM exit (or #VE) is pending */
    uint32_t error;         /* otherwise, when not mapped or not allowed: #PF error code */
};

/* The vCPU's own paging, with its present CR3. False: walk->error tells why. */
bool mmu_walk(struct vcpu *vcpu, struct walk *walk);

/*
 * What maps the 2 MiB of linear addresses around gla, going by the tables as they are: nothing is checked but presence, reserved
 * bits and A in the entries above; nothing is set. For the 64-bit formats only. With EPT, addresses in the entries are guest-physical still.
 */
struct leaves {
    const uint64_t *entry;  /* the page table, PAGING_ENTRIES of them; NULL: one large page, ... */
    uint64_t large;         /* ... this entry; */
    uint64_t large_gpa;     /* what it maps the first of the 2 MiB to */
    uint8_t page_shift;
    uint64_t above, any_above;      /* AND and OR of the entries that lead there */
};
enum { PAGING_ENTRIES = 512 };
bool mmu_walk_leaves(struct vcpu *vcpu, uint64_t gla, struct leaves *leaves);

/* What one look at EPT's tables tells of 2 MiB of guest-physical addresses; all 0: of none yet. To be used between two instructions only. */
struct ept_look {
    bool known, mapped;
    uint64_t piece;
    struct leaves leaves;
};
/*
 * A guest-physical address through EPT by the tables as they are, if the processor may hold that translation for reads: nothing is set, no
 * exit pends. *writable stays true if it may hold it for writes, too (with flags in EPT: D is set). Without EPT nothing is changed.
 */
bool mmu_look_through_ept(struct vcpu *vcpu, struct ept_look *look, uint64_t *gpa, bool *writable);

/* The same for instruction fetches; with mode-based execute control no look is deep enough. */
bool mmu_fetch_through_ept(struct vcpu *vcpu, struct ept_look *look, uint64_t *gpa);

/* A guest-physical address through EPT, for a read of the processor's own. False: a VM exit is pending. */
bool mmu_walk_guest_physical(struct vcpu *vcpu, uint64_t *gpa);

#endif
