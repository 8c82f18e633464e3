/*
 * What the software TLB must forget and what it should keep: INVLPG, MOV CR3, PCIDs, global and large pages, changes of mode,
 * protection keys. A stale entry shows as the old page's contents after the tables changed.
 */
#include "mmu_fixture.h"

enum { RAM_BYTES = 16 << 20 };
static const uint64_t root = 0x1000, root2 = 0x2000, tables = 0x10000, gla = 0x7F0012345000;
static const uint64_t page_a = 0x400000, page_b = 0x401000;

static struct fixture *prepared(uint64_t *pte, uint64_t flags)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables;
    *pte = fixture_map(f, root, &next, gla, page_a | flags, 0);
    memset(ram_host(f->vcpu.ram, page_a), 0xAA, PAGE_SIZE);
    memset(ram_host(f->vcpu.ram, page_b), 0xBB, PAGE_SIZE);
    fixture_long_mode(f, root);
    return f;
}

static uint8_t load(struct fixture *f, uint64_t address)
{
    uint8_t value = 0;
    f->vcpu.pending.kind = EVENT_NONE;
    return mmu_load8(&f->vcpu, address, &value) ? value : 0;
}

static void set_cr3(struct fixture *f, uint64_t cr3, bool keep)
{
    f->vcpu.cr3 = cr3;
    mmu_load_cr3(&f->vcpu, keep);
}

static void use_pcids(struct fixture *f)
{
    f->vcpu.cr4 |= CR4_PCIDE;
    mmu_mode_changed(&f->vcpu);
}

static void entries_are_kept_until_invlpg(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W);
    assert_int_equal(load(f, gla), 0xAA);
    fixture_put64(f, pte, page_b | PTE_P | PTE_W);
    assert_int_equal(load(f, gla), 0xAA);
    mmu_flush_page(&f->vcpu, gla + 123);
    assert_int_equal(load(f, gla), 0xBB);
    fixture_destroy(f);
}

static void mov_cr3_drops_all_but_global_pages(void **state)
{
    for (unsigned global = 0; global < 2; global++) {
        uint64_t pte;
        struct fixture *f = prepared(&pte, PTE_P | PTE_W | (global ? PTE_G : 0));
        assert_int_equal(load(f, gla), 0xAA);
        fixture_put64(f, pte, page_b | PTE_P | PTE_W | (global ? PTE_G : 0));
        set_cr3(f, root, false);
        assert_int_equal(load(f, gla), global ? 0xAA : 0xBB);
        f->vcpu.cr4 &= ~(uint64_t)CR4_PGE;      /* the usual way to drop global pages */
        mmu_mode_changed(&f->vcpu);
        assert_int_equal(load(f, gla), 0xBB);
        fixture_destroy(f);
    }
}

static void a_slot_once_local_may_become_global(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W);
    load(f, gla);
    fixture_put64(f, pte, page_a | PTE_P | PTE_W | PTE_G);
    mmu_flush_page(&f->vcpu, gla);
    assert_int_equal(load(f, gla), 0xAA);
    fixture_put64(f, pte, page_b | PTE_P | PTE_W | PTE_G);
    set_cr3(f, root, false);
    assert_int_equal(load(f, gla), 0xAA);
    fixture_destroy(f);
}

static void pcids_keep_their_entries(void **state)
{
    uint64_t pte, next = 0x80000;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W);
    fixture_map(f, root2, &next, gla, page_b | PTE_P | PTE_W, 0);
    use_pcids(f);
    set_cr3(f, root | 1, false);
    assert_int_equal(load(f, gla), 0xAA);
    set_cr3(f, root2 | 2, false);
    assert_int_equal(load(f, gla), 0xBB);
    fixture_put64(f, pte, page_b | PTE_P | PTE_W);
    set_cr3(f, root | 1, true);
    assert_int_equal(load(f, gla), 0xAA);       /* kept */
    set_cr3(f, root2 | 2, true);
    set_cr3(f, root | 1, false);
    assert_int_equal(load(f, gla), 0xBB);       /* flushed */
    fixture_destroy(f);
}

static void invlpg_leaves_other_pcids_but_for_global_pages(void **state)
{
    for (unsigned global = 0; global < 2; global++) {
        uint64_t pte, flags = PTE_P | PTE_W | (global ? PTE_G : 0);
        struct fixture *f = prepared(&pte, flags);
        use_pcids(f);
        set_cr3(f, root | 1, false);
        assert_int_equal(load(f, gla), 0xAA);
        fixture_put64(f, pte, page_b | flags);
        set_cr3(f, root | 2, true);
        mmu_flush_page(&f->vcpu, gla);
        set_cr3(f, root | 1, true);
        assert_int_equal(load(f, gla), global ? 0xBB : 0xAA);
        fixture_destroy(f);
    }
}

static void invpcid_reaches_contexts_that_rest(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W);
    use_pcids(f);
    for (unsigned whole = 0; whole < 2; whole++) {
        fixture_put64(f, pte, page_a | PTE_P | PTE_W);
        set_cr3(f, root | 1, false);
        assert_int_equal(load(f, gla), 0xAA);
        fixture_put64(f, pte, page_b | PTE_P | PTE_W);
        set_cr3(f, root | 2, true);
        mmu_flush_pcid_page(&f->vcpu, 3, gla);      /* another one's */
        if (whole)
            mmu_flush_pcid(&f->vcpu, 1);
        else
            mmu_flush_pcid_page(&f->vcpu, 1, gla);
        set_cr3(f, root | 1, true);
        assert_int_equal(load(f, gla), 0xBB);
    }
    fixture_destroy(f);
}

/* More PCIDs than contexts: the one that rested longest loses its entries, and no PCID ever sees another's. */
static void contexts_are_recycled(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = 0x80000;
    enum { PCIDS = 3 * TLB_CONTEXTS };
    for (unsigned i = 0; i < PCIDS; i++) {
        fixture_map(f, 0x20000 + i * PAGE_SIZE, &next, gla, (page_a + i * PAGE_SIZE) | PTE_P, 0);
        memset(ram_host(f->vcpu.ram, page_a + i * PAGE_SIZE), i + 1, PAGE_SIZE);
    }
    fixture_long_mode(f, 0x20000);
    use_pcids(f);
    for (unsigned n = 0; n < 2000; n++) {
        unsigned i = fixture_below(f, PCIDS);
        set_cr3(f, (0x20000 + i * PAGE_SIZE) | (i + 1), fixture_chance(f, 2));
        assert_int_equal(load(f, gla), i + 1);
    }
    fixture_destroy(f);
}

static void invlpg_drops_every_piece_of_a_large_page(void **state)
{
    static const struct { unsigned level; uint64_t stride; } size[] = { { 1, 0x1FF000 }, { 2, 0x3FFFF000 } };
    for (unsigned n = 0; n < 2; n++) {
        for (unsigned global = 0; global < 2; global++) {
            struct fixture *f = fixture_create(RAM_BYTES);
            uint64_t next = tables, flags = PTE_P | PTE_W | PTE_PS | (global ? PTE_G : 0), at = 0x7F0040000000;
            uint64_t entry = fixture_map(f, root, &next, at, flags, size[n].level);
            fixture_put64(f, 0x5000, 0);
            memset(ram_host(f->vcpu.ram, 0x5000), 0x11, 8);
            memset(ram_host(f->vcpu.ram, 0x9000), 0x22, 8);
            fixture_long_mode(f, root);
            assert_int_equal(load(f, at + 0x5000), 0x11);
            assert_int_equal(load(f, at + 0x9000), 0x22);
            fixture_put64(f, entry, flags & ~(uint64_t)PTE_P);
            mmu_flush_page(&f->vcpu, at + size[n].stride);
            assert_int_equal(load(f, at + 0x5000), 0);
            assert_int_equal(f->vcpu.pending.vector, VEC_PF);
            assert_int_equal(load(f, at + 0x9000), 0);
            fixture_destroy(f);
        }
    }
}

static void large_pages_of_32_bit_paging_too(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    struct vcpu *v = &f->vcpu;
    uint32_t pde = PTE_P | PTE_W | PTE_PS;
    memcpy(ram_host(v->ram, root + 4 * 0x100), &pde, 4);
    memset(ram_host(v->ram, 0x305000), 0x33, 8);
    v->cr0 = CR0_PE | CR0_PG;
    v->cr4 = CR4_PSE;
    v->cr3 = root;
    mmu_mode_changed(v);
    assert_int_equal(load(f, 0x40305000), 0x33);
    memset(ram_host(v->ram, root + 4 * 0x100), 0, 4);
    mmu_flush_page(v, 0x40000000);
    assert_int_equal(load(f, 0x40305000), 0);
    fixture_destroy(f);
}

static void changing_wp_takes_effect_at_once(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P);
    f->vcpu.cr0 &= ~(uint64_t)CR0_WP;
    mmu_mode_changed(&f->vcpu);
    assert_true(mmu_store8(&f->vcpu, gla, 1));
    f->vcpu.cr0 |= CR0_WP;
    mmu_mode_changed(&f->vcpu);
    assert_false(mmu_store8(&f->vcpu, gla, 1));
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_W);
    fixture_destroy(f);
}

static void privilege_picks_the_table(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W);       /* a supervisor page */
    assert_int_equal(load(f, gla), 0xAA);
    f->vcpu.cpl = 3;
    mmu_privilege_changed(&f->vcpu);
    assert_int_equal(load(f, gla), 0);
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_U);
    assert_int_equal(f->vcpu.pending.payload, gla);
    f->vcpu.cpl = 0;
    mmu_privilege_changed(&f->vcpu);
    assert_int_equal(load(f, gla), 0xAA);
    fixture_destroy(f);
}

static void smap_follows_the_ac_flag(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables;
    fixture_map(f, root, &next, gla, page_a | PTE_P | PTE_U, 0);
    memset(ram_host(f->vcpu.ram, page_a), 0xAA, PAGE_SIZE);
    fixture_long_mode(f, root);
    assert_int_equal(load(f, gla), 0xAA);
    f->vcpu.cr4 |= CR4_SMAP;
    mmu_mode_changed(&f->vcpu);
    assert_int_equal(load(f, gla), 0);
    assert_int_equal(f->vcpu.pending.error, PF_P);
    f->vcpu.rflags |= RFLAGS_AC;
    mmu_privilege_changed(&f->vcpu);
    assert_int_equal(load(f, gla), 0xAA);
    uint64_t value;
    assert_false(mmu_load(&f->vcpu, gla, 8, mmu_implicit(&f->vcpu), &value));
    fixture_destroy(f);
}

static void pkru_takes_effect_at_once(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W | PTE_U | 5ull << 59);
    f->vcpu.cr4 |= CR4_PKE;
    mmu_mode_changed(&f->vcpu);
    assert_true(mmu_store8(&f->vcpu, gla, 0xCC));
    f->vcpu.fpu.pkru = 2u << 10;        /* WD of key 5 */
    mmu_mode_changed(&f->vcpu);
    assert_int_equal(load(f, gla), 0xCC);
    assert_false(mmu_store8(&f->vcpu, gla, 1));
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_W | PF_PK);
    f->vcpu.fpu.pkru = 1u << 10;        /* AD */
    mmu_mode_changed(&f->vcpu);
    assert_int_equal(load(f, gla), 0);
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_PK);
    fixture_destroy(f);
}

static void dirty_is_set_by_the_first_write_only(void **state)
{
    uint64_t pte;
    struct fixture *f = prepared(&pte, PTE_P | PTE_W);
    load(f, gla);
    assert_int_equal(fixture_get64(f, pte) & (PTE_A | PTE_D), PTE_A);
    assert_true(mmu_store8(&f->vcpu, gla, 1));
    assert_int_equal(fixture_get64(f, pte) & (PTE_A | PTE_D), PTE_A | PTE_D);
    fixture_destroy(f);
}

/* After any change of an entry and the right flush, what is read is what the tables say. */
static void random_changes_with_flushes(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    enum { PAGES = 64, FRAMES = 256 };
    uint64_t next = tables, pte[PAGES], page[PAGES];
    for (unsigned i = 0; i < FRAMES; i++)
        fixture_put64(f, page_a + i * PAGE_SIZE, i + 1);
    for (unsigned i = 0; i < PAGES; i++) {
        page[i] = gla + (i & 7) * (uint64_t)TLB_SIZE * PAGE_SIZE + (i >> 3) * PAGE_SIZE;     /* eight share each slot */
        pte[i] = fixture_map(f, root, &next, page[i], 0, 0);
    }
    fixture_long_mode(f, root);
    for (unsigned n = 0; n < 200000; n++) {
        unsigned i = fixture_below(f, PAGES);
        if (fixture_chance(f, 4)) {
            uint64_t global = fixture_random(f) & PTE_G;
            uint64_t entry = (page_a + fixture_below(f, FRAMES) * PAGE_SIZE) | global | PTE_W | (fixture_chance(f, 5) ? 0 : PTE_P);
            bool was_global = fixture_get64(f, pte[i]) & PTE_G;
            fixture_put64(f, pte[i], entry);
            if (!was_global && fixture_chance(f, 3))
                set_cr3(f, root, false);
            else if (fixture_chance(f, 20))
                mmu_flush_all(&f->vcpu);
            else
                mmu_flush_page(&f->vcpu, page[i] + fixture_below(f, PAGE_SIZE));
        }
        uint64_t entry = fixture_get64(f, pte[i]), value = 0;
        bool ok = fixture_chance(f, 3) ? mmu_store64(&f->vcpu, page[i] + 8, n) : mmu_load64(&f->vcpu, page[i], &value);
        assert_int_equal(ok, entry & PTE_P);
        if (ok && value)
            assert_int_equal(value, ((entry & 0xFFFFFFF000) - page_a) / PAGE_SIZE + 1);
    }
    fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_are_kept_until_invlpg),
        cmocka_unit_test(mov_cr3_drops_all_but_global_pages),
        cmocka_unit_test(a_slot_once_local_may_become_global),
        cmocka_unit_test(pcids_keep_their_entries),
        cmocka_unit_test(invlpg_leaves_other_pcids_but_for_global_pages),
        cmocka_unit_test(invpcid_reaches_contexts_that_rest),
        cmocka_unit_test(contexts_are_recycled),
        cmocka_unit_test(invlpg_drops_every_piece_of_a_large_page),
        cmocka_unit_test(large_pages_of_32_bit_paging_too),
        cmocka_unit_test(changing_wp_takes_effect_at_once),
        cmocka_unit_test(privilege_picks_the_table),
        cmocka_unit_test(smap_follows_the_ac_flag),
        cmocka_unit_test(pkru_takes_effect_at_once),
        cmocka_unit_test(dirty_is_set_by_the_first_write_only),
        cmocka_unit_test(random_changes_with_flushes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
