/* Windows of VT-x guests: nothing is shown that EPT, as the processor may hold it in its TLB, does not allow (SDM3 §29.3, §29.4). */
#include "window_fixture.h"

#include "vmx/vmx.h"

enum { VPID = 7 };
enum { WRITE_BACK = 6 << 3, EPTP_WALK_4 = 3 << 3, EPT_ALL = EPTE_RIGHTS | WRITE_BACK | EPTE_A | EPTE_D };
static const uint64_t ept_root = 0x200000, ept_root2 = 0x201000, ept_tables = 0x210000, tables_end = 0x100000;
static const uint64_t moved = 0x1800000;        /* where EPT has the page at page_a, and the others behind it */

static void enter_space(struct fixture *f, uint64_t eptp, uint16_t vpid)
{
    f->vcpu.vmx.guest = eptp;
    mmu_enter_space(&f->vcpu, &(struct mmu_space){ .vpid = vpid, .ept = eptp, .eptp = eptp });
}

static uint64_t eptp_of(uint64_t table, bool flags) { return table | EPTP_WALK_4 | (flags ? EPTP_ACCESSED_DIRTY : 0); }

static void map_by_ept(struct fixture *f, uint64_t table, uint64_t *next, unsigned count, uint64_t *epte)
{
    for (uint64_t gpa = 0; gpa < tables_end; gpa += PAGE_SIZE)
        fixture_map(f, table, next, gpa, gpa | EPT_ALL, 0);
    for (unsigned i = 0; i < count; i++)
        epte[i] = fixture_map(f, table, next, page_a + i * PAGE_SIZE, (moved + i * PAGE_SIZE) | EPT_ALL, 0);
}

/* A hot space in a guest; page i holds 0x40 + i. */
static struct fixture *prepared_guest(unsigned count, uint64_t *pte, uint64_t *epte, bool flags)
{
    struct fixture *f = prepared(count, pte, user);
    uint64_t next = ept_tables;
    map_by_ept(f, ept_root, &next, count, epte);
    for (unsigned i = 0; i < count; i++)
        memset(ram_host(f->vcpu.ram, moved + i * PAGE_SIZE), (int)(0x40 + i), PAGE_SIZE);
    enter_space(f, eptp_of(ept_root, flags), VPID);
    heat(f);
    return f;
}

static void exit_and_enter(struct fixture *f)
{
    uint64_t eptp = f->vcpu.mmu->space.eptp;
    f->vcpu.pending.kind = EVENT_NONE;
    enter_space(f, 0, 0);
    enter_space(f, eptp, VPID);
}

static void neighbours_are_what_ept_allows(void **state)
{
    enum { PAGES = 9 };
    for (unsigned flags = 0; flags < 2; flags++) {
        uint64_t pte[PAGES], epte[PAGES];
        struct fixture *f = prepared_guest(PAGES, pte, epte, flags);
        const uint64_t entry[PAGES] = {
            [0] = EPT_ALL, [1] = EPT_ALL, [2] = EPT_ALL & ~(uint64_t)EPTE_WRITE, [3] = 0, [4] = EPTE_EXECUTE | EPTE_A | WRITE_BACK,
            [5] = EPT_ALL & ~(uint64_t)EPTE_READ, [6] = (EPT_ALL & ~(uint64_t)WRITE_BACK) | 2 << 3,
            [7] = EPT_ALL & ~(uint64_t)EPTE_A, [8] = EPT_ALL & ~(uint64_t)EPTE_D,
        };
        const bool shown[PAGES] = { true, true, true, false, false, false, false, !flags, true };
        const bool written[PAGES] = { true, true, false, false, false, false, false, !flags, !flags };
        for (unsigned i = 0; i < PAGES; i++)
            fixture_put64(f, epte[i], entry[i] ? (moved + i * PAGE_SIZE) | entry[i] : 0);
        assert_int_equal(load(f, gla), 0x40);
        for (unsigned i = 0; i < PAGES; i++) {
            assert_int_equal(shows(f, gla + i * PAGE_SIZE), shown[i]);
            assert_int_equal(lets_write(f, gla + i * PAGE_SIZE), written[i]);
            assert_int_equal(fixture_get64(f, epte[i]), entry[i] ? (moved + i * PAGE_SIZE) | entry[i] : 0);
        }
        assert_int_equal(*ram_host(f->vcpu.ram, page_a), 1);
        fixture_destroy(f);
    }
}

/* With flags a table counts as written when it is read: without D, the processor would first have to set it. */
static void tables_are_accessed_through_ept(void **state)
{
    for (unsigned flags = 0; flags < 2; flags++) {
        uint64_t pte[2], epte[2];
        struct fixture *f = prepared_guest(2, pte, epte, flags);
        assert_int_equal(load(f, gla), 0x40);
        assert_true(shows(f, gla + PAGE_SIZE));
        uint64_t next = ept_tables + 0x100000;
        uint64_t table = fixture_map(f, ept_root, &next, pte[0] & ~PAGE_MASK, (pte[0] & ~PAGE_MASK) | (EPT_ALL & ~(uint64_t)EPTE_D), 0);
        mmu_flush_ept(&f->vcpu, eptp_of(ept_root, flags));
        assert_int_equal(shows(f, gla), !flags);
        fixture_put64(f, table, 0);
        mmu_flush_ept(&f->vcpu, eptp_of(ept_root, flags));
        assert_false(shows(f, gla));
        fixture_destroy(f);
    }
}

static void a_write_sets_d_in_ept_first(void **state)
{
    uint64_t pte, epte;
    struct fixture *f = prepared_guest(1, &pte, &epte, true);
    fixture_put64(f, epte, moved | (EPT_ALL & ~(uint64_t)EPTE_D));
    load(f, gla);
    assert_false(lets_write(f, gla));
    assert_false(fixture_get64(f, epte) & EPTE_D);
    assert_true(store(f, gla, 9));
    assert_true(fixture_get64(f, epte) & EPTE_D);
    assert_true(lets_write(f, gla));
    assert_int_equal(*ram_host(f->vcpu.ram, moved), 9);
    fixture_destroy(f);
}

static void every_invalidation_is_noticed(void **state)
{
    enum { NONE, INVEPT_ONE, INVEPT_ALL, INVEPT_OTHER, INVVPID_PAGE, INVVPID_ONE, INVVPID_KEEPING, INVVPID_ALL, INVVPID_OTHER, WAYS };
    for (unsigned how = 0; how < WAYS; how++) {
        uint64_t pte, epte;
        struct fixture *f = prepared_guest(1, &pte, &epte, false);
        struct vcpu *v = &f->vcpu;
        uint64_t eptp = eptp_of(ept_root, false);
        load(f, gla);
        assert_true(shows(f, gla));
        enter_space(f, 0, 0);
        assert_false(window_table(v));
        fixture_put64(f, epte, 0);
        switch (how) {
        case INVEPT_ONE: mmu_flush_ept(v, eptp); break;
        case INVEPT_ALL: mmu_flush_all_epts(v); break;
        case INVEPT_OTHER: mmu_flush_ept(v, eptp_of(ept_root2, false)); break;
        case INVVPID_PAGE: mmu_flush_vpid_page(v, VPID, gla); break;
        case INVVPID_ONE: mmu_flush_vpid(v, VPID, false); break;
        case INVVPID_KEEPING: mmu_flush_vpid(v, VPID, true); break;
        case INVVPID_ALL: mmu_flush_all_vpids(v); break;
        case INVVPID_OTHER: mmu_flush_vpid(v, VPID + 1, false); break;
        default: break;
        }
        enter_space(f, eptp, VPID);
        assert_int_equal(shows(f, gla), how == NONE || how == INVEPT_OTHER || how == INVVPID_OTHER);
        fixture_destroy(f);
    }
}

/* SDM3 §29.4.3.1: a violation drops what is cached for the address, so the hypervisor may have it go elsewhere without INVEPT. */
static void a_violation_drops_the_page(void **state)
{
    for (unsigned supervisor = 0; supervisor < 2; supervisor++) {
        uint64_t pte[2], epte[2];
        uint8_t byte = 5;
        struct fixture *f = prepared_guest(2, pte, epte, false);
        struct vcpu *v = &f->vcpu;
        fixture_put64(f, epte[0], moved | (EPT_ALL & ~(uint64_t)EPTE_WRITE));
        assert_int_equal(load(f, gla), 0x40);
        assert_false(lets_write(f, gla));
        assert_false(mmu_store_slow(v, gla, &byte, 1, supervisor ? MMU_SUPERVISOR : MMU_USER));
        assert_int_equal(v->pending.kind, EVENT_VM_EXIT);
        assert_false(window_fill(v, gla, true));
        assert_false(window_table(v));
        fixture_put64(f, epte[0], page_b | EPT_ALL);
        fixture_put64(f, epte[1], 0);           /* of which nothing is known to the processor: it may still be used */
        exit_and_enter(f);
        assert_true(window_table(v));
        assert_int_equal(load(f, gla), 0xBB);
        assert_true(lets_write(f, gla));
        mmu_flush_ept(v, eptp_of(ept_root, false));
        assert_false(shows(f, gla + PAGE_SIZE));
        fixture_destroy(f);
    }
}

static void spaces_are_told_apart_by_ept(void **state)
{
    uint64_t pte, epte, other, next = ept_tables + 0x100000;
    struct fixture *f = prepared_guest(1, &pte, &epte, false);
    map_by_ept(f, ept_root2, &next, 1, &other);
    fixture_put64(f, other, page_b | EPT_ALL);
    assert_int_equal(load(f, gla), 0x40);
    enter_space(f, eptp_of(ept_root2, false), VPID);
    assert_false(window_table(&f->vcpu));
    heat(f);
    assert_false(shows(f, gla));
    assert_int_equal(load(f, gla), 0xBB);
    assert_true(shows(f, gla));
    enter_space(f, 0, 0);
    assert_false(window_table(&f->vcpu));
    heat(f);
    assert_int_equal(load(f, gla), 1);
    enter_space(f, eptp_of(ept_root, false), VPID + 1);         /* the same guest, by another VPID: its tables are looked through */
    fixture_put64(f, epte, page_b | EPT_ALL);
    mmu_flush_vpid(&f->vcpu, VPID + 1, false);
    assert_int_equal(load(f, gla), 0xBB);
    struct window_info info[WINDOW_SPACES];
    assert_int_equal(window_info(&f->vcpu, info), 3);
    fixture_destroy(f);
}

/* More of them than the TLB has contexts. */
static void a_context_that_is_taken_for_another_guest_has_none_of_the_first(void **state)
{
    uint64_t pte, epte, other, next = ept_tables + 0x100000;
    struct fixture *f = prepared_guest(1, &pte, &epte, false);
    map_by_ept(f, ept_root2, &next, 1, &other);
    fixture_put64(f, other, page_b | EPT_ALL);
    assert_int_equal(load(f, gla), 0x40);
    for (unsigned i = 1; i <= 2 * TLB_CONTEXTS; i++) {
        enter_space(f, eptp_of(ept_root2, false), (uint16_t)(VPID + i));
        assert_int_equal(load(f, gla), 0xBB);
    }
    enter_space(f, eptp_of(ept_root, false), VPID);
    assert_int_equal(load(f, gla), 0x40);
    fixture_destroy(f);
}

static void the_apic_access_page_is_not_shown(void **state)
{
    uint64_t pte[2], epte[2];
    struct fixture *f = prepared_guest(2, pte, epte, false);
    f->vcpu.vmx.control[VMX_PROC2] = PROC2_VIRTUALIZE_APIC_ACCESSES;
    f->vcpu.vmx.field[VMCS_APIC_ACCESS_ADDRESS] = moved + PAGE_SIZE;
    assert_int_equal(load(f, gla), 0x40);
    assert_true(shows(f, gla));
    assert_false(shows(f, gla + PAGE_SIZE));
    fixture_destroy(f);
}

/* A large page of the guest's, in small ones of EPT's; and the reverse. */
static void large_pages_of_either_kind(void **state)
{
    uint64_t pte, epte, next = ept_tables + 0x100000, guest_next = 0x80000, at = 0x7F0040000000, here = 0x1000000;
    struct fixture *f = prepared_guest(1, &pte, &epte, true);
    fixture_map(f, root, &guest_next, at, here | user | PTE_PS, 1);
    for (unsigned i = 0; i < 4; i++)
        fixture_map(f, ept_root, &next, here + i * PAGE_SIZE, (moved + (3 - i) * PAGE_SIZE) | EPT_ALL, 0);
    memset(ram_host(f->vcpu.ram, moved + 3 * PAGE_SIZE), 0x77, 8);
    assert_int_equal(load(f, at), 0x77);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(lets_write(f, at + i * PAGE_SIZE), i < 4);
    uint64_t large = fixture_map(f, ept_root, &next, here + (2 << 20), 0x2000000 | EPT_ALL | PTE_PS, 1);
    pte = fixture_map(f, root, &guest_next, at + (2 << 20), (here + (2 << 20) + 5 * PAGE_SIZE) | user, 0);
    memset(ram_host(f->vcpu.ram, 0x2005000), 0x66, 8);
    assert_int_equal(load(f, at + (2 << 20)), 0x66);
    assert_true(lets_write(f, at + (2 << 20)));
    fixture_put64(f, large, 0);
    mmu_flush_all_epts(&f->vcpu);
    assert_false(shows(f, at + (2 << 20)));
    assert_true(shows(f, at));
    fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_are_what_ept_allows),
        cmocka_unit_test(tables_are_accessed_through_ept),
        cmocka_unit_test(a_write_sets_d_in_ept_first),
        cmocka_unit_test(every_invalidation_is_noticed),
        cmocka_unit_test(a_violation_drops_the_page),
        cmocka_unit_test(spaces_are_told_apart_by_ept),
        cmocka_unit_test(a_context_that_is_taken_for_another_guest_has_none_of_the_first),
        cmocka_unit_test(the_apic_access_page_is_not_shown),
        cmocka_unit_test(large_pages_of_either_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
