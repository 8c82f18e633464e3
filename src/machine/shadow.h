/*
 * The BIOS area, 0xC0000 to 0xFFFFF: RAM in the shadow of ROM. The host bridge's PAM registers say for each segment whether
 * reads and writes go to RAM or to the bus, where the end of the firmware image can be read from 0xE0000 on.
 */
#ifndef DOPPEL_MACHINE_SHADOW_H
#define DOPPEL_MACHINE_SHADOW_H

#include "bus/bus.h"
#include "dev/pci/host_bridge.h"

struct machine;

struct shadow {
    struct machine *machine;
    struct region region;               /* what answers where RAM does not */
    bool writable[PAM_SEGMENTS];        /* writes go to RAM, although reads do not */
};

/* Before any device is made. All of the area is hidden until the bridge says otherwise. */
void shadow_init(struct shadow *shadow, struct machine *machine);
void shadow_fini(struct shadow *shadow);
/* A pam_sink's `set`; owner: struct shadow. */
void shadow_set(void *owner, unsigned segment, bool read, bool write);

#endif
