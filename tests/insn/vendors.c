#include "vendors.h"

bool vendors_differ(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    bool long64 = insn->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
    bool repeat = insn->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    switch (insn->mnemonic) {
    /* flags that the manual leaves undefined */
    case ZYDIS_MNEMONIC_AAA: case ZYDIS_MNEMONIC_AAS: case ZYDIS_MNEMONIC_DAA: case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_AAM: case ZYDIS_MNEMONIC_AAD:
    /* F3 90 with REX.B exchanges registers; F2 or F3 before LOOPcc counts */
    case ZYDIS_MNEMONIC_PAUSE: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE:
    /* AMD's own */
    case ZYDIS_MNEMONIC_CLZERO: case ZYDIS_MNEMONIC_MONITORX: case ZYDIS_MNEMONIC_MWAITX:
    /* where the last x87 instruction was is only kept with an exception that waits */
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FNSAVE:
    /* might unmask exceptions: see random_fpu */
    case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FRSTOR:
    /* which of its bytes a fault names */
    case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_MASKMOVQ:
        return true;
    /* 0F 0D with a register is undefined */
    case ZYDIS_MNEMONIC_NOP:
        return insn->opcode_map == ZYDIS_OPCODE_MAP_0F && insn->opcode == 0x0D;
    /* the return address is in memory after a fault for the target */
    case ZYDIS_MNEMONIC_CALL:
        if (!insn->raw.imm[0].is_relative)
            return true;
        break;
    /* Intel's set the flags of MXCSR before they store, so that they stay behind a fault */
    case ZYDIS_MNEMONIC_VCVTPS2PH:
        if (operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
            return true;
        break;
    /* 66 MOVSXD reads four bytes */
    case ZYDIS_MNEMONIC_MOVSXD:
        if (insn->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
            return true;
        break;
    default:
        break;
    }
    /* across a page that faults: 80 bits are stored in two parts, a gather has not cleared its mask as far */
    bool stores80 = insn->mnemonic == ZYDIS_MNEMONIC_FBSTP || (insn->mnemonic == ZYDIS_MNEMONIC_FSTP && operands[0].size == 80);
    if (stores80 || insn->meta.category == ZYDIS_CATEGORY_AVX2GATHER ||
        insn->meta.category == ZYDIS_CATEGORY_GATHER || insn->meta.category == ZYDIS_CATEGORY_SCATTER)
        return true;
    /* flags after a fault in the middle, the upper halves of registers after nothing was done */
    if (insn->meta.category == ZYDIS_CATEGORY_STRINGOP && (repeat || insn->address_width == 32))
        return true;
    switch (insn->meta.isa_set) {
    case ZYDIS_ISA_SET_SSE4A: case ZYDIS_ISA_SET_SVM: case ZYDIS_ISA_SET_SNP: case ZYDIS_ISA_SET_AMD_INVLPGB:
    case ZYDIS_ISA_SET_RDPRU: case ZYDIS_ISA_SET_MCOMMIT:
        return true;
    default:
        break;
    }
    /* stores of MM registers leave TOP alone */
    if (operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(operands[1].reg.value) == ZYDIS_REGCLASS_MMX)
        return true;
    /* a near branch with an operand size prefix cuts RIP to 16 bits */
    return insn->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && long64 && (insn->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
}

bool vendors_differ_unmasked(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_FST: case ZYDIS_MNEMONIC_FSTP: case ZYDIS_MNEMONIC_FIST: case ZYDIS_MNEMONIC_FISTP:
    case ZYDIS_MNEMONIC_FISTTP: case ZYDIS_MNEMONIC_FBSTP:
        return true;
    default:
        return false;
    }
}
