/*
 * Fast system calls, and the instructions that only the system may use (SDM3 §5.8.7 "Performing Fast Calls to System
 * Procedures with the SYSENTER and SYSEXIT Instructions", §5.8.8; SDM2 for each instruction; SDM1 §19.5 for I/O).
 */
#include "mmu/mmu.h"
#include "x86/descriptor.h"

#include "base/clock.h"
#include "base/log.h"

/* --- fast system calls: flat segments, from constants instead of descriptors --- */

enum {
    FLAT_CODE = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED | SEG_G,
    FLAT_CODE32 = FLAT_CODE | SEG_DB,
    FLAT_CODE64 = FLAT_CODE | SEG_L,
    FLAT_DATA = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED | SEG_G | SEG_DB,
};

static void load_flat(struct vcpu *vcpu, uint16_t cs, uint16_t ss, uint32_t code_attr, unsigned cpl)
{
    vcpu->seg[CS] = (struct segment){ .limit = 0xFFFFFFFF, .attr = code_attr | cpl << 5, .selector = cs };
    vcpu->seg[SS] = (struct segment){ .limit = 0xFFFFFFFF, .attr = FLAT_DATA | cpl << 5, .selector = ss };
    commit_privilege(vcpu, cpl);
}

bool x86_syscall(struct vcpu *vcpu, uint64_t next_rip)
{
    if (vcpu->mode != MODE_LONG64 || !(vcpu->efer & EFER_SCE))
        return x86_raise(vcpu, VEC_UD);
    uint16_t selector = bits(vcpu->star, 47, 32);
    vcpu->gpr[RCX] = next_rip;
    vcpu->gpr[R11] = vcpu->rflags;
    vcpu->rip = vcpu->lstar;
    vcpu->rflags = (vcpu->rflags & ~(vcpu->sfmask | RFLAGS_RF)) | RFLAGS_FIXED;
    load_flat(vcpu, selector & ~SELECTOR_RPL, selector + 8, FLAT_CODE64, 0);
    return true;
}

bool x86_sysret(struct vcpu *vcpu, unsigned operand_size)
{
    enum { FROM_R11 = 0x3C7FD7 };       /* all but RF, VM and the reserved ones */
    uint16_t selector = bits(vcpu->star, 63, 48);

    if (vcpu->mode != MODE_LONG64 || !(vcpu->efer & EFER_SCE))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    if (operand_size == 8 && !x86_canonical(vcpu, vcpu->gpr[RCX]))
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->rip = operand_size == 8 ? vcpu->gpr[RCX] : (uint32_t)vcpu->gpr[RCX];
    vcpu->rflags = (vcpu->gpr[R11] & FROM_R11) | RFLAGS_FIXED;
    load_flat(vcpu, (selector + (operand_size == 8 ? 16 : 0)) | 3, (selector + 8) | 3,
              operand_size == 8 ? FLAT_CODE64 : FLAT_CODE32, 3);
    return true;
}

bool x86_sysenter(struct vcpu *vcpu)
{
    uint16_t selector = vcpu->sysenter_cs & 0xFFFC;
    bool long_mode = vcpu_long_mode(vcpu);

    if (!vcpu_protected(vcpu) || !selector)
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->rflags &= ~(uint64_t)(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    vcpu->gpr[RSP] = long_mode ? vcpu->sysenter_esp : (uint32_t)vcpu->sysenter_esp;
    vcpu->rip = long_mode ? vcpu->sysenter_eip : (uint32_t)vcpu->sysenter_eip;
    load_flat(vcpu, selector, selector + 8, long_mode ? FLAT_CODE64 : FLAT_CODE32, 0);
    return true;
}

bool x86_sysexit(struct vcpu *vcpu, unsigned operand_size)
{
    uint16_t selector = vcpu->sysenter_cs & 0xFFFC;
    bool to64 = operand_size == 8;

    if (!vcpu_protected(vcpu) || !selector || vcpu->cpl != 0)
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (to64 && (!x86_canonical(vcpu, vcpu->gpr[RCX]) || !x86_canonical(vcpu, vcpu->gpr[RDX])))
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->gpr[RSP] = to64 ? vcpu->gpr[RCX] : (uint32_t)vcpu->gpr[RCX];
    vcpu->rip = to64 ? vcpu->gpr[RDX] : (uint32_t)vcpu->gpr[RDX];
    load_flat(vcpu, (selector + (to64 ? 32 : 16)) | 3, (selector + (to64 ? 40 : 24)) | 3, to64 ? FLAT_CODE64 : FLAT_CODE32, 3);
    return true;
}

bool x86_swapgs(struct vcpu *vcpu)
{
    if (vcpu->mode != MODE_LONG64)
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    uint64_t base = vcpu->seg[GS].base;
    vcpu->seg[GS].base = vcpu->kernel_gs_base;
    vcpu->kernel_gs_base = base;
    return true;
}

/* --- I/O permission: SDM1 §19.5.2 "I/O Permission Bit Map" --- */

bool x86_io_allowed(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    uint64_t map, word;

    if (!vcpu_protected(vcpu) || (!vcpu_v86(vcpu) && vcpu->cpl <= vcpu_iopl(vcpu)))
        return true;
    if (!(vcpu->tr.attr & SEG_P) || !(vcpu->tr.attr & 8) || vcpu->tr.limit < 103)
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!mmu_load(vcpu, vcpu->tr.base + 102, 2, mmu_implicit(vcpu), &map))
        return false;
    uint64_t offset = map + port / 8;
    if (offset + 1 > vcpu->tr.limit)            /* the processor reads two bytes always */
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!mmu_load(vcpu, vcpu->tr.base + offset, 2, mmu_implicit(vcpu), &word))
        return false;
    if (word >> (port & 7) & (BIT(size) - 1))
        return x86_raise_error(vcpu, VEC_GP, 0);
    return true;
}

/* --- TLB --- */

bool x86_invlpg(struct vcpu *vcpu, uint64_t gla)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    mmu_flush_page(vcpu, gla);
    return true;
}

/* SDM2 INVPCID; the descriptor is PCID in bits 11:0 of the first half, the linear address in the second. */
bool x86_invpcid(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2])
{
    enum { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL_GLOBAL, INVPCID_ALL };
    uint64_t pcid = descriptor[0], gla = descriptor[1];

    if (!x86_has(vcpu, FEATURE_INVPCID))
        return x86_raise(vcpu, VEC_UD);
    if (vcpu->mode == MODE_V86)
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!x86_require_cpl0(vcpu))
        return false;
    bool names_pcid = type == INVPCID_ADDRESS || type == INVPCID_CONTEXT;
    if (type > INVPCID_ALL || pcid >> 12 || (names_pcid && pcid && !(vcpu->cr4 & CR4_PCIDE)) ||
        (type == INVPCID_ADDRESS && !x86_canonical(vcpu, gla)))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (type == INVPCID_ADDRESS)
        mmu_flush_pcid_page(vcpu, pcid, gla);
    else if (type == INVPCID_CONTEXT)
        mmu_flush_pcid(vcpu, pcid);
    else
        mmu_flush_linear(vcpu);
    return true;
}

bool x86_wbinvd(struct vcpu *vcpu)
{
    return x86_require_cpl0(vcpu);      /* caches are the host's affair */
}

/* --- waiting --- */

bool x86_hlt(struct vcpu *vcpu)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    vcpu->activity = ACTIVITY_HLT;
    return true;
}

/* MONITOR reads one byte (SDM2 MONITOR); hints mean nothing here. */
bool x86_monitor(struct vcpu *vcpu, uint64_t gla, uint32_t extensions, uint32_t hints)
{
    uint64_t value;

    if (!x86_has(vcpu, FEATURE_MONITOR) || vcpu->cpl != 0)
        return x86_raise(vcpu, VEC_UD);
    if (extensions)
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!mmu_load(vcpu, gla, 1, vcpu->mmu->data_class, &value))
        return false;
    if (!mmu_translate(vcpu, gla, &vcpu->monitor_gpa))
        vcpu->monitor_gpa = ~0ull;
    return true;
}

/*
 * Stores of other processors are not watched, so a sleep here could miss its wake-up: MWAIT ends at once, as it may for
 * any "implementation-dependent" reason (SDM2 MWAIT), and the guest looks again.
 */
bool x86_mwait(struct vcpu *vcpu, uint32_t hints, uint32_t extensions)
{
    if (!x86_has(vcpu, FEATURE_MONITOR) || vcpu->cpl != 0)
        return x86_raise(vcpu, VEC_UD);
    if (extensions & ~1u)
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->monitor_gpa = ~0ull;
    return true;
}

/* --- time --- */

uint64_t x86_tsc(struct vcpu *vcpu)
{
    return clock_tsc(vcpu->clock) + vcpu->tsc_offset;
}

bool x86_rdtsc(struct vcpu *vcpu, uint64_t *value)
{
    if ((vcpu->cr4 & CR4_TSD) && vcpu->cpl != 0)
        return x86_raise_error(vcpu, VEC_GP, 0);
    *value = x86_tsc(vcpu);
    return true;
}

/* No performance counters are offered (CPUID 0xA is empty), so every index is out of range. */
bool x86_rdpmc(struct vcpu *vcpu, uint32_t index, uint64_t *value)
{
    return x86_raise_error(vcpu, VEC_GP, 0);
}

/* --- hypercalls: Linux Documentation/virt/kvm/x86/hypercalls.rst --- */

bool x86_vmcall(struct vcpu *vcpu)
{
    enum { KVM_ENOSYS = 1000, KVM_EPERM = 1 };

    if (!x86_has(vcpu, FEATURE_HYPERVISOR))
        return x86_raise(vcpu, VEC_UD);
    uint64_t result = vcpu->cpl == 0 ? -(uint64_t)KVM_ENOSYS : -(uint64_t)KVM_EPERM;
    vcpu->gpr[RAX] = vcpu->mode == MODE_LONG64 ? result : (uint32_t)result;
    return true;
}
