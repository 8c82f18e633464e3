/* Rings and gates in 32-bit mode beyond modes32.c: VME and PVI, 16-bit gates, SYSENTER. */
#include "lib/guest32.h"

enum { GP = 13 << 16, TS = 10 << 16 };
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
    fast_calls();
}
