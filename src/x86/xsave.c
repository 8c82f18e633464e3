/*
 * The XSAVE family (SDM1 §13.7 to §13.12). An area is the 512-byte legacy region, a 64-byte header and the extended
 * components: at fixed offsets in the standard format, one after the other in the compacted one. `struct fpu` keeps each vector register in
 * one piece, so a component is assembled in a buffer and copied.
 */
#include "mmu/block.h"
#include "x86/x86.h"
#include "x86/xstate.h"

enum { HEADER = 512, EXTENDED = 576, COMPONENT_MAX = 1024 };
#define XCOMP_COMPACT BIT(63)

enum component { COMPONENT_X87, COMPONENT_SSE, COMPONENT_AVX, COMPONENT_OPMASK = 5, COMPONENT_ZMM_HI256, COMPONENT_HI16_ZMM,
                 COMPONENT_PKRU = 9, COMPONENT_COUNT };

struct header {
    uint64_t xstate_bv, xcomp_bv, reserved[6];
};

/* Where a component is kept in struct fpu: `count` pieces of `size` bytes. */
struct pieces {
    uint8_t *first;
    unsigned size, count, stride;
};

static struct pieces component_pieces(struct vcpu *vcpu, unsigned component)
{
    struct fpu *fpu = &vcpu->fpu;
    bool code64 = vcpu_code64(vcpu);
    unsigned count = fpu_register_count(vcpu);
    switch (component) {
    case COMPONENT_AVX:
        return (struct pieces){ fpu->zmm[0] + 16, 16, count, 64 };
    case COMPONENT_OPMASK:
        return (struct pieces){ (uint8_t *)fpu->k, 8, 8, 8 };
    case COMPONENT_ZMM_HI256:
        return (struct pieces){ fpu->zmm[0] + 32, 32, count, 64 };
    case COMPONENT_HI16_ZMM:    /* left alone outside 64-bit mode */
        return (struct pieces){ fpu->zmm[16], 64, code64 ? 16 : 0, 64 };
    case COMPONENT_PKRU:
        return (struct pieces){ (uint8_t *)&fpu->pkru, 4, 1, 4 };
    default:
        return (struct pieces){ 0 };
    }
}

/* --- XINUSE --- */

static bool any_set(const void *bytes, unsigned size)
{
    const uint64_t *words = bytes;
    uint64_t all = 0;
    for (unsigned i = 0; i < size / 8; i++)
        all |= words[i];
    return all != 0;
}

static bool x87_in_use(const struct fpu *fpu)
{
    uint16_t fcw;
    memcpy(&fcw, fpu->fxsave + IMAGE_FCW, 2);
    return fcw != FCW_INIT || any_set(fpu->fxsave + 8, 16) || fpu->fxsave[IMAGE_FSW] || fpu->fxsave[IMAGE_FSW + 1] ||
           fpu->fxsave[IMAGE_FTW] || fpu->fxsave[IMAGE_FOP] || fpu->fxsave[IMAGE_FOP + 1] ||
           any_set(fpu->fxsave + IMAGE_ST, IMAGE_XMM - IMAGE_ST);
}

uint64_t x86_xinuse(const struct vcpu *vcpu)
{
    const struct fpu *fpu = &vcpu->fpu;
    uint64_t in_use = x87_in_use(fpu) ? XCR0_X87 : 0;
    for (unsigned i = 0; i < 16; i++) {
        in_use |= any_set(fpu->zmm[i], 16) ? XCR0_SSE : 0;
        in_use |= any_set(fpu->zmm[i] + 16, 16) ? XCR0_AVX : 0;
        in_use |= any_set(fpu->zmm[i] + 32, 32) ? XCR0_ZMM_HI256 : 0;
    }
    in_use |= any_set(fpu->k, sizeof(fpu->k)) ? XCR0_OPMASK : 0;
    in_use |= any_set(fpu->zmm[16], 16 * 64) ? XCR0_HI16_ZMM : 0;
    return in_use | (fpu->pkru ? XCR0_PKRU : 0);
}

/* --- layout --- */

/* Offset of a component; `xcomp_bv` is 0 for the standard format (SDM1 §13.4.2, §13.4.3). */
static unsigned component_offset(unsigned component, uint64_t xcomp_bv)
{
    if (!(xcomp_bv & XCOMP_COMPACT))
        return x86_xsave_component(component).offset;
    unsigned offset = EXTENDED;
    for (unsigned i = COMPONENT_AVX; i < component; i++)
        if (xcomp_bv & BIT(i))
            offset += x86_xsave_component(i).size;
    return offset;
}

static bool save_component(struct vcpu *vcpu, unsigned component, uint64_t gla)
{
    _Alignas(64) uint8_t buffer[COMPONENT_MAX] = { 0 };
    struct pieces p = component_pieces(vcpu, component);
    for (unsigned i = 0; i < p.count; i++)
        memcpy(buffer + i * p.size, p.first + i * p.stride, p.size);
    unsigned size = component == COMPONENT_PKRU ? 8 : p.size * p.count;
    return mmu_copy_out(vcpu, gla, buffer, size);
}

static bool restore_component(struct vcpu *vcpu, unsigned component, uint64_t gla)
{
    _Alignas(64) uint8_t buffer[COMPONENT_MAX];
    struct pieces p = component_pieces(vcpu, component);
    if (!mmu_copy_in(vcpu, gla, buffer, p.size * p.count))
        return false;
    for (unsigned i = 0; i < p.count; i++)
        memcpy(p.first + i * p.stride, buffer + i * p.size, p.size);
    return true;
}

static void init_component(struct vcpu *vcpu, unsigned component)
{
    struct pieces p = component_pieces(vcpu, component);
    for (unsigned i = 0; i < p.count; i++)
        memset(p.first + i * p.stride, 0, p.size);
}

/* --- saving --- */

static bool save_legacy(struct vcpu *vcpu, uint64_t gla, bool rex_w, uint64_t components, bool mxcsr)
{
    _Alignas(16) uint8_t image[IMAGE_BYTES];
    const uint32_t word[2] = { fpu_mxcsr(&vcpu->fpu), MXCSR_MASK };
    unsigned count = fpu_register_count(vcpu);
    if (components & XCR0_X87) {
        fpu_put_x87(&vcpu->fpu, rex_w, image);
        if (!mmu_copy_out(vcpu, gla, image, IMAGE_MXCSR) ||
            !mmu_copy_out(vcpu, gla + IMAGE_ST, image + IMAGE_ST, IMAGE_XMM - IMAGE_ST))
            return false;
    }
    if (mxcsr && !mmu_copy_out(vcpu, gla + IMAGE_MXCSR, word, sizeof(word)))
        return false;
    if (!(components & XCR0_SSE))
        return true;
    for (unsigned i = 0; i < count; i++)
        memcpy(image + IMAGE_XMM + i * 16, vcpu->fpu.zmm[i], 16);
    return mmu_copy_out(vcpu, gla + IMAGE_XMM, image + IMAGE_XMM, count * 16);
}

static bool area_checks(struct vcpu *vcpu, bool supervisor, uint64_t gla)
{
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return x86_raise(vcpu, VEC_UD);
    if (supervisor && vcpu->cpl != 0)
        return x86_raise(vcpu, VEC_GP);
    if (vcpu->cr0 & CR0_TS)
        return x86_raise(vcpu, VEC_NM);
    return !(gla & 63) || x86_raise(vcpu, VEC_GP);
}

bool x86_xsave(struct vcpu *vcpu, enum xsave_kind kind, uint64_t gla, uint64_t mask, bool rex_w)
{
    bool compact = kind == XSAVEC || kind == XSAVES;
    if (!area_checks(vcpu, kind == XSAVES, gla))
        return false;
    uint64_t rfbm = mask & (vcpu->xcr0 | (kind == XSAVES ? vcpu->xss : 0)), in_use = x86_xinuse(vcpu);
    bool mxcsr = rfbm & (XCR0_SSE | XCR0_AVX);
    struct header header = { 0 };
    if (compact) {
        if (fpu_mxcsr(&vcpu->fpu) != MXCSR_INIT)
            in_use |= XCR0_SSE;
        header.xstate_bv = rfbm & in_use;
        header.xcomp_bv = rfbm | XCOMP_COMPACT;
        mxcsr = header.xstate_bv & XCR0_SSE;
    } else {
        if (!mmu_copy_in(vcpu, gla + HEADER, &header.xstate_bv, 8))
            return false;
        header.xstate_bv = (header.xstate_bv & ~rfbm) | (rfbm & in_use);
    }
    /* XSAVE writes initial components, too; the others leave them out. */
    uint64_t saved = kind == XSAVE ? rfbm : rfbm & in_use;
    if (!save_legacy(vcpu, gla, rex_w, saved, mxcsr))
        return false;
    for (unsigned i = COMPONENT_AVX; i < COMPONENT_COUNT; i++)
        if ((saved & BIT(i)) && !save_component(vcpu, i, gla + component_offset(i, header.xcomp_bv)))
            return false;
    return mmu_copy_out(vcpu, gla + HEADER, &header, compact ? 16 : 8);
}

/* --- restoring --- */

/* SDM2 XRSTOR, XRSTORS "Protected Mode Exceptions": what the header must be. */
static bool header_valid(const struct vcpu *vcpu, const struct header *h, bool supervisor)
{
    uint64_t allowed = vcpu->xcr0 | (supervisor ? vcpu->xss : 0), reserved = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(h->reserved); i++)
        reserved |= h->reserved[i];
    if (h->xcomp_bv & XCOMP_COMPACT)
        return (supervisor || x86_has(vcpu, FEATURE_XSAVEC)) && !(h->xcomp_bv & ~(allowed | XCOMP_COMPACT)) &&
               !(h->xstate_bv & ~h->xcomp_bv) && !reserved;
    /* The standard form checks bytes 23:8 only. */
    return !supervisor && !(h->xstate_bv & ~allowed) && !h->xcomp_bv && !h->reserved[0];
}

/* MXCSR comes from memory in the standard form whenever SSE or AVX is asked for, else goes with SSE. */
static bool restore_mxcsr(struct vcpu *vcpu, uint64_t gla, const struct header *h, uint64_t rfbm)
{
    bool compact = h->xcomp_bv & XCOMP_COMPACT;
    uint32_t value = MXCSR_INIT;
    if (!(rfbm & (compact ? XCR0_SSE : XCR0_SSE | XCR0_AVX)))
        return true;
    if ((!compact || (h->xstate_bv & XCR0_SSE)) && !mmu_copy_in(vcpu, gla + IMAGE_MXCSR, &value, 4))
        return false;
    if (value & ~MXCSR_MASK)
        return x86_raise(vcpu, VEC_GP);
    fpu_set_mxcsr(&vcpu->fpu, value);
    return true;
}

static bool restore_legacy(struct vcpu *vcpu, uint64_t gla, bool rex_w, uint64_t rfbm, uint64_t xstate_bv)
{
    _Alignas(16) uint8_t image[IMAGE_BYTES] = { 0 };
    unsigned count = fpu_register_count(vcpu);
    if (rfbm & XCR0_X87) {
        if (!(xstate_bv & XCR0_X87))
            fpu_init_x87(&vcpu->fpu);
        else if (!mmu_copy_in(vcpu, gla, image, IMAGE_XMM))
            return false;
        else
            fpu_get_x87(vcpu, rex_w, image);
    }
    if (!(rfbm & XCR0_SSE))
        return true;
    if ((xstate_bv & XCR0_SSE) && !mmu_copy_in(vcpu, gla + IMAGE_XMM, image + IMAGE_XMM, count * 16))
        return false;
    for (unsigned i = 0; i < count; i++)
        memcpy(vcpu->fpu.zmm[i], image + IMAGE_XMM + i * 16, 16);
    return true;
}

bool x86_xrstor(struct vcpu *vcpu, bool supervisor, uint64_t gla, uint64_t mask, bool rex_w)
{
    struct header header;
    if (!area_checks(vcpu, supervisor, gla) || !mmu_copy_in(vcpu, gla + HEADER, &header, sizeof(header)))
        return false;
    if (!header_valid(vcpu, &header, supervisor))
        return x86_raise(vcpu, VEC_GP);
    uint64_t rfbm = mask & (vcpu->xcr0 | (supervisor ? vcpu->xss : 0));
    uint64_t xstate_bv = header.xstate_bv;
    if (!restore_mxcsr(vcpu, gla, &header, rfbm) || !restore_legacy(vcpu, gla, rex_w, rfbm, xstate_bv))
        return false;
    uint32_t pkru = vcpu->fpu.pkru;
    for (unsigned i = COMPONENT_AVX; i < COMPONENT_COUNT; i++) {
        if (!(rfbm & BIT(i)))
            continue;
        if (!(xstate_bv & BIT(i)))
            init_component(vcpu, i);
        else if (!restore_component(vcpu, i, gla + component_offset(i, header.xcomp_bv)))
            return false;
    }
    if (vcpu->fpu.pkru != pkru)
        mmu_mode_changed(vcpu);
    return true;
}
