#ifndef DOPPEL_DBT_HOT_H
#define DOPPEL_DBT_HOT_H

#include <stdbool.h>

struct beside;
struct vcpu;

/* Of a vCPU on this engine, for tests: translate blocks after so many runs in the interpreter, on the vCPU's thread. */
void dbt_set_hot(struct vcpu *vcpu, unsigned runs);
/* The same, but as it is done beside the vCPU (beside.h): by a thread, or `at_once`. `beside` outlives the engine. False: no memory. */
bool dbt_set_beside(struct vcpu *vcpu, unsigned runs, struct beside *beside, bool at_once);
/* Is there anything that was asked for and is not finished? */
bool dbt_beside_is_busy(const struct vcpu *vcpu);

#endif
