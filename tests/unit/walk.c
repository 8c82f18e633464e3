/*
 * The walker against a slow reference written here from the manual alone (SDM3 §4.3 to §4.8), over random tables in
 * which every frame may serve as every level. Compared: outcome, address, error code, and every A and D bit.
 */
#include "mmu_fixture.h"

#include "mmu/still.h"

enum { TABLE_FRAMES = 12, RAM_BYTES = 1 << 20, ROUNDS = 1500, WALKS = 400 };

struct reference {
    const struct vcpu *vcpu;
    uint8_t *memory;            /* a copy of the table frames */
    uint64_t gla, gpa;
    unsigned class, use;
    uint32_t error;
    unsigned shift;
    bool user, write, nx;
    uint64_t leaf;
    struct { uint64_t at; unsigned bytes; } used[5];
    unsigned used_count;
};

static bool ref_fault(struct reference *r, uint32_t flags)
{
    const struct vcpu *v = r->vcpu;
    bool nx_on = (v->cr4 & CR4_PAE) && (v->efer & EFER_NXE);
    r->error = flags;
    if (r->use == MMU_WRITE)
        r->error |= 2;
    if (r->class == MMU_USER)
        r->error |= 4;
    if (r->use == MMU_FETCH && (nx_on || (v->cr4 & CR4_SMEP)))
        r->error |= 16;
    return false;
}

static uint64_t ref_read(struct reference *r, uint64_t at, unsigned bytes)
{
    r->used[r->used_count].at = at;
    r->used[r->used_count++].bytes = bytes;
    uint64_t value = 0;
    if (at >= RAM_BYTES)
        return bytes == 8 ? ~0ull : 0xFFFFFFFF;
    memcpy(&value, r->memory + at, bytes);
    return value;
}

/* One entry of 64-bit tables: depth 0 is the page table. Returns 1 leaf, 0 table, -1 fault. */
static int ref_entry64(struct reference *r, uint64_t table, unsigned depth, uint64_t *entry, bool pae)
{
    const struct vcpu *v = r->vcpu;
    uint64_t e = ref_read(r, table + ((r->gla >> (12 + 9 * depth)) % 512) * 8, 8);
    *entry = e;
    if (!(e & 1))
        return ref_fault(r, 0), -1;
    uint64_t reserved = 0;
    for (unsigned bit = v->mmu->mode.physical_bits; bit <= (pae ? 62 : 51); bit++)
        reserved |= 1ull << bit;
    if (!(v->efer & EFER_NXE))
        reserved |= 1ull << 63;
    bool large = depth && (e & 0x80);
    if (depth >= 3 || (depth == 2 && !v->mmu->mode.page1gb)) {
        reserved |= 0x80;
        large = false;
    }
    for (unsigned bit = 13; large && bit < 12 + 9 * depth; bit++)
        reserved |= 1ull << bit;
    if (e & reserved)
        return ref_fault(r, 1 | 8), -1;
    r->user &= (e >> 2) & 1;
    r->write &= (e >> 1) & 1;
    r->nx |= e >> 63;
    if (depth && !large)
        return 0;
    r->shift = 12 + 9 * depth;
    r->leaf = e;
    r->gpa = (e & 0x000FFFFFFFFFF000ull & ~((1ull << r->shift) - 1)) | (r->gla & ((1ull << r->shift) - 1));
    return 1;
}

static bool ref_locate(struct reference *r)
{
    const struct vcpu *v = r->vcpu;
    r->user = r->write = true;
    if (!(v->cr4 & CR4_PAE)) {
        uint32_t pde = ref_read(r, (v->cr3 & 0xFFFFF000) + ((r->gla >> 22) & 1023) * 4, 4);
        if (!(pde & 1))
            return ref_fault(r, 0);
        r->user = pde & 4;
        r->write = pde & 2;
        r->leaf = pde;
        if ((pde & 0x80) && (v->cr4 & CR4_PSE)) {
            unsigned m = v->mmu->mode.pse36 ? (v->mmu->mode.physical_bits < 40 ? v->mmu->mode.physical_bits : 40) : 32;
            for (unsigned bit = m - 19; bit <= 21; bit++)
                if (pde & (1u << bit))
                    return ref_fault(r, 1 | 8);
            r->shift = 22;
            r->gpa = (pde & 0xFFC00000) | (r->gla & 0x3FFFFF) | ((uint64_t)((pde >> 13) & ((1u << (m - 32)) - 1)) << 32);
            return true;
        }
        uint32_t pte = ref_read(r, (pde & 0xFFFFF000) + ((r->gla >> 12) & 1023) * 4, 4);
        if (!(pte & 1))
            return ref_fault(r, 0);
        r->user &= (pte >> 2) & 1;
        r->write &= (pte >> 1) & 1;
        r->leaf = pte;
        r->shift = 12;
        r->gpa = (pte & 0xFFFFF000) | (r->gla & 0xFFF);
        return true;
    }
    bool pae = !(v->efer & EFER_LMA);
    uint64_t table = v->cr3 & 0x000FFFFFFFFFF000ull;
    unsigned depth = pae ? 1 : v->cr4 & CR4_LA57 ? 4 : 3;
    if (pae) {
        uint64_t pdpte = v->pdpte[(r->gla >> 30) & 3];
        if (!(pdpte & 1))
            return ref_fault(r, 0);
        table = pdpte & 0x000FFFFFFFFFF000ull;
    }
    for (;; depth--) {
        uint64_t entry;
        int outcome = ref_entry64(r, table, depth, &entry, pae);
        if (outcome)
            return outcome > 0;
        table = entry & 0x000FFFFFFFFFF000ull;
    }
}

/* Table by table from SDM3 §4.6.1 and §4.6.2. */
static bool ref_walk(struct reference *r)
{
    const struct vcpu *v = r->vcpu;
    if (!ref_locate(r))
        return false;
    bool wp = v->cr0 & CR0_WP, pke = (v->cr4 & CR4_PKE) && (v->efer & EFER_LMA), ok;
    bool nx = r->nx && (v->cr4 & CR4_PAE) && (v->efer & EFER_NXE);
    if (r->class == MMU_USER) {
        ok = r->user;
        if (r->use == MMU_WRITE && !r->write)
            ok = false;
        if (r->use == MMU_FETCH && nx)
            ok = false;
    } else if (r->use == MMU_FETCH) {
        ok = !nx && !(r->user && (v->cr4 & CR4_SMEP));
    } else {
        ok = !(r->use == MMU_WRITE && wp && !r->write);
        if (r->user && r->class == MMU_SUPERVISOR_SMAP)
            ok = false;
    }
    bool key_fault = false;
    if (pke && r->user && r->use != MMU_FETCH) {
        unsigned key = (r->leaf >> 59) & 15;
        bool ad = v->fpu.pkru >> (key * 2) & 1, wd = v->fpu.pkru >> (key * 2 + 1) & 1;
        key_fault = ad || (wd && r->use == MMU_WRITE && (r->class == MMU_USER || wp));
    }
    if (!ok || key_fault)
        return ref_fault(r, 1 | (key_fault ? 32 : 0));
    for (unsigned i = 0; i < r->used_count; i++) {
        uint8_t flags = i + 1 == r->used_count && r->use == MMU_WRITE ? 0x60 : 0x20;
        if (r->used[i].at < RAM_BYTES)
            r->memory[r->used[i].at] |= flags;
    }
    return true;
}

/* --- random tables and modes --- */

static uint64_t random_entry64(struct fixture *f)
{
    uint64_t e = fixture_below(f, TABLE_FRAMES) << 12;
    e |= fixture_chance(f, 14) ? 0 : PTE_P;
    e |= fixture_random(f) & (PTE_A | PTE_D | PTE_G);
    e |= fixture_chance(f, 4) ? 0 : PTE_W;
    e |= fixture_chance(f, 4) ? 0 : PTE_U;
    if (fixture_chance(f, 4))
        e |= PTE_PS;
    if (e & PTE_PS && !fixture_chance(f, 4))
        e &= ~0x3FFFF000ull;
    if (fixture_chance(f, 10))
        e |= PTE_NX;
    if (fixture_chance(f, 30))
        e |= 1ull << (13 + fixture_below(f, 50));
    e |= fixture_below(f, 16) << 59;
    return e;
}

static uint64_t random_entry32(struct fixture *f)
{
    uint32_t e = random_entry64(f);
    if ((e & PTE_PS) && fixture_chance(f, 3))
        e |= fixture_below(f, 1 << 9) << 13;
    return e;
}

static void random_tables(struct fixture *f, bool wide)
{
    bool pae_like = !(f->vcpu.efer & EFER_LMA);
    for (uint64_t at = 0; at < TABLE_FRAMES * PAGE_SIZE; at += wide ? 8 : 4) {
        uint64_t entry = wide ? random_entry64(f) : random_entry32(f);
        if (wide && pae_like && !fixture_chance(f, 20))
            entry &= ~(0xFull << 59);
        memcpy(ram_host(f->vcpu.ram, at), &entry, wide ? 8 : 4);
    }
}

static void random_mode(struct fixture *f, unsigned format)
{
    struct vcpu *v = &f->vcpu;
    v->cr0 = CR0_PE | CR0_PG | (fixture_chance(f, 2) ? CR0_WP : 0);
    v->cr4 = (fixture_chance(f, 2) ? CR4_SMEP : 0) | (fixture_chance(f, 2) ? CR4_PGE : 0);
    v->efer = fixture_chance(f, 4) ? 0 : EFER_NXE;
    if (format == 0)
        v->cr4 |= fixture_chance(f, 3) ? 0 : CR4_PSE;
    else
        v->cr4 |= CR4_PAE;
    if (format >= 2) {
        v->efer |= EFER_LME | EFER_LMA;
        v->cr4 |= (format == 3 ? CR4_LA57 : 0) | (fixture_chance(f, 2) ? CR4_PKE : 0);
    }
    static const uint8_t widths[] = { 32, 36, 39, 46, 52 };
    v->mmu->mode.physical_bits = widths[fixture_below(f, 5)];
    v->mmu->mode.pse36 = !fixture_chance(f, 3);
    v->mmu->mode.page1gb = !fixture_chance(f, 3);
    v->mmu->rule_bits = ~0ull;      /* the limits changed under it, which no real processor does */
    v->fpu.pkru = fixture_random(f) & fixture_random(f);
    v->cr3 = fixture_below(f, TABLE_FRAMES) << 12;
    mmu_mode_changed(v);
    for (unsigned i = 0; i < 4; i++)
        v->pdpte[i] = fixture_below(f, TABLE_FRAMES) << 12 | !fixture_chance(f, 8);
}

static void compare_one(struct fixture *f, uint8_t *copy)
{
    struct vcpu *v = &f->vcpu;
    uint64_t gla = fixture_random(f);
    if (!(v->efer & EFER_LMA))
        gla = (uint32_t)gla;
    memcpy(copy, ram_host(v->ram, 0), TABLE_FRAMES * PAGE_SIZE);
    struct walk walk = { .gla = gla, .use = fixture_below(f, 3), .class = fixture_below(f, MMU_CLASSES) };
    struct reference r = { .vcpu = v, .memory = copy, .gla = gla, .class = walk.class, .use = walk.use };
    bool expected = ref_walk(&r);
    bool got = mmu_walk(v, &walk);
    assert_int_equal(got, expected);
    if (got) {
        assert_int_equal(walk.gpa, r.gpa);
        assert_int_equal(walk.page_shift, r.shift);
        assert_int_equal(walk.global, (v->cr4 & CR4_PGE) && (r.leaf & PTE_G));
    } else {
        assert_int_equal(walk.error, r.error);
    }
    assert_memory_equal(copy, ram_host(v->ram, 0), TABLE_FRAMES * PAGE_SIZE);
}

static void agrees_with_the_manual(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint8_t *copy = calloc(1, RAM_BYTES);
    for (unsigned round = 0; round < ROUNDS; round++) {
        random_mode(f, round % 4);
        random_tables(f, round % 4 != 0);
        for (unsigned i = 0; i < WALKS / 10; i++)
            compare_one(f, copy);
    }
    free(copy);
    fixture_destroy(f);
}

/* What mmu_still_fetches sees is what a walk would find that has no A to set, and nothing is left of its looking. */
static void look_again(struct fixture *f, uint8_t *copy)
{
    struct vcpu *v = &f->vcpu;
    uint64_t gla = fixture_random(f) & ~PAGE_MASK;
    struct still still = { 0 };
    v->cpl = fixture_chance(f, 2) ? 3 : 0;
    memcpy(copy, ram_host(v->ram, 0), TABLE_FRAMES * PAGE_SIZE);
    struct reference r = { .vcpu = v, .memory = copy, .gla = gla, .class = v->cpl ? MMU_USER : MMU_SUPERVISOR, .use = MMU_FETCH };
    bool found = ref_walk(&r) && memcmp(copy, ram_host(v->ram, 0), TABLE_FRAMES * PAGE_SIZE) == 0;
    memcpy(copy, ram_host(v->ram, 0), TABLE_FRAMES * PAGE_SIZE);
    bool global = (v->cr4 & CR4_PGE) && (r.leaf & PTE_G), plain = found && r.gpa < RAM_BYTES && !(r.user && v->cpl == 0);
    assert_int_equal(mmu_still_fetches(v, &still, gla, r.gpa, global) && r.gpa < RAM_BYTES, plain);
    assert_false(mmu_still_fetches(v, &still, gla, r.gpa ^ PAGE_SIZE, global));
    assert_false(mmu_still_fetches(v, &still, gla, r.gpa, !global));
    assert_memory_equal(copy, ram_host(v->ram, 0), TABLE_FRAMES * PAGE_SIZE);
}

static void looking_again_sees_what_a_walk_finds(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint8_t *copy = calloc(1, RAM_BYTES);
    for (unsigned round = 0; round < ROUNDS; round++) {
        random_mode(f, 2 + round % 2);
        random_tables(f, true);
        for (unsigned i = 0; i < WALKS / 10; i++)
            look_again(f, copy);
    }
    free(copy);
    fixture_destroy(f);
}

static void paging_off_is_identity(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t gpa;
    assert_true(mmu_translate(&f->vcpu, 0x12345, &gpa));
    assert_int_equal(gpa, 0x12345);
    fixture_destroy(f);
}

static void pdptes_with_reserved_bits_are_refused(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    for (unsigned bit = 1; bit < 64; bit++) {
        bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= x86_physical_bits(&f->vcpu);
        fixture_put64(f, 0x1028, 1ull << bit | 1);
        assert_int_equal(mmu_load_pdptes(&f->vcpu, 0x1020), !reserved);
        fixture_put64(f, 0x1028, 1ull << bit);
        assert_true(mmu_load_pdptes(&f->vcpu, 0x1020));
    }
    fixture_destroy(f);
}

/* PAE paging reads the PDPTEs at MOV CR3 and its like, never in a walk (SDM3 §4.4.1): a saved vCPU brings them along. */
static void pdptes_are_registers(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    struct vcpu *v = &f->vcpu;
    uint64_t gpa;
    fixture_put64(f, 0x1020, 0x2000 | PTE_P);
    fixture_put64(f, 0x2000, 0x3000 | PTE_P);
    fixture_put64(f, 0x3000, 0x9000 | PTE_P);
    v->cr0 = CR0_PE | CR0_PG;
    v->cr4 = CR4_PAE;
    v->cr3 = 0x1020;
    mmu_mode_changed(v);
    assert_true(mmu_load_pdptes(v, v->cr3));
    fixture_put64(f, 0x1020, 0);
    mmu_flush_all(v);
    assert_true(mmu_translate(v, 0x123, &gpa));
    assert_int_equal(gpa, 0x9123);
    memset(v->pdpte, 0, sizeof(v->pdpte));
    assert_false(mmu_translate(v, 0x123, &gpa));
    fixture_destroy(f);
}

static void peeking_leaves_no_trace(void **state)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = 0x2000, gpa;
    uint64_t pte = fixture_map(f, 0x1000, &next, 0x7654321000, 0x9000 | PTE_P, 0);
    fixture_long_mode(f, 0x1000);
    assert_true(mmu_translate(&f->vcpu, 0x7654321678, &gpa));
    assert_int_equal(gpa, 0x9678);
    assert_int_equal(fixture_get64(f, pte), 0x9000 | PTE_P);
    assert_false(mmu_translate(&f->vcpu, 0x7654322678, &gpa));
    fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_manual),
        cmocka_unit_test(looking_again_sees_what_a_walk_finds),
        cmocka_unit_test(paging_off_is_identity),
        cmocka_unit_test(pdptes_with_reserved_bits_are_refused),
        cmocka_unit_test(pdptes_are_registers),
        cmocka_unit_test(peeking_leaves_no_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
