#include "guest.h"

enum { AP_PAGE = 0x8 };

/* --- exceptions --- */

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, attr;
    uint16_t offset_mid;
    uint32_t offset_high, reserved;
};
static struct gate idt[256];
struct tss64 tss;
static uint8_t interrupt_stack[16384] __attribute__((aligned(16)));
static uint8_t user_stack[16384] __attribute__((aligned(4096)));
static void (*handlers[256])(struct trap_frame *frame);
static bool guard_active;
static uint64_t guard_context[8];
static struct trap guard_trap;

extern uint64_t stub_table[256];
extern uint64_t boot_gdt[];
int save_context(uint64_t context[8]) __attribute__((returns_twice));
__attribute__((noreturn)) void restore_context(uint64_t context[8]);

void set_gate(unsigned vector, void *entry, unsigned type, unsigned dpl, unsigned ist)
{
    uint64_t offset = (uint64_t)entry;
    idt[vector] = (struct gate){ (uint16_t)offset, SEL_CODE64, (uint8_t)ist, (uint8_t)(0x80 | dpl << 5 | type),
                                 (uint16_t)(offset >> 16), (uint32_t)(offset >> 32), 0 };
}

void set_gdt_entry(unsigned selector, uint64_t descriptor) { boot_gdt[selector / 8] = descriptor; }

void set_handler(unsigned vector, void (*handler)(struct trap_frame *frame)) { handlers[vector] = handler; }

void trap_c(struct trap_frame *frame)
{
    unsigned vector = (unsigned)frame->vector;
    if (handlers[vector]) {
        handlers[vector](frame);
        return;
    }
    if (guard_active) {
        guard_active = false;
        guard_trap = (struct trap){ vector, frame->error, frame->rip, frame->rflags, read_cr2(), frame->cs, frame->ss, frame->rsp };
        restore_context(guard_context);
    }
    print("FAIL unexpected exception %u, error %lx, rip %lx, cr2 %lx\n", vector, frame->error, frame->rip, read_cr2());
    fail_and_exit();
}

static void load_tables(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idtr = { sizeof(idt) - 1, (uint64_t)idt };
    __asm__ volatile("lidt %0" :: "m"(idtr));
}

static void init_traps(void)
{
    for (unsigned i = 0; i < 256; i++)
        set_gate(i, (void *)stub_table[i], 0xE, i == 3 ? 3 : 0, 0);
    load_tables();
    uint64_t base = (uint64_t)&tss;
    tss.rsp[0] = (uint64_t)interrupt_stack + sizeof(interrupt_stack);
    tss.io_map = sizeof(tss);
    set_gdt_entry(SEL_TSS, (sizeof(tss) - 1) | (base & 0xFFFFFF) << 16 | 0x89ull << 40 | (base >> 24 & 0xFF) << 56);
    set_gdt_entry(SEL_TSS + 8, base >> 32);
    __asm__ volatile("ltr %w0" :: "r"(SEL_TSS));
}

struct trap guarded(void (*fn)(void *argument), void *argument)
{
    guard_trap = (struct trap){ .vector = NO_TRAP };
    if (save_context(guard_context) == 0) {
        guard_active = true;
        fn(argument);
    }
    guard_active = false;
    return guard_trap;
}

/* CPL 3 comes back by INT 0x81, whose gate has DPL 3. */
enum { VECTOR_LEAVE_USER = 0x81 };

static void leave_user(struct trap_frame *frame)
{
    guard_active = false;
    restore_context(guard_context);
}

static void user_entry(void (*fn)(void *argument), void *argument)
{
    fn(argument);
    __asm__ volatile("int $0x81");
}

struct trap guarded_user(void (*fn)(void *argument), void *argument)
{
    guard_trap = (struct trap){ .vector = NO_TRAP };
    set_gate(VECTOR_LEAVE_USER, (void *)stub_table[VECTOR_LEAVE_USER], 0xE, 3, 0);
    set_handler(VECTOR_LEAVE_USER, leave_user);
    if (save_context(guard_context) == 0) {
        guard_active = true;
        uint64_t stack = (uint64_t)user_stack + sizeof(user_stack) - 8;
        __asm__ volatile("pushq %0\n pushq %1\n pushq %2\n pushq %3\n pushq %4\n iretq"
                         :: "i"(SEL_USER_DATA), "r"(stack), "i"(2), "i"(SEL_USER_CODE64), "r"(user_entry),
                            "D"(fn), "S"(argument) : "memory");
    }
    guard_active = false;
    return guard_trap;
}

/* --- paging --- */

extern uint8_t image_end[];
static uint64_t next_page;

void *alloc_page(void)
{
    if (!next_page)
        next_page = ((uint64_t)image_end + 0x1FFFFF) & ~0xFFFFFull;
    uint64_t *page = (uint64_t *)next_page;
    next_page += 4096;
    for (unsigned i = 0; i < 512; i++)
        page[i] = 0;
    return page;
}

static uint64_t *next_table(uint64_t *entry)
{
    if (!(*entry & 1))
        *entry = (uint64_t)alloc_page() | 7;
    return (uint64_t *)(*entry & 0xFFFFFFFFFF000ull);
}

uint64_t *find_pte(uint64_t gla)
{
    uint64_t *pdpt = next_table(&boot_pml4[gla >> 39 & 511]);
    uint64_t *pd = next_table(&pdpt[gla >> 30 & 511]);
    uint64_t *pt = next_table(&pd[gla >> 21 & 511]);
    return &pt[gla >> 12 & 511];
}

void map_page(uint64_t gla, uint64_t gpa, uint64_t flags)
{
    *find_pte(gla) = gpa | flags;
    invlpg(gla);
}

void map_user_all(void)
{
    boot_pml4[0] |= 4;
    for (unsigned i = 0; i < 4; i++)
        boot_pdpt[i] |= 4;
    for (unsigned i = 0; i < 2048; i++)
        boot_pd[i] |= 4;
    write_cr3(read_cr3());
}

/* --- application processors --- */

extern uint8_t ap_start[], ap_end[];
extern uint32_t ap_counter;
static void (*ap_function)(unsigned number);

void ap_main(uint64_t number)
{
    load_tables();
    ap_function((unsigned)number);
}

static void icr(uint32_t value)
{
    *apic(0x300) = value;
    while (*apic(0x300) & 0x1000)
        pause();
}

void start_processors(unsigned count, void (*fn)(unsigned number))
{
    ap_function = fn;
    uint8_t *to = (uint8_t *)(AP_PAGE << 12);
    for (uint8_t *from = ap_start; from < ap_end; from++)
        *to++ = *from;
    *apic(0xF0) = 0x1FF;
    icr(0x000C4500);                    /* INIT, all but self */
    for (volatile unsigned i = 0; i < 100000; i++)
        ;
    icr(0x000C4600 | AP_PAGE);          /* start-up */
    while (*(volatile uint32_t *)&ap_counter < count)
        pause();
}

/* --- parameters --- */

bool has_parameter(const char *word)
{
    extern uint64_t multiboot_info;
    enum { COMMAND_LINE = 16 / 4 };     /* in dwords of Multiboot's information */
    const char *at = (const char *)(uintptr_t)((const uint32_t *)multiboot_info)[COMMAND_LINE];
    while (*at) {
        const char *want = word;
        while (*want && *at == *want)
            at++, want++;
        if (!*want && (!*at || *at == ' '))
            return true;
        while (*at && *at++ != ' ')
            ;
    }
    return false;
}

void guest_main(void)
{
    init_traps();
    test_main();
    guest_exit();
}
