/*
 * The seed that a cloud image looks for at its first boot (cloud-init documentation, "NoCloud"): a volume labelled "cidata" with the files
 * user-data and meta-data, as a CD image (ECMA-119, with the names of Rock Ridge).
 */
#ifndef DOPPEL_MACHINE_SEED_H
#define DOPPEL_MACHINE_SEED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct seed_file {
    const char *name;           /* lower case, digits and hyphens */
    const void *data;
    uint32_t size;
};

/* Makes the image, to be freed. False: out of memory. */
bool seed_image(const char *label, const struct seed_file *files, unsigned count, uint8_t **image, size_t *size);

#endif
