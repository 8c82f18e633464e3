/*
 * A minimal hypervisor for tests: one VMCS, and a guest that shares the monitor's page tables, GDT, IDT and code, so that a test's
 * guest is a function. Field names are the manual's (SDM3 appendix B), by their encodings.
 */
#ifndef DOPPEL_TESTS_GUEST_VMX_H
#define DOPPEL_TESTS_GUEST_VMX_H

#include "lib/guest.h"

enum vmcs_encoding {
#define VMCS(name, encoding, group, control) VMCS_##name = encoding,
#include "vmx/vmcs.def"
#undef VMCS
};
enum vmx_control {
#define CONTROL(group, name, bit) group##_##name = (int)(1u << (bit)),
#include "vmx/controls.def"
#undef CONTROL
};
enum vmx_reason {
#define REASON(number, name) REASON_##name = number,
#include "vmx/exits.def"
#undef REASON
    REASON_COUNT                        /* the rows are in order */
};

enum { CR4_VMXE = 1 << 13 };
/* Outcomes of VMX instructions: SDM3 §31.2. */
enum { VMX_OK, VMX_FAIL_INVALID, VMX_FAIL_VALID };

struct vmx_registers { uint64_t rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15; };
extern struct vmx_registers guest_registers;
extern void *vmcs_region, *vmxon_region;

uint64_t vmcs_revision(void);
/* Feature control, CR4.VMXE, VMXON. */
void vmx_switch_on(void);
int vmxon(uint64_t pointer);
int vmclear(uint64_t pointer);
int vmptrld(uint64_t pointer);
uint64_t vmptrst(void);
int vmread_status(uint64_t encoding, uint64_t *value);
int vmwrite_status(uint64_t encoding, uint64_t value);
uint64_t vmread(uint64_t encoding);
void vmwrite(uint64_t encoding, uint64_t value);
int invept(uint64_t type, uint64_t eptp);
int invvpid(uint64_t type, uint64_t vpid, uint64_t gla);

/* A fresh, complete VMCS whose guest starts at `code` on a stack of its own; controls are those that must be 1. */
void vmcs_prepare(void (*code)(void));
/* Sets or clears bits of a control field. */
void control_set(uint64_t field, uint32_t bits);
void control_clear(uint64_t field, uint32_t bits);
void secondary_set(uint32_t bits);
/* VMLAUNCH, or VMRESUME once it has been launched; comes back with the exit. VMX_OK: there was one. */
int vmx_run(void);
/* The same, and the basic exit reason; ~0 if the entry failed with VMfail. */
uint32_t vmx_run_reason(void);
/*
 * A check for each reason of vmx/exits.def: some exit of this program had it. `memory`: those of EPT, the virtual APIC and what needs
 * EPT to come about; else the others.
 */
void vmx_check_reasons(bool memory);
/* Moves the guest behind the instruction that exited. */
void vmx_skip(void);
/* Starts the guest of vmcs_prepare anew at `code`. */
void vmx_restart(void (*code)(void));
/* VMCLEAR: any processor may have it from now on, by VMPTRLD. */
void vmcs_release(void);

static inline void vmcall(void) { __asm__ volatile("vmcall" ::: "memory"); }

#endif
