/* VT-x: EPT, VPID, PML, #VE, EPTP switching, real-mode guests, VMCS shadowing, the virtual APIC. */
#include "lib/ept.h"
#include "lib/vmx.h"

/* The guest's page under test: a linear and guest-physical address that nothing else uses. */
static const uint64_t page = 5ull << 30;
static uint64_t *root, *leaf, *frame;
static uint64_t result;

static void use_ept(void (*code)(void), uint64_t flags)
{
    vmcs_prepare(code);
    secondary_set(PROC2_ENABLE_EPT);
    vmwrite(VMCS_EPTP, (uint64_t)root | EPTP_WB_4 | flags);
}

static void set_leaf(uint64_t entry)
{
    *leaf = entry;
    invept(2, 0);
}

static void guest_read(void) { result = *(volatile uint64_t *)page; vmcall(); }
static void guest_write(void) { *(volatile uint64_t *)page = 0x55; vmcall(); }
static void guest_execute(void) { ((void (*)(void))page)(); vmcall(); }
static void guest_nothing(void) { vmcall(); }

/* --- rights --- */

static const struct { const char *name; void (*code)(void); uint64_t right; } accesses[] = {
    { "a read", guest_read, READ }, { "a write", guest_write, WRITE }, { "a fetch", guest_execute, EXECUTE },
};

static void rights(void)
{
    enum { RF = 1 << 16 };
    frame[0] = 0xC3;                    /* RET */
    use_ept(guest_read, 0);
    for (uint64_t rights = 0; rights < 8; rights++)
        for (unsigned i = 0; i < 3; i++) {
            bool misconfigured = (rights & WRITE) && !(rights & READ);
            uint32_t want = misconfigured ? REASON_EPT_MISCONFIGURATION : rights & accesses[i].right ? REASON_VMCALL : REASON_EPT_VIOLATION;
            frame[0] = 0xC3;
            set_leaf((uint64_t)frame | WB | rights);
            vmx_restart(accesses[i].code);
            print("rights %lx, %s:\n", rights, accesses[i].name);
            check_equal(vmx_run_reason(), want, "outcome");
            if (want == REASON_VMCALL)
                continue;
            check_equal(vmread(VMCS_GUEST_PHYSICAL_ADDRESS), page, "guest-physical address");
            if (want == REASON_EPT_VIOLATION) {
                check_equal(vmread(VMCS_EXIT_QUALIFICATION) & 0x1FF, accesses[i].right | rights << 3 | 0x180, "qualification");
                check_equal(vmread(VMCS_GUEST_LINEAR_ADDRESS), page, "guest-linear address");
                check_equal(vmread(VMCS_GUEST_RFLAGS) & RF, RF, "RF");
            }
        }
}

/* Each level by itself: what it denies is denied, and the qualification tells what all levels together allow. */
static void rights_of_levels(void)
{
    enum { DEFINED = 0x1BF };           /* bit 6 is not without mode-based execute control */
    uint64_t *pdpte = &ept_table_at(&root[0])[5], *pde = &ept_table_at(pdpte)[0];
    static const char *const names[] = { "a PDPTE's rights", "a PDE's rights" };
    uint64_t *levels[] = { pdpte, pde };
    use_ept(guest_read, 0);
    set_leaf((uint64_t)frame | WB | READ | WRITE | EXECUTE);
    for (unsigned level = 0; level < 2; level++) {
        uint64_t saved = *levels[level];
        unsigned wrong = 0;
        for (uint64_t rights = 0; rights < 8; rights++)
            for (unsigned i = 0; i < 3; i++) {
                bool misconfigured = (rights & WRITE) && !(rights & READ);
                uint32_t want = misconfigured ? REASON_EPT_MISCONFIGURATION : rights & accesses[i].right ? REASON_VMCALL : REASON_EPT_VIOLATION;
                frame[0] = 0xC3;
                *levels[level] = (saved & ~7ull) | rights;
                invept(2, 0);
                vmx_restart(accesses[i].code);
                uint32_t reason = vmx_run_reason();
                wrong += reason != want || (reason == REASON_EPT_VIOLATION &&
                                            (vmread(VMCS_EXIT_QUALIFICATION) & DEFINED) != (accesses[i].right | rights << 3 | 0x180));
            }
        *levels[level] = saved;
        check_equal(wrong, 0, names[level]);
    }
    invept(2, 0);
}

/* Mode-based execute control (SDM3 §29.3.2): bit 2 for supervisor-mode linear addresses, bit 10 for user-mode ones. */
static void mode_based_execute(void)
{
    enum { USER = 4, CS = 2, SS = 4, CODE_DPL3 = 0xA0FB, DATA_DPL3 = 0xC0F3 };
    uint64_t *pte = find_pte(page), saved = *pte;
    unsigned wrong = 0;
    frame[0] = 0xC1010F;                /* VMCALL */
    boot_pml4[0] |= USER;
    for (unsigned user = 0; user < 2; user++)
        for (unsigned bits = 0; bits < 8; bits++) {
            uint64_t rights = (bits & 1 ? READ : 0) | (bits & 2 ? EXECUTE : 0) | (bits & 4 ? USER_EXECUTE : 0);
            bool allowed = rights & (user ? USER_EXECUTE : EXECUTE);
            use_ept(guest_nothing, 0);
            secondary_set(PROC2_MODE_BASED_EXECUTE);
            *pte = saved | (user ? USER : 0);
            set_leaf((uint64_t)frame | WB | rights);
            vmwrite(VMCS_GUEST_RIP, page);
            if (user) {
                vmwrite(VMCS_GUEST_ES_SELECTOR + CS, SEL_USER_CODE64);
                vmwrite(VMCS_GUEST_ES_SELECTOR + SS, SEL_USER_DATA);
                vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + CS, CODE_DPL3);
                vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + SS, DATA_DPL3);
            }
            uint32_t reason = vmx_run_reason();
            wrong += reason != (allowed ? REASON_VMCALL : REASON_EPT_VIOLATION);
            if (!allowed)
                wrong += (vmread(VMCS_EXIT_QUALIFICATION) & 0x7F) != (EXECUTE | (bits & 1) << 3 | (bits & 2) << 4 | (bits & 4) << 4);
        }
    check_equal(wrong, 0, "execution by mode, in each combination of rights");
    *pte = saved;
    boot_pml4[0] &= ~(uint64_t)USER;
    invvpid(2, 0, 0);
    invept(2, 0);
}

static const struct { const char *name; uint64_t entry; } misconfigurations[] = {
    { "memory type 2", READ | 2 << 3 }, { "memory type 3", READ | 3 << 3 }, { "memory type 7", READ | 7 << 3 },
    { "an address beyond the physical ones", READ | WB | 1ull << 51 },
};

static void misconfigured(void)
{
    use_ept(guest_read, 0);
    for (unsigned i = 0; i < sizeof(misconfigurations) / sizeof(misconfigurations[0]); i++) {
        set_leaf(misconfigurations[i].entry);
        vmx_restart(guest_read);
        check_equal(vmx_run_reason(), REASON_EPT_MISCONFIGURATION, misconfigurations[i].name);
    }
    uint64_t saved = root[0];
    root[0] |= LARGE;
    invept(2, 0);
    vmx_restart(guest_read);
    check_equal(vmx_run_reason(), REASON_EPT_MISCONFIGURATION, "the page-size bit at level 4");
    root[0] = saved;
    invept(2, 0);
}

/* --- code of two spaces --- */

enum { CALLS = 1000, GLOBAL = 1 << 8, CR4_PGE = 1 << 7 };

static __attribute__((noinline)) uint64_t call_often(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < CALLS; i++)
        sum += ((uint64_t (*)(void))page)();
    return sum;
}

static void guest_call_often(void) { result = call_often(); vmcall(); }

/* mov eax, value; ret */
static void place_function(void *at, uint32_t value)
{
    uint8_t *code = at;
    code[0] = 0xB8;
    __builtin_memcpy(code + 1, &value, 4);
    code[5] = 0xC3;
}

/* The 4 KiB entry of a guest-physical address below 4 GiB, whose large page is split. */
static uint64_t *split(uint64_t gpa)
{
    uint64_t *large = &ept_table_at(&ept_table_at(&root[0])[gpa >> 30])[gpa >> 21 & 511];
    if (*large & LARGE) {
        uint64_t *table = alloc_page(), base = *large & ~(uint64_t)LARGE;
        for (unsigned i = 0; i < 512; i++)
            table[i] = base + i * 4096;
        *large = (uint64_t)table | READ | WRITE | EXECUTE;
    }
    return &ept_table_at(large)[gpa >> 12 & 511];
}

/*
 * Monitor and guest share their page tables, whose pages are all global, and the code that calls; at one address EPT shows the guest
 * another function. Global translations are those of one VPID and EPT only (SDM3 §29.4.1), and nothing flushes here.
 */
static void spaces(void)
{
    uint64_t *theirs = alloc_page(), *ours = alloc_page();
    place_function(ours, 1);
    place_function(theirs, 2);
    map_page(page, (uint64_t)ours, 3 | GLOBAL);
    for (unsigned i = 0; i < 2048; i++)
        boot_pd[i] |= GLOBAL;
    write_cr4(read_cr4() | CR4_PGE);
    use_ept(guest_call_often, 0);
    secondary_set(PROC2_ENABLE_VPID);
    vmwrite(VMCS_VPID, 3);
    uint64_t *entry = split((uint64_t)ours), saved = *entry;
    *entry = (uint64_t)theirs | WB | READ | EXECUTE;
    invept(2, 0);
    for (unsigned round = 0; round < 3; round++) {
        check_equal(call_often(), CALLS, "a monitor runs its own code");
        vmx_restart(guest_call_often);
        check_equal(vmx_run_reason(), REASON_VMCALL, "its guest");
        check_equal(result, 2 * CALLS, "runs what EPT shows it at the same global address");
    }
    *entry = saved;
    invept(2, 0);
    for (unsigned i = 0; i < 2048; i++)
        boot_pd[i] &= ~(uint64_t)GLOBAL;
    write_cr4(read_cr4() & ~(uint64_t)CR4_PGE);
    map_page(page, page, 3);
}

/* --- invalidation --- */

static void invalidation(void)
{
    uint64_t *other = alloc_page();
    use_ept(guest_read, 0);
    frame[0] = 1;
    other[0] = 2;
    set_leaf((uint64_t)frame | WB | READ);
    vmx_restart(guest_read);
    vmx_run();
    check_equal(result, 1, "a page through EPT");
    *leaf = (uint64_t)other | WB | READ;
    check_equal(invept(1, vmread(VMCS_EPTP)), VMX_OK, "INVEPT of the pointer");
    vmx_restart(guest_read);
    vmx_run();
    check_equal(result, 2, "shows the new page");
    /* Two VPIDs: the guest's own tables differ, nothing is flushed in between. */
    secondary_set(PROC2_ENABLE_VPID);
    vmwrite(VMCS_VPID, 1);
    vmx_restart(guest_read);
    vmx_run();
    uint64_t *pte = find_pte(page), saved = *pte;
    leaf[1] = (uint64_t)frame | WB | READ;
    *pte += 4096;
    vmwrite(VMCS_VPID, 2);
    vmx_restart(guest_read);
    vmx_run();
    check_equal(result, 1, "another VPID sees the new translation");
    vmwrite(VMCS_VPID, 1);
    check_equal(invvpid(0, 1, page), VMX_OK, "INVVPID of the address");
    vmx_restart(guest_read);
    vmx_run();
    check_equal(result, 1, "and then the first VPID does");
    *pte = saved;
    invvpid(2, 0, 0);
}

/* Each type of INVEPT and INVVPID, for a change in the tables that it is about (SDM3 §29.4.3.1). */
static void each_invalidation(void)
{
    uint64_t *other = alloc_page(), *pte = find_pte(page), saved = *pte;
    static const char *const invept_names[] = { 0, "INVEPT of one context", "INVEPT of all" };
    static const char *const invvpid_names[] = { "INVVPID of an address", "INVVPID of one context", "INVVPID of all",
                                                 "INVVPID of one context but for globals" };
    use_ept(guest_read, 0);
    secondary_set(PROC2_ENABLE_VPID);
    vmwrite(VMCS_VPID, 5);
    frame[0] = 1;
    other[0] = 2;
    leaf[1] = (uint64_t)other | WB | READ;
    for (uint64_t type = 1; type <= 2; type++) {
        set_leaf((uint64_t)frame | WB | READ);
        vmx_restart(guest_read);
        vmx_run();
        *leaf = (uint64_t)other | WB | READ;
        check_equal(invept(type, vmread(VMCS_EPTP)), VMX_OK, invept_names[type]);
        vmx_restart(guest_read);
        vmx_run();
        check_equal(result, 2, "shows what EPT says now");
    }
    set_leaf((uint64_t)frame | WB | READ);
    for (uint64_t type = 0; type <= 3; type++) {
        *pte = saved;
        invvpid(2, 0, 0);
        vmx_restart(guest_read);
        vmx_run();
        *pte = saved + 4096;
        check_equal(invvpid(type, 5, page), VMX_OK, invvpid_names[type]);
        vmx_restart(guest_read);
        vmx_run();
        check_equal(result, 2, "shows what the guest's tables say now");
    }
    *pte = saved;
    invvpid(2, 0, 0);
}

/* A use that fails drops what is cached for the address (SDM3 §29.4.3.1, §4.10.4.1): the monitor changes it and invalidates nothing. */
static void dropped_by_failing(void)
{
    enum { CR0_WP = 1 << 16, PAGE_FAULT = 1 << 14, PTE_WRITE = 2 };
    uint64_t *other = alloc_page(), *pte = find_pte(page), saved = *pte;
    use_ept(guest_read, 0);
    secondary_set(PROC2_ENABLE_VPID);
    vmwrite(VMCS_VPID, 4);
    vmwrite(VMCS_GUEST_CR0, vmread(VMCS_GUEST_CR0) | CR0_WP);
    frame[0] = 1;
    other[0] = 2;
    leaf[1] = (uint64_t)frame | WB | READ;
    set_leaf((uint64_t)frame | WB | READ);
    vmx_run();
    check_equal(result, 1, "a page that is read");
    vmx_restart(guest_write);
    check_equal(vmx_run_reason(), REASON_EPT_VIOLATION, "may not be written");
    *leaf = (uint64_t)other | WB | READ | WRITE;
    vmx_restart(guest_read);
    vmx_run();
    check_equal(result, 2, "and is read elsewhere after the violation");
    *pte = saved & ~(uint64_t)PTE_WRITE;
    invvpid(2, 0, 0);
    vmwrite(VMCS_EXCEPTION_BITMAP, PAGE_FAULT);
    vmx_restart(guest_read);
    vmx_run();
    vmx_restart(guest_write);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "a page fault exits");
    *pte = saved + 4096;
    vmx_restart(guest_read);
    vmx_run();
    check_equal(result, 1, "and so it is after a page fault");
    *pte = saved;
    invvpid(2, 0, 0);
    invept(2, 0);
}

/* --- accessed and dirty flags, page-modification log --- */

/* The log is filled from its end. */
static bool in_log(const uint64_t *log, uint64_t gpa)
{
    for (unsigned i = (uint16_t)(vmread(VMCS_PML_INDEX) + 1); i < 512; i++)
        if (log[i] == gpa)
            return true;
    return false;
}

static void accessed_and_dirty(void)
{
    uint64_t *log = alloc_page();
    use_ept(guest_read, 0);
    set_leaf((uint64_t)frame | WB | READ | WRITE);
    vmx_run();
    check_equal(*leaf & (ACCESSED | DIRTY), 0, "no flags unless they are switched on");
    use_ept(guest_read, EPTP_AD);
    invept(2, 0);
    vmx_run();
    check_equal(*leaf & (ACCESSED | DIRTY), ACCESSED, "a read sets A");
    vmx_restart(guest_write);
    vmx_run();
    check_equal(*leaf & (ACCESSED | DIRTY), ACCESSED | DIRTY, "a write sets D");
    secondary_set(PROC2_ENABLE_PML);
    vmwrite(VMCS_PML_ADDRESS, (uint64_t)log);
    vmwrite(VMCS_PML_INDEX, 511);
    set_leaf((uint64_t)frame | WB | READ | WRITE);
    vmx_restart(guest_write);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a write with a log");
    check(in_log(log, page), "the page is in the log");
    vmwrite(VMCS_PML_INDEX, 0xFFFF);
    set_leaf((uint64_t)frame | WB | READ | WRITE);
    vmx_restart(guest_write);
    check_equal(vmx_run_reason(), REASON_PML_FULL, "the log is full");
    check_equal(*leaf & DIRTY, 0, "and D is not set");
    uint64_t page_table = (uint64_t)find_pte(page) & ~0xFFFull;
    *split(page_table) &= ~(uint64_t)DIRTY;
    invept(2, 0);
    vmwrite(VMCS_PML_INDEX, 511);
    vmx_restart(guest_read);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a read with a log");
    check(in_log(log, page_table), "puts the guest's page table there, which counts as written");
    check(!in_log(log, page), "and not the page");
}

/* --- VMFUNC and #VE --- */

static void guest_switch(void)
{
    __asm__ volatile("vmfunc" :: "a"(0), "c"(1));
    result = *(volatile uint64_t *)page;
    vmcall();
}

static void guest_bad_switch(void) { __asm__ volatile("vmfunc" :: "a"(0), "c"(2)); }
static void guest_switch_beyond(void) { __asm__ volatile("vmfunc" :: "a"(0), "c"(512)); }
static void guest_no_function(void) { __asm__ volatile("vmfunc" :: "a"(1), "c"(0)); }
static void guest_beyond_functions(void) { __asm__ volatile("vmfunc" :: "a"(64), "c"(0)); }

static void eptp_switching(void)
{
    uint64_t *list = alloc_page(), *root2 = alloc_page(), *pdpt2 = alloc_page(), *other = alloc_page();
    uint64_t *pdpt = (uint64_t *)(root[0] & ~0xFFFull), *directory2 = alloc_page(), *table2 = alloc_page();
    for (unsigned i = 0; i < 512; i++)
        pdpt2[i] = pdpt[i];
    pdpt2[5] = (uint64_t)directory2 | 7;
    directory2[0] = (uint64_t)table2 | 7;
    table2[0] = (uint64_t)other | WB | READ;
    root2[0] = (uint64_t)pdpt2 | 7;
    other[0] = 77;
    use_ept(guest_switch, 0);
    list[0] = vmread(VMCS_EPTP);
    list[1] = (uint64_t)root2 | EPTP_WB_4;
    secondary_set(PROC2_ENABLE_VM_FUNCTIONS);
    vmwrite(VMCS_VM_FUNCTION_CONTROLS, 1);
    vmwrite(VMCS_EPTP_LIST, (uint64_t)list);
    check_equal(vmx_run_reason(), REASON_VMCALL, "VMFUNC switches the EPT pointer");
    check_equal(result, 77, "the guest sees the other page");
    check_equal(vmread(VMCS_EPTP), list[1], "the VMCS has the new pointer");
    vmx_restart(guest_bad_switch);
    check_equal(vmx_run_reason(), REASON_VMFUNC, "an entry of the list that is not valid exits");
    vmx_restart(guest_switch_beyond);
    check_equal(vmx_run_reason(), REASON_VMFUNC, "and so does one beyond the list");
    vmx_restart(guest_no_function);
    check_equal(vmx_run_reason(), REASON_VMFUNC, "and a function that is not enabled");
    vmwrite(VMCS_EXCEPTION_BITMAP, 1 << 6);
    vmx_restart(guest_beyond_functions);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "a number that none can have is #UD");
}

static volatile uint64_t exceptions;
static void on_ve(struct trap_frame *frame) { exceptions++; frame->rip = (uint64_t)guest_nothing; }

static void virtualization_exception(void)
{
    uint32_t *information = alloc_page();
    use_ept(guest_read, 0);
    secondary_set(PROC2_EPT_VIOLATION_VE);
    vmwrite(VMCS_VE_INFORMATION_ADDRESS, (uint64_t)information);
    set_handler(20, on_ve);
    set_leaf(0);
    check_equal(vmx_run_reason(), REASON_VMCALL, "an EPT violation becomes #VE");
    check_equal(exceptions, 1, "which the guest takes");
    check_equal(information[0], REASON_EPT_VIOLATION, "the page says why");
    check_equal(information[1], 0xFFFFFFFF, "and is busy now");
    check_equal(*(uint64_t *)&information[6], page, "the guest-physical address");
    vmx_restart(guest_read);
    check_equal(vmx_run_reason(), REASON_EPT_VIOLATION, "while it is busy violations exit");
    information[1] = 0;
    set_leaf(1ull << 63);
    vmx_restart(guest_read);
    check_equal(vmx_run_reason(), REASON_EPT_VIOLATION, "and so do those that are suppressed");
    set_handler(20, NULL);
}

/* --- a guest in real mode --- */

enum { REAL_CODE = 0x8000 };

static void guest_in_real_mode(const uint8_t *code, unsigned length)
{
    for (unsigned i = 0; i < length; i++)
        ((volatile uint8_t *)REAL_CODE)[i] = code[i];
    use_ept(guest_nothing, 0);
    secondary_set(PROC2_UNRESTRICTED_GUEST);
    control_clear(VMCS_ENTRY_CONTROLS, ENTRY_IA32E_MODE_GUEST);
    vmwrite(VMCS_GUEST_EFER, 0);
    vmwrite(VMCS_GUEST_CR0, 0x30);
    vmwrite(VMCS_GUEST_CR4, CR4_VMXE);
    for (unsigned i = 0; i < 6; i++) {
        vmwrite(VMCS_GUEST_ES_SELECTOR + 2 * i, 0);
        vmwrite(VMCS_GUEST_ES_LIMIT + 2 * i, 0xFFFF);
        vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * i, i == 1 ? 0x9B : 0x93);
    }
    vmwrite(VMCS_GUEST_RIP, REAL_CODE);
}

static void unrestricted(void)
{
    /* mov ax, 1234; mov ds, ax; jmp 0800:000a; vmcall */
    static const uint8_t code[] = { 0xB8, 0x34, 0x12, 0x8E, 0xD8, 0xEA, 0x0A, 0x00, 0x00, 0x08, 0x0F, 0x01, 0xC1 };
    guest_in_real_mode(code, sizeof(code));
    check_equal(vmx_run_reason(), REASON_VMCALL, "a guest in real mode");
    check_equal(guest_registers.rax & 0xFFFF, 0x1234, "has run");
    check_equal(vmread(VMCS_GUEST_DS_BASE), 0x12340, "segments are of real mode");
    check_equal(vmread(VMCS_GUEST_CS_BASE), 0x8000, "CS, too");
    check_equal(vmread(VMCS_GUEST_CS_ACCESS_RIGHTS), 0x9B, "and it is still a code segment");
}

/* SDM3 §27.6.1.1: by the interrupt table, whose entries are a segment and an offset; a frame is of three words, without an error code. */
static void injection_in_real_mode(void)
{
    static const uint8_t code[] = { 0xF4, 0x0F, 0x01, 0xC1 };           /* hlt; vmcall */
    enum { TABLE = 0x9000, STACK = 0xA000 };
    for (unsigned vector = 13; vector < 0x60; vector += 0x60 - 13 - 1) {
        guest_in_real_mode(code, sizeof(code));
        ((volatile uint32_t *)TABLE)[vector] = REAL_CODE + 1;
        vmwrite(VMCS_GUEST_IDTR_BASE, TABLE);
        vmwrite(VMCS_GUEST_IDTR_LIMIT, 0x3FF);
        vmwrite(VMCS_GUEST_RSP, STACK);
        vmwrite(VMCS_GUEST_RFLAGS, 0x202);
        vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, 1u << 31 | (vector == 13 ? 3 << 8 : 0) | vector);
        check_equal(vmx_run_reason(), REASON_VMCALL, vector == 13 ? "an exception is injected in real mode" : "an interrupt is injected in real mode");
        check_equal(vmread(VMCS_GUEST_RIP), REAL_CODE + 1, "its handler runs");
        check_equal(vmread(VMCS_GUEST_RSP), STACK - 6, "on three words");
        check_equal(*(volatile uint16_t *)(STACK - 6), REAL_CODE, "the first of which is IP");
        check_equal(*(volatile uint16_t *)(STACK - 2), 0x202, "and the last FLAGS");
    }
}

/* --- a task switch: a guest in protected mode without paging --- */

static void guest_in_protected_mode(const uint8_t *code, unsigned length)
{
    enum { CODE = 0x8000, FLAT_CODE = 0xC09B, FLAT_DATA = 0xC093, CS = 1 };
    for (unsigned i = 0; i < length; i++)
        ((volatile uint8_t *)CODE)[i] = code[i];
    use_ept(guest_nothing, 0);
    secondary_set(PROC2_UNRESTRICTED_GUEST);
    control_clear(VMCS_ENTRY_CONTROLS, ENTRY_IA32E_MODE_GUEST);
    vmwrite(VMCS_GUEST_EFER, 0);
    vmwrite(VMCS_GUEST_CR0, 0x31);
    vmwrite(VMCS_GUEST_CR4, CR4_VMXE);
    for (unsigned i = 0; i < 6; i++)
        vmwrite(VMCS_GUEST_ES_ACCESS_RIGHTS + 2 * i, i == CS ? FLAT_CODE : FLAT_DATA);
    vmwrite(VMCS_GUEST_RIP, CODE);
}

/* SDM3 §26.2, §28.2.1 table 28-2: after the checks of the descriptor, before anything of the task. */
static void task_switch(void)
{
    static const uint8_t jump[] = { 0xEA, 0, 0, 0, 0, SEL_FREE, 0 }, call[] = { 0x9A, 0, 0, 0, 0, SEL_FREE, 0 }, undefined[] = { 0x0F, 0x0B };
    static uint64_t gates[7];
    enum { TSS32 = 0x89, TASK_GATE = 0x85, NOT_PRESENT = 0x09, SOURCE = 30, NP = 1 << 11, UD = 6 };
    set_gdt_entry(SEL_FREE, 0x67 | (uint64_t)TSS32 << 40);
    guest_in_protected_mode(jump, sizeof(jump));
    check_equal(vmx_run_reason(), REASON_TASK_SWITCH, "a jump to a task exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), SEL_FREE | 2ull << SOURCE, "its selector and source");
    check_equal(vmread(VMCS_EXIT_INSTRUCTION_LENGTH), sizeof(jump), "its length");
    guest_in_protected_mode(call, sizeof(call));
    check_equal(vmx_run_reason(), REASON_TASK_SWITCH, "a call of a task exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), SEL_FREE, "its selector and source");
    gates[UD] = (uint64_t)SEL_FREE << 16 | (uint64_t)TASK_GATE << 40;
    guest_in_protected_mode(undefined, sizeof(undefined));
    vmwrite(VMCS_GUEST_IDTR_BASE, (uint64_t)gates);
    vmwrite(VMCS_GUEST_IDTR_LIMIT, sizeof(gates) - 1);
    check_equal(vmx_run_reason(), REASON_TASK_SWITCH, "a fault whose gate is of a task exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), SEL_FREE | 3ull << SOURCE, "its selector and source");
    check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION), 0x80000300 | UD, "the fault");
    check_equal(vmread(VMCS_GUEST_RFLAGS) >> 16 & 1, 1, "which has set RF");
    set_gdt_entry(SEL_FREE, 0x67 | (uint64_t)NOT_PRESENT << 40);
    guest_in_protected_mode(jump, sizeof(jump));
    vmwrite(VMCS_EXCEPTION_BITMAP, NP);
    check_equal(vmx_run_reason(), REASON_EXCEPTION_OR_NMI, "a task whose TSS is not present");
    check_equal(vmread(VMCS_EXIT_INTERRUPTION_INFORMATION), 0x80000B0B, "is #NP instead");
}

/* --- VMCS shadowing --- */

static void guest_shadow(void)
{
    vmwrite(VMCS_GUEST_RIP, 0x1111);
    result = vmread(VMCS_GUEST_RSP);
    vmcall();
}
static void guest_shadow_exit(void) { vmread(VMCS_GUEST_CR0); vmcall(); }

static void shadowing(void)
{
    uint8_t *bitmap = alloc_page();
    uint64_t *shadow = alloc_page(), main = (uint64_t)vmcs_region;
    for (unsigned i = 0; i < 4096; i++)
        bitmap[i] = 0;
    bitmap[VMCS_GUEST_CR0 / 8] = 1 << (VMCS_GUEST_CR0 & 7);
    vmcs_prepare(guest_shadow);
    *(uint32_t *)shadow = vmcs_revision() | 1u << 31;
    check_equal(vmclear((uint64_t)shadow), VMX_OK, "VMCLEAR of a shadow VMCS");
    check_equal(vmptrld((uint64_t)shadow), VMX_OK, "VMPTRLD of a shadow VMCS");
    vmwrite(VMCS_GUEST_RSP, 0x2222);
    check_equal(vmx_run(), VMX_FAIL_INVALID, "it cannot be entered");
    vmclear((uint64_t)shadow);
    vmptrld(main);
    secondary_set(PROC2_VMCS_SHADOWING);
    vmwrite(VMCS_VMREAD_BITMAP, (uint64_t)bitmap);
    vmwrite(VMCS_VMWRITE_BITMAP, (uint64_t)bitmap);
    vmwrite(VMCS_VMCS_LINK_POINTER, (uint64_t)shadow);
    check_equal(vmx_run_reason(), REASON_VMCALL, "VMREAD and VMWRITE of the guest reach the shadow VMCS");
    check_equal(result, 0x2222, "VMREAD");
    vmx_restart(guest_shadow_exit);
    check_equal(vmx_run_reason(), REASON_VMREAD, "a field in the bitmap exits");
    vmptrld((uint64_t)shadow);
    check_equal(vmread(VMCS_GUEST_RIP), 0x1111, "VMWRITE");
    vmclear((uint64_t)shadow);
    vmptrld(main);
}

/* --- the virtual APIC --- */

static uint32_t *virtual_apic;
static volatile uint64_t interrupts;
static void on_interrupt(struct trap_frame *frame) { interrupts++; }

static void guest_tpr(void) { __asm__ volatile("mov %0, %%cr8" :: "r"(1ull)); vmcall(); }
static void guest_apic_read(void) { result = *(volatile uint32_t *)(page + 0x80); vmcall(); }
static void guest_apic_write(void) { *(volatile uint32_t *)(page + 0x80) = 0x50; __asm__ volatile("nop; nop"); vmcall(); }
static void guest_apic_id(void) { result = *(volatile uint32_t *)(page + 0x20); vmcall(); }
static void guest_apic_divide(void) { *(volatile uint32_t *)(page + 0x3E0) = 0xB; vmcall(); }
static void guest_sti(void) { sti(); __asm__ volatile("nop; nop"); vmcall(); }
static void guest_eoi(void) { *(volatile uint32_t *)(page + 0xB0) = 0; __asm__ volatile("nop; nop"); vmcall(); }
static void guest_self_ipi(void) { sti(); *(volatile uint32_t *)(page + 0x300) = 0x40070; __asm__ volatile("nop; nop"); vmcall(); }

static void tpr_shadow(void)
{
    virtual_apic = alloc_page();
    vmcs_prepare(guest_tpr);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TPR_SHADOW);
    vmwrite(VMCS_VIRTUAL_APIC_ADDRESS, (uint64_t)virtual_apic);
    virtual_apic[0x80 / 4] = 0x30;
    check_equal(vmx_run_reason(), REASON_VMCALL, "MOV to CR8 with a TPR shadow");
    check_equal(virtual_apic[0x80 / 4], 0x10, "writes the virtual TPR");
    virtual_apic[0x80 / 4] = 0x30;
    vmwrite(VMCS_TPR_THRESHOLD, 2);
    vmx_restart(guest_tpr);
    check_equal(vmx_run_reason(), REASON_TPR_BELOW_THRESHOLD, "TPR below threshold");
}

static void use_apic(void (*code)(void), uint32_t secondary)
{
    static void *access_page;
    if (!access_page)
        access_page = alloc_page();
    use_ept(code, 0);
    set_leaf((uint64_t)access_page | WB | READ | WRITE);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TPR_SHADOW);
    secondary_set(PROC2_VIRTUALIZE_APIC_ACCESSES | secondary);
    vmwrite(VMCS_VIRTUAL_APIC_ADDRESS, (uint64_t)virtual_apic);
    vmwrite(VMCS_APIC_ACCESS_ADDRESS, (uint64_t)access_page);
    if (secondary & PROC2_VIRTUAL_INTERRUPT_DELIVERY)
        control_set(VMCS_PIN_BASED_CONTROLS, PIN_EXTERNAL_INTERRUPT_EXITING);
    for (unsigned i = 0; i < 1024; i++)
        virtual_apic[i] = 0;
}

static void apic_page(void)
{
    enum { VID = PROC2_VIRTUAL_INTERRUPT_DELIVERY | PROC2_APIC_REGISTER_VIRTUALIZATION };
    use_apic(guest_apic_read, 0);
    virtual_apic[0x80 / 4] = 0x77;
    check_equal(vmx_run_reason(), REASON_VMCALL, "a read of TPR in the APIC-access page");
    check_equal(result, 0x77, "is virtual");
    vmx_restart(guest_apic_id);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "a read of the ID exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 0x20, "its qualification");
    vmx_restart(guest_apic_write);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a write of TPR");
    check_equal(virtual_apic[0x80 / 4], 0x50, "is virtual");
    use_apic(guest_apic_id, PROC2_APIC_REGISTER_VIRTUALIZATION);
    virtual_apic[0x20 / 4] = 0x12000000;
    check_equal(vmx_run_reason(), REASON_VMCALL, "a read of the ID with APIC-register virtualization");
    check_equal(result, 0x12000000, "is virtual");
    vmx_restart(guest_apic_divide);
    check_equal(vmx_run_reason(), REASON_APIC_WRITE, "a write of the divide configuration exits");
    check_equal(virtual_apic[0x3E0 / 4], 0xB, "behind the write");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 0x3E0, "its qualification");
    set_handler(0x70, on_interrupt);
    use_apic(guest_sti, VID);
    virtual_apic[0x200 / 4 + 3 * 4] = 1 << 16;          /* VIRR: vector 0x70 */
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, 0x70);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a virtual interrupt waits for IF");
    check_equal(interrupts, 1, "and is delivered");
    check_equal(virtual_apic[0x100 / 4 + 3 * 4], 1 << 16, "VISR has it");
    check_equal(virtual_apic[0x200 / 4 + 3 * 4], 0, "VIRR no more");
    check_equal(vmread(VMCS_GUEST_INTERRUPT_STATUS), 0x7000, "SVI is its vector");
    vmx_restart(guest_eoi);
    check_equal(vmx_run_reason(), REASON_VMCALL, "EOI");
    check_equal(vmread(VMCS_GUEST_INTERRUPT_STATUS), 0, "ends it without an exit");
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, 0x7000);
    vmwrite(VMCS_EOI_EXIT_BITMAP1, 1ull << (0x70 - 64));
    vmx_restart(guest_eoi);
    check_equal(vmx_run_reason(), REASON_VIRTUALIZED_EOI, "or with one");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 0x70, "that tells the vector");
    vmx_restart(guest_self_ipi);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a self-IPI");
    check_equal(interrupts, 2, "is delivered");
    set_handler(0x70, NULL);
}

/* SDM3 §30.4.6.1: the page as one of the guest's tables. */
static uint64_t mapped_by_apic_page = 6ull << 30;
static void guest_read_mapped(void) { result = *(volatile uint64_t *)mapped_by_apic_page; vmcall(); }

static void apic_page_as_table(void)
{
    uint64_t *directory = alloc_page(), saved = boot_pdpt[6];
    directory[0] = page | 7;
    boot_pdpt[6] = (uint64_t)directory | 7;
    use_apic(guest_read_mapped, 0);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "a page table in the APIC-access page");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION) >> 12, 15, "is read by an instruction");
    vmx_restart(guest_nothing);
    vmwrite(VMCS_GUEST_IDTR_BASE, mapped_by_apic_page);
    vmwrite(VMCS_ENTRY_INTERRUPTION_INFORMATION, 0x80000306);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "one that is read");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION) >> 12, 10, "while an event is delivered");
    check_equal(vmread(VMCS_IDT_VECTORING_INFORMATION), 0x80000306, "which is told");
    check_equal(vmread(VMCS_GUEST_RFLAGS) >> 16 & 1, 1, "with RF as the fault would have pushed it");
    boot_pdpt[6] = saved;
    invvpid(2, 0, 0);
}

static void guest_wait(void) { sti(); while (interrupts < 3) pause(); vmcall(); }

static void posted(void)
{
    static uint64_t descriptor[8] __attribute__((aligned(64)));
    use_apic(guest_wait, PROC2_VIRTUAL_INTERRUPT_DELIVERY | PROC2_APIC_REGISTER_VIRTUALIZATION);
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_PROCESS_POSTED_INTERRUPTS);
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    vmwrite(VMCS_POSTED_INTERRUPT_VECTOR, 0xF2);
    vmwrite(VMCS_POSTED_INTERRUPT_DESCRIPTOR, (uint64_t)descriptor);
    set_handler(0x71, on_interrupt);
    descriptor[1] = 1ull << (0x71 - 64);
    descriptor[4] = 1;                  /* ON */
    *apic(0xF0) = 0x1FF;
    *apic(0x300) = 0x400F2;             /* the notification, to ourselves */
    check_equal(vmx_run_reason(), REASON_VMCALL, "a posted interrupt does not exit");
    check_equal(interrupts, 3, "it is delivered");
    check_equal(descriptor[1] | (descriptor[4] & 1), 0, "and taken out of the descriptor");
    set_handler(0x71, NULL);
}

/* --- IPI virtualization --- */

enum { IPI_VECTOR = 0x80, PID_SN = 2, NOTIFICATION = 0xF2 };
static volatile uint64_t ipi;           /* the ICR that the guest writes */
static void guest_ipi(void)
{
    *(volatile uint32_t *)(page + 0x310) = ipi >> 32;
    *(volatile uint32_t *)(page + 0x300) = (uint32_t)ipi;
    vmcall();
}
static void guest_x2apic_ipi(void) { wrmsr(0x830, ipi); vmcall(); }
static void guest_ipi_to_itself(void) { sti(); guest_ipi(); }

static uint32_t send_ipi(void (*code)(void), uint64_t icr)
{
    ipi = icr;
    vmx_restart(code);
    return vmx_run_reason();
}

static void ipis(void)
{
    static uint64_t descriptor[2][8] __attribute__((aligned(64))), table[2];
    use_apic(guest_ipi, PROC2_VIRTUAL_INTERRUPT_DELIVERY | PROC2_APIC_REGISTER_VIRTUALIZATION);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_ACTIVATE_TERTIARY_CONTROLS);
    vmwrite(VMCS_TERTIARY_CONTROLS, PROC3_IPI_VIRTUALIZATION);
    vmwrite(VMCS_PID_POINTER_TABLE_ADDRESS, (uint64_t)table);
    vmwrite(VMCS_LAST_PID_POINTER_INDEX, 1);
    table[1] = (uint64_t)descriptor[1] | 1;
    descriptor[1][4] = PID_SN;
    check_equal(send_ipi(guest_ipi, 1ull << 56 | IPI_VECTOR), REASON_VMCALL, "an IPI to a processor of the table");
    check_equal(descriptor[1][IPI_VECTOR / 64], 1ull << (IPI_VECTOR % 64), "is posted");
    check_equal(descriptor[1][4], PID_SN, "with no notification where they are suppressed");
    descriptor[1][IPI_VECTOR / 64] = 0;
    check_equal(send_ipi(guest_ipi, 1ull << 56 | 0xC000 | IPI_VECTOR), REASON_APIC_WRITE, "one that is level-triggered exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), 0x300, "as a write of the ICR");
    check_equal(send_ipi(guest_ipi, 2ull << 56 | IPI_VECTOR), REASON_APIC_WRITE, "so does one to a processor beyond the table");
    check_equal(send_ipi(guest_ipi, 1ull << 56 | 15), REASON_APIC_WRITE, "and one with a vector that cannot be");
    check_equal(send_ipi(guest_ipi, 0ull << 56 | IPI_VECTOR), REASON_APIC_WRITE, "and one to an entry that is not valid");
    check_equal(descriptor[0][IPI_VECTOR / 64] | descriptor[1][IPI_VECTOR / 64], 0, "nothing is posted then");
    /* The notification reaches this processor, which posts the interrupt to the guest that sent it. */
    uint64_t before = interrupts;
    set_handler(IPI_VECTOR, on_interrupt);
    table[0] = (uint64_t)descriptor[0] | 1;
    descriptor[0][4] = NOTIFICATION << 16;
    control_set(VMCS_PIN_BASED_CONTROLS, PIN_PROCESS_POSTED_INTERRUPTS);
    control_set(VMCS_EXIT_CONTROLS, EXIT_ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    vmwrite(VMCS_POSTED_INTERRUPT_VECTOR, NOTIFICATION);
    vmwrite(VMCS_POSTED_INTERRUPT_DESCRIPTOR, (uint64_t)descriptor[0]);
    check_equal(send_ipi(guest_ipi_to_itself, IPI_VECTOR), REASON_VMCALL, "an IPI that notifies");
    check_equal(interrupts - before, 1, "is delivered");
    check_equal(descriptor[0][4] & 1, 0, "and the notification taken");
    set_handler(IPI_VECTOR, NULL);
    use_ept(guest_x2apic_ipi, 0);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TPR_SHADOW | PROC_USE_MSR_BITMAPS | PROC_ACTIVATE_TERTIARY_CONTROLS);
    secondary_set(PROC2_VIRTUALIZE_X2APIC_MODE);
    vmwrite(VMCS_VIRTUAL_APIC_ADDRESS, (uint64_t)virtual_apic);
    vmwrite(VMCS_MSR_BITMAP, (uint64_t)alloc_page());
    vmwrite(VMCS_TERTIARY_CONTROLS, PROC3_IPI_VIRTUALIZATION);
    vmwrite(VMCS_PID_POINTER_TABLE_ADDRESS, (uint64_t)table);
    vmwrite(VMCS_LAST_PID_POINTER_INDEX, 1);
    check_equal(send_ipi(guest_x2apic_ipi, 1ull << 32 | IPI_VECTOR), REASON_VMCALL, "an IPI in x2APIC mode");
    check_equal(descriptor[1][IPI_VECTOR / 64], 1ull << (IPI_VECTOR % 64), "is posted");
    check_equal(send_ipi(guest_x2apic_ipi, 1ull << 32 | 0x400 | IPI_VECTOR), REASON_APIC_WRITE, "an NMI exits");
    check_equal(vmread(VMCS_GUEST_RIP) - (uint64_t)guest_x2apic_ipi < 64, 1, "behind the instruction");
    check_equal(send_ipi(guest_x2apic_ipi, 1ull << 32 | 0x1000 | IPI_VECTOR), REASON_APIC_WRITE, "and what has the delivery status set");
}

void test_main(void)
{
    vmx_switch_on();
    root = ept_build(page, &leaf);
    frame = alloc_page();
    map_page(page, page, 3);
    rights();
    rights_of_levels();
    mode_based_execute();
    misconfigured();
    spaces();
    invalidation();
    each_invalidation();
    dropped_by_failing();
    accessed_and_dirty();
    eptp_switching();
    virtualization_exception();
    unrestricted();
    injection_in_real_mode();
    task_switch();
    shadowing();
    tpr_shadow();
    apic_page();
    apic_page_as_table();
    posted();
    ipis();
    vmx_check_reasons(true);
}
