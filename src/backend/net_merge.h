/*
 * TCP segments on their way to the guest, merged: what one read of the host's socket brought, and libslirp cut to the size of
 * Ethernet frames, becomes one frame of up to 64 KiB again, so that the guest's stack runs once for all of it. With the
 * board lock held.
 */
#ifndef DOPPEL_BACKEND_NET_MERGE_H
#define DOPPEL_BACKEND_NET_MERGE_H

#include "backend/net_internal.h"

struct net_merge {
    /* segment_size as in net_client.receive. */
    void (*deliver)(void *owner, const uint8_t *frame, uint32_t size, uint16_t segment_size);
    void *owner;
    uint32_t size;                      /* of the frame that is being gathered; 0: there is none */
    uint16_t segment_size;              /* payload of its first segment */
    uint32_t segments;
    uint32_t next_sequence;
    uint8_t frame[NET_FRAME_MAX];
};

/* Takes a frame: delivers it, or keeps it for the ones that may follow. Order is kept. */
void net_merge_add(struct net_merge *merge, const uint8_t *frame, uint32_t size);
/* Delivers what is kept. Called when no more frames are to be expected for now. */
void net_merge_flush(struct net_merge *merge);

#endif
