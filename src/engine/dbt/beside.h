/*
 * Translating beside the vCPUs: a thread of the machine makes hot blocks into traces while their vCPU goes on interpreting them, if the host has
 * a processor for it.
 *
 * The vCPU chooses the blocks of a trace and copies what they are made of (a request); the thread makes an entry of kept.h of that, in memory of its
 * own, and the vCPU installs it as if it had been kept: it is used only if the guest's bytes, which are watched by then, are still those that the
 * request has. So whatever the guest does in between, nothing wrong comes of it. Who waits in vain, since the thread has no processor or what it
 * made did not fit, translates for himself after some more runs (run.c).
 *
 * Rules of threads: the requests of a vCPU are a ring of one writer, the vCPU, and one reader, the thread. `asked` and `done` say how far either has come,
 * and hand a request over with release and acquire; it is touched by nobody else. What the thread reads of the vCPU and its dbt is never changed
 * while the engine is attached: the model, where the cache and the shared code are. It has a decoder of its own, since templates are learnt.
 * A vCPU that waits may say on which processors the thread runs (move_away).
 * While it serves a ring it holds a mutex, so that a vCPU which takes its ring away waits until it has left it.
 */
#ifndef DOPPEL_DBT_BESIDE_H
#define DOPPEL_DBT_BESIDE_H

#include <stdbool.h>

struct beside;
struct block;
struct dbt;
struct requests;
struct vcpu;

/* --- the machine's thread, while no vCPU is attached --- */

/* NULL: no memory. The thread starts with the first request. */
struct beside *beside_create(void);
/* Waits until the thread has ended. May be NULL. */
void beside_destroy(struct beside *beside);

/* --- the vCPU's thread --- */

/* NULL: no memory, or the vCPU has nobody who translates beside it. */
struct requests *requests_create(struct vcpu *vcpu, struct dbt *dbt);
/* What has not been made is not made any more. May be NULL. Before anything that the thread reads goes. */
void requests_destroy(struct requests *requests);

/* For tests: all that is asked for from now on is made at once, by who asks. False: no memory. */
bool requests_at_once(struct requests *requests);

/* Is the block part of a trace that is being made, and worth waiting for? If the thread seems to have no processor, nothing is, for a while. */
bool requests_have(struct requests *requests, const struct block *block);
/* Asks for the trace that begins with the block, at vcpu->rip in the present mode, which is 64-bit code. False: not now, or never of such code. */
bool requests_ask(struct requests *requests, struct vcpu *vcpu, struct block *block);
/* Is anything not finished? */
bool requests_are_open(const struct requests *requests);
/* Is anything finished? */
bool requests_done(const struct requests *requests);
/* Installs it, between two blocks; that may flush the cache. */
void requests_take(struct requests *requests, struct vcpu *vcpu);

#endif
