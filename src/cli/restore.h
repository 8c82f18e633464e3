/* The machine of `doppel restore`. */
#ifndef DOPPEL_CLI_RESTORE_H
#define DOPPEL_CLI_RESTORE_H

#include "cli/options.h"
#include "machine/snapshot.h"

/*
 * Opens the snapshot and makes a machine of it, with what the command line says of the host's side in place of what was saved.
 * NULL: err tells why. *snapshot is to be closed after the machine's end, in any case.
 */
struct machine *restore_machine(const struct options *options, struct snapshot **snapshot, struct error *err);

#endif
