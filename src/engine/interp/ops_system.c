/* System instructions: operands in and out; the rules themselves are in x86/. */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"

/*
 * SYSTEM_OP(name, counter) { ... return ok; }: rip is the instruction's, the block ends, rip moves on when done.
 * Whether it succeeds or faults, the instruction is counted: a monitor that traps would have been entered.
 */
#define SYSTEM_OP(name, counter)                                                           \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op);                       \
    struct block *name(struct vcpu *vcpu, const struct op *op)                             \
    {                                                                                      \
        op_at(vcpu, op);                                                                   \
        counter_add(&vcpu->counters, COUNTER_##counter, 1);                                \
        return leave_system(vcpu, op, vcpu_time_known(vcpu) && name##_rule(vcpu, op));                                 \
    }                                                                                      \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op)
/* The same for rules that set rip themselves. */
#define TRANSFER_OP(name, counter)                                                         \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op);                       \
    struct block *name(struct vcpu *vcpu, const struct op *op)                             \
    {                                                                                      \
        op_at(vcpu, op);                                                                   \
        counter_add(&vcpu->counters, COUNTER_##counter, 1);                                \
        return leave_transfer(vcpu, op, name##_rule(vcpu, op));                            \
    }                                                                                      \
    static bool name##_rule(struct vcpu *vcpu, const struct op *op)

static uint64_t edx_eax(const struct vcpu *vcpu)
{
    return vcpu->gpr[RDX] << 32 | (uint32_t)vcpu->gpr[RAX];
}

static void set_edx_eax(struct vcpu *vcpu, uint64_t value)
{
    vcpu->gpr[RAX] = (uint32_t)value;
    vcpu->gpr[RDX] = value >> 32;
}

static uint64_t after(const struct vcpu *vcpu, const struct op *op)
{
    return rip_wrap(vcpu, vcpu->rip + op->length);
}

/* Memory operands, relative to the block's start, must be resolved with rip there: rip_back undoes op_at for that. */
static uint64_t memory_offset(struct vcpu *vcpu, const struct op *op)
{
    uint64_t rip = vcpu->rip;
    vcpu->rip = rip - op->where;
    uint64_t offset = op_offset(vcpu, op);
    vcpu->rip = rip;
    return offset;
}

static struct slow_value memory_linear(struct vcpu *vcpu, const struct op *op, unsigned size, bool write)
{
    struct slow_value out = { 0, 0 };
    out.ok = x86_linear(vcpu, op->seg, memory_offset(vcpu, op), size, write, &out.value);
    return out;
}

static struct slow_value operand_read(struct vcpu *vcpu, const struct op *op, uint16_t reg, unsigned size)
{
    if (!(op->flags & OP_MEMORY))
        return (struct slow_value){ reg_get(vcpu, reg, size), 1 };
    struct slow_value linear = memory_linear(vcpu, op, size, false);
    return linear.ok ? load_slow(vcpu, linear.value, size, op->seg) : linear;
}

/* Memory forms of SMSW, SLDT, STR, MOV r/m,Sreg store 16 bits whatever the operand size. */
static bool operand_write16(struct vcpu *vcpu, const struct op *op, uint64_t value)
{
    if (!(op->flags & OP_MEMORY)) {
        reg_set(vcpu, op->dst, op->size, value);
        return true;
    }
    struct slow_value linear = memory_linear(vcpu, op, 2, true);
    return linear.ok && store_slow(vcpu, linear.value, value, 2, op->seg);
}

/* --- MOV to and from segment, control and debug registers --- */

SYSTEM_OP(op_mov_to_segment, trap_segment_loads)
{
    struct slow_value value = operand_read(vcpu, op, op->src, 2);
    if (!value.ok || !x86_load_segment(vcpu, op->sub, (uint16_t)value.value))
        return false;
    if (op->sub == SS)
        vcpu->shadow |= SHADOW_MOV_SS;
    return true;
}

OP_BODY_STATIC(mov_from_segment)
{
    uint16_t selector = vcpu->seg[op->sub].selector;
    if (op->flags & OP_MEMORY)
        return far_store(vcpu, op, selector, 2);
    reg_set(vcpu, op->dst, op->size, selector);
    return true;
}

SYSTEM_OP(op_mov_to_control, trap_cr_writes)
{
    uint64_t value = reg_get(vcpu, op->src, op->size);
    return x86_write_cr(vcpu, op->sub, value);
}

SYSTEM_OP(op_mov_from_control, trap_cr_reads)
{
    uint64_t value;
    if (!x86_read_cr(vcpu, op->sub, &value))
        return false;
    reg_set(vcpu, op->dst, op->size, value);
    return true;
}

SYSTEM_OP(op_mov_to_debug, trap_dr_writes)
{
    return x86_write_dr(vcpu, op->sub, reg_get(vcpu, op->src, op->size));
}

SYSTEM_OP(op_mov_from_debug, trap_dr_reads)
{
    uint64_t value;
    if (!x86_read_dr(vcpu, op->sub, &value))
        return false;
    reg_set(vcpu, op->dst, op->size, value);
    return true;
}

op_fn *pick_mov_system(const struct insn *insn, struct op *op, enum family family, unsigned argument)
{
    const struct insn_operand *dst = &insn->operand[0], *src = &insn->operand[1];
    if (dst->kind == OPERAND_SEGMENT) {
        op->sub = dst->reg;
        return dst->reg == CS ? op_undefined : op_mov_to_segment;
    }
    if (src->kind == OPERAND_SEGMENT) {
        op->sub = src->reg;
        return mov_from_segment;
    }
    bool to = dst->kind == OPERAND_CONTROL || dst->kind == OPERAND_DEBUG;
    const struct insn_operand *system = to ? dst : src;
    op->sub = system->reg;
    op->size = family == FLAT64 || op->size == 8 ? 8 : 4;
    if (system->kind == OPERAND_CONTROL)
        return to ? op_mov_to_control : op_mov_from_control;
    return to ? op_mov_to_debug : op_mov_from_debug;
}

/* LDS LES LFS LGS LSS: SUB is the segment register. */
SYSTEM_OP(op_load_far, trap_segment_loads)
{
    struct slow_value linear = memory_linear(vcpu, op, op->size + 2u, false);
    if (!linear.ok)
        return false;
    struct slow_value offset = load_slow(vcpu, linear.value, op->size, op->seg), selector = { 0, 0 };
    if (offset.ok)
        selector = load_slow(vcpu, linear.value + op->size, 2, op->seg);
    if (!selector.ok || !x86_load_segment(vcpu, op->sub, (uint16_t)selector.value))
        return false;
    reg_set(vcpu, op->dst, op->size, offset.value);
    return true;
}

op_fn *pick_load_far(const struct insn *insn, struct op *op, enum family family, unsigned seg)
{
    op->sub = (uint8_t)seg;
    return op_load_far;
}

/* --- descriptor tables --- */

static bool umip_allows(struct vcpu *vcpu)
{
    return !(vcpu->cr4 & CR4_UMIP) || x86_require_cpl0(vcpu);
}

static bool store_table(struct vcpu *vcpu, const struct op *op, const struct table_register *table)
{
    if (!umip_allows(vcpu))
        return false;
    unsigned base_size = vcpu->mode == MODE_LONG64 ? 8 : 4;
    struct slow_value linear = memory_linear(vcpu, op, base_size + 2, true);
    if (!linear.ok || !mmu_probe(vcpu, linear.value, base_size + 2, true, vcpu->mmu->data_class))
        return false;
    return store_slow(vcpu, linear.value, table->limit, 2, op->seg) &&
           store_slow(vcpu, linear.value + 2, table->base, base_size, op->seg);
}

static bool load_table(struct vcpu *vcpu, const struct op *op, struct table_register *table)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    unsigned base_size = vcpu->mode == MODE_LONG64 ? 8 : 4;
    struct slow_value linear = memory_linear(vcpu, op, base_size + 2, false), limit, base = { 0, 0 };
    if (!linear.ok)
        return false;
    limit = load_slow(vcpu, linear.value, 2, op->seg);
    if (limit.ok)
        base = load_slow(vcpu, linear.value + 2, base_size, op->seg);
    if (!base.ok)
        return false;
    if (base_size == 8 && !x86_canonical(vcpu, base.value))
        return x86_raise_error(vcpu, VEC_GP, 0);
    table->base = op->size == 2 ? base.value & 0xFFFFFF : base.value;
    table->limit = (uint16_t)limit.value;
    return true;
}

SYSTEM_OP(op_sgdt, trap_sgdt) { return store_table(vcpu, op, &vcpu->gdtr); }
SYSTEM_OP(op_sidt, trap_sidt) { return store_table(vcpu, op, &vcpu->idtr); }
SYSTEM_OP(op_lgdt, trap_lgdt) { return load_table(vcpu, op, &vcpu->gdtr); }
SYSTEM_OP(op_lidt, trap_lidt) { return load_table(vcpu, op, &vcpu->idtr); }

/* The LDT, task register and selector checks exist in protected mode only. */
static bool protected_only(struct vcpu *vcpu)
{
    return (vcpu_protected(vcpu) && !vcpu_v86(vcpu)) || x86_raise(vcpu, VEC_UD);
}

SYSTEM_OP(op_sldt, trap_sldt) { return protected_only(vcpu) && umip_allows(vcpu) && operand_write16(vcpu, op, vcpu->ldtr.selector); }
SYSTEM_OP(op_str, trap_str) { return protected_only(vcpu) && umip_allows(vcpu) && operand_write16(vcpu, op, vcpu->tr.selector); }
SYSTEM_OP(op_smsw, trap_smsw) { return umip_allows(vcpu) && operand_write16(vcpu, op, vcpu->cr0); }

SYSTEM_OP(op_lldt, trap_lldt)
{
    if (!protected_only(vcpu) || !x86_require_cpl0(vcpu))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->dst, 2);
    return selector.ok && x86_lldt(vcpu, (uint16_t)selector.value);
}

SYSTEM_OP(op_ltr, trap_ltr)
{
    if (!protected_only(vcpu) || !x86_require_cpl0(vcpu))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->dst, 2);
    return selector.ok && x86_ltr(vcpu, (uint16_t)selector.value);
}

SYSTEM_OP(op_lmsw, trap_lmsw)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    struct slow_value value = operand_read(vcpu, op, op->dst, 2);
    return value.ok && x86_lmsw(vcpu, (uint16_t)value.value);
}

SYSTEM_OP(op_clts, trap_clts)
{
    return x86_require_cpl0(vcpu) && x86_write_cr(vcpu, 0, vcpu->cr0 & ~(uint64_t)CR0_TS);
}

static void set_zf(struct vcpu *vcpu, bool zero)
{
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_ZF) | (zero ? RFLAGS_ZF : 0);
}

SYSTEM_OP(op_lar, trap_lar)
{
    uint32_t rights;
    bool ok;
    if (!protected_only(vcpu))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->src, 2);
    if (!selector.ok || !x86_lar(vcpu, (uint16_t)selector.value, &rights, &ok))
        return false;
    if (ok)
        reg_set(vcpu, op->dst, op->size, rights);
    set_zf(vcpu, ok);
    return true;
}

SYSTEM_OP(op_lsl, trap_lsl)
{
    uint32_t limit;
    bool ok;
    if (!protected_only(vcpu))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->src, 2);
    if (!selector.ok || !x86_lsl(vcpu, (uint16_t)selector.value, &limit, &ok))
        return false;
    if (ok)
        reg_set(vcpu, op->dst, op->size, limit);
    set_zf(vcpu, ok);
    return true;
}

static bool verify(struct vcpu *vcpu, const struct op *op, bool write)
{
    bool ok;
    if (!protected_only(vcpu))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->dst, 2);
    if (!selector.ok || !x86_verify(vcpu, (uint16_t)selector.value, write, &ok))
        return false;
    set_zf(vcpu, ok);
    return true;
}

SYSTEM_OP(op_verr, trap_verr) { return verify(vcpu, op, false); }
SYSTEM_OP(op_verw, trap_verw) { return verify(vcpu, op, true); }

OP_BODY(op_arpl)
{
    if (!protected_only(vcpu))
        return false;
    struct slow_value old = { reg16(vcpu, op->dst), 1 };
    if (op->flags & OP_MEMORY)
        old = far_load(vcpu, op, 2);
    if (!old.ok)
        return false;
    unsigned rpl = reg16(vcpu, op->src) & 3;
    bool raise = (old.value & 3) < rpl;
    uint16_t selector = (uint16_t)((old.value & ~3ull) | rpl);
    if (raise && op->flags & OP_MEMORY && !far_store(vcpu, op, selector, 2))
        return false;
    if (raise && !(op->flags & OP_MEMORY))
        set_reg16(vcpu, op->dst, selector);
    set_zf(vcpu, raise);
    return true;
}

/* The upper bound is only read when the lower one holds. */
OP_BODY(op_bound)
{
    struct slow_value linear = far_linear(vcpu, op, op->size * 2u, false), low, high;
    unsigned width = op->size * 8;
    int64_t index = (int64_t)sign_extend(reg_get(vcpu, op->dst, op->size), width);
    if (!linear.ok)
        return false;
    low = load_slow(vcpu, linear.value, op->size, op->seg);
    if (!low.ok)
        return false;
    if (index < (int64_t)sign_extend(low.value, width))
        return x86_raise(vcpu, VEC_BR);
    high = load_slow(vcpu, linear.value + op->size, op->size, op->seg);
    if (!high.ok)
        return false;
    return index <= (int64_t)sign_extend(high.value, width) || x86_raise(vcpu, VEC_BR);
}

/* --- interrupts and fast system calls --- */

TRANSFER_OP(op_int, trap_int_n) { return x86_interrupt(vcpu, (uint8_t)op->imm, EVENT_SOFT_INT, after(vcpu, op)); }
TRANSFER_OP(op_int3, trap_int_n) { return x86_interrupt(vcpu, VEC_BP, EVENT_TRAP, after(vcpu, op)); }
TRANSFER_OP(op_int1, trap_int_n) { return x86_interrupt(vcpu, VEC_DB, EVENT_ICEBP, after(vcpu, op)); }

TRANSFER_OP(op_into, trap_int_n)
{
    if (vcpu->rflags & RFLAGS_OF)
        return x86_interrupt(vcpu, VEC_OF, EVENT_TRAP, after(vcpu, op));
    vcpu->rip = after(vcpu, op);
    return true;
}

TRANSFER_OP(op_syscall, trap_syscalls) { return x86_syscall(vcpu, after(vcpu, op)); }
TRANSFER_OP(op_sysret, trap_sysrets) { return x86_sysret(vcpu, op->size == 8 ? 8 : 4); }
TRANSFER_OP(op_sysenter, trap_syscalls) { return x86_sysenter(vcpu); }
TRANSFER_OP(op_sysexit, trap_sysrets) { return x86_sysexit(vcpu, op->size == 8 ? 8 : 4); }

/* --- MSRs, TSC, CPUID --- */

SYSTEM_OP(op_rdmsr, trap_msr_reads)
{
    uint64_t value;
    if (!x86_require_cpl0(vcpu) || !x86_rdmsr(vcpu, (uint32_t)vcpu->gpr[RCX], &value))
        return false;
    set_edx_eax(vcpu, value);
    return true;
}

SYSTEM_OP(op_wrmsr, trap_msr_writes)
{
    return x86_require_cpl0(vcpu) && x86_wrmsr(vcpu, (uint32_t)vcpu->gpr[RCX], edx_eax(vcpu));
}

OP_BODY(op_rdtsc)
{
    uint64_t value;
    counter_add(&vcpu->counters, COUNTER_trap_rdtsc, 1);
    if (!vcpu_time_known(vcpu) || !x86_rdtsc(vcpu, &value))
        return false;
    set_edx_eax(vcpu, value);
    return true;
}

OP_BODY(op_rdtscp)
{
    uint64_t value;
    counter_add(&vcpu->counters, COUNTER_trap_rdtsc, 1);
    if (!x86_has(vcpu, FEATURE_RDTSCP))
        return x86_raise(vcpu, VEC_UD);
    if (!vcpu_time_known(vcpu) || !x86_rdtsc(vcpu, &value))
        return false;
    set_edx_eax(vcpu, value);
    vcpu->gpr[RCX] = (uint32_t)vcpu->tsc_aux;
    return true;
}

OP_BODY(op_rdpid)
{
    if (!x86_has(vcpu, FEATURE_RDPID))
        return x86_raise(vcpu, VEC_UD);
    reg_set(vcpu, op->dst, op->size, vcpu->tsc_aux);
    return true;
}

SYSTEM_OP(op_rdpmc, trap_rdpmc)
{
    uint64_t value;
    if (!x86_rdpmc(vcpu, (uint32_t)vcpu->gpr[RCX], &value))
        return false;
    set_edx_eax(vcpu, value);
    return true;
}

OP_BODY(op_cpuid)
{
    uint32_t out[4];
    counter_add(&vcpu->counters, COUNTER_trap_cpuid, 1);
    x86_cpuid(vcpu, (uint32_t)vcpu->gpr[RAX], (uint32_t)vcpu->gpr[RCX], out);
    vcpu->gpr[RAX] = out[0];
    vcpu->gpr[RBX] = out[1];
    vcpu->gpr[RCX] = out[2];
    vcpu->gpr[RDX] = out[3];
    return true;
}

/* Where runs can be repeated, this is repeated, too (a Weyl sequence, its halves mixed). */
static uint64_t repeatable_random(struct vcpu *vcpu)
{
    uint64_t value = vcpu->random += 0x9E3779B97F4A7C15ull;
    value = (value ^ value >> 32) * 0xD6E8FEB86659FD93ull;
    return value ^ value >> 32;
}

/* CF tells success and the other flags are cleared (SDM2 RDRAND); a failed read gives zero. */
static bool random_value(struct vcpu *vcpu, const struct op *op, bool seed)
{
    uint64_t value;
    bool ok = true;
    if (!x86_has(vcpu, seed ? FEATURE_RDSEED : FEATURE_RDRAND))
        return x86_raise(vcpu, VEC_UD);
    if (vcpu->counted)
        value = repeatable_random(vcpu);
    else if (seed)
        asm volatile("rdseed %0\n\tsetc %1" : "=r"(value), "=q"(ok) : : "cc");
    else
        asm volatile("rdrand %0\n\tsetc %1" : "=r"(value), "=q"(ok) : : "cc");
    reg_set(vcpu, op->dst, op->size, ok ? value : 0);
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_STATUS) | (ok ? RFLAGS_CF : 0);
    return true;
}

OP_BODY(op_rdrand) { return random_value(vcpu, op, false); }
OP_BODY(op_rdseed) { return random_value(vcpu, op, true); }

/* --- FS and GS bases --- */

static bool fsgsbase_enabled(struct vcpu *vcpu)
{
    return (vcpu->mode == MODE_LONG64 && (vcpu->cr4 & CR4_FSGSBASE)) || x86_raise(vcpu, VEC_UD);
}

op_fn *pick_fsgsbase(const struct insn *insn, struct op *op, enum family family, unsigned packed)
{
    op->sub = (uint8_t)(packed & 7);
    return packed & 8 ? op_wrbase : op_rdbase;
}

OP_BODY(op_rdbase)
{
    if (!fsgsbase_enabled(vcpu))
        return false;
    reg_set(vcpu, op->dst, op->size, vcpu->seg[op->sub].base);
    return true;
}

OP_BODY(op_wrbase)
{
    if (!fsgsbase_enabled(vcpu))
        return false;
    uint64_t base = reg_get(vcpu, op->dst, op->size);
    if (!x86_canonical(vcpu, base))
        return x86_raise_error(vcpu, VEC_GP, 0);
    vcpu->seg[op->sub].base = base;
    return true;
}

OP_BODY(op_swapgs)
{
    counter_add(&vcpu->counters, COUNTER_trap_swapgs, 1);
    return x86_swapgs(vcpu);
}

/* --- the rest --- */

SYSTEM_OP(op_hlt, trap_hlt) { return x86_hlt(vcpu); }
SYSTEM_OP(op_wbinvd, trap_wbinvd) { return x86_wbinvd(vcpu); }
SYSTEM_OP(op_vmcall, trap_vmcall) { return x86_vmcall(vcpu); }
SYSTEM_OP(op_xsetbv, trap_xsetbv) { return x86_xsetbv(vcpu, (uint32_t)vcpu->gpr[RCX], edx_eax(vcpu)); }
SYSTEM_OP(op_serialize, trap_serialize)
{
    if (!x86_has(vcpu, FEATURE_SERIALIZE))
        return x86_raise(vcpu, VEC_UD);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return true;
}

/* INVLPG does not check limits or canonicality; a non-canonical address does nothing (SDM2 INVLPG). */
SYSTEM_OP(op_invlpg, trap_invlpg)
{
    uint64_t gla = memory_offset(vcpu, op);
    if (vcpu->mode != MODE_LONG64)
        gla = (uint32_t)(gla + vcpu->seg[op->seg].base);
    else if (op->seg == FS || op->seg == GS)
        gla += vcpu->seg[op->seg].base;
    return x86_invlpg(vcpu, gla);
}

SYSTEM_OP(op_invpcid, trap_invpcid)
{
    uint64_t descriptor[2];
    if (!x86_has(vcpu, FEATURE_INVPCID))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    struct slow_value linear = memory_linear(vcpu, op, 16, false);
    if (!linear.ok || !mmu_load_slow(vcpu, linear.value, descriptor, 16, vcpu->mmu->data_class))
        return false;
    return x86_invpcid(vcpu, reg_get(vcpu, op->dst, vcpu->mode == MODE_LONG64 ? 8 : 4), descriptor);
}

SYSTEM_OP(op_monitor, trap_monitor)
{
    uint64_t gla;
    if (!x86_linear(vcpu, op->seg, vcpu->gpr[RAX] & size_mask(op->address_size), 1, false, &gla))
        return false;
    return x86_monitor(vcpu, gla, (uint32_t)vcpu->gpr[RCX], (uint32_t)vcpu->gpr[RDX]);
}

SYSTEM_OP(op_mwait, trap_mwait) { return x86_mwait(vcpu, (uint32_t)vcpu->gpr[RAX], (uint32_t)vcpu->gpr[RCX]); }

struct block *op_undefined(struct vcpu *vcpu, const struct op *op) { return leave_raise(vcpu, op, VEC_UD); }
struct block *op_too_long(struct vcpu *vcpu, const struct op *op) { return leave_raise(vcpu, op, VEC_GP); }
