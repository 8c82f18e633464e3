/*
 * Start, pause, reset and end. Requests come from any thread, often from a vCPU or the loop with the board lock held,
 * so they only note what is wanted (under state_lock) and return. The thread in machine_wait carries it out: it alone
 * stops vCPUs and joins threads, and holds no lock while it waits for them.
 *
 * Lock order: board lock, then state_lock, then a vCPU's mutex.
 */
#include "machine/lifecycle.h"

#include "base/clock.h"
#include "base/loop.h"
#include "base/thread.h"
#include "dev/device.h"
#include "machine/image.h"
#include "machine/pc.h"
#include "mem/gather.h"
#include "mmu/mmu.h"
#include "vcpu/loop.h"
#include "vcpu/work.h"
#include "x86/x86.h"

static void stopped(void *owner, struct vcpu *vcpu)
{
    struct machine *machine = owner;
    pthread_mutex_lock(&machine->state_lock);
    machine->vcpus_stopped++;
    pthread_cond_broadcast(&machine->state_changed);
    pthread_mutex_unlock(&machine->state_lock);
}

static void resumed(void *owner, struct vcpu *vcpu)
{
    struct machine *machine = owner;
    pthread_mutex_lock(&machine->state_lock);
    machine->vcpus_stopped--;
    pthread_cond_broadcast(&machine->state_changed);
    pthread_mutex_unlock(&machine->state_lock);
}

static void idle(void *owner, struct vcpu *vcpu)
{
    struct machine *machine = owner;
    loop_run_lazy(machine->loop);
}

const struct vcpu_stop_ops machine_stop_ops = { stopped, resumed, idle };

static void *loop_main(void *argument)
{
    struct machine *machine = argument;
    loop_run(machine->loop);
    return NULL;
}

bool machine_start(struct machine *machine, struct error *err)
{
    int status = thread_start(&machine->loop_thread, "loop", loop_main, machine);
    if (status)
        return error_errno(err, status, "cannot start the event loop's thread");
    ram_gatherer_start(machine->ram->gatherer);
    machine->running = true;
    /*
     * The monitor may pause the machine already: then its vCPUs start standing still. The second lock keeps a guest that ends
     * at once from asking the threads to stop before they are counted.
     */
    pthread_mutex_lock(&machine->pause_lock);
    for (unsigned i = 0; machine->pause_depth && i < machine->config.cpus; i++)
        vcpu_kick(machine->vcpu[i], REQUEST_PAUSE);
    if (!machine->pause_depth)
        clock_resume(machine->clock);       /* stands still if the machine comes from a snapshot */
    pthread_mutex_lock(&machine->state_lock);
    while (machine->threads < machine->config.cpus && vcpu_thread_start(machine->vcpu[machine->threads], err))
        machine->threads++;
    bool complete = machine->threads == machine->config.cpus;
    pthread_mutex_unlock(&machine->state_lock);
    pthread_mutex_unlock(&machine->pause_lock);
    if (!complete) {
        machine_end(machine, END_HOST_ERROR, 0);
        machine_wait(machine);
    }
    return complete;
}

static void stop_vcpus(struct machine *machine)
{
    for (unsigned i = 0; i < machine->threads; i++)
        vcpu_kick(machine->vcpu[i], REQUEST_PAUSE);
    pthread_mutex_lock(&machine->state_lock);
    while (machine->vcpus_stopped < machine->threads && machine->end == END_NONE)
        pthread_cond_wait(&machine->state_changed, &machine->state_lock);
    pthread_mutex_unlock(&machine->state_lock);
}

/*
 * Does not wait until they go: one that is told to stop again before it has noticed runs no instruction in between, so it
 * may as well count as stopped; and one that goes may ask for a reset at once and stand still again.
 * A reset that waits keeps them all where they are, and lets them go when it is done.
 */
static void release_vcpus(struct machine *machine)
{
    pthread_mutex_lock(&machine->state_lock);
    for (unsigned i = 0; !machine->reset_wanted && i < machine->threads; i++)
        vcpu_unpause(machine->vcpu[i]);
    pthread_mutex_unlock(&machine->state_lock);
}

/* With pause_lock held, as what follows. */
static void pause_locked(struct machine *machine)
{
    if (machine->pause_depth++ > 0)
        return;
    stop_vcpus(machine);
    clock_pause(machine->clock);
    machine->paused = true;
}

static void resume_locked(struct machine *machine)
{
    if (machine->pause_depth == 0 || --machine->pause_depth > 0)
        return;
    machine->paused = false;
    clock_resume(machine->clock);
    release_vcpus(machine);
}

/* Each pause is ended by a resume; they nest, and one caller at a time changes the state. */
void machine_pause(struct machine *machine)
{
    pthread_mutex_lock(&machine->pause_lock);
    pause_locked(machine);
    pthread_mutex_unlock(&machine->pause_lock);
}

void machine_resume(struct machine *machine)
{
    pthread_mutex_lock(&machine->pause_lock);
    resume_locked(machine);
    pthread_mutex_unlock(&machine->pause_lock);
}

struct step {
    uint64_t count;
};

/* On the paused vCPU's thread: the pause request is lifted for the length of the step, or the engine would return at once. */
static void step_on_vcpu(struct vcpu *vcpu, void *argument)
{
    const struct step *step = argument;
    for (uint64_t i = 0; i < step->count && vcpu->activity == ACTIVITY_ACTIVE; i++) {
        if (atomic_load(&vcpu->request) & REQUEST_EXIT)
            return;
        atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_PAUSE);
        vcpu_step(vcpu, 1);
        atomic_fetch_or(&vcpu->request, REQUEST_PAUSE);
    }
}

/* Under the lock, so that a reset that the step asks for does not begin before its end. */
void machine_step(struct machine *machine, unsigned index, uint64_t count)
{
    struct step step = { count };
    pthread_mutex_lock(&machine->pause_lock);
    if (machine->threads)
        vcpu_run_on(NULL, machine->vcpu[index], step_on_vcpu, &step);
    pthread_mutex_unlock(&machine->pause_lock);
}

void machine_end(struct machine *machine, enum machine_end end, uint32_t code)
{
    pthread_mutex_lock(&machine->state_lock);
    if (machine->end == END_NONE) {
        machine->end = end;
        machine->end_code = code;
    }
    /* All of them: the guest may end before machine_start has counted the thread that it runs on. */
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_kick(machine->vcpu[i], REQUEST_EXIT);
    pthread_cond_broadcast(&machine->state_changed);
    pthread_mutex_unlock(&machine->state_lock);
}

void machine_reset(struct machine *machine)
{
    if (machine->config.no_reboot) {
        machine_end(machine, END_REBOOT, 0);
        return;
    }
    pthread_mutex_lock(&machine->state_lock);
    machine->reset_wanted = true;
    /* The vCPU that asked must not run on into whatever follows its reset write. */
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_kick(machine->vcpu[i], REQUEST_PAUSE);
    pthread_cond_broadcast(&machine->state_changed);
    pthread_mutex_unlock(&machine->state_lock);
}

void machine_triple_fault(struct machine *machine)
{
    if (machine->config.no_reboot)
        machine_end(machine, END_TRIPLE_FAULT, 0);
    else
        machine_reset(machine);
}

static void reset_vcpu(struct vcpu *vcpu, void *argument)
{
    x86_reset(vcpu, false);
    vcpu->activity = vcpu->index == 0 ? ACTIVITY_ACTIVE : ACTIVITY_WAIT_SIPI;
    atomic_fetch_and(&vcpu->request, ~(uint32_t)(REQUEST_INTERRUPT | REQUEST_NMI | REQUEST_INIT | REQUEST_SIPI));
    mmu_flush_all(vcpu);
}

static void reset_board(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_run_on(NULL, machine->vcpu[i], reset_vcpu, NULL);
    pthread_mutex_lock(&machine->lock);
    for (struct device *device = machine->devices; device; device = device->next)
        device->type->reset(device);
    pthread_mutex_unlock(&machine->lock);
    struct error err;
    if (images_load(machine, &err))
        return;
    log_message(&machine->log, LOG_ERROR, "cannot load the kernel again after a reset: %s", err.text);
    machine_end(machine, END_HOST_ERROR, 0);
}

/* Full reset: every vCPU stands still, devices go to their power-on state, the image is loaded again. */
static void carry_out_reset(struct machine *machine)
{
    pthread_mutex_lock(&machine->pause_lock);
    pause_locked(machine);
    pthread_mutex_lock(&machine->state_lock);
    bool ended = machine->end != END_NONE;
    machine->reset_wanted = false;
    pthread_mutex_unlock(&machine->state_lock);
    if (!ended)
        reset_board(machine);
    resume_locked(machine);
    pthread_mutex_unlock(&machine->pause_lock);
}

/* True: a reset is to be carried out; false: the end. */
static bool wait_for_change(struct machine *machine)
{
    pthread_mutex_lock(&machine->state_lock);
    while (machine->end == END_NONE && !machine->reset_wanted)
        pthread_cond_wait(&machine->state_changed, &machine->state_lock);
    bool reset = machine->end == END_NONE;
    pthread_mutex_unlock(&machine->state_lock);
    return reset;
}

enum machine_end machine_wait(struct machine *machine)
{
    while (wait_for_change(machine))
        carry_out_reset(machine);
    /* Again: the end may have come while machine_start was still counting threads. */
    for (unsigned i = 0; i < machine->threads; i++)
        vcpu_kick(machine->vcpu[i], REQUEST_EXIT);
    for (unsigned i = 0; i < machine->threads; i++)
        vcpu_thread_join(machine->vcpu[i]);
    pthread_mutex_lock(&machine->pause_lock);
    machine->threads = 0;
    pthread_mutex_unlock(&machine->pause_lock);
    loop_stop(machine->loop);
    pthread_join(machine->loop_thread, NULL);
    machine->running = false;
    return machine->end;
}

void machine_power_button(struct machine *machine)
{
    pthread_mutex_lock(&machine->lock);
    pc_power_button(machine);
    pthread_mutex_unlock(&machine->lock);
}
