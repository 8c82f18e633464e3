/* The VMX instructions: operands in and out; the rules are in vmx/. */
#include "engine/interp/bind.h"
#include "engine/interp/system.h"

/* SDM3 §31.2: in 64-bit mode these operands have 64 bits, elsewhere 32. */
static unsigned register_size(const struct vcpu *vcpu) { return vcpu->mode == MODE_LONG64 ? 8 : 4; }

/* --- one pointer in memory --- */

static bool read_pointer(struct vcpu *vcpu, const struct op *op, uint64_t *pointer)
{
    struct slow_value linear = memory_linear(vcpu, op, 8, false), value;
    if (!linear.ok)
        return false;
    value = load_slow(vcpu, linear.value, 8, op->seg);
    *pointer = value.value;
    return value.ok;
}

SYSTEM_OP(op_vmxon, trap_vmx)
{
    uint64_t pointer;
    return vmx_vmxon_allowed(vcpu, displacement(vcpu, op), memory_info(op)) && read_pointer(vcpu, op, &pointer) &&
           vmx_vmxon(vcpu, pointer);
}

SYSTEM_OP(op_vmclear, trap_vmx)
{
    uint64_t pointer;
    return vmx_allowed(vcpu, REASON_VMCLEAR, displacement(vcpu, op), memory_info(op)) && read_pointer(vcpu, op, &pointer) &&
           vmx_vmclear(vcpu, pointer);
}

SYSTEM_OP(op_vmptrld, trap_vmx)
{
    uint64_t pointer;
    return vmx_allowed(vcpu, REASON_VMPTRLD, displacement(vcpu, op), memory_info(op)) && read_pointer(vcpu, op, &pointer) &&
           vmx_vmptrld(vcpu, pointer);
}

SYSTEM_OP(op_vmptrst, trap_vmx)
{
    if (!vmx_allowed(vcpu, REASON_VMPTRST, displacement(vcpu, op), memory_info(op)))
        return false;
    struct slow_value linear = memory_linear(vcpu, op, 8, true);
    if (!linear.ok || !store_slow(vcpu, linear.value, vcpu->vmx.current, 8, op->seg))
        return false;
    vmx_succeed(vcpu);
    return true;
}

/* --- fields --- */

static bool write_operand(struct vcpu *vcpu, const struct op *op, uint64_t value, unsigned size)
{
    if (!(op->flags & OP_MEMORY)) {
        reg_set(vcpu, op->dst, size, value);
        return true;
    }
    struct slow_value linear = memory_linear(vcpu, op, size, true);
    return linear.ok && store_slow(vcpu, linear.value, value, size, op->seg);
}

/* Flags tell success even where the store then faults: SDM3 §31.3 VMREAD sets them before it writes the operand. */
SYSTEM_OP(op_vmread, trap_vmx)
{
    unsigned size = register_size(vcpu);
    uint64_t encoding = reg_get(vcpu, op->src, size), value;
    uint32_t information = operand_info(op, op->dst) | gpr_number(op->src) << 28;
    if (!vmx_vmcs_access_allowed(vcpu, false, encoding, displacement(vcpu, op), information))
        return false;
    if (!vmx_vmread(vcpu, encoding, &value))
        return true;
    vmx_succeed(vcpu);
    return write_operand(vcpu, op, value, size);
}

SYSTEM_OP(op_vmwrite, trap_vmx)
{
    unsigned size = register_size(vcpu);
    uint64_t encoding = reg_get(vcpu, op->dst, size);
    uint32_t information = operand_info(op, op->src) | gpr_number(op->dst) << 28;
    if (!vmx_vmcs_access_allowed(vcpu, true, encoding, displacement(vcpu, op), information))
        return false;
    struct slow_value value = operand_read(vcpu, op, op->src, size);
    if (!value.ok)
        return false;
    vmx_vmwrite(vcpu, encoding, value.value);
    return true;
}

/* --- entry, and the rest --- */

/* The preemption timer starts, so the time must be known. */
static bool enter(struct vcpu *vcpu, const struct op *op, bool launch)
{
    return vcpu_time_known(vcpu) && vmx_allowed(vcpu, launch ? REASON_VMLAUNCH : REASON_VMRESUME, 0, 0) &&
           vmx_enter(vcpu, launch, after(vcpu, op));
}

TRANSFER_OP(op_vmlaunch, trap_vmx) { return enter(vcpu, op, true); }
TRANSFER_OP(op_vmresume, trap_vmx) { return enter(vcpu, op, false); }
SYSTEM_OP(op_vmxoff, trap_vmx) { return vmx_allowed(vcpu, REASON_VMXOFF, 0, 0) && vmx_vmxoff(vcpu); }
SYSTEM_OP(op_vmfunc, trap_vmx) { return vmx_vmfunc(vcpu); }

static bool read_descriptor(struct vcpu *vcpu, const struct op *op, uint64_t descriptor[2])
{
    struct slow_value linear = memory_linear(vcpu, op, 16, false);
    return linear.ok && mmu_load_slow(vcpu, linear.value, descriptor, 16, vcpu->mmu->data_class);
}

SYSTEM_OP(op_invept, trap_vmx)
{
    uint64_t descriptor[2];
    return vmx_allowed(vcpu, REASON_INVEPT, displacement(vcpu, op), memory_info(op) | gpr_number(op->dst) << 28) &&
           read_descriptor(vcpu, op, descriptor) && vmx_invept(vcpu, reg_get(vcpu, op->dst, register_size(vcpu)), descriptor);
}

SYSTEM_OP(op_invvpid, trap_vmx)
{
    uint64_t descriptor[2];
    return vmx_allowed(vcpu, REASON_INVVPID, displacement(vcpu, op), memory_info(op) | gpr_number(op->dst) << 28) &&
           read_descriptor(vcpu, op, descriptor) && vmx_invvpid(vcpu, reg_get(vcpu, op->dst, register_size(vcpu)), descriptor);
}
