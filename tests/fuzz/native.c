/*
 * Hostile code: random bytes, decoded in every mode, given to native_prepare and native_execute with random control registers, CPU models,
 * registers and memory (RAM, read-only, absent, ROM, MMIO, non-canonical). Whatever the guest runs, the process keeps its own MXCSR
 * and flags, the vCPU keeps what user-level code cannot change, a fault comes with an exception, and no host address shows.
 *
 * Usage: fuzz-native [instructions [seed]]
 */
#include <stdio.h>

#include "engine/interp/native.h"
#include "unit/mmu_fixture.h"
#include "mutate.h"
#include "x86/xstate.h"

enum { RAM_SIZE = 2 * 1024 * 1024, TABLES = 0x100000, DATA = 0x10000, MMIO = 0x10000000, ROM = 0x20000000, ROUNDS = 1000000 };

struct target {
    struct fixture *f;
    struct native_cache *cache;
    struct cpu_model *model[5];
    uint64_t seed;
    unsigned long ran, faulted, full;
};

static void open_target(struct target *t)
{
    static const char *const names[] = { "host", "x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64-v1" };
    struct error err;
    uint64_t next = TABLES + PAGE_SIZE;
    t->f = fixture_create(RAM_SIZE);
    ram_add(t->f->vcpu.ram, "rom", ROM, PAGE_SIZE, true, &err);
    t->cache = native_cache_create();
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        t->model[i] = x86_model_create(names[i], 1, NS_PER_SECOND, &err);
    static const uint64_t leaf[] = {
        DATA | PTE_P | PTE_W | PTE_U, (DATA + 0x1000) | PTE_P | PTE_W | PTE_U, (DATA + 0x2000) | PTE_P | PTE_U, 0,
        (DATA + 0x4000) | PTE_P | PTE_W, ROM | PTE_P | PTE_W | PTE_U, MMIO | PTE_P | PTE_W | PTE_U, 0,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(leaf); i++)
        fixture_map(t->f, TABLES, &next, DATA + i * PAGE_SIZE, leaf[i], 0);
    fixture_long_mode(t->f, TABLES);
}

static uint64_t address_like(uint64_t *seed)
{
    switch (fuzz_below(seed, 8)) {
    case 0:
        return fuzz_random(seed);
    case 1:
        return fuzz_number(seed);
    case 2:
        return fuzz_below(seed, 64);
    default:
        return DATA + fuzz_below(seed, 8 * PAGE_SIZE);
    }
}

/* Mode 0: 64-bit, 1: 32-bit compatibility, 2: 16-bit protected, 3: real. */
static unsigned random_world(struct target *t)
{
    struct vcpu *vcpu = &t->f->vcpu;
    uint64_t r = fuzz_random(&t->seed);
    unsigned mode = r % 3 ? 0 : (r >> 8) % 4;
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = address_like(&t->seed);
    for (uint64_t *p = (uint64_t *)vcpu->fpu.zmm; p < (uint64_t *)(vcpu->fpu.zmm + 32); p++)
        *p = fuzz_below(&t->seed, 4) ? fuzz_random(&t->seed) : fuzz_below(&t->seed, 4096);
    for (unsigned i = 0; i < 8; i++)
        vcpu->fpu.k[i] = fuzz_random(&t->seed);
    fpu_init_x87(&vcpu->fpu);
    for (unsigned i = 0; i < 8; i++)
        memcpy(vcpu->fpu.fxsave + IMAGE_ST + i * 16, &(uint64_t[2]){ fuzz_random(&t->seed), fuzz_random(&t->seed) & 0xFFFF }, 10);
    vcpu->fpu.fxsave[IMAGE_FTW] = (uint8_t)fuzz_random(&t->seed);
    vcpu->fpu.fxsave[IMAGE_FCW] = fuzz_below(&t->seed, 4) ? 0x7F : 0x40;
    fpu_set_mxcsr(&vcpu->fpu, fuzz_below(&t->seed, 4) ? MXCSR_INIT : (uint32_t)fuzz_random(&t->seed) & MXCSR_MASK);
    vcpu->rflags = RFLAGS_FIXED | (fuzz_random(&t->seed) & (RFLAGS_STATUS | RFLAGS_DF | RFLAGS_AC));
    vcpu->rip = 0x1000;
    vcpu->cpl = mode == 3 ? 0 : r >> 16 & 1 ? 3 : 0;
    vcpu->efer = mode < 2 ? EFER_LME | EFER_LMA | EFER_NXE : 0;
    vcpu->cr0 = (mode == 3 ? 0 : CR0_PE) | (mode < 2 ? CR0_PG | CR0_WP : 0) | CR0_NE | (r >> 20 & (CR0_MP | CR0_EM | CR0_TS) & r >> 24) |
                (r >> 30 & 1 ? CR0_AM : 0);
    vcpu->cr4 = CR4_PAE | (r >> 32 & 15 ? CR4_OSFXSR | CR4_OSXSAVE | CR4_OSXMMEXCPT | CR4_PKE : 0);
    vcpu->model = t->model[(r >> 36) % ARRAY_SIZE(t->model)];
    vcpu->xcr0 = r >> 44 & 7 ? x86_xcr0_supported(vcpu) : XCR0_X87;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->seg[i] = (struct segment){ .base = mode == 2 ? DATA : 0, .limit = mode >= 2 ? 0xFFFF : ~0u,
                                         .attr = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED };
    vcpu->seg[CS].attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED | (mode == 0 ? SEG_L : mode == 1 ? SEG_DB : 0);
    vcpu->pending = (struct event){ 0 };
    x86_update_mode(vcpu);
    mmu_mode_changed(vcpu);
    mmu_privilege_changed(vcpu);
    return mode;
}

/* Mostly bytes that begin like an instruction of ours. */
static void random_bytes(struct target *t, unsigned mode, uint8_t *bytes)
{
    uint64_t *seed = &t->seed;
    unsigned n = 0;
    for (unsigned i = 0; i < 15; i++)
        bytes[i] = (uint8_t)fuzz_random(seed);
    static const uint8_t prefixes[] = { 0x66, 0x67, 0xF2, 0xF3, 0x64, 0x65, 0x36, 0xF0 };
    while (!fuzz_below(seed, 3) && n < 4)
        bytes[n++] = prefixes[fuzz_below(seed, sizeof(prefixes))];
    if (mode == 0 && !fuzz_below(seed, 3))
        bytes[n++] = (uint8_t)(0x40 | fuzz_below(seed, 16));
    static const uint8_t starts[] = { 0x0F, 0x0F, 0x0F, 0xC4, 0xC5, 0x62, 0x62, 0x62, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0x9B };
    bytes[n] = starts[fuzz_below(seed, sizeof(starts))];
    if (bytes[n] == 0x62) {
        bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xF0) | (1 + fuzz_below(seed, 6)));
        bytes[n + 2] |= 4;
    } else if (bytes[n] == 0xC4) {
        bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xE0) | (1 + fuzz_below(seed, 3)));
    } else if (bytes[n] == 0x0F && fuzz_below(seed, 2)) {
        bytes[n + 1] = fuzz_below(seed, 2) ? 0x38 : 0x3A;
    }
}

static void complain(const uint8_t *bytes, unsigned mode, const char *what)
{
    fprintf(stderr, "mode %u, ", mode);
    for (unsigned i = 0; i < 15; i++)
        fprintf(stderr, "%02x", bytes[i]);
    fprintf(stderr, ": %s\n", what);
    abort();
}

static bool host_address(uint64_t v) { return v >> 40 != 0 && v >> 40 != 0xFFFFFF; }

static bool restores(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_FXRSTOR || m == ZYDIS_MNEMONIC_FXRSTOR64 || m == ZYDIS_MNEMONIC_XRSTOR || m == ZYDIS_MNEMONIC_XRSTOR64 ||
           m == ZYDIS_MNEMONIC_XRSTORS || m == ZYDIS_MNEMONIC_XRSTORS64 || m == ZYDIS_MNEMONIC_FLDENV || m == ZYDIS_MNEMONIC_FRSTOR;
}

static void check(struct target *t, const struct vcpu *before, bool done, ZydisMnemonic mnemonic, const uint8_t *bytes, unsigned mode)
{
    struct vcpu *vcpu = &t->f->vcpu;
    uint64_t fip, fdp;
    memcpy(&fip, vcpu->fpu.fxsave + IMAGE_FIP, 8);
    memcpy(&fdp, vcpu->fpu.fxsave + IMAGE_FDP, 8);
    if ((__builtin_ia32_stmxcsr() & ~0x3Fu) != MXCSR_INIT)
        complain(bytes, mode, "the host's MXCSR is lost");
    if (__builtin_ia32_readeflags_u64() & (RFLAGS_DF | RFLAGS_AC | RFLAGS_TF))
        complain(bytes, mode, "the host's flags are lost");
    if (done == (vcpu->pending.kind != EVENT_NONE))
        complain(bytes, mode, "a fault and its exception do not go together");
    if (vcpu->rip != before->rip || ((vcpu->rflags ^ before->rflags) & ~(uint64_t)RFLAGS_STATUS) || vcpu->cpl != before->cpl ||
        vcpu->mode != before->mode || memcmp(vcpu->seg, before->seg, sizeof(vcpu->seg)) || vcpu->cr0 != before->cr0 ||
        vcpu->cr2 != before->cr2 || vcpu->cr3 != before->cr3 || vcpu->cr4 != before->cr4 || vcpu->xcr0 != before->xcr0 ||
        vcpu->efer != before->efer || memcmp(vcpu->dr, before->dr, sizeof(vcpu->dr)) || vcpu->index != before->index ||
        vcpu->model != before->model || vcpu->mmu != before->mmu || vcpu->tsc_offset != before->tsc_offset)
        complain(bytes, mode, "state that user-level code cannot change has changed");
    if (!restores(mnemonic) && (host_address(fip) || (memcmp(&fdp, before->fpu.fxsave + IMAGE_FDP, 8) && fdp >> 40 == 0x7F)))
        complain(bytes, mode, "a host address shows");
    if (fpu_mxcsr(&vcpu->fpu) & ~MXCSR_MASK)
        complain(bytes, mode, "MXCSR has reserved bits");
}

static void one(struct target *t)
{
    static const ZydisMachineMode modes[] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_MACHINE_MODE_LONG_COMPAT_32,
                                              ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_MACHINE_MODE_REAL_16 };
    static const ZydisStackWidth widths[] = { ZYDIS_STACK_WIDTH_64, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_16 };
    static struct vcpu before;
    ZydisDecoder decoder;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[16] = { 0 };
    const struct native_stub *stub;
    unsigned mode = random_world(t);
    struct vcpu *vcpu = &t->f->vcpu;
    random_bytes(t, mode, bytes);
    ZydisDecoderInit(&decoder, modes[mode], widths[mode]);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, 15, &insn, operands)))
        return;
    /* A cache belongs to one vCPU, whose model never changes. */
    native_cache_reset(t->cache);
    enum native_verdict verdict = native_prepare(t->cache, vcpu, &insn, operands, bytes, &stub);
    t->full += verdict == NATIVE_FULL;
    if (verdict != NATIVE_OK)
        return;
    before = *vcpu;
    bool done = native_execute(vcpu, stub);
    native_sync(vcpu);
    t->ran += done;
    t->faulted += !done;
    check(t, &before, done, insn.mnemonic, bytes, mode);
}

int main(int argc, char **argv)
{
    struct target t = { .seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x9E3779B97F4A7C15ull };
    open_target(&t);
    if (!t.cache)
        return 77;
    unsigned long rounds = fuzz_rounds(argc, argv, ROUNDS);
    for (unsigned long i = 0; i < rounds; i++)
        one(&t);
    printf("%lu instructions ran, %lu faulted\n", t.ran, t.faulted);
    native_cache_destroy(t.cache);
    for (unsigned i = 0; i < ARRAY_SIZE(t.model); i++)
        x86_model_destroy(t.model[i]);
    return t.ran < rounds / 50 || t.full;
}
