/*
 * Segment registers: loads by MOV, POP and LDS (SDM3 §5.5 "Privilege Levels", §5.6, §5.7; SDM2 MOV), LLDT, LTR, the
 * instructions that look at a descriptor, and effective to linear addresses.
 */
#include "x86/descriptor.h"

/* --- loads --- */

static bool load_null(struct vcpu *vcpu, enum seg seg, uint16_t selector)
{
    if (seg == SS) {
        if (!vcpu_code64(vcpu) || vcpu->cpl == 3 || (selector & SELECTOR_RPL) != vcpu->cpl)
            return x86_raise_error(vcpu, VEC_GP, 0);
        vcpu->seg[SS] = segment_null(selector, vcpu->cpl);
        return true;
    }
    vcpu->seg[seg] = segment_null(selector, 0);
    return true;
}

static bool check_stack_segment(struct vcpu *vcpu, const struct descriptor *d)
{
    uint32_t error = selector_error(d->selector, 0);

    if ((d->selector & SELECTOR_RPL) != vcpu->cpl || !descriptor_is_writable_data(d) || descriptor_dpl(d) != vcpu->cpl)
        return x86_raise_error(vcpu, VEC_GP, error);
    return descriptor_present(d) || x86_raise_error(vcpu, VEC_SS, error);
}

static bool check_data_segment(struct vcpu *vcpu, const struct descriptor *d)
{
    uint32_t error = selector_error(d->selector, 0);
    bool code = descriptor_is_code(d), conforming = code && descriptor_is_conforming(d);
    unsigned dpl = descriptor_dpl(d);

    if (descriptor_is_system(d) || (code && !(descriptor_type(d) & SEG_READABLE)))
        return x86_raise_error(vcpu, VEC_GP, error);
    if (!conforming && ((d->selector & SELECTOR_RPL) > dpl || vcpu->cpl > dpl))
        return x86_raise_error(vcpu, VEC_GP, error);
    return descriptor_present(d) || x86_raise_error(vcpu, VEC_NP, error);
}

bool x86_load_segment(struct vcpu *vcpu, enum seg seg, uint16_t selector)
{
    struct descriptor d;

    if (vcpu->mode == MODE_REAL) {
        segment_load_real(&vcpu->seg[seg], selector);
        return true;
    }
    if (vcpu->mode == MODE_V86) {
        segment_load_v86(&vcpu->seg[seg], selector);
        return true;
    }
    if (selector_is_null(selector))
        return load_null(vcpu, seg, selector);
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, &d))
        return false;
    if (!(seg == SS ? check_stack_segment(vcpu, &d) : check_data_segment(vcpu, &d)))
        return false;
    if (!descriptor_set_accessed(vcpu, &d))
        return false;
    segment_from_descriptor(&vcpu->seg[seg], &d, selector);
    return true;
}

/* Reads a descriptor that must be in the GDT: LDT and TSS. */
static bool read_global(struct vcpu *vcpu, uint16_t selector, struct descriptor *d)
{
    if (selector & SELECTOR_TI)
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    if (!descriptor_read(vcpu, selector, VEC_GP, 0, d))
        return false;
    return !vcpu_long_mode(vcpu) || descriptor_read_high(vcpu, d, VEC_GP, 0);
}

bool x86_lldt(struct vcpu *vcpu, uint16_t selector)
{
    struct descriptor d;

    if (!vcpu_protected(vcpu) || vcpu_v86(vcpu))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    if (selector_is_null(selector)) {
        vcpu->ldtr = segment_null(selector, 0);
        return true;
    }
    if (!read_global(vcpu, selector, &d))
        return false;
    if (!descriptor_is_system(&d) || descriptor_type(&d) != SYS_LDT)
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_NP, selector_error(selector, 0));
    if (vcpu_long_mode(vcpu) && !x86_canonical(vcpu, descriptor_base(&d)))
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    segment_from_descriptor(&vcpu->ldtr, &d, selector);
    return true;
}

bool x86_ltr(struct vcpu *vcpu, uint16_t selector)
{
    struct descriptor d;

    if (!vcpu_protected(vcpu) || vcpu_v86(vcpu))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!read_global(vcpu, selector, &d))
        return false;
    bool available = descriptor_is_system(&d) &&
                     (descriptor_type(&d) == SYS_TSS32 || (descriptor_type(&d) == SYS_TSS16 && !vcpu_long_mode(vcpu)));
    if (!available)
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_NP, selector_error(selector, 0));
    if (vcpu_long_mode(vcpu) && !x86_canonical(vcpu, descriptor_base(&d)))
        return x86_raise_error(vcpu, VEC_GP, selector_error(selector, 0));
    if (!descriptor_set_type_bits(vcpu, &d, 2))
        return false;
    segment_from_descriptor(&vcpu->tr, &d, selector);
    return true;
}

/* --- LAR, LSL, VERR, VERW: they look, and raise nothing but #PF and #UD --- */

/* *found false: null or outside its table. */
static bool look(struct vcpu *vcpu, uint16_t selector, struct descriptor *d, bool *found)
{
    *found = false;
    if (!vcpu_protected(vcpu) || vcpu_v86(vcpu))
        return x86_raise(vcpu, VEC_UD);
    *d = (struct descriptor){ .selector = selector };
    if (selector_is_null(selector) || !descriptor_locate(vcpu, selector, 8, &d->gla))
        return true;
    *found = true;
    return mmu_load(vcpu, d->gla, 8, mmu_implicit(vcpu), &d->low);
}

/* Conforming code is seen from everywhere; the rest from CPL and RPL up to its DPL. */
static bool visible(const struct vcpu *vcpu, const struct descriptor *d)
{
    if (descriptor_is_code(d) && descriptor_is_conforming(d))
        return true;
    return vcpu->cpl <= descriptor_dpl(d) && (d->selector & SELECTOR_RPL) <= descriptor_dpl(d);
}

/* SDM2 LAR and LSL, tables of valid descriptor types: a bit for each type. */
enum {
    LAR_TYPES_LEGACY = 1 << SYS_TSS16 | 1 << SYS_LDT | 1 << SYS_TSS16_BUSY | 1 << SYS_CALL16 | 1 << SYS_TASK_GATE |
                       1 << SYS_TSS32 | 1 << SYS_TSS32_BUSY | 1 << SYS_CALL32,
    LAR_TYPES_LONG = 1 << SYS_LDT | 1 << SYS_TSS32 | 1 << SYS_TSS32_BUSY | 1 << SYS_CALL32,
    LSL_TYPES_LEGACY = 1 << SYS_TSS16 | 1 << SYS_LDT | 1 << SYS_TSS16_BUSY | 1 << SYS_TSS32 | 1 << SYS_TSS32_BUSY,
    LSL_TYPES_LONG = 1 << SYS_LDT | 1 << SYS_TSS32 | 1 << SYS_TSS32_BUSY,
};

bool x86_lar(struct vcpu *vcpu, uint16_t selector, uint32_t *rights, bool *ok)
{
    struct descriptor d;
    bool found;

    *ok = false;
    if (!look(vcpu, selector, &d, &found))
        return false;
    unsigned types = vcpu_long_mode(vcpu) ? LAR_TYPES_LONG : LAR_TYPES_LEGACY;
    if (!found || !visible(vcpu, &d) || (descriptor_is_system(&d) && !(types >> descriptor_type(&d) & 1)))
        return true;
    *rights = (d.low >> 32) & 0x00F0FF00;
    *ok = true;
    return true;
}

bool x86_lsl(struct vcpu *vcpu, uint16_t selector, uint32_t *limit, bool *ok)
{
    struct descriptor d;
    bool found;

    *ok = false;
    if (!look(vcpu, selector, &d, &found))
        return false;
    unsigned types = vcpu_long_mode(vcpu) ? LSL_TYPES_LONG : LSL_TYPES_LEGACY;
    if (!found || !visible(vcpu, &d) || (descriptor_is_system(&d) && !(types >> descriptor_type(&d) & 1)))
        return true;
    *limit = descriptor_limit(&d);
    *ok = true;
    return true;
}

bool x86_verify(struct vcpu *vcpu, uint16_t selector, bool write, bool *ok)
{
    struct descriptor d;
    bool found;

    *ok = false;
    if (!look(vcpu, selector, &d, &found))
        return false;
    if (!found || descriptor_is_system(&d) || !visible(vcpu, &d))
        return true;
    if (write)
        *ok = descriptor_is_writable_data(&d);
    else
        *ok = !descriptor_is_code(&d) || (descriptor_type(&d) & SEG_READABLE);
    return true;
}

/* --- addresses --- */

bool x86_linear(struct vcpu *vcpu, enum seg seg, uint64_t offset, unsigned size, bool write, uint64_t *gla)
{
    const struct segment *s = &vcpu->seg[seg];

    if (vcpu->mode == MODE_LONG64) {
        *gla = offset + (seg >= FS ? s->base : 0);
        if (x86_canonical(vcpu, *gla) && x86_canonical(vcpu, *gla + size - 1))
            return true;
    } else if (segment_linear(s, vcpu->mode >= MODE_PROTECTED16, offset, size, write, gla)) {
        return true;
    }
    return x86_raise_error(vcpu, seg == SS ? VEC_SS : VEC_GP, 0);
}

bool x86_linear_fetch(struct vcpu *vcpu, uint64_t offset, uint64_t *gla)
{
    const struct segment *cs = &vcpu->seg[CS];

    if (vcpu->mode == MODE_LONG64) {
        *gla = offset;
        return x86_canonical(vcpu, offset) || x86_raise_error(vcpu, VEC_GP, 0);
    }
    *gla = (uint32_t)(cs->base + offset);
    return offset <= cs->limit || x86_raise_error(vcpu, VEC_GP, 0);
}
