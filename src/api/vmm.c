/*
 * Requests and their one executor. A request that boots or shuts down posts what it wants and sleeps until vmm_run's thread has done
 * it; what only looks at the machine, or pauses it, borrows it and works on its own thread.
 */
#include "api/vmm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "api/console.h"
#include "api/vm_config.h"
#include "base/error.h"

struct vmm {
    struct vmm_hooks hooks;
    struct console *console;
    pthread_mutex_t mutex;              /* guards all that follows; held for moments only */
    pthread_cond_t changed;
    struct vm_config *config;
    struct machine *machine;            /* while there is one to borrow */
    unsigned borrowers;
    unsigned long boots;
    bool paused;                        /* by vmm_pause: one machine_pause is to be ended */
    bool pausing;                       /* one at a time carries out a pause or resume */
    bool changing;                      /* one at a time changes what is booted */
    bool boot_wanted, shutdown_wanted, quit_wanted;
    bool boot_paused;
    enum vmm_result boot_result;
    struct error boot_error;
    struct vmm_outcome outcome;
};

static enum vmm_result refuse(enum vmm_result result, struct error *err, const char *text)
{
    error_set(err, "%s", text);
    return result;
}

/* --- the executor --- */

/* From now on others may borrow it. */
static void lend(struct vmm *vmm, struct machine *machine)
{
    pthread_mutex_lock(&vmm->mutex);
    vmm->machine = machine;
    vmm->boots++;
    vmm->paused = vmm->boot_paused;
    pthread_mutex_unlock(&vmm->mutex);
}

/* With the mutex held. Nobody has it any more when this returns. */
static void take_back(struct vmm *vmm)
{
    vmm->machine = NULL;
    while (vmm->borrowers)
        pthread_cond_wait(&vmm->changed, &vmm->mutex);
}

/* Lent before it runs, so that whoever hears of the guest finds it. */
static enum vmm_result start(struct vmm *vmm, struct machine *machine, struct error *err)
{
    if (vmm->boot_paused)
        machine_pause(machine);
    lend(vmm, machine);
    if (machine_start(machine, err))
        return VMM_DONE;
    pthread_mutex_lock(&vmm->mutex);
    take_back(vmm);
    pthread_mutex_unlock(&vmm->mutex);
    return VMM_FAILED;
}

static enum vmm_result make_and_start(struct vmm *vmm, struct error *err)
{
    const struct vmm_hooks *hooks = &vmm->hooks;
    const char *line = vmm->config->shared_console ? console_connect(vmm->console, err) : NULL;
    if (vmm->config->shared_console && !line)
        return VMM_FAILED;
    struct machine *machine = vm_config_build(vmm->config, line, err);
    if (!machine)
        return VMM_INVALID;
    enum vmm_result result = VMM_INVALID;
    if (!hooks->made || hooks->made(hooks->owner, machine, err))
        result = start(vmm, machine, err);
    if (result == VMM_DONE)
        return VMM_DONE;
    if (hooks->ended)
        hooks->ended(hooks->owner, machine);
    machine_destroy(machine);
    return result;
}

/* With the mutex held, which is let go while the machine is made; nothing else changes the configuration meanwhile. */
static void boot(struct vmm *vmm)
{
    pthread_mutex_unlock(&vmm->mutex);
    enum vmm_result result = make_and_start(vmm, &vmm->boot_error);
    pthread_mutex_lock(&vmm->mutex);
    vmm->boot_result = result;
    vmm->boot_wanted = false;
    pthread_cond_broadcast(&vmm->changed);
}

/* With the mutex held. An end that nobody asked for is the guest's own doing, and ends the process, too. */
static void note_end(struct vmm *vmm, enum machine_end end, uint32_t code)
{
    if (end == END_QUIT && (vmm->quit_wanted || vmm->shutdown_wanted))
        return;
    vmm->outcome = (struct vmm_outcome){ end, code };
    vmm->quit_wanted = true;
}

/* With the mutex held, which is let go while the machine runs. Returns when it is gone. */
static void run_to_the_end(struct vmm *vmm)
{
    struct machine *machine = vmm->machine;
    if (vmm->quit_wanted)               /* asked for while the machine was being made */
        machine_end(machine, END_QUIT, 0);
    pthread_mutex_unlock(&vmm->mutex);
    enum machine_end end = machine_wait(machine);
    pthread_mutex_lock(&vmm->mutex);
    note_end(vmm, end, machine->end_code);
    take_back(vmm);
    vm_config_keep(vmm->config, machine);
    pthread_mutex_unlock(&vmm->mutex);
    if (vmm->hooks.ended)
        vmm->hooks.ended(vmm->hooks.owner, machine);
    machine_destroy(machine);
    pthread_mutex_lock(&vmm->mutex);
    vmm->shutdown_wanted = false;
    pthread_cond_broadcast(&vmm->changed);
}

enum vmm_result vmm_boot_first(struct vmm *vmm, struct error *err)
{
    pthread_mutex_lock(&vmm->mutex);
    boot(vmm);
    enum vmm_result result = vmm->boot_result;
    *err = vmm->boot_error;
    pthread_mutex_unlock(&vmm->mutex);
    return result;
}

struct vmm_outcome vmm_run(struct vmm *vmm)
{
    pthread_mutex_lock(&vmm->mutex);
    while (vmm->machine || !vmm->quit_wanted) {
        if (vmm->machine)
            run_to_the_end(vmm);
        else if (vmm->boot_wanted)
            boot(vmm);
        else
            pthread_cond_wait(&vmm->changed, &vmm->mutex);
    }
    struct vmm_outcome outcome = vmm->outcome;
    pthread_mutex_unlock(&vmm->mutex);
    return outcome;
}

void vmm_quit(struct vmm *vmm, enum machine_end end, uint32_t code)
{
    pthread_mutex_lock(&vmm->mutex);
    if (!vmm->quit_wanted)
        vmm->outcome = (struct vmm_outcome){ end, code };
    vmm->quit_wanted = true;
    if (vmm->machine)
        machine_end(vmm->machine, END_QUIT, code);
    pthread_cond_broadcast(&vmm->changed);
    pthread_mutex_unlock(&vmm->mutex);
}

/* --- requests --- */

static enum vmm_result check_created(const struct vmm *vmm, struct error *err)
{
    return vmm->config ? VMM_DONE : refuse(VMM_NO_VM, err, "no virtual machine is created");
}

enum vmm_result vmm_create_vm(struct vmm *vmm, struct vm_config *config, struct error *err)
{
    const char *console = config->machine->console;
    config->shared_console = console && !strcmp(console, CONSOLE_SHARED);
    if (config->shared_console && !vmm->console) {
        vm_config_destroy(config);
        return refuse(VMM_INVALID, err, "there is no shared console here");
    }
    pthread_mutex_lock(&vmm->mutex);
    bool free_place = !vmm->config;
    if (free_place)
        vmm->config = config;
    pthread_mutex_unlock(&vmm->mutex);
    if (free_place)
        return VMM_DONE;
    vm_config_destroy(config);
    return refuse(VMM_WRONG_STATE, err, "a virtual machine is created already; delete it first");
}

enum vmm_result vmm_change_vm(struct vmm *vmm, bool (*change)(struct vm_config *config, void *argument, struct error *err), void *argument,
                              struct error *err)
{
    pthread_mutex_lock(&vmm->mutex);
    while (vmm->config && !vmm->machine && vmm->borrowers)
        pthread_cond_wait(&vmm->changed, &vmm->mutex);
    enum vmm_result result = check_created(vmm, err);
    if (result == VMM_DONE && (vmm->machine || vmm->boot_wanted || vmm->config->snapshot))
        result = refuse(VMM_WRONG_STATE, err, "what a machine that is booted, or restored, is made of does not change");
    else if (result == VMM_DONE && !change(vmm->config, argument, err))
        result = VMM_INVALID;
    pthread_mutex_unlock(&vmm->mutex);
    return result;
}

enum vmm_result vmm_change_booted(struct vmm *vmm, bool (*change)(struct vm_config *config, struct machine *machine, void *argument, struct error *err),
                                  void *argument, struct error *err)
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(vmm, &result, err);
    if (!machine)
        return result;
    pthread_mutex_lock(&vmm->mutex);
    while (vmm->changing)
        pthread_cond_wait(&vmm->changed, &vmm->mutex);
    vmm->changing = true;
    struct vm_config *config = vmm->config;
    pthread_mutex_unlock(&vmm->mutex);
    if (!change(config, machine, argument, err))
        result = VMM_INVALID;
    pthread_mutex_lock(&vmm->mutex);
    vmm->changing = false;
    pthread_cond_broadcast(&vmm->changed);
    pthread_mutex_unlock(&vmm->mutex);
    vmm_give_back(vmm);
    return result;
}

enum vmm_result vmm_delete_vm(struct vmm *vmm, struct error *err)
{
    enum vmm_result result = vmm_shutdown(vmm, err);
    if (result != VMM_DONE && result != VMM_WRONG_STATE)
        return result;
    pthread_mutex_lock(&vmm->mutex);
    while (vmm->borrowers)
        pthread_cond_wait(&vmm->changed, &vmm->mutex);
    bool idle = !vmm->machine && !vmm->boot_wanted;
    struct vm_config *config = idle ? vmm->config : NULL;
    if (idle)
        vmm->config = NULL;
    pthread_mutex_unlock(&vmm->mutex);
    vm_config_destroy(config);
    return idle ? VMM_DONE : refuse(VMM_WRONG_STATE, err, "the virtual machine has been booted again meanwhile");
}

static enum vmm_result check_booted(const struct vmm *vmm, struct error *err)
{
    enum vmm_result result = check_created(vmm, err);
    if (result == VMM_DONE && !vmm->machine)
        result = refuse(VMM_WRONG_STATE, err, "the virtual machine is not booted");
    return result;
}

enum vmm_result vmm_boot(struct vmm *vmm, bool paused, struct error *err)
{
    pthread_mutex_lock(&vmm->mutex);
    enum vmm_result result = check_created(vmm, err);
    if (result == VMM_DONE && (vmm->machine || vmm->boot_wanted))
        result = refuse(VMM_WRONG_STATE, err, "the virtual machine is booted already");
    if (result == VMM_DONE) {
        vmm->boot_wanted = true;
        vmm->boot_paused = paused;
        pthread_cond_broadcast(&vmm->changed);
        while (vmm->boot_wanted && !vmm->quit_wanted)
            pthread_cond_wait(&vmm->changed, &vmm->mutex);
        result = vmm->boot_wanted ? VMM_FAILED : vmm->boot_result;
        error_set(err, "%s", vmm->boot_wanted ? "the process is ending" : vmm->boot_error.text);
    }
    pthread_mutex_unlock(&vmm->mutex);
    return result;
}

enum vmm_result vmm_shutdown(struct vmm *vmm, struct error *err)
{
    pthread_mutex_lock(&vmm->mutex);
    enum vmm_result result = check_booted(vmm, err);
    if (result == VMM_DONE) {
        vmm->shutdown_wanted = true;
        machine_end(vmm->machine, END_QUIT, 0);
        while (vmm->shutdown_wanted)
            pthread_cond_wait(&vmm->changed, &vmm->mutex);
    }
    pthread_mutex_unlock(&vmm->mutex);
    return result;
}

struct machine *vmm_borrow(struct vmm *vmm, enum vmm_result *result, struct error *err)
{
    pthread_mutex_lock(&vmm->mutex);
    *result = check_booted(vmm, err);
    struct machine *machine = *result == VMM_DONE ? vmm->machine : NULL;
    vmm->borrowers += machine != NULL;
    pthread_mutex_unlock(&vmm->mutex);
    return machine;
}

const struct vm_config *vmm_borrow_config(struct vmm *vmm, enum vmm_result *result, struct error *err)
{
    pthread_mutex_lock(&vmm->mutex);
    *result = check_created(vmm, err);
    const struct vm_config *config = vmm->config;
    vmm->borrowers += config != NULL;
    pthread_mutex_unlock(&vmm->mutex);
    return config;
}

void vmm_give_back(struct vmm *vmm)
{
    pthread_mutex_lock(&vmm->mutex);
    vmm->borrowers--;
    pthread_cond_broadcast(&vmm->changed);
    pthread_mutex_unlock(&vmm->mutex);
}

/* A pause waits for processors, so it is carried out without the mutex; `pausing` keeps others out meanwhile. */
static enum vmm_result set_paused(struct vmm *vmm, bool paused, const char *already, struct error *err)
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(vmm, &result, err);
    if (!machine)
        return result;
    pthread_mutex_lock(&vmm->mutex);
    while (vmm->pausing)
        pthread_cond_wait(&vmm->changed, &vmm->mutex);
    if (vmm->paused == paused) {
        result = refuse(VMM_WRONG_STATE, err, already);
    } else {
        vmm->pausing = true;
        pthread_mutex_unlock(&vmm->mutex);
        paused ? machine_pause(machine) : machine_resume(machine);
        pthread_mutex_lock(&vmm->mutex);
        vmm->paused = paused;
        vmm->pausing = false;
        pthread_cond_broadcast(&vmm->changed);
    }
    pthread_mutex_unlock(&vmm->mutex);
    vmm_give_back(vmm);
    return result;
}

enum vmm_result vmm_pause(struct vmm *vmm, struct error *err)
{
    return set_paused(vmm, true, "the virtual machine is paused already", err);
}

enum vmm_result vmm_resume(struct vmm *vmm, struct error *err)
{
    return set_paused(vmm, false, "the virtual machine is not paused", err);
}

enum vmm_state vmm_state(struct vmm *vmm)
{
    pthread_mutex_lock(&vmm->mutex);
    enum vmm_state state = !vmm->config ? VMM_EMPTY : !vmm->machine ? VMM_CREATED : vmm->paused ? VMM_PAUSED : VMM_RUNNING;
    pthread_mutex_unlock(&vmm->mutex);
    return state;
}

unsigned long vmm_boots(struct vmm *vmm)
{
    pthread_mutex_lock(&vmm->mutex);
    unsigned long boots = vmm->boots;
    pthread_mutex_unlock(&vmm->mutex);
    return boots;
}

/* --- life --- */

struct vmm *vmm_create(const struct vmm_hooks *hooks, struct console *console, struct error *err)
{
    struct vmm *vmm = calloc(1, sizeof(*vmm));
    if (!vmm) {
        error_set(err, "out of memory");
        return NULL;
    }
    vmm->hooks = *hooks;
    vmm->console = console;
    pthread_mutex_init(&vmm->mutex, NULL);
    pthread_cond_init(&vmm->changed, NULL);
    return vmm;
}

void vmm_destroy(struct vmm *vmm)
{
    if (!vmm)
        return;
    vm_config_destroy(vmm->config);
    pthread_cond_destroy(&vmm->changed);
    pthread_mutex_destroy(&vmm->mutex);
    free(vmm);
}
