/* Raw images: the file's bytes are the disk's. */
#ifndef DOPPEL_BACKEND_DISK_RAW_H
#define DOPPEL_BACKEND_DISK_RAW_H

#include "backend/disk_image.h"

/* Takes `file` over, also when it fails. A last part of less than a sector is not used. */
struct disk_image *disk_raw_open(struct disk_file *file, bool read_only, struct error *err);

#endif
