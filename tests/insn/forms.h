/*
 * Encodings that the generator of programs (generate_program.c) picks from: what compilers and kernels use most, so that flags, addresses
 * and register pressure meet more often than among instructions taken at random.
 */
#ifndef DOPPEL_TESTS_INSN_FORMS_H
#define DOPPEL_TESTS_INSN_FORMS_H

#include <stdint.h>

enum {
    SIZES = 1,              /* 16, 32 or 64 bits */
    WIDE = 2,               /* 32 or 64 */
    BYTE = 4,
    W1 = 8,                 /* always REX.W (or VEX.W) */
    MEM = 16, REG = 32,     /* only with a memory operand; only without */
    LOCKS = 64,             /* LOCK may stand before it where its operand is in memory */
    VEX = 128, NO_VVVV = 256,
    VECTOR = 512,           /* 16 bytes of memory or more, which legacy encodings want aligned */
};

enum { MAP_NONE, MAP_0F, MAP_0F38, MAP_0F3A };
enum { ANY_REG = -1 };

struct form {
    uint8_t prefix, map, opcode;
    int8_t digit;           /* ModRM.reg, or any register */
    uint16_t how;
    uint8_t immediate;      /* bytes; 4: as the operand size says */
};

#define ALU_FORMS(n)                                                                                                       \
    { 0, MAP_NONE, 8 * n, ANY_REG, BYTE | LOCKS, 0 }, { 0, MAP_NONE, 8 * n + 1, ANY_REG, SIZES | LOCKS, 0 },               \
    { 0, MAP_NONE, 8 * n + 2, ANY_REG, BYTE, 0 }, { 0, MAP_NONE, 8 * n + 3, ANY_REG, SIZES, 0 },                           \
    { 0, MAP_NONE, 8 * n + 1, ANY_REG, SIZES | REG, 0 }, { 0, MAP_NONE, 8 * n + 3, ANY_REG, SIZES | MEM, 0 },              \
    { 0, MAP_NONE, 0x80, n, BYTE | LOCKS, 1 }, { 0, MAP_NONE, 0x81, n, SIZES | LOCKS, 4 },                                 \
    { 0, MAP_NONE, 0x83, n, SIZES | LOCKS, 1 }

#define SHIFT_FORMS(n)                                                                                                     \
    { 0, MAP_NONE, 0xC0, n, BYTE, 1 }, { 0, MAP_NONE, 0xC1, n, SIZES, 1 }, { 0, MAP_NONE, 0xD1, n, SIZES, 0 },             \
    { 0, MAP_NONE, 0xD3, n, SIZES, 0 }, { 0, MAP_NONE, 0xD2, n, BYTE, 0 }

#define PAIR_FORMS(c) { 0, MAP_0F, 0x40 + c, ANY_REG, SIZES, 0 }, { 0, MAP_0F, 0x90 + c, 0, BYTE, 0 }

static const struct form integer_forms[] = {
    ALU_FORMS(0), ALU_FORMS(1), ALU_FORMS(2), ALU_FORMS(3), ALU_FORMS(4), ALU_FORMS(5), ALU_FORMS(6), ALU_FORMS(7),
    ALU_FORMS(0), ALU_FORMS(2), ALU_FORMS(3), ALU_FORMS(5), ALU_FORMS(7),
    SHIFT_FORMS(0), SHIFT_FORMS(1), SHIFT_FORMS(2), SHIFT_FORMS(3), SHIFT_FORMS(4), SHIFT_FORMS(5), SHIFT_FORMS(7),
    PAIR_FORMS(0), PAIR_FORMS(1), PAIR_FORMS(2), PAIR_FORMS(3), PAIR_FORMS(4), PAIR_FORMS(5), PAIR_FORMS(6), PAIR_FORMS(7),
    PAIR_FORMS(8), PAIR_FORMS(9), PAIR_FORMS(10), PAIR_FORMS(11), PAIR_FORMS(12), PAIR_FORMS(13), PAIR_FORMS(14), PAIR_FORMS(15),
    /* MOV in its forms, several times: half of all code */
    { 0, MAP_NONE, 0x88, ANY_REG, BYTE, 0 }, { 0, MAP_NONE, 0x89, ANY_REG, SIZES, 0 }, { 0, MAP_NONE, 0x8A, ANY_REG, BYTE, 0 },
    { 0, MAP_NONE, 0x8B, ANY_REG, SIZES, 0 }, { 0, MAP_NONE, 0x89, ANY_REG, WIDE | MEM, 0 },
    { 0, MAP_NONE, 0x8B, ANY_REG, WIDE | MEM, 0 }, { 0, MAP_NONE, 0x89, ANY_REG, WIDE | MEM, 0 },
    { 0, MAP_NONE, 0x8B, ANY_REG, WIDE | MEM, 0 }, { 0, MAP_NONE, 0x8B, ANY_REG, WIDE | REG, 0 },
    { 0, MAP_NONE, 0xC6, 0, BYTE, 1 }, { 0, MAP_NONE, 0xC7, 0, SIZES, 4 }, { 0, MAP_NONE, 0xC7, 0, WIDE | MEM, 4 },
    { 0, MAP_NONE, 0x8D, ANY_REG, SIZES | MEM, 0 }, { 0, MAP_NONE, 0x8D, ANY_REG, WIDE | MEM, 0 },
    /* hints, whose addresses may be anything */
    { 0, MAP_0F, 0x18, 0, MEM, 0 }, { 0, MAP_0F, 0x18, 1, MEM, 0 }, { 0, MAP_0F, 0x18, 2, MEM, 0 }, { 0, MAP_0F, 0x0D, 1, MEM, 0 }, { 0, MAP_0F, 0x1F, 0, SIZES | MEM, 0 },
    { 0, MAP_0F, 0xB6, ANY_REG, SIZES, 0 }, { 0, MAP_0F, 0xB7, ANY_REG, WIDE, 0 }, { 0, MAP_0F, 0xBE, ANY_REG, SIZES, 0 },
    { 0, MAP_0F, 0xBF, ANY_REG, WIDE, 0 }, { 0, MAP_NONE, 0x63, ANY_REG, W1, 0 },
    { 0, MAP_NONE, 0x84, ANY_REG, BYTE, 0 }, { 0, MAP_NONE, 0x85, ANY_REG, SIZES, 0 }, { 0, MAP_NONE, 0xF7, 0, SIZES, 4 },
    { 0, MAP_NONE, 0xFE, 0, BYTE | LOCKS, 0 }, { 0, MAP_NONE, 0xFE, 1, BYTE | LOCKS, 0 }, { 0, MAP_NONE, 0xFF, 0, SIZES | LOCKS, 0 },
    { 0, MAP_NONE, 0xFF, 1, SIZES | LOCKS, 0 }, { 0, MAP_NONE, 0xFF, 0, SIZES | REG, 0 }, { 0, MAP_NONE, 0xFF, 1, SIZES | REG, 0 },
    { 0, MAP_NONE, 0xF6, 2, BYTE | LOCKS, 0 }, { 0, MAP_NONE, 0xF7, 2, SIZES | LOCKS, 0 }, { 0, MAP_NONE, 0xF6, 3, BYTE | LOCKS, 0 },
    { 0, MAP_NONE, 0xF7, 3, SIZES | LOCKS, 0 }, { 0, MAP_NONE, 0xF7, 4, SIZES, 0 }, { 0, MAP_NONE, 0xF7, 5, SIZES, 0 },
    { 0, MAP_NONE, 0xF7, 6, SIZES, 0 }, { 0, MAP_0F, 0xAF, ANY_REG, SIZES, 0 }, { 0, MAP_NONE, 0x69, ANY_REG, SIZES, 4 },
    { 0, MAP_NONE, 0x6B, ANY_REG, SIZES, 1 },
    { 0, MAP_NONE, 0x86, ANY_REG, BYTE | LOCKS, 0 }, { 0, MAP_NONE, 0x87, ANY_REG, SIZES | LOCKS, 0 },
    { 0, MAP_0F, 0xC0, ANY_REG, BYTE | LOCKS, 0 }, { 0, MAP_0F, 0xC1, ANY_REG, SIZES | LOCKS, 0 },
    { 0, MAP_0F, 0xB0, ANY_REG, BYTE | LOCKS, 0 }, { 0, MAP_0F, 0xB1, ANY_REG, SIZES | LOCKS, 0 },
    { 0, MAP_0F, 0xC7, 1, MEM | LOCKS, 0 }, { 0, MAP_0F, 0xC7, 1, W1 | MEM | LOCKS | VECTOR, 0 },
    { 0, MAP_0F, 0xA4, ANY_REG, SIZES, 1 }, { 0, MAP_0F, 0xA5, ANY_REG, SIZES, 0 }, { 0, MAP_0F, 0xAC, ANY_REG, SIZES, 1 },
    { 0, MAP_0F, 0xAD, ANY_REG, SIZES, 0 },
    { 0, MAP_0F, 0xA3, ANY_REG, SIZES | REG, 0 }, { 0, MAP_0F, 0xAB, ANY_REG, SIZES | REG, 0 }, { 0, MAP_0F, 0xB3, ANY_REG, SIZES | REG, 0 },
    { 0, MAP_0F, 0xBA, 4, SIZES, 1 }, { 0, MAP_0F, 0xBA, 5, SIZES | LOCKS, 1 }, { 0, MAP_0F, 0xBA, 6, SIZES | LOCKS, 1 },
    { 0, MAP_0F, 0xBA, 7, SIZES | LOCKS, 1 }, { 0, MAP_0F, 0xBC, ANY_REG, SIZES, 0 }, { 0, MAP_0F, 0xBD, ANY_REG, SIZES, 0 },
    { 0xF3, MAP_0F, 0xB8, ANY_REG, SIZES, 0 }, { 0xF3, MAP_0F, 0xBC, ANY_REG, WIDE, 0 }, { 0xF3, MAP_0F, 0xBD, ANY_REG, WIDE, 0 },
    { 0x66, MAP_0F38, 0xF6, ANY_REG, WIDE, 0 }, { 0xF3, MAP_0F38, 0xF6, ANY_REG, WIDE, 0 },         /* ADCX, ADOX */
    { 0, MAP_0F38, 0xF0, ANY_REG, WIDE | MEM, 0 }, { 0, MAP_0F38, 0xF1, ANY_REG, WIDE | MEM, 0 },   /* MOVBE */
    { 0xF2, MAP_0F38, 0xF1, ANY_REG, WIDE, 0 },                                                     /* CRC32 */
    { 0, MAP_NONE, 0xFF, 6, MEM, 0 }, { 0, MAP_NONE, 0x8F, 0, MEM, 0 },                             /* PUSH, POP */
    /* BMI1, BMI2 */
    { 0, MAP_0F38, 0xF2, ANY_REG, VEX | WIDE, 0 }, { 0, MAP_0F38, 0xF3, 1, VEX | WIDE, 0 }, { 0, MAP_0F38, 0xF3, 3, VEX | WIDE, 0 },
    { 0, MAP_0F38, 0xF7, ANY_REG, VEX | WIDE, 0 }, { 0x66, MAP_0F38, 0xF7, ANY_REG, VEX | WIDE, 0 },
    { 0xF2, MAP_0F38, 0xF7, ANY_REG, VEX | WIDE, 0 }, { 0xF3, MAP_0F38, 0xF5, ANY_REG, VEX | WIDE, 0 },
    { 0xF2, MAP_0F38, 0xF6, ANY_REG, VEX | WIDE, 0 }, { 0xF2, MAP_0F3A, 0xF0, ANY_REG, VEX | NO_VVVV | WIDE, 1 },
};

#define FLOAT_FORMS(op)                                                                                                    \
    { 0, MAP_0F, op, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F, op, ANY_REG, VECTOR, 0 }, { 0xF3, MAP_0F, op, ANY_REG, 0, 0 },  \
    { 0xF2, MAP_0F, op, ANY_REG, 0, 0 }

static const struct form sse_forms[] = {
    FLOAT_FORMS(0x58), FLOAT_FORMS(0x59), FLOAT_FORMS(0x5C), FLOAT_FORMS(0x5E), FLOAT_FORMS(0x51), FLOAT_FORMS(0x5D),
    { 0, MAP_0F, 0x10, ANY_REG, 0, 0 }, { 0, MAP_0F, 0x11, ANY_REG, 0, 0 }, { 0x66, MAP_0F, 0x10, ANY_REG, 0, 0 },
    { 0xF2, MAP_0F, 0x10, ANY_REG, 0, 0 }, { 0xF2, MAP_0F, 0x11, ANY_REG, 0, 0 }, { 0xF3, MAP_0F, 0x10, ANY_REG, 0, 0 },
    { 0xF3, MAP_0F, 0x11, ANY_REG, 0, 0 }, { 0, MAP_0F, 0x28, ANY_REG, VECTOR, 0 }, { 0, MAP_0F, 0x29, ANY_REG, VECTOR, 0 },
    { 0x66, MAP_0F, 0x6F, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F, 0x7F, ANY_REG, VECTOR, 0 }, { 0xF3, MAP_0F, 0x6F, ANY_REG, 0, 0 },
    { 0xF3, MAP_0F, 0x7F, ANY_REG, 0, 0 }, { 0x66, MAP_0F, 0x6E, ANY_REG, WIDE, 0 }, { 0x66, MAP_0F, 0x7E, ANY_REG, WIDE, 0 },
    { 0xF3, MAP_0F, 0x7E, ANY_REG, 0, 0 }, { 0x66, MAP_0F, 0xD6, ANY_REG, 0, 0 }, { 0, MAP_0F, 0x12, ANY_REG, 0, 0 },
    { 0, MAP_0F, 0x17, ANY_REG, MEM, 0 }, { 0, MAP_0F, 0x54, ANY_REG, VECTOR, 0 }, { 0, MAP_0F, 0x57, ANY_REG, VECTOR, 0 },
    { 0x66, MAP_0F, 0xEF, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F, 0xEB, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F, 0xFE, ANY_REG, VECTOR, 0 },
    { 0x66, MAP_0F, 0xD4, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F, 0x70, ANY_REG, VECTOR, 1 }, { 0x66, MAP_0F, 0x61, ANY_REG, VECTOR, 0 },
    { 0x66, MAP_0F, 0x74, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F, 0xD7, ANY_REG, REG, 0 }, { 0, MAP_0F, 0x50, ANY_REG, REG, 0 },
    { 0xF2, MAP_0F, 0x2A, ANY_REG, WIDE, 0 }, { 0xF3, MAP_0F, 0x2A, ANY_REG, WIDE, 0 }, { 0xF2, MAP_0F, 0x2C, ANY_REG, WIDE, 0 },
    { 0xF3, MAP_0F, 0x2D, ANY_REG, WIDE, 0 }, { 0, MAP_0F, 0x2E, ANY_REG, 0, 0 }, { 0x66, MAP_0F, 0x2F, ANY_REG, 0, 0 },
    { 0x66, MAP_0F38, 0x17, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F3A, 0x0F, ANY_REG, VECTOR, 1 }, { 0, MAP_0F, 0xC6, ANY_REG, VECTOR, 1 },
    { 0xF2, MAP_0F, 0x5A, ANY_REG, 0, 0 }, { 0, MAP_0F, 0x5B, ANY_REG, VECTOR, 0 }, { 0x66, MAP_0F38, 0x00, ANY_REG, VECTOR, 0 },
    { 0x66, MAP_0F, 0xE7, ANY_REG, MEM | VECTOR, 0 }, { 0, MAP_0F, 0xAE, 3, MEM, 0 },               /* MOVNTDQ, STMXCSR */
};

static const struct form avx_forms[] = {
    { 0, MAP_0F, 0x10, ANY_REG, VEX | NO_VVVV, 0 }, { 0, MAP_0F, 0x11, ANY_REG, VEX | NO_VVVV, 0 },
    { 0xF3, MAP_0F, 0x6F, ANY_REG, VEX | NO_VVVV, 0 }, { 0xF3, MAP_0F, 0x7F, ANY_REG, VEX | NO_VVVV, 0 },
    { 0, MAP_0F, 0x58, ANY_REG, VEX, 0 }, { 0x66, MAP_0F, 0x59, ANY_REG, VEX, 0 }, { 0, MAP_0F, 0x57, ANY_REG, VEX, 0 },
    { 0xF2, MAP_0F, 0x5C, ANY_REG, VEX, 0 }, { 0x66, MAP_0F, 0xEF, ANY_REG, VEX, 0 }, { 0x66, MAP_0F, 0xFE, ANY_REG, VEX, 0 },
    { 0x66, MAP_0F, 0x74, ANY_REG, VEX, 0 }, { 0x66, MAP_0F, 0xD7, ANY_REG, VEX | NO_VVVV | REG, 0 },
    { 0x66, MAP_0F38, 0xB8, ANY_REG, VEX, 0 }, { 0x66, MAP_0F38, 0x18, ANY_REG, VEX | NO_VVVV | MEM, 0 },
    { 0x66, MAP_0F38, 0x17, ANY_REG, VEX | NO_VVVV, 0 }, { 0x66, MAP_0F3A, 0x0F, ANY_REG, VEX, 1 },
    { 0x66, MAP_0F38, 0x2C, ANY_REG, VEX | MEM, 0 }, { 0x66, MAP_0F38, 0x8E, ANY_REG, VEX | MEM, 0 },       /* VMASKMOVPS, VPMASKMOVD */
};

/* MMX: registers of their own names in the place of x87's. */
static const struct form mmx_forms[] = {
    { 0, MAP_0F, 0x6E, ANY_REG, WIDE, 0 }, { 0, MAP_0F, 0x7E, ANY_REG, WIDE | REG, 0 }, { 0, MAP_0F, 0x6F, ANY_REG, 0, 0 },
    { 0, MAP_0F, 0xFD, ANY_REG, 0, 0 }, { 0, MAP_0F, 0xEF, ANY_REG, 0, 0 }, { 0, MAP_0F, 0xD5, ANY_REG, 0, 0 },
    { 0, MAP_0F, 0x61, ANY_REG, 0, 0 }, { 0, MAP_0F, 0x71, 2, REG, 1 }, { 0, MAP_0F, 0x70, ANY_REG, 0, 1 },
    { 0, MAP_0F, 0xD7, ANY_REG, REG, 0 }, { 0xF2, MAP_0F, 0xD6, ANY_REG, REG, 0 }, { 0xF3, MAP_0F, 0xD6, ANY_REG, REG, 0 },
    { 0, MAP_0F, 0x2A, ANY_REG, 0, 0 }, { 0, MAP_0F, 0x2D, ANY_REG, 0, 0 },                         /* CVTPI2PS, CVTPS2PI */
};

/* What shows the last x87 instruction, its opcode and operand, and what else of x87 state is control; with memory of up to 108 bytes. */
static const struct form x87_control_forms[] = {
    { 0, MAP_NONE, 0xD9, 6, MEM, 0 }, { 0, MAP_NONE, 0xD9, 6, MEM, 0 }, { 0, MAP_NONE, 0xDD, 6, MEM, 0 }, { 0, MAP_NONE, 0xD9, 5, MEM, 0 },
    { 0, MAP_NONE, 0xD9, 4, MEM, 0 }, { 0, MAP_NONE, 0xDD, 4, MEM, 0 },
};

/* Opcode D8 to DF in `opcode`; with memory. */
static const struct form x87_forms[] = {
    { 0, MAP_NONE, 0xD9, 0, MEM, 0 }, { 0, MAP_NONE, 0xDD, 0, MEM, 0 }, { 0, MAP_NONE, 0xDB, 5, MEM, 0 }, { 0, MAP_NONE, 0xDF, 0, MEM, 0 },
    { 0, MAP_NONE, 0xDB, 0, MEM, 0 }, { 0, MAP_NONE, 0xDF, 5, MEM, 0 }, { 0, MAP_NONE, 0xD9, 2, MEM, 0 }, { 0, MAP_NONE, 0xD9, 3, MEM, 0 },
    { 0, MAP_NONE, 0xDD, 2, MEM, 0 }, { 0, MAP_NONE, 0xDD, 3, MEM, 0 }, { 0, MAP_NONE, 0xDB, 7, MEM, 0 }, { 0, MAP_NONE, 0xDF, 7, MEM, 0 },
    { 0, MAP_NONE, 0xDB, 3, MEM, 0 }, { 0, MAP_NONE, 0xD8, 0, MEM, 0 }, { 0, MAP_NONE, 0xD8, 1, MEM, 0 }, { 0, MAP_NONE, 0xDC, 4, MEM, 0 },
    { 0, MAP_NONE, 0xDC, 6, MEM, 0 }, { 0, MAP_NONE, 0xDA, 0, MEM, 0 }, { 0, MAP_NONE, 0xD9, 7, MEM, 0 }, { 0, MAP_NONE, 0xDD, 7, MEM, 0 },
    { 0, MAP_NONE, 0xD8, ANY_REG, REG, 0 }, { 0, MAP_NONE, 0xDC, 0, REG, 0 }, { 0, MAP_NONE, 0xDE, 1, REG, 0 }, { 0, MAP_NONE, 0xD9, 0, REG, 0 },
    { 0, MAP_NONE, 0xD9, 1, REG, 0 }, { 0, MAP_NONE, 0xDB, 5, REG, 0 }, { 0, MAP_NONE, 0xDB, 6, REG, 0 }, { 0, MAP_NONE, 0xDF, 6, REG, 0 },
    { 0, MAP_NONE, 0xDD, 2, REG, 0 }, { 0, MAP_NONE, 0xDD, 3, REG, 0 }, { 0, MAP_NONE, 0xDA, ANY_REG, REG, 0 },
};

/* Whole instructions of one to three bytes: length, bytes. */
static const uint8_t short_forms[][4] = {
    { 1, 0x98 }, { 2, 0x48, 0x98 }, { 1, 0x99 }, { 2, 0x48, 0x99 }, { 1, 0xF5 }, { 1, 0xF8 }, { 1, 0xF9 }, { 1, 0xFC }, { 1, 0x9E },
    { 1, 0x9F }, { 1, 0x90 }, { 2, 0x66, 0x90 }, { 2, 0xD9, 0xE8 }, { 2, 0xD9, 0xE0 }, { 2, 0xD9, 0xEE }, { 2, 0xD9, 0xFA },
    { 2, 0xD9, 0xF6 }, { 2, 0xD9, 0xF7 }, { 2, 0xDF, 0xE0 }, { 1, 0x9B }, { 2, 0xDB, 0xE2 }, { 2, 0xDB, 0xE3 }, { 2, 0x0F, 0x77 }, { 3, 0xC5, 0xF8, 0x77 }, { 3, 0x0F, 0xAE, 0xF0 }, { 3, 0x0F, 0xAE, 0xE8 },
};

#endif
