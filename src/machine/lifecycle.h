/* Parts of the life of a machine that its other files need. */
#ifndef DOPPEL_MACHINE_LIFECYCLE_H
#define DOPPEL_MACHINE_LIFECYCLE_H

#include "machine/machine.h"
#include "vcpu/thread.h"

extern const struct vcpu_stop_ops machine_stop_ops;

/* A vCPU shut down: a reset, as chipsets do, or the end where the user wants to see it. Any thread. */
void machine_triple_fault(struct machine *machine);

#endif
