/*
 * What an engine is: a way to make a vCPU's state advance (DESIGN D4). The loop (vcpu/loop.c) handles requests, delivers
 * events and sleeps; an engine only runs instructions.
 */
#ifndef DOPPEL_ENGINE_ENGINE_H
#define DOPPEL_ENGINE_ENGINE_H

#include <stdio.h>

#include "vcpu/vcpu.h"

/* Why `run` came back. */
enum run_result {
    RUN_REQUEST,        /* vcpu->request is not zero, or the budget is used up */
    RUN_EVENT,          /* vcpu->pending holds a fault, trap or software interrupt to deliver; rip is as it wants. Without a budget an
                           engine may deliver a fault or trap itself and go on. */
    RUN_IDLE,           /* vcpu->activity is no longer ACTIVITY_ACTIVE (HLT, MWAIT, shutdown) */
};

struct error;

struct engine {
    const char *name;
    const char *text;                                           /* one line for help */
    /* Will `run` itself have interrupts and NMIs delivered, so that the loop only ends HLT for them? NULL: never. */
    bool (*takes_events)(struct vcpu *vcpu);
    /* Will `run` without a budget itself wait until the activity is ACTIVE again? NULL: never. */
    bool (*waits)(const struct vcpu *vcpu);
    /* On the vCPU's thread: it is going to stand still, or ends. What of the machine is elsewhere comes back with the last that does. NULL: nothing is. */
    void (*rest)(struct vcpu *vcpu);
    /* Can this vCPU, which has no engine of that kind yet, have it on this host? False: err tells why not. NULL: always. */
    bool (*available)(const struct vcpu *vcpu, struct error *err);
    bool (*attach)(struct vcpu *vcpu);                          /* makes vcpu->engine_state; the state may have any value */
    void (*detach)(struct vcpu *vcpu);
    /*
     * Runs until one of the above, at most `budget` instructions (UINT64_MAX: no limit); COUNTER_instructions says how many it was.
     * Both are exact, and the same for all engines: an instruction that faults is not counted, a repeated string
     * instruction once, when it is complete (with a budget of 1 `run` comes back after an element, with a larger one
     * after some thousands, so that a budget bounds the time, too). On return
     * all architectural state is in the vCPU. A SHADOW_STI/MOV_SS blocking in vcpu->shadow lasts one instruction: run
     * clears it after that. TF, debug traps and RF are honoured here.
     */
    enum run_result (*run)(struct vcpu *vcpu, uint64_t budget);
    /* On the vCPU's thread: decoded or translated code of these guest-physical bytes must not run again. */
    void (*code_written)(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
    /* On the vCPU's thread: which instructions ran slower than their neighbours, and how often. NULL: the engine knows no such. */
    void (*print_sites)(const struct vcpu *vcpu, FILE *out);
};

extern const struct engine engine_interp, engine_dbt, engine_kvm;

/* By name; NULL if unknown. */
const struct engine *engine_find(const char *name);
/* The same; NULL: err names those that there are. */
const struct engine *engine_named(const char *name, struct error *err);

#endif
