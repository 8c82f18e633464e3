/*
 * The fields of a VMCS, and its region in memory: SDM3 §25.2 "Format of the VMCS Region", §25.11.2 "VMREAD, VMWRITE, and
 * Encodings of VMCS Fields". The region's private part is: launch state in dword 2, from byte 64 on eight bytes a field.
 */
#include "vmx/internal.h"

enum { REGION_ABORT = 4, REGION_LAUNCHED = 8, REGION_FIELDS = 64 };
static_assert(REGION_FIELDS + VMCS_FIELD_COUNT * 8 <= PAGE_SIZE, "all fields fit in the region");

static const struct row {
    uint16_t encoding;
    const char *name;
    uint8_t group;
    uint32_t control;
} rows[] = {
#define VMCS(name, encoding, group, control) { encoding, #name, VMX_##group, (uint32_t)(control) },
#include "vmx/vmcs.def"
#undef VMCS
};

/* Segment fields are addressed by enum seg, LDTR and TR behind. */
#define IN_ORDER(kind) static_assert(VMCS_GUEST_TR_##kind - VMCS_GUEST_ES_##kind == 7, "in the order of enum seg")
IN_ORDER(SELECTOR);
IN_ORDER(LIMIT);
IN_ORDER(ACCESS_RIGHTS);
IN_ORDER(BASE);
static_assert(VMCS_GUEST_PDPTE3 - VMCS_GUEST_PDPTE0 == 3 && VMCS_CR3_TARGET_VALUE3 - VMCS_CR3_TARGET_VALUE0 == 3 &&
              VMCS_EOI_EXIT_BITMAP3 - VMCS_EOI_EXIT_BITMAP0 == 3, "these are indexed");

uint32_t vmcs_encoding(enum vmcs_field field) { return rows[field].encoding; }
const char *vmcs_name(enum vmcs_field field) { return rows[field].name; }

enum width { WIDTH_16, WIDTH_64, WIDTH_32, WIDTH_NATURAL };

static enum width width_of(uint32_t encoding) { return bits(encoding, 14, 13); }

uint64_t vmcs_width_mask(enum vmcs_field field)
{
    enum width width = width_of(rows[field].encoding);
    return width == WIDTH_16 ? 0xFFFF : width == WIDTH_32 ? 0xFFFFFFFF : ~0ull;
}

bool vmcs_exists(const struct vcpu *vcpu, enum vmcs_field field)
{
    return rows[field].group == VMX_ALL || (vmx_allowed1(vcpu, rows[field].group) & rows[field].control);
}

int vmcs_find(const struct vcpu *vcpu, uint64_t encoding, bool *high)
{
    unsigned low = 0, end = ARRAY_SIZE(rows);
    *high = encoding & 1;
    if (encoding >> 15 || (*high && width_of(encoding) != WIDTH_64))
        return -1;
    while (low < end) {
        unsigned middle = (low + end) / 2;
        if (rows[middle].encoding == (encoding & ~1ull))
            return vmcs_exists(vcpu, middle) ? (int)middle : -1;
        if (rows[middle].encoding < encoding)
            low = middle + 1;
        else
            end = middle;
    }
    return -1;
}

uint32_t vmcs_highest_index(const struct vcpu *vcpu)
{
    uint32_t highest = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (vmcs_exists(vcpu, i) && bits(rows[i].encoding, 9, 1) > highest)
            highest = bits(rows[i].encoding, 9, 1);
    return highest;
}

/* --- regions --- */

void vmcs_write_back(struct vcpu *vcpu)
{
    uint32_t launched = vcpu->vmx.launched;
    mmu_phys_write(vcpu, vcpu->vmx.current + REGION_LAUNCHED, &launched, sizeof(launched));
    mmu_phys_write(vcpu, vcpu->vmx.current + REGION_FIELDS, vcpu->vmx.field, sizeof(vcpu->vmx.field));
}

/* The region is the guest's to spoil before VMPTRLD: each field is cut to its width. */
void vmcs_load(struct vcpu *vcpu, uint64_t pointer)
{
    uint32_t revision, launched;
    mmu_phys_read(vcpu, pointer, &revision, sizeof(revision));
    mmu_phys_read(vcpu, pointer + REGION_LAUNCHED, &launched, sizeof(launched));
    mmu_phys_read(vcpu, pointer + REGION_FIELDS, vcpu->vmx.field, sizeof(vcpu->vmx.field));
    for (unsigned i = 0; i < VMCS_FIELD_COUNT; i++)
        vcpu->vmx.field[i] &= vmcs_width_mask(i);
    vcpu->vmx.current = pointer;
    vcpu->vmx.launched = launched & 1;
    vcpu->vmx.shadow = revision & VMCS_SHADOW_INDICATOR;
}

void vmcs_set_launch_state(struct vcpu *vcpu, uint64_t pointer, bool launched)
{
    uint32_t word = launched;
    mmu_phys_write(vcpu, pointer + REGION_LAUNCHED, &word, sizeof(word));
}

uint64_t vmcs_memory_read(struct vcpu *vcpu, uint64_t pointer, enum vmcs_field field)
{
    uint64_t value;
    mmu_phys_read(vcpu, pointer + REGION_FIELDS + field * 8, &value, sizeof(value));
    return value & vmcs_width_mask(field);
}

void vmcs_memory_write(struct vcpu *vcpu, uint64_t pointer, enum vmcs_field field, uint64_t value)
{
    mmu_phys_write(vcpu, pointer + REGION_FIELDS + field * 8, &value, sizeof(value));
}

void vmcs_set_abort(struct vcpu *vcpu, uint32_t indicator)
{
    mmu_phys_write(vcpu, vcpu->vmx.current + REGION_ABORT, &indicator, sizeof(indicator));
}
