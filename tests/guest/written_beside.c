/*
 * One processor overwrites code all the time, in a page that looks like one of which another processor has much code: the other one, which
 * has to look through all of it each time, goes on all the same.
 */
#include "lib/guest.h"

/* Engines find code by the low bits of the page's number: both pages have the same ones. */
enum { FULL = 0x3000000, WRITTEN = 0x5000000, ALIASES = 8, HOT = 20, WRITES_MOST = 400000, TURNS = 3 };
#define ALIAS(n) (0x200000000ull + (n) * 4096ull)

static const uint8_t ret = 0xC3;
static volatile bool ready;
static volatile uint64_t turns;

static void call(uint64_t address) { ((void (*)(void))address)(); }

static void other_processor(unsigned number)
{
    write_cr3(read_cr3());
    for (unsigned i = 0; i < 4096; i++)
        *(volatile uint8_t *)(uintptr_t)(FULL + i) = ret;
    for (unsigned alias = 0; alias < ALIASES; alias++)
        for (unsigned i = 0; i < 4096; i++)
            for (unsigned n = 0; n < HOT; n++)
                call(ALIAS(alias) + i);
    ready = true;
    for (;;) {
        turns++;
        pause();
    }
}

void test_main(void)
{
    for (unsigned alias = 0; alias < ALIASES; alias++)
        map_page(ALIAS(alias), FULL, 3);
    start_processors(1, other_processor);
    while (!ready)
        pause();
    uint64_t before = 0;
    unsigned writes = 0;
    for (; writes < WRITES_MOST && (writes < WRITES_MOST / 4 || turns - before < TURNS); writes++) {
        if (writes == WRITES_MOST / 8)
            before = turns;
        *(volatile uint8_t *)(uintptr_t)WRITTEN = ret;
        call(WRITTEN);
    }
    check(writes < WRITES_MOST, "a processor goes on while another one overwrites code");
}
