/*
 * Instructions of a VT-x guest: which faults come before their exits (SDM3 §26.1.1 "Relative Priority of Faults and VM Exits"), what the
 * instruction information says (§28.2.5), and the rules by which masks, lists and bitmaps let them through.
 */
#include "lib/vmx.h"

enum { UD = 6, GP = 13 };
static uint8_t memory[4096];

/* --- at CPL 3 --- */

static void guest_hlt(void) { __asm__ volatile("hlt"); }
static void guest_invd(void) { __asm__ volatile("invd"); }
static void guest_wbinvd(void) { __asm__ volatile("wbinvd"); }
static void guest_invlpg(void) { invlpg(0x123456); }
static void guest_invpcid(void) { __asm__ volatile("invpcid (%0), %1" :: "r"(memory), "r"(2ull)); }
static void guest_rdpmc(void) { __asm__ volatile("rdpmc" :: "c"(0) : "eax", "edx"); }
static void guest_rdtsc(void) { rdtsc(); }
static void guest_rdtscp(void) { __asm__ volatile("rdtscp" ::: "eax", "ecx", "edx"); }
static void guest_read_cr0(void) { read_cr0(); }
static void guest_write_cr3(void) { write_cr3(0); }
static void guest_write_cr8(void) { __asm__ volatile("mov %0, %%cr8" :: "r"(0ull)); }
static void guest_clts(void) { __asm__ volatile("clts"); }
static void guest_lmsw(void) { __asm__ volatile("lmsw %%ax" :: "a"(0x9)); }
static void guest_mov_dr(void) { __asm__ volatile("mov %%dr6, %%rcx" ::: "rcx"); }
static void guest_in(void) { inw(0x3F8); }
static void guest_rdmsr(void) { rdmsr(0xC0000080); }
static void guest_wrmsr(void) { wrmsr(0x174, 0); }
static void guest_xsetbv(void) { __asm__ volatile("xsetbv" :: "c"(0), "a"(1), "d"(0)); }
static void guest_monitor(void) { __asm__ volatile("monitor" :: "a"(memory), "c"(0), "d"(0)); }
static void guest_mwait(void) { __asm__ volatile("mwait" :: "a"(0), "c"(0)); }
static void guest_lgdt(void) { __asm__ volatile("lgdt %0" :: "m"(memory)); }
static void guest_sgdt(void) { __asm__ volatile("sgdt %0" : "=m"(memory)); }
static void guest_lldt(void) { __asm__ volatile("lldt %w0" :: "r"(0)); }
static void guest_str(void) { __asm__ volatile("str %%ax" ::: "rax"); }
static void guest_pause(void) { pause(); }
static void guest_cpuid(void) { uint32_t out[4]; cpuid(0, 0, out); }
static void guest_vmcall(void) { vmcall(); }
static void guest_vmxoff(void) { __asm__ volatile("vmxoff"); }
static void guest_vmread(void) { __asm__ volatile("vmread %%rcx, %%rbx" ::: "rbx"); }
static void guest_invept(void) { __asm__ volatile("invept (%0), %1" :: "r"(memory), "r"(2ull)); }
static void guest_vmptrld(void) { __asm__ volatile("vmptrld %0" :: "m"(memory)); }
static void guest_rdrand(void) { __asm__ volatile("rdrand %%rdx" ::: "rdx", "cc"); }
static void guest_getsec(void) { __asm__ volatile("getsec" :: "a"(0), "b"(0)); }
static void guest_rsm(void) { __asm__ volatile("rsm"); }

enum { IOPL_3 = 3 << 12, TSD = 1 << 2, PCE = 1 << 8, UMIP = 1 << 11, OSXSAVE = 1 << 18 };

static const struct user_case {
    const char *name;
    void (*code)(void);
    unsigned fault;             /* 0: it exits, ... */
    uint32_t reason;            /* ... by this */
    uint32_t cr4, rflags;       /* that are set besides */
} user_cases[] = {
    { "HLT", guest_hlt, GP, 0, 0, 0 },
    { "INVD", guest_invd, GP, 0, 0, 0 },
    { "WBINVD", guest_wbinvd, GP, 0, 0, 0 },
    { "INVLPG", guest_invlpg, GP, 0, 0, 0 },
    { "INVPCID", guest_invpcid, GP, 0, 0, 0 },
    { "RDPMC", guest_rdpmc, GP, 0, 0, 0 },
    { "RDPMC with CR4.PCE", guest_rdpmc, 0, REASON_RDPMC, PCE, 0 },
    { "RDTSC", guest_rdtsc, 0, REASON_RDTSC, 0, 0 },
    { "RDTSC with CR4.TSD", guest_rdtsc, GP, 0, TSD, 0 },
    { "RDTSCP", guest_rdtscp, 0, REASON_RDTSCP, 0, 0 },
    { "RDTSCP with CR4.TSD", guest_rdtscp, GP, 0, TSD, 0 },
    { "MOV from CR0", guest_read_cr0, GP, 0, 0, 0 },
    { "MOV to CR3", guest_write_cr3, GP, 0, 0, 0 },
    { "MOV to CR8", guest_write_cr8, GP, 0, 0, 0 },
    { "CLTS", guest_clts, GP, 0, 0, 0 },
    { "LMSW", guest_lmsw, GP, 0, 0, 0 },
    { "MOV DR, whose exit comes first", guest_mov_dr, 0, REASON_MOV_DR, 0, 0 },
    { "IN", guest_in, GP, 0, 0, 0 },
    { "IN with IOPL 3", guest_in, 0, REASON_IO_INSTRUCTION, 0, IOPL_3 },
    { "RDMSR", guest_rdmsr, GP, 0, 0, 0 },
    { "WRMSR", guest_wrmsr, GP, 0, 0, 0 },
    { "XSETBV", guest_xsetbv, GP, 0, OSXSAVE, 0 },
    { "XSETBV without CR4.OSXSAVE", guest_xsetbv, UD, 0, 0, 0 },
    { "MONITOR", guest_monitor, UD, 0, 0, 0 },
    { "MWAIT", guest_mwait, UD, 0, 0, 0 },
    { "LGDT", guest_lgdt, GP, 0, 0, 0 },
    { "SGDT", guest_sgdt, 0, REASON_GDTR_OR_IDTR, 0, 0 },
    { "SGDT with CR4.UMIP", guest_sgdt, GP, 0, UMIP, 0 },
    { "LLDT", guest_lldt, GP, 0, 0, 0 },
    { "STR", guest_str, 0, REASON_LDTR_OR_TR, 0, 0 },
    { "STR with CR4.UMIP", guest_str, GP, 0, UMIP, 0 },
    { "PAUSE", guest_pause, 0, REASON_PAUSE, 0, 0 },
    { "CPUID", guest_cpuid, 0, REASON_CPUID, 0, 0 },
    { "VMCALL", guest_vmcall, 0, REASON_VMCALL, 0, 0 },
    { "VMXOFF", guest_vmxoff, 0, REASON_VMXOFF, 0, 0 },
    { "VMREAD", guest_vmread, 0, REASON_VMREAD, 0, 0 },
    { "VMPTRLD", guest_vmptrld, 0, REASON_VMPTRLD, 0, 0 },
    { "INVEPT", guest_invept, 0, REASON_INVEPT, 0, 0 },
    { "RDRAND", guest_rdrand, 0, REASON_RDRAND, 0, 0 },
    { "GETSEC without CR4.SMXE", guest_getsec, UD, 0, 0, 0 },
    { "RSM", guest_rsm, UD, 0, 0, 0 },
};

/* All that can exit does. */
static void exit_always(void)
{
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_HLT_EXITING | PROC_INVLPG_EXITING | PROC_MWAIT_EXITING | PROC_RDPMC_EXITING |
                PROC_RDTSC_EXITING | PROC_CR3_LOAD_EXITING | PROC_CR3_STORE_EXITING | PROC_CR8_LOAD_EXITING | PROC_CR8_STORE_EXITING |
                PROC_MOV_DR_EXITING | PROC_UNCONDITIONAL_IO_EXITING | PROC_MONITOR_EXITING | PROC_PAUSE_EXITING);
    secondary_set(PROC2_DESCRIPTOR_TABLE_EXITING | PROC2_ENABLE_RDTSCP | PROC2_WBINVD_EXITING | PROC2_RDRAND_EXITING | PROC2_ENABLE_INVPCID);
    vmwrite(VMCS_CR0_GUEST_HOST_MASK, ~0ull);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << UD | 1 << GP);
}

static void enter_user(void)
{
    enum { CODE_DPL3 = 0xA0FB, DATA_DPL3 = 0xC0F3 };
    vmwrite(VMCS_GUEST_CS_SELECTOR, SEL_USER_CODE64);
    vmwrite(VMCS_GUEST_CS_ACCESS_RIGHTS, CODE_DPL3);
    vmwrite(VMCS_GUEST_SS_SELECTOR, SEL_USER_DATA);
    vmwrite(VMCS_GUEST_SS_ACCESS_RIGHTS, DATA_DPL3);
}

static void faults_before_exits(void)
{
    map_user_all();
    for (unsigned i = 0; i < sizeof(user_cases) / sizeof(user_cases[0]); i++) {
        const struct user_case *c = &user_cases[i];
        vmcs_prepare(c->code);
        exit_always();
        enter_user();
        vmwrite(VMCS_GUEST_CR4, vmread(VMCS_GUEST_CR4) | c->cr4);
        vmwrite(VMCS_GUEST_RFLAGS, 2 | c->rflags);
        print("at CPL 3, %s:\n", c->name);
        check_equal(vmx_run_reason(), c->fault ? (uint32_t)REASON_EXCEPTION_OR_NMI : c->reason, c->fault ? "a fault" : "an exit");
        if (c->fault)
            check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION) & 0xFF, c->fault, "which one");
    }
}

/* --- instruction information --- */

enum { SCALE = 3, REG1 = 15 << 3, ADDRESS_SIZE = 7 << 7, IS_REGISTER = 1 << 10, SIZE = 3 << 11, SEGMENT = 7 << 15, INDEX = 15 << 18, NO_INDEX = 1 << 22,
       BASE = 15 << 23, NO_BASE = 1 << 27, WHICH = 3 << 28 };
#define REG2 (15u << 28)
enum { ADDRESS_64 = 2 << 7, ADDRESS_32 = 1 << 7 };
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13 };
enum { ES, CS, SS, DS, FS, GS };
#define AT(segment, base) (ADDRESS_64 | (segment) << 15 | NO_INDEX | (base) << 23)
#define PLACE (IS_REGISTER | ADDRESS_SIZE | SEGMENT | NO_INDEX | BASE | NO_BASE)

static void lgdt_scaled(void) { __asm__ volatile("lgdt 0x1234(%%rsi,%%rdx,8)" ::: "memory"); }
static void sidt_fs(void) { __asm__ volatile("sidt %%fs:(%%rbx)" ::: "memory"); }
static void sldt_register(void) { __asm__ volatile("sldt %%r10" ::: "r10"); }
static void ltr_memory(void) { __asm__ volatile("ltr -8(%%r9)" ::: "memory"); }
static void str_register(void) { __asm__ volatile("str %%ecx" ::: "rcx"); }
static void invept_rdi(void) { __asm__ volatile("invept (%%rdi), %%r11" ::: "memory"); }
static void invvpid_rsp(void) { __asm__ volatile("invvpid 0x10(%%rsp), %%rcx" ::: "memory"); }
static void invpcid_rax(void) { __asm__ volatile("invpcid (%%rax), %%rdx" ::: "memory"); }
static void vmclear_rbp(void) { __asm__ volatile("vmclear 8(%%rbp)" ::: "memory"); }
static void vmxon_no_base(void) { __asm__ volatile("vmxon 0x5000(,%%rcx,4)" ::: "memory"); }
static void vmptrst_address_32(void) { __asm__ volatile("vmptrst 4(%%edi)" ::: "memory"); }
static void vmptrld_relative(void) { __asm__ volatile("vmptrld %0" :: "m"(memory)); }
static void vmread_memory(void) { __asm__ volatile("vmread %%r12, (%%rdx)" ::: "memory"); }
static void vmread_register(void) { __asm__ volatile("vmread %%rcx, %%r13" ::: "r13"); }
static void vmwrite_memory(void) { __asm__ volatile("vmwrite (%%rax), %%r8" ::: "memory"); }
static void rdrand_16(void) { __asm__ volatile("rdrand %%r13w" ::: "r13", "cc"); }
static void rdrand_64(void) { __asm__ volatile("rdrand %%rbx" ::: "rbx", "cc"); }
static void outsb_fs(void) { __asm__ volatile("outsb %%fs:(%%esi), %%dx" ::: "rsi", "memory"); }
static void insw(void) { __asm__ volatile("insw" ::: "rdi", "memory"); }

static const struct information_case {
    const char *name;
    void (*code)(void);
    uint32_t reason, information, defined;
    uint64_t displacement;              /* ~0: there is no qualification of that meaning */
} information_cases[] = {
    { "LGDT 0x1234(RSI,RDX,8)", lgdt_scaled, REASON_GDTR_OR_IDTR, 3 | ADDRESS_64 | DS << 15 | RDX << 18 | RSI << 23 | 2 << 28,
      PLACE | SCALE | INDEX | WHICH, 0x1234 },
    { "SIDT FS:(RBX)", sidt_fs, REASON_GDTR_OR_IDTR, AT(FS, RBX) | 1 << 28, PLACE | WHICH, 0 },
    { "SLDT R10", sldt_register, REASON_LDTR_OR_TR, IS_REGISTER | R10 << 3, IS_REGISTER | REG1 | WHICH, 0 },
    { "LTR -8(R9)", ltr_memory, REASON_LDTR_OR_TR, AT(DS, R9) | 3 << 28, PLACE | WHICH, (uint64_t)-8 },
    { "STR ECX", str_register, REASON_LDTR_OR_TR, IS_REGISTER | RCX << 3 | 1 << 28, IS_REGISTER | REG1 | WHICH, 0 },
    { "INVEPT (RDI), R11", invept_rdi, REASON_INVEPT, AT(DS, RDI) | (uint32_t)R11 << 28, PLACE | REG2, 0 },
    { "INVVPID 0x10(RSP), RCX", invvpid_rsp, REASON_INVVPID, AT(SS, RSP) | RCX << 28, PLACE | REG2, 0x10 },
    { "INVPCID (RAX), RDX", invpcid_rax, REASON_INVPCID, AT(DS, RAX) | RDX << 28, PLACE | REG2, 0 },
    { "VMCLEAR 8(RBP)", vmclear_rbp, REASON_VMCLEAR, AT(SS, RBP), PLACE, 8 },
    { "VMXON 0x5000(,RCX,4)", vmxon_no_base, REASON_VMXON, 2 | ADDRESS_64 | DS << 15 | RCX << 18 | NO_BASE,
      SCALE | IS_REGISTER | ADDRESS_SIZE | SEGMENT | INDEX | NO_INDEX | NO_BASE, 0x5000 },
    { "VMPTRST 4(EDI)", vmptrst_address_32, REASON_VMPTRST, ADDRESS_32 | DS << 15 | NO_INDEX | RDI << 23, PLACE, 4 },
    { "VMPTRLD of an address relative to RIP", vmptrld_relative, REASON_VMPTRLD, ADDRESS_64 | DS << 15 | NO_INDEX | NO_BASE, PLACE & ~BASE,
      (uint64_t)memory },
    { "VMREAD (RDX), R12", vmread_memory, REASON_VMREAD, AT(DS, RDX) | (uint32_t)R12 << 28, PLACE | REG2, 0 },
    { "VMREAD R13, RCX", vmread_register, REASON_VMREAD, IS_REGISTER | R13 << 3 | RCX << 28, IS_REGISTER | REG1 | REG2, 0 },
    { "VMWRITE R8, (RAX)", vmwrite_memory, REASON_VMWRITE, AT(DS, RAX) | (uint32_t)R8 << 28, PLACE | REG2, 0 },
    { "RDRAND R13W", rdrand_16, REASON_RDRAND, R13 << 3, REG1 | SIZE, ~0ull },
    { "RDRAND RBX", rdrand_64, REASON_RDRAND, RBX << 3 | 2 << 11, REG1 | SIZE, ~0ull },
    { "OUTSB FS:(ESI)", outsb_fs, REASON_IO_INSTRUCTION, ADDRESS_32 | FS << 15, ADDRESS_SIZE | SEGMENT, ~0ull },
    { "INSW", insw, REASON_IO_INSTRUCTION, ADDRESS_64, ADDRESS_SIZE, ~0ull },
};

static void instruction_information(void)
{
    for (unsigned i = 0; i < sizeof(information_cases) / sizeof(information_cases[0]); i++) {
        const struct information_case *c = &information_cases[i];
        vmcs_prepare(c->code);
        exit_always();
        print("%s:\n", c->name);
        check_equal(vmx_run_reason(), c->reason, "an exit");
        check_equal(vmread(VMCS_EXIT_INSTRUCTION_INFORMATION) & c->defined, c->information, "its instruction information");
        if (c->displacement != ~0ull)
            check_equal(vmread(VMCS_EXIT_QUALIFICATION), c->displacement, "the displacement");
    }
    vmcs_prepare(outsb_fs);
    exit_always();
    vmwrite(VMCS_GUEST_FS_BASE, 0x10000);
    guest_registers.rsi = 0xFFFFFFFF00000123;
    vmx_run();
    check_equal(vmread(VMCS_GUEST_LINEAR_ADDRESS), 0x10123, "OUTS tells the linear address");
}

/* --- control registers --- */

static uint64_t seen;
static void guest_reload_cr3(void) { write_cr3(read_cr3()); vmcall(); }
static void guest_clts_vmcall(void) { guest_clts(); vmcall(); }
static void guest_lmsw_memory(void) { __asm__ volatile("lmsw %0" :: "m"(memory)); vmcall(); }
static void guest_smsw(void) { __asm__ volatile("smsw %0" : "=r"(seen)); vmcall(); }
static void guest_rewrite_cr4(void) { seen = read_cr4(); write_cr4(seen); vmcall(); }

static void control_registers(void)
{
    enum { TS = 1 << 3, CLTS_QUALIFICATION = 2 << 4, LMSW_MEMORY = 3 << 4 | 1 << 6 };
    uint64_t cr0 = read_cr0();
    vmcs_prepare(guest_reload_cr3);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_CR3_LOAD_EXITING);
    vmwrite(VMCS_CR3_TARGET_VALUE1, read_cr3());
    vmwrite(VMCS_CR3_TARGET_COUNT, 2);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a CR3-target value does not exit");
    vmwrite(VMCS_CR3_TARGET_COUNT, 1);
    vmx_restart(guest_reload_cr3);
    check_equal(vmx_run_reason(), REASON_CR_ACCESS, "one beyond the count does");

    vmcs_prepare(guest_clts_vmcall);
    vmwrite(VMCS_GUEST_CR0, cr0 | TS);
    vmwrite(VMCS_CR0_GUEST_HOST_MASK, TS);
    check_equal(vmx_run_reason(), REASON_VMCALL, "CLTS where the guest takes TS for 0");
    check_equal(vmread(VMCS_GUEST_CR0) & TS, TS, "leaves it as it is");
    vmwrite(VMCS_CR0_READ_SHADOW, TS);
    vmx_restart(guest_clts_vmcall);
    check_equal(vmx_run_reason(), REASON_CR_ACCESS, "CLTS where it takes it for 1");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), CLTS_QUALIFICATION, "its qualification");

    memory[0] = 1;
    vmx_restart(guest_lmsw_memory);
    check_equal(vmx_run_reason(), REASON_CR_ACCESS, "LMSW of memory");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), LMSW_MEMORY | 1 << 16, "its qualification");
    check_equal(vmread(VMCS_GUEST_LINEAR_ADDRESS), (uint64_t)memory, "the operand's address");
    vmx_restart(guest_smsw);
    vmwrite(VMCS_GUEST_CR0, cr0 & ~(uint64_t)TS);
    check_equal(vmx_run_reason(), REASON_VMCALL, "SMSW");
    check_equal(seen, (cr0 & ~(uint64_t)TS) | TS, "reads as MOV from CR0 does");

    vmcs_prepare(guest_rewrite_cr4);
    vmwrite(VMCS_CR4_GUEST_HOST_MASK, CR4_VMXE);
    check_equal(vmx_run_reason(), REASON_VMCALL, "CR4 with the monitor's bits as their shadows are");
    check_equal(seen, read_cr4() & ~(uint64_t)CR4_VMXE, "reads so");
    check_equal(vmread(VMCS_GUEST_CR4), read_cr4(), "and keeps them");
    vmwrite(VMCS_CR4_READ_SHADOW, CR4_VMXE);
    vmwrite(VMCS_GUEST_RIP, (uint64_t)guest_rewrite_cr4);
    check_equal(vmx_run_reason(), REASON_VMCALL, "and with shadows that are set");
    check_equal(seen, read_cr4(), "reads so, too");
}

/* --- bitmaps --- */

static void guest_out_wrapping(void) { outw(0xFFFF, 0); vmcall(); }
static void guest_out_high(void) { outb(0x8000, 0); vmcall(); }
static void guest_rdmsr_nowhere(void) { rdmsr(0x40000000); vmcall(); }

static void bitmaps(void)
{
    uint8_t *low = alloc_page(), *high = alloc_page();
    vmcs_prepare(guest_out_wrapping);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_IO_BITMAPS | PROC_USE_MSR_BITMAPS);
    vmwrite(VMCS_IO_BITMAP_A, (uint64_t)low);
    vmwrite(VMCS_IO_BITMAP_B, (uint64_t)high);
    vmwrite(VMCS_MSR_BITMAP, (uint64_t)low);
    check_equal(vmx_run_reason(), REASON_IO_INSTRUCTION, "ports that wrap around exit");
    vmx_restart(guest_out_high);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a port of the second bitmap");
    high[0] = 1;
    vmx_restart(guest_out_high);
    check_equal(vmx_run_reason(), REASON_IO_INSTRUCTION, "exits by its bit");
    vmx_restart(guest_rdmsr_nowhere);
    check_equal(vmx_run_reason(), REASON_RDMSR, "MSRs that no bitmap has exit");
}

/* --- PAUSE in loops --- */

static void guest_pause_loop(void) { for (;;) pause(); }

static void pause_loops(void)
{
    vmcs_prepare(guest_pause_loop);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_ACTIVATE_PREEMPTION_TIMER);
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 0xFFFFFFFF);
    secondary_set(PROC2_PAUSE_LOOP_EXITING);
    vmwrite(VMCS_PLE_GAP, 0xFFFFFFFF);
    vmwrite(VMCS_PLE_WINDOW, 1000);
    check_equal(vmx_run_reason(), REASON_PAUSE, "a loop of PAUSE exits");
    enter_user();
    vmwrite(VMCS_PREEMPTION_TIMER_VALUE, 10000);
    check_equal(vmx_run_reason(), REASON_PREEMPTION_TIMER, "but not at CPL 3");
}

/* --- MSR areas --- */

static void time_in_areas(void)
{
    struct { uint32_t index, reserved; uint64_t value; } *area = alloc_page();
    area->index = 0x10;
    vmcs_prepare(guest_vmcall);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TSC_OFFSETTING);
    vmwrite(VMCS_TSC_OFFSET, 1ull << 56);
    vmwrite(VMCS_EXIT_MSR_STORE_ADDRESS, (uint64_t)area);
    vmwrite(VMCS_EXIT_MSR_STORE_COUNT, 1);
    uint64_t before = rdtsc();
    check_equal(vmx_run_reason(), REASON_VMCALL, "an exit that stores the TSC");
    check(area->value >= before && area->value <= rdtsc(), "stores the monitor's, not the guest's");
}

/* --- in root operation --- */

static void root_operation(void)
{
    bool invalid, valid;
    vmcs_prepare(guest_vmcall);
    __asm__ volatile("vmcall" : "=@ccc"(invalid), "=@ccz"(valid));
    check(valid && !invalid, "VMCALL in root operation fails");
    check_equal(vmread(VMCS_VM_INSTRUCTION_ERROR), 1, "error 1");
}

void test_main(void)
{
    vmx_switch_on();
    faults_before_exits();
    instruction_information();
    control_registers();
    bitmaps();
    pause_loops();
    time_in_areas();
    root_operation();
}
