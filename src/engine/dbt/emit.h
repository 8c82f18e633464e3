/*
 * Writing host instructions (SDM2 chapter 2 "Instruction Format"). The emitter writes through the writable view of the code
 * cache; addresses that count are those of the executable view, `shift` bytes away.
 */
#ifndef DOPPEL_DBT_EMIT_H
#define DOPPEL_DBT_EMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "engine/dbt/reloc.h"

struct emitter {
    uint8_t *at;
    intptr_t shift;             /* executable address - writable address */
    struct reloc_list *relocs;  /* NULL: nobody wants to know what depends on its place */
};

/* Where an instruction's r/m operand is. */
enum rm_kind { RM_REG, RM_MEMORY, RM_VCPU, RM_DATA };
struct rm {
    enum rm_kind kind;
    uint8_t base, index;        /* host registers; index HOST_NONE: none */
    uint8_t scale;              /* as a shift */
    bool guest;                 /* disp is the address of guest code or beside it, which may come to be elsewhere */
    int32_t disp;
    const void *data;           /* RM_DATA: must lie within 2 GiB of the code */
};
enum { HOST_NONE = 0xFF };

/* The opcode's map and prefixes. */
enum {
    EMIT_W = 1,                 /* REX.W */
    EMIT_16 = 2,                /* 66 */
    EMIT_0F = 4,
    EMIT_LOCK = 8,
    EMIT_F3 = 16,
    EMIT_REX = 32,              /* a REX prefix even where no bit of it is set: byte registers 4 to 7 */
    EMIT_WIDE = 64,             /* a displacement of 32 bits whatever its value */
};

static inline struct rm rm_reg(unsigned reg) { return (struct rm){ .kind = RM_REG, .base = (uint8_t)reg }; }
static inline struct rm rm_mem(unsigned base, int32_t disp)
{
    return (struct rm){ .kind = RM_MEMORY, .base = (uint8_t)base, .index = HOST_NONE, .disp = disp };
}
/* A field of the vCPU, at which GS points. */
static inline struct rm rm_vcpu(size_t offset) { return (struct rm){ .kind = RM_VCPU, .disp = (int32_t)offset }; }
/* A field of the engine's own state (struct dbt), RIP-relative. */
static inline struct rm rm_data(const void *data) { return (struct rm){ .kind = RM_DATA, .data = data }; }

static inline uint8_t *emit_here(const struct emitter *e) { return e->at + e->shift; }
static inline void emit8(struct emitter *e, unsigned v) { *e->at++ = (uint8_t)v; }
static inline void emit_bytes(struct emitter *e, const uint8_t *bytes, size_t count) { memcpy(e->at, bytes, count); e->at += count; }
static inline void emit32(struct emitter *e, uint32_t v) { memcpy(e->at, &v, 4); e->at += 4; }
static inline void emit64(struct emitter *e, uint64_t v) { memcpy(e->at, &v, 8); e->at += 8; }

/* ModRM, SIB and displacement, of 32 bits rather than 8 if `wide`; `after`: bytes that follow. */
void emit_modrm(struct emitter *e, unsigned reg, const struct rm *rm, unsigned after, bool wide);
/* An instruction with ModRM; `after`: bytes of immediate that the caller emits behind it. */
void emit_insn(struct emitter *e, unsigned how, unsigned opcode, unsigned reg, struct rm rm, unsigned after);
/* 64-bit forms. */
void emit_load(struct emitter *e, unsigned reg, struct rm from);
void emit_store(struct emitter *e, struct rm to, unsigned reg);
void emit_move(struct emitter *e, unsigned to, unsigned from);
void emit_lea(struct emitter *e, unsigned reg, struct rm rm);
/* A MOV of 64 bits that are written when they are known (0 until then); returns where they are. */
uint8_t *emit_blank_constant(struct emitter *e, unsigned reg);
/* A place in the code. */
void emit_lea_target(struct emitter *e, unsigned reg, const uint8_t *target);
/* The address of the next instruction. */
void emit_lea_next(struct emitter *e, unsigned reg);
/* RORX: no flags. */
void emit_rotate(struct emitter *e, unsigned to, unsigned from, unsigned count);
/* The shortest MOV of a constant; no flags. */
void emit_constant(struct emitter *e, unsigned reg, uint64_t value);
/* Always 10 bytes: the address of a site or a link, by number, which changes with the place of the code. */
/* As emit_constant, an address of guest code or beside it. */
void emit_guest_address(struct emitter *e, unsigned reg, uint64_t gla);
/* What makes 0 when it is added to that, by MOV, too. */
void emit_minus_guest_address(struct emitter *e, unsigned reg, uint64_t gla);
/* The 32 bits, `after` bytes before the instruction's end, that make an operand of a field of the engine's own state. */
void emit_data(struct emitter *e, const void *data, unsigned after);
/* Opcode with a 32-bit relative target; returns where the target is written. */
uint8_t *emit_jump(struct emitter *e, unsigned opcode, const uint8_t *target);
uint8_t *emit_jcc(struct emitter *e, unsigned cc, const uint8_t *target);
void emit_target(const struct emitter *e, uint8_t *field, const uint8_t *target);
enum { JUMP = 0xE9, CALL = 0xE8 };

#endif
