/*
 * Decoding, over Zydis (DESIGN D3): bytes in, one compact record out, independent of any engine. The mnemonic is
 * Zydis's; x86/insn.def says what each engine does with it.
 */
#ifndef DOPPEL_X86_DECODE_H
#define DOPPEL_X86_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vcpu;

enum { INSN_LENGTH_MAX = 15, INSN_OPERANDS = 4 };

enum operand_kind {
    OPERAND_NONE,
    OPERAND_GPR,
    OPERAND_SEGMENT,
    OPERAND_CONTROL,
    OPERAND_DEBUG,
    OPERAND_MEMORY,
    OPERAND_IMMEDIATE,
    OPERAND_FAR,            /* ptr16:16, ptr16:32 */
    OPERAND_OTHER,          /* vector, mask, x87, bound ... registers: the native executor's business */
};

struct insn_operand {
    uint8_t kind;           /* enum operand_kind */
    uint8_t size;           /* bytes */
    uint8_t reg;            /* by encoding order */
    bool high;              /* AH, CH, DH, BH: reg is 0 to 3 */
};

enum { REG_NONE = 0xFF, REG_RIP = 16 };

/* The (only) memory operand. */
struct insn_memory {
    uint8_t base, index;    /* enum gpr, REG_RIP or REG_NONE */
    uint8_t scale;          /* as a shift: 0 to 3 */
    uint8_t segment;        /* enum seg, default or overridden */
    int64_t disp;
};

struct insn {
    uint16_t mnemonic;      /* ZydisMnemonic */
    uint8_t length;
    uint8_t operand_count;  /* those that a disassembler shows */
    uint8_t operand_size;   /* 1, 2, 4, 8: effective */
    uint8_t address_size;   /* 2, 4, 8 */
    uint8_t opcode;         /* last opcode byte */
    uint8_t opcode_map;     /* ZydisOpcodeMap */
    uint8_t modrm_reg, modrm_rm, modrm_mod;
    bool legacy;            /* not VEX, EVEX, XOP or 3DNow! encoded */
    bool lock;
    uint8_t repeat;         /* 0, 0xF2 or 0xF3: the last of them */
    bool rex_w;
    struct insn_operand operand[INSN_OPERANDS];
    struct insn_memory memory;
    uint64_t imm;           /* sign-extended where the instruction does; OPERAND_FAR: the offset */
    uint64_t imm2;          /* ENTER: level; OPERAND_FAR: the selector */
    bool relative;          /* imm is relative to the next instruction */
    uint32_t flags_read, flags_written;     /* RFLAGS bits; undefined counts as written */
    uint8_t bytes[INSN_LENGTH_MAX];
};

enum decode_result {
    DECODE_OK,
    DECODE_MORE,            /* the bytes given end inside the instruction */
    DECODE_UNDEFINED,       /* #UD; insn->length is not known */
    DECODE_TOO_LONG,        /* more than 15 bytes: #GP(0) */
};

struct templates;

/* A decoder for one enum x86_mode and the instruction set that the vCPU's model offers. About 100 bytes; plain data. */
struct decoder {
    uint64_t opaque[16];
    struct templates *templates;        /* NULL, or made from this decoder (templates.h), which spares most of the time */
};
void decoder_init(struct decoder *decoder, const struct vcpu *vcpu, unsigned mode);

enum decode_result decode(const struct decoder *decoder, const uint8_t *bytes, size_t size, struct insn *insn);

/* The ZydisDecoder inside, for those who need what struct insn leaves out. */
static inline const void *decoder_zydis(const struct decoder *decoder) { return decoder->opaque; }

/* One line of Intel syntax for the instruction at rip. */
void decode_format(const struct decoder *decoder, const uint8_t *bytes, size_t size, uint64_t rip, char *text, size_t text_size);

#endif
