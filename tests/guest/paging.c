/* 4-level paging: rights, error codes, accessed and dirty bits, reserved bits, SMEP, SMAP, global pages, PCID, INVLPG, PKU. */
#include "lib/guest.h"

enum { P = 1, W = 2, U = 4, PWT = 8, A = 32, D = 64, PS = 128, G = 256 };
#define NX (1ull << 63)
#define TEST_GLA 0x180000000ull         /* above the identity map */

static uint64_t frame;

static void do_read(void *at) { (void)*(volatile uint8_t *)at; }
static void do_write(void *at) { *(volatile uint8_t *)at = 1; }
static void do_write_wide(void *at) { *(volatile uint64_t *)at = 0; }
static void do_fetch(void *at) { ((void (*)(void))at)(); }
static void do_modify(void *at) { __asm__ volatile("lock incb (%0)" :: "r"(at) : "memory"); }

typedef void access_fn(void *at);

/* One access under the PTE flags; the trap must be #PF with this error code, or none with NO_FAULT. */
enum { NO_FAULT = 0x100 };
static void expect(bool user, access_fn *fn, uint64_t flags, unsigned error, const char *name)
{
    map_page(TEST_GLA, frame, flags);
    *(uint8_t *)frame = 0xC3;           /* ret */
    struct trap trap = user ? guarded_user(fn, (void *)TEST_GLA) : guarded(fn, (void *)TEST_GLA);
    unsigned got = trap.vector == NO_TRAP ? NO_FAULT : trap.vector == 14 ? (unsigned)trap.error : 0x1000 | trap.vector;
    if (got == error && got != NO_FAULT && trap.cr2 != TEST_GLA)
        got = 0x2000;
    check_equal(got, error, name);
}

/* CPUID tells how many address bits there are. */
static uint64_t highest_address_bit(void)
{
    uint32_t leaf[4];
    cpuid(0x80000008, 0, leaf);
    return 1ull << ((leaf[0] & 0xFF) - 1);
}

static void rights(void)
{
    expect(false, do_read, 0, 0, "supervisor read, not present");
    expect(false, do_write, 0, 2, "supervisor write, not present");
    expect(true, do_read, 0, 4, "user read, not present");
    expect(true, do_write, U | W, 6, "user write, not present");
    expect(false, do_read, P, NO_FAULT, "supervisor read, present");
    expect(false, do_write, P, 3, "supervisor write to read-only with WP");
    expect(true, do_read, P | W, 5, "user read of a supervisor page");
    expect(true, do_write, P | U, 7, "user write to read-only");
    expect(true, do_read, P | U, NO_FAULT, "user read of a user page");
    expect(true, do_write, P | U | W, NO_FAULT, "user write to a user page");
    expect(false, do_fetch, P | NX, 0x11, "supervisor fetch from NX");
    expect(true, do_fetch, P | U | NX, 0x15, "user fetch from NX");
    expect(true, do_fetch, P | U, NO_FAULT, "user fetch");
    expect(false, do_modify, P, 3, "LOCK INC on read-only is a write fault");
    expect(true, do_modify, P | U, 7, "and for user code");
    expect(false, do_read, P | highest_address_bit(), NO_FAULT, "the highest address bit");
    expect(false, do_read, P | 1ull << 51, 9, "reserved address bit");
    expect(false, do_write, P | W | 1ull << 51, 0xB, "reserved address bit, write");
    write_cr0(read_cr0() & ~0x10000ull);
    expect(false, do_write, P, NO_FAULT, "supervisor write to read-only without WP");
    write_cr0(read_cr0() | 0x10000);
    uint64_t *pdpte = &boot_pml4[0];
    uint64_t old = *pdpte;
    *pdpte = old & ~(uint64_t)U;
    write_cr3(read_cr3());
    map_page(TEST_GLA, frame, P | U);
    check_equal(guarded(do_read, (void *)TEST_GLA).vector, NO_TRAP, "supervisor read below a supervisor table entry");
    *pdpte = old;
    write_cr3(read_cr3());
}

static void accessed_dirty(void)
{
    uint64_t *pte = find_pte(TEST_GLA);
    map_page(TEST_GLA, frame, P | W);
    do_read((void *)TEST_GLA);
    check_equal(*pte & (A | D), A, "a read sets A alone");
    do_write((void *)TEST_GLA);
    check_equal(*pte & (A | D), A | D, "a write sets D as well");
    map_page(TEST_GLA, frame, P | W);
    do_write((void *)TEST_GLA);
    check_equal(*pte & (A | D), A | D, "a first write sets both");
    map_page(TEST_GLA, frame, P);
    guarded(do_write, (void *)TEST_GLA);
    check_equal(*pte & D, 0, "a faulting write leaves D clear");
    map_page(TEST_GLA, frame, P | W);
    do_modify((void *)TEST_GLA);
    check_equal(*pte & (A | D), A | D, "LOCK INC sets both");
}

static void stale_and_flushed(void)
{
    uint64_t other = (uint64_t)alloc_page();
    *(uint64_t *)frame = 1;
    *(uint64_t *)other = 2;
    volatile uint64_t *at = (volatile uint64_t *)TEST_GLA;
    map_page(TEST_GLA, frame, P | W);
    check_equal(*at, 1, "reads the first page");
    *find_pte(TEST_GLA) = other | P | W;
    invlpg(TEST_GLA);
    check_equal(*at, 2, "after INVLPG the second");
    *find_pte(TEST_GLA) = frame | P | W;
    write_cr3(read_cr3());
    check_equal(*at, 1, "after a CR3 load the first again");
    map_page(TEST_GLA, frame, P | W | G);
    check_equal(*at, 1, "a global page is read");
    *find_pte(TEST_GLA) = other | P | W | G;
    invlpg(TEST_GLA);
    check_equal(*at, 2, "INVLPG drops a global page");
    *find_pte(TEST_GLA) = frame | P | W;
    write_cr4(read_cr4() ^ 0x80);
    write_cr4(read_cr4() ^ 0x80);
    check_equal(*at, 1, "a change of CR4.PGE drops global pages");
}

static void large_pages(void)
{
    uint64_t *pd = alloc_page();
    uint64_t *pdpt = (uint64_t *)(boot_pml4[0] & 0xFFFFFFFFFF000);
    volatile uint64_t *at = (volatile uint64_t *)0x1C0000000ull;
    pd[0] = 0x200000 | P | W | PS;
    pd[1] = 0x400000 | P | W | PS | 1 << 13;
    pdpt[7] = (uint64_t)pd | P | W | U;
    *(uint64_t *)(frame + 8) = 0;
    *(volatile uint64_t *)0x212340 = 0x1234567;
    check_equal(at[0x12340 / 8], 0x1234567, "a 2 MiB page maps its range");
    check_equal(pd[0] & (A | D), A, "a read sets A in the PDE");
    at[0x12340 / 8] = 1;
    check_equal(pd[0] & (A | D), A | D, "a write sets D in the PDE");
    struct trap trap = guarded(do_read, (void *)0x1C0200000ull);
    check_equal(trap.vector << 8 | trap.error, 0xE09, "a reserved bit in a 2 MiB PDE");
    pd[0] = 0x400000 | P | W | PS;
    *(volatile uint64_t *)0x412340 = 77;
    invlpg(0x1C0000000ull);
    check_equal(at[0x12340 / 8], 77, "INVLPG anywhere in a large page drops all of it");
    uint32_t leaf[4];
    cpuid(0x80000001, 0, leaf);
    if (leaf[3] & 1u << 26) {
        pdpt[7] = 0x0 | P | W | PS;
        write_cr3(read_cr3());
        *(volatile uint64_t *)0x500008 = 99;
        check_equal(at[0x500008 / 8], 99, "a 1 GiB page maps its range");
    }
    pdpt[7] = 0;
    write_cr3(read_cr3());
}

static void smep_smap(void)
{
    uint32_t leaf[4];
    cpuid(7, 0, leaf);
    map_page(TEST_GLA, frame, P | U | W);
    *(uint8_t *)frame = 0xC3;
    /* The guest's own pages become supervisor's, or SMEP would stop it. */
    for (unsigned i = 0; i < 2048; i++)
        boot_pd[i] &= ~(uint64_t)U;
    write_cr3(read_cr3());
    if (leaf[1] & 1u << 7) {
        write_cr4(read_cr4() | 1u << 20);
        struct trap trap = guarded(do_fetch, (void *)TEST_GLA);
        check_equal(trap.vector << 8 | trap.error, 0xE11, "SMEP stops a supervisor fetch from a user page");
        write_cr4(read_cr4() & ~(1ull << 20));
        check_equal(guarded(do_fetch, (void *)TEST_GLA).vector, NO_TRAP, "without SMEP it runs");
    }
    if (leaf[1] & 1u << 20) {
        write_cr4(read_cr4() | 1u << 21);
        struct trap trap = guarded(do_read, (void *)TEST_GLA);
        check_equal(trap.vector << 8 | trap.error, 0xE01, "SMAP stops a supervisor read of a user page");
        __asm__ volatile("stac");
        check_equal(guarded(do_read, (void *)TEST_GLA).vector, NO_TRAP, "STAC allows it");
        __asm__ volatile("clac");
        trap = guarded(do_write, (void *)TEST_GLA);
        check_equal(trap.vector << 8 | trap.error, 0xE03, "CLAC forbids it again");
        write_cr4(read_cr4() & ~(1ull << 21));
    }
    map_user_all();
}

static void pcids(void)
{
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    if (!(leaf[2] & 1u << 17))
        return;
    uint64_t other = (uint64_t)alloc_page(), cr3 = read_cr3();
    volatile uint64_t *at = (volatile uint64_t *)TEST_GLA;
    *(uint64_t *)frame = 1;
    *(uint64_t *)other = 2;
    map_page(TEST_GLA, frame, P | W);
    write_cr4(read_cr4() | 1u << 17);
    write_cr3(cr3 | 1);
    check_equal(*at, 1, "PCID 1 reads the page");
    *find_pte(TEST_GLA) = other | P | W;
    write_cr3(cr3 | 2);
    check_equal(*at, 2, "PCID 2 has no stale entry");
    write_cr3(cr3 | 1);
    check_equal(*at, 2, "a CR3 load without bit 63 flushes PCID 1");
    struct { uint64_t pcid, gla; } descriptor = { 2, TEST_GLA };
    *find_pte(TEST_GLA) = frame | P | W;
    cpuid(7, 0, leaf);
    if (leaf[1] & 1u << 10) {
        uint64_t type = 0;
        __asm__ volatile("invpcid %0, %1" :: "m"(descriptor), "r"(type) : "memory");
        write_cr3(cr3 | 2 | 1ull << 63);
        check_equal(*at, 1, "INVPCID type 0 drops the address of that PCID");
        *find_pte(TEST_GLA) = other | P | W;
        type = 2;
        __asm__ volatile("invpcid %0, %1" :: "m"(descriptor), "r"(type) : "memory");
        check_equal(*at, 2, "INVPCID type 2 drops everything");
    }
    write_cr3(cr3);
    write_cr4(read_cr4() & ~(1ull << 17));
    write_cr3(cr3);
}

static void crossing(void)
{
    volatile uint64_t *at = (volatile uint64_t *)(TEST_GLA + 0xFFC);
    uint64_t second = (uint64_t)alloc_page();
    map_page(TEST_GLA, frame, P | W);
    map_page(TEST_GLA + 0x1000, second, P | W);
    *at = 0x1122334455667788;
    check_equal(*(uint32_t *)(frame + 0xFFC), 0x55667788, "a page-crossing write, low part");
    check_equal(*(uint32_t *)second, 0x11223344, "and high part");
    check_equal(*at, 0x1122334455667788, "a page-crossing read");
    map_page(TEST_GLA + 0x1000, second, P);
    *(uint32_t *)(frame + 0xFFC) = 7;
    struct trap trap = guarded(do_write_wide, (void *)at);
    check_equal(trap.vector << 8 | trap.error, 0xE03, "a page-crossing write faults for its second page");
    check_equal(trap.cr2, TEST_GLA + 0x1000, "with the second page's address");
    check_equal(*(uint32_t *)(frame + 0xFFC), 7, "and has written nothing to the first");
}

/* Where two neighbouring pages may share an entry of a hashed TLB, and where the highest address is followed by the lowest. */
static void crossing_far_borders(void)
{
    static const uint64_t borders[] = { 1ull << 35, 3ull << 35, 0 };
    for (unsigned i = 0; i < sizeof(borders) / sizeof(borders[0]); i++) {
        volatile uint64_t *at = (volatile uint64_t *)(borders[i] - 4);
        uint64_t second = (uint64_t)alloc_page(), first = (uint64_t)alloc_page(), saved = 0;
        uint64_t before = borders[i] - 0x1000;
        unsigned wrong = 0;
        map_page(before, first, P | W);
        if (borders[i])
            map_page(borders[i], second, P | W);
        else
            second = 0;                 /* linear 0 is mapped to 0 */
        saved = *(volatile uint64_t *)second;
        for (unsigned n = 0; n < 100; n++) {
            uint64_t value = 0x1122334455667788 + n * 0x100000001;
            wrong += *(volatile uint8_t *)borders[i] != *(volatile uint8_t *)second;      /* the second page is cached */
            *at = value;
            wrong += *(volatile uint32_t *)(first + 0xFFC) != (uint32_t)value || *(volatile uint32_t *)second != value >> 32 || *at != value;
        }
        *(volatile uint64_t *)second = saved;
        print("border %lx:\n", borders[i]);
        check_equal(wrong, 0, "accesses across it reach both pages");
    }
}

void test_main(void)
{
    frame = (uint64_t)alloc_page();
    map_user_all();
    boot_pml4[0] |= U;
    find_pte(TEST_GLA);
    rights();
    accessed_dirty();
    stale_and_flushed();
    large_pages();
    smep_smap();
    pcids();
    crossing();
    crossing_far_borders();
}
