/* What a CPU model offers: all that there is, but for what was switched off by name, and what needs it. */
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

static const struct capability {
    const char *name;
    enum vmx_capability bit;
} capabilities[] = {
#define CAPABILITY(name, bit) { #name, CAPABILITY_##name },
#include "vmx/ept_vpid.def"
#undef CAPABILITY
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
    { VMX_PROC3, ~0u, VMX_PROC, PROC_ACTIVATE_TERTIARY_CONTROLS },
    NEEDS(PROC3, IPI_VIRTUALIZATION, PROC, USE_TPR_SHADOW),
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

/* And capabilities without which another, or a control, is nothing: SDM3 §A.10, §25.6.16 "Page-Modification Logging". */
static const struct {
    enum vmx_capability bit, needed;
} capability_needs[] = {
    { CAPABILITY_INVEPT_SINGLE_CONTEXT, CAPABILITY_INVEPT }, { CAPABILITY_INVEPT_ALL_CONTEXTS, CAPABILITY_INVEPT },
    { CAPABILITY_INVVPID_ADDRESS, CAPABILITY_INVVPID }, { CAPABILITY_INVVPID_SINGLE_CONTEXT, CAPABILITY_INVVPID },
    { CAPABILITY_INVVPID_ALL_CONTEXTS, CAPABILITY_INVVPID }, { CAPABILITY_INVVPID_KEEPING_GLOBALS, CAPABILITY_INVVPID },
};

void vmx_offer_all(struct vmx_offer *offer)
{
    for (unsigned group = 0; group < VMX_GROUP_COUNT; group++)
        offer->control[group] = vmx_default1(group);
    for (unsigned i = 0; i < ARRAY_SIZE(controls); i++)
        offer->control[controls[i].group] |= controls[i].bit;
    for (unsigned i = 0; i < ARRAY_SIZE(capabilities); i++)
        offer->ept_vpid |= BIT(capabilities[i].bit);
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

static bool switch_capability(struct vmx_offer *offer, const char *name, size_t length, bool on)
{
    for (unsigned i = 0; i < ARRAY_SIZE(capabilities); i++)
        if (same_name(capabilities[i].name, name, length)) {
            uint64_t bit = BIT(capabilities[i].bit);
            offer->ept_vpid = on ? offer->ept_vpid | bit : offer->ept_vpid & ~bit;
            return true;
        }
    return false;
}

bool vmx_switch_feature(struct vmx_offer *offer, const char *name, size_t length, bool on)
{
    bool found = switch_capability(offer, name, length, on);
    for (unsigned i = 0; length && i < ARRAY_SIZE(controls); i++) {
        const struct control *control = &controls[i];
        if (!same_name(control->name, name, length) || (vmx_default1(control->group) & control->bit))
            continue;
        found = true;
        if (on)
            offer->control[control->group] |= control->bit;
        else
            offer->control[control->group] &= ~control->bit;
    }
    return found;
}

static void drop_capabilities(struct vmx_offer *offer)
{
    if (!(offer->control[VMX_PROC2] & PROC2_ENABLE_EPT))
        offer->ept_vpid &= ~0xFFFFFFFFull;
    if (!(offer->control[VMX_PROC2] & PROC2_ENABLE_VPID))
        offer->ept_vpid &= 0xFFFFFFFF;
    for (unsigned i = 0; i < ARRAY_SIZE(capability_needs); i++)
        if (!(offer->ept_vpid >> capability_needs[i].needed & 1))
            offer->ept_vpid &= ~BIT(capability_needs[i].bit);
}

void vmx_drop_what_cannot_be(struct vmx_offer *offer)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (unsigned i = 0; i < ARRAY_SIZE(needs); i++)
            if ((offer->control[needs[i].group] & needs[i].bit) && !(offer->control[needs[i].needed_group] & needs[i].needed)) {
                offer->control[needs[i].group] &= ~needs[i].bit;
                changed = true;
            }
        drop_capabilities(offer);
        /* What is not dirty cannot be logged. */
        if (!(offer->ept_vpid >> CAPABILITY_EPT_ACCESSED_DIRTY & 1) && (offer->control[VMX_PROC2] & PROC2_ENABLE_PML)) {
            offer->control[VMX_PROC2] &= ~(uint32_t)PROC2_ENABLE_PML;
            changed = true;
        }
    }
}

void vmx_offer_common(struct vmx_offer *offer, const struct vmx_offer *other)
{
    for (unsigned group = 0; group < VMX_GROUP_COUNT; group++)
        offer->control[group] &= other->control[group];
    offer->ept_vpid &= other->ept_vpid;
}

void vmx_list_features(void (*each)(const char *name, void *opaque), void *opaque)
{
    for (unsigned i = 0; i < ARRAY_SIZE(capabilities); i++)
        each(capabilities[i].name, opaque);
    for (unsigned i = 0; i < ARRAY_SIZE(controls); i++) {
        bool seen = vmx_default1(controls[i].group) & controls[i].bit;
        for (unsigned before = 0; before < i; before++)
            seen = seen || !strcmp(controls[before].name, controls[i].name);
        if (!seen)
            each(controls[i].name, opaque);
    }
}
