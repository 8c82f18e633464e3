/*
 * Pages of code that come to be elsewhere: after each way to flush what the processor remembers of a translation, each way to get to the
 * page's code leads to the new one. Engines that keep code by linear address hear of it in one way or another.
 */
#include "lib/guest.h"

enum { PAGE = 4096, ROUNDS = 6, WARM = 60 };
enum { P = 1, W = 2, U = 4, PS = 1 << 7, G = 1 << 8, CR4_PGE = 1 << 7, CR4_PCIDE = 1 << 17 };
#define NO_FLUSH (1ull << 63)
#define LARGE_FRAME(n) (0x1000000ull + (n) * 0x200000ull)

/* Code lies on the page at `target`, ways there on the one before. */
static const uint64_t target_of[2] = { 0x140201000ull, 0x140600000ull };
enum { CODE = 0x100, BESIDE = CODE + 6, CALL = 0, JUMP = 0x20, RETURN = 0x40, BRANCH = 0x60, WORD = 0x80, RETURN_BESIDE = 0xA0, ACROSS = PAGE - 2 };

struct page {
    uint64_t target;
    bool large;
    uint64_t frame[2];                  /* where the code is by turns */
    uint64_t *entry[2];                 /* that maps it: in the first space, and in the other one */
};

/* What runs the ways. */
struct visit {
    uint64_t target, wrong;
    uint32_t wanted;
};

static uint64_t other_pml4;

static uint8_t *put(uint8_t *at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

/* --- the ways --- */

static void make_ways(uint8_t *page, uint64_t target)
{
    uint64_t begin = target - PAGE, code = target + CODE;
    put(put(put(page + CALL, 0xE8, 1), code - (begin + CALL + 5), 4), 0xC3, 1);
    put(put(page + JUMP, 0x25FF, 2), begin + WORD - (begin + JUMP + 6), 4);
    put(put(put(page + RETURN, 0xB848, 2), code, 8), 0xC350, 2);                            /* mov, push, ret */
    put(put(put(page + RETURN_BESIDE, 0xB848, 2), target + BESIDE, 8), 0xC350, 2);
    put(put(page + BRANCH, 0x840FC031, 4), code - (begin + BRANCH + 8), 4);                 /* xor, jz */
    put(page + WORD, code, 8);
    put(page + ACROSS, 0x00B8, 2);                                                          /* mov $number << 8, %eax */
}

static void make_code(uint8_t *page, unsigned number)
{
    put(page, number | 0xC3u << 24, 4);
    put(put(put(page + CODE, 0xB8, 1), number, 4), 0xC3, 1);
    put(put(put(page + BESIDE, 0xB8, 1), number, 4), 0xC3, 1);
}

static uint32_t call(uint64_t code)
{
    uint32_t result;
    __asm__ volatile("call *%1" : "=a"(result) : "r"(code) : "memory", "cc");
    return result;
}

static void visit(void *argument)
{
    static const uint16_t way[] = { CALL, JUMP, RETURN, BRANCH, RETURN_BESIDE };
    struct visit *v = argument;
    for (unsigned i = 0; i < WARM; i++) {
        v->wrong += call(v->target + CODE) != v->wanted;
        for (unsigned n = 0; n < sizeof(way) / sizeof(way[0]); n++)
            v->wrong += call(v->target - PAGE + way[n]) != v->wanted;
        v->wrong += call(v->target - PAGE + ACROSS) != v->wanted << 8;
    }
}

/* --- the flushes --- */

static void by_invlpg(uint64_t target) { invlpg(target); }
static void by_invlpg_of_another_byte(uint64_t target) { invlpg(target + PAGE - 1); }
static void by_cr3(uint64_t target) { write_cr3(read_cr3()); }

static void by_pge(uint64_t target)
{
    write_cr4(read_cr4() ^ CR4_PGE);
    write_cr4(read_cr4() ^ CR4_PGE);
}

static void invpcid(uint64_t type, uint64_t target)
{
    struct { uint64_t pcid, address; } what = { 0, target };
    __asm__ volatile("invpcid %0, %1" : : "m"(what), "r"(type) : "memory");
}
static void by_invpcid_of_the_address(uint64_t target) { invpcid(0, target); }
static void by_invpcid_of_the_pcid(uint64_t target) { invpcid(1, target); }
static void by_invpcid_of_all(uint64_t target) { invpcid(2, target); }
static void by_invpcid_of_all_but_global(uint64_t target) { invpcid(3, target); }

static const struct flush {
    const char *name;
    void (*run)(uint64_t target);
    bool global, needs_invpcid;         /* it flushes global pages, too */
} flushes[] = {
    { "INVLPG", by_invlpg, true, false },
    { "INVLPG of another byte", by_invlpg_of_another_byte, true, false },
    { "MOV to CR3", by_cr3, false, false },
    { "a change of CR4.PGE", by_pge, true, false },
    { "INVPCID of the address", by_invpcid_of_the_address, false, true },
    { "INVPCID of the PCID", by_invpcid_of_the_pcid, false, true },
    { "INVPCID of all", by_invpcid_of_all, true, true },
    { "INVPCID of all but global pages", by_invpcid_of_all_but_global, false, true },
};

/* --- pages --- */

static void point(const struct page *page, unsigned space, unsigned where, uint64_t flags)
{
    *(volatile uint64_t *)page->entry[space] = page->frame[where] | P | W | U | (page->large ? PS : 0) | flags;
}

static uint64_t *copy_of(const uint64_t *table)
{
    uint64_t *copy = alloc_page();
    for (unsigned i = 0; i < 512; i++)
        copy[i] = table[i];
    return copy;
}

static uint64_t *table_under(const uint64_t *table, unsigned i) { return (uint64_t *)(table[i] & 0xFFFFFFFFFF000ull); }

/* The directory entry of 2 MiB: of the present space, or of a copy of it. */
static uint64_t *directory_entry(uint64_t *pml4, uint64_t gla)
{
    return &table_under(table_under(pml4, gla >> 39 & 511), gla >> 30 & 511)[gla >> 21 & 511];
}

static void make_page(struct page *page, bool large)
{
    *page = (struct page){ .target = target_of[large], .large = large };
    uint8_t *ways = alloc_page();
    make_ways(ways, page->target);
    map_page(page->target - PAGE, (uint64_t)ways, P | W | U);
    if (!large)
        page->entry[0] = find_pte(page->target);
    for (unsigned i = 0; i < 2; i++) {
        page->frame[i] = large ? LARGE_FRAME(i) : (uint64_t)alloc_page();
        make_code((uint8_t *)page->frame[i], i + 1);
    }
}

/* The same but for the pages: their tables are copied. */
static void make_other_space(struct page page[2])
{
    uint64_t *pml4 = copy_of(boot_pml4), *pdpt = copy_of(table_under(boot_pml4, 0)), *pd = copy_of(table_under(pdpt, 5));
    uint64_t *pt = copy_of(table_under(pd, page[0].target >> 21 & 511));
    pml4[0] = (uint64_t)pdpt | 7;
    pdpt[5] = (uint64_t)pd | 7;
    pd[page[0].target >> 21 & 511] = (uint64_t)pt | 7;
    page[0].entry[1] = &pt[page[0].target >> 12 & 511];
    for (unsigned space = 0; space < 2; space++)
        page[1].entry[space] = directory_entry(space ? pml4 : boot_pml4, page[1].target);
    other_pml4 = (uint64_t)pml4;
}

/* --- the tests --- */

enum who { KERNEL, USER, USER_LONG, WHO };
static const char *const after_flush[WHO] = {
    "after a flush each way leads to where the code is now", "the same in user code", "the same in user code that has run for long",
};
static const char *const in_other_space[WHO] = {
    "in another address space to where it is there", "user code, too", "and user code that has run for long",
};

static uint64_t visit_wrong(enum who who, const struct page *page, unsigned number)
{
    struct visit v = { .target = page->target, .wanted = number };
    struct trap trap = who == KERNEL ? guarded(visit, &v) : guarded_user(visit, &v);
    return v.wrong + (trap.vector != NO_TRAP);
}

static uint64_t tell(uint64_t wrong, enum who who, const struct page *page, const char *how, bool global)
{
    if (wrong)
        print("%s, %s page, %s: wrong %lu times, %s\n", page->large ? "large" : "small", global ? "global" : "not global", how, wrong, after_flush[who]);
    return wrong;
}

static uint64_t flushed(enum who who, const struct page *page, const struct flush *flush, bool global)
{
    uint64_t wrong = 0;
    by_pge(page->target);               /* it may have been a global page */
    for (unsigned round = 0; round < 2 * ROUNDS; round++) {
        point(page, 0, round % 2, global ? G : 0);
        flush->run(page->target);
        wrong += visit_wrong(who, page, round % 2 + 1);
    }
    return tell(wrong, who, page, flush->name, global);
}

/* Spaces are told apart by CR3 alone, or by PCID; in the last way all PCIDs are flushed before each fourth change of space, and its own with each fourth. */
enum how { BY_CR3, BY_PCID, BY_PCID_FLUSHED, HOW };
static const char *const name_of_how[HOW] = { "another CR3", "another PCID", "another PCID, which is flushed now and then" };

static uint64_t flush_of(enum how how, unsigned round, bool has_invpcid)
{
    if (how != BY_PCID_FLUSHED)
        return NO_FLUSH;
    if ((round & 3) == 1 && has_invpcid)
        invpcid(3, 0);
    return (round & 3) == 3 ? 0 : NO_FLUSH;
}

/* In one space the code is elsewhere than in the other. */
static uint64_t spaces(enum who who, const struct page *page, enum how how, bool has_invpcid)
{
    bool pcid = how != BY_CR3;
    uint64_t wrong = 0, cr3[2] = { (uint64_t)boot_pml4, other_pml4 | how };       /* each way has a PCID of its own */
    point(page, 0, 0, 0);
    point(page, 1, 1, 0);
    by_pge(page->target);
    if (pcid)
        write_cr4(read_cr4() | CR4_PCIDE);
    for (unsigned round = 0; round < 3 * ROUNDS; round++) {
        write_cr3(cr3[round % 2] | (pcid ? flush_of(how, round, has_invpcid) : 0));
        wrong += visit_wrong(who, page, round % 2 + 1);
    }
    write_cr3((uint64_t)boot_pml4);
    if (pcid)
        write_cr4(read_cr4() & ~(uint64_t)CR4_PCIDE);
    return tell(wrong, who, page, name_of_how[how], false);
}

/* An engine may do otherwise with user code that has run for long. */
static void run_long(void *argument)
{
    for (volatile unsigned i = 0; i < 4000000; i++)
        ;
}

void test_main(void)
{
    static struct page page[2];
    uint32_t basic[4], extended[4];
    cpuid(1, 0, basic);
    cpuid(7, 0, extended);
    bool pcid = basic[2] >> 17 & 1, has_invpcid = extended[1] >> 10 & 1;
    map_user_all();
    make_page(&page[0], false);
    make_page(&page[1], true);
    make_other_space(page);
    for (enum who who = KERNEL; who < WHO; who++) {
        uint64_t wrong = 0, wrong_spaces = 0;
        for (unsigned space = 0; space < 2 && who == USER_LONG; space++) {
            write_cr3(space ? other_pml4 : (uint64_t)boot_pml4);
            guarded_user(run_long, NULL);
        }
        write_cr3((uint64_t)boot_pml4);
        for (unsigned large = 0; large < 2; large++) {
            for (unsigned i = 0; i < sizeof(flushes) / sizeof(flushes[0]); i++)
                for (unsigned global = 0; global <= flushes[i].global && (has_invpcid || !flushes[i].needs_invpcid); global++)
                    wrong += flushed(who, &page[large], &flushes[i], global);
            for (enum how how = BY_CR3; how < (pcid ? HOW : BY_PCID); how++)
                wrong_spaces += spaces(who, &page[large], how, has_invpcid);
        }
        check_equal(wrong, 0, after_flush[who]);
        check_equal(wrong_spaces, 0, in_other_space[who]);
    }
}
