#include "engine/kvm/host.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

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
    NEEDED(EXT_CPUID), NEEDED(SREGS2),
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
    return true;
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

/* --- how fast it is --- */

enum { PROBE_BYTES = 0x1000, PROBE_LOOP_INSNS = 2 };

/* A machine with a page of memory and one processor, in real-address mode. */
struct probe {
    int vm, cpu;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
};

static void probe_close(struct probe *p)
{
    if (p->run)
        munmap(p->run, p->run_size);
    if (p->memory)
        munmap(p->memory, PROBE_BYTES);
    if (p->cpu >= 0)
        close(p->cpu);
    if (p->vm >= 0)
        close(p->vm);
}

static void *map(size_t size, int fd)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static bool probe_open(struct probe *p, int kvm)
{
    *p = (struct probe){ .vm = ioctl(kvm, KVM_CREATE_VM, 0), .cpu = -1, .memory = map(PROBE_BYTES, -1) };
    struct kvm_userspace_memory_region region = { .memory_size = PROBE_BYTES, .userspace_addr = (uintptr_t)p->memory };
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (p->vm < 0 || !p->memory || size <= 0 || ioctl(p->vm, KVM_SET_TSS_ADDR, 0xFEFFD000) ||
        ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &region) || (p->cpu = ioctl(p->vm, KVM_CREATE_VCPU, 0)) < 0)
        return false;
    p->run_size = (size_t)size;
    p->run = map(p->run_size, p->cpu);
    return p->run;
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds for each instruction of a loop that is run `count` times; below 0: it did not get to its HLT. */
static double probe_loop(struct probe *p, uint32_t count)
{
    static const uint8_t loop[] = { 0x66, 0x49, 0x75, 0xFC, 0xF4 };        /* 1: dec ecx; jnz 1b; hlt */
    struct kvm_sregs sregs;
    struct kvm_regs regs = { .rflags = RFLAGS_FIXED, .rcx = count };
    memcpy(p->memory, loop, sizeof(loop));
    if (ioctl(p->cpu, KVM_GET_SREGS, &sregs))
        return -1;
    sregs.cs.base = sregs.cs.selector = 0;
    if (ioctl(p->cpu, KVM_SET_SREGS, &sregs) || ioctl(p->cpu, KVM_SET_REGS, &regs))
        return -1;
    double start = now_ns();
    if (ioctl(p->cpu, KVM_RUN, 0) || p->run->exit_reason != KVM_EXIT_HLT)
        return -1;
    return (now_ns() - start) / count / PROBE_LOOP_INSNS;
}

/* The best of a few tries, since anybody may be interrupted; entering and leaving takes some microseconds, so the loop must be long. */
static bool probe_speed(struct probe *p, double *nanoseconds, struct error *err)
{
    enum { TRIES = 3, FIRST = 100, LOOP = 20000, SLOW_NS = 100, FAST_NS = 10 };
    *nanoseconds = probe_loop(p, FIRST);                /* the first time memory is mapped */
    if (*nanoseconds >= 0)
        *nanoseconds = probe_loop(p, FIRST);
    for (unsigned i = 0; i < TRIES && *nanoseconds >= 0 && *nanoseconds < 10 * SLOW_NS; i++) {
        double took = probe_loop(p, LOOP);
        *nanoseconds = took < 0 || took < *nanoseconds ? took : *nanoseconds;
    }
    if (*nanoseconds < 0)
        return error_set(err, "this host's KVM did not run a loop of three instructions to its end");
    return *nanoseconds < FAST_NS ||
           error_set(err, "this host's KVM emulates the guest's kernel: %.0f ns for an instruction; the translator is faster", *nanoseconds);
}

bool kvm_fast(double *nanoseconds, struct error *err)
{
    struct probe probe;
    int kvm = kvm_open(err);
    if (kvm < 0)
        return false;
    bool fast = probe_open(&probe, kvm) ? probe_speed(&probe, nanoseconds, err) : error_set(err, "/dev/kvm makes no machine");
    probe_close(&probe);
    close(kvm);
    return fast;
}
