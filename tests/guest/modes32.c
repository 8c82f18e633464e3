/* 32-bit protected mode and what surrounds it: real mode, V86, segments and limits, call gates, task switches, 32-bit and PAE paging. */
#include "lib/guest32.h"

/* --- real mode --- */
extern uint8_t low_code[], low_code_end[], v86_code[], v86_code_end[], task_code[];
void real_mode_trip(void);

static void copy(uint8_t *to, const uint8_t *from, const uint8_t *end)
{
    while (from < end)
        *to++ = *from++;
}

static void real_mode(void)
{
    volatile uint16_t *result = (volatile uint16_t *)0x6000;
    copy((uint8_t *)0x7000, low_code, low_code_end);
    real_mode_trip();
    check_equal(result[0], 0x1234, "real mode writes at selector * 16 + offset");
    check_equal(result[1], 0x700, "CS has the real-mode selector");
    check_equal(result[2], 0xBEEF, "INT goes through the vector table at 0");
    check_equal(*(volatile uint32_t *)0x6008, 0x89ABCDEF, "32-bit operands work in 16-bit code");
    check_equal(result[6], 0x5000, "the stack pointer has 16 bits");
    check_equal(*(volatile uint32_t *)0x6010, *(volatile uint32_t *)0x100000, "FFFF:0010 is above 1 MiB");
    check_equal(result[10], 0x6100 + 300, "REP STOSB counts in CX and DI");
    check_equal(*(volatile uint8_t *)(0x6100 + 299), 0x5A, "and fills");
}

/* --- segments --- */
static void read_fs(void *offset)
{
    __asm__ volatile("mov %%fs:(%0), %%al" :: "r"(offset) : "eax");
}
static void write_fs(void *offset)
{
    __asm__ volatile("movb $1, %%fs:(%0)" :: "r"(offset));
}
static void load_fs(void *selector) { __asm__ volatile("mov %w0, %%fs" :: "r"(selector)); }

static uint8_t area[8192];

static void segments(void)
{
    set_gdt_entry(SEL_FREE, segment_descriptor((uint32_t)area, 99, 0x93, 0x4));
    load_fs((void *)SEL_FREE);
    check_equal(guarded(read_fs, (void *)99).vector, NO_TRAP, "the last byte within the limit");
    check_equal(guarded(read_fs, (void *)100).vector, 13, "the first one beyond is #GP");
    set_gdt_entry(SEL_FREE, segment_descriptor((uint32_t)area, 0xFFF, 0x97, 0x4));
    load_fs((void *)SEL_FREE);
    check_equal(guarded(read_fs, (void *)0xFFF).vector, 13, "expand-down: at the limit is #GP");
    check_equal(guarded(read_fs, (void *)0x1000).vector, NO_TRAP, "expand-down: above the limit is fine");
    set_gdt_entry(SEL_FREE, segment_descriptor((uint32_t)area, 0xFFFF, 0x91, 0x4));
    load_fs((void *)SEL_FREE);
    check_equal(guarded(write_fs, (void *)0).vector, 13, "a write to a read-only segment is #GP");
    set_gdt_entry(SEL_FREE, segment_descriptor((uint32_t)area, 0xFFFF, 0x92, 0x4));
    load_fs((void *)SEL_FREE);
    __asm__ volatile("sgdt %0" : "=m"(area) :: "memory");
    uint64_t *table = *(uint64_t **)(area + 2);
    check_equal(table[SEL_FREE / 8] >> 40 & 0xFF, 0x93, "loading a segment sets its accessed bit");
    load_fs((void *)0);
    check_equal(guarded(read_fs, (void *)0).vector, 13, "an access through a null selector is #GP");
    set_gdt_entry(SEL_FREE, segment_descriptor(0, 0xFFFF, 0x13, 0x4));
    struct trap32 trap = guarded(load_fs, (void *)SEL_FREE);
    check_equal(trap.vector << 16 | trap.error, 0xB0000 | SEL_FREE, "a segment that is not present is #NP");
    trap = guarded(load_fs, (void *)SEL_TSS);
    check_equal(trap.vector << 16 | trap.error, 0xD0000 | SEL_TSS, "a system segment is #GP");
    uint32_t rights = 0, limit = 0;
    uint8_t zf;
    __asm__ volatile("lar %2, %0\n setz %1" : "=r"(rights), "=q"(zf) : "r"(SEL_CODE));
    check_equal(zf << 24 | (rights & 0xF0FF00), 0x1C09B00, "LAR of the code segment");
    __asm__ volatile("lsl %2, %0\n setz %1" : "=r"(limit), "=q"(zf) : "r"(SEL_CODE));
    check_equal(limit, 0xFFFFFFFF, "LSL scales by the granularity");
}

/* --- call gates --- */
static volatile uint32_t gate_cs, gate_argument;
void gate_entry(void);
__asm__(".text\n gate_entry: mov %cs, %eax\n mov %eax, gate_cs\n mov 8(%esp), %eax\n mov %eax, gate_argument\n lret $4");

static void call_gate(void *argument)
{
    __asm__ volatile("pushl $0x1234\n lcall %0, $0" :: "i"(SEL_GATE | 3) : "eax", "memory");
}

static void gates(void)
{
    uint32_t target = (uint32_t)gate_entry;
    set_gdt_entry(SEL_GATE, (target & 0xFFFF) | (uint64_t)SEL_CODE << 16 | 1ull << 32 | 0xECull << 40 |
                                (uint64_t)(target >> 16) << 48);
    check_equal(guarded_user(call_gate, NULL).vector, NO_TRAP, "a call gate from CPL 3 to CPL 0 and back");
    check_equal(gate_cs, SEL_CODE, "it ran at CPL 0");
    check_equal(gate_argument, 0x1234, "and its argument was copied to the new stack");
    set_gdt_entry(SEL_GATE, (target & 0xFFFF) | (uint64_t)SEL_CODE << 16 | 1ull << 32 | 0x8Cull << 40 |
                                (uint64_t)(target >> 16) << 48);
    struct trap32 trap = guarded_user(call_gate, NULL);
    check_equal(trap.vector << 16 | trap.error, 0xD0000 | SEL_GATE, "a DPL 0 gate from CPL 3 is #GP with its selector");
}

/* --- tasks --- */
static struct tss32 tss2;
static uint8_t task_stack[4096] __attribute__((aligned(16)));

static void tasks(void)
{
    tss2 = (struct tss32){ .eip = (uint32_t)task_code, .eflags = 2, .esp = (uint32_t)(task_stack + sizeof(task_stack)),
                           .cs = SEL_CODE, .ss = SEL_DATA, .ds = SEL_DATA, .es = SEL_DATA, .io_map = sizeof(tss2), .ebx = 0x55 };
    set_gdt_entry(SEL_TSS2, segment_descriptor((uint32_t)&tss2, sizeof(tss2) - 1, 0x89, 0));
    uint32_t ebx = 0x77;
    __asm__ volatile("lcall %1, $0" : "+b"(ebx) : "i"(SEL_TSS2) : "memory");
    check_equal(task_runs, 1, "a far call switches to a task, IRET back");
    check_equal(task_tr, SEL_TSS2, "TR was the task's");
    check_equal(ebx, 0x77, "registers come back");
    check_equal(tss2.link, SEL_TSS, "the back link names the caller");
    check_equal(tss2.ebx, 0x55, "the task's registers were saved");
    __asm__ volatile("lcall %0, $0" :: "i"(SEL_TSS2) : "memory");
    check_equal(task_runs, 2, "it goes on where it left");
    uint16_t tr;
    __asm__ volatile("str %0" : "=r"(tr));
    check_equal(tr, SEL_TSS, "TR is ours again");
    uint32_t cr0 = read_cr0();
    check_equal(cr0 & 8, 8, "a task switch sets CR0.TS");
    __asm__ volatile("clts");
    set_gate(0x90, NULL, 5, 0, SEL_TSS2);
    __asm__ volatile("int $0x90" ::: "memory");
    check_equal(task_runs, 3, "a task gate in the IDT switches too");
    __asm__ volatile("clts");
}

/* --- virtual-8086 mode --- */
static volatile unsigned v86_int21;

static void on_int21(struct trap_frame32 *frame)
{
    v86_int21++;
    frame->eax = (frame->eax & ~0xFFFFu) | 0x6789;
    check_equal(frame->eflags >> 17 & 1, 1, "the frame of an interrupt from V86 has VM set");
    check_equal(frame->v86_ds, 0x1000, "and the segment registers");
    check_equal(frame->ds & 0xFFFF, 0, "which the handler finds null");
}

static void enter_v86(void *argument)
{
    __asm__ volatile("pushl $0\n pushl $0\n pushl $0\n pushl $0\n"      /* GS FS DS ES */
                     "pushl $0\n pushl $0x9000\n"                       /* SS ESP */
                     "pushl $0x23202\n"                                 /* VM, IOPL 3, IF */
                     "pushl $0x800\n pushl $0\n iret" ::: "memory");
}

static void v86(void)
{
    copy((uint8_t *)0x8000, v86_code, v86_code_end);
    set_gate(0x21, (void *)stub_table32[0x21], 0xE, 3, SEL_CODE);
    set_handler(0x21, on_int21);
    struct trap32 trap = guarded(enter_v86, NULL);
    __asm__ volatile("mov %0, %%ds\n mov %0, %%es" :: "r"(SEL_DATA));
    volatile uint16_t *result = (volatile uint16_t *)0x10000;
    check_equal(trap.vector, 13, "HLT in V86 is #GP");
    check_equal(trap.eflags >> 17 & 1, 1, "from V86");
    check_equal(result[0], 0x4321, "V86 writes at selector * 16");
    check_equal(result[1] & 0x3200, 0x3000, "CLI with IOPL 3 clears IF");
    check_equal(v86_int21, 1, "INT n goes to the protected-mode handler");
    check_equal(result[2], 0x6789, "which returns to V86");
}

/* --- paging --- */
static uint32_t page_directory[1024] __attribute__((aligned(4096)));
static uint32_t page_table[1024] __attribute__((aligned(4096)));
static uint64_t pdpt[4] __attribute__((aligned(32)));
static uint64_t pae_directory[4][512] __attribute__((aligned(4096)));
static uint64_t pae_table[512] __attribute__((aligned(4096)));
static uint32_t target_page[1024] __attribute__((aligned(4096)));

static void do_read(void *at) { (void)*(volatile uint32_t *)at; }
static void do_write(void *at) { *(volatile uint32_t *)at = 5; }

static void paging_32(void)
{
    for (unsigned i = 0; i < 1024; i++)
        page_directory[i] = i << 22 | 0x83;
    page_directory[0x300] = (uint32_t)page_table | 3;
    page_table[0] = (uint32_t)target_page | 3;
    page_table[1] = (uint32_t)target_page | 1;
    target_page[3] = 0xCAFE;
    write_cr4(read_cr4() | 0x10);
    write_cr3((uint32_t)page_directory);
    write_cr0(read_cr0() | 0x80010000);
    check_equal(*(volatile uint32_t *)0xC000000C, 0xCAFE, "32-bit paging: a 4 KiB page");
    check_equal(page_table[0] & 0x60, 0x20, "A set, D not");
    do_write((void *)0xC0000000);
    check_equal(page_table[0] & 0x60, 0x60, "a write sets D");
    struct trap32 trap = guarded(do_write, (void *)0xC0001000);
    check_equal(trap.vector << 16 | trap.error, 0xE0003, "a write to a read-only page");
    trap = guarded(do_read, (void *)0xC0002000);
    check_equal(trap.vector << 16 | trap.error, 0xE0000, "a page that is not present");
    check_equal(trap.cr2, 0xC0002000, "CR2");
    check(page_directory[0] & 0x20, "a 4 MiB page has its A bit set");
    write_cr0(read_cr0() & ~0x80000000u);
}

static void paging_pae(void)
{
    for (unsigned d = 0; d < 4; d++) {
        for (unsigned i = 0; i < 512; i++)
            pae_directory[d][i] = (uint64_t)(d << 30 | i << 21) | 0x83;
        pdpt[d] = (uint32_t)pae_directory[d] | 1;
    }
    pae_directory[3][0] = (uint32_t)pae_table | 3;
    pae_table[0] = (uint32_t)target_page | 3;
    pae_table[1] = (uint32_t)target_page | 1;
    pae_table[2] = (uint32_t)target_page | 3 | 1ull << 51;
    target_page[3] = 0xF00D;
    write_cr4(read_cr4() | 0x20);
    write_cr3((uint32_t)pdpt);
    write_cr0(read_cr0() | 0x80010000);
    check_equal(*(volatile uint32_t *)0xC000000C, 0xF00D, "PAE paging: a 4 KiB page");
    check_equal(pae_table[0] & 0x60, 0x20, "PAE: A set, D not");
    struct trap32 trap = guarded(do_write, (void *)0xC0001000);
    check_equal(trap.vector << 16 | trap.error, 0xE0003, "PAE: a write to a read-only page");
    trap = guarded(do_read, (void *)0xC0002000);
    check_equal(trap.vector << 16 | trap.error, 0xE0009, "PAE: a reserved bit");
    write_cr0(read_cr0() & ~0x80000000u);
    write_cr4(read_cr4() & ~0x20u);
}

void test_main(void)
{
    real_mode();
    segments();
    gates();
    tasks();
    v86();
    paging_32();
    paging_pae();
}
