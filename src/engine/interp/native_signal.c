/*
 * Host faults inside a stub. The guest's own MXCSR and x87 control word are in the processor while its instruction runs, so
 * an unmasked exception, a misaligned operand or an encoding that the host refuses arrives here as a signal. The handler only
 * moves the program counter to the stub's fault exit, which puts the host's MXCSR back and returns 1; native_reflect
 * then turns the signal into the guest's exception.
 *
 * Signal handlers belong to the process, and which stub runs belongs to the thread: the two pieces of state below are the
 * exception to the rule of the house that no file keeps any.
 */
#include "engine/interp/native_impl.h"

#include <pthread.h>
#include <ucontext.h>

#include "x86/xstate.h"

_Thread_local struct native_trap native_trap;

static const int trapped[] = { SIGFPE, SIGSEGV, SIGILL, SIGBUS };
static struct sigaction previous[ARRAY_SIZE(trapped)];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;       /* guards the installing of `previous` */

/* Not from a stub: whoever was here before us decides; by default the process dies of the same signal. */
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

/* A page of guest memory that the host could not bring in is no fault of the guest's instruction. */
static bool about_the_host(int sig, const siginfo_t *info)
{
    return (sig == SIGSEGV && (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)) ||
           (sig == SIGBUS && info->si_code != BUS_ADRALN);
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
    ucontext_t *ucontext = context;
    const struct stub *stub = native_trap.stub;
    uintptr_t rip = (uintptr_t)ucontext->uc_mcontext.gregs[REG_RIP];
    bool inside = stub && info->si_code > 0 && rip >= (uintptr_t)stub->code && rip < stub->fault_exit;
    if (!inside || about_the_host(sig, info)) {
        pass_on(sig, info, context);
        return;
    }
    native_trap.signal = sig;
    native_trap.code = info->si_code;
    ucontext->uc_mcontext.gregs[REG_RIP] = (greg_t)stub->fault_exit;
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

bool native_signal_install(void)
{
    bool ok = true;
    pthread_mutex_lock(&mutex);
    for (unsigned i = 0; i < ARRAY_SIZE(trapped); i++)
        ok &= install(i);
    pthread_mutex_unlock(&mutex);
    return ok;
}

/* A stub's code (native_code) around an instruction of SHA. */
extern const uint8_t native_sha_probe[], native_sha_probe_fault[];
__asm__(".pushsection .text\n"
        ".globl native_sha_probe, native_sha_probe_fault\n"
        ".hidden native_sha_probe, native_sha_probe_fault\n"
        "native_sha_probe: sha1msg1 (%rsi), %xmm0\n"
        "xor %eax, %eax\n"
        "ret\n"
        "native_sha_probe_fault: mov $1, %eax\n"
        "ret\n"
        ".popsection");

bool native_sha_faults_misaligned(void)
{
    _Alignas(16) uint8_t operand[32] = { 0 };
    const struct stub probe = {
        .code = (native_code *)(uintptr_t)native_sha_probe, .fault_exit = (uintptr_t)native_sha_probe_fault,
    };
    bool read = native_call(NULL, &probe, operand + 1);
    native_trap.stub = NULL;
    return !read;
}

bool native_reflect(struct vcpu *vcpu, const struct stub *stub)
{
    switch (native_trap.signal) {
    case SIGFPE:
        native_sync(vcpu);
        /* Conversions with MMX registers may raise either; the pending x87 exception comes first. */
        if (!stub->mxcsr || (stub->mmx && fpu_exception_pending(&vcpu->fpu)))
            return x86_raise(vcpu, VEC_MF);
        /* SDM3 §6.15 "Interrupt 19": without CR4.OSXMMEXCPT the exception is #UD. */
        return x86_raise(vcpu, vcpu->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
    case SIGBUS:
        return x86_raise(vcpu, VEC_AC);
    case SIGSEGV:
        return x86_raise(vcpu, VEC_GP);
    default:
        return x86_raise(vcpu, VEC_UD);
    }
}
