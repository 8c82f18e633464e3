/* VM exits (SDM3 chapter 28 "VM Exits"). */
#include "vmx/internal.h"
#include "x86/descriptor.h"

const char *vmx_reason_name(unsigned reason)
{
    static const char *const names[REASON_COUNT] = {
#define REASON(number, name) [number] = #name,
#include "vmx/exits.def"
#undef REASON
    };
    return reason < REASON_COUNT ? names[reason] : NULL;
}

/* --- finding --- */

bool vmx_exit_instruction(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification, uint32_t information)
{
    vcpu->vmx.exit = (struct vmx_exit){ .reason = reason, .qualification = qualification, .instruction_information = information };
    vcpu->pending = (struct event){ .kind = EVENT_VM_EXIT };
    return false;
}

bool vmx_exit_now(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification)
{
    return vmx_exit_instruction(vcpu, reason, qualification, 0);
}

static unsigned interruption_type(const struct event *event)
{
    switch (event->kind) {
    case EVENT_SOFT_INT:
        return INTERRUPTION_SOFTWARE_INTERRUPT;
    case EVENT_ICEBP:
        return INTERRUPTION_PRIVILEGED_EXCEPTION;
    case EVENT_INTERRUPT:
        return INTERRUPTION_EXTERNAL;
    case EVENT_NMI:
        return INTERRUPTION_NMI;
    case EVENT_TRAP:
        if (event->vector == VEC_BP || event->vector == VEC_OF)
            return INTERRUPTION_SOFTWARE_EXCEPTION;
        return INTERRUPTION_HARDWARE_EXCEPTION;
    default:
        return INTERRUPTION_HARDWARE_EXCEPTION;
    }
}

/* SDM3 §28.2.2: no error code "if the logical processor was in real-address mode", where exceptions push none. */
static bool tells_error(const struct vcpu *vcpu, const struct event *event) { return event->has_error && vcpu_protected(vcpu); }

uint32_t vmx_vectoring(const struct vcpu *vcpu, const struct event *event)
{
    if (event->kind == EVENT_NONE || event->kind == EVENT_VM_EXIT)
        return 0;
    return INTERRUPTION_VALID | interruption_type(event) << 8 | event->vector | (tells_error(vcpu, event) ? INTERRUPTION_ERROR_CODE : 0);
}

/* SDM3 §26.2 "Other Causes of VM Exits", exceptions: the bitmap; for #PF also the error code against mask and match. */
static bool bitmap_has(const struct vcpu *vcpu, const struct event *event)
{
    bool bit = FIELD(EXCEPTION_BITMAP) >> event->vector & 1;
    if (event->vector != VEC_PF)
        return bit;
    bool matches = (event->error & FIELD(PAGE_FAULT_ERROR_CODE_MASK)) == FIELD(PAGE_FAULT_ERROR_CODE_MATCH);
    return matches ? bit : !bit;
}

bool vmx_event_exits(struct vcpu *vcpu, const struct event *event)
{
    bool exception = event->kind == EVENT_FAULT || event->kind == EVENT_TRAP || event->kind == EVENT_ICEBP;
    if (!vcpu->vmx.guest || !exception || event->injected || !bitmap_has(vcpu, event))
        return false;
    if (event->vector == VEC_PF)
        mmu_forget_page(vcpu, event->payload);
    bool qualifies = event->vector == VEC_PF || event->vector == VEC_DB;
    bool unblocked = event->unblocked_nmi && !event->vectoring && event->vector != VEC_DF;
    vcpu->vmx.exit = (struct vmx_exit){
        .reason = REASON_EXCEPTION_OR_NMI, .qualification = qualifies ? event->payload : 0,
        .interruption = vmx_vectoring(vcpu, event) | (unblocked ? INTERRUPTION_NMI_UNBLOCKING : 0),
        .interruption_error = tells_error(vcpu, event) ? event->error : 0,
    };
    vcpu->pending = *event;             /* what it came up in goes along */
    vcpu->pending.kind = EVENT_VM_EXIT;
    if (event->kind == EVENT_FAULT && event->vector != VEC_DB)
        vcpu->rflags |= RFLAGS_RF;
    return true;
}

void vmx_exit_triple_fault(struct vcpu *vcpu)
{
    vmx_exit_now(vcpu, REASON_TRIPLE_FAULT, 0);
    vmx_exit(vcpu);
}

/* --- recording: SDM3 §28.2 --- */

/* SDM3 §28.2.3: "NMI unblocking due to IRET" is bit 12 of the qualification, too, for exits of memory accesses. */
static bool reports_unblocking(const struct vmx_exit *exit)
{
    return exit->reason == REASON_EPT_VIOLATION || exit->reason == REASON_PML_FULL;
}

static void record(struct vcpu *vcpu)
{
    const struct vmx_exit *exit = &vcpu->vmx.exit;
    const struct event *event = &vcpu->pending;
    FIELD(EXIT_REASON) = exit->reason;
    FIELD(EXIT_QUALIFICATION) = exit->qualification |
                                (reports_unblocking(exit) && event->unblocked_nmi ? INTERRUPTION_NMI_UNBLOCKING : 0);
    FIELD(EXIT_INTERRUPTION_INFORMATION) = exit->interruption;
    FIELD(EXIT_INTERRUPTION_ERROR_CODE) = exit->interruption_error;
    FIELD(IDT_VECTORING_INFORMATION) = event->vectoring;
    FIELD(IDT_VECTORING_ERROR_CODE) = event->vectoring_error;
    FIELD(EXIT_INSTRUCTION_LENGTH) = event->length ? event->length : vcpu->insn_length;
    FIELD(EXIT_INSTRUCTION_INFORMATION) = exit->instruction_information;
    FIELD(GUEST_LINEAR_ADDRESS) = exit->guest_linear;
    FIELD(GUEST_PHYSICAL_ADDRESS) = exit->guest_physical;
    FIELD(ENTRY_INTERRUPTION_INFORMATION) &= ~INTERRUPTION_VALID;
}

/* --- saving guest state: SDM3 §28.3 --- */

static void save_segment(struct vcpu *vcpu, unsigned i, const struct segment *segment)
{
    uint64_t *field = vcpu->vmx.field;
    field[VMCS_GUEST_ES_BASE + i] = segment->base;
    field[VMCS_GUEST_ES_LIMIT + i] = segment->limit;
    field[VMCS_GUEST_ES_ACCESS_RIGHTS + i] = segment->attr;
    field[VMCS_GUEST_ES_SELECTOR + i] = segment->selector;
}

/*
 * SDM3 §28.3.3 "Saving RIP, RSP, RFLAGS, and SSP", of RF: 0 where an instruction exits as such; 1 where an access does, unless an event is being
 * delivered, which then decides. For exceptions and task switches it has been set before.
 */
static uint64_t saved_rflags(const struct vcpu *vcpu)
{
    uint64_t vectoring = FIELD(IDT_VECTORING_INFORMATION);
    bool of_fault = bits(vectoring, 10, 8) == INTERRUPTION_HARDWARE_EXCEPTION && (vectoring & 0xFF) != VEC_DB;
    switch (vcpu->vmx.exit.reason) {
    case REASON_EXCEPTION_OR_NMI: case REASON_TRIPLE_FAULT: case REASON_TASK_SWITCH:
        return vcpu->rflags;
    case REASON_APIC_ACCESS: case REASON_EPT_VIOLATION: case REASON_EPT_MISCONFIGURATION: case REASON_PML_FULL:
        return !(vectoring & INTERRUPTION_VALID) || of_fault ? vcpu->rflags | RFLAGS_RF : vcpu->rflags;
    default:
        return vcpu->insn_length ? vcpu->rflags & ~(uint64_t)RFLAGS_RF : vcpu->rflags;
    }
}

static void save_registers(struct vcpu *vcpu)
{
    FIELD(GUEST_CR0) = vcpu->cr0;
    FIELD(GUEST_CR3) = vcpu->cr3;
    FIELD(GUEST_CR4) = vcpu->cr4;
    if (vcpu->vmx.control[VMX_EXIT] & EXIT_SAVE_DEBUG_CONTROLS) {
        FIELD(GUEST_DR7) = vcpu->dr7;
        FIELD(GUEST_DEBUGCTL) = vcpu->debugctl;
    }
    if (vcpu->vmx.control[VMX_EXIT] & EXIT_SAVE_PAT)
        FIELD(GUEST_PAT) = vcpu->pat;
    if (vcpu->vmx.control[VMX_EXIT] & EXIT_SAVE_EFER)
        FIELD(GUEST_EFER) = vcpu->efer;
    FIELD(GUEST_SYSENTER_CS) = vcpu->sysenter_cs;
    FIELD(GUEST_SYSENTER_ESP) = vcpu->sysenter_esp;
    FIELD(GUEST_SYSENTER_EIP) = vcpu->sysenter_eip;
    FIELD(ENTRY_CONTROLS) &= ~(uint64_t)ENTRY_IA32E_MODE_GUEST;
    FIELD(ENTRY_CONTROLS) |= vcpu_long_mode(vcpu) ? ENTRY_IA32E_MODE_GUEST : 0;
    FIELD(GUEST_RIP) = vcpu->rip;
    FIELD(GUEST_RSP) = vcpu->gpr[RSP];
    FIELD(GUEST_RFLAGS) = saved_rflags(vcpu);
}

uint64_t vmx_interruptibility(const struct vcpu *vcpu)
{
    return (vcpu->shadow & SHADOW_STI ? BLOCKING_BY_STI : 0) | (vcpu->shadow & SHADOW_MOV_SS ? BLOCKING_BY_MOV_SS : 0) |
           (vcpu->shadow & SHADOW_NMI ? BLOCKING_BY_NMI : 0);
}

static void save_rest(struct vcpu *vcpu)
{
    enum { ENABLED_BREAKPOINT = 1 << 12 };
    FIELD(GUEST_ACTIVITY_STATE) = vcpu->activity;
    FIELD(GUEST_INTERRUPTIBILITY) = vmx_interruptibility(vcpu);
    FIELD(GUEST_PENDING_DEBUG_EXCEPTIONS) = (vcpu->pending_debug & (0xF | DR6_BS)) |
                                            (vcpu->pending_debug & 0xF ? ENABLED_BREAKPOINT : 0);
    if (vcpu->vmx.control[VMX_EXIT] & EXIT_SAVE_PREEMPTION_TIMER)
        FIELD(PREEMPTION_TIMER_VALUE) = vmx_timer_value(vcpu);
    if (vmx_proc2(vcpu, PROC2_ENABLE_EPT) && vmx_pae_paging(vcpu->cr0, vcpu->cr4, vcpu->efer))
        memcpy(&FIELD(GUEST_PDPTE0), vcpu->pdpte, sizeof(vcpu->pdpte));
}

static void save_guest(struct vcpu *vcpu)
{
    save_registers(vcpu);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        save_segment(vcpu, i, &vcpu->seg[i]);
    save_segment(vcpu, SEG_COUNT, &vcpu->ldtr);
    save_segment(vcpu, SEG_COUNT + 1, &vcpu->tr);
    FIELD(GUEST_GDTR_BASE) = vcpu->gdtr.base;
    FIELD(GUEST_GDTR_LIMIT) = vcpu->gdtr.limit;
    FIELD(GUEST_IDTR_BASE) = vcpu->idtr.base;
    FIELD(GUEST_IDTR_LIMIT) = vcpu->idtr.limit;
    save_rest(vcpu);
}

/* SDM3 §28.4 "Saving MSRs". */
static bool store_msrs(struct vcpu *vcpu)
{
    uint64_t address = FIELD(EXIT_MSR_STORE_ADDRESS);
    for (uint32_t i = 0; i < FIELD(EXIT_MSR_STORE_COUNT); i++, address += 16) {
        uint32_t index[2];
        uint64_t value;
        mmu_phys_read(vcpu, address, index, sizeof(index));
        vcpu->cpl = 0;                  /* as RDMSR at CPL 0 would; the host's CPL is loaded soon */
        if (i >= MSR_AREA_MAX || index[1] || index[0] >> 8 == 8 || !x86_rdmsr(vcpu, index[0], &value)) {
            vcpu->pending.kind = EVENT_NONE;
            return false;
        }
        mmu_phys_write(vcpu, address + 8, &value, sizeof(value));
    }
    return true;
}

/* --- loading host state: SDM3 §28.5 --- */

static void load_host_registers(struct vcpu *vcpu, bool host64)
{
    enum { CR0_KEPT = CR0_ET | CR0_NW | CR0_CD };
    vcpu->cr0 = (FIELD(HOST_CR0) & ~(uint64_t)CR0_KEPT) | (vcpu->cr0 & CR0_KEPT);
    vcpu->cr3 = FIELD(HOST_CR3);
    vcpu->cr4 = FIELD(HOST_CR4) | (host64 ? CR4_PAE : 0);
    if (!host64)
        vcpu->cr4 &= ~(uint64_t)CR4_PCIDE;
    vcpu->dr7 = DR7_FIXED;
    vcpu->debugctl = 0;
    vcpu->sysenter_cs = FIELD(HOST_SYSENTER_CS);
    vcpu->sysenter_esp = FIELD(HOST_SYSENTER_ESP);
    vcpu->sysenter_eip = FIELD(HOST_SYSENTER_EIP);
    vcpu->efer = (vcpu->efer & ~(uint64_t)(EFER_LMA | EFER_LME)) | (host64 ? EFER_LMA | EFER_LME : 0);
    if (FIELD(EXIT_CONTROLS) & EXIT_LOAD_EFER)
        vcpu->efer = FIELD(HOST_EFER);
    if (FIELD(EXIT_CONTROLS) & EXIT_LOAD_PAT)
        vcpu->pat = FIELD(HOST_PAT);
    vcpu->rip = FIELD(HOST_RIP);
    vcpu->gpr[RSP] = FIELD(HOST_RSP);
    vcpu->rflags = RFLAGS_FIXED;
}

/* SDM3 §28.5.2 "Loading Host Segment and Descriptor-Table Registers". */
static struct segment host_segment(uint16_t selector, uint32_t attr, uint64_t base)
{
    bool usable = selector != 0;
    return (struct segment){ .selector = selector, .base = base, .limit = 0xFFFFFFFF, .attr = usable ? attr : SEG_UNUSABLE };
}

static void load_host_segments(struct vcpu *vcpu, bool host64)
{
    enum { DATA = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED | SEG_DB | SEG_G,
           CODE = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED | SEG_G };
    vcpu->seg[ES] = host_segment(FIELD(HOST_ES_SELECTOR), DATA, 0);
    vcpu->seg[CS] = host_segment(FIELD(HOST_CS_SELECTOR), CODE | (host64 ? SEG_L : SEG_DB), 0);
    vcpu->seg[SS] = host_segment(FIELD(HOST_SS_SELECTOR), DATA, 0);
    vcpu->seg[DS] = host_segment(FIELD(HOST_DS_SELECTOR), DATA, 0);
    vcpu->seg[FS] = host_segment(FIELD(HOST_FS_SELECTOR), DATA, FIELD(HOST_FS_BASE));
    vcpu->seg[GS] = host_segment(FIELD(HOST_GS_SELECTOR), DATA, FIELD(HOST_GS_BASE));
    vcpu->ldtr = (struct segment){ .attr = SEG_UNUSABLE };
    vcpu->tr = (struct segment){ .selector = FIELD(HOST_TR_SELECTOR), .base = FIELD(HOST_TR_BASE), .limit = 0x67,
                                 .attr = SEG_P | SYS_TSS32_BUSY };
    vcpu->gdtr = (struct table_register){ FIELD(HOST_GDTR_BASE), 0xFFFF };
    vcpu->idtr = (struct table_register){ FIELD(HOST_IDTR_BASE), 0xFFFF };
}

static void stop_guest(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    vmx->guest = vmx->virtual_interrupt = vmx->mtf_pending = vmx->step_wanted = false;
    vmx->awaits = 0;
    vmx->trap = 0;
    memset(vmx->control, 0, sizeof(vmx->control));
}

/* SDM3 §28.7 "VMX Aborts": the processor shuts down. */
void vmx_abort(struct vcpu *vcpu, uint32_t indicator)
{
    trace(vcpu->log, vmx, "vcpu%u VMX abort %u", vcpu->index, indicator);
    vmcs_set_abort(vcpu, indicator);
    vcpu->activity = ACTIVITY_SHUTDOWN;
    if (vcpu->system_event)
        vcpu->system_event(vcpu->system_owner, vcpu, SYSTEM_TRIPLE_FAULT);
}

void vmx_load_host(struct vcpu *vcpu)
{
    enum { ABORT_PDPTE = 2, ABORT_MSR_LOAD = 4 };
    bool host64 = FIELD(EXIT_CONTROLS) & EXIT_HOST_ADDRESS_SPACE_SIZE;
    stop_guest(vcpu);
    load_host_registers(vcpu, host64);
    load_host_segments(vcpu, host64);
    vcpu->activity = ACTIVITY_ACTIVE;
    vcpu->shadow = 0;
    vcpu->pending_debug = 0;
    vcpu->monitor_gpa = ~0ull;
    vmx_switch_translations(vcpu);
    commit_privilege(vcpu, 0);
    if (vmx_pae_paging(vcpu->cr0, vcpu->cr4, vcpu->efer) && !mmu_load_pdptes(vcpu, vcpu->cr3)) {
        vmx_abort(vcpu, ABORT_PDPTE);
        return;
    }
    if (vmx_load_msrs(vcpu, FIELD(EXIT_MSR_LOAD_ADDRESS), FIELD(EXIT_MSR_LOAD_COUNT)))
        vmx_abort(vcpu, ABORT_MSR_LOAD);
    /* Held back or masked in the guest: the host may be able to take them. */
    uint32_t request = (vcpu->interrupt_held ? REQUEST_INTERRUPT : 0) | (vcpu->nmi_held ? REQUEST_NMI : 0);
    if (request)
        atomic_fetch_or(&vcpu->request, request);
}

/* SDM3 §28.5.5 "Updating Non-Register State": an NMI's exit blocks NMIs; with virtual NMIs nothing else has. */
static bool host_nmi_blocked(const struct vcpu *vcpu)
{
    const struct vmx_exit *exit = &vcpu->vmx.exit;
    if (exit->reason == REASON_EXCEPTION_OR_NMI && bits(exit->interruption, 10, 8) == INTERRUPTION_NMI)
        return true;
    return !vmx_pin(vcpu, PIN_VIRTUAL_NMIS) && (vcpu->shadow & SHADOW_NMI);
}

void vmx_account(struct vcpu *vcpu, uint64_t *ticks)
{
    uint64_t now = vmx_host_tsc(vcpu);
    if (vcpu->vmx.since)
        *ticks += now - vcpu->vmx.since;
    vcpu->vmx.since = now;
}

void vmx_exit(struct vcpu *vcpu)
{
    enum { ABORT_MSR_STORE = 1 };
    struct vmx *vmx = &vcpu->vmx;
    bool nmi_blocked = host_nmi_blocked(vcpu);
    trace(vcpu->log, vmx, "vcpu%u VM exit %s at %#lx, qualification %#lx, interruption %#x, vectoring %#x", vcpu->index,
          vmx_reason_name(vmx->exit.reason), vcpu->rip, vmx->exit.qualification, vmx->exit.interruption, vcpu->pending.vectoring);
    counter_add(&vcpu->counters, COUNTER_vm_exits, 1);
    vmx->exits[vmx->exit.reason]++;
    vmx_account(vcpu, &vmx->guest_ticks);
    vmx->handled = vmx->exit.reason;
    record(vcpu);
    vcpu->pending.kind = EVENT_NONE;
    save_guest(vcpu);
    if (!store_msrs(vcpu)) {
        vmx_abort(vcpu, ABORT_MSR_STORE);
        return;
    }
    vmx_load_host(vcpu);
    if (nmi_blocked)
        vcpu->shadow |= SHADOW_NMI;
}
