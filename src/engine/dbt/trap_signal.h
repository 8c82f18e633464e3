/* Signals that translated code raises. */
#ifndef DOPPEL_DBT_TRAP_SIGNAL_H
#define DOPPEL_DBT_TRAP_SIGNAL_H

#include <stdbool.h>
#include <stdint.h>

/* Installs the process's handlers where they are not. */
bool trap_signal_install(void);

struct trap_fault {
    uintptr_t rip;
    uintptr_t page;             /* the address that could not be read or written; 0 for every other fault */
    bool write;                 /* of that */
};

/* In the handler: where the calling thread is to go on, 0: it is not about translated code. */
typedef uintptr_t trap_way(void *owner, const struct trap_fault *fault);
/* From now on asked about faults of the calling thread; the owner may be NULL: nobody is. */
void trap_signal_handle(trap_way *way, void *owner);

#endif
