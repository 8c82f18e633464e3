/*
 * Native execution (DESIGN D2): SIMD, x87, MMX, AES, SHA, BMI and other unprivileged instructions run on the host's own
 * processor, on the guest's registers. At decode time native_prepare makes a stub: a few host instructions that load just
 * the state the instruction reads, the instruction itself with its memory operand redirected, and stores of what it wrote.
 *
 * What is prepared here (all else is NATIVE_NOT_MINE and the interpreter's own):
 *   every x87, MMX, SSE to AVX-512, AES, SHA, GFNI, PCLMULQDQ, F16C, FMA instruction; opmask instructions; VZERO*;
 *   BMI1, BMI2, LZCNT, TZCNT, POPCNT, CRC32, MOVBE, ADCX/ADOX, BSF, BSR, SHLD, SHRD, MOVNTI, MOVDIRI, MOVDIR64B;
 *   FXSAVE/FXRSTOR and the XSAVE family with XGETBV; LDMXCSR, STMXCSR; WAIT;
 *   PREFETCH*, CLFLUSH, CLFLUSHOPT, CLWB, CLDEMOTE, LFENCE, SFENCE, MFENCE; RDPKRU, WRPKRU.
 *
 * A cache belongs to one vCPU. Nothing here keeps the address of an instruction: stubs are shared by content.
 */
#ifndef DOPPEL_ENGINE_INTERP_NATIVE_H
#define DOPPEL_ENGINE_INTERP_NATIVE_H

#include <Zydis/Zydis.h>

#include "vcpu/vcpu.h"

struct native_cache;

/* The part of a stub that its user may look at. */
struct native_stub {
    uint16_t flags_read;        /* RFLAGS_STATUS bits that must be right in vcpu->rflags before */
    uint16_t flags_written;     /* RFLAGS_STATUS bits that vcpu->rflags holds anew after */
};

enum native_verdict {
    NATIVE_OK,                  /* *stub is set; it may be one that always raises #UD (feature not offered) */
    NATIVE_NOT_MINE,
    NATIVE_FULL,                /* drop every decoded instruction, call native_cache_reset, decode again */
};

/* --- any thread --- */

/* NULL: no memory, or the host forbids executable mappings. Installs the process's signal handlers where they are not. */
struct native_cache *native_cache_create(void);
void native_cache_destroy(struct native_cache *cache);

/* Bytes of the widest vector register of this host: 16, 32 or 64. */
unsigned native_host_vector_bytes(void);

/* --- vCPU thread --- */

/* Forgets every stub; none handed out before may be used again. */
void native_cache_reset(struct native_cache *cache);

/*
 * Makes or finds the stub of one decoded instruction. `operands` are all of them (insn->operand_count, hidden ones included);
 * `bytes` are the instruction's insn->length bytes. The model of `vcpu` says which features are offered.
 */
enum native_verdict native_prepare(struct native_cache *cache, const struct vcpu *vcpu, const ZydisDecodedInstruction *insn,
                                   const ZydisDecodedOperand *operands, const uint8_t *bytes,
                                   const struct native_stub **stub);

/*
 * Runs it. Before: vcpu->rip is this instruction's address, vcpu->gpr and the flags named by flags_read are right. The stub
 * computes effective and linear addresses itself and makes every check. True: done, all results are in the vCPU; the
 * caller moves rip on. False: vcpu->pending holds the fault; state is as the manual wants it for that fault.
 */
bool native_execute(struct vcpu *vcpu, const struct native_stub *stub);

/*
 * For a translator that keeps vector and x87 state in the processor and sees to the memory operand itself: may the instruction be copied
 * into its code, in the present state of control registers?
 */
enum {
    NATIVE_COPY_NOT = 0,
    NATIVE_COPY = 1,            /* with what else is set: */
    NATIVE_COPY_VECTOR = 2,     /* vector registers or MXCSR must be the guest's */
    NATIVE_COPY_X87 = 4,        /* x87 state must be in the processor (native_load_x87) */
    NATIVE_COPY_NOTED = 8,      /* it becomes the last x87 instruction: vcpu->x87.last */
};
unsigned native_copies(const struct vcpu *vcpu, const struct native_stub *stub);

/*
 * x87 state stays in the host's processor between x87 instructions: this brings it back to vcpu->fpu. To be called on the
 * thread that ran native_execute before anybody else looks at vcpu->fpu.fxsave: at the latest when the engine returns.
 */
void native_sync(struct vcpu *vcpu);
/* Brings x87 state into the processor if it is not there; clobbers vector registers. */
void native_load_x87(struct vcpu *vcpu);

#endif
