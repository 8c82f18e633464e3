/* VT-x with a monitor outside IA-32e mode: its guest runs, and the checks of VM entry that are about such monitors (see vmx_checks.c). */
#include "lib/guest32.h"

enum vmcs_encoding {
#define VMCS(name, encoding, group, control) VMCS_##name = encoding,
#include "vmx/vmcs.def"
#undef VMCS
};

enum { MSR_FEATURE_CONTROL = 0x3A, MSR_BASIC = 0x480, MSR_TRUE_PIN = 0x48D, MSR_TRUE_PROC, MSR_TRUE_EXIT, MSR_TRUE_ENTRY };
enum { CR0_NE = 1 << 5, CR0_PG = (int)(1u << 31), CR4_PSE = 1 << 4, CR4_VMXE = 1 << 13, CR4_PCIDE = 1 << 17 };
enum { IA32E_MODE_GUEST = 1 << 9, HOST_ADDRESS_SPACE_SIZE = 1 << 9, INVALID_HOST_STATE = 8, VMCALL = 18 };

static uint32_t directory[1024] __attribute__((aligned(4096)));
static uint32_t vmxon_region[1024] __attribute__((aligned(4096))), vmcs_region[1024] __attribute__((aligned(4096)));
static uint8_t guest_stack[4096] __attribute__((aligned(16)));

static uint32_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return low;
}

static void wrmsr(uint32_t msr, uint32_t value) { __asm__ volatile("wrmsr" :: "c"(msr), "a"(value), "d"(0)); }

static void vmwrite(uint32_t encoding, uint32_t value) { __asm__ volatile("vmwrite %1, %0" :: "r"(encoding), "rm"(value) : "cc"); }

static uint32_t vmread(uint32_t encoding)
{
    uint32_t value;
    __asm__ volatile("vmread %1, %0" : "=rm"(value) : "r"(encoding) : "cc");
    return value;
}

static void guest(void) { __asm__ volatile("vmcall"); }

static void switch_on(void)
{
    uint64_t pointer = (uint32_t)vmxon_region;
    bool failed;
    for (unsigned i = 0; i < 1024; i++)
        directory[i] = i << 22 | 0x83;
    write_cr3((uint32_t)directory);
    write_cr4(read_cr4() | CR4_PSE | CR4_VMXE);
    write_cr0(read_cr0() | CR0_PG | CR0_NE);
    wrmsr(MSR_FEATURE_CONTROL, 5);
    vmxon_region[0] = vmcs_region[0] = rdmsr(MSR_BASIC) & 0x7FFFFFFF;
    __asm__ volatile("vmxon %1" : "=@ccbe"(failed) : "m"(pointer) : "memory");
    check(!failed, "VMXON outside IA-32e mode");
}

static void prepare_segments(void)
{
    enum { CS = 1, LDTR = 6, TR = 7, CODE = 0xC09B, DATA = 0xC093, UNUSABLE = 1 << 16, BUSY_TSS = 0x8B };
    for (unsigned i = 0; i < 8; i++) {
        vmwrite(VMCS_GUEST_ES_SELECTOR + 2 * i, i == CS ? SEL_CODE : i == TR ? SEL_TSS : i == LDTR ? 0 : SEL_DATA);
        vmwrite(VMCS_GUEST_ES_LIMIT + 2 * i, i == TR ? 0x67 : 0xFFFFFFFF);
        vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * i, i == CS ? CODE : i == TR ? BUSY_TSS : i == LDTR ? UNUSABLE : DATA);
        if (i != LDTR)
            vmwrite(VMCS_HOST_ES_SELECTOR + 2 * (i == TR ? LDTR : i), i == CS ? SEL_CODE : i == TR ? SEL_TSS : SEL_DATA);
    }
    vmwrite(VMCS_GUEST_TR_BASE, (uint32_t)&tss);
    vmwrite(VMCS_HOST_TR_BASE, (uint32_t)&tss);
}

struct table_register { uint16_t limit; uint32_t base; } __attribute__((packed));

static void prepare_tables(void)
{
    struct table_register gdtr, idtr;
    __asm__ volatile("sgdt %0\n sidt %1" : "=m"(gdtr), "=m"(idtr));
    vmwrite(VMCS_GUEST_GDTR_BASE, gdtr.base);
    vmwrite(VMCS_GUEST_GDTR_LIMIT, gdtr.limit);
    vmwrite(VMCS_GUEST_IDTR_BASE, idtr.base);
    vmwrite(VMCS_GUEST_IDTR_LIMIT, idtr.limit);
    vmwrite(VMCS_HOST_GDTR_BASE, gdtr.base);
    vmwrite(VMCS_HOST_IDTR_BASE, idtr.base);
}

/* A fresh VMCS, all of whose fields are 0, for a guest in the monitor's own mode. */
static void prepare(void)
{
    uint64_t pointer = (uint32_t)vmcs_region;
    __asm__ volatile("vmclear %0\n vmptrld %0" :: "m"(pointer) : "cc", "memory");
    vmwrite(VMCS_PIN_BASED_CONTROLS, rdmsr(MSR_TRUE_PIN));
    vmwrite(VMCS_PROCESSOR_BASED_CONTROLS, rdmsr(MSR_TRUE_PROC));
    vmwrite(VMCS_EXIT_CONTROLS, rdmsr(MSR_TRUE_EXIT));
    vmwrite(VMCS_ENTRY_CONTROLS, rdmsr(MSR_TRUE_ENTRY));
    vmwrite(VMCS_VMCS_LINK_POINTER, ~0u);
    vmwrite(VMCS_VMCS_LINK_POINTER | 1, ~0u);
    vmwrite(VMCS_HOST_CR0, read_cr0());
    vmwrite(VMCS_HOST_CR3, (uint32_t)directory);
    vmwrite(VMCS_HOST_CR4, read_cr4());
    vmwrite(VMCS_GUEST_CR0, read_cr0());
    vmwrite(VMCS_GUEST_CR3, (uint32_t)directory);
    vmwrite(VMCS_GUEST_CR4, read_cr4());
    vmwrite(VMCS_GUEST_RIP, (uint32_t)guest);
    vmwrite(VMCS_GUEST_RSP, (uint32_t)guest_stack + sizeof(guest_stack));
    vmwrite(VMCS_GUEST_RFLAGS, 2);
    prepare_segments();
    prepare_tables();
}

/* False: VMfail. */
static bool launch(void)
{
    uint32_t entered;
    __asm__ volatile("pusha; mov %1, %%eax; vmwrite %%esp, %%eax; mov $1f, %%edx; mov %2, %%eax; vmwrite %%edx, %%eax\n"
                     "vmlaunch; popa; mov $0, %0; jmp 2f\n"
                     "1: popa; mov $1, %0\n"
                     "2:" : "=r"(entered) : "i"(VMCS_HOST_RSP), "i"(VMCS_HOST_RIP) : "cc", "memory");
    return entered;
}

static void fails_by(const char *row)
{
    print("ROW %s\n", row);
    check(!launch(), row);
    check_equal(vmread(VMCS_VM_INSTRUCTION_ERROR), INVALID_HOST_STATE, "its error");
}

void test_main(void)
{
    switch_on();
    prepare();
    check(launch(), "a guest of a monitor outside IA-32e mode is entered");
    check_equal(vmread(VMCS_EXIT_REASON), VMCALL, "and comes back");
    check_equal(vmread(VMCS_EXIT_INSTRUCTION_LENGTH), 3, "with the length of VMCALL");
    prepare();
    vmwrite(VMCS_ENTRY_CONTROLS, rdmsr(MSR_TRUE_ENTRY) | IA32E_MODE_GUEST);
    fails_by("outside_ia32e");
    prepare();
    vmwrite(VMCS_EXIT_CONTROLS, rdmsr(MSR_TRUE_EXIT) | HOST_ADDRESS_SPACE_SIZE);
    fails_by("outside_ia32e");
    prepare();
    vmwrite(VMCS_HOST_CR4, read_cr4() | CR4_PCIDE);
    fails_by("host_32bit");
}
