/* Which firmware a disk needs. */
#ifndef DOPPEL_MACHINE_FIRMWARE_CHOICE_H
#define DOPPEL_MACHINE_FIRMWARE_CHOICE_H

#include <stdbool.h>

struct error;
struct machine;

/*
 * Settles machine->config.firmware where it is FIRMWARE_BY_DISK. The image that was looked at stays open as machine->first_image, for the
 * disk. False: it cannot be opened.
 */
bool firmware_choose(struct machine *machine, struct error *err);

#endif
