/*
 * The virtio devices, as far as the machine's configure callbacks need to know them. A device works without its backend
 * too: a disk of no size, a network with its link down. Backends outlive their device.
 */
#ifndef DOPPEL_DEV_VIRTIO_DEVICES_H
#define DOPPEL_DEV_VIRTIO_DEVICES_H

#include "dev/virtio/virtio.h"

struct block;
struct net;
struct chardev;
struct virtio_blk_request;

enum { VIRTIO_BLK_SERIAL = 20, VIRTIO_CONSOLE_PENDING = 512 };

struct virtio_blk {
    struct virtio virtio;
    struct block *block;                        /* set by configure */
    const char *serial;                         /* set by configure; may be NULL */
    struct virtio_blk_request *spare;           /* done with, kept for the next */
    unsigned spare_count;
    bool batch;                                 /* virtio_run_queue is at work: it signals what completes meanwhile */
};

struct virtio_net {
    struct virtio virtio;
    struct net *net;                            /* set by configure */
    uint8_t mac[6];                             /* set by configure */
    bool link_up;
    uint8_t frame[65536 + 64];                  /* a frame of the guest, copied once */
};

struct virtio_console {
    struct virtio virtio;
    struct chardev *chardev;                    /* set by configure */
    uint8_t pending[VIRTIO_CONSOLE_PENDING];    /* typed, and not yet with the guest */
    uint16_t pending_size;
    uint32_t output_done;                       /* bytes of the next output buffer that the backend took already */
    struct timer retry;                         /* the backend is slow */
};

struct virtio_rng {
    struct virtio virtio;
};

#endif
