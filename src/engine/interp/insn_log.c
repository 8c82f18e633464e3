#include "engine/interp/insn_log.h"

#include <stdio.h>

#include "engine/interp/block.h"

static const char *const gpr_names[16] = {
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
};

void insn_log_before(struct insn_log *log, struct vcpu *vcpu, const struct block *block)
{
    uint8_t bytes[INSN_LENGTH_MAX];
    unsigned length = block->op[0].length;
    log->rip = vcpu->rip;
    log->guest = vcpu->vmx.guest;
    log->rflags = vcpu->rflags;
    memcpy(log->gpr, vcpu->gpr, sizeof(log->gpr));
    uint64_t gla = vcpu->mode == MODE_LONG64 ? vcpu->rip : (uint32_t)(vcpu->seg[CS].base + vcpu->rip);
    unsigned used = 0;
    log->text[0] = 0;
    /* An undecodable instruction has no length here; it is about to fault anyway. The block was just fetched from there. */
    if (length && length <= sizeof(bytes) && mmu_fetch_bytes(vcpu, gla, bytes, length)) {
        for (unsigned i = 0; i < length; i++)
            used += (unsigned)snprintf(log->text + used, sizeof(log->text) - used, "%02x", bytes[i]);
        used += (unsigned)snprintf(log->text + used, sizeof(log->text) - used, " ");
        decode_format(&interp_of(vcpu)->cache->decoder[vcpu->mode], bytes, length, vcpu->rip, log->text + used,
                      sizeof(log->text) - used);
    }
}

void insn_log_after(const struct insn_log *log, struct vcpu *vcpu)
{
    char changes[640];
    unsigned used = 0;
    changes[0] = 0;
    for (unsigned i = 0; i < 16; i++)
        if (vcpu->gpr[i] != log->gpr[i])
            used += (unsigned)snprintf(changes + used, sizeof(changes) - used, " %s=%lx", gpr_names[i], vcpu->gpr[i]);
    if (vcpu->rflags != log->rflags)
        used += (unsigned)snprintf(changes + used, sizeof(changes) - used, " rflags=%lx", vcpu->rflags);
    if (vcpu->pending.kind != EVENT_NONE)
        snprintf(changes + used, sizeof(changes) - used, " -> vector %u", vcpu->pending.vector);
    trace_print(vcpu->log, TRACE_cpu_insn, "%u %s%lx %s%s", vcpu->index, log->guest ? "L2 " : "", log->rip, log->text, changes);
}
