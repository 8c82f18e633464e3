/* What only the system may do, in 64-bit mode: control registers, MSRs, CPUID, fast calls, I/O permission, debug registers, time. */
#include "lib/guest.h"

enum { EFER = 0xC0000080, STAR, LSTAR, CSTAR, FMASK, FS_BASE = 0xC0000100, GS_BASE, KERNEL_GS_BASE, TSC_AUX };
enum { GP = 13 << 16, UD = 6 << 16 };

static struct { uint32_t msr; uint64_t value; } wanted;

static void do_wrmsr(void *argument) { wrmsr(wanted.msr, wanted.value); }
static void do_rdmsr(void *argument) { wanted.value = rdmsr(wanted.msr); }
static void do_write_cr0(void *argument) { write_cr0((uint64_t)argument); }
static void do_write_cr3(void *argument) { write_cr3((uint64_t)argument); }
static void do_write_cr4(void *argument) { write_cr4((uint64_t)argument); }

/* vector << 16 | error, or 0 where nothing was raised. */
static uint64_t raised(void (*fn)(void *argument), uint64_t argument)
{
    struct trap trap = guarded(fn, (void *)argument);
    return trap.vector == NO_TRAP ? 0 : trap.vector << 16 | trap.error;
}

static uint64_t raised_user(void (*fn)(void *argument), uint64_t argument)
{
    struct trap trap = guarded_user(fn, (void *)argument);
    return trap.vector == NO_TRAP ? 0 : trap.vector << 16 | trap.error;
}

static uint64_t write_msr(uint32_t msr, uint64_t value)
{
    wanted.msr = msr;
    wanted.value = value;
    return raised(do_wrmsr, 0);
}

static uint64_t read_msr(uint32_t msr)
{
    wanted.msr = msr;
    return raised(do_rdmsr, 0);
}

/* --- control registers --- */

static void control_registers(void)
{
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();

    check_equal(raised(do_write_cr0, cr0 & ~0x80000000ull), GP, "paging cannot end in 64-bit mode");
    check_equal(raised(do_write_cr0, cr0 | 1ull << 32), GP, "CR0 has no upper half");
    check_equal(raised(do_write_cr0, (cr0 | 1u << 29) & ~(1ull << 30)), GP, "NW without CD");
    check_equal(raised(do_write_cr4, cr4 & ~0x20ull), GP, "PAE cannot end in long mode");
    check_equal(raised(do_write_cr4, cr4 | 1u << 13), GP, "CR4.VMXE without VMX");
    check_equal(raised(do_write_cr4, cr4 | 1ull << 40), GP, "a reserved bit of CR4");
    check_equal(raised(do_write_cr4, cr4 ^ 1u << 12), GP, "LA57 cannot change in long mode");
    check_equal(raised(do_write_cr3, 1ull << 62), GP, "a reserved bit of CR3");
    check_equal(raised_user(do_write_cr3, read_cr3()), GP, "MOV CR at CPL 3");
    check_equal(read_cr0(), cr0, "a refused write changes nothing");
}

static void do_cr8(void *argument) { __asm__ volatile("mov %0, %%cr8" :: "r"(argument)); }
static void task_priority(void)
{
    uint64_t value;
    do_cr8((void *)5);
    check_equal(*apic(0x80), 0x50, "CR8 is the TPR's upper half");
    *apic(0x80) = 0x73;
    __asm__ volatile("mov %%cr8, %0" : "=r"(value));
    check_equal(value, 7, "and the other way round");
    do_cr8((void *)0);
    check_equal(raised(do_cr8, 16), GP, "a reserved bit of CR8");
}

/* --- MSRs --- */

static void model_specific_registers(void)
{
    check_equal(read_msr(0x12345678), GP, "an MSR that does not exist");
    check_equal(write_msr(LSTAR, 0x800000000000), GP, "LSTAR must be canonical");
    check_equal(write_msr(FS_BASE, 1ull << 63), GP, "FS base must be canonical");
    check_equal(write_msr(EFER, rdmsr(EFER) | 2), GP, "a reserved bit of EFER");
    check_equal(write_msr(EFER, rdmsr(EFER) & ~0x100ull), GP, "LME cannot change while paging is on");
    check_equal(write_msr(EFER, rdmsr(EFER) & ~0x400ull), 0, "LMA is read-only and ignored");
    check_equal(rdmsr(EFER) & 0x400, 0x400, "it stays set");
    check_equal(write_msr(0x277, 0x0007040600070402), GP, "a reserved memory type in the PAT");
    check_equal(write_msr(0xFE, 0), GP, "MTRRCAP is read-only");
    check_equal(read_msr(0x49), GP, "PRED_CMD is write-only");
    check_equal(write_msr(TSC_AUX, 0x123456789), GP, "TSC_AUX has 32 bits");
    check_equal(write_msr(TSC_AUX, 0x1234), 0, "a valid TSC_AUX");
    uint32_t a, c, d;
    __asm__ volatile("rdtscp" : "=a"(a), "=c"(c), "=d"(d));
    check_equal(c, 0x1234, "RDTSCP returns it");
    check_equal(raised_user(do_rdmsr, 0), GP, "RDMSR at CPL 3");
    uint64_t value;
    wrmsr(FS_BASE, (uint64_t)&wanted);
    wanted.value = 0xFEEDFACE;
    __asm__ volatile("mov %%fs:%c1, %0" : "=r"(value) : "i"(__builtin_offsetof(__typeof__(wanted), value)));
    check_equal(value, 0xFEEDFACE, "FS addresses from its base");
    wrmsr(GS_BASE, 0x1000);
    wrmsr(KERNEL_GS_BASE, 0x2000);
    __asm__ volatile("swapgs");
    check_equal(rdmsr(GS_BASE) << 16 | rdmsr(KERNEL_GS_BASE), 0x20001000, "SWAPGS exchanges them");
}

/* --- CPUID --- */

static void identification(void)
{
    uint32_t out[4], sizes[4];

    cpuid(0, 0, out);
    check(out[1] == 0x756E6547 && out[3] == 0x49656E69 && out[2] == 0x6C65746E, "the vendor is GenuineIntel");
    check(out[0] >= 0x16, "leaves up to 16H");
    cpuid(0x40000000, 0, out);
    check(out[1] == 0x4B4D564B && out[2] == 0x564B4D56 && out[3] == 0x4D, "the hypervisor leaf names KVM's interface");
    cpuid(1, 0, out);
    check_equal(out[2] >> 27 & 1, read_cr4() >> 18 & 1, "OSXSAVE follows CR4");
    check_equal(out[2] >> 5 & 1, 0, "no VMX");
    cpuid(0xD, 0, sizes);
    check(out[2] >> 26 & 1 ? sizes[2] >= 576 && sizes[1] <= sizes[2] : sizes[2] == 0, "XSAVE sizes");
    cpuid(0x15, 0, out);
    uint64_t crystal = (uint64_t)out[2] * out[1] / out[0];
    cpuid(0x40000010, 0, out);
    /* 15H is a fraction near the frequency that the host was measured at: cut to kHz the two may lie on either side of a border. */
    check(crystal / 1000 - out[0] + 1 <= 2, "leaves 15H and 40000010H tell one TSC frequency");
    cpuid(0x80000008, 0, out);
    check((out[0] & 0xFF) >= 36 && (out[0] & 0xFF) <= 52, "a sane physical address size");
    cpuid(0xB, 1, out);
    check_equal(out[2] >> 8, 2, "leaf 0BH, level 1 is the core's");
}

/* --- fast system calls --- */

extern uint8_t fast_entry[], fast_exit_entry[];
static volatile uint64_t seen_cs, seen_rflags;
__asm__(".text\n"
        "fast_entry: pushfq\n pop seen_rflags\n mov %cs, %rax\n mov %rax, seen_cs\n sysretq\n"
        "fast_exit_entry: pushfq\n pop seen_rflags\n mov %cs, %rax\n mov %rax, seen_cs\n mov %r10, %rdx\n mov %r9, %rcx\n"
        " rex.w sysexit\n");

static void do_syscall(void *argument)
{
    __asm__ volatile("syscall" ::: "rax", "rcx", "r11", "memory");
}

static void do_sysenter(void *argument)
{
    __asm__ volatile("lea 1f(%%rip), %%r10\n mov %%rsp, %%r9\n sysenter\n 1:" ::: "rax", "rcx", "rdx", "r9", "r10", "memory");
}

static void do_sysret(void *argument)
{
    __asm__ volatile("mov %0, %%rcx\n mov $2, %%r11\n sysretq" :: "r"(argument) : "rcx", "r11");
}

static uint8_t fast_stack[4096] __attribute__((aligned(16)));

static void fast_calls(void)
{
    wrmsr(EFER, rdmsr(EFER) & ~1ull);
    check_equal(raised(do_syscall, 0), UD, "SYSCALL needs EFER.SCE");
    wrmsr(EFER, rdmsr(EFER) | 1);
    /* SYSRET: SS is the base + 8, CS the base + 16. */
    wrmsr(STAR, (uint64_t)(SEL_USER_DATA - 8) << 48 | (uint64_t)SEL_CODE64 << 32);
    wrmsr(LSTAR, (uint64_t)fast_entry);
    wrmsr(FMASK, 0x200);
    check_equal(raised_user(do_syscall, 0), 0, "SYSCALL from CPL 3 and SYSRET back");
    check_equal(seen_cs, SEL_CODE64, "it came in at CPL 0");
    check_equal(raised_user(do_sysret, 0x1000), GP, "SYSRET at CPL 3");
    check_equal(raised(do_sysret, 0x800000000000), GP, "SYSRET to an address that is not canonical, before CPL changes");
    wrmsr(0x174, 0);
    check_equal(raised_user(do_sysenter, 0), GP, "SYSENTER needs a selector");
    set_gdt_entry(SEL_FREE, 0x00AF9B000000FFFF);
    wrmsr(0x174, SEL_FREE);
    wrmsr(0x175, (uint64_t)fast_stack + sizeof(fast_stack));
    wrmsr(0x176, (uint64_t)fast_exit_entry);
    check_equal(raised_user(do_sysenter, 0), 0, "SYSENTER from CPL 3 and SYSEXIT back");
    check_equal(seen_cs, SEL_FREE, "with its own selector");
    check_equal(seen_rflags & 0x200, 0, "SYSENTER clears IF");
    wrmsr(0x174, 0);
}

/* --- I/O permission, flags --- */

static void do_in(void *argument) { __asm__ volatile("in %%dx, %%al" :: "d"(argument) : "eax"); }
static void do_inw(void *argument) { __asm__ volatile("in %%dx, %%ax" :: "d"(argument) : "eax"); }
static void do_cli(void *argument) { cli(); }
static void do_hlt(void *argument) { __asm__ volatile("hlt"); }
static volatile uint64_t flags_after;
static void do_popf(void *argument)
{
    uint64_t flags;
    __asm__ volatile("push %1\n popfq\n pushfq\n pop %0" : "=r"(flags) : "r"(argument));
    flags_after = flags;
}

static struct { struct tss64 tss; uint8_t map[17]; } __attribute__((packed)) big_tss;

static void user_rights(void)
{
    check_equal(raised_user(do_in, 0x80), GP, "IN at CPL 3 without a bitmap");
    big_tss.tss = tss;
    big_tss.tss.io_map = sizeof(struct tss64);
    for (unsigned i = 0; i < sizeof(big_tss.map); i++)
        big_tss.map[i] = 0xFF;
    big_tss.map[0x60 / 8] = 0xFE;               /* port 0x60 is allowed */
    uint64_t base = (uint64_t)&big_tss;
    set_gdt_entry(SEL_TSS, (sizeof(big_tss) - 1) | (base & 0xFFFFFF) << 16 | 0x89ull << 40 | (base >> 24 & 0xFF) << 56);
    __asm__ volatile("ltr %w0" :: "r"(SEL_TSS));
    check_equal(raised_user(do_in, 0x60), 0, "IN at CPL 3 where the bitmap allows it");
    check_equal(raised_user(do_in, 0x61), GP, "and not beside it");
    check_equal(raised_user(do_inw, 0x60), GP, "nor for a word that reaches over");
    check_equal(raised_user(do_in, 0x1000), GP, "nor beyond the TSS");
    check_equal(raised_user(do_cli, 0), GP, "CLI at CPL 3 with IOPL 0");
    check_equal(raised_user(do_hlt, 0), GP, "HLT at CPL 3");
    check_equal(raised_user(do_popf, 0x3202), 0, "POPF at CPL 3 faults not");
    check_equal(flags_after & 0x3200, 0, "but leaves IF and IOPL");
}

static void do_sgdt(void *argument) { uint8_t where[16]; __asm__ volatile("sgdt %0" : "=m"(where)); }
static void user_mode_instruction_prevention(void)
{
    uint32_t out[4];
    cpuid(7, 0, out);
    check_equal(raised_user(do_sgdt, 0), 0, "SGDT at CPL 3 without UMIP");
    if (!(out[2] & 4))
        return;
    write_cr4(read_cr4() | 1u << 11);
    check_equal(raised_user(do_sgdt, 0), GP, "and not with it");
    check_equal(raised(do_sgdt, 0), 0, "CPL 0 may");
    write_cr4(read_cr4() & ~(1ull << 11));
}

static void do_rdtsc(void *argument) { rdtsc(); }
static void time_stamp(void)
{
    write_cr4(read_cr4() | 4);
    check_equal(raised_user(do_rdtsc, 0), GP, "RDTSC at CPL 3 with CR4.TSD");
    check_equal(raised(do_rdtsc, 0), 0, "CPL 0 may");
    write_cr4(read_cr4() & ~4ull);
    check_equal(raised_user(do_rdtsc, 0), 0, "RDTSC at CPL 3 without it");
    uint64_t before = rdtsc(), after = rdtsc();
    check(after >= before, "the TSC goes forward");
    wrmsr(0x10, 0x100000000000);
    check(rdtsc() - 0x100000000000 < 1000000000, "a written TSC goes on from there");
    uint64_t adjust = rdmsr(0x3B);
    check(adjust != 0, "and IA32_TSC_ADJUST tells by how much");
    wrmsr(0x3B, 0);
    check(rdtsc() < 0x100000000000, "IA32_TSC_ADJUST of 0 undoes it");
}

/* --- kvmclock --- */

struct pvclock {
    volatile uint32_t version, pad;
    volatile uint64_t tsc_timestamp, system_time;
    volatile uint32_t mul;
    volatile int8_t shift;
    volatile uint8_t flags, pad2[2];
};
static struct pvclock clock_page __attribute__((aligned(64)));

static uint64_t clock_read(void)
{
    uint64_t delta = rdtsc() - clock_page.tsc_timestamp;
    delta = clock_page.shift < 0 ? delta >> -clock_page.shift : delta << clock_page.shift;
    uint64_t low = (uint32_t)delta * (uint64_t)clock_page.mul >> 32, high = (delta >> 32) * clock_page.mul;
    return clock_page.system_time + low + high;
}

static void paravirtual_clock(void)
{
    wrmsr(0x4B564D01, (uint64_t)&clock_page | 1);
    check_equal(clock_page.version & 1, 0, "the clock page is not left half-written");
    check_equal(clock_page.flags & 1, 1, "the TSC is announced stable");
    uint64_t before = clock_read();
    while (clock_read() - before < 1000000)
        pause();
    check(clock_read() > before, "kvmclock goes forward");
    uint32_t version = clock_page.version;
    uint64_t ns = clock_read();
    wrmsr(0x10, 0x5000000000);
    check(clock_page.version != version, "a write of the TSC updates the page");
    check(clock_read() - ns < 1000000000, "and the time does not jump");
    wrmsr(0x3B, 0);
    wrmsr(0x4B564D01, 0);
}

/* --- compatibility mode and 64-bit call gates --- */

static volatile uint64_t compat_result;
static void do_compat(void *argument)
{
    __asm__ volatile("mov %%rsp, %%rbx\n push %1\n lea 1f(%%rip), %%rax\n push %%rax\n lretq\n"
                     ".code32\n 1: mov %%cs, %%eax\n movl $0x12345678, %%ecx\n .byte 0x40\n ljmp %2, $2f\n"
                     ".code64\n 2: mov %%rbx, %%rsp\n mov %%rax, %0"
                     : "=m"(compat_result) : "i"((uint64_t)SEL_CODE32), "i"(SEL_CODE64) : "rax", "rbx", "rcx", "memory");
}

extern uint8_t gate64_entry[];
static volatile uint64_t gate_cpl;
__asm__(".text\n gate64_entry: mov %cs, %rax\n and $3, %eax\n mov %rax, gate_cpl\n lretq");
static struct { uint32_t offset; uint16_t selector; } __attribute__((packed)) gate_pointer = { 0, SEL_FREE | 3 };
static void do_gate(void *argument) { __asm__ volatile("lcall *%0" :: "m"(gate_pointer) : "rax", "memory"); }

static void code_segments(void)
{
    check_equal(raised(do_compat, 0), 0, "a far return into compatibility mode and a far jump back");
    check_equal(compat_result, SEL_CODE32 + 1, "40H is INC EAX there");
    uint64_t entry = (uint64_t)gate64_entry;
    set_gdt_entry(SEL_FREE, (entry & 0xFFFF) | (uint64_t)SEL_CODE64 << 16 | 0xECull << 40 | (entry >> 16 & 0xFFFF) << 48);
    set_gdt_entry(SEL_FREE + 8, entry >> 32);
    gate_cpl = 99;
    check_equal(raised_user(do_gate, 0), 0, "a 64-bit call gate from CPL 3 and back");
    check_equal(gate_cpl, 0, "its code runs at CPL 0");
    set_gdt_entry(SEL_FREE, (entry & 0xFFFF) | (uint64_t)SEL_CODE64 << 16 | 0x8Cull << 40 | (entry >> 16 & 0xFFFF) << 48);
    check_equal(raised_user(do_gate, 0), GP | SEL_FREE, "not where its DPL is 0");
    set_gdt_entry(SEL_FREE, (entry & 0xFFFF) | (uint64_t)SEL_CODE32 << 16 | 0xECull << 40 | (entry >> 16 & 0xFFFF) << 48);
    check_equal(raised_user(do_gate, 0), GP | SEL_CODE32, "nor to 32-bit code");
}

/* --- debug registers beyond data and instruction breakpoints --- */

static volatile uint64_t debug_dr6;
static volatile unsigned debug_hits;
static uint64_t read_dr7(void) { uint64_t v; __asm__ volatile("mov %%dr7, %0" : "=r"(v)); return v; }
static void write_dr7(uint64_t v) { __asm__ volatile("mov %0, %%dr7" :: "r"(v)); }
static void do_read_dr4(void *argument) { __asm__ volatile("mov %%dr4, %%rax" ::: "rax"); }
static void do_read_dr0(void *argument) { __asm__ volatile("mov %%dr0, %%rax" ::: "rax"); }
static void do_write_dr7(void *argument) { write_dr7((uint64_t)argument); }

static void on_debug(struct trap_frame *frame)
{
    uint64_t v;
    __asm__ volatile("mov %%dr6, %0" : "=r"(v));
    debug_dr6 = v;
    debug_hits++;
    __asm__ volatile("mov %0, %%dr6" :: "r"(0xFFFF0FF0ull));
}

static void debug_registers(void)
{
    uint64_t cr4 = read_cr4();

    write_cr4(cr4 & ~8ull);
    check_equal(raised(do_read_dr4, 0), 0, "DR4 is DR6 without CR4.DE");
    write_cr4(cr4 | 8);
    check_equal(raised(do_read_dr4, 0), UD, "and is not there with it");
    check_equal(raised(do_write_dr7, 1ull << 32), GP, "DR7 has no upper half");
    check_equal(raised_user(do_read_dr0, 0), GP, "MOV DR at CPL 3");
    set_handler(1, on_debug);
    write_dr7(0x2000);
    debug_hits = 0;
    do_read_dr0(NULL);
    check_equal(debug_hits, 1, "GD traps an access to a debug register once");
    check_equal(debug_dr6 & 0x2000, 0x2000, "DR6.BD says so");
    check_equal(read_dr7() & 0x2000, 0, "and the processor clears it");
    __asm__ volatile("mov %0, %%dr3" :: "r"(0x80ull));
    write_dr7(2 << 6 | 2u << 28);
    debug_hits = 0;
    outb(0x80, 0);
    check_equal(debug_hits, 1, "an I/O breakpoint traps");
    check_equal(debug_dr6 & 0xF, 8, "DR6 names it");
    write_dr7(0x400);
    debug_hits = 0;
    __asm__ volatile(".byte 0xF1");
    check_equal(debug_hits, 1, "INT1 is #DB");
    set_handler(1, NULL);
    write_cr4(cr4);
}

void test_main(void)
{
    map_user_all();
    control_registers();
    task_priority();
    model_specific_registers();
    identification();
    fast_calls();
    user_rights();
    user_mode_instruction_prevention();
    time_stamp();
    paravirtual_clock();
    code_segments();
    debug_registers();
}
