/* What an instruction is, for the translator. */
#include "engine/dbt/plan.h"

static bool general_register(const ZydisDecodedOperand *operand)
{
    switch (ZydisRegisterGetClass(operand->reg.value)) {
    case ZYDIS_REGCLASS_GPR8: case ZYDIS_REGCLASS_GPR16: case ZYDIS_REGCLASS_GPR32: case ZYDIS_REGCLASS_GPR64:
        return true;
    default:
        return false;
    }
}

static bool high_byte(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER && operand->reg.value >= ZYDIS_REGISTER_AH &&
           operand->reg.value <= ZYDIS_REGISTER_BH;
}

static bool is_stack_pointer(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER && general_register(operand) && !high_byte(operand) &&
           plan_gpr(operand) == RSP;
}

/* Only general registers, constants and at most one memory operand with 64-bit addresses. */
static bool operands_fit(struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++) {
        const ZydisDecodedOperand *o = &p->operand[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
            p->memory = o;
        else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && !general_register(o))
            return false;
        else if (o->type != ZYDIS_OPERAND_TYPE_REGISTER && o->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return false;
    }
    if (p->memory && p->z.address_width != 64)
        return false;
    return !p->memory || p->memory->mem.disp.value == (int32_t)p->memory->mem.disp.value;
}

/* AH and its kin cannot be named in an instruction with REX. */
static enum kind with_high_byte(const struct planned *p)
{
    if (p->memory)
        return KIND_SITE;
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (is_stack_pointer(&p->operand[i]))
            return KIND_SITE;
    return KIND_VERBATIM;
}

static enum kind copied(const struct planned *p)
{
    bool high = false, opcode_reg = false;
    if (p->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE | ZYDIS_ATTRIB_HAS_XACQUIRE |
                           ZYDIS_ATTRIB_HAS_XRELEASE))
        return KIND_SITE;
    for (unsigned i = 0; i < p->z.operand_count_visible; i++) {
        high |= high_byte(&p->operand[i]);
        opcode_reg |= p->operand[i].encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
    }
    if (high)
        return with_high_byte(p);
    if (p->z.attributes & ZYDIS_ATTRIB_HAS_MODRM)
        return KIND_MODRM;
    if (p->memory)
        return KIND_SITE;               /* MOV with an offset of 64 bits */
    return opcode_reg ? KIND_OPCODE_REG : KIND_VERBATIM;
}

static enum kind branch(const struct planned *p, const struct op *op, enum kind kind)
{
    bool near = p->z.meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR || p->z.meta.branch_type == ZYDIS_BRANCH_TYPE_SHORT;
    if (!near || (p->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
        return KIND_SITE;
    if (kind == KIND_RET)
        return KIND_RET;
    if (p->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return op->flags & OP_NEAR ? kind : KIND_SITE;
    if (p->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER && is_stack_pointer(&p->operand[0]))
        return KIND_SITE;
    return kind;
}

static enum kind kind_of(const struct planned *p, const struct vcpu *vcpu, const struct op *op)
{
    bool wide = !(p->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SBB: case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC: case ZYDIS_MNEMONIC_NEG: case ZYDIS_MNEMONIC_NOT:
    case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_XCHG: case ZYDIS_MNEMONIC_XADD: case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR: case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR: case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_IMUL:
    case ZYDIS_MNEMONIC_CMOVO: case ZYDIS_MNEMONIC_CMOVNO: case ZYDIS_MNEMONIC_CMOVB: case ZYDIS_MNEMONIC_CMOVNB:
    case ZYDIS_MNEMONIC_CMOVZ: case ZYDIS_MNEMONIC_CMOVNZ: case ZYDIS_MNEMONIC_CMOVBE: case ZYDIS_MNEMONIC_CMOVNBE:
    case ZYDIS_MNEMONIC_CMOVS: case ZYDIS_MNEMONIC_CMOVNS: case ZYDIS_MNEMONIC_CMOVP: case ZYDIS_MNEMONIC_CMOVNP:
    case ZYDIS_MNEMONIC_CMOVL: case ZYDIS_MNEMONIC_CMOVNL: case ZYDIS_MNEMONIC_CMOVLE: case ZYDIS_MNEMONIC_CMOVNLE:
    case ZYDIS_MNEMONIC_SETO: case ZYDIS_MNEMONIC_SETNO: case ZYDIS_MNEMONIC_SETB: case ZYDIS_MNEMONIC_SETNB:
    case ZYDIS_MNEMONIC_SETZ: case ZYDIS_MNEMONIC_SETNZ: case ZYDIS_MNEMONIC_SETBE: case ZYDIS_MNEMONIC_SETNBE:
    case ZYDIS_MNEMONIC_SETS: case ZYDIS_MNEMONIC_SETNS: case ZYDIS_MNEMONIC_SETP: case ZYDIS_MNEMONIC_SETNP:
    case ZYDIS_MNEMONIC_SETL: case ZYDIS_MNEMONIC_SETNL: case ZYDIS_MNEMONIC_SETLE: case ZYDIS_MNEMONIC_SETNLE:
    case ZYDIS_MNEMONIC_CBW: case ZYDIS_MNEMONIC_CWDE: case ZYDIS_MNEMONIC_CDQE:
    case ZYDIS_MNEMONIC_CWD: case ZYDIS_MNEMONIC_CDQ: case ZYDIS_MNEMONIC_CQO:
    case ZYDIS_MNEMONIC_CLC: case ZYDIS_MNEMONIC_STC: case ZYDIS_MNEMONIC_CMC:
        return copied(p);
    case ZYDIS_MNEMONIC_MOVSXD: case ZYDIS_MNEMONIC_BSWAP:
        return wide ? copied(p) : KIND_SITE;
    case ZYDIS_MNEMONIC_POPCNT:
        return x86_has(vcpu, FEATURE_POPCNT) ? copied(p) : KIND_SITE;
    case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
        return p->memory && p->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER ? KIND_SITE : copied(p);
    case ZYDIS_MNEMONIC_LEA:
        return wide ? KIND_LEA : KIND_SITE;
    case ZYDIS_MNEMONIC_PUSH:
        return wide && !p->memory ? KIND_PUSH : KIND_SITE;
    case ZYDIS_MNEMONIC_POP:
        return wide && !p->memory ? KIND_POP : KIND_SITE;
    case ZYDIS_MNEMONIC_LEAVE:
        return wide ? KIND_LEAVE : KIND_SITE;
    case ZYDIS_MNEMONIC_JMP:
        return branch(p, op, KIND_JMP);
    case ZYDIS_MNEMONIC_CALL:
        return branch(p, op, KIND_CALL);
    case ZYDIS_MNEMONIC_RET:
        return branch(p, op, KIND_RET);
    case ZYDIS_MNEMONIC_JRCXZ: case ZYDIS_MNEMONIC_JECXZ:
        return KIND_SITE;
    default:
        return p->z.meta.category == ZYDIS_CATEGORY_COND_BR && (p->z.opcode & 0xF0) == (p->z.opcode_map == ZYDIS_OPCODE_MAP_0F ? 0x80 : 0x70)
                   ? branch(p, op, KIND_JCC) : KIND_SITE;
    }
}

/* Logical instructions leave AF undefined by the manual; processors clear it, so it is written all the same. */
static uint32_t surely_written(const ZydisDecodedInstruction *z)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_TEST:
        return RFLAGS_STATUS;
    default:
        return (z->cpu_flags->modified | z->cpu_flags->set_0 | z->cpu_flags->set_1) & RFLAGS_STATUS;
    }
}

static bool may_keep_all(const ZydisDecodedInstruction *z)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR: case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
        return true;
    default:
        return false;
    }
}

static void plan_flags(struct planned *p)
{
    const ZydisAccessedFlags *flags = p->z.cpu_flags;
    if (!flags)
        return;
    uint32_t written = (flags->modified | flags->set_0 | flags->set_1 | flags->undefined) & RFLAGS_STATUS;
    p->writes_flags = written;
    p->reads_flags = (flags->tested & RFLAGS_STATUS) ||
                     (written && (surely_written(&p->z) != RFLAGS_STATUS || may_keep_all(&p->z)));
}

void plan_insn(const struct work *w, const struct vcpu *vcpu, const struct op *op, const uint8_t *code, struct planned *p)
{
    ZydisDecoderContext context;
    const ZydisDecoder *decoder = decoder_zydis(&w->dbt->interp.cache->decoder[MODE_LONG64]);
    p->kind = KIND_SITE;
    p->memory = NULL;
    p->reads_flags = p->writes_flags = false;
    memcpy(p->bytes, code + op->where, op->length);
    if (op->run == op_nop)
        p->kind = KIND_NOTHING;
    if (op->run == op_nop || op->run == op_undefined || op->run == op_too_long)
        return;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(decoder, &context, p->bytes, op->length, &p->z)) || p->z.length != op->length ||
        p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || p->z.operand_count_visible > VISIBLE_MAX ||
        !ZYAN_SUCCESS(ZydisDecoderDecodeOperands(decoder, &context, &p->z, p->operand, p->z.operand_count_visible)))
        return;
    plan_flags(p);
    if (operands_fit(p))
        p->kind = kind_of(p, vcpu, op);
}

static bool may_fault(const struct planned *p)
{
    switch (p->kind) {
    case KIND_NOTHING: case KIND_VERBATIM: case KIND_OPCODE_REG: case KIND_LEA:
        return false;
    case KIND_MODRM:
        return p->memory;
    default:
        return true;
    }
}

bool plan_flags_dead(const struct work *w)
{
    for (unsigned i = 0; i < w->block->count; i++) {
        const struct planned *p = &w->plan[i];
        if (may_fault(p) || p->reads_flags)
            return false;
        if (p->writes_flags)
            return true;
    }
    return false;
}
