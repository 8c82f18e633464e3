/*
 * Memory accesses under a mask. Where the whole operand lies in one page that the TLB knows, the stub runs in place and the
 * host does the masking. Else only the enabled elements are touched, in order, through a buffer: a disabled element
 * never faults (SDM2 §2.6.4 "Masking", "fault suppression"). Gathers and scatters are done element by element
 * always; a fault leaves the finished elements finished (SDM2 VPGATHERDD, VPSCATTERDD).
 */
#include "engine/interp/native_impl.h"

#include "x86/xstate.h"

enum { MAX_ELEMENTS = 64 };

/* Enabled elements of a masked operand: bit i for element i of memory. */
static bool load_elements(struct vcpu *vcpu, uint64_t gla, uint8_t *buffer, unsigned element, uint64_t enabled)
{
    for (; enabled; enabled &= enabled - 1) {
        unsigned at = (unsigned)__builtin_ctzll(enabled) * element;
        if (!mmu_copy_in(vcpu, gla + at, buffer + at, element))
            return false;
    }
    return true;
}

/* Of a store over two pages, a fault on the first names the first enabled byte, one on the second the last: as Intel's do. */
static bool probe_elements(struct vcpu *vcpu, uint64_t gla, unsigned element, uint64_t enabled)
{
    if (!enabled)
        return true;
    uint64_t first = gla + (unsigned)__builtin_ctzll(enabled) * element;
    uint64_t last = gla + (63u - (unsigned)__builtin_clzll(enabled)) * element + element - 1;
    return mmu_probe(vcpu, first, 1, true, vcpu->mmu->data_class) &&
           ((first ^ last) < PAGE_SIZE || mmu_probe(vcpu, last, 1, true, vcpu->mmu->data_class));
}

static bool store_elements(struct vcpu *vcpu, uint64_t gla, const uint8_t *buffer, unsigned element, uint64_t enabled)
{
    for (; enabled; enabled &= enabled - 1) {
        unsigned at = (unsigned)__builtin_ctzll(enabled) * element;
        if (!mmu_copy_out(vcpu, gla + at, buffer + at, element))
            return false;
    }
    return true;
}

/* A store's faults come after the instruction's own: it changes nothing but memory and MXCSR. */
static bool run_on_copy(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, unsigned element, uint64_t enabled)
{
    _Alignas(64) uint8_t buffer[192] = { 0 };
    uint8_t *at = buffer + (gla & 63);
    if (!stub->writes && !load_elements(vcpu, gla, at, element, enabled))
        return false;
    if (!native_call(vcpu, stub, at))
        return native_reflect(vcpu, stub);
    return !stub->writes || (probe_elements(vcpu, gla, element, enabled) && store_elements(vcpu, gla, at, element, enabled));
}

/* Runs the stub with just these elements of memory behind it. #AC looks at the operand as a whole, and only at up to 8 bytes. */
static bool run_elements(struct vcpu *vcpu, const struct stub *stub, uint64_t gla, unsigned element, uint64_t enabled)
{
    bool check = vcpu->mmu->alignment_check;
    if (check && enabled && stub->size <= 8 && (gla & (stub->size - 1u)))
        return x86_raise(vcpu, VEC_AC);
    vcpu->mmu->alignment_check = false;
    bool done = run_on_copy(vcpu, stub, gla, element, enabled);
    vcpu->mmu->alignment_check = check;
    return done;
}

static uint64_t low_bits(unsigned count)
{
    return count >= 64 ? ~0ull : BIT(count) - 1;
}

/*
 * Which memory elements the mask enables. A broadcast reads its few elements for many of the destination's: one is
 * enabled if any that it feeds is. A scalar looks at bit 0 alone.
 */
static uint64_t enabled_elements(const struct vcpu *vcpu, const struct stub *stub, unsigned count)
{
    const struct stub_detail *d = &stub->detail;
    uint64_t mask = vcpu->fpu.k[d->mask] & low_bits(d->mask_count), enabled = 0;
    if (count >= d->mask_count)
        return mask;
    for (; mask; mask &= mask - 1)
        enabled |= BIT((unsigned)__builtin_ctzll(mask) / d->mask_group % count);
    return enabled;
}

/* In place if possible, else element by element. With nothing enabled the address is not looked at, not even its alignment. */
static bool run_under(struct vcpu *vcpu, const struct stub *stub, unsigned element, uint64_t enabled)
{
    uint64_t gla = 0;
    if (enabled || stub->detail.whole) {
        if (!native_address(vcpu, stub, &gla))
            return false;
        void *host = mmu_direct(vcpu, gla, stub->size, stub->writes ? MMU_WRITE : MMU_READ);
        if (likely(host))
            return native_call(vcpu, stub, host) || native_reflect(vcpu, stub);
    }
    if (stub->detail.whole && !mmu_probe(vcpu, gla, stub->size, stub->writes, vcpu->mmu->data_class))
        return false;
    return run_elements(vcpu, stub, gla, element, enabled);
}

bool native_run_masked(struct vcpu *vcpu, const struct stub *stub)
{
    unsigned element = stub->detail.element ? stub->detail.element : stub->size;
    return run_under(vcpu, stub, element, enabled_elements(vcpu, stub, stub->size / element));
}

/* VPCOMPRESS to and VPEXPAND from memory: as many elements as mask bits, packed from the start. */
bool native_run_compress(struct vcpu *vcpu, const struct stub *stub)
{
    unsigned element = stub->detail.element;
    uint64_t mask = vcpu->fpu.k[stub->detail.mask] & low_bits(stub->size / element);
    return run_under(vcpu, stub, element, low_bits((unsigned)__builtin_popcountll(mask)));
}

static uint64_t get_element(const uint8_t *vector, unsigned i, unsigned element)
{
    uint64_t v = 0;
    memcpy(&v, vector + i * element, element);
    return v;
}

/* The sign bit of each element of a register. */
static uint64_t sign_mask(const uint8_t *vector, unsigned element, unsigned count)
{
    uint64_t mask = 0;
    for (unsigned i = 0; i < count; i++)
        mask |= (uint64_t)(vector[i * element + element - 1] >> 7) << i;
    return mask;
}

/* VMASKMOVPS and its kin: the mask is the register named by VEX.vvvv. */
bool native_run_maskmov(struct vcpu *vcpu, const struct stub *stub)
{
    unsigned element = stub->detail.element;
    return run_under(vcpu, stub, element, sign_mask(vcpu->fpu.zmm[stub->detail.vvvv], element, stub->size / element));
}

/*
 * MASKMOVDQU, MASKMOVQ: bytes of ModRM.reg whose mask byte in ModRM.rm has its sign set, to [DS:rDI].
 * NOTE(spec): SDM2 leaves it open whether disabled bytes fault; on Intel's processors they do.
 */
bool native_run_maskmovdqu(struct vcpu *vcpu, const struct stub *stub)
{
    uint8_t source[16], mask[16];
    const struct stub_detail *d = &stub->detail;
    bool mmx = d->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
    struct fpu *fpu = &vcpu->fpu;
    unsigned count = mmx ? 8 : 16;
    uint64_t gla;
    native_sync(vcpu);
    if (mmx && fpu_exception_pending(fpu))
        return x86_raise(vcpu, VEC_MF);
    struct fpu entered = *fpu;
    if (mmx)
        fpu_enter_mmx(&entered);
    memcpy(source, mmx ? entered.fxsave + IMAGE_ST + (d->reg & 7) * 16 : fpu->zmm[d->reg], count);
    memcpy(mask, mmx ? entered.fxsave + IMAGE_ST + (d->rm & 7) * 16 : fpu->zmm[d->rm], count);
    if (mmx)
        *fpu = entered;
    if (!native_linear(vcpu, stub, native_effective(vcpu, stub), count, true, &gla))
        return false;
    if (!mmx && vcpu->mmu->alignment_check && (gla & 7))
        return x86_raise(vcpu, VEC_AC);
    /* The processor goes for the upper half first. */
    return (mmx || mmu_probe(vcpu, native_add(stub, gla, 8), 8, true, vcpu->mmu->data_class)) &&
           mmu_probe(vcpu, gla, 8, true, vcpu->mmu->data_class) &&
           store_elements(vcpu, gla, source, 1, sign_mask(mask, 1, count));
}

/* --- gather and scatter --- */

/* AVX-512 keeps the mask in a k register, AVX2 in the sign bits of a vector register. */
static bool element_enabled(const struct vcpu *vcpu, const struct stub_detail *d, unsigned i)
{
    if (d->evex)
        return vcpu->fpu.k[d->mask] >> i & 1;
    return vcpu->fpu.zmm[d->vvvv][i * d->element + d->element - 1] >> 7;
}

/* AVX2 spreads each mask element's sign over the element before anything else (SDM2 VGATHERDPS "Operation"). */
static void spread_mask(struct vcpu *vcpu, const struct stub_detail *d)
{
    uint8_t *mask = vcpu->fpu.zmm[d->vvvv];
    for (unsigned i = 0; i < d->vector_bytes / d->element; i++)
        memset(mask + i * d->element, element_enabled(vcpu, d, i) ? 0xFF : 0, d->element);
    memset(mask + d->vector_bytes, 0, 64 - d->vector_bytes);
}

static void element_done(struct vcpu *vcpu, const struct stub_detail *d, unsigned i)
{
    if (d->evex)
        vcpu->fpu.k[d->mask] &= ~BIT(i);
    else
        memset(vcpu->fpu.zmm[d->vvvv] + i * d->element, 0, d->element);
}

/* Linear address of one element. */
static bool element_address(struct vcpu *vcpu, const struct stub *stub, uint64_t base, unsigned i, uint64_t *gla)
{
    const struct stub_detail *d = &stub->detail;
    uint64_t index = get_element(vcpu->fpu.zmm[d->index], i, d->index_element);
    uint64_t offset = base + sign_extend(index, d->index_element * 8) * stub->address.scale;
    return native_linear(vcpu, stub, offset & stub->address.mask, d->element, stub->writes, gla);
}

/* #UD where registers that must differ do not, or the mask is k0 (SDM2 §2.3.11 and the instructions' own pages). */
static bool registers_clash(const struct stub_detail *d, bool gather)
{
    if (d->evex)
        return d->mask == 0 || (gather && d->reg == d->index);
    return d->reg == d->index || d->reg == d->vvvv || d->index == d->vvvv;
}

static bool gather(struct vcpu *vcpu, const struct stub *stub)
{
    const struct stub_detail *d = &stub->detail;
    struct fpu *fpu = &vcpu->fpu;
    if (registers_clash(d, true))
        return x86_raise(vcpu, VEC_UD);
    uint64_t base = native_effective(vcpu, stub), gla, value;
    unsigned bytes = d->mask_count * d->element;
    if (!d->evex)
        spread_mask(vcpu, d);
    for (unsigned i = 0; i < d->mask_count; i++) {
        if (!element_enabled(vcpu, d, i))
            continue;
        if (!element_address(vcpu, stub, base, i, &gla) || !mmu_copy_in(vcpu, gla, &value, d->element))
            return false;
        memcpy(fpu->zmm[d->reg] + i * d->element, &value, d->element);
        memset(fpu->zmm[d->reg] + d->vector_bytes, 0, 64 - d->vector_bytes);
        element_done(vcpu, d, i);
    }
    memset(fpu->zmm[d->reg] + bytes, 0, 64 - bytes);
    if (d->evex)
        fpu->k[d->mask] = 0;
    else
        memset(fpu->zmm[d->vvvv], 0, 64);
    return true;
}

static bool scatter(struct vcpu *vcpu, const struct stub *stub)
{
    const struct stub_detail *d = &stub->detail;
    struct fpu *fpu = &vcpu->fpu;
    if (registers_clash(d, false))
        return x86_raise(vcpu, VEC_UD);
    uint64_t base = native_effective(vcpu, stub), gla;
    for (unsigned i = 0; i < d->mask_count; i++) {
        if (!element_enabled(vcpu, d, i))
            continue;
        if (!element_address(vcpu, stub, base, i, &gla) ||
            !mmu_copy_out(vcpu, gla, fpu->zmm[d->reg] + i * d->element, d->element))
            return false;
        element_done(vcpu, d, i);
    }
    fpu->k[d->mask] = 0;
    return true;
}

/* Gathers, scatters and conversions of half precision are not checked for #AC, whatever their size. */
static bool unchecked(struct vcpu *vcpu, const struct stub *stub, native_handler *handler)
{
    bool check = vcpu->mmu->alignment_check;
    vcpu->mmu->alignment_check = false;
    bool done = handler(vcpu, stub);
    vcpu->mmu->alignment_check = check;
    return done;
}

bool native_run_gather(struct vcpu *vcpu, const struct stub *stub) { return unchecked(vcpu, stub, gather); }
bool native_run_scatter(struct vcpu *vcpu, const struct stub *stub) { return unchecked(vcpu, stub, scatter); }

bool native_run_half(struct vcpu *vcpu, const struct stub *stub)
{
    return unchecked(vcpu, stub, stub->detail.mask ? native_run_masked : native_run_memory);
}
