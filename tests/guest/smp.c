/* Several processors: INIT and SIPI, LOCK, IPIs, cross-modifying code. */
#include "lib/guest.h"

enum { PROCESSORS = 2, ROUNDS = 200000, VECTOR_PING = 0x40 };

static volatile uint64_t locked_sum, plain_ready, pings;
static volatile unsigned finished, go, patched_result[2];
static uint8_t patch_code[64] __attribute__((aligned(64))) = { 0xB8, 1, 0, 0, 0, 0xC3 };    /* mov $1, %eax; ret */

static void add_rounds(void)
{
    for (unsigned i = 0; i < ROUNDS; i++)
        __asm__ volatile("lock incq %0" : "+m"(locked_sum));
}

static void on_ping(struct trap_frame *frame)
{
    pings++;
    *apic(0xB0) = 0;
}

static unsigned call_patched(void) { return ((unsigned (*)(void))(uintptr_t)patch_code)(); }

static void other_processor(unsigned number)
{
    add_rounds();
    __sync_fetch_and_add(&finished, 1);
    /* Serializing instructions between the modification and the execution (SDM3 9.1.3). */
    uint32_t out[4];
    patched_result[0] = call_patched();
    go = 1;
    while (go != 2)
        pause();
    cpuid(0, 0, out);
    patched_result[1] = call_patched();
    go = 3;
    *apic(0xF0) = 0x1FF;
    for (;;)
        sti_hlt();
}

void test_main(void)
{
    set_handler(VECTOR_PING, on_ping);
    start_processors(PROCESSORS - 1, other_processor);
    add_rounds();
    while (finished < PROCESSORS - 1)
        pause();
    check_equal(locked_sum, (uint64_t)PROCESSORS * ROUNDS, "LOCK INC from two processors loses nothing");
    while (go != 1)
        pause();
    *(volatile uint8_t *)&patch_code[1] = 2;
    __asm__ volatile("mfence" ::: "memory");
    go = 2;
    while (go != 3)
        pause();
    check_equal(patched_result[0], 1, "the other processor runs the code");
    check_equal(patched_result[1], 2, "and sees it changed after serializing");
    for (unsigned i = 0; i < 100; i++) {
        uint64_t before = pings;
        *apic(0x300) = 0x000C4000 | VECTOR_PING;
        while (pings == before)
            pause();
    }
    check_equal(pings, 100, "100 IPIs arrive");
}
