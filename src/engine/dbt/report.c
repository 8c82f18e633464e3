/*
 * What translated code leaves to the interpreter, by instruction: those that are not translated, and those that are but missed the
 * TLB or a window, or trapped. The monitor's `info sites` shows them, so that what a workload stumbles over has a name.
 */
#include "engine/dbt/plan.h"

#include <stdlib.h>

enum { MNEMONICS = ZYDIS_MNEMONIC_MAX_VALUE + 1, LINES = 24 };

struct site_runs *site_runs_create(void) { return calloc(MNEMONICS, sizeof(struct site_runs)); }

/* The mnemonic with the most runs among those with fewer than `below`, or as many and a higher number than `than`. */
static unsigned next_most(const struct site_runs *all, uint64_t below, unsigned than)
{
    unsigned best = MNEMONICS;
    for (unsigned i = 0; i < MNEMONICS; i++) {
        bool to_come = all[i].runs < below || (all[i].runs == below && i > than);
        if (to_come && all[i].runs && (best == MNEMONICS || all[i].runs > all[best].runs))
            best = i;
    }
    return best;
}

void dbt_print_sites(const struct vcpu *vcpu, FILE *out)
{
    const struct site_runs *all = dbt_of(vcpu)->site_runs;
    uint64_t below = UINT64_MAX;
    fprintf(out, "%14s  %-18s last at\n", "runs", "instruction");
    for (unsigned line = 0, i = 0; line < LINES; line++) {
        i = next_most(all, below, i);
        if (i == MNEMONICS)
            break;
        below = all[i].runs;
        fprintf(out, "%14llu  %-18s %016llx\n", (unsigned long long)all[i].runs, ZydisMnemonicGetString((ZydisMnemonic)i),
                (unsigned long long)all[i].rip);
    }
}
