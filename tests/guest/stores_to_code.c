/*
 * Whatever way an instruction stores, the code that it overwrites is what runs next: code right behind it, code behind a jump, and an instruction
 * that reaches into the next page.
 */
#include "lib/guest.h"

enum { WARM = 40, RUNS = 40, OPERAND = 16, PAGE = 4096, FIRST_VALUE = 0x44332211 };

/*
 * RDI says where to, RSI where 16 bytes are, which XMM0 has, too, RBX the first eight, and RCX the others; EAX has the four that are there, or with `wide` RDX and RAX all.
 * With `aligned` an address that is no multiple of 16 would fault.
 */
static const struct store {
    const char *name;
    bool aligned, wide;
    uint8_t size, code[24];
} stores[] = {
    { "MOV of a byte", false, false, 2, { 0x88, 0x1F } },
    { "MOV of 16 bits", false, false, 3, { 0x66, 0x89, 0x1F } },
    { "MOV of 32 bits", false, false, 2, { 0x89, 0x1F } },
    { "MOV of 64 bits", false, false, 3, { 0x48, 0x89, 0x1F } },
    { "MOV of a segment register", false, false, 2, { 0x8C, 0x1F } },
    { "MOVNTI", false, false, 3, { 0x0F, 0xC3, 0x1F } },
    { "XCHG", false, false, 2, { 0x87, 0x1F } },
    { "LOCK XADD", false, false, 4, { 0xF0, 0x0F, 0xC1, 0x1F } },
    { "LOCK CMPXCHG", false, false, 4, { 0xF0, 0x0F, 0xB1, 0x1F } },
    { "LOCK CMPXCHG16B", true, true, 5, { 0xF0, 0x48, 0x0F, 0xC7, 0x0F } },
    { "ADD", false, false, 2, { 0x01, 0x1F } },
    { "NOT", false, false, 2, { 0xF7, 0x17 } },
    { "ROL", false, false, 3, { 0xC1, 0x07, 0x04 } },
    { "INC", false, false, 2, { 0xFE, 0x07 } },
    { "BTC", false, false, 4, { 0x0F, 0xBA, 0x3F, 0x0B } },
    { "BTC off a register", false, false, 7, { 0x6A, 0x05, 0x59, 0x48, 0x0F, 0xBB, 0x0F } },
    { "SETC", false, false, 4, { 0xF9, 0x0F, 0x92, 0x07 } },
    { "STOS", false, false, 3, { 0x89, 0xD8, 0xAB } },
    { "REP STOS", false, false, 9, { 0x89, 0xD8, 0xB9, 4, 0, 0, 0, 0xF3, 0xAA } },
    { "MOVS", false, false, 1, { 0xA5 } },
    { "REP MOVS of bytes", false, false, 7, { 0xB9, 16, 0, 0, 0, 0xF3, 0xA4 } },
    { "REP MOVS of 64 bits", false, false, 8, { 0xB9, 2, 0, 0, 0, 0xF3, 0x48, 0xA5 } },
    { "REP MOVS downward", false, false, 17, { 0xFD, 0x48, 0x8D, 0x7F, 0x0F, 0x48, 0x8D, 0x76, 0x0F, 0xB9, 16, 0, 0, 0, 0xF3, 0xA4, 0xFC } },
    { "PUSH", false, false, 11, { 0x48, 0x8D, 0x7F, 0x08, 0x48, 0x87, 0xE7, 0x53, 0x48, 0x87, 0xE7 } },
    { "POP", false, false, 3, { 0x53, 0x8F, 0x07 } },
    { "MOVUPS", false, false, 3, { 0x0F, 0x11, 0x07 } },
    { "MOVSS", false, false, 4, { 0xF3, 0x0F, 0x11, 0x07 } },
    { "MOVNTDQ", true, false, 4, { 0x66, 0x0F, 0xE7, 0x07 } },
    { "MASKMOVDQU", false, false, 8, { 0x66, 0x0F, 0x74, 0xC9, 0x66, 0x0F, 0xF7, 0xC1 } },
    { "FISTP", false, false, 4, { 0xDB, 0x06, 0xDB, 0x1F } },
    { "FNSTCW", false, false, 2, { 0xD9, 0x3F } },
    { "STMXCSR", false, false, 3, { 0x0F, 0xAE, 0x1F } },
};
enum { STORES = sizeof(stores) / sizeof(stores[0]) };

enum place { BEHIND, BEHIND_A_JUMP, ACROSS_PAGES, PLACES };
enum who { KERNEL, USER, USER_LONG, WHO };
static const char *const names[WHO][PLACES] = {
    { "what follows a store to it", "what a jump leads to", "what reaches into the next page" },
    { "what follows in user code", "what a jump of user code leads to", "what reaches into user code's next page" },
    { "what follows in user code that has run for long", "what a jump of it leads to", "what reaches into its next page" },
};

static uint8_t spare[OPERAND] __attribute__((aligned(16))), bytes[OPERAND] __attribute__((aligned(16)));
static unsigned current;                /* of `stores` */

struct task {
    uint8_t *code, *target;             /* what stores, and the constant that it stores to */
    uint64_t wrong;
};

static uint8_t *put(uint8_t *at, const uint8_t *from, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = from[i];
    return at + size;
}

static uint32_t word_at(const volatile uint8_t *at) { return at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24; }

/* mov $value, %eax; ret, from its constant on. */
static void make_operand(uint8_t operand[OPERAND], uint32_t value)
{
    put(operand, (const uint8_t *)&value, 4);
    operand[4] = 0xC3;
    for (unsigned i = 5; i < OPERAND; i++)
        operand[i] = 0x90;
}

static uint32_t call(const struct task *task, uint8_t *to)
{
    const uint8_t *from = bytes;
    uint64_t rest = 0x9090909090909090ull, result = word_at(to), other = rest, first;
    put((uint8_t *)&first, bytes, sizeof(first));
    if (stores[current].wide)
        result |= 0x909090C3ull << 32;
    __asm__ volatile("movups (%%rsi), %%xmm0\n\t call *%[code]"
                     : "+a"(result), "+b"(first), "+c"(rest), "+d"(other), "+S"(from), "+D"(to) : [code] "r"(task->code) : "memory", "cc");
    return (uint32_t)result;
}

static void run_task(void *argument)
{
    struct task *task = argument;
    for (unsigned run = 0; run < RUNS; run++) {
        for (unsigned i = 0; i < (run ? 2 : WARM); i++) {
            make_operand(spare, 0x11110000 + i);
            call(task, spare);
        }
        make_operand(bytes, 0x22330055 + run * 0x010305);
        uint32_t result = call(task, task->target);
        task->wrong += result != word_at(task->target) || (!run && result == FIRST_VALUE);
    }
}

static struct task make_task(enum place place)
{
    uint8_t *page = alloc_page(), jump[5] = { 0xE9 };
    unsigned at = place == ACROSS_PAGES ? PAGE - 2 : place == BEHIND_A_JUMP ? 0x800 : 0x410;
    uint8_t *target = page + at, *begin = target - 1 - (place == BEHIND ? stores[current].size : 0x300);
    alloc_page();                       /* the next one */
    uint8_t *end = put(begin, stores[current].code, stores[current].size);
    target[-1] = 0xB8;
    make_operand(target, FIRST_VALUE);
    uint32_t distance = (uint32_t)(target - 1 - (end + 5));
    put(jump + 1, (const uint8_t *)&distance, 4);
    if (place != BEHIND)
        put(end, jump, 5);
    return (struct task){ .code = begin, .target = target };
}

static void try_all(enum who who)
{
    for (enum place place = BEHIND; place < PLACES; place++) {
        uint64_t wrong = 0;
        for (current = 0; current < STORES; current++) {
            if (stores[current].aligned && place == ACROSS_PAGES)
                continue;
            struct task task = make_task(place);
            struct trap trap = who == KERNEL ? guarded(run_task, &task) : guarded_user(run_task, &task);
            task.wrong += trap.vector != NO_TRAP;
            if (task.wrong)
                print("%s, %s: wrong %lu times, exception %u\n", stores[current].name, names[who][place], task.wrong, trap.vector);
            wrong += task.wrong;
        }
        check_equal(wrong, 0, names[who][place]);
    }
}

/* An engine may do otherwise with user code that has run for long. */
static void run_long(void *argument)
{
    for (volatile unsigned i = 0; i < 4000000; i++)
        ;
}

void test_main(void)
{
    __asm__ volatile("fninit");
    map_user_all();
    try_all(KERNEL);
    try_all(USER);
    guarded_user(run_long, NULL);
    try_all(USER_LONG);
}
