#include "base/thread.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"

enum { NAME_MAX_BYTES = 16 };           /* the kernel's TASK_COMM_LEN */

static void block_signals(sigset_t *before)
{
    static const int own[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
    sigset_t set;
    sigfillset(&set);
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++)
        sigdelset(&set, own[i]);
    pthread_sigmask(SIG_SETMASK, &set, before);
}

int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *argument)
{
    sigset_t before;
    assert(strlen(name) < NAME_MAX_BYTES);
    block_signals(&before);             /* a new thread takes over its maker's mask */
    int status = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!status)
        pthread_setname_np(*thread, name);
    return status;
}

unsigned thread_processors(void)
{
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof(allowed), &allowed))
        return (unsigned)CPU_COUNT(&allowed);
    return errno == EINVAL ? CPU_SETSIZE : 1;           /* EINVAL: the host has more than the set has room for */
}
