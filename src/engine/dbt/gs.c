/* Apart from the rest because <elf.h>, which <sys/auxv.h> brings, and our names of page-fault bits collide. */
#include "engine/dbt/gs.h"

#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FSGSBASE_ENABLED = 2 };      /* of AT_HWCAP2 */

bool gs_has_instruction(void) { return getauxval(AT_HWCAP2) & FSGSBASE_ENABLED; }

void gs_point_at(void *at, bool has_instruction)
{
    void *present;
    if (!has_instruction) {
        syscall(SYS_arch_prctl, ARCH_SET_GS, at);
        return;
    }
    asm volatile("rdgsbase %0" : "=r"(present));
    if (present != at)                  /* writing costs many times what reading does */
        asm volatile("wrgsbase %0" : : "r"(at));
}
