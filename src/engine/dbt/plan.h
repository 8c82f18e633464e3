/*
 * Making the code of one trace: which blocks (trace.c), what their instructions are (scan.c), where the flags are (flags.c, replay.c), how
 * memory is reached (memory.c), what the interpreter does instead (sites.c), one instruction of each kind (insn_plain.c,
 * insn_string.c, insn_branch.c), the whole (translate.c).
 */
#ifndef DOPPEL_DBT_PLAN_H
#define DOPPEL_DBT_PLAN_H

#include <Zydis/Zydis.h>

#include "engine/dbt/dbt.h"
#include "engine/dbt/store.h"
#include "engine/interp/bind.h"

/* Scratch registers. With windows S3 holds the table of windows; what uses it for something else brings that back. */
enum { S1 = R10, S2 = R11, S3 = R15 };
enum { CC_Z = 4, CC_NZ = 5, CC_S = 8 };

/*
 * What translated code writes all the time is in a frame on the host's stack, at RSP: processors that forward a store to a load without
 * waiting for memory do so off a base register, and with GS they do not. The thunks carry it there and back.
 */
enum frame {
    FRAME_LEFT, FRAME_R10, FRAME_R11, FRAME_R14, FRAME_R15, FRAME_CARRIED,
    FRAME_CONTEXT = FRAME_CARRIED, FRAME_JUMPS, FRAME_TLB,      /* copies of dbt->context and jumps and of the vCPU's tlb_data, which take a shorter displacement */
    FRAME_KEPT, FRAME_KEPT_TOO,                         /* replay.c */
    FRAME_SLOTS
};
static inline struct rm rm_frame(enum frame slot) { return rm_mem(RSP, (int32_t)slot * 8); }

/* Of guest registers that have none of the host's. */
static inline struct rm rm_home(unsigned guest) { return rm_frame(guest < R14 ? guest - R10 + FRAME_R10 : guest - R14 + FRAME_R14); }

/* The guest's register in the host, HOST_NONE if it lives in memory (the frame, above). */
static inline unsigned host_register(unsigned guest)
{
    switch (guest) {
    case RSP:
        return R14;
    case R10: case R11: case R14: case R15:
        return HOST_NONE;
    default:
        return guest;
    }
}

/* How an instruction is translated. */
enum kind {
    KIND_SITE,              /* by the interpreter's handler */
    KIND_NOTHING,
    KIND_VERBATIM,          /* copied as it is */
    KIND_MODRM,             /* copied, with its registers and memory operand replaced */
    KIND_OPCODE_REG,        /* the register is in the opcode byte */
    KIND_LEA,
    KIND_MOV_OFFSET,        /* MOV between AL or EAX and a place that the instruction names */
    KIND_PUSH, KIND_POP, KIND_LEAVE,
    KIND_PREFETCH,          /* with windows; without, it is nothing */
    KIND_BIT_STRING,        /* BT and its kin: the offset may reach beyond the operand */
    KIND_SYSTEM,
    KIND_STRING,            /* REP STOS, REP MOVS */
    KIND_JCC, KIND_JMP, KIND_CALL, KIND_RET,
};

/* What comes behind a branch in the trace. */
enum follows { FOLLOWS_NOTHING, FOLLOWS_NEXT, FOLLOWS_TARGET };

struct planned {
    const struct op *op;
    uint8_t copies;         /* NATIVE_COPY_* of what the interpreter runs natively */
    uint64_t block_rip;     /* of the interpreter's block */
    uint64_t rip, next_rip;
    enum kind kind;
    enum follows follows;
    bool reads_flags;       /* needs them: tests some, or leaves some as they are */
    bool writes_flags;
    bool flags_needed;      /* behind it: somebody reads them, may fault, or leaves, before all are written anew */
    uint8_t kept;           /* not 0: the slot of the frame that has what it overwrote (replay.c) */
    uint8_t live;           /* LIVE_*: what must be */
    bool noted;             /* it becomes the last x87 instruction: vcpu->x87.last */
    bool may_trap;          /* the host may fault although the address is good */
    bool may_fault;         /* leaves to the interpreter, for one reason or another */
    uint16_t writes;        /* guest general registers, hidden operands included */
    int32_t adjust;         /* not 0: all it does to the general register `adjusted` is to add this */
    uint8_t adjusted;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    const ZydisDecodedOperand *memory;
    uint8_t bytes[INSN_LENGTH_MAX];
};

enum { TRACE_MAX = 96, TRACE_BLOCKS = 16, SLOW_MAX = 5 * TRACE_MAX, EDGES_MAX = 2 * TRACE_BLOCKS + 2, LINKS_MAX = EDGES_MAX + 2, TRAPS_MAX = 2 * TRACE_MAX };
enum { NO_REPLAY = 0xFFFF };

/* A block of a trace: its ops and the bytes that they were decoded from, in the interpreter's cache or copied from there. */
struct trace_part {
    const struct op *op;
    const uint8_t *code;
    uint64_t gpa;
    uint16_t count, bytes;
    enum follows follows;
};

/* What a translation is made of, as it was when it was chosen. */
struct trace {
    uint64_t gpa, gpa2, rip;
    uint8_t mode;
    bool exact;
    unsigned parts, count;              /* count: instructions */
    struct trace_part part[TRACE_BLOCKS];
    uint8_t copies[TRACE_MAX];          /* NATIVE_COPY_*, of instructions that the interpreter runs natively */
};

/* Where what is made beside the vCPU is kept until it is an entry of kept.h. */
struct work_room {
    struct translation translation;
    struct site site[TRACE_MAX];
    struct link link[LINKS_MAX];
};

/* A jump out of the line to a site, and where it comes back. */
struct slow {
    uint8_t *field;         /* NULL: reached by a trap */
    struct trap *trap;
    struct site *site;
    const uint8_t *back;    /* NULL: the site leaves */
    bool in_memory;         /* the flags before */
    uint16_t replay;
    bool flags;             /* wanted in H when it comes back */
    bool near_lives;        /* there, S2 and S3 are those of near.c */
    const uint8_t *again;   /* not NULL, near.c: the access at `address` is looked up first, and if that does, goes on here */
    struct rm address;
    uint8_t size;
    enum mmu_use use;
};

/* A jump to another trace. */
struct edge {
    uint8_t *field;
    uint64_t target;
    unsigned done;          /* instructions of this trace that have run */
    bool early;             /* before the check: they are not counted yet */
    int32_t rsp_ahead;
};

/* An indirect jump at the trace's end that remembers its target. */
struct cached {
    uint8_t *field;                     /* of the jump there; NULL: there is none */
    uint8_t *expected, *missed;         /* the constant, and the field of the jump if the target is another one */
    const uint8_t *at;                  /* executable address of the trap that stands for it */
};

struct work {
    struct emitter e;
    uint8_t *cold;                      /* where the trace's cold part begins */
    uint8_t *hot_end;                   /* of the trace's hot part, once it is whole */
    struct dbt *dbt;
    struct vcpu *vcpu;
    const struct decoder *decoder;
    struct work_room *room;             /* NULL: the vCPU's own thread translates, for itself, into dbt; else nothing of what changes in dbt and vCPU may be read */
    struct translation *t;
    bool exact;
    bool user, window;
    bool narrow;                        /* 32-bit code */
    unsigned i, count;                  /* the present instruction; all of them */
    struct site *site;                  /* its site, once there is one */
    bool in_host, in_memory;            /* where the guest's flags are: H, M */
    uint16_t replay;                    /* the instruction that makes them again, or NO_REPLAY */
    unsigned check;                     /* the instruction before which the trace is counted and requests are looked at */
    bool check_keeps_flags;             /* somebody needs them there */
    struct indexed indexed;             /* with windows: what is in S1, an address or a register that lives in the frame; base HOST_NONE: nothing */
    unsigned addend_of;                 /* whose is in S2, NO_ADDEND: nobody's; with windows ADDEND_INDEXED: of the address in S1 */
    int32_t drift;                      /* how far that register has moved since */
    int32_t rsp_ahead;                  /* with windows: the guest's RSP is r14 and this much */
    int32_t near_low, near_high;        /* checked: it serves this much off the register as it was, */
    enum mmu_use near_use;              /* for this */
    unsigned slow_count, slow_first, edge_count, trap_count, trap_first, site_count, link_count;
    struct slow slow[SLOW_MAX];
    struct edge edge[EDGES_MAX];
    struct cached cached;
    struct trap trap[TRAPS_MAX];
    struct site *site_list[TRACE_MAX];
    struct link *link_list[LINKS_MAX];
    struct reloc_list relocs;
    struct planned plan[TRACE_MAX];
    uint8_t joined[UINT16_MAX + 1];     /* both parts of the code, while they are kept */
    _Alignas(8) uint8_t entry[STORE_ENTRY_MOST];        /* of the store */
};

static inline struct planned *present(struct work *w) { return &w->plan[w->i]; }

/* Of addresses and of what is on the stack; `how` of an instruction with such an operand. */
static inline unsigned word_size(const struct work *w) { return w->narrow ? 4 : 8; }
static inline unsigned word_how(const struct work *w) { return w->narrow ? 0 : EMIT_W; }

/* --- translate.c --- */
/*
 * Makes the trace's code, with w->dbt, vcpu, decoder, room and a zeroed w->t given; the hot part begins at `hot`, and the cold one at `cold`, where it
 * ends at w->e.at. `shift` leads from there to the addresses at which it is meant to run; movable: what depends on them is noted.
 */
void work_translate(struct work *w, const struct trace *trace, uint8_t *hot, uint8_t *cold, intptr_t shift, bool movable);

/* --- trace.c --- */
/* The vCPU's thread: chooses the blocks of a trace that begins with this one, at vcpu->rip in the present mode. */
void trace_choose(const struct vcpu *vcpu, const struct dbt *dbt, struct trace *trace, struct block *block);
/* Fills w->plan, w->count and what the translation knows of its bytes. */
void trace_plan(struct work *w, const struct trace *trace);

/* --- scan.c --- */
/* Knows p->op, p->rip. */
void plan_insn(const struct work *w, struct planned *p, const uint8_t *code);
/* Sets flags_needed everywhere, and where the check is. */
void plan_flags(struct work *w);
/* Is there a way out of the trace on which requests must have been looked at? */
bool plan_looks_at_requests(const struct work *w);

/* --- flags.c --- */
/* The place of a site or a link (number `number`) in dbt->data, in 32 bits. */
static inline void emit_data_offset(struct emitter *e, const struct dbt *dbt, const void *at, enum reloc_kind kind, unsigned number)
{
    emit32(e, (uint32_t)((const uint8_t *)at - dbt->data));
    reloc_note(e->relocs, e->at - 4, kind, number);
}

/* The same into r8 to r15. */
static inline void emit_offset_to(struct emitter *e, unsigned reg, const struct dbt *dbt, const void *at, enum reloc_kind kind, unsigned number)
{
    emit8(e, 0x41);                     /* mov, of 32 bits */
    emit8(e, 0xB8 | (reg & 7));
    emit_data_offset(e, dbt, at, kind, number);
}

/* H to AX, as flags.h packs them, and back. */
void emit_pack_flags(struct emitter *e);
void emit_unpack_flags(struct emitter *e);
/* M to H; clobbers S3. */
void emit_flags_to_host(struct work *w);
void want_flags_in_memory(struct work *w);
void want_flags_in_host(struct work *w);
/* H is about to be overwritten, by code of ours that may leave. */
void lose_host_flags(struct work *w);
/* The same with S2 and S3 left alone, and S1 not. */
void lose_host_flags_near(struct work *w);
/* The present instruction is about to write its registers. */
void registers_written(struct work *w);
/* It has been emitted. */
void flags_written(struct work *w);

/* --- replay.c --- */
/* Can the flags that the instruction has written be made again? From these guest registers, if they stay as they are behind it. */
bool is_replayable(const struct planned *p);
uint16_t replay_registers(const struct planned *p);
/* Before the present instruction and its accesses. */
void keep_original(struct work *w);
/* H = the flags behind that instruction; may clobber S3. */
void emit_replay(struct work *w, unsigned from);

/* --- memory.c --- */
/* `to` = how far into the TLB's table the entry of the linear address in `gla` is; clobbers flags. */
void emit_tlb_offset(struct emitter *e, unsigned to, unsigned gla);
/* `to` = the entry of the TLB's table for the linear address in `gla`; clobbers flags. */
void emit_tlb_entry(struct emitter *e, unsigned to, unsigned gla, struct rm table);
/* How the host reaches the operand; what may fault comes after emit_may_trap. May use all scratch registers meanwhile. */
struct rm emit_memory(struct work *w, const ZydisDecodedOperand *memory, unsigned size, enum mmu_use use, bool locked);
/* The same of [RSP + offset] or another host register, for a word of the stack. */
struct rm emit_stack(struct work *w, unsigned guest, int32_t offset, enum mmu_use use);
/* The effective address, or the lower `size` bytes of it (4 or 8), into a register, by LEA or moves. */
void emit_effective(struct work *w, const ZydisDecodedOperand *memory, unsigned size, unsigned to);
/* Is the operand in memory at an address that depends on nothing but where the instruction is? */
bool plan_is_constant_address(const struct planned *p);
/* All in one register, S1, so that S2 is free. */
struct rm emit_fold(struct work *w, struct rm rm);
/* Scratch registers that are free beside `rm`, in order. */
unsigned scratch_beside(const struct rm *rm, unsigned n);
/* The element of a bit string that the offset leads to; without windows. */
struct rm emit_bit_element(struct work *w, const ZydisDecodedOperand *memory, const ZydisDecodedOperand *offset, enum mmu_use use, bool locked);
/* With windows. Is the register that lives in the frame in S1 as well? */
bool is_held(const struct work *w, unsigned guest);
/* S1 has the value that it has in the frame. An instruction that writes the register says so behind registers_written. */
void hold(struct work *w, unsigned guest);
/* S1 is used for something else. */
void lose_held(struct work *w);
/* Does the translation of the present instruction look after S1? Before and behind the others nothing is in it. */
bool looks_after_held(const struct planned *p);
/* S2 = the addend of the chunk around the address in a register of the host. */
void emit_addend(struct work *w, unsigned address);
/* S3 was used for something else. */
void emit_context_back(struct work *w);

/* --- near.c --- */
/* In checked code: is the operand, or a word of the stack, one of several neighbours? Then `rm` is how the host reaches it. */
bool emit_near_memory(struct work *w, const ZydisDecodedOperand *memory, struct rm *rm);
bool emit_near_stack(struct work *w, unsigned guest, int32_t offset, enum mmu_use use, struct rm *rm);
/* At the end of the present instruction: has it used S2 or S3? */
void drop_near(struct work *w);
/* S3 was used for something else. */
void drop_near_now(struct work *w);
/* Of a slow jump with `again`: what comes before the site. */
void emit_slow_near_way(struct work *w, const struct slow *slow);

/* --- sites.c --- */
/* A conditional jump to the present instruction's site. */
void emit_slow(struct work *w, unsigned cc);
void emit_slow_jump(struct work *w);
/* The next host instruction may fault; memory: through a window. */
void emit_may_trap(struct work *w, bool memory);
/* Only what is to be known of it is written down. */
struct trap *emit_note_trap(struct work *w, bool memory);
/* At the end of the trace: where slow jumps lead. */
void emit_slow_paths(struct work *w);
/* The site itself. */
void emit_site(struct work *w);
/* The slow jumps and traps of the present instruction come back here. */
void close_slow(struct work *w);

/* --- encode.c --- */
/* The instruction with another opcode (or its own), registers and memory operand. */
void emit_copy(struct emitter *e, const struct planned *p, unsigned opcode, unsigned reg, unsigned vvvv, struct rm rm);

/* --- insn_plain.c --- */
void emit_alu_constant(struct emitter *e, unsigned alu, unsigned reg, int32_t value);
/* The register itself, or `scratch` with its value. */
unsigned emit_get(struct work *w, unsigned guest, unsigned scratch);
void emit_put(struct work *w, unsigned guest, unsigned from);
void emit_set(struct work *w, unsigned guest, unsigned from);
void emit_move_rsp(struct work *w, int32_t by);
/* r14 becomes the guest's RSP. No flags are touched. */
void emit_settle_rsp(struct work *w);
/* Before the present instruction: unless it can do with r14 as it is. */
void settle_rsp_for(struct work *w, const struct planned *p);
/* A word of the stack or of an address: 32 bits come without an upper half. */
void emit_load_word(struct work *w, unsigned reg, struct rm from);
void emit_store_word(struct work *w, struct rm to, unsigned reg);
void emit_lea_word(struct work *w, unsigned reg, struct rm rm);
void translate_modrm(struct work *w, const struct planned *p);
void translate_opcode_reg(struct work *w, const struct planned *p);
void translate_lea(struct work *w, const struct planned *p);
void translate_prefetch(struct work *w, const struct planned *p);
void translate_mov_offset(struct work *w, const struct planned *p);
void translate_push(struct work *w, const struct planned *p);
void translate_pop(struct work *w, const struct planned *p);
void translate_leave(struct work *w, const struct planned *p);

/* --- insn_system.c --- */
/* Is it one of these? */
bool plan_system(const struct work *w, const struct planned *p);
bool plan_bit_string(const struct work *w, const struct planned *p);
void translate_system(struct work *w, const struct planned *p);
void translate_bit_string(struct work *w, const struct planned *p);

/* --- insn_string.c --- */
/* Is it one of these? Says what it writes. */
bool plan_string(const struct work *w, struct planned *p);
void translate_string(struct work *w, const struct planned *p);

/* --- x87.c --- */
/* At a trace's entry: x87 state is there behind it. */
void emit_x87_live(struct work *w);
/* Behind an x87 instruction whose operand `rm` is: its offset is noted. */
void emit_x87_operand(struct work *w, struct rm rm);
/* What a way out behind so many instructions has to note, unless a site has done that; and its code, which clobbers S1. */
struct x87_noted x87_noted(const struct work *w, unsigned done);
void emit_x87_noted(struct work *w, unsigned done);

/* --- insn_branch.c --- */
void translate_jcc(struct work *w, const struct planned *p);
void translate_jmp(struct work *w, const struct planned *p);
void translate_call(struct work *w, const struct planned *p);
void translate_ret(struct work *w, const struct planned *p);
/* A way out of the trace, the last in its list. */
struct link *add_link(struct work *w, uint64_t target);
/* Leaves by it. */
void emit_leave(struct work *w, struct link *link);
/* The shared code of jumps through the jump table: S2 is the link's offset, which leave_by leaves by (a pointer to it in S2) if nothing is there. */
void make_by_table(struct emitter *e, struct dbt *dbt, const uint8_t *leave_by);
/* Goes on at a known address. */
void translate_goto(struct work *w, uint64_t target);
void close_edges(struct work *w);

/* Zydis numbers general registers in one row: AL to BH, SPL to R15B, then those of 16, 32 and 64 bits. Asking it is a call each time. */
static_assert(ZYDIS_REGISTER_SPL == ZYDIS_REGISTER_BH + 1 && ZYDIS_REGISTER_AX == ZYDIS_REGISTER_R15B + 1 &&
              ZYDIS_REGISTER_EAX == ZYDIS_REGISTER_R15W + 1 && ZYDIS_REGISTER_RAX == ZYDIS_REGISTER_R15D + 1, "in one row");

static inline bool plan_is_gpr(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER && operand->reg.value >= ZYDIS_REGISTER_AL && operand->reg.value <= ZYDIS_REGISTER_R15;
}

/* AH, CH, DH, BH. */
static inline bool plan_is_high_byte(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER && operand->reg.value >= ZYDIS_REGISTER_AH &&
           operand->reg.value <= ZYDIS_REGISTER_BH;
}

/* The GPR's number, by encoding order; of AH to BH that of the register that they are in. */
static inline unsigned plan_gpr(const ZydisDecodedOperand *operand)
{
    unsigned reg = (unsigned)operand->reg.value;
    if (reg >= ZYDIS_REGISTER_AX)
        return (reg - ZYDIS_REGISTER_AX) % 16;
    if (reg >= ZYDIS_REGISTER_SPL)
        return reg - ZYDIS_REGISTER_SPL + 4;
    return (reg - ZYDIS_REGISTER_AL) % 4;
}

/*
 * The compilers of kernels write per-CPU variables as RIP-relative with a segment: the displacement leads to a small number, which stays
 * the same where the kernel is moved (kept.c).
 */
static inline bool plan_is_per_cpu(const struct work *w, const struct planned *p)
{
    return !w->user && p->memory && p->memory->mem.base == ZYDIS_REGISTER_RIP && p->memory->mem.segment == ZYDIS_REGISTER_GS &&
           p->next_rip + (uint64_t)p->memory->mem.disp.value == (uint32_t)(p->next_rip + (uint64_t)p->memory->mem.disp.value);
}

/* It has to be aligned. */
static inline bool plan_is_locked(const struct planned *p)
{
    return (p->z.attributes & ZYDIS_ATTRIB_HAS_LOCK) || p->z.mnemonic == ZYDIS_MNEMONIC_XCHG ||
           p->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
}

static inline bool plan_writes(const ZydisDecodedOperand *operand)
{
    return operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
}

#endif
