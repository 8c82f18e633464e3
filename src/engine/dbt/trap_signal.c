/*
 * Apart from the rest because <ucontext.h> and our names of registers collide. Signal handlers belong to the process, and which
 * translator runs belongs to the thread: the pieces of state below are, as in native_signal.c, the exception to the rule that
 * no file keeps any.
 */
#include "engine/dbt/trap_signal.h"

#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "base/base.h"

static _Thread_local struct {
    trap_way *way;
    void *owner;
} running;

static const int trapped[] = { SIGFPE, SIGSEGV, SIGILL, SIGBUS };
static struct sigaction previous[ARRAY_SIZE(trapped)];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;       /* guards the installing of `previous` */

static void pass_on(int sig, siginfo_t *info, void *context)
{
    for (unsigned i = 0; i < ARRAY_SIZE(trapped); i++) {
        if (trapped[i] != sig)
            continue;
        if (previous[i].sa_flags & SA_SIGINFO)
            previous[i].sa_sigaction(sig, info, context);
        else if (previous[i].sa_handler == SIG_DFL || previous[i].sa_handler == SIG_IGN)
            signal(sig, SIG_DFL);
        else
            previous[i].sa_handler(sig);
    }
}

static void on_signal(int sig, siginfo_t *info, void *opaque)
{
    enum { PAGE_FAULT_WRITE = 2 };
    greg_t *gregs = ((ucontext_t *)opaque)->uc_mcontext.gregs;
    bool page = sig == SIGSEGV && (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR);
    struct trap_fault fault = {
        .rip = (uintptr_t)gregs[REG_RIP],
        .page = page ? (uintptr_t)info->si_addr : 0,
        .write = gregs[REG_ERR] & PAGE_FAULT_WRITE,
    };
    uintptr_t to = 0;
    if (running.owner && info->si_code > 0)
        to = running.way(running.owner, &fault);
    if (to)
        gregs[REG_RIP] = (greg_t)to;
    else
        pass_on(sig, info, opaque);
}

static bool install(unsigned i)
{
    struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK }, present;
    sigemptyset(&action.sa_mask);
    if (sigaction(trapped[i], NULL, &present) != 0)
        return false;
    if ((present.sa_flags & SA_SIGINFO) && present.sa_sigaction == on_signal)
        return true;
    previous[i] = present;
    return sigaction(trapped[i], &action, NULL) == 0;
}

bool trap_signal_install(void)
{
    bool ok = true;
    pthread_mutex_lock(&mutex);
    for (unsigned i = 0; i < ARRAY_SIZE(trapped); i++)
        ok &= install(i);
    pthread_mutex_unlock(&mutex);
    return ok;
}

void trap_signal_handle(trap_way *way, void *owner)
{
    running.way = way;
    running.owner = owner;
}
