/* The process of a virtual machine. */
#ifndef DOPPEL_CLI_PROCESS_H
#define DOPPEL_CLI_PROCESS_H

#include "cli/options.h"

/* Runs what the options ask for to its end; returns the exit status. With --detach that is the command's, and the rest a child's. */
int process_run(struct options *options);

#endif
