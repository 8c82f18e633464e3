/*
 * What decides whether an instruction may run natively at all (control registers, XCR0, CPUID, mode), and that
 * code outside 64-bit mode means the same as in it.
 */
#include "../unit/mmu_fixture.h"
#include "engine/interp/native.h"
#include "x86/xstate.h"

enum { RAM_SIZE = 4 * 1024 * 1024, TABLES = 0x100000, DATA = 0x10000 };

struct setting {
    struct fixture *f;
    struct native_cache *cache;
    struct cpu_model *model;
};

static struct setting *set_up(const char *model)
{
    struct setting *s = calloc(1, sizeof(*s));
    struct error err;
    uint64_t next = TABLES + PAGE_SIZE;
    s->f = fixture_create(RAM_SIZE);
    s->cache = native_cache_create();
    s->model = x86_model_create(model, 1, NS_PER_SECOND, &err);
    assert_non_null(s->cache);
    assert_non_null(s->model);
    struct vcpu *vcpu = &s->f->vcpu;
    vcpu->model = s->model;
    for (unsigned i = 0; i < 2; i++)
        fixture_map(s->f, TABLES, &next, DATA + i * PAGE_SIZE, (DATA + i * PAGE_SIZE) | PTE_P | PTE_W, 0);
    fixture_long_mode(s->f, TABLES);
    vcpu->cr0 |= CR0_NE | CR0_MP;
    vcpu->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    vcpu->xcr0 = x86_xcr0_supported(vcpu);
    vcpu->rflags = RFLAGS_FIXED;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->seg[i] = (struct segment){ .limit = ~0u, .attr = SEG_P | SEG_S | SEG_G | SEG_DB | SEG_WRITABLE | SEG_ACCESSED };
    vcpu->seg[CS].attr = SEG_P | SEG_S | SEG_G | SEG_L | SEG_CODE | SEG_READABLE | SEG_ACCESSED;
    x86_update_mode(vcpu);
    mmu_mode_changed(vcpu);
    fpu_init_x87(&vcpu->fpu);
    fpu_set_mxcsr(&vcpu->fpu, MXCSR_INIT);
    vcpu->gpr[RSI] = vcpu->gpr[RDI] = DATA + 64;
    return s;
}

static void tear_down(struct setting *s)
{
    native_cache_destroy(s->cache);
    x86_model_destroy(s->model);
    fixture_destroy(s->f);
    free(s);
}

/* --- running one instruction --- */

enum { RAN = 256, NOT_MINE, NOT_DECODED };

static unsigned run_bytes(struct setting *s, ZydisMachineMode mode, const uint8_t *bytes, unsigned length)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    const struct native_stub *stub;
    struct vcpu *vcpu = &s->f->vcpu;
    ZydisDecoderInit(&decoder, mode, mode == ZYDIS_MACHINE_MODE_LONG_64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, length, &insn, operands)))
        return NOT_DECODED;
    if (native_prepare(s->cache, vcpu, &insn, operands, bytes, &stub) != NATIVE_OK)
        return NOT_MINE;
    vcpu->pending = (struct event){ 0 };
    bool done = native_execute(vcpu, stub);
    native_sync(vcpu);
    return done ? RAN : vcpu->pending.vector;
}
#define RUN(s, ...) run_bytes(s, ZYDIS_MACHINE_MODE_LONG_64, (const uint8_t[15]){ __VA_ARGS__ }, 15)

#define ADDPS 0x0F, 0x58, 0xC1
#define FADD 0xD8, 0xC0
#define FWAIT 0x9B
#define PADDB_MM 0x0F, 0xFC, 0xC1
#define CVTTSS2SI_MEM 0xF3, 0x0F, 0x2C, 0x06
#define VADDPS 0xC5, 0xF0, 0x58, 0xC2
#define VADDPS_ZMM 0x62, 0xF1, 0x74, 0x48, 0x58, 0xC2
#define KMOVW 0xC5, 0xF8, 0x90, 0xC9
#define BEXTR 0xC4, 0xE2, 0x78, 0xF7, 0xC1
#define VZEROUPPER 0xC5, 0xF8, 0x77
#define POPCNT 0xF3, 0x0F, 0xB8, 0xC1
#define CRC32 0xF2, 0x0F, 0x38, 0xF1, 0xC1
#define LDMXCSR 0x0F, 0xAE, 0x16
#define STMXCSR 0x0F, 0xAE, 0x1E
#define FXSAVE 0x0F, 0xAE, 0x06
#define XSAVE_INSN 0x0F, 0xAE, 0x26
#define XGETBV 0x0F, 0x01, 0xD0
#define FNSTENV 0xD9, 0x36
#define EMMS 0x0F, 0x77
#define PREFETCH 0x0F, 0x18, 0x06

static void task_switched_is_nm(void **state)
{
    struct setting *s = set_up("host");
    s->f->vcpu.cr0 |= CR0_TS;
    assert_int_equal(RUN(s, ADDPS), VEC_NM);
    assert_int_equal(RUN(s, CVTTSS2SI_MEM), VEC_NM);
    assert_int_equal(RUN(s, FADD), VEC_NM);
    assert_int_equal(RUN(s, PADDB_MM), VEC_NM);
    assert_int_equal(RUN(s, EMMS), VEC_NM);
    assert_int_equal(RUN(s, LDMXCSR), VEC_NM);
    assert_int_equal(RUN(s, FXSAVE), VEC_NM);
    assert_int_equal(RUN(s, XSAVE_INSN), VEC_NM);
    assert_int_equal(RUN(s, FNSTENV), VEC_NM);
    assert_int_equal(RUN(s, FWAIT), VEC_NM);
    assert_int_equal(RUN(s, POPCNT), RAN);
    assert_int_equal(RUN(s, CRC32), RAN);
    assert_int_equal(RUN(s, PREFETCH), RAN);
    s->f->vcpu.cr0 &= ~(uint64_t)CR0_MP;
    assert_int_equal(RUN(s, FWAIT), RAN);
    if (x86_has(&s->f->vcpu, FEATURE_AVX)) {
        assert_int_equal(RUN(s, VADDPS), VEC_NM);
        assert_int_equal(RUN(s, VZEROUPPER), VEC_NM);
        assert_int_equal(RUN(s, BEXTR), RAN);
    }
    tear_down(s);
}

static void emulation_bit_is_ud_for_sse_and_nm_for_x87(void **state)
{
    struct setting *s = set_up("host");
    s->f->vcpu.cr0 |= CR0_EM;
    assert_int_equal(RUN(s, ADDPS), VEC_UD);
    assert_int_equal(RUN(s, PADDB_MM), VEC_UD);
    assert_int_equal(RUN(s, EMMS), VEC_UD);
    assert_int_equal(RUN(s, STMXCSR), VEC_UD);
    assert_int_equal(RUN(s, FADD), VEC_NM);
    assert_int_equal(RUN(s, FXSAVE), VEC_NM);
    if (x86_has(&s->f->vcpu, FEATURE_AVX))
        assert_int_equal(RUN(s, VADDPS), RAN);
    tear_down(s);
}

static void sse_needs_osfxsr_and_mmx_does_not(void **state)
{
    struct setting *s = set_up("host");
    s->f->vcpu.cr4 &= ~(uint64_t)CR4_OSFXSR;
    assert_int_equal(RUN(s, ADDPS), VEC_UD);
    assert_int_equal(RUN(s, CVTTSS2SI_MEM), VEC_UD);
    assert_int_equal(RUN(s, LDMXCSR), VEC_UD);
    assert_int_equal(RUN(s, PADDB_MM), RAN);
    assert_int_equal(RUN(s, FADD), RAN);
    assert_int_equal(RUN(s, CRC32), RAN);
    assert_int_equal(RUN(s, FXSAVE), RAN);
    tear_down(s);
}

static void avx_needs_osxsave_and_xcr0(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    if (!x86_has(vcpu, FEATURE_AVX))
        skip();
    uint64_t all = vcpu->xcr0;
    assert_int_equal(RUN(s, VADDPS), RAN);
    vcpu->xcr0 = XCR0_X87 | XCR0_SSE;
    assert_int_equal(RUN(s, VADDPS), VEC_UD);
    assert_int_equal(RUN(s, VZEROUPPER), VEC_UD);
    assert_int_equal(RUN(s, BEXTR), RAN);
    assert_int_equal(RUN(s, ADDPS), RAN);
    if (x86_has(vcpu, FEATURE_AVX512F)) {
        vcpu->xcr0 = all;
        assert_int_equal(RUN(s, VADDPS_ZMM), RAN);
        assert_int_equal(RUN(s, KMOVW), RAN);
        vcpu->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
        assert_int_equal(RUN(s, VADDPS_ZMM), VEC_UD);
        assert_int_equal(RUN(s, KMOVW), VEC_UD);
        assert_int_equal(RUN(s, VADDPS), RAN);
    }
    vcpu->xcr0 = all;
    vcpu->cr4 &= ~(uint64_t)CR4_OSXSAVE;
    assert_int_equal(RUN(s, VADDPS), VEC_UD);
    assert_int_equal(RUN(s, XSAVE_INSN), VEC_UD);
    assert_int_equal(RUN(s, XGETBV), VEC_UD);
    tear_down(s);
}

static void masked_features_are_undefined(void **state)
{
    struct setting *s = set_up("x86-64-v1");
    struct vcpu *vcpu = &s->f->vcpu;
    assert_int_equal(RUN(s, ADDPS), RAN);
    assert_int_equal(RUN(s, POPCNT), VEC_UD);
    assert_int_equal(RUN(s, CRC32), VEC_UD);
    assert_int_equal(RUN(s, BEXTR), VEC_UD);
    assert_int_equal(RUN(s, VADDPS), VEC_UD);
    assert_int_equal(RUN(s, VADDPS_ZMM), VEC_UD);
    assert_int_equal(RUN(s, PREFETCH), RAN);
    /* Without LZCNT the same bytes are BSR, without BMI1 TZCNT is BSF: both leave the target alone for a source of 0. */
    vcpu->gpr[RCX] = 0x10;
    assert_int_equal(RUN(s, 0xF3, 0x0F, 0xBD, 0xC1), RAN);
    assert_int_equal(vcpu->gpr[RAX], 4);
    vcpu->gpr[RCX] = 0;
    assert_int_equal(RUN(s, 0xF3, 0x0F, 0xBC, 0xC1), RAN);
    assert_int_equal(vcpu->gpr[RAX], 4);
    tear_down(s);
}

static void without_osxmmexcpt_xm_is_ud(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    fpu_set_mxcsr(&vcpu->fpu, MXCSR_INIT & ~0x200u);    /* divisions by zero unmasked: 0 divided into 1 */
    const float one[4] = { 1, 1, 1, 1 };
    memcpy(vcpu->fpu.zmm[0], one, 16);
    assert_int_equal(RUN(s, 0x0F, 0x5E, 0xC1), VEC_XM);
    assert_memory_equal(vcpu->fpu.zmm[0], one, 16);
    assert_int_equal(fpu_mxcsr(&vcpu->fpu) & 0x3F, 4);
    vcpu->cr4 &= ~(uint64_t)CR4_OSXMMEXCPT;
    assert_int_equal(RUN(s, 0x0F, 0x5E, 0xC1), VEC_UD);
    tear_down(s);
}

static void a_pending_x87_exception_comes_before_the_operand(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    vcpu->fpu.fxsave[IMAGE_FCW] = 0x7B;         /* zero divide unmasked */
    vcpu->fpu.fxsave[IMAGE_FSW] = 0x84;
    vcpu->fpu.fxsave[IMAGE_FSW + 1] = 0x80;
    vcpu->gpr[RSI] = 0x500000;                  /* not mapped */
    assert_int_equal(RUN(s, 0xD9, 0x06), VEC_MF);       /* fld dword [rsi] */
    assert_int_equal(RUN(s, FWAIT), VEC_MF);
    assert_int_equal(RUN(s, EMMS), VEC_MF);
    assert_int_equal(RUN(s, 0x0F, 0x6F, 0x06), VEC_MF); /* movq mm0, [rsi] */
    assert_int_equal(RUN(s, 0xD9, 0x3E), VEC_PF);       /* fnstcw [rsi] does not wait */
    assert_int_equal(RUN(s, 0xDB, 0xE2), RAN);          /* fnclex */
    assert_int_equal(RUN(s, FWAIT), RAN);
    tear_down(s);
}

static void vex_is_undefined_in_real_mode(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    const uint8_t vaddps[15] = { VADDPS }, addps[15] = { ADDPS };
    if (!x86_has(vcpu, FEATURE_AVX))
        skip();
    vcpu->efer = 0;
    vcpu->cr0 = CR0_PE | CR0_NE;
    vcpu->seg[CS].attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE;
    x86_update_mode(vcpu);
    mmu_mode_changed(vcpu);
    assert_int_equal(run_bytes(s, ZYDIS_MACHINE_MODE_LEGACY_16, vaddps, 15), RAN);
    vcpu->cr0 = CR0_NE;
    x86_update_mode(vcpu);
    mmu_mode_changed(vcpu);
    assert_int_equal(vcpu->mode, MODE_REAL);
    unsigned result = run_bytes(s, ZYDIS_MACHINE_MODE_LEGACY_16, vaddps, 15);
    assert_int_equal(result, VEC_UD);
    assert_int_equal(run_bytes(s, ZYDIS_MACHINE_MODE_LEGACY_16, addps, 15), RAN);
    tear_down(s);
}

static void mxcsr_reserved_bits_are_refused(void **state)
{
    struct setting *s = set_up("host");
    const uint32_t bad = 0x10000, good = 0x9FC0;
    memcpy(ram_host(s->f->vcpu.ram, DATA + 64), &bad, 4);
    assert_int_equal(RUN(s, LDMXCSR), VEC_GP);
    assert_int_equal(fpu_mxcsr(&s->f->vcpu.fpu), MXCSR_INIT);
    memcpy(ram_host(s->f->vcpu.ram, DATA + 64), &good, 4);
    assert_int_equal(RUN(s, LDMXCSR), RAN);
    assert_int_equal(fpu_mxcsr(&s->f->vcpu.fpu), good);
    tear_down(s);
}

/* The supervisor forms, which the host lets no user program judge: what XSAVES leaves, XRSTORS brings back. */
static void supervisor_save_and_restore(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    if (!x86_has(vcpu, FEATURE_XSAVES))
        skip();
    uint8_t *area = ram_host(vcpu->ram, DATA + 64);
    uint64_t header[2];
    for (unsigned i = 0; i < 16; i++)
        memset(vcpu->fpu.zmm[i], 0x40 + (int)i, 32);
    struct fpu before = vcpu->fpu;
    vcpu->gpr[RAX] = ~0u;
    vcpu->gpr[RDX] = ~0u;
    assert_int_equal(RUN(s, 0x48, 0x0F, 0xC7, 0x2E), RAN);              /* xsaves64 [rsi] */
    memcpy(header, area + 512, sizeof(header));
    assert_int_equal(header[0], XCR0_SSE | XCR0_AVX);                   /* x87 and AVX-512 are in their initial state */
    assert_int_equal(header[1], BIT(63) | vcpu->xcr0);
    memset(vcpu->fpu.zmm, 0xEE, sizeof(vcpu->fpu.zmm));
    assert_int_equal(RUN(s, 0x48, 0x0F, 0xC7, 0x1E), RAN);              /* xrstors64 [rsi] */
    assert_memory_equal(vcpu->fpu.zmm[0], before.zmm[0], 32);
    assert_memory_equal(vcpu->fpu.zmm[15], before.zmm[15], 32);
    area[520 + 7] = 0;                                                  /* not compacted */
    assert_int_equal(RUN(s, 0x48, 0x0F, 0xC7, 0x1E), VEC_GP);
    vcpu->cpl = 3;
    assert_int_equal(RUN(s, 0x48, 0x0F, 0xC7, 0x2E), VEC_GP);
    vcpu->cpl = 0;
    vcpu->gpr[RSI] += 8;
    assert_int_equal(RUN(s, 0x48, 0x0F, 0xC7, 0x2E), VEC_GP);
    tear_down(s);
}

static void protection_key_rights(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    if (!x86_has(vcpu, FEATURE_PKU))
        skip();
    vcpu->gpr[RAX] = 0x1234, vcpu->gpr[RCX] = vcpu->gpr[RDX] = 0;
    assert_int_equal(RUN(s, 0x0F, 0x01, 0xEF), VEC_UD);                 /* wrpkru without CR4.PKE */
    vcpu->cr4 |= CR4_PKE;
    assert_int_equal(RUN(s, 0x0F, 0x01, 0xEF), RAN);
    vcpu->gpr[RAX] = vcpu->gpr[RDX] = ~0ull;
    assert_int_equal(RUN(s, 0x0F, 0x01, 0xEE), RAN);                    /* rdpkru */
    assert_int_equal(vcpu->gpr[RAX], 0x1234);
    assert_int_equal(vcpu->gpr[RDX], 0);
    vcpu->gpr[RCX] = 1;
    assert_int_equal(RUN(s, 0x0F, 0x01, 0xEE), VEC_GP);
    tear_down(s);
}

/* --- the same bytes in 64-bit, 32-bit and 16-bit code --- */

static void random_registers(struct setting *s)
{
    struct vcpu *vcpu = &s->f->vcpu;
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = (uint32_t)fixture_random(s->f);
    for (unsigned i = 0; i < 32; i++)
        for (unsigned j = 0; j < 64; j += 8)
            memcpy(vcpu->fpu.zmm[i] + j, &(uint64_t){ fixture_random(s->f) & 0x3FF0FFFF3F80FFFF }, 8);
    for (unsigned i = 0; i < 8; i++)
        vcpu->fpu.k[i] = fixture_random(s->f);
    for (unsigned i = 0; i < PAGE_SIZE; i += 8)
        fixture_put64(s->f, DATA + i, fixture_random(s->f));
    fpu_init_x87(&vcpu->fpu);
    vcpu->fpu.fxsave[IMAGE_FTW] = 0xFF;
    for (unsigned i = 0; i < 8; i++)
        memcpy(vcpu->fpu.fxsave + IMAGE_ST + i * 16, &(uint64_t[2]){ fixture_random(s->f) | BIT(63), 0x4000 }, 10);
    fpu_set_mxcsr(&vcpu->fpu, MXCSR_INIT);
}

static void enter_32_bit(struct setting *s, unsigned attr)
{
    s->f->vcpu.seg[CS].attr = SEG_P | SEG_S | SEG_G | attr | SEG_CODE | SEG_READABLE | SEG_ACCESSED;
    x86_update_mode(&s->f->vcpu);
    mmu_mode_changed(&s->f->vcpu);
}

/* Legacy, VEX, EVEX and x87 encodings that mean the same in every mode: registers 0 to 7, [ESI + disp8]. */
static unsigned common_encoding(struct fixture *f, uint8_t *bytes)
{
    static const uint8_t prefix[] = { 0x66, 0xF2, 0xF3 };
    unsigned n = 0, r = (unsigned)fixture_random(f), kind = fixture_below(f, 4);
    if (kind == 0) {
        if (fixture_chance(f, 2))
            bytes[n++] = prefix[fixture_below(f, 3)];
        bytes[n++] = 0x0F;
        if (fixture_chance(f, 2))
            bytes[n++] = fixture_chance(f, 2) ? 0x38 : 0x3A;
        bytes[n++] = (uint8_t)(r >> 8);
    } else if (kind == 1) {
        bytes[n++] = 0xC4;
        bytes[n++] = (uint8_t)(0xE0 | (1 + r % 3));
        bytes[n++] = (uint8_t)((r >> 8 & 0x07) | 0x40 | (fixture_chance(f, 2) ? 0x38 : r >> 8 & 0x38));
        bytes[n++] = (uint8_t)(r >> 16);
    } else if (kind == 2) {
        bytes[n++] = 0x62;
        bytes[n++] = (uint8_t)(0xF0 | (1 + r % 3));
        bytes[n++] = (uint8_t)((r >> 8 & 0x83) | 0x44 | (fixture_chance(f, 2) ? 0x38 : r >> 8 & 0x38));
        bytes[n++] = (uint8_t)(fixture_random(f) | 8);
        bytes[n++] = (uint8_t)(r >> 16);
    } else {
        bytes[n++] = (uint8_t)(0xD8 + (r & 7));
    }
    bytes[n++] = (uint8_t)(fixture_chance(f, 2) ? 0xC0 | r >> 24 : 0x46 | (r >> 24 & 0x38));
    for (unsigned i = 0; i < 6; i++)
        bytes[n++] = (uint8_t)(fixture_random(f) & 0x7F);
    return n;
}

/* Integer instructions whose width goes by the mode, W that only 64-bit mode heeds, and images of state. */
static bool mode_dependent(const uint8_t *bytes, ZydisMachineMode mode)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, 15, &insn, operands)))
        return true;
    bool gpr = false, memory = false, w = (insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && insn.raw.evex.W);
    for (unsigned i = 0; i < insn.operand_count; i++) {
        ZydisRegisterClass class = operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(operands[i].reg.value) : 0;
        gpr |= class == ZYDIS_REGCLASS_GPR64 || class == ZYDIS_REGCLASS_GPR32 || class == ZYDIS_REGCLASS_GPR16 || class == ZYDIS_REGCLASS_GPR8;
        memory |= operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY;
    }
    if (w && (gpr || insn.meta.category == ZYDIS_CATEGORY_CONVERT || insn.mnemonic == ZYDIS_MNEMONIC_VMOVQ ||
              insn.mnemonic == ZYDIS_MNEMONIC_VPINSRQ || insn.mnemonic == ZYDIS_MNEMONIC_VPEXTRQ))
        return true;
    if (memory && insn.meta.isa_set == ZYDIS_ISA_SET_X87 && insn.raw.modrm.reg >= 4 && (insn.opcode & 3) == 1)
        return true;            /* environments */
    return (mode == ZYDIS_MACHINE_MODE_LEGACY_16 && gpr) || insn.meta.isa_set == ZYDIS_ISA_SET_FXSAVE ||
           insn.meta.isa_set == ZYDIS_ISA_SET_XSAVE || insn.meta.isa_set == ZYDIS_ISA_SET_XSAVEOPT ||
           insn.meta.isa_set == ZYDIS_ISA_SET_XSAVEC || insn.meta.isa_set == ZYDIS_ISA_SET_XSAVES ||
           insn.mnemonic == ZYDIS_MNEMONIC_VZEROALL || insn.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER ||
           insn.meta.isa_set == ZYDIS_ISA_SET_PKU;
}

static unsigned same_in_both(struct setting *s, const uint8_t *bytes, ZydisMachineMode mode)
{
    static _Alignas(64) struct fpu fpu[2];
    static uint8_t memory[PAGE_SIZE], after[PAGE_SIZE];
    uint64_t gpr[2][16];
    struct vcpu *vcpu = &s->f->vcpu;
    uint8_t narrow[15], *data = ram_host(vcpu->ram, DATA);
    if (mode_dependent(bytes, mode))
        return 0;
    random_registers(s);
    vcpu->gpr[RSI] = vcpu->gpr[RDI] = DATA + 1024;
    memcpy(gpr[0], vcpu->gpr, sizeof(gpr[0]));
    memcpy(memory, data, PAGE_SIZE);
    fpu[0] = vcpu->fpu;
    s->f->vcpu.rflags = RFLAGS_FIXED;
    enter_32_bit(s, SEG_L);
    unsigned wide = run_bytes(s, ZYDIS_MACHINE_MODE_LONG_64, bytes, 15);
    fpu[1] = vcpu->fpu;
    memcpy(gpr[1], vcpu->gpr, sizeof(gpr[1]));
    uint64_t rflags = vcpu->rflags;
    memcpy(after, data, PAGE_SIZE);
    vcpu->fpu = fpu[0];
    memcpy(vcpu->gpr, gpr[0], sizeof(gpr[0]));
    memcpy(data, memory, PAGE_SIZE);
    s->f->vcpu.rflags = RFLAGS_FIXED;
    enter_32_bit(s, mode == ZYDIS_MACHINE_MODE_LEGACY_32 ? SEG_DB : 0);
    narrow[0] = 0x67;           /* 32-bit addresses in 16-bit code */
    memcpy(narrow + 1, bytes, 14);
    unsigned other = mode == ZYDIS_MACHINE_MODE_LEGACY_32 ? run_bytes(s, mode, bytes, 15) : run_bytes(s, mode, narrow, 15);
    if (wide == NOT_DECODED || other == NOT_DECODED || wide == NOT_MINE)
        return 0;
    bool x87 = bytes[0] >= 0xD8 && bytes[0] <= 0xDF;
    if (wide != other || memcmp(gpr[1], vcpu->gpr, sizeof(gpr[1])) || rflags != vcpu->rflags ||
        memcmp(after, data, PAGE_SIZE) || memcmp(fpu[1].zmm, vcpu->fpu.zmm, sizeof(fpu[1].zmm)) ||
        memcmp(fpu[1].k, vcpu->fpu.k, sizeof(fpu[1].k)) || (!x87 && memcmp(fpu[1].fxsave, vcpu->fpu.fxsave, IMAGE_XMM)) ||
        memcmp(fpu[1].fxsave + IMAGE_ST, vcpu->fpu.fxsave + IMAGE_ST, IMAGE_XMM - IMAGE_ST)) {
        print_message("mode %d: ", mode);
        for (unsigned i = 0; i < 12; i++)
            print_message("%02x", bytes[i]);
        print_message(": %u in 64-bit code, %u here\n", wide, other);
        return 2;
    }
    return 1;
}

static void narrow_modes(ZydisMachineMode mode)
{
    struct setting *s = set_up("host");
    unsigned same = 0, different = 0;
    for (unsigned i = 0; i < 200000; i++) {
        uint8_t bytes[32] = { 0 };
        common_encoding(s->f, bytes);
        unsigned result = same_in_both(s, bytes, mode);
        same += result == 1;
        different += result == 2;
    }
    assert_int_equal(different, 0);
    assert_true(same > 5000);
    tear_down(s);
}

static void code_of_32_bits_means_the_same(void **state) { narrow_modes(ZYDIS_MACHINE_MODE_LEGACY_32); }
static void code_of_16_bits_means_the_same(void **state) { narrow_modes(ZYDIS_MACHINE_MODE_LEGACY_16); }

/* The four formats of the x87 environment survive a store and a load. */
static void environments_of_every_format(void **state)
{
    struct setting *s = set_up("host");
    struct vcpu *vcpu = &s->f->vcpu;
    const uint8_t store[15] = { 0x67, 0xD9, 0x36 }, load[15] = { 0x67, 0xD9, 0x26 };
    const uint8_t store32[15] = { 0x66, 0x67, 0xD9, 0x36 }, load32[15] = { 0x66, 0x67, 0xD9, 0x26 };
    for (unsigned real = 0; real < 2; real++)
        for (unsigned wide = 0; wide < 2; wide++) {
            vcpu->efer = 0;
            vcpu->cr0 = CR0_NE | (real ? 0 : CR0_PE);
            vcpu->seg[CS].attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE;
            x86_update_mode(vcpu);
            mmu_mode_changed(vcpu);
            vcpu->gpr[RSI] = 0x100;
            fpu_init_x87(&vcpu->fpu);
            const uint64_t fip = 0x4321, fdp = 0x8765;
            const uint16_t fop = 0x123, fcw = 0x027F;
            memcpy(vcpu->fpu.fxsave + IMAGE_FCW, &fcw, 2);
            memcpy(vcpu->fpu.fxsave + IMAGE_FIP, &fip, 8);
            memcpy(vcpu->fpu.fxsave + IMAGE_FDP, &fdp, 8);
            memcpy(vcpu->fpu.fxsave + IMAGE_FOP, &fop, 2);
            struct fpu before = vcpu->fpu;
            assert_int_equal(run_bytes(s, ZYDIS_MACHINE_MODE_LEGACY_16, wide ? store32 : store, 15), RAN);
            const uint8_t *env = ram_host(vcpu->ram, 0x100);
            unsigned w = wide ? 4 : 2;
            assert_int_equal(env[0] | env[1] << 8, 0x027F);
            assert_int_equal(env[2 * w] | env[2 * w + 1] << 8, 0xFFFF);
            assert_int_equal(env[3 * w] | env[3 * w + 1] << 8, 0x4321);
            assert_int_equal(env[5 * w] | env[5 * w + 1] << 8, 0x8765);
            if (real)
                assert_int_equal(env[4 * w] | env[4 * w + 1] << 8, 0x123);
            fpu_init_x87(&vcpu->fpu);
            assert_int_equal(run_bytes(s, ZYDIS_MACHINE_MODE_LEGACY_16, wide ? load32 : load, 15), RAN);
            assert_memory_equal(vcpu->fpu.fxsave, before.fxsave, IMAGE_FOP);
            if (__builtin_cpu_is("amd"))
                continue;       /* saves and restores the others only with an exception that waits */
            if (real || wide)
                assert_memory_equal(vcpu->fpu.fxsave + IMAGE_FOP, before.fxsave + IMAGE_FOP, 2);
            assert_memory_equal(vcpu->fpu.fxsave + IMAGE_FIP, before.fxsave + IMAGE_FIP, 16);
        }
    tear_down(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(task_switched_is_nm),
        cmocka_unit_test(emulation_bit_is_ud_for_sse_and_nm_for_x87),
        cmocka_unit_test(sse_needs_osfxsr_and_mmx_does_not),
        cmocka_unit_test(avx_needs_osxsave_and_xcr0),
        cmocka_unit_test(masked_features_are_undefined),
        cmocka_unit_test(without_osxmmexcpt_xm_is_ud),
        cmocka_unit_test(a_pending_x87_exception_comes_before_the_operand),
        cmocka_unit_test(vex_is_undefined_in_real_mode),
        cmocka_unit_test(mxcsr_reserved_bits_are_refused),
        cmocka_unit_test(supervisor_save_and_restore),
        cmocka_unit_test(protection_key_rights),
        cmocka_unit_test(code_of_32_bits_means_the_same),
        cmocka_unit_test(code_of_16_bits_means_the_same),
        cmocka_unit_test(environments_of_every_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
