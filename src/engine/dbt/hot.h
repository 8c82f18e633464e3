#ifndef DOPPEL_DBT_HOT_H
#define DOPPEL_DBT_HOT_H

struct vcpu;

/* Of a vCPU on this engine, for tests: translate blocks after so many runs in the interpreter. */
void dbt_set_hot(struct vcpu *vcpu, unsigned runs);

#endif
