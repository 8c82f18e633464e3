/*
 * Random descriptors, gates, TSSs and frames against every transfer of control. What must hold whatever the tables say:
 *   - a refused transfer leaves a fault pending and changes no register, unless a task switch had gone through;
 *   - after one that succeeds, CPL, CS, SS and the mode fit together;
 *   - delivery of an event always ends: at a handler or in shutdown.
 */
#include "x86_fixture.h"

#include <stdio.h>

enum { ROUNDS = 200000, TABLE_WORDS = 32 };

static uint64_t seed = 0x243F6A8885A308D3;

static uint64_t random_word(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x2545F4914F6CDD1D;
}

static uint64_t below(uint64_t n) { return (random_word() >> 16) % n; }

/* --- random machines: everything is near to valid, so that deep checks are reached --- */

static uint64_t random_descriptor(bool long_mode)
{
    static const uint8_t types[] = { 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x9, 0xB, 0xC, 0xE, 0xF };
    uint64_t access = (below(12) ? 0x80 : 0) | below(4) << 5;

    if (below(16) == 0)
        return random_word();
    if (below(3) == 0) {
        uint8_t type = types[below(ARRAY_SIZE(types))];
        access |= type;
        if ((1 << type & (1 << SYS_TSS16 | 1 << SYS_TSS16_BUSY | 1 << SYS_TSS32 | 1 << SYS_TSS32_BUSY | 1 << SYS_LDT)))
            return make_descriptor(below(4) ? TSS_B : LDT, 0x20 + below(0x80), access);
        return make_gate(below(TABLE_WORDS) * 8 | below(4), HANDLER + below(0x100), access, below(8));
    }
    access |= 0x10 | below(16);
    uint32_t size = below(8) == 0 ? 0 : below(2) ? 0xC000 : 0x4000;
    if (long_mode && below(2))
        size = (size & 0x8000) | 0x2000;
    return make_descriptor(below(4) ? 0 : 0x100, below(8) ? 0xFFFFF : below(0x10000), access | size);
}

static void random_tables(struct x86_fixture *f, bool long_mode)
{
    for (unsigned i = 0; i < TABLE_WORDS; i++) {
        uint64_t d = random_descriptor(long_mode);
        poke(f, GDT + i * 8, i == 0 || (long_mode && below(4) == 0) ? 0 : d, 8);
        poke(f, LDT + i * 8, random_descriptor(long_mode), 8);
        uint64_t gate = make_gate(below(TABLE_WORDS) * 8 | below(4), HANDLER + below(0x100),
                                  (below(12) ? 0x80 : 0) | below(4) << 5 | (below(4) ? 0xE | below(2) : below(16)), below(3));
        poke(f, IDT + i * (long_mode ? 16 : 8), gate, 8);
        if (long_mode)
            poke(f, IDT + i * 16 + 8, 0, 8);
    }
    for (unsigned i = 0; i < 0x100; i += 2)
        poke(f, TSS_B + i, below(3) ? below(TABLE_WORDS) * 8 | below(4) : below(STACK3), 2);
    for (unsigned i = 0; i < 0x68; i += 4)
        poke(f, TSS + i, below(2) ? STACK0 : below(TABLE_WORDS) * 8 | below(4), 4);
}

static void random_stack(struct x86_fixture *f)
{
    static const uint64_t values[] = { HANDLER, STACK3, 0x800000000000, 0xFFFFFFFF, 0 };

    for (unsigned i = 0; i < 96; i += 2) {
        uint64_t v = below(3) ? below(TABLE_WORDS) * 8 | below(4) : values[below(ARRAY_SIZE(values))];
        if (below(8) == 0)
            v = RFLAGS_FIXED | (random_word() & (RFLAGS_VM | RFLAGS_NT | RFLAGS_IF | RFLAGS_IOPL));
        poke(f, STACK0 + i, v, i % 8 ? 2 : 8);
    }
}

static struct segment flat(uint16_t selector, uint32_t attr, unsigned cpl)
{
    return (struct segment){ .limit = 0xFFFFFFFF, .attr = attr | cpl << 5 | SEG_G, .selector = (selector & ~3) | cpl };
}

static void random_processor(struct x86_fixture *f, const struct vcpu *base)
{
    struct vcpu *vcpu = &f->vcpu;
    bool long_mode = vcpu_long_mode(base);
    unsigned cpl = below(2) ? 0 : below(4);
    bool code64 = long_mode && below(2);

    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = random_word();
    vcpu->gpr[RSP] = STACK0;
    vcpu->rip = HANDLER;
    vcpu->rflags = RFLAGS_FIXED | (random_word() & (RFLAGS_STATUS | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_AC));
    if (below(8) == 0)
        vcpu->rflags |= RFLAGS_NT;
    vcpu->seg[CS] = flat(8, 0x9B | (code64 ? SEG_L : SEG_DB), cpl);
    for (enum seg seg = ES; seg < SEG_COUNT; seg++)
        if (seg != CS)
            vcpu->seg[seg] = below(8) || seg == SS ? flat(16, 0x93 | SEG_DB, cpl) : segment_null(0, 0);
    vcpu->ldtr = below(4) ? (struct segment){ .base = LDT, .limit = 0xFF, .attr = SEG_P | SYS_LDT } : segment_null(0, 0);
    vcpu->tr = base->tr;
    if (!long_mode && below(8) == 0)
        vcpu->tr.attr &= ~8u;
    vcpu->cr0 = base->cr0;
    vcpu->cr4 = base->cr4 | (below(4) ? 0 : CR4_VME | CR4_PVI);
    vcpu->efer = base->efer;
    vcpu->gdtr = (struct table_register){ GDT, TABLE_WORDS * 8 - 1 };
    vcpu->idtr = (struct table_register){ IDT, TABLE_WORDS * (long_mode ? 16 : 8) - 1 };
    vcpu->activity = ACTIVITY_ACTIVE;
    vcpu->shadow = 0;
    vcpu->pending.kind = EVENT_NONE;
    if (!long_mode && below(6) == 0) {
        vcpu->rflags |= RFLAGS_VM;
        cpl = 3;
        for (enum seg seg = ES; seg < SEG_COUNT; seg++)
            segment_load_v86(&vcpu->seg[seg], seg == SS ? STACK0 >> 4 : 0x40);
        vcpu->gpr[RSP] = 0x100;
        vcpu->rip = 0x10;
    }
    vcpu->cpl = cpl;
    x86_update_mode(vcpu);
    mmu_privilege_changed(vcpu);
}

/* --- what must hold --- */

static void check_unchanged(const struct vcpu *before, const struct vcpu *now, unsigned operation)
{
    if (memcmp(before->gpr, now->gpr, sizeof(now->gpr)) || before->rip != now->rip || before->rflags != now->rflags ||
        before->cpl != now->cpl || before->mode != now->mode || memcmp(before->seg, now->seg, sizeof(now->seg)) ||
        memcmp(&before->ldtr, &now->ldtr, sizeof(now->ldtr)))
        fail_msg("operation %u faulted (vector %u, error %#x) and changed the processor", operation, now->pending.vector,
                 now->pending.error);
}

static void check_consistent(const struct vcpu *vcpu, unsigned operation)
{
    uint8_t mode = vcpu->mode;

    x86_update_mode((struct vcpu *)vcpu);
    assert_int_equal(mode, vcpu->mode);
    assert_true(vcpu->rflags & RFLAGS_FIXED);
    if (mode == MODE_V86) {
        assert_int_equal(vcpu->cpl, 3);
        return;
    }
    if ((vcpu->seg[CS].selector & SELECTOR_RPL) != vcpu->cpl)
        fail_msg("operation %u: CPL %u with CS %#x", operation, vcpu->cpl, vcpu->seg[CS].selector);
    unsigned dpl = SEG_DPL_OF(vcpu->seg[CS].attr);
    bool conforming = vcpu->seg[CS].attr & SEG_CONFORMING;
    assert_true(conforming ? dpl <= vcpu->cpl : dpl == vcpu->cpl);
    assert_int_equal(SEG_DPL_OF(vcpu->seg[SS].attr), vcpu->cpl);
    if (mode == MODE_LONG64)
        assert_true(x86_canonical(vcpu, vcpu->rip));
    else
        assert_true(vcpu->rip <= vcpu->seg[CS].limit);
}

static bool operate(struct vcpu *vcpu, unsigned operation)
{
    static const unsigned sizes[] = { 2, 4, 8 };
    unsigned size = sizes[below(vcpu->mode == MODE_LONG64 ? 3 : 2)];
    uint16_t selector = below(TABLE_WORDS) * 8 | below(8);

    switch (operation) {
    case 0:
        return x86_far_jump(vcpu, selector, HANDLER, size, vcpu->rip + 7);
    case 1:
        return x86_far_call(vcpu, selector, HANDLER, size, vcpu->rip + 7);
    case 2:
        return x86_far_return(vcpu, size, below(3) * 4);
    case 3:
        return x86_iret(vcpu, size, vcpu->rip + 1);
    case 4:
        return x86_interrupt(vcpu, below(TABLE_WORDS + 2), EVENT_SOFT_INT, vcpu->rip + 2);
    case 5:
        return x86_interrupt(vcpu, VEC_BP, EVENT_TRAP, vcpu->rip + 1);
    default:
        return x86_load_segment(vcpu, (const enum seg[]){ ES, SS, DS, FS, GS }[below(5)], selector);
    }
}

enum { OPERATIONS = 7 };

static void run_rounds(struct x86_fixture *f, unsigned rounds)
{
    struct vcpu base = f->vcpu;
    struct vcpu *before = aligned_alloc(64, align_up(sizeof(*before), 64));

    for (unsigned i = 0; i < rounds; i++) {
        if (i % 64 == 0)
            random_tables(f, vcpu_long_mode(&base));
        random_stack(f);
        random_processor(f, &base);
        *before = f->vcpu;
        unsigned operation = below(OPERATIONS);
        uint64_t switches = counter_get(&f->vcpu.counters, COUNTER_task_switches);
        bool done = operate(&f->vcpu, operation);
        bool switched = counter_get(&f->vcpu.counters, COUNTER_task_switches) != switches;
        if (done) {
            check_consistent(&f->vcpu, operation);
        } else {
            assert_int_equal(f->vcpu.pending.kind, EVENT_FAULT);
            if (!switched)
                check_unchanged(before, &f->vcpu, operation);
        }
        if (below(2)) {
            struct event event = { .kind = EVENT_FAULT + below(6), .vector = below(TABLE_WORDS), .has_error = below(2) };
            random_processor(f, &base);
            x86_deliver_event(&f->vcpu, &event);
            if (f->vcpu.activity == ACTIVITY_ACTIVE)
                check_consistent(&f->vcpu, OPERATIONS);
        }
    }
    free(before);
}

static void test_protected_mode(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    enter_protected(f);
    run_rounds(f, ROUNDS);
    x86_fixture_destroy(f);
}

static void test_long_mode(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    enter_long(f);
    run_rounds(f, ROUNDS);
    x86_fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_protected_mode), cmocka_unit_test(test_long_mode) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
