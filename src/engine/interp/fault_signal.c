#include "engine/interp/fault_signal.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"

enum { ASKED_MOST = 4 };
static const int trapped[] = { SIGFPE, SIGSEGV, SIGILL, SIGBUS };
static struct sigaction previous[ARRAY_SIZE(trapped)];
static _Atomic(fault_asked *) list[ASKED_MOST];                 /* the first NULL ends it */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;       /* guards the changing of both */

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

static void on_signal(int sig, siginfo_t *info, void *context)
{
    bool seen_to = false;
    for (unsigned i = 0; info->si_code > 0 && i < ASKED_MOST && list[i] && !seen_to; i++)
        seen_to = list[i](sig, info, context);
    if (!seen_to)
        pass_on(sig, info, context);
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

static bool enlist(fault_asked *asked)
{
    unsigned i = 0;
    while (i < ASKED_MOST && list[i] && list[i] != asked)
        i++;
    if (i < ASKED_MOST)
        list[i] = asked;
    return i < ASKED_MOST;
}

bool fault_signal_ask(fault_asked *asked)
{
    pthread_mutex_lock(&mutex);
    bool ok = enlist(asked);
    for (unsigned i = 0; i < ARRAY_SIZE(trapped); i++)
        ok &= install(i);
    pthread_mutex_unlock(&mutex);
    return ok;
}
