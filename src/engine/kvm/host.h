/* What the host's KVM offers: for the choice of an engine, and for `doppel doctor`. Any thread. */
#ifndef DOPPEL_KVM_HOST_H
#define DOPPEL_KVM_HOST_H

#include <stdbool.h>

struct error;

/* Can the kvm engine run guests here at all? False: err tells why not. */
bool kvm_usable(struct error *err);
/* Can it have a machine's local APICs, and leave the other interrupt controllers to us? */
bool kvm_has_apics(void);
/*
 * Does it run a guest's kernel at the speed of the processor? There are hosts whose KVM has no such hardware under it and emulates
 * all that is not user code. Takes a few milliseconds; *nanoseconds is what an instruction of a loop at CPL 0 took. False: err tells.
 */
bool kvm_fast(double *nanoseconds, struct error *err);

#endif
