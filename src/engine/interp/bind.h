/* From a decoded instruction to an op: the handler that suits its operands. */
#ifndef DOPPEL_INTERP_BIND_H
#define DOPPEL_INTERP_BIND_H

#include "engine/interp/address.h"
#include "x86/decode.h"


enum alu { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP, ALU_TEST, ALU_COUNT };
enum shift { SHIFT_ROL, SHIFT_ROR, SHIFT_RCL, SHIFT_RCR, SHIFT_SHL, SHIFT_SHR, SHIFT_SAR, SHIFT_COUNT };
enum unary { UNARY_INC, UNARY_DEC, UNARY_NEG, UNARY_NOT, UNARY_COUNT };
enum string { STRING_MOVS, STRING_STOS, STRING_LODS, STRING_CMPS, STRING_SCAS, STRING_INS, STRING_OUTS, STRING_COUNT };
/* Argument of pick_string: which one and the element size. */
#define STRING_ARG(kind, size) (STRING_##kind << 4 | (size))
#define STRING_KIND(arg) ((uint8_t)((arg) >> 4))
#define STRING_SIZE(arg) ((uint8_t)((arg) & 15))
enum bit_op { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

/* Does the block go on behind the instruction? */
enum flow { FLOWS, ENDS };

/* A picker may look at everything and returns the handler. */
typedef op_fn *pick_fn(const struct insn *insn, struct op *op, enum family family, unsigned argument);

static inline unsigned size_index(unsigned size) { return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3; }

#define INSN(mnemonic, handler, flow) op_fn handler;
#define INSN_PICK(mnemonic, pick, argument, flow) pick_fn pick;
#include "x86/insn.def"
#undef INSN
#undef INSN_PICK

enum bind_result {
    BIND_FLOWS,             /* the block goes on behind it */
    BIND_ENDS,
    BIND_FULL,              /* no room for a native stub: drop everything and start again */
};
/* Fills in `op` for an instruction `where` bytes from its block's start under mode key `key`. */
enum bind_result bind_op(struct vcpu *vcpu, const struct insn *insn, struct op *op, unsigned where, uint32_t key,
                      const struct decoder *decoder);

/* The stub of an instruction that is run natively (native.h), NULL of others. */
struct native_stub;
const struct native_stub *op_native_stub(const struct op *op);

/* One element of INS and OUTS, for the repetition in ops_string.c. */
bool ins_one(struct vcpu *vcpu, const struct op *op);
bool outs_one(struct vcpu *vcpu, const struct op *op);

/* Pseudo-ops. */
op_fn op_fallthrough, op_too_long;

/* Shared by pickers. */
pick_fn pick_mov_system;
op_fn op_imul_wide, op_rdbase, op_wrbase, op_load_far, op_ret_far;

#endif
