/*
 * What a virtual machine is to be made of: a configuration with the memory that its strings live in, or a snapshot. And its form in JSON
 * (Cloud Hypervisor's VmConfig).
 */
#ifndef DOPPEL_API_VM_CONFIG_H
#define DOPPEL_API_VM_CONFIG_H

#include <jansson.h>

#include "machine/hotplug.h"
#include "machine/machine.h"
#include "machine/snapshot.h"

struct vm_config {
    struct machine_config *machine;     /* own, or the snapshot's */
    struct machine_config own;
    struct snapshot *snapshot;          /* NULL: there is none */
    struct restore_options restore;
    bool restored;                      /* a snapshot makes one machine */
    bool shared_console;                /* the first serial port's is CONSOLE_SHARED */
    char **owned;
    unsigned owned_count;
    struct machine_text *kept;          /* of machines that have ended: their disks may be named there */
};

/* With a copy of the configuration, whose strings stay borrowed; NULL: err says why. */
struct vm_config *vm_config_create(const struct machine_config *machine, struct error *err);
/* Takes the snapshot over; the strings of the options stay borrowed. NULL: err says why. */
struct vm_config *vm_config_of_snapshot(struct snapshot *snapshot, const struct restore_options *restore, struct error *err);
void vm_config_destroy(struct vm_config *config);

/* The machine; console: what stands for CONSOLE_SHARED. NULL: err says why. */
struct machine *vm_config_build(struct vm_config *config, const char *console, struct error *err);

/*
 * The machine has ended: disks and cards that came and went while it ran are the configuration's from now on, and so are the overlays
 * that its disks went over to, with their names.
 */
void vm_config_keep(struct vm_config *config, struct machine *machine);

/*
 * What a VmConfig asks for, on top of the defaults, whose strings stay borrowed; the JSON itself is not needed afterwards. NULL: err names the
 * member that is wrong or not offered. name: of the machine, for its seed; NULL: none.
 */
struct vm_config *vm_config_parse(json_t *json, const struct machine_config *defaults, const char *name, struct error *err);
/* A disk (DiskConfig) or network card (NetConfig); its strings are the configuration's. False: err says why. */
bool vm_config_parse_disk(struct vm_config *config, json_t *json, struct disk_config *disk, struct error *err);
bool vm_config_parse_net(struct vm_config *config, json_t *json, struct net_config *net, struct error *err);
/* One more. False: err says why, and the configuration is as before. */
bool vm_config_add_disk(struct vm_config *config, json_t *json, struct error *err);
bool vm_config_add_net(struct vm_config *config, json_t *json, struct error *err);
bool vm_config_remove_device(struct vm_config *config, const char *id, struct error *err);
/* What a CD-ROM drive is to hold (DoppelMedium): its strings are the JSON's. */
bool vm_config_parse_medium(json_t *json, struct medium_change *change, struct error *err);
/* Another medium from the next boot on. */
bool vm_config_change_medium(struct vm_config *config, json_t *json, struct error *err);
/* Other processors or memory (VmResize), in the same way. */
bool vm_config_resize(struct vm_config *config, json_t *json, struct error *err);

/*
 * A new reference. machine: what the configuration has become while the machine runs (machine.h), or its own. console_log: where a
 * shared console is written to.
 */
json_t *vm_config_to_json(const struct vm_config *config, const struct machine_config *machine, const char *console_log);

#endif
