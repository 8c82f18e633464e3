/*
 * Work posted to a vCPU: run on its thread at its next block border, or by whoever holds it stopped.
 * Used for code drops, TLB drops that other vCPUs ask for, engine switches, state reads by the monitor.
 */
#ifndef DOPPEL_VCPU_WORK_H
#define DOPPEL_VCPU_WORK_H

#include "vcpu/vcpu.h"

struct vcpu_work {
    void (*run)(struct vcpu *vcpu, void *argument);
    void *argument;
    struct vcpu_work *next;
    bool owned;         /* allocated by vcpu_post: freed after it ran */
    bool inside;        /* asked by a vCPU that waits: also runs while the target itself waits for another vCPU */
    _Atomic bool done;  /* written under *waiter_mutex */
    pthread_mutex_t *waiter_mutex;      /* not owned: who waits for it */
    pthread_cond_t *waiter_wake;
};

/*
 * Any thread; does not wait. The order of posts to one vCPU is kept. One that sleeps or is paused need not do it before it goes on. False: no
 * memory, which was told.
 */
bool vcpu_post(struct vcpu *vcpu, void (*run)(struct vcpu *, void *), void *argument);
/*
 * Runs it on the target and waits. caller NULL: a thread of the machine waits, and the target runs it at a block border.
 * Otherwise the caller is another vCPU's thread, perhaps in the midst of an instruction: while it waits it serves what other
 * vCPUs ask of it in this way (and nothing else), so that two that wait for each other both go on. So a function that is
 * run with a caller may find its target in the midst of an instruction, too, and must not care: it may drop TLB
 * entries, but not decoded code or registers. A caller that is told to exit takes its work back. The work of a target that sleeps is
 * done by the caller.
 * Every place where a vCPU stands still (HLT, pause, wait for SIPI, shutdown) must serve its list.
 * Never call it with a device's lock held.
 */
void vcpu_run_on(struct vcpu *caller, struct vcpu *target, void (*run)(struct vcpu *, void *), void *argument);
/* Serves the posted work; the vCPU's thread, or its stopper. */
void vcpu_serve_work(struct vcpu *vcpu);
/*
 * The vCPU's thread, before it ends: serves what is left. From then on (and before the first start) a thread of the machine
 * that calls vcpu_run_on does the work itself, one at a time; posts wait for it or for the next thread.
 */
void vcpu_end_work(struct vcpu *vcpu);

#endif
