/* The instruction log: a line for each instruction with its bytes, text and the registers that it changed. */
#ifndef DOPPEL_INTERP_INSN_LOG_H
#define DOPPEL_INTERP_INSN_LOG_H

#include "engine/interp/op.h"

struct insn_log {
    uint64_t rip, rflags, gpr[16];
    uint64_t gla;
    char text[160];
    bool guest;                 /* in VMX non-root operation */
};

void insn_log_before(struct insn_log *log, struct vcpu *vcpu, const struct block *block);
void insn_log_after(const struct insn_log *log, struct vcpu *vcpu);

#endif
