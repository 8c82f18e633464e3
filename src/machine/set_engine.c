/* Changes the engine of a machine, which may be running: all state is the vCPUs' (DESIGN D4). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/engine.h"
#include "machine/machine.h"
#include "vcpu/loop.h"
#include "vcpu/work.h"

struct change {
    const struct engine *engine;
    int *spare;
    bool done;
};

/* An engine needs a descriptor for a moment. What the new one of others has taken all of is kept for whoever has to go back. */
static bool open_spare(int *spare, struct error *err)
{
    *spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return *spare >= 0 || error_errno(err, errno, "no descriptor for a change of the engine");
}

static void close_spare(int *spare)
{
    if (*spare >= 0)
        close(*spare);
    *spare = -1;
}

/* On the vCPU's thread at a block border; goes back to the old engine where the new one cannot be had. */
static void change_engine(struct vcpu *vcpu, void *argument)
{
    struct change *change = argument;
    const struct engine *old = vcpu->engine;
    change->done = vcpu_set_engine(vcpu, change->engine);
    if (change->done)
        return;
    close_spare(change->spare);
    if (!vcpu_set_engine(vcpu, old))
        abort();        /* out of host memory: this processor cannot go on */
}

/* The vCPUs that have another one; all stand still. False: not all of them could. */
static bool change_all(struct machine *machine, const struct engine *engine, int *spare)
{
    struct change change = { .engine = engine, .spare = spare, .done = true };
    for (unsigned i = 0; i < machine->config.cpus && change.done; i++)
        if (machine->vcpu[i]->engine != engine)
            vcpu_run_on(NULL, machine->vcpu[i], change_engine, &change);
    return change.done;
}

/* Those that had gone over come back: a machine has one engine. So one caller at a time, as for a step. */
bool machine_set_engine(struct machine *machine, const char *name, struct error *err)
{
    const struct engine *engine = engine_named(name, err), *before;
    int spare;
    if (!engine || !vcpu_engine_available(machine->vcpu[0], engine, err) || !open_spare(&spare, err))
        return false;
    machine_pause(machine);
    pthread_mutex_lock(&machine->pause_lock);
    before = machine->vcpu[0]->engine;
    bool done = change_all(machine, engine, &spare);
    if (!done && !change_all(machine, before, &spare))
        abort();        /* out of host memory, as above */
    pthread_mutex_unlock(&machine->pause_lock);
    machine_resume(machine);
    close_spare(&spare);
    return done || error_set(err, "engine %s cannot be had: the host refuses what it needs", name);
}
