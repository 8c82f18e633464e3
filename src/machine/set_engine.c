/* Changes the engine of a machine, which may be running: all state is the vCPUs' (DESIGN D4). */
#include <stdlib.h>

#include "base/error.h"
#include "engine/engine.h"
#include "machine/machine.h"
#include "vcpu/loop.h"
#include "vcpu/work.h"

struct change {
    const struct engine *engine;
    bool done;
};

/* On the vCPU's thread at a block border; goes back to the old engine where the new one cannot be had. */
static void change_engine(struct vcpu *vcpu, void *argument)
{
    struct change *change = argument;
    const struct engine *old = vcpu->engine;
    change->done = vcpu_set_engine(vcpu, change->engine);
    if (!change->done && !vcpu_set_engine(vcpu, old))
        abort();        /* out of host memory: this processor cannot go on */
}

bool machine_set_engine(struct machine *machine, const char *name, struct error *err)
{
    struct change change = { .engine = engine_named(name, err), .done = true };
    if (!change.engine || !vcpu_engine_available(machine->vcpu[0], change.engine, err))
        return false;
    machine_pause(machine);
    for (unsigned i = 0; i < machine->config.cpus && change.done; i++)
        if (machine->vcpu[i]->engine != change.engine)
            vcpu_run_on(NULL, machine->vcpu[i], change_engine, &change);
    machine_resume(machine);
    return change.done || error_set(err, "engine %s cannot be had: the host refuses what it needs", name);
}
