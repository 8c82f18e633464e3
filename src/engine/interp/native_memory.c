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

/* SDM3 §6.15: a misaligned operand is #GP(0) before its page is looked at. */
static bool check_alignment(struct vcpu *vcpu, const struct stub *stub, uint64_t gla)
{
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

/* Through a buffer. On success *run_at is where the stub saw its operand. */
static bool run_bounced(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, void **run_at)
{
    _Alignas(64) uint8_t buffer[192] = { 0 };
    uint8_t *at = buffer + (gla & 63);
    enum mmu_class class = vcpu->mmu->data_class;
    if (stub->writes && !mmu_probe(vcpu, gla, stub->size, true, class))
        return false;
    if (stub->reads && !mmu_load_slow(vcpu, gla, at, stub->size, class))
        return false;
    if (!native_call(vcpu, stub, at))
        return native_reflect(vcpu, stub);
    *run_at = at;
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
    void *run_at;
    if (!native_address(vcpu, stub, &gla))
        return false;
    void *host = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
    if (host)
        return native_call(vcpu, stub, host) || native_reflect(vcpu, stub);
    return run_bounced(vcpu, stub, gla, &run_at);
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

bool native_run_x87(struct vcpu *vcpu, const struct stub *stub)
{
    uint64_t offset = 0, gla = 0;
    void *at = NULL;
    if (!x87_checks(vcpu, stub))
        return false;
    if (stub->size) {
        offset = native_effective(vcpu, stub);
        if (!native_address(vcpu, stub, &gla))
            return false;
        at = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
    }
    bool bounced = stub->size && !at;
    uint16_t fop = native_x87_before(vcpu, stub);
    bool ok = bounced ? run_bounced(vcpu, stub, gla, &at) : native_call(vcpu, stub, at) || native_reflect(vcpu, stub);
    native_x87_after(vcpu, stub, at, offset, fop);
    return ok;
}
