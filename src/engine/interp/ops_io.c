/* IN, OUT, INS, OUTS. Each may reach any device, so each ends its block. */
#include "bus/bus.h"
#include "engine/interp/bind.h"
#include "engine/interp/system.h"

static uint64_t port_read(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    struct access access = { .address = port, .size = (uint8_t)size, .requester = REQUESTER_CPU };
    counter_add(&vcpu->counters, COUNTER_port_reads, 1);
    if (x86_debug_armed(vcpu))
        x86_debug_io(vcpu, port, size);
    if (!vcpu->ports)
        return size_mask(size);
    bus_access(vcpu->ports, &access);
    return access.value & size_mask(size);
}

static void port_write(struct vcpu *vcpu, uint16_t port, unsigned size, uint64_t value)
{
    struct access access = {
        .address = port, .size = (uint8_t)size, .requester = REQUESTER_CPU, .write = true, .value = value & size_mask(size),
    };
    counter_add(&vcpu->counters, COUNTER_port_writes, 1);
    if (x86_debug_armed(vcpu))
        x86_debug_io(vcpu, port, size);
    if (vcpu->ports)
        bus_access(vcpu->ports, &access);
}

static uint16_t port_of(const struct vcpu *vcpu, const struct op *op)
{
    return op->flags & OP_IMMEDIATE ? (uint8_t)op->imm : (uint16_t)vcpu->gpr[RDX];
}

/* In a VT-x guest: after the checks of privilege, before anything is done. */
static bool io_exits(struct vcpu *vcpu, const struct op *op, uint16_t port, bool in)
{
    if (!vmx_guest(vcpu))
        return false;
    return vmx_io_exits(vcpu, &(struct vmx_io){ .port = port, .size = op->size, .in = in, .immediate = op->flags & OP_IMMEDIATE });
}

static bool string_io_exits(struct vcpu *vcpu, const struct op *op, uint16_t port, bool in, uint64_t gla)
{
    if (!vmx_guest(vcpu))
        return false;
    return vmx_io_exits(vcpu, &(struct vmx_io){
        .port = port, .size = op->size, .in = in, .string = true, .repeated = op->flags & (OP_REP | OP_REPNE),
        .address_size = op->address_size, .seg = in ? ES : op->seg, .gla = gla,
    });
}

struct block *op_in(struct vcpu *vcpu, const struct op *op)
{
    op_at(vcpu, op);
    counter_add(&vcpu->counters, COUNTER_trap_in, 1);
    uint16_t port = port_of(vcpu, op);
    if (!x86_io_allowed(vcpu, port, op->size) || io_exits(vcpu, op, port, true) || !vcpu_time_known(vcpu))
        return leave_system(vcpu, op, false);
    reg_set(vcpu, GPR_OFFSET(RAX), op->size, port_read(vcpu, port, op->size));
    return leave_system(vcpu, op, true);
}

struct block *op_out(struct vcpu *vcpu, const struct op *op)
{
    op_at(vcpu, op);
    counter_add(&vcpu->counters, COUNTER_trap_out, 1);
    uint16_t port = port_of(vcpu, op);
    if (!x86_io_allowed(vcpu, port, op->size) || io_exits(vcpu, op, port, false) || !vcpu_time_known(vcpu))
        return leave_system(vcpu, op, false);
    port_write(vcpu, port, op->size, vcpu->gpr[RAX]);
    return leave_system(vcpu, op, true);
}

static uint64_t mask_index(const struct vcpu *vcpu, const struct op *op, enum gpr reg)
{
    return vcpu->gpr[reg] & size_mask(op->address_size);
}

static void advance(struct vcpu *vcpu, const struct op *op, enum gpr reg)
{
    uint64_t by = vcpu->rflags & RFLAGS_DF ? -(uint64_t)op->size : op->size;
    reg_set(vcpu, GPR_OFFSET(reg), op->address_size, vcpu->gpr[reg] + by);
}

/* The destination is checked first: a port read must not be lost to a page fault. */
bool ins_one(struct vcpu *vcpu, const struct op *op)
{
    uint16_t port = (uint16_t)vcpu->gpr[RDX];
    uint64_t gla;
    counter_add(&vcpu->counters, COUNTER_trap_ins, 1);
    if (!x86_io_allowed(vcpu, port, op->size) || !vcpu_time_known(vcpu) ||
        !x86_linear(vcpu, ES, mask_index(vcpu, op, RDI), op->size, true, &gla) || string_io_exits(vcpu, op, port, true, gla) ||
        !mmu_probe(vcpu, gla, op->size, true, vcpu->mmu->data_class))
        return false;
    if (!store_slow(vcpu, gla, port_read(vcpu, port, op->size), op->size, ES))
        return false;
    advance(vcpu, op, RDI);
    return true;
}

bool outs_one(struct vcpu *vcpu, const struct op *op)
{
    uint16_t port = (uint16_t)vcpu->gpr[RDX];
    uint64_t gla;
    counter_add(&vcpu->counters, COUNTER_trap_outs, 1);
    if (!x86_io_allowed(vcpu, port, op->size) || !vcpu_time_known(vcpu) ||
        !x86_linear(vcpu, op->seg, mask_index(vcpu, op, RSI), op->size, false, &gla) || string_io_exits(vcpu, op, port, false, gla))
        return false;
    struct slow_value value = load_slow(vcpu, gla, op->size, op->seg);
    if (!value.ok)
        return false;
    port_write(vcpu, port, op->size, value.value);
    advance(vcpu, op, RSI);
    return true;
}
