/* The board: a Q35-like PC. pc.c is its parts list. */
#ifndef DOPPEL_MACHINE_PC_H
#define DOPPEL_MACHINE_PC_H

#include "machine/machine.h"

/* Makes every device and backend of the configuration. On false, pc_destroy undoes what was made. */
bool pc_build(struct machine *machine, struct error *err);
void pc_destroy(struct machine *machine);
/*
 * What firmware would do, where there is none: the BIOS area becomes RAM, BARs get addresses, interrupt lines their routes.
 * After a reset, before the guest starts.
 */
void pc_prepare(struct machine *machine);
/*
 * Disk or card i of the configuration, while the machine runs: on the loop's thread, board lock held. Its backend is opened, its device made, and its slot
 * noted. False: nothing has changed.
 */
bool pc_add_disk(struct machine *machine, unsigned i, struct error *err);
bool pc_add_net(struct machine *machine, unsigned i, struct error *err);
/*
 * In the same way: what the configuration says of disk i, a CD-ROM drive, becomes `medium`. force: also if the guest has locked the present one in,
 * otherwise the guest is told that somebody wants it. False: nothing has changed.
 */
bool pc_change_medium(struct machine *machine, unsigned i, const struct disk_config *medium, bool force, struct error *err);
/* The vCPUs stand still, or are gone: devices that were removed lose their memory. */
void pc_free_removed(struct machine *machine);
/* Board lock held. */
void pc_power_button(struct machine *machine);

#endif
