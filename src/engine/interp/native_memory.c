/*
 * Memory operands of stubs. The operand's bytes are in the host page itself where the software TLB allows it (a read or a
 * write entry, one page); else they pass through a buffer that lies as the guest's address does modulo 64, so
 * that alignment faults fall as they would. A store is checked for permission before the instruction runs.
 */
#include "engine/interp/native_impl.h"

uint64_t native_effective(const struct vcpu *vcpu, const struct stub *stub)
{
    const struct stub_address *a = &stub->address;
    uint64_t offset = (uint64_t)a->disp;
    if (a->base != NO_REGISTER)
        offset += vcpu->gpr[a->base];
    else if (a->rip_relative)
        offset += vcpu->rip + stub->length;
    if (a->index != NO_REGISTER)
        offset += vcpu->gpr[a->index] * a->scale;
    return offset & a->mask;
}

bool native_linear(struct vcpu *vcpu, const struct stub *stub, uint64_t offset, unsigned size, bool write, uint64_t *gla)
{
    return x86_linear(vcpu, stub->address.seg, offset, size, write, gla);
}

/*
 * What #AC asks of operands that are not of 1, 2, 4 or 8 bytes (those the MMU checks); 1: nothing. NOTE(spec): SDM3 table 6-7 names
 * the x87 and FXSAVE images; vectors of 16 bytes and more it leaves to the processor, and Intel's do not check them.
 */
static unsigned checked_alignment(const struct stub *stub)
{
    switch (stub->detail.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR:
        return stub->detail.operand_width == 16 ? 2 : 4;
    case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64: case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
        return 4;
    default:
        return stub->size == 10 && !stub->writes ? 8 : 1;
    }
}

/* SDM3 §6.15: a misaligned operand is #GP(0) before its page is looked at; #AC comes before that where it is asked for. */
static bool check_alignment(struct vcpu *vcpu, const struct stub *stub, uint64_t gla)
{
    if (unlikely(vcpu->mmu->alignment_check) && (gla & (checked_alignment(stub) - 1)))
        return x86_raise(vcpu, VEC_AC);
    return !stub->aligned || !(gla & (stub->size - 1u)) || x86_raise(vcpu, VEC_GP);
}

/* In 64-bit mode a misaligned operand is #GP(0) even where its address is not canonical and the stack's: that would be #SS. */
bool native_address(struct vcpu *vcpu, const struct stub *stub, uint64_t *gla)
{
    const struct stub_address *a = &stub->address;
    uint64_t offset = native_effective(vcpu, stub);
    if (a->mode64 && stub->aligned && ((offset + (a->seg >= FS ? vcpu->seg[a->seg].base : 0)) & (stub->size - 1u)))
        return x86_raise(vcpu, VEC_GP);
    return native_linear(vcpu, stub, offset, stub->size, stub->writes, gla) && check_alignment(vcpu, stub, *gla);
}

bool native_run_undefined(struct vcpu *vcpu, const struct stub *stub)
{
    return x86_raise(vcpu, VEC_UD);
}

bool native_run_register(struct vcpu *vcpu, const struct stub *stub)
{
    return native_call(vcpu, stub, NULL) || native_reflect(vcpu, stub);
}

/* Through a buffer. A pure store changes nothing but memory and MXCSR, so its fault may come last, as the processor has it. */
static bool run_bounced(struct vcpu *vcpu, const struct stub *stub, uint64_t gla)
{
    _Alignas(64) uint8_t buffer[192] = { 0 };
    uint8_t *at = buffer + (gla & 63);
    enum mmu_class class = vcpu->mmu->data_class;
    if (stub->writes && stub->reads && !mmu_probe(vcpu, gla, stub->size, true, class))
        return false;
    if (stub->reads && !mmu_load_slow(vcpu, gla, at, stub->size, class))
        return false;
    if (!native_call(vcpu, stub, at))
        return native_reflect(vcpu, stub);
    return !stub->writes || mmu_store_slow(vcpu, gla, at, stub->size, class);
}

/*
 * The address of the operand is refused; the fault is pending. A store that computes first (VCVTPS2PH) has by then set its
 * flags in MXCSR, or met an exception of its own, which comes before the operand's.
 */
static bool address_refused(struct vcpu *vcpu, const struct stub *stub)
{
    _Alignas(64) uint8_t unseen[64];
    struct event refused = vcpu->pending;
    if (!stub->mxcsr || !stub->writes || stub->reads || stub->size > sizeof(unseen))
        return false;
    vcpu->pending.kind = EVENT_NONE;
    if (!native_call(vcpu, stub, unseen))
        return native_reflect(vcpu, stub);
    vcpu->pending = refused;
    return false;
}

bool native_run_memory(struct vcpu *vcpu, const struct stub *stub)
{
    enum mmu_use use = stub->writes ? MMU_WRITE : MMU_READ;
    uint64_t gla;
    void *host = NULL;
    if (likely(native_flat(vcpu, stub, native_effective(vcpu, stub), &gla)))
        host = mmu_direct(vcpu, gla, stub->size, use);
    if (unlikely(!host)) {
        if (!native_address(vcpu, stub, &gla))
            return address_refused(vcpu, stub);
        host = mmu_direct(vcpu, gla, stub->size, use);
        if (!host)
            return run_bounced(vcpu, stub, gla);
    }
    return native_call(vcpu, stub, host) || native_reflect(vcpu, stub);
}
