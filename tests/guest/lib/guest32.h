/* What a 32-bit bare-metal guest has: flat protected mode at CPL 0, paging off, a GDT, an IDT whose exceptions can be caught. */
#ifndef DOPPEL_TESTS_GUEST_GUEST32_H
#define DOPPEL_TESTS_GUEST_GUEST32_H

#include "lib/output.h"

enum { NO_TRAP = 256 };
enum { SEL_CODE = 0x18, SEL_DATA = 0x10, SEL_USER_CODE = 0x23, SEL_USER_DATA = 0x2B, SEL_CODE16 = 0x38, SEL_DATA16 = 0x40,
       SEL_TSS = 0x48, SEL_TSS2 = 0x50, SEL_GATE = 0x58, SEL_FREE = 0x60, SEL_LAST = 0xF8 };

struct trap_frame32 {
    uint32_t edi, esi, ebp, esp_dummy, ebx, edx, ecx, eax;
    uint32_t ds, es, fs, gs;
    uint32_t vector, error;
    uint32_t eip, cs, eflags, esp, ss;              /* the last two when the privilege changed */
    uint32_t v86_es, v86_ds, v86_fs, v86_gs;        /* from virtual-8086 mode */
};

struct trap32 {
    unsigned vector;
    uint32_t error, eip, cs, eflags, cr2;
};

struct tss32 {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags;
    uint32_t eax, ecx, edx, ebx, esp, ebp, esi, edi;
    uint32_t es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, io_map;
    uint8_t io_bits[32];
};

void test_main(void);
struct trap32 guarded(void (*fn)(void *argument), void *argument);
struct trap32 guarded_user(void (*fn)(void *argument), void *argument);
void set_handler(unsigned vector, void (*handler)(struct trap_frame32 *frame));
void set_gate(unsigned vector, void *entry, unsigned type, unsigned dpl, unsigned selector);
void set_gdt_entry(unsigned selector, uint64_t descriptor);
/* Segment descriptor from its parts; access is the byte 40-47, flags the nibble 52-55. */
uint64_t segment_descriptor(uint32_t base, uint32_t limit, unsigned access, unsigned flags);
extern struct tss32 tss;        /* the loaded one */
extern uint32_t stub_table32[256];
extern volatile uint32_t task_runs;     /* what start32.S's own task, task_code, writes */
extern volatile uint16_t task_tr;

static inline uint32_t read_cr0(void) { uint32_t v; __asm__ volatile("mov %%cr0, %0" : "=r"(v)); return v; }
static inline uint32_t read_cr2(void) { uint32_t v; __asm__ volatile("mov %%cr2, %0" : "=r"(v)); return v; }
static inline uint32_t read_cr4(void) { uint32_t v; __asm__ volatile("mov %%cr4, %0" : "=r"(v)); return v; }
static inline void write_cr0(uint32_t v) { __asm__ volatile("mov %0, %%cr0" :: "r"(v) : "memory"); }
static inline void write_cr3(uint32_t v) { __asm__ volatile("mov %0, %%cr3" :: "r"(v) : "memory"); }
static inline void write_cr4(uint32_t v) { __asm__ volatile("mov %0, %%cr4" :: "r"(v) : "memory"); }
static inline void invlpg(uint32_t gla) { __asm__ volatile("invlpg (%0)" :: "r"(gla) : "memory"); }

#endif
