/*
 * Zydis's records of 64-bit instructions, without asking Zydis each time. What an instruction of one shape (prefix, REX, opcode, and
 * what of ModRM chooses an instruction) is, Zydis is asked once; its answer is a template, of which every later instruction of that
 * shape differs only in registers, address and constants, which are read off the bytes. The result is the same to the last bit, which
 * tests/unit/templates.c compares over all opcodes.
 */
#ifndef DOPPEL_X86_TEMPLATES_H
#define DOPPEL_X86_TEMPLATES_H

#include <Zydis/Zydis.h>
#include <stddef.h>
#include <stdint.h>

#include "x86/decode.h"

struct templates;

/* NULL: no memory. The decoder is one of 64-bit mode and stays as it is. To be used by one thread at a time. */
struct templates *templates_create(const ZydisDecoder *decoder);
void templates_destroy(struct templates *templates);

/* What ZydisDecoderDecodeFull does. */
ZyanStatus templates_decode(struct templates *templates, const uint8_t *bytes, size_t size, ZydisDecodedInstruction *z,
                            ZydisDecodedOperand *operands);

/*
 * What decode() makes of those records, without the records, which are several times as large. False: there is no template for it yet, or never, or
 * the bytes are too few.
 */
bool templates_insn(const struct templates *templates, const uint8_t *bytes, size_t size, struct insn *insn);

/* The compact record from Zydis's (decode.c). */
void insn_from_records(struct insn *insn, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operands, const uint8_t *bytes);

/* The same by the decoder's templates if it has some, else by Zydis. */
ZyanStatus decoder_records(const struct decoder *decoder, const uint8_t *bytes, size_t size, ZydisDecodedInstruction *z,
                           ZydisDecodedOperand *operands);

#endif
