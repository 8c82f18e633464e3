/*
 * Windows: what translated code would reach through the table, at every moment, is what the software TLB would let it reach; and
 * nothing else of the process, whatever the address. The accesses here are made as translated code makes them.
 */
#include "window_fixture.h"

#include <inttypes.h>
#include <stdio.h>

/* A miss in a chunk with a window has an address; where there is no window, none. */
static void chunks_in_use_have_windows(void **state)
{
    uint64_t pte, next = 0x80000, other = 0x550000000000;
    struct fixture *f = prepared(1, &pte, user);
    heat(f);
    assert_int_equal(counted(f, COUNTER_windows_made), 1);
    window_missed(&f->vcpu);
    assert_int_equal(counted(f, COUNTER_windows_made), 1);
    fixture_map(f, root, &next, other, page_b | user, 0);
    uint8_t value;
    assert_true(mmu_load8(&f->vcpu, other, &value));
    window_missed(&f->vcpu);
    assert_int_equal(counted(f, COUNTER_windows_made), 2);
    assert_false(shows(f, other));
    load(f, other);
    assert_true(shows(f, other));
    fixture_destroy(f);
}

static void spaces_turn_hot_by_running(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user);
    assert_false(window_table(&f->vcpu));
    window_account(&f->vcpu, HOT - 1);
    assert_false(window_table(&f->vcpu));
    assert_false(window_fill(&f->vcpu, gla, false));
    window_account(&f->vcpu, 1);
    assert_true(window_table(&f->vcpu));
    assert_int_equal(window_table(&f->vcpu) % 64, 0);
    f->vcpu.cpl = 0;
    mmu_privilege_changed(&f->vcpu);
    assert_false(window_table(&f->vcpu));
    fixture_destroy(f);
}

static void a_fill_shows_the_page(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user & ~(uint64_t)(PTE_A | PTE_D));
    heat(f);
    assert_false(shows(f, gla));
    assert_int_equal(load(f, gla), 1);
    assert_true(shows(f, gla));
    assert_true(shows(f, gla + PAGE_SIZE - 1));
    assert_false(shows(f, gla + PAGE_SIZE));
    assert_false(shows(f, gla - 1));
    assert_int_equal(counted(f, COUNTER_window_fills), 1);
    assert_int_equal(counted(f, COUNTER_windows_made), 1);
    /* Not written yet: D is clear, so the write must be seen. */
    assert_false(lets_write(f, gla));
    assert_false(fixture_get64(f, pte) & PTE_D);
    assert_true(store(f, gla, 9));
    assert_true(fixture_get64(f, pte) & PTE_D);
    assert_true(lets_write(f, gla));
    assert_int_equal(*ram_host(f->vcpu.ram, page_a), 9);
    fixture_destroy(f);
}

static void what_is_no_memory_is_not_shown(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user);
    heat(f);
    fixture_put64(f, pte, 0xF0000000 | user);
    load(f, gla);
    assert_false(shows(f, gla));
    fixture_put64(f, pte, page_a | (user & ~(uint64_t)PTE_U));
    mmu_flush_page(&f->vcpu, gla);
    load(f, gla);
    assert_int_equal(f->vcpu.pending.vector, VEC_PF);
    assert_false(shows(f, gla));
    assert_false(window_fill(&f->vcpu, gla, false));
    assert_false(window_fill(&f->vcpu, 0xFFFF800000000000, false));
    fixture_destroy(f);
}

/* Neighbours come along if the processor could hold them in its TLB, and no bit is set in their entries. */
static void neighbours_come_along(void **state)
{
    enum { PAGES = 8 };
    uint64_t pte[PAGES];
    struct fixture *f = prepared(PAGES, pte, user);
    fixture_put64(f, pte[2], page_b | user);                                    /* elsewhere in memory */
    fixture_put64(f, pte[3], fixture_get64(f, pte[3]) & ~(uint64_t)PTE_A);
    fixture_put64(f, pte[4], fixture_get64(f, pte[4]) & ~(uint64_t)PTE_D);
    fixture_put64(f, pte[5], fixture_get64(f, pte[5]) & ~(uint64_t)PTE_W);
    fixture_put64(f, pte[6], fixture_get64(f, pte[6]) & ~(uint64_t)PTE_U);
    fixture_put64(f, pte[7], fixture_get64(f, pte[7]) | BIT(50));               /* reserved */
    heat(f);
    assert_int_equal(load(f, gla), 1);
    static const struct { bool shown, written; } expected[PAGES] = {
        { true, true }, { true, true }, { true, true }, { false, false }, { true, false }, { true, false }, { false, false }, { false, false },
    };
    for (unsigned i = 0; i < PAGES; i++) {
        assert_int_equal(shows(f, gla + i * PAGE_SIZE), expected[i].shown);
        assert_int_equal(lets_write(f, gla + i * PAGE_SIZE), expected[i].written);
    }
    assert_int_equal(load(f, gla + 2 * PAGE_SIZE), 0xBB);
    assert_false(fixture_get64(f, pte[3]) & (PTE_A));
    assert_false(fixture_get64(f, pte[4]) & (PTE_D));
    assert_int_equal(counted(f, COUNTER_window_fills), 1);
    fixture_destroy(f);
}

static void invlpg_takes_the_page_only(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(2, pte, user);
    heat(f);
    load(f, gla);
    fixture_put64(f, pte[0], 0);
    fixture_put64(f, pte[1], 0);
    assert_true(shows(f, gla));
    mmu_flush_page(&f->vcpu, gla);
    assert_false(shows(f, gla));
    fixture_destroy(f);
}

/* Copy on write: the page is another one afterwards, and shown without a fault. */
static void invlpg_follows_a_page_that_moved(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user & ~(uint64_t)PTE_W);
    heat(f);
    assert_int_equal(load(f, gla), 1);
    assert_false(lets_write(f, gla));
    fixture_put64(f, pte, page_b | user);
    mmu_flush_page(&f->vcpu, gla);
    assert_true(lets_write(f, gla));
    assert_int_equal(load(f, gla), 0xBB);
    assert_int_equal(counted(f, COUNTER_window_faults), 1);
    fixture_destroy(f);
}

static void a_flush_keeps_what_is_still_true(void **state)
{
    enum { PAGES = 6 };
    uint64_t pte[PAGES];
    struct fixture *f = prepared(PAGES, pte, user);
    heat(f);
    load(f, gla);
    fixture_put64(f, pte[1], 0);
    fixture_put64(f, pte[2], fixture_get64(f, pte[2]) & ~(uint64_t)PTE_W);
    fixture_put64(f, pte[3], fixture_get64(f, pte[3]) & ~(uint64_t)PTE_D);
    fixture_put64(f, pte[4], fixture_get64(f, pte[4]) & ~(uint64_t)PTE_A);
    fixture_put64(f, pte[5], page_b | user);
    set_cr3(f, root, false);
    static const struct { bool shown, written; } expected[PAGES] = {
        { true, true }, { false, false }, { true, false }, { true, false }, { false, false }, { true, true },
    };
    for (unsigned i = 0; i < PAGES; i++) {
        assert_int_equal(shows(f, gla + i * PAGE_SIZE), expected[i].shown);
        assert_int_equal(lets_write(f, gla + i * PAGE_SIZE), expected[i].written);
    }
    assert_int_equal(load(f, gla + 5 * PAGE_SIZE), 0xBB);
    assert_int_equal(counted(f, COUNTER_window_faults), 1);
    fixture_destroy(f);
}

static void every_flush_is_noticed(void **state)
{
    for (unsigned how = 0; how < 6; how++) {
        uint64_t pte;
        struct fixture *f = prepared(1, &pte, user);
        struct vcpu *v = &f->vcpu;
        v->cr4 |= CR4_PCIDE;
        mmu_mode_changed(v);
        set_cr3(f, root | 1, false);
        heat(f);
        load(f, gla);
        assert_true(shows(f, gla));
        fixture_put64(f, pte, 0);
        set_cr3(f, root2 | 2, true);
        assert_false(window_table(v));
        switch (how) {
        case 0: set_cr3(f, root | 1, true); break;      /* no flush at all */
        case 1: set_cr3(f, root | 1, false); break;
        case 2: mmu_flush_pcid(v, 1); set_cr3(f, root | 1, true); break;
        case 3: mmu_flush_pcid_page(v, 1, gla); set_cr3(f, root | 1, true); break;
        case 4: mmu_flush_all(v); set_cr3(f, root | 1, true); break;
        case 5: set_cr3(f, root | 3, true); break;      /* another PCID: it has no translations */
        }
        assert_int_equal(shows(f, gla), how == 0);
        fixture_destroy(f);
    }
}

/* The PCID goes to another space, and is then flushed: the first space's translations had that PCID, too. */
static void a_flushed_pcid_takes_all_spaces_that_it_had(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user);
    f->vcpu.cr4 |= CR4_PCIDE;
    mmu_mode_changed(&f->vcpu);
    set_cr3(f, root | 1, false);
    heat(f);
    load(f, gla);
    fixture_put64(f, pte, 0);
    set_cr3(f, root2 | 1, true);
    mmu_flush_pcid(&f->vcpu, 1);
    set_cr3(f, root | 1, true);
    assert_false(shows(f, gla));
    fixture_destroy(f);
}

static void invlpg_reaches_global_pages_of_other_spaces(void **state)
{
    for (unsigned global = 0; global < 2; global++) {
        uint64_t pte;
        struct fixture *f = prepared(1, &pte, user | (global ? PTE_G : 0));
        f->vcpu.cr4 |= CR4_PCIDE;
        mmu_mode_changed(&f->vcpu);
        set_cr3(f, root | 1, false);
        heat(f);
        load(f, gla);
        fixture_put64(f, pte, 0);
        set_cr3(f, root2 | 2, true);
        mmu_flush_page(&f->vcpu, gla);
        set_cr3(f, root | 1, true);
        assert_int_equal(shows(f, gla), !global);
        fixture_destroy(f);
    }
}

static void large_pages_are_shown_and_flushed_whole(void **state)
{
    for (unsigned level = 1; level < 3; level++) {
        struct fixture *f = fixture_create(RAM_BYTES);
        uint64_t next = tables, at = 0x7F0040000000;
        uint64_t entry = fixture_map(f, root, &next, at, user | PTE_PS, level);
        memset(ram_host(f->vcpu.ram, 0x1FF000), 0x77, 8);
        enter_user(f, root);
        heat(f);
        assert_int_equal(load(f, at + 0x1FF000), 0x77);
        assert_true(lets_write(f, at + 0x1FF000));
        assert_true(shows(f, at + 0x1C0000));
        for (unsigned i = 0; i < 4; i++)
            load(f, at + i * 0x40000);
        assert_true(shows(f, at + 0x100000));
        fixture_put64(f, entry, 0);
        mmu_flush_page(&f->vcpu, at + (level == 1 ? 0x12345 : 0x30000000));
        for (unsigned i = 0; i < 512; i++)
            assert_false(shows(f, at + i * PAGE_SIZE));
        fixture_destroy(f);
    }
}

static void stamp(struct fixture *f, uint64_t gpa)
{
    for (uint64_t at = gpa; at < gpa + RAM_LARGE; at += PAGE_SIZE)
        assert_true(ram_write(f->vcpu.ram, at, &(uint8_t){ (uint8_t)(at >> PAGE_SHIFT) }, 1));
}

static void check_stamps(struct fixture *f, uint64_t at, uint64_t gpa)
{
    for (uint64_t offset = 0; offset < RAM_LARGE; offset += PAGE_SIZE)
        assert_int_equal(load(f, at + offset), (uint8_t)((gpa + offset) >> PAGE_SHIFT));
}

static void large_pages_that_are_worth_it_become_the_hosts(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    const uint64_t at = 0x7F0040000000, again = 0x7F0080000000, gpa = 0x1000000;
    const struct ram_slot *slot = ram_find(f->vcpu.ram, gpa);
    const _Atomic uint32_t *word = ram_page(slot, gpa);
    const uint32_t asked = PAGE_LARGE | PAGE_LARGE_REFUSED;
    uint64_t next = tables;
    fixture_map(f, root, &next, at, gpa | user | PTE_PS, 1);
    fixture_map(f, root, &next, again, gpa | user | PTE_PS, 1);
    stamp(f, gpa);
    enter_user(f, root);
    heat(f);
    check_stamps(f, at, gpa);
    assert_false(*word & asked);
    window_account(&f->vcpu, 8 * HOT);                  /* the end of a stretch */
    assert_true(*word & asked);
    check_stamps(f, at, gpa);
    assert_true(lets_write(f, at + 0x123000));

    /* A second view of it comes whole at once if it is one page, and where the host can use one entry. */
    uint64_t before = counted(f, COUNTER_window_pages);
    assert_int_equal(load(f, again + 0x100000), 0);
    assert_int_equal(counted(f, COUNTER_window_pages) - before, ram_is_large(slot, gpa) ? 512 : 64);
    assert_int_equal((reach(window_table(&f->vcpu), again, 0) - again) % RAM_LARGE, 0);
    check_stamps(f, again, gpa);
    fixture_destroy(f);
}

static void decoding_takes_write_access(void **state)
{
    uint64_t pte[3];
    struct fixture *f = prepared(3, pte, user);
    fixture_put64(f, pte[2], page_a | user);        /* a second view of the first page */
    heat(f);
    load(f, gla);
    for (unsigned i = 0; i < 3; i++)
        assert_true(lets_write(f, gla + i * PAGE_SIZE));
    assert_true(code_map_add(f->vcpu.ram, page_a + 100, 4));
    mmu_unshare_writes(&f->vcpu, page_a);
    assert_true(shows(f, gla));
    assert_false(lets_write(f, gla));
    assert_true(lets_write(f, gla + PAGE_SIZE));
    assert_true(shows(f, gla + 2 * PAGE_SIZE));
    assert_false(lets_write(f, gla + 2 * PAGE_SIZE));
    assert_true(store(f, gla, 3));                  /* seen: slow */
    assert_false(lets_write(f, gla));
    code_map_remove(f->vcpu.ram, page_a, PAGE_SIZE);
    assert_true(store(f, gla, 4));
    assert_true(lets_write(f, gla));
    fixture_destroy(f);
}

static void pages_with_code_are_shown_for_reading(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(2, pte, user);
    code_map_add(f->vcpu.ram, page_a, 4);
    code_map_add(f->vcpu.ram, page_a + PAGE_SIZE, 4);
    heat(f);
    store(f, gla, 7);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(shows(f, gla + i * PAGE_SIZE));
        assert_false(lets_write(f, gla + i * PAGE_SIZE));
    }
    fixture_destroy(f);
}

static void collecting_dirty_pages_takes_write_access(void **state)
{
    uint64_t pte[2], bitmap[RAM_BYTES / PAGE_SIZE / 64];
    struct fixture *f = prepared(2, pte, user);
    struct ram *ram = f->vcpu.ram;
    heat(f);
    load(f, gla);
    ram_dirty_start(ram, DIRTY_SNAPSHOT);
    mmu_drop_all_write_entries(&f->vcpu);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 2; i++) {
            assert_true(shows(f, gla + i * PAGE_SIZE));
            assert_false(lets_write(f, gla + i * PAGE_SIZE));
        }
        store(f, gla + PAGE_SIZE, 1);
        assert_true(lets_write(f, gla + PAGE_SIZE));
        assert_false(lets_write(f, gla));           /* it would be marked dirty without having been written */
        ram_dirty_collect(ram, DIRTY_SNAPSHOT, &ram->slot[0], bitmap);
        mmu_drop_all_write_entries(&f->vcpu);
        uint64_t page = page_a / PAGE_SIZE + 1;
        assert_true(bitmap[page / 64] & BIT(page % 64));
        page--;
        assert_false(bitmap[page / 64] & BIT(page % 64));
    }
    fixture_destroy(f);
}

static void hidden_pages_disappear(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(2, pte, user);
    ram_set_pages(f->vcpu.ram, page_a, PAGE_SIZE, 0);
    heat(f);
    load(f, gla);
    assert_true(lets_write(f, gla));
    ram_set_pages(f->vcpu.ram, page_a, PAGE_SIZE, PAGE_ROM);
    mmu_flush_all(&f->vcpu);
    assert_true(shows(f, gla));
    assert_false(lets_write(f, gla));
    ram_set_pages(f->vcpu.ram, page_a, PAGE_SIZE, PAGE_HIDDEN);
    mmu_flush_all(&f->vcpu);
    assert_false(shows(f, gla));
    assert_true(shows(f, gla + PAGE_SIZE));
    fixture_destroy(f);
}

static void breakpoints_alignment_and_keys_turn_windows_off(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user);
    struct vcpu *v = &f->vcpu;
    heat(f);
    load(f, gla);
    v->dr[0] = gla;
    v->dr7 = 1 | 1u << 16;
    mmu_mode_changed(v);
    assert_false(window_table(v));
    v->dr7 = 0;
    mmu_mode_changed(v);
    assert_true(shows(f, gla));
    v->cr0 |= CR0_AM;
    v->rflags |= RFLAGS_AC;
    mmu_mode_changed(v);
    assert_false(window_table(v));
    v->rflags = 0;
    mmu_privilege_changed(v);
    assert_true(shows(f, gla));
    v->cr4 |= CR4_PKE;
    mmu_mode_changed(v);
    assert_true(shows(f, gla));
    v->fpu.pkru = 1;
    mmu_mode_changed(v);
    assert_false(window_table(v));
    v->fpu.pkru = 0;
    fixture_put64(f, pte, page_a | user | 5ull << 59);
    mmu_mode_changed(v);
    mmu_flush_page(v, gla);
    assert_false(shows(f, gla));
    assert_int_equal(load(f, gla), 1);
    assert_false(shows(f, gla));
    fixture_destroy(f);
}

/* Costs above twice the instructions cool a space, and it must run longer to be hot again. */
static void what_does_not_pay_turns_cold(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user);
    heat(f);
    unsigned n = 0;
    for (; window_table(&f->vcpu) && n < 100000; n++) {
        load(f, gla);
        fixture_put64(f, pte, 0);
        mmu_flush_page(&f->vcpu, gla);
        assert_false(shows(f, gla));
        fixture_put64(f, pte, page_a | user);
    }
    assert_in_range(n, 100, 10000);
    assert_int_equal(counted(f, COUNTER_window_demotions), 1);
    window_account(&f->vcpu, HOT);
    assert_false(window_table(&f->vcpu));
    window_account(&f->vcpu, HOT);
    assert_true(window_table(&f->vcpu));
    assert_false(shows(f, gla));
    load(f, gla);
    for (unsigned i = 0; i < 100; i++)
        window_account(&f->vcpu, HOT);
    assert_true(shows(f, gla));
    fixture_destroy(f);
}

/* Pages that go with a flush are the process's own doing; but not if its table was out of sight in between. */
static void a_table_used_anew_is_another_process(void **state)
{
    enum { PAGES = 64 };
    for (unsigned away = 0; away < 2; away++) {
        uint64_t pte[PAGES];
        struct fixture *f = prepared(PAGES, pte, user);
        heat(f);
        load(f, gla);
        assert_true(shows(f, gla));
        for (unsigned i = 0; i < PAGES; i++)
            fixture_put64(f, pte[i], 0);
        if (away)
            set_cr3(f, root2, false);
        set_cr3(f, root, false);
        assert_int_equal(window_table(&f->vcpu) != 0, !away);
        assert_false(shows(f, gla));
        window_account(&f->vcpu, HOT - 1);
        assert_int_equal(window_table(&f->vcpu) != 0, !away);
        fixture_destroy(f);
    }
}

/* The handler of a page fault has mapped the page: what faulted finds it shown. A handler that leaves A clear is not believed. */
static void the_page_of_a_page_fault_is_shown(void **state)
{
    for (unsigned accessed = 0; accessed < 2; accessed++) {
        uint64_t pte[2];
        struct fixture *f = prepared(2, pte, user);
        heat(f);
        load(f, gla + PAGE_SIZE);
        fixture_put64(f, pte[0], 0);
        mmu_flush_page(&f->vcpu, gla);
        assert_false(shows(f, gla));
        f->vcpu.cr2 = gla + 8;
        fixture_put64(f, pte[0], page_b | (user & ~(accessed ? 0ull : PTE_A)));
        assert_int_equal(lets_write(f, gla), accessed);
        assert_int_equal(fixture_get64(f, pte[0]) & PTE_A, accessed ? PTE_A : 0);
        fixture_destroy(f);
    }
}

/* More spaces than are kept: each shows its own pages, and one that was recycled nobody else's. */
static void spaces_are_recycled(void **state)
{
    enum { SPACES = 40 };
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = 0x80000;
    for (unsigned i = 0; i < SPACES; i++) {
        fixture_map(f, 0x20000 + i * PAGE_SIZE, &next, gla, (page_a + i * PAGE_SIZE) | user, 0);
        memset(ram_host(f->vcpu.ram, page_a + i * PAGE_SIZE), (int)i + 1, PAGE_SIZE);
    }
    enter_user(f, 0x20000);
    f->vcpu.cr4 |= CR4_PCIDE;
    mmu_mode_changed(&f->vcpu);
    for (unsigned n = 0; n < 1000; n++) {
        unsigned i = fixture_below(f, SPACES);
        set_cr3(f, (0x20000 + i * PAGE_SIZE) | (i % 12 + 1), false);
        if (fixture_chance(f, 3))
            window_account(&f->vcpu, HOT);
        assert_int_equal(load(f, gla), i + 1);
        assert_int_equal(load(f, gla), i + 1);
    }
    assert_true(counted(f, COUNTER_window_fills) > 20);
    fixture_destroy(f);
}

/* --- the proof, tried out --- */

struct range {
    uintptr_t first, end;
};

/* What the process can access at all, windows left out, by /proc/self/maps. */
static unsigned accessible(struct range *range, unsigned max)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    char line[512], rights[8];
    unsigned count = 0;
    while (fgets(line, sizeof(line), maps)) {
        struct range r;
        uint64_t offset;
        assert_int_equal(sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s %" SCNx64, &r.first, &r.end, rights, &offset), 4);
        if (!strncmp(rights, "---", 3))
            continue;
        assert_true(count < max);
        range[count++] = r;
    }
    fclose(maps);
    return count;
}

static bool is_accessible(const struct range *range, unsigned count, uintptr_t at)
{
    for (unsigned i = 0; i < count; i++)
        if (at > range[i].first - WINDOW_OPERAND && at < range[i].end)
            return true;
    return false;
}

static void no_address_reaches_beyond_the_windows(void **state)
{
    static const uint64_t corner[] = {
        0, BIT(36), 2 * BIT(36), gla, gla & ~(BIT(36) - 1), (gla | (BIT(36) - 1)) + 1, BIT(47), BIT(47) + BIT(36), BIT(48), BIT(56), BIT(57),
        BIT(62), BIT(63), 0xFFFF800000000000, 0xFF00000000000000, -BIT(36), -2 * BIT(36), 0xFFFFFFFFFF600000, -BIT(31), -BIT(47), -BIT(62),
    };
    uint64_t pte;
    struct fixture *f = prepared(1, &pte, user);
    heat(f);
    load(f, gla);
    uintptr_t table = window_table(&f->vcpu), shown = reach(table, gla, 0);
    struct range range[1024];
    unsigned count = accessible(range, ARRAY_SIZE(range));
    assert_true(is_accessible(range, count, (uintptr_t)&count));
    assert_true(is_accessible(range, count, shown));
    for (unsigned n = 0; n < 2000000; n++) {
        uint64_t base = fixture_random(f);
        if (n % 4)
            base = corner[fixture_below(f, ARRAY_SIZE(corner))] + (base >> (n % 4 == 1 ? 63 : n % 4 == 2 ? 33 : 28)) - (n % 3) * BIT(31);
        else if (n % 8)     /* one that wants to be at something of the process */
            base = range[fixture_below(f, count)].first - (base >> 32);
        static const int32_t disp_corner[] = { 0, INT32_MIN, INT32_MAX, -1, 1, -4096, 4096 };
        int32_t disp = n % 5 ? disp_corner[fixture_below(f, ARRAY_SIZE(disp_corner))] : (int32_t)fixture_random(f);
        uintptr_t at = reach(table, base, disp);
        uint8_t value;
        if (at - shown < PAGE_SIZE || shown - at < WINDOW_OPERAND) {
            assert_true((base + (uint64_t)(int64_t)disp) - gla + WINDOW_OPERAND < PAGE_SIZE + WINDOW_OPERAND);
            continue;
        }
        if (is_accessible(range, count, at))
            fail_msg("base %#" PRIx64 " disp %d reaches %#" PRIxPTR, base, disp, at);
        if (n % 512 == 0)
            assert_false(try_load(table, base, disp, &value));
    }
    fixture_destroy(f);
}

static void chunk_borders(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables, border = gla & ~(BIT(WINDOW_CHUNK_SHIFT) - 1);
    fixture_map(f, root, &next, border - PAGE_SIZE, page_a | user, 0);
    fixture_map(f, root, &next, border, page_b | user, 0);
    memset(ram_host(f->vcpu.ram, page_a), 0xAA, PAGE_SIZE);
    memset(ram_host(f->vcpu.ram, page_b), 0xBB, PAGE_SIZE);
    enter_user(f, root);
    heat(f);
    assert_int_equal(load(f, border - 1), 0xAA);
    assert_int_equal(load(f, border), 0xBB);
    assert_int_equal(counted(f, COUNTER_windows_made), 2);
    uintptr_t table = window_table(&f->vcpu);
    uint8_t value;
    assert_true(try_load(table, border - 1, 0, &value));
    assert_true(try_load(table, border, 0, &value));
    /* Over the border by the displacement: the guard, so the exact path. */
    assert_false(try_load(table, border - 1, 1, &value));
    assert_false(try_load(table, border, -1, &value));
    fixture_destroy(f);
}

/* After any change of the tables and the right flush, what is read and what may be written is what the tables say. */
static void random_changes(void **state)
{
    enum { PAGES = 300, FRAMES = 256 };
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables, pte[PAGES], at[PAGES];
    for (unsigned i = 0; i < FRAMES; i++)
        fixture_put64(f, page_a + i * PAGE_SIZE, i + 1);
    for (unsigned i = 0; i < PAGES; i++) {
        at[i] = gla + i / 100 * BIT(37) + i % 100 * (i < 100 ? PAGE_SIZE : 0x1F000);
        pte[i] = fixture_map(f, root, &next, at[i], 0, 0);
    }
    enter_user(f, root);
    for (unsigned n = 0; n < 60000; n++) {
        if (n % 256 == 0)
            window_account(&f->vcpu, 4 * HOT);
        unsigned i = fixture_below(f, PAGES);
        if (fixture_chance(f, 4)) {
            uint64_t frame = fixture_chance(f, 2) ? i % FRAMES : fixture_below(f, FRAMES);
            uint64_t flags = user & ~(fixture_chance(f, 5) ? PTE_P : 0) & ~(fixture_chance(f, 3) ? PTE_W : 0) & ~(fixture_chance(f, 3) ? PTE_D : 0);
            fixture_put64(f, pte[i], (page_a + frame * PAGE_SIZE) | flags);
            if (fixture_chance(f, 30))
                set_cr3(f, root, false);
            else
                mmu_flush_page(&f->vcpu, at[i]);
        }
        if (fixture_chance(f, 50)) {
            uint64_t gpa = page_a + fixture_below(f, FRAMES) * PAGE_SIZE;
            if (fixture_chance(f, 2) && code_map_add(f->vcpu.ram, gpa, 4))
                mmu_unshare_writes(&f->vcpu, gpa);
            else
                code_map_remove(f->vcpu.ram, gpa, PAGE_SIZE);
        }
        uint64_t entry = fixture_get64(f, pte[i]), gpa = entry & 0xFFFFFFF000;
        if (fixture_chance(f, 3)) {
            assert_int_equal(store(f, at[i] + 8, (uint8_t)n), (entry & (PTE_P | PTE_W)) == (PTE_P | PTE_W));
        } else {
            assert_int_equal(load(f, at[i]), entry & PTE_P ? ((gpa - page_a) / PAGE_SIZE + 1) % 256 : 0);
        }
        entry = fixture_get64(f, pte[i]);
        if (shows(f, at[i]))
            assert_true(entry & PTE_P);
        if (lets_write(f, at[i])) {
            assert_int_equal(entry & user, user);
            assert_false(atomic_load(ram_page(ram_find(f->vcpu.ram, gpa), gpa)) & PAGE_CODE);
        }
    }
    assert_true(counted(f, COUNTER_window_fills) > 1000);
    fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spaces_turn_hot_by_running),
        cmocka_unit_test(chunks_in_use_have_windows),
        cmocka_unit_test(a_fill_shows_the_page),
        cmocka_unit_test(what_is_no_memory_is_not_shown),
        cmocka_unit_test(neighbours_come_along),
        cmocka_unit_test(invlpg_takes_the_page_only),
        cmocka_unit_test(invlpg_follows_a_page_that_moved),
        cmocka_unit_test(a_flush_keeps_what_is_still_true),
        cmocka_unit_test(every_flush_is_noticed),
        cmocka_unit_test(a_flushed_pcid_takes_all_spaces_that_it_had),
        cmocka_unit_test(invlpg_reaches_global_pages_of_other_spaces),
        cmocka_unit_test(large_pages_are_shown_and_flushed_whole),
        cmocka_unit_test(large_pages_that_are_worth_it_become_the_hosts),
        cmocka_unit_test(decoding_takes_write_access),
        cmocka_unit_test(pages_with_code_are_shown_for_reading),
        cmocka_unit_test(collecting_dirty_pages_takes_write_access),
        cmocka_unit_test(hidden_pages_disappear),
        cmocka_unit_test(breakpoints_alignment_and_keys_turn_windows_off),
        cmocka_unit_test(what_does_not_pay_turns_cold),
        cmocka_unit_test(a_table_used_anew_is_another_process),
        cmocka_unit_test(the_page_of_a_page_fault_is_shown),
        cmocka_unit_test(spaces_are_recycled),
        cmocka_unit_test(no_address_reaches_beyond_the_windows),
        cmocka_unit_test(chunk_borders),
        cmocka_unit_test(random_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
