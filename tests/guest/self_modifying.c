/*
 * Code that overwrites other code, then what comes next or what it jumps to: what was stored is what runs. Between the two stores may
 * lie the moment when an engine, after so many of them, ceases to watch the page; so it is tried after any number.
 */
#include "lib/guest.h"

/* Some passes, as an engine may count other things beside. */
enum { WARM = 200, STORES_MAX = 40, PASSES = 3 };

static const uint8_t stores[] = { 0x89, 0x07, 0x89, 0x06 };         /* mov %eax, (%rdi); mov %eax, (%rsi) */
static const uint8_t constant[] = { 0xB8, 0, 0, 0, 0 };             /* mov $0, %eax */
static const uint8_t back[] = { 0xC3 };                             /* ret */
/* Where these lie: the first three in one page, or the stores in a page before the constants', and the end in one behind. */
enum { STORES = 0, CONSTANT = sizeof(stores), OTHER_CONSTANT = 0x400, END = 0x800, IMMEDIATE = 1 };

static uint8_t spare[8];

struct task {
    uint8_t *code, *other, *target;     /* what stores, and the constants that it stores to */
    uint32_t value, result;
};

static uint8_t *put(uint8_t *at, const uint8_t *bytes, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = bytes[i];
    return at + size;
}

static void put_jump(uint8_t *at, const uint8_t *to)
{
    uint32_t distance = (uint32_t)(to - (at + 5));
    *at = 0xE9;
    put(at + 1, (const uint8_t *)&distance, 4);
}

static struct task make_task(bool apart, uint32_t value)
{
    uint8_t *first = alloc_page(), *second = apart ? alloc_page() : first, *last = apart ? alloc_page() : first;
    uint8_t *target = second + CONSTANT, *other = second + OTHER_CONSTANT;
    uint8_t *behind = put(first + STORES, stores, sizeof(stores));
    if (apart)
        put_jump(behind, target);
    put_jump(put(target, constant, sizeof(constant)), last + END);
    put_jump(put(other, constant, sizeof(constant)), last + END);
    put(last + END, back, sizeof(back));
    return (struct task){ .code = first, .other = other, .target = target, .value = value };
}

static uint32_t call(const uint8_t *code, uint32_t value, uint8_t *first, uint8_t *second)
{
    uint32_t result;
    __asm__ volatile("call *%1" : "=a"(result) : "r"(code), "a"(value), "D"(first), "S"(second) : "memory", "cc");
    return result;
}

static void run_task(void *argument)
{
    struct task *task = argument;
    for (unsigned i = 0; i < WARM; i++)
        call(task->code, 0, spare, spare);
    task->result = call(task->code, task->value, task->other + IMMEDIATE, task->target + IMMEDIATE);
}

static uint64_t stale_runs(bool apart, bool user)
{
    uint64_t wrong = 0;
    for (unsigned n = 0; n < PASSES * STORES_MAX; n++) {
        struct task task = make_task(apart, 0x1000 + n);
        call(task.other, 0, spare, spare);                          /* so that it is known to be code */
        for (unsigned i = 0; i < n % STORES_MAX; i++)
            *(volatile uint8_t *)(task.other + IMMEDIATE) = (uint8_t)i;
        if (user)
            guarded_user(run_task, &task);
        else
            run_task(&task);
        wrong += task.result != task.value;
    }
    return wrong;
}

/*
 * A repeated store that overwrites itself is carried out to its end. An interrupt, or what an engine is asked for by another thread, may end it before:
 * then what it has become runs.
 */
static void repeated_store(void)
{
    enum { RUNS = 200, MANY = 150, BEFORE = 8, COUNT = 200 };
    static const uint8_t code[] = { 0xF3, 0xAA, 0xC3 };             /* rep stos; ret */
    uint8_t *page = alloc_page(), *at = page + OTHER_CONSTANT;
    unsigned complete = 0;
    for (unsigned i = 0; i < RUNS; i++) {
        uint8_t *to = at - BEFORE;
        uint64_t count = COUNT;
        put(at, code, sizeof(code));
        __asm__ volatile("call *%2" : "+c"(count), "+D"(to) : "r"(at), "a"(back[0]) : "memory", "cc");
        complete += !count;
    }
    check(complete > MANY, "a repeated store that overwrites itself goes on to its end");
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
    repeated_store();
    check_equal(stale_runs(false, false), 0, "the next instruction is as it was just stored");
    check_equal(stale_runs(true, false), 0, "and what a jump leads to");
    check_equal(stale_runs(false, true), 0, "the next instruction of user code");
    check_equal(stale_runs(true, true), 0, "and what a jump of user code leads to");
    guarded_user(run_long, NULL);
    check_equal(stale_runs(false, true), 0, "the next instruction of user code that has run for long");
    check_equal(stale_runs(true, true), 0, "and what a jump of it leads to");
}
