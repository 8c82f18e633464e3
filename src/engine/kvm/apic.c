/*
 * Local APICs in the host's kernel (KVM §7.5 KVM_CAP_SPLIT_IRQCHIP): I/O APIC and 8259 stay the board's. HLT, IPIs, INIT, SIPI and the APIC's
 * timer are then KVM's, and the guest leaves for none of them.
 *
 * The registers are lent (bus/intc_host.h) by the first vCPU that goes into KVM, and come back with the last that comes to rest: at a pause,
 * before the end, after a single step, when the engine is changed. In between they stay in KVM, also while a vCPU is out of it: others may send
 * it an IPI at any time, and KVM_SET_LAPIC would wipe that out. For the same reason what KVM holds for a vCPU beside its registers (an NMI, INIT
 * or SIPI that waits, an EOI that nobody has heard, a timer that has run out) is looked at only then, when nobody runs.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <time.h>

#include "engine/kvm/kvm.h"

enum { MSR_APIC_BASE = 0x1B, MSR_TSC_DEADLINE = 0x6E0 };
/* SDM3 Table 11-1, the offset divided by 16. */
enum { APIC_LVT_TIMER = 0x32, APIC_TIMER_INITIAL = 0x38, APIC_TIMER_CURRENT = 0x39, LVT_TIMER_MODE = 3 << 17, LVT_TSC_DEADLINE = 2 << 17,
       LVT_PERIODIC = 1 << 17 };

/* --- MSRs and registers --- */

struct one_msr {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
};

static bool get_msr(const struct kvm_cpu *cpu, uint32_t msr, uint64_t *value)
{
    struct one_msr one = { .head.nmsrs = 1, .entry.index = msr };
    if (ioctl(cpu->fd, KVM_GET_MSRS, &one) != 1)
        return false;
    *value = one.entry.data;
    return true;
}

static bool set_msr(const struct kvm_cpu *cpu, uint32_t msr, uint64_t value)
{
    struct one_msr one = { .head.nmsrs = 1, .entry = { .index = msr, .data = value } };
    return ioctl(cpu->fd, KVM_SET_MSRS, &one) == 1;
}

/* A register is the first word of each 16 bytes. */
union apic_page {
    struct kvm_lapic_state state;
    uint32_t reg[INTC_REGISTERS][4];
};
_Static_assert(sizeof(union apic_page) == sizeof(struct kvm_lapic_state), "64 registers");

static struct vcpu *vcpu_of(const struct kvm_vm *vm, uint32_t apic_id)
{
    for (unsigned i = 0; i < vm->all_count; i++)
        if (vm->all[i] && vm->all[i]->apic_id == apic_id)
            return vm->all[i];
    return NULL;
}

/* Not all of them have the engine while it is being changed. */
static struct kvm_cpu *cpu_with(const struct kvm_vm *vm, const struct vcpu *vcpu)
{
    return vcpu && vcpu->engine == &engine_kvm && vcpu->engine_state && kvm_cpu_of(vcpu)->vm == vm ? kvm_cpu_of(vcpu) : NULL;
}

/* --- what waits in KVM; nobody runs --- */

/* Registers that INIT and SIPI change, both of them. */
struct start {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
};

static bool get_start(const struct kvm_cpu *cpu, struct start *start)
{
    memset(start, 0, sizeof(*start));
    return !ioctl(cpu->fd, KVM_GET_REGS, &start->regs) && !ioctl(cpu->fd, KVM_GET_SREGS, &start->sregs);
}

/* KVM carries out an INIT or SIPI that waits when it is asked for the activity. It is done again with the vCPU's own state, when that goes on. */
static void take_back_init(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct start before, after;
    struct kvm_mp_state state;
    if (!get_start(cpu, &before) || ioctl(cpu->fd, KVM_GET_MP_STATE, &state) || !get_start(cpu, &after) || !memcmp(&before, &after, sizeof(before)))
        return;
    bool sipi = state.mp_state == KVM_MP_STATE_RUNNABLE && vcpu->index;
    uint32_t request = (vcpu->activity != ACTIVITY_WAIT_SIPI ? REQUEST_INIT : 0) | (sipi ? REQUEST_SIPI : 0);
    if (sipi)
        __atomic_store_n(&vcpu->sipi_vector, (uint8_t)(after.sregs.cs.selector >> 8), __ATOMIC_RELEASE);
    vcpu_kick(vcpu, request);
}

/* Nothing is lost by it: the vCPU's own state has been pulled, and is pushed before the guest goes on. */
static bool quieten(const struct kvm_cpu *cpu)
{
    struct kvm_regs regs;
    struct kvm_vcpu_events none = { .flags = KVM_VCPUEVENT_VALID_NMI_PENDING };
    if (ioctl(cpu->fd, KVM_GET_REGS, &regs))
        return false;
    regs.rflags &= ~(uint64_t)RFLAGS_IF;
    return !ioctl(cpu->fd, KVM_SET_REGS, &regs) && !ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &none);
}

/* KVM must have it no longer, or the guest gets it from both. */
static bool take_back_nmi(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_vcpu_events events;
    if (ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &events) || !quieten(cpu))
        return false;
    if (events.nmi.pending)
        vcpu_kick(vcpu, REQUEST_NMI);
    return true;
}

/*
 * An EOI that the I/O APIC must hear leaves KVM when that is entered the next time: a signal or a single step may have ended the visit before.
 * One in HLT has none, or it would not have come there.
 */
static void take_back_eoi(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    if (vcpu->activity != ACTIVITY_ACTIVE)
        return;
    cpu->run->exit_reason = KVM_EXIT_INTR;
    kvm_enter_interrupted(cpu);
    if (cpu->run->exit_reason == KVM_EXIT_IOAPIC_EOI)
        vcpu->intc_ops->eoi(vcpu->intc, cpu->run->eoi.vector);
}

/*
 * A count's expiry gets into IRR only when the vCPU runs, and where the processor's own preemption timer keeps the count, not before it has been
 * in the guest. A vCPU in HLT, though, has its count moved to a timer of the kernel's, which first looks whether the time has come. So it goes
 * to HLT for a moment, with nothing to wake it. Before that a timer of the kernel's has time to be late.
 */
static void settle_timer(const struct kvm_cpu *cpu)
{
    struct kvm_mp_state state = { KVM_MP_STATE_HALTED };
    nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
    if (quieten(cpu) && !ioctl(cpu->fd, KVM_SET_MP_STATE, &state))
        kvm_enter_interrupted(cpu);
}

static bool counts(const union apic_page *page)
{
    return (page->reg[APIC_LVT_TIMER][0] & LVT_TIMER_MODE) != LVT_TSC_DEADLINE && page->reg[APIC_TIMER_INITIAL][0];
}

/* One that has run out may have done so just now. A deadline that has passed needs nothing: it is told as long as it is not in IRR. */
static bool get_page(const struct kvm_cpu *cpu, union apic_page *page)
{
    if (ioctl(cpu->fd, KVM_GET_LAPIC, page))
        return false;
    if (!counts(page) || (page->reg[APIC_TIMER_CURRENT][0] && !(page->reg[APIC_LVT_TIMER][0] & LVT_PERIODIC)))
        return true;
    settle_timer(cpu);
    return !ioctl(cpu->fd, KVM_GET_LAPIC, page);
}

/* --- struct intc_host --- */

/* A vCPU that has another engine is none of KVM's: its registers lie still. */
static bool store(void *owner, uint32_t apic_id, const struct intc_registers *registers)
{
    struct kvm_vm *vm = owner;
    struct vcpu *vcpu = vcpu_of(vm, apic_id);
    struct kvm_cpu *cpu = cpu_with(vm, vcpu);
    union apic_page page = { 0 };
    if (!cpu)
        return false;
    for (unsigned i = 0; i < INTC_REGISTERS; i++)
        page.reg[i][0] = registers->reg[i];
    kvm_tell_tsc(vcpu, cpu);
    return set_msr(cpu, MSR_APIC_BASE, registers->base) && !ioctl(cpu->fd, KVM_SET_LAPIC, &page) &&
           (!registers->deadline || set_msr(cpu, MSR_TSC_DEADLINE, registers->deadline));
}

/* The deadline first: any call may tell of one that has passed, and then it is in IRR. */
static bool fetch(void *owner, uint32_t apic_id, struct intc_registers *registers)
{
    const struct kvm_vm *vm = owner;
    const struct kvm_cpu *cpu = cpu_with(vm, vcpu_of(vm, apic_id));
    union apic_page page;
    if (!cpu || !get_msr(cpu, MSR_APIC_BASE, &registers->base) || !get_msr(cpu, MSR_TSC_DEADLINE, &registers->deadline))
        return false;
    if (!(vm->awake ? !ioctl(cpu->fd, KVM_GET_LAPIC, &page) : get_page(cpu, &page)))
        return false;
    for (unsigned i = 0; i < INTC_REGISTERS; i++)
        registers->reg[i] = page.reg[i][0];
    return true;
}

static bool read_msr(void *owner, uint32_t apic_id, uint32_t msr, uint64_t *value)
{
    const struct kvm_vm *vm = owner;
    const struct kvm_cpu *cpu = cpu_with(vm, vcpu_of(vm, apic_id));
    return cpu && get_msr(cpu, msr, value);
}

static bool write_msr(void *owner, uint32_t apic_id, uint32_t msr, uint64_t value)
{
    const struct kvm_vm *vm = owner;
    const struct kvm_cpu *cpu = cpu_with(vm, vcpu_of(vm, apic_id));
    return cpu && set_msr(cpu, msr, value);
}

static bool send(void *owner, uint64_t address, uint32_t data)
{
    const struct kvm_vm *vm = owner;
    struct kvm_msi msi = { .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data };
    return ioctl(vm->fd, KVM_SIGNAL_MSI, &msi) > 0;
}

/* KVM looks up here, by its own numbers of the inputs, which vectors' EOIs leave the guest (KVM §7.5). */
static void route(void *owner, const struct intc_route route[INTC_ROUTES])
{
    const struct kvm_vm *vm = owner;
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry[INTC_ROUTES];
    } table = { 0 };
    for (uint32_t i = 0; i < INTC_ROUTES; i++)
        if (route[i].address)
            table.entry[table.head.nr++] = (struct kvm_irq_routing_entry){
                .gsi = i, .type = KVM_IRQ_ROUTING_MSI,
                .u.msi = { .address_lo = (uint32_t)route[i].address, .address_hi = (uint32_t)(route[i].address >> 32), .data = route[i].data },
            };
    ioctl(vm->fd, KVM_SET_GSI_ROUTING, &table);
}

/* --- life --- */

/* What must be there for it. X2APIC_API: else IDs have 8 bits in KVM_GET_LAPIC. */
static bool offered(int vm_fd)
{
    static const int needed[] = { KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SIGNAL_MSI, KVM_CAP_IRQ_ROUTING, KVM_CAP_MP_STATE, KVM_CAP_TSC_DEADLINE_TIMER,
                                  KVM_CAP_X2APIC_API };
    for (unsigned i = 0; i < ARRAY_SIZE(needed); i++)
        if (ioctl(vm_fd, KVM_CHECK_EXTENSION, needed[i]) <= 0)
            return false;
    return true;
}

bool kvm_ask_for_apics(int vm_fd)
{
    enum { SUPPRESSED_EOIS = 1 << 2 };      /* KVM §7.7 KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST: KVMs of 2026 */
    if (!offered(vm_fd))
        return false;
    struct kvm_enable_cap wide = { .cap = KVM_CAP_X2APIC_API, .args = { KVM_X2APIC_API_USE_32BIT_IDS } };
    struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { INTC_ROUTES } };
    if (ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) & SUPPRESSED_EOIS)
        wide.args[0] |= SUPPRESSED_EOIS;
    return !ioctl(vm_fd, KVM_ENABLE_CAP, &wide) && !ioctl(vm_fd, KVM_ENABLE_CAP, &split);
}

void kvm_open_apics(struct kvm_vm *vm, const struct vcpu *vcpu)
{
    vm->all = vcpu->all;
    vm->all_count = vcpu->all_count;
    vm->host = (struct intc_host){ .store = store, .fetch = fetch, .read_msr = read_msr, .write_msr = write_msr, .send = send, .route = route,
                                   .owner = vm };
}

bool kvm_wake(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    struct kvm_vm *vm = cpu->vm;
    if (!vm->apics || cpu->awake)
        return true;
    pthread_mutex_lock(&vm->apic_mutex);
    if (!vm->lent)
        vm->lent = vcpu->intc_ops->lend(vcpu->intc, &vm->host);
    vm->refused = !vm->lent;
    cpu->awake = vm->lent;
    vm->awake += cpu->awake;
    pthread_mutex_unlock(&vm->apic_mutex);
    return cpu->awake;
}

static void take_back(struct vcpu *vcpu, struct kvm_vm *vm)
{
    for (unsigned i = 0; i < vm->all_count; i++) {
        const struct kvm_cpu *cpu = cpu_with(vm, vm->all[i]);
        if (cpu) {
            take_back_init(vm->all[i], cpu);
            if (take_back_nmi(vm->all[i], cpu))
                take_back_eoi(vm->all[i], cpu);
        }
    }
    vcpu->intc_ops->reclaim(vcpu->intc);
    vm->lent = false;
}

void kvm_rest(struct vcpu *vcpu)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    struct kvm_vm *vm = cpu->vm;
    if (!cpu->awake)
        return;
    pthread_mutex_lock(&vm->apic_mutex);
    cpu->awake = false;
    if (--vm->awake == 0)
        take_back(vcpu, vm);
    pthread_mutex_unlock(&vm->apic_mutex);
}

/* --- between the vCPU and KVM, with the other registers --- */

bool kvm_push_activity(const struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    static const uint32_t states[] = { [ACTIVITY_ACTIVE] = KVM_MP_STATE_RUNNABLE, [ACTIVITY_HLT] = KVM_MP_STATE_HALTED,
                                       [ACTIVITY_SHUTDOWN] = KVM_MP_STATE_RUNNABLE, [ACTIVITY_WAIT_SIPI] = KVM_MP_STATE_INIT_RECEIVED };
    struct kvm_mp_state state = { states[vcpu->activity] };
    return !cpu->vm->apics || !ioctl(cpu->fd, KVM_SET_MP_STATE, &state);
}

/* Before any register: an INIT that waits is carried out by this. */
void kvm_pull_activity(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    struct kvm_mp_state state;
    if (!cpu->vm->apics || ioctl(cpu->fd, KVM_GET_MP_STATE, &state))
        return;
    bool waits = state.mp_state == KVM_MP_STATE_UNINITIALIZED || state.mp_state == KVM_MP_STATE_INIT_RECEIVED;
    vcpu->activity = waits ? ACTIVITY_WAIT_SIPI : state.mp_state == KVM_MP_STATE_HALTED ? ACTIVITY_HLT : ACTIVITY_ACTIVE;
}

void kvm_move_deadline(const struct kvm_cpu *cpu)
{
    uint64_t deadline;
    if (cpu->vm->lent && get_msr(cpu, MSR_TSC_DEADLINE, &deadline) && deadline)
        set_msr(cpu, MSR_TSC_DEADLINE, deadline);
}

/*
 * The 8259's interrupt, which the vCPU can take at once. KVM_INTERRUPT would keep it where it can neither be seen nor taken back until it is
 * delivered; so it is told as one whose delivery had begun, as without APICs in KVM.
 */
bool kvm_inject(const struct kvm_cpu *cpu, uint8_t vector)
{
    struct kvm_interrupt interrupt = { .irq = vector };
    struct kvm_mp_state state = { KVM_MP_STATE_RUNNABLE };
    struct kvm_vcpu_events events;
    if (!cpu->vm->apics)
        return !ioctl(cpu->fd, KVM_INTERRUPT, &interrupt);
    if (ioctl(cpu->fd, KVM_SET_MP_STATE, &state) || ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &events))
        return false;
    events.interrupt.injected = 1;
    events.interrupt.nr = vector;
    events.interrupt.soft = 0;
    events.flags = 0;                   /* what else may change meanwhile stays as it is */
    return !ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &events);
}
