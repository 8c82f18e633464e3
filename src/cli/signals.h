/* The signals that end a process, and those that it dies of. */
#ifndef DOPPEL_CLI_SIGNALS_H
#define DOPPEL_CLI_SIGNALS_H

#include <stdbool.h>

struct error;
struct signals;
struct vmm;

/* Before any thread is made, so that all of them leave these signals to the one that signals_start makes. */
void signals_prepare(void);
/*
 * SIGINT, SIGTERM and SIGHUP end the vmm; a second one does not wait for it. gentle: SIGTERM presses the power button first, and gives the
 * guest a minute. NULL: err says why.
 */
struct signals *signals_start(struct vmm *vmm, bool gentle, struct error *err);
/* NULL is fine. */
void signals_stop(struct signals *signals);

#endif
