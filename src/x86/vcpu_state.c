/* The state list of a vCPU: everything architectural, for snapshot, migration, dump and comparison. */
#include "base/error.h"
#include "mmu/mmu.h"
#include "state/state.h"
#include "vmx/vmx.h"
#include "x86/x86.h"
#include "x86/xstate.h"

static const struct state_field segment_fields[] = {
    STATE_SCALAR(struct segment, base), STATE_SCALAR(struct segment, limit), STATE_SCALAR(struct segment, attr),
    STATE_SCALAR(struct segment, selector),
};
static const struct state_list segment_list = STATE_LIST("segment", 1, segment_fields);

static const struct state_field table_fields[] = {
    STATE_SCALAR(struct table_register, base), STATE_SCALAR(struct table_register, limit),
};
static const struct state_list table_list = STATE_LIST("table", 1, table_fields);

static const struct state_field fpu_fields[] = {
    STATE_BLOB(struct fpu, fxsave), STATE_BLOB(struct fpu, zmm), STATE_ARRAY(struct fpu, k), STATE_SCALAR(struct fpu, pkru),
};
static const struct state_list fpu_list = STATE_LIST("fpu", 1, fpu_fields);

static const struct state_field event_fields[] = {
    STATE_SCALAR(struct event, kind), STATE_SCALAR(struct event, vector), STATE_SCALAR(struct event, has_error),
    STATE_SCALAR(struct event, error), STATE_SCALAR(struct event, payload), STATE_SCALAR_SINCE(struct event, injected, 2),
    STATE_SCALAR_SINCE(struct event, unblocked_nmi, 2), STATE_SCALAR_SINCE(struct event, length, 2),
    STATE_SCALAR_SINCE(struct event, vectoring, 2), STATE_SCALAR_SINCE(struct event, vectoring_error, 2),
};
static const struct state_list event_list = STATE_LIST("event", 2, event_fields);

#define SCALAR(member) STATE_SCALAR(struct vcpu, member)

static const struct state_field vcpu_fields[] = {
    STATE_ARRAY(struct vcpu, gpr), SCALAR(rip), SCALAR(rflags), SCALAR(cpl), SCALAR(mode), SCALAR(shadow), SCALAR(activity),
    STATE_NESTED_ARRAY(struct vcpu, seg, segment_list), STATE_NESTED(struct vcpu, ldtr, segment_list),
    STATE_NESTED(struct vcpu, tr, segment_list), STATE_NESTED(struct vcpu, gdtr, table_list),
    STATE_NESTED(struct vcpu, idtr, table_list),
    SCALAR(cr0), SCALAR(cr2), SCALAR(cr3), SCALAR(cr4), SCALAR(xcr0), SCALAR(efer),
    STATE_ARRAY(struct vcpu, pdpte),
    STATE_ARRAY(struct vcpu, dr), SCALAR(dr6), SCALAR(dr7),
    STATE_NESTED(struct vcpu, pending, event_list), SCALAR(interrupt_held), SCALAR(nmi_held), SCALAR(pending_debug),
    SCALAR(star), SCALAR(lstar), SCALAR(cstar), SCALAR(sfmask), SCALAR(kernel_gs_base), SCALAR(tsc_aux),
    SCALAR(sysenter_cs), SCALAR(sysenter_esp), SCALAR(sysenter_eip), SCALAR(tsc_offset), SCALAR(tsc_adjust),
    SCALAR(pat), SCALAR(misc_enable), SCALAR(xss), SCALAR(mperf_offset), SCALAR(mtrr_def_type),
    STATE_ARRAY(struct vcpu, mtrr_fixed), STATE_ARRAY(struct vcpu, mtrr_var_base), STATE_ARRAY(struct vcpu, mtrr_var_mask),
    SCALAR(mcg_status), STATE_BLOB(struct vcpu, mce_bank), SCALAR(spec_ctrl), SCALAR(umwait_control), SCALAR(debugctl),
    SCALAR(kvm_system_time), SCALAR(kvm_wall_clock), SCALAR(kvm_eoi), SCALAR(kvm_async_pf), SCALAR(kvm_steal_time),
    SCALAR(kvm_poll_control), SCALAR(monitor_gpa), SCALAR(sipi_vector), SCALAR(random),
    STATE_NESTED(struct vcpu, fpu, fpu_list),
    STATE_NESTED_SINCE(struct vcpu, vmx, vmx_state_list, 2),
};

const struct state_list vcpu_state_list = STATE_LIST("vcpu", 2, vcpu_fields);

/* What lies where the image has vectors was left there by the host's FXSAVE; they live in zmm. */
void x86_state_tidy(struct vcpu *vcpu)
{
    memset(vcpu->fpu.fxsave + IMAGE_MXCSR_MASK, 0, IMAGE_ST - IMAGE_MXCSR_MASK);
    memset(vcpu->fpu.fxsave + IMAGE_XMM, 0, IMAGE_BYTES - IMAGE_XMM);
}

/* The host's own FXRSTOR and XRSTOR would fault on bits that are reserved. */
static void loaded_fpu(struct vcpu *vcpu)
{
    uint8_t image[IMAGE_BYTES];
    memcpy(image, vcpu->fpu.fxsave, sizeof(image));
    fpu_get_x87(vcpu, true, image);
    fpu_set_mxcsr(&vcpu->fpu, fpu_mxcsr(&vcpu->fpu) & MXCSR_MASK);
}

bool x86_state_loaded(struct vcpu *vcpu, struct error *err)
{
    if (!x86_control_registers_valid(vcpu))
        return error_set(err, "the saved control registers of processor %u cannot be had with this processor model", vcpu->index);
    if (vcpu->cpl > 3 || vcpu->activity > ACTIVITY_WAIT_SIPI || vcpu->pending.kind != EVENT_NONE)
        return error_set(err, "the saved state of processor %u is damaged", vcpu->index);
    vcpu->rflags = (vcpu->rflags & RFLAGS_DEFINED) | RFLAGS_FIXED;
    vcpu->shadow &= SHADOW_STI | SHADOW_MOV_SS | SHADOW_NMI;
    loaded_fpu(vcpu);
    x86_update_mode(vcpu);
    mmu_flush_all(vcpu);
    if (!vmx_state_loaded(vcpu))
        return error_set(err, "the saved VT-x state of processor %u is damaged", vcpu->index);
    mmu_mode_changed(vcpu);
    return true;
}
