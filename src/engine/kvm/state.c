/* Registers between the vCPU and KVM (KVM §4.11, §4.12, §4.21, §4.31, §4.135). */
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm.h"

/* --- general registers --- */

/* In the order of enum gpr. */
static const uint8_t gpr_at[16] = {
#define AT(name) offsetof(struct kvm_regs, name) / 8
    AT(rax), AT(rcx), AT(rdx), AT(rbx), AT(rsp), AT(rbp), AT(rsi), AT(rdi),
    AT(r8), AT(r9), AT(r10), AT(r11), AT(r12), AT(r13), AT(r14), AT(r15),
#undef AT
};

static bool push_registers(const struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_regs regs = { .rip = vcpu->rip, .rflags = vcpu->rflags };
    for (unsigned i = 0; i < 16; i++)
        ((__u64 *)&regs)[gpr_at[i]] = vcpu->gpr[i];
    return !ioctl(cpu->fd, KVM_SET_REGS, &regs);
}

static void pull_registers(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_regs regs;
    if (ioctl(cpu->fd, KVM_GET_REGS, &regs))
        return;
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = ((__u64 *)&regs)[gpr_at[i]];
    vcpu->rip = regs.rip;
    vcpu->rflags = (regs.rflags & RFLAGS_DEFINED) | RFLAGS_FIXED;       /* KVM takes reserved bits out of a TSS, and then cannot enter */
}

/* --- segments and control registers --- */

static struct kvm_segment to_kvm(const struct segment *s)
{
    return (struct kvm_segment){
        .base = s->base, .limit = s->limit, .selector = s->selector, .type = bits(s->attr, 3, 0), .s = bits(s->attr, 4, 4),
        .dpl = bits(s->attr, 6, 5), .present = bits(s->attr, 7, 7), .avl = bits(s->attr, 12, 12), .l = bits(s->attr, 13, 13),
        .db = bits(s->attr, 14, 14), .g = bits(s->attr, 15, 15), .unusable = bits(s->attr, 16, 16),
    };
}

static struct segment from_kvm(const struct kvm_segment *k)
{
    return (struct segment){
        .base = k->base, .limit = k->limit, .selector = k->selector,
        .attr = k->type | (uint32_t)k->s << 4 | (uint32_t)k->dpl << 5 | (uint32_t)k->present << 7 | (uint32_t)k->avl << 12 |
                (uint32_t)k->l << 13 | (uint32_t)k->db << 14 | (uint32_t)k->g << 15 | (uint32_t)k->unusable << 16,
    };
}

static struct kvm_segment *segment_at(struct kvm_sregs2 *sregs, enum seg seg)
{
    struct kvm_segment *const at[SEG_COUNT] = {
        [ES] = &sregs->es, [CS] = &sregs->cs, [SS] = &sregs->ss, [DS] = &sregs->ds, [FS] = &sregs->fs, [GS] = &sregs->gs,
    };
    return at[seg];
}

static uint64_t apic_base(const struct vcpu *vcpu)
{
    enum { MSR_APIC_BASE = 0x1B };
    uint64_t base = 0;
    if (vcpu->intc_ops)
        vcpu->intc_ops->read_msr(vcpu->intc, MSR_APIC_BASE, &base);
    return base;
}

static bool pae_paging(const struct vcpu *vcpu)
{
    return (vcpu->cr0 & CR0_PG) && (vcpu->cr4 & CR4_PAE) && !(vcpu->efer & EFER_LMA);
}

static bool push_system(const struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_sregs2 sregs = {
        .ldt = to_kvm(&vcpu->ldtr), .tr = to_kvm(&vcpu->tr), .gdt = { vcpu->gdtr.base, vcpu->gdtr.limit, { 0 } },
        .idt = { vcpu->idtr.base, vcpu->idtr.limit, { 0 } }, .cr0 = vcpu->cr0, .cr2 = vcpu->cr2, .cr3 = vcpu->cr3, .cr4 = vcpu->cr4,
        .cr8 = vcpu->intc_ops ? vcpu->intc_ops->get_tpr(vcpu->intc) : 0, .efer = vcpu->efer, .apic_base = apic_base(vcpu),
    };
    for (enum seg seg = ES; seg < SEG_COUNT; seg++)
        *segment_at(&sregs, seg) = to_kvm(&vcpu->seg[seg]);
    if (pae_paging(vcpu)) {
        sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
        memcpy(sregs.pdptrs, vcpu->pdpte, sizeof(vcpu->pdpte));
    }
    return !ioctl(cpu->fd, KVM_SET_SREGS2, &sregs);
}

/* Where KVM does not have it, run->cr8 has told (run.c). */
static void pull_priority(struct vcpu *vcpu, const struct kvm_cpu *cpu, uint64_t cr8)
{
    if (cpu->vm->apics && cr8 != vcpu->intc_ops->get_tpr(vcpu->intc))
        vcpu->intc_ops->set_tpr(vcpu->intc, cr8);
}

static void pull_system(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_sregs2 sregs;
    if (ioctl(cpu->fd, KVM_GET_SREGS2, &sregs))
        return;
    for (enum seg seg = ES; seg < SEG_COUNT; seg++)
        vcpu->seg[seg] = from_kvm(segment_at(&sregs, seg));
    vcpu->ldtr = from_kvm(&sregs.ldt);
    vcpu->tr = from_kvm(&sregs.tr);
    vcpu->gdtr = (struct table_register){ sregs.gdt.base, sregs.gdt.limit };
    vcpu->idtr = (struct table_register){ sregs.idt.base, sregs.idt.limit };
    vcpu->cr0 = sregs.cr0;
    vcpu->cr2 = sregs.cr2;
    vcpu->cr3 = sregs.cr3;
    vcpu->cr4 = sregs.cr4;
    vcpu->efer = sregs.efer;
    pull_priority(vcpu, cpu, sregs.cr8);
    vcpu->cpl = vcpu->seg[SS].attr & SEG_UNUSABLE && !vcpu_protected(vcpu) ? 0 : sregs.ss.dpl;
    if (sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
        memcpy(vcpu->pdpte, sregs.pdptrs, sizeof(vcpu->pdpte));
}

/* --- x87, vectors, debug registers --- */

static bool push_rest(const struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0] = { .xcr = 0, .value = vcpu->xcr0 } };
    struct kvm_debugregs debug = { .dr6 = vcpu->dr6, .dr7 = vcpu->dr7 };
    memcpy(debug.db, vcpu->dr, sizeof(debug.db));
    kvm_put_xsave(vcpu, cpu);
    return !ioctl(cpu->fd, KVM_SET_XCRS, &xcrs) && !ioctl(cpu->fd, KVM_SET_XSAVE, cpu->xsave) &&
           !ioctl(cpu->fd, KVM_SET_DEBUGREGS, &debug);
}

static void pull_rest(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_xcrs xcrs = { 0 };
    struct kvm_debugregs debug;
    if (!ioctl(cpu->fd, KVM_GET_XCRS, &xcrs) && xcrs.nr_xcrs)
        vcpu->xcr0 = xcrs.xcrs[0].value;
    if (!ioctl(cpu->fd, cpu->vm->get_xsave, cpu->xsave))
        kvm_take_xsave(vcpu, cpu);
    if (ioctl(cpu->fd, KVM_GET_DEBUGREGS, &debug))
        return;
    memcpy(vcpu->dr, debug.db, sizeof(debug.db));
    vcpu->dr6 = debug.dr6;
    vcpu->dr7 = debug.dr7;
}

/* --- events --- */

/* With the APICs in KVM an NMI may come at any time, and waits there. */
static bool push_events(const struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_vcpu_events events = {
        .interrupt.shadow = (vcpu->shadow & SHADOW_STI ? KVM_X86_SHADOW_INT_STI : 0) |
                            (vcpu->shadow & SHADOW_MOV_SS ? KVM_X86_SHADOW_INT_MOV_SS : 0),
        .nmi.masked = (vcpu->shadow & SHADOW_NMI) != 0,
        .flags = (cpu->vm->apics ? 0 : KVM_VCPUEVENT_VALID_NMI_PENDING) | KVM_VCPUEVENT_VALID_SHADOW,
    };
    return !ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &events);
}

static struct event begun(const struct kvm_vcpu_events *events)
{
    if (events->exception.injected)
        return (struct event){
            .kind = events->exception.nr == VEC_BP || events->exception.nr == VEC_OF ? EVENT_TRAP : EVENT_FAULT,
            .vector = events->exception.nr, .has_error = events->exception.has_error_code, .error = events->exception.error_code,
        };
    if (events->nmi.injected)
        return (struct event){ .kind = EVENT_NMI, .vector = VEC_NMI };
    if (events->interrupt.injected)
        return (struct event){ .kind = events->interrupt.soft ? EVENT_SOFT_INT : EVENT_INTERRUPT, .vector = events->interrupt.nr };
    return (struct event){ .kind = EVENT_NONE };
}

static bool pull_events(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_vcpu_events events;
    if (ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &events))
        return false;
    vcpu->shadow = (events.interrupt.shadow & KVM_X86_SHADOW_INT_STI ? SHADOW_STI : 0) |
                   (events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? SHADOW_MOV_SS : 0) |
                   (events.nmi.masked ? SHADOW_NMI : 0);
    if (events.nmi.pending && !cpu->vm->apics)
        atomic_fetch_or(&vcpu->request, REQUEST_NMI);
    vcpu->pending = begun(&events);
    if (vcpu->pending.vector == VEC_PF && vcpu->pending.kind == EVENT_FAULT)
        vcpu->pending.payload = vcpu->cr2;
    return vcpu->pending.kind != EVENT_NONE;
}

/* --- all of it --- */

bool kvm_push(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    if (!push_system(vcpu, cpu) || !push_registers(vcpu, cpu) || !push_rest(vcpu, cpu) || !push_events(vcpu, cpu) || !kvm_push_activity(vcpu, cpu))
        return false;
    kvm_push_msrs(vcpu, cpu);
    kvm_tell_tsc(vcpu, cpu);
    return true;
}

/* Our own TLB knows nothing of what the guest has done to its tables meanwhile. */
bool kvm_pull(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    kvm_pull_activity(vcpu, cpu);
    pull_registers(vcpu, cpu);
    pull_system(vcpu, cpu);
    pull_rest(vcpu, cpu);
    kvm_pull_msrs(vcpu, cpu);
    bool event = pull_events(vcpu, cpu);
    x86_update_mode(vcpu);
    mmu_flush_all(vcpu);
    mmu_mode_changed(vcpu);
    return event;
}

/* --- CPUID: the model's --- */

enum { CPUID_MOST = 128, LEAF1_ECX_TSC_DEADLINE = 1 << 24 };

/* The leaf with those of its subleaves that say something (SDM2 CPUID). */
static void add_leaf(struct vcpu *vcpu, struct kvm_cpuid2 *cpuid, uint32_t leaf)
{
    bool indexed = leaf == 4 || leaf == 7 || leaf == 0xB || leaf == 0xD;
    for (uint32_t subleaf = 0; subleaf < (indexed ? 64 : 1) && cpuid->nent < CPUID_MOST; subleaf++) {
        uint32_t out[4];
        x86_cpuid(vcpu, leaf, subleaf, out);
        if (subleaf && !(out[0] | out[1]) && (leaf != 0xD || subleaf > 1))
            continue;
        cpuid->entries[cpuid->nent++] = (struct kvm_cpuid_entry2){
            .function = leaf, .index = subleaf, .flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
            .eax = out[0], .ebx = out[1], .ecx = out[2], .edx = out[3],
        };
    }
}

static void add_range(struct vcpu *vcpu, struct kvm_cpuid2 *cpuid, uint32_t first)
{
    uint32_t out[4];
    x86_cpuid(vcpu, first, 0, out);
    for (uint32_t leaf = first; leaf <= out[0] && leaf - first < 0x20; leaf++)
        add_leaf(vcpu, cpuid, leaf);
}

/* To the host's processor an address bit that it has not is a reserved one, in the guest's tables, too. */
static void hide_address_bits(struct kvm_cpuid2 *cpuid)
{
    enum { ADDRESSES = 0x80000008u, PHYSICAL_BITS = 0xFF };
    unsigned host, b, c, d;
    if (!__get_cpuid(ADDRESSES, &host, &b, &c, &d))
        return;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        if (entry->function == ADDRESSES && (entry->eax & PHYSICAL_BITS) > (host & PHYSICAL_BITS))
            entry->eax = (entry->eax & ~(uint32_t)PHYSICAL_BITS) | (host & PHYSICAL_BITS);
    }
}

/* A guest is not told of a timer that does not work here. */
static void hide_deadline(struct kvm_cpuid2 *cpuid)
{
    for (unsigned i = 0; i < cpuid->nent; i++)
        if (cpuid->entries[i].function == 1)
            cpuid->entries[i].ecx &= ~(uint32_t)LEAF1_ECX_TSC_DEADLINE;
}

bool kvm_set_cpuid(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_MOST * sizeof(cpuid->entries[0]));
    if (!cpuid)
        return false;
    add_range(vcpu, cpuid, 0);
    if (x86_has(vcpu, FEATURE_HYPERVISOR))
        add_range(vcpu, cpuid, 0x40000000);
    add_range(vcpu, cpuid, 0x80000000);
    if (cpu->vm->deadline == KVM_DEADLINE_LOST)
        hide_deadline(cpuid);
    hide_address_bits(cpuid);
    bool done = !ioctl(cpu->fd, KVM_SET_CPUID2, cpuid);
    free(cpuid);
    return done;
}
