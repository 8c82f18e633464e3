/* What the files of the snapshot share with each other only. */
#ifndef DOPPEL_MACHINE_SNAPSHOT_INTERNAL_H
#define DOPPEL_MACHINE_SNAPSHOT_INTERNAL_H

#include <jansson.h>

#include "machine/snapshot.h"
#include "mem/ram.h"
#include "state/container.h"

/* Names of files in the directory and of sections in its state file. */
#define SNAPSHOT_STATE_FILE "state"
#define SECTION_MANIFEST "manifest"
#define SECTION_CLOCK "clock"

enum { SNAPSHOT_CHAIN_MAX = 64, SNAPSHOT_ID_SIZE = 33 };

struct snapshot;

/* --- the configuration as JSON (snapshot_config.c) --- */
json_t *snapshot_config_save(const struct machine_config *config);
/* Strings in the config are the JSON's own. */
bool snapshot_config_load(struct machine_config *config, const json_t *json, struct error *err);

/* --- memory (snapshot_memory.c) --- */

/* A run of pages in a RAM file. */
struct snapshot_extent {
    uint64_t page, pages;           /* of the slot */
    uint64_t offset, size;          /* bytes in the file; without compression the offset is that of the page, the size all of it */
    uint64_t checksum;              /* XXH3 of the pages' bytes */
};

enum { EXTENT_PAGES_MAX = 256 };

struct snapshot_slot {
    char name[32];                  /* as the slot's */
    uint64_t gpa, size;
    bool differential, compressed;
    uint64_t extent_count;
    struct snapshot_extent *extent;
};

/* Writes slot i into its file and section. dirty: one bit a page, NULL for all of it. */
bool snapshot_save_slot(struct container *state, int directory, const struct ram_slot *slot, unsigned i, const uint64_t *dirty,
                        bool compress, struct error *err);
/* One directory of a chain, opened. */
struct snapshot_layer {
    char *path;
    int directory;
    struct container state;
    json_t *manifest;
    char id[SNAPSHOT_ID_SIZE];
    const char *parent;             /* path; NULL: none. The manifest's */
    const char *parent_id;
    struct snapshot_slot slot[RAM_SLOTS_MAX];
    unsigned slot_count;
    int ram[RAM_SLOTS_MAX];         /* the RAM files */
};

/* Opens the RAM files and reads their sections; to be undone after a failure, too. */
bool snapshot_open_memory(struct snapshot_layer *layer, struct error *err);
void snapshot_close_memory(struct snapshot_layer *layer);
/*
 * Gives the machine's slots the memory of the layers: layer[0] is the newest, layer[count - 1] the full one. If memory cannot be fetched on
 * demand here, it is shared; what is compressed is copied.
 */
bool snapshot_load_memory(struct ram *ram, const struct snapshot_layer *layer, unsigned count, enum restore_memory how, struct error *err);
/* Compares the layer's memory with its checksums. */
bool snapshot_verify_memory(const struct snapshot_layer *layer, struct error *err);

/* --- disks (snapshot_disk.c) --- */
#define DISK_IN_PLACE "in_place"        /* member of a disk in the manifest: its image stays where it is, and this is how it is known again */
/* What is noted of an image that stays in place, and is complete. NULL: err tells why it cannot stay. */
json_t *snapshot_disk_note(const char *path, struct error *err);
/* Where the image of a disk is that the guest wrote to: beside the state, or in place, and then as it was. path has room for PATH_MAX. */
bool snapshot_disk_find(const struct snapshot *snapshot, unsigned i, char *path, bool *in_place, struct error *err);
/* The directory for overlays is there and can be written to; it is made if only its parent is there. */
bool snapshot_disk_directory(const char *path, struct error *err);
/* From now on the machine's disk i is written to in a new overlay in the directory. Board lock held, devices quiesced. */
bool snapshot_disk_go_over(struct machine *machine, unsigned i, const char *directory, struct error *err);
/* Copies a file, sharing its blocks where the host can, holes kept. `to` must not exist. */
bool snapshot_copy_file(int from_directory, const char *from, int to_directory, const char *to, struct error *err);

/* --- a directory in the making (snapshot_draft.c) --- */
/* What was made or named in the directory is there after a power cut, too. */
bool snapshot_sync_directory(const char *path, struct error *err);

struct snapshot_draft {
    char *path;                     /* its name until it is complete */
    int directory;
    bool complete;
};

/* Makes an empty directory beside the one that is wanted, which must not exist. To be ended in any case. */
bool snapshot_draft_begin(struct snapshot_draft *draft, const char *directory, struct error *err);
/* All files go to the disk, then the directory gets its name, which is there after a power cut, too. */
bool snapshot_draft_complete(struct snapshot_draft *draft, const char *directory, struct error *err);
/* Removes what was not completed. */
void snapshot_draft_end(struct snapshot_draft *draft);

/* --- one snapshot, for those who look into it (snapshot_open.c) --- */
struct snapshot {
    struct snapshot_layer layer[SNAPSHOT_CHAIN_MAX];
    unsigned layers;
    struct machine_config config;
    char *disk_path[MACHINE_DISKS_MAX];     /* of the restored machine */
};

/* The pages that the snapshot's machine would have, in slots of their own (ram_destroy). NULL: err tells why. */
struct ram *snapshot_memory(const struct snapshot *snapshot, struct error *err);
bool snapshot_layer_open(struct snapshot_layer *layer, const char *path, struct error *err);
void snapshot_layer_close(struct snapshot_layer *layer);

extern const struct state_list snapshot_clock_list, snapshot_requests_list;
struct snapshot_clock {
    uint64_t tsc, tsc_hz, wall_ns;
};
struct snapshot_requests {
    uint32_t pending;               /* REQUEST_NMI, REQUEST_INIT, REQUEST_SIPI */
};

#endif
