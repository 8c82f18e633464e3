/* What can only be found out about the host's KVM by running something in it: a machine with a page of memory. */
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/kvm/host.h"
#include "engine/kvm/kvm.h"

enum { PROBE_BYTES = 0x1000 };

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

/* `prepare` has the machine without processors; NULL: nothing to prepare. */
static bool probe_open(struct probe *p, int kvm, bool (*prepare)(int vm))
{
    *p = (struct probe){ .vm = ioctl(kvm, KVM_CREATE_VM, 0), .cpu = -1, .memory = map(PROBE_BYTES, -1) };
    struct kvm_userspace_memory_region region = { .memory_size = PROBE_BYTES, .userspace_addr = (uintptr_t)p->memory };
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (p->vm < 0 || !p->memory || size <= 0 || ioctl(p->vm, KVM_SET_TSS_ADDR, 0xFEFFD000) || (prepare && !prepare(p->vm)) ||
        ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &region) || (p->cpu = ioctl(p->vm, KVM_CREATE_VCPU, 0)) < 0)
        return false;
    p->run_size = (size_t)size;
    p->run = map(p->run_size, p->cpu);
    return p->run;
}

/* Runs `code` from address 0 until it leaves KVM. */
static bool probe_run(struct probe *p, const uint8_t *code, size_t size, uint64_t rcx)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs = { .rflags = RFLAGS_FIXED, .rcx = rcx };
    memcpy(p->memory, code, size);
    if (ioctl(p->cpu, KVM_GET_SREGS, &sregs))
        return false;
    sregs.cs.base = sregs.cs.selector = 0;
    return !ioctl(p->cpu, KVM_SET_SREGS, &sregs) && !ioctl(p->cpu, KVM_SET_REGS, &regs) && !ioctl(p->cpu, KVM_RUN, 0);
}

/* --- how fast it is --- */

/* Of this thread: a busy host is not a slow one. */
static double spent_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds for each instruction of a loop that is run `count` times; below 0: it did not get to its HLT. */
static double probe_loop(struct probe *p, uint32_t count)
{
    enum { LOOP_INSNS = 2 };
    static const uint8_t loop[] = { 0x66, 0x49, 0x75, 0xFC, 0xF4 };        /* 1: dec ecx; jnz 1b; hlt */
    double start = spent_ns();
    if (!probe_run(p, loop, sizeof(loop), count) || p->run->exit_reason != KVM_EXIT_HLT)
        return -1;
    return (spent_ns() - start) / count / LOOP_INSNS;
}

/*
 * The best of a few tries, since anybody may be interrupted. KVM's emulator takes hundreds of nanoseconds for an instruction; software
 * that stands in for the processor under KVM, some. Entering and leaving takes microseconds, and in a virtual machine on a busy host more than a
 * hundred: the longer the loop, the less of that is in it. What seems to emulate gets a loop that would take it half a millisecond.
 */
static bool probe_speed(struct probe *p, double *nanoseconds, struct error *err)
{
    enum { TRIES = 10, SLOW_TRIES = 3, SHORT = 200, LONGER = 600, LONG = 20000, FAST_NS = 25, SLOW_NS = 10 * FAST_NS };
    *nanoseconds = probe_loop(p, SHORT);
    for (unsigned i = 0, slow = 0; i < TRIES && slow < SLOW_TRIES && *nanoseconds >= FAST_NS; i++) {
        double took = probe_loop(p, *nanoseconds < SLOW_NS ? LONG : LONGER);
        *nanoseconds = took < *nanoseconds ? took : *nanoseconds;
        slow += *nanoseconds >= SLOW_NS;
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
    bool fast = probe_open(&probe, kvm, NULL) ? probe_speed(&probe, nanoseconds, err) : error_set(err, "/dev/kvm makes no machine");
    probe_close(&probe);
    close(kvm);
    return fast;
}

/* --- does a write of IA32_TSC_DEADLINE come to us? --- */

static bool leave_msrs(int vm) { return kvm_leave_msrs(vm, false); }
static bool leave_msrs_and_mwait(int vm) { return kvm_let_mwait(vm) && leave_msrs(vm); }

static bool deadline_comes(int kvm, bool (*prepare)(int vm))
{
    static const uint8_t write[] = { 0xB8, 1, 0, 0x31, 0xD2, 0x0F, 0x30, 0xF4 };        /* mov ax, 1; xor dx, dx; wrmsr; hlt */
    enum { MSR_TSC_DEADLINE = 0x6E0 };
    struct probe probe;
    bool comes = probe_open(&probe, kvm, prepare) && probe_run(&probe, write, sizeof(write), MSR_TSC_DEADLINE) &&
                 probe.run->exit_reason == KVM_EXIT_X86_WRMSR;
    probe_close(&probe);
    return comes;
}

enum kvm_deadline kvm_probe_deadline(int kvm)
{
    return deadline_comes(kvm, leave_msrs) ? KVM_DEADLINE_COMES : deadline_comes(kvm, leave_msrs_and_mwait) ? KVM_DEADLINE_WITH_MWAIT :
           KVM_DEADLINE_LOST;
}
