/*
 * What a bare-metal test guest has: 64-bit mode at CPL 0, the first 4 GiB identity-mapped, an IDT whose exceptions can be
 * caught, text output on port 0xE9 and an end on port 0xF4. A guest prints one line a check,
 *   PASS name
 *   FAIL name: why
 * and the runner counts them; the exit value is the number of failures (at most 127).
 */
#ifndef DOPPEL_TESTS_GUEST_GUEST_H
#define DOPPEL_TESTS_GUEST_GUEST_H

#include "lib/output.h"

/* As pushed by the stubs; ends with the processor's own frame. */
struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
};

/* What a guarded call met. vector is NO_TRAP if it simply returned. */
enum { NO_TRAP = 256 };
struct trap {
    unsigned vector;
    uint64_t error, rip, rflags, cr2, cs, ss, rsp;
};

/* Selectors of the start GDT; from SEL_FREE on, entries are the tests' own. */
enum { SEL_CODE64 = 0x08, SEL_DATA = 0x10, SEL_CODE32 = 0x18, SEL_USER_CODE32 = 0x23, SEL_USER_DATA = 0x2B,
       SEL_USER_CODE64 = 0x33, SEL_CODE16 = 0x38, SEL_DATA16 = 0x40, SEL_TSS = 0x48, SEL_FREE = 0x58 };

/* The test's own. */
void test_main(void);

/* Does the word stand in the command line that the loader was given? */
bool has_parameter(const char *word);

/* Calls fn(argument); an exception inside ends it. Nests not; one processor (the boot one) only. */
struct trap guarded(void (*fn)(void *argument), void *argument);
/* The same at CPL 3 on a user stack; fn's code and data must be in user-accessible pages (see map_user_all). */
struct trap guarded_user(void (*fn)(void *argument), void *argument);

/* A handler for a vector (interrupts and exceptions); NULL restores the default. It may change the frame. */
void set_handler(unsigned vector, void (*handler)(struct trap_frame *frame));
/* Writes an IDT gate: type 0xE interrupt, 0xF trap; ist 0 to 7. */
void set_gate(unsigned vector, void *entry, unsigned type, unsigned dpl, unsigned ist);
void set_gdt_entry(unsigned selector, uint64_t descriptor);

/* The TSS that is loaded: rsp0 and ist1..7 can be set. */
struct tss64 {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3, io_map;
} __attribute__((packed));
extern struct tss64 tss;

/* Paging. A page from a bump allocator, zeroed; never freed. */
void *alloc_page(void);
extern uint64_t boot_pml4[512], boot_pdpt[512], boot_pd[2048];
/* Maps a 4 KiB page in the present tables (splitting is the caller's worry: use addresses above 4 GiB); flags as in the PTE. */
void map_page(uint64_t gla, uint64_t gpa, uint64_t flags);
/* The PTE of such a page. */
uint64_t *find_pte(uint64_t gla);
/* Sets the user bit in all of the identity map. */
void map_user_all(void);

/* Application processors: starts all others by INIT and SIPI, each runs fn(number) with number from 1. */
void start_processors(unsigned count, void (*fn)(unsigned number));
unsigned processor_count(void);     /* from the local APICs that answered */

/* --- instructions --- */
static inline uint64_t read_cr0(void) { uint64_t v; __asm__ volatile("mov %%cr0, %0" : "=r"(v)); return v; }
static inline uint64_t read_cr2(void) { uint64_t v; __asm__ volatile("mov %%cr2, %0" : "=r"(v)); return v; }
static inline uint64_t read_cr3(void) { uint64_t v; __asm__ volatile("mov %%cr3, %0" : "=r"(v)); return v; }
static inline uint64_t read_cr4(void) { uint64_t v; __asm__ volatile("mov %%cr4, %0" : "=r"(v)); return v; }
static inline void write_cr0(uint64_t v) { __asm__ volatile("mov %0, %%cr0" :: "r"(v) : "memory"); }
static inline void write_cr3(uint64_t v) { __asm__ volatile("mov %0, %%cr3" :: "r"(v) : "memory"); }
static inline void write_cr4(uint64_t v) { __asm__ volatile("mov %0, %%cr4" :: "r"(v) : "memory"); }
static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t a, d;
    __asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(msr));
    return (uint64_t)d << 32 | a;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" :: "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t a, d;
    __asm__ volatile("rdtsc" : "=a"(a), "=d"(d));
    return (uint64_t)d << 32 | a;
}
static inline void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}
static inline void invlpg(uint64_t gla) { __asm__ volatile("invlpg (%0)" :: "r"(gla) : "memory"); }
static inline void sti(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void cli(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void sti_hlt(void) { __asm__ volatile("sti\n hlt" ::: "memory"); }
static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }
static inline volatile uint32_t *apic(uint32_t offset) { return (volatile uint32_t *)(uintptr_t)(0xFEE00000u + offset); }

#endif
