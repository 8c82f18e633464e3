/*
 * Telling Linux's perf which guest code the translator's code is: as a map of names (its tools/perf/Documentation/jit-interface.txt), or as a
 * dump with the code in it (jitdump-specification.txt there), which `perf inject --jit` makes object files of, so that perf annotate
 * shows instructions and addresses that were used twice are told apart by time.
 */
#ifndef DOPPEL_DBT_PERF_H
#define DOPPEL_DBT_PERF_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct perf;

/* /tmp/perf-PID.map, and jit-PID.dump in a directory (NULL: no dump). NULL: err says why. */
struct perf *perf_open(bool map, const char *dump_directory, struct error *err);
void perf_close(struct perf *perf);
/* Any thread: `size` bytes of code at `code` have this name from now on. */
void perf_name(struct perf *perf, const char *name, const void *code, size_t size);

#endif
