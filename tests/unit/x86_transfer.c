/* Segment loads, gates, far transfers, IRET, delivery of interrupts and exceptions, task switches, V86 mode. */
#include "x86_fixture.h"

/* --- segments --- */

static void test_segment_checks(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    uint64_t gla;

    enter_protected(f);
    refuse(x86_load_segment(vcpu, DS, SEL_END), VEC_GP, SEL_END);
    refuse(x86_load_segment(vcpu, DS, SEL_NOT_PRESENT), VEC_NP, SEL_NOT_PRESENT);
    refuse(x86_load_segment(vcpu, SS, SEL_NOT_PRESENT), VEC_SS, SEL_NOT_PRESENT);
    refuse(x86_load_segment(vcpu, SS, 0), VEC_GP, 0);
    refuse(x86_load_segment(vcpu, SS, SEL_DATA3), VEC_GP, SEL_DATA3 & ~3);
    refuse(x86_load_segment(vcpu, SS, SEL_READONLY), VEC_GP, SEL_READONLY);
    refuse(x86_load_segment(vcpu, DS, SEL_TSS), VEC_GP, SEL_TSS);
    refuse(x86_load_segment(vcpu, DS, SEL_DATA0 | SELECTOR_TI), VEC_GP, SEL_DATA0 | SELECTOR_TI);  /* no LDT */
    accept(x86_load_segment(vcpu, DS, SEL_DATA3));
    accept(x86_load_segment(vcpu, ES, 3));
    refuse(x86_linear(vcpu, ES, 0, 1, false, &gla), VEC_GP, 0);
    accept(x86_load_segment(vcpu, FS, SEL_READONLY));
    accept(x86_linear(vcpu, FS, 4, 4, false, &gla));
    refuse(x86_linear(vcpu, FS, 4, 4, true, &gla), VEC_GP, 0);
    accept(x86_load_segment(vcpu, GS, SEL_EXPAND_DOWN));
    refuse(x86_linear(vcpu, GS, 0xFFF, 1, true, &gla), VEC_GP, 0);
    accept(x86_linear(vcpu, GS, 0x1000, 4, true, &gla));
    enter_user(f, 0x6000);
    refuse(x86_load_segment(vcpu, DS, SEL_DATA0), VEC_GP, SEL_DATA0);
    accept(x86_load_segment(vcpu, DS, SEL_CONFORMING));
    x86_fixture_destroy(f);
}

static void test_accessed_bit_is_set_in_memory(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    enter_protected(f);
    put_descriptor(f, SEL_READONLY, 0, 0xFFFFF, 0x90 | FLAT32);
    accept(x86_load_segment(&f->vcpu, DS, SEL_READONLY));
    assert_int_equal(peek(f, GDT + SEL_READONLY + 5, 1), 0x91);
    assert_true(f->vcpu.seg[DS].attr & SEG_ACCESSED);
    x86_fixture_destroy(f);
}

static void test_ldt(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    refuse(x86_lldt(vcpu, SEL_DATA0), VEC_GP, SEL_DATA0);
    poke(f, LDT + 8, make_descriptor(0x1234, 0xFFF, DATA | 0x4000), 8);
    accept(x86_lldt(vcpu, SEL_LDT));
    accept(x86_load_segment(vcpu, DS, 8 | SELECTOR_TI));
    assert_int_equal(vcpu->seg[DS].base, 0x1234);
    assert_int_equal(vcpu->seg[DS].limit, 0xFFF);
    refuse(x86_load_segment(vcpu, DS, 0x100 | SELECTOR_TI), VEC_GP, 0x104);
    x86_fixture_destroy(f);
}

static void test_lar_lsl_verr(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    uint32_t value;
    bool ok;

    refuse(x86_lar(vcpu, SEL_CODE0, &value, &ok), VEC_UD, 0);
    enter_protected(f);
    accept(x86_lar(vcpu, SEL_CODE0, &value, &ok));
    assert_true(ok);
    assert_int_equal(value, 0xC09B00);
    accept(x86_lsl(vcpu, SEL_CODE0, &value, &ok));
    assert_true(ok);
    assert_int_equal(value, 0xFFFFFFFF);
    accept(x86_lsl(vcpu, SEL_TASK_GATE, &value, &ok));
    assert_false(ok);
    accept(x86_lar(vcpu, SEL_TASK_GATE, &value, &ok));
    assert_true(ok);
    accept(x86_lar(vcpu, 0, &value, &ok));
    assert_false(ok);
    accept(x86_verify(vcpu, SEL_READONLY, true, &ok));
    assert_false(ok);
    accept(x86_verify(vcpu, SEL_READONLY, false, &ok));
    assert_true(ok);
    enter_user(f, 0x6000);
    accept(x86_lar(vcpu, SEL_CODE0, &value, &ok));
    assert_false(ok);
    accept(x86_lar(vcpu, SEL_CONFORMING, &value, &ok));
    assert_true(ok);
    x86_fixture_destroy(f);
}

/* --- far transfers --- */

static void test_far_jump_checks(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    refuse(x86_far_jump(vcpu, 0, 0, 4, 0), VEC_GP, 0);
    refuse(x86_far_jump(vcpu, SEL_DATA0, 0, 4, 0), VEC_GP, SEL_DATA0);
    refuse(x86_far_jump(vcpu, SEL_CODE3, 0, 4, 0), VEC_GP, SEL_CODE3 & ~3);
    refuse(x86_far_jump(vcpu, SEL_CODE16, 0x10000, 4, 0), VEC_GP, 0);
    accept(x86_far_jump(vcpu, SEL_CODE16, 0x1234, 4, 0));
    assert_int_equal(vcpu->mode, MODE_PROTECTED16);
    accept(x86_far_jump(vcpu, SEL_CONFORMING | 3, 0x1234, 4, 0));
    assert_int_equal(vcpu->seg[CS].selector, SEL_CONFORMING);       /* RPL becomes CPL */
    x86_fixture_destroy(f);
}

static void test_call_gate_to_inner_ring_and_back(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    poke(f, GDT + SEL_GATE, make_gate(SEL_CODE0, 0x5000, 0xEC, 2), 8);
    enter_user(f, 0x6000);
    poke(f, STACK3, 0x11111111, 4);
    poke(f, STACK3 + 4, 0x22222222, 4);
    accept(x86_far_call(vcpu, SEL_GATE | 3, 0xDEAD, 4, 0x6007));
    assert_int_equal(vcpu->cpl, 0);
    assert_int_equal(vcpu->rip, 0x5000);
    assert_int_equal(vcpu->gpr[RSP], STACK0 - 24);
    assert_int_equal(peek(f, STACK0 - 24, 4), 0x6007);
    assert_int_equal(peek(f, STACK0 - 20, 4), SEL_CODE3);
    assert_int_equal(peek(f, STACK0 - 16, 4), 0x11111111);
    assert_int_equal(peek(f, STACK0 - 12, 4), 0x22222222);
    assert_int_equal(peek(f, STACK0 - 8, 4), STACK3);
    assert_int_equal(peek(f, STACK0 - 4, 4), SEL_DATA3);
    accept(x86_far_return(vcpu, 4, 8));
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->rip, 0x6007);
    assert_int_equal(vcpu->gpr[RSP], STACK3 + 8);
    assert_true(vcpu->seg[DS].attr & SEG_UNUSABLE);                 /* held the inner ring's data */
    x86_fixture_destroy(f);
}

static void test_call_gate_checks(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    poke(f, GDT + SEL_GATE, make_gate(SEL_CODE0, 0x5000, 0x8C, 0), 8);      /* DPL 0 */
    enter_user(f, 0x6000);
    refuse(x86_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007), VEC_GP, SEL_GATE);
    poke(f, GDT + SEL_GATE, make_gate(SEL_CODE0, 0x5000, 0x6C, 0), 8);      /* not present */
    refuse(x86_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007), VEC_NP, SEL_GATE);
    poke(f, GDT + SEL_GATE, make_gate(SEL_DATA0, 0x5000, 0xEC, 0), 8);
    refuse(x86_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007), VEC_GP, SEL_DATA0);
    poke(f, GDT + SEL_GATE, make_gate(SEL_CODE0, 0x5000, 0xEC, 0), 8);
    refuse(x86_far_jump(vcpu, SEL_GATE | 3, 0, 4, 0x6007), VEC_GP, SEL_CODE0);  /* JMP cannot go inwards */
    poke(f, TSS + 8, SEL_DATA3, 2);
    refuse(x86_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007), VEC_TS, SEL_DATA3 & ~3);
    poke(f, TSS + 8, 0, 2);
    refuse(x86_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007), VEC_TS, 0);
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->gpr[RSP], STACK3);
    x86_fixture_destroy(f);
}

static void test_call_gate_64(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_long(f);
    poke(f, GDT + SEL_GATE, make_gate(SEL_CODE64, 0x5000, 0xEC, 0), 8);
    poke(f, GDT + SEL_GATE + 8, 0, 8);
    vcpu->star = (uint64_t)(SEL_CODE3 - 16) << 48;
    put_descriptor(f, SEL_CODE3, 0, 0xFFFFF, CODE | RING3 | FLAT64);
    vcpu->gpr[RCX] = 0x6000;
    vcpu->gpr[R11] = 2;
    accept(x86_sysret(vcpu, 8));
    vcpu->gpr[RSP] = STACK3;
    accept(x86_far_call(vcpu, SEL_GATE | 3, 0, 4, 0x6007));
    assert_int_equal(vcpu->cpl, 0);
    assert_int_equal(vcpu->gpr[RSP], STACK0 - 32);
    assert_int_equal(vcpu->seg[SS].selector, 0);
    assert_true(vcpu->seg[SS].attr & SEG_UNUSABLE);
    assert_int_equal(peek(f, STACK0 - 32, 8), 0x6007);
    assert_int_equal(peek(f, STACK0 - 16, 8), STACK3);
    poke(f, STACK0 - 8, SEL_DATA3, 8);
    accept(x86_far_return(vcpu, 8, 0));
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->mode, MODE_LONG64);
    x86_fixture_destroy(f);
}

/* --- delivery --- */

static void deliver(struct x86_fixture *f, enum event_kind kind, uint8_t vector, bool has_error, uint32_t error)
{
    struct event event = { .kind = kind, .vector = vector, .has_error = has_error, .error = error };
    x86_deliver_event(&f->vcpu, &event);
}

static void test_interrupt_from_user_switches_stack(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_gate32(f, 0x30, SEL_CODE0, 0x5000, 0x8E);
    enter_user(f, 0x6000);
    deliver(f, EVENT_INTERRUPT, 0x30, false, 0);
    assert_int_equal(vcpu->cpl, 0);
    assert_int_equal(vcpu->rip, 0x5000);
    assert_int_equal(vcpu->rflags & RFLAGS_IF, 0);
    assert_int_equal(vcpu->gpr[RSP], STACK0 - 20);
    assert_int_equal(peek(f, STACK0 - 20, 4), 0x6000);
    assert_int_equal(peek(f, STACK0 - 16, 4), SEL_CODE3);
    assert_int_equal(peek(f, STACK0 - 12, 4), RFLAGS_IF | RFLAGS_FIXED);
    assert_int_equal(peek(f, STACK0 - 8, 4), STACK3);
    assert_int_equal(peek(f, STACK0 - 4, 4), SEL_DATA3);
    accept(x86_iret(vcpu, 4, 0));
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->gpr[RSP], STACK3);
    x86_fixture_destroy(f);
}

static void test_software_interrupt_checks_the_gate(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_gate32(f, 0x30, SEL_CODE0, 0x5000, 0x8E);
    put_gate32(f, 0x80, SEL_CODE0, 0x5000, 0xEF);
    put_gate32(f, 0x31, SEL_CODE0, 0x5000, 0x6E);
    put_gate32(f, 1, SEL_CODE0, 0x5000, 0x8E);
    enter_user(f, 0x6000);
    refuse(x86_interrupt(vcpu, 0x30, EVENT_SOFT_INT, 0x6002), VEC_GP, 0x30 * 8 + 2);
    refuse(x86_interrupt(vcpu, 0x31, EVENT_SOFT_INT, 0x6002), VEC_NP, 0x31 * 8 + 2);
    assert_int_equal(vcpu->rip, 0x6000);
    accept(x86_interrupt(vcpu, 0x80, EVENT_SOFT_INT, 0x6002));
    assert_true(vcpu->rflags & RFLAGS_IF);                          /* trap gate */
    assert_int_equal(peek(f, STACK0 - 20, 4), 0x6002);
    accept(x86_iret(vcpu, 4, 0));
    accept(x86_interrupt(vcpu, 1, EVENT_ICEBP, 0x6001));            /* no DPL check */
    x86_fixture_destroy(f);
}

static void test_page_fault_pushes_its_error_code(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    struct event event = { .kind = EVENT_FAULT, .vector = VEC_PF, .has_error = true, .error = 7, .payload = 0xABCD000 };

    enter_long(f);
    put_gate64(f, VEC_PF, SEL_CODE64, 0x5000, 0x8E, 0);
    vcpu->gpr[RSP] = STACK0 - 3;
    vcpu->rip = 0x6000;
    x86_deliver_event(vcpu, &event);
    assert_int_equal(vcpu->cr2, 0xABCD000);
    assert_int_equal(vcpu->gpr[RSP], STACK0 - 16 - 48);             /* aligned to 16 first */
    assert_int_equal(peek(f, vcpu->gpr[RSP], 8), 7);
    assert_int_equal(peek(f, vcpu->gpr[RSP] + 8, 8), 0x6000);
    assert_int_equal(peek(f, vcpu->gpr[RSP] + 24, 8) & RFLAGS_RF, RFLAGS_RF);
    assert_int_equal(peek(f, vcpu->gpr[RSP] + 32, 8), STACK0 - 3);
    x86_fixture_destroy(f);
}

static void test_ist_and_null_ss(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_long(f);
    put_gate64(f, VEC_NMI, SEL_CODE64, 0x5000, 0x8E, 1);
    vcpu->gpr[RSP] = STACK0;
    deliver(f, EVENT_NMI, VEC_NMI, false, 0);
    assert_int_equal(vcpu->gpr[RSP], STACK1 - 40);
    assert_int_equal(vcpu->shadow & SHADOW_NMI, SHADOW_NMI);
    assert_int_equal(vcpu->seg[SS].selector, SEL_DATA0);            /* no change of CPL, no change of SS */
    accept(x86_iret(vcpu, 8, 0));
    assert_int_equal(vcpu->shadow & SHADOW_NMI, 0);
    assert_int_equal(vcpu->gpr[RSP], STACK0);
    x86_fixture_destroy(f);
}

static void test_iret_to_null_ss_in_64_bit_mode(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    uint64_t frame[] = { 0x6000, SEL_CODE64, RFLAGS_FIXED, STACK1, 0 };

    enter_long(f);
    vcpu->gpr[RSP] = STACK0 - sizeof(frame);
    memcpy(ram_host(vcpu->ram, STACK0 - sizeof(frame)), frame, sizeof(frame));
    accept(x86_iret(vcpu, 8, 0));
    assert_int_equal(vcpu->gpr[RSP], STACK1);
    assert_true(vcpu->seg[SS].attr & SEG_UNUSABLE);
    frame[1] = SEL_CODE3;
    put_descriptor(f, SEL_CODE3, 0, 0xFFFFF, CODE | RING3 | FLAT64);
    vcpu->gpr[RSP] = STACK0 - sizeof(frame);
    memcpy(ram_host(vcpu->ram, STACK0 - sizeof(frame)), frame, sizeof(frame));
    refuse(x86_iret(vcpu, 8, 0), VEC_GP, 0);                        /* a null SS is not for CPL 3 */
    frame[0] = 0x800000000000;
    frame[1] = SEL_CODE64;
    memcpy(ram_host(vcpu->ram, STACK0 - sizeof(frame)), frame, sizeof(frame));
    refuse(x86_iret(vcpu, 8, 0), VEC_GP, 0);                        /* RIP is not canonical */
    vcpu->rflags |= RFLAGS_NT;
    refuse(x86_iret(vcpu, 8, 0), VEC_GP, 0);
    x86_fixture_destroy(f);
}

/*
 * SDM3 table 6-5. The first event's gate is missing, which is #GP; or its handler's code is not present, #NP. Where that
 * doubles, vector 8 is entered; where it does not, the second fault's own handler.
 */
static void test_double_fault_table(void **state)
{
    static const struct { uint8_t first; enum event_kind kind; bool doubles; } rows[] = {
        { VEC_DE, EVENT_FAULT, true }, { VEC_DB, EVENT_FAULT, false }, { VEC_NMI, EVENT_NMI, false },
        { VEC_BP, EVENT_TRAP, false }, { VEC_UD, EVENT_FAULT, false }, { VEC_NM, EVENT_FAULT, false },
        { VEC_TS, EVENT_FAULT, true }, { VEC_NP, EVENT_FAULT, true }, { VEC_SS, EVENT_FAULT, true },
        { VEC_PF, EVENT_FAULT, true }, { VEC_MF, EVENT_FAULT, false }, { VEC_AC, EVENT_FAULT, false },
        { 0x40, EVENT_INTERRUPT, false },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        struct x86_fixture *f = x86_fixture_create(NULL);
        enter_protected(f);
        put_gate32(f, VEC_DF, SEL_CODE0, 0x5000, 0x8E);
        put_gate32(f, VEC_GP, SEL_CODE0, 0x5100, 0x8E);
        deliver(f, rows[i].kind, rows[i].first, false, 0);
        assert_int_equal(f->vcpu.rip, rows[i].doubles ? 0x5000 : 0x5100);
        assert_int_equal(peek(f, f->vcpu.gpr[RSP], 4),
                         rows[i].doubles ? 0 : rows[i].first * 8 + 2 + (rows[i].kind != EVENT_TRAP));
        assert_int_equal(f->triple_faults, 0);
        x86_fixture_destroy(f);
    }
}

static void test_triple_fault(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    enter_protected(f);
    deliver(f, EVENT_FAULT, VEC_GP, true, 0);
    assert_int_equal(f->triple_faults, 1);
    assert_int_equal(f->vcpu.activity, ACTIVITY_SHUTDOWN);
    x86_fixture_destroy(f);
}

static void test_triple_fault_in_real_mode_without_a_table(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    f->vcpu.idtr.limit = 0;
    deliver(f, EVENT_FAULT, VEC_UD, false, 0);
    assert_int_equal(f->triple_faults, 1);
    x86_fixture_destroy(f);
}

static void test_debug_exception_updates_dr6(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct event event = { .kind = EVENT_FAULT, .vector = VEC_DB, .payload = 2 };

    enter_protected(f);
    put_gate32(f, VEC_DB, SEL_CODE0, 0x5000, 0x8E);
    f->vcpu.dr6 |= 1;
    f->vcpu.dr7 |= DR7_GD;
    x86_deliver_event(&f->vcpu, &event);
    assert_int_equal(f->vcpu.dr6, DR6_FIXED | 2);
    assert_int_equal(f->vcpu.dr7 & DR7_GD, 0);
    assert_int_equal(peek(f, f->vcpu.gpr[RSP] + 8, 4) & RFLAGS_RF, 0);
    x86_fixture_destroy(f);
}

static void test_real_mode_interrupt(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    poke(f, 0x10 * 4, 0x12340567, 4);
    accept(x86_far_jump(vcpu, 0x0050, 0x100, 2, 0));
    assert_int_equal(vcpu->seg[CS].base, 0x500);
    vcpu->gpr[RSP] = 0x8000;
    accept(x86_interrupt(vcpu, 0x10, EVENT_SOFT_INT, 0x102));
    assert_int_equal(vcpu->seg[CS].selector, 0x1234);
    assert_int_equal(vcpu->rip, 0x567);
    assert_int_equal(vcpu->gpr[RSP], 0x7FFA);
    accept(x86_iret(vcpu, 2, 0));
    assert_int_equal(vcpu->rip, 0x102);
    assert_int_equal(vcpu->seg[CS].selector, 0x50);
    x86_fixture_destroy(f);
}

/* --- tasks --- */

static void put_task_b(struct x86_fixture *f, uint32_t eflags)
{
    static const uint16_t selectors[] = { SEL_DATA0, SEL_CODE0, SEL_DATA0, SEL_DATA0, 0, 0 };

    memset(ram_host(f->vcpu.ram, TSS_B), 0, 0x68);
    poke(f, TSS_B + 0x20, 0x7000, 4);
    poke(f, TSS_B + 0x24, eflags, 4);
    poke(f, TSS_B + 0x28, 0xAAAA, 4);
    poke(f, TSS_B + 0x38, STACK1, 4);
    for (unsigned i = 0; i < 6; i++)
        poke(f, TSS_B + 0x48 + i * 4, selectors[i], 2);
}

static void test_task_switch_by_call_and_back_by_iret(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_task_b(f, 2);
    vcpu->gpr[RAX] = 0x1111;
    accept(x86_far_call(vcpu, SEL_TASK_GATE, 0, 4, 0x4007));
    assert_int_equal(vcpu->tr.selector, SEL_TSS_B);
    assert_int_equal(vcpu->rip, 0x7000);
    assert_int_equal(vcpu->gpr[RAX], 0xAAAA);
    assert_int_equal(vcpu->gpr[RSP], STACK1);
    assert_true(vcpu->rflags & RFLAGS_NT);
    assert_true(vcpu->cr0 & CR0_TS);
    assert_int_equal(peek(f, TSS_B, 2), SEL_TSS);                   /* the link */
    assert_int_equal(peek(f, GDT + SEL_TSS_B + 5, 1), 0x8B);        /* both are busy */
    assert_int_equal(peek(f, GDT + SEL_TSS + 5, 1), 0x8B);
    assert_int_equal(peek(f, TSS + 0x20, 4), 0x4007);
    refuse(x86_far_call(vcpu, SEL_TSS, 0, 4, 0x7002), VEC_GP, SEL_TSS);     /* busy: not recursive */
    accept(x86_iret(vcpu, 4, 0x7001));
    assert_int_equal(vcpu->tr.selector, SEL_TSS);
    assert_int_equal(vcpu->rip, 0x4007);
    assert_int_equal(vcpu->gpr[RAX], 0x1111);
    assert_int_equal(peek(f, GDT + SEL_TSS_B + 5, 1), 0x89);
    assert_int_equal(peek(f, TSS_B + 0x24, 4) & RFLAGS_NT, 0);
    x86_fixture_destroy(f);
}

static void test_task_gate_takes_an_exception(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_task_b(f, 2);
    poke(f, TSS_B + 0x64, 1, 2);                                    /* debug trap */
    poke(f, IDT + VEC_DF * 8, make_gate(SEL_TSS_B, 0, 0x85, 0), 8);
    vcpu->rip = 0x4000;
    deliver(f, EVENT_FAULT, VEC_GP, true, 0);                       /* no gate: #DF */
    assert_int_equal(vcpu->tr.selector, SEL_TSS_B);
    assert_int_equal(vcpu->gpr[RSP], STACK1 - 4);
    assert_int_equal(peek(f, STACK1 - 4, 4), 0);
    assert_int_equal(peek(f, TSS + 0x20, 4), 0x4000);
    assert_int_equal(vcpu->pending_debug, DR6_BT);
    x86_fixture_destroy(f);
}

static void test_task_switch_checks(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_task_b(f, 2);
    put_descriptor(f, SEL_TSS_B, TSS_B, 0x66, 0x89);
    refuse(x86_far_jump(vcpu, SEL_TSS_B, 0, 4, 0x4007), VEC_TS, SEL_TSS_B);
    put_descriptor(f, SEL_TSS_B, TSS_B, 0x67, 0x09);
    refuse(x86_far_jump(vcpu, SEL_TSS_B, 0, 4, 0x4007), VEC_NP, SEL_TSS_B);
    assert_int_equal(vcpu->tr.selector, SEL_TSS);
    put_descriptor(f, SEL_TSS_B, TSS_B, 0x67, 0x89);
    poke(f, TSS_B + 0x50, SEL_CODE0, 2);                            /* SS */
    refuse(x86_far_jump(vcpu, SEL_TSS_B, 0, 4, 0x4007), VEC_TS, SEL_CODE0);
    assert_int_equal(vcpu->tr.selector, SEL_TSS_B);                 /* the fault is the new task's */
    assert_int_equal(vcpu->rip, 0x7000);
    x86_fixture_destroy(f);
}

static void test_16_bit_task(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_descriptor(f, SEL_TSS_B, TSS_B, 0x2B, 0x81);
    memset(ram_host(vcpu->ram, TSS_B), 0, 0x2C);
    poke(f, TSS_B + 0x0E, 0x7000, 2);
    poke(f, TSS_B + 0x10, 2, 2);
    poke(f, TSS_B + 0x12, 0xBBBB, 2);
    poke(f, TSS_B + 0x1A, STACK1, 2);
    poke(f, TSS_B + 0x22, SEL_DATA0, 2);
    poke(f, TSS_B + 0x24, SEL_CODE0, 2);
    poke(f, TSS_B + 0x26, SEL_DATA0, 2);
    poke(f, TSS_B + 0x28, SEL_DATA0, 2);
    vcpu->gpr[RAX] = 0x12345678;
    accept(x86_far_jump(vcpu, SEL_TSS_B, 0, 4, 0x4007));
    assert_int_equal(vcpu->rip, 0x7000);
    assert_int_equal(vcpu->gpr[RAX] & 0xFFFF, 0xBBBB);
    assert_false(vcpu->rflags & RFLAGS_NT);
    assert_int_equal(peek(f, GDT + SEL_TSS + 5, 1), 0x89);          /* JMP frees the old one */
    accept(x86_far_jump(vcpu, SEL_TSS, 0, 4, 0x7003));
    assert_int_equal(vcpu->rip, 0x4007);
    assert_int_equal(peek(f, TSS_B + 0x0E, 2), 0x7003);
    x86_fixture_destroy(f);
}

/* --- V86 --- */

static void enter_v86(struct x86_fixture *f, uint32_t eflags)
{
    uint32_t frame[] = { 0x100, 0x600, eflags | RFLAGS_VM | RFLAGS_FIXED, 0x1000, 0x900, 0x11, 0x22, 0x33, 0x44 };

    f->vcpu.gpr[RSP] = STACK0 - sizeof(frame);
    memcpy(ram_host(f->vcpu.ram, STACK0 - sizeof(frame)), frame, sizeof(frame));
    accept(x86_iret(&f->vcpu, 4, 0));
}

static void test_v86_in_and_out(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    put_gate32(f, 0x21, SEL_CODE0, 0x5000, 0xEE);
    enter_v86(f, RFLAGS_IF);
    assert_int_equal(vcpu->mode, MODE_V86);
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->seg[CS].base, 0x6000);
    assert_int_equal(vcpu->seg[GS].selector, 0x44);
    refuse(x86_interrupt(vcpu, 0x21, EVENT_SOFT_INT, 0x102), VEC_GP, 0);    /* IOPL 0 */
    refuse(x86_cli(vcpu), VEC_GP, 0);
    deliver(f, EVENT_INTERRUPT, 0x21, false, 0);
    assert_int_equal(vcpu->mode, MODE_PROTECTED32);
    assert_int_equal(vcpu->cpl, 0);
    assert_int_equal(vcpu->gpr[RSP], STACK0 - 36);
    assert_int_equal(peek(f, STACK0 - 4, 4), 0x44);
    assert_int_equal(peek(f, STACK0 - 36, 4), 0x100);
    assert_true(peek(f, STACK0 - 28, 4) & RFLAGS_VM);
    assert_true(vcpu->seg[DS].attr & SEG_UNUSABLE);
    accept(x86_iret(vcpu, 4, 0));
    assert_int_equal(vcpu->mode, MODE_V86);
    assert_int_equal(vcpu->gpr[RSP], 0x1000);
    x86_fixture_destroy(f);
}

static void test_vme_redirects_and_keeps_a_virtual_if(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    uint64_t value;

    enter_protected(f);
    accept(x86_write_cr(vcpu, 4, CR4_VME));
    poke(f, TSS + 102, 0x88, 2);                                    /* the redirection map is at 0x68 */
    memset(ram_host(vcpu->ram, TSS + 0x68), 0, 32);
    poke(f, TSS + 0x68 + 0x22 / 8, 1 << (0x22 % 8), 1);
    poke(f, 0x21 * 4, 0x07000010, 4);
    enter_v86(f, RFLAGS_IF | RFLAGS_VIF);
    accept(x86_pushf_value(vcpu, 2, &value));
    assert_int_equal(value, RFLAGS_IF | RFLAGS_IOPL | RFLAGS_FIXED);
    accept(x86_interrupt(vcpu, 0x21, EVENT_SOFT_INT, 0x102));
    assert_int_equal(vcpu->mode, MODE_V86);
    assert_int_equal(vcpu->seg[CS].selector, 0x700);
    assert_int_equal(vcpu->rip, 0x10);
    assert_false(vcpu->rflags & RFLAGS_VIF);
    assert_true(vcpu->rflags & RFLAGS_IF);
    assert_int_equal(peek(f, 0x9000 + 0xFFE, 2), RFLAGS_IF | RFLAGS_IOPL | RFLAGS_FIXED);
    accept(x86_iret(vcpu, 2, 0));
    assert_true(vcpu->rflags & RFLAGS_VIF);
    assert_int_equal(vcpu->rip, 0x102);
    refuse(x86_interrupt(vcpu, 0x22, EVENT_SOFT_INT, 0x102), VEC_GP, 0);    /* not redirected, IOPL 0 */
    accept(x86_cli(vcpu));
    assert_false(vcpu->rflags & RFLAGS_VIF);
    vcpu->rflags |= RFLAGS_VIP;
    refuse(x86_sti(vcpu), VEC_GP, 0);
    refuse(x86_popf(vcpu, 2, RFLAGS_IF), VEC_GP, 0);
    refuse(x86_popf(vcpu, 4, 0), VEC_GP, 0);
    x86_fixture_destroy(f);
}

/* --- leaving a null segment for real mode --- */

static void test_real_mode_load_after_null(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    uint64_t gla;

    enter_protected(f);
    accept(x86_load_segment(&f->vcpu, DS, 0));
    accept(x86_write_cr(&f->vcpu, 0, 0));
    accept(x86_load_segment(&f->vcpu, DS, 0x100));
    accept(x86_linear(&f->vcpu, DS, 0xFFF0, 4, true, &gla));
    assert_int_equal(gla, 0x10FF0);
    accept(x86_linear(&f->vcpu, ES, 0x100000, 4, true, &gla));      /* "big real": ES kept its 4 GiB limit */
    x86_fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segment_checks), cmocka_unit_test(test_accessed_bit_is_set_in_memory), cmocka_unit_test(test_ldt),
        cmocka_unit_test(test_lar_lsl_verr), cmocka_unit_test(test_far_jump_checks),
        cmocka_unit_test(test_call_gate_to_inner_ring_and_back), cmocka_unit_test(test_call_gate_checks),
        cmocka_unit_test(test_call_gate_64), cmocka_unit_test(test_interrupt_from_user_switches_stack),
        cmocka_unit_test(test_software_interrupt_checks_the_gate), cmocka_unit_test(test_page_fault_pushes_its_error_code),
        cmocka_unit_test(test_ist_and_null_ss), cmocka_unit_test(test_iret_to_null_ss_in_64_bit_mode),
        cmocka_unit_test(test_double_fault_table), cmocka_unit_test(test_triple_fault),
        cmocka_unit_test(test_triple_fault_in_real_mode_without_a_table), cmocka_unit_test(test_debug_exception_updates_dr6),
        cmocka_unit_test(test_real_mode_interrupt), cmocka_unit_test(test_task_switch_by_call_and_back_by_iret),
        cmocka_unit_test(test_task_gate_takes_an_exception), cmocka_unit_test(test_task_switch_checks),
        cmocka_unit_test(test_16_bit_task), cmocka_unit_test(test_v86_in_and_out),
        cmocka_unit_test(test_vme_redirects_and_keeps_a_virtual_if), cmocka_unit_test(test_real_mode_load_after_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
