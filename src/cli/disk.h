/* What the files of `doppel disk` share. */
#ifndef DOPPEL_CLI_DISK_H
#define DOPPEL_CLI_DISK_H

#include "backend/disk_image.h"
#include "base/error.h"
#include "cli/arguments.h"

/* FILE of the command, opened as its options say; NULL: err tells why. */
struct disk_image *disk_open_file(const struct arguments *arguments, const char *path, struct disk_image_options options, struct error *err);
/* "512 MiB (536870912 bytes)". */
void disk_print_size(const char *what, uint64_t size);

int disk_info(const struct arguments *arguments, struct error *err);
int disk_check(const struct arguments *arguments, struct error *err);

#endif
