/*
 * The sensitive instructions: those that show or change the state of the machine, privileged or not (docs/sensitive.md).
 * Each is run at CPL 3 without and with UMIP, and at CPL 0. The runner sees afterwards that every counter trap_* has counted.
 */
#include "lib/guest.h"

enum { GP = 13 << 16, UD = 6 << 16, DB = 1 << 16, BP = 3 << 16 };
enum { IF = 0x200, IOPL = 0x3000, UMIP = 1 << 11 };

static volatile uint64_t seen;          /* what the instruction gave */
static struct { uint16_t limit; uint64_t base; } __attribute__((packed)) seen_table, kernel_gdtr, kernel_idtr;
static uint64_t buffer[2];

/* vector << 16 | error, or 0 where nothing was raised. */
static uint64_t code_of(struct trap trap) { return trap.vector == NO_TRAP ? 0 : (uint64_t)trap.vector << 16 | trap.error; }
static uint64_t kernel(void (*fn)(void *), uint64_t argument) { return code_of(guarded(fn, (void *)argument)); }
static uint64_t user(void (*fn)(void *), uint64_t argument) { return code_of(guarded_user(fn, (void *)argument)); }

/* --- what tells about the machine: SGDT SIDT SLDT STR SMSW (SDM3 §2.5, CR4.UMIP) --- */

static void do_sgdt(void *argument) { __asm__ volatile("sgdt %0" : "=m"(seen_table)); }
static void do_sidt(void *argument) { __asm__ volatile("sidt %0" : "=m"(seen_table)); }
static void do_sldt(void *argument) { uint64_t v; __asm__ volatile("sldt %0" : "=r"(v)); seen = v; }
static void do_str(void *argument) { uint64_t v; __asm__ volatile("str %0" : "=r"(v)); seen = v; }
static void do_smsw(void *argument) { uint64_t v; __asm__ volatile("smsw %0" : "=r"(v)); seen = v; }
static void do_sldt_memory(void *argument) { __asm__ volatile("sldt %0" : "=m"(*(uint16_t *)buffer)); }
static void do_str_memory(void *argument) { __asm__ volatile("str %0" : "=m"(*(uint16_t *)buffer)); }
static void do_smsw_memory(void *argument) { __asm__ volatile("smsw %0" : "=m"(*(uint16_t *)buffer)); }

static void tell_tales(void)
{
    do_sgdt(NULL);
    kernel_gdtr = seen_table;
    do_sidt(NULL);
    kernel_idtr = seen_table;
    seen_table.base = 0;
    check_equal(user(do_sgdt, 0), 0, "SGDT at CPL 3 without UMIP");
    check(seen_table.base == kernel_gdtr.base && seen_table.limit == kernel_gdtr.limit, "SGDT gives the kernel's GDTR");
    check_equal(user(do_sidt, 0), 0, "SIDT at CPL 3 without UMIP");
    check(seen_table.base == kernel_idtr.base && seen_table.limit == kernel_idtr.limit, "SIDT gives the kernel's IDTR");
    seen = 99;
    check_equal(user(do_sldt, 0), 0, "SLDT at CPL 3 without UMIP");
    check_equal(seen, 0, "SLDT gives the null selector");
    check_equal(user(do_str, 0), 0, "STR at CPL 3 without UMIP");
    check_equal(seen, SEL_TSS, "STR gives the kernel's selector");
    check_equal(user(do_smsw, 0), 0, "SMSW at CPL 3 without UMIP");
    check_equal(seen, read_cr0(), "SMSW gives CR0");
    buffer[0] = ~0ull;
    check_equal(user(do_smsw_memory, 0), 0, "SMSW to memory at CPL 3 without UMIP");
    check_equal(buffer[0], 0xFFFFFFFFFFFF0000 | (read_cr0() & 0xFFFF), "stores 16 bits");
}

static void prevented(void)
{
    uint32_t out[4];
    cpuid(7, 0, out);
    check(out[2] & 4, "the processor has UMIP");
    write_cr4(read_cr4() | UMIP);
    check_equal(user(do_sgdt, 0), GP, "SGDT at CPL 3 with UMIP");
    check_equal(user(do_sidt, 0), GP, "SIDT at CPL 3 with UMIP");
    check_equal(user(do_sldt, 0), GP, "SLDT at CPL 3 with UMIP");
    check_equal(user(do_str, 0), GP, "STR at CPL 3 with UMIP");
    check_equal(user(do_smsw, 0), GP, "SMSW at CPL 3 with UMIP");
    check_equal(user(do_sldt_memory, 0), GP, "SLDT to memory at CPL 3 with UMIP");
    check_equal(user(do_str_memory, 0), GP, "STR to memory at CPL 3 with UMIP");
    check_equal(user(do_smsw_memory, 0), GP, "SMSW to memory at CPL 3 with UMIP");
    seen = 0;
    check_equal(kernel(do_sgdt, 0) | kernel(do_sidt, 0) | kernel(do_sldt, 0) | kernel(do_str, 0) | kernel(do_smsw, 0), 0,
                "CPL 0 may, with UMIP");
    check_equal(seen, read_cr0(), "and sees the same");
}

/* --- flags: PUSHF, POPF, IRET --- */

static uint8_t stack[4096] __attribute__((aligned(16)));
static volatile uint64_t flags_wanted, flags_before, flags_after;
extern uint8_t flags_probe[];
__asm__(".text\n flags_probe: pushfq\n pop flags_before\n push flags_wanted\n popfq\n pushfq\n pop flags_after\n int $0x81");

/* Goes to CPL 3 with these flags; there PUSHF, POPF of flags_wanted, PUSHF. */
static void do_flags(void *flags)
{
    __asm__ volatile("pushq %0\n pushq %1\n pushq %2\n pushq %3\n pushq %4\n iretq"
                     :: "i"(SEL_USER_DATA), "r"(stack + sizeof(stack)), "r"(flags), "i"(SEL_USER_CODE64), "r"(flags_probe)
                     : "memory");
}

static void do_iret(void *flags)
{
    uint64_t after;
    __asm__ volatile("mov %%rsp, %%rax\n pushq %2\n push %%rax\n push %1\n pushq %3\n lea 1f(%%rip), %%rax\n push %%rax\n iretq\n"
                     "1: pushfq\n pop %0" : "=r"(after) : "r"(flags), "i"(SEL_USER_DATA), "i"(SEL_USER_CODE64) : "rax", "memory");
    flags_after = after;
}

static void do_iret_inward(void *selector)
{
    __asm__ volatile("mov %%rsp, %%rax\n pushq %1\n push %%rax\n pushq $2\n push %0\n lea 1f(%%rip), %%rax\n push %%rax\n iretq\n 1:"
                     :: "r"(selector), "i"(SEL_USER_DATA) : "rax", "memory");
}

static void flags(void)
{
    flags_wanted = 2 | IOPL;
    check_equal(kernel(do_flags, 2 | IF), 0, "PUSHF and POPF at CPL 3 with IOPL 0");
    check_equal(flags_before, 2 | IF, "PUSHF shows IF and IOPL as they are");
    check_equal(flags_after, 2 | IF, "POPF changes neither, without a fault");
    flags_wanted = 2 | IF;
    check_equal(kernel(do_flags, 2 | IOPL), 0, "PUSHF and POPF at CPL 3 with IOPL 3");
    check_equal(flags_before, 2 | IOPL, "PUSHF shows IOPL");
    check_equal(flags_after, 2 | IF | IOPL, "POPF changes IF, but not IOPL");
    __asm__ volatile("pushq $2\n popfq" ::: "cc", "memory");
    check_equal(user(do_iret, 2 | IF | IOPL | 1), 0, "IRET at CPL 3 to CPL 3");
    check_equal(flags_after & (IF | IOPL | 1), 1, "takes CF and leaves IF and IOPL");
    check_equal(user(do_iret_inward, SEL_CODE64), GP | SEL_CODE64, "IRET at CPL 3 to CPL 0");
}

/* --- segments: LAR LSL VERR VERW, MOV and POP --- */

static volatile uint64_t seen_zf;
#define CHECKER(name, text)                                                                         \
    static void name(void *selector)                                                                \
    {                                                                                               \
        uint64_t v = 0x5A;                                                                          \
        uint8_t zf;                                                                                 \
        __asm__ volatile(text "\n setz %1" : "+r"(v), "=q"(zf) : "r"(selector) : "cc");             \
        seen = v;                                                                                   \
        seen_zf = zf;                                                                               \
    }
CHECKER(do_lar, "lar %k2, %k0")
CHECKER(do_lsl, "lsl %k2, %k0")
CHECKER(do_verr, "verr %w2")
CHECKER(do_verw, "verw %w2")

/* Runs one at CPL 3: ZF, and where it is set the value (or the destination's old one). */
static void look(void (*fn)(void *), uint64_t selector, bool zf, uint64_t value, uint64_t mask, const char *name)
{
    uint64_t code = user(fn, selector);
    check_equal(code ? code : seen_zf << 63 | (seen & mask), (uint64_t)zf << 63 | value, name);
}

static void do_mov_ds(void *selector) { __asm__ volatile("mov %w0, %%ds" :: "r"(selector)); }
static void do_mov_ss(void *selector) { __asm__ volatile("mov %w0, %%ss" :: "r"(selector)); }
static void do_pop_fs(void *selector) { __asm__ volatile("push %0\n pop %%fs" :: "r"(selector) : "memory"); }
static void do_mov_from_cs(void *argument) { uint64_t v; __asm__ volatile("mov %%cs, %0" : "=r"(v)); seen = v; }

static void selectors(void)
{
    look(do_lar, SEL_USER_DATA, true, 0xC0F300, 0xF0FF00, "LAR of a segment in reach");
    look(do_lar, SEL_DATA, false, 0x5A, ~0ull, "LAR of a DPL 0 segment: ZF 0, the register stays");
    look(do_lar, 0, false, 0x5A, ~0ull, "LAR of the null selector");
    look(do_lar, 0xFFF8, false, 0x5A, ~0ull, "LAR beyond the table");
    look(do_lsl, SEL_USER_DATA, true, 0xFFFFFFFF, ~0ull, "LSL of a segment in reach");
    look(do_lsl, SEL_TSS, false, 0x5A, ~0ull, "LSL of the kernel's TSS");
    look(do_verr, SEL_USER_CODE64, true, 0x5A, ~0ull, "VERR of readable code");
    look(do_verr, SEL_DATA, false, 0x5A, ~0ull, "VERR of kernel data");
    look(do_verw, SEL_USER_DATA, true, 0x5A, ~0ull, "VERW of user data");
    look(do_verw, SEL_USER_CODE64, false, 0x5A, ~0ull, "VERW of code");
    check_equal(user(do_mov_from_cs, 0), 0, "MOV from CS at CPL 3");
    check_equal(seen & 3, 3, "shows the privilege level");
    check_equal(user(do_mov_ds, SEL_USER_DATA), 0, "MOV to DS at CPL 3 of user data");
    check_equal(user(do_mov_ds, SEL_DATA), GP | SEL_DATA, "MOV to DS at CPL 3 of kernel data");
    check_equal(user(do_mov_ss, SEL_DATA), GP | SEL_DATA, "MOV to SS at CPL 3 of kernel data");
    check_equal(user(do_mov_ss, 0), GP, "MOV to SS at CPL 3 of the null selector");
    check_equal(user(do_pop_fs, SEL_DATA), GP | SEL_DATA, "POP FS at CPL 3 of kernel data");
    set_gdt_entry(SEL_FREE, 0x0000930000000000);        /* base and limit 0 */
    check_equal(kernel(do_mov_ds, SEL_FREE), 0, "a data segment of one byte");
    check_equal(kernel(do_str_memory, 0), 0, "its limit counts for nothing in 64-bit mode");
    do_mov_ds((void *)SEL_DATA);
}

/* --- far transfers, INT n --- */

static struct { uint64_t offset; uint16_t selector; } __attribute__((packed)) far_pointer;

static void do_far_jump(void *argument)
{
    __asm__ volatile("lea 1f(%%rip), %%rax\n mov %%rax, %0\n rex.w ljmp *%0\n 1:" : "+m"(far_pointer) :: "rax", "memory");
}

static void do_far_call(void *argument)
{
    __asm__ volatile("lea 1f(%%rip), %%rax\n mov %%rax, %0\n rex.w lcall *%0\n 1: add $16, %%rsp"
                     : "+m"(far_pointer) :: "rax", "memory", "cc");
}

static void do_far_return(void *selector)
{
    __asm__ volatile("push %0\n lea 1f(%%rip), %%rax\n push %%rax\n lretq\n 1:" :: "r"(selector) : "rax", "memory");
}

static void do_int(void *argument) { __asm__ volatile("int $0x30"); }
static void do_int3(void *argument) { __asm__ volatile("int3"); }
static void do_int1(void *argument) { __asm__ volatile(".byte 0xF1"); }

static void transfers(void)
{
    far_pointer.selector = SEL_USER_CODE64;
    check_equal(user(do_far_jump, 0), 0, "far JMP at CPL 3 to CPL 3");
    check_equal(user(do_far_call, 0), 0, "far CALL at CPL 3 to CPL 3");
    check_equal(user(do_far_return, SEL_USER_CODE64), 0, "far RET at CPL 3 to CPL 3");
    far_pointer.selector = SEL_CODE64;
    check_equal(user(do_far_jump, 0), GP | SEL_CODE64, "far JMP at CPL 3 to CPL 0");
    check_equal(user(do_far_call, 0), GP | SEL_CODE64, "far CALL at CPL 3 to CPL 0, no gate");
    check_equal(user(do_far_return, SEL_CODE64), GP | SEL_CODE64, "far RET at CPL 3 to CPL 0");
    far_pointer.selector = SEL_TSS;
    check_equal(user(do_far_jump, 0), GP | SEL_TSS, "far JMP to a TSS in 64-bit mode");
    check_equal(user(do_int, 0), GP | (0x30 * 8 + 2), "INT n at CPL 3 through a gate of DPL 0");
    check_equal(user(do_int3, 0), BP, "INT3 at CPL 3 through a gate of DPL 3");
    check_equal(user(do_int1, 0), DB, "INT1 at CPL 3: the DPL is not asked");
}

/* --- the privileged ones: #GP(0) at CPL 3, done at CPL 0 --- */

static uint64_t invpcid_descriptor[2];
static void do_lgdt(void *argument) { __asm__ volatile("lgdt %0" :: "m"(kernel_gdtr)); }
static void do_lidt(void *argument) { __asm__ volatile("lidt %0" :: "m"(kernel_idtr)); }
static void do_lldt(void *selector) { __asm__ volatile("lldt %w0" :: "r"(selector)); }
static void do_ltr(void *selector) { __asm__ volatile("ltr %w0" :: "r"(selector)); }
static void do_lmsw(void *argument) { __asm__ volatile("lmsw %w0" :: "r"(0x3B)); }          /* sets TS */
static void do_clts(void *argument) { __asm__ volatile("clts"); }
static void do_read_cr0(void *argument) { seen = read_cr0(); }
static void do_write_cr0(void *value) { write_cr0((uint64_t)value); }
static void do_read_dr7(void *argument) { uint64_t v; __asm__ volatile("mov %%dr7, %0" : "=r"(v)); seen = v; }
static void do_write_dr7(void *argument) { __asm__ volatile("mov %0, %%dr7" :: "r"(0x400ull)); }
static void do_invlpg(void *argument) { invlpg((uint64_t)buffer); }
static void do_invpcid(void *argument) { __asm__ volatile("invpcid %0, %1" :: "m"(invpcid_descriptor), "r"(2ull)); }
static void do_invd(void *argument) { __asm__ volatile("invd"); }
static void do_wbinvd(void *argument) { __asm__ volatile("wbinvd"); }
static void do_rdmsr(void *argument) { seen = rdmsr(0xC0000080); }
static void do_wrmsr(void *value) { wrmsr(0xC0000080, (uint64_t)value); }
static void do_rdpmc(void *argument) { __asm__ volatile("rdpmc" :: "c"(0) : "eax", "edx"); }
static void do_xsetbv(void *argument) { __asm__ volatile("xsetbv" :: "a"(1), "c"(0), "d"(0)); }
static void do_swapgs(void *argument) { __asm__ volatile("swapgs\n swapgs"); }
static void do_sysret(void *argument) { __asm__ volatile("sysretq"); }
static void do_sysexit(void *argument) { __asm__ volatile("sysexitl"); }
static void do_hlt(void *argument) { __asm__ volatile("hlt"); }
static void do_cli(void *argument) { cli(); }
static void do_sti(void *argument) { sti(); }
static void do_in(void *argument) { inb(0x80); }
static void do_out(void *argument) { outb(0x80, 0); }
static void do_ins(void *argument) { __asm__ volatile("insb" :: "d"(0x80), "D"(buffer) : "memory"); }
static void do_outs(void *argument) { __asm__ volatile("outsb" :: "d"(0x80), "S"(buffer)); }
static void do_rdtsc(void *argument) { rdtsc(); }
static void do_monitor(void *argument) { __asm__ volatile("monitor" :: "a"(buffer), "c"(0), "d"(0)); }
static void do_mwait(void *argument) { __asm__ volatile("mwait" :: "a"(0), "c"(0)); }
static void do_serialize(void *argument) { __asm__ volatile(".byte 0x0F, 0x01, 0xE8"); }
static void do_vmcall(void *argument) { uint64_t v = 12345; __asm__ volatile("vmcall" : "+a"(v)); seen = v; }
static void do_vmxoff(void *argument) { __asm__ volatile("vmxoff" ::: "cc"); }
static void do_syscall(void *argument) { __asm__ volatile("syscall" ::: "rcx", "r11"); }

static const struct {
    void (*fn)(void *);
    const char *name;
    bool at_0;                  /* can be done at CPL 0 as well */
} privileged[] = {
    { do_lgdt, "LGDT", true }, { do_lidt, "LIDT", true }, { do_lldt, "LLDT", true }, { do_ltr, "LTR", false },
    { do_lmsw, "LMSW", true }, { do_clts, "CLTS", true }, { do_read_cr0, "MOV from CR", true }, { do_write_cr0, "MOV to CR", false },
    { do_read_dr7, "MOV from DR", true }, { do_write_dr7, "MOV to DR", true }, { do_invlpg, "INVLPG", true },
    { do_invpcid, "INVPCID", true }, { do_invd, "INVD", true }, { do_wbinvd, "WBINVD", true }, { do_rdmsr, "RDMSR", true },
    { do_wrmsr, "WRMSR", false }, { do_rdpmc, "RDPMC", false }, { do_xsetbv, "XSETBV", true }, { do_swapgs, "SWAPGS", true },
    { do_sysret, "SYSRET", false }, { do_sysexit, "SYSEXIT", false }, { do_hlt, "HLT", false }, { do_cli, "CLI", true },
    { do_sti, "STI", false }, { do_in, "IN", true }, { do_out, "OUT", true }, { do_ins, "INS", true }, { do_outs, "OUTS", true },
};

static void privileged_ones(void)
{
    enum { OSXSAVE = 1 << 18, TSD = 4 };
    wrmsr(0x174, SEL_CODE64);           /* or SYSEXIT faults for that */
    write_cr4(read_cr4() | OSXSAVE | TSD);
    for (unsigned i = 0; i < sizeof(privileged) / sizeof(privileged[0]); i++) {
        print("%s:\n", privileged[i].name);
        check_equal(user(privileged[i].fn, 0), GP, "#GP(0) at CPL 3");
        if (privileged[i].at_0)
            check_equal(kernel(privileged[i].fn, 0), 0, "done at CPL 0");
    }
    check_equal(user(do_rdtsc, 0), GP, "RDTSC at CPL 3 with CR4.TSD");
    check_equal(kernel(do_ltr, SEL_TSS), GP | SEL_TSS, "LTR of the TSS that is in use");
    do_lmsw(NULL);
    check_equal(read_cr0() & 8, 8, "LMSW sets TS");
    do_clts(NULL);
    check_equal(read_cr0() & 8, 0, "CLTS clears it");
    check_equal(user(do_monitor, 0), UD, "MONITOR at CPL 3 is #UD");
    check_equal(user(do_mwait, 0), UD, "MWAIT at CPL 3 is #UD");
    check_equal(kernel(do_serialize, 0), UD, "SERIALIZE where CPUID has it not");
    check_equal(kernel(do_vmxoff, 0), UD, "VMXOFF outside VMX operation");
    check_equal(user(do_vmcall, 0), 0, "VMCALL at CPL 3");
    check_equal(seen, -1ull, "is refused by its result");
    check_equal(kernel(do_vmcall, 0), 0, "VMCALL at CPL 0");
    check_equal(seen, -1000ull, "a call that nobody knows is answered so");
    wrmsr(0xC0000080, rdmsr(0xC0000080) & ~1ull);
    check_equal(user(do_syscall, 0), UD, "SYSCALL without EFER.SCE");
}

/* --- no segment protection in 64-bit mode, paging switched at CPL 0 only --- */

static void modes(void)
{
    uint64_t cr0 = read_cr0(), efer = rdmsr(0xC0000080);
    check_equal(kernel(do_wrmsr, efer | 1 << 13), GP, "EFER.LMSLE is reserved");
    check_equal(kernel(do_wrmsr, efer), 0, "without it the same write is fine");
    check_equal(user(do_write_cr0, cr0 & 0x7FFFFFFF), GP, "PG cannot be cleared at CPL 3");
    check_equal(user(do_write_cr0, cr0), GP, "not even the same value can be written");
    check_equal(kernel(do_write_cr0, cr0 & ~1ull), GP, "PG without PE");
    check_equal(read_cr0(), cr0, "nothing of it has changed CR0");
}

void test_main(void)
{
    map_user_all();
    tell_tales();
    flags();
    selectors();
    transfers();
    prevented();
    flags();
    selectors();
    transfers();
    privileged_ones();
    modes();
}
