/* A disk in another process, which speaks vhost-user (virtio block device, VIRTIO §5.2), as the file of a raw image. */
#ifndef DOPPEL_BACKEND_DISK_VHOST_USER_H
#define DOPPEL_BACKEND_DISK_VHOST_USER_H

#include "backend/disk_file.h"

struct shared_memory;

/* vhost-user:SOCKET */
bool disk_vhost_user_is(const char *name);
/*
 * memory: buffers in it are given to the other side as they are, all others are copied; copied in; NULL: there is none. NULL: err names the
 * socket and the reason. Offsets and sizes of writes are whole sectors.
 */
struct disk_file *disk_vhost_user_open(const char *name, const struct shared_memory *memory, bool read_only, struct error *err);

#endif
