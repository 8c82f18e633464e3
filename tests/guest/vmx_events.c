/*
 * Events of a VT-x guest by its activity and interruptibility: what blocks INIT, NMIs and interrupts (SDM3 §24.8, §27.7.2), what an entry
 * does with pending debug exceptions (§27.7.3), kinds of injected events (§27.6), NMIs and IRET (§26.3, §28.2.2), and what an exit leaves of
 * debug and table registers (§28.5).
 */
#include "lib/vmx.h"

enum { ACTIVE, HALTED, SHUT_DOWN, WAIT_SIPI };
enum { DB = 1, NMI = 2, BP = 3, UD = 6, GP = 13, VECTOR = 0x60 };
enum { BY_MOV_SS = 2, BY_NMI = 8 };
enum { INJECT = 1u << 31, SOFTWARE_INTERRUPT = 4 << 8, PRIVILEGED_EXCEPTION = 5 << 8, SOFTWARE_EXCEPTION = 6 << 8, EXCEPTION = 3 << 8, INJECTED_NMI = 2 << 8 };
enum { PENDING_BREAKPOINT = 1 << 12, PENDING_STEP = 1 << 14 };

extern uint64_t stub_table[256];
static unsigned hits;
static uint64_t hit_rip;

static void on_event(struct trap_frame *frame) { hits++; hit_rip = frame->rip; }
static void on_event_vmcall(struct trap_frame *frame) { vmcall(); }

static void guest_vmcall(void) { vmcall(); }
static void guest_loop(void) { for (;;) pause(); }

/* With a timer that ends what would not end, in about a minute. */
static void prepare(void (*code)(void), uint32_t pin)
{
    vmcs_prepare(code);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_ACTIVATE_PREEMPTION_TIMER | pin);
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 0xFFFFFFFF);
}

/* Nothing is to happen. */
static void await_nothing(const char *name)
{
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 100000);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, name);
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 0xFFFFFFFF);
}

static void send_to_itself(uint32_t icr)
{
    *apic(0x310) = 0;
    *apic(0x300) = icr;
}

static void send_init(void) { send_to_itself(0x4500); }
static void send_nmi(void) { send_to_itself(0x4400); }
static void send_interrupt(void) { send_to_itself(0x40000 | VECTOR); }

/* --- INIT --- */

static volatile bool send_init_and_sipi;

static void other_processor(unsigned number)
{
    while (!send_init_and_sipi)
        pause();
    *apic(0x310) = 0;
    *apic(0x300) = 0x4500;
    while (send_init_and_sipi)          /* one that comes too early is lost */
        *apic(0x300) = 0x4608;
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void inits(void)
{
    prepare(guest_loop, 0);
    send_init();
    check(true, "root operation blocks INIT");
    check_equal(vmx_run_reason(), REASON_INIT, "which exits after the next entry");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_loop, "before the first instruction");
    await_nothing("once");
    prepare(guest_loop, 0);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, SHUT_DOWN);
    send_init();
    check_equal(vmx_run_reason(), REASON_INIT, "so does a guest that is shut down");
    vmcs_prepare(guest_loop);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, WAIT_SIPI);
    send_init_and_sipi = true;
    check_equal(vmx_run_reason(), REASON_SIPI, "one that waits for SIPI exits by that, not by INIT");
    send_init_and_sipi = false;
}

/* --- a guest that is shut down --- */

static void guest_nmi(void)
{
    send_nmi();
    for (;;)
        pause();
}

/* Ends the blocking that an NMI's exit leaves. */
static void unblock_nmis(void)
{
    __asm__ volatile("mov %%rsp, %%rax; pushq %0; pushq %%rax; pushfq; pushq %1; lea 1f(%%rip), %%rax; pushq %%rax; iretq; 1:"
                     :: "i"(SEL_DATA), "i"(SEL_CODE64) : "rax", "memory");
}

static void shut_down(void)
{
    prepare(guest_loop, PIN_EXTERNAL_INTERRUPT_EXITING);
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, SHUT_DOWN);
    send_interrupt();
    await_nothing("a guest that is shut down does not exit by an interrupt");
    check_equal(vmread(VMCS_GUEST_ACTIVITY_STATE), SHUT_DOWN, "and stays so");
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, HALTED);
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "a halted one does");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), INJECT | VECTOR, "the same interrupt");
    *apic(0xB0) = 0;

    prepare(guest_nmi, PIN_NMI_EXITING);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "an NMI exits");
    send_nmi();
    prepare(guest_loop, PIN_NMI_EXITING);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, SHUT_DOWN);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "one that waited in root operation exits from a guest that is shut down");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), INJECT | INJECTED_NMI | NMI, "as NMI");
    unblock_nmis();
}

/* --- pending debug exceptions --- */

static void prepare_pending(uint64_t pending, unsigned activity, uint64_t blocking, uint32_t injected)
{
    prepare(guest_vmcall, 0);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << DB);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, activity);
    vmwrite(VMCS_GUEST_PENDING_DEBUG_EXCEPTIONS, pending);
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, blocking);
    vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, injected);
}

static uint32_t run_with_pending(uint64_t pending, uint64_t blocking, uint32_t injected)
{
    prepare_pending(pending, ACTIVE, blocking, injected);
    return vmx_run_reason();
}

static void pending_debug_exceptions(void)
{
    set_handler(UD, on_event);
    set_handler(VECTOR, on_event);
    check_equal(run_with_pending(PENDING_STEP, 0, 0), REASON_EXCEPTION_OR_NMI, "a pending debug exception");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), PENDING_STEP, "its qualification");
    prepare_pending(PENDING_STEP, SHUT_DOWN, 0, 0);
    await_nothing("is none in a guest that is shut down");
    check_equal(run_with_pending(PENDING_BREAKPOINT | 1, 0, INJECT | EXCEPTION | UD), REASON_VMCALL, "an injected exception takes its place");
    check_equal(run_with_pending(PENDING_BREAKPOINT | 1, 0, INJECT | SOFTWARE_INTERRUPT | VECTOR), REASON_VMCALL,
                "and so does a software interrupt");
    check_equal(run_with_pending(PENDING_BREAKPOINT | 1, BY_MOV_SS, INJECT | SOFTWARE_INTERRUPT | VECTOR), REASON_EXCEPTION_OR_NMI,
                "but not behind MOV SS");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 1, "whose breakpoint it tells");
    check_equal(vmread(VMCS_GUEST_RIP), stub_table[VECTOR], "at the handler of the interrupt");
    set_handler(UD, NULL);
    set_handler(VECTOR, NULL);
}

/* --- kinds of injected events --- */

static uint64_t inject_behind(uint32_t information, unsigned length)
{
    prepare(guest_vmcall, 0);
    vmwrite(VMCS_GUEST_RIP, (uint64_t)guest_vmcall - length);
    vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, information);
    vmwrite(VMCS_ENTRY_INSTRUCTION_LENGTH, length);
    vmwrite(VMCS_EXCEPTION_BITMAP, ~0u);
    hits = 0;
    return vmx_run_reason();
}

static void injected(unsigned vector, uint32_t type, unsigned length, const char *name)
{
    set_handler(vector, on_event);
    check_equal(inject_behind(INJECT | type | vector, length), REASON_VMCALL, name);
    check_equal(hits, 1, "is delivered, whatever the exception bitmap says");
    check_equal(hit_rip, (uint64_t)guest_vmcall, "and returns behind its instruction");
    set_handler(vector, NULL);
}

static void injections(void)
{
    injected(DB, PRIVILEGED_EXCEPTION, 1, "INT1 that is injected");
    injected(BP, SOFTWARE_EXCEPTION, 1, "INT3 that is injected");
    injected(BP, SOFTWARE_EXCEPTION, 0, "one without a length");
    injected(UD, EXCEPTION, 0, "#UD that is injected");
}

/* --- virtual NMIs --- */

static void guest_bad_iret(void)
{
    __asm__ volatile("pushq $0; pushq $0; pushq $2; pushq $0xFFFB; pushq $0; iretq");
}

static void virtual_nmis(void)
{
    set_handler(NMI, on_event_vmcall);
    prepare(guest_vmcall, PIN_NMI_EXITING | PIN_VIRTUAL_NMIS);
    vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, INJECT | INJECTED_NMI | NMI);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a virtual NMI");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), BY_NMI, "blocks others");
    vmx_skip();
    check_equal(vmx_run_reason(), REASON_VMCALL, "until the end of its handler");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_vmcall, "where the guest goes on");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), 0, "and nothing is blocked");
    set_handler(NMI, NULL);

    prepare(guest_bad_iret, PIN_NMI_EXITING | PIN_VIRTUAL_NMIS);
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, BY_NMI);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << GP);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "IRET that faults");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), INJECT | 1 << 12 | 1 << 11 | EXCEPTION | GP, "has ended the blocking, and says so");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), 0, "nothing is blocked");
}

/* --- NMIs and entries that fail, deliveries that fault --- */

static void nmis_that_stay_blocked(void)
{
    set_handler(NMI, on_event);
    hits = 0;
    prepare(guest_nmi, PIN_NMI_EXITING);
    vmx_run();
    send_nmi();
    prepare(guest_vmcall, 0);
    vmwrite(VMCS_GUEST_RFLAGS, 0);
    check_equal(vmx_run_reason(), REASON_INVALID_GUEST_STATE | 1u << 31, "an entry that fails while NMIs are blocked");
    check_equal(hits, 0, "leaves them so");
    unblock_nmis();
    check_equal(hits, 1, "and the one that waits comes after IRET");
    set_handler(NMI, NULL);

    prepare(guest_vmcall, PIN_NMI_EXITING | PIN_VIRTUAL_NMIS);
    vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, INJECT | INJECTED_NMI | NMI);
    vmwrite(VMCS_GUEST_IDTR_LIMIT, 0);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << GP);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "a virtual NMI whose delivery faults");
    check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION), INJECT | INJECTED_NMI | NMI, "is told");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), BY_NMI, "and blocks others");
}

static void guest_int(void) { __asm__ volatile("int $0x60"); }
static void guest_int3(void) { __asm__ volatile("int3"); }
static void guest_int1(void) { __asm__ volatile(".byte 0xF1"); }

/* SDM3 §28.2.4, §28.2.5: the event and the length of its instruction. */
static void software_events_that_fault(void)
{
    static const struct { const char *name; void (*code)(void); uint32_t vectoring; unsigned length; } cases[] = {
        { "INT n whose delivery faults", guest_int, INJECT | SOFTWARE_INTERRUPT | 0x60, 2 },
        { "INT3 whose delivery faults", guest_int3, INJECT | SOFTWARE_EXCEPTION | BP, 1 },
        { "INT1 whose delivery faults", guest_int1, INJECT | PRIVILEGED_EXCEPTION | DB, 1 },
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        prepare(cases[i].code, 0);
        vmwrite(VMCS_GUEST_IDTR_LIMIT, 0);
        vmwrite(VMCS_EXCEPTION_BITMAP, 1 << GP);
        check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, cases[i].name);
        check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION), cases[i].vectoring, "is told");
        check_equal(vmread(VMCS_EXIT_INSTRUCTION_LENGTH), cases[i].length, "with its length");
        check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)cases[i].code, "at its place");
    }
}

/* --- debug exceptions and exits --- */

static uint16_t stack_selector = SEL_DATA;

static void guest_sti_cpuid(void) { __asm__ volatile("sti; cpuid" ::: "eax", "ebx", "ecx", "edx"); }
static void guest_mov_ss_cpuid(void) { __asm__ volatile("mov %0, %%ss; cpuid" :: "m"(stack_selector) : "eax", "ebx", "ecx", "edx"); }
static void guest_read_dr(void) { __asm__ volatile("mov %%dr0, %%rax" ::: "rax"); vmcall(); }
static void guest_nops(void) { __asm__ volatile("nop; nop"); vmcall(); }

static void prepare_debug(void (*code)(void), uint64_t dr7)
{
    prepare(code, 0);
    control_set(VMCS_ENTRY_CONTROLS, ENTRY_LOAD_DEBUG_CONTROLS);
    control_set(VMCS_EXIT_CONTROLS, EXIT_SAVE_DEBUG_CONTROLS);
    vmwrite(VMCS_GUEST_DR7, dr7);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << DB);
}

static void debug_and_exits(void)
{
    enum { WATCH_2_BYTES = 0x400 | 1 | 7 << 16, GENERAL_DETECT = 0x2400, BD = 1 << 13, TF = 1 << 8 };
    prepare(guest_sti_cpuid, 0);
    check_equal(vmx_run_reason(), REASON_CPUID, "an instruction behind STI");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), 1, "exits in its shadow");
    __asm__ volatile("mov %0, %%dr0" :: "r"((uint64_t)&stack_selector));
    prepare_debug(guest_mov_ss_cpuid, WATCH_2_BYTES);
    check_equal(vmx_run_reason(), REASON_CPUID, "an instruction behind MOV SS of a watched place");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), BY_MOV_SS, "exits in the shadow");
    check_equal(vmread(VMCS_GUEST_PENDING_DEBUG_EXCEPTIONS), PENDING_BREAKPOINT | 1, "with the breakpoint pending");
    vmx_skip();
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, 0);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "which comes once the instruction is skipped");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 1, "as what it is");
    prepare_debug(guest_read_dr, GENERAL_DETECT);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "MOV DR with general detect");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), BD, "exits as #DB");
    check_equal(vmread(VMCS_GUEST_DR7), GENERAL_DETECT, "which leaves DR7 as it is");
    prepare_debug(guest_nops, 0x400);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_MONITOR_TRAP_FLAG);
    vmwrite(VMCS_GUEST_RFLAGS, 2 | TF);
    check_equal(vmx_run_reason(), REASON_MONITOR_TRAP_FLAG, "MTF in a guest that steps itself");
    check_equal(vmread(VMCS_GUEST_PENDING_DEBUG_EXCEPTIONS), PENDING_STEP, "comes first, and the step is pending");
    control_clear(VMCS_PROCESSOR_BASED_CONTROLS, PROC_MONITOR_TRAP_FLAG);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "which is next");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), PENDING_STEP, "as a step");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_nops + 1, "of one instruction");
}

/* --- the resume flag --- */

static void guest_ud2(void) { __asm__ volatile("ud2"); }
static void guest_cpuid(void) { uint32_t out[4]; cpuid(0, 0, out); }

static void resume_flag(void)
{
    enum { RF = 1 << 16 };
    prepare(guest_cpuid, 0);
    vmwrite(VMCS_GUEST_RFLAGS, 2 | RF);
    check_equal(vmx_run_reason(), REASON_CPUID, "an instruction that exits with RF set");
    check_equal(vmread(VMCS_GUEST_RFLAGS), 2, "saves it clear");
    prepare(guest_ud2, 0);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << UD);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "a fault that exits");
    check_equal(vmread(VMCS_GUEST_RFLAGS), 2 | RF, "saves it set");
    prepare(guest_loop, 0);
    vmwrite(VMCS_GUEST_RFLAGS, 2 | RF);
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 0);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, "an exit before the first instruction");
    check_equal(vmread(VMCS_GUEST_RFLAGS), 2 | RF, "leaves it as it is");
}

/* --- what an exit leaves --- */

static void guest_debug(void)
{
    __asm__ volatile("mov %0, %%dr7" :: "r"(0x700ull));
    vmcall();
}

static void host_registers(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) gdtr, idtr;
    uint64_t dr7;
    uint16_t ldtr;
    prepare(guest_debug, 0);
    control_set(VMCS_EXIT_CONTROLS, EXIT_SAVE_DEBUG_CONTROLS);
    control_set(VMCS_ENTRY_CONTROLS, ENTRY_LOAD_DEBUG_CONTROLS);
    vmwrite(VMCS_GUEST_DEBUGCTL, 2);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a guest with debug controls of its own");
    __asm__ volatile("mov %%dr7, %0; sgdt %1; sidt %2; sldt %3" : "=r"(dr7), "=m"(gdtr), "=m"(idtr), "=m"(ldtr));
    check_equal(vmread(VMCS_GUEST_DR7), 0x700, "DR7 is kept for it");
    check_equal(vmread(VMCS_GUEST_DEBUGCTL), 2, "and IA32_DEBUGCTL");
    check_equal(dr7, 0x400, "the monitor's DR7 is as after a reset");
    check_equal(rdmsr(0x1D9), 0, "and its IA32_DEBUGCTL");
    check_equal(gdtr.limit, 0xFFFF, "GDTR has the greatest limit");
    check_equal(idtr.limit, 0xFFFF, "IDTR, too");
    check_equal(ldtr, 0, "there is no LDT");
}

void test_main(void)
{
    start_processors(1, other_processor);
    *apic(0xF0) = 0x1FF;
    vmx_switch_on();
    inits();
    shut_down();
    pending_debug_exceptions();
    injections();
    virtual_nmis();
    nmis_that_stay_blocked();
    software_events_that_fault();
    debug_and_exits();
    resume_flag();
    host_registers();
}
