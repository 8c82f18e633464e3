#include "lib/guest32.h"

struct gate32 {
    uint16_t offset_low, selector;
    uint8_t zero, attr;
    uint16_t offset_high;
};
static struct gate32 idt[256];
static uint64_t gdt[32] __attribute__((aligned(16)));
struct tss32 tss;
volatile uint32_t task_runs;
volatile uint16_t task_tr;
static uint8_t kernel_stack[16384] __attribute__((aligned(16)));
static uint8_t user_stack[4096] __attribute__((aligned(4096)));
static void (*handlers[256])(struct trap_frame32 *frame);
static bool guard_active;
static uint32_t guard_context[6];
static struct trap32 guard_trap;

int save_context32(uint32_t context[6]) __attribute__((returns_twice));
__attribute__((noreturn)) void restore_context32(uint32_t context[6]);

uint64_t segment_descriptor(uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
    return (limit & 0xFFFF) | (uint64_t)(base & 0xFFFFFF) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 0xF) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

void set_gdt_entry(unsigned selector, uint64_t descriptor) { gdt[selector / 8] = descriptor; }

void set_gate(unsigned vector, void *entry, unsigned type, unsigned dpl, unsigned selector)
{
    uint32_t offset = (uint32_t)entry;
    idt[vector] = (struct gate32){ (uint16_t)offset, (uint16_t)selector, 0, (uint8_t)(0x80 | dpl << 5 | type),
                                   (uint16_t)(offset >> 16) };
}

void set_handler(unsigned vector, void (*handler)(struct trap_frame32 *frame)) { handlers[vector] = handler; }

void trap32_c(struct trap_frame32 *frame)
{
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    if (guard_active) {
        guard_active = false;
        guard_trap = (struct trap32){ frame->vector, frame->error, frame->eip, frame->cs, frame->eflags, read_cr2() };
        restore_context32(guard_context);
    }
    print("FAIL unexpected exception %u, error %x, eip %x, cr2 %x\n", frame->vector, frame->error, frame->eip, read_cr2());
    fail_and_exit();
}

struct trap32 guarded(void (*fn)(void *argument), void *argument)
{
    guard_trap = (struct trap32){ .vector = NO_TRAP };
    if (save_context32(guard_context) == 0) {
        guard_active = true;
        fn(argument);
    }
    guard_active = false;
    return guard_trap;
}

enum { VECTOR_LEAVE_USER = 0x81 };

static void leave_user(struct trap_frame32 *frame)
{
    __asm__ volatile("mov %0, %%ds\n mov %0, %%es" :: "r"(SEL_DATA));
    guard_active = false;
    restore_context32(guard_context);
}

static void user_entry(void (*fn)(void *argument), void *argument)
{
    fn(argument);
    __asm__ volatile("int $0x81");
}

struct trap32 guarded_user(void (*fn)(void *argument), void *argument)
{
    guard_trap = (struct trap32){ .vector = NO_TRAP };
    set_gate(VECTOR_LEAVE_USER, (void *)stub_table32[VECTOR_LEAVE_USER], 0xE, 3, SEL_CODE);
    set_handler(VECTOR_LEAVE_USER, leave_user);
    if (save_context32(guard_context) == 0) {
        guard_active = true;
        uint32_t *stack = (uint32_t *)(user_stack + sizeof(user_stack)) - 4;
        stack[1] = (uint32_t)fn;
        stack[2] = (uint32_t)argument;
        __asm__ volatile("mov %0, %%ds\n mov %0, %%es\n pushl %0\n pushl %1\n pushl $2\n pushl %2\n pushl %3\n iret"
                         :: "r"(SEL_USER_DATA), "r"(stack), "i"(SEL_USER_CODE), "r"(user_entry) : "memory");
    }
    guard_active = false;
    __asm__ volatile("mov %0, %%ds\n mov %0, %%es" :: "r"(SEL_DATA));
    return guard_trap;
}

static void load_tables(void)
{
    set_gdt_entry(SEL_DATA, segment_descriptor(0, 0xFFFFF, 0x93, 0xC));
    set_gdt_entry(SEL_CODE, segment_descriptor(0, 0xFFFFF, 0x9B, 0xC));
    set_gdt_entry(SEL_USER_CODE, segment_descriptor(0, 0xFFFFF, 0xFB, 0xC));
    set_gdt_entry(SEL_USER_DATA, segment_descriptor(0, 0xFFFFF, 0xF3, 0xC));
    set_gdt_entry(SEL_CODE16, segment_descriptor(0x7000, 0xFFFF, 0x9B, 0));
    set_gdt_entry(SEL_DATA16, segment_descriptor(0, 0xFFFF, 0x93, 0));
    tss.esp0 = (uint32_t)(kernel_stack + sizeof(kernel_stack));
    tss.ss0 = SEL_DATA;
    tss.io_map = sizeof(tss);
    set_gdt_entry(SEL_TSS, segment_descriptor((uint32_t)&tss, sizeof(tss) - 1, 0x89, 0));
    struct { uint16_t limit; uint32_t base; } __attribute__((packed)) gdtr = { sizeof(gdt) - 1, (uint32_t)gdt },
        idtr = { sizeof(idt) - 1, (uint32_t)idt };
    __asm__ volatile("lgdt %0\n lidt %1\n ljmp %2, $1f\n 1:\n mov %3, %%ds\n mov %3, %%es\n mov %3, %%ss\n ltr %w4"
                     :: "m"(gdtr), "m"(idtr), "i"(SEL_CODE), "r"(SEL_DATA), "r"(SEL_TSS) : "memory");
}

void guest_main32(void)
{
    for (unsigned i = 0; i < 256; i++)
        set_gate(i, (void *)stub_table32[i], 0xE, i == 3 ? 3 : 0, SEL_CODE);
    load_tables();
    test_main();
    guest_exit();
}
