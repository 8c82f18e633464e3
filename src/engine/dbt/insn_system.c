/*
 * What kernels do all the time with the processor's own state: interrupt flag, AC, GS base, flags on the stack, selectors. Only in supervisor
 * code, which runs at CPL 0 here, so that nothing of this can fault; none of it exits from a VT-x guest. Whatever may be due behind
 * it (an interrupt that waited) is for the instruction's site. And RDTSC, of which run.c says when it is not for the site.
 */
#include "engine/dbt/plan.h"

/* MOV from a segment register into a general one, of which it writes all. */
static bool reads_selector(const struct planned *p)
{
    return p->z.opcode == 0x8C && p->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && plan_is_gpr(&p->operand[0]) && p->operand[0].size >= 32;
}

bool plan_system(const struct work *w, const struct planned *p)
{
    if (p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        return false;
    if (p->z.mnemonic == ZYDIS_MNEMONIC_RDTSC)
        return true;
    if (p->z.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
        return x86_has(w->vcpu, FEATURE_RDTSCP);
    if (w->user)
        return false;
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI: case ZYDIS_MNEMONIC_PUSHFD: case ZYDIS_MNEMONIC_PUSHFQ:
        return true;
    case ZYDIS_MNEMONIC_CLAC: case ZYDIS_MNEMONIC_STAC:
        return x86_has(w->vcpu, FEATURE_SMAP);
    case ZYDIS_MNEMONIC_SWAPGS: case ZYDIS_MNEMONIC_RDFSBASE: case ZYDIS_MNEMONIC_RDGSBASE:
        return !w->narrow;
    case ZYDIS_MNEMONIC_MOV:
        return reads_selector(p);
    default:
        return false;
    }
}

static struct rm segment_base(enum seg seg)
{
    return rm_vcpu(offsetof(struct vcpu, seg) + seg * sizeof(struct segment) + offsetof(struct segment, base));
}

/* No flags are touched. */
static void count(struct work *w, enum counter counter)
{
    struct rm place = rm_vcpu(offsetof(struct vcpu, counters.value) + counter * sizeof(uint64_t));
    emit_load(&w->e, S1, place);
    emit_lea(&w->e, S1, rm_mem(S1, 1));
    emit_store(&w->e, place, S1);
}

/* AND or OR of RFLAGS in the vCPU, whose status flags mean nothing here. */
static void change_rflags(struct work *w, unsigned alu, uint32_t value)
{
    emit_insn(&w->e, 0, 0x81, alu, rm_vcpu(offsetof(struct vcpu, rflags)), 4);
    emit32(&w->e, value);
}

/* ZF = the bit is 0. */
static void test_bit(struct work *w, size_t field, unsigned bit)
{
    emit_insn(&w->e, 0, 0xF6, 0, rm_vcpu(field + bit / 8), 1);
    emit8(&w->e, 1u << bit % 8);
}

/* ZF = the byte is 0. */
static void test_byte(struct work *w, size_t field)
{
    emit_insn(&w->e, 0, 0x80, ALU_CMP, rm_vcpu(field), 1);
    emit8(&w->e, 0);
}

static void translate_cli(struct work *w)
{
    lose_host_flags(w);
    change_rflags(w, ALU_AND, ~(uint32_t)RFLAGS_IF);
    count(w, COUNTER_trap_cli);
}

/* It ends the trace, so that the next one looks at requests; if there is one already, interp/run.c finds that the shadow holds. */
static void translate_sti(struct work *w)
{
    if (w->i + 1 != w->count) {
        emit_site(w);
        return;
    }
    lose_host_flags(w);
    test_byte(w, offsetof(struct vcpu, interrupt_held));
    emit_slow(w, CC_NZ);
    test_byte(w, offsetof(struct vcpu, vmx.awaits));
    emit_slow(w, CC_NZ);
    test_bit(w, offsetof(struct vcpu, rflags), __builtin_ctz(RFLAGS_IF));
    uint8_t *was_set = emit_jcc(&w->e, CC_NZ, emit_here(&w->e));
    change_rflags(w, ALU_OR, RFLAGS_IF);
    emit_load(&w->e, S1, rm_frame(FRAME_LEFT));
    emit_store(&w->e, rm_data(&w->dbt->interp.sti_left), S1);
    emit_target(&w->e, was_set, emit_here(&w->e));
    count(w, COUNTER_trap_sti);
}

static void translate_swapgs(struct work *w)
{
    struct rm base = segment_base(GS), other = rm_vcpu(offsetof(struct vcpu, kernel_gs_base));
    count(w, COUNTER_trap_swapgs);
    emit_load(&w->e, S1, base);
    emit_load(&w->e, S2, other);
    emit_store(&w->e, base, S2);
    emit_store(&w->e, other, S1);
}

/* As mmu_privilege_changed. Without CR4.SMAP AC picks no table; nobody runs so, and the site does it. */
static void translate_ac(struct work *w, bool set)
{
    lose_host_flags(w);
    test_bit(w, offsetof(struct vcpu, cr4), __builtin_ctz(CR4_SMAP));
    emit_slow(w, CC_Z);
    change_rflags(w, set ? ALU_OR : ALU_AND, set ? RFLAGS_AC : ~(uint32_t)RFLAGS_AC);
    emit_load(&w->e, S1, rm_vcpu(offsetof(struct vcpu, mmu)));
    emit_insn(&w->e, 0, 0xC7, 0, rm_mem(S1, offsetof(struct mmu, data_class)), 4);
    emit32(&w->e, set ? MMU_SUPERVISOR : MMU_SUPERVISOR_SMAP);
    emit_load(&w->e, S1, rm_vcpu(offsetof(struct vcpu, tlb_code)));     /* MMU_SUPERVISOR's */
    if (!set)
        emit_lea(&w->e, S1, rm_mem(S1, sizeof(struct tlb_table)));
    emit_store(&w->e, rm_vcpu(offsetof(struct vcpu, tlb_data)), S1);
    emit_store(&w->e, rm_frame(FRAME_TLB), S1);
}
static_assert(MMU_SUPERVISOR_SMAP == MMU_SUPERVISOR + 1 && sizeof(enum mmu_class) == 4, "the table behind that of MMU_SUPERVISOR");

/* The image is RFLAGS but VM and RF, with the status flags from M. */
static void translate_pushf(struct work *w)
{
    struct emitter *e = &w->e;
    want_flags_in_memory(w);
    struct rm rm = emit_stack(w, RSP, -(int32_t)word_size(w), MMU_WRITE);
    unsigned image = scratch_beside(&rm, 0), overflow = scratch_beside(&rm, 1);
    w->in_host = false;
    registers_written(w);
    emit_insn(e, 0, 0x8B, image, rm_data(&w->dbt->flags), 0);
    emit_move(e, overflow, image);
    emit_insn(e, 0, 0xC1, 5, rm_reg(image), 1);         /* shr: the low byte of RFLAGS, bit 1 set */
    emit8(e, 8);
    emit_alu_constant(e, ALU_AND, image, 0xFF);
    emit_alu_constant(e, ALU_AND, overflow, 1);
    emit_insn(e, 0, 0xC1, 4, rm_reg(overflow), 1);      /* shl */
    emit8(e, __builtin_ctz(RFLAGS_OF));
    emit_insn(e, EMIT_W, 0x0B, image, rm_reg(overflow), 0);
    emit_load(e, overflow, rm_vcpu(offsetof(struct vcpu, rflags)));
    emit_alu_constant(e, ALU_AND, overflow, ~(RFLAGS_STATUS | RFLAGS_VM | RFLAGS_RF));
    emit_insn(e, EMIT_W, 0x0B, image, rm_reg(overflow), 0);
    emit_store_word(w, rm, image);
    emit_move_rsp(w, -(int32_t)word_size(w));
    count(w, COUNTER_trap_pushf);
}

static void translate_read_base(struct work *w, const struct planned *p, enum seg seg)
{
    lose_host_flags(w);
    test_bit(w, offsetof(struct vcpu, cr4), __builtin_ctz(CR4_FSGSBASE));
    emit_slow(w, CC_Z);
    registers_written(w);
    emit_load(&w->e, S1, segment_base(seg));
    if (p->operand[0].size == 32)
        emit_insn(&w->e, 0, 0x8B, S1, rm_reg(S1), 0);
    emit_set(w, plan_gpr(&p->operand[0]), S1);
}

static void translate_read_selector(struct work *w, const struct planned *p)
{
    size_t selector = offsetof(struct vcpu, seg) + p->z.raw.modrm.reg * sizeof(struct segment) + offsetof(struct segment, selector);
    registers_written(w);
    emit_insn(&w->e, EMIT_0F, 0xB7, S1, rm_vcpu(selector), 0);          /* movzx */
    emit_set(w, plan_gpr(&p->operand[0]), S1);
}

/* S1 = RCX, which is tested; no flags are touched, so that it is the same with windows. */
static void leave_unless_direct(struct work *w)
{
    struct emitter *e = &w->e;
    emit_move(e, S1, RCX);
    emit_insn(e, 0, 0x8B, RCX, rm_data(&w->dbt->tsc_by_site), 0);
    emit8(e, 0xE3);                                     /* jrcxz over the way out */
    uint8_t *direct = e->at++;
    emit_move(e, RCX, S1);
    emit_slow_jump(w);
    *direct = (uint8_t)(e->at - (direct + 1));
    emit_move(e, RCX, S1);
}

/*
 * LFENCE for RDTSC, too, as in clock.c: what is serializing for the guest (CPUID, IRET, an interrupt, entry and exit: SDM3 §9.3) is not
 * for the host, which would read its TSC before what stands ahead of that.
 */
static void translate_tsc(struct work *w, bool aux)
{
    static const uint8_t lfence[] = { 0x0F, 0xAE, 0xE8 }, rdtsc[] = { 0x0F, 0x31 };
    struct emitter *e = &w->e;
    enum { HALF = 32 };
    w->addend_of = NO_ADDEND;
    leave_unless_direct(w);
    registers_written(w);
    emit_bytes(e, lfence, sizeof(lfence));
    emit_bytes(e, rdtsc, sizeof(rdtsc));
    emit_rotate(e, RDX, RDX, HALF);
    emit_lea(e, RAX, (struct rm){ .kind = RM_MEMORY, .base = RAX, .index = RDX });
    emit_load(e, RDX, rm_data(&w->dbt->tsc_delta));
    emit_lea(e, RAX, (struct rm){ .kind = RM_MEMORY, .base = RAX, .index = RDX });
    emit_rotate(e, RDX, RAX, HALF);
    emit_insn(e, 0, 0x8B, RDX, rm_reg(RDX), 0);
    emit_insn(e, 0, 0x8B, RAX, rm_reg(RAX), 0);
    if (aux)
        emit_insn(e, 0, 0x8B, RCX, rm_vcpu(offsetof(struct vcpu, tsc_aux)), 0);
    count(w, COUNTER_trap_rdtsc);
}

void translate_system(struct work *w, const struct planned *p)
{
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLI: translate_cli(w); break;
    case ZYDIS_MNEMONIC_STI: translate_sti(w); break;
    case ZYDIS_MNEMONIC_SWAPGS: translate_swapgs(w); break;
    case ZYDIS_MNEMONIC_CLAC: translate_ac(w, false); break;
    case ZYDIS_MNEMONIC_STAC: translate_ac(w, true); break;
    case ZYDIS_MNEMONIC_PUSHFD: case ZYDIS_MNEMONIC_PUSHFQ: translate_pushf(w); break;
    case ZYDIS_MNEMONIC_RDTSC: translate_tsc(w, false); break;
    case ZYDIS_MNEMONIC_RDTSCP: translate_tsc(w, true); break;
    case ZYDIS_MNEMONIC_MOV: translate_read_selector(w, p); break;
    case ZYDIS_MNEMONIC_RDFSBASE: translate_read_base(w, p, FS); break;
    default: translate_read_base(w, p, GS); break;
    }
}

/* --- BT and its kin with a bit string in memory --- */

bool plan_bit_string(const struct work *w, const struct planned *p)
{
    switch (p->z.mnemonic) {
    case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
        return !w->window && p->memory && plan_is_gpr(&p->operand[1]) && p->operand[1].size >= 32;
    default:
        return false;
    }
}

/* The offset's upper bits have moved the operand, so only the lower ones are left to the host's instruction. */
void translate_bit_string(struct work *w, const struct planned *p)
{
    bool locked = p->z.attributes & ZYDIS_ATTRIB_HAS_LOCK, writes = p->z.mnemonic != ZYDIS_MNEMONIC_BT;
    unsigned size = p->operand[1].size, wide = size == 64 ? EMIT_W : 0;
    struct rm rm = emit_bit_element(w, p->memory, &p->operand[1], writes ? MMU_WRITE : MMU_READ, locked);
    emit_insn(&w->e, 0, 0x8B, S2, rm_reg(emit_get(w, plan_gpr(&p->operand[1]), S2)), 0);
    emit_alu_constant(&w->e, ALU_AND, S2, (int32_t)size - 1);
    want_flags_in_host(w);
    registers_written(w);
    emit_insn(&w->e, EMIT_0F | wide | (locked ? EMIT_LOCK : 0), p->z.opcode, S2, rm, 0);
    flags_written(w);
}
