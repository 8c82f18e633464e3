#include "engine/interp/bind.h"

#include <Zydis/Zydis.h>

#include "engine/interp/native.h"
#include "x86/templates.h"

/* Several rows share a handler; declarations in bind.h may repeat. */
struct binding {
    op_fn *handler;
    pick_fn *pick;
    uint16_t argument;
    uint8_t flow;
};

static const struct binding bindings[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define INSN(mnemonic, handler_, flow_) [ZYDIS_MNEMONIC_##mnemonic] = { .handler = handler_, .flow = flow_ },
#define INSN_PICK(mnemonic, pick_, argument_, flow_) \
    [ZYDIS_MNEMONIC_##mnemonic] = { .pick = pick_, .argument = argument_, .flow = flow_ },
#include "x86/insn.def"
#undef INSN
#undef INSN_PICK
};

static uint16_t register_offset(const struct insn_operand *operand)
{
    return (uint16_t)(GPR_OFFSET(operand->reg) + operand->high);
}

static uint16_t address_offset(uint8_t reg)
{
    if (reg == REG_NONE)
        return offsetof(struct vcpu, zero);
    return reg == REG_RIP ? offsetof(struct vcpu, rip) : GPR_OFFSET(reg);
}

static void bind_memory(const struct insn *insn, struct op *op)
{
    const struct insn_memory *memory = &insn->memory;
    op->flags |= OP_MEMORY;
    op->base = address_offset(memory->base);
    op->index = address_offset(memory->index);
    op->scale = memory->scale;
    int64_t disp = memory->disp;
    if (memory->base == REG_RIP)
        disp += op->where + op->length;
    if (disp == (int32_t)disp || (memory->base != REG_RIP && op->address_size == 4)) {
        op->disp = (int32_t)disp;
    } else if (memory->base == REG_RIP) {
        op->disp = (int32_t)memory->disp;
        op->flags |= OP_RIP_FAR;
    } else {
        op->imm = (uint64_t)disp;
        op->flags |= OP_MOFFS;
    }
}

/* Operands into the op: the first operand's register is dst, the second's src. */
static void bind_operands(const struct insn *insn, struct op *op)
{
    for (unsigned i = 0; i < insn->operand_count; i++) {
        const struct insn_operand *operand = &insn->operand[i];
        switch (operand->kind) {
        case OPERAND_GPR:
            if (i == 0)
                op->dst = register_offset(operand);
            else if (i == 1)
                op->src = register_offset(operand);
            break;
        case OPERAND_MEMORY:
            bind_memory(insn, op);
            if (i == 0)
                op->flags |= OP_STORE;
            break;
        case OPERAND_IMMEDIATE:
            op->flags |= OP_IMMEDIATE;
            op->imm = insn->imm;
            break;
        default:
            break;
        }
    }
}

static enum family family_of(const struct op *op, uint32_t key)
{
    unsigned mode = key & KEY_MODE;
    if ((key & KEY_ALIGNMENT) || (op->flags & (OP_MOFFS | OP_RIP_FAR)))
        return FAR_;
    if (mode == MODE_LONG64)
        return op->address_size == 8 ? FLAT64 : FAR_;
    if (op->address_size == 4 && (key & KEY_FLAT_DATA) && op->seg <= DS && op->seg != CS)
        return FLAT32;
    return FAR_;
}

static void bind_branch(const struct insn *insn, struct op *op, uint32_t key)
{
    op->imm = insn->imm + op->where + op->length;
    op->size = insn->operand_size;
    bool flat32 = (key & KEY_FLAT_CODE) && op->size == 4;
    if ((key & KEY_MODE) == MODE_LONG64 || flat32)
        op->flags |= OP_NEAR;
}

static void bind_sizes(const struct insn *insn, struct op *op)
{
    op->size = insn->operand_count ? insn->operand[0].size : insn->operand_size;
    if (insn->operand_count > 1)
        op->source_size = insn->operand[1].size;
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LIDT:
        op->size = insn->operand_size;
        break;
    case ZYDIS_MNEMONIC_MOVSXD:
        op->source_size = op->size < 4 ? op->size : 4;      /* r16, r/m16 on Intel processors (SDM2 MOVSX) */
        break;
    case ZYDIS_MNEMONIC_OUT:
        op->size = insn->operand[1].size;
        break;
    default:
        break;
    }
}

/* XCHG with memory locks by itself (SDM2 XCHG); the others are always carried out by a locked host instruction. */
static bool always_locked(unsigned mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_XCHG || mnemonic == ZYDIS_MNEMONIC_XADD || mnemonic == ZYDIS_MNEMONIC_CMPXCHG ||
           mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B || mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
}

/* Instructions that a processor without the feature does not know. Others ask when they run (ops_system.c). */
static bool offered(const struct vcpu *vcpu, unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_POPCNT: return x86_has(vcpu, FEATURE_POPCNT);
    case ZYDIS_MNEMONIC_MOVBE: return x86_has(vcpu, FEATURE_MOVBE);
    case ZYDIS_MNEMONIC_CMPXCHG8B: return x86_has(vcpu, FEATURE_CX8);
    case ZYDIS_MNEMONIC_CMPXCHG16B: return x86_has(vcpu, FEATURE_CMPXCHG16B);
    case ZYDIS_MNEMONIC_MOVNTI: return x86_has(vcpu, FEATURE_SSE2);
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF: return vcpu->mode != MODE_LONG64 || x86_has(vcpu, FEATURE_LAHF_LM);
    default: return true;
    }
}

/* SIMD, x87 and the like: the stub's address travels in imm. */
static struct block *op_native(struct vcpu *vcpu, const struct op *op)
{
    uint64_t start = vcpu->rip;
    op_at(vcpu, op);
    bool done = native_execute(vcpu, (const struct native_stub *)op->imm);
    vcpu->rip = start;
    if (unlikely(!done))
        return leave_fault(vcpu, op);
    NEXT;
}

const struct native_stub *op_native_stub(const struct op *op)
{
    return op->run == op_native ? (const struct native_stub *)op->imm : NULL;
}

static enum bind_result bind_native(struct vcpu *vcpu, const struct insn *insn, struct op *op, const struct decoder *decoder)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    const struct native_stub *stub;
    struct native_cache *cache = interp_of(vcpu)->native;
    op->run = op_undefined;
    if (!cache || !ZYAN_SUCCESS(decoder_records(decoder, insn->bytes, insn->length, &z, operands)))
        return BIND_ENDS;
    switch (native_prepare(cache, vcpu, &z, operands, insn->bytes, &stub)) {
    case NATIVE_OK:
        op->run = op_native;
        op->imm = (uintptr_t)stub;
        return BIND_FLOWS;
    case NATIVE_FULL:
        return BIND_FULL;
    default:
        return BIND_ENDS;
    }
}

/* MOVSD and CMPSD are string instructions and SSE2 instructions by the same names. */
static bool is_sse_namesake(const struct insn *insn)
{
    return (insn->mnemonic == ZYDIS_MNEMONIC_MOVSD || insn->mnemonic == ZYDIS_MNEMONIC_CMPSD) &&
           insn->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT;
}

/* The rows of MOV and POP say that the block goes on, but their handlers for these registers leave it (leave_system). */
static bool moves_system_register(const struct insn *insn)
{
    const struct insn_operand *dst = &insn->operand[0], *src = &insn->operand[1];
    if (insn->mnemonic == ZYDIS_MNEMONIC_POP)
        return dst->kind == OPERAND_SEGMENT;
    return insn->mnemonic == ZYDIS_MNEMONIC_MOV &&
           (dst->kind == OPERAND_SEGMENT || dst->kind == OPERAND_CONTROL || dst->kind == OPERAND_DEBUG || src->kind == OPERAND_CONTROL ||
            src->kind == OPERAND_DEBUG);
}

enum bind_result bind_op(struct vcpu *vcpu, const struct insn *insn, struct op *op, unsigned where, uint32_t key,
                      const struct decoder *decoder)
{
    const struct binding *binding = &bindings[insn->mnemonic];
    memset(op, 0, sizeof(*op));
    op->where = (uint16_t)where;
    op->length = insn->length;
    op->address_size = insn->address_size;
    op->base = op->index = op->seg_base = offsetof(struct vcpu, zero);
    op->seg = insn->memory.segment;
    if (insn->lock)
        op->flags |= OP_LOCK;
    if (insn->repeat)
        op->flags |= insn->repeat == 0xF3 ? OP_REP : OP_REPNE;
    /* Zydis knows some integer instructions in VEX encodings that only Knights Corner had: nobody's, so #UD. */
    if ((!binding->handler && !binding->pick) || is_sse_namesake(insn) || !insn->legacy)
        return bind_native(vcpu, insn, op, decoder);
    bind_operands(insn, op);
    bind_sizes(insn, op);
    if (op->seg == FS || op->seg == GS)
        op->seg_base = (uint16_t)(offsetof(struct vcpu, seg) + op->seg * sizeof(struct segment) + offsetof(struct segment, base));
    if (insn->relative)
        bind_branch(insn, op, key);
    if (insn->operand[0].kind == OPERAND_FAR) {
        op->imm = insn->imm;
        op->disp = (int32_t)insn->imm2;
        op->size = insn->operand_size;
    }
    if (insn->mnemonic == ZYDIS_MNEMONIC_ENTER)
        op->disp = (int32_t)insn->imm2;
    if ((op->flags & OP_MEMORY) && always_locked(insn->mnemonic))
        op->flags |= OP_LOCK;
    if (!offered(vcpu, insn->mnemonic)) {
        op->run = op_undefined;
        return BIND_ENDS;
    }
    op->run = binding->pick ? binding->pick(insn, op, family_of(op, key), binding->argument) : binding->handler;
    return binding->flow == FLOWS && !moves_system_register(insn) ? BIND_FLOWS : BIND_ENDS;
}
