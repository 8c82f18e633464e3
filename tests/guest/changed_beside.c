/*
 * One processor changes code again and again, in different ways, and tells the other one, which serializes and runs it: it is the new code, every time
 * (SDM3 §9.1.3 "Handling Self- and Cross-Modifying Code").
 */
#include "lib/guest.h"

enum { PAGE = 4096, ROUNDS = 40 };

enum store { STORE_MOV, STORE_XCHG, STORE_REP_MOVS, STORE_BYTES, STORES };
enum place { IN_A_GRANULE, ACROSS_GRANULES, ACROSS_PAGES, PLACES };
static const unsigned offset_of[PLACES] = { 0x204, 0x3FE, PAGE - 2 };          /* of the constant: the instruction begins one byte before */

static volatile unsigned wanted, done;
static volatile enum store how;
static uint8_t *volatile constant;

static void change(uint8_t *to, uint32_t value)
{
    uint64_t count = sizeof(value);
    const uint32_t *from = &value;
    switch (how) {
    case STORE_MOV:
        __asm__ volatile("mov %1, (%0)" : : "r"(to), "r"(value) : "memory");
        break;
    case STORE_XCHG:
        __asm__ volatile("xchg %1, (%0)" : : "r"(to), "r"(value) : "memory");
        break;
    case STORE_REP_MOVS:
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        break;
    default:
        for (unsigned i = 0; i < count; i++)
            *(volatile uint8_t *)(to + i) = (uint8_t)(value >> 8 * i);
    }
}

static void other_processor(unsigned number)
{
    write_cr3(read_cr3());
    for (;;) {
        unsigned next = wanted;
        if (next == done) {
            pause();
            continue;
        }
        change(constant, next);
        done = next;
    }
}

static uint64_t wrong;

static void run_rounds(void *argument)
{
    uint32_t out[4];
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned value = wanted + 0x01010101;
        wanted = value;
        while (done != value)
            pause();
        cpuid(0, 0, out);
        wrong += ((unsigned (*)(void))(uintptr_t)(constant - 1))() != value;
    }
}

enum who { KERNEL, USER, USER_LONG, WHO };
static const char *const names[WHO] = {
    "what another processor has changed runs", "what another processor has changed runs in user code", "and in user code that has run for long",
};

static uint64_t wrong_runs(enum who who)
{
    wrong = 0;
    for (unsigned place = 0; place < PLACES; place++) {
        uint8_t *page = alloc_page();
        alloc_page();                   /* the next one */
        uint8_t *at = page + offset_of[place];
        at[-1] = 0xB8;                  /* mov $constant, %eax; ret */
        at[4] = 0xC3;
        constant = at;
        for (unsigned store = 0; store < STORES; store++) {
            how = (enum store)store;
            if (who == KERNEL)
                run_rounds(NULL);
            else
                wrong += guarded_user(run_rounds, NULL).vector != NO_TRAP;
        }
    }
    return wrong;
}

/* An engine may do otherwise with user code that has run for long. */
static void run_long(void *argument)
{
    for (volatile unsigned i = 0; i < 4000000; i++)
        ;
}

void test_main(void)
{
    map_user_all();
    start_processors(1, other_processor);
    for (enum who who = KERNEL; who < WHO; who++) {
        if (who == USER_LONG)
            guarded_user(run_long, NULL);
        check_equal(wrong_runs(who), 0, names[who]);
    }
}
