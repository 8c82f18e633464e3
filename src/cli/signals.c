#include "cli/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "api/instance.h"
#include "api/vmm.h"
#include "backend/chardev.h"
#include "base/base.h"
#include "base/error.h"
#include "base/thread.h"
#include "cli/exit_status.h"

enum { POWER_OFF_SECONDS = 60 };

struct signals {
    struct vmm *vmm;
    bool gentle;
    pthread_t thread;
    sigset_t set;
};

/* SIGUSR1 is our own word to the thread: all has ended. */
static void fill(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGUSR1);
}

/*
 * Our own crash: write it down, give the terminal back, then die as if nobody had caught it. An engine that catches signals, too,
 * calls this from its own handler, so SA_RESETHAND alone does not do.
 */
static void crashed(int number)
{
    instance_record_crash(number);
    chardev_restore_terminals();
    signal(number, SIG_DFL);
    raise(number);
}

void signals_prepare(void)
{
    static const int crashes[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT };
    struct sigaction action = { .sa_handler = crashed, .sa_flags = (int)SA_RESETHAND | SA_NODEFER }, old;
    sigset_t set;
    fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (unsigned i = 0; i < ARRAY_SIZE(crashes); i++)
        if (!sigaction(crashes[i], NULL, &old) && old.sa_handler == SIG_DFL)
            sigaction(crashes[i], &action, NULL);
}

/* The next signal; 0 if none comes in time. seconds 0: however long it takes. */
static int next(const struct signals *signals, unsigned seconds)
{
    const struct timespec limit = { .tv_sec = seconds };
    int number;
    do
        number = seconds ? sigtimedwait(&signals->set, NULL, &limit) : sigwaitinfo(&signals->set, NULL);
    while (number < 0 && errno == EINTR);
    return number < 0 ? 0 : number;
}

static bool press_power_button(struct vmm *vmm)
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(vmm, &result, NULL);
    if (!machine)
        return false;
    machine_power_button(machine);
    vmm_give_back(vmm);
    return true;
}

static void *signals_main(void *argument)
{
    struct signals *signals = argument;
    int number = next(signals, 0);
    if (number == SIGTERM && signals->gentle && press_power_button(signals->vmm)) {
        int second = next(signals, POWER_OFF_SECONDS);
        number = second ? second : number;
    }
    if (number == SIGUSR1)
        return NULL;
    vmm_quit(signals->vmm, END_QUIT, (uint32_t)number);
    number = next(signals, 0);
    if (number != SIGUSR1) {
        chardev_restore_terminals();
        _exit(EXIT_SIGNAL + number);
    }
    return NULL;
}

struct signals *signals_start(struct vmm *vmm, bool gentle, struct error *err)
{
    struct signals *signals = calloc(1, sizeof(*signals));
    if (!signals) {
        error_set(err, "no memory for signals");
        return NULL;
    }
    signals->vmm = vmm;
    signals->gentle = gentle;
    fill(&signals->set);
    int status = thread_start(&signals->thread, "signals", signals_main, signals);
    if (status) {
        error_errno(err, status, "cannot start a thread for signals");
        free(signals);
        return NULL;
    }
    return signals;
}

void signals_stop(struct signals *signals)
{
    if (!signals)
        return;
    pthread_kill(signals->thread, SIGUSR1);
    pthread_join(signals->thread, NULL);
    free(signals);
}
