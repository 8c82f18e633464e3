/* Looking into snapshots, for people: no machine is made. All print to `out`; false: err tells why. */
#ifndef DOPPEL_MACHINE_SNAPSHOT_INSPECT_H
#define DOPPEL_MACHINE_SNAPSHOT_INSPECT_H

#include <stdio.h>

#include "machine/snapshot.h"

/* What it is and what it consists of; with `sections`, a glob, every field of the sections whose names match. */
bool snapshot_show(const char *directory, const char *sections, FILE *out, struct error *err);
/* The snapshot and its parents, the newest first. */
bool snapshot_list(const char *directory, FILE *out, struct error *err);
/* Prints a line for each difference of configuration, fields and memory; *differences counts them. */
bool snapshot_diff(const char *a, const char *b, uint64_t *differences, FILE *out, struct error *err);
/* Compares everything in it and its parents with the checksums. */
bool snapshot_check(const char *directory, struct error *err);
/* Makes a full snapshot of the same machine, which no longer needs the parents, and may take the place of this one for its children. */
bool snapshot_flatten(const char *directory, const char *to, struct error *err);

#endif
