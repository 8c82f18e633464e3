/* EPT from the guest's side (SDM3 §29.3): whose translations count, violations, the modification log, #VE. */
#include "vmx/internal.h"

/*
 * SDM3 §29.4.3.1: without VPID, entry and exit drop the translations of VPID 0; with it they drop nothing, because each
 * cached translation carries VPID and EPTP.
 */
void vmx_switch_translations(struct vcpu *vcpu)
{
    uint32_t control[VMX_GROUP_COUNT];
    bool guest = vcpu->vmx.guest;
    vmx_effective_controls(vcpu, control);
    bool vpid = control[VMX_PROC2] & PROC2_ENABLE_VPID, ept = control[VMX_PROC2] & PROC2_ENABLE_EPT;
    if (!vpid)
        mmu_flush_vpid(vcpu, 0, false);
    mmu_enter_space(vcpu, &(struct mmu_space){
        .vpid = guest && vpid ? FIELD(VPID) : 0,
        .eptp = guest && ept ? FIELD(EPTP) : 0,
        .ept = guest && ept,
        .mode_based_execute = guest && (control[VMX_PROC2] & PROC2_MODE_BASED_EXECUTE),
    });
}

/* SDM3 §26.5.7.1 "Convertible EPT Violations", §26.5.7.2 "Virtualization-Exception Information". */
static bool becomes_ve(struct vcpu *vcpu, bool convertible)
{
    uint32_t busy;
    if (!convertible || !vmx_proc2(vcpu, PROC2_EPT_VIOLATION_VE) || !vcpu_protected(vcpu) || vcpu->delivering)
        return false;
    mmu_phys_read(vcpu, FIELD(VE_INFORMATION_ADDRESS) + 4, &busy, sizeof(busy));
    return busy == 0;
}

static bool raise_ve(struct vcpu *vcpu, uint64_t qualification, uint64_t gla, uint64_t guest_physical)
{
    enum { VEC_VE = 20 };
    struct {
        uint32_t reason, busy;
        uint64_t qualification, gla, guest_physical;
        uint16_t eptp_index;
    } __attribute__((packed)) information = { REASON_EPT_VIOLATION, 0xFFFFFFFF, qualification, gla, guest_physical, FIELD(EPTP_INDEX) };
    mmu_phys_write(vcpu, FIELD(VE_INFORMATION_ADDRESS), &information, sizeof(information));
    return x86_raise(vcpu, VEC_VE);
}

static bool exit_address(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification, uint64_t gla, uint64_t guest_physical)
{
    vmx_exit_now(vcpu, reason, qualification);
    vcpu->vmx.exit.guest_linear = gla;
    vcpu->vmx.exit.guest_physical = guest_physical;
    return false;
}

bool vmx_ept_violation(struct vcpu *vcpu, uint64_t qualification, uint64_t gla, uint64_t guest_physical, bool convertible)
{
    if (becomes_ve(vcpu, convertible))
        return raise_ve(vcpu, qualification, gla, guest_physical);
    return exit_address(vcpu, REASON_EPT_VIOLATION, qualification, gla, guest_physical);
}

bool vmx_ept_misconfiguration(struct vcpu *vcpu, uint64_t guest_physical)
{
    return exit_address(vcpu, REASON_EPT_MISCONFIGURATION, 0, 0, guest_physical);
}

bool vmx_log_modification(struct vcpu *vcpu, uint64_t guest_physical)
{
    enum { PML_ENTRIES = 512 };
    uint64_t page = guest_physical & ~PAGE_MASK, index = FIELD(PML_INDEX);
    if (!vmx_proc2(vcpu, PROC2_ENABLE_PML))
        return true;
    if (index >= PML_ENTRIES)
        return exit_address(vcpu, REASON_PML_FULL, 0, 0, guest_physical);
    mmu_phys_write(vcpu, FIELD(PML_ADDRESS) + index * 8, &page, sizeof(page));
    FIELD(PML_INDEX) = (index - 1) & 0xFFFF;
    return true;
}
