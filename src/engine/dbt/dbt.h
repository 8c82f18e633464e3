/*
 * The binary translator: the interpreter, whose hot blocks run as host code instead (DESIGN "The translator").
 *
 * Everything that decides what is right is the interpreter's: blocks, their bounds and keys, the handlers. A translated block
 * holds host code for the instructions that copy well, and for each of the others (and for each memory access that the
 * inline look-up in the TLB misses) a `site`: a copy of the interpreter's op, which a helper runs on the vCPU.
 *
 * Registers in translated code:
 *   rax rcx rdx rbx rbp rsi rdi r8 r9 r12 r13    the guest's of the same name
 *   r14                                          the guest's RSP
 *   r10 r11 r15                                  scratch; the guest's r10 r11 r14 r15 live in the vCPU
 *   rsp                                          the host's stack: calls and signals are as everywhere
 *   GS                                           points at the vCPU
 * Flags: the guest's status flags are in the host's flags (H), or packed as LAHF and SETO leave them in AX in dbt->flags (M),
 * or both; the translator knows at each instruction. What may fault finds them in M, so faults are exact. DF, IF and the
 * rest are in vcpu->rflags; the host's DF is clear.
 *
 * Code is tied to the linear address that it was translated for, and found by that and the guest-physical address. Direct
 * jumps within a page are patched to lead to the next translation. All others look up the fetch tag of the TLB and then the
 * table of jumps, by linear address and host address, so no flush of the TLB need be told to anyone here.
 *
 * One vCPU's thread owns all of it. Memory is only ever given back as a whole, between two blocks: a dropped translation
 * that is still running stays intact, but leaves at its next helper.
 */
#ifndef DOPPEL_DBT_DBT_H
#define DOPPEL_DBT_DBT_H

#include "engine/dbt/emit.h"
#include "engine/interp/block.h"
#include "engine/interp/flags.h"

enum {
    DBT_CODE_SIZE = 48 << 20,
    DBT_DATA_SIZE = 64 << 20,           /* translations, sites, links */
    DBT_HASH_BITS = 15,
    DBT_PAGE_BITS = 12,
    DBT_JUMP_BITS = 12,
    DBT_HOT = 12,                       /* runs in the interpreter before a block is translated */
};

struct translation {
    uint64_t gpa, rip;
    uint16_t bytes, count;
    bool dropped;
    uint8_t *entry;                     /* flags in H */
    uint8_t *indirect_entry;            /* flags packed in AX, RAX in dbt->saved_rax */
    struct translation *hash_next, *page_next;
    struct link *incoming;              /* jumps that are patched to lead here */
};

/* A direct jump out of a translation, at first to a stub that leaves. */
struct link {
    uint8_t *field;                     /* its 32-bit target */
    const uint8_t *stub;                /* executable address */
    const struct translation *from;
    struct link *next;
    bool patched;
};

/* One instruction that the interpreter's handler runs. */
struct site {
    struct op op;
    const struct translation *translation;
    uint16_t remaining;                 /* instructions of the block from this one on */
};

struct jump {
    uint64_t rip, host;
    const uint8_t *code;
    struct translation *translation;
};

struct dbt {
    struct interp interp;               /* first: interp_of finds it */
    uint64_t saved_rax;
    uint64_t flags;                     /* packed status flags, in the low 16 bits */
    uint64_t sign;                      /* constant for PEXT */
    uint64_t target;                    /* of a CALL through memory or a register, while its return address is pushed */
    struct jump *jumps;
    uint8_t *enter, *leave, *indirect, *help;       /* shared pieces of code, executable addresses */
    struct work *work;                  /* of the translator, plan.h */
    unsigned hot;
    bool gs_instruction;                /* gs.h */
    uint64_t flushes;                   /* of interp's blocks, at our own last flush */
    uint8_t *code, *code_start;         /* writable view: next free byte; first behind the shared pieces */
    uint8_t *code_base;
    intptr_t shift;
    uint8_t *data;                      /* DBT_DATA_SIZE */
    size_t data_used;
    struct { struct block block; struct op op[2]; } *mini;      /* where a site runs: its op, then one that returns */
    struct jump jump[1 << DBT_JUMP_BITS];
    struct translation *hash[1 << DBT_HASH_BITS];
    struct translation *page[1 << DBT_PAGE_BITS];
    uint8_t drops[1 << DBT_PAGE_BITS];
};

static inline unsigned dbt_page(uint64_t gpa) { return (gpa >> PAGE_SHIFT) & ((1u << DBT_PAGE_BITS) - 1); }

static inline struct dbt *dbt_of(const struct vcpu *vcpu) { return vcpu->engine_state; }

/* --- cache.c --- */
struct dbt *dbt_create(void);
void dbt_destroy(struct dbt *dbt);
void dbt_flush(struct dbt *dbt);
void *dbt_alloc(struct dbt *dbt, size_t size);
/* Room for the largest translation, flushing if there is none. */
void dbt_make_room(struct dbt *dbt);
struct translation *dbt_find(const struct dbt *dbt, uint64_t gpa, uint64_t rip);
void dbt_add(struct dbt *dbt, struct translation *translation);
void dbt_drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
void dbt_link(struct dbt *dbt, struct link *link, struct translation *to);
static inline struct jump *dbt_jump(struct dbt *dbt, uint64_t rip)
{
    return &dbt->jump[rip & ((1u << DBT_JUMP_BITS) - 1)];
}
void dbt_remember_jump(struct dbt *dbt, struct translation *translation, const uint8_t *host);

/* --- thunks.c --- */
void dbt_make_thunks(struct vcpu *vcpu, struct dbt *dbt);

/* --- translate.c --- */
/* NULL: not worth it or not possible. */
struct translation *dbt_translate(struct vcpu *vcpu, struct dbt *dbt, struct block *block);

#endif
