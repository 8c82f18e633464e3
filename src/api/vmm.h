/*
 * The process around a machine: it holds at most one virtual machine, which is created (configured), booted, paused, resumed, shut down
 * and deleted, by the command line or through the control socket. Boots and ends are carried out by one thread, in vmm_run;
 * everybody else asks.
 */
#ifndef DOPPEL_API_VMM_H
#define DOPPEL_API_VMM_H

#include <stdbool.h>
#include <stdint.h>

#include "machine/machine.h"

struct console;
struct vm_config;
struct vmm;

/* What became of a request; err holds the reason of all but VMM_DONE. */
enum vmm_result {
    VMM_DONE,
    VMM_INVALID,        /* the request itself makes no sense */
    VMM_NO_VM,          /* no virtual machine is created */
    VMM_WRONG_STATE,    /* it is not booted, or is already, or is not paused ... */
    VMM_FAILED,         /* it could not be carried out */
};

enum vmm_state { VMM_EMPTY, VMM_CREATED, VMM_RUNNING, VMM_PAUSED };

/* What the process does around each boot, on vmm_run's thread. Any may be NULL. */
struct vmm_hooks {
    /* The machine is made and stands still. False: err says why it is not to be started. */
    bool (*made)(void *owner, struct machine *machine, struct error *err);
    /* It has ended and is about to be destroyed; after `made`, even if it failed. */
    void (*ended)(void *owner, struct machine *machine);
    void *owner;
};

/* How the process's last machine ended. */
struct vmm_outcome {
    enum machine_end end;       /* END_NONE: none was booted, or it was shut down by request */
    uint32_t code;
};

/* console: the shared one, borrowed; NULL: there is none, and no configuration asks for it. */
struct vmm *vmm_create(const struct vmm_hooks *hooks, struct console *console, struct error *err);
void vmm_destroy(struct vmm *vmm);

/* Boots what vmm_create_vm configured, for the command line: before vmm_run, on its thread. VMM_INVALID: the configuration is wrong. */
enum vmm_result vmm_boot_first(struct vmm *vmm, struct error *err);
/* Carries out what the others ask for, until the process is to end. On the thread that made the vmm. */
struct vmm_outcome vmm_run(struct vmm *vmm);
/* Ends vmm_run, and with it a machine that runs. end END_NONE: by request. */
void vmm_quit(struct vmm *vmm, enum machine_end end, uint32_t code);

/* --- requests: any thread but vmm_run's and a vCPU's, board lock not held; they return when it is done --- */

/* Takes the configuration over, even if it is refused. */
enum vmm_result vmm_create_vm(struct vmm *vmm, struct vm_config *config, struct error *err);
/* Changes a configuration that is not booted; change must not wait. False from it is VMM_INVALID. */
enum vmm_result vmm_change_vm(struct vmm *vmm, bool (*change)(struct vm_config *config, void *argument, struct error *err), void *argument,
                              struct error *err);
/*
 * The same while it is booted: change may wait, and is called with the machine as well; strings that it puts into the configuration stay until vmm_delete_vm.
 * False from it is VMM_INVALID. VMM_WRONG_STATE: it is not booted.
 */
enum vmm_result vmm_change_booted(struct vmm *vmm, bool (*change)(struct vm_config *config, struct machine *machine, void *argument, struct error *err),
                                  void *argument, struct error *err);
enum vmm_result vmm_delete_vm(struct vmm *vmm, struct error *err);
/* paused: it stands still until vmm_resume. */
enum vmm_result vmm_boot(struct vmm *vmm, bool paused, struct error *err);
/* The machine is destroyed; it can be booted again. */
enum vmm_result vmm_shutdown(struct vmm *vmm, struct error *err);
enum vmm_result vmm_pause(struct vmm *vmm, struct error *err);
enum vmm_result vmm_resume(struct vmm *vmm, struct error *err);

/*
 * Lends the machine: until vmm_give_back it is not destroyed, though it may end. NULL: there is none; the result and err say why.
 */
struct machine *vmm_borrow(struct vmm *vmm, enum vmm_result *result, struct error *err);
void vmm_give_back(struct vmm *vmm);
/* The same for the configuration, which exists from vmm_create_vm to vmm_delete_vm. */
const struct vm_config *vmm_borrow_config(struct vmm *vmm, enum vmm_result *result, struct error *err);

enum vmm_state vmm_state(struct vmm *vmm);
/* How many machines have been booted: while one is lent, its number. */
unsigned long vmm_boots(struct vmm *vmm);

#endif
