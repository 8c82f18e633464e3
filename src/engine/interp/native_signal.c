/*
 * Host faults inside a stub. The guest's own MXCSR and x87 control word are in the processor while its instruction runs, so
 * an unmasked exception, a misaligned operand or an encoding that the host refuses arrives here as a signal. The handler only
 * moves the program counter to the stub's fault exit, which puts the host's MXCSR back and returns 1; native_reflect
 * then turns the signal into the guest's exception.
 *
 * Which stub runs belongs to the thread: that is the exception to the rule of the house that no file keeps any state.
 */
#include "engine/interp/native_impl.h"

#include <ucontext.h>

#include "engine/interp/fault_signal.h"
#include "x86/xstate.h"

_Thread_local struct native_trap native_trap;

/* A page of guest memory that the host could not bring in is no fault of the guest's instruction. */
static bool about_the_host(int sig, const siginfo_t *info)
{
    return (sig == SIGSEGV && (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)) ||
           (sig == SIGBUS && info->si_code != BUS_ADRALN);
}

static bool of_a_stub(int sig, const siginfo_t *info, void *context)
{
    ucontext_t *ucontext = context;
    const struct stub *stub = native_trap.stub;
    uintptr_t rip = (uintptr_t)ucontext->uc_mcontext.gregs[REG_RIP];
    if (!stub || rip < (uintptr_t)stub->code || rip >= stub->fault_exit || about_the_host(sig, info))
        return false;
    native_trap.signal = sig;
    native_trap.code = info->si_code;
    ucontext->uc_mcontext.gregs[REG_RIP] = (greg_t)stub->fault_exit;
    return true;
}

bool native_signal_install(void) { return fault_signal_ask(of_a_stub); }

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
