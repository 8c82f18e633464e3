/* What the files of native execution share. Nothing outside native*.c includes this. */
#ifndef DOPPEL_ENGINE_INTERP_NATIVE_IMPL_H
#define DOPPEL_ENGINE_INTERP_NATIVE_IMPL_H

#include <signal.h>

#include "engine/interp/native.h"
#include "mmu/block.h"
#include "x86/x86.h"

struct stub;

/* A stub's code: runs on the vCPU's registers with `memory` as its operand; 0, or 1 after it was left through its fault exit. */
typedef int native_code(struct vcpu *vcpu, void *memory);

/* Runs a stub after the checks that all share; false: fault pending. */
typedef bool native_handler(struct vcpu *vcpu, const struct stub *stub);

enum { NO_REGISTER = 0xFF };

/* The memory operand's address, as data (SDM1 §3.7.5 "Specifying an Offset"). */
struct stub_address {
    int64_t disp;
    uint64_t mask;              /* of the address size */
    uint8_t base, index;        /* enum gpr, or NO_REGISTER */
    uint8_t scale;
    uint8_t seg;                /* enum seg */
    bool rip_relative;
    bool mode64;
};

/* Pieces of an instruction that the handlers written in C ask for. */
struct stub_detail {
    uint16_t mnemonic;          /* ZydisMnemonic */
    uint8_t reg, rm, vvvv;      /* register numbers by encoding, NO_REGISTER if none */
    uint8_t mask;               /* k register of EVEX masking, 0 if none */
    uint8_t index;              /* vector index register of VSIB */
    uint8_t element;            /* bytes of one memory element */
    uint8_t index_element;      /* bytes of one VSIB index */
    uint8_t mask_count;         /* elements that the mask governs */
    uint8_t mask_group;         /* mask bits for each memory element */
    bool whole;                 /* faults are not suppressed: all of memory must be accessible */
    uint8_t vector_bytes;       /* vector length of a gather */
    uint8_t operand_width;      /* bits */
    bool rex_w;
    bool evex;
};

struct stub {
    struct native_stub public;
    native_handler *handler;
    native_code *code;
    /* Checks (SDM3 §2.5, SDM1 §13.5; SDM2 §2.4 and §2.8 exception classes): any of these makes check_fault look closer. */
    uint32_t cr0_ud, cr0_nm, cr4_need, xcr0_need;
    bool other_encoding;        /* the stub runs another instruction than the guest wrote */
    bool not_real;              /* #UD in real-address and virtual-8086 mode */
    bool x87;                   /* uses x87 or MMX state */
    bool mmx;                   /* of these, MMX */
    bool control;               /* of these, leaves the instruction pointer alone */
    bool waiting;               /* #MF if an unmasked x87 exception is pending */
    bool mxcsr;                 /* may raise #XM */
    bool reads, writes;         /* its memory operand */
    bool aligned;               /* #GP(0) unless the operand is aligned to its size */
    uint8_t length;
    uint16_t size;              /* bytes of the memory operand */
    uint16_t fop;               /* x87 opcode (SDM1 §8.1.9) */
    struct stub_address address;
    struct stub_detail detail;
    /* Where the instruction itself is, and where a fault goes on: for the signal handler. */
    uintptr_t insn_at, fault_exit;
};

static inline const struct stub *stub_of(const struct native_stub *public) { return container_of(public, struct stub, public); }

/* --- native_signal.c: host faults inside a stub --- */

/* The running stub of this thread, and the signal that ended it. */
struct native_trap {
    const struct stub *volatile stub;
    volatile int signal, code;
};
extern _Thread_local struct native_trap native_trap;
bool native_signal_install(void);

/* Runs a stub's code on a host address. */
static inline bool native_call(struct vcpu *vcpu, const struct stub *stub, void *memory)
{
    native_trap.stub = stub;
    return likely(!stub->code(vcpu, memory));
}

/*
 * Is a misaligned operand of SHA #GP on this host, as the manual has it? Intel's processors say so, AMD's read it. A host without SHA
 * says yes. After native_signal_install.
 */
bool native_sha_faults_misaligned(void);

/* Raises in the guest what ended the stub on the host; always false. */
bool native_reflect(struct vcpu *vcpu, const struct stub *stub);

/* --- native_arena.c: executable memory, written through a second mapping (W^X) --- */
struct native_arena {
    uint8_t *write, *execute;
    size_t size, used;
};
bool arena_open(struct native_arena *arena, size_t size);
void arena_close(struct native_arena *arena);

/* --- native_encode.c --- */

/* A guest general register and the host register that stands for it in the stub. */
struct gpr_slot {
    uint8_t guest, host;
    bool high;                  /* AH, CH, DH, BH */
    bool written;
};

struct encoding {
    uint8_t bytes[16];
    unsigned length;
    struct gpr_slot slot[6];
    unsigned slots;
};
/* The instruction anew, for 64-bit mode, memory operand at [RSI]; false: cannot. */
bool native_encode(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, const uint8_t *bytes,
                   struct encoding *out);
/* Register number of an operand, 0 to 31. */
unsigned native_register(const ZydisDecodedOperand *operand);

/* --- native_emit.c --- */

/* Vector state that the stub moves. */
struct stub_plan {
    uint32_t vectors, vectors_written;  /* bit n: register n */
    uint8_t masks, masks_written;
    uint8_t load_width;         /* 16, 32 or 64 bytes */
    bool full_store;            /* a VEX or EVEX destination: zeroed to the top */
    bool flags_in, flags_out;
    bool x87;                   /* moves all x87 state: only where it is not in the processor already */
    bool mxcsr;
};
/* Emits code for stub; false: the arena is full. */
bool native_emit(struct native_arena *arena, struct stub *stub, const struct encoding *encoding, const struct stub_plan *plan);

/* --- native_class.c --- */
bool native_is_mine(const ZydisDecodedInstruction *insn);
bool native_is_x87(const ZydisDecodedInstruction *insn);
bool native_touches_vectors(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands);
bool native_offered(const struct vcpu *vcpu, const ZydisDecodedInstruction *insn, bool vectors);
bool native_uses_mxcsr(const ZydisDecodedInstruction *insn);
bool native_must_be_aligned(const ZydisDecodedInstruction *insn, unsigned size);
bool native_suppresses_faults(const ZydisDecodedInstruction *insn);
/* Fills in what must hold before the instruction may run, and which x87 rules it is under. */
void native_set_checks(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, bool vectors);

/* --- native_operands.c --- */
void native_set_operands(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands);
native_handler *native_pick_handler(struct stub *stub, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands);
void native_plan(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *operands, struct stub *stub, struct stub_plan *plan);

/* --- native_memory.c --- */
uint64_t native_effective(const struct vcpu *vcpu, const struct stub *stub);
/*
 * The linear address if no rule of segmentation can object that a TLB hit would not answer for: 64-bit mode (a hit implies
 * a canonical address), or a flat, writable data segment.
 */
static inline bool native_flat(const struct vcpu *vcpu, const struct stub *stub, uint64_t offset, uint64_t *gla)
{
    const struct segment *seg = &vcpu->seg[stub->address.seg];
    *gla = offset;
    if (likely(stub->address.mode64)) {
        if (stub->address.seg >= FS)
            *gla += seg->base;
        return true;
    }
    const uint32_t relevant = SEG_UNUSABLE | SEG_P | SEG_S | SEG_CODE | SEG_EXPAND_DOWN | SEG_WRITABLE;
    return seg->base == 0 && seg->limit == ~0u && (seg->attr & relevant) == (SEG_P | SEG_S | SEG_WRITABLE);
}

/* Offset to linear address with the segment's checks; false: fault pending. */
bool native_linear(struct vcpu *vcpu, const struct stub *stub, uint64_t offset, unsigned size, bool write, uint64_t *gla);
/* gla + n, which has 32 bits outside 64-bit mode (SDM3 §3.3). */
static inline uint64_t native_add(const struct stub *stub, uint64_t gla, unsigned n)
{
    return stub->address.mode64 ? gla + n : (uint32_t)(gla + n);
}
/* Effective address of the operand, linear, aligned where it must be. */
bool native_address(struct vcpu *vcpu, const struct stub *stub, uint64_t *gla);
native_handler native_run_register, native_run_memory, native_run_undefined;

/* --- native_mask.c --- */
native_handler native_run_masked, native_run_compress, native_run_maskmov, native_run_maskmovdqu, native_run_gather, native_run_scatter,
    native_run_half;

/* --- native_x87.c --- */
native_handler native_run_x87;
/* FNSTENV, FLDENV, FNSAVE, FRSTOR. */
native_handler native_run_environment;

/* --- native_special.c --- */
/* The handler in C of an instruction that no stub runs; NULL: none. */
native_handler *native_special(ZydisMnemonic mnemonic);

#endif
