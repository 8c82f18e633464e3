#include "engine/kvm/host.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/kvm/kvm.h"

/* --- what must be there --- */

static const struct {
    int number;
    const char *name;
} needed[] = {
#define NEEDED(name) { KVM_CAP_##name, #name }
    NEEDED(USER_MEMORY), NEEDED(SET_TSS_ADDR), NEEDED(IMMEDIATE_EXIT), NEEDED(X86_USER_SPACE_MSR), NEEDED(X86_MSR_FILTER), NEEDED(XSAVE),
    NEEDED(XCRS), NEEDED(VCPU_EVENTS), NEEDED(DEBUGREGS), NEEDED(READONLY_MEM), NEEDED(SET_GUEST_DEBUG), NEEDED(USER_NMI),
    NEEDED(EXT_CPUID), NEEDED(SREGS2), NEEDED(EXIT_ON_EMULATION_FAILURE),
#undef NEEDED
};

static bool suits(int kvm, struct error *err)
{
    int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION)
        return error_set(err, "/dev/kvm speaks version %d of its interface, not %d", version, KVM_API_VERSION);
    for (unsigned i = 0; i < ARRAY_SIZE(needed); i++)
        if (ioctl(kvm, KVM_CHECK_EXTENSION, needed[i].number) <= 0)
            return error_set(err, "this host's KVM lacks KVM_CAP_%s: a newer kernel has it", needed[i].name);
    return clock_host_tsc_good(err);    /* the guest reads it */
}

int kvm_open(struct error *err)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        error_errno(err, errno, "cannot open /dev/kvm");
        return -1;
    }
    if (suits(kvm, err))
        return kvm;
    close(kvm);
    return -1;
}

bool kvm_has_apics(void)
{
    struct error err;
    int kvm = kvm_open(&err), vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    bool has = vm >= 0 && kvm_ask_for_apics(vm);
    if (vm >= 0)
        close(vm);
    if (kvm >= 0)
        close(kvm);
    return has;
}

bool kvm_usable(struct error *err)
{
    int kvm = kvm_open(err);
    if (kvm < 0)
        return false;
    int vm = ioctl(kvm, KVM_CREATE_VM, 0), code = errno;
    close(kvm);
    if (vm < 0)
        return error_errno(err, code, "/dev/kvm makes no machine");
    close(vm);
    return true;
}
