/*
 * The interpreter's run function: block after block, or one instruction at a time where the architecture wants to look
 * in between (TF, RF, debug registers, the shadows of STI and MOV SS) or somebody does (the instruction log, a small budget).
 */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/interp/bind.h"
#include "engine/interp/block.h"
#include "engine/interp/insn_log.h"
#include "engine/interp/native.h"
#include "vmx/vmx.h"

/* --- leaving a block --- */

/* Instructions of the block from this op on were counted but not run. */
static void uncount_from(struct vcpu *vcpu, const struct op *op)
{
    struct block *block = block_of(op);
    interp_of(vcpu)->left += block->count - (op - block->op);
}

struct block *leave_fault(struct vcpu *vcpu, const struct op *op)
{
    uncount_from(vcpu, op);
    op_at(vcpu, op);
    interp_of(vcpu)->changed = true;
    return NULL;
}

struct block *leave_raise(struct vcpu *vcpu, const struct op *op, uint8_t vector)
{
    x86_raise(vcpu, vector);
    return leave_fault(vcpu, op);
}

struct block *leave_again(struct vcpu *vcpu, const struct op *op)
{
    interp_of(vcpu)->incomplete = true;
    return leave_fault(vcpu, op);
}

struct block *leave_system(struct vcpu *vcpu, const struct op *op, bool done)
{
    interp_of(vcpu)->changed = true;
    if (done)
        vcpu->rip = rip_wrap(vcpu, vcpu->rip + op->length);
    else
        uncount_from(vcpu, op);
    return NULL;
}

struct block *leave_transfer(struct vcpu *vcpu, const struct op *op, bool done)
{
    interp_of(vcpu)->changed = true;
    if (!done)
        uncount_from(vcpu, op);
    return NULL;
}

struct block *op_stale(struct vcpu *vcpu, const struct op *op)
{
    return leave_fault(vcpu, op);
}

/* --- one instruction --- */

enum { SHADOW_ONE = SHADOW_STI | SHADOW_MOV_SS, ELEMENTS_MAX = 4096 };

/*
 * RF only holds back breakpoints on instructions, so where none is armed it need not last until the instruction is done: a repeated
 * string that goes on after a page fault would be stepped element by element.
 */
static void forget_resume_flag(struct vcpu *vcpu)
{
    if (unlikely(vcpu->rflags & RFLAGS_RF) && !x86_debug_armed(vcpu))
        vcpu->rflags &= ~(uint64_t)RFLAGS_RF;
}

static bool must_step(const struct vcpu *vcpu)
{
    return (vcpu->rflags & (RFLAGS_TF | RFLAGS_RF)) || (vcpu->shadow & SHADOW_MOV_SS) || x86_debug_armed(vcpu) ||
           trace_on(vcpu->log, TRACE_cpu_insn);
}

/* The rules that set RF themselves: what they have set stays for the next instruction. */
static bool sets_resume_flag(const struct op *op)
{
    return op->run == op_iret || op->run == op_vmlaunch || op->run == op_vmresume;
}

/* SYSCALL masks TF before the trap would be taken; for all else TF at the start of the instruction counts (SDM3 §18.3.1.4). */
static bool single_step_due(const struct vcpu *vcpu, const struct op *op, uint64_t old_rflags)
{
    if (!(old_rflags & RFLAGS_TF) || op->run == op_int || op->run == op_int3 || op->run == op_int1)
        return false;
    return op->run != op_syscall || (vcpu->rflags & RFLAGS_TF);
}

/* Some VM exits behind the instruction come first, and save the trap as pending (SDM3 §26.5.2, §28.3.4). */
static bool debug_trap_due(const struct vcpu *vcpu)
{
    return vcpu->pending_debug && !(vcpu->shadow & SHADOW_MOV_SS) && !vcpu->vmx.trap &&
           !(vcpu->vmx.stepping && vmx_proc(vcpu, PROC_MONITOR_TRAP_FLAG));
}

static enum run_result raise_debug_trap(struct vcpu *vcpu)
{
    vcpu->pending = (struct event){ .kind = EVENT_TRAP, .vector = VEC_DB, .payload = vcpu->pending_debug };
    vcpu->pending_debug = 0;
    return RUN_EVENT;
}

/* Runs just the first instruction of the block. False: a fault is pending. */
static bool run_one(struct vcpu *vcpu, struct block *block)
{
    struct interp *interp = interp_of(vcpu);
    struct insn_log log;
    bool logged = trace_on(vcpu->log, TRACE_cpu_insn);
    if (logged)
        insn_log_before(&log, vcpu, block);
    if (vcpu->counted)
        clock_count(vcpu->clock, counter_get(&vcpu->counters, COUNTER_instructions) + (uint64_t)(interp->start - interp->left));
    interp->stepping = interp->one || must_step(vcpu);
    interp->incomplete = false;
    interp->left--;
    block->op[0].run(vcpu, &block->op[0]);
    interp->stepping = false;
    interp->link_from = NULL;
    if (logged)
        insn_log_after(&log, vcpu);
    return vcpu->pending.kind == EVENT_NONE;
}

/* true: go on; false: *result says why not. */
static bool step(struct vcpu *vcpu, enum run_result *result)
{
    struct interp *interp = interp_of(vcpu);
    uint64_t old_rflags = vcpu->rflags, gla = vcpu->rip, held_debug = vcpu->pending_debug;
    uint8_t old_shadow = vcpu->shadow & SHADOW_ONE;
    *result = RUN_EVENT;
    if (x86_debug_armed(vcpu) && !(old_shadow & SHADOW_MOV_SS)) {
        if (vcpu->mode != MODE_LONG64)
            gla = (uint32_t)(vcpu->seg[CS].base + vcpu->rip);
        if (!x86_debug_fetch(vcpu, gla))
            return false;
    }
    struct block *block = block_get(vcpu, true);
    if (!block)
        return false;
    struct op op = block->op[0];
    vcpu->shadow &= (uint8_t)~SHADOW_ONE;
    vcpu->vmx.after_mov_ss = old_shadow & SHADOW_MOV_SS;
    bool done = run_one(vcpu, block);
    vcpu->vmx.after_mov_ss = false;
    if (!done) {
        vcpu->shadow |= old_shadow;             /* a VM exit reports it; delivery of an event ends it */
        vcpu->pending_debug = held_debug;       /* by MOV SS: the same */
        return false;
    }
    if (!interp->incomplete && !sets_resume_flag(&op))
        vcpu->rflags &= ~(uint64_t)RFLAGS_RF;
    if (single_step_due(vcpu, &op, old_rflags))
        vcpu->pending_debug |= DR6_BS;
    interp->changed = true;
    return true;
}

/* --- many --- */

/*
 * Remembers the target of a direct branch in the block that made it, if it lies in the same page: the branch stays within a
 * page whose translation cannot change while its code runs, so the next time no look-up is needed.
 */
static void link_blocks(struct interp *interp, struct block *target)
{
    struct block *from = interp->link_from;
    interp->link_from = NULL;
    if (!from || from->stale || !from->linkable || target == interp->scratch)
        return;
    bool same_page = target->gpa2 == BLOCK_DROPPED && (from->gpa ^ target->gpa) < PAGE_SIZE &&
                     from->gpa + interp->link_delta == target->gpa;
    if (same_page && from->key == target->key)
        from->link[interp->link_slot] = target;
}

/* The hot part of block_get: rip is the linear address, the fetch tag and the block are there. */
static inline struct block *find(struct vcpu *vcpu, struct interp *interp)
{
    bool flat = interp->key & KEY_FLAT_CODE;
    uint64_t rip = flat ? (uint32_t)vcpu->rip : vcpu->rip;
    const struct tlb_table *table = vcpu->tlb_code;
    unsigned i = tlb_index(rip);
    if (likely((flat || vcpu->mode == MODE_LONG64) && table->entry[i].tag[MMU_FETCH] == (rip & ~PAGE_MASK))) {
        vcpu->rip = rip;
        uint64_t gpa = (table->info[i] & ~PAGE_MASK) | (rip & PAGE_MASK);
        struct block *block = block_lookup(interp->cache, gpa, interp->key);
        if (likely(block && !block->stale && block->gpa2 == BLOCK_DROPPED))
            return block;
    }
    return block_get(vcpu, false);
}

struct block *interp_next_block(struct vcpu *vcpu, struct interp *interp)
{
    struct block *block = find(vcpu, interp);
    if (block && interp->link_from)
        link_blocks(interp, block);
    return block;
}

void interp_run_blocks(struct vcpu *vcpu, struct interp *interp)
{
    while (!atomic_load_explicit(&vcpu->request, memory_order_relaxed)) {
        struct block *block = find(vcpu, interp);
        if (unlikely(!block)) {
            interp->changed = true;
            return;
        }
        if (interp->link_from)
            link_blocks(interp, block);
        do {
            if (unlikely(interp->left < block->count))
                return;
            interp->left -= block->count;
            block = block->op[0].run(vcpu, block->op);
        } while (block && likely(!atomic_load_explicit(&vcpu->request, memory_order_relaxed)));
        if (unlikely(interp->changed))
            return;
    }
}

/*
 * The shadow of STI holds back nothing but interrupts, and one that waits is a request, with which nobody comes here (the loop gives
 * one instruction then). One that arrives later may as well have arrived after the shadow's end, as long as an instruction was run.
 */
static void take_sti_shadow(struct vcpu *vcpu, struct interp *interp)
{
    if (!(vcpu->shadow & SHADOW_STI))
        return;
    vcpu->shadow &= (uint8_t)~SHADOW_STI;
    interp->sti_left = interp->left;
}

static void run_many(struct vcpu *vcpu, struct interp *interp)
{
    interp->sti_left = -1;
    take_sti_shadow(vcpu, interp);
    vcpu->among_others = vcpu->counted;
    interp->run_blocks(vcpu, interp);
    vcpu->among_others = false;
    if (interp->left == interp->sti_left)
        vcpu->shadow |= SHADOW_STI;
}

/* What run_until looks at, but for the budget, which is large. */
bool interp_goes_on(struct vcpu *vcpu, struct interp *interp)
{
    if (vcpu->pending.kind != EVENT_NONE || vcpu->pending_debug || vcpu->activity != ACTIVITY_ACTIVE || vcpu->alone ||
        atomic_load_explicit(&vcpu->request, memory_order_relaxed))
        return false;
    forget_resume_flag(vcpu);
    if (must_step(vcpu))
        return false;
    interp->key = block_mode_key(vcpu);
    interp->changed = false;
    interp->link_from = NULL;
    take_sti_shadow(vcpu, interp);
    return true;
}

static enum run_result run_until(struct vcpu *vcpu, struct interp *interp)
{
    enum run_result result;
    for (;;) {
        if (vcpu->pending.kind != EVENT_NONE)
            return RUN_EVENT;
        if (unlikely(debug_trap_due(vcpu)))
            return raise_debug_trap(vcpu);
        if (vcpu->activity != ACTIVITY_ACTIVE)
            return RUN_IDLE;
        if (interp->left <= 0 || (interp->incomplete && (interp->one || !interp->elements)) ||
            atomic_load_explicit(&vcpu->request, memory_order_relaxed))
            return RUN_REQUEST;
        interp->key = block_mode_key(vcpu);
        interp->changed = false;
        interp->link_from = NULL;
        forget_resume_flag(vcpu);
        if (must_step(vcpu) || vcpu->alone || interp->left < BLOCK_OPS_MAX) {
            vcpu->alone = false;
            if (!step(vcpu, &result))
                return result;
        } else {
            run_many(vcpu, interp);
        }
    }
}

enum run_result interp_run(struct vcpu *vcpu, uint64_t budget)
{
    struct interp *interp = interp_of(vcpu);
    int64_t start = budget > INT64_MAX ? INT64_MAX : (int64_t)budget;
    interp->left = interp->start = start;
    interp->one = budget == 1;
    interp->elements = budget > INT64_MAX ? INT64_MAX : ELEMENTS_MAX;
    interp->incomplete = false;
    enum run_result result = run_until(vcpu, interp);
    native_sync(vcpu);
    counter_add(&vcpu->counters, COUNTER_instructions, (uint64_t)(start - interp->left));
    return result;
}

/* --- the engine --- */

void interp_fini(struct vcpu *vcpu, struct interp *interp)
{
    block_cache_destroy(interp->cache);
    if (interp->native)
        native_cache_destroy(interp->native);
    free(interp->scratch);
    vcpu->engine_state = NULL;
    vcpu->code_overwritten = NULL;
}

bool interp_init(struct vcpu *vcpu, struct interp *interp)
{
    vcpu->engine_state = interp;
    vcpu->zero = 0;
    interp->run_blocks = interp_run_blocks;
    interp->cache = block_cache_create(vcpu);
    interp->native = native_cache_create();
    interp->scratch = calloc(1, sizeof(struct block) + 3 * sizeof(struct op));
    vcpu->code_overwritten = block_overwritten;
    if (interp->cache && interp->scratch)
        return true;
    interp_fini(vcpu, interp);
    return false;
}

static void interp_detach(struct vcpu *vcpu)
{
    struct interp *interp = vcpu->engine_state;
    if (!interp)
        return;
    interp_fini(vcpu, interp);
    free(interp);
}

static bool interp_attach(struct vcpu *vcpu)
{
    struct interp *interp = calloc(1, sizeof(*interp));
    if (interp && interp_init(vcpu, interp))
        return true;
    free(interp);
    return false;
}

const struct engine engine_interp = {
    .name = "interp",
    .text = "the reference interpreter: one handler for each instruction",
    .attach = interp_attach,
    .detach = interp_detach,
    .run = interp_run,
    .code_written = block_drop,
};
