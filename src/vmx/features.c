/* Which controls a CPU model offers: all that there are, but for those that were switched off by name, and what needs them. */
#include <ctype.h>

#include "vmx/internal.h"

static const struct control {
    const char *name;
    enum vmx_group group;
    uint32_t bit;
} controls[] = {
#define CONTROL(group, name, bit) { #name, VMX_##group, 1u << (bit) },
#include "vmx/controls.def"
#undef CONTROL
};

/* A control that may not be 1 where another cannot: SDM3 §27.2.1, and §25.6.2 for the secondary controls. */
#define NEEDS(group, name, needed_group, needed) { VMX_##group, group##_##name, VMX_##needed_group, needed_group##_##needed }
static const struct {
    enum vmx_group group;
    uint32_t bit;
    enum vmx_group needed_group;
    uint32_t needed;
} needs[] = {
    { VMX_PROC2, ~0u, VMX_PROC, PROC_ACTIVATE_SECONDARY_CONTROLS },
    NEEDS(PIN, VIRTUAL_NMIS, PIN, NMI_EXITING),
    NEEDS(PROC, NMI_WINDOW_EXITING, PIN, VIRTUAL_NMIS),
    NEEDS(PROC2, VIRTUALIZE_X2APIC_MODE, PROC, USE_TPR_SHADOW),
    NEEDS(PROC2, APIC_REGISTER_VIRTUALIZATION, PROC, USE_TPR_SHADOW),
    NEEDS(PROC2, VIRTUAL_INTERRUPT_DELIVERY, PROC, USE_TPR_SHADOW),
    NEEDS(PROC2, VIRTUAL_INTERRUPT_DELIVERY, PIN, EXTERNAL_INTERRUPT_EXITING),
    NEEDS(PIN, PROCESS_POSTED_INTERRUPTS, PROC2, VIRTUAL_INTERRUPT_DELIVERY),
    NEEDS(PIN, PROCESS_POSTED_INTERRUPTS, EXIT, ACKNOWLEDGE_INTERRUPT_ON_EXIT),
    NEEDS(PROC2, UNRESTRICTED_GUEST, PROC2, ENABLE_EPT),
    NEEDS(PROC2, ENABLE_PML, PROC2, ENABLE_EPT),
    NEEDS(PROC2, MODE_BASED_EXECUTE, PROC2, ENABLE_EPT),
    NEEDS(PROC2, EPT_VIOLATION_VE, PROC2, ENABLE_EPT),
    NEEDS(PROC2, ENABLE_VM_FUNCTIONS, PROC2, ENABLE_EPT),
    NEEDS(PROC2, USE_TSC_SCALING, PROC, USE_TSC_OFFSETTING),
    NEEDS(EXIT, SAVE_PREEMPTION_TIMER, PIN, ACTIVATE_PREEMPTION_TIMER),
};

void vmx_offer_all(uint32_t offered[VMX_GROUP_COUNT])
{
    for (unsigned group = 0; group < VMX_GROUP_COUNT; group++)
        offered[group] = vmx_default1(group);
    for (unsigned i = 0; i < ARRAY_SIZE(controls); i++)
        offered[controls[i].group] |= controls[i].bit;
}

/* Without case; '-', '.' and '_' are the same. */
static bool same_name(const char *control, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        char c = (char)toupper((unsigned char)text[i]);
        if ((c == '-' || c == '.' ? '_' : c) != control[i])
            return false;
    }
    return !control[length];
}

bool vmx_switch_control(uint32_t offered[VMX_GROUP_COUNT], const char *name, size_t length, bool on)
{
    bool found = false;
    for (unsigned i = 0; length && i < ARRAY_SIZE(controls); i++) {
        const struct control *control = &controls[i];
        if (!same_name(control->name, name, length) || (vmx_default1(control->group) & control->bit))
            continue;
        found = true;
        if (on)
            offered[control->group] |= control->bit;
        else
            offered[control->group] &= ~control->bit;
    }
    return found;
}

void vmx_drop_what_cannot_be(uint32_t offered[VMX_GROUP_COUNT])
{
    for (bool changed = true; changed;) {
        changed = false;
        for (unsigned i = 0; i < ARRAY_SIZE(needs); i++)
            if ((offered[needs[i].group] & needs[i].bit) && !(offered[needs[i].needed_group] & needs[i].needed)) {
                offered[needs[i].group] &= ~needs[i].bit;
                changed = true;
            }
    }
}

void vmx_list_controls(void (*each)(const char *name, void *opaque), void *opaque)
{
    for (unsigned i = 0; i < ARRAY_SIZE(controls); i++) {
        bool seen = vmx_default1(controls[i].group) & controls[i].bit;
        for (unsigned before = 0; before < i; before++)
            seen = seen || !strcmp(controls[before].name, controls[i].name);
        if (!seen)
            each(controls[i].name, opaque);
    }
}
