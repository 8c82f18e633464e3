/*
 * Flags, by letting the host compute them: an instruction's inline assembly ends by LAHF and SETO, and where its result
 * depends on flags that were there before, begins by ADD AL,7Fh (sets OF from AL) and SAHF. What the manual calls
 * undefined is so just what this host's processor leaves.
 * Packed form, as in AX: bits 8 to 15 the low byte of RFLAGS, bit 0 OF.
 */
#ifndef DOPPEL_INTERP_FLAGS_H
#define DOPPEL_INTERP_FLAGS_H

#include "vcpu/vcpu.h"

#define FLAGS_SAVE "lahf\n\tseto %%al\n\t"
#define FLAGS_LOAD "addb $0x7f, %%al\n\tsahf\n\t"

static inline uint64_t flags_merge(uint64_t rflags, uint64_t packed, uint64_t mask)
{
    uint64_t status = ((packed >> 8) & 0xFF) | ((packed & 1) << 11);
    return (rflags & ~mask) | (status & mask);
}

/* All six at once, the common case: bit 1 of the packed byte is always set, as it is in RFLAGS. */
static inline void flags_set(struct vcpu *vcpu, uint64_t packed)
{
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_STATUS) | (uint8_t)(packed >> 8) | (uint64_t)(uint8_t)packed << 11;
}

static inline uint64_t flags_pack(uint64_t rflags)
{
    return (rflags & 0xFF) << 8 | ((rflags >> 11) & 1);
}

/* The sixteen conditions, by the low four bits of the opcode (SDM1 appendix B). */
static inline bool condition(uint64_t f, unsigned cc)
{
    bool value;
    switch (cc >> 1) {
    case 0: value = f & RFLAGS_OF; break;
    case 1: value = f & RFLAGS_CF; break;
    case 2: value = f & RFLAGS_ZF; break;
    case 3: value = f & (RFLAGS_CF | RFLAGS_ZF); break;
    case 4: value = f & RFLAGS_SF; break;
    case 5: value = f & RFLAGS_PF; break;
    case 6: value = ((f >> 7) ^ (f >> 11)) & 1; break;
    default: value = (((f >> 7) ^ (f >> 11)) & 1) || (f & RFLAGS_ZF); break;
    }
    return value != (bool)(cc & 1);
}

#endif
