/*
 * What may stay cached does with --tlb stale, and goes where the manual says that it must (SDM3 §4.10.4, §29.4.3); with --tlb fresh
 * nothing outlives a VM exit. The command line of the test says which; the guest finds out by the first thing that it looks at.
 */
#include "lib/ept.h"
#include "lib/vmx.h"

enum { PRESENT = 1 | 2, PAGE = 4096 };

static bool stale;

static void result(uint64_t got, uint64_t old, uint64_t new, const char *what) { check_equal(got, stale ? old : new, what); }

/* --- paging structures: an entry that leads to a page table --- */

static const uint64_t place = 9ull << 30;
static uint64_t read_at(uint64_t gla) { return *(volatile uint64_t *)gla; }

static void structures(void)
{
    uint64_t *first = alloc_page(), *second = alloc_page(), *table = alloc_page();
    first[0] = 1;
    second[0] = 2;
    map_page(place, (uint64_t)first, PRESENT);
    map_page(place + PAGE, (uint64_t)first, PRESENT);
    map_page(place + 2 * PAGE, (uint64_t)first, PRESENT);
    uint64_t *old = (uint64_t *)((uint64_t)find_pte(place) & ~0xFFFull), cr3 = read_cr3();
    for (unsigned i = 0; i < 3; i++)
        table[i] = (uint64_t)second | PRESENT;
    check_equal(read_at(place), 1, "a page by its table");
    uint64_t *directory = (uint64_t *)(*(uint64_t *)((*(uint64_t *)((cr3 & ~0xFFFull) + (place >> 39 & 511) * 8) & ~0xFFFull) +
                                                     (place >> 30 & 511) * 8) & ~0xFFFull);
    uint64_t *entry = &directory[place >> 21 & 511], saved = *entry;
    check_equal(saved & ~0xFFFull, (uint64_t)old, "the entry that leads there");
    *entry = (uint64_t)table | PRESENT;
    stale = read_at(place + PAGE) == 1;
    print("%s\n", stale ? "stale" : "not stale");
    result(read_at(place + PAGE), 1, 2, "another table, not invalidated: a page beside");
    invlpg(place + 100 * PAGE);
    check_equal(read_at(place + 2 * PAGE), 2, "INVLPG of any address drops what leads to tables");
    result(read_at(place), 1, 2, "but no translations of others");
    invlpg(place);
    check_equal(read_at(place), 2, "INVLPG drops the translation");
    *entry = saved;
    write_cr3(cr3);
    check_equal(read_at(place) + read_at(place + PAGE), 2, "MOV CR3 drops all");
}

/* --- guest-physical mappings --- */

static const uint64_t page = 5ull << 30;
static uint64_t *root, *leaf, seen;

static void guest_read(void) { seen = read_at(page); vmcall(); }
static void guest_read_beside(void) { seen = read_at(page + PAGE); vmcall(); }
static void guest_read_third(void) { seen = read_at(page + 2 * PAGE); vmcall(); }
static void guest_write(void) { *(volatile uint64_t *)page = 3; vmcall(); }
static void guest_reload(void) { write_cr3(read_cr3()); seen = read_at(page); vmcall(); }

static uint64_t run(void (*code)(void))
{
    seen = 0;
    vmx_restart(code);
    check_equal(vmx_run_reason(), REASON_VMCALL, "the guest reads");
    return seen;
}

static void guest_physical(void)
{
    uint64_t *first = alloc_page(), *second = alloc_page();
    first[0] = 1;
    second[0] = 2;
    vmcs_prepare(guest_read);
    secondary_set(PROC2_ENABLE_EPT | PROC2_ENABLE_VPID);
    vmwrite(VMCS_VPID, 1);
    vmwrite(VMCS_EPTP, (uint64_t)root | EPTP_WB_4);
    *leaf = (uint64_t)first | WB | READ;
    check_equal(run(guest_read), 1, "through EPT");
    *leaf = (uint64_t)second | WB | READ;
    result(run(guest_read), 1, 2, "an entry that is not invalidated, by the same linear address");
    result(run(guest_read_beside), 1, 2, "by another one");
    check_equal(invvpid(2, 0, 0), VMX_OK, "INVVPID");
    result(run(guest_read_third), 1, 2, "does not drop guest-physical mappings");
    result(run(guest_reload), 1, 2, "nor does MOV CR3");
    check_equal(invept(1, (uint64_t)leaf | EPTP_WB_4), VMX_OK, "INVEPT of another pointer");
    result(run(guest_read_beside), 1, 2, "leaves them");
    check_equal(invept(1, (uint64_t)root | EPTP_WB_4), VMX_OK, "INVEPT of this one");
    check_equal(run(guest_read) + run(guest_read_beside), 4, "drops them");
    *leaf = (uint64_t)first | WB | READ;
    vmx_restart(guest_write);
    check_equal(vmx_run_reason(), REASON_EPT_VIOLATION, "a violation");
    check_equal(run(guest_read_third), 1, "drops what is known of its page");
    check_equal(run(guest_read), 1, "and of its linear address");
    result(run(guest_read_beside), 2, 1, "but not of another one");
}

void test_main(void)
{
    structures();
    vmx_switch_on();
    root = ept_build(page, &leaf);
    for (unsigned i = 0; i < 4; i++)            /* four linear addresses lead to the page */
        map_page(page + i * PAGE, page, PRESENT);
    guest_physical();
}
