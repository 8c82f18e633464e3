/* What a stub needs to know of its operands: the state it moves, its memory operand, and which handler keeps to a mask. */
#include "engine/interp/native_impl.h"

/* --- the plan --- */

static unsigned flag_mask(ZyanU32 zydis)
{
    return (unsigned)zydis & RFLAGS_STATUS;     /* Zydis's bits are the register's */
}

static void plan_flags(const ZydisDecodedInstruction *insn, struct stub *stub, struct stub_plan *plan)
{
    const ZydisAccessedFlags *flags = insn->cpu_flags;
    if (!flags)
        return;
    unsigned written = flag_mask(flags->modified | flags->set_0 | flags->set_1 | flags->undefined);
    unsigned sure = flag_mask(flags->modified | flags->set_0 | flags->set_1);
    if (insn->mnemonic == ZYDIS_MNEMONIC_SHLD || insn->mnemonic == ZYDIS_MNEMONIC_SHRD)
        sure = 0;           /* a count of zero leaves all of them */
    plan->flags_out = written;
    plan->flags_in = flag_mask(flags->tested) || (written && sure != RFLAGS_STATUS);
    stub->public.flags_read = plan->flags_in ? RFLAGS_STATUS : 0;
    stub->public.flags_written = written ? RFLAGS_STATUS : 0;
}

static void plan_operand(const ZydisDecodedOperand *operand, bool evex, struct stub_plan *plan)
{
    bool written = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    unsigned n = native_register(operand), width = 16;
    switch (ZydisRegisterGetClass(operand->reg.value)) {
    case ZYDIS_REGCLASS_ZMM:
        width = 64;
        break;
    case ZYDIS_REGCLASS_YMM:
        width = 32;
        break;
    case ZYDIS_REGCLASS_XMM:
        break;
    case ZYDIS_REGCLASS_MASK:
        plan->masks |= (uint8_t)BIT(n & 7);
        plan->masks_written |= written ? (uint8_t)BIT(n & 7) : 0;
        return;
    default:
        return;
    }
    plan->vectors |= (uint32_t)BIT(n);
    plan->vectors_written |= written ? (uint32_t)BIT(n) : 0;
    if (evex)
        width = 64;
    if (plan->load_width < width)
        plan->load_width = (uint8_t)width;
}

void native_plan(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, struct stub *stub,
                       struct stub_plan *plan)
{
    bool evex = insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    for (unsigned i = 0; i < insn->operand_count; i++)
        if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER)
            plan_operand(&operands[i], evex, plan);
    if (insn->mnemonic == ZYDIS_MNEMONIC_VP2INTERSECTD || insn->mnemonic == ZYDIS_MNEMONIC_VP2INTERSECTQ)
        plan->masks_written |= (uint8_t)(plan->masks_written << 1 | plan->masks_written >> 1);   /* a pair */
    plan->full_store = insn->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY;
    plan->x87 = stub->handler == native_run_environment;
    plan->mxcsr = stub->mxcsr;
    plan_flags(insn, stub, plan);
}

/* --- the memory operand --- */

static uint8_t gpr_of(ZydisRegister reg)
{
    if (reg == ZYDIS_REGISTER_NONE)
        return NO_REGISTER;
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR16: case ZYDIS_REGCLASS_GPR32: case ZYDIS_REGCLASS_GPR64:
        return (uint8_t)ZydisRegisterGetId(reg);
    default:
        return NO_REGISTER;
    }
}

static uint8_t segment_of(ZydisRegister reg)
{
    return reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS ? (uint8_t)(reg - ZYDIS_REGISTER_ES) : DS;
}

static void set_address(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operand)
{
    bool mode64 = insn->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
    stub->address = (struct stub_address){
        .disp = operand->mem.disp.has_displacement ? operand->mem.disp.value : 0,
        .mask = insn->address_width == 64 ? ~0ull : BIT(insn->address_width) - 1,
        .base = gpr_of(operand->mem.base),
        .index = gpr_of(operand->mem.index),
        .scale = operand->mem.scale,
        .seg = segment_of(operand->mem.segment),
        .rip_relative = operand->mem.base == ZYDIS_REGISTER_RIP || operand->mem.base == ZYDIS_REGISTER_EIP,
        .mode64 = mode64,
    };
    /* SIB base 5 under mod 0: a displacement and no base. Zydis 4.0.0 takes R13D for one with 32-bit addresses and REX.B. */
    if ((insn->attributes & ZYDIS_ATTRIB_HAS_SIB) && insn->raw.sib.base == 5 && insn->raw.modrm.mod == 0) {
        stub->address.base = NO_REGISTER;
        stub->address.disp = insn->raw.disp.value;
    }
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY && operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
        stub->detail.index = (uint8_t)((unsigned)ZydisRegisterGetId(operand->mem.index) & 31);
}

void native_set_operands(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    struct stub_detail *d = &stub->detail;
    d->reg = d->rm = d->vvvv = d->index = NO_REGISTER;
    d->mnemonic = (uint16_t)insn->mnemonic;
    d->operand_width = insn->operand_width;
    d->evex = insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    d->rex_w = insn->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 && (insn->attributes & ZYDIS_ATTRIB_HAS_REX) && insn->raw.rex.W;
    for (unsigned i = 0; i < insn->operand_count; i++) {
        const ZydisDecodedOperand *o = &operands[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && !stub->size) {
            stub->size = (uint16_t)((o->size + 7) / 8);
            stub->reads = o->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
            stub->writes = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
            d->element = (uint8_t)(o->element_size / 8);
            set_address(stub, insn, o);
        } else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            uint8_t number = (uint8_t)native_register(o);
            if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
                d->reg = number;
            else if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
                d->rm = number;
            else if (o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
                d->vvvv = number;
        }
    }
    stub->aligned = native_must_be_aligned(insn, stub->size);
}

/* --- AVX-512 masking and its kin: which handler keeps to the enabled elements --- */

static unsigned broadcast_count(ZydisBroadcastMode mode)
{
    switch (mode) {
    case ZYDIS_BROADCAST_MODE_1_TO_2:
        return 2;
    case ZYDIS_BROADCAST_MODE_1_TO_4:
        return 4;
    case ZYDIS_BROADCAST_MODE_1_TO_8:
        return 8;
    case ZYDIS_BROADCAST_MODE_1_TO_16:
        return 16;
    default:
        return 32;
    }
}

/*
 * Elements under the mask: those of the destination (of the sources where that is an opmask register), but no more than
 * memory holds or is broadcast to: narrowing conversions leave the destination's upper part alone.
 */
static void set_masking(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    struct stub_detail *d = &stub->detail;
    const ZydisDecodedOperand *governed = &operands[0];
    bool to_mask = governed->type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   ZydisRegisterGetClass(governed->reg.value) == ZYDIS_REGCLASS_MASK;
    unsigned memory_elements = d->element ? stub->size / d->element : 1;
    d->mask = insn->raw.evex.aaa;
    for (unsigned i = 1; to_mask && i < insn->operand_count; i++)
        if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(operands[i].reg.value) != ZYDIS_REGCLASS_MASK)
            governed = &operands[i];
    unsigned count = governed->element_count;
    if (insn->raw.evex.b)
        count = broadcast_count(insn->avx.broadcast.mode);
    else if (!insn->avx.broadcast.is_static && count > memory_elements)
        count = memory_elements;
    d->mask_count = (uint8_t)count;
    d->mask_group = 1;
    d->whole = !native_suppresses_faults(insn);
    if (insn->mnemonic == ZYDIS_MNEMONIC_VPSHUFBITQMB) {        /* masks bytes, reads quadwords */
        d->mask_count = (uint8_t)stub->size;
        d->mask_group = 8;
    }
}

static native_handler *vsib_handler(struct stub *stub, const ZydisDecodedInstruction *insn)
{
    struct stub_detail *d = &stub->detail;
    bool scatter = insn->meta.category == ZYDIS_CATEGORY_SCATTER;
    switch (insn->meta.category) {
    case ZYDIS_CATEGORY_GATHER: case ZYDIS_CATEGORY_AVX2GATHER: case ZYDIS_CATEGORY_SCATTER:
        break;
    default:
        return native_run_undefined;
    }
    /* VPGATHERDx, VGATHERDPx: 32-bit indices; VPGATHERQx, VGATHERQPx: 64-bit ones. The opcode's bit 0 says which. */
    d->index_element = insn->opcode & 1 ? 8 : 4;
    bool wide = d->evex ? insn->raw.evex.W : insn->raw.vex.W;
    d->element = wide ? 8 : 4;
    d->mask = d->evex ? insn->raw.evex.aaa : 0;
    unsigned full = insn->avx.vector_length / 8u;
    unsigned count = full / (d->element > d->index_element ? d->element : d->index_element);
    d->mask_count = (uint8_t)count;
    d->vector_bytes = (uint8_t)full;
    return scatter ? native_run_scatter : native_run_gather;
}

static bool is_half_conversion(ZydisMnemonic mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_VCVTPH2PS || mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH;
}

native_handler *native_pick_handler(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    for (unsigned i = 0; i < insn->operand_count; i++)
        if (operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            return vsib_handler(stub, insn);
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return native_run_maskmov;
    case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU: case ZYDIS_MNEMONIC_MASKMOVQ:
        return native_run_maskmovdqu;
    default:
        break;
    }
    if (!stub->size)
        return stub->x87 ? native_run_x87 : native_run_register;
    if (insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && insn->raw.evex.aaa &&
        (stub->writes || native_suppresses_faults(insn))) {
        set_masking(stub, insn, operands);
        if (is_half_conversion(insn->mnemonic))
            return native_run_half;
        bool compress = insn->meta.category == ZYDIS_CATEGORY_COMPRESS || insn->meta.category == ZYDIS_CATEGORY_EXPAND;
        return compress ? native_run_compress : native_run_masked;
    }
    if (is_half_conversion(insn->mnemonic))
        return native_run_half;
    return stub->x87 ? native_run_x87 : native_run_memory;
}
