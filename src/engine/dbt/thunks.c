/* The pieces of code that all translations share: the way in, the way out, the helper, the indirect jump. */
#include "engine/dbt/plan.h"

/* RAX comes last in, first out where flags travel in AX. */
static const uint8_t homes[] = { RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R12, R13, RSP };
static const uint8_t callee_saved[] = { RBX, RBP, R12, R13, R14, R15 };

static void spill(struct emitter *e)
{
    for (unsigned i = 0; i < ARRAY_SIZE(homes); i++)
        emit_store(e, rm_vcpu(GPR_OFFSET(homes[i])), host_register(homes[i]));
}

static void reload(struct emitter *e)
{
    for (unsigned i = 0; i < ARRAY_SIZE(homes); i++)
        emit_load(e, host_register(homes[i]), rm_vcpu(GPR_OFFSET(homes[i])));
}

static void emit_push(struct emitter *e, unsigned reg)
{
    if (reg & 8)
        emit8(e, 0x41);
    emit8(e, 0x50 | (reg & 7));
}

static void emit_pop(struct emitter *e, unsigned reg)
{
    if (reg & 8)
        emit8(e, 0x41);
    emit8(e, 0x58 | (reg & 7));
}

static void adjust_stack(struct emitter *e, int8_t by)
{
    emit_lea(e, RSP, (struct rm){ .kind = RM_MEMORY, .base = RSP, .index = HOST_NONE, .disp = by });
}

/* struct link *enter(const uint8_t *code): one return address and six registers leave the stack 8 bytes off 16. */
static void make_enter(struct emitter *e, struct dbt *dbt)
{
    dbt->enter = emit_here(e);
    for (unsigned i = 0; i < ARRAY_SIZE(callee_saved); i++)
        emit_push(e, callee_saved[i]);
    adjust_stack(e, -8);
    emit_move(e, S1, RDI);
    reload(e);
    emit_load(e, S2, rm_vcpu(GPR_OFFSET(RAX)));
    emit_store(e, rm_data(&dbt->saved_rax), S2);
    emit_load(e, RAX, rm_data(&dbt->flags));
    emit_insn(e, 0, 0xFF, 4, rm_reg(S1), 0);
}

/* With the result in RAX and all guest state in the vCPU. */
static void emit_return(struct emitter *e)
{
    adjust_stack(e, 8);
    for (unsigned i = ARRAY_SIZE(callee_saved); i-- > 0;)
        emit_pop(e, callee_saved[i]);
    emit8(e, 0xC3);
}

/* S1: rip to go on at; S2: the link or 0; flags in H. */
static void make_leave(struct emitter *e, struct dbt *dbt)
{
    dbt->leave = emit_here(e);
    emit_store(e, rm_vcpu(offsetof(struct vcpu, rip)), S1);
    emit_store(e, rm_vcpu(GPR_OFFSET(RAX)), RAX);
    emit_pack_flags(e);
    emit_store(e, rm_data(&dbt->flags), RAX);
    spill(e);
    emit_move(e, RAX, S2);
    emit_return(e);
}

/* The helper returned false, or an indirect jump found nothing: leave, nothing to link. */
static bool run_site(struct vcpu *vcpu, const struct site *site)
{
    struct dbt *dbt = dbt_of(vcpu);
    struct block *block = &dbt->mini->block;
    flags_set(vcpu, dbt->flags);
    dbt->mini->op[0] = site->op;
    dbt->mini->op[0].back = (uint16_t)((char *)&dbt->mini->op[0] - (char *)block);
    block->count = site->remaining;
    vcpu->rip = site->translation->rip;
    struct block *next = site->op.run(vcpu, &dbt->mini->op[0]);
    dbt->interp.link_from = NULL;
    dbt->flags = flags_pack(vcpu->rflags);
    if (next != block)
        return false;
    if (likely(!site->translation->dropped))
        return true;
    vcpu->rip = site->translation->rip + site->op.where + site->op.length;
    dbt->interp.left += site->remaining - 1;
    return false;
}

static struct block *site_done(struct vcpu *vcpu, const struct op *op)
{
    return &dbt_of(vcpu)->mini->block;
}

/* Called; S1: the site; flags in M before and after. Returns only if the block goes on. */
static void make_help(struct emitter *e, struct vcpu *vcpu, struct dbt *dbt)
{
    dbt->help = emit_here(e);
    emit_store(e, rm_vcpu(GPR_OFFSET(RAX)), RAX);
    spill(e);
    emit_constant(e, RDI, (uintptr_t)vcpu);
    emit_move(e, RSI, S1);
    emit_constant(e, RAX, (uintptr_t)run_site);
    adjust_stack(e, -8);
    emit_insn(e, 0, 0xFF, 2, rm_reg(RAX), 0);
    adjust_stack(e, 8);
    emit_insn(e, 0, 0x84, RAX, rm_reg(RAX), 0);
    uint8_t *leave = emit_jcc(e, CC_Z, emit_here(e));
    reload(e);
    emit_load(e, RAX, rm_vcpu(GPR_OFFSET(RAX)));
    emit8(e, 0xC3);
    emit_target(e, leave, emit_here(e));
    adjust_stack(e, 8);
    emit_constant(e, RAX, 0);
    emit_return(e);
}

/*
 * S1: the target, canonical; flags packed in AX, RAX in saved_rax. The fetch tag says that the page is mapped and may be fetched at
 * this privilege, and where it lies in the host: together with the linear address that names a translation.
 */
static void make_indirect(struct emitter *e, struct dbt *dbt)
{
    uint8_t *miss[3];
    dbt->indirect = emit_here(e);
    emit_tlb_entry(e, S2, S1, offsetof(struct vcpu, tlb_code));
    emit_move(e, S3, S1);
    emit_alu_constant(e, ALU_AND, S3, -(int32_t)PAGE_SIZE);
    emit_insn(e, EMIT_W, 0x3B, S3, rm_mem(S2, MMU_FETCH * 8), 0);
    miss[0] = emit_jcc(e, CC_NZ, emit_here(e));
    emit_load(e, S2, rm_mem(S2, offsetof(struct tlb_entry, addend)));
    emit_insn(e, EMIT_W, 0x03, S2, rm_reg(S1), 0);
    emit_insn(e, 0, 0x8B, S3, rm_reg(S1), 0);
    emit_alu_constant(e, ALU_AND, S3, (1 << DBT_JUMP_BITS) - 1);
    emit_insn(e, 0, 0xC1, 4, rm_reg(S3), 1);
    emit8(e, 5);
    emit_insn(e, EMIT_W, 0x03, S3, rm_data(&dbt->jumps), 0);
    emit_insn(e, EMIT_W, 0x3B, S2, rm_mem(S3, offsetof(struct jump, host)), 0);
    miss[1] = emit_jcc(e, CC_NZ, emit_here(e));
    emit_insn(e, EMIT_W, 0x3B, S1, rm_mem(S3, offsetof(struct jump, rip)), 0);
    miss[2] = emit_jcc(e, CC_NZ, emit_here(e));
    emit_insn(e, 0, 0xFF, 4, rm_mem(S3, offsetof(struct jump, code)), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(miss); i++)
        emit_target(e, miss[i], emit_here(e));
    emit_store(e, rm_data(&dbt->flags), RAX);
    emit_store(e, rm_vcpu(offsetof(struct vcpu, rip)), S1);
    emit_load(e, RAX, rm_data(&dbt->saved_rax));
    emit_store(e, rm_vcpu(GPR_OFFSET(RAX)), RAX);
    spill(e);
    emit_constant(e, RAX, 0);
    emit_return(e);
}

static_assert(sizeof(struct jump) == 32, "scaled by a shift");

void dbt_make_thunks(struct vcpu *vcpu, struct dbt *dbt)
{
    struct emitter e = { .at = dbt->code, .shift = dbt->shift };
    dbt->mini->op[1] = (struct op){ .run = site_done };
    dbt->mini->block.gpa2 = BLOCK_DROPPED;
    make_enter(&e, dbt);
    make_leave(&e, dbt);
    make_help(&e, vcpu, dbt);
    make_indirect(&e, dbt);
    dbt->code = dbt->code_start = (uint8_t *)align_up((uintptr_t)e.at, 16);
}
