/*
 * Snapshots: a machine kept in a directory, and machines made of one. docs/snapshots.md describes what lies in it.
 *
 * A snapshot is full, or holds only the pages that changed since its parent; then the parent's directory must stay where it is.
 * A snapshot is never written to once it is made, so any number of machines can be made of it, one after the other or at once:
 * they share its pages until they write to them, and each gets disks of its own.
 */
#ifndef DOPPEL_MACHINE_SNAPSHOT_H
#define DOPPEL_MACHINE_SNAPSHOT_H

#include "machine/machine.h"

struct snapshot_options {
    const char *parent;         /* NULL: full. Else the directory of the last snapshot of this machine, or that it was restored from */
    bool compress;              /* memory by zstd: smaller, but restored by reading all of it */
    /*
     * NULL: disks that are written to are copied, or share their blocks with the copy where the host's file system can. Else an existing
     * directory: nothing is copied; the snapshot names the images where they are, and the machine goes on in new overlays there. Those
     * images must not be written to any more.
     */
    const char *disks;
};

/*
 * Any thread but a vCPU's, board lock not held. Pauses the machine (it may be paused already), writes, and resumes it; the
 * directory must not exist, and exists only if all went well. The machine is as before in either case (but that after a failure of the
 * host disks may be in their overlays already, which a message tells); after a failure the next snapshot must be a full one.
 * options may be NULL.
 */
bool machine_snapshot(struct machine *machine, const char *directory, const struct snapshot_options *options, struct error *err);

/* A snapshot opened to be restored. It lends the machine its configuration, so it is closed after the machine's end. */
struct snapshot;

/* Reads and checks the state, and that memory and disks are there. NULL: err names what is wrong. */
struct snapshot *snapshot_open(const char *directory, struct error *err);
void snapshot_close(struct snapshot *snapshot);

/*
 * What the machine was made of. The caller may change what is the host's affair (engine, consoles, network backends and their
 * addresses, log) before machine_restore; not the board (memory, processors, number and order of devices).
 */
struct machine_config *snapshot_config(struct snapshot *snapshot);

/* How the snapshot's pages become the machine's. */
enum restore_memory {
    RESTORE_ON_DEMAND,          /* copied when they are touched, into memory that has a descriptor (mem/fetch.h); where the host forbids it, shared */
    RESTORE_SHARED,             /* mapped, and shared with all machines of this snapshot until they are written; no descriptor */
    RESTORE_COPIED,             /* all copied at the start, into memory that has a descriptor */
};

struct restore_options {
    /*
     * Existing directory for the disks that the machine writes to; they stay when it ends. They are qcow2 overlays on the snapshot's
     * disks, which must stay, too.
     */
    const char *disks;
    bool verify;                /* first compare all of the memory with its checksums */
    enum restore_memory memory;
    bool exact;                 /* for tests: the guest is not told that time has passed and that it may be a copy */
};

/*
 * As machine_create: the machine stands where it was when the snapshot was taken, its clock included, and goes on with
 * machine_start. It has a new generation id, and network addresses as in snapshot_config. One machine for each snapshot_open.
 */
struct machine *machine_restore(struct snapshot *snapshot, const struct restore_options *options, struct error *err);

#endif
