/* Disks, network cards and CDs that come and go while the machine runs. */
#ifndef DOPPEL_MACHINE_HOTPLUG_H
#define DOPPEL_MACHINE_HOTPLUG_H

#include "machine/machine.h"

enum { DEVICE_ID_SIZE = 72 };

/* The names that the host has for disk or card i: its own `id`, else _disk0, _net0 and so on. */
void machine_disk_id(const struct machine_config *config, unsigned i, char id[DEVICE_ID_SIZE]);
void machine_net_id(const struct machine_config *config, unsigned i, char id[DEVICE_ID_SIZE]);

struct hotplug_place {
    char id[DEVICE_ID_SIZE];
    uint8_t devfn;
};

/*
 * All: any thread but vCPUs' and the loop's, board lock not held; the machine has been started. Strings are borrowed as those of the machine's first
 * configuration. False: err tells why, and nothing has changed.
 */
bool machine_add_disk(struct machine *machine, const struct disk_config *disk, struct hotplug_place *place, struct error *err);
bool machine_add_net(struct machine *machine, const struct net_config *net, struct hotplug_place *place, struct error *err);
/* Asks the guest to let a virtio disk or card go: it is gone once the guest has done so, which it may never do. */
bool machine_remove_device(struct machine *machine, const char *id, struct error *err);

/* What a CD-ROM drive is to hold. */
struct medium_change {
    const char *id;             /* of the drive; NULL: the only one */
    const char *path;           /* of an image; NULL: nothing */
    enum disk_format format;
    bool force;                 /* also where the guest has locked the present one in */
};

/* The drive's index. False: err tells which there are. */
bool machine_find_cdrom(const struct machine_config *config, const char *id, unsigned *index, struct error *err);
/* The same disk, with the other medium in it; its path is borrowed. */
struct disk_config machine_disk_with(const struct disk_config *disk, const struct medium_change *change);
/* As the functions above, but it keeps copies of the strings. The image is opened before the old one is given up. */
bool machine_change_medium(struct machine *machine, const struct medium_change *change, struct error *err);

#endif
