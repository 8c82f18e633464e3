/* What `doppel restore` makes its machine of. */
#ifndef DOPPEL_CLI_RESTORE_H
#define DOPPEL_CLI_RESTORE_H

#include "api/vm_config.h"
#include "cli/options.h"

/* Opens the snapshot, with what the command line says of the host's side in place of what was saved. NULL: err tells why. */
struct vm_config *restore_open(struct options *options, struct error *err);

#endif
