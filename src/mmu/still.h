/*
 * Is what was once fetched still what a fetch would find? For those who keep code by linear address and hear by an epoch (mmu.h) that
 * translations were flushed: looking is far cheaper than finding everything anew, and after a flush nearly always nothing has changed.
 *
 * The guest's tables are read as a processor reads them that fills its TLB ahead of need (SDM3 §4.10.2.3 "Details of TLB Use"), so a
 * page that has not changed is one whose translation it may well have loaded again right after the flush.
 */
#ifndef DOPPEL_MMU_STILL_H
#define DOPPEL_MMU_STILL_H

#include "mmu/walk.h"

/* What one look at the tables tells of 2 MiB of linear addresses; all 0: of none yet. To be used between two instructions only. */
struct still {
    bool known, mapped;
    uint64_t piece;
    struct leaves leaves;
    struct ept_look ept;
};

/*
 * On the vCPU's thread. A fetch at the present CPL of the page at linear address gla, with the present CR3: would it come from the page
 * at guest-physical address gpa, by a translation that is global or not, as said? If so it counts as noted (mmu_note_fetch). False for all that is
 * not plain to see, and always outside 64-bit paging.
 */
bool mmu_still_fetches(struct vcpu *vcpu, struct still *still, uint64_t gla, uint64_t gpa, bool global);

#endif
