/* Exceptions and interrupts in 64-bit mode: frames, IST, double faults, single step, breakpoints, shadows, gates. */
#include "lib/guest.h"

extern uint64_t stub_table[];

static volatile unsigned hits;
static volatile uint64_t last_rip, last_rsp, last_dr6, last_error, last_rflags;

static uint64_t read_dr6(void) { uint64_t v; __asm__ volatile("mov %%dr6, %0" : "=r"(v)); return v; }
static void write_dr6(uint64_t v) { __asm__ volatile("mov %0, %%dr6" :: "r"(v)); }
static void write_dr7(uint64_t v) { __asm__ volatile("mov %0, %%dr7" :: "r"(v)); }
static void write_dr0(const volatile void *v) { __asm__ volatile("mov %0, %%dr0" :: "r"(v)); }

static void on_event(struct trap_frame *frame)
{
    hits++;
    last_rip = frame->rip;
    last_rsp = (uint64_t)frame;
    last_error = frame->error;
    last_rflags = frame->rflags;
}

static void on_debug(struct trap_frame *frame)
{
    on_event(frame);
    last_dr6 = read_dr6();
    write_dr6(0xFFFF0FF0);
    frame->rflags |= 0x10000;
}

static void do_int3(void *argument) { __asm__ volatile("int3"); }
static void do_int40(void *argument) { __asm__ volatile("int $0x40"); }
static void do_ud2(void *argument) { __asm__ volatile("ud2"); }
static void do_push_noncanonical(void *argument)
{
    __asm__ volatile("mov %%rsp, %%rbx\n mov %0, %%rsp\n push %%rax\n mov %%rbx, %%rsp" :: "r"(0x8000000000000010) : "rbx");
}
static void load_bad_selector(void *argument) { __asm__ volatile("mov %w0, %%es" :: "r"((uint64_t)argument)); }
static void load_bad_ss(void *argument) { __asm__ volatile("mov %w0, %%ss" :: "r"((uint64_t)argument)); }

static void software_interrupts(void)
{
    struct trap trap = guarded(do_int3, NULL);
    check_equal(trap.vector, 3, "INT3 is #BP");
    check_equal(*(uint8_t *)(trap.rip - 1), 0xCC, "its frame points behind it");
    trap = guarded(do_ud2, NULL);
    check_equal(*(uint16_t *)trap.rip, 0x0B0F, "#UD points at its instruction");
    trap = guarded(do_int40, NULL);
    check_equal(trap.vector, 0x40, "INT n from CPL 0");
    map_user_all();
    trap = guarded_user(do_int40, NULL);
    check_equal(trap.vector << 16 | trap.error, 0xD0000 | 0x40 << 3 | 2, "INT n through a DPL 0 gate from CPL 3 is #GP with its index");
    check_equal(guarded_user(do_int3, NULL).vector, 3, "INT3 through a DPL 3 gate from CPL 3");
    static uint8_t stack[4096] __attribute__((aligned(16)));
    tss.ist[0] = (uint64_t)stack + sizeof(stack);       /* its own stack is of no use to the handler */
    set_gate(12, (void *)stub_table[12], 0xE, 0, 1);
    set_gate(13, (void *)stub_table[13], 0xE, 0, 1);
    check_equal(guarded(do_push_noncanonical, NULL).vector, 12, "a push to a non-canonical address is #SS");
    set_gate(12, (void *)stub_table[12], 0xE, 0, 0);
    set_gate(13, (void *)stub_table[13], 0xE, 0, 0);
    trap = guarded(load_bad_selector, (void *)0x7F8);
    check_equal(trap.vector << 16 | trap.error, 0xD07F8, "a selector beyond the GDT is #GP with the selector");
    set_gdt_entry(SEL_FREE, 0x00CF13000000FFFF);
    trap = guarded(load_bad_selector, (void *)SEL_FREE);
    check_equal(trap.vector << 16 | trap.error, 0xB0000 | SEL_FREE, "a segment that is not present is #NP");
    trap = guarded(load_bad_ss, (void *)SEL_FREE);
    check_equal(trap.vector << 16 | trap.error, 0xC0000 | SEL_FREE, "and #SS for SS");
}

static void stacks(void)
{
    static uint8_t stack[8192] __attribute__((aligned(16)));
    tss.ist[2] = (uint64_t)stack + sizeof(stack);
    set_gate(0x41, (void *)stub_table[0x41], 0xE, 0, 3);
    set_handler(0x41, on_event);
    hits = 0;
    __asm__ volatile("int $0x41");
    check_equal(hits, 1, "a handler on an IST stack runs");
    check(last_rsp >= (uint64_t)stack && last_rsp < (uint64_t)stack + sizeof(stack), "and has that stack");
    set_handler(0x41, NULL);
}

static void double_fault(void)
{
    /* A gate that is not present while a #GP is delivered: #NP in #GP's delivery is contributory on contributory. */
    set_gate(13, (void *)stub_table[13], 0xE, 0, 0);
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idtr;
    __asm__ volatile("sidt %0" : "=m"(idtr));
    uint8_t *gate = (uint8_t *)idtr.base + 13 * 16;
    gate[5] &= 0x7F;
    struct trap trap = guarded(load_bad_selector, (void *)0x7F8);
    gate[5] |= 0x80;
    check_equal(trap.vector << 16 | trap.error, 0x80000, "a fault while #GP is delivered is #DF with error 0");
    gate = (uint8_t *)idtr.base + 0x40 * 16;
    gate[5] &= 0x7F;
    trap = guarded(do_int40, NULL);
    gate[5] |= 0x80;
    check_equal(trap.vector << 16 | trap.error, 0xB0000 | 0x40 << 3 | 2, "a gate that is not present is #NP with its index");
}

static void single_step(void)
{
    set_handler(1, on_event);
    hits = 0;
    __asm__ volatile("pushfq\n orl $0x100, (%%rsp)\n popfq\n nop\n nop\n pushfq\n andl $~0x100, (%%rsp)\n popfq" ::: "memory", "cc");
    check_equal(hits, 5, "TF traps after each instruction, from the one behind POPF to POPF itself");
    hits = 0;
    uint16_t ss;
    __asm__ volatile("mov %%ss, %0" : "=r"(ss));
    __asm__ volatile("pushfq\n orl $0x100, (%%rsp)\n popfq\n mov %w0, %%ss\n nop\n pushfq\n andl $~0x100, (%%rsp)\n popfq"
                     :: "r"((uint32_t)ss) : "memory", "cc");
    check_equal(hits, 4, "no trap between MOV SS and the next instruction");
    set_handler(1, NULL);
}

static volatile uint64_t watched[2];

static void breakpoints(void)
{
    set_handler(1, on_debug);
    hits = 0;
    write_dr6(0xFFFF0FF0);
    write_dr0(&watched[0]);
    write_dr7(0x400 | 2 | 1 << 16 | 2 << 18);           /* G0, write, 8 bytes */
    watched[0] = 1;
    check_equal(hits, 1, "a data breakpoint traps on a write");
    check_equal(last_dr6 & 0xF, 1, "DR6 names it");
    (void)watched[0];
    watched[1] = 1;
    check_equal(hits, 1, "not on a read, nor beside it");
    write_dr7(0x400 | 2 | 3 << 16 | 2 << 18);
    (void)watched[0];
    check_equal(hits, 2, "a read-write breakpoint traps on a read");
    extern uint8_t breakpoint_target[];
    write_dr0(breakpoint_target);
    write_dr7(0x400 | 2);
    hits = 0;
    __asm__ volatile(".global breakpoint_target\n breakpoint_target: nop" ::: "memory");
    check_equal(hits, 1, "an instruction breakpoint faults once: RF lets the instruction go on");
    check_equal(last_rip, (uint64_t)breakpoint_target, "before the instruction");
    write_dr7(0x400);
    set_handler(1, NULL);
}

static void shadows(void)
{
    /* The local APIC's self IPI is pending while IF is off: it comes after the instruction behind STI. */
    set_handler(0x50, on_event);
    *apic(0xF0) = 0x1FF;
    *apic(0x300) = 0x00044050;
    for (volatile unsigned i = 0; i < 1000; i++)
        ;
    hits = 0;
    uint64_t after;
    __asm__ volatile("sti\n nop\n 1: cli\n lea 1b(%%rip), %0" : "=r"(after) :: "memory");
    check_equal(hits, 1, "a pending interrupt is taken after STI");
    check_equal(last_rip, after, "behind the instruction that follows it");
    *apic(0xB0) = 0;
    hits = 0;
    *apic(0x300) = 0x00044050;
    __asm__ volatile("sti\n hlt\n cli" ::: "memory");
    check_equal(hits, 1, "STI, HLT does not sleep through it");
    *apic(0xB0) = 0;
    set_handler(0x50, NULL);
}

static void nmi(void)
{
    set_handler(2, on_event);
    hits = 0;
    *apic(0x310) = 0;
    *apic(0x300) = 0x00004400;          /* NMI to the APIC with ID 0; the self shorthand carries fixed vectors only */
    for (volatile unsigned i = 0; i < 1000; i++)
        ;
    check_equal(hits, 1, "an NMI arrives with IF off");
    set_handler(2, NULL);
}

static void syscalls(void)
{
    extern uint8_t syscall_target[];
    uint64_t rcx, r11;
    wrmsr(0xC0000081, (uint64_t)0x20 << 48 | (uint64_t)SEL_CODE64 << 32);
    wrmsr(0xC0000082, (uint64_t)syscall_target);
    wrmsr(0xC0000084, 0x200);
    __asm__ volatile("sti\n syscall\n .global syscall_target\n syscall_target: mov %%rcx, %0\n mov %%r11, %1\n pushfq\n pop %%rax\n"
                     : "=r"(rcx), "=r"(r11) :: "rcx", "r11", "rax", "memory");
    check_equal(rcx, (uint64_t)syscall_target, "SYSCALL leaves the next RIP in RCX");
    check_equal(r11 & 0x200, 0x200, "and RFLAGS in R11");
    uint64_t flags;
    __asm__ volatile("pushfq\n pop %0" : "=r"(flags));
    check_equal(flags & 0x200, 0, "SFMASK clears IF");
    uint16_t ss;
    __asm__ volatile("mov %%ss, %0" : "=r"(ss));
    check_equal(ss, 0x10, "SS comes from STAR");
}

void test_main(void)
{
    software_interrupts();
    stacks();
    double_fault();
    single_step();
    breakpoints();
    shadows();
    nmi();
    syscalls();
}
