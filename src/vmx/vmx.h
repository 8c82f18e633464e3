/*
 * VT-x for guests (SDM3 chapters 24 to 31): what the rules of x86/, the MMU and the engines ask of it. All on the vCPU's thread.
 *
 * A VM exit is found in the midst of an instruction or of an event's delivery and carried out at the border: whoever finds
 * it calls vmx_exit_* here, which record it in vcpu->vmx.exit, make vcpu->pending an EVENT_VM_EXIT and return false, as a fault
 * does. x86_deliver_event meets it there and calls vmx_exit.
 */
#ifndef DOPPEL_VMX_VMX_H
#define DOPPEL_VMX_VMX_H

#include <stdio.h>

#include "base/base.h"
#include "vcpu/vcpu.h"

struct state_list;

/* In the words of the manual: is the control 1 for the guest that runs? In root operation no control is. */
static inline bool vmx_pin(const struct vcpu *vcpu, uint32_t control) { return unlikely(vcpu->vmx.control[VMX_PIN] & control); }
static inline bool vmx_proc(const struct vcpu *vcpu, uint32_t control) { return unlikely(vcpu->vmx.control[VMX_PROC] & control); }
static inline bool vmx_proc2(const struct vcpu *vcpu, uint32_t control) { return unlikely(vcpu->vmx.control[VMX_PROC2] & control); }
static inline bool vmx_proc3(const struct vcpu *vcpu, uint32_t control) { return unlikely(vcpu->vmx.control[VMX_PROC3] & control); }
static inline bool vmx_guest(const struct vcpu *vcpu) { return unlikely(vcpu->vmx.guest); }

/* --- life of the processor --- */
void vmx_reset(struct vcpu *vcpu);              /* power-on; INIT leaves VMX alone */
void vmx_fini(struct vcpu *vcpu);
extern const struct state_list vmx_state_list;
bool vmx_state_loaded(struct vcpu *vcpu);       /* the list was loaded; false: it cannot be */

/* --- capability.c --- */
bool vmx_read_capability(struct vcpu *vcpu, uint32_t msr, uint64_t *value);     /* IA32_VMX_*; false: no such MSR */
bool vmx_write_feature_control(struct vcpu *vcpu, uint32_t msr, uint64_t value);
uint32_t vmx_allowed1(const struct vcpu *vcpu, enum vmx_group group);   /* bits that may be 1 */
uint32_t vmx_required(enum vmx_group group);    /* bits that must be 1 */
bool vmx_can(const struct vcpu *vcpu, enum vmx_capability capability);
/* SDM3 appendix A.7, A.8: may CR0 and CR4 have this value in VMX operation? */
bool vmx_cr0_allowed(const struct vcpu *vcpu, uint64_t cr0);
bool vmx_cr4_allowed(const struct vcpu *vcpu, uint64_t cr4);

/* --- features.c: what a CPU model offers (any thread) --- */
void vmx_offer_all(struct vmx_offer *offer);
/* By the manual's name (ENABLE_EPT, enable-ept); it switches each control and capability of that name. False: none can be switched so. */
bool vmx_switch_feature(struct vmx_offer *offer, const char *name, size_t length, bool on);
/* Drops what needs something that is not offered. */
void vmx_drop_what_cannot_be(struct vmx_offer *offer);
void vmx_offer_common(struct vmx_offer *offer, const struct vmx_offer *other);    /* what both offer */
void vmx_list_features(void (*each)(const char *name, void *opaque), void *opaque);

/* --- finding exits --- */
bool vmx_exit_now(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification);
/* With the VM-exit instruction information (SDM3 §28.2.5). */
bool vmx_exit_instruction(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification, uint32_t information);
/* Carries the recorded exit out: the guest is saved, the host runs. */
void vmx_exit(struct vcpu *vcpu);
/* Does this exception exit (SDM3 §26.2, exception bitmap)? Then the exit is recorded, and pending. */
bool vmx_event_exits(struct vcpu *vcpu, const struct event *event);
/* A triple fault of the guest. */
void vmx_exit_triple_fault(struct vcpu *vcpu);
/* IDT-vectoring information of an event that is being delivered (SDM3 §28.2.4); 0: nothing that is reported. */
uint32_t vmx_vectoring(const struct vcpu *vcpu, const struct event *event);

/* --- instructions that may exit (intercept.c); true: done --- */
bool vmx_read_cr(struct vcpu *vcpu, unsigned cr, unsigned gpr, uint64_t *value);
bool vmx_write_cr(struct vcpu *vcpu, unsigned cr, unsigned gpr, uint64_t value);
bool vmx_clts(struct vcpu *vcpu);
bool vmx_lmsw(struct vcpu *vcpu, uint16_t value, bool memory, uint64_t gla);
uint64_t vmx_visible_cr0(const struct vcpu *vcpu);      /* what SMSW reads */
bool vmx_msr_exits(struct vcpu *vcpu, uint32_t msr, bool write);
/* RDMSR and WRMSR of x2APIC registers that are virtualized: *done. */
bool vmx_read_x2apic(struct vcpu *vcpu, uint32_t msr, uint64_t *value, bool *done);
bool vmx_write_x2apic(struct vcpu *vcpu, uint32_t msr, uint64_t value, bool *done);
struct vmx_io {
    uint16_t port;
    uint8_t size;
    bool in, string, repeated, immediate;
    uint8_t address_size, seg;
    uint64_t gla;               /* of string forms */
};
bool vmx_io_exits(struct vcpu *vcpu, const struct vmx_io *io);
bool vmx_pause_exits(struct vcpu *vcpu);
uint64_t vmx_tsc(const struct vcpu *vcpu, uint64_t tsc);        /* offset and scaling of the guest that runs */

/* --- VMX instructions (instructions.c): after vmx_allowed; VMfail is success with flags --- */
bool vmx_allowed(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification, uint32_t information);
bool vmx_vmxon_allowed(struct vcpu *vcpu, uint64_t qualification, uint32_t information);
bool vmx_vmxon(struct vcpu *vcpu, uint64_t pointer);
bool vmx_vmxoff(struct vcpu *vcpu);
bool vmx_vmclear(struct vcpu *vcpu, uint64_t pointer);
bool vmx_vmptrld(struct vcpu *vcpu, uint64_t pointer);
/* May this VMREAD or VMWRITE go on, perhaps to a shadow VMCS (SDM3 §25.10)? As vmx_allowed. */
bool vmx_vmcs_access_allowed(struct vcpu *vcpu, bool write, uint64_t encoding, uint64_t qualification, uint32_t information);
/* *found false: VMfail, flags are set. vmx_succeed when the value is in its place. */
bool vmx_vmread(struct vcpu *vcpu, uint64_t encoding, uint64_t *value);
void vmx_vmwrite(struct vcpu *vcpu, uint64_t encoding, uint64_t value);
void vmx_succeed(struct vcpu *vcpu);
bool vmx_vmcall(struct vcpu *vcpu);             /* in root operation */
bool vmx_invept(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2]);
bool vmx_invvpid(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2]);
bool vmx_vmfunc(struct vcpu *vcpu);
/* VMLAUNCH and VMRESUME: true, and rip and everything is the guest's, or (VMfail) still the host's at next_rip. */
bool vmx_enter(struct vcpu *vcpu, bool launch, uint64_t next_rip);

/* --- between instructions (events.c), for the loop --- */
/*
 * REQUEST_VMX: takes the exits that are due at this instruction border. True: a shadow holds one back, so the vCPU must run
 * one instruction before it is asked again.
 */
bool vmx_take_events(struct vcpu *vcpu);
/* A virtual interrupt, when nothing else wants the vCPU. */
void vmx_take_virtual_interrupt(struct vcpu *vcpu);
/* Must the next instruction run alone? */
static inline bool vmx_steps(const struct vcpu *vcpu) { return vmx_proc(vcpu, PROC_MONITOR_TRAP_FLAG) || vcpu->vmx.step_wanted; }
/* After that one instruction. */
void vmx_stepped(struct vcpu *vcpu);
/* An NMI or an external interrupt that exits has come, and nothing blocks it. */
void vmx_exit_nmi(struct vcpu *vcpu);
void vmx_exit_interrupt(struct vcpu *vcpu);     /* or it is a notification of posted interrupts */
bool vmx_take_init(struct vcpu *vcpu);          /* true: it exited, was dropped, or is blocked until VMXOFF or the next entry */
bool vmx_take_sipi(struct vcpu *vcpu, uint8_t vector);         /* true: it exited or was dropped */

/* --- for the MMU --- */
/* SDM3 §29.3.3.2 "EPT Violations": the walk's side of the exit. */
enum { EPT_READ = 1, EPT_WRITE = 2, EPT_EXECUTE = 4, EPT_USER_EXECUTE = 1 << 10 };
bool vmx_ept_violation(struct vcpu *vcpu, uint64_t qualification, uint64_t gla, uint64_t guest_physical, bool convertible);
bool vmx_ept_misconfiguration(struct vcpu *vcpu, uint64_t guest_physical);
/* Before a dirty flag of EPT is set (SDM3 §29.3.6 "Page-Modification Logging"): false, the log is full. */
bool vmx_log_modification(struct vcpu *vcpu, uint64_t guest_physical);
/* The APIC-access page (SDM3 §30.4): is it this physical page? */
static inline bool vmx_is_apic_access_page(const struct vcpu *vcpu, uint64_t gpa)
{
    return vmx_proc2(vcpu, PROC2_VIRTUALIZE_APIC_ACCESSES) && (gpa & ~PAGE_MASK) == vcpu->vmx.field[VMCS_APIC_ACCESS_ADDRESS];
}
/* An access to it: done on the virtual-APIC page, or an exit. fetch: the value does not matter. */
bool vmx_apic_read(struct vcpu *vcpu, unsigned offset, unsigned size, void *out, bool fetch);
bool vmx_apic_write(struct vcpu *vcpu, unsigned offset, unsigned size, const void *in);
/* An entry of the guest's tables lies in that page: always an exit. */
void vmx_exit_apic_table(struct vcpu *vcpu);

/* --- for the monitor --- */
const char *vmx_reason_name(unsigned reason);   /* NULL: no such reason */
void vmx_print(const struct vcpu *vcpu, FILE *out);

#endif
