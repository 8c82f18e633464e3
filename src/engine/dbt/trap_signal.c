/*
 * Apart from the rest because <ucontext.h> and our names of registers collide. Which translator runs belongs to the thread: that is, as
 * in native_signal.c, the exception to the rule that no file keeps any state.
 */
#include "engine/dbt/trap_signal.h"

#include <ucontext.h>

#include "engine/interp/fault_signal.h"

static _Thread_local struct {
    trap_way *way;
    void *owner;
} running;

static bool of_a_translation(int sig, const siginfo_t *info, void *context)
{
    enum { PAGE_FAULT_WRITE = 2 };
    greg_t *gregs = ((ucontext_t *)context)->uc_mcontext.gregs;
    bool page = sig == SIGSEGV && (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR);
    struct trap_fault fault = {
        .rip = (uintptr_t)gregs[REG_RIP],
        .page = page ? (uintptr_t)info->si_addr : 0,
        .write = gregs[REG_ERR] & PAGE_FAULT_WRITE,
    };
    uintptr_t to = running.owner ? running.way(running.owner, &fault) : 0;
    if (to)
        gregs[REG_RIP] = (greg_t)to;
    return to;
}

bool trap_signal_install(void) { return fault_signal_ask(of_a_translation); }

void trap_signal_handle(trap_way *way, void *owner)
{
    running.way = way;
    running.owner = owner;
}
