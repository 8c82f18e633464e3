/* Modes, control registers, MSRs, fast system calls, flags instructions. */
#include "x86_fixture.h"

#include "state/state.h"
#include "x86/pvclock.h"

static void test_reset_state(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    assert_int_equal(f->vcpu.mode, MODE_REAL);
    assert_int_equal(f->vcpu.rip, 0xFFF0);
    assert_int_equal(f->vcpu.seg[CS].base, 0xFFFF0000);
    assert_int_equal(f->vcpu.cr0, 0x60000010);
    assert_int_equal(f->vcpu.dr6, 0xFFFF0FF0);
    assert_int_equal(f->vcpu.dr7, 0x400);
    assert_int_equal(f->vcpu.rflags, 2);
    x86_fixture_destroy(f);
}

static void test_init_keeps_cache_bits_and_waits_on_others(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    f->vcpu.index = 1;
    f->vcpu.cr0 = CR0_PE | CR0_ET;
    f->vcpu.pat = 0x0606060606060606;
    x86_reset(&f->vcpu, true);
    assert_int_equal(f->vcpu.cr0, CR0_ET);
    assert_int_equal(f->vcpu.pat, 0x0606060606060606);
    assert_int_equal(f->vcpu.activity, ACTIVITY_WAIT_SIPI);
    x86_fixture_destroy(f);
}

static void test_long_mode_transition(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_long(f);
    assert_true(vcpu->efer & EFER_LMA);
    refuse(x86_write_cr(vcpu, 0, CR0_PE), VEC_GP, 0);                       /* paging off in 64-bit mode */
    refuse(x86_write_cr(vcpu, 4, 0), VEC_GP, 0);                            /* PAE off */
    refuse(x86_wrmsr(vcpu, 0xC0000080, EFER_SCE), VEC_GP, 0);               /* LME while paging */
    refuse(x86_write_cr(vcpu, 3, BIT(63)), VEC_GP, 0);
    refuse(x86_write_cr(vcpu, 3, BIT(47)), VEC_GP, 0);
    accept(x86_write_cr(vcpu, 4, CR4_PAE | CR4_PCIDE));
    accept(x86_write_cr(vcpu, 3, PAGE_TABLES | BIT(63) | 5));
    assert_int_equal(vcpu->cr3, PAGE_TABLES | 5);
    refuse(x86_write_cr(vcpu, 8, 16), VEC_GP, 0);
    accept(x86_far_jump(vcpu, SEL_CODE0, HANDLER, 8, 0));
    assert_int_equal(vcpu->mode, MODE_COMPAT32);
    refuse(x86_write_cr(vcpu, 0, CR0_PE), VEC_GP, 0);                       /* PCIDE is on */
    accept(x86_write_cr(vcpu, 3, PAGE_TABLES));
    accept(x86_write_cr(vcpu, 4, CR4_PAE));
    accept(x86_write_cr(vcpu, 0, CR0_PE));
    assert_false(vcpu->efer & EFER_LMA);
    assert_int_equal(vcpu->mode, MODE_PROTECTED32);
    x86_fixture_destroy(f);
}

static void test_cr0_rules(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    refuse(x86_write_cr(vcpu, 0, CR0_PG), VEC_GP, 0);
    refuse(x86_write_cr(vcpu, 0, CR0_NW), VEC_GP, 0);
    refuse(x86_write_cr(vcpu, 0, BIT(32)), VEC_GP, 0);
    refuse(x86_write_cr(vcpu, 1, 0), VEC_UD, 0);
    refuse(x86_write_cr(vcpu, 4, CR4_VMXE), VEC_GP, 0);
    refuse(x86_write_cr(vcpu, 4, CR4_PCIDE), VEC_GP, 0);                    /* not in long mode */
    accept(x86_write_cr(vcpu, 0, 0));
    assert_int_equal(vcpu->cr0, CR0_ET);
    accept(x86_lmsw(vcpu, CR0_PE));
    accept(x86_lmsw(vcpu, 0));
    assert_true(vcpu->cr0 & CR0_PE);                                        /* LMSW cannot clear it */
    vcpu->cpl = 3;
    refuse(x86_write_cr(vcpu, 0, 0), VEC_GP, 0);
    x86_fixture_destroy(f);
}

/* The walk of MSRs is a binary search: rows must be sorted and disjoint. */
static void test_msr_rows_are_sorted(void **state)
{
    uint32_t first, count;
    uint64_t end = 0;

    for (unsigned i = 0; x86_msr_row(i, &first, &count); i++) {
        assert_true(first >= end);
        assert_true(count > 0);
        end = (uint64_t)first + count;
    }
}

/* Each row can be read, or says #GP, without any interrupt controller; writing back what was read is allowed or #GP. */
static void test_every_msr_answers(void **state)
{
    struct x86_fixture *f = x86_fixture_create("host");
    uint32_t first, count;
    uint64_t value;

    enter_long(f);
    for (unsigned i = 0; x86_msr_row(i, &first, &count); i++)
        for (uint32_t n = first; n < first + count; n++) {
            f->vcpu.pending.kind = EVENT_NONE;
            if (x86_rdmsr(&f->vcpu, n, &value))
                x86_wrmsr(&f->vcpu, n, value);
            assert_true(f->vcpu.pending.kind == EVENT_NONE || f->vcpu.pending.vector == VEC_GP);
            f->vcpu.pending.kind = EVENT_NONE;
            x86_wrmsr(&f->vcpu, n, ~0ull << 13);
        }
    x86_fixture_destroy(f);
}

static void test_msr_rules(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    uint64_t value;

    refuse(x86_rdmsr(vcpu, 0x12345678, &value), VEC_GP, 0);
    assert_int_equal(counter_get(&vcpu->counters, COUNTER_unknown_msrs), 1);
    refuse(x86_wrmsr(vcpu, 0xC0000082, 0x800000000000), VEC_GP, 0);         /* LSTAR must be canonical */
    accept(x86_wrmsr(vcpu, 0xC0000082, 0xFFFF800000000000));
    assert_int_equal(vcpu->lstar, 0xFFFF800000000000);
    refuse(x86_wrmsr(vcpu, 0x277, 2), VEC_GP, 0);                           /* PAT type 2 is reserved */
    accept(x86_wrmsr(vcpu, 0x277, 0x0007010600070106));
    refuse(x86_wrmsr(vcpu, 0xFE, 0), VEC_GP, 0);                            /* MTRRCAP is read-only */
    refuse(x86_rdmsr(vcpu, 0x49, &value), VEC_GP, 0);                       /* PRED_CMD is write-only */
    refuse(x86_wrmsr(vcpu, 0x201, 1), VEC_GP, 0);
    accept(x86_wrmsr(vcpu, 0x201, 0x800));
    accept(x86_wrmsr(vcpu, 0x268, 0x0606060606060606));
    assert_int_equal(vcpu->mtrr_fixed[3], 0x0606060606060606);
    accept(x86_wrmsr(vcpu, 0x26F, 0x0505050505050505));
    assert_int_equal(vcpu->mtrr_fixed[10], 0x0505050505050505);
    refuse(x86_wrmsr(vcpu, 0xC0000080, BIT(1)), VEC_GP, 0);
    accept(x86_rdmsr(vcpu, 0x10A, &value));
    assert_true(value & 1);                                                 /* RDCL_NO */
    x86_fixture_destroy(f);
}

static void test_tsc_writes_move_adjust(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    uint64_t value;

    accept(x86_wrmsr(&f->vcpu, 0x10, 1000));
    accept(x86_rdmsr(&f->vcpu, 0x10, &value));
    assert_int_equal(value, 1000);
    accept(x86_rdmsr(&f->vcpu, 0x3B, &value));
    assert_int_equal(value, 1000);
    accept(x86_wrmsr(&f->vcpu, 0x3B, 0));
    accept(x86_rdmsr(&f->vcpu, 0x10, &value));
    assert_int_equal(value, 0);
    x86_fixture_destroy(f);
}

static uint64_t pvclock_ns(const uint8_t *page, uint64_t tsc)
{
    uint64_t timestamp, system_time;
    uint32_t mul;
    int8_t shift;

    memcpy(&timestamp, page + 8, 8);
    memcpy(&system_time, page + 16, 8);
    memcpy(&mul, page + 24, 4);
    memcpy(&shift, page + 28, 1);
    uint64_t delta = tsc - timestamp;
    delta = shift < 0 ? delta >> -shift : delta << shift;
    return system_time + (uint64_t)((__uint128_t)delta * mul >> 32);
}

static void test_pvclock_tells_the_machines_time(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    uint8_t *page = ram_host(f->vcpu.ram, 0x5000);

    clock_advance(f->vcpu.clock, 12345678);
    accept(x86_wrmsr(&f->vcpu, 0x10, 777));
    accept(x86_wrmsr(&f->vcpu, 0x4B564D01, 0x5001));
    clock_advance(f->vcpu.clock, 3600 * NS_PER_SECOND);
    uint64_t ns = pvclock_ns(page, x86_tsc(&f->vcpu)), truth = clock_ns(f->vcpu.clock);
    assert_true((ns > truth ? ns - truth : truth - ns) < 5000);     /* 2^-32 of an hour */
    assert_int_equal(page[0] & 1, 0);
    assert_int_equal(page[29], 1);
    x86_fixture_destroy(f);
}

static void test_pvclock_scale_is_precise(void **state)
{
    static const uint64_t rates[] = { 1000000, 999999999, 1000000000, 1000000001, 2600000000, 3999999999, 5000000000 };

    for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
        uint32_t mul;
        int8_t shift;
        pvclock_scale(rates[i], &mul, &shift);
        uint64_t second = shift < 0 ? rates[i] >> -shift : rates[i] << shift;
        uint64_t ns = (__uint128_t)second * mul >> 32;
        assert_true(ns <= NS_PER_SECOND && ns >= NS_PER_SECOND - 4);
    }
}

static void test_syscall_and_sysret(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_long(f);
    vcpu->star = (uint64_t)0x1B << 48 | (uint64_t)0x08 << 32;
    vcpu->lstar = 0xFFFFFFFF81000000;
    vcpu->sfmask = RFLAGS_IF | RFLAGS_TF | RFLAGS_AC;
    vcpu->gpr[RCX] = 0x400000;
    vcpu->gpr[R11] = RFLAGS_IF | RFLAGS_AC | RFLAGS_VM;
    accept(x86_sysret(vcpu, 8));
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->seg[CS].selector, 0x2B);
    assert_int_equal(vcpu->seg[SS].selector, 0x23);
    assert_int_equal(vcpu->rflags, RFLAGS_IF | RFLAGS_AC | RFLAGS_FIXED);
    assert_int_equal(vcpu->mode, MODE_LONG64);
    refuse(x86_sysret(vcpu, 8), VEC_GP, 0);
    accept(x86_syscall(vcpu, 0x400002));
    assert_int_equal(vcpu->cpl, 0);
    assert_int_equal(vcpu->rip, 0xFFFFFFFF81000000);
    assert_int_equal(vcpu->gpr[RCX], 0x400002);
    assert_int_equal(vcpu->gpr[R11], RFLAGS_IF | RFLAGS_AC | RFLAGS_FIXED);
    assert_int_equal(vcpu->rflags, RFLAGS_FIXED);
    assert_int_equal(vcpu->seg[CS].selector, 8);
    vcpu->gpr[RCX] = 0x800000000000;
    refuse(x86_sysret(vcpu, 8), VEC_GP, 0);
    accept(x86_sysret(vcpu, 4));
    assert_int_equal(vcpu->mode, MODE_COMPAT32);
    refuse(x86_syscall(vcpu, 0), VEC_UD, 0);                /* compatibility mode, on Intel */
    x86_fixture_destroy(f);
}

static void test_sysenter_and_sysexit(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    enter_user(f, 0x6000);
    refuse(x86_sysenter(vcpu), VEC_GP, 0);
    vcpu->sysenter_cs = SEL_CODE0;
    vcpu->sysenter_esp = STACK0;
    vcpu->sysenter_eip = HANDLER;
    accept(x86_sysenter(vcpu));
    assert_int_equal(vcpu->cpl, 0);
    assert_int_equal(vcpu->rip, HANDLER);
    assert_int_equal(vcpu->gpr[RSP], STACK0);
    assert_int_equal(vcpu->rflags & RFLAGS_IF, 0);
    vcpu->gpr[RDX] = 0x6002;
    vcpu->gpr[RCX] = STACK3;
    accept(x86_sysexit(vcpu, 4));
    assert_int_equal(vcpu->cpl, 3);
    assert_int_equal(vcpu->seg[CS].selector, SEL_CODE3);
    refuse(x86_sysexit(vcpu, 4), VEC_GP, 0);
    x86_fixture_destroy(f);
}

static void test_io_permission(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    poke(f, TSS + 102, 0x68, 2);
    memset(ram_host(vcpu->ram, TSS + 0x68), 0xFF, 0x100);
    poke(f, TSS + 0x68 + 0x60 / 8, ~(1ull | 1 << 4), 1);
    accept(x86_io_allowed(vcpu, 0x3F8, 1));
    enter_user(f, 0x6000);
    refuse(x86_io_allowed(vcpu, 0x3F8, 1), VEC_GP, 0);
    accept(x86_io_allowed(vcpu, 0x60, 1));
    accept(x86_io_allowed(vcpu, 0x64, 1));
    refuse(x86_io_allowed(vcpu, 0x60, 2), VEC_GP, 0);
    refuse(x86_io_allowed(vcpu, 0xF000, 1), VEC_GP, 0);     /* beyond the TSS limit */
    vcpu->rflags |= RFLAGS_IOPL;
    accept(x86_io_allowed(vcpu, 0x3F8, 1));
    x86_fixture_destroy(f);
}

static void test_popf_by_privilege(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    accept(x86_popf(vcpu, 4, RFLAGS_IOPL | RFLAGS_IF | RFLAGS_VM | RFLAGS_CF));
    assert_int_equal(vcpu->rflags, RFLAGS_IOPL | RFLAGS_IF | RFLAGS_CF | RFLAGS_FIXED);
    accept(x86_popf(vcpu, 4, 0));
    enter_user(f, 0x6000);
    accept(x86_popf(vcpu, 4, RFLAGS_IOPL | RFLAGS_AC));
    assert_int_equal(vcpu->rflags, RFLAGS_IF | RFLAGS_AC | RFLAGS_FIXED);
    refuse(x86_cli(vcpu), VEC_GP, 0);
    refuse(x86_sti(vcpu), VEC_GP, 0);
    vcpu->cr4 |= CR4_PVI;
    accept(x86_sti(vcpu));
    assert_true(vcpu->rflags & RFLAGS_VIF);
    accept(x86_cli(vcpu));
    assert_false(vcpu->rflags & RFLAGS_VIF);
    vcpu->rflags |= RFLAGS_VIP;
    refuse(x86_sti(vcpu), VEC_GP, 0);
    x86_fixture_destroy(f);
}

static void test_sti_shadow(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);

    accept(x86_sti(&f->vcpu));
    assert_int_equal(f->vcpu.shadow, SHADOW_STI);
    f->vcpu.shadow = 0;
    accept(x86_sti(&f->vcpu));
    assert_int_equal(f->vcpu.shadow, 0);                    /* IF was set already */
    x86_fixture_destroy(f);
}

static void test_debug_registers(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    struct vcpu *vcpu = &f->vcpu;
    uint64_t value;

    enter_protected(f);
    accept(x86_write_dr(vcpu, 0, 0x6000));
    accept(x86_write_dr(vcpu, 1, 0x7001));
    accept(x86_write_dr(vcpu, 7, 0x2 | 0x4 | 0xD << 20));   /* DR0 executes; DR1: 4 bytes, written or written and read */
    assert_int_equal(vcpu->dr7, 0x406 | 0xD << 20);
    refuse(x86_debug_fetch(vcpu, 0x6000), VEC_DB, 0);
    assert_int_equal(vcpu->pending.payload, 1);
    accept(x86_debug_fetch(vcpu, 0x6001));
    vcpu->rflags |= RFLAGS_RF;
    accept(x86_debug_fetch(vcpu, 0x6000));
    x86_debug_data(vcpu, 0x7003, 1, true);                  /* DR1 is aligned down to 0x7000 */
    assert_int_equal(vcpu->pending_debug, 2);
    vcpu->pending_debug = 0;
    x86_debug_data(vcpu, 0x7003, 1, false);
    assert_int_equal(vcpu->pending_debug, 0);
    x86_debug_data(vcpu, 0x7004, 4, true);
    assert_int_equal(vcpu->pending_debug, 0);
    accept(x86_read_dr(vcpu, 4, &value));
    assert_int_equal(value, vcpu->dr6);
    vcpu->cr4 |= CR4_DE;
    refuse(x86_read_dr(vcpu, 4, &value), VEC_UD, 0);
    accept(x86_write_dr(vcpu, 2, 0x64));
    accept(x86_write_dr(vcpu, 7, 0x20 | 2u << 24));         /* DR2: I/O */
    x86_debug_io(vcpu, 0x64, 1);
    assert_int_equal(vcpu->pending_debug, 4);
    refuse(x86_write_dr(vcpu, 7, BIT(32)), VEC_GP, 0);
    accept(x86_write_dr(vcpu, 7, DR7_GD));
    refuse(x86_read_dr(vcpu, 0, &value), VEC_DB, 0);
    assert_int_equal(vcpu->pending.payload, DR6_BD);
    x86_fixture_destroy(f);
}

/* --- state --- */

static void test_state_list_saves_and_loads(void **state)
{
    struct x86_fixture *a = x86_fixture_create(NULL), *b = x86_fixture_create(NULL);
    struct state_buffer buffer = { 0 };
    const char *field = NULL;
    struct error err;
    size_t used = 0;
    uint64_t seed = 42;

    state_randomize(&vcpu_state_list, &a->vcpu, &seed);
    assert_false(state_equal(&vcpu_state_list, &a->vcpu, &b->vcpu, &field));
    state_save(&vcpu_state_list, &a->vcpu, &buffer);
    assert_true(state_load(&vcpu_state_list, &b->vcpu, buffer.data, buffer.size, &used, &err));
    assert_int_equal(used, buffer.size);
    assert_memory_equal(a->vcpu.pdpte, b->vcpu.pdpte, sizeof(b->vcpu.pdpte));      /* registers, not a cache */
    assert_true(state_equal(&vcpu_state_list, &a->vcpu, &b->vcpu, &field));
    state_buffer_free(&buffer);
    x86_fixture_destroy(a);
    x86_fixture_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reset_state), cmocka_unit_test(test_init_keeps_cache_bits_and_waits_on_others),
        cmocka_unit_test(test_long_mode_transition), cmocka_unit_test(test_cr0_rules),
        cmocka_unit_test(test_msr_rows_are_sorted), cmocka_unit_test(test_every_msr_answers), cmocka_unit_test(test_msr_rules),
        cmocka_unit_test(test_tsc_writes_move_adjust), cmocka_unit_test(test_pvclock_tells_the_machines_time),
        cmocka_unit_test(test_pvclock_scale_is_precise), cmocka_unit_test(test_syscall_and_sysret),
        cmocka_unit_test(test_sysenter_and_sysexit), cmocka_unit_test(test_io_permission),
        cmocka_unit_test(test_popf_by_privilege), cmocka_unit_test(test_sti_shadow), cmocka_unit_test(test_debug_registers),
        cmocka_unit_test(test_state_list_saves_and_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
