/* Guest memory access: page-crossing, MMIO, ROM, pages with code, dirty tracking, breakpoints, read-modify-write. */
#include "mmu_fixture.h"

enum { RAM_BYTES = 16 << 20 };
static const uint64_t root = 0x1000, tables = 0x10000, gla = 0x7F0012345000, frame = 0x400000, other = 0x500000;

struct seen {
    struct access access[16];
    unsigned count;
};

static enum access_result see(void *owner, struct access *access)
{
    struct seen *seen = owner;
    if (seen->count < ARRAY_SIZE(seen->access))
        seen->access[seen->count++] = *access;
    if (!access->write)
        for (unsigned i = 0; i < access->size; i++)
            access->value |= (access->address + i) << (8 * i);
    return ACCESS_OK;
}

/* gla maps `frame` and the page after it `other`. */
static struct fixture *prepared(uint64_t first_flags, uint64_t second_flags, uint64_t pte[2])
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables;
    pte[0] = fixture_map(f, root, &next, gla, frame | first_flags, 0);
    pte[1] = fixture_map(f, root, &next, gla + PAGE_SIZE, other | second_flags, 0);
    fixture_long_mode(f, root);
    return f;
}

static void unaligned_and_crossing_accesses_agree_with_bytes(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W, PTE_P | PTE_W, pte);
    uint8_t model[2 * PAGE_SIZE] = { 0 };
    for (unsigned n = 0; n < 200000; n++) {
        unsigned size = fixture_chance(f, 4) ? 1 + fixture_below(f, 64) : 1u << fixture_below(f, 4);
        unsigned offset = fixture_chance(f, 3) ? PAGE_SIZE - 64 + fixture_below(f, 64) : fixture_below(f, 2 * PAGE_SIZE - 64);
        uint8_t bytes[64];
        if (fixture_chance(f, 2)) {
            for (unsigned i = 0; i < size; i++)
                bytes[i] = fixture_random(f);
            memcpy(model + offset, bytes, size);
            uint64_t value;
            memcpy(&value, bytes, 8);
            bool ok = size == 4 ? mmu_store32(&f->vcpu, gla + offset, value) : size == 8 ? mmu_store64(&f->vcpu, gla + offset, value)
                      : mmu_store_slow(&f->vcpu, gla + offset, bytes, size, MMU_SUPERVISOR);
            assert_true(ok);
        } else {
            uint16_t half = 0;
            bool ok = size == 2 ? mmu_load16(&f->vcpu, gla + offset, &half)
                                : mmu_load_slow(&f->vcpu, gla + offset, bytes, size, MMU_SUPERVISOR);
            if (size == 2)
                memcpy(bytes, &half, 2);
            assert_true(ok);
            assert_memory_equal(bytes, model + offset, size);
        }
    }
    assert_memory_equal(model, ram_host(f->vcpu.ram, frame), PAGE_SIZE);
    assert_memory_equal(model + PAGE_SIZE, ram_host(f->vcpu.ram, other), PAGE_SIZE);
    fixture_destroy(f);
}

static void a_crossing_store_that_faults_writes_nothing(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W, PTE_P, pte);
    assert_false(mmu_store64(&f->vcpu, gla + PAGE_SIZE - 3, ~0ull));
    assert_int_equal(f->vcpu.pending.payload, gla + PAGE_SIZE);
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_W);
    assert_int_equal(fixture_get64(f, frame + PAGE_SIZE - 8), 0);
    f->vcpu.pending.payload = 0;
    fixture_put64(f, pte[0], 0);
    mmu_flush_all(&f->vcpu);
    assert_false(mmu_store64(&f->vcpu, gla + PAGE_SIZE - 3, ~0ull));
    assert_int_equal(f->vcpu.pending.payload, gla + PAGE_SIZE - 3);
    fixture_destroy(f);
}

static void linear_addresses_wrap(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    struct vcpu *v = &f->vcpu;
    /* 32-bit: the last page maps frame, page 0 maps other. */
    uint32_t pde = (uint32_t)(tables | PTE_P | PTE_W), last = frame | PTE_P | PTE_W, zero = other | PTE_P | PTE_W;
    uint32_t *directory = (uint32_t *)ram_host(v->ram, root), *table = (uint32_t *)ram_host(v->ram, tables);
    directory[1023] = directory[0] = pde;
    table[1023] = last;
    table[0] = zero;
    v->cr0 = CR0_PE | CR0_PG;
    v->cr3 = root;
    mmu_mode_changed(v);
    assert_true(mmu_store32(v, 0xFFFFFFFE, 0x44332211));
    assert_int_equal(*(uint16_t *)ram_host(v->ram, frame + 0xFFE), 0x2211);
    assert_int_equal(*(uint16_t *)ram_host(v->ram, other), 0x4433);
    fixture_destroy(f);
}

static void mmio_goes_to_the_bus_in_aligned_pieces(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables;
    struct seen seen = { .count = 0 };
    struct region region = { .name = "device", .base = 0xF0000000, .size = PAGE_SIZE, .access = see, .owner = &seen };
    bus_map(f->vcpu.mmio, &region);
    fixture_map(f, root, &next, gla, 0xF0000000 | PTE_P | PTE_W, 0);
    fixture_long_mode(f, root);
    uint32_t word;
    assert_true(mmu_load32(&f->vcpu, gla + 0x10, &word));
    assert_int_equal(word, 0x13121110);
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.access[0].size, 4);
    assert_int_equal(seen.access[0].requester, REQUESTER_CPU);
    seen.count = 0;
    assert_true(mmu_store64(&f->vcpu, gla + 6, 0x8877665544332211));
    assert_int_equal(seen.count, 3);    /* 2 at 6, 4 at 8, 2 at 12 */
    assert_int_equal(seen.access[1].value, 0x66554433);
    assert_int_equal(seen.access[2].address, 12);
    bool fault;
    assert_null(mmu_modify(&f->vcpu, gla, 4, MMU_SUPERVISOR, &fault));
    assert_false(fault);
    uint64_t gpa;
    bool mmio;
    assert_null(mmu_fetch_page(&f->vcpu, gla, &gpa, &mmio));
    assert_true(mmio);
    uint8_t bytes[4];
    assert_true(mmu_fetch_bytes(&f->vcpu, gla + 1, bytes, 4));
    assert_int_equal(bytes[3], 4);
    fixture_destroy(f);
}

static void rom_swallows_writes(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables;
    assert_true(ram_add(f->vcpu.ram, "rom", 0xFFFF0000, 0x10000, true, NULL));
    assert_true(ram_load(f->vcpu.ram, 0xFFFF0000, "firmware", 8));
    fixture_map(f, root, &next, gla, 0xFFFF0000 | PTE_P | PTE_W, 0);
    fixture_long_mode(f, root);
    assert_true(mmu_store64(&f->vcpu, gla, 0));
    assert_true(mmu_store64(&f->vcpu, gla + 1, 0));
    bool fault;
    assert_null(mmu_modify(&f->vcpu, gla, 4, MMU_SUPERVISOR, &fault));
    assert_false(fault);
    uint64_t value;
    assert_true(mmu_load64(&f->vcpu, gla, &value));
    assert_memory_equal(&value, "firmware", 8);
    assert_true(ram_write(f->vcpu.ram, 0xFFFF0000, "x", 1));
    assert_memory_equal(ram_host(f->vcpu.ram, 0xFFFF0000), "firmware", 8);
    fixture_destroy(f);
}

/* --- code --- */

struct drops {
    uint64_t gpa, size;
    unsigned count;
};

static void code_written(void *owner, uint64_t gpa, uint64_t size)
{
    struct drops *drops = owner;
    drops->gpa = gpa;
    drops->size = size;
    drops->count++;
}

static void writes_to_code_are_told_and_writes_beside_it_are_not(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W, PTE_P | PTE_W, pte);
    struct drops drops = { .count = 0 };
    struct vcpu *v = &f->vcpu;
    v->ram->watcher = (struct ram_watcher){ .code_written = code_written, .owner = &drops };
    /* A direct-write entry exists when the code appears. */
    assert_true(mmu_store8(v, gla, 1));
    assert_true(code_map_add(v->ram, frame + 0x100, 0x20));
    mmu_unshare_writes(v, frame);
    assert_false(code_map_add(v->ram, frame + 0x140, 1));
    assert_true(mmu_store64(v, gla, 5));
    assert_true(mmu_store64(v, gla + 0xF8, 5));
    assert_int_equal(drops.count, 0);
    assert_int_equal(fixture_get64(f, frame), 5);
    assert_true(mmu_store64(v, gla + 0xF9, 5));
    assert_int_equal(drops.count, 1);
    assert_int_equal(drops.gpa, frame + 0xC0);      /* whole granules: both that the store touched */
    assert_int_equal(drops.size, 0x80);
    assert_true(mmu_store8(v, gla + 0x17F, 5));
    assert_int_equal(drops.count, 2);
    bool fault;
    assert_non_null(mmu_modify(v, gla + 0x120, 4, MMU_SUPERVISOR, &fault));
    assert_int_equal(drops.count, 3);
    mmu_phys_write(v, frame + 0x100, &fault, 1);
    assert_int_equal(drops.count, 4);
    assert_true(ram_write(v->ram, frame, (uint8_t[0x100]){ 0 }, 0x100));
    assert_int_equal(drops.count, 4);
    assert_true(ram_write(v->ram, frame, ram_host(v->ram, frame), 0x101));
    assert_int_equal(drops.count, 5);
    /* Once all code is gone the page is written directly again. */
    code_map_remove(v->ram, frame + 0x100, 0x80);
    assert_true(mmu_store64(v, gla + 0x100, 5));
    assert_int_equal(v->tlb_data->entry[tlb_index(gla)].tag[MMU_WRITE], gla);
    assert_int_equal(drops.count, 5);
    fixture_destroy(f);
}

/* Code that became data: some writes are told in vain, then all code of the page goes and writes are direct. */
static void marks_wear_off(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W, PTE_P | PTE_W, pte);
    struct drops drops = { .count = 0 };
    struct vcpu *v = &f->vcpu;
    v->ram->watcher = (struct ram_watcher){ .code_written = code_written, .owner = &drops };
    for (unsigned life = 0; life < 2; life++) {
        code_map_add(v->ram, frame, PAGE_SIZE);
        mmu_unshare_writes(v, frame);
        drops.count = 0;
        for (unsigned n = 0; n < 1000; n++)
            assert_true(mmu_store8(v, gla + n, n));
        assert_int_equal(drops.count, PAGE_CODE_HITS / PAGE_CODE_HIT + 1);
        assert_int_equal(drops.gpa, frame);
        assert_int_equal(drops.size, PAGE_SIZE);
        assert_false(*ram_page(ram_find(v->ram, frame), frame) & (PAGE_CODE | PAGE_CODE_HITS));
        assert_int_equal(v->tlb_data->entry[tlb_index(gla)].tag[MMU_WRITE], gla);
    }
    fixture_destroy(f);
}

static void setting_a_and_d_bits_drops_code_in_the_table(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W, PTE_P | PTE_W, pte);
    struct drops drops = { .count = 0 };
    f->vcpu.ram->watcher = (struct ram_watcher){ .code_written = code_written, .owner = &drops };
    code_map_add(f->vcpu.ram, pte[0], 8);
    uint8_t byte;
    assert_true(mmu_load8(&f->vcpu, gla, &byte));
    assert_int_equal(drops.count, 1);
    assert_int_equal(drops.gpa, pte[0] & ~63ull);
    fixture_destroy(f);
}

/* --- dirty tracking --- */

static void each_write_after_a_collection_marks_the_page(void **state)
{
    uint64_t pte[2], bitmap[RAM_BYTES / PAGE_SIZE / 64];
    struct fixture *f = prepared(PTE_P | PTE_W | PTE_A | PTE_D, PTE_P | PTE_W, pte);
    struct vcpu *v = &f->vcpu;
    const struct ram_slot *slot = &v->ram->slot[0];
    assert_true(mmu_store8(v, gla, 1));
    ram_dirty_start(v->ram, DIRTY_MIGRATION);
    mmu_drop_all_write_entries(v);
    uint8_t byte;
    assert_true(mmu_load8(v, gla, &byte));
    assert_int_equal(ram_dirty_collect(v->ram, DIRTY_MIGRATION, slot, bitmap), 0);
    for (unsigned round = 0; round < 3; round++) {
        assert_true(mmu_store8(v, gla + 5, 1));
        assert_true(mmu_store8(v, gla + 6, 1));
        assert_int_equal(ram_dirty_collect(v->ram, DIRTY_MIGRATION, slot, bitmap), 1);
        assert_true(bitmap[(frame >> 12) / 64] & BIT((frame >> 12) % 64));
        mmu_drop_all_write_entries(v);
    }
    /* The walk marks the table's page: it sets A and D there. */
    assert_true(mmu_store8(v, gla + PAGE_SIZE, 1));
    assert_int_equal(ram_dirty_collect(v->ram, DIRTY_MIGRATION, slot, bitmap), 2);
    mmu_drop_all_write_entries(v);
    /* Devices mark, too; and another client is not disturbed. */
    ram_dirty_start(v->ram, DIRTY_DISPLAY);
    ram_write(v->ram, frame, "x", 1);
    assert_int_equal(ram_dirty_collect(v->ram, DIRTY_MIGRATION, slot, bitmap), 1);
    assert_int_equal(ram_dirty_collect(v->ram, DIRTY_DISPLAY, slot, bitmap), 1);
    ram_dirty_stop(v->ram, DIRTY_MIGRATION);
    ram_write(v->ram, frame, "x", 1);
    assert_int_equal(ram_dirty_collect(v->ram, DIRTY_MIGRATION, slot, bitmap), 0);
    fixture_destroy(f);
}

/* --- breakpoints, alignment, modify --- */

static void data_breakpoints_see_every_access_to_their_page(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W, PTE_P | PTE_W, pte);
    struct vcpu *v = &f->vcpu;
    uint8_t byte;
    assert_true(mmu_load8(v, gla, &byte));
    v->dr[1] = gla + 0x40;
    v->dr7 = 2u << 2 | 3u << 20;        /* global, read or write, one byte */
    mmu_mode_changed(v);
    for (unsigned n = 0; n < 3; n++) {
        v->pending_debug = 0;
        assert_true(mmu_load8(v, gla + 0x40, &byte));
        assert_true(v->pending_debug);
        v->pending_debug = 0;
        assert_true(mmu_store8(v, gla + 0x40, n));
        assert_true(v->pending_debug);
    }
    assert_int_equal(*ram_host(v->ram, frame + 0x40), 2);
    v->dr7 = 0;
    v->pending_debug = 0;
    mmu_mode_changed(v);
    assert_true(mmu_store8(v, gla + 0x40, 9));
    assert_false(v->pending_debug);
    fixture_destroy(f);
}

static void alignment_is_checked_for_users_who_ask(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P | PTE_W | PTE_U, PTE_P | PTE_W | PTE_U, pte);
    struct vcpu *v = &f->vcpu;
    uint32_t word;
    v->cpl = 3;
    v->rflags |= RFLAGS_AC;
    mmu_privilege_changed(v);
    assert_true(mmu_load32(v, gla + 2, &word));     /* CR0.AM is clear */
    v->cr0 |= CR0_AM;
    mmu_mode_changed(v);
    assert_true(mmu_load32(v, gla + 4, &word));
    assert_false(mmu_load32(v, gla + 2, &word));
    assert_int_equal(v->pending.vector, VEC_AC);
    assert_false(mmu_store32(v, gla + 2, word));
    fixture_destroy(f);
}

static void modify_checks_write_permission_first(void **state)
{
    uint64_t pte[2];
    struct fixture *f = prepared(PTE_P, PTE_P | PTE_W, pte);
    bool fault;
    assert_null(mmu_modify(&f->vcpu, gla, 4, MMU_SUPERVISOR, &fault));
    assert_true(fault);
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_W);
    assert_null(mmu_modify(&f->vcpu, gla + PAGE_SIZE - 2, 4, MMU_SUPERVISOR, &fault));
    assert_true(fault);
    uint8_t *host = mmu_modify(&f->vcpu, gla + PAGE_SIZE + 2, 4, MMU_SUPERVISOR, &fault);
    assert_ptr_equal(host, ram_host(f->vcpu.ram, other + 2));
    assert_true(fixture_get64(f, pte[1]) & PTE_D);
    fixture_destroy(f);
}

static void fetches_need_execute_permission(void **state)
{
    uint64_t pte[2], gpa;
    struct fixture *f = prepared(PTE_P, PTE_P | PTE_NX, pte);
    bool mmio;
    assert_ptr_equal(mmu_fetch_page(&f->vcpu, gla + 0x123, &gpa, &mmio), ram_host(f->vcpu.ram, frame));
    assert_int_equal(gpa, frame);
    assert_ptr_equal(mmu_fetch_page(&f->vcpu, gla + 0x456, &gpa, &mmio), ram_host(f->vcpu.ram, frame));
    assert_null(mmu_fetch_page(&f->vcpu, gla + PAGE_SIZE, &gpa, &mmio));
    assert_false(mmio);
    assert_int_equal(f->vcpu.pending.error, PF_P | PF_I);
    uint8_t bytes[16];
    assert_false(mmu_fetch_bytes(&f->vcpu, gla + PAGE_SIZE - 8, bytes, 16));
    assert_true(mmu_fetch_bytes(&f->vcpu, gla + PAGE_SIZE - 16, bytes, 16));
    fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unaligned_and_crossing_accesses_agree_with_bytes),
        cmocka_unit_test(a_crossing_store_that_faults_writes_nothing),
        cmocka_unit_test(linear_addresses_wrap),
        cmocka_unit_test(mmio_goes_to_the_bus_in_aligned_pieces),
        cmocka_unit_test(rom_swallows_writes),
        cmocka_unit_test(writes_to_code_are_told_and_writes_beside_it_are_not),
        cmocka_unit_test(marks_wear_off),
        cmocka_unit_test(setting_a_and_d_bits_drops_code_in_the_table),
        cmocka_unit_test(each_write_after_a_collection_marks_the_page),
        cmocka_unit_test(data_breakpoints_see_every_access_to_their_page),
        cmocka_unit_test(alignment_is_checked_for_users_who_ask),
        cmocka_unit_test(modify_checks_write_permission_first),
        cmocka_unit_test(fetches_need_execute_permission),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
