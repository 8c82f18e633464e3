/*
 * Windows: host address ranges in which the host's own page tables shadow the user mappings of a guest address space, so that
 * translated user code reaches guest memory with no look-up in the TLB. window.c opens with the whole idea and the proof that no
 * address of the guest's reaches anything else.
 *
 * Translated code computes, for a memory operand with base register and displacement, with r15 = table + WINDOW_BIAS:
 *     shrx r11, base, r15             the chunk: the shift count is the low six bits of r15, WINDOW_CHUNK_SHIFT
 *     mov  r11, [r15 + r11*8 - WINDOW_BIAS]
 *     op   [base + r11 + disp]
 * `base` is any 64-bit value, `disp` any signed 32-bit one, and the operand up to WINDOW_OPERAND bytes. The access reaches the guest's
 * page, or raises a fault that the kernel reports as SIGSEGV, or as SIGBUS (a non-canonical address formed with RSP or RBP
 * as base). Then the instruction is to be run by the interpreter's handler, which is exact; and after it window_fill.
 *
 * All functions: on the vCPU's thread. They may be called from the handler of a signal that translated code raised.
 */
#ifndef DOPPEL_MMU_WINDOW_H
#define DOPPEL_MMU_WINDOW_H

#include "mmu/mmu.h"

enum {
    WINDOW_CHUNK_SHIFT = 36,            /* a window is 64 GiB of guest-linear addresses */
    WINDOW_BIAS = WINDOW_CHUNK_SHIFT,   /* r15 - table; tables are aligned to 64 bytes and more */
    WINDOW_OPERAND = 4096,              /* longest operand */
    WINDOW_HOT = 10000000,              /* user instructions that an address space runs before it gets windows, at first */
};

/* Can this host have windows at all? Asked once; without, the functions below do nothing and find nothing. */
bool window_supported(void);

/*
 * The table of the address space that the vCPU is in, if its user code is to run with windows just now; 0: with inline checks.
 * Only at CPL 3 in 64-bit mode, and not while a VM exit is pending. The answer holds until CPL 3 or translated code is left (posted work
 * may flush the TLB), AC or PKRU is changed, or window_account or window_fill called, which may turn the space cold. Until another space is
 * entered an old table stays harmless: accesses through it fault.
 */
uintptr_t window_table(struct vcpu *vcpu);

/* The addend of the chunk around gla, from the table that is in use. */
static inline uint64_t window_addend(uintptr_t table, uint64_t gla)
{
    return ((const uint64_t *)table)[gla >> WINDOW_CHUNK_SHIFT];
}

/* The guest-linear address that a host address in (or beside) a window of the present space stands for; false: in none. */
bool window_linear(const struct vcpu *vcpu, uintptr_t host, uint64_t *gla);

/*
 * That many user-mode instructions were just run in the present address space, with or without windows: what the policy goes by. Call
 * it as rarely as is convenient (each time user code is left, every some 10,000 instructions).
 */
void window_account(struct vcpu *vcpu, uint64_t instructions);

/*
 * An access at gla missed the window and has been done by the handler (mmu_load_slow and its kin) at CPL 3: maps the page, if the TLB
 * now allows direct access to it, and such neighbours as the processor might hold in its TLB. False: not mapped (a device, watched, a
 * breakpoint, no memory, or the space has turned cold: see window_table). Of an access that crosses pages, one call for each page.
 */
bool window_fill(struct vcpu *vcpu, uint64_t gla, bool write);
/*
 * The same for a miss whose address the host does not tell: that of a non-canonical address (#GP, #SS), as of any access in
 * a chunk that has no window yet. If the guest maps something there now, the chunk gets its window.
 */
void window_missed(struct vcpu *vcpu);

/* What is known of one address space, for the monitor. run, cost and threshold are in instructions (window.c, "The policy"). */
struct window_info {
    uint64_t root;                      /* guest-physical address of its top-level table */
    uint64_t eptp;                      /* of the VT-x guest that it is in, if that has EPT; else 0 */
    bool hot, present;                  /* has windows; is the one that the vCPU is in */
    unsigned windows;
    uint64_t pages, mappings;           /* guest pages shown, and the host's mappings for them */
    uint64_t run, cost, threshold;
};
enum { WINDOW_SPACES = 16 };            /* that a vCPU keeps account of */
/* Writes at most WINDOW_SPACES, returns how many. */
unsigned window_info(const struct vcpu *vcpu, struct window_info *info);

#endif
