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

/* --- state in the processor --- */

/*
 * Loading and storing x87 state costs a hundred cycles, most x87 instructions cost one. So the state of the vCPU that used
 * it last stays in this thread's processor: the VMM's own code uses no x87 (no long double), the kernel keeps it
 * across switches and signals. What the processor notes about the last instruction is put right when the state comes back.
 */
struct x87_live {
    struct vcpu *vcpu;          /* whose state is in the processor; NULL: nobody's */
    const struct stub *last;    /* last non-control instruction since it came, NULL if none */
    uint64_t rip;               /* its guest address */
    const struct stub *with_memory;     /* last one with a memory operand */
    const void *memory;         /* where the stub had that, and its guest offset */
    uint64_t offset;
    uint16_t fop;               /* as it was loaded */
};
static _Thread_local struct x87_live live;

#define XMM_CLOBBERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",    \
    "xmm13", "xmm14", "xmm15", "memory"

/*
 * A memory form runs from [RSI], so the opcode that the processor notes for it differs from the guest's. One that the guest
 * brings along and that looks like that is loaded with another register, which no stub uses: so the two are told apart.
 */
static bool looks_like_ours(uint16_t fop)
{
    return (fop & 0xC7) == 0x06;
}

/* FXRSTOR brings the guest's MXCSR along: the host's default goes back at once. */
static __attribute__((noinline)) void load(struct vcpu *vcpu)
{
    const uint32_t host_mxcsr = MXCSR_INIT;
    if (live.vcpu)
        native_sync(live.vcpu);
    live = (struct x87_live){ .vcpu = vcpu, .fop = (uint16_t)get(vcpu->fpu.fxsave + IMAGE_FOP, 2) };
    if (looks_like_ours(live.fop))
        put(vcpu->fpu.fxsave + IMAGE_FOP, live.fop ^ 1, 2);
    __asm__ volatile("fxrstor64 %0\n\tldmxcsr %1" : : "m"(vcpu->fpu.fxsave), "m"(host_mxcsr) : XMM_CLOBBERS);
}

/* The stub's addresses and opcode must not reach the guest. */
static void put_pointers_right(uint8_t *image)
{
    uint16_t fop = (uint16_t)get(image + IMAGE_FOP, 2);
    if (live.last && get(image + IMAGE_FIP, 8) == live.last->insn_at)
        put(image + IMAGE_FIP, live.rip, 8);
    if (live.memory && get(image + IMAGE_FDP, 8) == (uintptr_t)live.memory)
        put(image + IMAGE_FDP, live.offset, 8);
    if (live.with_memory && fop == live.with_memory->fop_host)
        put(image + IMAGE_FOP, live.with_memory->fop_guest, 2);
    else if (looks_like_ours(live.fop) && fop == (live.fop ^ 1))
        put(image + IMAGE_FOP, live.fop, 2);
}

void native_sync(struct vcpu *vcpu)
{
    if (likely(live.vcpu != vcpu))
        return;
    uint32_t mxcsr = fpu_mxcsr(&vcpu->fpu);
    /* Outside the engine the compiler's code finds an empty stack and masked exceptions. */
    __asm__ volatile("fxsave64 %0\n\tfninit" : "+m"(vcpu->fpu.fxsave) : : "memory");
    fpu_set_mxcsr(&vcpu->fpu, mxcsr);
    put_pointers_right(vcpu->fpu.fxsave);
    live.vcpu = NULL;
}

/* Runs the stub on the state in the processor. */
static inline bool run_live(struct vcpu *vcpu, const struct stub *stub, void *memory, uint64_t offset)
{
    if (unlikely(live.vcpu != vcpu))
        load(vcpu);
    if (!native_call(vcpu, stub, memory))
        return native_reflect(vcpu, stub);
    if (stub->control)
        return true;
    live.last = stub;
    live.rip = vcpu->rip;
    if (memory) {
        live.with_memory = stub;
        live.memory = memory;
        live.offset = offset;
    }
    return true;
}

/* --- running --- */

/* SDM3 §8.7, §22.18: FWAIT is #NM only with both CR0.MP and CR0.TS. */
static bool wait_allowed(struct vcpu *vcpu, const struct stub *stub)
{
    return stub->detail.mnemonic != ZYDIS_MNEMONIC_FWAIT || (vcpu->cr0 & (CR0_MP | CR0_TS)) != (CR0_MP | CR0_TS) ||
           x86_raise(vcpu, VEC_NM);
}

/* The store itself, with every check of its address. */
static bool store(struct vcpu *vcpu, const struct stub *stub, const void *from)
{
    uint64_t gla;
    if (!native_address(vcpu, stub, &gla))
        return false;
    if (vcpu->mmu->alignment_check && stub->size == 10 && (gla & 7))
        return x86_raise(vcpu, VEC_AC);
    /* 80 bits go out as 64 and 16: the second part may fault when the first is in memory. */
    unsigned part = stub->size == 10 ? 8 : stub->size;
    return mmu_store_slow(vcpu, gla, from, part, vcpu->mmu->data_class) &&
           (part == stub->size || mmu_store_slow(vcpu, gla + 8, (const uint8_t *)from + 8, 2, vcpu->mmu->data_class));
}

/*
 * A store through a buffer. An unmasked exception is noted and then nothing is stored, so whether memory is touched is
 * known only afterwards: the buffer tells by still holding its filling. If then the store faults, nothing has happened.
 */
static bool run_store_slowly(struct vcpu *vcpu, const struct stub *stub, uint64_t offset, void *at)
{
    enum { FILLING = 0xA5 };
    uint8_t image[IMAGE_BYTES], filling[16];
    assert(stub->size <= sizeof(filling));
    memset(filling, FILLING, sizeof(filling));
    memset(at, FILLING, stub->size);
    memcpy(image, vcpu->fpu.fxsave, sizeof(image));
    if (!run_live(vcpu, stub, at, offset))
        return false;
    native_sync(vcpu);
    if (fpu_exception_pending(&vcpu->fpu) && memcmp(at, filling, stub->size) == 0)
        return true;
    if (store(vcpu, stub, at))
        return true;
    /* An MMX store that faults has already set the top of the stack to 0, but not yet the tags. */
    if (stub->mmx)
        vcpu->fpu.fxsave[IMAGE_FTW] = image[IMAGE_FTW];
    else
        memcpy(vcpu->fpu.fxsave, image, sizeof(image));
    return false;
}

static bool run_load_slowly(struct vcpu *vcpu, const struct stub *stub, uint64_t offset, void *at)
{
    uint64_t gla;
    bool done = native_address(vcpu, stub, &gla) && mmu_load_slow(vcpu, gla, at, stub->size, vcpu->mmu->data_class) &&
                run_live(vcpu, stub, at, offset);
    native_sync(vcpu);          /* the buffer's address must not be taken for a later operand's */
    return done;
}

/* A pending exception comes before anything about the operand; only the direct path can leave that to the processor. */
static __attribute__((noinline)) bool run_slow(struct vcpu *vcpu, const struct stub *stub, uint64_t offset)
{
    _Alignas(64) uint8_t buffer[192];
    uint64_t base = stub->address.mode64 && stub->address.seg < FS ? 0 : vcpu->seg[stub->address.seg].base;
    void *at = buffer + ((offset + base) & 63);
    native_sync(vcpu);
    if (stub->waiting && fpu_exception_pending(&vcpu->fpu))
        return x86_raise(vcpu, VEC_MF);
    return stub->writes ? run_store_slowly(vcpu, stub, offset, at) : run_load_slowly(vcpu, stub, offset, at);
}

bool native_run_x87(struct vcpu *vcpu, const struct stub *stub)
{
    if (!stub->size)
        return wait_allowed(vcpu, stub) && run_live(vcpu, stub, NULL, 0);
    uint64_t offset = native_effective(vcpu, stub), gla;
    if (likely(native_flat(vcpu, stub, offset, &gla)) && !stub->aligned) {
        void *at = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
        if (likely(at))
            return run_live(vcpu, stub, at, offset);
    }
    return run_slow(vcpu, stub, offset);
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
    bool loads = stub->detail.mnemonic == ZYDIS_MNEMONIC_FLDENV || stub->detail.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    bool whole = stub->detail.mnemonic == ZYDIS_MNEMONIC_FNSAVE || stub->detail.mnemonic == ZYDIS_MNEMONIC_FRSTOR;
    uint64_t gla;
    native_sync(vcpu);
    if (loads && fpu_exception_pending(&vcpu->fpu))
        return x86_raise(vcpu, VEC_MF);
    if (!native_address(vcpu, stub, &gla))
        return false;
    return loads ? run_load(vcpu, stub, gla, whole) : run_store(vcpu, stub, gla, whole);
}
