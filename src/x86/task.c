/*
 * Hardware task switches (SDM3 §8.2 "Task Management Data Structures", §8.3 "Task Switching", §8.4 "Task Linking").
 *
 * Up to the point where the new TSS has been read and the old one written, a fault belongs to the old task and nothing has
 * changed. From there on the new task runs: its registers are loaded first, then its segment descriptors are checked one
 * by one, and a fault in them is the new task's first event (table 7-1, "Exception Conditions Checked During a Task Switch").
 */
#include "vmx/vmx.h"
#include "x86/descriptor.h"

/* SDM3 figures 7-2 and 7-10. */
struct tss_layout {
    unsigned size, min_limit;           /* of one field; smallest valid limit of the TSS */
    unsigned cr3;                       /* 0: none */
    unsigned eip, eflags, gpr, segments, segment_count, ldt, trap;
    unsigned save_end;                  /* the processor writes from eip up to here */
};

static const struct tss_layout layout16 = {
    .size = 2, .min_limit = 0x2B, .eip = 0x0E, .eflags = 0x10, .gpr = 0x12, .segments = 0x22, .segment_count = 4,
    .ldt = 0x2A, .save_end = 0x2A,
};
static const struct tss_layout layout32 = {
    .size = 4, .min_limit = 0x67, .cr3 = 0x1C, .eip = 0x20, .eflags = 0x24, .gpr = 0x28, .segments = 0x48, .segment_count = 6,
    .ldt = 0x60, .trap = 0x64, .save_end = 0x60,
};

struct task_state {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t selector[SEG_COUNT], ldt;
    bool trap;
};

static const struct tss_layout *layout_of(uint32_t attr)
{
    return attr & 8 ? &layout32 : &layout16;
}

/* --- the TSS in memory --- */

static bool read_field(struct vcpu *vcpu, uint64_t tss, unsigned offset, unsigned size, uint32_t *out)
{
    uint64_t value;

    if (!mmu_load(vcpu, (uint32_t)(tss + offset), size, mmu_implicit(vcpu), &value))
        return false;
    *out = value;
    return true;
}

static bool write_field(struct vcpu *vcpu, uint64_t tss, unsigned offset, unsigned size, uint32_t value)
{
    return mmu_store(vcpu, (uint32_t)(tss + offset), size, mmu_implicit(vcpu), value);
}

static bool read_state(struct vcpu *vcpu, uint64_t tss, const struct tss_layout *layout, struct task_state *state)
{
    uint32_t value = 0;

    *state = (struct task_state){ .trap = false };
    if (layout->cr3 && !read_field(vcpu, tss, layout->cr3, 4, &state->cr3))
        return false;
    if (!read_field(vcpu, tss, layout->eip, layout->size, &state->eip) ||
        !read_field(vcpu, tss, layout->eflags, layout->size, &state->eflags))
        return false;
    for (unsigned i = 0; i < 8; i++)
        if (!read_field(vcpu, tss, layout->gpr + i * layout->size, layout->size, &state->gpr[i]))
            return false;
    for (unsigned i = 0; i < layout->segment_count; i++) {
        if (!read_field(vcpu, tss, layout->segments + i * layout->size, 2, &value))
            return false;
        state->selector[i] = value;
    }
    if (!read_field(vcpu, tss, layout->ldt, 2, &value))
        return false;
    state->ldt = value;
    if (layout->trap && !read_field(vcpu, tss, layout->trap, 2, &value))
        return false;
    state->trap = layout->trap && (value & 1);
    return true;
}

static bool save_state(struct vcpu *vcpu, const struct tss_layout *layout, const struct task_transfer *transfer)
{
    uint64_t tss = vcpu->tr.base, flags = transfer->rflags;

    if (transfer->source == TASK_IRET)
        flags &= ~(uint64_t)RFLAGS_NT;
    if (!mmu_probe(vcpu, (uint32_t)(tss + layout->eip), layout->save_end - layout->eip, true, mmu_implicit(vcpu)))
        return false;
    if (!write_field(vcpu, tss, layout->eip, layout->size, transfer->return_rip) ||
        !write_field(vcpu, tss, layout->eflags, layout->size, flags))
        return false;
    for (unsigned i = 0; i < 8; i++)
        if (!write_field(vcpu, tss, layout->gpr + i * layout->size, layout->size, vcpu->gpr[i]))
            return false;
    for (unsigned i = 0; i < layout->segment_count; i++)
        if (!write_field(vcpu, tss, layout->segments + i * layout->size, 2, vcpu->seg[i].selector))
            return false;
    return true;
}

/* --- checks before the switch: SDM3 §8.3, steps 3 and 4 --- */

static bool read_new_tss(struct vcpu *vcpu, const struct task_transfer *transfer, struct descriptor *d)
{
    bool back = transfer->source == TASK_IRET;
    uint8_t vector = back ? VEC_TS : VEC_GP;
    uint16_t selector = transfer->tss_selector;
    uint32_t error = selector_error(selector, transfer->ext);
    unsigned busy = back ? 2 : 0;

    if (selector_is_null(selector) || (selector & SELECTOR_TI))
        return x86_raise_error(vcpu, vector, error);
    if (!descriptor_read(vcpu, selector, vector, transfer->ext, d))
        return false;
    if (!descriptor_is_system(d) || (descriptor_type(d) & 7) != (SYS_TSS16 | busy))
        return x86_raise_error(vcpu, vector, error);
    if (!descriptor_present(d))
        return x86_raise_error(vcpu, VEC_NP, error);
    if (descriptor_limit(d) < layout_of(descriptor_attr(d))->min_limit)
        return x86_raise_error(vcpu, VEC_TS, error);
    return true;
}

/* --- the busy bits and the link: steps 6 to 10 --- */

static bool clear_old_busy(struct vcpu *vcpu)
{
    struct descriptor old = { .selector = vcpu->tr.selector };

    if (!descriptor_locate(vcpu, old.selector, 8, &old.gla))
        return true;
    return mmu_load(vcpu, old.gla, 8, mmu_implicit(vcpu), &old.low) && descriptor_clear_type_bits(vcpu, &old, 2);
}

static bool link_tasks(struct vcpu *vcpu, const struct task_transfer *transfer, struct descriptor *new_tss)
{
    bool nested = transfer->source == TASK_CALL || transfer->source == TASK_GATE;

    if (nested && !write_field(vcpu, descriptor_base(new_tss), 0, 2, vcpu->tr.selector))
        return false;
    if (!nested && !clear_old_busy(vcpu))
        return false;
    return transfer->source == TASK_IRET || descriptor_set_type_bits(vcpu, new_tss, 2);
}

/* --- loading the new task: step 12 --- */

static bool load_cr3(struct vcpu *vcpu, uint32_t cr3)
{
    if (!(vcpu->cr0 & CR0_PG))
        return true;
    if ((vcpu->cr4 & CR4_PAE) && !mmu_load_pdptes(vcpu, cr3))
        return x86_raise_error(vcpu, VEC_TS, selector_error(vcpu->tr.selector, 0));
    vcpu->cr3 = cr3;
    mmu_load_cr3(vcpu, false);
    return true;
}

static void load_registers(struct vcpu *vcpu, const struct tss_layout *layout, const struct task_state *state, bool nested)
{
    enum { LOADED = RFLAGS_STATUS | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM |
                    RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID };
    uint64_t kept = layout->size == 2 ? 0xFFFF0000 : 0;

    vcpu->rip = state->eip;
    vcpu->rflags = (state->eflags & LOADED) | RFLAGS_FIXED | (nested ? RFLAGS_NT : 0);
    for (unsigned i = 0; i < 8; i++)
        vcpu->gpr[i] = (vcpu->gpr[i] & kept) | state->gpr[i];
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->seg[i] = segment_null(state->selector[i], 0);
    vcpu->ldtr = segment_null(state->ldt, 0);
}

static bool load_ldt(struct vcpu *vcpu, uint16_t selector, uint32_t ext)
{
    uint32_t error = selector_error(selector, ext);
    struct descriptor d;

    if (selector_is_null(selector))
        return true;
    if (selector & SELECTOR_TI)
        return x86_raise_error(vcpu, VEC_TS, error);
    if (!descriptor_read(vcpu, selector, VEC_TS, ext, &d))
        return false;
    if (!descriptor_is_system(&d) || descriptor_type(&d) != SYS_LDT || !descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_TS, error);
    segment_from_descriptor(&vcpu->ldtr, &d, selector);
    return true;
}

static bool load_code(struct vcpu *vcpu, uint16_t selector, uint32_t ext)
{
    uint32_t error = selector_error(selector, ext);
    unsigned rpl = selector & SELECTOR_RPL;
    struct descriptor d;

    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_TS, error);
    if (!descriptor_read(vcpu, selector, VEC_TS, ext, &d))
        return false;
    if (!descriptor_is_code(&d) || (descriptor_is_conforming(&d) ? descriptor_dpl(&d) > rpl : descriptor_dpl(&d) != rpl))
        return x86_raise_error(vcpu, VEC_TS, error);
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_NP, error);
    if (!descriptor_set_accessed(vcpu, &d))
        return false;
    segment_from_descriptor(&vcpu->seg[CS], &d, selector);
    return true;
}

static bool load_stack(struct vcpu *vcpu, uint16_t selector, uint32_t ext)
{
    uint32_t error = selector_error(selector, ext);
    struct descriptor d;

    if (selector_is_null(selector))
        return x86_raise_error(vcpu, VEC_TS, error);
    if (!descriptor_read(vcpu, selector, VEC_TS, ext, &d))
        return false;
    if (!descriptor_is_writable_data(&d) || descriptor_dpl(&d) != vcpu->cpl || (selector & SELECTOR_RPL) != vcpu->cpl)
        return x86_raise_error(vcpu, VEC_TS, error);
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_SS, error);
    if (!descriptor_set_accessed(vcpu, &d))
        return false;
    segment_from_descriptor(&vcpu->seg[SS], &d, selector);
    return true;
}

static bool load_data(struct vcpu *vcpu, enum seg seg, uint16_t selector, uint32_t ext)
{
    uint32_t error = selector_error(selector, ext);
    struct descriptor d;

    if (selector_is_null(selector))
        return true;
    if (!descriptor_read(vcpu, selector, VEC_TS, ext, &d))
        return false;
    bool code = descriptor_is_code(&d), conforming = code && descriptor_is_conforming(&d);
    if (descriptor_is_system(&d) || (code && !(descriptor_type(&d) & SEG_READABLE)) ||
        (!conforming && (descriptor_dpl(&d) < vcpu->cpl || descriptor_dpl(&d) < (selector & SELECTOR_RPL))))
        return x86_raise_error(vcpu, VEC_TS, error);
    if (!descriptor_present(&d))
        return x86_raise_error(vcpu, VEC_NP, error);
    if (!descriptor_set_accessed(vcpu, &d))
        return false;
    segment_from_descriptor(&vcpu->seg[seg], &d, selector);
    return true;
}

static bool load_segments(struct vcpu *vcpu, const struct task_state *state, uint32_t ext)
{
    static const enum seg data[] = { DS, ES, FS, GS };

    if (vcpu_v86(vcpu)) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            segment_load_v86(&vcpu->seg[i], state->selector[i]);
        commit_privilege(vcpu, 3);
        return load_ldt(vcpu, state->ldt, ext);
    }
    commit_privilege(vcpu, state->selector[CS] & SELECTOR_RPL);
    if (!load_ldt(vcpu, state->ldt, ext) || !load_code(vcpu, state->selector[CS], ext))
        return false;
    commit_privilege(vcpu, vcpu->cpl);
    if (!load_stack(vcpu, state->selector[SS], ext))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
        if (!load_data(vcpu, data[i], state->selector[data[i]], ext))
            return false;
    return true;
}

static bool push_error(struct vcpu *vcpu, const struct tss_layout *layout, const struct task_transfer *transfer)
{
    struct stack stack = stack_present(vcpu, transfer->ext);

    if (!transfer->has_error)
        return true;
    if (!stack_push(vcpu, &stack, layout->size, transfer->error))
        return false;
    stack_commit(vcpu, &stack);
    return true;
}

/* SDM3 §26.4.2 "Treatment of Task Switches", table 28-2: a VT-x guest never gets through with one. */
static bool exit_for_task_switch(struct vcpu *vcpu, const struct task_transfer *transfer)
{
    static const uint8_t sources[] = { [TASK_CALL] = 0, [TASK_IRET] = 1, [TASK_JMP] = 2, [TASK_GATE] = 3 };
    vcpu->rflags |= transfer->rflags & RFLAGS_RF;       /* §28.3.3: what the old task would have been left with */
    return vmx_exit_now(vcpu, REASON_TASK_SWITCH, transfer->tss_selector | (uint64_t)sources[transfer->source] << 30);
}

bool task_switch(struct vcpu *vcpu, const struct task_transfer *transfer)
{
    const struct tss_layout *old_layout = layout_of(vcpu->tr.attr), *new_layout;
    bool nested = transfer->source == TASK_CALL || transfer->source == TASK_GATE;
    struct task_state state;
    struct descriptor d;

    if (!read_new_tss(vcpu, transfer, &d))
        return false;
    if (vmx_guest(vcpu))
        return exit_for_task_switch(vcpu, transfer);
    new_layout = layout_of(descriptor_attr(&d));
    if (!read_state(vcpu, descriptor_base(&d), new_layout, &state) || !save_state(vcpu, old_layout, transfer) ||
        !link_tasks(vcpu, transfer, &d))
        return false;

    counter_add(&vcpu->counters, COUNTER_task_switches, 1);
    segment_from_descriptor(&vcpu->tr, &d, transfer->tss_selector);
    vcpu->tr.attr |= 2;
    vcpu->cr0 |= CR0_TS;
    load_registers(vcpu, new_layout, &state, nested);
    vcpu->dr7 &= ~0x155ull;             /* L0-L3 and LE are the old task's (SDM3 §18.2.4) */
    mmu_mode_changed(vcpu);
    if (new_layout->cr3 && !load_cr3(vcpu, state.cr3))
        return false;
    if (!load_segments(vcpu, &state, transfer->ext) || !push_error(vcpu, new_layout, transfer) ||
        !check_code_offset(vcpu, &vcpu->seg[CS], vcpu->rip, transfer->ext))
        return false;
    if (state.trap)
        vcpu->pending_debug |= DR6_BT;
    x86_interrupts_unblocked(vcpu);
    return true;
}

bool x86_task_switch(struct vcpu *vcpu, uint16_t tss_selector, enum task_source source, uint64_t next_rip, bool has_error,
                     uint32_t error)
{
    return task_switch(vcpu, &(struct task_transfer){
        .tss_selector = tss_selector, .source = source, .return_rip = next_rip, .rflags = vcpu->rflags,
        .has_error = has_error, .error = error,
    });
}
