/* A disk on an NBD server as the file of an image. */
#ifndef DOPPEL_BACKEND_DISK_NBD_H
#define DOPPEL_BACKEND_DISK_NBD_H

#include "backend/disk_file.h"

/* Whether the name is a URI that disk_nbd_open takes: nbd, nbds, nbd+unix, nbds+unix. */
bool disk_nbd_is_uri(const char *name);
/* NULL: err names server and reason. Exports of a size that never changes; no locks: who else uses it is the server's affair. */
struct disk_file *disk_nbd_open(const char *uri, bool read_only, struct error *err);

#endif
