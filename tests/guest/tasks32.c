/* Task switches in 32-bit mode beyond modes32.c: faults of a new task, the T bit, 16-bit tasks. */
#include "lib/guest32.h"

enum { GP = 13 << 16, TS = 10 << 16, NP = 11 << 16 };

static uint32_t trapped(struct trap32 trap) { return trap.vector == NO_TRAP ? 0 : trap.vector << 16 | trap.error; }
static void reload_data(void) { __asm__ volatile("mov %0, %%ds\n mov %0, %%es" :: "r"(SEL_DATA)); }

static struct tss32 tss2;
static uint8_t task_stack[1024] __attribute__((aligned(16))), task_stack0[1024] __attribute__((aligned(16)));
static volatile uint32_t task_count;
void counting_task(void);
__asm__(".text\n counting_task: incl task_count\n iret\n jmp counting_task\n");

static void make_task(unsigned cs, unsigned ss)
{
    tss2 = (struct tss32){ .eip = (uint32_t)counting_task, .eflags = 2, .esp = (uint32_t)(task_stack + sizeof(task_stack)),
                           .esp0 = (uint32_t)(task_stack0 + sizeof(task_stack0)), .ss0 = SEL_DATA, .cs = cs, .ss = ss,
                           .ds = SEL_USER_DATA, .es = SEL_USER_DATA, .io_map = sizeof(tss2) };
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x89, 0));
}

static void call_task(void *argument) { __asm__ volatile("lcall %0, $0" :: "i"(SEL_TSS2) : "memory"); }

/* After a test that ended inside the new task. */
static void back_to_first_task(void)
{
    set_gdt_entry(SEL_TSS, segment_descriptor((uint32_t)&tss, sizeof(tss) - 1, 0x89, 0));
    __asm__ volatile("ltr %w0\n clts" :: "r"(SEL_TSS));
    __asm__ volatile("pushf\n andl $~0x4000, (%esp)\n popf");
    reload_data();
}

static void faults_of_tasks(void)
{
    make_task(SEL_CODE, SEL_DATA);
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, 0x66, 0x89, 0));
    check_equal(trapped(guarded(call_task, NULL)), TS | SEL_TSS2, "a TSS that is too small is #TS");
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x09, 0));
    check_equal(trapped(guarded(call_task, NULL)), NP | SEL_TSS2, "one that is not present is #NP");
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x8B, 0));
    check_equal(trapped(guarded(call_task, NULL)), GP | SEL_TSS2, "a busy one is #GP");
    make_task(SEL_USER_CODE, SEL_CODE);
    check_equal(trapped(guarded(call_task, NULL)), TS | SEL_CODE, "a bad SS in the TSS is #TS");
    uint32_t tr;
    __asm__ volatile("str %0" : "=r"(tr));
    check_equal(tr & 0xFFFF, SEL_TSS2, "of the new task");
    back_to_first_task();
    make_task(SEL_USER_CODE, SEL_USER_DATA);
    tss2.ldt = SEL_DATA;
    check_equal(trapped(guarded(call_task, NULL)), TS | SEL_DATA, "a bad LDT selector is #TS");
    back_to_first_task();
}

static volatile uint32_t debug_eip, debug_dr6;

static void on_debug(struct trap_frame32 *frame)
{
    uint32_t v;
    __asm__ volatile("mov %%dr6, %0" : "=r"(v));
    debug_dr6 = v;
    debug_eip = frame->eip;
    __asm__ volatile("mov %0, %%dr6" :: "r"(0xFFFF0FF0));
}

static void debug_trap_of_a_task(void)
{
    make_task(SEL_CODE, SEL_DATA);
    tss2.trap = 1;
    task_count = 0;
    set_handler(1, on_debug);
    call_task(NULL);
    set_handler(1, NULL);
    __asm__ volatile("clts");
    check_equal(task_count, 1, "a task with its T bit set runs");
    check_equal(debug_dr6 & 0x8000, 0x8000, "after #DB with DR6.BT");
    check_equal(debug_eip, (uint32_t)counting_task, "before its first instruction");
}

/* A 16-bit TSS: words; the task's code must lie below 64 KiB. */
static struct { uint16_t link, stacks[6], ip, flags, regs[8], es, cs, ss, ds, ldt; } tss16;

static void task_of_16_bits(void)
{
    uint8_t code[] = { 0xFF, 0x05, 0, 0, 0, 0, 0xCF, 0xEB, 0xF7 };      /* inc task_count; iret; jmp back */
    uint32_t at = (uint32_t)&task_count, eax = 0x12345678;
    for (unsigned i = 0; i < 4; i++)
        code[2 + i] = (uint8_t)(at >> i * 8);
    for (unsigned i = 0; i < sizeof(code); i++)
        ((volatile uint8_t *)0x8800)[i] = code[i];
    tss16 = (__typeof__(tss16)){ .ip = 0x8800, .flags = 2, .cs = SEL_CODE, .ss = SEL_DATA, .ds = SEL_DATA, .es = SEL_DATA,
                                 .regs = { 0xAAAA, [4] = 0x8C00 } };
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss16, sizeof(tss16) - 1, 0x81, 0));
    task_count = 0;
    __asm__ volatile("lcall %1, $0" : "+a"(eax) : "i"(SEL_TSS2) : "memory");
    __asm__ volatile("clts\n mov %0, %%fs\n mov %0, %%gs" :: "r"(0));
    check_equal(task_count, 1, "a 16-bit task runs");
    check_equal(eax, 0x12345678, "our registers come back whole");
    check_equal(tss16.link, SEL_TSS, "its link is ours");
    check_equal(tss16.ip, 0x8807, "it stopped behind its IRET");
    check_equal(tss16.regs[0], 0xAAAA, "AX was saved");
}

void test_main(void)
{
    faults_of_tasks();
    debug_trap_of_a_task();
    task_of_16_bits();
}
