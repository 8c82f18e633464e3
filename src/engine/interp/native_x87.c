/*
 * x87 pointers and environments. The processor records the address, opcode and operand address of the last non-control
 * instruction (SDM1 §8.1.8); run from a stub those are the stub's, and must not reach the guest. The environment
 * instructions have four memory formats (SDM1 figures 8-9 to 8-12); stubs always use the 32-bit protected one, on
 * a buffer, and the rest is done here.
 */
#include "engine/interp/native_impl.h"

#include "x86/xstate.h"

static uint64_t get(const uint8_t *p, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

static void put(uint8_t *p, uint64_t v, unsigned size)
{
    memcpy(p, &v, size);
}

uint16_t native_x87_before(struct vcpu *vcpu, const struct stub *stub)
{
    uint8_t *image = vcpu->fpu.fxsave;
    uint16_t fop = (uint16_t)get(image + IMAGE_FOP, 2);
    if (fop == stub->fop_host)
        put(image + IMAGE_FOP, fop ^ 1, 2);
    return fop;
}

void native_x87_after(struct vcpu *vcpu, const struct stub *stub, const void *memory, uint64_t offset, uint16_t fop)
{
    uint8_t *image = vcpu->fpu.fxsave;
    uint16_t now = (uint16_t)get(image + IMAGE_FOP, 2);
    if (now == stub->fop_host)
        put(image + IMAGE_FOP, stub->fop_guest, 2);
    else if (fop == stub->fop_host)
        put(image + IMAGE_FOP, fop, 2);
    if (get(image + IMAGE_FIP, 8) == stub->insn_at)
        put(image + IMAGE_FIP, vcpu->rip, 8);
    if (memory && get(image + IMAGE_FDP, 8) == (uintptr_t)memory)
        put(image + IMAGE_FDP, offset, 8);
}

/* --- FNSTENV, FLDENV, FNSAVE, FRSTOR --- */

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
    put(out, e->fcw, 2);
    put(out + w, e->fsw, 2);
    put(out + 2 * w, e->ftw, 2);
    uint16_t fop = e->fop & 0x7FF;
    if (wide && !real) {
        put(out + 12, e->fip, 4);
        put(out + 16, e->fcs | (uint32_t)fop << 16, 4);
        put(out + 20, e->fdp, 4);
        put(out + 24, e->fds, 2);
    } else if (wide) {
        put(out + 12, e->fip, 2);
        put(out + 16, fop | bits(e->fip, 31, 16) << 12, 4);
        put(out + 20, e->fdp, 2);
        put(out + 24, bits(e->fdp, 31, 16) << 12, 4);
    } else if (real) {
        put(out + 6, e->fip, 2);
        put(out + 8, fop | bits(e->fip, 19, 16) << 12, 2);
        put(out + 10, e->fdp, 2);
        put(out + 12, bits(e->fdp, 19, 16) << 12, 2);
    } else {
        put(out + 6, e->fip, 2);
        put(out + 8, e->fcs, 2);
        put(out + 10, e->fdp, 2);
        put(out + 12, e->fds, 2);
    }
    return wide ? 28 : 14;
}

static struct environment unpack(const uint8_t *in, bool real, bool wide)
{
    unsigned w = wide ? 4 : 2;
    struct environment e = {
        .fcw = (uint16_t)get(in, 2), .fsw = (uint16_t)get(in + w, 2), .ftw = (uint16_t)get(in + 2 * w, 2),
    };
    if (wide && !real) {
        e.fip = get(in + 12, 4);
        e.fcs = (uint16_t)get(in + 16, 2);
        e.fop = get(in + 18, 2) & 0x7FF;
        e.fdp = get(in + 20, 4);
        e.fds = (uint16_t)get(in + 24, 2);
    } else if (wide) {
        e.fop = get(in + 16, 2) & 0x7FF;
        e.fip = get(in + 12, 2) | bits(get(in + 16, 4), 27, 12) << 16;
        e.fdp = get(in + 20, 2) | bits(get(in + 24, 4), 27, 12) << 16;
    } else if (real) {
        e.fop = get(in + 8, 2) & 0x7FF;
        e.fip = get(in + 6, 2) | bits(get(in + 8, 2), 15, 12) << 16;
        e.fdp = get(in + 10, 2) | bits(get(in + 12, 2), 15, 12) << 16;
    } else {
        e.fip = get(in + 6, 2);
        e.fcs = (uint16_t)get(in + 8, 2);
        e.fdp = get(in + 10, 2);
        e.fds = (uint16_t)get(in + 12, 2);
    }
    return e;
}

/* FNSTENV and FNSAVE: the stub fills a 32-bit image; its pointers are taken from the guest's state before. */
static bool run_store(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, bool whole)
{
    _Alignas(16) uint8_t host[ENV_BYTES + STACK_BYTES], out[ENV_BYTES + STACK_BYTES];
    const uint8_t *image = vcpu->fpu.fxsave;
    struct environment e = {
        .fip = get(image + IMAGE_FIP, 8), .fdp = get(image + IMAGE_FDP, 8), .fop = (uint16_t)get(image + IMAGE_FOP, 2),
    };
    if (!mmu_probe(vcpu, gla, stub->size, true, vcpu->mmu->data_class))
        return false;
    if (!native_call(vcpu, stub, host))
        return native_reflect(vcpu, stub);
    e.fcw = (uint16_t)get(host, 2);
    e.fsw = (uint16_t)get(host + 4, 2);
    e.ftw = (uint16_t)get(host + 8, 2);
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

bool native_run_environment(struct vcpu *vcpu, const struct stub *stub)
{
    bool load = stub->detail.mnemonic == ZYDIS_MNEMONIC_FLDENV || stub->detail.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    bool whole = stub->detail.mnemonic == ZYDIS_MNEMONIC_FNSAVE || stub->detail.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    uint64_t gla;
    if (load && fpu_exception_pending(&vcpu->fpu))
        return x86_raise(vcpu, VEC_MF);
    if (!native_address(vcpu, stub, &gla))
        return false;
    return load ? run_load(vcpu, stub, gla, whole) : run_store(vcpu, stub, gla, whole);
}
