/*
 * Memory operands of stubs. The operand's bytes are in the host page itself where the software TLB allows it (a read or a
 * write entry, one page); else they pass through a buffer that lies as the guest's address does modulo 64, so
 * that alignment faults fall as they would. A store is checked for permission before the instruction runs.
 */
#include "engine/interp/native_impl.h"

#include "x86/xstate.h"

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

bool native_address(struct vcpu *vcpu, const struct stub *stub, uint64_t *gla)
{
    return native_linear(vcpu, stub, native_effective(vcpu, stub), stub->size, stub->writes, gla) &&
           check_alignment(vcpu, stub, *gla);
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

bool native_run_memory(struct vcpu *vcpu, const struct stub *stub)
{
    const struct stub_address *a = &stub->address;
    uint64_t gla = native_effective(vcpu, stub);
    if (likely(a->mode64)) {    /* a TLB hit implies a canonical address */
        if (a->seg >= FS)
            gla += vcpu->seg[a->seg].base;
        void *host = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
        if (likely(host))
            return native_call(vcpu, stub, host) || native_reflect(vcpu, stub);
    }
    if (!native_address(vcpu, stub, &gla))
        return false;
    void *host = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
    if (host)
        return native_call(vcpu, stub, host) || native_reflect(vcpu, stub);
    return run_bounced(vcpu, stub, gla);
}

/* SDM3 §8.7, §22.18: FWAIT is #NM only with both CR0.MP and CR0.TS; then a pending unmasked exception is #MF. */
static bool x87_checks(struct vcpu *vcpu, const struct stub *stub)
{
    if (stub->detail.mnemonic == ZYDIS_MNEMONIC_FWAIT && (vcpu->cr0 & CR0_MP) && (vcpu->cr0 & CR0_TS))
        return x86_raise(vcpu, VEC_NM);
    if (stub->waiting && fpu_exception_pending(&vcpu->fpu))
        return x86_raise(vcpu, VEC_MF);
    return true;
}

/*
 * An x87 store through a buffer. An unmasked exception is noted and then nothing is stored, so whether memory is touched is
 * known only afterwards: the buffer tells by still holding its filling. If then the store faults, nothing has happened.
 */
static bool store_x87(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, void *at)
{
    enum { FILLING = 0xA5 };
    uint8_t image[IMAGE_BYTES], filling[16];
    assert(stub->size <= sizeof(filling));
    memset(filling, FILLING, sizeof(filling));
    memset(at, FILLING, stub->size);
    memcpy(image, vcpu->fpu.fxsave, sizeof(image));
    if (!native_call(vcpu, stub, at))
        return native_reflect(vcpu, stub);
    if (fpu_exception_pending(&vcpu->fpu) && memcmp(at, filling, stub->size) == 0)
        return true;
    bool misaligned = vcpu->mmu->alignment_check && stub->size == 10 && (gla & 7);
    if (!misaligned && mmu_store_slow(vcpu, gla, at, stub->size, vcpu->mmu->data_class))
        return true;
    if (misaligned)
        x86_raise(vcpu, VEC_AC);
    /* An MMX store that faults has already set the top of the stack to 0, but not yet the tags. */
    if (stub->mmx)
        vcpu->fpu.fxsave[IMAGE_FTW] = image[IMAGE_FTW];
    else
        memcpy(vcpu->fpu.fxsave, image, sizeof(image));
    return false;
}

bool native_run_x87(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t offset = 0, gla = 0;
    _Alignas(64) uint8_t buffer[192];
    void *at = NULL;
    if (!x87_checks(vcpu, stub))
        return false;
    if (stub->size) {
        offset = native_effective(vcpu, stub);
        if (!native_address(vcpu, stub, &gla))
            return false;
        at = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
    }
    bool bounced = stub->size && !at, ok;
    if (bounced)
        at = buffer + (gla & 63);
    if (bounced && !stub->writes && !mmu_load_slow(vcpu, gla, at, stub->size, vcpu->mmu->data_class))
        return false;
    uint16_t fop = native_x87_before(vcpu, stub);
    if (bounced && stub->writes)
        ok = store_x87(vcpu, stub, gla, at);
    else
        ok = native_call(vcpu, stub, at) || native_reflect(vcpu, stub);
    native_x87_after(vcpu, stub, at, offset, fop);
    return ok;
}
