/*
 * A guest's instruction, written anew with other registers and another memory operand (SDM2 §2.1 to §2.7): the prefixes that
 * choose segment and address size go, those that are part of the opcode or choose the operand size stay.
 */
#include "engine/dbt/plan.h"

/* The bits that extend register numbers. */
struct extension {
    bool r, x, b;
};

static struct extension extension_of(unsigned reg, const struct rm *rm)
{
    struct extension e = { .r = reg & 8 };
    if (rm->kind == RM_REG || rm->kind == RM_MEMORY)
        e.b = rm->base != HOST_NONE && (rm->base & 8);
    if (rm->kind == RM_MEMORY)
        e.x = rm->index != HOST_NONE && (rm->index & 8);
    return e;
}

/* Byte registers 4 to 7 are SPL to DIL only behind a REX prefix. */
static bool names_byte_register(const struct planned *p)
{
    for (unsigned i = 0; i < p->z.operand_count_visible; i++)
        if (plan_is_gpr(&p->operand[i]) && p->operand[i].size == 8)
            return true;
    return false;
}

static void put_legacy(struct emitter *e, const struct planned *p, unsigned opcode, unsigned reg, const struct rm *rm)
{
    const ZydisDecodedInstruction *z = &p->z;
    struct extension x = extension_of(reg, rm);
    bool operand_size = z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE;
    unsigned repeat = 0, rex = 0;
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        uint8_t value = z->raw.prefixes[i].value;
        bool mandatory = z->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY;
        operand_size |= mandatory && value == 0x66;
        if (mandatory && (value == 0xF2 || value == 0xF3))
            repeat = value;
    }
    if (z->attributes & ZYDIS_ATTRIB_HAS_REX)
        rex = z->raw.rex.W ? 8 : 0;
    rex |= (x.r ? 4 : 0) | (x.x ? 2 : 0) | (x.b ? 1 : 0);
    if (rm->kind == RM_VCPU)
        emit8(e, 0x65);
    if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        emit8(e, 0xF0);
    if (operand_size)
        emit8(e, 0x66);
    if (repeat)
        emit8(e, repeat);
    if (rex || names_byte_register(p))
        emit8(e, 0x40 | rex);
    if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        emit8(e, 0x0F);
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F38)
        emit8(e, 0x38);
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F3A)
        emit8(e, 0x3A);
    emit8(e, opcode);
}

static void put_vex(struct emitter *e, const struct planned *p, unsigned reg, unsigned vvvv, const struct rm *rm)
{
    const ZydisDecodedInstruction *z = &p->z;
    struct extension x = extension_of(reg, rm);
    emit8(e, 0xC4);
    emit8(e, (x.r ? 0 : 0x80u) | (x.x ? 0 : 0x40u) | (x.b ? 0 : 0x20u) | (unsigned)z->opcode_map);
    emit8(e, (z->raw.vex.W ? 0x80u : 0) | (~vvvv & 15u) << 3 | (unsigned)z->raw.vex.L << 2 | z->raw.vex.pp);
    emit8(e, z->opcode);
}

static void put_evex(struct emitter *e, const struct planned *p, unsigned reg, unsigned vvvv, const struct rm *rm)
{
    const ZydisDecodedInstruction *z = &p->z;
    struct extension x = extension_of(reg, rm);
    if (rm->kind == RM_REG)
        x.x = rm->base & 16;
    emit8(e, 0x62);
    emit8(e, (x.r ? 0 : 0x80u) | (x.x ? 0 : 0x40u) | (x.b ? 0 : 0x20u) | (reg & 16 ? 0 : 0x10u) | (z->raw.evex.mmm & 7u));
    emit8(e, (z->raw.evex.W ? 0x80u : 0) | (~vvvv & 15u) << 3 | 4 | z->raw.evex.pp);
    emit8(e, (unsigned)z->raw.evex.z << 7 | (unsigned)z->raw.evex.L2 << 6 | (unsigned)z->raw.evex.L << 5 |
             (unsigned)z->raw.evex.b << 4 | (vvvv & 16 ? 0 : 8u) | z->raw.evex.aaa);
    emit8(e, z->opcode);
}

void emit_copy(struct emitter *e, const struct planned *p, unsigned opcode, unsigned reg, unsigned vvvv, struct rm rm)
{
    unsigned after = p->op->length;
    bool wide = false;
    switch (p->z.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        put_vex(e, p, reg, vvvv, &rm);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        put_evex(e, p, reg, vvvv, &rm);
        wide = true;                    /* displacements of 8 bits are scaled there */
        break;
    default:
        put_legacy(e, p, opcode, reg, &rm);
        break;
    }
    unsigned at = p->z.raw.modrm.offset + 1u;
    if (p->z.attributes & ZYDIS_ATTRIB_HAS_SIB)
        at = p->z.raw.sib.offset + 1u;
    if (p->z.raw.disp.size)
        at = p->z.raw.disp.offset + p->z.raw.disp.size / 8u;
    emit_modrm(e, reg, &rm, after - at, wide);
    emit_bytes(e, p->bytes + at, after - at);
    if (p->z.raw.imm[0].size == 32)
        reloc_note_constant(e->relocs, e->at - (after - p->z.raw.imm[0].offset));
}
