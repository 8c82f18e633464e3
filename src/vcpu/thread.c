#include "vcpu/thread.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "base/error.h"
#include "base/thread.h"
#include "vcpu/loop.h"
#include "vcpu/work.h"

void vcpu_thread_init(struct vcpu *vcpu)
{
    pthread_mutex_init(&vcpu->mutex, NULL);
    pthread_cond_init(&vcpu->wake, NULL);
    vcpu->threadless = true;
}

void vcpu_thread_fini(struct vcpu *vcpu)
{
    pthread_cond_destroy(&vcpu->wake);
    pthread_mutex_destroy(&vcpu->mutex);
}

static void accept_kicks(void)
{
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, VCPU_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
}

/*
 * A fact about the thread, and so the exception to the rule that no file keeps any state. vcpu->thread would not do: it is being written while other
 * vCPUs run already, and a thread that has ended gives its name to another one.
 */
static _Thread_local const struct vcpu *own;

bool vcpu_thread_is_own(const struct vcpu *vcpu) { return own == vcpu; }

static void *thread_main(void *argument)
{
    own = argument;
    accept_kicks();
    vcpu_loop(argument);
    vcpu_end_work(argument);
    return NULL;
}

static void set_threadless(struct vcpu *vcpu, bool threadless)
{
    pthread_mutex_lock(&vcpu->mutex);
    vcpu->threadless = threadless;
    pthread_mutex_unlock(&vcpu->mutex);
}

bool vcpu_thread_start(struct vcpu *vcpu, struct error *err)
{
    set_threadless(vcpu, false);
    vcpu->watches = vcpu->all_count > 1 && thread_processors() > 1;
    char name[16];
    snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
    int status = thread_start(&vcpu->thread, name, thread_main, vcpu);
    if (status) {
        set_threadless(vcpu, true);
        return error_errno(err, status, "cannot start the thread of vCPU %u", vcpu->index);
    }
    return true;
}

void vcpu_thread_join(struct vcpu *vcpu)
{
    pthread_join(vcpu->thread, NULL);
}

/* With the mutex held: a thread takes it once more after it has left the kernel for the last time, so this one is still there. */
static void call_out(struct vcpu *vcpu)
{
    if (atomic_load(&vcpu->in_kernel))
        pthread_kill(vcpu->thread, VCPU_KICK_SIGNAL);
}

/*
 * Bits are set before, and a sleeper looks at them with the mutex held, so no wake-up is lost. A vCPU that runs never holds it for long. It is
 * given back first, since who is woken wants it.
 */
void vcpu_wake(struct vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->mutex);
    call_out(vcpu);
    pthread_mutex_unlock(&vcpu->mutex);
    pthread_cond_broadcast(&vcpu->wake);
}

void vcpu_kick(struct vcpu *vcpu, uint32_t request)
{
    uint32_t old = atomic_fetch_or(&vcpu->request, request);
    if ((old & request) != request)
        vcpu_wake(vcpu);
}

void vcpu_tell(struct vcpu *vcpu, uint32_t request)
{
    uint32_t old = atomic_fetch_or(&vcpu->request, request);
    if ((old & request) == request || !atomic_load(&vcpu->in_kernel))
        return;
    pthread_mutex_lock(&vcpu->mutex);
    call_out(vcpu);
    pthread_mutex_unlock(&vcpu->mutex);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* True: a request of `mask` came before the time is up. */
static bool watch_for(const struct vcpu *vcpu, uint32_t mask, uint64_t until_ns)
{
    enum { LOOKS = 32 };                /* at the request for one at the time */
    do {
        for (unsigned i = 0; i < LOOKS; i++) {
            if (atomic_load_explicit(&vcpu->request, memory_order_acquire) & mask)
                return true;
            __builtin_ia32_pause();
        }
    } while (now_ns() < until_ns);
    return false;
}

static void sleep_until(struct vcpu *vcpu, uint32_t mask)
{
    pthread_mutex_lock(&vcpu->mutex);
    vcpu->asleep = true;
    for (bool wanted; !(wanted = atomic_load(&vcpu->request) & mask) || vcpu->serving;) {
        vcpu->serving_awaited |= wanted;
        pthread_cond_wait(&vcpu->wake, &vcpu->mutex);
    }
    vcpu->asleep = false;
    pthread_mutex_unlock(&vcpu->mutex);
}

/*
 * Processors that work together wake each other all the time, and to be put to sleep and woken takes the host longer than many a halt lasts. So
 * one that has others watches for a request before it sleeps, for as long as it takes to find out whether this is such a time: if a halt
 * lasted longer, it watches half as long in the next one, and soon not at all. On a host with one processor it would only keep that from them.
 */
void vcpu_sleep(struct vcpu *vcpu, uint32_t mask)
{
    enum { WATCH_MOST_NS = 50000 };
    if (!vcpu->watches) {
        sleep_until(vcpu, mask);
        return;
    }
    uint64_t begin = now_ns();
    if (vcpu->watch_ns && watch_for(vcpu, mask, begin + vcpu->watch_ns))
        return;
    sleep_until(vcpu, mask);
    vcpu->watch_ns = now_ns() - begin < WATCH_MOST_NS ? WATCH_MOST_NS : vcpu->watch_ns / 2;
}

void vcpu_sleep_paused(struct vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->mutex);
    while ((atomic_load(&vcpu->request) & (REQUEST_PAUSE | REQUEST_WORK | REQUEST_EXIT)) == REQUEST_PAUSE)
        pthread_cond_wait(&vcpu->wake, &vcpu->mutex);
    pthread_mutex_unlock(&vcpu->mutex);
}

void vcpu_unpause(struct vcpu *vcpu)
{
    atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_PAUSE);
    vcpu_wake(vcpu);
}

static void signal_raise(void *opaque, uint32_t request, uint8_t sipi_vector)
{
    struct vcpu *vcpu = opaque;
    if (request & REQUEST_SIPI)
        __atomic_store_n(&vcpu->sipi_vector, sipi_vector, __ATOMIC_RELEASE);
    vcpu_kick(vcpu, request);
}

struct cpu_signal vcpu_signal(struct vcpu *vcpu)
{
    return (struct cpu_signal){ .raise = signal_raise, .vcpu = vcpu };
}
