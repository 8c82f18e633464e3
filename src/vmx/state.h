/*
 * The VMX part of a processor's state: data only, embedded in struct vcpu as `vmx`.
 *
 * The current VMCS is held here, field by field; the others are complete in guest memory, since VMPTRLD of another and
 * VMCLEAR write it back (SDM3 §25.1: software may not look into a region that is active). So a snapshot of RAM and of
 * this struct has every VMCS.
 */
#ifndef DOPPEL_VMX_STATE_H
#define DOPPEL_VMX_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

enum vmcs_field {
#define VMCS(name, encoding, group, control) VMCS_##name,
#include "vmx/vmcs.def"
#undef VMCS
    VMCS_FIELD_COUNT
};

enum vmx_group { VMX_PIN, VMX_PROC, VMX_PROC2, VMX_EXIT, VMX_ENTRY, VMX_PROC3, VMX_GROUP_COUNT, VMX_ALL = VMX_GROUP_COUNT };

/* PIN_..., PROC_..., PROC2_..., EXIT_..., ENTRY_..., PROC3_...: the bits of the controls. */
enum vmx_control {
#define CONTROL(group, name, bit) group##_##name = (int)(1u << (bit)),
#include "vmx/controls.def"
#undef CONTROL
};

enum vmx_reason {
#define REASON(number, name) REASON_##name = number,
#include "vmx/exits.def"
#undef REASON
    REASON_COUNT = 80
};

/* CAPABILITY_...: numbers of bits in IA32_VMX_EPT_VPID_CAP. */
enum vmx_capability {
#define CAPABILITY(name, bit) CAPABILITY_##name = (bit),
#include "vmx/ept_vpid.def"
#undef CAPABILITY
};

/* What of VT-x a processor offers. */
struct vmx_offer {
    uint32_t control[VMX_GROUP_COUNT];  /* bits that may be 1 */
    uint64_t ept_vpid;                  /* IA32_VMX_EPT_VPID_CAP */
};

enum { VMX_AWAITS_IF = 1, VMX_AWAITS_NMI_UNBLOCKING = 2 };

/* What a VM exit will report (SDM3 §25.9 "VM-Exit Information Fields"); filled where the exit is found. */
struct vmx_exit {
    uint32_t reason;
    uint32_t instruction_information;
    uint32_t interruption, interruption_error;
    uint32_t vectoring, vectoring_error;
    uint64_t qualification;
    uint64_t guest_linear, guest_physical;
};

struct vmx {
    bool on;                            /* in VMX operation */
    bool guest;                         /* in VMX non-root operation */
    bool launched;                      /* launch state of the current VMCS */
    bool init_held;                     /* an INIT waits for the end of root operation, by VMXOFF or an entry */
    bool shadow;                        /* the current VMCS is a shadow VMCS */
    bool tertiary;                      /* in VMX operation: its VMCS have the fields of revision 2, tertiary controls among them */
    uint64_t feature_control;           /* IA32_FEATURE_CONTROL */
    uint64_t vmxon_pointer;
    uint64_t current;                   /* VMCS pointer; ~0: none */
    uint64_t field[VMCS_FIELD_COUNT];   /* of the current VMCS, zero-extended */

    /* --- of the guest that runs; all zero in root operation, so that a test of a control needs no test of `guest` --- */
    uint32_t control[VMX_GROUP_COUNT];  /* those in force: secondary ones only where they are activated */
    uint8_t awaits;                     /* VMX_AWAITS_*: what a window or a virtual interrupt waits for */
    bool virtual_interrupt;             /* one is recognized (SDM3 §30.2.1 "Evaluation of Pending Virtual Interrupts") */
    bool mtf_pending;                   /* injected: exits before the first instruction */
    uint32_t trap;                      /* reason of a trap-like exit that is due when the instruction is done; 0 none */
    uint32_t trap_qualification;
    uint64_t timer_deadline;            /* host TSC at which the preemption timer has run out */
    uint64_t pause_first, pause_last;   /* TSC of PAUSEs in a loop (SDM3 §26.1.3) */

    /* --- not state --- */
    struct vmx_exit exit;               /* of vcpu->pending, where that is EVENT_VM_EXIT */
    bool stepping;                      /* the loop runs just one instruction */
    bool step_wanted;                   /* the next instruction must be run alone */
    bool after_mov_ss;                  /* the instruction that runs stands in the shadow of MOV SS */
    struct timer timer;                 /* wakes the vCPU when the preemption timer runs out */
    uint64_t timer_ns;                  /* what it was last armed for */
    uint64_t entries;
    uint64_t exits[REASON_COUNT];
    /* Where the time goes, in ticks of the host TSC; see vmx_account. */
    uint64_t since;                     /* the last entry or exit; 0: none */
    uint64_t guest_ticks;               /* in non-root operation */
    uint64_t exit_ticks[REASON_COUNT];  /* from such an exit to the entry after it */
    uint32_t handled;                   /* reason of the last exit */
};

#endif
