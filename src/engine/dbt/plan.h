/*
 * Making the code of one block: what its instructions are (scan.c), short sequences (sequence.c), one instruction of each kind
 * (insn_plain.c, insn_branch.c), the whole (translate.c).
 */
#ifndef DOPPEL_DBT_PLAN_H
#define DOPPEL_DBT_PLAN_H

#include <Zydis/Zydis.h>

#include "engine/dbt/dbt.h"
#include "engine/interp/bind.h"

/* Scratch registers. */
enum { S1 = R10, S2 = R11, S3 = R15 };
enum { CC_Z = 4, CC_NZ = 5, CC_S = 8 };

/* The guest's register in the host, HOST_NONE if it lives in the vCPU. */
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
    KIND_PUSH, KIND_POP, KIND_LEAVE,
    KIND_JCC, KIND_JMP, KIND_CALL, KIND_RET,
};

enum { VISIBLE_MAX = 5 };

struct planned {
    enum kind kind;
    bool reads_flags;       /* needs them: tests some, or leaves some as they are */
    bool writes_flags;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[VISIBLE_MAX];
    const ZydisDecodedOperand *memory;
    uint8_t bytes[INSN_LENGTH_MAX];
};

enum { SLOW_MAX = 4 * BLOCK_OPS_MAX, EDGES_MAX = 4 };

/* A jump out of the line to a site, and where it comes back. */
struct slow {
    uint8_t *field;
    struct site *site;
    const uint8_t *back;    /* NULL: the site leaves */
    bool flags;             /* wanted in H when it comes back */
};

/* A jump to another block. */
struct edge {
    uint8_t *field;
    uint64_t target;
};

struct work {
    struct emitter e;
    struct dbt *dbt;
    struct translation *t;
    const struct block *block;
    unsigned i;                         /* the present instruction */
    struct site *site;                  /* its site, once there is one */
    bool in_host, in_memory;            /* where the guest's flags are: H, M */
    unsigned slow_count, slow_first, edge_count;
    struct slow slow[SLOW_MAX];
    struct edge edge[EDGES_MAX];
    struct planned plan[BLOCK_OPS_MAX + 1];
};

static inline uint64_t next_rip(const struct work *w)
{
    return w->t->rip + w->block->op[w->i].where + w->block->op[w->i].length;
}

/* --- scan.c --- */
void plan_insn(const struct work *w, const struct vcpu *vcpu, const struct op *op, const uint8_t *code, struct planned *p);
/* Is every status flag written before anything looks at them or may fault? */
bool plan_flags_dead(const struct work *w);

/* --- sequence.c --- */
/* H to AX, as flags.h packs them, and back. */
void emit_pack_flags(struct emitter *e);
void emit_unpack_flags(struct emitter *e);
/* ADD, OR ... of a sign-extended constant, 64 bits. */
void emit_alu_constant(struct emitter *e, unsigned alu, unsigned reg, int32_t value);
/* `to` = the TLB entry of the linear address in `gla`; clobbers flags. */
void emit_tlb_entry(struct emitter *e, unsigned to, unsigned gla, size_t table_field);
void want_flags_in_memory(struct work *w);
void want_flags_in_host(struct work *w);
/* For an indirect jump: AX and saved_rax. */
void want_flags_in_rax(struct work *w);
/* S1 = the linear address. */
void emit_address(struct work *w, const ZydisDecodedOperand *memory);
/* S1, a linear address, becomes the host address; a miss goes to the site. Clobbers S2, S3. */
void emit_check(struct work *w, unsigned size, enum mmu_use use, bool locked);
/* A conditional jump to the present instruction's site. */
void emit_slow(struct work *w, unsigned cc);
/* At the end of the block: where slow jumps lead. */
void emit_slow_paths(struct work *w);
/* The site itself. */
void emit_site(struct work *w);
/* The slow jumps of the present instruction come back here. */
void close_slow(struct work *w);
/* The register itself, or `scratch` with its value. */
unsigned emit_get(struct work *w, unsigned guest, unsigned scratch);
void emit_put(struct work *w, unsigned guest, unsigned from);
void emit_set(struct work *w, unsigned guest, unsigned from);
void emit_move_rsp(struct work *w, int32_t by);

/* --- insn_plain.c, insn_branch.c --- */
void translate_modrm(struct work *w, const struct planned *p);
void translate_opcode_reg(struct work *w, const struct planned *p);
void translate_lea(struct work *w, const struct planned *p);
void translate_push(struct work *w, const struct planned *p);
void translate_pop(struct work *w, const struct planned *p);
void translate_leave(struct work *w, const struct planned *p);
void translate_jcc(struct work *w, const struct planned *p);
void translate_jmp(struct work *w, const struct planned *p);
void translate_call(struct work *w, const struct planned *p);
void translate_ret(struct work *w, const struct planned *p);
/* Goes on at a known address. */
void translate_goto(struct work *w, uint64_t target);
void close_edges(struct work *w);

/* The GPR's number, by encoding order. Among byte registers Zydis counts AH to BH as 4 to 7. */
static inline unsigned plan_gpr(const ZydisDecodedOperand *operand)
{
    unsigned id = (unsigned)ZydisRegisterGetId(operand->reg.value);
    return ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_GPR8 && id >= 8 ? id - 4 : id;
}

static inline bool plan_writes(const ZydisDecodedOperand *operand)
{
    return operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
}

#endif
