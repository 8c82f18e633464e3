/*
 * The vhost-user protocol, the front end's side (QEMU docs/interop/vhost-user.rst, "Vhost-user Protocol"), for a device with one queue. A message is answered or the
 * connection is given up: nobody waits for ever.
 */
#ifndef DOPPEL_BACKEND_VHOST_USER_H
#define DOPPEL_BACKEND_VHOST_USER_H

#include <stdbool.h>
#include <stddef.h>

#include "backend/shared_memory.h"

enum { VHOST_USER_PATIENCE_MS = 10000 };
struct vhost_user {
    int socket;                         /* -1: not connected */
    unsigned patience_ms;               /* set by the caller: how long the other side may take to accept, to take a message, to answer one */
    uint64_t features;                  /* agreed */
    bool has_config;
};

/* The place of a split ring (VIRTIO §2.7), at addresses of ours that lie in shared memory. */
struct vhost_ring {
    uint16_t size;
    const void *desc, *avail, *used;
    int kick_fd, call_fd;
};

/* 0 or a positive errno, as all of these. wanted: features that the front end understands. */
int vhost_user_connect(struct vhost_user *vhost, const char *path, uint64_t wanted);
int vhost_user_get_config(struct vhost_user *vhost, void *config, size_t size);
/* The queue begins with both indices 0. Descriptors name memory by our own addresses. */
int vhost_user_start(struct vhost_user *vhost, const struct shared_region *region, unsigned regions, const struct vhost_ring *ring);
/* May be called at any time. */
void vhost_user_disconnect(struct vhost_user *vhost);

#endif
