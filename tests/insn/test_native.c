/*
 * Native execution against the host processor: random instructions of every group on random registers, the same bytes run by
 * native_execute and, unchanged, by the host on the whole state. Registers, flags, memory, faults and what a fault leaves
 * behind must agree bit for bit. Guest linear addresses are the host addresses of RAM, so that the same registers serve both.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>

#include "../unit/mmu_fixture.h"
#include "engine/interp/native.h"
#include "native_reference.h"
#include "vendors.h"
#include "x86/xstate.h"

/* --- the setting --- */

enum { RAM_SIZE = 4 * 1024 * 1024, DATA_PAGES = 3, TABLES = 0x100000, DATA = 0x10000 };

struct setting {
    struct fixture *f;
    struct native_cache *cache;
    struct cpu_model *model;
    ZydisDecoder decoder;
    uint8_t *data;              /* host address, and guest linear address, of two present pages and an absent one */
    unsigned runs[ZYDIS_ISA_SET_MAX_VALUE + 1];
    unsigned faults[32], compared, failed;
};

static struct setting *set_up(void)
{
    struct setting *s = calloc(1, sizeof(*s));
    s->f = fixture_create(RAM_SIZE);
    s->cache = native_cache_create();
    if (!s->cache)
        fail_msg("no stub cache");
    ZydisDecoderInit(&s->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    uint64_t next = TABLES + PAGE_SIZE;
    s->data = ram_host(s->f->vcpu.ram, DATA);
    for (unsigned i = 0; i < DATA_PAGES; i++)
        fixture_map(s->f, TABLES, &next, (uintptr_t)s->data + i * PAGE_SIZE,
                    (DATA + i * PAGE_SIZE) | (i < 2 ? PTE_P | PTE_W | PTE_U : 0), 0);
    mprotect(s->data - PAGE_SIZE, PAGE_SIZE, PROT_NONE);
    mprotect(s->data + 2 * PAGE_SIZE, PAGE_SIZE, PROT_NONE);
    fixture_long_mode(s->f, TABLES);
    struct vcpu *vcpu = &s->f->vcpu;
    struct error err;
    vcpu->model = s->model = x86_model_create("host", 1, NS_PER_SECOND, &err);
    vcpu->cr0 |= CR0_NE | CR0_MP | CR0_AM;
    vcpu->cpl = 3;
    vcpu->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    vcpu->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512;
    vcpu->mode = MODE_LONG64;
    vcpu->rip = 0x123456789000;
    mmu_mode_changed(vcpu);
    return s;
}

static void tear_down(struct setting *s)
{
    native_cache_destroy(s->cache);
    x86_model_destroy(s->model);
    fixture_destroy(s->f);
    free(s);
}

/* Numbers that matter to floating point: zeros, ones, infinities, NaNs, denormals, extremes; else anything. */
static uint64_t interesting(struct fixture *f)
{
    static const uint64_t value[] = {
        0, 0x8000000000000000, 0x3FF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000001,
        0x7FF0000000000001, 1, 0x000FFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF, 0x3F8000003F800000, 0x7F8000007FC00000,
        0x0000000180000000, 0x7F7FFFFF00800000, 0x7F800001FF800000, 0x3C003C007C00FC00, 0xFFFFFFFFFFFFFFFF,
    };
    return fixture_chance(f, 2) ? value[fixture_below(f, ARRAY_SIZE(value))] : fixture_random(f);
}

static void random_x87(struct fixture *f, struct fpu *fpu)
{
    memset(fpu->fxsave, 0, sizeof(fpu->fxsave));
    uint16_t fcw = fixture_chance(f, 4) ? 0x0040 | (fixture_random(f) & 0x0F3F) : 0x037F | (fixture_random(f) & 0x0C00);
    uint16_t fsw = fixture_random(f) & 0x7F3F;
    if (!fixture_chance(f, 8))
        fsw &= fcw | ~0x3F;     /* nothing pending */
    if (fsw & ~fcw & 0x3F)
        fsw |= 0x8080;
    memcpy(fpu->fxsave + IMAGE_FCW, &fcw, 2);
    memcpy(fpu->fxsave + IMAGE_FSW, &fsw, 2);
    fpu->fxsave[IMAGE_FTW] = fixture_chance(f, 2) ? 0xFF : (uint8_t)fixture_random(f);
    uint64_t fip = fixture_random(f) >> 17, fdp = fixture_random(f) >> 17;
    uint16_t fop = fixture_random(f) & 0x7FF;
    memcpy(fpu->fxsave + IMAGE_FIP, &fip, 8);
    memcpy(fpu->fxsave + IMAGE_FDP, &fdp, 8);
    memcpy(fpu->fxsave + IMAGE_FOP, &fop, 2);
    for (unsigned i = 0; i < 8; i++) {
        static const uint16_t exponents[] = { 0, 0x3FFF, 0x4000, 0x7FFF, 0xFFFF, 0xBFFF, 0x3C00, 0x403E, 0x7FFE, 1 };
        uint64_t mantissa = interesting(f) | (fixture_chance(f, 8) ? 0 : BIT(63));
        uint16_t exponent = exponents[fixture_below(f, ARRAY_SIZE(exponents))];
        memcpy(fpu->fxsave + IMAGE_ST + i * 16, &mantissa, 8);
        memcpy(fpu->fxsave + IMAGE_ST + i * 16 + 8, &exponent, 2);
    }
}

static void random_state(struct setting *s)
{
    struct fixture *f = s->f;
    struct vcpu *vcpu = &f->vcpu;
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = interesting(f);
    vcpu->rflags = RFLAGS_FIXED | RFLAGS_IF | (fixture_random(f) & RFLAGS_STATUS) | (fixture_chance(f, 8) && !__builtin_cpu_is("amd") ? RFLAGS_AC : 0);     /* AMD's check vectors, too */
    mmu_privilege_changed(vcpu);
    bool wide = __builtin_cpu_supports("avx512f");          /* else the reference cannot have what lies above, and there is nothing there */
    memset(vcpu->fpu.zmm, 0, sizeof(vcpu->fpu.zmm));
    for (unsigned i = 0; i < (wide ? 32 : 16); i++)
        for (unsigned j = 0; j < (wide ? 8 : 4); j++) {
            uint64_t v = interesting(f);
            memcpy(vcpu->fpu.zmm[i] + j * 8, &v, 8);
        }
    for (unsigned i = 0; i < 8; i++)
        vcpu->fpu.k[i] = fixture_chance(f, 4) ? 0 : fixture_random(f) & fixture_random(f);
    random_x87(f, &vcpu->fpu);
    uint32_t mxcsr = fixture_chance(f, 4) ? fixture_random(f) & 0xFFFF : 0x1F80 | (fixture_random(f) & 0xE07F);
    if (!fixture_chance(f, 4))
        mxcsr |= 0x1F80;
    fpu_set_mxcsr(&vcpu->fpu, mxcsr);
    for (unsigned i = 0; i < 2 * PAGE_SIZE; i += 8) {
        uint64_t v = i % 512 ? fixture_random(f) : interesting(f);
        memcpy(s->data + i, &v, 8);
    }
    vcpu->pending = (struct event){ 0 };
}

/* --- random encodings --- */

static unsigned put_modrm(struct fixture *f, uint8_t *bytes, unsigned n)
{
    unsigned mod = fixture_chance(f, 2) ? 3 : (unsigned)fixture_below(f, 3);
    unsigned modrm = mod << 6 | (fixture_random(f) & 0x3F);
    bytes[n++] = (uint8_t)modrm;
    for (unsigned i = 0; i < 7; i++)            /* SIB, displacement, immediate: as many as it takes */
        bytes[n++] = (uint8_t)fixture_random(f);
    return n;
}

static unsigned legacy(struct fixture *f, uint8_t *bytes)
{
    static const uint8_t prefix[] = { 0, 0x66, 0xF2, 0xF3 };
    unsigned n = 0;
    uint8_t p = prefix[fixture_below(f, 4)];
    if (fixture_chance(f, 16))
        bytes[n++] = 0x66;
    if (p)
        bytes[n++] = p;
    if (fixture_chance(f, 2))
        bytes[n++] = 0x40 | (fixture_random(f) & 15);
    bytes[n++] = 0x0F;
    unsigned map = fixture_below(f, 4);
    if (map >= 2)
        bytes[n++] = map == 2 ? 0x38 : 0x3A;
    bytes[n++] = (uint8_t)fixture_random(f);
    return put_modrm(f, bytes, n);
}

static unsigned vex(struct fixture *f, uint8_t *bytes)
{
    unsigned n = 0;
    bytes[n++] = 0xC4;
    bytes[n++] = (uint8_t)((fixture_random(f) & 0xE0) | (1 + fixture_below(f, 3)));
    bytes[n++] = (uint8_t)(fixture_random(f) | (fixture_chance(f, 3) ? 0x78 : 0));
    bytes[n++] = (uint8_t)fixture_random(f);
    return put_modrm(f, bytes, n);
}

static unsigned evex(struct fixture *f, uint8_t *bytes)
{
    static const uint8_t map[] = { 1, 2, 3, 5, 6 };
    unsigned n = 0;
    bytes[n++] = 0x62;
    bytes[n++] = (uint8_t)((fixture_random(f) & 0xF0) | map[fixture_below(f, 5)]);
    bytes[n++] = (uint8_t)(fixture_random(f) | 4 | (fixture_chance(f, 3) ? 0x78 : 0));
    bytes[n++] = (uint8_t)(fixture_random(f) | (fixture_chance(f, 3) ? 8 : 0));
    bytes[n++] = (uint8_t)fixture_random(f);
    return put_modrm(f, bytes, n);
}

static unsigned x87(struct fixture *f, uint8_t *bytes)
{
    bytes[0] = (uint8_t)(0xD8 + fixture_below(f, 8));
    return put_modrm(f, bytes, 1);
}

static unsigned mmx(struct fixture *f, uint8_t *bytes)
{
    bytes[0] = 0x0F;
    bytes[1] = (uint8_t)(0x60 + fixture_below(f, 0xA0));
    return put_modrm(f, bytes, 2);
}

/* FXSAVE, FXRSTOR, XSAVE, XRSTOR, XSAVEOPT, XSAVEC, FNSTENV, FLDENV, FNSAVE, FRSTOR at [RSI]. */
static unsigned areas(struct fixture *f, uint8_t *bytes)
{
    static const uint8_t insn[][3] = {
        { 2, 0xAE, 0x06 }, { 2, 0xAE, 0x0E }, { 2, 0xAE, 0x26 }, { 2, 0xAE, 0x2E }, { 2, 0xAE, 0x36 }, { 2, 0xC7, 0x26 },
        { 1, 0xD9, 0x36 }, { 1, 0xD9, 0x26 }, { 1, 0xDD, 0x36 }, { 1, 0xDD, 0x26 },
    };
    const uint8_t *pick = insn[fixture_below(f, ARRAY_SIZE(insn))];
    unsigned n = 0;
    if (pick[0] == 1 && fixture_chance(f, 2))
        bytes[n++] = 0x66;
    if (fixture_chance(f, 2))
        bytes[n++] = 0x48;
    if (pick[0] == 2)
        bytes[n++] = 0x0F;
    bytes[n++] = pick[1];
    bytes[n++] = pick[2];
    return n;
}

/* --- one case --- */

struct instruction {
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[16];
    bool area;                  /* saves or restores state in a memory area */
};

/*
 * What an AMD host cannot judge: of areas what holds where the last x87 instruction was, or AVX-512 state, which has other places
 * there; which byte of a masked store a fault names.
 */
static bool unknown_to_amd(const struct instruction *i)
{
    switch (i->insn.mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64: case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD:
        return true;
    default:
        return vendors_differ(&i->insn, i->operands) || vendors_differ_unmasked(&i->insn);
    }
}

/* What the two cannot share: RSP, addresses relative to RIP, state that user code may not change. Area: see `areas`. */
static bool unsuitable(const struct instruction *i)
{
    if (__builtin_cpu_is("amd") && unknown_to_amd(i))
        return true;
    switch (i->insn.mnemonic) {
    case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC: case ZYDIS_MNEMONIC_XSAVEC64: case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
        return !i->area;
    case ZYDIS_MNEMONIC_XSAVES: case ZYDIS_MNEMONIC_XSAVES64: case ZYDIS_MNEMONIC_XRSTORS: case ZYDIS_MNEMONIC_XRSTORS64:
    case ZYDIS_MNEMONIC_XGETBV: case ZYDIS_MNEMONIC_RDPKRU: case ZYDIS_MNEMONIC_WRPKRU: case ZYDIS_MNEMONIC_MOVDIR64B:
        return true;
    default:
        break;
    }
    for (unsigned n = 0; n < i->insn.operand_count; n++) {
        const ZydisDecodedOperand *o = &i->operands[n];
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetLargestEnclosing(i->insn.machine_mode, o->reg.value) == ZYDIS_REGISTER_RSP)
            return true;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP || o->mem.base == ZYDIS_REGISTER_RSP ||
             o->mem.segment >= ZYDIS_REGISTER_FS || i->insn.address_width != 64 || o->mem.base == ZYDIS_REGISTER_NONE ||
             o->mem.base == o->mem.index))
            return true;
    }
    return false;
}

static bool generate(struct setting *s, unsigned (*encode)(struct fixture *, uint8_t *), struct instruction *i)
{
    memset(i->bytes, 0, sizeof(i->bytes));
    i->area = encode == areas;
    encode(s->f, i->bytes);
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&s->decoder, i->bytes, 15, &i->insn, i->operands)) && !unsuitable(i);
}

static void random_vsib(struct setting *s, const ZydisDecodedOperand *o)
{
    uint8_t *index = s->f->vcpu.fpu.zmm[ZydisRegisterGetId(o->mem.index)];
    for (unsigned i = 0; i < 64; i += 4) {      /* dwords; as qwords every odd one is the high half */
        int32_t v = (int32_t)fixture_below(s->f, 400) - 200;
        memcpy(index + i, &v, 4);
    }
    if (fixture_chance(s->f, 2))
        for (unsigned i = 0; i < 64; i += 8) {
            int64_t v = (int64_t)fixture_below(s->f, 400) - 200;
            memcpy(index + i, &v, 8);
        }
}

/* Points the memory operand into the data: anywhere, aligned half the time, often at the last bytes before the absent page. */
static void aim(struct setting *s, const struct instruction *i)
{
    struct vcpu *vcpu = &s->f->vcpu;
    for (unsigned n = 0; n < i->insn.operand_count; n++) {
        const ZydisDecodedOperand *o = &i->operands[n];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        uint64_t target = (uintptr_t)s->data + 256 + fixture_below(s->f, 2 * PAGE_SIZE - 512);
        if (fixture_chance(s->f, 4))
            target = (uintptr_t)s->data + 2 * PAGE_SIZE - fixture_below(s->f, 80);
        else if (fixture_chance(s->f, 6))
            target = (uintptr_t)s->data + PAGE_SIZE - fixture_below(s->f, 80);
        if (fixture_chance(s->f, 2))
            target &= ~63ull;
        uint64_t index = 0;
        if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
            random_vsib(s, o);
        } else if (o->mem.index != ZYDIS_REGISTER_NONE) {
            index = fixture_below(s->f, 1000) - 500;
            vcpu->gpr[ZydisRegisterGetId(o->mem.index)] = index;
        }
        uint64_t disp = o->mem.disp.has_displacement ? (uint64_t)o->mem.disp.value : 0;
        vcpu->gpr[ZydisRegisterGetId(o->mem.base)] = target - disp - index * o->mem.scale;
    }
}

/* A plausible image to restore from, and masks that both processors can follow. */
static void prepare_area(struct setting *s)
{
    struct fixture *f = s->f;
    struct vcpu *vcpu = &f->vcpu;
    uint8_t *area = (uint8_t *)vcpu->gpr[RSI];
    if ((uintptr_t)area - (uintptr_t)s->data > 2 * PAGE_SIZE - 4096)
        area = (uint8_t *)(vcpu->gpr[RSI] = (uintptr_t)s->data + 64 * fixture_below(f, 64));
    vcpu->fpu.k[1] |= 1;        /* initial or not is a matter of content here, of history on the host */
    struct fpu other;
    uint64_t header[8] = { 0 };
    random_x87(f, &other);
    uint32_t mxcsr = fixture_random(f) & (fixture_chance(f, 8) ? 0x1FFFF : 0xFFFF);
    memcpy(area, other.fxsave, IMAGE_MXCSR);
    memcpy(area + IMAGE_ST, other.fxsave + IMAGE_ST, IMAGE_XMM - IMAGE_ST);
    memcpy(area + IMAGE_MXCSR, &mxcsr, 4);
    header[0] = fixture_random(f) & 0xE7;
    if (fixture_chance(f, 2)) {
        header[1] = BIT(63) | (fixture_random(f) & 0xE7);
        if (!fixture_chance(f, 4))
            header[1] |= header[0];
    }
    if (fixture_chance(f, 8))
        header[fixture_below(f, 8)] |= BIT(fixture_below(f, 8) + 50);
    memcpy(area + IMAGE_BYTES, header, sizeof(header));
    vcpu->gpr[RAX] = (vcpu->gpr[RAX] & ~0xFFFFFFFFull) | (fixture_random(f) & 0xE7);
    vcpu->gpr[RDX] &= ~0xFFFFFFFFull;
}

static unsigned expected_vector(const struct reference_fault *fault, const struct instruction *i, const struct vcpu *before)
{
    switch (fault->signal) {
    case SIGFPE: {
        bool x87 = i->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->insn.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
        bool mmx = i->insn.mnemonic == ZYDIS_MNEMONIC_EMMS;
        for (unsigned n = 0; n < i->insn.operand_count; n++)
            mmx |= i->operands[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   ZydisRegisterGetClass(i->operands[n].reg.value) == ZYDIS_REGCLASS_MMX;
        return x87 || (mmx && fpu_exception_pending(&before->fpu)) ? VEC_MF : VEC_XM;
    }
    case SIGSEGV:
        return fault->code == SEGV_MAPERR || fault->code == SEGV_ACCERR ? VEC_PF : VEC_GP;
    case SIGBUS:                /* Linux also has it for #SS of a non-canonical address */
        return fault->code == BUS_ADRALN ? VEC_AC : VEC_SS;
    default:
        return VEC_UD;
    }
}

static const char *difference(const struct vcpu *a, const struct vcpu *b, char *text)
{
    for (unsigned i = 0; i < 16; i++)
        if (i != RSP && a->gpr[i] != b->gpr[i])
            return sprintf(text, "gpr %u: host %lx, stub %lx", i, a->gpr[i], b->gpr[i]), text;
    if ((a->rflags ^ b->rflags) & RFLAGS_STATUS)
        return sprintf(text, "flags: host %lx, stub %lx", a->rflags & RFLAGS_STATUS, b->rflags & RFLAGS_STATUS), text;
    for (unsigned i = 0; i < 32; i++)
        for (unsigned j = 0; j < 64; j++)
            if (a->fpu.zmm[i][j] != b->fpu.zmm[i][j])
                return sprintf(text, "zmm%u byte %u: host %02x, stub %02x", i, j, a->fpu.zmm[i][j], b->fpu.zmm[i][j]), text;
    for (unsigned i = 0; i < 8; i++)
        if (a->fpu.k[i] != b->fpu.k[i])
            return sprintf(text, "k%u: host %lx, stub %lx", i, a->fpu.k[i], b->fpu.k[i]), text;
    for (unsigned i = 0; i < IMAGE_XMM; i++)
        if ((i < IMAGE_FOP || i >= IMAGE_MXCSR) && (i < IMAGE_MXCSR_MASK || i >= IMAGE_ST) && a->fpu.fxsave[i] != b->fpu.fxsave[i])
            return sprintf(text, "fxsave byte %u: host %02x, stub %02x", i, a->fpu.fxsave[i], b->fpu.fxsave[i]), text;
    return NULL;
}

/*
 * FIP, FDP and FOP: the host's show the reference's code; the guest's must show its own. AMD's processors save and restore them only
 * with an exception that waits.
 */
static const char *pointer_difference(const struct vcpu *host, const struct vcpu *stub, char *text)
{
    if (__builtin_cpu_is("amd"))
        return NULL;
    uint64_t fip[2], fdp[2];
    memcpy(&fip[0], host->fpu.fxsave + IMAGE_FIP, 8);
    memcpy(&fip[1], stub->fpu.fxsave + IMAGE_FIP, 8);
    memcpy(&fdp[0], host->fpu.fxsave + IMAGE_FDP, 8);
    memcpy(&fdp[1], stub->fpu.fxsave + IMAGE_FDP, 8);
    uint64_t want = fip[0] == reference_address() ? stub->rip : fip[0];
    if (fip[1] != want)
        return sprintf(text, "FIP: host %lx, stub %lx, not %lx", fip[0], fip[1], want), text;
    if (fdp[0] != fdp[1])
        return sprintf(text, "FDP: host %lx, stub %lx", fdp[0], fdp[1]), text;
    if (memcmp(host->fpu.fxsave + IMAGE_FOP, stub->fpu.fxsave + IMAGE_FOP, 2) != 0)
        return sprintf(text, "FOP: host %02x%02x, stub %02x%02x", host->fpu.fxsave[7], host->fpu.fxsave[6],
                       stub->fpu.fxsave[7], stub->fpu.fxsave[6]), text;
    return NULL;
}

static const char *memory_difference(const uint8_t *host, const uint8_t *stub, unsigned size, char *text)
{
    for (unsigned i = 0; i < size; i++)
        if (host[i] != stub[i])
            return sprintf(text, "memory at %x: host %02x, stub %02x", i, host[i], stub[i]), text;
    return "";
}

static void report(struct setting *s, const struct instruction *i, const char *what)
{
    ZydisFormatter formatter;
    char text[128];
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    ZydisFormatterFormatInstruction(&formatter, &i->insn, i->operands, i->insn.operand_count_visible, text, sizeof(text), 0, NULL);
    if (++s->failed <= 60) {
        printf("    ");
        for (unsigned n = 0; n < i->insn.length; n++)
            printf("%02x", i->bytes[n]);
        printf("  %s  (%s): %s\n", text, ZydisISASetGetString(i->insn.meta.isa_set), what);
    }
}

static void run_case(struct setting *s, const struct instruction *i)
{
    static _Alignas(64) struct vcpu host;
    static uint8_t before[2 * PAGE_SIZE], after[2 * PAGE_SIZE];
    struct vcpu *vcpu = &s->f->vcpu;
    const struct native_stub *stub;
    char text[200];
    enum native_verdict verdict = native_prepare(s->cache, vcpu, &i->insn, i->operands, i->bytes, &stub);
    if (verdict == NATIVE_FULL) {
        native_cache_reset(s->cache);
        return;
    }
    if (verdict != NATIVE_OK)
        return;
    random_state(s);
    aim(s, i);
    if (i->area)
        prepare_area(s);
    host = *vcpu;
    memcpy(before, s->data, sizeof(before));
    struct reference_fault fault = reference_run(&host, i->bytes, i->insn.length);
    memcpy(after, s->data, sizeof(after));
    memcpy(s->data, before, sizeof(before));
    unsigned vector = fault.signal ? expected_vector(&fault, i, vcpu) : 0;
    bool ok = native_execute(vcpu, stub);
    native_sync(vcpu);
    s->runs[i->insn.meta.isa_set]++;
    s->compared++;
    s->faults[vector]++;
    if (ok != !fault.signal)
        report(s, i, (sprintf(text, "host %s %u, stub %s %u", fault.signal ? "faults" : "runs", vector, ok ? "runs" : "faults", vcpu->pending.vector), text));
    else if (!ok && vcpu->pending.vector != vector)
        report(s, i, (sprintf(text, "host fault %u, stub fault %u", vector, vcpu->pending.vector), text));
    else if (vector == VEC_PF && !i->area && vcpu->pending.payload != fault.address)
        report(s, i, (sprintf(text, "CR2: host %lx, stub %lx", fault.address, vcpu->pending.payload), text));
    else if (!(i->area && vector) && (difference(&host, vcpu, text) || pointer_difference(&host, vcpu, text)))     /* a restore that faults may be half done */
        report(s, i, text);
    else if (memcmp(after, s->data, sizeof(after)) != 0)
        report(s, i, memory_difference(after, s->data, sizeof(after), text));
}

/* FIP as the guest would see it after the reference ran. */
static void translate_fip(struct vcpu *host, uint64_t rip)
{
    uint64_t fip;
    memcpy(&fip, host->fpu.fxsave + IMAGE_FIP, 8);
    if (fip == reference_address())
        memcpy(host->fpu.fxsave + IMAGE_FIP, &rip, 8);
}

/*
 * Several instructions one after the other, on x87 state that stays in the processor between them; the host goes through
 * memory each time. Compared at the end, or at the first fault.
 */
static void run_sequence(struct setting *s, unsigned (*const encode[])(struct fixture *, uint8_t *), unsigned encoders)
{
    static _Alignas(64) struct vcpu host;
    static uint8_t original[2 * PAGE_SIZE], after[2 * PAGE_SIZE];
    struct vcpu *vcpu = &s->f->vcpu;
    struct instruction i;
    const struct native_stub *stub;
    char text[200];
    const uint64_t start = vcpu->rip;
    bool ok = true;
    random_state(s);
    host = *vcpu;
    for (unsigned n = 0; n < 12 && ok; n++) {
        if (!generate(s, encode[fixture_below(s->f, encoders)], &i) ||
            native_prepare(s->cache, vcpu, &i.insn, i.operands, i.bytes, &stub) != NATIVE_OK)
            continue;
        if (i.insn.meta.category == ZYDIS_CATEGORY_XSAVE || i.insn.meta.category == ZYDIS_CATEGORY_XSAVEOPT)
            continue;           /* would need masks that both processors can follow */
        aim(s, &i);
        memcpy(host.gpr, vcpu->gpr, sizeof(host.gpr));
        vcpu->rip = start + n * 16;
        memcpy(original, s->data, sizeof(original));
        struct reference_fault fault = reference_run(&host, i.bytes, i.insn.length);
        translate_fip(&host, vcpu->rip);
        memcpy(after, s->data, sizeof(after));
        memcpy(s->data, original, sizeof(original));
        ok = native_execute(vcpu, stub);
        s->compared++;
        if (ok != !fault.signal)
            report(s, &i, (sprintf(text, "in a sequence: host signal %d, stub fault %u", fault.signal, vcpu->pending.vector), text));
        else if (ok && memcmp(after, s->data, sizeof(after)) != 0)
            report(s, &i, memory_difference(after, s->data, sizeof(after), text));
    }
    native_sync(vcpu);
    if (!fpu_exception_pending(&host.fpu))      /* whose opcode it is, is known for sure while its exception is pending */
        memcpy(host.fpu.fxsave + IMAGE_FOP, vcpu->fpu.fxsave + IMAGE_FOP, 2);
    if (difference(&host, vcpu, text) || pointer_difference(&host, vcpu, text))
        report(s, &i, text);
    vcpu->rip = start;
}

static unsigned long scale(void)
{
    const char *text = getenv("DOPPEL_NATIVE_CASES");
    return text ? strtoul(text, NULL, 0) : 60000;
}

static unsigned judge(const char *name, unsigned (*encode)(struct fixture *, uint8_t *), uint64_t seed, unsigned effort)
{
    struct setting *s = set_up();
    struct instruction i;
    unsigned kinds = 0;
    s->f->seed += seed * 0x1234567;
    for (unsigned long n = 0; n < scale() * effort; n++)
        if (generate(s, encode, &i))
            run_case(s, &i);
    for (unsigned n = 0; n <= ZYDIS_ISA_SET_MAX_VALUE; n++)
        kinds += s->runs[n] != 0;
    printf("%s: %u compared, %u instruction sets, %u failed; #UD %u #GP %u #PF %u #MF %u #SS %u #AC %u #XM %u\n", name, s->compared,
           kinds, s->failed, s->faults[VEC_UD], s->faults[VEC_GP], s->faults[VEC_PF], s->faults[VEC_MF], s->faults[VEC_SS], s->faults[VEC_AC],
           s->faults[VEC_XM]);
    unsigned failed = s->failed;
    tear_down(s);
    return failed;
}

static unsigned judge_sequences(uint64_t seed)
{
    static unsigned (*const encode[])(struct fixture *, uint8_t *) = { x87, x87, x87, x87, mmx, legacy, areas };
    struct setting *s = set_up();
    s->f->seed += seed * 0x1234567;
    for (unsigned long n = 0; n < scale() / 4; n++)
        run_sequence(s, encode, ARRAY_SIZE(encode));
    printf("sequences: %u compared, %u failed\n", s->compared, s->failed);
    unsigned failed = s->failed;
    tear_down(s);
    return failed;
}

/* No cmocka here: it keeps the signals for itself that this test is about. */
int main(int argc, char **argv)
{
    unsigned failed = 0;
    uint64_t seed = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
    reference_init();
    failed += judge("legacy SSE and integer", legacy, seed + 1, 4);
    failed += judge("MMX", mmx, seed + 2, 1);
    failed += judge("x87", x87, seed + 3, 1);
    failed += judge("VEX", vex, seed + 4, 8);
    failed += judge("EVEX", evex, seed + 5, 30);
    failed += judge("areas", areas, seed + 6, 1);
    failed += judge_sequences(seed + 7);
    return failed != 0;
}
