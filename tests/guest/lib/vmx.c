#include "lib/vmx.h"

enum { MSR_FEATURE_CONTROL = 0x3A, MSR_VMX_BASIC = 0x480, MSR_TRUE_PIN = 0x48D, MSR_TRUE_PROC, MSR_TRUE_EXIT, MSR_TRUE_ENTRY,
       MSR_EFER = 0xC0000080, MSR_FS_BASE = 0xC0000100, MSR_GS_BASE, MSR_PAT = 0x277 };

struct vmx_registers guest_registers;
void *vmcs_region, *vmxon_region;
static uint8_t *guest_stack;
static bool launched;
static bool exited[REASON_COUNT];       /* by basic exit reason */

/*
 * int vmx_enter(struct vmx_registers *registers, int resume): the monitor's stack pointer goes into the VMCS; the exit finds
 * the registers' address on that stack.
 */
int vmx_enter(struct vmx_registers *registers, int resume);
__asm__(
    "vmx_enter:\n"
    "   push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi\n"
    "   mov $0x6C14, %eax; vmwrite %rsp, %rax\n"
    "   lea 1f(%rip), %rdx; mov $0x6C16, %eax; vmwrite %rdx, %rax\n"
    "   test %esi, %esi\n"
    "   mov 0(%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rbx; mov 32(%rdi), %rbp; mov 40(%rdi), %rsi\n"
    "   mov 56(%rdi), %r8; mov 64(%rdi), %r9; mov 72(%rdi), %r10; mov 80(%rdi), %r11; mov 88(%rdi), %r12; mov 96(%rdi), %r13\n"
    "   mov 104(%rdi), %r14; mov 112(%rdi), %r15; mov 48(%rdi), %rdi\n"
    "   jnz 2f\n"
    "   vmlaunch\n"
    "   jmp 3f\n"
    "2: vmresume\n"
    "3: mov $1, %eax\n"
    "   jc 4f\n"
    "   mov $2, %eax\n"
    "   jmp 4f\n"
    "1: push %rdi\n"
    "   mov 8(%rsp), %rdi\n"
    "   mov %rax, 0(%rdi); mov %rcx, 8(%rdi); mov %rdx, 16(%rdi); mov %rbx, 24(%rdi); mov %rbp, 32(%rdi); mov %rsi, 40(%rdi)\n"
    "   mov %r8, 56(%rdi); mov %r9, 64(%rdi); mov %r10, 72(%rdi); mov %r11, 80(%rdi); mov %r12, 88(%rdi); mov %r13, 96(%rdi)\n"
    "   mov %r14, 104(%rdi); mov %r15, 112(%rdi); pop %rax; mov %rax, 48(%rdi)\n"
    "   xor %eax, %eax\n"
    "4: pop %rdi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "   ret\n");

#define STATUS(instruction, ...)                                                                          \
    ({                                                                                                    \
        bool invalid_, valid_;                                                                            \
        __asm__ volatile(instruction : "=@ccc"(invalid_), "=@ccz"(valid_) : __VA_ARGS__ : "memory");      \
        invalid_ ? VMX_FAIL_INVALID : valid_ ? VMX_FAIL_VALID : VMX_OK;                                   \
    })

int vmxon(uint64_t pointer) { return STATUS("vmxon %2", "m"(pointer)); }
int vmclear(uint64_t pointer) { return STATUS("vmclear %2", "m"(pointer)); }
int vmptrld(uint64_t pointer) { return STATUS("vmptrld %2", "m"(pointer)); }
uint64_t vmptrst(void) { uint64_t pointer = 0; __asm__ volatile("vmptrst %0" : "=m"(pointer) :: "cc"); return pointer; }
int vmwrite_status(uint64_t encoding, uint64_t value) { return STATUS("vmwrite %3, %2", "r"(encoding), "rm"(value)); }

int vmread_status(uint64_t encoding, uint64_t *value)
{
    bool invalid, valid;
    __asm__ volatile("vmread %3, %2" : "=@ccc"(invalid), "=@ccz"(valid), "+r"(*value) : "r"(encoding) : "memory");
    return invalid ? VMX_FAIL_INVALID : valid ? VMX_FAIL_VALID : VMX_OK;
}

int invept(uint64_t type, uint64_t eptp)
{
    uint64_t descriptor[2] = { eptp, 0 };
    return STATUS("invept %2, %3", "m"(descriptor), "r"(type));
}

int invvpid(uint64_t type, uint64_t vpid, uint64_t gla)
{
    uint64_t descriptor[2] = { vpid, gla };
    return STATUS("invvpid %2, %3", "m"(descriptor), "r"(type));
}

uint64_t vmread(uint64_t encoding)
{
    uint64_t value = 0;
    if (vmread_status(encoding, &value) != VMX_OK)
        print("FAIL VMREAD of %lx\n", encoding);
    return value;
}

void vmwrite(uint64_t encoding, uint64_t value)
{
    if (vmwrite_status(encoding, value) != VMX_OK)
        print("FAIL VMWRITE of %lx\n", encoding);
}

uint64_t vmcs_revision(void) { return rdmsr(MSR_VMX_BASIC) & 0x7FFFFFFF; }

void vmx_switch_on(void)
{
    wrmsr(MSR_FEATURE_CONTROL, 5);
    write_cr0(read_cr0() | 1 << 5);
    write_cr4(read_cr4() | CR4_VMXE);
    vmxon_region = alloc_page();
    vmcs_region = alloc_page();
    guest_stack = alloc_page();
    *(uint32_t *)vmxon_region = *(uint32_t *)vmcs_region = vmcs_revision();
    if (vmxon((uint64_t)vmxon_region) != VMX_OK)
        fail_and_exit();
}

void control_set(uint64_t field, uint32_t bits) { vmwrite(field, vmread(field) | bits); }
void control_clear(uint64_t field, uint32_t bits) { vmwrite(field, vmread(field) & ~(uint64_t)bits); }

void secondary_set(uint32_t bits)
{
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_ACTIVATE_SECONDARY_CONTROLS);
    control_set(VMCS_SECONDARY_CONTROLS, bits);
}

struct table_register { uint16_t limit; uint64_t base; } __attribute__((packed));

static void segment(unsigned i, uint16_t selector, uint32_t limit, uint32_t rights)
{
    vmwrite(VMCS_GUEST_ES_SELECTOR + 2 * i, selector);
    vmwrite(VMCS_GUEST_ES_BASE + 2 * i, 0);
    vmwrite(VMCS_GUEST_ES_LIMIT + 2 * i, limit);
    vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * i, rights);
}

static void prepare_guest_segments(void)
{
    enum { ES, CS, SS, DS, FS, GS, LDTR, TR, DATA = 0xC093, CODE = 0xA09B, UNUSABLE = 1 << 16, BUSY_TSS = 0x8B };
    for (unsigned i = ES; i <= GS; i++)
        segment(i, i == CS ? SEL_CODE64 : SEL_DATA, 0xFFFFFFFF, i == CS ? CODE : DATA);
    segment(LDTR, 0, 0, UNUSABLE);
    segment(TR, SEL_TSS, 0x67, BUSY_TSS);
    vmwrite(VMCS_GUEST_TR_BASE, (uint64_t)&tss);
    vmwrite(VMCS_GUEST_FS_BASE, rdmsr(MSR_FS_BASE));
    vmwrite(VMCS_GUEST_GS_BASE, rdmsr(MSR_GS_BASE));
}

static void prepare_host(const struct table_register *gdtr, const struct table_register *idtr)
{
    vmwrite(VMCS_HOST_CR0, read_cr0());
    vmwrite(VMCS_HOST_CR3, read_cr3());
    vmwrite(VMCS_HOST_CR4, read_cr4());
    vmwrite(VMCS_HOST_CS_SELECTOR, SEL_CODE64);
    vmwrite(VMCS_HOST_SS_SELECTOR, SEL_DATA);
    vmwrite(VMCS_HOST_DS_SELECTOR, SEL_DATA);
    vmwrite(VMCS_HOST_ES_SELECTOR, SEL_DATA);
    vmwrite(VMCS_HOST_TR_SELECTOR, SEL_TSS);
    vmwrite(VMCS_HOST_TR_BASE, (uint64_t)&tss);
    vmwrite(VMCS_HOST_FS_BASE, rdmsr(MSR_FS_BASE));
    vmwrite(VMCS_HOST_GS_BASE, rdmsr(MSR_GS_BASE));
    vmwrite(VMCS_HOST_GDTR_BASE, gdtr->base);
    vmwrite(VMCS_HOST_IDTR_BASE, idtr->base);
}

static void clear_all_fields(void)
{
    static const uint16_t all[] = {
#define VMCS(name, encoding, group, control) encoding,
#include "vmx/vmcs.def"
#undef VMCS
    };
    for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        vmwrite_status(all[i], 0);
}

void vmx_restart(void (*code)(void))
{
    vmwrite(VMCS_GUEST_RIP, (uint64_t)code);
    vmwrite(VMCS_GUEST_RSP, (uint64_t)guest_stack + 4096 - 8);
    vmwrite(VMCS_GUEST_RFLAGS, 2);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, 0);
    vmwrite(VMCS_GUEST_INTERRUPTIBILITY, 0);
    vmwrite(VMCS_GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
    prepare_guest_segments();
}

void vmcs_prepare(void (*code)(void))
{
    struct table_register gdtr, idtr;
    __asm__ volatile("sgdt %0\n sidt %1" : "=m"(gdtr), "=m"(idtr));
    vmclear((uint64_t)vmcs_region);
    vmptrld((uint64_t)vmcs_region);
    launched = false;
    clear_all_fields();
    vmwrite(VMCS_PIN_BASED_CONTROLS, (uint32_t)rdmsr(MSR_TRUE_PIN));
    vmwrite(VMCS_PROCESSOR_BASED_CONTROLS, (uint32_t)rdmsr(MSR_TRUE_PROC));
    vmwrite(VMCS_EXIT_CONTROLS, (uint32_t)rdmsr(MSR_TRUE_EXIT) | EXIT_HOST_ADDRESS_SPACE_SIZE | EXIT_LOAD_EFER | EXIT_SAVE_EFER);
    vmwrite(VMCS_ENTRY_CONTROLS, (uint32_t)rdmsr(MSR_TRUE_ENTRY) | ENTRY_IA32E_MODE_GUEST | ENTRY_LOAD_EFER);
    vmwrite(VMCS_VMCS_LINK_POINTER, ~0ull);
    prepare_host(&gdtr, &idtr);
    vmwrite(VMCS_HOST_EFER, rdmsr(MSR_EFER));
    vmwrite(VMCS_GUEST_EFER, rdmsr(MSR_EFER));
    vmwrite(VMCS_GUEST_PAT, rdmsr(MSR_PAT));
    vmwrite(VMCS_HOST_PAT, rdmsr(MSR_PAT));
    vmwrite(VMCS_GUEST_CR0, read_cr0());
    vmwrite(VMCS_GUEST_CR3, read_cr3());
    vmwrite(VMCS_GUEST_CR4, read_cr4());
    vmwrite(VMCS_GUEST_DR7, 0x400);
    vmwrite(VMCS_GUEST_GDTR_BASE, gdtr.base);
    vmwrite(VMCS_GUEST_GDTR_LIMIT, gdtr.limit);
    vmwrite(VMCS_GUEST_IDTR_BASE, idtr.base);
    vmwrite(VMCS_GUEST_IDTR_LIMIT, idtr.limit);
    vmx_restart(code);
}

void vmcs_release(void)
{
    vmclear((uint64_t)vmcs_region);
    launched = false;
}

/* An exit leaves GDTR and IDTR with a limit of 64 KiB; nothing here minds. */
int vmx_run(void)
{
    int status = vmx_enter(&guest_registers, launched);
    uint32_t reason = status == VMX_OK ? vmread(VMCS_EXIT_REASON) : 0;
    launched |= status == VMX_OK && !(reason >> 31);
    if (status == VMX_OK && (reason & 0xFFFF) < REASON_COUNT)
        exited[reason & 0xFFFF] = true;
    return status;
}

static bool of_memory(unsigned reason)
{
    return (reason >= REASON_TPR_BELOW_THRESHOLD && reason <= REASON_VIRTUALIZED_EOI) || reason == REASON_EPT_VIOLATION ||
           reason == REASON_EPT_MISCONFIGURATION || reason == REASON_APIC_WRITE || reason == REASON_VMFUNC || reason == REASON_PML_FULL ||
           reason == REASON_TASK_SWITCH;
}

void vmx_check_reasons(bool memory)
{
    static const struct { unsigned number; const char *name; } reasons[] = {
#define REASON(number, name) { number, "an exit by " #name },
#include "vmx/exits.def"
#undef REASON
    };
    for (unsigned i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (of_memory(reasons[i].number) == memory)
            check(exited[reasons[i].number], reasons[i].name);
}

uint32_t vmx_run_reason(void) { return vmx_run() == VMX_OK ? (uint32_t)vmread(VMCS_EXIT_REASON) : ~0u; }

void vmx_skip(void) { vmwrite(VMCS_GUEST_RIP, vmread(VMCS_GUEST_RIP) + vmread(VMCS_EXIT_INSTRUCTION_LENGTH)); }
