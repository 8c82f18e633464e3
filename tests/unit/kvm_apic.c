/* What waits in KVM beside the registers of the local APICs, when those come back: by a kernel of the test's own, to which all calls of ioctl go. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/kvm/kvm.h"
#include "unit/cmocka_all.h"

enum { EOI_VECTOR = 0x31 };

static struct kernel {
    struct kvm_vcpu_events events;
    struct kvm_regs regs;
    bool eoi_waits;
    struct kvm_run *run;
    unsigned entered;
} kernel;

static int enter(void)
{
    kernel.entered++;
    if (kernel.eoi_waits) {
        kernel.eoi_waits = false;
        kernel.run->exit_reason = KVM_EXIT_IOAPIC_EOI;
        kernel.run->eoi.vector = EOI_VECTOR;
        return 0;
    }
    kernel.run->exit_reason = KVM_EXIT_INTR;
    errno = EINTR;
    return -1;
}

static void set_events(const struct kvm_vcpu_events *events)
{
    uint8_t pending = kernel.events.nmi.pending;
    kernel.events = *events;
    if (!(events->flags & KVM_VCPUEVENT_VALID_NMI_PENDING))
        kernel.events.nmi.pending = pending;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    switch (request) {
    case KVM_RUN: return enter();
    case KVM_GET_REGS: *(struct kvm_regs *)argument = kernel.regs; return 0;
    case KVM_SET_REGS: kernel.regs = *(struct kvm_regs *)argument; return 0;
    case KVM_GET_SREGS: memset(argument, 0, sizeof(struct kvm_sregs)); return 0;
    case KVM_GET_MP_STATE: memset(argument, 0, sizeof(struct kvm_mp_state)); return 0;
    case KVM_GET_VCPU_EVENTS: *(struct kvm_vcpu_events *)argument = kernel.events; return 0;
    case KVM_SET_VCPU_EVENTS: set_events(argument); return 0;
    case KVM_SET_SIGNAL_MASK: return 0;
    default: errno = ENOTTY; return -1;
    }
}

/* --- a processor whose APIC has been lent --- */

struct board {
    unsigned lent, eois;
    uint8_t eoi;
};

static bool lend(void *intc, const struct intc_host *host) { return ++((struct board *)intc)->lent == 1; }
static void reclaim(void *intc) { ((struct board *)intc)->lent--; }

/* While the APICs are still lent, so that what the I/O APIC answers reaches them. */
static void hear_eoi(void *intc, uint8_t vector)
{
    struct board *board = intc;
    board->eois += board->lent == 1;
    board->eoi = vector;
}

static const struct intc_ops ops = { .lend = lend, .reclaim = reclaim, .eoi = hear_eoi };

struct fixture {
    struct board board;
    struct vcpu vcpu;
    struct vcpu *all[1];
    struct kvm_vm vm;
    struct kvm_cpu cpu;
    struct kvm_run run;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    f->all[0] = &f->vcpu;
    f->vm = (struct kvm_vm){ .apics = true, .all = f->all, .all_count = 1 };
    f->cpu.vm = &f->vm;
    f->cpu.run = &f->run;
    f->vcpu.engine = &engine_kvm;
    f->vcpu.engine_state = &f->cpu;
    f->vcpu.intc_ops = &ops;
    f->vcpu.intc = &f->board;
    pthread_mutex_init(&f->vm.apic_mutex, NULL);
    pthread_mutex_init(&f->vcpu.mutex, NULL);
    pthread_cond_init(&f->vcpu.wake, NULL);
    kernel = (struct kernel){ .run = &f->run, .regs.rflags = RFLAGS_IF | RFLAGS_FIXED };
    assert_true(kvm_prepare_kicks());
    assert_true(kvm_wake(&f->vcpu, &f->cpu));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

/* --- the tests --- */

static void an_nmi_that_waits_is_told_once(void **state)
{
    struct fixture *f = *state;
    kernel.events.nmi.pending = 1;
    kvm_rest(&f->vcpu);
    assert_int_equal(f->board.lent, 0);
    assert_true(atomic_load(&f->vcpu.request) & REQUEST_NMI);
    assert_int_equal(kernel.events.nmi.pending, 0);
}

static void no_nmi_is_told_where_none_waits(void **state)
{
    struct fixture *f = *state;
    kvm_rest(&f->vcpu);
    assert_false(atomic_load(&f->vcpu.request) & REQUEST_NMI);
}

static void an_eoi_that_waits_is_heard(void **state)
{
    struct fixture *f = *state;
    kernel.eoi_waits = true;
    kvm_rest(&f->vcpu);
    assert_int_equal(f->board.eois, 1);
    assert_int_equal(f->board.eoi, EOI_VECTOR);
    assert_int_equal(f->board.lent, 0);
}

/* Nothing may come up in the guest while KVM is entered for that. */
static void the_guest_takes_no_interrupt_meanwhile(void **state)
{
    struct fixture *f = *state;
    kernel.events.interrupt.injected = 1;
    kvm_rest(&f->vcpu);
    assert_int_equal(kernel.entered, 1);
    assert_false(kernel.regs.rflags & RFLAGS_IF);
    assert_int_equal(kernel.events.interrupt.injected, 0);
    assert_int_equal(f->board.eois, 0);
}

static void a_halted_one_is_not_entered(void **state)
{
    struct fixture *f = *state;
    f->vcpu.activity = ACTIVITY_HLT;
    kvm_rest(&f->vcpu);
    assert_int_equal(kernel.entered, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_nmi_that_waits_is_told_once, setup, teardown),
        cmocka_unit_test_setup_teardown(no_nmi_is_told_where_none_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(an_eoi_that_waits_is_heard, setup, teardown),
        cmocka_unit_test_setup_teardown(the_guest_takes_no_interrupt_meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(a_halted_one_is_not_entered, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
