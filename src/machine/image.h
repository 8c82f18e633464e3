/* The files that a machine boots from, read once and kept, so that a reset boots the same bytes again. */
#ifndef DOPPEL_MACHINE_IMAGE_H
#define DOPPEL_MACHINE_IMAGE_H

#include "machine/boot.h"

struct images;

/* Reads the kernel and initrds that the configuration names; none is fine. NULL: err names the file and the reason. */
struct images *images_open(const struct machine_config *config, struct error *err);
/* Reads nothing yet: images_load does, the first time, by the machine's configuration. NULL: err tells why. */
struct images *images_later(struct error *err);
void images_close(struct images *images);

/* One file, whole: blob->data is the caller's to free. False: err names what, file and reason. */
bool image_read(const char *what, const char *path, struct blob *blob, struct error *err);

/*
 * Writes ACPI tables and the images into RAM and puts the boot processor at the entry. Every vCPU stands still. With
 * firmware there is nothing to do.
 */
bool images_load(struct machine *machine, struct error *err);

#endif
