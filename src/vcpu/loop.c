/*
 * THE loop. Requests from other threads, then events, then instructions; a vCPU with nothing to do sleeps.
 *
 *   request?  -> posted work, pause, exit, INIT, SIPI, NMI, interrupt
 *   active?   -> engine runs until the next request, fault or halt
 *   fault?    -> delivered through the rules in x86/
 */
#include "vcpu/loop.h"

#include <time.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "mmu/mmu.h"
#include "vcpu/thread.h"
#include "vcpu/work.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

/* What wakes a processor, by its activity (SDM3 §25.4.2): a halted one by events, one that waits for SIPI by INIT or SIPI. */
enum {
    REQUESTS_OF_MACHINE = REQUEST_WORK | REQUEST_PAUSE | REQUEST_EXIT,
    REQUESTS_WAIT_SIPI = REQUESTS_OF_MACHINE | REQUEST_INIT | REQUEST_SIPI | REQUEST_VMX,
    REQUESTS_HALTED = REQUESTS_WAIT_SIPI | REQUEST_NMI | REQUEST_INTERRUPT,
};

static uint32_t wake_mask(const struct vcpu *vcpu)
{
    bool events_count = vcpu->activity == ACTIVITY_HLT || (vcpu->activity == ACTIVITY_SHUTDOWN && vmx_guest(vcpu));
    return events_count ? REQUESTS_HALTED : REQUESTS_WAIT_SIPI;
}

static void rest(struct vcpu *vcpu)
{
    if (vcpu->engine->rest)
        vcpu->engine->rest(vcpu);
}

/* Stands still until the pause ends; serves posted work meanwhile, so that the state can be read and stepped. */
static void stand_still(struct vcpu *vcpu)
{
    rest(vcpu);
    vcpu->stop_ops->stopped(vcpu->system_owner, vcpu);
    while ((atomic_load(&vcpu->request) & (REQUEST_PAUSE | REQUEST_EXIT)) == REQUEST_PAUSE) {
        vcpu_sleep_paused(vcpu);
        vcpu_serve_work(vcpu);
    }
    vcpu->stop_ops->resumed(vcpu->system_owner, vcpu);
}

static void run_engine(struct vcpu *vcpu, uint64_t budget)
{
    if (vcpu->engine->run(vcpu, budget) == RUN_EVENT) {
        struct event event = vcpu->pending;
        if (event.kind == EVENT_STEP)
            vcpu->vmx.step_wanted = true;
        if (event.kind != EVENT_VM_EXIT)
            vcpu->pending.kind = EVENT_NONE;
        if (event.kind != EVENT_STEP)
            x86_deliver_event(vcpu, &event);
    }
}

/* One instruction of a VT-x guest. A request may have come before it; then nothing has happened yet. */
static void step_guest(struct vcpu *vcpu)
{
    uint64_t before = counter_get(&vcpu->counters, COUNTER_instructions), count = vcpu->gpr[RCX];
    vcpu->vmx.stepping = true;
    run_engine(vcpu, 1);
    vcpu->vmx.stepping = false;
    bool done = counter_get(&vcpu->counters, COUNTER_instructions) != before, element_done = vcpu->gpr[RCX] != count;
    if (vmx_guest(vcpu) && (done || element_done))
        vmx_stepped(vcpu);
}

static bool engine_waits(const struct vcpu *vcpu) { return vcpu->engine->waits && vcpu->engine->waits(vcpu); }

void vcpu_step(struct vcpu *vcpu, uint64_t budget)
{
    mmu_border(vcpu);
    bool one_instruction = vcpu_take_events(vcpu);
    if (vcpu->activity != ACTIVITY_ACTIVE && (budget != UINT64_MAX || !engine_waits(vcpu)))
        return;
    if (unlikely(vmx_steps(vcpu)))
        step_guest(vcpu);
    else
        run_engine(vcpu, one_instruction ? 1 : budget);
    if (one_instruction)
        vcpu_ask_again(vcpu);
}

/* Counted time: up to the next deadline, or to where somebody wants to look. */
static void run_counted(struct vcpu *vcpu)
{
    struct vcpu_checkpoint *checkpoint = vcpu->checkpoint;
    atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_CLOCK);
    uint64_t budget = clock_fire_due(vcpu->clock), done = counter_get(&vcpu->counters, COUNTER_instructions);
    if (checkpoint)
        budget = min_u64(budget, checkpoint->next - done);
    vcpu_step(vcpu, budget);
    done = counter_get(&vcpu->counters, COUNTER_instructions);
    clock_count(vcpu->clock, done);
    if (checkpoint && done >= checkpoint->next)
        checkpoint->reached(vcpu, checkpoint);
}

static void sleep_until_event(struct vcpu *vcpu)
{
    uint32_t mask = wake_mask(vcpu);
    counter_add(&vcpu->counters, COUNTER_halts, 1);
    vcpu->stop_ops->idle(vcpu->system_owner, vcpu);
    if (vcpu->counted && !(atomic_load(&vcpu->request) & mask) && clock_skip(vcpu->clock))
        clock_fire_due(vcpu->clock);
    else
        vcpu_sleep(vcpu, mask | REQUEST_CLOCK);
}

static unsigned long host_us(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (unsigned long)now.tv_sec * 1000000 + (unsigned long)now.tv_nsec / 1000;
}

/* For who wants to know how long the program takes to get there: bench/restore.py. */
static void first_step(struct vcpu *vcpu)
{
    vcpu_step(vcpu, 1);
    trace(vcpu->log, cpu_start, "vCPU %u has executed its first instruction at %lu us of CLOCK_MONOTONIC, after %lu us of processor time",
          vcpu->index, host_us(CLOCK_MONOTONIC), host_us(CLOCK_PROCESS_CPUTIME_ID));
}

void vcpu_loop(struct vcpu *vcpu)
{
    bool first = trace_on(vcpu->log, TRACE_cpu_start);
    for (;;) {
        uint32_t request = atomic_load(&vcpu->request);
        if (request & REQUEST_EXIT)
            break;
        if (request & REQUEST_WORK)
            vcpu_serve_work(vcpu);
        if (request & REQUEST_PAUSE) {
            stand_still(vcpu);
            continue;
        }
        if (vcpu->counted)
            run_counted(vcpu);
        else if (unlikely(first))
            first_step(vcpu);
        else
            vcpu_step(vcpu, UINT64_MAX);
        first = false;
        if (vcpu->activity != ACTIVITY_ACTIVE && !engine_waits(vcpu))
            sleep_until_event(vcpu);
    }
    rest(vcpu);
}

bool vcpu_engine_available(const struct vcpu *vcpu, const struct engine *engine, struct error *err)
{
    return !engine->available || engine->available(vcpu, err);
}

bool vcpu_set_engine(struct vcpu *vcpu, const struct engine *engine)
{
    if (vcpu->engine)
        vcpu->engine->detach(vcpu);
    vcpu->engine = engine;
    return engine->attach(vcpu);
}
