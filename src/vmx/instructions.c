/* The VMX instructions (SDM3 chapter 31 "VMX Instruction Reference"); VMLAUNCH and VMRESUME are in entry.c. */
#include "vmx/internal.h"

/* --- results: SDM3 §31.2 "Conventions" --- */

static void set_status(struct vcpu *vcpu, uint64_t flags)
{
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_STATUS) | flags;
}

void vmx_succeed(struct vcpu *vcpu) { set_status(vcpu, 0); }

void vmx_fail_invalid(struct vcpu *vcpu) { set_status(vcpu, RFLAGS_CF); }

/* In non-root operation VMREAD and VMWRITE work on the VMCS that the link pointer names. */
static uint64_t addressed_vmcs(const struct vcpu *vcpu)
{
    return vcpu->vmx.guest ? FIELD(VMCS_LINK_POINTER) : vcpu->vmx.current;
}

/* VMfailValid, or VMfailInvalid where there is no VMCS to hold the number. */
void vmx_fail(struct vcpu *vcpu, enum vmx_error error)
{
    trace(vcpu->log, vmx, "vcpu%u VMfail %u at %#lx", vcpu->index, error, vcpu->rip);
    uint64_t vmcs = addressed_vmcs(vcpu);
    if (vmcs == VMCS_NONE) {
        vmx_fail_invalid(vcpu);
        return;
    }
    if (vcpu->vmx.guest)
        vmcs_memory_write(vcpu, vmcs, VMCS_VM_INSTRUCTION_ERROR, error);
    else
        FIELD(VM_INSTRUCTION_ERROR) = error;
    set_status(vcpu, RFLAGS_ZF);
}

static bool failed(struct vcpu *vcpu, enum vmx_error error)
{
    vmx_fail(vcpu, error);
    return true;
}

static bool succeeded(struct vcpu *vcpu)
{
    vmx_succeed(vcpu);
    return true;
}

/* --- who may --- */

static bool mode_allows(const struct vcpu *vcpu)
{
    return vcpu_protected(vcpu) && !vcpu_v86(vcpu) && (!vcpu_long_mode(vcpu) || vcpu_code64(vcpu));
}

/* SDM3 §31.3, INVEPT and INVVPID: #UD where what they invalidate is not offered. */
static bool exists(const struct vcpu *vcpu, enum vmx_reason reason)
{
    return reason == REASON_INVEPT ? vmx_can(vcpu, CAPABILITY_INVEPT) : reason == REASON_INVVPID ? vmx_can(vcpu, CAPABILITY_INVVPID) : true;
}

bool vmx_allowed(struct vcpu *vcpu, enum vmx_reason reason, uint64_t qualification, uint32_t information)
{
    if (!vcpu->vmx.on || !mode_allows(vcpu) || !exists(vcpu, reason))
        return x86_raise(vcpu, VEC_UD);
    if (vcpu->vmx.guest)
        return vmx_exit_instruction(vcpu, reason, qualification, information);
    return x86_require_cpl0(vcpu);
}

bool vmx_vmxon_allowed(struct vcpu *vcpu, uint64_t qualification, uint32_t information)
{
    const struct vmx *vmx = &vcpu->vmx;
    uint64_t enabled = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX;
    if (vmx->on)
        return vmx_allowed(vcpu, REASON_VMXON, qualification, information);
    if (!(vcpu->cr4 & CR4_VMXE) || !mode_allows(vcpu))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    if (!vmx_cr0_allowed(vcpu, vcpu->cr0) || !vmx_cr4_allowed(vcpu, vcpu->cr4) || (vmx->feature_control & enabled) != enabled)
        return x86_raise_error(vcpu, VEC_GP, 0);
    return true;
}

bool vmx_vmcs_access_allowed(struct vcpu *vcpu, bool write, uint64_t encoding, uint64_t qualification, uint32_t information)
{
    enum vmx_reason reason = write ? REASON_VMWRITE : REASON_VMREAD;
    if (!vmx_proc2(vcpu, PROC2_VMCS_SHADOWING) || !mode_allows(vcpu))
        return vmx_allowed(vcpu, reason, qualification, information);
    uint64_t bitmap = write ? FIELD(VMWRITE_BITMAP) : FIELD(VMREAD_BITMAP);
    uint8_t byte = 0xFF;
    if (!(encoding >> 15))
        mmu_phys_read(vcpu, bitmap + encoding / 8, &byte, 1);
    if (byte >> (encoding & 7) & 1)
        return vmx_exit_instruction(vcpu, reason, qualification, information);
    return x86_require_cpl0(vcpu);
}

bool vmx_pointer_valid(const struct vcpu *vcpu, uint64_t pointer, uint64_t alignment)
{
    return !(pointer & (alignment - 1)) && !(pointer >> x86_physical_bits(vcpu));
}

/* SDM3 §31.3 VMCALL, in root operation without the dual-monitor treatment. */
bool vmx_vmcall(struct vcpu *vcpu) { return vmx_allowed(vcpu, REASON_VMCALL, 0, 0) && failed(vcpu, ERROR_VMCALL_IN_ROOT); }

/* --- entering and leaving VMX operation --- */

static void forget_vmcs(struct vcpu *vcpu)
{
    vcpu->vmx.current = VMCS_NONE;
    vcpu->vmx.launched = vcpu->vmx.shadow = false;
    memset(vcpu->vmx.field, 0, sizeof(vcpu->vmx.field));
}

static uint32_t revision_of(struct vcpu *vcpu, uint64_t pointer)
{
    uint32_t revision;
    mmu_phys_read(vcpu, pointer, &revision, sizeof(revision));
    return revision;
}

bool vmx_vmxon(struct vcpu *vcpu, uint64_t pointer)
{
    if (vcpu->vmx.on)
        return failed(vcpu, ERROR_VMXON_IN_ROOT);
    if (!vmx_pointer_valid(vcpu, pointer, PAGE_SIZE) || revision_of(vcpu, pointer) != VMCS_REVISION) {
        vmx_fail_invalid(vcpu);
        return true;
    }
    trace(vcpu->log, vmx, "vcpu%u VMXON %#lx", vcpu->index, pointer);
    forget_vmcs(vcpu);
    vcpu->vmx.on = vcpu->vmx.tertiary = true;
    vcpu->vmx.vmxon_pointer = pointer;
    return succeeded(vcpu);
}

bool vmx_vmxoff(struct vcpu *vcpu)
{
    if (vcpu->vmx.current != VMCS_NONE)
        vmcs_write_back(vcpu);
    forget_vmcs(vcpu);
    vcpu->vmx.on = vcpu->vmx.tertiary = false;
    /* INIT was blocked in root operation (SDM3 §24.8). */
    atomic_fetch_or(&vcpu->request, vcpu->vmx.init_held ? REQUEST_INIT : 0);
    vcpu->vmx.init_held = false;
    return succeeded(vcpu);
}

/* --- the current VMCS --- */

bool vmx_vmclear(struct vcpu *vcpu, uint64_t pointer)
{
    if (!vmx_pointer_valid(vcpu, pointer, PAGE_SIZE))
        return failed(vcpu, ERROR_VMCLEAR_ADDRESS);
    if (pointer == vcpu->vmx.vmxon_pointer)
        return failed(vcpu, ERROR_VMCLEAR_VMXON_POINTER);
    if (pointer == vcpu->vmx.current) {
        vmcs_write_back(vcpu);
        forget_vmcs(vcpu);
    }
    vmcs_set_launch_state(vcpu, pointer, false);
    return succeeded(vcpu);
}

bool vmx_vmptrld(struct vcpu *vcpu, uint64_t pointer)
{
    if (!vmx_pointer_valid(vcpu, pointer, PAGE_SIZE))
        return failed(vcpu, ERROR_VMPTRLD_ADDRESS);
    if (pointer == vcpu->vmx.vmxon_pointer)
        return failed(vcpu, ERROR_VMPTRLD_VMXON_POINTER);
    uint64_t indicator = vmx_allowed1(vcpu, VMX_PROC2) & PROC2_VMCS_SHADOWING ? VMCS_SHADOW_INDICATOR : 0;
    if ((revision_of(vcpu, pointer) & ~indicator) != VMCS_REVISION)
        return failed(vcpu, ERROR_VMPTRLD_REVISION);
    if (pointer != vcpu->vmx.current) {
        if (vcpu->vmx.current != VMCS_NONE)
            vmcs_write_back(vcpu);
        vmcs_load(vcpu, pointer);
    }
    return succeeded(vcpu);
}

bool vmx_vmread(struct vcpu *vcpu, uint64_t encoding, uint64_t *value)
{
    bool high;
    int field = vmcs_find(vcpu, encoding, &high);
    uint64_t vmcs = addressed_vmcs(vcpu);
    if (vmcs == VMCS_NONE || field < 0) {
        vmx_fail(vcpu, ERROR_UNSUPPORTED_FIELD);
        return false;
    }
    *value = vcpu->vmx.guest ? vmcs_memory_read(vcpu, vmcs, field) : vcpu->vmx.field[field];
    if (high)
        *value >>= 32;
    return true;
}

static uint64_t merged(uint64_t old, uint64_t value, bool high, uint64_t mask)
{
    return high ? (uint32_t)old | value << 32 : value & mask;
}

void vmx_vmwrite(struct vcpu *vcpu, uint64_t encoding, uint64_t value)
{
    bool high;
    int field = vmcs_find(vcpu, encoding, &high);
    uint64_t vmcs = addressed_vmcs(vcpu);
    if (vmcs == VMCS_NONE || field < 0) {
        vmx_fail(vcpu, ERROR_UNSUPPORTED_FIELD);
        return;
    }
    uint64_t mask = vmcs_width_mask(field);
    if (vcpu->vmx.guest)
        vmcs_memory_write(vcpu, vmcs, field, merged(vmcs_memory_read(vcpu, vmcs, field), value, high, mask));
    else
        vcpu->vmx.field[field] = merged(vcpu->vmx.field[field], value, high, mask);
    vmx_succeed(vcpu);
}

/* --- cached translations --- */

bool vmx_invept(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2])
{
    enum { SINGLE_CONTEXT = 1, GLOBAL = 2 };
    bool offered = type == GLOBAL ? vmx_can(vcpu, CAPABILITY_INVEPT_ALL_CONTEXTS)
                                  : type == SINGLE_CONTEXT && vmx_can(vcpu, CAPABILITY_INVEPT_SINGLE_CONTEXT);
    if (!offered || (type == SINGLE_CONTEXT && !vmx_eptp_valid(vcpu, descriptor[0])))
        return failed(vcpu, ERROR_INVALID_INVALIDATION);
    if (type == GLOBAL)
        mmu_flush_all_epts(vcpu);
    else
        mmu_flush_ept(vcpu, descriptor[0]);
    return succeeded(vcpu);
}

bool vmx_invvpid(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2])
{
    enum { ADDRESS, SINGLE_CONTEXT, ALL_CONTEXTS, SINGLE_KEEPING_GLOBALS };
    uint64_t vpid = descriptor[0], gla = descriptor[1];
    if (type > SINGLE_KEEPING_GLOBALS || !vmx_can(vcpu, CAPABILITY_INVVPID_ADDRESS + (unsigned)type) || vpid >> 16 || (type != ALL_CONTEXTS && !vpid) ||
        (type == ADDRESS && !x86_canonical(vcpu, gla)))
        return failed(vcpu, ERROR_INVALID_INVALIDATION);
    if (type == ADDRESS)
        mmu_flush_vpid_page(vcpu, vpid, gla);
    else if (type == ALL_CONTEXTS)
        mmu_flush_all_vpids(vcpu);
    else
        mmu_flush_vpid(vcpu, vpid, type == SINGLE_KEEPING_GLOBALS);
    return succeeded(vcpu);
}

/* --- VMFUNC: SDM3 §26.5.6 "VM Functions" --- */

static bool switch_eptp(struct vcpu *vcpu)
{
    enum { EPTP_LIST_ENTRIES = 512 };
    uint32_t index = (uint32_t)vcpu->gpr[RCX];
    uint64_t eptp;
    if (index >= EPTP_LIST_ENTRIES)
        return vmx_exit_now(vcpu, REASON_VMFUNC, 0);
    mmu_phys_read(vcpu, FIELD(EPTP_LIST) + index * 8, &eptp, sizeof(eptp));
    if (!vmx_eptp_valid(vcpu, eptp))
        return vmx_exit_now(vcpu, REASON_VMFUNC, 0);
    FIELD(EPTP) = eptp;
    if (vmx_proc2(vcpu, PROC2_EPT_VIOLATION_VE))
        FIELD(EPTP_INDEX) = index;
    vmx_switch_translations(vcpu);
    return true;
}

bool vmx_vmfunc(struct vcpu *vcpu)
{
    uint32_t function = (uint32_t)vcpu->gpr[RAX];
    if (!vmx_proc2(vcpu, PROC2_ENABLE_VM_FUNCTIONS) || function > 63)
        return x86_raise(vcpu, VEC_UD);
    if (function != 0 || !(FIELD(VM_FUNCTION_CONTROLS) & VM_FUNCTION_EPTP_SWITCHING))
        return vmx_exit_now(vcpu, REASON_VMFUNC, 0);
    return switch_eptp(vcpu);
}
