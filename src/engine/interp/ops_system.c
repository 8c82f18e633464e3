/* System instructions: operands in and out; the rules themselves are in x86/. */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"
#include "engine/interp/system.h"

static uint64_t edx_eax(const struct vcpu *vcpu)
{
    return vcpu->gpr[RDX] << 32 | (uint32_t)vcpu->gpr[RAX];
}

static void set_edx_eax(struct vcpu *vcpu, uint64_t value)
{
    vcpu->gpr[RAX] = (uint32_t)value;
    vcpu->gpr[RDX] = value >> 32;
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
    if (vmx_guest(vcpu))
        return vmx_write_cr(vcpu, op->sub, gpr_number(op->src), value);
    return x86_write_cr(vcpu, op->sub, value);
}

SYSTEM_OP(op_mov_from_control, trap_cr_reads)
{
    uint64_t value;
    if (!(vmx_guest(vcpu) ? vmx_read_cr(vcpu, op->sub, gpr_number(op->dst), &value) : x86_read_cr(vcpu, op->sub, &value)))
        return false;
    reg_set(vcpu, op->dst, op->size, value);
    return true;
}

/* These exits come even before #UD and #GP (SDM3 §26.1.3). Qualification: table 28-4. */
static bool debug_exits(struct vcpu *vcpu, const struct op *op, uint16_t reg, bool from)
{
    if (!vmx_proc(vcpu, PROC_MOV_DR_EXITING))
        return false;
    vmx_exit_now(vcpu, REASON_MOV_DR, (op->sub & 7u) | (from ? 1 << 4 : 0) | gpr_number(reg) << 8);
    return true;
}

SYSTEM_OP(op_mov_to_debug, trap_dr_writes)
{
    if (debug_exits(vcpu, op, op->src, false))
        return false;
    return x86_write_dr(vcpu, op->sub, reg_get(vcpu, op->src, op->size));
}

SYSTEM_OP(op_mov_from_debug, trap_dr_reads)
{
    uint64_t value;
    if (debug_exits(vcpu, op, op->dst, true))
        return false;
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

enum table_insn { INSN_SGDT, INSN_SIDT, INSN_LGDT, INSN_LIDT };         /* as in the instruction information */
enum selector_insn { INSN_SLDT, INSN_STR, INSN_LLDT, INSN_LTR };

static bool table_exits(struct vcpu *vcpu, const struct op *op, enum table_insn which)
{
    if (!vmx_proc2(vcpu, PROC2_DESCRIPTOR_TABLE_EXITING))
        return false;
    uint32_t information = memory_info(op) | (op->size == 2 ? 0 : 1 << 11) | (uint32_t)which << 28;
    vmx_exit_instruction(vcpu, REASON_GDTR_OR_IDTR, displacement(vcpu, op), information);
    return true;
}

static bool selector_exits(struct vcpu *vcpu, const struct op *op, enum selector_insn which)
{
    if (!vmx_proc2(vcpu, PROC2_DESCRIPTOR_TABLE_EXITING))
        return false;
    vmx_exit_instruction(vcpu, REASON_LDTR_OR_TR, displacement(vcpu, op), operand_info(op, op->dst) | (uint32_t)which << 28);
    return true;
}

static bool store_table(struct vcpu *vcpu, const struct op *op, const struct table_register *table, enum table_insn which)
{
    if (!umip_allows(vcpu) || table_exits(vcpu, op, which))
        return false;
    unsigned base_size = vcpu->mode == MODE_LONG64 ? 8 : 4;
    struct slow_value linear = memory_linear(vcpu, op, base_size + 2, true);
    if (!linear.ok || !mmu_probe(vcpu, linear.value, base_size + 2, true, vcpu->mmu->data_class))
        return false;
    return store_slow(vcpu, linear.value, table->limit, 2, op->seg) &&
           store_slow(vcpu, linear.value + 2, table->base, base_size, op->seg);
}

static bool load_table(struct vcpu *vcpu, const struct op *op, struct table_register *table, enum table_insn which)
{
    if (!x86_require_cpl0(vcpu) || table_exits(vcpu, op, which))
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

SYSTEM_OP(op_sgdt, trap_sgdt) { return store_table(vcpu, op, &vcpu->gdtr, INSN_SGDT); }
SYSTEM_OP(op_sidt, trap_sidt) { return store_table(vcpu, op, &vcpu->idtr, INSN_SIDT); }
SYSTEM_OP(op_lgdt, trap_lgdt) { return load_table(vcpu, op, &vcpu->gdtr, INSN_LGDT); }
SYSTEM_OP(op_lidt, trap_lidt) { return load_table(vcpu, op, &vcpu->idtr, INSN_LIDT); }

/* The LDT, task register and selector checks exist in protected mode only. */
static bool protected_only(struct vcpu *vcpu)
{
    return (vcpu_protected(vcpu) && !vcpu_v86(vcpu)) || x86_raise(vcpu, VEC_UD);
}

static bool store_selector(struct vcpu *vcpu, const struct op *op, const struct segment *segment, enum selector_insn which)
{
    return protected_only(vcpu) && umip_allows(vcpu) && !selector_exits(vcpu, op, which) && operand_write16(vcpu, op, segment->selector);
}

SYSTEM_OP(op_sldt, trap_sldt) { return store_selector(vcpu, op, &vcpu->ldtr, INSN_SLDT); }
SYSTEM_OP(op_str, trap_str) { return store_selector(vcpu, op, &vcpu->tr, INSN_STR); }
SYSTEM_OP(op_smsw, trap_smsw) { return umip_allows(vcpu) && operand_write16(vcpu, op, vmx_visible_cr0(vcpu)); }

SYSTEM_OP(op_lldt, trap_lldt)
{
    if (!protected_only(vcpu) || !x86_require_cpl0(vcpu) || selector_exits(vcpu, op, INSN_LLDT))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->dst, 2);
    return selector.ok && x86_lldt(vcpu, (uint16_t)selector.value);
}

SYSTEM_OP(op_ltr, trap_ltr)
{
    if (!protected_only(vcpu) || !x86_require_cpl0(vcpu) || selector_exits(vcpu, op, INSN_LTR))
        return false;
    struct slow_value selector = operand_read(vcpu, op, op->dst, 2);
    return selector.ok && x86_ltr(vcpu, (uint16_t)selector.value);
}

SYSTEM_OP(op_lmsw, trap_lmsw)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    struct slow_value value = operand_read(vcpu, op, op->dst, 2);
    if (!value.ok || !vmx_guest(vcpu))
        return value.ok && x86_lmsw(vcpu, (uint16_t)value.value);
    struct slow_value linear = { 0, 1 };
    if (op->flags & OP_MEMORY)
        linear = memory_linear(vcpu, op, 2, false);
    return vmx_lmsw(vcpu, (uint16_t)value.value, op->flags & OP_MEMORY, linear.value);
}

SYSTEM_OP(op_clts, trap_clts)
{
    if (!x86_require_cpl0(vcpu))
        return false;
    return vmx_guest(vcpu) ? vmx_clts(vcpu) : x86_write_cr(vcpu, 0, vcpu->cr0 & ~(uint64_t)CR0_TS);
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

enum { MSR_TSC = 0x10 };

SYSTEM_OP(op_rdmsr, trap_msr_reads)
{
    uint64_t value;
    uint32_t msr = (uint32_t)vcpu->gpr[RCX];
    bool done = false;
    if (!x86_require_cpl0(vcpu))
        return false;
    if (vmx_guest(vcpu)) {
        if (vmx_msr_exits(vcpu, msr, false))
            return vmx_exit_now(vcpu, REASON_RDMSR, 0);
        if (!vmx_read_x2apic(vcpu, msr, &value, &done))
            return false;
    }
    if (!done && !x86_rdmsr(vcpu, msr, &value))
        return false;
    set_edx_eax(vcpu, msr == MSR_TSC ? vmx_tsc(vcpu, value) : value);
    return true;
}

SYSTEM_OP(op_wrmsr, trap_msr_writes)
{
    uint32_t msr = (uint32_t)vcpu->gpr[RCX];
    bool done = false;
    if (!x86_require_cpl0(vcpu))
        return false;
    if (vmx_guest(vcpu)) {
        if (vmx_msr_exits(vcpu, msr, true))
            return vmx_exit_now(vcpu, REASON_WRMSR, 0);
        if (!vmx_write_x2apic(vcpu, msr, edx_eax(vcpu), &done))
            return false;
    }
    return done || x86_wrmsr(vcpu, msr, edx_eax(vcpu));
}

/* In a guest some instructions exist only where a control says so (SDM3 §26.3). */
static bool control_enables(const struct vcpu *vcpu, uint32_t control) { return !vmx_guest(vcpu) || vmx_proc2(vcpu, control); }

OP_BODY(op_rdtsc)
{
    uint64_t value;
    counter_add(&vcpu->counters, COUNTER_trap_rdtsc, 1);
    if (!vcpu_time_known(vcpu) || !x86_rdtsc(vcpu, &value))
        return false;
    if (vmx_proc(vcpu, PROC_RDTSC_EXITING))
        return vmx_exit_now(vcpu, REASON_RDTSC, 0);
    set_edx_eax(vcpu, vmx_tsc(vcpu, value));
    return true;
}

OP_BODY(op_rdtscp)
{
    uint64_t value;
    counter_add(&vcpu->counters, COUNTER_trap_rdtsc, 1);
    if (!x86_has(vcpu, FEATURE_RDTSCP) || !control_enables(vcpu, PROC2_ENABLE_RDTSCP))
        return x86_raise(vcpu, VEC_UD);
    if (!vcpu_time_known(vcpu) || !x86_rdtsc(vcpu, &value))
        return false;
    if (vmx_proc(vcpu, PROC_RDTSC_EXITING))
        return vmx_exit_now(vcpu, REASON_RDTSCP, 0);
    set_edx_eax(vcpu, vmx_tsc(vcpu, value));
    vcpu->gpr[RCX] = (uint32_t)vcpu->tsc_aux;
    return true;
}

OP_BODY(op_rdpid)
{
    if (!x86_has(vcpu, FEATURE_RDPID) || !control_enables(vcpu, PROC2_ENABLE_RDTSCP))
        return x86_raise(vcpu, VEC_UD);
    reg_set(vcpu, op->dst, op->size, vcpu->tsc_aux);
    return true;
}

SYSTEM_OP(op_rdpmc, trap_rdpmc)
{
    uint64_t value;
    if (vmx_proc(vcpu, PROC_RDPMC_EXITING) && (vcpu->cpl == 0 || (vcpu->cr4 & CR4_PCE)))
        return vmx_exit_now(vcpu, REASON_RDPMC, 0);
    if (!x86_rdpmc(vcpu, (uint32_t)vcpu->gpr[RCX], &value))
        return false;
    set_edx_eax(vcpu, value);
    return true;
}

OP_BODY(op_cpuid)
{
    uint32_t out[4];
    counter_add(&vcpu->counters, COUNTER_trap_cpuid, 1);
    if (vmx_guest(vcpu))
        return vmx_exit_now(vcpu, REASON_CPUID, 0);
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
    if (vmx_proc2(vcpu, seed ? PROC2_RDSEED_EXITING : PROC2_RDRAND_EXITING))
        return vmx_exit_instruction(vcpu, seed ? REASON_RDSEED : REASON_RDRAND, 0, gpr_number(op->dst) << 3 | (op->size / 4u) << 11);
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

SYSTEM_OP(op_hlt, trap_hlt)
{
    if (vmx_proc(vcpu, PROC_HLT_EXITING) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_HLT, 0);
    return x86_hlt(vcpu);
}

SYSTEM_OP(op_wbinvd, trap_wbinvd)
{
    if (vmx_proc2(vcpu, PROC2_WBINVD_EXITING) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_WBINVD, 0);
    return x86_wbinvd(vcpu);
}

SYSTEM_OP(op_invd, trap_wbinvd)
{
    if (vmx_guest(vcpu) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_INVD, 0);
    return x86_wbinvd(vcpu);
}

/* Who sees a hypervisor in CPUID has its hypercalls in root operation, too. */
SYSTEM_OP(op_vmcall, trap_vmcall)
{
    if (vmx_guest(vcpu))
        return vmx_exit_now(vcpu, REASON_VMCALL, 0);
    if (vcpu->vmx.on && !x86_has(vcpu, FEATURE_HYPERVISOR))
        return vmx_vmcall(vcpu);
    return x86_vmcall(vcpu);
}

/* AMD's; here it is the hypercall of guests that took this for an AMD processor, but not in a guest of theirs. */
SYSTEM_OP(op_vmmcall, trap_vmcall)
{
    return vmx_guest(vcpu) ? x86_raise(vcpu, VEC_UD) : x86_vmcall(vcpu);
}

SYSTEM_OP(op_xsetbv, trap_xsetbv)
{
    if (vmx_guest(vcpu) && (vcpu->cr4 & CR4_OSXSAVE) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_XSETBV, 0);
    return x86_xsetbv(vcpu, (uint32_t)vcpu->gpr[RCX], edx_eax(vcpu));
}

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
    if (vmx_proc(vcpu, PROC_INVLPG_EXITING) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_INVLPG, gla);
    return x86_invlpg(vcpu, gla);
}

SYSTEM_OP(op_invpcid, trap_invpcid)
{
    uint64_t descriptor[2];
    if (!x86_has(vcpu, FEATURE_INVPCID) || !control_enables(vcpu, PROC2_ENABLE_INVPCID))
        return x86_raise(vcpu, VEC_UD);
    if (!x86_require_cpl0(vcpu))
        return false;
    if (vmx_proc(vcpu, PROC_INVLPG_EXITING))
        return vmx_exit_instruction(vcpu, REASON_INVPCID, displacement(vcpu, op), memory_info(op) | gpr_number(op->dst) << 28);
    struct slow_value linear = memory_linear(vcpu, op, 16, false);
    if (!linear.ok || !mmu_load_slow(vcpu, linear.value, descriptor, 16, vcpu->mmu->data_class))
        return false;
    return x86_invpcid(vcpu, reg_get(vcpu, op->dst, vcpu->mode == MODE_LONG64 ? 8 : 4), descriptor);
}

SYSTEM_OP(op_monitor, trap_monitor)
{
    uint64_t gla;
    if (vmx_proc(vcpu, PROC_MONITOR_EXITING) && x86_has(vcpu, FEATURE_MONITOR) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_MONITOR, 0);
    if (!x86_linear(vcpu, op->seg, vcpu->gpr[RAX] & size_mask(op->address_size), 1, false, &gla))
        return false;
    return x86_monitor(vcpu, gla, (uint32_t)vcpu->gpr[RCX], (uint32_t)vcpu->gpr[RDX]);
}

SYSTEM_OP(op_mwait, trap_mwait)
{
    if (vmx_proc(vcpu, PROC_MWAIT_EXITING) && x86_has(vcpu, FEATURE_MONITOR) && vcpu->cpl == 0)
        return vmx_exit_now(vcpu, REASON_MWAIT, vcpu->monitor_gpa != ~0ull);
    return x86_mwait(vcpu, (uint32_t)vcpu->gpr[RAX], (uint32_t)vcpu->gpr[RCX]);
}

struct block *op_undefined(struct vcpu *vcpu, const struct op *op) { return leave_raise(vcpu, op, VEC_UD); }
struct block *op_too_long(struct vcpu *vcpu, const struct op *op) { return leave_raise(vcpu, op, VEC_GP); }
