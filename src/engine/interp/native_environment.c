/*
 * FNSTENV, FLDENV, FNSAVE, FRSTOR. The environment has four memory formats (SDM1 figures 8-9 to 8-12); stubs always use
 * the 32-bit protected one, on a buffer, and the rest is done here.
 */
#include "engine/interp/native_impl.h"

#include "x86/xstate.h"

enum { ENV_BYTES = 28, STACK_BYTES = 80 };

/* What an environment holds, whatever its format. */
struct environment {
    uint16_t fcw, fsw, ftw, fop, fcs, fds;
    uint64_t fip, fdp;
};

static bool is_real_format(const struct vcpu *vcpu)
{
    return vcpu->mode <= MODE_V86;
}

/* Protected-mode formats have selectors and, in 32 bits, the opcode; real-mode ones linear addresses with the opcode. */
static unsigned pack(const struct environment *e, bool real, bool wide, uint8_t *out)
{
    unsigned w = wide ? 4 : 2;
    memset(out, wide ? 0xFF : 0, ENV_BYTES);     /* the upper halves of 32-bit words read as ones */
    image_put(out, e->fcw, 2);
    image_put(out + w, e->fsw, 2);
    image_put(out + 2 * w, e->ftw, 2);
    uint16_t fop = e->fop & 0x7FF;
    if (wide && !real) {
        image_put(out + 12, e->fip, 4);
        image_put(out + 16, e->fcs | (uint32_t)fop << 16, 4);
        image_put(out + 20, e->fdp, 4);
        image_put(out + 24, e->fds, 2);
    } else if (wide) {
        image_put(out + 12, e->fip, 2);
        image_put(out + 16, fop | bits(e->fip, 31, 16) << 12, 4);
        image_put(out + 20, e->fdp, 2);
        image_put(out + 24, bits(e->fdp, 31, 16) << 12, 4);
    } else if (real) {
        image_put(out + 6, e->fip, 2);
        image_put(out + 8, fop | bits(e->fip, 19, 16) << 12, 2);
        image_put(out + 10, e->fdp, 2);
        image_put(out + 12, bits(e->fdp, 19, 16) << 12, 2);
    } else {
        image_put(out + 6, e->fip, 2);
        image_put(out + 8, e->fcs, 2);
        image_put(out + 10, e->fdp, 2);
        image_put(out + 12, e->fds, 2);
    }
    return wide ? 28 : 14;
}

static struct environment unpack(const uint8_t *in, bool real, bool wide)
{
    unsigned w = wide ? 4 : 2;
    struct environment e = {
        .fcw = (uint16_t)image_get(in, 2), .fsw = (uint16_t)image_get(in + w, 2), .ftw = (uint16_t)image_get(in + 2 * w, 2),
    };
    if (wide && !real) {
        e.fip = image_get(in + 12, 4);
        e.fcs = (uint16_t)image_get(in + 16, 2);
        e.fop = image_get(in + 18, 2) & 0x7FF;
        e.fdp = image_get(in + 20, 4);
        e.fds = (uint16_t)image_get(in + 24, 2);
    } else if (wide) {
        e.fop = image_get(in + 16, 2) & 0x7FF;
        e.fip = image_get(in + 12, 2) | bits(image_get(in + 16, 4), 27, 12) << 16;
        e.fdp = image_get(in + 20, 2) | bits(image_get(in + 24, 4), 27, 12) << 16;
    } else if (real) {
        e.fop = image_get(in + 8, 2) & 0x7FF;
        e.fip = image_get(in + 6, 2) | bits(image_get(in + 8, 2), 15, 12) << 16;
        e.fdp = image_get(in + 10, 2) | bits(image_get(in + 12, 2), 15, 12) << 16;
    } else {
        e.fip = image_get(in + 6, 2);
        e.fcs = (uint16_t)image_get(in + 8, 2);
        e.fdp = image_get(in + 10, 2);
        e.fds = (uint16_t)image_get(in + 12, 2);
    }
    return e;
}

/* FNSTENV and FNSAVE: the stub fills a 32-bit image; its pointers are taken from the guest's state before. */
static bool run_store(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, bool whole)
{
    _Alignas(16) uint8_t host[ENV_BYTES + STACK_BYTES], out[ENV_BYTES + STACK_BYTES];
    const uint8_t *image = vcpu->fpu.fxsave;
    struct environment e = {
        .fip = image_get(image + IMAGE_FIP, 8), .fdp = image_get(image + IMAGE_FDP, 8), .fop = (uint16_t)image_get(image + IMAGE_FOP, 2),
    };
    if (!native_call(vcpu, stub, host))
        return native_reflect(vcpu, stub);
    e.fcw = (uint16_t)image_get(host, 2);
    e.fsw = (uint16_t)image_get(host + 4, 2);
    e.ftw = (uint16_t)image_get(host + 8, 2);
    unsigned size = pack(&e, is_real_format(vcpu), stub->detail.operand_width != 16, out);
    if (whole) {
        memcpy(out + size, host + ENV_BYTES, STACK_BYTES);
        size += STACK_BYTES;
    }
    return mmu_copy_out(vcpu, gla, out, size);
}

static bool run_load(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, bool whole)
{
    _Alignas(16) uint8_t host[ENV_BYTES + STACK_BYTES], in[ENV_BYTES + STACK_BYTES];
    bool wide = stub->detail.operand_width != 16;
    unsigned size = wide ? 28 : 14;
    if (!mmu_copy_in(vcpu, gla, in, size + (whole ? STACK_BYTES : 0)))
        return false;
    struct environment e = unpack(in, is_real_format(vcpu), wide);
    pack(&e, false, true, host);
    if (whole)
        memcpy(host + ENV_BYTES, in + size, STACK_BYTES);
    return native_call(vcpu, stub, host) || native_reflect(vcpu, stub);
}

/* The processor looks whether both ends are accessible before it begins: a fault on a second page names the last byte. */
static bool probe_ends(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, bool write)
{
    return mmu_probe(vcpu, gla, 1, write, vcpu->mmu->data_class) &&
           mmu_probe(vcpu, native_add(stub, gla, stub->size - 1u), 1, write, vcpu->mmu->data_class);
}

bool native_run_environment(struct vcpu *vcpu, const struct stub *stub)
{
    bool loads = stub->detail.mnemonic == ZYDIS_MNEMONIC_FLDENV || stub->detail.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    bool whole = stub->detail.mnemonic == ZYDIS_MNEMONIC_FNSAVE || stub->detail.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    uint64_t gla;
    native_sync(vcpu);
    if (loads && fpu_exception_pending(&vcpu->fpu))
        return x86_raise(vcpu, VEC_MF);
    if (!native_address(vcpu, stub, &gla) || !probe_ends(vcpu, stub, gla, !loads))
        return false;
    return loads ? run_load(vcpu, stub, gla, whole) : run_store(vcpu, stub, gla, whole);
}
