/*
 * VT-x: each check of VM entry, by the rows of vmx/checks.def. A line "ROW name" tells the runner which row the next entry must
 * fail by; it compares with what the trace says. A row without a case fails.
 */
#include "lib/vmx.h"

enum row {
#define CHECK(group, name, section, ...) ROW_##name,
#include "vmx/checks.def"
#undef CHECK
    ROW_COUNT
};

enum group { CONTROLS, HOST, GUEST, PDPTE, NMI, LINK };
static const struct { const char *name; enum group group; } rows[] = {
#define CHECK(group, name, section, ...) { #name, group },
#include "vmx/checks.def"
#undef CHECK
};

/* SDM3 §27.8: the exit qualification of groups that fail after the host's checks. */
static const uint64_t qualification[] = { [GUEST] = 0, [PDPTE] = 2, [NMI] = 3, [LINK] = 4 };

enum {
    PAGE_WB_4 = 0x1E,                           /* an EPT pointer without its address */
    IF = 0x202, TF_IF = 0x302, VM = 0x20002,    /* RFLAGS */
    STI = 1, MOV_SS = 2,                        /* interruptibility */
    DATA = 0xC093, DATA_DPL3 = 0xC0F3, CODE_DPL3 = 0xA0FB, CONFORMING = 0xA09F, SYSTEM = 0xC083, ABSENT = 0xC013, RESERVED = 0xC193,
    GP_ERROR = (int)0x80000B0D, NMI_EVENT = (int)0x80000202, INTERRUPT = (int)0x80000060,
    EPT_UG = PROC2_ENABLE_EPT | PROC2_UNRESTRICTED_GUEST,
};
#define HIGH (1ull << 60)           /* beyond every physical address */
#define NOT_CANONICAL (1ull << 47)

static void guest_vmcall(void) { vmcall(); }

/* --- states to begin with --- */

static void with_ept(void) { vmwrite(VMCS_EPTP, PAGE_WB_4); }

static void with_empty_apic(void) { vmwrite(VMCS_VIRTUAL_APIC_ADDRESS, (uint64_t)alloc_page()); }

static void guest32(void)
{
    control_clear(VMCS_ENTRY_CONTROLS, ENTRY_IA32E_MODE_GUEST);
    vmwrite(VMCS_GUEST_EFER, 0);
    vmwrite(VMCS_GUEST_CS_ACCESS_RIGHTS, 0xC09B);
    with_ept();
}

static void host32(void)
{
    control_clear(VMCS_EXIT_CONTROLS, EXIT_HOST_ADDRESS_SPACE_SIZE);
    vmwrite(VMCS_HOST_EFER, 0);
}

static void guest_v86(void)
{
    guest32();
    vmwrite(VMCS_GUEST_RFLAGS, VM);
    for (unsigned i = 0; i < 6; i++) {
        vmwrite(VMCS_GUEST_ES_BASE + 2 * i, vmread(VMCS_GUEST_ES_SELECTOR + 2 * i) << 4);
        vmwrite(VMCS_GUEST_ES_LIMIT + 2 * i, 0xFFFF);
        vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * i, 0xF3);
    }
}

static void guest_v86_in_ia32e(void)
{
    guest_v86();
    control_set(VMCS_ENTRY_CONTROLS, ENTRY_IA32E_MODE_GUEST);
    vmwrite(VMCS_GUEST_EFER, vmread(VMCS_HOST_EFER));
}

static void guest_at_cpl3(void)
{
    vmwrite(VMCS_GUEST_CS_SELECTOR, SEL_CODE64 | 3);
    vmwrite(VMCS_GUEST_SS_SELECTOR, SEL_DATA | 3);
    vmwrite(VMCS_GUEST_CS_ACCESS_RIGHTS, CODE_DPL3);
    vmwrite(VMCS_GUEST_SS_ACCESS_RIGHTS, DATA_DPL3);
}

static void with_switching(void)
{
    with_ept();
    vmwrite(VMCS_VM_FUNCTION_CONTROLS, 1);
}

static void link_to_itself(void) { vmwrite(VMCS_VMCS_LINK_POINTER, (uint64_t)vmcs_region); }
static void link_to_another_revision(void) { vmwrite(VMCS_VMCS_LINK_POINTER, (uint64_t)alloc_page()); }

/* --- one thing wrong in each --- */

/* A complete state, then control bits, then `setup`, then fields. */
static const struct wrong {
    enum row row;
    uint32_t pin, proc, proc2, exit, entry;
    void (*setup)(void);
    struct { uint64_t field, value; } set[4];
} wrongs[] = {
#define W(name, ...) { .row = ROW_##name, __VA_ARGS__ }
#define SET(field, value) { VMCS_##field, value }
    W(pin_based_controls, .set = { SET(PIN_BASED_CONTROLS, 0xFFFFFFFF) }),
    W(pin_based_controls, .set = { SET(PIN_BASED_CONTROLS, 0) }),
    W(processor_based_controls, .set = { SET(PROCESSOR_BASED_CONTROLS, 0) }),
    W(processor_based_controls, .proc = 1),
    W(secondary_controls, .proc2 = 1u << 31),
    W(tertiary_controls, .proc = PROC_ACTIVATE_TERTIARY_CONTROLS, .set = { SET(TERTIARY_CONTROLS, 1) }),
    W(tertiary_controls, .proc = PROC_ACTIVATE_TERTIARY_CONTROLS, .set = { SET(TERTIARY_CONTROLS, HIGH) }),
    W(cr3_target_count, .set = { SET(CR3_TARGET_COUNT, 5) }),
    W(io_bitmaps, .proc = PROC_USE_IO_BITMAPS, .set = { SET(IO_BITMAP_A, 8) }),
    W(io_bitmaps, .proc = PROC_USE_IO_BITMAPS, .set = { SET(IO_BITMAP_B, HIGH) }),
    W(msr_bitmap, .proc = PROC_USE_MSR_BITMAPS, .set = { SET(MSR_BITMAP, 8) }),
    W(virtual_apic_address, .proc = PROC_USE_TPR_SHADOW, .set = { SET(VIRTUAL_APIC_ADDRESS, 16) }),
    W(tpr_threshold_reserved, .proc = PROC_USE_TPR_SHADOW, .set = { SET(TPR_THRESHOLD, 16) }),
    W(tpr_threshold_vtpr, .proc = PROC_USE_TPR_SHADOW, .setup = with_empty_apic, .set = { SET(TPR_THRESHOLD, 1) }),
    W(virtual_nmis, .pin = PIN_VIRTUAL_NMIS),
    W(nmi_window_exiting, .proc = PROC_NMI_WINDOW_EXITING),
    W(apic_access_address, .proc2 = PROC2_VIRTUALIZE_APIC_ACCESSES, .set = { SET(APIC_ACCESS_ADDRESS, 1) }),
    W(needs_tpr_shadow, .proc2 = PROC2_VIRTUALIZE_X2APIC_MODE),
    W(needs_tpr_shadow, .proc2 = PROC2_APIC_REGISTER_VIRTUALIZATION),
    W(needs_tpr_shadow, .pin = PIN_EXTERNAL_INTERRUPT_EXITING, .proc2 = PROC2_VIRTUAL_INTERRUPT_DELIVERY),
#define IPIS .proc = PROC_ACTIVATE_TERTIARY_CONTROLS | PROC_USE_TPR_SHADOW
    W(needs_tpr_shadow, .proc = PROC_ACTIVATE_TERTIARY_CONTROLS, .set = { SET(TERTIARY_CONTROLS, PROC3_IPI_VIRTUALIZATION) }),
    W(pid_pointer_table, IPIS, .set = { SET(TERTIARY_CONTROLS, PROC3_IPI_VIRTUALIZATION), SET(PID_POINTER_TABLE_ADDRESS, 4) }),
    W(pid_pointer_table, IPIS, .set = { SET(TERTIARY_CONTROLS, PROC3_IPI_VIRTUALIZATION), SET(PID_POINTER_TABLE_ADDRESS, HIGH) }),
    W(pid_pointer_table, IPIS, .set = { SET(TERTIARY_CONTROLS, PROC3_IPI_VIRTUALIZATION), SET(LAST_PID_POINTER_INDEX, 1),
                                        SET(PID_POINTER_TABLE_ADDRESS, (1ull << 40) - 8) }),
    W(x2apic_or_apic_accesses, .proc = PROC_USE_TPR_SHADOW, .proc2 = PROC2_VIRTUALIZE_X2APIC_MODE | PROC2_VIRTUALIZE_APIC_ACCESSES),
    W(virtual_interrupt_delivery, .proc = PROC_USE_TPR_SHADOW, .proc2 = PROC2_VIRTUAL_INTERRUPT_DELIVERY),
    W(posted_interrupts, .pin = PIN_PROCESS_POSTED_INTERRUPTS, .exit = EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT),
#define POSTED .pin = PIN_PROCESS_POSTED_INTERRUPTS | PIN_EXTERNAL_INTERRUPT_EXITING, .proc = PROC_USE_TPR_SHADOW, \
               .proc2 = PROC2_VIRTUAL_INTERRUPT_DELIVERY
    W(posted_interrupts, POSTED),
    W(posted_interrupt_vector, POSTED, .exit = EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT, .set = { SET(POSTED_INTERRUPT_VECTOR, 256) }),
    W(posted_interrupt_descriptor, POSTED, .exit = EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT, .set = { SET(POSTED_INTERRUPT_DESCRIPTOR, 32) }),
    W(vpid, .proc2 = PROC2_ENABLE_VPID),
    W(eptp, .proc2 = PROC2_ENABLE_EPT, .set = { SET(EPTP, 0x19) }),
    W(eptp, .proc2 = PROC2_ENABLE_EPT, .set = { SET(EPTP, 0x16) }),
    W(eptp, .proc2 = PROC2_ENABLE_EPT, .set = { SET(EPTP, PAGE_WB_4 | 1 << 7) }),
    W(eptp, .proc2 = PROC2_ENABLE_EPT, .set = { SET(EPTP, PAGE_WB_4 | HIGH) }),
    W(pml_needs_ept, .proc2 = PROC2_ENABLE_PML),
    W(pml_address, .proc2 = PROC2_ENABLE_EPT | PROC2_ENABLE_PML, .setup = with_ept, .set = { SET(PML_ADDRESS, 1) }),
    W(unrestricted_needs_ept, .proc2 = PROC2_UNRESTRICTED_GUEST),
    W(mode_based_needs_ept, .proc2 = PROC2_MODE_BASED_EXECUTE),
    W(vm_function_controls, .proc2 = PROC2_ENABLE_VM_FUNCTIONS, .set = { SET(VM_FUNCTION_CONTROLS, 2) }),
    W(eptp_switching, .proc2 = PROC2_ENABLE_VM_FUNCTIONS, .set = { SET(VM_FUNCTION_CONTROLS, 1) }),
    W(eptp_switching, .proc2 = PROC2_ENABLE_VM_FUNCTIONS | PROC2_ENABLE_EPT, .setup = with_switching, .set = { SET(EPTP_LIST, 1) }),
    W(vmcs_shadowing, .proc2 = PROC2_VMCS_SHADOWING, .set = { SET(VMREAD_BITMAP, 1) }),
    W(vmcs_shadowing, .proc2 = PROC2_VMCS_SHADOWING, .set = { SET(VMWRITE_BITMAP, 1) }),
    W(ve_information_address, .proc2 = PROC2_EPT_VIOLATION_VE, .set = { SET(VE_INFORMATION_ADDRESS, 1) }),

    W(exit_controls, .set = { SET(EXIT_CONTROLS, 0) }),
    W(exit_controls, .exit = 1u << 31),
    W(save_preemption_timer, .exit = EXIT_SAVE_PREEMPTION_TIMER),
    W(exit_msr_store_area, .set = { SET(EXIT_MSR_STORE_COUNT, 1), SET(EXIT_MSR_STORE_ADDRESS, 8) }),
    W(exit_msr_load_area, .set = { SET(EXIT_MSR_LOAD_COUNT, 1), SET(EXIT_MSR_LOAD_ADDRESS, HIGH) }),
    W(entry_controls, .set = { SET(ENTRY_CONTROLS, 0) }),
    W(entry_controls, .entry = 1u << 31),
    W(injected_type, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80000100) }),
    W(injected_nmi, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80000203) }),
    W(injected_exception, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80000320) }),
    W(injected_other, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80000701) }),
    W(injected_error_code, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80000860) }),
    W(injected_error_code, .proc2 = EPT_UG, .setup = guest32, .set = { SET(GUEST_CR0, 0x20), SET(ENTRY_INTERRUPTION_INFORMATION, GP_ERROR) }),
    W(injection_reserved, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80001060) }),
    W(injected_error_code_reserved, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, GP_ERROR), SET(ENTRY_EXCEPTION_ERROR_CODE, 0x10000) }),
    W(injected_instruction_length, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, 0x80000460), SET(ENTRY_INSTRUCTION_LENGTH, 16) }),
    W(entry_msr_load_area, .set = { SET(ENTRY_MSR_LOAD_COUNT, 1), SET(ENTRY_MSR_LOAD_ADDRESS, 8) }),

    W(host_cr0, .set = { SET(HOST_CR0, 0x80000001) }),
    W(host_cr4, .set = { SET(HOST_CR4, 0x20) }),
    W(host_cr3, .set = { SET(HOST_CR3, HIGH) }),
    W(host_sysenter, .set = { SET(HOST_SYSENTER_ESP, NOT_CANONICAL) }),
    W(host_sysenter, .set = { SET(HOST_SYSENTER_EIP, NOT_CANONICAL) }),
    W(host_pat, .exit = EXIT_LOAD_PAT, .set = { SET(HOST_PAT, 2) }),
    W(host_efer_reserved, .set = { SET(HOST_EFER, 0x502) }),
    W(host_efer_mode, .set = { SET(HOST_EFER, 0) }),
    W(host_efer_mode, .set = { SET(HOST_EFER, 0x100) }),
    W(host_selectors, .set = { SET(HOST_DS_SELECTOR, SEL_DATA | 3) }),
    W(host_selectors, .set = { SET(HOST_ES_SELECTOR, SEL_DATA | 4) }),
    W(host_cs, .set = { SET(HOST_CS_SELECTOR, 0) }),
    W(host_tr, .set = { SET(HOST_TR_SELECTOR, 0) }),
    W(host_ss, .setup = host32, .set = { SET(HOST_SS_SELECTOR, 0) }),
    W(host_bases, .set = { SET(HOST_FS_BASE, NOT_CANONICAL) }),
    W(host_bases, .set = { SET(HOST_GS_BASE, NOT_CANONICAL) }),
    W(host_bases, .set = { SET(HOST_TR_BASE, NOT_CANONICAL) }),
    W(host_bases, .set = { SET(HOST_GDTR_BASE, NOT_CANONICAL) }),
    W(host_bases, .set = { SET(HOST_IDTR_BASE, NOT_CANONICAL) }),
    W(inside_ia32e, .setup = host32),
    W(host_64bit, .set = { SET(HOST_CR4, CR4_VMXE) }),

    W(guest_cr0, .set = { SET(GUEST_CR0, 0x80000001) }),
    W(guest_cr0, .set = { SET(GUEST_CR0, 0x20) }),
    W(guest_paging_needs_protection, .proc2 = EPT_UG, .setup = with_ept, .set = { SET(GUEST_CR0, 0x80000020) }),
    W(guest_cr4, .set = { SET(GUEST_CR4, 0x20) }),
    W(guest_debugctl, .entry = ENTRY_LOAD_DEBUG_CONTROLS, .set = { SET(GUEST_DEBUGCTL, 4) }),
    W(ia32e_needs_paging, .set = { SET(GUEST_CR4, CR4_VMXE) }),
    W(pcide_needs_ia32e, .setup = guest32, .set = { SET(GUEST_CR4, CR4_VMXE | 1 << 5 | 1 << 17) }),
    W(guest_cr3, .set = { SET(GUEST_CR3, HIGH) }),
    W(guest_dr7, .entry = ENTRY_LOAD_DEBUG_CONTROLS, .set = { SET(GUEST_DR7, 1ull << 32) }),
    W(guest_sysenter, .set = { SET(GUEST_SYSENTER_ESP, NOT_CANONICAL) }),
    W(guest_sysenter, .set = { SET(GUEST_SYSENTER_EIP, NOT_CANONICAL) }),
    W(guest_pat, .entry = ENTRY_LOAD_PAT, .set = { SET(GUEST_PAT, 2) }),
    W(guest_efer_reserved, .set = { SET(GUEST_EFER, 0x502) }),
    W(guest_efer_lma, .set = { SET(GUEST_EFER, 0x100) }),
    W(guest_efer_lme, .set = { SET(GUEST_EFER, 0x400) }),

    W(tr_selector, .set = { SET(GUEST_TR_SELECTOR, SEL_TSS | 4) }),
    W(ldtr_selector, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x82), SET(GUEST_LDTR_SELECTOR, 4) }),
    W(ss_selector_rpl, .set = { SET(GUEST_SS_SELECTOR, SEL_DATA | 3) }),
    W(v86_bases, .setup = guest_v86, .set = { SET(GUEST_ES_BASE, 1) }),
    W(v86_limits, .setup = guest_v86, .set = { SET(GUEST_GS_LIMIT, 0xFFFE) }),
    W(v86_access_rights, .setup = guest_v86, .set = { SET(GUEST_DS_ACCESS_RIGHTS, 0x93) }),
    W(tr_fs_gs_bases, .set = { SET(GUEST_TR_BASE, NOT_CANONICAL) }),
    W(tr_fs_gs_bases, .set = { SET(GUEST_FS_BASE, NOT_CANONICAL) }),
    W(tr_fs_gs_bases, .set = { SET(GUEST_GS_BASE, NOT_CANONICAL) }),
    W(ldtr_base, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x82), SET(GUEST_LDTR_BASE, NOT_CANONICAL) }),
    W(cs_base, .set = { SET(GUEST_CS_BASE, 1ull << 32) }),
    W(data_bases, .set = { SET(GUEST_SS_BASE, 1ull << 32) }),
    W(data_bases, .set = { SET(GUEST_DS_BASE, 1ull << 32) }),
    W(data_bases, .set = { SET(GUEST_ES_BASE, 1ull << 32) }),
    W(cs_type, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA093) }),
    W(cs_type, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA09A) }),
    W(ss_type, .set = { SET(GUEST_SS_ACCESS_RIGHTS, 0xC091) }),
    W(data_types, .set = { SET(GUEST_DS_ACCESS_RIGHTS, 0xC092) }),
    W(data_types, .set = { SET(GUEST_FS_ACCESS_RIGHTS, 0xC099) }),
    W(code_or_data, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA08B) }),
    W(code_or_data, .set = { SET(GUEST_SS_ACCESS_RIGHTS, SYSTEM) }),
    W(code_or_data, .set = { SET(GUEST_ES_ACCESS_RIGHTS, SYSTEM) }),
    W(cs_dpl, .set = { SET(GUEST_CS_ACCESS_RIGHTS, CODE_DPL3) }),
    W(cs_dpl, .set = { SET(GUEST_CS_ACCESS_RIGHTS, CONFORMING | 3 << 5) }),
    W(cs_dpl, .proc2 = EPT_UG, .setup = with_ept, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA0F3) }),
    W(ss_dpl_rpl, .set = { SET(GUEST_CS_ACCESS_RIGHTS, CONFORMING), SET(GUEST_SS_ACCESS_RIGHTS, DATA_DPL3) }),
    W(ss_dpl_0, .proc2 = EPT_UG, .setup = with_ept, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA093), SET(GUEST_SS_ACCESS_RIGHTS, DATA_DPL3) }),
    W(data_dpls, .set = { SET(GUEST_GS_SELECTOR, SEL_DATA | 3) }),
    W(present, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA01B) }),
    W(present, .set = { SET(GUEST_SS_ACCESS_RIGHTS, ABSENT) }),
    W(present, .set = { SET(GUEST_DS_ACCESS_RIGHTS, ABSENT) }),
    W(access_rights_reserved, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xA19B) }),
    W(access_rights_reserved, .set = { SET(GUEST_SS_ACCESS_RIGHTS, RESERVED) }),
    W(access_rights_reserved, .set = { SET(GUEST_DS_ACCESS_RIGHTS, DATA | 1 << 17) }),
    W(cs_default_size, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xE09B) }),
    W(granularity, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0x209B) }),
    W(granularity, .set = { SET(GUEST_SS_ACCESS_RIGHTS, 0x4093) }),
    W(granularity, .set = { SET(GUEST_DS_LIMIT, 0xFFFFFFFE) }),
    W(tr_type, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x89) }),
    W(tr_type, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x83) }),
    W(tr_rights, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x1008B) }),
    W(tr_rights, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x9B) }),
    W(tr_rights, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x0B) }),
    W(tr_rights, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x18B) }),
    W(tr_granularity, .set = { SET(GUEST_TR_LIMIT, 0x100000) }),
    W(tr_granularity, .set = { SET(GUEST_TR_ACCESS_RIGHTS, 0x808B) }),
    W(ldtr_rights, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x83) }),
    W(ldtr_rights, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x92) }),
    W(ldtr_rights, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x02) }),
    W(ldtr_rights, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x182) }),
    W(ldtr_granularity, .set = { SET(GUEST_LDTR_ACCESS_RIGHTS, 0x82), SET(GUEST_LDTR_LIMIT, 0x100000) }),
    W(descriptor_table_bases, .set = { SET(GUEST_GDTR_BASE, NOT_CANONICAL) }),
    W(descriptor_table_bases, .set = { SET(GUEST_IDTR_BASE, NOT_CANONICAL) }),
    W(descriptor_table_limits, .set = { SET(GUEST_GDTR_LIMIT, 0x10000) }),
    W(descriptor_table_limits, .set = { SET(GUEST_IDTR_LIMIT, 0x10000) }),
    W(rip_upper_half, .set = { SET(GUEST_CS_ACCESS_RIGHTS, 0xC09B), SET(GUEST_RIP, 1ull << 32) }),
    W(rip_alike, .set = { SET(GUEST_RIP, 1ull << 48) }),
    W(rflags_reserved, .set = { SET(GUEST_RFLAGS, 0) }),
    W(rflags_reserved, .set = { SET(GUEST_RFLAGS, 0x8002) }),
    W(rflags_reserved, .set = { SET(GUEST_RFLAGS, 1ull << 22 | 2) }),
    W(rflags_vm, .setup = guest_v86_in_ia32e),
    W(rflags_if, .set = { SET(ENTRY_INTERRUPTION_INFORMATION, INTERRUPT) }),

    W(activity_state, .set = { SET(GUEST_ACTIVITY_STATE, 4) }),
    W(hlt_needs_cpl0, .setup = guest_at_cpl3, .set = { SET(GUEST_ACTIVITY_STATE, 1) }),
    W(active_when_blocked, .set = { SET(GUEST_ACTIVITY_STATE, 1), SET(GUEST_INTERRUPTIBILITY, MOV_SS) }),
    W(injection_into_activity, .set = { SET(GUEST_ACTIVITY_STATE, 1), SET(ENTRY_INTERRUPTION_INFORMATION, GP_ERROR) }),
    W(injection_into_activity, .set = { SET(GUEST_ACTIVITY_STATE, 2), SET(GUEST_RFLAGS, IF), SET(ENTRY_INTERRUPTION_INFORMATION, INTERRUPT) }),
    W(injection_into_activity, .set = { SET(GUEST_ACTIVITY_STATE, 3), SET(ENTRY_INTERRUPTION_INFORMATION, NMI_EVENT) }),
    W(interruptibility_reserved, .set = { SET(GUEST_INTERRUPTIBILITY, 0x20) }),
    W(interruptibility_reserved, .set = { SET(GUEST_INTERRUPTIBILITY, 4) }),
    W(one_blocking, .set = { SET(GUEST_INTERRUPTIBILITY, STI | MOV_SS), SET(GUEST_RFLAGS, IF) }),
    W(sti_needs_if, .set = { SET(GUEST_INTERRUPTIBILITY, STI) }),
    W(blocking_and_interrupt, .set = { SET(GUEST_INTERRUPTIBILITY, STI), SET(GUEST_RFLAGS, IF), SET(ENTRY_INTERRUPTION_INFORMATION, INTERRUPT) }),
    W(blocking_and_interrupt, .set = { SET(GUEST_INTERRUPTIBILITY, MOV_SS), SET(GUEST_RFLAGS, IF), SET(ENTRY_INTERRUPTION_INFORMATION, INTERRUPT) }),
    W(blocking_and_nmi, .set = { SET(GUEST_INTERRUPTIBILITY, MOV_SS), SET(ENTRY_INTERRUPTION_INFORMATION, NMI_EVENT) }),
    W(sti_and_nmi, .set = { SET(GUEST_INTERRUPTIBILITY, STI), SET(GUEST_RFLAGS, IF), SET(ENTRY_INTERRUPTION_INFORMATION, NMI_EVENT) }),
    W(virtual_nmi_blocking, .pin = PIN_NMI_EXITING | PIN_VIRTUAL_NMIS,
      .set = { SET(GUEST_INTERRUPTIBILITY, 8), SET(ENTRY_INTERRUPTION_INFORMATION, NMI_EVENT) }),
    W(pending_debug_reserved, .set = { SET(GUEST_PENDING_DEBUG_EXCEPTIONS, 0x10) }),
    W(pending_debug_reserved, .set = { SET(GUEST_PENDING_DEBUG_EXCEPTIONS, 0x2000) }),
    W(pending_single_step, .set = { SET(GUEST_INTERRUPTIBILITY, STI), SET(GUEST_RFLAGS, TF_IF) }),
    W(pending_single_step, .set = { SET(GUEST_INTERRUPTIBILITY, MOV_SS), SET(GUEST_PENDING_DEBUG_EXCEPTIONS, 0x4000) }),
    W(vmcs_link_pointer, .set = { SET(VMCS_LINK_POINTER, 0x123) }),
    W(vmcs_link_pointer, .set = { SET(VMCS_LINK_POINTER, HIGH) }),
    W(vmcs_link_pointer, .setup = link_to_itself),
    W(vmcs_link_pointer, .setup = link_to_another_revision),
    W(pdptes, .proc2 = PROC2_ENABLE_EPT, .setup = guest32, .set = { SET(GUEST_PDPTE0, 3) }),
#undef SET
#undef W
};

static void prepare(const struct wrong *wrong)
{
    vmcs_prepare(guest_vmcall);
    control_set(VMCS_PIN_BASED_CONTROLS, wrong->pin);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, wrong->proc);
    if (wrong->proc2)
        secondary_set(wrong->proc2);
    control_set(VMCS_EXIT_CONTROLS, wrong->exit);
    control_set(VMCS_ENTRY_CONTROLS, wrong->entry);
    if (wrong->setup)
        wrong->setup();
    for (unsigned i = 0; i < 4 && wrong->set[i].field; i++)
        vmwrite(wrong->set[i].field, wrong->set[i].value);
}

static void try(const struct wrong *wrong)
{
    const char *name = rows[wrong->row].name;
    enum group group = rows[wrong->row].group;
    prepare(wrong);
    print("ROW %s\n", name);
    int status = vmx_run();
    if (group == CONTROLS || group == HOST) {
        check_equal(status, VMX_FAIL_VALID, name);
        check_equal(vmread(VMCS_VM_INSTRUCTION_ERROR), group == CONTROLS ? 7 : 8, "its error");
        return;
    }
    check_equal(status == VMX_OK ? (uint32_t)vmread(VMCS_EXIT_REASON) : 0, REASON_INVALID_GUEST_STATE | 1u << 31, name);
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), qualification[group], "its qualification");
}

/* In 64-bit mode there is no monitor that these are about: vmx_checks32 tries them. */
static bool of_a_32bit_monitor(enum row row) { return row == ROW_outside_ia32e || row == ROW_host_32bit; }

/* SDM3 §27.3.1.4: bits 63:N of RIP must be alike where addresses have N bits; bit N-1 may differ from them, and then the guest faults. */
static void right_states(void)
{
    enum { GP_EXCEPTION = 1 << 13 };
    vmcs_prepare(guest_vmcall);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a state with nothing wrong");
    vmcs_prepare(guest_vmcall);
    vmwrite(VMCS_GUEST_DS_ACCESS_RIGHTS, 0x10000);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a segment register that is unusable");
    vmcs_prepare(guest_vmcall);
    vmwrite(VMCS_GUEST_RIP, NOT_CANONICAL);
    vmwrite(VMCS_EXCEPTION_BITMAP, GP_EXCEPTION);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "a RIP whose bits from the address width on are alike");
    check_equal(vmread(VMCS_GUEST_RIP), NOT_CANONICAL, "faults in the guest");
}

void test_main(void)
{
    bool tried[ROW_COUNT] = { false };
    vmx_switch_on();
    right_states();
    for (unsigned i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
        try(&wrongs[i]);
        tried[wrongs[i].row] = true;
    }
    for (enum row row = 0; row < ROW_COUNT; row++)
        if (!tried[row] && !of_a_32bit_monitor(row))
            check(false, rows[row].name);
}
