/*
 * What an instruction is, as far as the rules ask: whether it is run natively, the CPUID features and control registers it needs, and
 * the exception class facts that Zydis has or gets wrong.
 */
#include "engine/interp/native_impl.h"

struct isa_row {
    bool known;
    uint16_t feature[2];
};

static const struct isa_row isa_rows[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
#define ISA(set, a, b) [ZYDIS_ISA_SET_##set] = { true, { FEATURE_##a, FEATURE_##b } },
#include "engine/interp/native_isa.def"
#undef ISA
};

bool native_is_x87(const ZydisDecodedInstruction *insn)
{
    return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && insn->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           ((insn->opcode >= 0xD8 && insn->opcode <= 0xDF) || insn->opcode == 0x9B);
}

bool native_is_mine(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_LFENCE: case ZYDIS_MNEMONIC_SFENCE: case ZYDIS_MNEMONIC_MFENCE: case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCH: case ZYDIS_MNEMONIC_PREFETCHWT1: case ZYDIS_MNEMONIC_CLDEMOTE:
        return true;
    case ZYDIS_MNEMONIC_PAUSE: case ZYDIS_MNEMONIC_XSETBV:
        return false;
    default:
        return native_is_x87(insn) || isa_rows[insn->meta.isa_set].known;
    }
}

/*
 * Is it of SSE or AVX, as control registers see it? By its vector or opmask registers; conversions between memory and a
 * general or MMX register name none, but are. BMI is VEX-encoded, but is not.
 */
bool native_touches_vectors(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    if (insn->mnemonic == ZYDIS_MNEMONIC_VZEROALL || insn->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER ||
        insn->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || insn->mnemonic == ZYDIS_MNEMONIC_STMXCSR ||
        insn->mnemonic == ZYDIS_MNEMONIC_VLDMXCSR || insn->meta.category == ZYDIS_CATEGORY_CONVERT || insn->mnemonic == ZYDIS_MNEMONIC_VSTMXCSR)
        return true;
    for (unsigned i = 0; i < insn->operand_count; i++) {
        if (operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(operands[i].reg.value)) {
        case ZYDIS_REGCLASS_XMM: case ZYDIS_REGCLASS_YMM: case ZYDIS_REGCLASS_ZMM: case ZYDIS_REGCLASS_MASK:
            return true;
        default:
            break;
        }
    }
    return false;
}

static bool touches_mmx(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    bool mmx = insn->mnemonic == ZYDIS_MNEMONIC_EMMS;
    for (unsigned i = 0; i < insn->operand_count; i++)
        mmx |= operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
               ZydisRegisterGetClass(operands[i].reg.value) == ZYDIS_REGCLASS_MMX;
    return mmx;
}

static bool is_avx(const ZydisDecodedInstruction *insn, bool vectors)
{
    return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX || (insn->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && vectors);
}

static bool is_avx512(const ZydisDecodedInstruction *insn)
{
    return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX || insn->meta.isa_ext == ZYDIS_ISA_EXT_AVX512VEX;
}

/* The model offers it. Hints are no-operations where it does not, so they are always offered. */
bool native_offered(const struct vcpu *vcpu, const ZydisDecodedInstruction *insn, bool vectors)
{
    const struct isa_row *row = &isa_rows[insn->meta.isa_set];
    if (native_is_x87(insn) && !x86_has(vcpu, FEATURE_FPU))
        return false;
    if (row->known && !(x86_has(vcpu, row->feature[0]) && x86_has(vcpu, row->feature[1])))
        return insn->meta.isa_set == ZYDIS_ISA_SET_SSE_PREFETCH;
    if (insn->mnemonic == ZYDIS_MNEMONIC_MOVDIR64B && !x86_has(vcpu, FEATURE_MOVDIR64B))
        return false;
    if (is_avx(insn, vectors) && !x86_has(vcpu, FEATURE_AVX))
        return false;
    return !is_avx512(insn) || x86_has(vcpu, FEATURE_AVX512F);
}

/* x87 instructions that do not look for a pending exception (SDM1 §8.3.12 "Waiting vs. Non-waiting Instructions"). */
static bool is_waiting(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_FNINIT: case ZYDIS_MNEMONIC_FNCLEX: case ZYDIS_MNEMONIC_FNSTCW: case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FENI8087_NOP:
    case ZYDIS_MNEMONIC_FDISI8087_NOP: case ZYDIS_MNEMONIC_FSETPM287_NOP:
        return false;
    default:
        return true;
    }
}

/* Control instructions, which the processor does not note as the last one (SDM1 §8.1.8); MMX it does not note either. */
static bool is_control(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FWAIT:
        return true;
    default:
        return !native_is_x87(insn) || !is_waiting(insn);
    }
}

/* SDM1 §13.1 to §13.5, SDM3 §13.1: control-register conditions of each group. */
void native_set_checks(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, bool vectors)
{
    bool mmx = touches_mmx(insn, operands);
    stub->not_real = insn->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && insn->machine_mode != ZYDIS_MACHINE_MODE_LONG_64;
    if (is_avx(insn, vectors)) {
        stub->cr4_need = CR4_OSXSAVE;
        stub->xcr0_need = XCR0_SSE | XCR0_AVX | (is_avx512(insn) ? XCR0_AVX512 : 0);
        stub->cr0_nm = CR0_TS;
    } else if (native_is_x87(insn)) {
        stub->cr0_nm = insn->opcode == 0x9B ? 0 : CR0_EM | CR0_TS;
    } else if (vectors || mmx) {
        stub->cr0_ud = CR0_EM;
        stub->cr0_nm = CR0_TS;
        stub->cr4_need = vectors ? CR4_OSFXSR : 0;
    }
    stub->x87 = native_is_x87(insn) || mmx;
    stub->mmx = mmx;
    stub->waiting = stub->x87 && is_waiting(insn);
    stub->control = is_control(insn);
}

/* Instructions that read MXCSR or raise SIMD floating-point exceptions: SDM2 tables 2-17 and 2-18, classes 2, 3 and 11. */
bool native_uses_mxcsr(const ZydisDecodedInstruction *insn)
{
    switch (insn->meta.isa_set) {       /* complex products are classed as integer by Zydis */
    case ZYDIS_ISA_SET_AVX512_FP16_128: case ZYDIS_ISA_SET_AVX512_FP16_256: case ZYDIS_ISA_SET_AVX512_FP16_512:
    case ZYDIS_ISA_SET_AVX512_FP16_SCALAR:
        return true;
    default:
        break;
    }
    switch (insn->mnemonic) {           /* these heed MXCSR.DAZ, but raise nothing */
    case ZYDIS_MNEMONIC_VRCP14PS: case ZYDIS_MNEMONIC_VRCP14PD: case ZYDIS_MNEMONIC_VRCP14SS: case ZYDIS_MNEMONIC_VRCP14SD:
    case ZYDIS_MNEMONIC_VRSQRT14PS: case ZYDIS_MNEMONIC_VRSQRT14PD: case ZYDIS_MNEMONIC_VRSQRT14SS:
    case ZYDIS_MNEMONIC_VRSQRT14SD: case ZYDIS_MNEMONIC_VFPCLASSPS: case ZYDIS_MNEMONIC_VFPCLASSPD:
    case ZYDIS_MNEMONIC_VFPCLASSSS: case ZYDIS_MNEMONIC_VFPCLASSSD:
        return true;
    default:
        break;
    }
    switch (insn->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE2: case ZYDIS_EXCEPTION_CLASS_SSE3: case ZYDIS_EXCEPTION_CLASS_AVX2:
    case ZYDIS_EXCEPTION_CLASS_AVX3: case ZYDIS_EXCEPTION_CLASS_AVX11: case ZYDIS_EXCEPTION_CLASS_E2:
    case ZYDIS_EXCEPTION_CLASS_E2NF: case ZYDIS_EXCEPTION_CLASS_E3: case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E11: case ZYDIS_EXCEPTION_CLASS_E11NF:
        return true;
    case ZYDIS_EXCEPTION_CLASS_NONE:
        return insn->meta.category == ZYDIS_CATEGORY_CONVERT;
    default:
        return false;
    }
}

/* #GP(0) for a misaligned operand (SDM2 table 2-15: type 1; SDM1 §4.1.1 for legacy SSE). */
bool native_must_be_aligned(const ZydisDecodedInstruction *insn, unsigned size)
{
    if (insn->mnemonic == ZYDIS_MNEMONIC_CVTPD2PI || insn->mnemonic == ZYDIS_MNEMONIC_CVTTPD2PI)
        return true;            /* no class in Zydis */
    switch (insn->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1: case ZYDIS_EXCEPTION_CLASS_AVX1: case ZYDIS_EXCEPTION_CLASS_E1:
    case ZYDIS_EXCEPTION_CLASS_E1NF:
        return size >= 16;
    case ZYDIS_EXCEPTION_CLASS_SSE2: case ZYDIS_EXCEPTION_CLASS_SSE4:
        break;
    default:
        return false;
    }
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return false;
    default:
        return size == 16 && insn->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
    }
}

/* Classes whose memory faults are not suppressed for masked-out elements (SDM2 §2.8.1, the "NF" types). */
bool native_suppresses_faults(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {           /* the processor reads all of it, whatever class Zydis names */
    case ZYDIS_MNEMONIC_VDBPSADBW: case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB: case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
        return false;
    default:
        break;
    }
    switch (insn->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF: case ZYDIS_EXCEPTION_CLASS_E2NF: case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF: case ZYDIS_EXCEPTION_CLASS_E5NF: case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF: case ZYDIS_EXCEPTION_CLASS_E10NF: case ZYDIS_EXCEPTION_CLASS_E11NF:
        return false;
    default:
        return true;
    }
}
