/*
 * The rules of the architecture, once, for every software engine: no machine, no engine knowledge. Everything here runs on
 * the vCPU's thread. A function that can fault returns true when done; false means that vcpu->pending holds the
 * fault and that architectural state is as the manual wants it for that fault (normally unchanged).
 *
 * On entry to any of these vcpu->rip is the address of the *present* instruction; functions that transfer control
 * take `next_rip` (address after the instruction) where they push or compare it, and set vcpu->rip themselves on success.
 */
#ifndef DOPPEL_X86_X86_H
#define DOPPEL_X86_X86_H

#include "vcpu/vcpu.h"

/* --- exceptions (exceptions.c) --- */
/* Record a fault in vcpu->pending; always return false. */
bool x86_raise(struct vcpu *vcpu, uint8_t vector);                      /* no error code, or zero where the vector has one */
bool x86_raise_error(struct vcpu *vcpu, uint8_t vector, uint32_t error);
bool x86_raise_page_fault(struct vcpu *vcpu, uint64_t gla, uint32_t error);
/*
 * Delivers vcpu->pending (and faults met on the way: contributory, double, triple: SDM3 §6.15 "Interrupt 8"); on
 * return execution continues at the handler, or the vCPU is in ACTIVITY_SHUTDOWN and SYSTEM_TRIPLE_FAULT was reported.
 * For EVENT_TRAP, EVENT_SOFT_INT and EVENT_ICEBP vcpu->rip must already be the address to return to.
 */
void x86_deliver_event(struct vcpu *vcpu, const struct event *event);

/*
 * Called by every rule that may have set RFLAGS.IF or ended NMI blocking (STI, POPF, IRET, SYSRET, SYSEXIT, task switch):
 * asks the loop to look again at what was held back.
 */
static inline void x86_interrupts_unblocked(struct vcpu *vcpu)
{
    uint32_t request = (vcpu->interrupt_held && (vcpu->rflags & RFLAGS_IF) ? REQUEST_INTERRUPT : 0) |
                       (vcpu->nmi_held && !(vcpu->shadow & SHADOW_NMI) ? REQUEST_NMI : 0) |
                       (unlikely(vcpu->vmx.awaits) && ((vcpu->vmx.awaits & VMX_AWAITS_NMI_UNBLOCKING) || (vcpu->rflags & RFLAGS_IF))
                            ? REQUEST_VMX : 0);
    if (__builtin_expect(request != 0, 0))
        atomic_fetch_or_explicit(&vcpu->request, request, memory_order_relaxed);
}

/* --- mode (mode.c) --- */
enum x86_mode { MODE_REAL, MODE_V86, MODE_PROTECTED16, MODE_PROTECTED32, MODE_COMPAT16, MODE_COMPAT32, MODE_LONG64 };
void x86_update_mode(struct vcpu *vcpu);        /* after CR0, EFER, CS or RFLAGS.VM changed */
/*
 * RFLAGS as a whole, with what hangs on it: mode (VM), MMU tables (AC), interrupts that IF now lets in. Engines call it
 * where AC, VM or IF may change; arithmetic flags they write in place.
 */
void x86_set_rflags(struct vcpu *vcpu, uint64_t rflags);
void x86_reset(struct vcpu *vcpu, bool init);   /* power-on, or INIT (SDM3 §10.1.1, table 10-1) */
bool x86_canonical(const struct vcpu *vcpu, uint64_t gla);      /* by CR4.LA57 */

/* --- segments (segments.c): SDM3 §5 --- */
bool x86_load_segment(struct vcpu *vcpu, enum seg seg, uint16_t selector);      /* MOV/POP/LDS..: not CS */
bool x86_far_jump(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip);
bool x86_far_call(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip);
bool x86_far_return(struct vcpu *vcpu, unsigned operand_size, uint16_t pop_bytes);
bool x86_iret(struct vcpu *vcpu, unsigned operand_size, uint64_t next_rip);
bool x86_lldt(struct vcpu *vcpu, uint16_t selector);
bool x86_ltr(struct vcpu *vcpu, uint16_t selector);
/* LAR, LSL, VERR, VERW: *ok is ZF. */
bool x86_lar(struct vcpu *vcpu, uint16_t selector, uint32_t *rights, bool *ok);
bool x86_lsl(struct vcpu *vcpu, uint16_t selector, uint32_t *limit, bool *ok);
bool x86_verify(struct vcpu *vcpu, uint16_t selector, bool write, bool *ok);
/*
 * Effective address to linear: limit, type and canonical checks of one data access of `size` bytes (SDM3 §5.3, §5.5).
 * Raises #GP(0) or #SS(0). Engines inline the flat cases.
 */
bool x86_linear(struct vcpu *vcpu, enum seg seg, uint64_t offset, unsigned size, bool write, uint64_t *gla);
/* The same for instruction fetch at CS:offset. */
bool x86_linear_fetch(struct vcpu *vcpu, uint64_t offset, uint64_t *gla);

/* --- task switch (task.c): SDM3 §8.3 --- */
enum task_source { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE };
bool x86_task_switch(struct vcpu *vcpu, uint16_t tss_selector, enum task_source source, uint64_t next_rip,
                     bool has_error, uint32_t error);

/* --- system instructions (system.c, control.c, msr.c, cpuid.c) --- */
bool x86_syscall(struct vcpu *vcpu, uint64_t next_rip);
bool x86_sysret(struct vcpu *vcpu, unsigned operand_size);
bool x86_sysenter(struct vcpu *vcpu);
bool x86_sysexit(struct vcpu *vcpu, unsigned operand_size);
bool x86_swapgs(struct vcpu *vcpu);
bool x86_write_cr(struct vcpu *vcpu, unsigned cr, uint64_t value);      /* 0, 2, 3, 4, 8; all reserved-bit rules, PDPTE loads */
bool x86_read_cr(struct vcpu *vcpu, unsigned cr, uint64_t *value);
bool x86_write_dr(struct vcpu *vcpu, unsigned dr, uint64_t value);
bool x86_read_dr(struct vcpu *vcpu, unsigned dr, uint64_t *value);
bool x86_cr_allowed(struct vcpu *vcpu, unsigned cr);                    /* does it exist (#UD), and is this CPL 0 (#GP)? */
uint64_t x86_cr4_valid(const struct vcpu *vcpu);                        /* bits that this model has */
uint64_t x86_efer_valid(const struct vcpu *vcpu);
bool x86_pat_valid(uint64_t value);
bool x86_lmsw(struct vcpu *vcpu, uint16_t value);
bool x86_xsetbv(struct vcpu *vcpu, uint32_t index, uint64_t value);
bool x86_rdmsr(struct vcpu *vcpu, uint32_t msr, uint64_t *value);
bool x86_wrmsr(struct vcpu *vcpu, uint32_t msr, uint64_t value);
/* For the monitor: the manual's name of an MSR, or NULL. Rows of the table in order, for tests; false past the last. */
const char *x86_msr_name(uint32_t number);
bool x86_msr_row(unsigned index, uint32_t *first, uint32_t *count);
bool x86_rdtsc(struct vcpu *vcpu, uint64_t *value);                     /* CR4.TSD is checked */
uint64_t x86_tsc(struct vcpu *vcpu);                                    /* of the processor, whatever guest of it runs */
bool x86_rdpmc(struct vcpu *vcpu, uint32_t index, uint64_t *value);
/*
 * CPUID 0x15: the crystal, which is also the clock of the local APIC's timer; times numerator / denominator it is the TSC's rate. It is near 1 GHz, which
 * firmware that does not ask takes it for, as on other virtual machines: with 25 MHz OVMF's clock (EDK II's PcdFSBClock) would tick every
 * 400 ms instead of every 10.
 */
struct x86_crystal {
    uint32_t khz, numerator, denominator;
};
struct x86_crystal x86_crystal(uint64_t tsc_hz);
void x86_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);    /* EAX EBX ECX EDX */
/* PUSHF, POPF, CLI, STI with IOPL, VME and PVI (SDM3 §21.3, §21.4). */
bool x86_pushf_value(struct vcpu *vcpu, unsigned operand_size, uint64_t *value);
bool x86_popf(struct vcpu *vcpu, unsigned operand_size, uint64_t value);
bool x86_cli(struct vcpu *vcpu);
bool x86_sti(struct vcpu *vcpu);
/*
 * Carries out INT n (EVENT_SOFT_INT), INT3 and INTO (EVENT_TRAP: they are not IOPL-sensitive in V86 mode) or INT1
 * (EVENT_ICEBP): on true execution continues at the handler. On false the fault met on the way is pending.
 */
bool x86_interrupt(struct vcpu *vcpu, uint8_t vector, uint8_t kind, uint64_t next_rip);
/* IN, OUT, INS, OUTS: may this code touch the port (IOPL, TSS bitmap: SDM1 §19.5)? Raises #GP(0). */
bool x86_io_allowed(struct vcpu *vcpu, uint16_t port, unsigned size);
bool x86_require_cpl0(struct vcpu *vcpu);                               /* #GP(0) otherwise */
bool x86_invlpg(struct vcpu *vcpu, uint64_t gla);
bool x86_invpcid(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2]);
bool x86_hlt(struct vcpu *vcpu);
bool x86_monitor(struct vcpu *vcpu, uint64_t gla, uint32_t extensions, uint32_t hints);
bool x86_mwait(struct vcpu *vcpu, uint32_t hints, uint32_t extensions);
bool x86_wbinvd(struct vcpu *vcpu);
bool x86_vmcall(struct vcpu *vcpu);                                     /* KVM hypercalls; #UD where not offered */

/* --- debug (debug.c): SDM3 §18.2 --- */
/* Any enabled instruction breakpoint at this linear address (RF considered)? Raises the #DB fault: returns false. */
bool x86_debug_fetch(struct vcpu *vcpu, uint64_t gla);
/* Data or I/O breakpoint hit: collects DR6 bits in vcpu->pending_debug. rw: 1 write, 3 read or write, 2 I/O. */
void x86_debug_data(struct vcpu *vcpu, uint64_t gla, unsigned size, bool write);
void x86_debug_io(struct vcpu *vcpu, uint16_t port, unsigned size);
/* The DR0-3 matches of this data access, without side effects: for an MMU that asks which pages are watched. */
bool x86_debug_watches(const struct vcpu *vcpu, uint64_t gla, uint64_t size);
static inline bool x86_debug_armed(const struct vcpu *vcpu) { return vcpu->dr7 & 0xFF; }

/* --- CPU models (models.c) --- */
struct error;
/* `host`, `x86-64-v1` .. `v4`, a real Intel model; NULL picks the default. Features: "name[,+feat][,-feat]". */
struct cpu_model *x86_model_create(const char *text, unsigned cpus, uint64_t tsc_hz, struct error *err);
void x86_model_destroy(struct cpu_model *model);
void x86_model_list(void (*each)(const char *name, const char *text, void *opaque), void *opaque);
/* Is a CPUID feature offered? By Zydis-independent name in x86/features.def. */
enum x86_feature {
#define FEATURE(name, leaf, subleaf, reg, bit, by) FEATURE_##name,
#include "x86/features.def"
#undef FEATURE
    FEATURE_COUNT
};
bool x86_has(const struct vcpu *vcpu, enum x86_feature feature);
uint64_t x86_xcr0_supported(const struct vcpu *vcpu);
uint64_t x86_xss_supported(const struct vcpu *vcpu);
/*
 * Offset and size of an XSAVE component (2 AVX .. 9 PKRU) in the standard format, size 0 where there is none: Intel's
 * layout on every host, so that a saved guest can move (SDM1 §13.5 "XSAVE-Managed State"; CPUID leaf 0xD tells it).
 */
struct xsave_component {
    uint32_t offset, size;
};
struct xsave_component x86_xsave_component(unsigned index);
unsigned x86_physical_bits(const struct vcpu *vcpu);

/* --- x87, SSE and XSAVE state (fpu.c): SDM1 §13 --- */
void x86_fpu_reset(struct vcpu *vcpu, bool init);
/* The XSAVE family on a guest linear address, with all checks; kind names the instruction. */
enum xsave_kind { XSAVE, XSAVEOPT, XSAVEC, XSAVES };
bool x86_xsave(struct vcpu *vcpu, enum xsave_kind kind, uint64_t gla, uint64_t mask, bool rex_w);
bool x86_xrstor(struct vcpu *vcpu, bool supervisor, uint64_t gla, uint64_t mask, bool rex_w);
bool x86_fxsave(struct vcpu *vcpu, uint64_t gla, bool rex_w);
bool x86_fxrstor(struct vcpu *vcpu, uint64_t gla, bool rex_w);

/* The state list of everything architectural in struct vcpu (vcpu_state.c). */
extern const struct state_list vcpu_state_list;
struct error;
/* Before a state is saved: bytes that mean nothing become zero, so that equal states are saved as equal bytes. */
void x86_state_tidy(struct vcpu *vcpu);
/*
 * After a state was loaded by that list: what follows from it is made (mode, TLB), small fields are brought into their ranges.
 * False: it is one that this processor can never be in, or of a model with features that this one lacks.
 */
bool x86_state_loaded(struct vcpu *vcpu, struct error *err);
/* Bits and combinations of CR0, CR3, CR4, EFER and XCR0 that this model can have (control.c). */
bool x86_control_registers_valid(const struct vcpu *vcpu);

#endif
