/*
 * Memory operands. Three families of fast paths, chosen when the block is decoded:
 *   flat64   64-bit mode with 64-bit addresses; only FS and GS have a base
 *   flat32   32-bit addresses where ES, SS, DS are flat (base 0, limit 4 GiB)
 *   far      everything else, and whenever alignment is checked: limits, bases, 16-bit addresses, through x86_linear
 * All read a TLB tag inline; a miss goes to the functions here, which check what the MMU cannot know.
 */
#ifndef DOPPEL_INTERP_ADDRESS_H
#define DOPPEL_INTERP_ADDRESS_H

#include "engine/interp/op.h"

/* Two results in registers: no local variable's address leaves a handler, so that its last call can be a jump. */
struct slow_value {
    uint64_t value;
    uint64_t ok;
};

enum family { FLAT64, FLAT32, FAR_, FAMILIES };

struct slow_value load_slow(struct vcpu *vcpu, uint64_t gla, unsigned size, unsigned seg);
bool store_slow(struct vcpu *vcpu, uint64_t gla, uint64_t value, unsigned size, unsigned seg);
/* Linear address by all the rules; ok false: fault pending. */
struct slow_value far_linear(struct vcpu *vcpu, const struct op *op, unsigned size, bool write);
/* Raises #GP(0) or #SS(0) unless all bytes of a 64-bit-mode access are canonical. */
bool check_canonical(struct vcpu *vcpu, uint64_t gla, unsigned size, unsigned seg);

/* The effective address (LEA; not yet with a segment base). */
static inline uint64_t op_offset(struct vcpu *vcpu, const struct op *op)
{
    if (op->flags & OP_MOFFS)
        return op->imm & size_mask(op->address_size);
    uint64_t offset = reg64(vcpu, op->base) + (reg64(vcpu, op->index) << op->scale) + (int64_t)op->disp;
    if (op->flags & OP_RIP_FAR)
        offset += op->where + op->length;
    return offset & size_mask(op->address_size);
}

static inline uint64_t flat64_address(struct vcpu *vcpu, const struct op *op)
{
    return reg64(vcpu, op->base) + (reg64(vcpu, op->index) << op->scale) + (int64_t)op->disp + reg64(vcpu, op->seg_base);
}

static inline uint64_t flat32_address(struct vcpu *vcpu, const struct op *op)
{
    return (uint32_t)(reg32(vcpu, op->base) + (reg32(vcpu, op->index) << op->scale) + (uint32_t)op->disp);
}

static inline const struct tlb_entry *data_entry(struct vcpu *vcpu, uint64_t gla)
{
    return &vcpu->tlb_data->entry[tlb_index(gla)];
}

/*
 * An access within the page matches the tag of its last byte's page, since the entry is chosen by its first byte's;
 * unaligned ones need no care unless alignment is checked, and then the block uses `far`.
 */
static inline bool tag_hit(const struct tlb_entry *entry, enum mmu_use use, uint64_t gla, unsigned size)
{
    return likely(entry->tag[use] == ((gla + size - 1) & ~(uint64_t)PAGE_MASK));
}

/* Where the operand lies if the TLB lets this access go straight to memory, else NULL. */
static inline void *flat64_direct(struct vcpu *vcpu, const struct op *op, enum mmu_use use, unsigned size)
{
    uint64_t gla = flat64_address(vcpu, op);
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    return tag_hit(entry, use, gla, size) ? (void *)(gla + entry->addend) : NULL;
}

static inline void *flat32_direct(struct vcpu *vcpu, const struct op *op, enum mmu_use use, unsigned size)
{
    uint64_t gla = flat32_address(vcpu, op);
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    return tag_hit(entry, use, gla, size) ? (void *)(gla + entry->addend) : NULL;
}

/* 64-bit accesses at a linear address that is already known: stack and branch targets in 64-bit mode. */
static inline bool load_at64(struct vcpu *vcpu, uint64_t gla, unsigned seg, uint64_t *out)
{
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (tag_hit(entry, MMU_READ, gla, 8)) {
        __builtin_memcpy(out, (const void *)(gla + entry->addend), 8);
        return true;
    }
    struct slow_value slow = load_slow(vcpu, gla, 8, seg);
    *out = slow.value;
    return slow.ok;
}

static inline bool store_at64(struct vcpu *vcpu, uint64_t gla, unsigned seg, uint64_t value)
{
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (tag_hit(entry, MMU_WRITE, gla, 8)) {
        __builtin_memcpy((void *)(gla + entry->addend), &value, 8);
        return true;
    }
    return store_slow(vcpu, gla, value, 8, seg);
}

static inline bool flat64_load64(struct vcpu *vcpu, const struct op *op, uint64_t *out)
{
    return load_at64(vcpu, flat64_address(vcpu, op), op->seg, out);
}

struct slow_value far_load(struct vcpu *vcpu, const struct op *op, unsigned size);
bool far_store(struct vcpu *vcpu, const struct op *op, uint64_t value, unsigned size);

/*
 * A place to read and then write: a register, guest memory in place, or (MMIO, page-crossing) a buffer that goes back by
 * place_done. In between nothing may fault; place_open has checked everything. The bus lock is held for OP_LOCK accesses
 * that are not in place.
 */
struct place {
    void *at;               /* NULL: a fault is pending */
    uint64_t gla;
    uint64_t buffer[2];
    uint8_t size;
    bool buffered, bus_locked, register_;
};
void place_open(struct vcpu *vcpu, const struct op *op, unsigned size, struct place *place);
/* The same at a linear address that is already known (BTS with a register bit offset). */
void place_open_at(struct vcpu *vcpu, const struct op *op, uint64_t gla, unsigned size, struct place *place);
/* Writes back. False: fault pending (the device page went away: possible only under another vCPU's feet). */
bool place_close(struct vcpu *vcpu, struct place *place);
/* Gives up without writing, for instructions that turn out to write nothing. */
void place_abandon(struct vcpu *vcpu, struct place *place);

/* The source operand by size: register (op->src) or memory by OP_MEMORY and family. For instructions that are not hot. */
struct slow_value source_get(struct vcpu *vcpu, const struct op *op, unsigned size);

/* --- the stack --- */
/* Value at SS:offset from the present stack pointer; no register changes. */
struct slow_value interp_stack_load(struct vcpu *vcpu, int64_t offset, unsigned size);
bool interp_stack_store(struct vcpu *vcpu, int64_t offset, uint64_t value, unsigned size);
/* Would such a store fault? */
bool interp_stack_probe(struct vcpu *vcpu, int64_t offset, unsigned size);
void interp_stack_adjust(struct vcpu *vcpu, int64_t by);
/* Store, then move the pointer. */
bool interp_stack_push(struct vcpu *vcpu, uint64_t value, unsigned size);

#endif
