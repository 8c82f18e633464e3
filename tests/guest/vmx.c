/* VT-x: capabilities, VMX instructions, exits by reason, injection, windows, MTF, the preemption timer. */
#include "lib/vmx.h"

enum { GP = 13 << 16, UD = 6 << 16 };

static uint64_t raised(void (*fn)(void *argument), uint64_t argument)
{
    struct trap trap = guarded(fn, (void *)argument);
    return trap.vector == NO_TRAP ? 0 : trap.vector << 16 | trap.error;
}

/* --- before VMXON --- */

static uint64_t scratch[2];

static void do_vmxon(void *argument) { vmxon((uint64_t)argument); }
static void do_vmptrst(void *argument) { vmptrst(); }
static void do_write_cr0(void *argument) { write_cr0((uint64_t)argument); }
static void do_write_cr4(void *argument) { write_cr4((uint64_t)argument); }
static void do_write_feature_control(void *argument) { wrmsr(0x3A, (uint64_t)argument); }
static void do_write_basic(void *argument) { wrmsr(0x480, 0); }
static void do_read_missing(void *argument) { rdmsr(0x493); }

static void before(void)
{
    check_equal(rdmsr(0x3A), 0, "IA32_FEATURE_CONTROL is unlocked");
    check_equal(raised(do_vmxon, 0), UD, "VMXON without CR4.VMXE");
    check_equal(raised(do_vmptrst, 0), UD, "VMPTRST outside VMX operation");
    write_cr4(read_cr4() | CR4_VMXE);
    check_equal(raised(do_vmxon, 0), GP, "VMXON where feature control does not allow it");
    check_equal(raised(do_write_feature_control, 1 << 1), GP, "VMX in SMX cannot be allowed");
    check_equal(raised(do_write_basic, 0), GP, "capability MSRs cannot be written");
    check_equal(raised(do_read_missing, 0), GP, "capability MSRs that are not offered do not exist");
}

static void capabilities(void)
{
    static const uint32_t plain[] = { 0x481, 0x482, 0x483, 0x484, 0x48B }, exact[] = { 0x48D, 0x48E, 0x48F, 0x490 };
    uint64_t basic = rdmsr(0x480);
    bool subset = true, agree = true;
    for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        subset = subset && !((uint32_t)rdmsr(plain[i]) & ~(uint32_t)(rdmsr(plain[i]) >> 32));
    for (unsigned i = 0; i < sizeof(exact) / sizeof(exact[0]); i++)
        agree = agree && rdmsr(exact[i]) >> 32 == rdmsr(plain[i]) >> 32 && !((uint32_t)rdmsr(exact[i]) & ~(uint32_t)rdmsr(plain[i]));
    check(subset, "what must be 1 may be 1");
    check(agree, "the TRUE registers agree with the others");
    check_equal(basic >> 32 & 0x1FFF, 4096, "size of a VMCS region");
    check_equal(basic >> 50 & 15, 6, "VMCS regions are in write-back memory");
    check_equal(basic >> 55 & 1, 1, "the TRUE registers exist");
    check_equal(rdmsr(0x486), 0x80000021, "CR0 bits that must be 1");
    check_equal(rdmsr(0x488), CR4_VMXE, "CR4 bits that must be 1");
    check_equal(rdmsr(0x48C), 0xF0106734141, "EPT and VPID capabilities");
}

/* --- VMX instructions --- */

static uint64_t instruction_error(void) { return vmread(VMCS_VM_INSTRUCTION_ERROR); }

static void pointers(void)
{
    uint64_t region = (uint64_t)vmcs_region, other = (uint64_t)alloc_page(), value;
    check_equal(vmptrst(), ~0ull, "no VMCS is current after VMXON");
    check_equal(vmread_status(VMCS_GUEST_RIP, &value), VMX_FAIL_INVALID, "VMREAD without a current VMCS");
    check_equal(vmwrite_status(VMCS_GUEST_RIP, 1), VMX_FAIL_INVALID, "VMWRITE without a current VMCS");
    check_equal(vmptrld(1ull << 60), VMX_FAIL_INVALID, "VMPTRLD beyond the physical addresses");
    check_equal(vmptrld(region), VMX_OK, "VMPTRLD");
    check_equal(vmptrst(), region, "VMPTRST stores the pointer");
    check_equal(vmptrld(region + 8), VMX_FAIL_VALID, "VMPTRLD of a pointer that is not aligned");
    check_equal(instruction_error(), 9, "error 9");
    check_equal(vmptrld((uint64_t)vmxon_region), VMX_FAIL_VALID, "VMPTRLD of the VMXON pointer");
    check_equal(instruction_error(), 10, "error 10");
    check_equal(vmptrld(other), VMX_FAIL_VALID, "VMPTRLD of a wrong revision");
    check_equal(instruction_error(), 11, "error 11");
    check_equal(vmclear(region + 8), VMX_FAIL_VALID, "VMCLEAR of a pointer that is not aligned");
    check_equal(instruction_error(), 2, "error 2");
    check_equal(vmclear((uint64_t)vmxon_region), VMX_FAIL_VALID, "VMCLEAR of the VMXON pointer");
    check_equal(instruction_error(), 3, "error 3");
    check_equal(vmxon(region), VMX_FAIL_VALID, "VMXON in VMX operation");
    check_equal(instruction_error(), 15, "error 15");
    vmwrite(VMCS_GUEST_RIP, 0x1234567);
    *(uint32_t *)other = vmcs_revision();
    check_equal(vmptrld(other), VMX_OK, "VMPTRLD of another VMCS");
    vmwrite(VMCS_GUEST_RIP, 0x7654321);
    check_equal(vmclear(region), VMX_OK, "VMCLEAR of one that is not current");
    check_equal(vmptrst(), other, "leaves the current one");
    check_equal(vmptrld(region), VMX_OK, "the first one again");
    check_equal(vmread(VMCS_GUEST_RIP), 0x1234567, "it has kept its fields");
    check_equal(vmclear(region), VMX_OK, "VMCLEAR of the current one");
    check_equal(vmptrst(), ~0ull, "and none is current");
    vmclear(other);
}

static const struct { uint16_t encoding; const char *name; } fields[] = {
#define VMCS(name, encoding, group, control) { encoding, #name },
#include "vmx/vmcs.def"
#undef VMCS
};
enum { FIELD_COUNT = sizeof(fields) / sizeof(fields[0]) };

static uint64_t width_mask(uint16_t encoding)
{
    unsigned width = encoding >> 13 & 3;
    return width == 0 ? 0xFFFF : width == 2 ? 0xFFFFFFFF : ~0ull;
}

static void every_field(void)
{
    unsigned wrong = 0, highest = 0, extra = 0;
    uint64_t value;
    vmptrld((uint64_t)vmcs_region);
    for (unsigned i = 0; i < FIELD_COUNT; i++)
        vmwrite(fields[i].encoding, 0x123456789ABCDEFull * (i + 1));
    for (unsigned i = 0; i < FIELD_COUNT; i++) {
        uint16_t encoding = fields[i].encoding;
        uint64_t want = 0x123456789ABCDEFull * (i + 1) & width_mask(encoding), got = vmread(encoding);
        if (got != want)
            print("%s is %lx, not %lx\n", fields[i].name, got, want);
        wrong += got != want;
        if ((encoding >> 13 & 3) == 1)
            wrong += vmread(encoding | 1) != want >> 32;
    }
    for (unsigned i = 0; i < FIELD_COUNT; i++)
        if ((fields[i].encoding >> 13 & 3) != 1)
            wrong += vmread_status(fields[i].encoding | 1, &value) != VMX_FAIL_VALID;
    check_equal(wrong, 0, "every field keeps what is written, in its width");
    for (unsigned encoding = 0; encoding < 0x8000; encoding += 2)
        if (vmread_status(encoding, &value) == VMX_OK) {
            extra++;
            if ((encoding >> 1 & 0x1FF) > highest)
                highest = encoding >> 1 & 0x1FF;
        }
    check_equal(extra, FIELD_COUNT, "no other field exists");
    check_equal(rdmsr(0x48A), highest << 1, "IA32_VMX_VMCS_ENUM has the highest index");
    check_equal(vmread_status(1ull << 32 | VMCS_GUEST_RIP, &value), VMX_FAIL_VALID, "encodings have no upper half");
    check_equal(instruction_error(), 12, "error 12");
    vmwrite(VMCS_TSC_OFFSET | 1, 0x11223344);
    check_equal(vmread(VMCS_TSC_OFFSET) >> 32, 0x11223344, "the high half of a 64-bit field");
}

static void vmread_to_nowhere(void *argument)
{
    uint64_t flags;
    __asm__ volatile("vmread %1, (%2)" : "=@ccz"(flags) : "r"((uint64_t)VMCS_GUEST_RIP), "r"(argument) : "memory");
}

static void instructions(void)
{
    pointers();
    every_field();
    check_equal(raised(vmread_to_nowhere, 1ull << 47), GP, "VMREAD to a bad address faults");
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    check_equal(raised(do_write_cr0, cr0 & ~0x20ull), GP, "CR0.NE cannot be cleared in VMX operation");
    check_equal(raised(do_write_cr4, cr4 & ~(uint64_t)CR4_VMXE), GP, "CR4.VMXE cannot be cleared in VMX operation");
    check_equal(invept(0, 0), VMX_FAIL_VALID, "INVEPT type 0");
    check_equal(invept(3, 0), VMX_FAIL_VALID, "INVEPT type 3");
    check_equal(instruction_error(), 28, "error 28");
    check_equal(invept(1, 0x1E), VMX_OK, "INVEPT single-context");
    check_equal(invept(1, 0x02), VMX_FAIL_VALID, "INVEPT with a bad EPT pointer");
    check_equal(invept(2, 0), VMX_OK, "INVEPT global");
    check_equal(invvpid(0, 1, 0x1000), VMX_OK, "INVVPID individual address");
    check_equal(invvpid(0, 1, 1ull << 47), VMX_FAIL_VALID, "INVVPID of an address that is not canonical");
    check_equal(invvpid(1, 0, 0), VMX_FAIL_VALID, "INVVPID of VPID 0");
    check_equal(invvpid(2, 0, 0), VMX_OK, "INVVPID all contexts");
    check_equal(invvpid(3, 1, 0), VMX_OK, "INVVPID retaining globals");
    check_equal(invvpid(4, 1, 0), VMX_FAIL_VALID, "INVVPID type 4");
    check_equal(invvpid(1, 0x10001, 0), VMX_FAIL_VALID, "INVVPID with a reserved bit");
}

/* --- exits by reason --- */

static void guest_vmcall(void) { vmcall(); }
static void guest_cpuid(void) { uint32_t out[4]; cpuid(1, 0, out); vmcall(); }
static void guest_hlt(void) { __asm__ volatile("hlt"); vmcall(); }
static void guest_invd(void) { __asm__ volatile("invd"); }
static void guest_wbinvd(void) { __asm__ volatile("wbinvd"); vmcall(); }
static void guest_invlpg(void) { invlpg(0x123456); vmcall(); }
static void guest_rdpmc(void) { __asm__ volatile("rdpmc" :: "c"(0) : "eax", "edx"); }
static void guest_rdtsc(void) { rdtsc(); vmcall(); }
static void guest_rdtscp(void) { __asm__ volatile("rdtscp" ::: "eax", "ecx", "edx"); vmcall(); }
static void guest_mov_to_cr3(void) { __asm__ volatile("mov %0, %%cr3" :: "d"(read_cr3())); vmcall(); }
static void guest_mov_from_cr3(void) { __asm__ volatile("mov %%cr3, %%rbx" ::: "rbx"); vmcall(); }
static void guest_mov_to_cr8(void) { __asm__ volatile("mov %0, %%cr8" :: "r"(0ull)); vmcall(); }
static void guest_mov_from_cr8(void) { __asm__ volatile("mov %%cr8, %%rsi" ::: "rsi"); vmcall(); }
static void guest_mov_dr(void) { __asm__ volatile("mov %%dr6, %%rcx" ::: "rcx"); vmcall(); }
static void guest_out(void) { outb(0x80, 1); vmcall(); }
static void guest_inw(void) { inw(0x3F8); vmcall(); }
static void guest_rep_insb(void) { __asm__ volatile("cld; rep insb" :: "d"(0x3F8), "D"(scratch), "c"(2) : "memory"); vmcall(); }
static void guest_rep_stosb(void) { __asm__ volatile("cld; rep stosb" :: "D"(scratch), "c"(3), "a"(0) : "memory"); vmcall(); }
static void guest_rdmsr(void) { rdmsr(0xC0000080); vmcall(); }
static void guest_wrmsr(void) { wrmsr(0x174, 0); vmcall(); }
static void guest_pause(void) { pause(); vmcall(); }
static void guest_xsetbv(void) { __asm__ volatile("xsetbv" :: "c"(0), "a"(1), "d"(0)); }
static void guest_vmxoff(void) { __asm__ volatile("vmxoff"); }
static void guest_vmptrld(void) { vmptrld(0); }
static void guest_vmread(void) { uint64_t v = 0; __asm__ volatile("vmread %1, %0" : "+b"(v) : "c"(5ull)); }
static void guest_vmclear(void) { vmclear(0); }
static void guest_vmptrst(void) { vmptrst(); }
static void guest_vmwrite(void) { vmwrite_status(VMCS_GUEST_RIP, 0); }
static void guest_vmxon(void) { vmxon(0); }
static void guest_vmresume(void) { __asm__ volatile("vmresume"); }
static void guest_vmlaunch(void) { __asm__ volatile("vmlaunch"); }
static void guest_invept(void) { invept(2, 0); }
static void guest_invvpid(void) { invvpid(2, 0, 0); }
static void guest_invpcid(void) { uint64_t d[2] = { 0, 0 }; __asm__ volatile("invpcid %0, %1" :: "m"(d), "r"(2ull)); vmcall(); }
static void guest_lgdt(void) { static struct { uint16_t l; uint64_t b; } __attribute__((packed)) t; __asm__ volatile("sgdt %0" : "=m"(t)); }
static void guest_lidt(void) { static struct { uint16_t l; uint64_t b; } __attribute__((packed)) t; __asm__ volatile("lidt %0" :: "m"(t)); }
static void guest_lldt(void) { __asm__ volatile("lldt %w0" :: "r"(0)); vmcall(); }
static void guest_monitor(void) { __asm__ volatile("monitor" :: "a"(scratch), "c"(0), "d"(0)); vmcall(); }
static void guest_mwait(void) { __asm__ volatile("mwait" :: "a"(0), "c"(0)); vmcall(); }
static void guest_monitor_mwait(void) { __asm__ volatile("monitor; xor %%eax, %%eax; mwait" :: "a"(scratch), "c"(0), "d"(0)); vmcall(); }
static void guest_rdseed(void) { __asm__ volatile("rdseed %%rbx" ::: "rbx", "cc"); vmcall(); }
static void guest_str(void) { __asm__ volatile("str %%ax" ::: "rax"); vmcall(); }
static void guest_rdrand(void) { __asm__ volatile("rdrand %%rdx" ::: "rdx", "cc"); vmcall(); }
static void guest_ud2(void) { __asm__ volatile("ud2"); }
static void guest_int3(void) { __asm__ volatile("int3"); }
static void guest_page_fault(void) { *(volatile uint8_t *)(5ull << 30) = 1; }
static void guest_single_step(void) { __asm__ volatile("pushf; orl $0x100, (%rsp); popf; nop; nop"); vmcall(); }
static void guest_clts(void) { __asm__ volatile("clts"); vmcall(); }
static void guest_lmsw(void) { __asm__ volatile("lmsw %%ax" :: "a"(0x9)); vmcall(); }
static void guest_vmfunc(void) { __asm__ volatile("vmfunc" :: "a"(0), "c"(0)); }

static const struct exit_case {
    const char *name;
    void (*code)(void);
    uint64_t field;             /* a control field and bits that are set for it; secondary ones by secondary */
    uint32_t bits, secondary, reason;
    uint64_t qualification;
} exit_cases[] = {
    { "VMCALL", guest_vmcall, 0, 0, 0, REASON_VMCALL, 0 },
    { "CPUID", guest_cpuid, 0, 0, 0, REASON_CPUID, 0 },
    { "HLT", guest_hlt, VMCS_PROCESSOR_BASED_CONTROLS, PROC_HLT_EXITING, 0, REASON_HLT, 0 },
    { "INVD", guest_invd, 0, 0, 0, REASON_INVD, 0 },
    { "WBINVD, not exiting", guest_wbinvd, 0, 0, 0, REASON_VMCALL, 0 },
    { "WBINVD", guest_wbinvd, 0, 0, PROC2_WBINVD_EXITING, REASON_WBINVD, 0 },
    { "INVLPG, not exiting", guest_invlpg, 0, 0, 0, REASON_VMCALL, 0 },
    { "INVLPG", guest_invlpg, VMCS_PROCESSOR_BASED_CONTROLS, PROC_INVLPG_EXITING, 0, REASON_INVLPG, 0x123456 },
    { "RDPMC", guest_rdpmc, VMCS_PROCESSOR_BASED_CONTROLS, PROC_RDPMC_EXITING, 0, REASON_RDPMC, 0 },
    { "RDTSC, not exiting", guest_rdtsc, 0, 0, 0, REASON_VMCALL, 0 },
    { "RDTSC", guest_rdtsc, VMCS_PROCESSOR_BASED_CONTROLS, PROC_RDTSC_EXITING, 0, REASON_RDTSC, 0 },
    { "RDTSCP", guest_rdtscp, VMCS_PROCESSOR_BASED_CONTROLS, PROC_RDTSC_EXITING, PROC2_ENABLE_RDTSCP, REASON_RDTSCP, 0 },
    { "RDTSCP that is not enabled", guest_rdtscp, VMCS_EXCEPTION_BITMAP, 1 << 6, 0, REASON_EXCEPTION_OR_NMI, 0 },
    { "MOV to CR3, not exiting", guest_mov_to_cr3, 0, 0, 0, REASON_VMCALL, 0 },
    { "MOV to CR3", guest_mov_to_cr3, VMCS_PROCESSOR_BASED_CONTROLS, PROC_CR3_LOAD_EXITING, 0, REASON_CR_ACCESS, 0x203 },
    { "MOV from CR3", guest_mov_from_cr3, VMCS_PROCESSOR_BASED_CONTROLS, PROC_CR3_STORE_EXITING, 0, REASON_CR_ACCESS, 0x313 },
    { "MOV to CR8", guest_mov_to_cr8, VMCS_PROCESSOR_BASED_CONTROLS, PROC_CR8_LOAD_EXITING, 0, REASON_CR_ACCESS, ~0ull },
    { "MOV from CR8", guest_mov_from_cr8, VMCS_PROCESSOR_BASED_CONTROLS, PROC_CR8_STORE_EXITING, 0, REASON_CR_ACCESS, 0x618 },
    { "MOV DR", guest_mov_dr, VMCS_PROCESSOR_BASED_CONTROLS, PROC_MOV_DR_EXITING, 0, REASON_MOV_DR, 0x116 },
    { "OUT", guest_out, VMCS_PROCESSOR_BASED_CONTROLS, PROC_UNCONDITIONAL_IO_EXITING, 0, REASON_IO_INSTRUCTION, 0x800040 },
    { "IN of a word", guest_inw, VMCS_PROCESSOR_BASED_CONTROLS, PROC_UNCONDITIONAL_IO_EXITING, 0, REASON_IO_INSTRUCTION, 0x3F80009 },
    { "REP INSB", guest_rep_insb, VMCS_PROCESSOR_BASED_CONTROLS, PROC_UNCONDITIONAL_IO_EXITING, 0, REASON_IO_INSTRUCTION, 0x3F80038 },
    { "RDMSR without a bitmap", guest_rdmsr, 0, 0, 0, REASON_RDMSR, 0 },
    { "WRMSR without a bitmap", guest_wrmsr, 0, 0, 0, REASON_WRMSR, 0 },
    { "PAUSE, not exiting", guest_pause, 0, 0, 0, REASON_VMCALL, 0 },
    { "PAUSE", guest_pause, VMCS_PROCESSOR_BASED_CONTROLS, PROC_PAUSE_EXITING, 0, REASON_PAUSE, 0 },
    { "XSETBV", guest_xsetbv, VMCS_GUEST_CR4, 1 << 18, 0, REASON_XSETBV, 0 },
    { "VMXOFF", guest_vmxoff, 0, 0, 0, REASON_VMXOFF, 0 },
    { "VMPTRLD", guest_vmptrld, 0, 0, 0, REASON_VMPTRLD, ~0ull },
    { "VMREAD", guest_vmread, 0, 0, 0, REASON_VMREAD, 0 },
    { "VMCLEAR", guest_vmclear, 0, 0, 0, REASON_VMCLEAR, ~0ull },
    { "VMPTRST", guest_vmptrst, 0, 0, 0, REASON_VMPTRST, ~0ull },
    { "VMWRITE", guest_vmwrite, 0, 0, 0, REASON_VMWRITE, ~0ull },
    { "VMXON", guest_vmxon, 0, 0, 0, REASON_VMXON, ~0ull },
    { "VMRESUME", guest_vmresume, 0, 0, 0, REASON_VMRESUME, 0 },
    { "VMLAUNCH", guest_vmlaunch, 0, 0, 0, REASON_VMLAUNCH, 0 },
    { "INVEPT", guest_invept, 0, 0, 0, REASON_INVEPT, ~0ull },
    { "INVVPID", guest_invvpid, 0, 0, 0, REASON_INVVPID, ~0ull },
    { "INVPCID", guest_invpcid, VMCS_PROCESSOR_BASED_CONTROLS, PROC_INVLPG_EXITING, PROC2_ENABLE_INVPCID, REASON_INVPCID, ~0ull },
    { "INVPCID that is not enabled", guest_invpcid, VMCS_EXCEPTION_BITMAP, 1 << 6, 0, REASON_EXCEPTION_OR_NMI, 0 },
    { "SGDT", guest_lgdt, 0, 0, PROC2_DESCRIPTOR_TABLE_EXITING, REASON_GDTR_OR_IDTR, ~0ull },
    { "STR, not exiting", guest_str, 0, 0, 0, REASON_VMCALL, 0 },
    { "STR", guest_str, 0, 0, PROC2_DESCRIPTOR_TABLE_EXITING, REASON_LDTR_OR_TR, 0 },
    { "LIDT", guest_lidt, 0, 0, PROC2_DESCRIPTOR_TABLE_EXITING, REASON_GDTR_OR_IDTR, ~0ull },
    { "LLDT", guest_lldt, 0, 0, PROC2_DESCRIPTOR_TABLE_EXITING, REASON_LDTR_OR_TR, 0 },
    { "MONITOR, not exiting", guest_monitor, 0, 0, 0, REASON_VMCALL, 0 },
    { "MONITOR", guest_monitor, VMCS_PROCESSOR_BASED_CONTROLS, PROC_MONITOR_EXITING, 0, REASON_MONITOR, 0 },
    { "MWAIT with nothing armed", guest_mwait, VMCS_PROCESSOR_BASED_CONTROLS, PROC_MWAIT_EXITING, 0, REASON_MWAIT, 0 },
    { "MWAIT with what MONITOR has armed", guest_monitor_mwait, VMCS_PROCESSOR_BASED_CONTROLS, PROC_MWAIT_EXITING, 0, REASON_MWAIT, 1 },
    { "RDSEED, not exiting", guest_rdseed, 0, 0, 0, REASON_VMCALL, 0 },
    { "RDSEED", guest_rdseed, 0, 0, PROC2_RDSEED_EXITING, REASON_RDSEED, 0 },
    { "RDRAND", guest_rdrand, 0, 0, PROC2_RDRAND_EXITING, REASON_RDRAND, 0 },
    { "#UD", guest_ud2, VMCS_EXCEPTION_BITMAP, 1 << 6, 0, REASON_EXCEPTION_OR_NMI, 0 },
    { "#BP", guest_int3, VMCS_EXCEPTION_BITMAP, 1 << 3, 0, REASON_EXCEPTION_OR_NMI, 0 },
    { "#PF", guest_page_fault, VMCS_EXCEPTION_BITMAP, 1 << 14, 0, REASON_EXCEPTION_OR_NMI, 5ull << 30 },
    { "#DB of a single step", guest_single_step, VMCS_EXCEPTION_BITMAP, 1 << 1, 0, REASON_EXCEPTION_OR_NMI, 1 << 14 },
    { "CLTS", guest_clts, VMCS_CR0_GUEST_HOST_MASK, 8, 0, REASON_VMCALL, 0 },
    { "LMSW", guest_lmsw, VMCS_CR0_GUEST_HOST_MASK, 8, 0, REASON_CR_ACCESS, 0x90030 },
    { "VMFUNC that is not enabled", guest_vmfunc, VMCS_EXCEPTION_BITMAP, 1 << 6, 0, REASON_EXCEPTION_OR_NMI, 0 },
};

static void exits(void)
{
    for (unsigned i = 0; i < sizeof(exit_cases) / sizeof(exit_cases[0]); i++) {
        const struct exit_case *c = &exit_cases[i];
        vmcs_prepare(c->code);
        if (c->field)
            control_set(c->field, c->bits);
        if (c->secondary)
            secondary_set(c->secondary);
        check_equal(vmx_run_reason(), c->reason, c->name);
        if (c->qualification != ~0ull)
            check_equal(vmread(VMCS_EXIT_QUALIFICATION), c->qualification, "its qualification");
    }
    vmcs_prepare(guest_cpuid);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INSTRUCTION_LENGTH), 2, "length of CPUID");
    check_equal(guest_registers.rax, 1, "the guest's registers are as it left them");
    vmx_skip();
    check_equal(vmx_run_reason(), REASON_VMCALL, "VMRESUME goes on behind it");
    vmcs_prepare(guest_page_fault);
    control_set(VMCS_EXCEPTION_BITMAP, 1 << 14);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B0E, "interruption information of #PF");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_ERROR_CODE), 2, "its error code");
    vmwrite(VMCS_PAGE_FAULT_ERROR_CODE_MASK, 4);
    vmwrite(VMCS_PAGE_FAULT_ERROR_CODE_MATCH, 4);
    control_set(VMCS_EXCEPTION_BITMAP, 1 << 8);
    vmwrite(VMCS_GUEST_IDTR_LIMIT, 0);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << 13 | 1 << 14);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B0D, "the mask lets #PF through; #GP in its delivery exits");
    check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION), 0x80000B0E, "IDT-vectoring information is #PF's");
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << 14 | 1 << 8);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B08, "#DF");
    check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION) >> 31, 0, "which is not in a delivery");
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << 14);
    check_equal(vmx_run_reason(), REASON_TRIPLE_FAULT, "triple fault");
    vmcs_prepare(guest_int3);
    control_set(VMCS_EXCEPTION_BITMAP, 1 << 3);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000603, "interruption information of INT3");
    check_equal(vmread(VMCS_EXIT_INSTRUCTION_LENGTH), 1, "its length");
    vmcs_prepare(guest_vmread);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INSTRUCTION_INFORMATION) & 0xF0000478, 0x10000418, "instruction information of VMREAD RBX, RCX");
}

/* --- bitmaps --- */

static void bitmaps(void)
{
    uint8_t *msr_bitmap = alloc_page(), *io_a = alloc_page(), *io_b = alloc_page();
    vmcs_prepare(guest_rdmsr);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_MSR_BITMAPS | PROC_USE_IO_BITMAPS);
    vmwrite(VMCS_MSR_BITMAP, (uint64_t)msr_bitmap);
    vmwrite(VMCS_IO_BITMAP_A, (uint64_t)io_a);
    vmwrite(VMCS_IO_BITMAP_B, (uint64_t)io_b);
    check_equal(vmx_run_reason(), REASON_VMCALL, "RDMSR by a clear bitmap");
    msr_bitmap[1024 + 0x80 / 8] = 1;
    vmx_restart(guest_rdmsr);
    check_equal(vmx_run_reason(), REASON_RDMSR, "RDMSR of EFER by its bit");
    vmx_restart(guest_wrmsr);
    check_equal(vmx_run_reason(), REASON_VMCALL, "WRMSR by a clear bitmap");
    msr_bitmap[2048 + 0x174 / 8] = 1 << (0x174 & 7);
    vmx_restart(guest_wrmsr);
    check_equal(vmx_run_reason(), REASON_WRMSR, "WRMSR by its bit");
    vmx_restart(guest_out);
    check_equal(vmx_run_reason(), REASON_VMCALL, "OUT by a clear bitmap");
    io_a[0x80 / 8] = 1;
    vmx_restart(guest_out);
    check_equal(vmx_run_reason(), REASON_IO_INSTRUCTION, "OUT by its bit");
    io_a[0x3F8 / 8] = 2;
    vmx_restart(guest_inw);
    check_equal(vmx_run_reason(), REASON_IO_INSTRUCTION, "IN of a word by the second port's bit");
}

/* --- control registers behind masks --- */

static uint64_t seen;
static void guest_read_cr0(void) { seen = read_cr0(); vmcall(); }
static void guest_flip_cr0(void) { write_cr0(read_cr0() ^ 0x10000); vmcall(); }

static void masks(void)
{
    uint64_t cr0 = read_cr0();
    vmcs_prepare(guest_read_cr0);
    vmwrite(VMCS_CR0_GUEST_HOST_MASK, 0x80000021);
    vmwrite(VMCS_CR0_READ_SHADOW, 0x1);
    vmx_run();
    check_equal(seen, (cr0 & ~0x80000021ull) | 1, "CR0 reads as the shadow where the mask is set");
    vmx_restart(guest_flip_cr0);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a guest may change its own bits of CR0");
    check_equal(vmread(VMCS_GUEST_CR0), cr0 ^ 0x10000, "and the others stay");
    vmwrite(VMCS_CR0_GUEST_HOST_MASK, 0x10000);
    vmwrite(VMCS_CR0_READ_SHADOW, 0);
    vmx_restart(guest_flip_cr0);
    check_equal(vmx_run_reason(), REASON_CR_ACCESS, "a change of the monitor's bits exits");
}

/* --- events --- */

static volatile uint64_t hits, hit_rip, hit_error;
static void on_event(struct trap_frame *frame) { hits++; hit_rip = frame->rip; hit_error = frame->error; }
static void guest_sti_vmcall(void) { sti(); __asm__ volatile("nop"); vmcall(); cli(); vmcall(); }
static void guest_loop(void) { for (;;) pause(); }
static void guest_sti_loop(void) { sti(); for (;;) pause(); }
static void guest_cli_loop(void) { cli(); for (;;) pause(); }
void guest_five_nops(void);
__asm__("guest_five_nops: nop; nop; nop; nop; nop; vmcall");
static void guest_iret_loop(void)
{
    __asm__ volatile("mov %%ss, %%rax; push %%rax; lea 8(%%rsp), %%rax; push %%rax; pushf; mov %%cs, %%rax; push %%rax;"
                     "lea 1f(%%rip), %%rax; push %%rax; iretq; 1:" ::: "rax", "memory");
    for (;;)
        pause();
}

static void inject(uint32_t information) { vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, information); }

static void injection(void)
{
    vmcs_prepare(guest_vmcall);
    set_handler(13, on_event);
    set_handler(0x60, on_event);
    set_handler(2, on_event);
    inject(0x80000B0D);
    vmwrite(VMCS_ENTRY_EXCEPTION_ERROR_CODE, 0x1230);
    check_equal(vmx_run_reason(), REASON_VMCALL, "an exception is injected");
    check_equal(hits, 1, "and delivered once");
    check_equal(hit_error, 0x1230, "with its error code");
    check_equal(hit_rip, (uint64_t)guest_vmcall, "before the first instruction");
    check_equal(vmread(VMCS_ENTRY_INTERRUPTION_INFORMATION) >> 31, 0, "the valid bit is cleared");
    vmx_restart(guest_vmcall);
    vmwrite(VMCS_GUEST_RFLAGS, 0x202);
    inject(0x80000060);
    vmx_run();
    check_equal(hits, 2, "an external interrupt is injected");
    vmx_restart(guest_vmcall);
    inject(0x80000400 | 0x60);
    vmwrite(VMCS_ENTRY_INSTRUCTION_LENGTH, 2);
    vmwrite(VMCS_GUEST_RIP, (uint64_t)guest_vmcall - 2);
    vmx_run();
    check_equal(hits, 3, "a software interrupt is injected");
    check_equal(hit_rip, (uint64_t)guest_vmcall, "its return address is behind the instruction");
    vmx_restart(guest_vmcall);
    inject(0x80000202);
    vmx_run();
    check_equal(hits, 4, "an NMI is injected");
    set_handler(14, on_event);
    vmx_restart(guest_vmcall);
    inject(0x80000B0E);
    vmwrite(VMCS_ENTRY_EXCEPTION_ERROR_CODE, 0);
    __asm__ volatile("mov %0, %%cr2" :: "r"(0x1234ull));
    vmx_run();
    check_equal(hits, 5, "a page fault is injected");
    check_equal(read_cr2(), 0x1234, "CR2 stays as the monitor left it");
    set_handler(14, NULL);
    vmx_restart(guest_vmcall);
    vmwrite(VMCS_GUEST_IDTR_LIMIT, 0);
    inject(0x80000060);
    vmwrite(VMCS_GUEST_RFLAGS, 0x202);
    control_set(VMCS_EXCEPTION_BITMAP, 1 << 13);
    vmx_run();
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B0D, "a fault in the delivery of an injected event exits");
    check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION), 0x80000060, "and names it");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_vmcall, "the guest has not moved");
    set_handler(13, NULL);
    set_handler(2, NULL);
}

static void self_interrupt(uint8_t vector) { *apic(0x300) = 0x40000 | vector; }

static void windows(void)
{
    vmcs_prepare(guest_sti_vmcall);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_INTERRUPT_WINDOW_EXITING);
    check_equal(vmx_run_reason(), REASON_INTERRUPT_WINDOW, "interrupt window");
    check_equal(vmread(VMCS_GUEST_INTERRUPTIBILITY), 0, "opens when STI's shadow is over");
    control_clear(VMCS_PROCESSOR_BASED_CONTROLS, PROC_INTERRUPT_WINDOW_EXITING);
    check_equal(vmx_run_reason(), REASON_VMCALL, "no window where none is asked for");
    vmx_skip();
    check_equal(vmx_run_reason(), REASON_VMCALL, "the guest goes on");

    vmcs_prepare(guest_iret_loop);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_NMI_EXITING | PIN_VIRTUAL_NMIS);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_NMI_WINDOW_EXITING);
    check_equal(vmx_run_reason(), REASON_NMI_WINDOW, "NMI window");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_iret_loop, "is open at once");
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, 8);
    check_equal(vmx_run_reason(), REASON_NMI_WINDOW, "or after IRET");
    check_equal(vmread(VMCS_GUEST_RIP) > (uint64_t)guest_iret_loop, 1, "which has been run");
}

static void interrupts(void)
{
    *apic(0xF0) = 0x1FF;
    vmcs_prepare(guest_loop);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_EXTERNAL_INTERRUPT_EXITING);
    self_interrupt(0x60);
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "an external interrupt exits, whatever IF is");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION) >> 31, 0, "without acknowledge there is no vector");
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "it still waits");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000060, "with acknowledge there is");
    *apic(0xB0) = 0;

    vmcs_prepare(guest_sti_loop);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_EXTERNAL_INTERRUPT_EXITING);
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    *apic(0x320) = 0x61;                /* the APIC's timer, once */
    *apic(0x3E0) = 0xB;
    *apic(0x380) = 20000;
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "a timer ends an endless loop of the guest");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000061, "with its vector");
    *apic(0xB0) = 0;
    *apic(0x320) = 0x10000;
}

/* A shadow holds back whatever waits, for one instruction; then all of it is looked at, the window first (SDM3 §26.2). */
static void shadows(void)
{
    uint64_t second = (uint64_t)guest_five_nops + 1;
    vmcs_prepare(guest_five_nops);
    vmwrite(VMCS_GUEST_RFLAGS, 0x202);
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, 1);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_EXTERNAL_INTERRUPT_EXITING);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_INTERRUPT_WINDOW_EXITING);
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    self_interrupt(0x60);
    check_equal(vmx_run_reason(), REASON_INTERRUPT_WINDOW, "a window and an interrupt wait for the end of STI's shadow");
    check_equal(vmread(VMCS_GUEST_RIP), second, "one instruction later");
    control_clear(VMCS_PROCESSOR_BASED_CONTROLS, PROC_INTERRUPT_WINDOW_EXITING);
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "then it is the interrupt's turn");
    check_equal(vmread(VMCS_GUEST_RIP), second, "at the same place");
    *apic(0xB0) = 0;

    vmx_restart(guest_five_nops);
    vmwrite(VMCS_GUEST_RFLAGS, 2);
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, 2);
    self_interrupt(0x60);
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "an interrupt exits behind MOV SS's shadow, with IF clear as well");
    check_equal(vmread(VMCS_GUEST_RIP), second, "one instruction later");
    *apic(0xB0) = 0;
}

static void guest_nmi(void)
{
    *apic(0x310) = 0;
    *apic(0x300) = 0x400;               /* an NMI to APIC 0 */
    for (;;)
        pause();
}

static void nmis(void)
{
    vmcs_prepare(guest_nmi);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_NMI_EXITING);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "an NMI exits");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000202, "its interruption information");
}

/* --- INIT and SIPI: the other processor --- */

static volatile bool send_sipi;
/* The TSC that some processor read last; how far both shift theirs, plus 1, or 0; the same, as the other processor knows it. */
static volatile uint64_t told;
static volatile unsigned telling, seen_telling;
static volatile unsigned early;         /* TSCs that were before one that had been told */

static void tell_time(unsigned shift)
{
    uint64_t other = told, now = rdtsc() >> shift;
    told = now;
    if (now < other)
        __sync_fetch_and_add(&early, 1);
}

static void other_processor(unsigned number)
{
    while (!send_sipi) {
        unsigned shift = seen_telling = telling;
        if (shift)
            tell_time(shift - 1);
        else
            pause();
    }
    *apic(0x310) = 0;
    while (send_sipi)                   /* one that comes too early is lost */
        *apic(0x300) = 0x4608;
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void guest_init(void)
{
    *apic(0x310) = 0;
    *apic(0x300) = 0x4500;              /* INIT to APIC 0 */
    for (;;)
        pause();
}

static void init_and_sipi(void)
{
    vmcs_prepare(guest_init);
    check_equal(vmx_run_reason(), REASON_INIT, "INIT exits");
    vmcs_prepare(guest_vmcall);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, 3);
    send_sipi = true;
    check_equal(vmx_run_reason(), REASON_SIPI, "a guest that waits for SIPI exits by it");
    send_sipi = false;
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 8, "with its vector");
    check_equal(vmread(VMCS_GUEST_ACTIVITY_STATE), 3, "and is still waiting");
}

static void timers(void)
{
    vmcs_prepare(guest_cli_loop);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_ACTIVATE_PREEMPTION_TIMER);
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 0);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, "a preemption timer of 0");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_cli_loop, "runs out before the first instruction");
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 100000);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, "a preemption timer ends an endless loop");
    vmx_restart(guest_hlt);
    control_set(VMCS_EXIT_CONTROLS, EXIT_SAVE_PREEMPTION_TIMER);
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 100000);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, "and HLT");
    check_equal(vmread(VMCS_GUEST_ACTIVITY_STATE), 1, "the guest is halted");
    check_equal(vmread(VMCS_PREEMPTION_TIMER_VALUE), 0, "the timer's value is saved");
}

static void monitor_trap_flag(void)
{
    unsigned steps = 0;
    vmcs_prepare(guest_five_nops);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_MONITOR_TRAP_FLAG);
    while (vmx_run_reason() == REASON_MONITOR_TRAP_FLAG && steps < 100)
        steps++;
    check_equal((uint32_t)vmread(VMCS_EXIT_REASON), REASON_VMCALL, "MTF steps to the end");
    check_equal(steps, 5, "instruction by instruction");
    vmx_restart(guest_vmcall);
    inject(0x80000700);
    check_equal(vmx_run_reason(), REASON_MONITOR_TRAP_FLAG, "an injected MTF exit");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_vmcall, "comes before the first instruction");
}

/* SDM3 §26.5.2: what counts as a step besides a whole instruction. */
static void monitor_trap_flag_borders(void)
{
    vmcs_prepare(guest_rep_stosb);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_MONITOR_TRAP_FLAG);
    for (guest_registers.rcx = 0; guest_registers.rcx != 2;)
        if (vmx_run_reason() != REASON_MONITOR_TRAP_FLAG)
            break;
    check_equal(guest_registers.rcx, 2, "MTF exits after the first element of a repeated string");
    check_equal(vmx_run_reason(), REASON_MONITOR_TRAP_FLAG, "and after the next");
    check_equal(guest_registers.rcx, 1, "which is one");
    set_handler(6, on_event);
    vmx_restart(guest_ud2);
    check_equal(vmx_run_reason(), REASON_MONITOR_TRAP_FLAG, "MTF exits after a fault's delivery");
    check(vmread(VMCS_GUEST_RIP) != (uint64_t)guest_ud2, "at its handler");
    vmx_restart(guest_vmcall);
    inject(0x80000306);
    check_equal(vmx_run_reason(), REASON_MONITOR_TRAP_FLAG, "MTF exits after an injected event's delivery");
    check(vmread(VMCS_GUEST_RIP) != (uint64_t)guest_vmcall, "before its handler's first instruction");
    set_handler(6, NULL);
}

/* What is due at an entry, the first thing first (SDM3 §27.7); each is taken away in its turn. */
static void priorities(void)
{
    enum { SINGLE_STEP = 1 << 14, DEBUG = 1 << 1, IF = 0x202 };
    vmcs_prepare(guest_five_nops);
    vmwrite(VMCS_GUEST_RFLAGS, IF);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_ACTIVATE_PREEMPTION_TIMER | PIN_NMI_EXITING | PIN_VIRTUAL_NMIS | PIN_EXTERNAL_INTERRUPT_EXITING);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_NMI_WINDOW_EXITING | PROC_INTERRUPT_WINDOW_EXITING);
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    control_set(VMCS_EXCEPTION_BITMAP, DEBUG);
    self_interrupt(0x60);
    inject(0x80000700);
    check_equal(vmx_run_reason(), REASON_MONITOR_TRAP_FLAG, "MTF comes first");
    vmwrite(VMCS_GUEST_PENDING_DEBUG_EXCEPTIONS, SINGLE_STEP);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "then a pending debug exception");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000301, "which is #DB");
    vmwrite(VMCS_GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, "then the preemption timer");
    control_clear(VMCS_PIN_BASED_CONTROLS, PIN_ACTIVATE_PREEMPTION_TIMER);
    check_equal(vmx_run_reason(), REASON_NMI_WINDOW, "then the NMI window");
    control_clear(VMCS_PROCESSOR_BASED_CONTROLS, PROC_NMI_WINDOW_EXITING);
    check_equal(vmx_run_reason(), REASON_INTERRUPT_WINDOW, "then the interrupt window");
    control_clear(VMCS_PROCESSOR_BASED_CONTROLS, PROC_INTERRUPT_WINDOW_EXITING);
    check_equal(vmx_run_reason(), REASON_EXTERNAL_INTERRUPT, "then the interrupt");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_five_nops, "and no instruction has run");
    *apic(0xB0) = 0;
}

static void time_offset(void)
{
    vmcs_prepare(guest_rdtsc);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TSC_OFFSETTING);
    vmwrite(VMCS_TSC_OFFSET, 1ull << 56);
    vmx_run();
    check_equal(guest_registers.rdx >> 24, 1, "TSC offset");
    vmwrite(VMCS_TSC_OFFSET, 0);
    secondary_set(PROC2_USE_TSC_SCALING);
    vmwrite(VMCS_TSC_MULTIPLIER, 1ull << 40);
    vmx_restart(guest_rdtsc);
    vmx_run();
    uint64_t scaled = guest_registers.rdx << 32 | (uint32_t)guest_registers.rax, now = rdtsc() >> 8;
    check(scaled <= now && now - scaled < 1u << 24, "TSC multiplier");
}

static void tell_times(void)
{
    for (unsigned i = 0; i < 1000000; i++)
        tell_time(0);
}

static void guest_tell_times(void)
{
    tell_times();
    vmcall();
}

static void other_processor_tells(unsigned how)
{
    telling = how;
    while (seen_telling != how)
        pause();
}

/*
 * Who has read a time from memory reads no earlier one by RDTSC. The manual promises that behind a serializing instruction only; Doppel
 * does always, since on the processors that it models it is seen to hold.
 */
static void time_between_processors(void)
{
    other_processor_tells(1);
    tell_times();
    other_processor_tells(0);
    check_equal(early, 0, "TSCs of two processors are seen in order");
    told = early = 0;
    vmcs_prepare(guest_tell_times);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TSC_OFFSETTING);
    secondary_set(PROC2_USE_TSC_SCALING);
    vmwrite(VMCS_TSC_MULTIPLIER, 1ull << 47);
    other_processor_tells(2);
    vmx_run();
    other_processor_tells(0);
    check_equal(early, 0, "and those of a guest at half the rate with half of another processor's");
}

/* --- MSR areas --- */

static void msr_areas(void)
{
    struct { uint32_t index, reserved; uint64_t value; } *area = alloc_page();
    area[0].index = 0xC0000102;         /* KERNEL_GS_BASE */
    area[0].value = 0x1234000;
    area[1].index = 0xC0000102;
    vmcs_prepare(guest_vmcall);
    vmwrite(VMCS_ENTRY_MSR_LOAD_ADDRESS, (uint64_t)area);
    vmwrite(VMCS_ENTRY_MSR_LOAD_COUNT, 1);
    vmwrite(VMCS_EXIT_MSR_STORE_ADDRESS, (uint64_t)&area[1]);
    vmwrite(VMCS_EXIT_MSR_STORE_COUNT, 1);
    check_equal(vmx_run_reason(), REASON_VMCALL, "MSR areas");
    check_equal(rdmsr(0xC0000102), 0x1234000, "an MSR is loaded at entry");
    check_equal(area[1].value, 0x1234000, "and stored at exit");
    area[0].index = 0xC0000100;
    check_equal(vmx_run_reason(), REASON_MSR_LOADING | 1u << 31, "FS base cannot be in the area");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 1, "the entry is named");
    wrmsr(0xC0000102, 0);
}

/* --- the instructions that enter; what they check is in vmx_checks.c --- */

static void entering(void)
{
    bool valid;
    vmcs_prepare(guest_vmcall);
    vmwrite(VMCS_GUEST_RFLAGS, 0);
    check_equal(vmx_run_reason(), REASON_INVALID_GUEST_STATE | 1u << 31, "an entry that fails by the guest's state");
    vmcs_prepare(guest_vmcall);
    __asm__ volatile("vmresume" : "=@ccz"(valid) :: "memory");
    check_equal(valid, 1, "VMRESUME of a clear VMCS");
    check_equal(instruction_error(), 5, "error 5");
    vmx_run();
    __asm__ volatile("vmlaunch" : "=@ccz"(valid) :: "memory");
    check_equal(valid, 1, "VMLAUNCH of a launched VMCS");
    check_equal(instruction_error(), 4, "error 4");
    __asm__ volatile("mov %%ss, %%eax; mov %%eax, %%ss; vmresume" : "=@ccz"(valid) :: "eax", "memory");
    check_equal(valid, 1, "VMRESUME behind MOV SS");
    check_equal(instruction_error(), 26, "error 26");
}

static void leaving(void)
{
    uint64_t cr4 = read_cr4();
    __asm__ volatile("vmxoff" ::: "cc", "memory");
    check_equal(raised(do_vmptrst, 0), UD, "VMPTRST after VMXOFF");
    check_equal(raised(do_write_cr4, cr4 & ~(uint64_t)CR4_VMXE), 0, "CR4.VMXE can be cleared again");
}

void test_main(void)
{
    start_processors(1, other_processor);
    before();
    vmx_switch_on();
    check_equal(raised(do_write_feature_control, 5), GP, "feature control is locked");
    capabilities();
    instructions();
    exits();
    bitmaps();
    masks();
    injection();
    windows();
    interrupts();
    shadows();
    nmis();
    time_between_processors();
    init_and_sipi();
    timers();
    monitor_trap_flag();
    monitor_trap_flag_borders();
    priorities();
    time_offset();
    msr_areas();
    entering();
    vmx_check_reasons(false);
    leaving();
}
