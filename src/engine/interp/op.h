/*
 * A decoded instruction, ready to run, and the chain of calls that runs a block.
 *
 * Each handler does its instruction and then calls the next op's handler as its last act, which the compiler turns into a
 * jump; without optimisation the chain is as deep as a block is long (BLOCK_OPS_MAX), so it is bounded either way.
 * The last op of a block returns: the next block if it is known, else NULL.
 *
 * vcpu->rip stays at the block's first instruction while the block runs; op->where leads from there to the instruction.
 * So a handler that faults, or calls a rule of x86/, first adds op->where (leave_fault, op_at). Dropping a block
 * overwrites the handlers of all its ops with op_stale, so that a block that overwrites itself leaves at the very
 * next instruction. Behind its ops a block keeps the bytes that it was decoded from.
 */
#ifndef DOPPEL_INTERP_OP_H
#define DOPPEL_INTERP_OP_H

#include "engine/engine.h"
#include "mmu/mmu.h"
#include "x86/x86.h"

struct op;
struct block;
struct translation;
struct interp;
typedef struct block *op_fn(struct vcpu *vcpu, const struct op *op);

struct op {
    op_fn *run;
    uint64_t imm;           /* immediate; branches: target relative to the block's start; 64-bit moffs: the address */
    int32_t disp;           /* displacement, made relative to the block's start for RIP bases; far pointers: selector */
    uint16_t dst, src;      /* byte offsets in struct vcpu of the register operands */
    uint16_t base, index;   /* the same for the address registers; offset of `zero` where there is none */
    uint16_t seg_base;      /* the same of the segment base that is added on the fast paths */
    uint16_t where;         /* offset of this instruction from the block's start */
    uint8_t length;
    uint8_t scale;
    uint8_t seg;            /* enum seg of the memory operand */
    uint8_t size;           /* bytes of the operation */
    uint8_t address_size;
    uint8_t sub;            /* which of a family: condition code, ALU operation, register number ... */
    uint16_t flags;         /* OP_* */
    uint8_t source_size;    /* of MOVZX and the like */
    uint8_t spare;
    uint16_t back;          /* bytes from the block's header to this op */
    int32_t handler;        /* run as bound, relative to op_stale: to revive a dropped block */
};
static_assert(sizeof(struct op) == 48, "ops are packed");

enum {
    OP_LOCK = 1,
    OP_MEMORY = 2,          /* dst (or the only operand) is memory */
    OP_REP = 4,             /* F3 */
    OP_REPNE = 8,           /* F2 */
    OP_MOFFS = 16,          /* the address is imm */
    OP_IMMEDIATE = 32,      /* the last operand is imm */
    OP_RIP_FAR = 64,        /* RIP-relative with a displacement too large to be made relative to the block */
    OP_STORE = 128,         /* the memory operand is the first */
    OP_NEAR = 256,          /* direct branch whose target needs no check */
};

/*
 * What the decoded form of a block depends on besides its bytes: enum x86_mode in the low bits, and whether
 * ES, SS, DS are flat and writable, SS is 32 bits, CS is flat, alignment is checked.
 */
enum { KEY_MODE = 7, KEY_FLAT_DATA = 8, KEY_STACK32 = 16, KEY_FLAT_CODE = 32, KEY_ALIGNMENT = 64 };

enum { BLOCK_OPS_MAX = 48, BLOCK_LINKS = 2 };

struct block {
    uint64_t gpa;                   /* of the first byte; BLOCK_DROPPED when the block is of no more use */
    uint64_t gpa2;                  /* page of the rest if the only instruction crosses into another page, else ~0 */
    uint32_t key;                   /* mode_key: what else the decoded form depends on */
    uint16_t count;                 /* instructions */
    uint16_t bytes;
    uint16_t op_count;              /* ops, with the closing pseudo-op */
    bool linkable;
    bool stale;                     /* its granule was written: look at the bytes before it runs again */
    bool watched;                   /* stale, but the code map watches all its bytes */
    uint16_t asked;                 /* of the translator: the request (beside.h) whose trace it was in last */
    uint32_t heat;                  /* of the translator: how often it was run here, */
    uint32_t generation;            /* of which of its caches `translation` is */
    struct block *hash_next;
    struct block *page_next[2];     /* of the lists by gpa and by gpa2 */
    struct block *link[BLOCK_LINKS];        /* successors in the same page: [0] taken, [1] not taken or falling through */
    struct translation *translation;        /* of the translator: the last one found to begin here */
    struct op op[];
};

/* The engine's private state of one vCPU. */
struct interp {
    int64_t left;                   /* instructions that `run` may still execute */
    struct block *link_from;        /* the branch just taken would like its target linked: slot link_slot of this block, */
    uint64_t link_delta;            /* which lies so many bytes before it */
    unsigned link_slot;
    bool changed;                   /* an instruction may have changed the mode, events or controls: look at everything */
    int64_t start;                  /* `left` as `run` began */
    bool one;                       /* `run` was asked for one instruction */
    bool stepping;                  /* somebody looks after each instruction: strings do one element */
    bool incomplete;                /* a repeated string instruction left before its end */
    int64_t sti_left;               /* the shadow of STI was taken off; it still holds as long as `left` is this (run.c); -1: none */
    uint64_t elements;              /* that repeated strings may still do in this `run`; with no budget there is no end to them */
    uint32_t key;                   /* mode_key of the present state */
    unsigned pauses;                /* PAUSE executed */
    void (*run_blocks)(struct vcpu *vcpu, struct interp *interp);       /* what `run` calls: interp_run_blocks */
    struct block_cache *cache;
    struct native_cache *native;    /* NULL: the host allows none, then SIMD is #UD */
    struct block *scratch;          /* the one-op block of single steps and uncached code */
};

/* --- run.c, for an engine that builds on this one; its state begins with a struct interp, zeroed --- */
bool interp_init(struct vcpu *vcpu, struct interp *interp);
void interp_fini(struct vcpu *vcpu, struct interp *interp);
enum run_result interp_run(struct vcpu *vcpu, uint64_t budget);
/* Until a request, the budget's end, a fault, or an instruction that may have changed what blocks depend on. */
void interp_run_blocks(struct vcpu *vcpu, struct interp *interp);
/*
 * After an instruction that changed something (`changed`): true, there is nothing to see to before the next block, and run_blocks may go
 * on; `key` is the present mode's. False: it must return.
 */
bool interp_goes_on(struct vcpu *vcpu, struct interp *interp);
/* The block at rip; NULL: a fault is pending. */
struct block *interp_next_block(struct vcpu *vcpu, struct interp *interp);

static inline struct interp *interp_of(const struct vcpu *vcpu) { return vcpu->engine_state; }

static inline struct block *block_of(const struct op *op)
{
    return (struct block *)((char *)(uintptr_t)op - op->back);
}

/* x86_canonical for hot paths. */
static inline bool canonical(const struct vcpu *vcpu, uint64_t gla)
{
    unsigned unused = vcpu->cr4 & CR4_LA57 ? 7 : 16;
    return (uint64_t)((int64_t)(gla << unused) >> unused) == gla;
}

#define NEXT return op[1].run(vcpu, op + 1)

/*
 * OP_BODY(name) { ... return ok; } defines the handler `name` of an instruction that is not hot: a body of its own, so that
 * its locals are gone before the chain goes on.
 */
#define OP_BODY(name)                                                                      \
    static bool name##_body(struct vcpu *vcpu, const struct op *op);                       \
    struct block *name(struct vcpu *vcpu, const struct op *op)                             \
    {                                                                                      \
        if (unlikely(!name##_body(vcpu, op)))                                              \
            return leave_fault(vcpu, op);                                                  \
        NEXT;                                                                              \
    }                                                                                      \
    static __attribute__((noinline)) bool name##_body(struct vcpu *vcpu, const struct op *op)

#define OP_BODY_STATIC(name)                          \
    static op_fn name;                                \
    OP_BODY(name)

/* RIP wraps with the code size: 32 bits outside 64-bit mode. */
static inline uint64_t rip_wrap(const struct vcpu *vcpu, uint64_t rip)
{
    return vcpu->mode == MODE_LONG64 ? rip : (uint32_t)rip;
}

static inline uint64_t op_next_rip(const struct vcpu *vcpu, const struct op *op)
{
    return rip_wrap(vcpu, vcpu->rip + op->where + op->length);
}

/* Leaves the block with the fault in vcpu->pending; rip at the instruction; the rest of the block is not counted. */
struct block *leave_fault(struct vcpu *vcpu, const struct op *op);
/* Leaves with #UD, #GP(0) ... */
struct block *leave_raise(struct vcpu *vcpu, const struct op *op, uint8_t vector);
/* Leaves before the instruction: it will be run again (repeated strings that must look at requests). */
struct block *leave_again(struct vcpu *vcpu, const struct op *op);

/* For system instructions: rip now is that of the instruction, as the rules in x86/ want it. */
static inline void op_at(struct vcpu *vcpu, const struct op *op)
{
    vcpu->rip = rip_wrap(vcpu, vcpu->rip + op->where);
    vcpu->insn_length = op->length;
}
/* After op_at: done or failed. */
struct block *leave_system(struct vcpu *vcpu, const struct op *op, bool done);
/* The same for instructions that set rip themselves when done. */
struct block *leave_transfer(struct vcpu *vcpu, const struct op *op, bool done);

op_fn op_stale;

/* --- registers, by byte offset --- */
#define GPR_OFFSET(n) ((uint16_t)(offsetof(struct vcpu, gpr) + 8 * (n)))

static inline void *reg_at(struct vcpu *vcpu, uint16_t offset) { return (char *)vcpu + offset; }

#define DEFINE_REG(w)                                                                                        \
    static inline uint##w##_t reg##w(const struct vcpu *vcpu, uint16_t offset)                              \
    {                                                                                                        \
        return *(const uint##w##_t *)((const char *)vcpu + offset);                                          \
    }
DEFINE_REG(8)
DEFINE_REG(16)
DEFINE_REG(32)
DEFINE_REG(64)
#undef DEFINE_REG

/* Writes: 32-bit ones clear the upper half. */
static inline void set_reg8(struct vcpu *vcpu, uint16_t offset, uint8_t v) { *(uint8_t *)reg_at(vcpu, offset) = v; }
static inline void set_reg16(struct vcpu *vcpu, uint16_t offset, uint16_t v) { *(uint16_t *)reg_at(vcpu, offset) = v; }
static inline void set_reg32(struct vcpu *vcpu, uint16_t offset, uint32_t v) { *(uint64_t *)reg_at(vcpu, offset) = v; }
static inline void set_reg64(struct vcpu *vcpu, uint16_t offset, uint64_t v) { *(uint64_t *)reg_at(vcpu, offset) = v; }

/* By size, for instructions that are not hot. */
uint64_t reg_get(const struct vcpu *vcpu, uint16_t offset, unsigned size);
void reg_set(struct vcpu *vcpu, uint16_t offset, unsigned size, uint64_t value);

#endif
