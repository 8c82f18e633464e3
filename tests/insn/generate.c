/*
 * Generator of cases. Random bytes over the opcode maps, decoded by Zydis; what the host cannot judge is left out (the table
 * below says why), memory operands are steered into the data area, branches forward to an instruction's start.
 * A small share is left as random as it came, so that faults are met too.
 */
#include "generate.h"
#include "vendors.h"

#include <string.h>

#include "base/base.h"

uint64_t next_random(uint64_t *state)
{
    /* splitmix64: every seed is a good one */
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* What the host's processor does not do as the guest's, at user level, and why. */
static bool host_has_its_own(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    /* results that differ by time, processor or by what the host kernel set up */
    case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_RDRAND: case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_RDPID: case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_SGDT: case ZYDIS_MNEMONIC_SIDT: case ZYDIS_MNEMONIC_SLDT: case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW: case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW: case ZYDIS_MNEMONIC_RDFSBASE: case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_RDPKRU: case ZYDIS_MNEMONIC_WRPKRU:
    /* they would change what the harness lives on */
    case ZYDIS_MNEMONIC_WRFSBASE: case ZYDIS_MNEMONIC_WRGSBASE: case ZYDIS_MNEMONIC_LFS: case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LDS: case ZYDIS_MNEMONIC_LES: case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_SYSCALL: case ZYDIS_MNEMONIC_SYSENTER: case ZYDIS_MNEMONIC_SYSRET: case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_INT: case ZYDIS_MNEMONIC_INT1: case ZYDIS_MNEMONIC_INT3: case ZYDIS_MNEMONIC_INTO:
    case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ:
    /* the components of extended state that the host's kernel has turned on */
    case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64: case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64: case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS: case ZYDIS_MNEMONIC_XRSTORS64:
    /* not offered to guests yet though this host may have them */
    case ZYDIS_MNEMONIC_XBEGIN: case ZYDIS_MNEMONIC_XEND: case ZYDIS_MNEMONIC_XABORT: case ZYDIS_MNEMONIC_XTEST:
    case ZYDIS_MNEMONIC_UMWAIT: case ZYDIS_MNEMONIC_TPAUSE: case ZYDIS_MNEMONIC_UMONITOR:
    case ZYDIS_MNEMONIC_ENQCMD: case ZYDIS_MNEMONIC_ENQCMDS: case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_SERIALIZE: case ZYDIS_MNEMONIC_XSUSLDTRK: case ZYDIS_MNEMONIC_XRESLDTRK:
    case ZYDIS_MNEMONIC_PTWRITE: case ZYDIS_MNEMONIC_GETSEC: case ZYDIS_MNEMONIC_ENCLU: case ZYDIS_MNEMONIC_RSM:
    case ZYDIS_MNEMONIC_MOVDIRI: case ZYDIS_MNEMONIC_MOVDIR64B: case ZYDIS_MNEMONIC_UIRET:
    case ZYDIS_MNEMONIC_VMCALL: case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_VMFUNC:
    case ZYDIS_MNEMONIC_SEAMCALL: case ZYDIS_MNEMONIC_SEAMOPS: case ZYDIS_MNEMONIC_SEAMRET: case ZYDIS_MNEMONIC_TDCALL:
    case ZYDIS_MNEMONIC_SENDUIPI: case ZYDIS_MNEMONIC_CLUI: case ZYDIS_MNEMONIC_STUI: case ZYDIS_MNEMONIC_TESTUI:
    case ZYDIS_MNEMONIC_HRESET: case ZYDIS_MNEMONIC_PCONFIG:
        return true;
    default:
        return false;
    }
}

static bool host_judges_decoded(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    if (host_has_its_own(insn->mnemonic) || insn->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false;
    switch (insn->meta.isa_set) {
    case ZYDIS_ISA_SET_AMX_BF16: case ZYDIS_ISA_SET_AMX_INT8: case ZYDIS_ISA_SET_AMX_TILE: case ZYDIS_ISA_SET_VTX:
    case ZYDIS_ISA_SET_CET: case ZYDIS_ISA_SET_KEYLOCKER: case ZYDIS_ISA_SET_KEYLOCKER_WIDE:
    case ZYDIS_ISA_SET_AVX512_FP16_128: case ZYDIS_ISA_SET_AVX512_FP16_128N: case ZYDIS_ISA_SET_AVX512_FP16_256:
    case ZYDIS_ISA_SET_AVX512_FP16_512: case ZYDIS_ISA_SET_AVX512_FP16_SCALAR:
        return false;
    default:
        break;
    }
    for (unsigned i = 0; i < insn->operand_count; i++) {
        const ZydisDecodedOperand *op = &operands[i];
        /* segment registers hold the host kernel's selectors */
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT &&
            op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            return false;
    }
    return insn->mnemonic != ZYDIS_MNEMONIC_PUSH || operands[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
           ZydisRegisterGetClass(operands[0].reg.value) != ZYDIS_REGCLASS_SEGMENT;
}

bool host_judges(const struct insn_bytes *insn)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction decoded;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    return !ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, insn->bytes, insn->length, &decoded, operands)) ||
           host_judges_decoded(&decoded, operands);
}

/* Left out of random cases; POPF, for it would change what the harness lives on, and FXSAVE and FXRSTOR have tests of their own. */
static bool left_out(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, const struct host_features *features)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
        return true;
    default:
        return !host_judges_decoded(insn, operands) || (features->amd && vendors_differ(insn, operands));
    }
}

/* Random bytes that are likely to be an instruction: prefixes, a map, an opcode, operands. */
static void random_bytes(uint64_t *random, enum code_mode mode, const struct host_features *features, uint8_t bytes[16])
{
    unsigned n = 0;
    for (unsigned i = 0; i < 16; i++)
        bytes[i] = (uint8_t)next_random(random);
    unsigned map = pick(random, 100);
    if (map >= 70 && features->avx && mode == CODE_64) {
        if (map < 85) {
            bytes[n++] = 0xC4;                                              /* VEX */
            bytes[n++] = (uint8_t)((next_random(random) & 0xE0) | (1 + pick(random, 3)));
            return;
        }
        if (map < 95 && features->avx512) {
            bytes[n++] = 0x62;                                              /* EVEX */
            bytes[n++] = (uint8_t)((next_random(random) & 0xF0) | (1 + pick(random, 3)));
            bytes[n++] = (uint8_t)(next_random(random) | 4);
            if (chance(random, 50))
                bytes[n] &= 0xF8;                                           /* no mask */
            return;
        }
    }
    if (chance(random, 20))
        bytes[n++] = 0x66;
    if (chance(random, 12))
        bytes[n++] = chance(random, 50) ? 0xF2 : 0xF3;
    if (chance(random, 3))
        bytes[n++] = 0xF0;
    if (chance(random, 3))
        bytes[n++] = 0x67;
    if (mode == CODE_64 && chance(random, 60))
        bytes[n++] = (uint8_t)(0x40 | pick(random, 16));
    if (map < 40)
        return;
    if (map < 47) {
        bytes[n++] = (uint8_t)(0xD8 + pick(random, 8));                     /* x87 */
        return;
    }
    bytes[n++] = 0x0F;
    if (map >= 64)
        bytes[n++] = chance(random, 60) ? 0x38 : 0x3A;
}

int gpr_number(ZydisRegister reg)
{
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR64:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR16:
        return ZydisRegisterGetId(reg);
    case ZYDIS_REGCLASS_GPR8: {
        int id = ZydisRegisterGetId(reg);
        return id < 4 ? id : id < 8 ? id - 4 : id - 4;
    }
    default:
        return -1;
    }
}

uint64_t data_pointer(struct making *m)
{
    if (m->aligned)
        return DATA_BASE + 0x800 + 64 * pick(&m->random, 64);
    switch (pick(&m->random, 8)) {
    case 0: return DATA_BASE + 0x1000 - pick(&m->random, 64);       /* across the two pages */
    case 1: return DATA_BASE + 0x2000 - pick(&m->random, 96);    /* towards the unmapped page */
    default: return DATA_BASE + 0x400 + pick(&m->random, 0x1800);
    }
}

static void pin(struct making *m, int reg)
{
    if (!(m->pinned >> reg & 1))
        m->test->start.gpr[reg] = data_pointer(m);
    m->pinned |= 1u << reg;
}

static void put_le(uint8_t *at, uint64_t value, unsigned size)
{
    memcpy(at, &value, size);
}

/* Small displacements, so that a pinned base stays within the data. */
static void patch_displacement(struct making *m, const ZydisDecodedInstruction *insn, uint8_t *bytes)
{
    unsigned size = insn->raw.disp.size / 8;
    if (size <= 1)
        return;
    int64_t disp = (int64_t)pick(&m->random, 512) - 256;
    if (m->aligned)
        disp &= ~63;
    put_le(bytes + insn->raw.disp.offset, (uint64_t)disp, size);
}

/* Makes one explicit memory operand point to data; false: this instruction cannot be steered, take another. */
static bool steer(struct making *m, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op, uint8_t *bytes,
                  uint64_t rip)
{
    int base = op->mem.base == ZYDIS_REGISTER_NONE ? -1 : gpr_number(op->mem.base);
    int index = op->mem.index == ZYDIS_REGISTER_NONE ? -1 : gpr_number(op->mem.index);
    if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
        put_le(bytes + insn->raw.disp.offset, data_pointer(m) - (rip + insn->length), 4);
        return true;
    }
    if (base < 0 && index < 0) {
        if (insn->raw.disp.size >= 32)
            put_le(bytes + insn->raw.disp.offset, data_pointer(m), insn->raw.disp.size / 8);
        return insn->raw.disp.size >= 32;
    }
    bool vsib = op->mem.index != ZYDIS_REGISTER_NONE && index < 0;
    if (base < 0 || (m->written >> base & 1) || (m->small >> base & 1))
        return false;
    if (index >= 0 && (index == base || (m->written >> index & 1) || (m->pinned >> index & 1)))
        return false;
    pin(m, base);
    if (index >= 0) {
        if (!(m->small >> index & 1))
            m->test->start.gpr[index] = m->aligned ? 0 : (uint64_t)(int64_t)((int)pick(&m->random, 32) - 16);
        m->small |= 1u << index;
    }
    if (vsib) {
        uint8_t *lanes = m->test->start.zmm[ZydisRegisterGetId(op->mem.index)];
        for (unsigned i = 0; i < 64; i += 4) {
            int32_t lane = (int32_t)pick(&m->random, 64) - (i % 8 == 4 ? 64 : 0);
            if (i % 8 == 4)
                lane = lanes[i - 1] & 0x80 ? -1 : 0;
            memcpy(lanes + i, &lane, 4);
        }
    }
    patch_displacement(m, insn, bytes);
    return true;
}

/* Implicit pointers: stack, strings, XLAT, MASKMOV. */
static bool steer_implicit(struct making *m, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op)
{
    int base = gpr_number(op->mem.base);
    if (base < 0 || (m->written >> base & 1 && base != 4 && base != 6 && base != 7))
        return false;
    if (!(m->written >> base & 1))
        pin(m, base);
    if (insn->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE) &&
        !(m->written >> 1 & 1) && !(m->pinned >> 1 & 1) && !(m->small >> 1 & 1)) {
        m->test->start.gpr[1] = pick(&m->random, 40);
        m->small |= 1u << 1;
    }
    return true;
}

static void note_written(struct making *m, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands)
{
    for (unsigned i = 0; i < insn->operand_count; i++)
        if (operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER && (operands[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            int reg = gpr_number(operands[i].reg.value);
            if (reg >= 0 && reg != 4)
                m->written |= 1u << reg;
        }
}

bool make_insn(struct making *m, uint64_t rip, struct insn_bytes *out, const struct host_features *features)
{
    uint8_t bytes[16];
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    random_bytes(&m->random, m->test->mode, features, bytes);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&m->decoder, bytes, 15, &insn, operands)) || left_out(&insn, operands, features))
        return false;
    if (!chance(&m->random, 4))
        for (unsigned i = 0; i < insn.operand_count; i++) {
            const ZydisDecodedOperand *op = &operands[i];
            if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
                continue;
            if (op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT ? !steer(m, &insn, op, bytes, rip)
                                                                    : !steer_implicit(m, &insn, op))
                return false;
        }
    note_written(m, &insn, operands);
    out->length = insn.length;
    memcpy(out->bytes, bytes, insn.length);
    return true;
}

/* Relative branches go forward to the start of a later instruction (or to the end), sometimes not at all. */
static void aim_branches(struct making *m)
{
    struct test_case *test = m->test;
    for (unsigned i = 0; i < test->insn_count; i++) {
        ZydisDecodedInstruction insn;
        ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&m->decoder, test->insn[i].bytes, test->insn[i].length, &insn, operands)) ||
            !insn.raw.imm[0].is_relative)
            continue;
        unsigned target = i + 1 + pick(&m->random, test->insn_count - i), distance = 0;
        for (unsigned j = i + 1; j < target && j < test->insn_count; j++)
            distance += test->insn[j].length;
        put_le(test->insn[i].bytes + insn.raw.imm[0].offset, distance, insn.raw.imm[0].size / 8);
    }
}

uint64_t random_value(uint64_t *random)
{
    static const uint64_t corners[] = { 0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                        0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 63, 64, 31, 32 };
    switch (pick(random, 4)) {
    case 0: return corners[pick(random, ARRAY_SIZE(corners))];
    case 1: return next_random(random) >> pick(random, 64);
    default: return next_random(random);
    }
}

static void random_lanes(uint64_t *random, uint8_t lanes[64])
{
    unsigned kind = pick(random, 5);
    for (unsigned i = 0; i < 64; i += 8) {
        uint64_t value = random_value(random);
        double d = (double)(int64_t)value / 1024.0;
        float f[2] = { (float)(int32_t)value / 16.0f, (float)(int32_t)(value >> 32) };
        if (kind == 1)
            memcpy(&value, &d, 8);
        else if (kind == 2)
            memcpy(&value, f, 8);
        memcpy(lanes + i, &value, 8);
    }
}

/*
 * AMD: nothing unmasked, since there a store that will raise an x87 exception faults for its page first.
 */
static void random_fpu(uint64_t *random, const struct host_features *features, struct cpu_image *image)
{
    memset(image->fxsave, 0, sizeof(image->fxsave));
    uint16_t fcw = 0x037F, fsw = (uint16_t)((next_random(random) & 0x4700) | (pick(random, 8) << 11));
    if (chance(random, 30))
        fcw = (uint16_t)(0x0040 | (next_random(random) & 0x0F00) | (chance(random, 50) ? 0x3F : next_random(random) & 0x3F));
    if (features->amd)
        fcw |= 0x3F;
    memcpy(image->fxsave, &fcw, 2);
    memcpy(image->fxsave + 2, &fsw, 2);
    image->fxsave[4] = chance(random, 40) ? 0xFF : (uint8_t)next_random(random);
    uint32_t mxcsr = 0x1F80 | (uint32_t)(next_random(random) & 0x6000);
    if (chance(random, 20))
        mxcsr |= (uint32_t)(next_random(random) & 0x8040);
    if (chance(random, 12))
        mxcsr &= ~(uint32_t)(next_random(random) & 0x1F80);
    memcpy(image->fxsave + 24, &mxcsr, 4);
    for (unsigned i = 0; i < 8; i++) {
        long double value = (long double)(int64_t)random_value(random) / 4096;
        uint8_t *st = image->fxsave + 32 + 16 * i;
        memcpy(st, &value, 10);
        if (chance(random, 25)) {
            uint64_t mantissa = random_value(random);
            uint16_t exponent = (uint16_t)next_random(random);
            memcpy(st, &mantissa, 8);
            memcpy(st + 8, &exponent, 2);
        }
    }
}

void random_state(struct making *m, const struct host_features *features)
{
    struct cpu_image *start = &m->test->start;
    bool wide = m->test->mode == CODE_64;
    for (unsigned i = 0; i < 16; i++)
        start->gpr[i] = wide ? random_value(&m->random) : i < 8 ? (uint32_t)random_value(&m->random) : 0;
    start->rflags = 0x202 | (next_random(&m->random) & 0x8D5) | (chance(&m->random, 10) ? 0x400 : 0) |
                    (chance(&m->random, 3) && !features->amd ? 0x40000 : 0);     /* AMD's check the alignment of vectors, too */
    memset(start->zmm, 0, sizeof(start->zmm));
    memset(start->k, 0, sizeof(start->k));
    for (unsigned i = 0; i < (features->avx512 ? 32u : 16u); i++) {
        random_lanes(&m->random, start->zmm[i]);
        if (!features->avx512)
            memset(start->zmm[i] + (features->avx ? 32 : 16), 0, features->avx ? 32 : 48);
    }
    for (unsigned i = 0; features->avx512 && i < 8; i++)
        start->k[i] = random_value(&m->random);
    random_fpu(&m->random, features, start);
}

void make_run(const struct test_case *test, struct run *run)
{
    memset(run, 0, offsetof(struct run, code));
    run->mode = test->mode;
    run->start = test->start;
    run->data_seed = test->data_seed;
    for (unsigned i = 0; i < test->insn_count; i++) {
        memcpy(run->code + run->code_length, test->insn[i].bytes, test->insn[i].length);
        run->code_length += test->insn[i].length;
    }
    run->code[run->code_length++] = 0x0F;       /* UD2 */
    run->code[run->code_length++] = 0x0B;
}

void generate_case(uint64_t seed, enum code_mode mode, const struct host_features *features, struct test_case *test)
{
    struct making m = { .test = test, .random = seed };
    memset(test, 0, sizeof(*test));
    test->seed = seed;
    test->mode = mode;
    test->data_seed = next_random(&m.random) | 1;
    m.aligned = chance(&m.random, 50);
    ZydisDecoderInit(&m.decoder, mode == CODE_64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LONG_COMPAT_32,
                     mode == CODE_64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
    random_state(&m, features);
    pin(&m, 4);
    test->start.rip = CODE_BASE + 0x100 + pick(&m.random, 0x1C00);
    unsigned wanted = chance(&m.random, 40) ? 1 : 1 + pick(&m.random, INSN_MAX);
    uint64_t rip = test->start.rip;
    while (test->insn_count < wanted)
        if (make_insn(&m, rip, &test->insn[test->insn_count], features))
            rip += test->insn[test->insn_count++].length;
    aim_branches(&m);
}
