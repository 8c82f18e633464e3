/* What is offered: the capability MSRs (SDM3 appendix A "VMX Capability Reporting Facility") and IA32_FEATURE_CONTROL. */
#include "vmx/internal.h"
#include "x86/model.h"

enum {
    MSR_BASIC = 0x480, MSR_PIN, MSR_PROC, MSR_EXIT, MSR_ENTRY, MSR_MISC, MSR_CR0_FIXED0, MSR_CR0_FIXED1, MSR_CR4_FIXED0,
    MSR_CR4_FIXED1, MSR_VMCS_ENUM, MSR_PROC2, MSR_EPT_VPID_CAP, MSR_TRUE_PIN, MSR_TRUE_PROC, MSR_TRUE_EXIT, MSR_TRUE_ENTRY,
    MSR_VMFUNC, MSR_PROC3,
};

/* SDM3 §A.3 to §A.5: the default1 class; and those of it that the TRUE registers say may be 0. */
static const struct {
    uint32_t default1, may_be_0;
} defaults[VMX_GROUP_COUNT] = {
    [VMX_PIN] = { 0x00000016, 0 },
    [VMX_PROC] = { 0x0401E172, PROC_CR3_LOAD_EXITING | PROC_CR3_STORE_EXITING },
    [VMX_EXIT] = { 0x00036DFF, EXIT_SAVE_DEBUG_CONTROLS },
    [VMX_ENTRY] = { 0x000011FF, ENTRY_LOAD_DEBUG_CONTROLS },
};

uint32_t vmx_default1(enum vmx_group group) { return defaults[group].default1; }

static const struct vmx_offer *offer_of(const struct vcpu *vcpu) { return &vcpu->model->vmx[vcpu->index]; }

uint32_t vmx_allowed1(const struct vcpu *vcpu, enum vmx_group group) { return offer_of(vcpu)->control[group]; }
bool vmx_can(const struct vcpu *vcpu, enum vmx_capability capability) { return offer_of(vcpu)->ept_vpid >> capability & 1; }

uint32_t vmx_required(enum vmx_group group) { return defaults[group].default1 & ~defaults[group].may_be_0; }

static uint64_t settings(const struct vcpu *vcpu, enum vmx_group group, uint32_t required)
{
    return (uint64_t)vmx_allowed1(vcpu, group) << 32 | required;
}

static uint64_t plain(const struct vcpu *vcpu, enum vmx_group group) { return settings(vcpu, group, defaults[group].default1); }
static uint64_t true_controls(const struct vcpu *vcpu, enum vmx_group group) { return settings(vcpu, group, vmx_required(group)); }

/* SDM3 §A.1: 4 KiB regions in write-back memory, INS/OUTS information, TRUE registers, error codes with any exception. */
static uint64_t basic(void)
{
    return VMCS_REVISION | PAGE_SIZE << 32 | 6ull << 50 | BIT(54) | BIT(55) | BIT(56);
}

/* SDM3 §A.6: EFER.LMA is stored, all activity states, 4 CR3 targets, VMWRITE to every field, injection with length 0. */
static uint64_t misc(void)
{
    return VMX_TIMER_SHIFT | BIT(5) | 7ull << 6 | 4ull << 16 | BIT(29) | BIT(30);
}

static bool offers(const struct vcpu *vcpu, uint32_t secondary) { return vmx_allowed1(vcpu, VMX_PROC2) & secondary; }

/* SDM3 appendix A: registers that exist where what they tell of does. */
static bool register_exists(const struct vcpu *vcpu, uint32_t msr)
{
    switch (msr) {
    case MSR_PROC2: return vmx_allowed1(vcpu, VMX_PROC) & PROC_ACTIVATE_SECONDARY_CONTROLS;
    case MSR_EPT_VPID_CAP: return offers(vcpu, PROC2_ENABLE_EPT | PROC2_ENABLE_VPID);
    case MSR_PROC3: return vmx_allowed1(vcpu, VMX_PROC) & PROC_ACTIVATE_TERTIARY_CONTROLS;
    case MSR_VMFUNC: return offers(vcpu, PROC2_ENABLE_VM_FUNCTIONS);
    default: return true;
    }
}

static const uint64_t cr0_fixed0 = CR0_PG | CR0_NE | CR0_PE, cr0_fixed1 = 0xFFFFFFFF;

bool vmx_cr0_allowed(const struct vcpu *vcpu, uint64_t cr0)
{
    uint64_t must = cr0_fixed0;
    if (vmx_proc2(vcpu, PROC2_UNRESTRICTED_GUEST))
        must &= ~(CR0_PG | CR0_PE);
    return (cr0 & must) == must && !(cr0 & ~cr0_fixed1);
}

bool vmx_cr4_allowed(const struct vcpu *vcpu, uint64_t cr4)
{
    return (cr4 & CR4_VMXE) && !(cr4 & ~x86_cr4_valid(vcpu));
}

bool vmx_read_capability(struct vcpu *vcpu, uint32_t msr, uint64_t *value)
{
    if (!register_exists(vcpu, msr))
        return false;
    switch (msr) {
    case MSR_BASIC: *value = basic(); break;
    case MSR_PIN: *value = plain(vcpu, VMX_PIN); break;
    case MSR_PROC: *value = plain(vcpu, VMX_PROC); break;
    case MSR_EXIT: *value = plain(vcpu, VMX_EXIT); break;
    case MSR_ENTRY: *value = plain(vcpu, VMX_ENTRY); break;
    case MSR_MISC: *value = misc(); break;
    case MSR_CR0_FIXED0: *value = cr0_fixed0; break;
    case MSR_CR0_FIXED1: *value = cr0_fixed1; break;
    case MSR_CR4_FIXED0: *value = CR4_VMXE; break;
    case MSR_CR4_FIXED1: *value = x86_cr4_valid(vcpu); break;
    case MSR_VMCS_ENUM: *value = vmcs_highest_index(vcpu) << 1; break;
    case MSR_PROC2: *value = settings(vcpu, VMX_PROC2, 0); break;
    case MSR_EPT_VPID_CAP: *value = offer_of(vcpu)->ept_vpid; break;
    case MSR_TRUE_PIN: *value = true_controls(vcpu, VMX_PIN); break;
    case MSR_TRUE_PROC: *value = true_controls(vcpu, VMX_PROC); break;
    case MSR_TRUE_EXIT: *value = true_controls(vcpu, VMX_EXIT); break;
    case MSR_TRUE_ENTRY: *value = true_controls(vcpu, VMX_ENTRY); break;
    case MSR_PROC3: *value = vmx_allowed1(vcpu, VMX_PROC3); break;      /* §A.3.4: 64 bits that may be 1 */
    case MSR_VMFUNC: *value = VM_FUNCTION_EPTP_SWITCHING; break;
    default: return false;
    }
    return true;
}

/* SDM3 §24.7 "Enabling and Entering VMX Operation". SMX is not offered, so its bit cannot be set. */
bool vmx_write_feature_control(struct vcpu *vcpu, uint32_t msr, uint64_t value)
{
    if (!x86_has(vcpu, FEATURE_VMX) || (vcpu->vmx.feature_control & FEATURE_CONTROL_LOCK) ||
        (value & ~(uint64_t)(FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX)))
        return false;
    vcpu->vmx.feature_control = value;
    return true;
}
