/*
 * MSRs. KVM keeps those that the processor itself works with, and the guest reaches them without leaving it; all others are left to us
 * (KVM §4.97, §7.21), so that their rules are the ones of x86/msr.def on every engine.
 */
#include <stddef.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "engine/kvm/kvm.h"

static const struct {
    uint32_t number;
    uint16_t field;
} kept[] = {
#define KEPT(number, field) { number, offsetof(struct vcpu, field) }
    KEPT(0x48, spec_ctrl), KEPT(0x174, sysenter_cs), KEPT(0x175, sysenter_esp), KEPT(0x176, sysenter_eip), KEPT(0x277, pat),
    KEPT(0xDA0, xss), KEPT(0xC0000081, star), KEPT(0xC0000082, lstar), KEPT(0xC0000083, cstar), KEPT(0xC0000084, sfmask),
    KEPT(0xC0000102, kernel_gs_base), KEPT(0xC0000103, tsc_aux),
#undef KEPT
};

/* Those of kvm_sregs, too: EFER, FS.base, GS.base. */
static bool is_kept(uint32_t number)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kept); i++)
        if (kept[i].number == number)
            return true;
    return number == 0xC0000080 || number == 0xC0000100 || number == 0xC0000101;
}

/* With the local APICs in KVM. IA32_APIC_BASE is not kept: KVM takes values of it that are not valid. */
enum { MSR_TSC_DEADLINE = 0x6E0, X2APIC_FIRST = 0x800, X2APIC_LAST = 0x8FF };

/* The ranges of the filter: where MSRs that are kept lie. */
enum { RANGE_MSRS = 0x200 };
static const uint32_t ranges[] = { 0x0, 0x200, 0x600, 0xC00, 0xC0000000 };

static bool filter_msrs(int vm_fd, bool deadline)
{
    uint8_t bitmap[ARRAY_SIZE(ranges)][RANGE_MSRS / 8] = { 0 };
    struct kvm_msr_filter filter = { .flags = KVM_MSR_FILTER_DEFAULT_DENY };
    for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++) {
        for (unsigned n = 0; n < RANGE_MSRS; n++)
            bitmap[i][n / 8] |= (uint8_t)((is_kept(ranges[i] + n) || (deadline && ranges[i] + n == MSR_TSC_DEADLINE)) << n % 8);
        filter.ranges[i] = (struct kvm_msr_filter_range){
            .flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, .nmsrs = RANGE_MSRS, .base = ranges[i], .bitmap = bitmap[i],
        };
    }
    return !ioctl(vm_fd, KVM_X86_SET_MSR_FILTER, &filter);
}

bool kvm_leave_msrs(int vm_fd, bool deadline)
{
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args = { KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL },
    };
    return !ioctl(vm_fd, KVM_ENABLE_CAP, &cap) && filter_msrs(vm_fd, deadline);
}

struct one_msr {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
};

/* One by one: which of them there are depends on the model and the host. */
void kvm_push_msrs(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kept); i++) {
        struct one_msr one = { .head.nmsrs = 1, .entry.index = kept[i].number };
        memcpy(&one.entry.data, (const char *)vcpu + kept[i].field, sizeof(one.entry.data));
        ioctl(cpu->fd, KVM_SET_MSRS, &one);
    }
}

void kvm_pull_msrs(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    for (unsigned i = 0; i < ARRAY_SIZE(kept); i++) {
        struct one_msr one = { .head.nmsrs = 1, .entry.index = kept[i].number };
        if (ioctl(cpu->fd, KVM_GET_MSRS, &one) == 1)
            memcpy((char *)vcpu + kept[i].field, &one.entry.data, sizeof(one.entry.data));
    }
}

/* --- time --- */

/* The guest's TSC less the host's; the nearest of a few readings, since anybody may be interrupted between the two. */
static uint64_t measured_offset(struct vcpu *vcpu)
{
    uint64_t best = UINT64_MAX, offset = 0;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t before = __rdtsc(), guest = x86_tsc(vcpu), after = __rdtsc();
        if (after - before >= best)
            continue;
        best = after - before;
        offset = guest - (before + best / 2);
    }
    return offset;
}

/*
 * KVM_VCPU_TSC_OFFSET (Linux Documentation/virt/kvm/devices/vcpu.rst §4.1) is exact. What differs from what KVM was told by less than
 * a reading may err is not told again, or the guest's time would tremble.
 */
void kvm_tell_tsc(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    enum { ERROR = 20000 };
    uint64_t offset = measured_offset(vcpu);
    if (cpu->tsc_told && offset - cpu->tsc_offset + ERROR <= 2 * ERROR)
        return;
    struct kvm_device_attr attribute = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset };
    struct one_msr tsc = { .head.nmsrs = 1, .entry = { .index = 0x10, .data = x86_tsc(vcpu) } };
    if (ioctl(cpu->fd, KVM_SET_DEVICE_ATTR, &attribute))
        ioctl(cpu->fd, KVM_SET_MSRS, &tsc);
    cpu->tsc_offset = offset;
    cpu->tsc_told = true;
    kvm_move_deadline(cpu);
}

/* A guest of another engine may have begun with it, or one that does not look at CPUID. */
bool kvm_loses_deadline(struct vcpu *vcpu)
{
    enum { MSR_APIC_BASE = 0x1B, APIC_BASE_EXTD = 1 << 10, MSR_X2APIC_LVT_TIMER = 0x832, LVT_TIMER = 0x320, LVT_TSC_DEADLINE = 2 << 17 };
    uint64_t base, lvt = 0;
    if (kvm_cpu_of(vcpu)->vm->deadline != KVM_DEADLINE_LOST || !vcpu->intc_ops || !vcpu->intc_ops->read_msr(vcpu->intc, MSR_APIC_BASE, &base))
        return false;
    struct access access = { .address = (base & ~0xFFFull) + LVT_TIMER, .size = 4, .requester = REQUESTER_CPU };
    if (base & APIC_BASE_EXTD)
        vcpu->intc_ops->read_msr(vcpu->intc, MSR_X2APIC_LVT_TIMER, &lvt);
    else if (vcpu->intc_ops->mmio(vcpu->intc, &access))
        lvt = access.value;
    return lvt & LVT_TSC_DEADLINE;
}

/* --- accesses that are ours --- */

static bool is_apics(const struct kvm_vm *vm, uint32_t number)
{
    return vm->apics && number >= X2APIC_FIRST && number <= X2APIC_LAST;
}

/* KVM has looked at the privilege level. One that KVM keeps comes here only if KVM refuses it. */
bool kvm_do_msr(struct vcpu *vcpu, struct kvm_run *run)
{
    enum { MSR_APIC_BASE = 0x1B };
    uint64_t value = run->msr.data;
    uint64_t tsc_offset = vcpu->tsc_offset;
    bool write = run->exit_reason == KVM_EXIT_X86_WRMSR;
    vcpu->cpl = 0;
    counter_add(&vcpu->counters, write ? COUNTER_trap_msr_writes : COUNTER_trap_msr_reads, 1);
    bool done = !is_kept(run->msr.index) && !is_apics(kvm_cpu_of(vcpu)->vm, run->msr.index) &&
                (write ? x86_wrmsr(vcpu, run->msr.index, value) : x86_rdmsr(vcpu, run->msr.index, &value));
    vcpu->pending.kind = EVENT_NONE;
    run->msr.data = value;
    run->msr.error = !done;
    if (vcpu->tsc_offset != tsc_offset)
        kvm_tell_tsc(vcpu, kvm_cpu_of(vcpu));
    return write && run->msr.index == MSR_APIC_BASE;
}
