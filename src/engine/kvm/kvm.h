/*
 * The host's KVM as an engine (Linux Documentation/virt/kvm/api.rst, cited as KVM §).
 *
 * All state is the vCPU's between two calls of `run`, as with every engine: `run` pushes it into KVM, lets the guest run, and
 * pulls it back. So engines change places at any border, and the monitor, snapshots and the delivery of events know nothing of KVM.
 *
 * The board stays ours, but for the local APICs, where KVM can have them without the rest (apic.c). It leaves for each access to a device, and
 * for each MSR but those that it keeps in the processor (msr.c). Where the local APIC is ours, too, each access to that leaves as well, HLT is our
 * sleep, and an interrupt is offered when the guest can take one.
 * What KVM cannot carry out is interpreted, one instruction, so the engine is built on the interpreter.
 */
#ifndef DOPPEL_KVM_KVM_H
#define DOPPEL_KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>

#include "engine/interp/op.h"
#include "bus/intc_host.h"

struct error;

/* A part of the guest's physical memory, as KVM has it. */
struct kvm_part {
    uint64_t gpa, size;
    const uint8_t *host;
    uint32_t flags;                     /* KVM_MEM_* */
};

enum { KVM_PARTS_MAX = 128 };

/*
 * Does a guest's write of IA32_TSC_DEADLINE come to us? KVM on Intel processors has a short cut for it that takes no notice of the MSR filter,
 * nor of there being no local APIC that it could tell; the write is lost. It goes the long way when the guest may use MWAIT by itself.
 */
enum kvm_deadline { KVM_DEADLINE_COMES, KVM_DEADLINE_WITH_MWAIT, KVM_DEADLINE_LOST };

/* One for each machine, shared by its vCPUs. */
struct kvm_vm {
    int fd;
    enum kvm_deadline deadline;
    unsigned users;                     /* vCPUs: they attach and detach one after the other */
    size_t run_size;                    /* of a vCPU's mapping */
    size_t xsave_size;                  /* of a vCPU's XSAVE area */
    unsigned long get_xsave;            /* the request that reads one of that size */
    unsigned parts_most;
    bool rings;                         /* each vCPU tells of pages that it has written in a ring; else there is a bitmap for each part */
    bool apics;                         /* it can have the local APICs: what follows is used */
    struct vcpu **all;
    unsigned all_count;
    struct intc_host host;
    pthread_mutex_t apic_mutex;         /* guards lent, awake of all vCPUs; taken before any lock of the board's */
    bool lent;                          /* it has them */
    _Atomic bool refused;               /* it did not take them, or a vCPU has another engine: then all is interpreted */
    unsigned awake;                     /* vCPUs that go in and out of KVM; the others rest */
    pthread_mutex_t mutex;              /* guards what follows */
    struct kvm_part part[KVM_PARTS_MAX];
    unsigned part_count;
    bool logging;                       /* KVM notes which pages are written */
};

struct kvm_cpu {
    struct interp interp;               /* first: interp_of finds it */
    struct kvm_vm *vm;
    int fd;
    struct kvm_run *run;
    uint8_t *xsave;
    struct kvm_dirty_gfn *ring;         /* NULL: none */
    unsigned ring_next;                 /* the entry that KVM fills next, or has filled and we have not seen */
    bool unfinished;                    /* the present exit's instruction ends when KVM is entered again (KVM §5) */
    bool outdated;                      /* the state must be pushed again */
    bool awake;                         /* since it was in KVM it has not come to rest (apic.c); written by its own thread */
    bool stepping;                      /* KVM_GUESTDBG_SINGLESTEP is on */
    bool complained;
    bool told_of_deadline;
    _Atomic bool memory_changed;        /* pages may have become hidden or read-only */
    uint64_t tsc_offset;                /* as last told to KVM */
    bool tsc_told;
};

static inline struct kvm_cpu *kvm_cpu_of(const struct vcpu *vcpu) { return vcpu->engine_state; }

/* --- host.c: any thread --- */

/* An open /dev/kvm that has what the engine needs; -1: err tells what is missing. */
int kvm_open(struct error *err);

/* --- probe.c: any thread; takes some milliseconds --- */
enum kvm_deadline kvm_probe_deadline(int kvm);

/* --- vm.c: the vCPU's thread --- */

/* The machine's; made if this is its first vCPU. NULL: the host refuses. */
struct kvm_vm *kvm_vm_get(struct vcpu *vcpu);
void kvm_vm_put(struct kvm_vm *vm);
/* For a machine without processors yet: MWAIT does not leave the guest. False: the host refuses. */
bool kvm_let_mwait(int vm_fd);
/* Brings KVM's picture of RAM up to date. False: the host refuses. */
bool kvm_map_memory(struct vcpu *vcpu, struct kvm_vm *vm);

/* --- dirty.c: the vCPU's thread --- */

/* For a machine without processors yet. */
void kvm_ask_for_rings(struct kvm_vm *vm);
/* The ring of a vCPU, if the machine has such. False: the host refuses. */
bool kvm_open_ring(struct kvm_cpu *cpu);
void kvm_close_ring(struct kvm_cpu *cpu);
/* Marks what this vCPU (by bitmaps: the guest) has written since the last time (mem/ram.h), while somebody wants to know. */
void kvm_collect_dirty(struct vcpu *vcpu, struct kvm_cpu *cpu);

/* --- apic.c --- */

/* For a machine without processors yet. False: the host cannot have local APICs and nothing else, and the board keeps them. */
bool kvm_ask_for_apics(int vm_fd);
void kvm_open_apics(struct kvm_vm *vm, const struct vcpu *vcpu);
/* The vCPU's thread: before it goes into KVM, and when it stands still. False: the host refuses. */
bool kvm_wake(struct vcpu *vcpu, struct kvm_cpu *cpu);
void kvm_rest(struct vcpu *vcpu);
/* The vCPU's thread: the activity with the registers; nothing where KVM does not have the APICs. */
bool kvm_push_activity(const struct vcpu *vcpu, const struct kvm_cpu *cpu);
void kvm_pull_activity(struct vcpu *vcpu, const struct kvm_cpu *cpu);
/* The guest's TSC has been set: an armed deadline is told again. */
void kvm_move_deadline(const struct kvm_cpu *cpu);
/* An interrupt that the guest can take at once. */
bool kvm_inject(const struct kvm_cpu *cpu, uint8_t vector);

/* --- state.c, xsave.c, msr.c: the vCPU's thread --- */

bool kvm_push(struct vcpu *vcpu, struct kvm_cpu *cpu);
/* True: an event that KVM had begun to deliver, and did not finish, is in vcpu->pending. */
bool kvm_pull(struct vcpu *vcpu, struct kvm_cpu *cpu);
bool kvm_set_cpuid(struct vcpu *vcpu, struct kvm_cpu *cpu);
/* Between the vCPU and cpu->xsave. */
void kvm_put_xsave(const struct vcpu *vcpu, const struct kvm_cpu *cpu);
void kvm_take_xsave(struct vcpu *vcpu, const struct kvm_cpu *cpu);
/*
 * For a machine without processors yet: MSRs but those that KVM keeps are left to us; it has no filter for x2APIC's. deadline: IA32_TSC_DEADLINE
 * is kept. False: the host refuses.
 */
bool kvm_leave_msrs(int vm_fd, bool deadline);
void kvm_push_msrs(struct vcpu *vcpu, struct kvm_cpu *cpu);
void kvm_pull_msrs(struct vcpu *vcpu, struct kvm_cpu *cpu);
/* Tells KVM where the guest's TSC stands, if that has changed. */
void kvm_tell_tsc(struct vcpu *vcpu, struct kvm_cpu *cpu);
/* The guest has its APIC's timer count up to a deadline, and KVM would lose it (enum kvm_deadline). */
bool kvm_loses_deadline(struct vcpu *vcpu);
/* An access that KVM left to us. True: what KVM knows of the vCPU has changed, and must be pushed again. */
bool kvm_do_msr(struct vcpu *vcpu, struct kvm_run *run);

/* --- kick.c --- */
/* For the process: VCPU_KICK_SIGNAL ends a stay in KVM. */
bool kvm_prepare_kicks(void);
/*
 * True: KVM was entered; the result is in *status and errno. False: somebody wants something of the vCPU. Who sets a request after
 * our look at them sees vcpu->in_kernel, and kicks.
 */
bool kvm_enter(struct vcpu *vcpu, struct kvm_cpu *cpu, int *status);
/* Any thread, while nobody else is in there: as if called out on the way in, so that no instruction is carried out. */
void kvm_enter_interrupted(const struct kvm_cpu *cpu);

#endif
