/* Exit statuses, from exit_status.def. */
#ifndef DOPPEL_CLI_EXIT_STATUS_H
#define DOPPEL_CLI_EXIT_STATUS_H

#include <stdint.h>

#include "machine/machine.h"

enum exit_status {
#define EXIT_STATUS(name, value, when) EXIT_##name = value,
#include "cli/exit_status.def"
#undef EXIT_STATUS
};

/*
 * The status of a run. For END_QUIT the code is a signal's number, 0 for the escape key; END_NONE: it was ended through its
 * control socket.
 */
int exit_status_of(enum machine_end end, uint32_t code);
/* The same for people. */
const char *exit_reason_of(enum machine_end end);

#endif
