/*
 * The cache of stubs, and the making of one: what the instruction needs is read off Zydis's operands and the tables.
 * Stubs are found by instruction bytes and mode, so that decoding the same code again costs nothing and the number of
 * stubs is the number of different instructions.
 */
#include "engine/interp/native_impl.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { ARENA_SIZE = 16 * 1024 * 1024, STUB_COUNT = 1 << 16, HASH_SIZE = 2 * STUB_COUNT };

struct key {
    uint8_t bytes[15];
    uint8_t mode_length;        /* Zydis's machine mode, length: one byte tells instructions of each mode apart */
};

struct native_cache {
    struct native_arena arena;
    struct stub *stubs;         /* STUB_COUNT, pages come as they are used */
    struct key *keys;           /* of each stub */
    uint32_t *hash;             /* stub number + 1, 0 if empty */
    unsigned count;
};

static void *reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

struct native_cache *native_cache_create(void)
{
    struct native_cache *cache = native_signal_install() ? calloc(1, sizeof(*cache)) : NULL;
    if (!cache)
        return NULL;
    if (!arena_open(&cache->arena, ARENA_SIZE)) {
        free(cache);
        return NULL;
    }
    cache->stubs = reserve(STUB_COUNT * sizeof(*cache->stubs));
    cache->keys = reserve(STUB_COUNT * sizeof(*cache->keys));
    cache->hash = reserve(HASH_SIZE * sizeof(*cache->hash));
    if (!cache->stubs || !cache->keys || !cache->hash) {
        native_cache_destroy(cache);
        return NULL;
    }
    return cache;
}

static void release(void *p, size_t size)
{
    if (p)
        munmap(p, size);
}

void native_cache_destroy(struct native_cache *cache)
{
    if (!cache)
        return;
    native_trap.stub = NULL;
    release(cache->stubs, STUB_COUNT * sizeof(*cache->stubs));
    release(cache->keys, STUB_COUNT * sizeof(*cache->keys));
    release(cache->hash, HASH_SIZE * sizeof(*cache->hash));
    arena_close(&cache->arena);
    free(cache);
}

void native_cache_reset(struct native_cache *cache)
{
    native_trap.stub = NULL;
    cache->count = 0;
    cache->arena.used = 0;
    memset(cache->hash, 0, HASH_SIZE * sizeof(*cache->hash));
}

/* --- which instructions, and which features they need --- */

struct isa_row {
    bool known;
    uint16_t feature[2];
};

static const struct isa_row isa_rows[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
#define ISA(set, a, b) [ZYDIS_ISA_SET_##set] = { true, { FEATURE_##a, FEATURE_##b } },
#include "engine/interp/native_isa.def"
#undef ISA
};

static bool is_x87(const ZydisDecodedInstruction *insn)
{
    return insn->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && insn->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           ((insn->opcode >= 0xD8 && insn->opcode <= 0xDF) || insn->opcode == 0x9B);
}

static bool is_mine(const ZydisDecodedInstruction *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_LFENCE: case ZYDIS_MNEMONIC_SFENCE: case ZYDIS_MNEMONIC_MFENCE: case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCH: case ZYDIS_MNEMONIC_PREFETCHWT1: case ZYDIS_MNEMONIC_CLDEMOTE:
        return true;
    case ZYDIS_MNEMONIC_PAUSE: case ZYDIS_MNEMONIC_XSETBV:
        return false;
    default:
        return is_x87(insn) || isa_rows[insn->meta.isa_set].known;
    }
}

/*
 * Is it of SSE or AVX, as control registers see it? By its vector or opmask registers; conversions between memory and a
 * general or MMX register name none, but are. BMI is VEX-encoded, but is not.
 */
static bool touches_vectors(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
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
static bool offered(const struct vcpu *vcpu, const ZydisDecodedInstruction *insn, bool vectors)
{
    const struct isa_row *row = &isa_rows[insn->meta.isa_set];
    if (is_x87(insn) && !x86_has(vcpu, FEATURE_FPU))
        return false;
    if (row->known && !(x86_has(vcpu, row->feature[0]) && x86_has(vcpu, row->feature[1])))
        return insn->meta.isa_set == ZYDIS_ISA_SET_SSE_PREFETCH;
    if (insn->mnemonic == ZYDIS_MNEMONIC_MOVDIR64B && !x86_has(vcpu, FEATURE_MOVDIR64B))
        return false;
    if (is_avx(insn, vectors) && !x86_has(vcpu, FEATURE_AVX))
        return false;
    return !is_avx512(insn) || x86_has(vcpu, FEATURE_AVX512F);
}

/* SDM1 §13.1 to §13.5, SDM3 §13.1: control-register conditions of each group. */
static void set_checks(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, bool vectors)
{
    bool mmx = touches_mmx(insn, operands);
    stub->not_real = insn->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && insn->machine_mode != ZYDIS_MACHINE_MODE_LONG_64;
    if (is_avx(insn, vectors)) {
        stub->cr4_need = CR4_OSXSAVE;
        stub->xcr0_need = XCR0_SSE | XCR0_AVX | (is_avx512(insn) ? XCR0_AVX512 : 0);
        stub->cr0_nm = CR0_TS;
    } else if (is_x87(insn)) {
        stub->cr0_nm = insn->opcode == 0x9B ? 0 : CR0_EM | CR0_TS;
    } else if (vectors || mmx) {
        stub->cr0_ud = CR0_EM;
        stub->cr0_nm = CR0_TS;
        stub->cr4_need = vectors ? CR4_OSFXSR : 0;
    }
    stub->x87 = is_x87(insn) || mmx;
    stub->mmx = mmx;
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
        return !is_x87(insn) || !is_waiting(insn);
    }
}

/* Instructions that read MXCSR or raise SIMD floating-point exceptions: SDM2 tables 2-17 and 2-18, classes 2, 3 and 11. */
static bool uses_mxcsr(const ZydisDecodedInstruction *insn)
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

static void plan_state(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, struct stub *stub,
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

/* #GP(0) for a misaligned operand (SDM2 table 2-15: type 1; SDM1 §4.1.1 for legacy SSE). */
static bool must_be_aligned(const ZydisDecodedInstruction *insn, unsigned size)
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

static void set_operands(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
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
    stub->aligned = must_be_aligned(insn, stub->size);
}

/* --- AVX-512 masking and its kin: which handler keeps to the enabled elements --- */

/* Classes whose memory faults are not suppressed for masked-out elements (SDM2 §2.8.1, the "NF" types). */
static bool suppresses_faults(const ZydisDecodedInstruction *insn)
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
    d->whole = !suppresses_faults(insn);
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

static native_handler *memory_handler(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
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
        (stub->writes || suppresses_faults(insn))) {
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

/* Handlers that need no code. */
static bool is_pure_c(native_handler *handler)
{
    return handler == native_run_undefined || handler == native_run_gather || handler == native_run_scatter ||
           handler == native_run_maskmovdqu;
}

/* --- preparing --- */

static bool make_stub(struct native_cache *cache, const struct vcpu *vcpu, const ZydisDecodedInstruction *insn,
                      const ZydisDecodedOperand *operands, const uint8_t *bytes, struct stub *stub)
{
    ZydisDecodedInstruction plain = *insn;
    bool vectors = touches_vectors(insn, operands);
    *stub = (struct stub){ .length = insn->length };
    stub->handler = native_run_undefined;
    if (insn->mnemonic == ZYDIS_MNEMONIC_LZCNT || insn->mnemonic == ZYDIS_MNEMONIC_TZCNT) {
        /* Before there was LZCNT its F3 was ignored: it is BSR then. TZCNT likewise is BSF. */
        if (!offered(vcpu, insn, false)) {
            plain.raw.prefix_count = 0;
            plain.mnemonic = insn->mnemonic == ZYDIS_MNEMONIC_LZCNT ? ZYDIS_MNEMONIC_BSR : ZYDIS_MNEMONIC_BSF;
        }
    } else if (!offered(vcpu, insn, vectors)) {
        return true;
    }
    set_operands(stub, insn, operands);
    set_checks(stub, insn, operands, vectors);
    stub->waiting = stub->x87 && is_waiting(insn);
    stub->control = is_control(insn);
    stub->mxcsr = uses_mxcsr(insn) && vectors;
    stub->handler = native_special(insn->mnemonic);
    if (stub->handler && !stub->x87)
        return true;
    if (!stub->handler)
        stub->handler = memory_handler(stub, insn, operands);
    if (is_pure_c(stub->handler))
        return true;
    struct encoding encoding;
    struct stub_plan plan = { 0 };
    if (!native_encode(&plain, operands, bytes, &encoding)) {
        stub->handler = native_run_undefined;
        return true;
    }
    plan_state(insn, operands, stub, &plan);
    if (is_x87(insn)) {
        unsigned modrm = encoding.bytes[encoding.length - 1];
        stub->fop_host = (uint16_t)((insn->opcode & 7) << 8 | modrm);
        stub->fop_guest = (uint16_t)((insn->opcode & 7) << 8 | (insn->raw.modrm.mod << 6 | insn->raw.modrm.reg << 3 | insn->raw.modrm.rm));
    }
    return native_emit(&cache->arena, stub, &encoding, &plan);
}

static uint32_t hash_of(const struct key *key)
{
    uint64_t a, b;
    memcpy(&a, key->bytes, 8);
    memcpy(&b, key->bytes + 8, 8);
    a = (a ^ b * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull;
    return (uint32_t)((a ^ a >> 32) % HASH_SIZE);
}

enum native_verdict native_prepare(struct native_cache *cache, const struct vcpu *vcpu, const ZydisDecodedInstruction *insn,
                                   const ZydisDecodedOperand *operands, const uint8_t *bytes,
                                   const struct native_stub **stub)
{
    if (!is_mine(insn))
        return NATIVE_NOT_MINE;
    struct key key = { .mode_length = (uint8_t)(insn->machine_mode << 4 | insn->length) };
    memcpy(key.bytes, bytes, insn->length);
    uint32_t at = hash_of(&key);
    for (; cache->hash[at]; at = (at + 1) % HASH_SIZE) {
        uint32_t number = cache->hash[at] - 1;
        if (memcmp(&cache->keys[number], &key, sizeof(key)) == 0) {
            *stub = &cache->stubs[number].public;
            return NATIVE_OK;
        }
    }
    if (cache->count == STUB_COUNT || !make_stub(cache, vcpu, insn, operands, bytes, &cache->stubs[cache->count]))
        return NATIVE_FULL;
    cache->keys[cache->count] = key;
    cache->hash[at] = ++cache->count;
    *stub = &cache->stubs[cache->count - 1].public;
    return NATIVE_OK;
}

/* --- executing --- */

/* Tells #UD from #NM after the quick test in native_execute failed; #UD comes first (SDM2 table 2-15). */
static __attribute__((noinline)) bool check_fault(struct vcpu *vcpu, const struct stub *stub)
{
    if ((vcpu->cr0 & stub->cr0_ud) || (~vcpu->cr4 & stub->cr4_need) || (~vcpu->xcr0 & stub->xcr0_need) ||
        (stub->not_real && vcpu->mode <= MODE_V86))
        return x86_raise(vcpu, VEC_UD);
    return x86_raise(vcpu, VEC_NM);
}

bool native_execute(struct vcpu *vcpu, const struct native_stub *public)
{
    const struct stub *stub = stub_of(public);
    if (unlikely((vcpu->cr0 & (stub->cr0_ud | stub->cr0_nm)) | (~vcpu->cr4 & stub->cr4_need) |
                 (~vcpu->xcr0 & stub->xcr0_need) | (stub->not_real && vcpu->mode <= MODE_V86)))
        return check_fault(vcpu, stub);
    counter_add(&vcpu->counters, COUNTER_native_insns, 1);
    return stub->handler(vcpu, stub);
}
