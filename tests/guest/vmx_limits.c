/* VT-x on a processor that lacks single capabilities of EPT and VPID (SDM3 §A.10), and VMCS shadowing: meson.build says which. */
#include "lib/ept.h"
#include "lib/vmx.h"

enum { MSR_EPT_VPID = 0x48C, INVALID_CONTROLS = 7, WRONG_REVISION = 11, INVALID_INVALIDATION = 28, TEST_LEAVES = 5 };

enum capability {
#define CAPABILITY(name, bit) CAN_##name = bit,
#include "vmx/ept_vpid.def"
#undef CAPABILITY
};

static bool can(enum capability bit) { return rdmsr(MSR_EPT_VPID) >> bit & 1; }

static void reported(void)
{
    static const enum capability off[] = { CAN_EPT_EXECUTE_ONLY, CAN_EPT_UC, CAN_EPT_1G_PAGES, CAN_EPT_ACCESSED_DIRTY,
                                           CAN_EPT_VIOLATION_INFORMATION, CAN_INVEPT_SINGLE_CONTEXT, CAN_INVVPID_ADDRESS };
    uint64_t want = 0;
#define CAPABILITY(name, bit) want |= 1ull << (bit);
#include "vmx/ept_vpid.def"
#undef CAPABILITY
    for (unsigned i = 0; i < sizeof(off) / sizeof(off[0]); i++)
        want &= ~(1ull << off[i]);
    check_equal(rdmsr(MSR_EPT_VPID), want, "IA32_VMX_EPT_VPID_CAP");
    check(!(rdmsr(0x48B) >> 32 & PROC2_ENABLE_PML), "without A and D flags there is no modification log");
    check(can(CAN_EPT_2M_PAGES), "2 MiB pages are there");
}

static void guest_nothing(void) { vmcall(); }

static void shadow_vmcs(void)
{
    uint32_t *region = alloc_page();
    *region = vmcs_revision() | 1u << 31;
    vmcs_prepare(guest_nothing);
    check_equal(vmptrld((uint64_t)region), VMX_FAIL_VALID, "without VMCS shadowing there are no shadow VMCSs");
    check_equal(vmread(VMCS_VM_INSTRUCTION_ERROR), WRONG_REVISION, "but wrong revisions");
}

/* --- tables --- */

static const uint64_t page = 5ull << 30;
static uint64_t *root, *directory_pointer, *leaf, *frame;
static uint64_t result;

static void guest_read(void) { result = *(volatile uint64_t *)page; vmcall(); }
static void guest_execute(void) { ((void (*)(void))page)(); vmcall(); }

static void use_ept(void (*code)(void), uint64_t eptp_flags)
{
    vmcs_prepare(code);
    secondary_set(PROC2_ENABLE_EPT);
    vmwrite(VMCS_EPTP, (uint64_t)root | eptp_flags);
    check_equal(invept(2, 0), VMX_OK, "INVEPT of all");
}

/* --- the rules --- */

static void pointers(void)
{
    *leaf = (uint64_t)frame | WB | READ;
    use_ept(guest_read, EPTP_WB_4);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a pointer of memory type WB");
    use_ept(guest_read, EPTP_WB_4 | EPTP_AD);
    check_equal(vmx_run(), VMX_FAIL_VALID, "none with A and D flags");
    check_equal(vmread(VMCS_VM_INSTRUCTION_ERROR), INVALID_CONTROLS, "which is an invalid control");
    use_ept(guest_read, EPTP_UC_4);
    check_equal(vmx_run(), VMX_FAIL_VALID, "none of memory type UC");
}

static void entries(void)
{
    frame[0] = 0xC3;                    /* RET */
    *leaf = (uint64_t)frame | WB | EXECUTE;
    use_ept(guest_execute, EPTP_WB_4);
    check_equal(vmx_run_reason(), REASON_EPT_MISCONFIGURATION, "execute-only is a misconfiguration");
    secondary_set(PROC2_MODE_BASED_EXECUTE);
    *leaf = (uint64_t)frame | WB | 1 << 10;
    invept(2, 0);
    vmx_restart(guest_execute);
    /* What may be executed in supervisor mode is bit 2 still, so that the tables and code are mapped as before. */
    check_equal(vmx_run_reason(), REASON_EPT_MISCONFIGURATION, "and so is execute-only of user mode");
    *leaf = (uint64_t)frame | WB | READ | EXECUTE;
    use_ept(guest_execute, EPTP_WB_4);
    check_equal(vmx_run_reason(), REASON_VMCALL, "to read and execute is not");
    uint64_t saved = directory_pointer[TEST_LEAVES];
    directory_pointer[TEST_LEAVES] = WB | LARGE | READ;
    use_ept(guest_read, EPTP_WB_4);
    check_equal(vmx_run_reason(), REASON_EPT_MISCONFIGURATION, "and so is a page of 1 GiB");
    directory_pointer[TEST_LEAVES] = saved;
}

/* Bits 11:9 of the qualification are not told. */
static void violation(void)
{
    *leaf = 0;
    use_ept(guest_read, EPTP_WB_4);
    check_equal(vmx_run_reason(), REASON_EPT_VIOLATION, "nothing mapped");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION) & 0xFFF, READ | 0x180, "qualification");
}

static void invalidation(void)
{
    use_ept(guest_read, EPTP_WB_4);
    check_equal(invept(1, vmread(VMCS_EPTP)), VMX_FAIL_VALID, "INVEPT of one context");
    check_equal(vmread(VMCS_VM_INSTRUCTION_ERROR), INVALID_INVALIDATION, "is no type of invalidation");
    check_equal(invvpid(0, 1, page), VMX_FAIL_VALID, "INVVPID of an address");
    check_equal(invvpid(1, 1, 0), VMX_OK, "INVVPID of one context");
    check_equal(invvpid(2, 0, 0), VMX_OK, "INVVPID of all contexts");
    check_equal(invvpid(3, 1, 0), VMX_OK, "INVVPID that keeps global translations");
}

void test_main(void)
{
    vmx_switch_on();
    reported();
    shadow_vmcs();
    root = ept_build(page, &leaf);
    directory_pointer = ept_table_at(&root[0]);
    frame = alloc_page();
    map_page(page, page, 3);
    pointers();
    entries();
    violation();
    invalidation();
}
