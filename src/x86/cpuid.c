/* CPUID by leaf (SDM2 CPUID; KVM's leaves: Linux Documentation/virt/kvm/x86/cpuid.rst). */
#include <string.h>

#include "base/log.h"
#include "x86/model.h"

enum { EAX, EBX, ECX, EDX };
enum { MAX_BASIC = 0x16, MAX_HYPERVISOR = 0x40000010, MAX_EXTENDED = 0x80000008u };

typedef void leaf_fn(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4]);

static uint32_t feature_word(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, unsigned reg)
{
    uint32_t word = 0;

    for (unsigned f = 0; f < FEATURE_COUNT; f++) {
        const struct feature_place *place = &x86_feature_places[f];
        if (place->leaf == leaf && place->subleaf == subleaf && place->reg == reg && model_has(model, f))
            word |= 1u << place->bit;
    }
    return word;
}

static void feature_words(const struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    for (unsigned reg = EAX; reg <= EDX; reg++)
        out[reg] |= feature_word(vcpu->model, leaf, subleaf, reg);
}

/* Bits that an APIC ID needs below the package: the next power of two. */
static unsigned package_shift(const struct cpu_model *model)
{
    unsigned shift = 0;
    while ((1u << shift) < model->cpus)
        shift++;
    return shift;
}

static void leaf_vendor(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = MAX_BASIC;
    memcpy(&out[EBX], "Genu", 4);
    memcpy(&out[EDX], "ineI", 4);
    memcpy(&out[ECX], "ntel", 4);
}

static bool apic_enabled(const struct vcpu *vcpu)
{
    enum { APIC_BASE = 0x1B };
    uint64_t base;

    return !vcpu->intc_ops || !vcpu->intc_ops->read_msr(vcpu->intc, APIC_BASE, &base) || (base & BIT(11));
}

static void leaf_features(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    unsigned logical = 1u << package_shift(vcpu->model);

    out[EAX] = vcpu->model->signature;
    out[EBX] = (vcpu->apic_id & 0xFF) << 24 | (logical & 0xFF) << 16 | 64 / 8 << 8;
    feature_words(vcpu, 1, 0, out);
    if (vcpu->cr4 & CR4_OSXSAVE)
        out[ECX] |= 1u << 27;
    if (!apic_enabled(vcpu))
        out[EDX] &= ~(1u << 9);
}

static void leaf_descriptors(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = 0x00FEFF01;      /* caches: see leaf 4; TLBs: see leaf 18h, which says nothing */
}

static const struct cache {
    uint8_t type, level;        /* 1 data, 2 instruction, 3 unified */
    uint16_t ways, sets;
    bool shared;                /* by the package */
} caches[] = {
    { 1, 1, 8, 64, false }, { 2, 1, 8, 64, false }, { 3, 2, 16, 1024, false }, { 3, 3, 16, 16384, true },
};

static void leaf_caches(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    if (subleaf >= ARRAY_SIZE(caches))
        return;
    const struct cache *c = &caches[subleaf];
    unsigned cores = 1u << package_shift(vcpu->model);
    out[EAX] = c->type | c->level << 5 | 1 << 8 | (c->shared ? cores - 1 : 0) << 14 | (cores > 64 ? 63 : cores - 1) << 26;
    out[EBX] = (c->ways - 1u) << 22 | (64 - 1);
    out[ECX] = c->sets - 1u;
    out[EDX] = c->shared ? 2 : 0;       /* inclusive of lower levels */
}

static void leaf_monitor(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    if (!x86_has(vcpu, FEATURE_MONITOR))
        return;
    out[EAX] = out[EBX] = 64;
    out[ECX] = 3;
    out[EDX] = 0x10;            /* one C1 state */
}

static void leaf_power(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    feature_words(vcpu, 6, 0, out);
}

static void leaf_more_features(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    enum { MAX_SUBLEAF = 2 };

    if (subleaf > MAX_SUBLEAF)
        return;
    feature_words(vcpu, 7, subleaf, out);
    if (subleaf == 0) {
        out[EAX] = MAX_SUBLEAF;
        if (vcpu->cr4 & CR4_PKE)
            out[ECX] |= 1u << 4;
    }
}

/* Threads, then cores of the one package (SDM2 CPUID, table "Information Returned by CPUID Leaf 0BH"). */
static void leaf_topology(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[ECX] = subleaf & 0xFF;
    out[EDX] = vcpu->apic_id;
    if (subleaf == 0) {
        out[EBX] = 1;
        out[ECX] |= 1 << 8;
    } else if (subleaf == 1) {
        out[EAX] = package_shift(vcpu->model);
        out[EBX] = vcpu->model->cpus;
        out[ECX] |= 2 << 8;
    }
}

enum { XSAVE_LEGACY_AND_HEADER = 576 };

/* In the standard format the highest component decides; in the compacted one each follows the one before. */
static uint32_t xsave_size(uint64_t components, bool compacted)
{
    uint32_t size = XSAVE_LEGACY_AND_HEADER;

    for (unsigned i = 2; i < 63; i++) {
        struct xsave_component c = x86_xsave_component(i);
        if (!(components >> i & 1) || !c.size)
            continue;
        if (compacted)
            size += c.size;
        else if (c.offset + c.size > size)
            size = c.offset + c.size;
    }
    return size;
}

static void leaf_xsave(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    uint64_t supported = x86_xcr0_supported(vcpu), xss = x86_xss_supported(vcpu);

    if (!supported)
        return;
    if (subleaf == 0) {
        out[EAX] = supported;
        out[EBX] = xsave_size(vcpu->xcr0, false);
        out[ECX] = xsave_size(supported, false);
        out[EDX] = supported >> 32;
    } else if (subleaf == 1) {
        feature_words(vcpu, 0xD, 1, out);
        if (out[EAX] & 0xA)     /* XSAVEC or XSAVES */
            out[EBX] = xsave_size(vcpu->xcr0 | vcpu->xss, true);
        out[ECX] = xss;
        out[EDX] = xss >> 32;
    } else if (subleaf < 63 && (supported >> subleaf & 1)) {
        struct xsave_component c = x86_xsave_component(subleaf);
        out[EAX] = c.size;
        out[EBX] = c.offset;
    }
}

/*
 * Linux multiplies the numerator by the crystal's kHz in 32 bits, so it must be small. For each fraction there is a crystal that comes nearest to the TSC's
 * rate; the first that is off by a few hertz at most will do.
 */
struct x86_crystal x86_crystal(uint64_t tsc_hz)
{
    enum { NEAR_KHZ = 1000000, KHZ_MIN = 997500, KHZ_MAX = 1002500, NUMERATOR_MAX = 4000, DENOMINATOR_MAX = 10000, GOOD_HZ = 10 };
    _Static_assert((uint64_t)KHZ_MAX * NUMERATOR_MAX <= UINT32_MAX, "the product has 32 bits");
    struct x86_crystal best = { NEAR_KHZ, 1, 1 };
    uint64_t least = UINT64_MAX;
    for (uint64_t denominator = 1; denominator <= DENOMINATOR_MAX && least > GOOD_HZ; denominator++) {
        uint64_t last = min_u64(tsc_hz * denominator / (KHZ_MIN * 1000ull), NUMERATOR_MAX);
        for (uint64_t numerator = tsc_hz * denominator / (KHZ_MAX * 1000ull) + 1; numerator <= last; numerator++) {
            uint64_t khz = (tsc_hz * denominator + numerator * 500) / (numerator * 1000), hz = khz * 1000 * numerator / denominator;
            uint64_t error = hz > tsc_hz ? hz - tsc_hz : tsc_hz - hz;
            if (error >= least)
                continue;
            least = error;
            best = (struct x86_crystal){ (uint32_t)khz, (uint32_t)numerator, (uint32_t)denominator };
        }
    }
    return best;
}

static void leaf_tsc(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    struct x86_crystal crystal = x86_crystal(vcpu->model->tsc_hz);
    out[EAX] = crystal.denominator;
    out[EBX] = crystal.numerator;
    out[ECX] = crystal.khz * 1000;
}

static void leaf_frequency(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = out[EBX] = vcpu->model->tsc_hz / 1000000;
    out[ECX] = 100;
}

static void leaf_hypervisor(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = MAX_HYPERVISOR;
    memcpy(&out[EBX], "KVMK", 4);
    memcpy(&out[ECX], "VMKV", 4);
    memcpy(&out[EDX], "M\0\0\0", 4);
}

static void leaf_kvm_features(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    feature_words(vcpu, 0x40000001, 0, out);
}

static void leaf_timing(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = vcpu->model->tsc_hz / 1000;
    out[EBX] = x86_crystal(vcpu->model->tsc_hz).khz;
}

static void leaf_extended_max(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = MAX_EXTENDED;
}

static void leaf_extended_features(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    feature_words(vcpu, 0x80000001, 0, out);
}

static void brand_part(const struct vcpu *vcpu, unsigned part, uint32_t out[4])
{
    memcpy(out, vcpu->model->brand + part * 16, 16);
}

static void leaf_brand0(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4]) { brand_part(vcpu, 0, out); }
static void leaf_brand1(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4]) { brand_part(vcpu, 1, out); }
static void leaf_brand2(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4]) { brand_part(vcpu, 2, out); }

static void leaf_l2(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    enum { WAYS_16 = 8 };
    out[ECX] = 1024u << 16 | WAYS_16 << 12 | 64;
}

static void leaf_invariant(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    feature_words(vcpu, 0x80000007, 0, out);
}

static void leaf_addresses(const struct vcpu *vcpu, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = vcpu->model->physical_bits | (x86_has(vcpu, FEATURE_LA57) ? 57 : 48) << 8;
    feature_words(vcpu, 0x80000008, 0, out);
}

/* Leaves that are not here are all zeros. */
static const struct {
    uint32_t leaf;
    leaf_fn *fill;
} leaves[] = {
    { 0, leaf_vendor }, { 1, leaf_features }, { 2, leaf_descriptors }, { 4, leaf_caches }, { 5, leaf_monitor },
    { 6, leaf_power }, { 7, leaf_more_features }, { 0xB, leaf_topology }, { 0xD, leaf_xsave }, { 0x15, leaf_tsc },
    { 0x16, leaf_frequency }, { 0x40000000, leaf_hypervisor }, { 0x40000001, leaf_kvm_features },
    { 0x40000010, leaf_timing }, { 0x80000000, leaf_extended_max }, { 0x80000001, leaf_extended_features },
    { 0x80000002, leaf_brand0 }, { 0x80000003, leaf_brand1 }, { 0x80000004, leaf_brand2 }, { 0x80000006, leaf_l2 },
    { 0x80000007, leaf_invariant }, { 0x80000008, leaf_addresses },
};

/* Beyond the last leaf of a range Intel's processors answer with the highest basic leaf. */
static uint32_t effective_leaf(const struct vcpu *vcpu, uint32_t leaf)
{
    bool hypervisor = leaf >> 28 == 4 && x86_has(vcpu, FEATURE_HYPERVISOR);
    bool within = hypervisor || leaf <= MAX_BASIC || (leaf >= 0x80000000u && leaf <= MAX_EXTENDED);
    return within ? leaf : MAX_BASIC;
}

void x86_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    leaf = effective_leaf(vcpu, leaf);
    memset(out, 0, 4 * sizeof(out[0]));
    for (unsigned i = 0; i < ARRAY_SIZE(leaves); i++)
        if (leaves[i].leaf == leaf) {
            leaves[i].fill(vcpu, subleaf, out);
            return;
        }
}
