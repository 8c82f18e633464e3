/* THE loop of a vCPU, and the order in which it looks at events. */
#ifndef DOPPEL_VCPU_LOOP_H
#define DOPPEL_VCPU_LOOP_H

#include "vcpu/vcpu.h"

struct error;

/* Runs on the vCPU's thread until REQUEST_EXIT. */
void vcpu_loop(struct vcpu *vcpu);

/* The vCPU's thread, or a test with no thread: events that are due, then at most `budget` instructions. */
void vcpu_step(struct vcpu *vcpu, uint64_t budget);

/*
 * Delivers the most urgent event that can be taken now: INIT, SIPI, NMI, interrupt (SDM3 §6.9 "Priority Among Concurrent
 * Events"; faults and traps of the last instruction were delivered when it ended). Returns true if the vCPU must run
 * exactly one instruction before it is asked again, because a shadow holds an interrupt back.
 */
bool vcpu_take_events(struct vcpu *vcpu);
/* After that instruction: what was held back is asked for again. */
void vcpu_ask_again(struct vcpu *vcpu);

/* Can this vCPU have the engine on this host? False: err tells why not. */
bool vcpu_engine_available(const struct vcpu *vcpu, const struct engine *engine, struct error *err);
/* Switches the engine; the vCPU stands at a block border, on its thread or stopped. False: the engine refused. */
bool vcpu_set_engine(struct vcpu *vcpu, const struct engine *engine);

#endif
