/* What an instruction is, for the translator. */
#include "engine/dbt/plan.h"

#include "engine/interp/native.h"
#include "x86/templates.h"

static bool is_stack_pointer(const ZydisDecodedOperand *operand)
{
    return plan_is_gpr(operand) && !plan_is_high_byte(operand) && plan_gpr(operand) == RSP;
}

/* In 32-bit code a limit may have to be checked, unless the mode says that there is none to reach. */
static bool segment_fits(const struct work *w, ZydisRegister segment)
{
    switch (segment) {
    case ZYDIS_REGISTER_CS:
        return !w->narrow;
    case ZYDIS_REGISTER_FS:
        return !w->narrow || (w->t->mode & MODE_FLAT_FS);
    case ZYDIS_REGISTER_GS:
        return !w->narrow || (w->t->mode & MODE_FLAT_GS);
    default:
        return true;
    }
}

/* At most one memory operand, with addresses of the code's own width, at a plain address. */
static bool memory_fits(const struct work *w, struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (p->operand[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            p->memory = &p->operand[i];
    return !p->memory || (p->z.address_width == 8 * word_size(w) && p->memory->mem.type != ZYDIS_MEMOP_TYPE_VSIB && segment_fits(w, p->memory->mem.segment) &&
                          (w->narrow || p->memory->mem.disp.value == (int32_t)p->memory->mem.disp.value));
}

/* Only general registers, constants and memory. */
static bool is_general(const struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (p->operand[i].type == ZYDIS_OPERAND_TYPE_POINTER ||
            (p->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER && !plan_is_gpr(&p->operand[i])))
            return false;
    return true;
}

/* AH and its kin cannot be named in an instruction with REX: with memory, what is only read is copied elsewhere (translate_modrm). */
static enum kind with_high_byte(const struct planned *p)
{
    if (p->memory) {
        const ZydisDecodedOperand *other = p->memory == &p->operand[0] ? &p->operand[1] : &p->operand[0];
        return p->z.operand_count_visible == 2 && !plan_writes(other) ? KIND_MODRM : KIND_SITE;
    }
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (is_stack_pointer(&p->operand[i]))
            return KIND_SITE;
    return KIND_VERBATIM;
}

static enum kind copied(const struct work *w, const struct planned *p)
{
    bool high = false, opcode_reg = false;
    if (w->narrow && p->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && p->z.opcode == 0x82)
        return KIND_SITE;               /* 64-bit mode has no such twin of opcode 80 */
    if (p->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE | ZYDIS_ATTRIB_HAS_XACQUIRE |
                           ZYDIS_ATTRIB_HAS_XRELEASE))
        return KIND_SITE;
    for (unsigned i = 0; i < p->z.operand_count_visible; i++) {
        high |= plan_is_high_byte(&p->operand[i]);
        opcode_reg |= p->operand[i].encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
    }
    if (high)
        return with_high_byte(p);
    if (p->z.attributes & ZYDIS_ATTRIB_HAS_MODRM)
        return KIND_MODRM;
    if (p->memory)                      /* MOV with an offset, of 64 bits in 64-bit code */
        return w->narrow && p->z.mnemonic == ZYDIS_MNEMONIC_MOV && p->memory->size != 16 ? KIND_MOV_OFFSET : KIND_SITE;
    return opcode_reg ? KIND_OPCODE_REG : KIND_VERBATIM;
}

static enum kind branch(const struct planned *p, enum kind kind)
{
    bool near = p->z.meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR || p->z.meta.branch_type == ZYDIS_BRANCH_TYPE_SHORT;
    if (!near || (p->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
        return KIND_SITE;
    if (kind == KIND_RET)               /* with more to take off the stack it is rare, and not undone (trap.c) */
        return p->z.operand_count_visible && p->z.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? KIND_SITE : KIND_RET;
    if (p->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return p->op->flags & OP_NEAR ? kind : KIND_SITE;
    if (is_stack_pointer(&p->operand[0]))
        return KIND_SITE;
    return kind;
}

/* Opcodes D8 to DF: without memory, all of ModRM says what it is. */
static bool is_escape(const struct planned *p)
{
    return p->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && p->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (p->z.opcode & 0xF8) == 0xD8;
}

/* That CR0.TS and EM are clear is part of the mode only with a level; what is noted of an operand is its linear address. */
static bool x87_fits(const struct work *w, const struct planned *p)
{
    return simd_level_of(w->t->mode) != SIMD_NONE &&
           !(p->memory && (p->memory->mem.segment == ZYDIS_REGISTER_FS || p->memory->mem.segment == ZYDIS_REGISTER_GS));
}

/* Bits of VEX and EVEX that only 64-bit code has: W where it chooses the size of a general register, the fourth of a register in an immediate. */
static bool has_ignored_bits(const struct planned *p)
{
    if (p->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        return false;
    bool wide = p->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? p->z.raw.vex.W : p->z.raw.evex.W;
    for (unsigned i = 0; i < p->z.operand_count_visible; i++) {
        const ZydisDecodedOperand *o = &p->operand[i];
        if (o->encoding == ZYDIS_OPERAND_ENCODING_IS4 && (p->bytes[p->op->length - 1] & 0x80))
            return true;
        if (wide && (plan_is_gpr(o) || (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->size == 32)))
            return true;
    }
    return false;
}

/* What the interpreter itself runs on the host's processor is copied where its state can stay there. */
static enum kind native(const struct work *w, struct planned *p)
{
    if (w->narrow && has_ignored_bits(p))
        return KIND_SITE;
    unsigned how = p->copies;
    if (how == NATIVE_COPY_NOT)
        return KIND_SITE;
    if ((how & NATIVE_COPY_X87) && !x87_fits(w, p))
        return KIND_SITE;
    for (unsigned i = 0; i < p->z.operand_count; i++)
        if (plan_is_high_byte(&p->operand[i]))
            return KIND_SITE;
    p->live = (how & NATIVE_COPY_VECTOR ? LIVE_VECTORS : 0) | (how & NATIVE_COPY_X87 ? LIVE_X87 : 0);
    p->noted = how & NATIVE_COPY_NOTED;
    p->may_trap = true;                 /* floating point, and alignment */
    bool encoded = is_escape(p) ? p->memory != NULL : p->z.attributes & ZYDIS_ATTRIB_HAS_MODRM;
    return encoded ? KIND_MODRM : KIND_VERBATIM;
}

static enum kind kind_of(const struct work *w, struct planned *p)
{
    const struct vcpu *vcpu = w->vcpu;
    bool wide = !(p->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
    if (op_native_stub(p->op))
        return native(w, p);
    if (p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || !is_general(p))
        return KIND_SITE;
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_LFENCE: case ZYDIS_MNEMONIC_SFENCE: case ZYDIS_MNEMONIC_MFENCE:
        return KIND_VERBATIM;
    case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
        p->may_trap = true;
        return copied(w, p);
    case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B:
        p->may_trap = true;
        return x86_has(vcpu, p->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? FEATURE_CX8 : FEATURE_CMPXCHG16B) ? copied(w, p) : KIND_SITE;
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
        return copied(w, p);
    case ZYDIS_MNEMONIC_MOVSXD: case ZYDIS_MNEMONIC_BSWAP:
        return wide ? copied(w, p) : KIND_SITE;
    case ZYDIS_MNEMONIC_MOVBE:
        return x86_has(vcpu, FEATURE_MOVBE) ? copied(w, p) : KIND_SITE;
    case ZYDIS_MNEMONIC_POPCNT:
        return x86_has(vcpu, FEATURE_POPCNT) ? copied(w, p) : KIND_SITE;
    case ZYDIS_MNEMONIC_TZCNT:
        return x86_has(vcpu, FEATURE_BMI1) ? copied(w, p) : KIND_SITE;
    case ZYDIS_MNEMONIC_LZCNT:
        return x86_has(vcpu, FEATURE_LZCNT) ? copied(w, p) : KIND_SITE;
    case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
        return p->memory && p->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER ? KIND_SITE : copied(w, p);
    case ZYDIS_MNEMONIC_LEA:
        return wide ? KIND_LEA : KIND_SITE;
    case ZYDIS_MNEMONIC_PUSH:
        return wide ? KIND_PUSH : KIND_SITE;
    case ZYDIS_MNEMONIC_POP:
        return wide && !p->memory ? KIND_POP : KIND_SITE;
    case ZYDIS_MNEMONIC_LEAVE:
        return wide ? KIND_LEAVE : KIND_SITE;
    case ZYDIS_MNEMONIC_JMP:
        return branch(p, KIND_JMP);
    case ZYDIS_MNEMONIC_CALL:
        return branch(p, KIND_CALL);
    case ZYDIS_MNEMONIC_RET:
        return branch(p, KIND_RET);
    case ZYDIS_MNEMONIC_JRCXZ:
        return p->z.address_width == 64 ? branch(p, KIND_JCC) : KIND_SITE;
    case ZYDIS_MNEMONIC_JECXZ:
        return KIND_SITE;
    default:
        return p->z.meta.category == ZYDIS_CATEGORY_COND_BR && (p->z.opcode & 0xF0) == (p->z.opcode_map == ZYDIS_OPCODE_MAP_0F ? 0x80 : 0x70)
                   ? branch(p, KIND_JCC) : KIND_SITE;
    }
}

/* --- flags --- */

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

/* A shift by a constant, after which AF, and OF if it is more than 1, are undefined by the manual. */
static bool shifts_by_constant(const struct planned *p)
{
    const ZydisDecodedOperand *count = &p->operand[1];
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR:
        return p->operand[0].size >= 32 && count->type == ZYDIS_OPERAND_TYPE_IMMEDIATE &&
               count->imm.value.u & (p->operand[0].size - 1u);
    default:
        return false;
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

static void plan_flags_of(const struct work *w, struct planned *p)
{
    const ZydisAccessedFlags *flags = p->z.cpu_flags;
    if (!flags)
        return;
    uint32_t written = (flags->modified | flags->set_0 | flags->set_1 | flags->undefined) & RFLAGS_STATUS;
    p->writes_flags = written;
    if (w->dbt->shifts_write_all && shifts_by_constant(p))
        return;
    p->reads_flags = (flags->tested & RFLAGS_STATUS) ||
                     (written && (surely_written(&p->z) != RFLAGS_STATUS || may_keep_all(&p->z)));
}

static bool leads_back(const struct work *w, uint64_t target) { return target <= w->t->rip; }

static bool may_lead_back(const struct work *w, const struct planned *p)
{
    bool direct = p->z.operand_count_visible && p->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    if (p->kind < KIND_JCC)
        return p->kind == KIND_SITE || p->kind == KIND_SYSTEM || p->kind == KIND_STRING;
    if (p->kind == KIND_RET || !direct)
        return true;
    return (p->follows != FOLLOWS_TARGET && leads_back(w, p->next_rip + p->operand[0].imm.value.u)) ||
           (p->kind == KIND_JCC && p->follows != FOLLOWS_NEXT && leads_back(w, p->next_rip));
}

/*
 * Code that runs for ever goes back to a lower address, or jumps to one that it has computed, again and again; of user code only what may do
 * that needs to look. (Kernels have stretches of a few instructions in which interrupts are on, and wait for them there.)
 */
static bool looks_on_ways_back(const struct work *w)
{
    return w->user && !w->exact && !w->narrow && w->t->gpa2 == BLOCK_DROPPED;
}

bool plan_looks_at_requests(const struct work *w)
{
    if (!looks_on_ways_back(w))
        return true;
    for (unsigned i = 0; i < w->count; i++)
        if (may_lead_back(w, &w->plan[i]))
            return true;
    return leads_back(w, w->plan[w->count - 1].next_rip);
}

/* Goes on to the next instruction, or leaves where no request need be looked at, and is not one of those that look at what is counted. */
static bool may_precede_check(const struct work *w, const struct planned *p)
{
    switch (p->kind) {
    case KIND_SITE: case KIND_SYSTEM: case KIND_STRING: case KIND_RET:
        return false;
    case KIND_JCC:
        return looks_on_ways_back(w) && !may_lead_back(w, p);
    default:
        return p->kind < KIND_JCC || p->follows == FOLLOWS_TARGET;
    }
}

/*
 * The check clobbers flags. So it is where nobody needs them, if there is such a place before the first way out on which requests must have been
 * looked at; else it comes first, and does without. Ways out before it count what has run.
 */
void plan_flags(struct work *w)
{
    bool needed = true;
    unsigned last = 0;
    while (last + 1 < w->count && may_precede_check(w, &w->plan[last]) && !w->exact)
        last++;
    w->check = 0;
    w->check_keeps_flags = true;
    for (unsigned i = w->count; i-- > 0;) {
        struct planned *p = &w->plan[i];
        p->flags_needed = needed;
        if (p->writes_flags && !p->reads_flags)
            needed = false;
        needed |= p->reads_flags || p->may_fault;
        if (i <= last && !needed && !w->exact) {
            w->check = i;
            w->check_keeps_flags = false;
        }
    }
}

/* --- registers --- */

static void adjusts(struct planned *p, unsigned reg, int64_t by)
{
    p->adjusted = (uint8_t)reg;
    p->adjust = by == (int32_t)by ? (int32_t)by : 0;
}

/* Of use with windows only, which only 64-bit code has. */
static void plan_adjustment(struct planned *p)
{
    const ZydisDecodedOperand *to = &p->operand[0], *by = &p->operand[1];
    bool wide = p->z.operand_count_visible && plan_is_gpr(to) && to->size == 64;
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: case ZYDIS_MNEMONIC_CALL:
        adjusts(p, RSP, -8);
        break;
    case ZYDIS_MNEMONIC_POP:
        if (!is_stack_pointer(to))
            adjusts(p, RSP, 8);
        break;
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB:
        if (wide && by->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            adjusts(p, plan_gpr(to), p->z.mnemonic == ZYDIS_MNEMONIC_ADD ? by->imm.value.s : -by->imm.value.s);
        break;
    case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
        if (wide)
            adjusts(p, plan_gpr(to), p->z.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : -1);
        break;
    case ZYDIS_MNEMONIC_LEA:
        if (wide && by->mem.base == to->reg.value && by->mem.index == ZYDIS_REGISTER_NONE)
            adjusts(p, plan_gpr(to), by->mem.disp.value);
        break;
    default:
        break;
    }
}

static void plan_writes_of(const struct work *w, struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count; i++)
        if (plan_is_gpr(&p->operand[i]) && plan_writes(&p->operand[i]))
            p->writes |= (uint16_t)(1u << plan_gpr(&p->operand[i]));
    if (!w->narrow)
        plan_adjustment(p);
}

static bool leaves(const struct work *w, const struct planned *p)
{
    switch (p->kind) {
    case KIND_NOTHING: case KIND_VERBATIM: case KIND_OPCODE_REG: case KIND_LEA: case KIND_JCC:
        return p->may_trap;
    case KIND_MODRM:
        return p->memory || p->may_trap;
    default:
        return true;
    }
}

/* False: none that we know. */
static bool take_records(const struct work *w, struct planned *p)
{
    return ZYAN_SUCCESS(decoder_records(w->decoder, p->bytes, p->op->length, &p->z, p->operand)) && p->z.length == p->op->length;
}

/* SDM2 appendix A "Opcode Map": 0F 0D and 0F 18 are prefetches and other hints. Most of what does nothing is neither. */
static bool has_prefetch_opcode(const struct planned *p)
{
    for (unsigned i = 0; i + 1u < p->op->length; i++)
        if (p->bytes[i] == 0x0F)
            return p->bytes[i + 1] == 0x0D || p->bytes[i + 1] == 0x18;
    return false;
}

static bool is_prefetch(const struct planned *p)
{
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_PREFETCHT0: case ZYDIS_MNEMONIC_PREFETCHT1: case ZYDIS_MNEMONIC_PREFETCHT2: case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHW: case ZYDIS_MNEMONIC_PREFETCH:
        return true;
    default:
        return false;
    }
}

/* A prefetch never faults, and costs too much where the page has to be looked up. */
static void plan_hint(const struct work *w, struct planned *p)
{
    bool prefetch = w->window && has_prefetch_opcode(p) && take_records(w, p) && is_prefetch(p) && memory_fits(w, p);
    p->kind = prefetch ? KIND_PREFETCH : KIND_NOTHING;
    p->may_fault = false;
}

void plan_insn(const struct work *w, struct planned *p, const uint8_t *code)
{
    const struct op *op = p->op;
    p->kind = KIND_SITE;
    p->memory = NULL;
    p->z.mnemonic = ZYDIS_MNEMONIC_INVALID;
    p->reads_flags = p->writes_flags = p->noted = p->may_trap = false;
    p->live = p->kept = 0;
    p->may_fault = true;
    p->writes = 0;
    p->adjust = 0;
    memcpy(p->bytes, code + op->where, op->length);
    if (op->run == op_nop)
        plan_hint(w, p);
    if (op->run == op_nop || op->run == op_undefined || op->run == op_too_long || !take_records(w, p))
        return;
    plan_flags_of(w, p);
    if (memory_fits(w, p))
        p->kind = plan_system(w, p) ? KIND_SYSTEM : plan_bit_string(w, p) ? KIND_BIT_STRING : plan_string(w, p) ? KIND_STRING : kind_of(w, p);
    if (p->kind == KIND_SITE) {         /* the interpreter keeps all of this itself, in M */
        p->may_trap = p->noted = false;
        p->live = 0;
        return;
    }
    plan_writes_of(w, p);
    p->may_fault = leaves(w, p);
}
