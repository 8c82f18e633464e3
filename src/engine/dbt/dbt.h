/*
 * The binary translator: the interpreter, whose hot code runs as host code instead (DESIGN "The translator").
 *
 * Everything that decides what is right is the interpreter's: its blocks, their bounds and keys, the handlers. A translation
 * is a *trace*: blocks of one page that ran one after the other, with exits at the sides. It holds host code for the
 * instructions that copy well, and for each of the others (and for each memory access that the inline look-up in the TLB
 * misses) a `site`: a copy of the interpreter's op, which a helper runs on the vCPU.
 *
 * Registers in translated code:
 *   rax rcx rdx rbx rbp rsi rdi r8 r9 r12 r13    the guest's of the same name
 *   r14                                          the guest's RSP, or with windows what is a known number away from it (insn_plain.c)
 *   r10 r11 r15                                  scratch; the guest's r10 r11 r14 r15 are in a frame at rsp (plan.h)
 *   rsp                                          the host's stack: calls and signals are as everywhere
 *   GS                                           points at the vCPU
 *   vectors, opmasks, MXCSR                      the guest's while dbt->simd_live, else nobody's
 *   x87 and MMX                                  the guest's while vcpu->x87.live, and so as long as the engine runs (x87.c)
 * In 32-bit code the guest's RSP has no upper half; those of the others mean nothing, and instructions with 32-bit operands clear them.
 *
 * Two ways to memory (memory.c): user code of a context that is hot enough runs through *windows* (mmu/window.h), with no check at
 * all and r15 = the table of windows; everything else looks each page up in the software TLB.
 *
 * Flags (flags.c): the guest's status flags are in the host's flags (H), or packed as LAHF and SETO leave them in AX in
 * dbt->flags (M), or can be made again from registers; the translator knows at each instruction. At the entry of a
 * translation they are in H. DF, IF and the rest are in vcpu->rflags; the host's DF is clear.
 *
 * An instruction that crosses into another page is a trace of its own, which jumps reach through the jump tables only.
 *
 * Code is tied to the linear address that it was translated for, to the guest-physical address, and to a mode. Direct jumps
 * are patched to lead to the next translation, those between pages for as long as the jump table of the present context holds, and so are
 * indirect ones that lead where they led before, if they are of a kind that does (insn_branch.c). All others look their target up by linear
 * address in that table (jumps.c).
 *
 * A host fault in translated code (a page that no window shows, #DE, a misaligned vector) is found in the translation's list
 * of traps, and the interpreter's handler carries that instruction out (trap.c).
 *
 * One vCPU's thread owns all of it; who translates beside it (beside.h) reads what never changes. Memory is only ever given back as a whole, between two blocks: a dropped translation
 * that is still running stays intact, but leaves at its next helper.
 */
#ifndef DOPPEL_DBT_DBT_H
#define DOPPEL_DBT_DBT_H

#include <stdio.h>

#include "engine/dbt/emit.h"
#include "engine/dbt/trap_signal.h"
#include "engine/interp/block.h"
#include "engine/interp/flags.h"

enum {
    DBT_HOT_SIZE = 80 << 20, DBT_COLD_SIZE = 48 << 20, DBT_CODE_SIZE = DBT_HOT_SIZE + DBT_COLD_SIZE,
    DBT_CODE_LEAST = 256 << 10,
    DBT_DATA_SIZE = 160 << 20,          /* translations, sites, links, traps */
    DBT_HASH_BITS = 19,                 /* so that a look-up is one access to memory, and one more if it finds something */
    DBT_PAGE_BITS = 12,
    DBT_JUMP_BITS = 16,
    DBT_JUMP_SHIFT = 3,                 /* returns are seldom closer: so neighbours share lines of the processor's cache, and 512 KiB of code fit */
    DBT_JUMPS_LISTED = 16384,
    DBT_SECONDS = 256, DBT_SECOND_SHIFT = 4,
    DBT_JUMP_PAGES = 4096,              /* that the entries of a table lie in */
    DBT_HOT = 12,                       /* runs in the interpreter before a block is translated */
};

/*
 * What a translation depends on besides place and bytes: whose code it is, how it reaches memory, which vector state may be used
 * (two bits from MODE_SIMD_SHIFT on), and whether it is 32-bit code, where CS, DS, ES and SS are flat, and maybe FS and GS but for their base.
 * Code of VT-x guests is told apart so that no patched jump leads from it to its monitor's, or back.
 */
enum {
    MODE_USER = 1, MODE_WINDOW = 2, MODE_SIMD_SHIFT = 2, MODE_SIMD_MASK = 3, MODE_VMX_GUEST = 16,
    MODE_32 = 32, MODE_FLAT_FS = 64, MODE_FLAT_GS = 128,
};
/* Which vector state the guest may use now, by CR0, CR4 and XCR0. */
enum simd_level { SIMD_NONE, SIMD_SSE, SIMD_AVX, SIMD_AVX512, SIMD_LEVELS };
static_assert(SIMD_LEVELS - 1 <= MODE_SIMD_MASK, "a level fits");
static inline enum simd_level simd_level_of(uint8_t mode) { return mode >> MODE_SIMD_SHIFT & MODE_SIMD_MASK; }

/* Jump tables: of supervisor code, one in VMX root operation or without VT-x, one of VT-x guests; of user code, one for each context. */
enum { JUMPS_SUPERVISOR, JUMPS_VMX_SUPERVISOR, JUMPS_USER, JUMPS_TABLES = JUMPS_USER + TLB_CONTEXTS };

/* The last x87 instruction of a trace that is not a control instruction, as far as it has come. */
struct x87_noted {
    uint16_t in_page;                   /* low bits of the guest's RIP; X87_NONE: the trace had none yet */
    uint16_t fop;                       /* X87_NONE: FLDCW came behind it, so it has raised nothing; 0 if there is none at all */
};
enum { X87_NONE = 0xFFFF };

/* An address without its displacement: base + (index << scale). */
struct indexed {
    uint8_t base, index, scale;         /* guest registers, index HOST_NONE: none; a shift */
};

/* A host instruction that may fault. */
struct trap {
    uint32_t at;                        /* bytes from the translation's code */
    uint32_t back;                      /* where it goes on behind the guest's instruction; 0: it ends the trace */
    uint32_t stub;                      /* the site's call, where flags are not in H; 0: trap.c runs the instruction */
    uint16_t in_page;                   /* low bits of the guest's RIP */
    uint16_t remaining;                 /* instructions of the trace from this one on */
    uint8_t length;                     /* of the guest's instruction */
    uint8_t addend_of;                  /* guest register whose window is in r11 behind it, or ADDEND_INDEXED (r10's), or NO_ADDEND */
    struct indexed indexed;             /* with windows: what is in r10 behind it; base HOST_NONE: nothing */
    int16_t rsp_ahead, rsp_ahead_behind;        /* the guest's RSP is r14 and this much, before and behind it */
    bool memory : 1;                    /* has an operand there, through a window */
    bool early : 1;                     /* before the check: the trace is not counted yet */
    bool string : 1, string_moves : 1;  /* REP in windows: RDI is an address of the host's, and RSI with MOVS */
    uint16_t mnemonic;                  /* ZydisMnemonic */
    struct x87_noted x87;               /* before it */
};
enum { ADDEND_INDEXED = 0xFE, NO_ADDEND = 0xFF };

/* State of the guest that is in the processor only while somebody needs it. */
enum { LIVE_VECTORS = 1, LIVE_X87 = 2 };

struct translation {
    uint64_t gpa, rip;
    uint64_t gpa2;                      /* page of the rest, if its only instruction crosses into another; else BLOCK_DROPPED */
    uint64_t granules[2];               /* of its pages: a bit for each that holds bytes of it */
    uint16_t count;                     /* instructions */
    uint8_t mode;
    uint8_t live;                       /* LIVE_*: what it needs in the processor, and leaves there */
    bool dropped;
    const uint8_t *code;                /* executable address of its first byte: the way in for indirect jumps, with their target in r10 */
    const uint8_t *entry;               /* flags in H */
    const uint8_t *live_entry;          /* what it needs is live as well */
    struct trap *trap;
    unsigned trap_count;
    struct translation *hash_next, *page_next[2];
    struct link *incoming;              /* jumps that are patched to lead here */
};

/* A direct jump out of a translation, an indirect one that leads where it led the last time, or another way out of it. */
struct link {
    uint8_t *field;                     /* its 32-bit target; NULL: no jump that could be patched */
    uint64_t target;                    /* the guest's address that it leads to */
    uint8_t *expected;                  /* not NULL: it is taken if these 64 bits and the target of an indirect jump make 0; else a jump of 32 bits before `stub` chooses */
    const uint8_t *ask;                 /* executable address of what leaves, so that the jump is patched */
    const uint8_t *stub;                /* the way without patching: the same, or through the jump table (user code, between pages; indirect jumps) */
    const struct translation *from;
    struct translation *to;             /* whose incoming jumps it is listed with, patched or not; NULL: nobody's */
    struct link *next;                  /* of that list */
    struct link *far_next;              /* of a list of jumps between pages that were patched: the supervisor's, user code's, or those of a jump table */
    bool patched;
    uint8_t live;                       /* LIVE_*, here */
    bool far, far_listed;               /* between pages */
    uint8_t changes;                    /* of the target of an indirect jump */
    uint16_t uncount;                   /* instructions that were counted and are not run, on the way through `ask` */
};

/* One instruction that the interpreter's handler runs. */
struct site {
    struct op op;
    const struct translation *translation;
    uint64_t rip;                       /* of the interpreter's block that op belongs to */
    uint16_t remaining;                 /* instructions of the trace from this one on */
    uint16_t mnemonic;                  /* ZydisMnemonic */
    uint16_t number;                    /* among those of the translation */
    bool early;                         /* before the check: the trace is not counted yet */
    struct x87_noted x87;               /* before it */
};

/* How often the interpreter's handler ran an instruction of a kind for translated code (report.c). */
struct site_runs {
    uint64_t runs;
    uint64_t rip;                       /* where it was the last time */
};

/* Code at a linear address. */
struct jump_entry {
    uint64_t minus_rip;
    const uint8_t *code;
};

/* A page with such code: its linear and its guest-physical address. */
struct jump_page {
    uint64_t gla, gpa;                  /* gpa | JUMP_PAGE_*; 0: a free place */
};
enum {
    JUMP_PAGE_TAKEN = 1, JUMP_PAGE_GLOBAL = 2,
    JUMP_PAGE_GONE = 4,                 /* it has no entries */
    JUMP_PAGE_SHARED = 8,               /* another table of the same mode has it as well, or may have */
};

/* Where indirect jumps look: by linear address, for one context and mode (jumps.c). */
struct jump_table {
    const uint8_t *way[1 << DBT_JUMP_BITS];     /* a translation's way in, which compares the address, or the piece of code for those that miss */
    struct jump_entry entry[1 << DBT_JUMP_BITS];
    struct jump_entry second[DBT_SECONDS];      /* what lost its place to another one, by other bits of its address: who misses the first looks here */
    struct jump_page page[2 * DBT_JUMP_PAGES];  /* hashed by linear address; places once taken stay so */
    uint16_t page_list[DBT_JUMP_PAGES], page_count;     /* those that are taken */
    const void *context;
    uint64_t eptp, rule_bits;           /* of the context: what even global translations depend on */
    uint16_t vpid;
    uint32_t epoch, global_epoch;       /* mmu.h: of the translations that it relies on */
    uint8_t mode;
    bool ready;                         /* there is something in all ways */
    bool local;                         /* some entry's page is not global */
    struct link *far;                   /* patched jumps of user code to other pages, from those that no other table has */
    uint32_t filled;                    /* places taken; the first DBT_JUMPS_LISTED of them are here */
    uint16_t list[DBT_JUMPS_LISTED];
};

struct store;
struct requests;

/*
 * Where code lies. What a trace does if all goes well is in the hot part; ways out and slow ways are in the cold one, which lies
 * behind it, so that the processor's caches hold what runs. Addresses are those of the writable view.
 */
struct code_part {
    uint8_t *base, *next, *end;         /* the first byte, the next free one, and where it ends for now */
    uint8_t *granted;                   /* up to where the host has been asked for pages, or will be soon */
};

struct dbt {
    struct interp interp;               /* first: interp_of finds it */
    /* What translated code reads and writes: relative to RIP. */
    uint64_t saved_rax, saved_flags;    /* while vector state is loaded */
    uint64_t flags;                     /* packed status flags, in the low 16 bits */
    uint64_t sign;                      /* constant for PEXT */
    uint64_t string_from, string_to;    /* addends of RSI and RDI while the host's REP runs in windows */
    uint64_t context;                   /* r15 of translations with windows */
    uint64_t target;                    /* of a CALL through memory or a register, while its return address is pushed; what PUSH took from memory */
    struct jump_table *jumps;
    uint64_t tsc_delta;                 /* guest's TSC - the host's */
    uint32_t tsc_by_site;               /* not 0: RDTSC is the interpreter's now */
    uint32_t simd_live;                 /* enum simd_level: the guest's vector state is in the processor */
    uint32_t host_mxcsr;
    const uint8_t *onward;              /* where a helper goes on */
    uint64_t trap_addend, trap_indexed; /* for r11 and r10 */
    uint64_t missed_at;                 /* the host's address of the indirect jump that missed */
    struct link *link;                  /* while its target is looked up, or learnt */

    struct trap *trap;                  /* the one that was hit, its translation, and what the signal told */
    struct translation *trapped;
    struct trap_fault fault;
    uint8_t *enter, *leave, *by_table, *help, *help_host, *trap_entry, *missed, *missed_rcx, *learn, *go_on, *x87_load, *simd_load[SIMD_LEVELS], *look_up[2];     /* shared code, executable */
    struct work *work;                  /* of the translator, plan.h */
    unsigned heat_wanted;               /* runs in the interpreter before a block is translated */
    uint8_t mode;                       /* of the present state of the vCPU */
    bool tsc_known;                     /* tsc_base is the clock's as long as run_blocks runs */
    uint64_t tsc_base;
    bool exact;                         /* the budget is a number: translations stop where it ends */
    bool gs_instruction;                /* gs.h */
    bool shifts_write_all;              /* flags.c */
    uint64_t stub_flushes;              /* of interp's cache, at our own last flush */
    uint32_t generation;                /* counts our own flushes, from 1 */
    struct code_part hot, cold;
    uint8_t *code_start;                /* of the hot part: first byte behind the shared pieces */
    intptr_t shift;                     /* from the writable to the executable view */
    struct requests *requests;          /* to who translates while the vCPU goes on (beside.h); NULL: there is nobody */
    unsigned ask_from;                  /* translations that there must be before anything is asked of them; UINT_MAX: there is nobody */
    struct ahead *ahead;                /* grants what comes next of code, data, and the interpreter's blocks; NULL: nobody does */
    uint8_t *data;                      /* DBT_DATA_SIZE */
    struct ahead_arena data_granted;
    size_t data_used;
    size_t data_most;
    bool tables_granted;                /* all of those that find code, by the host, or soon */
    bool state_is_large;                /* in large pages, if the host has any */
    struct { struct block block; struct op op[2]; } *mini;      /* where a site runs: its op, then one that returns */
    struct translation **order;         /* by address of their code */
    unsigned order_count;
    struct link *far, *user_far;        /* jumps between pages that were patched */
    const struct jump_table *user_far_table;    /* user code's rely on its pages */
    uint64_t user_ran, user_unlinked_at;        /* instructions of user code: all, and those before such jumps were undone last */
    struct store *store;                /* translations that are kept (kept.h), NULL: none */
    bool keeps_supervisor;              /* of supervisor code, too */
    struct jump_table *tables;          /* [0] of the supervisor, then one for each context of the TLB */
    struct translation *hash[1 << DBT_HASH_BITS];
    struct translation *page[2][1 << DBT_PAGE_BITS];    /* by page of gpa, and by gpa2 */
    uint8_t drops[1 << DBT_PAGE_BITS];          /* translations dropped because their page was written */
    uint64_t since_forgotten;           /* instructions */
    int64_t user_since;                 /* interp.left when the present stretch of user code began */
    struct site_runs *site_runs;        /* by mnemonic */
};

static inline void count_site(struct dbt *dbt, unsigned mnemonic, uint64_t rip)
{
    dbt->site_runs[mnemonic].runs++;
    dbt->site_runs[mnemonic].rip = rip;
}

static inline unsigned dbt_page(uint64_t gpa) { return (gpa >> PAGE_SHIFT) & ((1u << DBT_PAGE_BITS) - 1); }

static inline struct dbt *dbt_of(const struct vcpu *vcpu) { return vcpu->engine_state; }

/* --- cache.c --- */
struct dbt *dbt_create(void);
void dbt_destroy(struct dbt *dbt);
void dbt_flush(struct dbt *dbt);
void *dbt_alloc(struct dbt *dbt, size_t size);
/* The first pieces of what blocks and translations are kept in are granted while the machine is still being made. */
void dbt_expect_use(struct dbt *dbt);
/* Room for the largest translation, flushing if there is none. */
void dbt_make_room(struct vcpu *vcpu, struct dbt *dbt);
/* At most so many bytes of code, within the bounds above; 0: as many as there are. With nothing translated yet. */
void dbt_limit(struct dbt *dbt, size_t bytes);
struct translation *dbt_find(const struct dbt *dbt, uint64_t gpa, uint64_t rip, uint8_t mode);
/* It will be looked for: its bucket comes nearer. */
void dbt_expect(const struct dbt *dbt, uint64_t gpa, uint64_t rip);
/* A new translation, whose code goes from the next free byte of each part to these, can be found, and by perf, too. */
void dbt_publish(struct vcpu *vcpu, struct dbt *dbt, struct translation *translation, uint8_t *hot_end, uint8_t *cold_end);
/* A bit for each granule of the page that [gpa, end) touches. */
uint64_t dbt_granules(uint64_t page, uint64_t gpa, uint64_t end);
/* The translation that the executable address lies in, NULL if none. */
struct translation *dbt_at(const struct dbt *dbt, uintptr_t host);
void dbt_drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
void dbt_link(struct dbt *dbt, struct link *link, struct translation *to);
/* An indirect jump has led there, and not where it led before. */
void dbt_relink(struct dbt *dbt, struct link *link, struct translation *to);
/* Undo every jump between pages of supervisor code, or of user code but for those of jump tables; or those of a table. */
void dbt_unlink_far(struct dbt *dbt);
void dbt_unlink_user_far(struct dbt *dbt);
void dbt_unlink_far_of(struct dbt *dbt, struct jump_table *table);

/* --- jumps.c --- */
/* Picks the table for the vCPU's present state and empties it if it no longer holds. */
void dbt_pick_jumps(struct vcpu *vcpu, struct dbt *dbt);
void dbt_remember_jump(struct vcpu *vcpu, struct dbt *dbt, const struct translation *translation);
const uint8_t *dbt_find_jump(const struct dbt *dbt, uint64_t rip);
void dbt_forget_jump(struct dbt *dbt, const struct translation *translation);
void dbt_forget_jumps(struct dbt *dbt);
/* Does the page of the translation belong to the present table of user code, and to no other? */
bool dbt_is_only_here(const struct dbt *dbt, const struct translation *translation);
/* insn_branch.c computes the same. */
static inline unsigned jump_index(uint64_t rip) { return rip >> DBT_JUMP_SHIFT & ((1u << DBT_JUMP_BITS) - 1); }
/* thunks.c does. */
static inline unsigned second_index(uint64_t rip) { return rip >> DBT_SECOND_SHIFT & (DBT_SECONDS - 1); }

/* --- run.c --- */
/*
 * How a helper goes on, in RAX and RDX: `same`, behind the instruction that it was called for; otherwise with a translation at its
 * entry, or (NULL) by leaving.
 */
struct onward {
    const uint8_t *code;
    uint64_t same;
};
/* After an instruction that ended its block, or left it with an event: the next translation, if nothing has to be seen to by others. */
struct onward dbt_go_on(struct vcpu *vcpu);

/* --- thunks.c --- */
void dbt_make_thunks(struct vcpu *vcpu, struct dbt *dbt);

/* --- flags.c --- */
/* Do this host's shifts by constants overwrite even the flags that the manual calls undefined? */
bool dbt_shifts_write_all_flags(void);

/* --- x87.c --- */
/* On the way to the interpreter. */
void dbt_note_x87(struct vcpu *vcpu, const struct translation *t, struct x87_noted noted);

/* --- trap.c --- */
bool dbt_install_traps(void);
/* The dbt whose code runs on this thread. */
void dbt_traps_for(struct dbt *dbt);
/* Carries out the instruction that trapped. `same`: it goes on behind it, at `code`. */
struct onward dbt_run_trap(struct vcpu *vcpu);
/* An indirect jump has been carried out, but nobody knows its target: finds the translation, or raises what there is to raise. */
struct onward dbt_run_missed(struct vcpu *vcpu);
/* The same, by dbt->link, which remembers the target. */
struct onward dbt_run_learn(struct vcpu *vcpu);

/* --- report.c --- */
struct site_runs *site_runs_create(void);
void dbt_print_sites(const struct vcpu *vcpu, FILE *out);

/* --- translate.c --- */
/* NULL: not worth it or not possible. */
struct translation *dbt_translate(struct vcpu *vcpu, struct dbt *dbt, struct block *block);

#endif
