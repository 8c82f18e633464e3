/* The thread of a vCPU: start, stop, sleep. Any thread but the vCPU's own, unless said otherwise. */
#ifndef DOPPEL_VCPU_THREAD_H
#define DOPPEL_VCPU_THREAD_H

#include "vcpu/vcpu.h"

struct error;

/* Initialises the mutex, the condition and the signal; the state is as memset to 0 otherwise. */
void vcpu_thread_init(struct vcpu *vcpu);
void vcpu_thread_fini(struct vcpu *vcpu);
/* Starts the thread (named vcpuN), which runs vcpu_loop until REQUEST_EXIT. */
bool vcpu_thread_start(struct vcpu *vcpu, struct error *err);
void vcpu_thread_join(struct vcpu *vcpu);

/* The vCPU's thread: sleeps until a request bit of `mask` is set. */
void vcpu_sleep(struct vcpu *vcpu, uint32_t mask);

/* Is the caller's thread the vCPU's own? */
bool vcpu_thread_is_own(const struct vcpu *vcpu);

/* Whatever it waits for, it looks again at its requests and its work. */
void vcpu_wake(struct vcpu *vcpu);

/* The vCPU's thread: sleeps while it is paused and has no work to serve. */
void vcpu_sleep_paused(struct vcpu *vcpu);

/* Ends a pause. */
void vcpu_unpause(struct vcpu *vcpu);

/* The handle that this vCPU's interrupt controller signals through. */
struct cpu_signal vcpu_signal(struct vcpu *vcpu);

#endif
