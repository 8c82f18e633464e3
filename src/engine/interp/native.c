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
    bool sha_aligned;           /* SHA: #GP(0) for a misaligned operand */
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
    cache->sha_aligned = native_sha_faults_misaligned();
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
    bool vectors = native_touches_vectors(insn, operands);
    *stub = (struct stub){ .length = insn->length };
    stub->handler = native_run_undefined;
    if (insn->mnemonic == ZYDIS_MNEMONIC_LZCNT || insn->mnemonic == ZYDIS_MNEMONIC_TZCNT) {
        /* Before there was LZCNT its F3 was ignored: it is BSR then. TZCNT likewise is BSF. */
        if (!native_offered(vcpu, insn, false)) {
            stub->other_encoding = true;
            plain.raw.prefix_count = 0;
            plain.mnemonic = insn->mnemonic == ZYDIS_MNEMONIC_LZCNT ? ZYDIS_MNEMONIC_BSR : ZYDIS_MNEMONIC_BSF;
        }
    } else if (!native_offered(vcpu, insn, vectors)) {
        return true;
    }
    native_set_operands(stub, insn, operands);
    if (insn->meta.isa_set == ZYDIS_ISA_SET_SHA)        /* as on the host, whose word alone counts where memory is reached directly */
        stub->aligned &= cache->sha_aligned;
    native_set_checks(stub, insn, operands, vectors);
    stub->mxcsr = native_uses_mxcsr(insn) && vectors;
    stub->handler = native_special(insn->mnemonic);
    if (stub->handler && !stub->x87)
        return true;
    if (!stub->handler)
        stub->handler = native_pick_handler(stub, insn, operands);
    if (is_pure_c(stub->handler))
        return true;
    struct encoding encoding;
    struct stub_plan plan = { 0 };
    if (!native_encode(&plain, operands, bytes, &encoding)) {
        stub->handler = native_run_undefined;
        return true;
    }
    native_plan(insn, operands, stub, &plan);
    stub->fop = (uint16_t)((insn->opcode & 7) << 8 | insn->raw.modrm.mod << 6 | insn->raw.modrm.reg << 3 | insn->raw.modrm.rm);
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
    if (!native_is_mine(insn))
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

static bool permitted(const struct vcpu *vcpu, const struct stub *stub)
{
    return !((vcpu->cr0 & (stub->cr0_ud | stub->cr0_nm)) | (~vcpu->cr4 & stub->cr4_need) | (~vcpu->xcr0 & stub->xcr0_need) |
             (stub->not_real && vcpu->mode <= MODE_V86));
}

/* Here they are done by handlers in C, but only because here MXCSR and the vectors are not in the processor. */
static bool moves_live_state(const struct stub *stub)
{
    switch (stub->detail.mnemonic) {
    case ZYDIS_MNEMONIC_VZEROUPPER: case ZYDIS_MNEMONIC_VZEROALL: case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR: case ZYDIS_MNEMONIC_VSTMXCSR:
        return true;
    default:
        return false;
    }
}

/* x87 instructions that change what is noted of the last one. */
static bool forgets_last(const struct stub *stub)
{
    return stub->detail.mnemonic == ZYDIS_MNEMONIC_FNINIT || stub->detail.mnemonic == ZYDIS_MNEMONIC_FNCLEX;
}

unsigned native_copies(const struct vcpu *vcpu, const struct native_stub *public)
{
    const struct stub *stub = stub_of(public);
    bool plain = stub->handler == native_run_register || stub->handler == native_run_memory || stub->handler == native_run_masked ||
                 (stub->handler == native_run_x87 && !forgets_last(stub)) || moves_live_state(stub);
    if (!plain || stub->other_encoding || !permitted(vcpu, stub))
        return NATIVE_COPY_NOT;
    bool vector = stub->x87 ? stub->cr4_need & CR4_OSFXSR : stub->cr0_nm;
    return NATIVE_COPY | (vector ? NATIVE_COPY_VECTOR : 0) | (stub->x87 ? NATIVE_COPY_X87 : 0) |
           (stub->x87 && !stub->control ? NATIVE_COPY_NOTED : 0);
}

bool native_execute(struct vcpu *vcpu, const struct native_stub *public)
{
    const struct stub *stub = stub_of(public);
    if (unlikely(!permitted(vcpu, stub)))
        return check_fault(vcpu, stub);
    counter_add(&vcpu->counters, COUNTER_native_insns, 1);
    return stub->handler(vcpu, stub);
}
