/*
 * A stub's code. On entry RDI is the vCPU and RSI the memory operand. Layout:
 *
 *      [fxrstor]  [flags]  [ldmxcsr guest]  vectors, opmasks, general registers   in
 *      the instruction
 *      general registers, vectors, opmasks, [flags]                               out
 *      [stmxcsr guest, ldmxcsr host] [fxsave, fninit] [vzeroupper]  mov eax, 0  ret
 *      fault exit: [stmxcsr, ldmxcsr] [fxsave, fninit] [vzeroupper]  mov eax, 1  ret
 *
 * Only MOVs and vector moves stand between the instruction and the reading of its flags. The code uses no stack and no
 * register that a callee must keep.
 */
#include "engine/interp/native_impl.h"

enum { ROOM = 2048 };       /* the longest stub is under 900 bytes: ten vectors, eight opmasks, six registers each way */

struct emitter {
    uint8_t *at;
};

static void emit(struct emitter *e, const void *bytes, size_t count)
{
    memcpy(e->at, bytes, count);
    e->at += count;
}
#define EMIT(e, ...) emit(e, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* ModRM and displacement of [rdi + offset]. */
static void emit_field(struct emitter *e, unsigned reg, size_t offset)
{
    uint32_t disp = (uint32_t)offset;
    EMIT(e, (uint8_t)(0x87 | (reg & 7) << 3));
    emit(e, &disp, 4);
}

static void emit_gpr(struct emitter *e, bool store, const struct gpr_slot *slot)
{
    size_t offset = offsetof(struct vcpu, gpr) + slot->guest * sizeof(uint64_t);
    uint8_t r = slot->host & 8 ? 4 : 0;
    if (slot->high) {           /* movzx r32, byte */
        EMIT(e, (uint8_t)(0x40 | r), 0x0F, 0xB6);
        offset++;
    } else {
        EMIT(e, (uint8_t)(0x48 | r), store ? 0x89 : 0x8B);
    }
    emit_field(e, slot->host, offset);
}

/* MOVUPS, VMOVUPS of 128, 256 or 512 bits. */
static void emit_vector(struct emitter *e, bool store, unsigned n, unsigned width, bool vex)
{
    uint8_t opcode = store ? 0x11 : 0x10;
    if (width == 64) {
        EMIT(e, 0x62, (uint8_t)((n & 8 ? 0 : 0x80) | 0x60 | (n & 16 ? 0 : 0x10) | 1), 0x7C, 0x48, opcode);
    } else if (vex) {
        EMIT(e, 0xC5, (uint8_t)((n & 8 ? 0 : 0x80) | 0x78 | (width == 32 ? 4 : 0)), opcode);
    } else {
        if (n & 8)
            EMIT(e, 0x44);
        EMIT(e, 0x0F, opcode);
    }
    emit_field(e, n, offsetof(struct vcpu, fpu.zmm) + n * 64);
}

/* KMOVQ, or KMOVW where the host has no 64-bit opmasks. */
static void emit_mask(struct emitter *e, bool store, unsigned n, bool wide)
{
    uint8_t opcode = store ? 0x91 : 0x90;
    EMIT(e, 0xC4, 0xE1, wide ? 0xF8 : 0x78, opcode);
    emit_field(e, n, offsetof(struct vcpu, fpu.k) + n * 8);
}

/* Status flags from vcpu->rflags, through AL (overflow, by an addition that overflows) and AH (the rest, by SAHF). */
static void emit_flags_in(struct emitter *e)
{
    EMIT(e, 0x8B);                              /* mov eax, [rflags] */
    emit_field(e, 0, offsetof(struct vcpu, rflags));
    EMIT(e, 0x89, 0xC1);                        /* mov ecx, eax */
    EMIT(e, 0xC1, 0xE9, 0x0B, 0x83, 0xE1, 1);   /* shr ecx, 11; and ecx, 1 */
    EMIT(e, 0x88, 0xC4);                        /* mov ah, al */
    EMIT(e, 0x80, 0xC1, 0x7F);                  /* add cl, 127 */
    EMIT(e, 0x9E);                              /* sahf */
}

static void emit_flags_out(struct emitter *e)
{
    EMIT(e, 0x9F, 0x0F, 0x90, 0xC0);            /* lahf; seto al */
    EMIT(e, 0x0F, 0xB6, 0xCC);                  /* movzx ecx, ah */
    EMIT(e, 0x0F, 0xB6, 0xC0, 0xC1, 0xE0, 0x0B);        /* movzx eax, al; shl eax, 11 */
    EMIT(e, 0x81, 0xE1, 0xD5, 0, 0, 0);         /* and ecx, CF|PF|AF|ZF|SF */
    EMIT(e, 0x09, 0xC8);                        /* or eax, ecx */
    EMIT(e, 0x81);                              /* and dword [rflags], ~status */
    emit_field(e, 4, offsetof(struct vcpu, rflags));
    uint32_t keep = ~(uint32_t)RFLAGS_STATUS;
    emit(e, &keep, 4);
    EMIT(e, 0x09);                              /* or [rflags], eax */
    emit_field(e, 0, offsetof(struct vcpu, rflags));
}

static void emit_mxcsr(struct emitter *e, bool store)
{
    EMIT(e, 0x0F, 0xAE);
    emit_field(e, store ? 3 : 2, offsetof(struct vcpu, fpu.fxsave) + 24);
}

/* FXRSTOR64 or FXSAVE64: the only pair that moves the x87 state whole. */
static void emit_x87(struct emitter *e, bool save)
{
    EMIT(e, 0x48, 0x0F, 0xAE);
    emit_field(e, save ? 0 : 1, offsetof(struct vcpu, fpu.fxsave));
}

/* Both ways out: guest state that the processor changed by itself goes back, the host's MXCSR comes back, return. */
static void emit_exit(struct emitter *e, const struct native_arena *arena, const struct stub_plan *plan, int result)
{
    if (plan->x87) {
        emit_x87(e, true);
        EMIT(e, 0xDB, 0xE3);                    /* fninit: the compiler's code finds an empty stack and masked exceptions */
    } else if (plan->mxcsr) {
        emit_mxcsr(e, true);
    }
    if (plan->x87 || plan->mxcsr) {
        EMIT(e, 0x0F, 0xAE, 0x15);              /* ldmxcsr [rip + disp]: the arena's first word */
        int32_t disp = (int32_t)(arena->write - (e->at + 4));
        emit(e, &disp, 4);
    }
    if (plan->load_width > 16)
        EMIT(e, 0xC5, 0xF8, 0x77);              /* vzeroupper: the compiler's code is SSE */
    EMIT(e, 0xB8, (uint8_t)result, 0, 0, 0, 0xC3);
}

static void emit_in(struct emitter *e, const struct encoding *encoding, const struct stub_plan *plan, bool vex, bool wide_masks)
{
    if (plan->x87)
        emit_x87(e, false);
    else if (plan->mxcsr)
        emit_mxcsr(e, false);
    if (plan->flags_in)
        emit_flags_in(e);
    for (unsigned n = 0; n < 32; n++)
        if (plan->vectors & BIT(n))
            emit_vector(e, false, n, plan->load_width, vex);
    for (unsigned n = 0; n < 8; n++)
        if (plan->masks & BIT(n))
            emit_mask(e, false, n, wide_masks);
    for (unsigned i = 0; i < encoding->slots; i++)
        emit_gpr(e, false, &encoding->slot[i]);
}

static void emit_out(struct emitter *e, const struct encoding *encoding, const struct stub_plan *plan, bool vex, bool wide_masks)
{
    for (unsigned i = 0; i < encoding->slots; i++)
        if (encoding->slot[i].written)
            emit_gpr(e, true, &encoding->slot[i]);
    unsigned width = plan->full_store ? native_host_vector_bytes() : plan->load_width;
    for (unsigned n = 0; n < 32; n++)
        if (plan->vectors_written & BIT(n))
            emit_vector(e, true, n, width, vex);
    for (unsigned n = 0; n < 8; n++)
        if (plan->masks_written & BIT(n))
            emit_mask(e, true, n, wide_masks);
    if (plan->flags_out)
        emit_flags_out(e);
}

unsigned native_host_vector_bytes(void)
{
    return __builtin_cpu_supports("avx512f") ? 64 : __builtin_cpu_supports("avx") ? 32 : 16;
}

bool native_emit(struct native_arena *arena, struct stub *stub, const struct encoding *encoding, const struct stub_plan *plan)
{
    if (arena->used == 0) {
        const uint32_t host_mxcsr = 0x1F80;
        memcpy(arena->write, &host_mxcsr, sizeof(host_mxcsr));
        arena->used = 64;
    }
    if (arena->size - arena->used < ROOM)
        return false;
    struct emitter e = { arena->write + arena->used };
    uintptr_t to_execute = (uintptr_t)arena->execute - (uintptr_t)arena->write;
    bool vex = plan->full_store || plan->load_width > 16, wide_masks = __builtin_cpu_supports("avx512bw");
    stub->code = (native_code *)((uintptr_t)e.at + to_execute);
    emit_in(&e, encoding, plan, vex, wide_masks);
    stub->insn_at = (uintptr_t)e.at + to_execute;
    emit(&e, encoding->bytes, encoding->length);
    emit_out(&e, encoding, plan, vex, wide_masks);
    emit_exit(&e, arena, plan, 0);
    stub->fault_exit = (uintptr_t)e.at + to_execute;
    emit_exit(&e, arena, plan, 1);
    arena->used = align_up((uint64_t)(e.at - arena->write), 16);
    return true;
}
