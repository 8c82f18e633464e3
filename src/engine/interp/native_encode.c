/*
 * Writing an instruction anew for its stub, which always runs in 64-bit mode: segment and address-size prefixes go, the
 * memory operand becomes [RSI], general registers become those that a stub may use, and prefixes that only chose the operand
 * size are chosen again. Vector, opmask, x87 and MMX register numbers and the immediate stay. (SDM2 §2.1 to §2.7.)
 */
#include "engine/interp/native_impl.h"

enum { HOST_RSI = 6 };

unsigned native_register(const ZydisDecodedOperand *operand)
{
    return (unsigned)ZydisRegisterGetId(operand->reg.value) & 31;
}

static bool is_gpr(const ZydisDecodedOperand *operand)
{
    if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return false;
    ZydisRegisterClass class = ZydisRegisterGetClass(operand->reg.value);
    return class == ZYDIS_REGCLASS_GPR8 || class == ZYDIS_REGCLASS_GPR16 || class == ZYDIS_REGCLASS_GPR32 ||
           class == ZYDIS_REGCLASS_GPR64;
}

/* RAX, RCX and RDX stand for themselves, as implicit operands need; others take R8 to R11 in the order they come. */
static bool add_gpr(struct encoding *out, const ZydisDecodedOperand *operand, uint8_t *host)
{
    ZydisRegister reg = operand->reg.value;
    unsigned guest;
    bool high = reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
    if (high)
        guest = (unsigned)(reg - ZYDIS_REGISTER_AH);
    else if (ZydisRegisterGetClass(reg) != ZYDIS_REGCLASS_GPR8)
        guest = (unsigned)ZydisRegisterGetId(reg) & 15;
    else
        guest = reg >= ZYDIS_REGISTER_SPL ? (unsigned)(reg - ZYDIS_REGISTER_SPL) + 4 : (unsigned)(reg - ZYDIS_REGISTER_AL);
    bool written = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    if (high && written)
        return false;
    unsigned taken = 8;
    for (unsigned i = 0; i < out->slots; i++) {
        struct gpr_slot *slot = &out->slot[i];
        if (slot->guest == guest && slot->high == high) {
            slot->written |= written;
            *host = slot->host;
            return true;
        }
        taken += slot->host >= 8;
    }
    *host = (uint8_t)(guest < RBX && !high ? guest : taken);
    if (out->slots == ARRAY_SIZE(out->slot) || *host > 11)
        return false;
    out->slot[out->slots++] = (struct gpr_slot){ .guest = (uint8_t)guest, .host = *host, .high = high, .written = written };
    return true;
}

/* What ModRM.reg, ModRM.rm and VEX.vvvv shall say. */
struct fields {
    uint8_t reg, rm, vvvv;
    bool memory, any_gpr;
};

static bool collect(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, struct fields *f,
                    struct encoding *out)
{
    *f = (struct fields){ .reg = insn->raw.modrm.reg, .rm = insn->raw.modrm.rm };
    for (unsigned i = 0; i < insn->operand_count; i++) {
        const ZydisDecodedOperand *operand = &operands[i];
        f->memory |= operand->type == ZYDIS_OPERAND_TYPE_MEMORY;
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        uint8_t number = (uint8_t)native_register(operand);
        if (is_gpr(operand)) {
            f->any_gpr = true;
            if (!add_gpr(out, operand, &number))
                return false;
        }
        if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            f->reg = number;
        else if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            f->rm = number;
        else if (operand->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
            f->vvvv = number;
    }
    if (f->memory)
        f->rm = HOST_RSI;
    return true;
}

static void put(struct encoding *out, unsigned byte)
{
    out->bytes[out->length++] = (uint8_t)byte;
}

/* Does prefix 66 only choose the operand size here (it may also be part of the opcode)? */
static bool sized(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR: case ZYDIS_MNEMONIC_LZCNT: case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD: case ZYDIS_MNEMONIC_MOVBE:
    case ZYDIS_MNEMONIC_CRC32:
        return true;
    default:
        return false;
    }
}

static void put_escape(struct encoding *out, ZydisOpcodeMap map)
{
    if (map != ZYDIS_OPCODE_MAP_DEFAULT)
        put(out, 0x0F);
    if (map == ZYDIS_OPCODE_MAP_0F38)
        put(out, 0x38);
    if (map == ZYDIS_OPCODE_MAP_0F3A)
        put(out, 0x3A);
}

static void put_legacy(const ZydisDecodedInstruction *insn, const struct fields *f, struct encoding *out)
{
    bool operand_size = sized(insn->mnemonic) && insn->operand_width == 16, wide = false;
    unsigned repeat = 0;
    for (unsigned i = 0; i < insn->raw.prefix_count; i++) {
        uint8_t value = insn->raw.prefixes[i].value;
        bool mandatory = insn->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY;
        if (value == 0x66 && mandatory)
            operand_size = true;
        if ((value == 0xF2 || value == 0xF3) && mandatory)
            repeat = value;
    }
    if (insn->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
        wide = insn->raw.rex.W;
    if (operand_size)
        put(out, 0x66);
    if (repeat)
        put(out, repeat);
    unsigned rex = (wide ? 8u : 0) | (f->reg & 8 ? 4u : 0) | (f->rm & 8 ? 1u : 0);
    if (rex)
        put(out, 0x40 | rex);
    put_escape(out, insn->opcode_map);
    put(out, insn->opcode);
}

/* Outside 64-bit mode W is ignored where it would choose a 64-bit general register or its memory twin. */
static bool effective_w(const ZydisDecodedInstruction *insn, const struct fields *f, bool w)
{
    if (insn->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
        return w;
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_VMOVD: case ZYDIS_MNEMONIC_VPINSRD: case ZYDIS_MNEMONIC_VPEXTRD: case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTSI2SD: case ZYDIS_MNEMONIC_VCVTSI2SH: case ZYDIS_MNEMONIC_VCVTUSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SD: case ZYDIS_MNEMONIC_VCVTUSI2SH:
        return false;
    default:
        return w && !f->any_gpr;
    }
}

static void put_vex(const ZydisDecodedInstruction *insn, const struct fields *f, struct encoding *out)
{
    put(out, 0xC4);
    put(out, (f->reg & 8 ? 0 : 0x80u) | 0x40 | (f->rm & 8 ? 0 : 0x20u) | (unsigned)insn->opcode_map);
    put(out, (effective_w(insn, f, insn->raw.vex.W) ? 0x80u : 0) | (~f->vvvv & 15u) << 3 | (unsigned)insn->raw.vex.L << 2 |
             insn->raw.vex.pp);
    put(out, insn->opcode);
}

static void put_evex(const ZydisDecodedInstruction *insn, const struct fields *f, struct encoding *out)
{
    bool x = !f->memory && (f->rm & 16);
    put(out, 0x62);
    put(out, (f->reg & 8 ? 0 : 0x80u) | (x ? 0 : 0x40u) | (f->rm & 8 ? 0 : 0x20u) | (f->reg & 16 ? 0 : 0x10u) |
             (insn->raw.evex.mmm & 7u));
    put(out, (effective_w(insn, f, insn->raw.evex.W) ? 0x80u : 0) | (~f->vvvv & 15u) << 3 | 4 | insn->raw.evex.pp);
    put(out, (unsigned)insn->raw.evex.z << 7 | (unsigned)insn->raw.evex.L2 << 6 | (unsigned)insn->raw.evex.L << 5 |
             (unsigned)insn->raw.evex.b << 4 | (f->vvvv & 16 ? 0 : 8u) | insn->raw.evex.aaa);
    put(out, insn->opcode);
}

/* ModRM, then whatever follows the address: immediates, and the register in an immediate's high bits (/is4). */
static void put_rest(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, const uint8_t *bytes,
                     const struct fields *f, struct encoding *out)
{
    if (!(insn->attributes & ZYDIS_ATTRIB_HAS_MODRM))
        return;
    unsigned at = insn->raw.modrm.offset + 1u;
    if (insn->attributes & ZYDIS_ATTRIB_HAS_SIB)
        at = insn->raw.sib.offset + 1u;
    if (insn->raw.disp.size)
        at = insn->raw.disp.offset + insn->raw.disp.size / 8u;
    unsigned mod = f->memory ? 0 : 3;
    put(out, mod << 6 | (f->reg & 7u) << 3 | (f->rm & 7u));
    bool clear = false;     /* bit 7 of /is4 is ignored outside 64-bit mode */
    for (unsigned i = 0; i < insn->operand_count; i++)
        clear |= operands[i].encoding == ZYDIS_OPERAND_ENCODING_IS4 && insn->machine_mode != ZYDIS_MACHINE_MODE_LONG_64;
    while (at < insn->length && out->length < sizeof(out->bytes))
        put(out, bytes[at++] & (clear ? 0x7Fu : 0xFFu));
}

bool native_encode(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, const uint8_t *bytes,
                   struct encoding *out)
{
    struct fields f;
    *out = (struct encoding){ 0 };
    if (!collect(insn, operands, &f, out))
        return false;
    switch (insn->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        put_legacy(insn, &f, out);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        put_vex(insn, &f, out);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        put_evex(insn, &f, out);
        break;
    default:
        return false;
    }
    put_rest(insn, operands, bytes, &f, out);
    return true;
}
