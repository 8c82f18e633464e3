/* The VMX state as a whole: its list for snapshots, and its text for the monitor. */
#include <inttypes.h>

#include "state/state.h"
#include "vmx/internal.h"

#define SCALAR(member) STATE_SCALAR(struct vmx, member)

/* Version 1 had fewer fields of a VMCS and fewer groups of controls. */
#define SINCE_2(name, member) \
    { name, STATE_UINT, offsetof(struct vmx, member), sizeof(((struct vmx *)0)->member[0]), ARRAY_SIZE(((struct vmx *)0)->member), 2, NULL }

static const struct state_field fields[] = {
    SCALAR(on), SCALAR(guest), SCALAR(launched), SCALAR(init_held), SCALAR(shadow), SCALAR(feature_control), SCALAR(vmxon_pointer),
    SCALAR(current), SINCE_2("fields", field), SINCE_2("controls", control), STATE_SCALAR_SINCE(struct vmx, tertiary, 2), SCALAR(awaits), SCALAR(virtual_interrupt),
    SCALAR(mtf_pending), SCALAR(trap), SCALAR(trap_qualification), SCALAR(timer_deadline), SCALAR(pause_first), SCALAR(pause_last),
};
const struct state_list vmx_state_list = STATE_LIST("vmx", 2, fields);

/* A guest runs on at the border where it was saved; what waits for it is looked at again. */
bool vmx_state_loaded(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    if (vmx->trap >= REASON_COUNT || vmx->tertiary != vmx->on || (vmx->guest && (!vmx->on || vmx->current == VMCS_NONE)))
        return false;
    for (unsigned i = 0; i < VMCS_FIELD_COUNT; i++)
        vmx->field[i] &= vmcs_width_mask(i);
    if (!vmx->guest)
        memset(vmx->control, 0, sizeof(vmx->control));
    vmx->timer_ns = 0;
    vmx_switch_translations(vcpu);
    atomic_fetch_or(&vcpu->request, REQUEST_VMX);
    return true;
}

/* --- for the monitor --- */

static double milliseconds(const struct vcpu *vcpu, uint64_t ticks)
{
    return vcpu->clock ? (double)ticks * 1e3 / (double)clock_tsc_hz(vcpu->clock) : 0;
}

static void print_exits(const struct vcpu *vcpu, FILE *out)
{
    const struct vmx *vmx = &vcpu->vmx;
    fprintf(out, "%" PRIu64 " entries, %.3f ms in the guest; exits by reason, and the time until the guest ran again:\n", vmx->entries,
            milliseconds(vcpu, vmx->guest_ticks));
    for (unsigned i = 0; i < REASON_COUNT; i++)
        if (vmx->exits[i])
            fprintf(out, "%3u %-24s %12" PRIu64 " %14.3f ms\n", i, vmx_reason_name(i), vmx->exits[i],
                    milliseconds(vcpu, vmx->exit_ticks[i]));
}

static void print_field(const struct vcpu *vcpu, unsigned i, FILE *out)
{
    fprintf(out, "%04x %-32s %0*" PRIx64 "\n", vmcs_encoding(i), vmcs_name(i), (int)(vmcs_width_mask(i) == 0xFFFF ? 4 :
            vmcs_width_mask(i) == 0xFFFFFFFF ? 8 : 16), vcpu->vmx.field[i]);
}

void vmx_print(const struct vcpu *vcpu, FILE *out)
{
    const struct vmx *vmx = &vcpu->vmx;
    if (!vmx->on) {
        fprintf(out, "not in VMX operation\n");
        return;
    }
    fprintf(out, "VMX %s operation, VMXON region %" PRIx64 "\n", vmx->guest ? "non-root" : "root", vmx->vmxon_pointer);
    print_exits(vcpu, out);
    if (vmx->current == VMCS_NONE) {
        fprintf(out, "no current VMCS\n");
        return;
    }
    fprintf(out, "current VMCS %" PRIx64 ", %s%s\n", vmx->current, vmx->launched ? "launched" : "clear",
            vmx->shadow ? ", shadow" : "");
    for (unsigned i = 0; i < VMCS_FIELD_COUNT; i++)
        if (vmcs_exists(vcpu, i))
            print_field(vcpu, i, out);
}
