/*
 * What a kernel does with the processor's own state, each so often that a translator has long made code of it: flags, the interrupt
 * flag and its shadow, GS base, AC, bit strings, faults and user code, with interrupts at every border.
 */
#include "lib/guest.h"

enum { ROUNDS = 300, VECTOR = 0x60, CR4_SMAP = 1 << 21, CR4_PCIDE = 1 << 17, IF = 1 << 9 };
static const uint64_t page = 6ull << 30;
enum { MSR_GS_BASE = 0xC0000101, MSR_KERNEL_GS_BASE = 0xC0000102 };

/* The status flags, in every combination, as a value for POPF. */
static uint64_t status(unsigned n)
{
    static const uint16_t bit[] = { 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11 };
    uint64_t flags = 2;
    for (unsigned i = 0; i < 6; i++)
        flags |= n >> i & 1 ? bit[i] : 0;
    return flags;
}

static void flags(void)
{
    uint64_t wrong = 0, wrong_cleared = 0;
    for (unsigned n = 0; n < 64 * 8; n++) {
        uint64_t image, cleared, in = status(n % 64) | (n & 64 ? 1 << 10 : 0);
        __asm__ volatile("push %2\n popfq\n pushfq\n pop %0\n cld\n cli\n pushfq\n pop %1"
                         : "=r"(image), "=r"(cleared) : "r"(in | IF) : "memory", "cc");
        wrong += image != (in | IF);
        wrong_cleared += cleared != (in & ~(1ull << 10));
    }
    check_equal(wrong, 0, "PUSHF pushes what POPF took");
    check_equal(wrong_cleared, 0, "CLD and CLI leave the other flags alone");
}

/* --- flags and indirect jumps --- */

enum { DISTANCES = 9, SHORTEST = 12 };
static uint8_t far_code[(1 << (SHORTEST + DISTANCES - 1)) + 4096] __attribute__((aligned(4096)));

static void copy(uint8_t *to, const uint8_t *from, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        to[i] = from[i];
}

/* A jump to the code with that in CF; what it leaves in EAX. */
static uint32_t jump_with_carry(const uint8_t *code, uint32_t carry)
{
    uint32_t result;
    __asm__ volatile("lea 1f(%%rip), %%rdx\n push %%rdx\n bt $0, %2\n jmp *%1\n 1:" : "=&a"(result) : "r"(code), "r"(carry) : "rdx", "memory", "cc");
    return result;
}

/* By turns to code that overwrites flags at once and to code, some power of two away, that asks for CF. */
static void carried_flags(void)
{
    static const uint8_t overwrites[] = { 0x31, 0xC0, 0xC3 }, asks[] = { 0x0F, 0x92, 0xC0, 0x0F, 0xB6, 0xC0, 0xC3 };
    uint64_t wrong = 0;
    copy(far_code, overwrites, sizeof(overwrites));
    for (unsigned k = 0; k < DISTANCES; k++)
        copy(far_code + (1u << (SHORTEST + k)), asks, sizeof(asks));
    for (unsigned i = 0; i < ROUNDS; i++)
        for (unsigned k = 0; k < DISTANCES; k++) {
            wrong += jump_with_carry(far_code, i & 1) != 0;
            wrong += jump_with_carry(far_code + (1u << (SHORTEST + k)), i & 1) != (i & 1);
        }
    check_equal(wrong, 0, "flags are as they were where an indirect jump leads");
}

static void pushes(void)
{
    uint64_t there = 0x1122334455667788, a, b, wrong = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("pushq %2\n pushq (%%rsp)\n pop %0\n pop %1" : "=r"(a), "=r"(b) : "m"(there) : "memory");
        wrong += a != there || b != there;
        there += i;
    }
    check_equal(wrong, 0, "PUSH of memory, off RSP, too");
}

/* --- interrupts --- */

static volatile uint64_t interrupts, before, behind, misplaced;

static void on_interrupt(struct trap_frame *frame)
{
    interrupts++;
    misplaced += before != behind + 1;
    *apic(0xB0) = 0;
}

/* An interrupt that waits is taken behind the instruction that follows STI, neither before nor after it. */
static void shadow(void)
{
    set_handler(VECTOR, on_interrupt);
    *apic(0xF0) = 0x1FF;
    cli();
    for (unsigned i = 0; i < ROUNDS; i++) {
        *apic(0x300) = 0x40000 | VECTOR;        /* to ourselves */
        while (!(apic(0x200)[(VECTOR / 32) * 4] >> (VECTOR % 32) & 1))
            ;
        __asm__ volatile("sti\n incq %0\n incq %1\n cli" : "+m"(before), "+m"(behind) : : "memory", "cc");
    }
    check_equal(interrupts, ROUNDS, "STI lets an interrupt in that waited");
    check_equal(misplaced, 0, "behind the next instruction");
}

static void on_timer(struct trap_frame *frame)
{
    interrupts++;
    *apic(0xB0) = 0;
}

/* A timer fires anywhere in here, and between STI and HLT in particular: none is slept over, as each starts the next. */
static void halts(void)
{
    interrupts = 0;
    set_handler(VECTOR, on_timer);
    *apic(0x3E0) = 0xB;                         /* divided by 1 */
    *apic(0x320) = VECTOR;                      /* one shot */
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t seen = interrupts;
        *apic(0x380) = 1 + i * 4;
        for (cli(); interrupts == seen; cli())
            sti_hlt();
    }
    sti();
    check_equal(interrupts, ROUNDS, "no interrupt is lost between STI and HLT");
    cli();
    set_handler(VECTOR, NULL);
}

/* --- segments' bases, AC --- */

static void gs_bases(void)
{
    uint64_t base = rdmsr(MSR_GS_BASE), other = rdmsr(MSR_KERNEL_GS_BASE), wrong = 0;
    static uint64_t one = 1, two = 2;
    wrmsr(MSR_GS_BASE, (uint64_t)&one);
    wrmsr(MSR_KERNEL_GS_BASE, (uint64_t)&two);
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t a, b;
        __asm__ volatile("mov %%gs:0, %0\n swapgs\n mov %%gs:0, %1" : "=r"(a), "=r"(b) : : "memory");
        wrong += a != (i & 1 ? two : one) || b != (i & 1 ? one : two);
    }
    check_equal(wrong, 0, "SWAPGS");
    check_equal(rdmsr(MSR_GS_BASE), (uint64_t)&one, "after an even number of times");
    wrmsr(MSR_GS_BASE, base);
    wrmsr(MSR_KERNEL_GS_BASE, other);
}

static void read_page(void *argument)
{
    *(uint64_t *)argument = *(volatile uint64_t *)page;
}

static void access_rights(void)
{
    uint32_t out[4];
    uint64_t value, faults = 0;
    cpuid(7, 0, out);
    if (!(out[1] >> 20 & 1)) {
        print("SKIP STAC and CLAC: this model has no SMAP\n");
        return;
    }
    map_page(page, (uint64_t)alloc_page(), 7);
    boot_pml4[0] |= 4;
    boot_pdpt[page >> 30] |= 4;
    *(find_pte(page)) |= 4;
    uint64_t *directory = (uint64_t *)(boot_pdpt[page >> 30] & ~0xFFFull);
    directory[0] |= 4;
    write_cr4(read_cr4() | CR4_SMAP);
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("stac" ::: "memory");
        faults += guarded(read_page, &value).vector != NO_TRAP;
        __asm__ volatile("stac\n mov (%1), %0\n clac" : "=r"(value) : "r"(page) : "memory");
    }
    check_equal(faults, 0, "STAC opens user pages");
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("stac\n clac" ::: "memory");
        faults += guarded(read_page, &value).vector == 14;
    }
    check_equal(faults, ROUNDS, "CLAC closes them");
    write_cr4(read_cr4() & ~(uint64_t)CR4_SMAP);
}

/* --- bit strings --- */

static void bit_strings(void)
{
    static uint64_t bits[16];
    static uint8_t model[1024];
    uint64_t wrong = 0, state = 1;
    for (unsigned i = 0; i < 20 * ROUNDS; i++) {
        state = state * 6364136223846793005 + 1442695040888963407;
        int64_t offset = (int64_t)(state >> 40 & 1023) - 512;
        uint8_t set, *expected = &model[offset + 512];
        switch (state >> 33 & 3) {
        case 0: __asm__ volatile("bts %2, %1\n setc %0" : "=r"(set), "+m"(bits[8]) : "r"(offset) : "memory", "cc"); break;
        case 1: __asm__ volatile("lock btr %2, %1\n setc %0" : "=r"(set), "+m"(bits[8]) : "r"(offset) : "memory", "cc"); break;
        case 2: __asm__ volatile("btcl %k2, %1\n setc %0" : "=r"(set), "+m"(bits[8]) : "r"(offset) : "memory", "cc"); break;
        default: __asm__ volatile("bt %2, %1\n setc %0" : "=r"(set), "+m"(bits[8]) : "r"(offset) : "memory", "cc"); break;
        }
        wrong += set != *expected;
        *expected = (state >> 33 & 3) == 0 ? 1 : (state >> 33 & 3) == 1 ? 0 : (state >> 33 & 3) == 2 ? !*expected : *expected;
    }
    check_equal(wrong, 0, "bit strings reach to both sides of their operand");
    for (unsigned i = 0; i < 1024; i++)
        wrong += (bits[i / 64] >> i % 64 & 1) != model[i];
    check_equal(wrong, 0, "and change nothing else");
}

/* --- faults --- */

static volatile uint64_t faults;

static void on_fault(struct trap_frame *frame)
{
    faults++;
    *find_pte(page) |= 1;
}

static void page_faults(void)
{
    uint64_t sum = 0;
    set_handler(14, on_fault);
    map_page(page, (uint64_t)alloc_page(), 3);
    for (unsigned i = 0; i < ROUNDS; i++) {
        *find_pte(page) &= ~1ull;
        invlpg(page);
        *(volatile uint64_t *)page += i;
        sum += i;
    }
    set_handler(14, NULL);
    check_equal(faults, ROUNDS, "each page that goes faults once");
    check_equal(*(volatile uint64_t *)page, sum, "and the access is made once");
}

static void at_user(void *argument) { ++*(volatile uint64_t *)argument; }
static void at_user_cli(void *argument) { cli(); }

static void user_code(void)
{
    static uint64_t runs;
    uint64_t wrong = 0, refused = 0;
    map_user_all();
    for (unsigned i = 0; i < ROUNDS; i++) {
        wrong += guarded_user(at_user, &runs).vector != NO_TRAP;
        refused += guarded_user(at_user_cli, NULL).vector == 13;
    }
    check_equal(runs, ROUNDS, "user code, to and fro");
    check_equal(wrong, 0, "without a fault");
    check_equal(refused, ROUNDS, "where CLI faults");
}

/* --- jumps through a word, as a linker's table has them --- */

enum { TARGETS = 12, WARM_UP = 4 << 20 };
static volatile uint64_t word, jump_at;
static uint8_t target_code[TARGETS][64] __attribute__((aligned(4096)));

/* A jump of the caller's own, at jump_at: what the code that `word` leads to leaves in EAX, with CF as it is told. RCX is what it was. */
static inline __attribute__((always_inline)) uint32_t through_word(uint32_t carry)
{
    uint64_t rcx = word;
    uint32_t result;
    __asm__ volatile("lea 1f(%%rip), %%rdx\n mov %%rdx, %2\n lea 2f(%%rip), %%rdx\n push %%rdx\n bt $0, %3\n 1: jmp *word(%%rip)\n 2:"
                     : "=&a"(result), "+&c"(rcx), "=m"(jump_at) : "r"(carry) : "rdx", "memory", "cc");
    return rcx == word ? result : ~0u;
}

/* Code that returns `number` and, in bit 31, CF. */
static void write_target(uint8_t *to, uint32_t number)
{
    static const uint8_t code[] = { 0x0F, 0x92, 0xC0, 0x0F, 0xB6, 0xC0, 0xC1, 0xE0, 31, 0x0D, 0, 0, 0, 0, 0xC3 };  /* setc al; movzx eax, al; shl eax, 31; or eax, number; ret */
    copy(to, code, sizeof(code));
    copy(to + 10, (const uint8_t *)&number, sizeof(number));
}

static inline __attribute__((always_inline)) bool leads_to(const uint8_t *code, uint32_t number, uint32_t carry)
{
    word = (uint64_t)(uintptr_t)code;
    return through_word(carry) == (number | carry << 31);
}

/* The same one, two by turns, all of them, and the first again. */
static void targets_change(void *wrong)
{
    for (unsigned i = 0; i < 8 * ROUNDS; i++) {
        unsigned phase = i / (2 * ROUNDS), n = phase == 1 ? i % 2 : phase == 2 ? i % TARGETS : 0;
        *(uint64_t *)wrong += !leads_to(target_code[n], n + 1, i >> 3 & 1);
    }
}

static void target_is_written(void *wrong)
{
    for (unsigned i = 0; i < 8 * ROUNDS; i++) {
        if (i % ROUNDS == 0)
            write_target(target_code[0], i);
        *(uint64_t *)wrong += !leads_to(target_code[0], i / ROUNDS * ROUNDS, i & 1);
    }
    write_target(target_code[0], 1);
}

static void to_word(void *argument) { *(uint32_t *)argument = through_word(1); }

/* To a page that is the same in all address spaces, whose code jumps to the one before. */
static void to_jump(void *argument) { *(uint32_t *)argument = jump_with_carry((const uint8_t *)(page + 4096), 1); }

/* Long enough for the engine to know that the program runs long, and to forget what it has cost. */
static void warm_up(void *argument)
{
    for (uint64_t i = 0; i < WARM_UP; i++)
        __asm__ volatile("" : "+r"(i));
}

/* Who runs them, and what the checks are called. */
struct level {
    struct trap (*call)(void (*)(void *), void *);
    const char *follows, *written, *mapped, *absent, *no_address, *other_space, *direct, *identified;
};
static const struct level supervisor = {
    guarded, "a jump through a word leads where the word does, and flags go with it", "to the code that is there by then", "to what is mapped there now",
    "and faults there if nothing is", "where the jump is if the word is no address", "in another address space to what is there",
    "and so does a direct jump to the next page", "with identifiers of the spaces as well",
}, user = {
    guarded_user, "a user's jump through a word leads where the word does, and flags go with it", "a user's, to the code that is there by then",
    "a user's, to what is mapped there now", "a user's faults there if nothing is", "a user's, where the jump is if the word is no address",
    "a user's, in another address space to what is there", "and so does a user's direct jump to the next page",
    "a user's, with identifiers of the spaces as well",
};

static void run_long(const struct level *level)
{
    if (level == &user)
        level->call(warm_up, NULL);
}

/* The page that the word leads to is another one, is not there, or the word is no address. */
static void target_goes(const struct level *level, uint8_t *const code[2])
{
    uint64_t wrong = 0, flags = *find_pte(page) & 0xFFF;
    uint32_t result = 0;
    word = page;
    for (unsigned i = 0; i < ROUNDS; i++) {
        if (i % 8 == 0) {
            *find_pte(page) = (uint64_t)(uintptr_t)code[i / 8 & 1] | flags;
            invlpg(page);
        }
        wrong += level->call(to_word, &result).vector != NO_TRAP || result != ((i / 8 & 1) | 1u << 31);
    }
    check_equal(wrong, 0, level->mapped);
    *find_pte(page) = 0;
    invlpg(page);
    struct trap trap = level->call(to_word, &result);
    check(trap.vector == 14 && trap.rip == page && trap.cr2 == page, level->absent);
    word = 1ull << 63;
    trap = level->call(to_word, &result);
    check(trap.vector == 13 && trap.error == 0 && trap.rip == jump_at, level->no_address);
    *find_pte(page) = (uint64_t)(uintptr_t)code[0] | flags;
    invlpg(page);
}

/* The spaces by turns, after long in the first: each time, and then for a while each. */
static unsigned space_of_round(unsigned i) { return i < ROUNDS ? 0 : i < 2 * ROUNDS ? i & 1 : i / 32 & 1; }

static uint64_t direct_jumps(const struct level *level, const uint64_t *cr3)
{
    uint64_t wrong = 0;
    uint32_t result = 0;
    for (unsigned i = 0; i < 4 * ROUNDS; i++) {
        write_cr3(cr3[space_of_round(i)]);
        wrong += level->call(to_jump, &result).vector != NO_TRAP || result != (space_of_round(i) | 1u << 31);
    }
    return wrong;
}

static void enable_identifiers(void *argument) { write_cr4(read_cr4() | CR4_PCIDE); }

/* The spaces have translations of their own, which are kept. */
static void with_identifiers(const struct level *level, const uint64_t *space)
{
    const uint64_t kept = 1ull << 63, cr3[] = { space[0] | 1 | kept, space[1] | 2 | kept };
    uint32_t out[4];
    cpuid(1, 0, out);
    if (!(out[2] >> 17 & 1)) {
        print("SKIP jumps in spaces with identifiers: this model has no PCID\n");
        return;
    }
    bool enabled = guarded(enable_identifiers, NULL).vector == NO_TRAP;
    check(enabled, "there are identifiers where CPUID says so");
    if (!enabled)
        return;
    check_equal(direct_jumps(level, cr3), 0, level->identified);
    write_cr3(space[0]);
    write_cr4(read_cr4() & ~(uint64_t)CR4_PCIDE);
}

/* Another address space has other code there. */
static void target_of_another_space(const struct level *level, uint8_t *const code[2])
{
    uint64_t *table[4], space[2] = { read_cr3() }, wrong = 0;
    uint32_t result = 0;
    for (unsigned i = 0; i < 4; i++)
        table[i] = alloc_page();
    copy((uint8_t *)table[0], (const uint8_t *)boot_pml4, 4096);
    copy((uint8_t *)table[1], (const uint8_t *)boot_pdpt, 4096);
    table[0][0] = (uint64_t)(uintptr_t)table[1] | 7;
    table[1][page >> 30] = (uint64_t)(uintptr_t)table[2] | 7;
    table[2][0] = (uint64_t)(uintptr_t)table[3] | 7;
    table[3][0] = (uint64_t)(uintptr_t)code[1] | 7;
    table[3][1] = *find_pte(page + 4096);
    space[1] = (uint64_t)(uintptr_t)table[0];
    word = page;
    for (unsigned i = 0; i < 2; i++) {
        write_cr3(space[i]);
        run_long(level);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        write_cr3(space[i & 1]);
        wrong += level->call(to_word, &result).vector != NO_TRAP || result != ((i & 1) | 1u << 31);
    }
    check_equal(wrong, 0, level->other_space);
    check_equal(direct_jumps(level, space), 0, level->direct);
    write_cr3(space[0]);
    with_identifiers(level, space);
}

static void jumps_through_words(const struct level *level)
{
    uint64_t wrong = 0;
    static const uint8_t jump_back[] = { 0xE9, 0xFB, 0xEF, 0xFF, 0xFF };         /* to where it is, less a page */
    uint8_t *code[2] = { alloc_page(), alloc_page() }, *next = alloc_page();
    copy(next, jump_back, sizeof(jump_back));
    for (unsigned n = 0; n < TARGETS; n++)
        write_target(target_code[n], n + 1);
    for (unsigned n = 0; n < 2; n++)
        write_target(code[n], n);
    run_long(level);
    check(level->call(targets_change, &wrong).vector == NO_TRAP && wrong == 0, level->follows);
    run_long(level);
    check(level->call(target_is_written, &wrong).vector == NO_TRAP && wrong == 0, level->written);
    map_page(page, (uint64_t)(uintptr_t)code[0], 7);
    map_page(page + 4096, (uint64_t)(uintptr_t)next, 7);
    uint64_t *directory = (uint64_t *)(boot_pdpt[page >> 30] & ~0xFFFull);
    boot_pdpt[page >> 30] |= 7;
    directory[0] |= 7;
    run_long(level);
    target_goes(level, code);
    target_of_another_space(level, code);
}

/* The jump led to itself. */
static void on_way_out(struct trap_frame *frame)
{
    extern const uint8_t way_out[];
    word = (uint64_t)(uintptr_t)way_out;
    interrupts++;
    *apic(0xB0) = 0;
}

static __attribute__((noinline, noclone)) void endless_jumps(void)
{
    interrupts = 0;
    set_handler(VECTOR, on_way_out);
    *apic(0x3E0) = 0xB;                         /* divided by 1 */
    *apic(0x320) = VECTOR;                      /* one shot */
    for (unsigned i = 0; i < TARGETS; i++) {
        *apic(0x380) = 1 << 16;
        __asm__ volatile("lea 1f(%%rip), %%rdx\n mov %%rdx, word(%%rip)\n sti\n 1: jmp *word(%%rip)\n way_out: cli" ::: "rdx", "memory", "cc");
    }
    set_handler(VECTOR, NULL);
    check_equal(interrupts, TARGETS, "a jump through a word that leads to itself is interrupted");
}

/* A user's, with interrupts on from UD2 on, until the timer's handler leads out. */
static void on_undefined(struct trap_frame *frame)
{
    frame->rip += 2;
    frame->rflags |= IF;
}

static void on_user_timer(struct trap_frame *frame)
{
    interrupts++;
    frame->rip = jump_at;
    *apic(0xB0) = 0;
}

static __attribute__((noinline, noclone)) void to_and_fro(void *argument)
{
    __asm__ volatile("lea 4f(%%rip), %%rdx\n mov %%rdx, %0\n ud2\n"
                     "1: lea 2f(%%rip), %%rdx\n mov %%rdx, word(%%rip)\n jmp 3f\n"
                     "2: lea 1b(%%rip), %%rdx\n mov %%rdx, word(%%rip)\n"
                     "3: jmp *word(%%rip)\n 4:" : "=m"(jump_at) :: "rdx", "memory", "cc");
}

/* One of the first two at first, one of the others later, by turns; all are in the page before. */
static __attribute__((noinline, noclone)) void to_one_of_four(void *argument)
{
    __asm__ volatile("lea 3f(%%rip), %%rdx\n mov %%rdx, %0\n xor %%eax, %%eax\n ud2\n"
                     ".p2align 3\n 1: jmp 2f\n .p2align 3\n jmp 2f\n .p2align 3\n jmp 2f\n .p2align 3\n jmp 2f\n .p2align 12\n"
                     "2: inc %%eax\n xor %%ecx, %%ecx\n cmp $4096, %%eax\n setg %%cl\n mov %%eax, %%edx\n and $1, %%edx\n"
                     "lea (%%rdx,%%rcx,2), %%ecx\n lea 1b(%%rip), %%rdx\n lea (%%rdx,%%rcx,8), %%rdx\n"
                     "mov %%rdx, word(%%rip)\n jmp *word(%%rip)\n .p2align 3\n 3:"
                     : "=m"(jump_at) :: "rax", "rcx", "rdx", "memory", "cc");
}

static void endless_user_jumps(void)
{
    uint64_t wrong = 0;
    interrupts = 0;
    set_handler(6, on_undefined);
    set_handler(VECTOR, on_user_timer);
    for (unsigned i = 0; i < TARGETS; i++) {
        guarded_user(warm_up, NULL);
        *apic(0x380) = 1 << 22;
        wrong += guarded_user(i & 1 ? to_and_fro : to_one_of_four, NULL).vector != NO_TRAP;
    }
    set_handler(VECTOR, NULL);
    set_handler(6, NULL);
    check(!wrong && interrupts == TARGETS, "a user's that go round for ever are interrupted");
}

void test_main(void)
{
    flags();
    carried_flags();
    jumps_through_words(&supervisor);
    pushes();
    shadow();
    endless_jumps();
    halts();
    gs_bases();
    access_rights();
    bit_strings();
    page_faults();
    user_code();
    jumps_through_words(&user);
    endless_user_jumps();
}
