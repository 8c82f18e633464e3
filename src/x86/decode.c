#include "x86/decode.h"

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

#include "x86/templates.h"
#include "x86/x86.h"

static_assert(sizeof(ZydisDecoder) <= sizeof(struct decoder), "struct decoder holds a ZydisDecoder");

/*
 * Encodings that newer extensions took from the NOP and REP-prefixed space are decoded as what a processor without the
 * extension makes of them: MPX, CET and CLDEMOTE are never offered to guests.
 */
void decoder_init(struct decoder *decoder, const struct vcpu *vcpu, unsigned mode)
{
    static const struct { ZydisMachineMode machine; ZydisStackWidth stack; } modes[] = {
        [MODE_REAL] = { ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16 },
        [MODE_V86] = { ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16 },
        [MODE_PROTECTED16] = { ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
        [MODE_PROTECTED32] = { ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
        [MODE_COMPAT16] = { ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16 },
        [MODE_COMPAT32] = { ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32 },
        [MODE_LONG64] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
    };
    ZydisDecoder *zydis = (ZydisDecoder *)decoder->opaque;
    memset(decoder, 0, sizeof(*decoder));
    ZydisDecoderInit(zydis, modes[mode].machine, modes[mode].stack);
    ZydisDecoderEnableMode(zydis, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(zydis, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    ZydisDecoderEnableMode(zydis, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    bool model = vcpu && vcpu->model;
    ZydisDecoderEnableMode(zydis, ZYDIS_DECODER_MODE_LZCNT, !model || x86_has(vcpu, FEATURE_LZCNT));
    ZydisDecoderEnableMode(zydis, ZYDIS_DECODER_MODE_TZCNT, !model || x86_has(vcpu, FEATURE_BMI1));
}

static void decode_register(struct insn_operand *out, ZydisRegister reg)
{
    out->reg = (uint8_t)ZydisRegisterGetId(reg);
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
        out->kind = OPERAND_GPR;
        /* Ids 4 to 7 are AH..BH, 8 and up SPL..R15B, as Zydis counts. */
        if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
            out->high = true;
            out->reg = (uint8_t)(reg - ZYDIS_REGISTER_AH);
        } else {
            out->reg = (uint8_t)(reg < ZYDIS_REGISTER_AH ? reg - ZYDIS_REGISTER_AL : reg - ZYDIS_REGISTER_SPL + 4);
        }
        break;
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        out->kind = OPERAND_GPR;
        break;
    case ZYDIS_REGCLASS_SEGMENT:
        out->kind = OPERAND_SEGMENT;
        break;
    case ZYDIS_REGCLASS_CONTROL:
        out->kind = OPERAND_CONTROL;
        break;
    case ZYDIS_REGCLASS_DEBUG:
        out->kind = OPERAND_DEBUG;
        break;
    default:
        out->kind = OPERAND_OTHER;
    }
}

static uint8_t address_register(ZydisRegister reg)
{
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        return (uint8_t)ZydisRegisterGetId(reg);
    case ZYDIS_REGCLASS_IP:
        return REG_RIP;
    default:
        return REG_NONE;
    }
}

static void decode_memory(struct insn_memory *out, const ZydisDecodedOperandMem *mem)
{
    out->base = address_register(mem->base);
    out->index = address_register(mem->index);
    out->scale = mem->scale == 8 ? 3 : mem->scale == 4 ? 2 : mem->scale == 2 ? 1 : 0;
    out->segment = mem->segment == ZYDIS_REGISTER_NONE ? DS : (uint8_t)(mem->segment - ZYDIS_REGISTER_ES);
    out->disp = mem->disp.has_displacement ? mem->disp.value : 0;
}

/*
 * A SIB byte with base 5 under mod 0 means a 32-bit displacement and no base, REX.B or not (SDM2 table 2-3). Zydis 4.0.0 takes
 * R13D for a base there when the address size is 32 bits.
 */
static void correct_sib_base(struct insn_memory *out, const ZydisDecodedInstruction *z)
{
    bool sib = z->address_width != 16 && z->raw.modrm.mod == 0 && z->raw.modrm.rm == 4 && z->raw.modrm.offset;
    if (sib && z->raw.sib.base == 5) {
        out->base = REG_NONE;
        out->disp = z->raw.disp.value;
    }
}

static void decode_operand(struct insn *insn, struct insn_operand *out, const ZydisDecodedOperand *in, bool *had_immediate)
{
    out->size = (uint8_t)(in->size / 8);
    switch (in->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        decode_register(out, in->reg.value);
        break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        out->kind = OPERAND_MEMORY;
        decode_memory(&insn->memory, &in->mem);
        break;
    case ZYDIS_OPERAND_TYPE_POINTER:
        out->kind = OPERAND_FAR;
        insn->imm = in->ptr.offset;
        insn->imm2 = in->ptr.segment;
        break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        out->kind = OPERAND_IMMEDIATE;
        if (*had_immediate) {
            insn->imm2 = in->imm.value.u;
        } else {
            insn->imm = in->imm.value.u;
            insn->relative = in->imm.is_relative;
            *had_immediate = true;
        }
        break;
    default:
        break;
    }
}

static void decode_prefixes(struct insn *insn, const ZydisDecodedInstruction *z)
{
    for (unsigned i = 0; i < z->raw.prefix_count; i++)
        if (z->raw.prefixes[i].value == 0xF2 || z->raw.prefixes[i].value == 0xF3)
            insn->repeat = z->raw.prefixes[i].value;
    insn->lock = z->attributes & ZYDIS_ATTRIB_HAS_LOCK;
    insn->rex_w = z->attributes & ZYDIS_ATTRIB_HAS_REX && z->raw.rex.W;
}

/* For string instructions, whose memory operands are hidden. */
static uint8_t segment_override(ZydisInstructionAttributes attributes)
{
    if (attributes & ZYDIS_ATTRIB_HAS_SEGMENT_CS)
        return CS;
    if (attributes & ZYDIS_ATTRIB_HAS_SEGMENT_SS)
        return SS;
    if (attributes & ZYDIS_ATTRIB_HAS_SEGMENT_ES)
        return ES;
    if (attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS)
        return FS;
    return attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS ? GS : DS;
}

static enum decode_result decode_failure(ZyanStatus status)
{
    if (status == ZYDIS_STATUS_NO_MORE_DATA)
        return DECODE_MORE;
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
        return DECODE_TOO_LONG;
    return DECODE_UNDEFINED;
}

ZyanStatus decoder_records(const struct decoder *decoder, const uint8_t *bytes, size_t size, ZydisDecodedInstruction *z,
                           ZydisDecodedOperand *operands)
{
    if (decoder->templates)
        return templates_decode(decoder->templates, bytes, size, z, operands);
    return ZydisDecoderDecodeFull((const ZydisDecoder *)decoder->opaque, bytes, size, z, operands);
}

void insn_from_records(struct insn *insn, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operands, const uint8_t *bytes)
{
    memset(insn, 0, sizeof(*insn));
    insn->mnemonic = (uint16_t)z->mnemonic;
    insn->length = z->length;
    insn->operand_size = z->operand_width / 8;
    insn->address_size = z->address_width / 8;
    insn->opcode = z->opcode;
    insn->legacy = z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
    insn->opcode_map = (uint8_t)z->opcode_map;
    insn->modrm_mod = z->raw.modrm.mod;
    insn->modrm_reg = z->raw.modrm.reg;
    insn->modrm_rm = z->raw.modrm.rm;
    decode_prefixes(insn, z);
    insn->memory.base = insn->memory.index = REG_NONE;
    insn->memory.segment = DS;
    if (z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT)
        insn->memory.segment = segment_override(z->attributes);
    bool had_immediate = false;
    insn->operand_count = z->operand_count_visible < INSN_OPERANDS ? z->operand_count_visible : INSN_OPERANDS;
    for (unsigned i = 0; i < insn->operand_count; i++)
        decode_operand(insn, &insn->operand[i], &operands[i], &had_immediate);
    correct_sib_base(&insn->memory, z);
    if (z->cpu_flags) {
        insn->flags_read = z->cpu_flags->tested;
        insn->flags_written = z->cpu_flags->modified | z->cpu_flags->set_0 | z->cpu_flags->set_1 | z->cpu_flags->undefined;
    }
    memcpy(insn->bytes, bytes, insn->length);
}

enum decode_result decode(const struct decoder *decoder, const uint8_t *bytes, size_t size, struct insn *insn)
{
    if (decoder->templates && templates_insn(decoder->templates, bytes, size, insn))
        return DECODE_OK;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    ZyanStatus status = decoder_records(decoder, bytes, size, &z, operands);
    if (!ZYAN_SUCCESS(status))
        return decode_failure(status);
    insn_from_records(insn, &z, operands, bytes);
    return DECODE_OK;
}

void decode_format(const struct decoder *decoder, const uint8_t *bytes, size_t size, uint64_t rip, char *text, size_t text_size)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    const ZydisDecoder *zydis = (const ZydisDecoder *)decoder->opaque;
    ZydisFormatter formatter;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(zydis, bytes, size, &z, operands)) ||
        !ZYAN_SUCCESS(ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)) ||
        !ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, &z, operands, z.operand_count_visible, text, text_size, rip, NULL)))
        snprintf(text, text_size, "(bad)");
}
