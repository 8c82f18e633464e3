/*
 * The state of one virtual processor. Common ground: data only, any room at or above x86/ and mmu/ may include it.
 * Architectural state first, hot fields together; then requests; then what belongs to the MMU and the engine.
 * Names are the manual's (SDM = Intel 64 and IA-32 Architectures Software Developer's Manual).
 */
#ifndef DOPPEL_VCPU_VCPU_H
#define DOPPEL_VCPU_VCPU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "base/log.h"
#include "base/stats.h"
#include "bus/access.h"
#include "vmx/state.h"
#include "x86/flags.h"

struct vcpu;
struct mmu;
struct tlb_table;
struct engine;
struct bus;
struct ram;
struct clock;
struct cpu_model;
struct intc_host;

/* The order of instruction encodings. */
enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum seg { ES, CS, SS, DS, FS, GS, SEG_COUNT };

/*
 * A segment register with its hidden part (SDM3 §3.4.3 "Segment Registers"). `attr` is in the format of the VMCS
 * access-rights fields (SDM3 §25.4.1): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
 * `limit` is in bytes, already scaled by G.
 */
struct segment {
    uint64_t base;
    uint32_t limit;
    uint32_t attr;
    uint16_t selector;
};

struct table_register {
    uint64_t base;
    uint16_t limit;
};

/* x87 and vector state. `fxsave` is the 64-bit FXSAVE image of which the x87 part and MXCSR count; vectors live in zmm. */
struct fpu {
    _Alignas(64) uint8_t fxsave[512];
    _Alignas(64) uint8_t zmm[32][64];
    uint64_t k[8];
    uint32_t pkru;
};

/* The last x87 instruction that is not a control instruction (SDM1 §8.1.8, §8.1.9), and the last memory operand of one. */
struct x87_last {
    uint64_t fip, fdp;
    uint32_t fop;               /* 11 bits */
};

/* x87 state while it is in the host's processor (engine/interp/native_x87.c). What that notes of the last instruction is ours. */
struct x87_live {
    uint32_t live;              /* it is there; translated code tests all 32 bits */
    bool pending;               /* an unmasked exception was as it came */
    struct x87_last before, last;       /* as it came, and since */
};

/* What an exception or interrupt pushes and where it came from. */
enum event_kind {
    EVENT_NONE,
    EVENT_FAULT,            /* exception whose RIP is the instruction's */
    EVENT_TRAP,             /* exception whose RIP is the next instruction's (#BP, #OF by INT3/INTO, #DB traps) */
    EVENT_SOFT_INT,         /* INT n: DPL of the gate is checked; INT3 and INTO are this with their vector */
    EVENT_ICEBP,            /* INT1: no DPL check */
    EVENT_INTERRUPT,        /* external */
    EVENT_NMI,
    EVENT_VM_EXIT,          /* vmx.exit tells the rest */
    EVENT_STEP,             /* nothing happened yet: the instruction must be run again, alone */
};

struct event {
    uint8_t kind;           /* enum event_kind */
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t payload;       /* #PF: CR2; #DB: the DR6 bits to set */
    /* For VM exits only: */
    bool injected;          /* by VM entry: it does not exit itself */
    bool unblocked_nmi;     /* a fault of an IRET that had ended NMI blocking */
    uint8_t length;         /* injected software events: from rip to the return address */
    uint32_t vectoring, vectoring_error;        /* the event in whose delivery this one came up (SDM3 §28.2.4); 0 none */
};

/* SDM3 §25.4.2 "Guest Non-Register State": activity state. */
enum activity { ACTIVITY_ACTIVE, ACTIVITY_HLT, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_SIPI };

/* Blocking after STI and MOV/POP SS (one instruction), and of NMIs until IRET. */
enum { SHADOW_STI = 1, SHADOW_MOV_SS = 2, SHADOW_NMI = 4 };

/* Reasons for a vCPU to leave its engine at the next block border; bits of vcpu.request. */
enum vcpu_request {
    REQUEST_INTERRUPT = 1u << 0,    /* the interrupt controller may have a vector: ask intc */
    REQUEST_NMI = 1u << 1,
    REQUEST_INIT = 1u << 2,
    REQUEST_SIPI = 1u << 3,
    REQUEST_WORK = 1u << 4,         /* run the posted work list (vcpu/work.h) */
    REQUEST_PAUSE = 1u << 5,        /* stop at the border and wait for resume */
    REQUEST_EXIT = 1u << 6,         /* the machine is going down or resets */
    REQUEST_CLOCK = 1u << 7,        /* counted time: a deadline is nearer than the budget says */
    REQUEST_VMX = 1u << 8,          /* a VM exit or a virtual interrupt may be due: vmx_take_events */
};

/*
 * The vCPU's interrupt controller (its local APIC), as seen from the processor. All on the vCPU's thread.
 * The controller raises REQUEST_* through a `struct cpu_signal` of the vCPU.
 */
struct intc_ops {
    int (*pending)(void *intc);                     /* vector that could be taken now, or -1 (PPR considered) */
    int (*acknowledge)(void *intc);                 /* takes it: vector or -1 (also ExtINT from the 8259) */
    uint64_t (*get_tpr)(void *intc);                /* CR8 */
    void (*set_tpr)(void *intc, uint64_t cr8);
    bool (*read_msr)(void *intc, uint32_t msr, uint64_t *value);     /* IA32_APIC_BASE, x2APIC, TSC_DEADLINE; false: #GP */
    bool (*write_msr)(void *intc, uint32_t msr, uint64_t value);
    void (*init)(void *intc);                       /* INIT was received: the registers reset */
    /* A fixed interrupt to the physical ID that the present mode (xAPIC, x2APIC) gives a processor; the ICR is not touched. */
    void (*send)(void *intc, uint32_t destination, uint8_t vector);
    /*
     * The APIC page, which is each processor's own (SDM3 §11.4.1 "The Local APIC Block Diagram"): whoever has a physical
     * address that is not RAM asks here before vcpu->mmio. access->address is the whole guest-physical address. False:
     * not in the page, or the APIC is disabled or in x2APIC mode; the access is untouched and goes on to the bus.
     */
    bool (*mmio)(void *intc, struct access *access);
    /* vcpu->tsc_offset changed (IA32_TSC, IA32_TSC_ADJUST written): an armed TSC deadline moves with it. */
    void (*set_tsc_offset)(void *intc, uint64_t offset);
    /*
     * The machine's local APICs, this and all others, go to the host (bus/intc_host.h) and come back; no vCPU of the machine runs meanwhile.
     * While they are there `pending` and `acknowledge` are about the 8259's interrupts alone, whether the processor takes them or not, and
     * the processor's priority is as of the last set_tpr. False: nothing was done.
     */
    bool (*lend)(void *intc, const struct intc_host *host);
    void (*reclaim)(void *intc);
    /* Lent: the guest has ended a level-triggered interrupt. */
    void (*eoi)(void *intc, uint8_t vector);
};

/* How a vCPU tells its machine that it stands still, or goes on, or has nothing to do and will sleep; on the vCPU's thread. */
struct vcpu_stop_ops {
    void (*stopped)(void *owner, struct vcpu *vcpu);
    void (*resumed)(void *owner, struct vcpu *vcpu);
    void (*idle)(void *owner, struct vcpu *vcpu);
};

/* How an interrupt controller talks to a vCPU. Any thread. */
struct cpu_signal {
    void (*raise)(void *vcpu, uint32_t request, uint8_t sipi_vector);
    void *vcpu;
};

/* Counted time: somebody who wants to see the state after an exact number of instructions. On the vCPU's thread. */
struct vcpu_checkpoint {
    uint64_t next;                                  /* COUNTER_instructions */
    void (*reached)(struct vcpu *vcpu, struct vcpu_checkpoint *checkpoint);     /* sets `next` anew */
};

struct vcpu {
    /* --- architectural, hot --- */
    uint64_t gpr[16];
    uint64_t rip;
    uint64_t rflags;                    /* always whole; bit 1 set */
    uint64_t zero;                      /* always 0: where an engine's operand forms point that have no register (not state) */
    uint8_t cpl;
    uint8_t mode;                       /* enum x86_mode, derived from CR0, EFER, CS, RFLAGS by x86_update_mode */
    uint8_t shadow;                     /* SHADOW_* */
    uint8_t activity;                   /* enum activity */
    _Atomic uint32_t request;           /* REQUEST_*; written by any thread */
    struct tlb_table *tlb_data, *tlb_code;      /* the MMU's tables for the present CPL, AC and PCID (not state: mmu/mmu.h) */
    struct segment seg[SEG_COUNT];
    struct segment ldtr, tr;
    struct table_register gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, xcr0, efer;
    uint64_t pdpte[4];                  /* PAE paging: read from memory by MOV CR3 and its like only (SDM3 §4.4.1) */
    uint64_t dr[4], dr6, dr7;
    struct event pending;               /* the fault that the present instruction raised; EVENT_NONE otherwise */
    bool interrupt_held;                /* the intc has a vector, IF or a shadow holds it back: see x86_interrupts_unblocked */
    bool nmi_held;                      /* an NMI waits for IRET or the end of a MOV SS shadow */
    uint64_t pending_debug;             /* DR6 bits of a #DB trap due after this instruction (SDM3 §18.3) */

    /* --- architectural, MSRs with a place of their own --- */
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_offset, tsc_adjust;
    uint64_t pat, misc_enable, xss, mperf_offset;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var_base[8], mtrr_var_mask[8];
    uint64_t mcg_status, mce_bank[8][4];        /* CTL, STATUS, ADDR, MISC */
    uint64_t spec_ctrl, umwait_control, debugctl;
    uint64_t kvm_system_time, kvm_wall_clock, kvm_eoi, kvm_async_pf, kvm_steal_time, kvm_poll_control;
    uint64_t monitor_gpa;               /* armed address range of MONITOR, ~0 when not armed */
    uint8_t sipi_vector;
    struct vmx vmx;

    struct fpu fpu;

    /* --- of the present instruction (not state) --- */
    uint8_t insn_length;                /* where a rule of x86/ or a fault is about it */
    bool delivering;                    /* an event is being delivered */
    struct x87_live x87;

    /* --- identity and surroundings (not state) --- */
    unsigned index;                     /* 0 is the boot processor */
    uint32_t apic_id;
    const struct cpu_model *model;      /* CPUID */
    struct ram *ram;
    struct bus *mmio, *ports;
    struct clock *clock;
    const struct intc_ops *intc_ops;
    void *intc;
    struct log *log;
    struct perf *perf;                  /* where an engine names the host code that it makes (engine/dbt/perf.h); NULL: nowhere */
    uint64_t code_cache;                /* bytes of host code that an engine may keep; 0: as it likes */
    bool board_apic;                    /* the local APIC stays the board's on every engine (bus/intc_host.h) */
    struct store *translations;         /* that engines keep for later (engine/dbt/store.h); NULL: none */
    struct beside *beside;              /* who translates while vCPUs run (engine/dbt/beside.h); NULL: nobody */
    struct counters counters;
    struct vcpu **all;                  /* every vCPU of the machine, all_count of them */
    unsigned all_count;
    /*
     * Counted time (base/clock.h). An instruction that may see the time or set a timer has to know how many came before it; among
     * others in a block it does not, so it asks vcpu_time_known and lets itself be run alone.
     */
    bool counted;                       /* the clock counts this vCPU's instructions */
    bool among_others;                  /* counted: the present instruction is in a block */
    bool alone;                         /* counted: the instruction at rip is to be run by itself */
    uint64_t random;                    /* counted: the next RDRAND */
    struct vcpu_checkpoint *checkpoint; /* counted; NULL: nobody */

    /* --- owned by other rooms --- */
    struct mmu *mmu;                    /* mmu/mmu.h */
    const struct engine *_Atomic engine;        /* any thread may ask which it is */
    /* Set by the engine: this vCPU itself has just overwritten code; it must not run on past the present instruction. */
    void (*code_overwritten)(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
    bool overwriting;                   /* its own thread only: others are being told of it right now */
    void *engine_state;

    /* --- thread (vcpu/thread.h) --- */
    pthread_t thread;
    _Atomic bool in_kernel;             /* an engine waits in the host's kernel, which VCPU_KICK_SIGNAL calls it out of */
    pthread_mutex_t mutex;              /* guards the sleep in HLT and the work list */
    pthread_cond_t wake;
    bool watches;                       /* there are others, and a processor for them: it looks at what it waits for before it sleeps */
    uint32_t watch_ns;                  /* its own thread: for so long it looks for a request before it sleeps in HLT */
    struct vcpu_work *work;             /* posted work, newest first */
    unsigned work_count;                /* under mutex: so many are in the list */
    bool threadless;                    /* under mutex: no thread serves the list; who waits for work does it (vcpu/work.h) */
    bool asleep;                        /* under mutex: it sleeps in HLT or the like; another vCPU that waits for work does it */
    bool serving;                       /* under mutex: somebody does just now, and it must not go on */
    bool serving_awaited;               /* under mutex: who waits for the end of that sleeps on `wake` */
    void (*system_event)(void *owner, struct vcpu *vcpu, unsigned event);  /* machine-wide: enum system_event */
    const struct vcpu_stop_ops *stop_ops;
    void *system_owner;
};

/* What one vCPU reports to the machine. */
enum system_event { SYSTEM_TRIPLE_FAULT, SYSTEM_RESET, SYSTEM_POWER_OFF };

/* --- small facts that every engine asks for --- */

static inline bool vcpu_long_mode(const struct vcpu *vcpu) { return vcpu->efer & EFER_LMA; }
static inline bool vcpu_code64(const struct vcpu *vcpu) { return (vcpu->efer & EFER_LMA) && (vcpu->seg[CS].attr & SEG_L); }
static inline bool vcpu_protected(const struct vcpu *vcpu) { return vcpu->cr0 & CR0_PE; }
static inline bool vcpu_v86(const struct vcpu *vcpu) { return vcpu->rflags & RFLAGS_VM; }
static inline unsigned vcpu_iopl(const struct vcpu *vcpu) { return (vcpu->rflags >> 12) & 3; }

/* False: leave the instruction as if it had faulted, with nothing pending; it will be run again, alone. */
static inline bool vcpu_time_known(struct vcpu *vcpu)
{
    if (__builtin_expect(!vcpu->among_others, 1))
        return true;
    vcpu->alone = true;
    return false;
}

/* What a vCPU's thread in the host's kernel is called out with; whoever sets in_kernel has a handler for it. */
#define VCPU_KICK_SIGNAL SIGRTMIN

/* Any thread: sets request bits and wakes the vCPU if it sleeps (vcpu/thread.c). */
void vcpu_kick(struct vcpu *vcpu, uint32_t request);
/* The same, but a vCPU that sleeps sleeps on: it will see the bits when something else wakes it. */
void vcpu_tell(struct vcpu *vcpu, uint32_t request);

#endif
