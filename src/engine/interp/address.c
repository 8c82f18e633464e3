#include "engine/interp/address.h"

bool check_canonical(struct vcpu *vcpu, uint64_t gla, unsigned size, unsigned seg)
{
    if (likely(x86_canonical(vcpu, gla) && x86_canonical(vcpu, gla + size - 1)))
        return true;
    return x86_raise_error(vcpu, seg == SS ? VEC_SS : VEC_GP, 0);
}

/* The TLB never holds a non-canonical page, so this check is only needed on a miss. */
static bool check_miss(struct vcpu *vcpu, uint64_t gla, unsigned size, unsigned seg)
{
    return vcpu->mode != MODE_LONG64 || check_canonical(vcpu, gla, size, seg);
}

struct slow_value load_slow(struct vcpu *vcpu, uint64_t gla, unsigned size, unsigned seg)
{
    struct slow_value out = { 0, 0 };
    if (check_miss(vcpu, gla, size, seg))
        out.ok = mmu_load_slow(vcpu, gla, &out.value, size, vcpu->mmu->data_class);
    return out;
}

bool store_slow(struct vcpu *vcpu, uint64_t gla, uint64_t value, unsigned size, unsigned seg)
{
    return check_miss(vcpu, gla, size, seg) && mmu_store_slow(vcpu, gla, &value, size, vcpu->mmu->data_class);
}

struct slow_value far_linear(struct vcpu *vcpu, const struct op *op, unsigned size, bool write)
{
    struct slow_value out = { 0, 0 };
    out.ok = x86_linear(vcpu, op->seg, op_offset(vcpu, op), size, write, &out.value);
    return out;
}

/* With alignment checks on, every access takes the MMU's slow path, which knows them. */
static struct slow_value load_linear(struct vcpu *vcpu, uint64_t gla, unsigned size, unsigned seg)
{
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (!tag_hit(entry, MMU_READ, gla, size) || vcpu->mmu->alignment_check)
        return load_slow(vcpu, gla, size, seg);
    struct slow_value out = { 0, 1 };
    memcpy(&out.value, (const void *)(gla + entry->addend), size);
    return out;
}

static bool store_linear(struct vcpu *vcpu, uint64_t gla, uint64_t value, unsigned size, unsigned seg)
{
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (!tag_hit(entry, MMU_WRITE, gla, size) || vcpu->mmu->alignment_check)
        return store_slow(vcpu, gla, value, size, seg);
    memcpy((void *)(gla + entry->addend), &value, size);
    return true;
}

struct slow_value far_load(struct vcpu *vcpu, const struct op *op, unsigned size)
{
    struct slow_value linear = far_linear(vcpu, op, size, false);
    return linear.ok ? load_linear(vcpu, linear.value, size, op->seg) : linear;
}

bool far_store(struct vcpu *vcpu, const struct op *op, uint64_t value, unsigned size)
{
    struct slow_value linear = far_linear(vcpu, op, size, true);
    return linear.ok && store_linear(vcpu, linear.value, value, size, op->seg);
}

struct slow_value source_get(struct vcpu *vcpu, const struct op *op, unsigned size)
{
    if (op->flags & OP_MEMORY)
        return far_load(vcpu, op, size);
    return (struct slow_value){ reg_get(vcpu, op->src, size), 1 };
}

uint64_t reg_get(const struct vcpu *vcpu, uint16_t offset, unsigned size)
{
    switch (size) {
    case 1: return reg8(vcpu, offset);
    case 2: return reg16(vcpu, offset);
    case 4: return reg32(vcpu, offset);
    default: return reg64(vcpu, offset);
    }
}

void reg_set(struct vcpu *vcpu, uint16_t offset, unsigned size, uint64_t value)
{
    switch (size) {
    case 1: set_reg8(vcpu, offset, (uint8_t)value); break;
    case 2: set_reg16(vcpu, offset, (uint16_t)value); break;
    case 4: set_reg32(vcpu, offset, (uint32_t)value); break;
    default: set_reg64(vcpu, offset, value);
    }
}

/* --- read-modify-write --- */

/*
 * A host pointer serves unless the access is not RAM, crosses a page, or is locked and crosses a cache line: such a split
 * lock may get the host process killed, so it goes under the bus lock, which all split locks of the machine share.
 */
static bool split_lock(const struct op *op, uint64_t gla, unsigned size)
{
    return (op->flags & OP_LOCK) && (gla & 63) + size > 64;
}

void place_open_at(struct vcpu *vcpu, const struct op *op, uint64_t gla, unsigned size, struct place *place)
{
    bool fault = false;
    place->size = (uint8_t)size;
    place->gla = gla;
    place->buffered = place->bus_locked = place->register_ = false;
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (tag_hit(entry, MMU_WRITE, gla, size) && !vcpu->mmu->alignment_check && !split_lock(op, gla, size)) {
        place->at = (void *)(gla + entry->addend);
        return;
    }
    place->at = NULL;
    if (!check_miss(vcpu, gla, size, op->seg))
        return;
    if (!split_lock(op, gla, size)) {
        place->at = mmu_modify(vcpu, gla, size, vcpu->mmu->data_class, &fault);
        if (place->at || fault)
            return;
    }
    if (op->flags & OP_LOCK) {
        mmu_bus_lock(vcpu);
        place->bus_locked = true;
    }
    if (mmu_probe(vcpu, gla, size, true, vcpu->mmu->data_class) &&
        mmu_load_slow(vcpu, gla, place->buffer, size, vcpu->mmu->data_class)) {
        place->at = place->buffer;
        place->buffered = true;
    } else {
        place_abandon(vcpu, place);
    }
}

void place_open(struct vcpu *vcpu, const struct op *op, unsigned size, struct place *place)
{
    if (!(op->flags & OP_MEMORY)) {
        *place = (struct place){ .at = reg_at(vcpu, op->dst), .size = (uint8_t)size, .register_ = true };
        return;
    }
    struct slow_value linear = far_linear(vcpu, op, size, true);
    place->at = NULL;
    if (linear.ok)
        place_open_at(vcpu, op, linear.value, size, place);
}

bool place_close(struct vcpu *vcpu, struct place *place)
{
    bool ok = true;
    if (place->buffered)
        ok = mmu_store_slow(vcpu, place->gla, place->buffer, place->size, vcpu->mmu->data_class);
    else if (place->register_ && place->size == 4)
        ((uint32_t *)place->at)[1] = 0;
    if (place->bus_locked)
        mmu_bus_unlock(vcpu);
    return ok;
}

void place_abandon(struct vcpu *vcpu, struct place *place)
{
    if (place->bus_locked)
        mmu_bus_unlock(vcpu);
    place->bus_locked = false;
}

/* --- the stack --- */

static uint64_t stack_mask(const struct vcpu *vcpu)
{
    if (vcpu->mode == MODE_LONG64)
        return ~0ull;
    return vcpu->seg[SS].attr & SEG_DB ? 0xFFFFFFFFu : 0xFFFF;
}

static bool stack_linear(struct vcpu *vcpu, int64_t offset, unsigned size, bool write, uint64_t *gla)
{
    uint64_t at = (vcpu->gpr[RSP] + (uint64_t)offset) & stack_mask(vcpu);
    return x86_linear(vcpu, SS, at, size, write, gla);
}

struct slow_value interp_stack_load(struct vcpu *vcpu, int64_t offset, unsigned size)
{
    struct slow_value out = { 0, 0 };
    uint64_t gla;
    if (stack_linear(vcpu, offset, size, false, &gla))
        out = load_linear(vcpu, gla, size, SS);
    return out;
}

bool interp_stack_store(struct vcpu *vcpu, int64_t offset, uint64_t value, unsigned size)
{
    uint64_t gla;
    return stack_linear(vcpu, offset, size, true, &gla) && store_linear(vcpu, gla, value, size, SS);
}

bool interp_stack_probe(struct vcpu *vcpu, int64_t offset, unsigned size)
{
    uint64_t gla;
    return stack_linear(vcpu, offset, size, true, &gla) && mmu_probe(vcpu, gla, size, true, vcpu->mmu->data_class);
}

void interp_stack_adjust(struct vcpu *vcpu, int64_t by)
{
    uint64_t mask = stack_mask(vcpu), rsp = vcpu->gpr[RSP];
    vcpu->gpr[RSP] = (rsp & ~mask) | ((rsp + (uint64_t)by) & mask);
}

bool interp_stack_push(struct vcpu *vcpu, uint64_t value, unsigned size)
{
    if (!interp_stack_store(vcpu, -(int64_t)size, value, size))
        return false;
    interp_stack_adjust(vcpu, -(int64_t)size);
    return true;
}
