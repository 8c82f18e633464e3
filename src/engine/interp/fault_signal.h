/*
 * Host faults of code that we made: stubs (native_signal.c) and translations (dbt/trap_signal.c). Signal handlers belong to the process,
 * so the list of who is asked is the exception to the rule that no file keeps any state. A fault that nobody knows goes to who was
 * there before us; by default the process dies of it.
 */
#ifndef DOPPEL_INTERP_FAULT_SIGNAL_H
#define DOPPEL_INTERP_FAULT_SIGNAL_H

#include <signal.h>
#include <stdbool.h>

/* In the signal handler, for a fault that the processor raised on this thread. True: it is seen to, and `context` says where to go on. */
typedef bool fault_asked(int signal, const siginfo_t *info, void *context);

/* Any thread, any number of times. False: the host refuses. */
bool fault_signal_ask(fault_asked *asked);

#endif
