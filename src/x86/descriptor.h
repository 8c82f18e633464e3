/*
 * Segment and gate descriptors as they stand in memory (SDM3 §3.4.5 "Segment Descriptors", §3.5 "System Descriptor Types",
 * §5.8.3 "Call Gates", §6.11 "IDT Descriptors") and what the files of this room share to read them and to use stacks.
 */
#ifndef DOPPEL_X86_DESCRIPTOR_H
#define DOPPEL_X86_DESCRIPTOR_H

#include "mmu/mmu.h"
#include "x86/x86.h"

/* SDM3 table 3-2 "System-Segment and Gate-Descriptor Types". In IA-32e mode 9, 11, 12, 14 and 15 are the 64-bit ones. */
enum system_type {
    SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INT16 = 6, SYS_TRAP16 = 7,
    SYS_TSS32 = 9, SYS_TSS32_BUSY = 11, SYS_CALL32 = 12, SYS_INT32 = 14, SYS_TRAP32 = 15,
};

enum { SELECTOR_TI = 4, SELECTOR_RPL = 3 };

struct descriptor {
    uint64_t low, high;         /* high: bytes 8-15 of a 16-byte system descriptor, else 0 */
    uint64_t gla;               /* where it was read */
    uint16_t selector;
};

static inline uint32_t descriptor_attr(const struct descriptor *d) { return (d->low >> 40) & 0xF0FF; }
static inline unsigned descriptor_dpl(const struct descriptor *d) { return bits(d->low, 46, 45); }
static inline bool descriptor_present(const struct descriptor *d) { return bits(d->low, 47, 47); }
static inline unsigned descriptor_type(const struct descriptor *d) { return bits(d->low, 43, 40); }
static inline bool descriptor_is_system(const struct descriptor *d) { return !bits(d->low, 44, 44); }
static inline bool descriptor_is_code(const struct descriptor *d) { return bits(d->low, 44, 43) == 3; }
static inline bool descriptor_is_conforming(const struct descriptor *d) { return d->low & BIT(42); }
static inline bool descriptor_is_code64(const struct descriptor *d) { return d->low & BIT(53); }
static inline bool descriptor_is_code32(const struct descriptor *d) { return d->low & BIT(54); }
static inline bool descriptor_is_writable_data(const struct descriptor *d)
{
    return bits(d->low, 44, 43) == 2 && (d->low & BIT(41));
}
static inline uint32_t descriptor_limit(const struct descriptor *d)
{
    uint32_t limit = bits(d->low, 15, 0) | bits(d->low, 51, 48) << 16;
    return d->low & BIT(55) ? limit << 12 | 0xFFF : limit;
}
static inline uint64_t descriptor_base(const struct descriptor *d)
{
    return bits(d->low, 39, 16) | bits(d->low, 63, 56) << 24 | bits(d->high, 31, 0) << 32;
}
/* Gates: the selector and the offset of the code they lead to. */
static inline uint16_t gate_selector(const struct descriptor *d) { return bits(d->low, 31, 16); }
static inline uint64_t gate_offset(const struct descriptor *d)
{
    return bits(d->low, 15, 0) | bits(d->low, 63, 48) << 16 | bits(d->high, 31, 0) << 32;
}

static inline bool selector_is_null(uint16_t selector) { return !(selector & ~SELECTOR_RPL); }
/* The error code of a fault that names a selector; ext: the fault came up while an external event was delivered. */
static inline uint32_t selector_error(uint16_t selector, uint32_t ext) { return (selector & ~3u) | ext; }

/* The linear address of the descriptor, if all `size` bytes of it are within its table. */
bool descriptor_locate(const struct vcpu *vcpu, uint16_t selector, unsigned size, uint64_t *gla);
/* Reads 8 bytes; raises vector(selector_error) where the selector is outside its table. */
bool descriptor_read(struct vcpu *vcpu, uint16_t selector, uint8_t vector, uint32_t ext, struct descriptor *d);
/* For the system descriptors that have 16 bytes in IA-32e mode: reads the rest; raises also where its type is not 0. */
bool descriptor_read_high(struct vcpu *vcpu, struct descriptor *d, uint8_t vector, uint32_t ext);
/* Sets bits of the type field in memory, atomically against other processors, and in *d. */
bool descriptor_set_type_bits(struct vcpu *vcpu, struct descriptor *d, unsigned type_bits);
bool descriptor_clear_type_bits(struct vcpu *vcpu, struct descriptor *d, unsigned type_bits);
bool descriptor_set_accessed(struct vcpu *vcpu, struct descriptor *d);

/* The hidden part of a segment register from a descriptor; the selector is stored as it is. */
void segment_from_descriptor(struct segment *segment, const struct descriptor *d, uint16_t selector);
/* A segment register with a null selector: not usable; SS remembers the CPL. */
struct segment segment_null(uint16_t selector, unsigned dpl);
/* What a segment register holds after a load in real-address or V86 mode (SDM3 §21.1.1, §21.2). */
void segment_load_real(struct segment *segment, uint16_t selector);
/* The same for CS, which stays the code segment that it was after a reset or before CR0.PE was cleared. */
void segment_load_real_code(struct segment *cs, uint16_t selector);
void segment_load_v86(struct segment *segment, uint16_t selector);

/*
 * offset..offset+size-1 in a segment of legacy or compatibility mode: are limit and, if check_type, type right?
 * Gives the linear address.
 */
bool segment_linear(const struct segment *segment, bool check_type, uint64_t offset, unsigned size, bool write, uint64_t *gla);

/* Is rip a valid start of execution in the code segment? Raises #GP(ext) otherwise. */
bool check_code_offset(struct vcpu *vcpu, const struct segment *cs, uint64_t rip, uint32_t ext);

/*
 * A stack that is being pushed to or popped from. It touches no register before stack_commit, so that a fault in the
 * middle leaves the processor as it was.
 */
struct stack {
    struct segment ss;
    uint64_t sp;
    uint64_t mask;              /* which bits of RSP are the pointer: 16, 32 or 64 */
    bool flat64;                /* 64-bit mode: no segmentation */
    bool check_type;            /* protected mode */
    enum mmu_class class;
    uint32_t error;             /* of the #SS where the segment does not reach */
};

/* The present stack, at the present CPL. */
struct stack stack_present(const struct vcpu *vcpu, uint32_t ext);
/* Another stack at privilege `cpl`. flat64: the code that will use it is 64-bit. */
struct stack stack_other(const struct vcpu *vcpu, const struct segment *ss, uint64_t sp, unsigned cpl, bool flat64, uint32_t error);
bool stack_push(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t value);
bool stack_pop(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t *value);
/* SS stays; RSP takes the stack's pointer in the width that the stack has. */
void stack_commit(struct vcpu *vcpu, const struct stack *stack);

/* CPL, mode and MMU tables after CS, RFLAGS or both have changed. */
void commit_privilege(struct vcpu *vcpu, unsigned cpl);

/* The inner stack of the present TSS for a transfer to `cpl` (SDM3 §5.8.5): SS selector (null in IA-32e mode) and pointer. */
bool tss_inner_stack(struct vcpu *vcpu, unsigned cpl, uint32_t ext, uint16_t *ss, uint64_t *sp);
/* Checks and loads the SS of an inner stack; #TS, or #SS where not present. */
bool load_inner_ss(struct vcpu *vcpu, uint16_t selector, unsigned cpl, uint32_t ext, struct segment *ss);
/* RET and IRET: the code segment to return to, and the stack segment that goes with it at privilege `cpl`. */
bool check_return_code(struct vcpu *vcpu, uint16_t selector, struct descriptor *d);
bool check_return_stack(struct vcpu *vcpu, uint16_t selector, unsigned cpl, bool code64, struct segment *ss);
/* Returning outwards: data segments that the outer code may not hold become null (SDM3 §5.8.6). */
void drop_inner_data_segments(struct vcpu *vcpu, unsigned cpl);

/* A task switch with all that it needs to know (task.c). */
struct task_transfer {
    uint16_t tss_selector;
    enum task_source source;
    uint64_t return_rip, rflags;        /* what the old task's TSS remembers */
    bool has_error;                     /* pushed on the new task's stack */
    uint32_t error;
    uint32_t ext;                       /* of the error codes of the switch's own faults */
};
bool task_switch(struct vcpu *vcpu, const struct task_transfer *transfer);

#endif
