/* Instructions of the native groups that are state transfers or hints: done in C, no stub. */
#include "engine/interp/native_impl.h"

#include "vmx/vmx.h"
#include "x86/xstate.h"

/* --- MXCSR --- */

static bool run_ldmxcsr(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    uint32_t value;
    if (!native_address(vcpu, stub, &gla) || !mmu_copy_in(vcpu, gla, &value, 4))
        return false;
    if (value & ~MXCSR_MASK)
        return x86_raise(vcpu, VEC_GP);
    fpu_set_mxcsr(&vcpu->fpu, value);
    return true;
}

static bool run_stmxcsr(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    uint32_t value = fpu_mxcsr(&vcpu->fpu);
    return native_address(vcpu, stub, &gla) && mmu_copy_out(vcpu, gla, &value, 4);
}

/* --- FXSAVE and XSAVE --- */

static bool run_fxsave(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    native_sync(vcpu);
    if (vcpu->cr0 & (CR0_EM | CR0_TS))
        return x86_raise(vcpu, VEC_NM);
    return native_address(vcpu, stub, &gla) && x86_fxsave(vcpu, gla, stub->detail.rex_w);
}

static bool run_fxrstor(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    native_sync(vcpu);
    if (vcpu->cr0 & (CR0_EM | CR0_TS))
        return x86_raise(vcpu, VEC_NM);
    return native_address(vcpu, stub, &gla) && x86_fxrstor(vcpu, gla, stub->detail.rex_w);
}

/* SDM2 XSAVE: #UD without CR4.OSXSAVE, #GP(0) for the supervisor forms above ring 0, #NM with CR0.TS; then the address. */
static bool xsave_checks(struct vcpu *vcpu, const struct stub *stub, bool supervisor, uint64_t *gla)
{
    native_sync(vcpu);
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return x86_raise(vcpu, VEC_UD);
    if (supervisor && vcpu->cpl != 0)
        return x86_raise(vcpu, VEC_GP);
    if (vcpu->cr0 & CR0_TS)
        return x86_raise(vcpu, VEC_NM);
    return native_address(vcpu, stub, gla);
}

static uint64_t edx_eax(const struct vcpu *vcpu)
{
    return (uint32_t)vcpu->gpr[RAX] | vcpu->gpr[RDX] << 32;
}

static enum xsave_kind kind_of(uint16_t mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
        return XSAVEOPT;
    case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64:
        return XSAVEC;
    case ZYDIS_MNEMONIC_XSAVES: case ZYDIS_MNEMONIC_XSAVES64:
        return XSAVES;
    default:
        return XSAVE;
    }
}

/* In a VT-x guest (SDM3 §26.3). No component of XSS is offered, so what exits by the XSS-exiting bitmap cannot happen. */
static bool supervisor_form_enabled(struct vcpu *vcpu)
{
    return !vmx_guest(vcpu) || vmx_proc2(vcpu, PROC2_ENABLE_XSAVES) || x86_raise(vcpu, VEC_UD);
}

static bool run_xsave(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    enum xsave_kind kind = kind_of(stub->detail.mnemonic);
    if (kind == XSAVES && !supervisor_form_enabled(vcpu))
        return false;
    return xsave_checks(vcpu, stub, kind == XSAVES, &gla) && x86_xsave(vcpu, kind, gla, edx_eax(vcpu), stub->detail.rex_w);
}

static bool run_xrstor(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    bool supervisor = stub->detail.mnemonic == ZYDIS_MNEMONIC_XRSTORS || stub->detail.mnemonic == ZYDIS_MNEMONIC_XRSTORS64;
    if (supervisor && !supervisor_form_enabled(vcpu))
        return false;
    return xsave_checks(vcpu, stub, supervisor, &gla) && x86_xrstor(vcpu, supervisor, gla, edx_eax(vcpu), stub->detail.rex_w);
}

static bool run_xgetbv(struct vcpu *vcpu, const struct stub *stub)
{
    uint32_t index = (uint32_t)vcpu->gpr[RCX];
    uint64_t value = vcpu->xcr0;
    native_sync(vcpu);
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return x86_raise(vcpu, VEC_UD);
    if (index == 1 && x86_has(vcpu, FEATURE_XGETBV1))
        value &= x86_xinuse(vcpu);
    else if (index != 0)
        return x86_raise(vcpu, VEC_GP);
    vcpu->gpr[RAX] = (uint32_t)value;
    vcpu->gpr[RDX] = value >> 32;
    return true;
}

/* --- VZEROUPPER, VZEROALL: only registers 0 to 15 (0 to 7 outside 64-bit mode), all the way to the top --- */

static bool run_vzeroupper(struct vcpu *vcpu, const struct stub *stub)
{
    unsigned count = fpu_register_count(vcpu);
    for (unsigned i = 0; i < count; i++)        /* three moves: the compiler knows the size */
        memset(vcpu->fpu.zmm[i] + 16, 0, 48);
    return true;
}

static bool run_vzeroall(struct vcpu *vcpu, const struct stub *stub)
{
    memset(vcpu->fpu.zmm, 0, fpu_register_count(vcpu) * sizeof(vcpu->fpu.zmm[0]));
    return true;
}

/* --- memory order and cache hints --- */

static bool run_fence(struct vcpu *vcpu, const struct stub *stub)
{
    atomic_thread_fence(memory_order_seq_cst);
    return true;
}

static bool run_hint(struct vcpu *vcpu, const struct stub *stub)
{
    return true;
}

/* CLFLUSH and its kin check like a load of one byte (SDM2 CLFLUSH); the host's caches are coherent for the guest. */
static bool run_clflush(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t gla;
    return native_linear(vcpu, stub, native_effective(vcpu, stub), 1, false, &gla) &&
           mmu_probe(vcpu, gla, 1, false, vcpu->mmu->data_class);
}

/* --- protection keys --- */

static bool run_rdpkru(struct vcpu *vcpu, const struct stub *stub)
{
    if (!(vcpu->cr4 & CR4_PKE))
        return x86_raise(vcpu, VEC_UD);
    if ((uint32_t)vcpu->gpr[RCX] != 0)
        return x86_raise(vcpu, VEC_GP);
    vcpu->gpr[RAX] = vcpu->fpu.pkru;
    vcpu->gpr[RDX] = 0;
    return true;
}

static bool run_wrpkru(struct vcpu *vcpu, const struct stub *stub)
{
    if (!(vcpu->cr4 & CR4_PKE))
        return x86_raise(vcpu, VEC_UD);
    if ((uint32_t)vcpu->gpr[RCX] != 0 || (uint32_t)vcpu->gpr[RDX] != 0)
        return x86_raise(vcpu, VEC_GP);
    vcpu->fpu.pkru = (uint32_t)vcpu->gpr[RAX];
    mmu_mode_changed(vcpu);
    return true;
}

/* --- MOVDIR64B: 64 bytes from the memory operand to [ES:register], which must be 64-byte aligned --- */

static bool run_movdir64b(struct vcpu *vcpu, const struct stub *stub)
{
    _Alignas(64) uint8_t line[64];
    uint64_t source, target, offset = vcpu->gpr[stub->detail.reg & 15] & stub->address.mask;
    if (!native_address(vcpu, stub, &source) || !x86_linear(vcpu, ES, offset, 64, true, &target))
        return false;
    if (target & 63)
        return x86_raise(vcpu, VEC_GP);
    return mmu_copy_in(vcpu, source, line, 64) && mmu_copy_out(vcpu, target, line, 64);
}

native_handler *native_special(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR:
        return run_ldmxcsr;
    case ZYDIS_MNEMONIC_STMXCSR: case ZYDIS_MNEMONIC_VSTMXCSR:
        return run_stmxcsr;
    case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
        return run_fxsave;
    case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
        return run_fxrstor;
    case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64: case ZYDIS_MNEMONIC_XSAVES: case ZYDIS_MNEMONIC_XSAVES64:
        return run_xsave;
    case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: case ZYDIS_MNEMONIC_XRSTORS: case ZYDIS_MNEMONIC_XRSTORS64:
        return run_xrstor;
    case ZYDIS_MNEMONIC_XGETBV:
        return run_xgetbv;
    case ZYDIS_MNEMONIC_VZEROALL:
        return run_vzeroall;
    case ZYDIS_MNEMONIC_VZEROUPPER:
        return run_vzeroupper;
    case ZYDIS_MNEMONIC_LFENCE: case ZYDIS_MNEMONIC_SFENCE: case ZYDIS_MNEMONIC_MFENCE:
        return run_fence;
    case ZYDIS_MNEMONIC_PREFETCH: case ZYDIS_MNEMONIC_PREFETCHNTA: case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1: case ZYDIS_MNEMONIC_PREFETCHT2: case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1: case ZYDIS_MNEMONIC_CLDEMOTE:
        return run_hint;
    case ZYDIS_MNEMONIC_CLFLUSH: case ZYDIS_MNEMONIC_CLFLUSHOPT: case ZYDIS_MNEMONIC_CLWB:
        return run_clflush;
    case ZYDIS_MNEMONIC_RDPKRU:
        return run_rdpkru;
    case ZYDIS_MNEMONIC_WRPKRU:
        return run_wrpkru;
    case ZYDIS_MNEMONIC_MOVDIR64B:
        return run_movdir64b;
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR:
        return native_run_environment;
    default:
        return NULL;
    }
}
