/* Within vmx/. */
#ifndef DOPPEL_VMX_INTERNAL_H
#define DOPPEL_VMX_INTERNAL_H

#include "base/log.h"
#include "mmu/mmu.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

/* A field of the current VMCS. */
#define FIELD(name) (vcpu->vmx.field[VMCS_##name])

enum { VMCS_REVISION = 0x44504C02 };
#define VMCS_SHADOW_INDICATOR BIT(31)
#define VMCS_NONE (~0ull)

/* SDM3 §31.4 "VM Instruction Error Numbers". */
enum vmx_error {
    ERROR_VMCALL_IN_ROOT = 1, ERROR_VMCLEAR_ADDRESS = 2, ERROR_VMCLEAR_VMXON_POINTER = 3, ERROR_VMLAUNCH_NOT_CLEAR = 4,
    ERROR_VMRESUME_NOT_LAUNCHED = 5, ERROR_INVALID_CONTROLS = 7, ERROR_INVALID_HOST_STATE = 8, ERROR_VMPTRLD_ADDRESS = 9,
    ERROR_VMPTRLD_VMXON_POINTER = 10, ERROR_VMPTRLD_REVISION = 11, ERROR_UNSUPPORTED_FIELD = 12,
    ERROR_VMXON_IN_ROOT = 15, ERROR_ENTRY_WITH_MOV_SS = 26, ERROR_INVALID_INVALIDATION = 28,
};

enum { FEATURE_CONTROL_LOCK = 1, FEATURE_CONTROL_VMX = 4 };
enum { MSR_AREA_MAX = 512 };                    /* SDM3 §A.6: entries of an MSR area */
enum { VMX_TIMER_SHIFT = 5 };                   /* the preemption timer counts every 32nd tick of the TSC */
enum { VM_FUNCTION_EPTP_SWITCHING = 1 };

/* --- capability.c --- */
uint32_t vmx_default1(enum vmx_group group);    /* SDM3 §A.2: reserved bits that are 1 where no TRUE register says else */

/* --- vmcs.c --- */
/* Row of a field by the encoding of its full access; -1: no such field here. *high: the encoding is that of the high half. */
int vmcs_find(const struct vcpu *vcpu, uint64_t encoding, bool *high);
bool vmcs_exists(const struct vcpu *vcpu, enum vmcs_field field);
uint32_t vmcs_encoding(enum vmcs_field field);
const char *vmcs_name(enum vmcs_field field);
uint64_t vmcs_width_mask(enum vmcs_field field);
uint32_t vmcs_highest_index(const struct vcpu *vcpu);
/* A VMCS region in memory. */
void vmcs_write_back(struct vcpu *vcpu);        /* the current VMCS */
void vmcs_load(struct vcpu *vcpu, uint64_t pointer);
void vmcs_set_launch_state(struct vcpu *vcpu, uint64_t pointer, bool launched);
uint64_t vmcs_memory_read(struct vcpu *vcpu, uint64_t pointer, enum vmcs_field field);
void vmcs_memory_write(struct vcpu *vcpu, uint64_t pointer, enum vmcs_field field, uint64_t value);
void vmcs_set_abort(struct vcpu *vcpu, uint32_t indicator);

/* --- instructions.c --- */
void vmx_fail(struct vcpu *vcpu, enum vmx_error error);
void vmx_fail_invalid(struct vcpu *vcpu);
bool vmx_pointer_valid(const struct vcpu *vcpu, uint64_t pointer, uint64_t alignment);

/* --- checks.c; the row that failed is traced --- */
bool vmx_check_controls(struct vcpu *vcpu);
bool vmx_check_host(struct vcpu *vcpu);
bool vmx_check_guest(struct vcpu *vcpu, uint64_t *qualification);
bool vmx_eptp_valid(const struct vcpu *vcpu, uint64_t eptp);
/* The controls of the current VMCS as they will be in force. */
void vmx_effective_controls(const struct vcpu *vcpu, uint32_t control[VMX_GROUP_COUNT]);

/* --- entry.c and exit.c --- */
void vmx_load_host(struct vcpu *vcpu);
/* Loads the MSRs of an area; returns 0, or the number of the entry that failed, counted from 1. */
unsigned vmx_load_msrs(struct vcpu *vcpu, uint64_t address, uint32_t count);
void vmx_abort(struct vcpu *vcpu, uint32_t indicator);
/* After entry and exit: whose translations count now (SDM3 §29.4.3). */
void vmx_switch_translations(struct vcpu *vcpu);
/* What has passed since the last entry or exit goes to the guest, or to the exit that its monitor has handled. */
void vmx_account(struct vcpu *vcpu, uint64_t *ticks);
uint64_t vmx_host_tsc(const struct vcpu *vcpu);
uint64_t vmx_interruptibility(const struct vcpu *vcpu);
void vmx_set_interruptibility(struct vcpu *vcpu, uint64_t value);
bool vmx_pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer);

/* --- events.c --- */
void vmx_start_timer(struct vcpu *vcpu);
uint32_t vmx_timer_value(struct vcpu *vcpu);
/* What must be looked at between instructions has changed: windows, virtual interrupts. */
void vmx_update_awaits(struct vcpu *vcpu);

/* --- apic.c --- */
uint32_t vmx_vapic_read(struct vcpu *vcpu, unsigned offset);
void vmx_vapic_write(struct vcpu *vcpu, unsigned offset, uint32_t value);
void vmx_evaluate_virtual_interrupts(struct vcpu *vcpu);
void vmx_tpr_virtualization(struct vcpu *vcpu);
void vmx_deliver_virtual_interrupt(struct vcpu *vcpu);
void vmx_process_posted_interrupts(struct vcpu *vcpu);
bool vmx_pid_pointer_table_valid(const struct vcpu *vcpu);
void vmx_set_trap(struct vcpu *vcpu, enum vmx_reason reason, uint32_t qualification);

enum { VAPIC_TPR = 0x80, VAPIC_PPR = 0xA0, VAPIC_EOI = 0xB0, VAPIC_ISR = 0x100, VAPIC_IRR = 0x200, VAPIC_ICR = 0x300,
       VAPIC_ICR_HIGH = 0x310, VAPIC_SELF_IPI = 0x3F0 };

/* Interruptibility state (SDM3 table 25-3). */
enum { BLOCKING_BY_STI = 1, BLOCKING_BY_MOV_SS = 2, BLOCKING_BY_SMI = 4, BLOCKING_BY_NMI = 8 };

/* Interruption information (SDM3 tables 25-15, 25-17, 25-18). */
enum { INTERRUPTION_EXTERNAL = 0, INTERRUPTION_NMI = 2, INTERRUPTION_HARDWARE_EXCEPTION = 3, INTERRUPTION_SOFTWARE_INTERRUPT = 4,
       INTERRUPTION_PRIVILEGED_EXCEPTION = 5, INTERRUPTION_SOFTWARE_EXCEPTION = 6, INTERRUPTION_OTHER = 7 };
enum { INTERRUPTION_ERROR_CODE = 1 << 11, INTERRUPTION_NMI_UNBLOCKING = 1 << 12 };
#define INTERRUPTION_VALID BIT(31)

#endif
