/* RDMSR and WRMSR over the table in msr.def. */
#include "base/clock.h"
#include "base/log.h"
#include "mmu/mmu.h"
#include "vmx/vmx.h"
#include "x86/model.h"
#include "x86/pvclock.h"
#include "x86/x86.h"

/* A write function returns false where the value is not allowed: the caller raises #GP(0). */
typedef bool msr_read(struct vcpu *vcpu, uint32_t msr, uint64_t *value);
typedef bool msr_write(struct vcpu *vcpu, uint32_t msr, uint64_t value);

/* --- plain registers whose values are addresses --- */

#define CANONICAL_MSR(name, place)                                                     \
    static bool read_##name(struct vcpu *vcpu, uint32_t msr, uint64_t *value)          \
    {                                                                                  \
        *value = vcpu->place;                                                          \
        return true;                                                                   \
    }                                                                                  \
    static bool write_##name(struct vcpu *vcpu, uint32_t msr, uint64_t value)          \
    {                                                                                  \
        if (!x86_canonical(vcpu, value))                                               \
            return false;                                                              \
        vcpu->place = value;                                                           \
        return true;                                                                   \
    }

CANONICAL_MSR(sysenter_esp, sysenter_esp)
CANONICAL_MSR(sysenter_eip, sysenter_eip)
CANONICAL_MSR(lstar, lstar)
CANONICAL_MSR(cstar, cstar)
CANONICAL_MSR(fs_base, seg[FS].base)
CANONICAL_MSR(gs_base, seg[GS].base)
CANONICAL_MSR(kernel_gs_base, kernel_gs_base)

/* --- time --- */

static void move_tsc(struct vcpu *vcpu, uint64_t by)
{
    vcpu->tsc_offset += by;
    vcpu->tsc_adjust += by;             /* SDM3 §18.17.3 "Time-Stamp Counter Adjustment": both move together */
    if (vcpu->intc_ops && vcpu->intc_ops->set_tsc_offset)
        vcpu->intc_ops->set_tsc_offset(vcpu->intc, vcpu->tsc_offset);
    pvclock_write_system_time(vcpu);
}

static bool read_tsc(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = x86_tsc(vcpu);
    return true;
}

static bool write_tsc(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    move_tsc(vcpu, value - x86_tsc(vcpu));
    return true;
}

static bool read_tsc_adjust(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->tsc_adjust;
    return true;
}

static bool write_tsc_adjust(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    move_tsc(vcpu, value - vcpu->tsc_adjust);
    return true;
}

/* Maximum non-turbo ratio in units of 100 MHz (SDM4 MSR_PLATFORM_INFO). */
static bool read_platform_info(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->model->tsc_hz / 100000000 << 8;
    return true;
}

/* --- VMX --- */

/* Without VMX it is locked with everything off, as firmware leaves it. */
static bool read_feature_control(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = x86_has(vcpu, FEATURE_VMX) ? vcpu->vmx.feature_control : 1;
    return true;
}

/* --- the interrupt controller's --- */

static bool read_intc(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    return vcpu->intc_ops && vcpu->intc_ops->read_msr(vcpu->intc, msr, value);
}

static bool write_intc(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    return vcpu->intc_ops && vcpu->intc_ops->write_msr(vcpu->intc, msr, value);
}

/* --- what the processor says about itself --- */

static bool read_microcode(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = (uint64_t)vcpu->model->microcode << 32;
    return true;
}

static bool write_nothing(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    return true;
}

static bool write_pred_cmd(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    return !(value & ~1ull);
}

/*
 * An interpreter has none of these weaknesses, so the guest needs no page-table isolation, buffer clearing or
 * retpolines (SDM4 IA32_ARCH_CAPABILITIES). IBRS_ALL, "enhanced IBRS", and BHI_CTRL cost the guest one WRMSR; without
 * them Linux clears branch history by a loop at each system call, whatever BHI_NO says.
 */
static bool read_arch_capabilities(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    enum { RDCL_NO = 1u << 0, IBRS_ALL = 1u << 1, SKIP_L1DFL_VMENTRY = 1u << 3, SSB_NO = 1u << 4, MDS_NO = 1u << 5,
           PSCHANGE_MC_NO = 1u << 6, TAA_NO = 1u << 8, SBDR_SSDP_NO = 1u << 13, FBSDP_NO = 1u << 14, PSDP_NO = 1u << 15,
           BHI_NO = 1u << 20, PBRSB_NO = 1u << 24, GDS_NO = 1u << 26, RFDS_NO = 1u << 27 };

    *value = RDCL_NO | SKIP_L1DFL_VMENTRY | SSB_NO | MDS_NO | PSCHANGE_MC_NO | TAA_NO | SBDR_SSDP_NO | FBSDP_NO |
             PSDP_NO | BHI_NO | PBRSB_NO | GDS_NO | RFDS_NO | BIT(62);      /* bit 62: ITS_NO */
    if (x86_has(vcpu, FEATURE_SPEC_CTRL))
        *value |= IBRS_ALL;
    return true;
}

/* --- memory types: SDM3 §12.11 "Memory Type Range Registers", §12.12 "Page Attribute Table" --- */

static bool mtrr_type_valid(uint8_t type)
{
    return type <= 6 && type != 2 && type != 3;
}

static bool types_valid(uint64_t value, uint8_t also)
{
    for (unsigned i = 0; i < 64; i += 8)
        if (!mtrr_type_valid(value >> i) && (uint8_t)(value >> i) != also)
            return false;
    return true;
}

static bool read_pat(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->pat;
    return true;
}

bool x86_pat_valid(uint64_t value)
{
    enum { PAT_UC_MINUS = 7 };
    return types_valid(value, PAT_UC_MINUS);
}

static bool write_pat(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if (!x86_pat_valid(value))
        return false;
    vcpu->pat = value;
    return true;
}

static bool read_mtrr_var(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    unsigned n = (msr - 0x200) / 2;
    *value = msr & 1 ? vcpu->mtrr_var_mask[n] : vcpu->mtrr_var_base[n];
    return true;
}

static bool write_mtrr_var(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    unsigned n = (msr - 0x200) / 2;
    bool is_mask = msr & 1;

    if (value >> x86_physical_bits(vcpu) || (value & (is_mask ? 0x7FF : 0xF00)))
        return false;
    if (!is_mask && !mtrr_type_valid(value))
        return false;
    if (is_mask)
        vcpu->mtrr_var_mask[n] = value;
    else
        vcpu->mtrr_var_base[n] = value;
    return true;
}

static unsigned mtrr_fixed_index(uint32_t msr)
{
    return msr == 0x250 ? 0 : msr < 0x260 ? 1 + msr - 0x258 : 3 + msr - 0x268;
}

static bool read_mtrr_fixed(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->mtrr_fixed[mtrr_fixed_index(msr)];
    return true;
}

static bool write_mtrr_fixed(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if (!types_valid(value, 0))
        return false;
    vcpu->mtrr_fixed[mtrr_fixed_index(msr)] = value;
    return true;
}

static bool read_mtrr_def_type(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->mtrr_def_type;
    return true;
}

static bool write_mtrr_def_type(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if ((value & ~0xCFFull) || !mtrr_type_valid(value))
        return false;
    vcpu->mtrr_def_type = value;
    return true;
}

/* --- machine check: SDM3 §16.3 "Machine-Check MSRs" --- */

static bool read_mce_bank(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->mce_bank[(msr - 0x400) / 4][(msr - 0x400) % 4];
    return true;
}

/*
 * CTL takes all zeros or all ones, STATUS can only be cleared (SDM3 §16.3.2). NOTE(spec): ADDR and MISC may refuse ones;
 * here they keep what is written, as kernels that test for it expect.
 */
static bool write_mce_bank(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    enum { CTL, STATUS };
    unsigned reg = (msr - 0x400) % 4;

    if (value && ((reg == CTL && value != ~0ull) || reg == STATUS))
        return false;
    vcpu->mce_bank[(msr - 0x400) / 4][reg] = value;
    return true;
}

/* --- EFER, XSS --- */

static bool read_efer(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->efer;
    return true;
}

uint64_t x86_efer_valid(const struct vcpu *vcpu)
{
    uint64_t valid = EFER_LMA;

    if (x86_has(vcpu, FEATURE_SYSCALL))
        valid |= EFER_SCE;
    if (x86_has(vcpu, FEATURE_LM))
        valid |= EFER_LME;
    if (x86_has(vcpu, FEATURE_NX))
        valid |= EFER_NXE;
    return valid;
}

/* SDM3 §2.2.1 "Extended Feature Enable Register". LMA is the processor's: writes of it are ignored. */
static bool write_efer(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    value = (value & ~(uint64_t)EFER_LMA) | (vcpu->efer & EFER_LMA);
    uint64_t changed = value ^ vcpu->efer;
    if ((value & ~x86_efer_valid(vcpu)) || ((changed & EFER_LME) && (vcpu->cr0 & CR0_PG)))
        return false;
    vcpu->efer = value;
    if (changed & (EFER_NXE | EFER_LME))
        mmu_mode_changed(vcpu);
    return true;
}

static bool read_xss(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->xss;
    return true;
}

static bool write_xss(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if (value & ~x86_xss_supported(vcpu))
        return false;
    vcpu->xss = value;
    return true;
}

/* --- KVM's --- */

static bool read_kvm_system_time(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->kvm_system_time;
    return true;
}

static bool write_kvm_system_time(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    vcpu->kvm_system_time = value;
    pvclock_write_system_time(vcpu);
    return true;
}

static bool read_kvm_wall_clock(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->kvm_wall_clock;
    return true;
}

static bool write_kvm_wall_clock(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    vcpu->kvm_wall_clock = value;
    pvclock_write_wall_clock(vcpu);
    return true;
}

static bool read_kvm_eoi(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = vcpu->kvm_eoi;
    return true;
}

/* The flag in the guest's memory stays clear, so each interrupt ends with a real EOI, which is cheap here. */
static bool write_kvm_eoi(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if (value & 2)
        return false;
    vcpu->kvm_eoi = value;
    return true;
}

/* --- the table --- */

struct msr {
    const char *name;
    uint32_t first, count;
    enum x86_feature feature;
    uint16_t field;             /* offset in struct vcpu; 0: none */
    bool ignores;               /* reserved bits of a write */
    uint64_t mask;              /* writable bits of a field; the value of a constant */
    msr_read *read;
    msr_write *write;
};

static bool read_zero(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    *value = 0;
    return true;
}

static const struct msr table[] = {
#define MSR_FIELD(name_, number_, feature_, field_, writable_) \
    { #name_, number_, 1, feature_, offsetof(struct vcpu, field_), false, writable_, NULL, NULL },
#define MSR_KEEP(name_, number_, feature_, field_, writable_) \
    { #name_, number_, 1, feature_, offsetof(struct vcpu, field_), true, writable_, NULL, NULL },
#define MSR_CONST(name_, number_, feature_, value_) { #name_, number_, 1, feature_, 0, false, value_, NULL, NULL },
#define MSR_VOID(name_, number_, feature_) { #name_, number_, 1, feature_, 0, false, 0, read_zero, write_nothing },
#define MSR_FN(name_, first_, count_, feature_, read_, write_) { #name_, first_, count_, feature_, 0, false, 0, read_, write_ },
#include "x86/msr.def"
#undef MSR_FIELD
#undef MSR_KEEP
#undef MSR_CONST
#undef MSR_VOID
#undef MSR_FN
};

static const struct msr *find(const struct vcpu *vcpu, uint32_t number)
{
    unsigned low = 0, high = ARRAY_SIZE(table);

    while (low < high) {
        unsigned middle = (low + high) / 2;
        const struct msr *m = &table[middle];

        if (number < m->first)
            high = middle;
        else if (number - m->first >= m->count)
            low = middle + 1;
        else
            return x86_has(vcpu, m->feature) ? m : NULL;
    }
    return NULL;
}

const char *x86_msr_name(uint32_t number)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        if (number - table[i].first < table[i].count)
            return table[i].name;
    return NULL;
}

bool x86_msr_row(unsigned index, uint32_t *first, uint32_t *count)
{
    if (index >= ARRAY_SIZE(table))
        return false;
    *first = table[index].first;
    *count = table[index].count;
    return true;
}

static bool unknown(struct vcpu *vcpu, uint32_t number, const char *what)
{
    counter_add(&vcpu->counters, COUNTER_unknown_msrs, 1);
    trace(vcpu->log, cpu_msr, "vcpu%u %s of unknown MSR %#x at %#lx", vcpu->index, what, number, vcpu->rip);
    return x86_raise_error(vcpu, VEC_GP, 0);
}

static uint64_t *field_of(struct vcpu *vcpu, const struct msr *m)
{
    return (uint64_t *)((char *)vcpu + m->field);
}

static bool read_row(struct vcpu *vcpu, const struct msr *m, uint32_t number, uint64_t *value)
{
    if (m->field)
        *value = *field_of(vcpu, m);
    else if (m->read)
        return m->read(vcpu, number, value);
    else if (m->write)
        return false;
    else
        *value = m->mask;
    return true;
}

static bool write_row(struct vcpu *vcpu, const struct msr *m, uint32_t number, uint64_t value)
{
    if (!m->field)
        return m->write && m->write(vcpu, number, value);
    if ((value & ~m->mask) && !m->ignores)
        return false;
    uint64_t *field = field_of(vcpu, m);
    *field = (*field & ~m->mask) | (value & m->mask);
    return true;
}

bool x86_rdmsr(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    const struct msr *m = find(vcpu, msr);
    if (!m)
        return unknown(vcpu, msr, "read");
    if (!read_row(vcpu, m, msr, value))
        return x86_raise_error(vcpu, VEC_GP, 0);
    trace(vcpu->log, cpu_msr, "vcpu%u %s %#x is %#lx", vcpu->index, m->name, msr, *value);
    return true;
}

bool x86_wrmsr(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    const struct msr *m = find(vcpu, msr);
    if (!m)
        return unknown(vcpu, msr, "write");
    trace(vcpu->log, cpu_msr, "vcpu%u %s %#x = %#lx", vcpu->index, m->name, msr, value);
    return write_row(vcpu, m, msr, value) || x86_raise_error(vcpu, VEC_GP, 0);
}
