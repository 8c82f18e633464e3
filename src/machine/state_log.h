/*
 * The state log of a machine with counted time: a line for each so many instructions, with a digest of all that its processor
 * holds and, at wish, of memory. Two runs that should be the same are compared by their logs (tools/lockstep.py).
 *
 *     COUNT RIP DIGEST FLAGS [MEMORY]         decimal, then hexadecimal
 *
 * The status flags are no part of the digest: a translator need not keep those that the next instructions overwrite.
 */
#ifndef DOPPEL_MACHINE_STATE_LOG_H
#define DOPPEL_MACHINE_STATE_LOG_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct machine;
struct state_log;

struct state_log_config {
    const char *path;           /* NULL: no log */
    uint64_t every;             /* instructions; 0: a million */
    uint64_t from, to;          /* first and last line; the run ends at `to`. 0: from the start, to its end */
    uint64_t memory;            /* each so many lines memory is digested, too; 0: never */
    bool registers;             /* before each line all of the processor's state in clear */
};

/* After the processors are made, before they run. NULL: err tells why. */
struct state_log *state_log_open(struct machine *machine, struct error *err);
/* The processors do not run. */
void state_log_close(struct state_log *log);

#endif
