/* Going into KVM, and being called out of it. Apart from the rest because <signal.h> and our names of registers collide. */
#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm.h"

/*
 * A signal belongs to the thread that is in KVM, and so does the word that its handler writes to: the exception to the rule that no file
 * keeps any state. The handler makes KVM leave at once even if the thread is only on its way there (KVM §5, immediate_exit).
 */
static _Thread_local struct kvm_run *volatile entering;

static void on_kick(int number)
{
    if (entering)
        entering->immediate_exit = 1;
}

bool kvm_prepare_kicks(void)
{
    struct sigaction action = { .sa_handler = on_kick };
    return !sigaction(VCPU_KICK_SIGNAL, &action, NULL);
}

bool kvm_enter(struct vcpu *vcpu, struct kvm_cpu *cpu, int *status)
{
    cpu->run->immediate_exit = 0;
    entering = cpu->run;
    atomic_store(&vcpu->in_kernel, true);
    bool go = !atomic_load(&vcpu->request);
    if (go)
        *status = ioctl(cpu->fd, KVM_RUN, 0);
    int code = errno;
    atomic_store(&vcpu->in_kernel, false);
    entering = NULL;
    errno = code;
    return go;
}

/* A signal that waits, is blocked here and not in KVM. What KVM does on the way in and out is done. */
void kvm_enter_interrupted(const struct kvm_cpu *cpu)
{
    struct {
        struct kvm_signal_mask head;
        uint8_t set[8];                 /* the kernel's sigset_t */
    } mask = { .head.len = 8 };
    sigset_t kick, before;
    sigemptyset(&kick);
    sigaddset(&kick, VCPU_KICK_SIGNAL);
    pthread_sigmask(SIG_BLOCK, &kick, &before);
    pthread_kill(pthread_self(), VCPU_KICK_SIGNAL);
    cpu->run->immediate_exit = 0;
    if (!ioctl(cpu->fd, KVM_SET_SIGNAL_MASK, &mask)) {
        ioctl(cpu->fd, KVM_RUN, 0);
        ioctl(cpu->fd, KVM_SET_SIGNAL_MASK, NULL);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
