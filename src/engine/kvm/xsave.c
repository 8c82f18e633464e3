/*
 * KVM's XSAVE area (KVM §4.42, §4.134): the standard format of SDM1 §13.4, with the components where this host's CPUID leaf 0xD puts them. KVM
 * writes the initial state of components that are in it, so XSTATE_BV need not be looked at.
 */
#include <cpuid.h>
#include <string.h>

#include "engine/kvm/kvm.h"
#include "x86/xstate.h"

enum { XSTATE_BV = 512, COMPONENT_AVX = 2, COMPONENT_OPMASK = 5, COMPONENT_ZMM_HI256, COMPONENT_HI16_ZMM, COMPONENT_PKRU = 9 };

/* Where a component is kept in struct fpu: `count` pieces of `size` bytes, 64 or (opmasks, PKRU) `size` bytes apart. */
struct pieces {
    unsigned number, size, count, stride;
    size_t first;
};
static const struct pieces components[] = {
    { COMPONENT_AVX, 16, 16, 64, offsetof(struct fpu, zmm) + 16 },
    { COMPONENT_OPMASK, 8, 8, 8, offsetof(struct fpu, k) },
    { COMPONENT_ZMM_HI256, 32, 16, 64, offsetof(struct fpu, zmm) + 32 },
    { COMPONENT_HI16_ZMM, 64, 16, 64, offsetof(struct fpu, zmm) + 16 * 64 },
    { COMPONENT_PKRU, 4, 1, 4, offsetof(struct fpu, pkru) },
};

/* 0: the host has no such component, or it lies beyond the area. */
static unsigned host_offset(const struct pieces *p, size_t area_size)
{
    unsigned size, offset, ecx, edx;
    if (!__get_cpuid_count(0xD, p->number, &size, &offset, &ecx, &edx) || !size)
        return 0;
    return offset + p->size * p->count <= area_size ? offset : 0;
}

void kvm_put_xsave(const struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    uint8_t *image = cpu->xsave;
    uint64_t present = XCR0_X87 | XCR0_SSE;
    memset(image, 0, cpu->vm->xsave_size);
    memcpy(image, vcpu->fpu.fxsave, IMAGE_XMM);
    for (unsigned i = 0; i < 16; i++)
        memcpy(image + IMAGE_XMM + 16 * i, vcpu->fpu.zmm[i], 16);
    for (const struct pieces *p = components; p < components + ARRAY_SIZE(components); p++) {
        unsigned offset = host_offset(p, cpu->vm->xsave_size);
        if (!offset || !(x86_xcr0_supported(vcpu) & BIT(p->number)))
            continue;
        for (unsigned i = 0; i < p->count; i++)
            memcpy(image + offset + i * p->size, (const uint8_t *)&vcpu->fpu + p->first + i * p->stride, p->size);
        present |= BIT(p->number);
    }
    memcpy(image + XSTATE_BV, &present, sizeof(present));
}

void kvm_take_xsave(struct vcpu *vcpu, const struct kvm_cpu *cpu)
{
    const uint8_t *image = cpu->xsave;
    memcpy(vcpu->fpu.fxsave, image, IMAGE_XMM);
    for (unsigned i = 0; i < 16; i++)
        memcpy(vcpu->fpu.zmm[i], image + IMAGE_XMM + 16 * i, 16);
    for (const struct pieces *p = components; p < components + ARRAY_SIZE(components); p++) {
        unsigned offset = host_offset(p, cpu->vm->xsave_size);
        if (!offset || !(x86_xcr0_supported(vcpu) & BIT(p->number)))
            continue;
        for (unsigned i = 0; i < p->count; i++)
            memcpy((uint8_t *)&vcpu->fpu + p->first + i * p->stride, image + offset + i * p->size, p->size);
    }
}
