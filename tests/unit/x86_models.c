/* CPU models and CPUID: what is offered, what is hidden, and that the leaves agree with each other. */
#include "x86_fixture.h"

#include "x86/model.h"

static void cpuid(struct x86_fixture *f, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    x86_cpuid(&f->vcpu, leaf, subleaf, out);
}

static void test_vendor_and_brand(void **state)
{
    struct x86_fixture *f = x86_fixture_create("i7-7500U");
    uint32_t out[4];
    char brand[49] = "";

    cpuid(f, 0, 0, out);
    assert_memory_equal(&out[1], "Genu", 4);
    assert_memory_equal(&out[3], "ineI", 4);
    assert_memory_equal(&out[2], "ntel", 4);
    cpuid(f, 1, 0, out);
    assert_int_equal(out[0], 0x806E9);
    for (unsigned i = 0; i < 3; i++) {
        cpuid(f, 0x80000002 + i, 0, out);
        memcpy(brand + i * 16, out, 16);
    }
    assert_string_equal(brand, "Intel(R) Core(TM) i7-7500U CPU @ 2.70GHz");
    x86_fixture_destroy(f);
}

static void test_hypervisor_leaves(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    uint32_t out[4], timing[4], crystal[4];

    cpuid(f, 0x40000000, 0, out);
    assert_memory_equal(&out[1], "KVMKVMKVM\0\0\0", 12);
    assert_int_equal(out[0], 0x40000010);
    cpuid(f, 0x40000001, 0, out);
    assert_true(out[0] & BIT(3));
    assert_true(out[0] & BIT(24));
    cpuid(f, 0x40000010, 0, timing);
    assert_int_equal(timing[0], clock_tsc_hz(f->vcpu.clock) / 1000);
    cpuid(f, 0x15, 0, crystal);
    uint64_t hz = (uint64_t)crystal[2] * crystal[1] / crystal[0];
    assert_true(hz + 1000 > clock_tsc_hz(f->vcpu.clock) && hz < clock_tsc_hz(f->vcpu.clock) + 1000);
    assert_int_equal(crystal[2] / 1000, timing[1]);
    x86_fixture_destroy(f);
}

/* Near 1 GHz, exact, and with a product of 32 bits. */
static void test_crystals(void **state)
{
    for (uint64_t hz = 500000000; hz < 6000000000; hz += 7654321) {
        struct x86_crystal crystal = x86_crystal(hz);
        assert_in_range(crystal.khz, 997500, 1002500);
        assert_true((uint64_t)crystal.khz * crystal.numerator <= UINT32_MAX);
        assert_in_range((uint64_t)crystal.khz * 1000 * crystal.numerator / crystal.denominator, hz - 100, hz + 100);
    }
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(x86_crystal((const uint64_t[]){ 0, 1, UINT32_MAX * 1000ull, 1ull << 50 }[i]).denominator != 0, 1);
}

/* Never: SMX, SGX, CET, AMX, PT, perfmon. */
static void test_hidden_features(void **state)
{
    static const struct { uint32_t leaf, reg, mask; } hidden[] = {
        { 1, 2, 1u << 6 | 1u << 15 }, { 7, 1, 1u << 2 | 1u << 25 }, { 7, 2, 1u << 7 | 1u << 30 },
        { 7, 3, 1u << 20 | 1u << 22 | 1u << 24 | 1u << 25 }, { 0xA, 0, 0xFFFFFFFF }, { 0x12, 0, 0xFFFFFFFF },
    };
    static const char *const models[] = { "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4", "i7-7500U", "host" };
    uint32_t out[4];

    for (unsigned m = 0; m < ARRAY_SIZE(models); m++) {
        struct x86_fixture *f = x86_fixture_create(models[m]);
        for (unsigned i = 0; i < ARRAY_SIZE(hidden); i++) {
            cpuid(f, hidden[i].leaf, 0, out);
            assert_int_equal(out[hidden[i].reg] & hidden[i].mask, 0);
        }
        x86_fixture_destroy(f);
    }
}

/* VT-x is there where the model has it or somebody asks for it, not because this host has it. */
static void test_vmx_by_name(void **state)
{
    static const struct { const char *model; bool vmx; } cases[] = {
        { "x86-64-v3", false }, { "host", false }, { "i7-7500U", true }, { "i7-7500U,vmx=off", false },
        { "x86-64-v3,vmx=on", true }, { "host,+vmx", true },
    };
    uint32_t out[4];

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct x86_fixture *f = x86_fixture_create(cases[i].model);
        cpuid(f, 1, 0, out);
        assert_int_equal(out[2] >> 5 & 1, cases[i].vmx);
        x86_fixture_destroy(f);
    }
}

static uint64_t capability(struct x86_fixture *f, uint32_t msr)
{
    uint64_t value;
    return x86_rdmsr(&f->vcpu, msr, &value) ? value : 0;
}

/* A feature of VT-x goes with all that needs it, and the capability MSRs say so. */
static void test_vmx_features_by_name(void **state)
{
    enum { PIN = 0x481, PROC = 0x482, EXIT = 0x483, ENTRY = 0x484, VMCS_ENUM = 0x48A, PROC2 = 0x48B, EPT_VPID = 0x48C };
    struct error err;
    struct x86_fixture *all = x86_fixture_create("i7-7500U"), *f = x86_fixture_create("i7-7500U,vmx-enable-ept=off,-vmx-load-pat");
    enum { EPT_AND_WHAT_NEEDS_IT = PROC2_ENABLE_EPT | PROC2_UNRESTRICTED_GUEST | PROC2_ENABLE_PML | PROC2_MODE_BASED_EXECUTE |
                                   PROC2_EPT_VIOLATION_VE | PROC2_ENABLE_VM_FUNCTIONS };
    assert_int_equal((capability(all, PROC2) ^ capability(f, PROC2)) >> 32, EPT_AND_WHAT_NEEDS_IT);
    assert_int_equal((capability(all, EXIT) ^ capability(f, EXIT)) >> 32, EXIT_LOAD_PAT);
    assert_int_equal((capability(all, ENTRY) ^ capability(f, ENTRY)) >> 32, ENTRY_LOAD_PAT);
    assert_int_equal(capability(f, EPT_VPID), 0xF01ull << 32);
    x86_fixture_destroy(f);
    f = x86_fixture_create("i7-7500U,vmx-activate-secondary-controls=off,vmx-activate-tertiary-controls=off");
    assert_int_equal(capability(f, PROC2), 0);
    assert_int_equal(capability(f, EPT_VPID), 0);
    assert_int_equal((capability(all, PIN) ^ capability(f, PIN)) >> 32, PIN_PROCESS_POSTED_INTERRUPTS);
    assert_true(capability(f, VMCS_ENUM) < capability(all, VMCS_ENUM));
    x86_fixture_destroy(f);
    x86_fixture_destroy(all);
    assert_null(x86_model_create("i7-7500U,vmx-warp-drive=off", 1, 1000000000, &err));
    assert_null(x86_model_create("i7-7500U,vmx-ia32e=off", 1, 1000000000, &err));
}

/* What EPT and VPID can do, bit by bit; a capability goes with the control that it is of, and with what it is a part of. */
static void test_ept_capabilities_by_name(void **state)
{
    enum { PROC2 = 0x48B, EPT_VPID = 0x48C };
    static const struct { const char *model; uint64_t want; } cases[] = {
        { "i7-7500U", 0x00000F0106734141 }, { "i7-7500U,vmx-ept-2m-pages=off", 0x00000F0106724141 },
        { "i7-7500U,vmx-invvpid=off", 0x0000000006734141 }, { "i7-7500U,vmx-invept=off", 0x00000F0100634141 },
        { "i7-7500U,vmx-enable-vpid=off,vmx-ept-1g-pages=off", 0x06714141 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct x86_fixture *f = x86_fixture_create(cases[i].model);
        assert_int_equal(capability(f, EPT_VPID), cases[i].want);
        x86_fixture_destroy(f);
    }
    struct x86_fixture *f = x86_fixture_create("i7-7500U,vmx-ept-accessed-dirty=off");
    assert_int_equal(capability(f, PROC2) >> 32 & PROC2_ENABLE_PML, 0);
    x86_fixture_destroy(f);
}

/* Processors report the same of VT-x unless somebody asks for one that does not. */
static void test_processors_that_differ(void **state)
{
    struct error err;
    struct cpu_model *model = x86_model_create("i7-7500U,vmx-virtual-nmis=off@1,vmx-ept-1g-pages=off@2,-vmx-enable-pml", 3, 1000000000, &err);
    assert_non_null(model);
    assert_true(model->vmx[0].control[VMX_PIN] & PIN_VIRTUAL_NMIS);
    assert_false(model->vmx[1].control[VMX_PIN] & PIN_VIRTUAL_NMIS);
    assert_false(model->vmx[1].control[VMX_PROC] & PROC_NMI_WINDOW_EXITING);
    assert_true(model->vmx[2].control[VMX_PIN] & PIN_VIRTUAL_NMIS);
    assert_int_equal(model->vmx[0].ept_vpid ^ model->vmx[2].ept_vpid, BIT(CAPABILITY_EPT_1G_PAGES));
    for (unsigned i = 0; i < 3; i++)
        assert_false(model->vmx[i].control[VMX_PROC2] & PROC2_ENABLE_PML);
    x86_model_destroy(model);
    model = x86_model_create("i7-7500U,vmx-virtual-nmis=off@1,vmx-ept-1g-pages=off@2,vmx-lowest-common", 3, 1000000000, &err);
    assert_non_null(model);
    for (unsigned i = 0; i < 3; i++) {
        assert_false(model->vmx[i].control[VMX_PIN] & PIN_VIRTUAL_NMIS);
        assert_false(model->vmx[i].ept_vpid >> CAPABILITY_EPT_1G_PAGES & 1);
    }
    x86_model_destroy(model);
    static const char *const wrong[] = { "i7-7500U,vmx-virtual-nmis=off@3", "i7-7500U,vmx-virtual-nmis=off@", "i7-7500U,vmx-virtual-nmis=off@x",
                                         "i7-7500U,vmx-virtual-nmis=off@99999999999", "i7-7500U,avx=off@1" };
    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_null(x86_model_create(wrong[i], 3, 1000000000, &err));
}

/* No model offers a user-level instruction that this host lacks. */
static void test_models_are_masked_by_the_host(void **state)
{
    static const char *const models[] = { "x86-64-v3", "x86-64-v4", "i7-7500U", "host" };

    for (unsigned m = 0; m < ARRAY_SIZE(models); m++) {
        struct x86_fixture *f = x86_fixture_create(models[m]);
        for (unsigned feature = 0; feature < FEATURE_COUNT; feature++)
            assert_true(!x86_has(&f->vcpu, feature) || host_has(feature));
        x86_fixture_destroy(f);
    }
}

static void test_each_level_has_the_one_below(void **state)
{
    static const char *const levels[] = { "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4" };

    for (unsigned i = 1; i < ARRAY_SIZE(levels); i++) {
        struct x86_fixture *below = x86_fixture_create(levels[i - 1]), *above = x86_fixture_create(levels[i]);
        for (unsigned feature = 0; feature < FEATURE_COUNT; feature++)
            assert_true(!x86_has(&below->vcpu, feature) || x86_has(&above->vcpu, feature));
        x86_fixture_destroy(below);
        x86_fixture_destroy(above);
    }
}

static void test_switches(void **state)
{
    struct error err;
    struct x86_fixture *f = x86_fixture_create("x86-64-v3,-avx,+pku,-x2apic");

    assert_false(x86_has(&f->vcpu, FEATURE_AVX));
    assert_false(x86_has(&f->vcpu, FEATURE_AVX2));      /* needs AVX */
    assert_false(x86_has(&f->vcpu, FEATURE_FMA));
    assert_true(x86_has(&f->vcpu, FEATURE_PKU));
    assert_false(x86_has(&f->vcpu, FEATURE_X2APIC));
    assert_int_equal(x86_xcr0_supported(&f->vcpu) & XCR0_AVX, 0);
    x86_fixture_destroy(f);
    assert_null(x86_model_create("x86-64-v9", 1, 1000000000, &err));
    assert_null(x86_model_create("x86-64-v3,+warp-drive", 1, 1000000000, &err));
    assert_null(x86_model_create("x86-64-v3,avx", 1, 1000000000, &err));
    assert_null(x86_model_create("x86-64-v3,", 1, 1000000000, &err));
}

/* A model has only what its host has: without that the test is skipped. */
static void need_host(struct x86_fixture *f, enum x86_feature feature, const char *name)
{
    if (x86_has(&f->vcpu, feature))
        return;
    x86_fixture_destroy(f);
    print_message("the host's processor has no %s\n", name);
    skip();
}

static void test_dynamic_bits_follow_cr4(void **state)
{
    struct x86_fixture *f = x86_fixture_create("x86-64-v4,+pku");
    uint32_t out[4];

    need_host(f, FEATURE_XSAVE, "XSAVE");
    cpuid(f, 1, 0, out);
    assert_false(out[2] & BIT(27));
    accept(x86_write_cr(&f->vcpu, 4, CR4_OSXSAVE | CR4_PKE));
    cpuid(f, 1, 0, out);
    assert_true(out[2] & BIT(27));
    cpuid(f, 7, 0, out);
    assert_true(out[2] & BIT(4));
    x86_fixture_destroy(f);
}

static void test_xsave_leaf_follows_xcr0(void **state)
{
    struct x86_fixture *f = x86_fixture_create("x86-64-v4");
    uint32_t out[4];

    need_host(f, FEATURE_AVX512F, "AVX-512");
    accept(x86_write_cr(&f->vcpu, 4, CR4_OSXSAVE));
    cpuid(f, 0xD, 0, out);
    assert_int_equal(out[1], 576);
    accept(x86_xsetbv(&f->vcpu, 0, XCR0_X87 | XCR0_SSE | XCR0_AVX));
    cpuid(f, 0xD, 0, out);
    assert_int_equal(out[1], 832);
    assert_int_equal(out[2], 2696);
    cpuid(f, 0xD, 1, out);
    assert_int_equal(out[1], 832);
    refuse(x86_xsetbv(&f->vcpu, 0, XCR0_X87 | XCR0_AVX), VEC_GP, 0);
    refuse(x86_xsetbv(&f->vcpu, 0, XCR0_SSE), VEC_GP, 0);
    refuse(x86_xsetbv(&f->vcpu, 0, XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_OPMASK), VEC_GP, 0);
    refuse(x86_xsetbv(&f->vcpu, 1, XCR0_X87), VEC_GP, 0);
    accept(x86_xsetbv(&f->vcpu, 0, XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512));
    cpuid(f, 0xD, 1, out);
    assert_int_equal(out[1], 2432);
    x86_fixture_destroy(f);
}

static void test_topology(void **state)
{
    struct error err;
    struct x86_fixture *f = x86_fixture_create(NULL);
    uint32_t out[4];

    x86_model_destroy((struct cpu_model *)f->vcpu.model);
    f->vcpu.model = x86_model_create(NULL, 6, 2000000000, &err);
    f->vcpu.apic_id = 5;
    cpuid(f, 0xB, 1, out);
    assert_int_equal(out[0], 3);
    assert_int_equal(out[1], 6);
    assert_int_equal(out[2], 0x201);
    assert_int_equal(out[3], 5);
    cpuid(f, 1, 0, out);
    assert_int_equal(out[1] >> 24, 5);
    assert_int_equal(out[1] >> 16 & 0xFF, 8);
    assert_true(out[3] & BIT(28));
    cpuid(f, 4, 3, out);
    assert_int_equal(out[0] >> 14 & 0xFFF, 7);
    cpuid(f, 4, 4, out);
    assert_int_equal(out[0], 0);
    x86_fixture_destroy(f);
}

static void test_leaves_beyond_the_last_answer_as_the_last(void **state)
{
    struct x86_fixture *f = x86_fixture_create(NULL);
    uint32_t last[4], beyond[4];

    cpuid(f, 0x16, 0, last);
    cpuid(f, 0x1000, 0, beyond);
    assert_memory_equal(last, beyond, sizeof(last));
    cpuid(f, 0x80001000, 0, beyond);
    assert_memory_equal(last, beyond, sizeof(last));
    x86_fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vendor_and_brand), cmocka_unit_test(test_hypervisor_leaves),
        cmocka_unit_test(test_crystals),
        cmocka_unit_test(test_hidden_features), cmocka_unit_test(test_vmx_by_name), cmocka_unit_test(test_vmx_features_by_name),
        cmocka_unit_test(test_ept_capabilities_by_name), cmocka_unit_test(test_processors_that_differ),
        cmocka_unit_test(test_models_are_masked_by_the_host),
        cmocka_unit_test(test_each_level_has_the_one_below), cmocka_unit_test(test_switches),
        cmocka_unit_test(test_dynamic_bits_follow_cr4), cmocka_unit_test(test_xsave_leaf_follows_xcr0),
        cmocka_unit_test(test_topology), cmocka_unit_test(test_leaves_beyond_the_last_answer_as_the_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
