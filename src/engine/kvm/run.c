/* The engine: enters the guest, and answers what it leaves for (KVM §5 "The kvm_run structure"). */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "bus/bus.h"
#include "engine/kvm/host.h"
#include "engine/interp/block.h"
#include "engine/kvm/kvm.h"
#include "mem/ram.h"

/* What is answered without leaving `run`. */
enum { INSIDE = REQUEST_INTERRUPT | REQUEST_NMI | REQUEST_VMX | REQUEST_CLOCK };

/* HLT, and the wait for SIPI, where KVM has the APIC that ends them. */
static bool engine_waits(const struct vcpu *vcpu)
{
    const struct kvm_vm *vm = kvm_cpu_of(vcpu)->vm;
    return vm->apics && !atomic_load(&vm->refused) && vcpu->activity != ACTIVITY_SHUTDOWN;
}

/* --- exits --- */

static void do_port(struct vcpu *vcpu, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    bool write = run->io.direction == KVM_EXIT_IO_OUT;
    for (unsigned i = 0; i < run->io.count; i++, data += run->io.size) {
        struct access access = { .address = run->io.port, .size = run->io.size, .write = write, .requester = REQUESTER_CPU };
        if (write)
            memcpy(&access.value, data, run->io.size);
        counter_add(&vcpu->counters, write ? COUNTER_port_writes : COUNTER_port_reads, 1);
        if (bus_access(vcpu->ports, &access) == ACCESS_FAULT)
            access.value = ~0ull;
        if (!write)
            memcpy(data, &access.value, run->io.size);
    }
}

static void do_mmio(struct vcpu *vcpu, struct kvm_run *run)
{
    if (run->mmio.is_write)
        mmu_phys_write(vcpu, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
    else
        mmu_phys_read(vcpu, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

/* True: it was one of those that end when KVM is entered again. */
static bool do_access(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    switch (cpu->run->exit_reason) {
    case KVM_EXIT_IO: do_port(vcpu, cpu->run); break;
    case KVM_EXIT_MMIO: do_mmio(vcpu, cpu->run); break;
    case KVM_EXIT_X86_RDMSR: case KVM_EXIT_X86_WRMSR: cpu->outdated |= kvm_do_msr(vcpu, cpu->run); break;
    default: return false;
    }
    return cpu->unfinished = true;
}

/* Lets KVM end the instruction of the last exit, which may take several. True: and it is the one that was to be stepped. */
static bool finish(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    bool stepped = false;
    while (cpu->unfinished) {
        cpu->unfinished = false;
        cpu->run->immediate_exit = 1;
        if (!ioctl(cpu->fd, KVM_RUN, 0) && !do_access(vcpu, cpu))
            stepped = cpu->run->exit_reason == KVM_EXIT_DEBUG;
    }
    return stepped;
}

/* --- events for the guest --- */

/* As of the last visit to KVM. */
static bool is_ready(const struct kvm_cpu *cpu)
{
    return cpu->run->ready_for_interrupt_injection && cpu->run->if_flag;
}

/*
 * Where the instruction of the last exit ends with an exception (an MSR that there is not), KVM delivers that, and forgets an interrupt that
 * it was given before. So the instruction ends first. One that is stepped ends the visit: the interrupt waits for the next.
 */
static bool can_be_given(struct vcpu *vcpu, struct kvm_cpu *cpu, bool ready)
{
    if (!ready || !cpu->unfinished)
        return ready;
    if (cpu->stepping)
        return false;
    finish(vcpu, cpu);
    return is_ready(cpu);
}

/* *ready: the guest can take one at once; no longer, when it has been given one. */
static void offer_interrupt(struct vcpu *vcpu, struct kvm_cpu *cpu, bool *ready)
{
    cpu->run->request_interrupt_window = 0;
    if (!vcpu->intc_ops || vcpu->intc_ops->pending(vcpu->intc) < 0)
        return;
    *ready = can_be_given(vcpu, cpu, *ready);
    if (!*ready) {
        cpu->run->request_interrupt_window = 1;
        return;
    }
    int vector = vcpu->intc_ops->acknowledge(vcpu->intc);
    if (vector < 0)
        return;
    counter_add(&vcpu->counters, COUNTER_interrupts, 1);
    trace(vcpu->log, cpu_interrupt, "vcpu%u vector %#x, by KVM", vcpu->index, vector);
    kvm_inject(cpu, (uint8_t)vector);
    *ready = false;
    if (vcpu->intc_ops->pending(vcpu->intc) >= 0)
        cpu->run->request_interrupt_window = 1;
}

/* The request is taken back before its source is looked at, as in vcpu/events.c. */
static void offer_events(struct vcpu *vcpu, struct kvm_cpu *cpu, bool *ready)
{
    uint32_t request = atomic_fetch_and(&vcpu->request, ~(uint32_t)INSIDE);
    if ((request & REQUEST_NMI) || vcpu->nmi_held)
        ioctl(cpu->fd, KVM_NMI, 0);
    vcpu->nmi_held = false;
    offer_interrupt(vcpu, cpu, ready);
    if (vcpu->intc_ops)
        cpu->run->cr8 = vcpu->intc_ops->get_tpr(vcpu->intc);
}

static void take_tpr(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    if (vcpu->intc_ops && !cpu->vm->apics && cpu->run->cr8 != vcpu->intc_ops->get_tpr(vcpu->intc))
        vcpu->intc_ops->set_tpr(vcpu->intc, cpu->run->cr8);
}

/* One instruction that KVM cannot carry out, by the interpreter. */
static enum run_result interpret(struct vcpu *vcpu, struct kvm_cpu *cpu, uint32_t reason, uint64_t detail)
{
    if (!cpu->complained)
        log_message(vcpu->log, LOG_WARNING, "vCPU %u: KVM cannot go on at %#lx (reason %u, %#lx); such instructions are interpreted",
                    vcpu->index, vcpu->rip, reason, detail);
    cpu->complained = true;
    return interp_run(vcpu, 1);
}

enum outcome { ON, STOP, DONE /* with an instruction, where it steps */, INTERPRET, HALTED, DEAD };

static enum outcome outcome_of(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    if (do_access(vcpu, cpu))
        return cpu->outdated ? DONE : ON;
    switch (cpu->run->exit_reason) {
    case KVM_EXIT_IRQ_WINDOW_OPEN: case KVM_EXIT_SET_TPR: case KVM_EXIT_INTR: return ON;
    case KVM_EXIT_DIRTY_RING_FULL: kvm_collect_dirty(vcpu, cpu); return ON;
    case KVM_EXIT_IOAPIC_EOI: vcpu->intc_ops->eoi(vcpu->intc, cpu->run->eoi.vector); return ON;
    case KVM_EXIT_HLT: return HALTED;
    case KVM_EXIT_SHUTDOWN: return DEAD;
    case KVM_EXIT_DEBUG: return DONE;
    default: return INTERPRET;
    }
}

/* After the registers are pushed: KVM steps from where the vCPU stands when it is told to, not from where it is put later. */
static bool set_stepping(struct kvm_cpu *cpu, bool on)
{
    struct kvm_guest_debug debug = { .control = on ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0 };
    if (!on && !cpu->stepping)
        return true;
    cpu->stepping = on;
    return !ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &debug);
}

/* A HLT that KVM keeps to itself is not seen: the processor may have nothing else to do from now on. */
static void tell_idle(struct vcpu *vcpu)
{
    if (engine_waits(vcpu) && vcpu->stop_ops)
        vcpu->stop_ops->idle(vcpu->system_owner, vcpu);
}

/* Between the first and the last entry KVM has the state. `ready`: the guest can take an interrupt at once. */
static enum outcome run_in_kvm(struct vcpu *vcpu, struct kvm_cpu *cpu, bool ready)
{
    for (;;) {
        if (atomic_load(&vcpu->request) & ~(uint32_t)INSIDE)
            return STOP;
        tell_idle(vcpu);
        offer_events(vcpu, cpu, &ready);
        int status = 0;
        if (!kvm_enter(vcpu, cpu, &status))
            continue;
        cpu->unfinished = false;
        ready = is_ready(cpu);
        take_tpr(vcpu, cpu);
        if (status < 0 && errno != EINTR && errno != EAGAIN)
            return INTERPRET;
        enum outcome outcome = status < 0 ? ON : outcome_of(vcpu, cpu);
        if (outcome != ON)
            return outcome;
    }
}

/* With the state pushed. Where KVM has the APIC it is asked: it knows whether that lets the 8259's interrupts in. */
static bool can_take_interrupt(const struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    if (!cpu->vm->apics)
        return (vcpu->rflags & RFLAGS_IF) && !(vcpu->shadow & (SHADOW_STI | SHADOW_MOV_SS));
    if (vcpu->intc_ops->pending(vcpu->intc) < 0)
        return false;
    cpu->run->immediate_exit = 1;
    ioctl(cpu->fd, KVM_RUN, 0);
    return is_ready(cpu);
}

static enum run_result visit(struct vcpu *vcpu, struct kvm_cpu *cpu, bool step)
{
    cpu->outdated = false;
    if (!kvm_push(vcpu, cpu) || !set_stepping(cpu, step))
        return interpret(vcpu, cpu, KVM_EXIT_UNKNOWN, 0);
    enum outcome outcome = run_in_kvm(vcpu, cpu, can_take_interrupt(vcpu, cpu));
    uint32_t reason = cpu->run->exit_reason;
    uint64_t detail = cpu->run->fail_entry.hardware_entry_failure_reason;        /* of an internal error: its number */
    if (finish(vcpu, cpu))
        outcome = DONE;
    bool event = kvm_pull(vcpu, cpu);
    if (vcpu->intc_ops && vcpu->intc_ops->pending(vcpu->intc) >= 0)     /* offered in vain; somebody must look again */
        atomic_fetch_or(&vcpu->request, REQUEST_INTERRUPT);
    if (event)
        return RUN_EVENT;
    if (vcpu->activity != ACTIVITY_ACTIVE && outcome == INTERPRET)
        outcome = STOP;
    switch (outcome) {
    case HALTED:
        vcpu->activity = ACTIVITY_HLT;
        return RUN_IDLE;
    case DEAD:
        vcpu->activity = ACTIVITY_SHUTDOWN;
        if (vcpu->system_event)
            vcpu->system_event(vcpu->system_owner, vcpu, SYSTEM_TRIPLE_FAULT);
        return RUN_IDLE;
    case INTERPRET:
        return interpret(vcpu, cpu, reason, detail);
    default:
        if (outcome == DONE && cpu->stepping)
            counter_add(&vcpu->counters, COUNTER_instructions, 1);
        return vcpu->activity == ACTIVITY_ACTIVE ? RUN_REQUEST : RUN_IDLE;
    }
}

static bool memory_is_told(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    bool logs = atomic_load(&vcpu->ram->dirty_clients);
    bool changed = atomic_exchange(&cpu->memory_changed, false);
    return (!changed && cpu->vm->part_count && cpu->vm->logging == logs) || kvm_map_memory(vcpu, cpu->vm);
}

static enum run_result interpret_for_deadline(struct vcpu *vcpu, struct kvm_cpu *cpu, uint64_t budget)
{
    if (!cpu->told_of_deadline)
        log_message(vcpu->log, LOG_WARNING, "vCPU %u: the guest uses its APIC's TSC deadline, which this host's KVM loses; it is interpreted. "
                    "Start it on --engine kvm, or change to --engine dbt", vcpu->index);
    cpu->told_of_deadline = true;
    return interp_run(vcpu, budget);
}

static enum run_result engine_run(struct vcpu *vcpu, uint64_t budget)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    bool step = budget != UINT64_MAX;
    if (vcpu->pending.kind != EVENT_NONE)
        return RUN_EVENT;
    if (vcpu->activity != ACTIVITY_ACTIVE && (step || !engine_waits(vcpu)))
        return RUN_IDLE;
    bool told = memory_is_told(vcpu, cpu);
    if (vcpu->activity == ACTIVITY_ACTIVE && (vcpu->pending_debug || !told))        /* a debug trap that an interpreted instruction left */
        return interp_run(vcpu, 1);
    if (!kvm_wake(vcpu, cpu))
        return vcpu->activity == ACTIVITY_ACTIVE ? interp_run(vcpu, budget) : RUN_IDLE;
    if (kvm_loses_deadline(vcpu))
        return interpret_for_deadline(vcpu, cpu, budget);
    enum run_result result = visit(vcpu, cpu, step);
    kvm_collect_dirty(vcpu, cpu);
    if (step)
        kvm_rest(vcpu);
    return result;
}

/* --- the engine --- */

static void detach(struct vcpu *vcpu)
{
    struct kvm_cpu *cpu = vcpu->engine_state;
    if (!cpu)
        return;
    kvm_rest(vcpu);
    kvm_close_ring(cpu);
    if (cpu->run)
        munmap(cpu->run, cpu->vm->run_size);
    if (cpu->fd >= 0)
        close(cpu->fd);
    kvm_vm_put(cpu->vm);
    free(cpu->xsave);
    interp_fini(vcpu, &cpu->interp);
    free(cpu);
}

static bool open_cpu(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    cpu->fd = ioctl(cpu->vm->fd, KVM_CREATE_VCPU, (unsigned long)vcpu->apic_id);
    if (cpu->fd < 0)
        return false;
    void *run = mmap(NULL, cpu->vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (run == MAP_FAILED)
        return false;
    cpu->run = run;
    cpu->xsave = calloc(1, cpu->vm->xsave_size);
    return cpu->xsave && kvm_open_ring(cpu) && kvm_set_cpuid(vcpu, cpu);
}

static bool attach(struct vcpu *vcpu)
{
    struct kvm_cpu *cpu = calloc(1, sizeof(*cpu));
    struct kvm_vm *vm = cpu && kvm_prepare_kicks() ? kvm_vm_get(vcpu) : NULL;
    if (!vm) {
        free(cpu);
        return false;
    }
    cpu->vm = vm;
    cpu->fd = -1;
    if (!interp_init(vcpu, &cpu->interp)) {
        kvm_vm_put(vm);
        free(cpu);
        return false;
    }
    if (open_cpu(vcpu, cpu))
        return true;
    detach(vcpu);
    return false;
}

static bool takes_events(struct vcpu *vcpu) { return !kvm_loses_deadline(vcpu) && !atomic_load(&kvm_cpu_of(vcpu)->vm->refused); }

/* KVM runs what memory holds; but this is also how a change of what is RAM becomes known (ram_set_pages). */
static void code_written(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    atomic_store(&kvm_cpu_of(vcpu)->memory_changed, true);
    block_drop(vcpu, gpa, size);
}

static bool available(const struct vcpu *vcpu, struct error *err)
{
    if (vcpu->counted)
        return error_set(err, "the kvm engine cannot count instructions; use --engine dbt");
    if (vcpu->mmu->policy != MMU_NORMAL)
        return error_set(err, "with the kvm engine the host's processor keeps translations, not as --tlb says; use --engine dbt");
    if (x86_has(vcpu, FEATURE_VMX))
        return error_set(err, "the kvm engine does not offer VT-x to its guest; use --engine dbt, or a processor model without it");
    struct error why;
    return kvm_usable(&why) || error_set(err, "the kvm engine cannot be had here: %s; use --engine dbt", why.text);
}

const struct engine engine_kvm = {
    .name = "kvm",
    .text = "the host's KVM: the guest runs on the processor itself",
    .takes_events = takes_events,
    .waits = engine_waits,
    .rest = kvm_rest,
    .available = available,
    .attach = attach,
    .detach = detach,
    .run = engine_run,
    .code_written = code_written,
};
