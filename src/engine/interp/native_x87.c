/*
 * x87 and MMX. Their state stays in the host's processor between instructions. What a processor notes about the last of them (SDM1
 * §8.1.8: its address, its opcode, its operand's address) is of our code there, and AMD's lose it; so it is noted here.
 */
#include "engine/interp/native_impl.h"

#include "x86/xstate.h"

/* --- state in the processor --- */

/*
 * Loading and storing x87 state costs a hundred cycles, most x87 instructions cost one. So the state of the vCPU that used
 * it last stays in this thread's processor: the VMM's own code uses no x87 (no long double), the kernel keeps it
 * across switches and signals.
 */
static _Thread_local struct vcpu *live;         /* whose state is in the processor; NULL: nobody's */

#define XMM_CLOBBERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",    \
    "xmm13", "xmm14", "xmm15", "memory"

/* FXRSTOR brings the guest's MXCSR along: the host's default goes back at once. */
static __attribute__((noinline)) void load(struct vcpu *vcpu)
{
    const uint32_t host_mxcsr = MXCSR_INIT;
    const uint8_t *image = vcpu->fpu.fxsave;
    const struct x87_last last = {
        .fip = image_get(image + IMAGE_FIP, 8), .fdp = image_get(image + IMAGE_FDP, 8), .fop = (uint32_t)image_get(image + IMAGE_FOP, 2),
    };
    if (live)
        native_sync(live);
    live = vcpu;
    vcpu->x87 = (struct x87_live){ .live = true, .pending = fpu_exception_pending(&vcpu->fpu), .before = last, .last = last };
    __asm__ volatile("fxrstor64 %0\n\tldmxcsr %1" : : "m"(vcpu->fpu.fxsave), "m"(host_mxcsr) : XMM_CLOBBERS);
}

void native_load_x87(struct vcpu *vcpu)
{
    if (unlikely(!vcpu->x87.live))
        load(vcpu);
}

/*
 * NOTE(spec): the opcode is that of the last instruction with an unmasked exception (SDM1 §8.1.9), as on processors that
 * have no choice in that; so is the operand where CPUID says so (SDM1 §8.1.8).
 */
static void put_pointers(struct vcpu *vcpu)
{
    const struct x87_live *x87 = &vcpu->x87;
    bool raised = fpu_exception_pending(&vcpu->fpu) && !x87->pending;
    bool operand = raised || !x86_has(vcpu, FEATURE_FDP_EXCPTN_ONLY);
    image_put(vcpu->fpu.fxsave + IMAGE_FIP, x87->last.fip, 8);
    image_put(vcpu->fpu.fxsave + IMAGE_FDP, operand ? x87->last.fdp : x87->before.fdp, 8);
    image_put(vcpu->fpu.fxsave + IMAGE_FOP, raised ? x87->last.fop : x87->before.fop, 2);
}

void native_sync(struct vcpu *vcpu)
{
    if (likely(live != vcpu))
        return;
    uint32_t mxcsr = fpu_mxcsr(&vcpu->fpu);
    /* Outside the engine the compiler's code finds an empty stack and masked exceptions. */
    __asm__ volatile("fxsave64 %0\n\tfninit" : "+m"(vcpu->fpu.fxsave) : : "memory");
    fpu_set_mxcsr(&vcpu->fpu, mxcsr);
    put_pointers(vcpu);
    vcpu->x87.live = false;
    live = NULL;
}

static void note_control(struct x87_live *x87, uint16_t mnemonic)
{
    if (mnemonic == ZYDIS_MNEMONIC_FNINIT)
        *x87 = (struct x87_live){ .live = true };
    else if (mnemonic == ZYDIS_MNEMONIC_FNCLEX)
        x87->pending = false;
    else if (mnemonic == ZYDIS_MNEMONIC_FLDCW)
        x87->last.fop = x87->before.fop;        /* what this unmasks, no instruction has raised */
}

static void note(struct vcpu *vcpu, const struct stub *stub, const void *memory, uint64_t offset)
{
    struct x87_last *last = &vcpu->x87.last;
    if (stub->control) {
        note_control(&vcpu->x87, stub->detail.mnemonic);
        return;
    }
    last->fip = vcpu->rip;
    last->fop = stub->fop;
    if (memory)
        last->fdp = offset;
}

/* Runs the stub on the state in the processor. */
static inline bool run_live(struct vcpu *vcpu, const struct stub *stub, void *memory, uint64_t offset)
{
    if (stub->detail.mnemonic == ZYDIS_MNEMONIC_FNCLEX)
        native_sync(vcpu);              /* what raised the exception that goes */
    native_load_x87(vcpu);
    if (!native_call(vcpu, stub, memory))
        return native_reflect(vcpu, stub);
    note(vcpu, stub, memory, offset);
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
