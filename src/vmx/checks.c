/* The checks of VM entry: what the rows of checks.def are made of, and the function that goes through them. */
#include "vmx/internal.h"
#include "x86/descriptor.h"

#define F(name) FIELD(name)
#define PIN(name) ((control[VMX_PIN] & PIN_##name) != 0)
#define PROC(name) ((control[VMX_PROC] & PROC_##name) != 0)
#define PROC2(name) ((control[VMX_PROC2] & PROC2_##name) != 0)
#define EXIT(name) ((control[VMX_EXIT] & EXIT_##name) != 0)
#define PROC3(name) ((control[VMX_PROC3] & PROC3_##name) != 0)
#define ENTRY(name) ((control[VMX_ENTRY] & ENTRY_##name) != 0)
#define AR(seg) F(GUEST_##seg##_ACCESS_RIGHTS)
#define LONG ENTRY(IA32E_MODE_GUEST)
#define V86 ((F(GUEST_RFLAGS) & RFLAGS_VM) != 0)
#define BLOCKING F(GUEST_INTERRUPTIBILITY)
#define INJECTS ((F(ENTRY_INTERRUPTION_INFORMATION) & INTERRUPTION_VALID) != 0)
#define INJECTS_ERROR ((F(ENTRY_INTERRUPTION_INFORMATION) & INTERRUPTION_ERROR_CODE) != 0)
#define INJECTED_TYPE bits(F(ENTRY_INTERRUPTION_INFORMATION), 10, 8)
#define INJECTED_VECTOR (F(ENTRY_INTERRUPTION_INFORMATION) & 0xFF)
#define usable(seg) (!(AR(seg) & SEG_UNUSABLE))
#define page(address) vmx_pointer_valid(vcpu, address, PAGE_SIZE)
#define physical(address) vmx_pointer_valid(vcpu, address, 1)
#define canonical(address) x86_canonical(vcpu, address)

void vmx_effective_controls(const struct vcpu *vcpu, uint32_t control[VMX_GROUP_COUNT])
{
    control[VMX_PIN] = F(PIN_BASED_CONTROLS);
    control[VMX_PROC] = F(PROCESSOR_BASED_CONTROLS);
    control[VMX_PROC2] = control[VMX_PROC] & PROC_ACTIVATE_SECONDARY_CONTROLS ? F(SECONDARY_CONTROLS) : 0;
    control[VMX_PROC3] = control[VMX_PROC] & PROC_ACTIVATE_TERTIARY_CONTROLS ? F(TERTIARY_CONTROLS) : 0;
    control[VMX_EXIT] = F(EXIT_CONTROLS);
    control[VMX_ENTRY] = F(ENTRY_CONTROLS);
}

static bool allowed(const struct vcpu *vcpu, enum vmx_group group, uint32_t value)
{
    return !(value & ~vmx_allowed1(vcpu, group)) && !(vmx_required(group) & ~value);
}

/* 16-byte aligned, and the last byte of its `count` entries of 16 bytes within the physical address width. */
static bool msr_area(const struct vcpu *vcpu, uint64_t address, uint32_t count)
{
    return !count || (vmx_pointer_valid(vcpu, address, 16) && physical(address + count * 16ull - 1));
}

static unsigned virtual_tpr_class(struct vcpu *vcpu) { return vmx_vapic_read(vcpu, VAPIC_TPR) >> 4 & 15; }

/* SDM3 §25.6.11 "Extended-Page-Table Pointer (EPTP)": memory type UC or WB, 4 levels, A/D or not, each only where it is offered. */
bool vmx_eptp_valid(const struct vcpu *vcpu, uint64_t eptp)
{
    enum { TYPE = 7, UC = 0, WB = 6, LENGTH = 7 << 3, LENGTH_4 = 3 << 3, RESERVED = 0xF80 };
    bool type = ((eptp & TYPE) == UC && vmx_can(vcpu, CAPABILITY_EPT_UC)) || ((eptp & TYPE) == WB && vmx_can(vcpu, CAPABILITY_EPT_WB));
    bool length = (eptp & LENGTH) == LENGTH_4 && vmx_can(vcpu, CAPABILITY_EPT_WALK_LENGTH_4);
    bool flags = !(eptp & EPTP_ACCESSED_DIRTY) || vmx_can(vcpu, CAPABILITY_EPT_ACCESSED_DIRTY);
    return type && length && flags && !(eptp & RESERVED) && physical(eptp);
}

static bool host_cr0_allowed(const struct vcpu *vcpu, uint64_t cr0) { return vmx_cr0_allowed(vcpu, cr0); }

static bool guest_cr0_allowed(const struct vcpu *vcpu, uint64_t cr0, bool unrestricted)
{
    return vmx_cr0_allowed(vcpu, unrestricted ? cr0 | CR0_PE | CR0_PG : cr0);
}

static uint64_t efer_mode(uint64_t efer) { return efer & (EFER_LMA | EFER_LME); }

/* --- segments --- */

/* One kind of field of all six segment registers has its value of virtual-8086 mode. */
static bool v86_segments(const struct vcpu *vcpu, enum vmcs_field first)
{
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        uint64_t want = first == VMCS_GUEST_ES_BASE ? vcpu->vmx.field[VMCS_GUEST_ES_SELECTOR + i] << 4 :
                        first == VMCS_GUEST_ES_LIMIT ? 0xFFFF : 0xF3;
        if (vcpu->vmx.field[first + i] != want)
            return false;
    }
    return true;
}

static uint32_t rights_of(const struct vcpu *vcpu, unsigned seg) { return vcpu->vmx.field[VMCS_GUEST_ES_ACCESS_RIGHTS + seg]; }

/* DS, ES, FS and GS, where they are usable. */
static bool data_segments(const struct vcpu *vcpu, bool (*holds)(const struct vcpu *vcpu, unsigned seg))
{
    static const enum seg data[] = { DS, ES, FS, GS };
    for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
        if (!(rights_of(vcpu, data[i]) & SEG_UNUSABLE) && !holds(vcpu, data[i]))
            return false;
    return true;
}

static bool data_type(const struct vcpu *vcpu, unsigned seg)
{
    uint32_t rights = rights_of(vcpu, seg);
    return (rights & SEG_ACCESSED) && (!(rights & SEG_CODE) || (rights & SEG_READABLE));
}

static bool is_code_or_data(const struct vcpu *vcpu, unsigned seg) { return rights_of(vcpu, seg) & SEG_S; }
static bool is_present(const struct vcpu *vcpu, unsigned seg) { return rights_of(vcpu, seg) & SEG_P; }
static bool reserved_rights(uint32_t rights) { return rights & 0xFFFE0F00; }
static bool no_reserved_rights(const struct vcpu *vcpu, unsigned seg) { return !reserved_rights(rights_of(vcpu, seg)); }

static bool data_dpl(const struct vcpu *vcpu, unsigned seg)
{
    enum { CONFORMING_CODE = 12 };
    uint32_t rights = rights_of(vcpu, seg);
    return (rights & SEG_TYPE) >= CONFORMING_CODE || SEG_DPL_OF(rights) >= (vcpu->vmx.field[VMCS_GUEST_ES_SELECTOR + seg] & 3);
}

static bool limit_fits(const struct vcpu *vcpu, unsigned seg)
{
    uint32_t limit = vcpu->vmx.field[VMCS_GUEST_ES_LIMIT + seg];
    bool granular = rights_of(vcpu, seg) & SEG_G;
    return granular ? (limit & 0xFFF) == 0xFFF : !(limit >> 20);
}

static bool data_limit(const struct vcpu *vcpu, unsigned seg) { return limit_fits(vcpu, seg); }

static bool cs_type(const struct vcpu *vcpu, bool unrestricted)
{
    unsigned type = AR(CS) & SEG_TYPE;
    return (type & (SEG_CODE | SEG_ACCESSED)) == (SEG_CODE | SEG_ACCESSED) || (unrestricted && type == 3);
}

static bool cs_dpl(const struct vcpu *vcpu, bool unrestricted)
{
    unsigned type = AR(CS) & SEG_TYPE, dpl = SEG_DPL_OF(AR(CS)), ss_dpl = SEG_DPL_OF(AR(SS));
    if (unrestricted && type == 3)
        return dpl == 0;
    return type & SEG_CONFORMING ? dpl <= ss_dpl : dpl == ss_dpl;
}

/* --- RIP --- */

/* The bits that no linear address of this processor has are all 0 or all 1: less than canonical. */
static bool rip_alike(const struct vcpu *vcpu, uint64_t rip)
{
    unsigned width = x86_has(vcpu, FEATURE_LA57) ? 57 : 48;
    return rip >> width == 0 || ~rip >> width == 0;
}

/* --- non-register state --- */

static bool injection_into_activity(unsigned activity, unsigned type, unsigned vector)
{
    bool machine_check = type == INTERRUPTION_HARDWARE_EXCEPTION && vector == VEC_MC;
    switch (activity) {
    case ACTIVITY_ACTIVE:
        return true;
    case ACTIVITY_HLT:
        return type == INTERRUPTION_EXTERNAL || type == INTERRUPTION_NMI || type == INTERRUPTION_OTHER || machine_check ||
               (type == INTERRUPTION_HARDWARE_EXCEPTION && vector == VEC_DB);
    case ACTIVITY_SHUTDOWN:
        return type == INTERRUPTION_NMI || machine_check;
    default:
        return false;
    }
}

static bool pending_single_step(const struct vcpu *vcpu)
{
    enum { DEBUGCTL_BTF = 2 };
    bool held = (BLOCKING & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS)) || F(GUEST_ACTIVITY_STATE) == ACTIVITY_HLT;
    bool steps = (F(GUEST_RFLAGS) & RFLAGS_TF) && !(F(GUEST_DEBUGCTL) & DEBUGCTL_BTF);
    return !held || !(F(GUEST_PENDING_DEBUG_EXCEPTIONS) & DR6_BS) == !steps;
}

static bool link_pointer(struct vcpu *vcpu, uint64_t pointer, bool shadowing)
{
    uint32_t revision;
    if (!page(pointer) || pointer == vcpu->vmx.current)
        return false;
    mmu_phys_read(vcpu, pointer, &revision, sizeof(revision));
    return revision == (VMCS_REVISION | (shadowing ? VMCS_SHADOW_INDICATOR : 0));
}

static bool pdptes_valid(const struct vcpu *vcpu)
{
    uint64_t reserved = paging_pdpte_reserved(x86_physical_bits(vcpu));
    for (unsigned i = 0; i < 4; i++)
        if ((vcpu->vmx.field[VMCS_GUEST_PDPTE0 + i] & PTE_P) && (vcpu->vmx.field[VMCS_GUEST_PDPTE0 + i] & reserved))
            return false;
    return true;
}

/* --- the rows --- */

enum check_group { GROUP_CONTROLS, GROUP_HOST, GROUP_GUEST, GROUP_PDPTE, GROUP_NMI, GROUP_LINK };

static bool failed(const struct vcpu *vcpu, const char *name, const char *section, const char *condition)
{
    trace(vcpu->log, vmx, "vcpu%u VM entry fails the check %s of SDM3 §%s: %s", vcpu->index, name, section, condition);
    return false;
}

/* Each row is tried if its group is one of the mask; *group is that of the row that failed. */
static bool check(struct vcpu *vcpu, unsigned groups, enum check_group *group)
{
    uint32_t control[VMX_GROUP_COUNT];
    vmx_effective_controls(vcpu, control);
#define CHECK(group_, name, section, ...)                           \
    if ((groups >> GROUP_##group_ & 1) && !(__VA_ARGS__)) {         \
        *group = GROUP_##group_;                                    \
        return failed(vcpu, #name, section, #__VA_ARGS__);          \
    }
#include "vmx/checks.def"
#undef CHECK
    return true;
}

bool vmx_check_controls(struct vcpu *vcpu)
{
    enum check_group group;
    return check(vcpu, 1 << GROUP_CONTROLS, &group);
}

bool vmx_check_host(struct vcpu *vcpu)
{
    enum check_group group;
    return check(vcpu, 1 << GROUP_HOST, &group);
}

/* SDM3 §27.8 "VM-Entry Failures During or After Loading Guest State": the exit qualification. */
bool vmx_check_guest(struct vcpu *vcpu, uint64_t *qualification)
{
    static const uint8_t of_group[] = { [GROUP_GUEST] = 0, [GROUP_PDPTE] = 2, [GROUP_NMI] = 3, [GROUP_LINK] = 4 };
    enum check_group group;
    if (check(vcpu, 1 << GROUP_GUEST | 1 << GROUP_PDPTE | 1 << GROUP_NMI | 1 << GROUP_LINK, &group))
        return true;
    *qualification = of_group[group];
    return false;
}
