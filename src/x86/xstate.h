/* The x87 and vector state of struct fpu, as its users see it. On the vCPU's thread. */
#ifndef DOPPEL_X86_XSTATE_H
#define DOPPEL_X86_XSTATE_H

#include <string.h>

#include "vcpu/vcpu.h"

/* Places in the FXSAVE image (SDM1 table 10-2 "Format of an FXSAVE Area"). */
enum {
    IMAGE_FCW = 0, IMAGE_FSW = 2, IMAGE_FTW = 4, IMAGE_FOP = 6, IMAGE_FIP = 8, IMAGE_FDP = 16, IMAGE_MXCSR = 24,
    IMAGE_MXCSR_MASK = 28, IMAGE_ST = 32, IMAGE_XMM = 160, IMAGE_BYTES = 512,
};

enum {
    FCW_INIT = 0x037F, MXCSR_INIT = 0x1F80,
    FSW_ES = 0x80,              /* an unmasked exception is pending */
};
/* Bits of MXCSR that may be set: the same for every model, so that a saved guest can move (SDM1 §11.6.6). */
#define MXCSR_MASK 0xFFFFu

static inline uint64_t image_get(const uint8_t *at, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, at, size);
    return v;
}

static inline void image_put(uint8_t *at, uint64_t v, unsigned size)
{
    memcpy(at, &v, size);
}

static inline uint32_t fpu_mxcsr(const struct fpu *fpu)
{
    uint32_t value;
    memcpy(&value, fpu->fxsave + IMAGE_MXCSR, sizeof(value));
    return value;
}

static inline void fpu_set_mxcsr(struct fpu *fpu, uint32_t value)
{
    memcpy(fpu->fxsave + IMAGE_MXCSR, &value, sizeof(value));
}

static inline bool fpu_exception_pending(const struct fpu *fpu)
{
    return fpu->fxsave[IMAGE_FSW] & FSW_ES;
}

/* Registers 0 to 15 in 64-bit mode, 0 to 7 elsewhere. */
static inline unsigned fpu_register_count(const struct vcpu *vcpu)
{
    return vcpu_code64(vcpu) ? 16 : 8;
}

/* fpu.c: the 24 bytes of x87 control fields and the stack, between `image` and the vCPU, in 64-bit or 32-bit format. */
void fpu_put_x87(const struct fpu *fpu, bool rex_w, uint8_t *image);
void fpu_get_x87(struct vcpu *vcpu, bool rex_w, const uint8_t *image);
void fpu_init_x87(struct fpu *fpu);
/* What every MMX instruction but EMMS does: top of stack 0, all tags valid (SDM1 §9.5.1). MM register n is then slot n. */
void fpu_enter_mmx(struct fpu *fpu);

/* xsave.c: XINUSE (SDM1 §13.6 "Processor Tracking of XSAVE-Managed State"): components not in their initial state. */
uint64_t x86_xinuse(const struct vcpu *vcpu);

#endif
