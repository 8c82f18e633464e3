/* VM entry: VMLAUNCH and VMRESUME (SDM3 chapter 27 "VM Entries"). */
#include "vmx/internal.h"
#include "x86/descriptor.h"

bool vmx_pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LME);
}

static bool controls(const struct vcpu *vcpu, enum vmx_group group, uint32_t control)
{
    return vcpu->vmx.control[group] & control;
}

/* --- loading guest state: SDM3 §27.3.2 --- */

static void load_control_registers(struct vcpu *vcpu)
{
    enum { CR0_KEPT = CR0_ET | CR0_NW | CR0_CD };       /* §27.3.2.1 */
    bool long_mode = controls(vcpu, VMX_ENTRY, ENTRY_IA32E_MODE_GUEST);
    vcpu->cr0 = (FIELD(GUEST_CR0) & ~(uint64_t)CR0_KEPT) | (vcpu->cr0 & CR0_KEPT);
    vcpu->cr3 = FIELD(GUEST_CR3);
    vcpu->cr4 = FIELD(GUEST_CR4);
    if (controls(vcpu, VMX_ENTRY, ENTRY_LOAD_EFER)) {
        vcpu->efer = FIELD(GUEST_EFER);
    } else {
        uint64_t follows = EFER_LMA | (vcpu->cr0 & CR0_PG ? EFER_LME : 0);
        vcpu->efer = (vcpu->efer & ~follows) | (long_mode ? follows : 0);
    }
    if (controls(vcpu, VMX_ENTRY, ENTRY_LOAD_DEBUG_CONTROLS)) {
        vcpu->dr7 = FIELD(GUEST_DR7) | DR7_FIXED;
        vcpu->debugctl = FIELD(GUEST_DEBUGCTL);
    }
    if (controls(vcpu, VMX_ENTRY, ENTRY_LOAD_PAT))
        vcpu->pat = FIELD(GUEST_PAT);
    vcpu->sysenter_cs = FIELD(GUEST_SYSENTER_CS);
    vcpu->sysenter_esp = FIELD(GUEST_SYSENTER_ESP);
    vcpu->sysenter_eip = FIELD(GUEST_SYSENTER_EIP);
}

static struct segment segment_field(const struct vcpu *vcpu, unsigned i)
{
    const uint64_t *field = vcpu->vmx.field;
    return (struct segment){
        .base = field[VMCS_GUEST_ES_BASE + i], .limit = field[VMCS_GUEST_ES_LIMIT + i],
        .attr = field[VMCS_GUEST_ES_ACCESS_RIGHTS + i], .selector = field[VMCS_GUEST_ES_SELECTOR + i],
    };
}

static void load_segments(struct vcpu *vcpu)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->seg[i] = segment_field(vcpu, i);
    vcpu->ldtr = segment_field(vcpu, SEG_COUNT);
    vcpu->tr = segment_field(vcpu, SEG_COUNT + 1);
    vcpu->gdtr = (struct table_register){ FIELD(GUEST_GDTR_BASE), FIELD(GUEST_GDTR_LIMIT) };
    vcpu->idtr = (struct table_register){ FIELD(GUEST_IDTR_BASE), FIELD(GUEST_IDTR_LIMIT) };
}

/* SDM3 table 25-3; SMIs do not exist here. */
void vmx_set_interruptibility(struct vcpu *vcpu, uint64_t value)
{
    vcpu->shadow = (value & BLOCKING_BY_STI ? SHADOW_STI : 0) | (value & BLOCKING_BY_MOV_SS ? SHADOW_MOV_SS : 0) |
                   (value & BLOCKING_BY_NMI ? SHADOW_NMI : 0);
}

/* SDM3 §27.7.3: none are pending in a guest that is shut down or waits for SIPI; for what an injected event does to them see inject. */
static uint64_t pending_debug_exceptions(const struct vcpu *vcpu)
{
    enum { ENABLED_BREAKPOINT = 1 << 12 };
    uint64_t debug = FIELD(GUEST_PENDING_DEBUG_EXCEPTIONS), activity = FIELD(GUEST_ACTIVITY_STATE);
    if (activity == ACTIVITY_SHUTDOWN || activity == ACTIVITY_WAIT_SIPI)
        return 0;
    return (debug & DR6_BS) | (debug & ENABLED_BREAKPOINT ? debug & 0xF : 0);
}

static void load_rest(struct vcpu *vcpu)
{
    vcpu->rip = FIELD(GUEST_RIP);
    vcpu->gpr[RSP] = FIELD(GUEST_RSP);
    vcpu->rflags = FIELD(GUEST_RFLAGS);
    vmx_set_interruptibility(vcpu, FIELD(GUEST_INTERRUPTIBILITY));
    vcpu->activity = FIELD(GUEST_ACTIVITY_STATE);
    vcpu->pending_debug = pending_debug_exceptions(vcpu);
    vcpu->monitor_gpa = ~0ull;
}

static bool load_pdptes(struct vcpu *vcpu)
{
    if (!vmx_pae_paging(vcpu->cr0, vcpu->cr4, vcpu->efer))
        return true;
    if (!controls(vcpu, VMX_PROC2, PROC2_ENABLE_EPT))
        return mmu_load_pdptes(vcpu, vcpu->cr3);
    memcpy(vcpu->pdpte, &FIELD(GUEST_PDPTE0), sizeof(vcpu->pdpte));
    return true;
}

static void load_guest(struct vcpu *vcpu)
{
    load_control_registers(vcpu);
    load_segments(vcpu);
    load_rest(vcpu);
    vmx_switch_translations(vcpu);
    commit_privilege(vcpu, SEG_DPL_OF(vcpu->seg[SS].attr));
}

/* --- MSR areas: SDM3 §27.4 "Loading MSRs", §28.6 --- */

struct msr_entry {
    uint32_t index, reserved;
    uint64_t value;
};

static bool may_load(uint32_t msr)
{
    enum { FS_BASE = 0xC0000100, GS_BASE, SMM_MONITOR_CTL = 0x9B, X2APIC = 8 };
    return msr != FS_BASE && msr != GS_BASE && msr != SMM_MONITOR_CTL && msr >> 8 != X2APIC;
}

/* As WRMSR at CPL 0 would. */
static bool load_msr(struct vcpu *vcpu, const struct msr_entry *entry)
{
    uint8_t cpl = vcpu->cpl;
    vcpu->cpl = 0;
    bool done = !entry->reserved && may_load(entry->index) && x86_wrmsr(vcpu, entry->index, entry->value);
    vcpu->cpl = cpl;
    vcpu->pending.kind = EVENT_NONE;
    return done;
}

unsigned vmx_load_msrs(struct vcpu *vcpu, uint64_t address, uint32_t count)
{
    for (uint32_t i = 0; i < count && i < MSR_AREA_MAX; i++) {
        struct msr_entry entry;
        mmu_phys_read(vcpu, address + i * sizeof(entry), &entry, sizeof(entry));
        if (!load_msr(vcpu, &entry))
            return i + 1;
    }
    return count > MSR_AREA_MAX ? MSR_AREA_MAX + 1 : 0;
}

/* --- event injection: SDM3 §27.6 --- */

static uint8_t injected_kind(unsigned type)
{
    static const uint8_t kinds[] = {
        [INTERRUPTION_EXTERNAL] = EVENT_INTERRUPT, [INTERRUPTION_NMI] = EVENT_NMI, [INTERRUPTION_HARDWARE_EXCEPTION] = EVENT_FAULT,
        [INTERRUPTION_SOFTWARE_INTERRUPT] = EVENT_SOFT_INT, [INTERRUPTION_PRIVILEGED_EXCEPTION] = EVENT_ICEBP,
        [INTERRUPTION_SOFTWARE_EXCEPTION] = EVENT_TRAP, [INTERRUPTION_OTHER] = EVENT_NONE,
    };
    return kinds[type];
}

/* SDM3 §27.7.3: INT n, INT3 and INTO behind MOV SS leave debug exceptions pending, for the first instruction of their handler. */
static bool keeps_pending_debug(const struct vcpu *vcpu, unsigned type)
{
    return (vcpu->shadow & SHADOW_MOV_SS) && (type == INTERRUPTION_SOFTWARE_INTERRUPT || type == INTERRUPTION_SOFTWARE_EXCEPTION);
}

/* The event is delivered when the loop meets it as pending: before the first instruction of the guest. */
static void inject(struct vcpu *vcpu)
{
    uint32_t information = FIELD(ENTRY_INTERRUPTION_INFORMATION);
    unsigned type = bits(information, 10, 8);
    if (!(information & INTERRUPTION_VALID))
        return;
    if (type == INTERRUPTION_OTHER) {
        vcpu->vmx.mtf_pending = true;
        return;
    }
    bool software = type >= INTERRUPTION_SOFTWARE_INTERRUPT;
    vcpu->pending = (struct event){
        .kind = injected_kind(type), .vector = information, .injected = true,
        .has_error = information & INTERRUPTION_ERROR_CODE, .error = FIELD(ENTRY_EXCEPTION_ERROR_CODE),
        .length = software ? FIELD(ENTRY_INSTRUCTION_LENGTH) : 0,
    };
    vcpu->insn_length = 0;
    vcpu->activity = ACTIVITY_ACTIVE;
    if (type == INTERRUPTION_NMI)       /* even if its delivery faults; the monitor ends that before it injects the NMI again */
        vcpu->shadow |= SHADOW_NMI;
    if (!keeps_pending_debug(vcpu, type))
        vcpu->pending_debug = 0;
}

/* --- entry --- */

/* SDM3 §27.8: nothing of the guest is saved; the host goes on as after an exit, which leaves the blocking of NMIs as it was (§28.5.5). */
static bool entry_fails(struct vcpu *vcpu, uint8_t nmi_shadow, enum vmx_reason reason, uint64_t qualification)
{
    trace(vcpu->log, vmx, "vcpu%u VM entry fails: %s, qualification %#lx", vcpu->index, vmx_reason_name(reason), qualification);
    FIELD(EXIT_REASON) = (uint32_t)reason | BIT(31);
    FIELD(EXIT_QUALIFICATION) = qualification;
    vcpu->pending.kind = EVENT_NONE;
    vmx_load_host(vcpu);
    vcpu->shadow = nmi_shadow;
    return true;
}

static void start_guest(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    vmx->guest = true;
    vmx_effective_controls(vcpu, vmx->control);
    vmx->mtf_pending = false;
    vmx->trap = 0;
    vmx->pause_first = vmx->pause_last = 0;
    vcpu->insn_length = 0;
}

/* What waits at the border to the guest's first instruction (SDM3 §27.7). */
static void after_entry(struct vcpu *vcpu)
{
    if (vmx_pin(vcpu, PIN_ACTIVATE_PREEMPTION_TIMER))
        vmx_start_timer(vcpu);
    if (vmx_proc2(vcpu, PROC2_VIRTUAL_INTERRUPT_DELIVERY)) {
        vmx_tpr_virtualization(vcpu);
    } else if (vmx_proc(vcpu, PROC_USE_TPR_SHADOW) && vmx_proc2(vcpu, PROC2_VIRTUALIZE_APIC_ACCESSES) &&
               (FIELD(TPR_THRESHOLD) & 15) > (vmx_vapic_read(vcpu, VAPIC_TPR) >> 4 & 15)) {
        vmx_set_trap(vcpu, REASON_TPR_BELOW_THRESHOLD, 0);
    }
    vmx_update_awaits(vcpu);
    bool due = vcpu->vmx.trap || vcpu->vmx.mtf_pending || vmx_steps(vcpu) || (vmx_pin(vcpu, PIN_ACTIVATE_PREEMPTION_TIMER) && !FIELD(PREEMPTION_TIMER_VALUE));
    uint32_t request = (due ? REQUEST_VMX : 0) | (vcpu->interrupt_held ? REQUEST_INTERRUPT : 0) | (vcpu->nmi_held ? REQUEST_NMI : 0) |
                       (vcpu->vmx.init_held ? REQUEST_INIT : 0);
    vcpu->vmx.init_held = false;        /* it was blocked in root operation (§24.8), and exits now */
    if (request)
        atomic_fetch_or(&vcpu->request, request);
}

static bool enter_guest(struct vcpu *vcpu, bool launch)
{
    uint64_t qualification;
    unsigned failed;
    uint8_t nmi_shadow = vcpu->shadow & SHADOW_NMI;
    if (!vmx_check_guest(vcpu, &qualification))
        return entry_fails(vcpu, nmi_shadow, REASON_INVALID_GUEST_STATE, qualification);
    start_guest(vcpu);
    load_guest(vcpu);
    if (!load_pdptes(vcpu))
        return entry_fails(vcpu, nmi_shadow, REASON_INVALID_GUEST_STATE, 2);
    failed = vmx_load_msrs(vcpu, FIELD(ENTRY_MSR_LOAD_ADDRESS), FIELD(ENTRY_MSR_LOAD_COUNT));
    if (failed)
        return entry_fails(vcpu, nmi_shadow, REASON_MSR_LOADING, failed);
    if (launch)
        vcpu->vmx.launched = true;
    vcpu->vmx.entries++;
    vmx_account(vcpu, &vcpu->vmx.exit_ticks[vcpu->vmx.handled]);
    counter_add(&vcpu->counters, COUNTER_vm_entries, 1);
    trace(vcpu->log, vmx, "vcpu%u VM entry at %#lx, injects %#lx", vcpu->index, vcpu->rip,
          FIELD(ENTRY_INTERRUPTION_INFORMATION));
    inject(vcpu);
    after_entry(vcpu);
    return true;
}

/* SDM3 §27.1 "Basic VM-Entry Checks", in the order of VMLAUNCH's pseudocode in §31.3. */
bool vmx_enter(struct vcpu *vcpu, bool launch, uint64_t next_rip)
{
    struct vmx *vmx = &vcpu->vmx;
    if (vmx->current == VMCS_NONE || vmx->shadow)
        vmx_fail_invalid(vcpu);
    else if (vmx->after_mov_ss)
        vmx_fail(vcpu, ERROR_ENTRY_WITH_MOV_SS);
    else if (launch && vmx->launched)
        vmx_fail(vcpu, ERROR_VMLAUNCH_NOT_CLEAR);
    else if (!launch && !vmx->launched)
        vmx_fail(vcpu, ERROR_VMRESUME_NOT_LAUNCHED);
    else if (!vmx_check_controls(vcpu))
        vmx_fail(vcpu, ERROR_INVALID_CONTROLS);
    else if (!vmx_check_host(vcpu))
        vmx_fail(vcpu, ERROR_INVALID_HOST_STATE);
    else
        return enter_guest(vcpu, launch);
    vcpu->rip = next_rip;
    return true;
}
