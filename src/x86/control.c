/*
 * Control registers and XCR0 (SDM3 §2.5 "Control Registers", §2.6 "Extended Control Registers", §4.1 "Paging Modes and
 * Control Bits", §9.8.5 "Initializing IA-32e Mode"; SDM2 MOV to/from Control Registers, LMSW, XSETBV).
 */
#include "mmu/mmu.h"
#include "vmx/vmx.h"
#include "x86/descriptor.h"

#include "base/log.h"

/* --- CR0 --- */

enum {
    CR0_WRITABLE = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD,
    CR0_PAGING = CR0_PE | CR0_WP | CR0_CD | CR0_NW,         /* with PG: what the MMU looks at */
};

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LME);
}

/* SDM3 §10.8.5: what must hold when PG goes from 0 to 1 with EFER.LME set. */
static bool check_enter_long_mode(struct vcpu *vcpu)
{
    bool tss16 = !(vcpu->tr.attr & 8);

    if (!(vcpu->cr4 & CR4_PAE) || (vcpu->seg[CS].attr & SEG_L) || tss16)
        return x86_raise_error(vcpu, VEC_GP, 0);
    return true;
}

/* A reserved bit is set; or, in a guest with EPT, reading them made an exit. */
static bool pdptes_refused(struct vcpu *vcpu)
{
    return vcpu->pending.kind == EVENT_NONE && x86_raise_error(vcpu, VEC_GP, 0);
}

static bool check_cr0(struct vcpu *vcpu, uint64_t value)
{
    bool pg = value & CR0_PG;

    if (value >> 32 || (pg && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (vcpu->vmx.on && !vmx_cr0_allowed(vcpu, value))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (!pg && (vcpu->cr0 & CR0_PG) && (vcpu_code64(vcpu) || (vcpu->cr4 & CR4_PCIDE)))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (pg && !(vcpu->cr0 & CR0_PG) && (vcpu->efer & EFER_LME))
        return check_enter_long_mode(vcpu);
    return true;
}

static bool write_cr0(struct vcpu *vcpu, uint64_t value)
{
    uint64_t new_cr0 = (value & (CR0_WRITABLE | CR0_PG)) | CR0_ET;
    uint64_t changed = vcpu->cr0 ^ new_cr0;

    if (!check_cr0(vcpu, value))
        return false;
    /* SDM3 §4.4.1: PAE paging reads its PDPTEs when CD, NW or PG change, too. */
    if (pae_paging(new_cr0, vcpu->cr4, vcpu->efer) && (changed & (CR0_CD | CR0_NW | CR0_PG)) &&
        !mmu_load_pdptes(vcpu, vcpu->cr3))
        return pdptes_refused(vcpu);
    vcpu->cr0 = new_cr0;
    if (changed & CR0_PG) {
        if ((new_cr0 & CR0_PG) && (vcpu->efer & EFER_LME))
            vcpu->efer |= EFER_LMA;
        else
            vcpu->efer &= ~(uint64_t)EFER_LMA;
    }
    if (changed & (CR0_PAGING | CR0_PG))
        mmu_mode_changed(vcpu);
    else if (changed & CR0_AM)
        mmu_privilege_changed(vcpu);
    if (changed & (CR0_PE | CR0_PG))
        x86_update_mode(vcpu);
    return true;
}

bool x86_lmsw(struct vcpu *vcpu, uint16_t value)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    return write_cr0(vcpu, (vcpu->cr0 & ~0xEull) | (value & 0xF));      /* PE can be set, not cleared */
}

/* --- CR3 --- */

static bool write_cr3(struct vcpu *vcpu, uint64_t value)
{
    bool keep = false;

    if (vcpu_long_mode(vcpu)) {
        if (vcpu->cr4 & CR4_PCIDE) {
            keep = value >> 63;
            value &= ~BIT(63);
        }
        if (value >> x86_physical_bits(vcpu))
            return x86_raise_error(vcpu, VEC_GP, 0);
    } else {
        value &= 0xFFFFFFFF;
        if (pae_paging(vcpu->cr0, vcpu->cr4, vcpu->efer) && !mmu_load_pdptes(vcpu, value))
            return pdptes_refused(vcpu);
    }
    vcpu->cr3 = value;
    counter_add(&vcpu->counters, COUNTER_cr3_loads, 1);
    mmu_load_cr3(vcpu, keep);
    return true;
}

/* --- CR4 --- */

static const struct {
    uint32_t bit;
    enum x86_feature feature;
} cr4_bits[] = {
    { CR4_VME, FEATURE_VME }, { CR4_PVI, FEATURE_VME }, { CR4_TSD, FEATURE_TSC }, { CR4_DE, FEATURE_DE },
    { CR4_PSE, FEATURE_PSE }, { CR4_PAE, FEATURE_PAE }, { CR4_MCE, FEATURE_MCE }, { CR4_PGE, FEATURE_PGE },
    { CR4_PCE, FEATURE_FPU }, { CR4_OSFXSR, FEATURE_FXSR }, { CR4_OSXMMEXCPT, FEATURE_SSE }, { CR4_UMIP, FEATURE_UMIP },
    { CR4_LA57, FEATURE_LA57 }, { CR4_FSGSBASE, FEATURE_FSGSBASE }, { CR4_PCIDE, FEATURE_PCID },
    { CR4_VMXE, FEATURE_VMX }, { CR4_OSXSAVE, FEATURE_XSAVE }, { CR4_SMEP, FEATURE_SMEP }, { CR4_SMAP, FEATURE_SMAP }, { CR4_PKE, FEATURE_PKU },
};

enum {
    CR4_MMU = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE,
    CR4_RELOADS_PDPTES = CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP,        /* SDM3 §4.4.1 */
};

uint64_t x86_cr4_valid(const struct vcpu *vcpu)
{
    uint64_t valid = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(cr4_bits); i++)
        if (x86_has(vcpu, cr4_bits[i].feature))
            valid |= cr4_bits[i].bit;
    return valid;
}

static bool check_cr4(struct vcpu *vcpu, uint64_t value)
{
    uint64_t changed = vcpu->cr4 ^ value, set = changed & value;

    if ((value & ~x86_cr4_valid(vcpu)) || (vcpu->vmx.on && !vmx_cr4_allowed(vcpu, value)))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (vcpu_long_mode(vcpu) && (!(value & CR4_PAE) || (changed & CR4_LA57)))
        return x86_raise_error(vcpu, VEC_GP, 0);
    if ((set & CR4_PCIDE) && (!vcpu_long_mode(vcpu) || (vcpu->cr3 & 0xFFF)))
        return x86_raise_error(vcpu, VEC_GP, 0);
    return true;
}

static bool write_cr4(struct vcpu *vcpu, uint64_t value)
{
    uint64_t changed = vcpu->cr4 ^ value, before = vcpu->cr4;

    if (!check_cr4(vcpu, value))
        return false;
    vcpu->cr4 = value;
    if (pae_paging(vcpu->cr0, value, vcpu->efer) && (changed & CR4_RELOADS_PDPTES) && !mmu_load_pdptes(vcpu, vcpu->cr3)) {
        vcpu->cr4 = before;
        return pdptes_refused(vcpu);
    }
    if (changed & CR4_MMU)
        mmu_mode_changed(vcpu);
    return true;
}

/* --- all of them --- */

static bool exists(unsigned cr)
{
    return cr == 0 || (cr >= 2 && cr <= 4) || cr == 8;
}

bool x86_cr_allowed(struct vcpu *vcpu, unsigned cr)
{
    if (!exists(cr))
        return x86_raise(vcpu, VEC_UD);
    return x86_require_cpl0(vcpu);
}

bool x86_write_cr(struct vcpu *vcpu, unsigned cr, uint64_t value)
{
    if (!x86_cr_allowed(vcpu, cr))
        return false;
    trace(vcpu->log, cpu_control, "vcpu%u CR%u = %#lx at %#lx", vcpu->index, cr, value, vcpu->rip);
    switch (cr) {
    case 0:
        return write_cr0(vcpu, value);
    case 2:
        vcpu->cr2 = value;
        return true;
    case 3:
        return write_cr3(vcpu, value);
    case 4:
        return write_cr4(vcpu, value);
    default:
        if (value >> 4)
            return x86_raise_error(vcpu, VEC_GP, 0);
        if (vcpu->intc_ops)
            vcpu->intc_ops->set_tpr(vcpu->intc, value);
        return true;
    }
}

bool x86_read_cr(struct vcpu *vcpu, unsigned cr, uint64_t *value)
{
    if (!x86_cr_allowed(vcpu, cr))
        return false;
    switch (cr) {
    case 0:
        *value = vcpu->cr0;
        break;
    case 2:
        *value = vcpu->cr2;
        break;
    case 3:
        *value = vcpu->cr3;
        break;
    case 4:
        *value = vcpu->cr4;
        break;
    default:
        *value = vcpu->intc_ops ? vcpu->intc_ops->get_tpr(vcpu->intc) : 0;
    }
    return true;
}

/* --- XCR0: SDM1 §13.3 "Enabling the XSAVE Feature Set and XSAVE-Enabled Features" --- */

static bool xcr0_valid(const struct vcpu *vcpu, uint64_t value)
{
    uint64_t avx512 = value & XCR0_AVX512;

    if ((value & ~x86_xcr0_supported(vcpu)) || !(value & XCR0_X87))
        return false;
    if ((value & XCR0_AVX) && !(value & XCR0_SSE))
        return false;
    return !avx512 || (avx512 == XCR0_AVX512 && (value & XCR0_AVX));
}

bool x86_xsetbv(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
    if (!(vcpu->cr4 & CR4_OSXSAVE))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    if (index != 0 || !xcr0_valid(vcpu, value))
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->xcr0 = value;
    return true;
}

/* --- a state from outside --- */

bool x86_control_registers_valid(const struct vcpu *vcpu)
{
    bool paging = vcpu->cr0 & CR0_PG, lma = vcpu->efer & EFER_LMA;

    if ((vcpu->cr0 >> 32) || (paging && !(vcpu->cr0 & CR0_PE)) || ((vcpu->cr0 & CR0_NW) && !(vcpu->cr0 & CR0_CD)))
        return false;
    if ((vcpu->cr4 & ~x86_cr4_valid(vcpu)) || (vcpu->efer & ~(uint64_t)(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)))
        return false;
    if (lma != (paging && (vcpu->efer & EFER_LME)) || (lma && !(vcpu->cr4 & CR4_PAE)) || (!lma && (vcpu->cr4 & CR4_PCIDE)))
        return false;
    return !(vcpu->cr3 >> x86_physical_bits(vcpu)) && xcr0_valid(vcpu, vcpu->xcr0);
}
