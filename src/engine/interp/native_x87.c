/*
 * x87 and MMX. Their state stays in the host's processor between instructions, and what the processor notes about the last of
 * them (SDM1 §8.1.8: its address, its opcode, its operand's address) is the stub's and must not reach the guest.
 */
#include "engine/interp/native_impl.h"

#include "x86/xstate.h"

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
    live = (struct x87_live){ .vcpu = vcpu, .fop = (uint16_t)image_get(vcpu->fpu.fxsave + IMAGE_FOP, 2) };
    if (looks_like_ours(live.fop))
        image_put(vcpu->fpu.fxsave + IMAGE_FOP, live.fop ^ 1, 2);
    __asm__ volatile("fxrstor64 %0\n\tldmxcsr %1" : : "m"(vcpu->fpu.fxsave), "m"(host_mxcsr) : XMM_CLOBBERS);
}

/* The stub's addresses and opcode must not reach the guest. */
static void put_pointers_right(uint8_t *image)
{
    uint16_t fop = (uint16_t)image_get(image + IMAGE_FOP, 2);
    if (live.last && image_get(image + IMAGE_FIP, 8) == live.last->insn_at)
        image_put(image + IMAGE_FIP, live.rip, 8);
    if (live.memory && image_get(image + IMAGE_FDP, 8) == (uintptr_t)live.memory)
        image_put(image + IMAGE_FDP, live.offset, 8);
    if (live.with_memory && fop == live.with_memory->fop_host)
        image_put(image + IMAGE_FOP, live.with_memory->fop_guest, 2);
    else if (looks_like_ours(live.fop) && fop == (live.fop ^ 1))
        image_put(image + IMAGE_FOP, live.fop, 2);
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

/* SDM1 §8.7, SDM3 §23.18: FWAIT is #NM only with both CR0.MP and CR0.TS. */
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
