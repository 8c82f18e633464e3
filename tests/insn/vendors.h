/* Where AMD's processors do another thing than Intel's manual says, or than Intel's do where it says nothing. */
#ifndef DOPPEL_TESTS_INSN_VENDORS_H
#define DOPPEL_TESTS_INSN_VENDORS_H

#include <Zydis/Zydis.h>
#include <stdbool.h>

/* The engines follow Intel's: an AMD host cannot judge this instruction. */
bool vendors_differ(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands);
/* The same for stores of the x87, whose order of faults differs where exceptions are unmasked. */
bool vendors_differ_unmasked(const ZydisDecodedInstruction *insn);

#endif
