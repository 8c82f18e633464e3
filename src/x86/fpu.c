/* x87 and SSE state: reset, FXSAVE and FXRSTOR (SDM1 §10.5 "FXSAVE and FXRSTOR Instructions"). */
#include "mmu/block.h"
#include "x86/x86.h"
#include "x86/xstate.h"

/* SDM3 table 9-1: power-up and RESET leave x87 as it is before FINIT; INIT changes nothing here. */
void x86_fpu_reset(struct vcpu *vcpu, bool init)
{
    if (init)
        return;
    memset(&vcpu->fpu, 0, sizeof(vcpu->fpu));
    const uint16_t fcw = 0x0040;
    memcpy(vcpu->fpu.fxsave + IMAGE_FCW, &fcw, sizeof(fcw));
    vcpu->fpu.fxsave[IMAGE_FTW] = 0xFF;         /* tag word 5555H: zeros */
    fpu_set_mxcsr(&vcpu->fpu, MXCSR_INIT);
    vcpu->xcr0 = XCR0_X87;
    vcpu->xss = 0;
}

void fpu_init_x87(struct fpu *fpu)
{
    const uint16_t fcw = FCW_INIT;
    memset(fpu->fxsave, 0, IMAGE_MXCSR);
    memset(fpu->fxsave + IMAGE_ST, 0, IMAGE_XMM - IMAGE_ST);
    memcpy(fpu->fxsave + IMAGE_FCW, &fcw, sizeof(fcw));
}

/* Without REX.W the pointers are 32-bit offsets and selectors; the selectors are deprecated and read as zero. */
void fpu_put_x87(const struct fpu *fpu, bool rex_w, uint8_t *image)
{
    memcpy(image, fpu->fxsave, IMAGE_MXCSR);
    memcpy(image + IMAGE_ST, fpu->fxsave + IMAGE_ST, IMAGE_XMM - IMAGE_ST);
    if (!rex_w) {
        memset(image + IMAGE_FIP + 4, 0, 4);
        memset(image + IMAGE_FDP + 4, 0, 4);
    }
}

/* Loads as the processor does: fixed bits fixed, the summary of pending exceptions (ES, B) computed anew. */
void fpu_get_x87(struct vcpu *vcpu, bool rex_w, const uint8_t *image)
{
    uint8_t *to = vcpu->fpu.fxsave;
    uint16_t fcw, fsw, fop;
    uint64_t fip = 0, fdp = 0;
    memcpy(&fcw, image + IMAGE_FCW, 2);
    memcpy(&fsw, image + IMAGE_FSW, 2);
    memcpy(&fop, image + IMAGE_FOP, 2);
    fcw = (fcw & 0x1F3F) | 0x0040;
    fop &= 0x7FF;
    fsw &= (uint16_t)~0x8080;
    if (fsw & ~fcw & 0x3F)
        fsw |= 0x8080;
    to[IMAGE_FTW] = image[IMAGE_FTW];
    memcpy(to + IMAGE_FCW, &fcw, 2);
    memcpy(to + IMAGE_FSW, &fsw, 2);
    memcpy(to + IMAGE_FOP, &fop, 2);
    to[IMAGE_FTW + 1] = 0;
    memcpy(&fip, image + IMAGE_FIP, rex_w ? 8 : 4);
    memcpy(&fdp, image + IMAGE_FDP, rex_w ? 8 : 4);
    fip = sign_extend(fip, x86_has(vcpu, FEATURE_LA57) ? 57 : 48);      /* made canonical, the operand's pointer is not */
    memcpy(to + IMAGE_FIP, &fip, 8);
    memcpy(to + IMAGE_FDP, &fdp, 8);
    for (unsigned i = 0; i < 8; i++) {          /* 80 bits each; the rest of a slot is reserved */
        memcpy(to + IMAGE_ST + i * 16, image + IMAGE_ST + i * 16, 10);
        memset(to + IMAGE_ST + i * 16 + 10, 0, 6);
    }
}

/* The image holds the stack from its top on, the MMX registers are the physical ones. */
void fpu_enter_mmx(struct fpu *fpu)
{
    uint8_t stack[8][16];
    unsigned top = fpu->fxsave[IMAGE_FSW + 1] >> 3 & 7;
    memcpy(stack, fpu->fxsave + IMAGE_ST, sizeof(stack));
    for (unsigned i = 0; i < 8; i++)
        memcpy(fpu->fxsave + IMAGE_ST + i * 16, stack[(i - top) & 7], 16);
    fpu->fxsave[IMAGE_FSW + 1] &= (uint8_t)~0x38;
    fpu->fxsave[IMAGE_FTW] = 0xFF;
}

static bool fx_checks(struct vcpu *vcpu, uint64_t gla)
{
    if (vcpu->cr0 & (CR0_EM | CR0_TS))
        return x86_raise(vcpu, VEC_NM);
    return !(gla & 15) || x86_raise(vcpu, VEC_GP);
}

bool x86_fxsave(struct vcpu *vcpu, uint64_t gla, bool rex_w)
{
    _Alignas(16) uint8_t image[IMAGE_BYTES];
    unsigned count = fpu_register_count(vcpu);
    const uint32_t mxcsr = fpu_mxcsr(&vcpu->fpu), mask = MXCSR_MASK;
    if (!fx_checks(vcpu, gla))
        return false;
    fpu_put_x87(&vcpu->fpu, rex_w, image);
    memcpy(image + IMAGE_MXCSR, &mxcsr, 4);
    memcpy(image + IMAGE_MXCSR_MASK, &mask, 4);
    for (unsigned i = 0; i < count; i++)
        memcpy(image + IMAGE_XMM + i * 16, vcpu->fpu.zmm[i], 16);
    /* What lies behind the last register is not written. */
    return mmu_probe(vcpu, gla, 64, true, vcpu->mmu->data_class) &&
           mmu_probe(vcpu, gla + IMAGE_BYTES - 64, 64, true, vcpu->mmu->data_class) &&
           mmu_copy_out(vcpu, gla, image, IMAGE_XMM + count * 16);
}

bool x86_fxrstor(struct vcpu *vcpu, uint64_t gla, bool rex_w)
{
    _Alignas(16) uint8_t image[IMAGE_BYTES];
    unsigned count = fpu_register_count(vcpu);
    uint32_t mxcsr;
    if (!fx_checks(vcpu, gla) || !mmu_copy_in(vcpu, gla, image, IMAGE_BYTES))
        return false;
    memcpy(&mxcsr, image + IMAGE_MXCSR, 4);
    if (mxcsr & ~MXCSR_MASK)
        return x86_raise(vcpu, VEC_GP);
    fpu_get_x87(vcpu, rex_w, image);
    fpu_set_mxcsr(&vcpu->fpu, mxcsr);
    for (unsigned i = 0; i < count; i++)
        memcpy(vcpu->fpu.zmm[i], image + IMAGE_XMM + i * 16, 16);
    return true;
}
