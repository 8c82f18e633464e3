/* Reading descriptors, and stacks that commit late. */
#include "x86/descriptor.h"

bool descriptor_locate(const struct vcpu *vcpu, uint16_t selector, unsigned size, uint64_t *gla)
{
    uint64_t base = vcpu->gdtr.base;
    uint32_t limit = vcpu->gdtr.limit;
    uint32_t offset = selector & 0xFFF8;

    if (selector & SELECTOR_TI) {
        if (vcpu->ldtr.attr & SEG_UNUSABLE)
            return false;
        base = vcpu->ldtr.base;
        limit = vcpu->ldtr.limit;
    }
    *gla = base + offset;
    return offset + size - 1 <= limit;
}

bool descriptor_read(struct vcpu *vcpu, uint16_t selector, uint8_t vector, uint32_t ext, struct descriptor *d)
{
    *d = (struct descriptor){ .selector = selector };
    if (!descriptor_locate(vcpu, selector, 8, &d->gla))
        return x86_raise_error(vcpu, vector, selector_error(selector, ext));
    return mmu_load(vcpu, d->gla, 8, mmu_implicit(vcpu), &d->low);
}

bool descriptor_read_high(struct vcpu *vcpu, struct descriptor *d, uint8_t vector, uint32_t ext)
{
    uint64_t gla;

    if (!descriptor_locate(vcpu, d->selector, 16, &gla))
        return x86_raise_error(vcpu, vector, selector_error(d->selector, ext));
    if (!mmu_load(vcpu, gla + 8, 8, mmu_implicit(vcpu), &d->high))
        return false;
    if (bits(d->high, 44, 40))
        return x86_raise_error(vcpu, vector, selector_error(d->selector, ext));
    return true;
}

/* The type field is the low half of byte 5. The processor sets its bits with a locked cycle (SDM3 §9.1.2.1). */
static bool change_type_bits(struct vcpu *vcpu, struct descriptor *d, unsigned set, unsigned clear)
{
    uint64_t byte5 = d->gla + 5;
    bool fault = false;
    uint8_t *host = mmu_modify(vcpu, byte5, 1, mmu_implicit(vcpu), &fault);

    if (fault)
        return false;
    if (host) {
        if (set)
            __atomic_fetch_or(host, (uint8_t)set, __ATOMIC_SEQ_CST);
        if (clear)
            __atomic_fetch_and(host, (uint8_t)~clear, __ATOMIC_SEQ_CST);
    } else {
        uint64_t value;

        mmu_bus_lock(vcpu);
        bool ok = mmu_load(vcpu, byte5, 1, mmu_implicit(vcpu), &value) &&
                  mmu_store(vcpu, byte5, 1, mmu_implicit(vcpu), (value | set) & ~(uint64_t)clear);
        mmu_bus_unlock(vcpu);
        if (!ok)
            return false;
    }
    d->low = (d->low | (uint64_t)set << 40) & ~((uint64_t)clear << 40);
    return true;
}

bool descriptor_set_type_bits(struct vcpu *vcpu, struct descriptor *d, unsigned type_bits)
{
    return change_type_bits(vcpu, d, type_bits, 0);
}

bool descriptor_clear_type_bits(struct vcpu *vcpu, struct descriptor *d, unsigned type_bits)
{
    return change_type_bits(vcpu, d, 0, type_bits);
}

bool descriptor_set_accessed(struct vcpu *vcpu, struct descriptor *d)
{
    return (d->low & BIT(40)) || descriptor_set_type_bits(vcpu, d, SEG_ACCESSED);
}

void segment_from_descriptor(struct segment *segment, const struct descriptor *d, uint16_t selector)
{
    *segment = (struct segment){
        .base = descriptor_base(d), .limit = descriptor_limit(d), .attr = descriptor_attr(d), .selector = selector,
    };
}

struct segment segment_null(uint16_t selector, unsigned dpl)
{
    return (struct segment){ .selector = selector, .attr = SEG_UNUSABLE | dpl << 5 };
}

/* Limit, D and G survive: "big real mode" rests on that. A null segment from protected mode gets its 64 KiB back. */
void segment_load_real(struct segment *segment, uint16_t selector)
{
    if (segment->attr & SEG_UNUSABLE)
        *segment = (struct segment){ .limit = 0xFFFF };
    segment->selector = selector;
    segment->base = (uint64_t)selector << 4;
    segment->attr = (segment->attr & (SEG_DB | SEG_G | SEG_AVL)) | SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED;
}

/*
 * NOTE(spec): SDM3 §10.9.2 has a far JMP in real-address mode load "the appropriate" access rights; processors keep the type of CS.
 * A hypervisor sees that: one that emulates an instruction after CR0.PE is set again looks for a code segment in its VMCS.
 */
void segment_load_real_code(struct segment *cs, uint16_t selector)
{
    uint32_t type = cs->attr & SEG_CODE ? cs->attr & SEG_TYPE : 0;
    segment_load_real(cs, selector);
    if (type)
        cs->attr = (cs->attr & ~(uint32_t)SEG_TYPE) | type | SEG_ACCESSED;
}

void segment_load_v86(struct segment *segment, uint16_t selector)
{
    *segment = (struct segment){
        .selector = selector, .base = (uint64_t)selector << 4, .limit = 0xFFFF,
        .attr = SEG_P | SEG_DPL | SEG_S | SEG_WRITABLE | SEG_ACCESSED,
    };
}

static bool type_allows(uint32_t attr, bool write)
{
    if (write)
        return !(attr & SEG_CODE) && (attr & SEG_WRITABLE);
    return !(attr & SEG_CODE) || (attr & SEG_READABLE);
}

bool segment_linear(const struct segment *segment, bool check_type, uint64_t offset, unsigned size, bool write, uint64_t *gla)
{
    uint64_t last = offset + size - 1;

    *gla = (uint32_t)(segment->base + offset);
    if (segment->attr & SEG_UNUSABLE)
        return false;
    if (check_type && !type_allows(segment->attr, write))
        return false;
    if ((segment->attr & (SEG_CODE | SEG_EXPAND_DOWN)) == SEG_EXPAND_DOWN)
        return offset > segment->limit && last <= (segment->attr & SEG_DB ? 0xFFFFFFFFull : 0xFFFFull);
    /* NOTE(spec): with a limit of 4 GiB an access over the end wraps on present processors; SDM3 §5.3 leaves it open. */
    return last <= segment->limit || segment->limit == 0xFFFFFFFF;
}

bool check_code_offset(struct vcpu *vcpu, const struct segment *cs, uint64_t rip, uint32_t ext)
{
    bool code64 = (vcpu->efer & EFER_LMA) && (cs->attr & SEG_L);

    if (code64 ? x86_canonical(vcpu, rip) : rip <= cs->limit)
        return true;
    return x86_raise_error(vcpu, VEC_GP, ext);
}

static enum mmu_class class_at(const struct vcpu *vcpu, unsigned cpl)
{
    if (cpl == 3)
        return MMU_USER;
    return (vcpu->cr4 & CR4_SMAP) && !(vcpu->rflags & RFLAGS_AC) ? MMU_SUPERVISOR_SMAP : MMU_SUPERVISOR;
}

struct stack stack_other(const struct vcpu *vcpu, const struct segment *ss, uint64_t sp, unsigned cpl, bool flat64, uint32_t error)
{
    return (struct stack){
        .ss = *ss, .sp = sp, .mask = flat64 ? ~0ull : ss->attr & SEG_DB ? 0xFFFFFFFF : 0xFFFF, .flat64 = flat64,
        .check_type = vcpu_protected(vcpu), .class = class_at(vcpu, cpl), .error = error,
    };
}

struct stack stack_present(const struct vcpu *vcpu, uint32_t ext)
{
    struct stack stack = stack_other(vcpu, &vcpu->seg[SS], vcpu->gpr[RSP], vcpu->cpl, vcpu_code64(vcpu), ext);
    stack.check_type = vcpu_protected(vcpu) && !vcpu_v86(vcpu);
    return stack;
}

static bool stack_linear(struct vcpu *vcpu, const struct stack *stack, uint64_t sp, unsigned size, bool write, uint64_t *gla)
{
    if (stack->flat64) {
        *gla = sp;
        if (x86_canonical(vcpu, sp) && x86_canonical(vcpu, sp + size - 1))
            return true;
    } else if (segment_linear(&stack->ss, stack->check_type, sp & stack->mask, size, write, gla)) {
        return true;
    }
    return x86_raise_error(vcpu, VEC_SS, stack->error);
}

bool stack_push(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t value)
{
    uint64_t sp = (stack->sp & ~stack->mask) | ((stack->sp - size) & stack->mask);
    uint64_t gla;

    if (!stack_linear(vcpu, stack, sp, size, true, &gla) ||
        !mmu_store(vcpu, gla, size, stack->class, value & size_mask(size)))
        return false;
    stack->sp = sp;
    return true;
}

bool stack_pop(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t *value)
{
    uint64_t gla;

    if (!stack_linear(vcpu, stack, stack->sp, size, false, &gla) || !mmu_load(vcpu, gla, size, stack->class, value))
        return false;
    stack->sp = (stack->sp & ~stack->mask) | ((stack->sp + size) & stack->mask);
    return true;
}

void stack_commit(struct vcpu *vcpu, const struct stack *stack)
{
    uint64_t kept = stack->mask == 0xFFFF ? ~0xFFFFull : 0;
    vcpu->gpr[RSP] = (vcpu->gpr[RSP] & kept) | (stack->sp & stack->mask);
}

/* SDM3 §8.2.1, §8.2.3: where the 16- and 32-bit TSS keep the stacks of CPL 0 to 2; §8.7: RSP0-2 of the 64-bit one. */
bool tss_inner_stack(struct vcpu *vcpu, unsigned cpl, uint32_t ext, uint16_t *ss, uint64_t *sp)
{
    const struct segment *tr = &vcpu->tr;
    bool long_mode = vcpu_long_mode(vcpu), tss16 = !(tr->attr & 8);
    unsigned offset = long_mode ? 4 + cpl * 8 : tss16 ? 2 + cpl * 4 : 4 + cpl * 8;
    unsigned sp_size = long_mode ? 8 : tss16 ? 2 : 4;
    unsigned size = long_mode ? 8 : tss16 ? 4 : 6;
    uint64_t selector = cpl;

    if (offset + size - 1 > tr->limit)
        return x86_raise_error(vcpu, VEC_TS, selector_error(tr->selector, ext));
    if (!mmu_load(vcpu, tr->base + offset, sp_size, mmu_implicit(vcpu), sp))
        return false;
    if (!long_mode && !mmu_load(vcpu, tr->base + offset + sp_size, 2, mmu_implicit(vcpu), &selector))
        return false;
    *ss = selector;
    return true;
}

bool load_inner_ss(struct vcpu *vcpu, uint16_t selector, unsigned cpl, uint32_t ext, struct segment *ss)
{
    struct descriptor d;

    if (vcpu_long_mode(vcpu)) {
        *ss = segment_null(cpl, cpl);
        return true;
    }
    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_TS, ext);
    if (!descriptor_read(vcpu, selector, VEC_TS, ext, &d))
        return false;
    if ((selector & SELECTOR_RPL) != cpl || descriptor_dpl(&d) != cpl || !descriptor_is_writable_data(&d))
        return x86_raise_error(vcpu, VEC_TS, selector_error(selector, ext));
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_SS, selector_error(selector, ext));
    if (!descriptor_set_accessed(vcpu, &d))
        return false;
    segment_from_descriptor(ss, &d, selector);
    return true;
}

void drop_inner_data_segments(struct vcpu *vcpu, unsigned cpl)
{
    static const enum seg data[] = { ES, DS, FS, GS };

    for (unsigned i = 0; i < ARRAY_SIZE(data); i++) {
        struct segment *s = &vcpu->seg[data[i]];
        bool conforming = (s->attr & (SEG_CODE | SEG_CONFORMING)) == (SEG_CODE | SEG_CONFORMING);

        if (!(s->attr & SEG_UNUSABLE) && !conforming && SEG_DPL_OF(s->attr) < cpl) {
            s->selector = 0;
            s->attr |= SEG_UNUSABLE;
        }
    }
}
