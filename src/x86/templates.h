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

struct templates;

/* NULL: no memory. The decoder is one of 64-bit mode and stays as it is. To be used by one thread at a time. */
struct templates *templates_create(const ZydisDecoder *decoder);
void templates_destroy(struct templates *templates);

/* What ZydisDecoderDecodeFull does. */
ZyanStatus templates_decode(struct templates *templates, const uint8_t *bytes, size_t size, ZydisDecodedInstruction *z,
                            ZydisDecodedOperand *operands);

struct decoder;
/* The same by the decoder's templates if it has some, else by Zydis. */
ZyanStatus decoder_records(const struct decoder *decoder, const uint8_t *bytes, size_t size, ZydisDecodedInstruction *z,
                           ZydisDecodedOperand *operands);

#endif
