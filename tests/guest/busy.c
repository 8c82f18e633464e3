/* Two processors that never end: LOCK, registers of chips, IPIs, code that is written again and again, sleep. For lifecycle.c. */
#include "lib/guest.h"

enum { PROCESSORS = 2, VECTOR_PING = 0x40 };

static volatile uint64_t locked_sum, pings;
static uint8_t patch_code[64] __attribute__((aligned(64))) = { 0xB8, 1, 0, 0, 0, 0xC3 };    /* mov $1, %eax; ret */

static void on_ping(struct trap_frame *frame)
{
    pings++;
    *apic(0xB0) = 0;
}

static void work(unsigned number)
{
    volatile uint32_t *hpet = (volatile uint32_t *)0xFED000F0u;
    *apic(0xF0) = 0x1FF;
    for (unsigned round = 0;; round++) {
        for (unsigned i = 0; i < 200; i++)
            __asm__ volatile("lock incq %0" : "+m"(locked_sum));
        *(volatile uint8_t *)&patch_code[1] = (uint8_t)round;
        ((unsigned (*)(void))(uintptr_t)patch_code)();
        (void)*hpet;
        uint32_t out[4];
        cpuid(0, 0, out);
        write_cr3(read_cr3());
        *apic(0x300) = 0x000C4000 | VECTOR_PING;        /* all but self */
        sti();
        if (number && round % 16 == 0)      /* the other one never sleeps, and wakes it */
            sti_hlt();
    }
}

void test_main(void)
{
    set_handler(VECTOR_PING, on_ping);
    start_processors(PROCESSORS - 1, work);
    work(0);
}
