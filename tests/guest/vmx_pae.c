/*
 * A VT-x guest with PAE paging: where its PDPTEs come from and go to (SDM3 §4.4.1, §27.3.1.6, §27.3.2.4, §28.3.4), and how EPT sees the
 * processor read them.
 */
#include "lib/ept.h"
#include "lib/vmx.h"

enum { GP = 13, INVALID = 2 /* a bit that is reserved in a PDPTE */, CODE = 0x8000 };
enum { CR0_PROTECTED_PAGED = 0x80000031, CR4_PAE = 1 << 5 };
static uint64_t *root, *tables, *others;        /* PDPTEs that map the same, by other tables */

/* The identity map's tables are of the format that PAE paging has below its PDPTEs. */
static uint64_t *make_tables(void)
{
    uint64_t *entries = alloc_page(), *copy = alloc_page();
    for (unsigned i = 0; i < 512; i++)
        copy[i] = boot_pd[i];
    entries[0] = (uint64_t)copy | 1;
    for (unsigned i = 1; i < 4; i++)
        entries[i] = (uint64_t)&boot_pd[512 * i] | 1;
    return entries;
}

/* mov cr3, eax; vmcall */
static void prepare(void)
{
    static const uint8_t code[] = { 0x0F, 0x22, 0xD8, 0x0F, 0x01, 0xC1 };
    enum { CS = 1, FLAT_CODE = 0xC09B, FLAT_DATA = 0xC093 };
    for (unsigned i = 0; i < sizeof(code); i++)
        ((volatile uint8_t *)CODE)[i] = code[i];
    vmcs_prepare((void (*)(void))CODE);
    control_clear(VMCS_ENTRY_CONTROLS, ENTRY_IA32E_MODE_GUEST);
    vmwrite(VMCS_GUEST_EFER, 0);
    vmwrite(VMCS_GUEST_CR0, CR0_PROTECTED_PAGED);
    vmwrite(VMCS_GUEST_CR4, CR4_VMXE | CR4_PAE);
    vmwrite(VMCS_GUEST_CR3, (uint64_t)tables);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << GP);
    for (unsigned i = 0; i < 6; i++)
        vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * i, i == CS ? FLAT_CODE : FLAT_DATA);
    guest_registers.rax = (uint64_t)others;
}

static void without_ept(void)
{
    prepare();
    check_equal(vmx_run_reason(), REASON_VMCALL, "a guest with PAE paging");
    check_equal(vmread(VMCS_GUEST_CR3), (uint64_t)others, "loads CR3");
    prepare();
    tables[3] |= INVALID;
    check_equal(vmx_run_reason(), REASON_INVALID_GUEST_STATE | 1u << 31, "PDPTEs that are not valid in memory");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 2, "fail the entry as such");
    tables[3] &= ~(uint64_t)INVALID;
    prepare();
    others[3] |= INVALID;
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "MOV to CR3 with others that are not");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B00 | GP, "is #GP");
    check_equal(vmread(VMCS_GUEST_CR3), (uint64_t)tables, "and CR3 stays");
    others[3] &= ~(uint64_t)INVALID;
}

static void prepare_with_ept(void)
{
    prepare();
    secondary_set(PROC2_ENABLE_EPT);
    vmwrite(VMCS_EPTP, (uint64_t)root | EPTP_WB_4);
    for (unsigned i = 0; i < 4; i++)
        vmwrite(VMCS_GUEST_PDPTE0 + 2 * i, tables[i]);
}

static void with_ept(void)
{
    uint64_t saved = tables[0];
    prepare_with_ept();
    tables[0] = 0;
    unsigned wrong = 0;
    check_equal(vmx_run_reason(), REASON_VMCALL, "with EPT they come from the VMCS, whatever memory holds");
    for (unsigned i = 0; i < 4; i++)
        wrong += vmread(VMCS_GUEST_PDPTE0 + 2 * i) != others[i];
    check_equal(wrong, 0, "and an exit puts those there that MOV to CR3 has loaded");
    tables[0] = saved;
    prepare_with_ept();
    others[3] |= INVALID;
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "others that are not valid");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B00 | GP, "are #GP");
    others[3] &= ~(uint64_t)INVALID;
}

/* The first megabytes, where all of this is, in small pages, one of which is missing. */
static void not_mapped_by_ept(void)
{
    uint64_t gpa = (uint64_t)others;
    uint64_t *large = &ept_table_at(&ept_table_at(&root[0])[0])[gpa >> 21], saved = *large, *table = alloc_page();
    for (unsigned i = 0; i < 512; i++)
        table[i] = (saved & ~(uint64_t)LARGE) + i * 4096ull;
    table[gpa >> 12 & 511] = 0;
    *large = (uint64_t)table | READ | WRITE | EXECUTE;
    invept(2, 0);
    prepare_with_ept();
    check_equal(vmx_run_reason(), REASON_EPT_VIOLATION, "PDPTEs that EPT does not map");
    check_equal(vmread(VMCS_GUEST_PHYSICAL_ADDRESS), gpa, "their address");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION) & 0x187, READ, "are read, and not by a linear address");
    check_equal(vmread(VMCS_GUEST_RIP), CODE, "by MOV to CR3");
    check_equal(vmread(VMCS_GUEST_CR3), (uint64_t)tables, "which has not been done");
    *large = saved;
    invept(2, 0);
    check_equal(vmx_run_reason(), REASON_VMCALL, "once they are mapped it is");
    check_equal(vmread(VMCS_GUEST_CR3), gpa, "CR3 is loaded");
}

void test_main(void)
{
    uint64_t *leaf;
    vmx_switch_on();
    root = ept_build(5ull << 30, &leaf);
    tables = make_tables();
    others = make_tables();
    without_ept();
    with_ept();
    not_mapped_by_ept();
}
