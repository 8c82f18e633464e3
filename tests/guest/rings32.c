/* Rings, gates and tasks in 32-bit mode beyond modes32.c: VME and PVI, 16-bit gates and tasks, faults of a new task, SYSENTER. */
#include "lib/guest32.h"

enum { GP = 13 << 16, TS = 10 << 16, NP = 11 << 16 };
enum { SEL_CODE1 = 0x68 | 1, SEL_DATA1 = 0x70 | 1, SEL_CONFORMING = 0x78 };

static void put_bytes(uint32_t at, const uint8_t *bytes, unsigned count)
{
    volatile uint8_t *to = (volatile uint8_t *)at;
    for (unsigned i = 0; i < count; i++)
        to[i] = bytes[i];
}

static void wrmsr(uint32_t msr, uint32_t v) { __asm__ volatile("wrmsr" :: "c"(msr), "a"(v), "d"(0)); }
static uint32_t trapped(struct trap32 trap) { return trap.vector == NO_TRAP ? 0 : trap.vector << 16 | trap.error; }
static void reload_data(void) { __asm__ volatile("mov %0, %%ds\n mov %0, %%es" :: "r"(SEL_DATA)); }

static uint64_t gate(void *entry, unsigned selector, unsigned access, unsigned count)
{
    uint32_t to = (uint32_t)entry;
    return (to & 0xFFFF) | (uint64_t)selector << 16 | (uint64_t)count << 32 | (uint64_t)access << 40 | (uint64_t)(to >> 16) << 48;
}

/* --- virtual-8086 mode with CR4.VME: code at 0800:0000, its interrupt handler at 0800:0100 --- */

static uint32_t v86_eflags;

static void enter_v86(void *argument)
{
    __asm__ volatile("pushl $0\n pushl $0\n pushl $0\n pushl $0\n"      /* GS FS DS ES */
                     "pushl $0\n pushl $0x9000\n"                       /* SS ESP */
                     "pushl %0\n pushl $0x800\n pushl $0\n iret" :: "r"(v86_eflags) : "memory");
}

static struct trap32 run_v86(uint32_t eflags, const uint8_t *code, unsigned size)
{
    put_bytes(0x8000, code, size);
    v86_eflags = 0x20002 | eflags;
    struct trap32 trap = guarded(enter_v86, NULL);
    reload_data();
    return trap;
}

static void virtual_mode_extensions(void)
{
    /* STI, look at the flags, INT 60H, look at what its handler saw, CLI, look again, HLT. */
    static const uint8_t code[] = { 0xFB, 0x9C, 0x58, 0x2E, 0xA3, 0x00, 0x02, 0xCD, 0x60, 0x2E, 0xA3, 0x02, 0x02,
                                    0xFA, 0x9C, 0x58, 0x2E, 0xA3, 0x04, 0x02, 0xF4 };
    static const uint8_t handler[] = { 0x9C, 0x58, 0xCF };
    static const uint8_t int_61[] = { 0xCD, 0x61 }, cli[] = { 0xFA }, sti[] = { 0xFB }, pushfd[] = { 0x66, 0x9C },
                         in_port[] = { 0xE4, 0x80 }, popf_tf[] = { 0x68, 0x00, 0x01, 0x9D };
    volatile uint16_t *seen = (volatile uint16_t *)0x8200;

    put_bytes(0x8100, handler, sizeof(handler));
    *(volatile uint32_t *)(0x60 * 4) = 0x08000100;
    tss.io_bits[0x61 / 8] = 1 << (0x61 % 8);            /* not redirected */
    check_equal(trapped(run_v86(0, cli, sizeof(cli))), GP, "CLI in V86 with IOPL 0 and no VME");
    write_cr4(read_cr4() | 1);
    check_equal(trapped(run_v86(0x200, code, sizeof(code))), GP, "VME: the program runs to its HLT");
    check_equal(seen[0], 0x3202, "STI sets the IF that PUSHF shows, with IOPL 3");
    check_equal(seen[1], 0x3002, "INT n goes to the program's own handler with the virtual IF clear");
    check_equal(seen[2], 0x3002, "CLI clears it");
    check_equal(trapped(run_v86(0, int_61, sizeof(int_61))), GP, "an interrupt that is not redirected needs IOPL 3");
    check_equal(trapped(run_v86(0x100000, sti, sizeof(sti))), GP, "STI with VIP set");
    check_equal(trapped(run_v86(0, pushfd, sizeof(pushfd))), GP, "PUSHFD with IOPL 0");
    check_equal(trapped(run_v86(0, popf_tf, sizeof(popf_tf))), GP, "POPF that sets TF");
    check_equal(trapped(run_v86(0x3000, in_port, sizeof(in_port))), GP, "IN looks at the bitmap whatever IOPL is");
    write_cr4(read_cr4() & ~1u);
}

static void user_sti(void *argument)
{
    uint32_t flags;
    __asm__ volatile("sti\n pushf\n pop %0\n cli" : "=r"(flags));
    *(volatile uint32_t *)argument = flags;
}

static uint32_t pvi_flags;

static void protected_mode_virtual_interrupts(void)
{
    check_equal(trapped(guarded_user(user_sti, &pvi_flags)), GP, "STI at CPL 3 without PVI");
    write_cr4(read_cr4() | 2);
    check_equal(trapped(guarded_user(user_sti, &pvi_flags)), 0, "and with it");
    check_equal(pvi_flags & 0x80200, 0x80000, "sets VIF, not IF");
    write_cr4(read_cr4() & ~2u);
}

/* --- rings --- */

static volatile uint32_t ring_cs, ring_ss, ring_ds;
void ring_entry(void), conforming_entry(void), drop_entry(void);
__asm__(".text\n"
        "ring_entry: mov %cs, %eax\n mov %eax, ring_cs\n mov %ss, %eax\n mov %eax, ring_ss\n lret\n"
        "conforming_entry: mov %cs, %eax\n mov %eax, ring_cs\n lret\n"
        "drop_entry: mov $0x10, %eax\n mov %eax, %ds\n lret\n");

static void call_free(void *argument) { __asm__ volatile("lcall %0, $0" :: "i"(SEL_GATE | 3) : "eax", "memory"); }
static void call_conforming(void *argument)
{
    __asm__ volatile("lcall %0, $conforming_entry" :: "i"(SEL_CONFORMING | 3) : "eax", "memory");
}
static void call_and_look(void *argument)
{
    uint32_t ds;
    __asm__ volatile("lcall %1, $0\n mov %%ds, %0\n mov %2, %%ds" : "=&r"(ds) : "i"(SEL_GATE | 3), "r"(SEL_USER_DATA) : "eax", "memory");
    ring_ds = ds;
}

static uint8_t ring1_stack[1024] __attribute__((aligned(16)));

static void rings(void)
{
    set_gdt_entry(SEL_CODE1, segment_descriptor(0, 0xFFFFF, 0xBB, 0xC));
    set_gdt_entry(SEL_DATA1, segment_descriptor(0, 0xFFFFF, 0xB3, 0xC));
    set_gdt_entry(SEL_CONFORMING, segment_descriptor(0, 0xFFFFF, 0x9F, 0xC));
    tss.ss1 = SEL_DATA1;
    tss.esp1 = (uint32_t)(ring1_stack + sizeof(ring1_stack));
    set_gdt_entry(SEL_GATE, gate(ring_entry, SEL_CODE1, 0xEC, 0));
    check_equal(trapped(guarded_user(call_free, NULL)), 0, "a call gate from CPL 3 to CPL 1 and back");
    check_equal(ring_cs << 16 | ring_ss, SEL_CODE1 << 16 | SEL_DATA1, "with the stack of CPL 1");
    tss.ss1 = SEL_DATA;
    check_equal(trapped(guarded_user(call_free, NULL)), TS | SEL_DATA, "an inner stack of the wrong ring is #TS");
    tss.ss1 = SEL_DATA1;
    check_equal(trapped(guarded_user(call_conforming, NULL)), 0, "a direct call to conforming code");
    check_equal(ring_cs, SEL_CONFORMING | 3, "stays at CPL 3");
    set_gdt_entry(SEL_GATE, gate(drop_entry, SEL_CODE, 0xEC, 0));
    check_equal(trapped(guarded_user(call_and_look, NULL)), 0, "RET to CPL 3");
    check_equal(ring_ds, 0, "leaves no inner data segment behind");
}

/* --- 16-bit gates --- */

static volatile uint32_t gate16_used;
void gate16_entry(void);
__asm__(".text\n gate16_entry: mov %esp, gate16_used\n iretw\n");

static void gates_of_16_bits(void)
{
    /* The entry lies above 64 KiB: a 16-bit gate reaches a jump to it that is put at 0x8400. */
    uint8_t jump[] = { 0xE9, 0, 0, 0, 0 };
    uint32_t distance = (uint32_t)gate16_entry - 0x8405, before;
    for (unsigned i = 0; i < 4; i++)
        jump[1 + i] = (uint8_t)(distance >> i * 8);
    put_bytes(0x8400, jump, sizeof(jump));
    /* IRETW returns to a 16-bit address, so the INT stands at 0x8440: INT 92H, RET. */
    static const uint8_t code[] = { 0xCD, 0x92, 0xC3 };
    put_bytes(0x8440, code, sizeof(code));
    set_gate(0x92, (void *)0x8400, 6, 0, SEL_CODE);
    __asm__ volatile("mov %%esp, %0\n call *%1" : "=&r"(before) : "r"(0x8440) : "memory");
    check_equal(before - 4 - gate16_used, 6, "a 16-bit interrupt gate pushes three words, IRETW pops them");
}

/* --- tasks --- */

static struct tss32 tss2;
static uint8_t task_stack[1024] __attribute__((aligned(16))), task_stack0[1024] __attribute__((aligned(16)));
static volatile uint32_t task_count;
void counting_task(void);
__asm__(".text\n counting_task: incl task_count\n iret\n jmp counting_task\n");

static void make_task(unsigned cs, unsigned ss)
{
    tss2 = (struct tss32){ .eip = (uint32_t)counting_task, .eflags = 2, .esp = (uint32_t)(task_stack + sizeof(task_stack)),
                           .esp0 = (uint32_t)(task_stack0 + sizeof(task_stack0)), .ss0 = SEL_DATA, .cs = cs, .ss = ss,
                           .ds = SEL_USER_DATA, .es = SEL_USER_DATA, .io_map = sizeof(tss2) };
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x89, 0));
}

static void call_task(void *argument) { __asm__ volatile("lcall %0, $0" :: "i"(SEL_TSS2) : "memory"); }

/* After a test that ended inside the new task. */
static void back_to_first_task(void)
{
    set_gdt_entry(SEL_TSS, segment_descriptor((uint32_t)&tss, sizeof(tss) - 1, 0x89, 0));
    __asm__ volatile("ltr %w0\n clts" :: "r"(SEL_TSS));
    __asm__ volatile("pushf\n andl $~0x4000, (%esp)\n popf");
    reload_data();
}

static void faults_of_tasks(void)
{
    make_task(SEL_CODE, SEL_DATA);
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, 0x66, 0x89, 0));
    check_equal(trapped(guarded(call_task, NULL)), TS | SEL_TSS2, "a TSS that is too small is #TS");
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x09, 0));
    check_equal(trapped(guarded(call_task, NULL)), NP | SEL_TSS2, "one that is not present is #NP");
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x8B, 0));
    check_equal(trapped(guarded(call_task, NULL)), GP | SEL_TSS2, "a busy one is #GP");
    make_task(SEL_USER_CODE, SEL_CODE);
    check_equal(trapped(guarded(call_task, NULL)), TS | SEL_CODE, "a bad SS in the TSS is #TS");
    uint32_t tr;
    __asm__ volatile("str %0" : "=r"(tr));
    check_equal(tr & 0xFFFF, SEL_TSS2, "of the new task");
    back_to_first_task();
    make_task(SEL_USER_CODE, SEL_USER_DATA);
    tss2.ldt = SEL_DATA;
    check_equal(trapped(guarded(call_task, NULL)), TS | SEL_DATA, "a bad LDT selector is #TS");
    back_to_first_task();
}

static volatile uint32_t debug_eip, debug_dr6;

static void on_debug(struct trap_frame32 *frame)
{
    uint32_t v;
    __asm__ volatile("mov %%dr6, %0" : "=r"(v));
    debug_dr6 = v;
    debug_eip = frame->eip;
    __asm__ volatile("mov %0, %%dr6" :: "r"(0xFFFF0FF0));
}

static void debug_trap_of_a_task(void)
{
    make_task(SEL_CODE, SEL_DATA);
    tss2.trap = 1;
    task_count = 0;
    set_handler(1, on_debug);
    call_task(NULL);
    set_handler(1, NULL);
    __asm__ volatile("clts");
    check_equal(task_count, 1, "a task with its T bit set runs");
    check_equal(debug_dr6 & 0x8000, 0x8000, "after #DB with DR6.BT");
    check_equal(debug_eip, (uint32_t)counting_task, "before its first instruction");
}

/* A 16-bit TSS: words; the task's code must lie below 64 KiB. */
static struct { uint16_t link, stacks[6], ip, flags, regs[8], es, cs, ss, ds, ldt; } tss16;

static void task_of_16_bits(void)
{
    uint8_t code[] = { 0xFF, 0x05, 0, 0, 0, 0, 0xCF, 0xEB, 0xF7 };      /* inc task_count; iret; jmp back */
    uint32_t at = (uint32_t)&task_count, eax = 0x12345678;
    for (unsigned i = 0; i < 4; i++)
        code[2 + i] = (uint8_t)(at >> i * 8);
    put_bytes(0x8800, code, sizeof(code));
    tss16 = (__typeof__(tss16)){ .ip = 0x8800, .flags = 2, .cs = SEL_CODE, .ss = SEL_DATA, .ds = SEL_DATA, .es = SEL_DATA,
                                 .regs = { 0xAAAA, [4] = 0x8C00 } };
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss16, sizeof(tss16) - 1, 0x81, 0));
    task_count = 0;
    __asm__ volatile("lcall %1, $0" : "+a"(eax) : "i"(SEL_TSS2) : "memory");
    __asm__ volatile("clts\n mov %0, %%fs\n mov %0, %%gs" :: "r"(0));
    check_equal(task_count, 1, "a 16-bit task runs");
    check_equal(eax, 0x12345678, "our registers come back whole");
    check_equal(tss16.link, SEL_TSS, "its link is ours");
    check_equal(tss16.ip, 0x8807, "it stopped behind its IRET");
    check_equal(tss16.regs[0], 0xAAAA, "AX was saved");
}

/* --- SYSENTER --- */

static uint8_t enter_stack[1024] __attribute__((aligned(16)));
void enter_entry(void);
__asm__(".text\n enter_entry: mov %cs, %eax\n mov %eax, ring_cs\n mov %esi, %edx\n mov %edi, %ecx\n sysexit\n");

static void do_sysenter(void *argument)
{
    __asm__ volatile("lea 1f, %%esi\n mov %%esp, %%edi\n sysenter\n 1:" ::: "eax", "ecx", "edx", "esi", "edi", "memory");
}

/* SYSENTER wants four flat descriptors in a row: the start table has none, so the tests' own part holds them. */
static void fast_calls(void)
{
    enum { BASE = 0x88 };
    set_gdt_entry(BASE, segment_descriptor(0, 0xFFFFF, 0x9B, 0xC));
    set_gdt_entry(BASE + 8, segment_descriptor(0, 0xFFFFF, 0x93, 0xC));
    set_gdt_entry(BASE + 16, segment_descriptor(0, 0xFFFFF, 0xFB, 0xC));
    set_gdt_entry(BASE + 24, segment_descriptor(0, 0xFFFFF, 0xF3, 0xC));
    check_equal(trapped(guarded_user(do_sysenter, NULL)), GP, "SYSENTER needs a selector");
    wrmsr(0x174, BASE);
    wrmsr(0x175, (uint32_t)(enter_stack + sizeof(enter_stack)));
    wrmsr(0x176, (uint32_t)enter_entry);
    check_equal(trapped(guarded_user(do_sysenter, NULL)), 0, "SYSENTER from CPL 3 and SYSEXIT back");
    check_equal(ring_cs, BASE, "at CPL 0 with the MSR's selector");
    wrmsr(0x174, 0);
}

void test_main(void)
{
    virtual_mode_extensions();
    protected_mode_virtual_interrupts();
    rings();
    gates_of_16_bits();
    faults_of_tasks();
    debug_trap_of_a_task();
    task_of_16_bits();
    fast_calls();
}
