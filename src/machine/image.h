/* The files that a machine boots from, read once and kept, so that a reset boots the same bytes again. */
#ifndef DOPPEL_MACHINE_IMAGE_H
#define DOPPEL_MACHINE_IMAGE_H

#include "machine/machine.h"

struct images;

/* Reads the kernel and initrds that the configuration names; none is fine. NULL: err names the file and the reason. */
struct images *images_open(const struct machine_config *config, struct error *err);
/* Reads nothing yet: images_load does, the first time, by the machine's configuration. NULL: err tells why. */
struct images *images_later(struct error *err);
void images_close(struct images *images);

/* Writes ACPI tables and the images into RAM and puts the boot processor at the entry. Every vCPU stands still. */
bool images_load(struct machine *machine, struct error *err);

#endif
