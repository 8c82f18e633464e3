/* Named CPU models, and what of them this host can carry. */
#include <cpuid.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vmx/vmx.h"
#include "x86/model.h"

const struct feature_place x86_feature_places[FEATURE_COUNT] = {
#define OURS true
#define HOST false
#define FEATURE(name_, leaf_, subleaf_, reg_, bit_, by_) \
    [FEATURE_##name_] = { #name_, leaf_, subleaf_, reg_, bit_, by_ },
#include "x86/features.def"
#undef FEATURE
#undef HOST
#undef OURS
};

/* --- the host --- */

static uint64_t host_xcr0(void)
{
    unsigned a, b, c, d;
    uint32_t low, high;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* The vector registers that the host's kernel must save before a feature is of use. */
static uint64_t state_needed(enum x86_feature feature)
{
    switch (feature) {
    case FEATURE_AVX:
        return XCR0_SSE | XCR0_AVX;
    case FEATURE_AVX512F:
        return XCR0_SSE | XCR0_AVX | XCR0_AVX512;
    default:
        return 0;       /* the rest follows by `needs` below */
    }
}

bool host_has(enum x86_feature feature)
{
    const struct feature_place *place = &x86_feature_places[feature];
    unsigned reg[4];

    if (place->ours)
        return true;
    if (!__get_cpuid_count(place->leaf, place->subleaf, &reg[0], &reg[1], &reg[2], &reg[3]))
        return false;
    uint64_t state = state_needed(feature);
    return (reg[place->reg] >> place->bit & 1) && (host_xcr0() & state) == state;
}

/* --- features that make no sense without another: SDM1 §5, §15.2; each row's right side may have a row, too --- */

static const struct {
    enum x86_feature feature, needs;
} needs[] = {
    { FEATURE_SSE, FEATURE_FXSR }, { FEATURE_SSE2, FEATURE_SSE }, { FEATURE_SSE3, FEATURE_SSE2 },
    { FEATURE_SSSE3, FEATURE_SSE3 }, { FEATURE_SSE4_1, FEATURE_SSSE3 }, { FEATURE_SSE4_2, FEATURE_SSE4_1 },
    { FEATURE_AES, FEATURE_SSE2 }, { FEATURE_PCLMULQDQ, FEATURE_SSE2 }, { FEATURE_SHA, FEATURE_SSE2 },
    { FEATURE_GFNI, FEATURE_SSE2 }, { FEATURE_AVX, FEATURE_XSAVE }, { FEATURE_AVX2, FEATURE_AVX },
    { FEATURE_FMA, FEATURE_AVX }, { FEATURE_F16C, FEATURE_AVX }, { FEATURE_VAES, FEATURE_AVX },
    { FEATURE_VPCLMULQDQ, FEATURE_AVX }, { FEATURE_AVX_VNNI, FEATURE_AVX2 }, { FEATURE_AVX512F, FEATURE_AVX2 },
    { FEATURE_AVX512DQ, FEATURE_AVX512F }, { FEATURE_AVX512_IFMA, FEATURE_AVX512F }, { FEATURE_AVX512CD, FEATURE_AVX512F },
    { FEATURE_AVX512BW, FEATURE_AVX512F }, { FEATURE_AVX512VL, FEATURE_AVX512F }, { FEATURE_AVX512_VBMI, FEATURE_AVX512BW },
    { FEATURE_AVX512_VBMI2, FEATURE_AVX512BW }, { FEATURE_AVX512_VNNI, FEATURE_AVX512F },
    { FEATURE_AVX512_BITALG, FEATURE_AVX512BW }, { FEATURE_AVX512_VPOPCNTDQ, FEATURE_AVX512F },
    { FEATURE_AVX512_VP2INTERSECT, FEATURE_AVX512F }, { FEATURE_AVX512_FP16, FEATURE_AVX512BW },
    { FEATURE_AVX512_BF16, FEATURE_AVX512BW }, { FEATURE_XSAVEOPT, FEATURE_XSAVE }, { FEATURE_XSAVEC, FEATURE_XSAVE },
    { FEATURE_XGETBV1, FEATURE_XSAVE }, { FEATURE_XSAVES, FEATURE_XSAVEC }, { FEATURE_PKU, FEATURE_XSAVE },
    { FEATURE_X2APIC, FEATURE_APIC }, { FEATURE_TSC_DEADLINE, FEATURE_APIC }, { FEATURE_LA57, FEATURE_LM },
    { FEATURE_PCID, FEATURE_LM }, { FEATURE_LM, FEATURE_PAE }, { FEATURE_PDPE1GB, FEATURE_LM }, { FEATURE_MCA, FEATURE_MCE },
};

static void set(struct cpu_model *model, enum x86_feature feature, bool on)
{
    if (on)
        model->has[feature / 64] |= BIT(feature % 64);
    else
        model->has[feature / 64] &= ~BIT(feature % 64);
}

static void drop_what_cannot_be(struct cpu_model *model)
{
    bool changed = true;

    for (unsigned f = 0; f < FEATURE_COUNT; f++)
        if (model_has(model, f) && !host_has(f))
            set(model, f, false);
    while (changed) {
        changed = false;
        for (unsigned i = 0; i < ARRAY_SIZE(needs); i++)
            if (model_has(model, needs[i].feature) && !model_has(model, needs[i].needs)) {
                set(model, needs[i].feature, false);
                changed = true;
            }
    }
}

/* --- the models --- */

struct model_row {
    const char *name, *parent, *text, *brand;
    uint8_t family, model, stepping, physical_bits;
    const uint8_t *features;
    unsigned feature_count;
};
_Static_assert(FEATURE_COUNT <= 256, "a feature fits a byte");

#define FEATURE_LIST(...) (const uint8_t[]){ __VA_ARGS__ }
#define F(name) FEATURE_##name,
static const struct model_row rows[] = {
#define MODEL(name_, parent_, text_, brand_, family_, model_, stepping_, physical_bits_, features_) \
    { name_, parent_, text_, brand_, family_, model_, stepping_, physical_bits_, FEATURE_LIST(features_), \
      sizeof(FEATURE_LIST(features_)) },
#include "x86/models.def"
#undef MODEL
};

static const char host_text[] = "everything that this host's processor and Doppel have";

static const struct model_row *find(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    return NULL;
}

static void add_features(struct cpu_model *model, const struct model_row *row)
{
    if (row->parent)
        add_features(model, find(row->parent));
    for (unsigned i = 0; i < row->feature_count; i++)
        set(model, row->features[i], true);
}

/* CPUID 1 EAX: SDM2 CPUID, figure "Version Information Returned by CPUID in EAX". */
static uint32_t signature(unsigned family, unsigned model, unsigned stepping)
{
    return (family & 0xF) << 8 | (model & 0xF) << 4 | (model >> 4) << 16 | stepping;
}

static void take_row(struct cpu_model *model, const struct model_row *row)
{
    snprintf(model->name, sizeof(model->name), "%s", row->name);
    snprintf(model->brand, sizeof(model->brand), "%s", row->brand);
    model->signature = signature(row->family, row->model, row->stepping);
    model->physical_bits = row->physical_bits;
    add_features(model, row);
}

/* Of the host: features, and the identity where it is Intel's, whose vendor string the guest sees. */
static void take_host(struct cpu_model *model)
{
    unsigned reg[4], brand[12];

    take_row(model, find("x86-64-v4"));
    snprintf(model->name, sizeof(model->name), "host");
    snprintf(model->brand, sizeof(model->brand), "Doppel virtual CPU, host");
    for (unsigned f = 0; f < FEATURE_COUNT; f++)
        set(model, f, true);
    set(model, FEATURE_VMX, false);             /* what the host has makes no difference: only by name */
    set(model, FEATURE_MONITOR, false);         /* MWAIT does not sleep here: HLT is better */
    if (!__get_cpuid(0, &reg[0], &reg[1], &reg[2], &reg[3]) || reg[1] != signature_INTEL_ebx)
        return;
    if (__get_cpuid(1, &reg[0], &reg[1], &reg[2], &reg[3]))
        model->signature = reg[0] & 0x0FFF3FFF;
    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002 + i, &brand[i * 4], &brand[i * 4 + 1], &brand[i * 4 + 2], &brand[i * 4 + 3]))
            return;
    memcpy(model->brand, brand, sizeof(brand));
    model->brand[sizeof(brand)] = 0;
}

/* The best level whose user-level instructions the host has all; random numbers are no condition. */
static const char *default_name(void)
{
    static const char *const best_first[] = { "x86-64-v3", "x86-64-v2" };

    for (unsigned i = 0; i < ARRAY_SIZE(best_first); i++) {
        struct cpu_model wanted = { .cpus = 1 };
        bool complete = true;

        add_features(&wanted, find(best_first[i]));
        for (unsigned f = 0; f < FEATURE_COUNT; f++)
            if (model_has(&wanted, f) && f != FEATURE_RDRAND && f != FEATURE_RDSEED && f != FEATURE_ZERO_FCS_FDS &&
                f != FEATURE_FDP_EXCPTN_ONLY)
                complete = complete && host_has(f);
        if (complete)
            return best_first[i];
    }
    return "x86-64-v1";
}

/* --- "+feat,-feat,feat=on" --- */

/* Bits that follow other state, and are not switched by hand. */
static bool switchable(enum x86_feature feature)
{
    return feature != FEATURE_OSXSAVE && feature != FEATURE_OSPKE && feature != FEATURE_HTT && feature != FEATURE_FPU &&
           feature != FEATURE_MSR;
}

/* Names are compared without case; '-', '.' and '_' are the same. */
static bool same_name(const char *feature, const char *text, size_t length)
{
    if (strlen(feature) != length)
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = toupper((unsigned char)text[i]);
        if ((c == '-' || c == '.' ? '_' : c) != feature[i])
            return false;
    }
    return true;
}

/* Features of VT-x are called vmx-NAME. */
static bool is_vmx_feature(const char *name, size_t length)
{
    enum { PREFIX = 4 };
    return length > PREFIX && same_name("VMX_", name, PREFIX);
}

enum { ALL_CPUS = -1 };

/* Of one processor, or of all. */
static bool switch_vmx_feature(struct cpu_model *model, const char *name, size_t length, bool on, int cpu, struct error *err)
{
    bool found = true;
    for (int i = 0; i < (int)model->cpus && found; i++)
        if (cpu == ALL_CPUS || cpu == i)
            found = vmx_switch_feature(&model->vmx[i], name + 4, length - 4, on);
    return found || error_set(err, "'%.*s' is not a feature of VT-x that can be switched; --cpu help lists them", (int)length, name);
}

/* Every processor offers what all of them do. */
static void level_vmx_features(struct cpu_model *model)
{
    for (unsigned i = 1; i < model->cpus; i++)
        vmx_offer_common(&model->vmx[0], &model->vmx[i]);
    for (unsigned i = 1; i < model->cpus; i++)
        model->vmx[i] = model->vmx[0];
}

static bool switch_feature(struct cpu_model *model, const char *name, size_t length, bool on, int cpu, struct error *err)
{
    if (is_vmx_feature(name, length))
        return switch_vmx_feature(model, name, length, on, cpu, err);
    if (cpu != ALL_CPUS)
        return error_set(err, "processors can differ in features of VT-x (vmx-...), not in '%.*s'", (int)length, name);
    for (unsigned f = 0; length && f < FEATURE_COUNT; f++)
        if (same_name(x86_feature_places[f].name, name, length)) {
            if (!switchable(f))
                return error_set(err, "CPU feature '%.*s' cannot be switched by hand", (int)length, name);
            if (on && !host_has(f))
                return error_set(err, "this host's processor has no '%.*s'", (int)length, name);
            set(model, f, on);
            return true;
        }
    return error_set(err, "'%.*s' is not a CPU feature that Doppel knows; --cpu help lists them", (int)length, name);
}

/* "@2" at the end: of processor 2 alone; it is cut off. */
static bool take_cpu(const struct cpu_model *model, const char *text, size_t *length, int *cpu, struct error *err)
{
    const char *at = memrchr(text, '@', *length);
    *cpu = ALL_CPUS;
    if (!at)
        return true;
    size_t digits = (size_t)(text + *length - at) - 1;
    *cpu = 0;
    for (size_t i = 1; i <= digits; i++)
        *cpu = isdigit((unsigned char)at[i]) && *cpu < MODEL_CPUS_MAX ? *cpu * 10 + (at[i] - '0') : MODEL_CPUS_MAX;
    if (!digits || *cpu >= (int)model->cpus)
        return error_set(err, "'%.*s' ends in @ and no number of a processor; the last one is %u", (int)*length, text, model->cpus - 1);
    *length = (size_t)(at - text);
    return true;
}

/* +name, -name, name=on or name=off, and perhaps @N. */
static bool switch_one(struct cpu_model *model, const char *text, size_t length, struct error *err)
{
    static const char level[] = "vmx-lowest-common";
    int cpu;
    if (length == sizeof(level) - 1 && !strncmp(text, level, length)) {
        level_vmx_features(model);
        return true;
    }
    if (!take_cpu(model, text, &length, &cpu, err))
        return false;
    if (length && (text[0] == '+' || text[0] == '-'))
        return switch_feature(model, text + 1, length - 1, text[0] == '+', cpu, err);
    if (length > 3 && !strncmp(text + length - 3, "=on", 3))
        return switch_feature(model, text, length - 3, true, cpu, err);
    if (length > 4 && !strncmp(text + length - 4, "=off", 4))
        return switch_feature(model, text, length - 4, false, cpu, err);
    return error_set(err, "CPU features are switched by +name, -name, name=on or name=off, not '%.*s'", (int)length, text);
}

static bool switch_features(struct cpu_model *model, const char *list, struct error *err)
{
    while (*list == ',') {
        size_t length = strcspn(++list, ",");
        if (!switch_one(model, list, length, err))
            return false;
        list += length;
    }
    return true;
}

/* --- interface --- */

static uint64_t model_xcr0(const struct cpu_model *model)
{
    uint64_t xcr0 = XCR0_X87 | XCR0_SSE;

    if (!model_has(model, FEATURE_XSAVE))
        return 0;
    if (model_has(model, FEATURE_AVX))
        xcr0 |= XCR0_AVX;
    if (model_has(model, FEATURE_AVX512F))
        xcr0 |= XCR0_AVX512;
    if (model_has(model, FEATURE_PKU))
        xcr0 |= XCR0_PKRU;
    return xcr0;
}

static bool take_name(struct cpu_model *model, const char *text, size_t length, struct error *err)
{
    char name[sizeof(model->name)];

    snprintf(name, sizeof(name), "%.*s", (int)length, text);
    const struct model_row *row = find(name);
    if (row)
        take_row(model, row);
    else if (!strcmp(name, "host"))
        take_host(model);
    else
        return error_set(err, "'%s' is not a CPU model; x86-64-v1 to x86-64-v4, i7-7500U and host are", name);
    return true;
}

struct cpu_model *x86_model_create(const char *text, unsigned cpus, uint64_t tsc_hz, struct error *err)
{
    struct cpu_model *model = calloc(1, sizeof(*model));
    bool only_switches = !text || !*text || *text == '+' || *text == '-' || *text == ',';
    size_t length = only_switches ? 0 : strcspn(text, ",");

    if (!model) {
        error_set(err, "no memory for the CPU model");
        return NULL;
    }
    model->cpus = cpus;
    model->tsc_hz = tsc_hz;
    model->microcode = 0x1000000;
    for (unsigned i = 0; i < cpus; i++)
        vmx_offer_all(&model->vmx[i]);
    const char *name = length ? text : default_name();
    if (!take_name(model, name, length ? length : strlen(name), err) ||
        (text && text[length] && !switch_features(model, text + length, err))) {
        free(model);
        return NULL;
    }
    set(model, FEATURE_OSXSAVE, false);
    set(model, FEATURE_OSPKE, false);
    set(model, FEATURE_HTT, cpus > 1);
    drop_what_cannot_be(model);
    for (unsigned i = 0; i < cpus; i++)
        vmx_drop_what_cannot_be(&model->vmx[i]);
    model->xcr0 = model_xcr0(model);
    return model;
}

void x86_model_destroy(struct cpu_model *model)
{
    free(model);
}

void x86_model_list(void (*each)(const char *name, const char *text, void *opaque), void *opaque)
{
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        each(rows[i].name, rows[i].text, opaque);
    each("host", host_text, opaque);
}

bool x86_has(const struct vcpu *vcpu, enum x86_feature feature)
{
    return model_has(vcpu->model, feature);
}

uint64_t x86_xcr0_supported(const struct vcpu *vcpu)
{
    return vcpu->model->xcr0;
}

uint64_t x86_xss_supported(const struct vcpu *vcpu)
{
    return 0;       /* no supervisor state component is modelled */
}

unsigned x86_physical_bits(const struct vcpu *vcpu)
{
    return vcpu->model->physical_bits;
}

struct xsave_component x86_xsave_component(unsigned index)
{
    static const struct xsave_component components[] = {
        [2] = { 576, 256 }, [5] = { 1088, 64 }, [6] = { 1152, 512 }, [7] = { 1664, 1024 }, [9] = { 2688, 8 },
    };
    return index < ARRAY_SIZE(components) ? components[index] : (struct xsave_component){ 0, 0 };
}
