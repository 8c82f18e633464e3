/*
 * DMA of a machine without an IOMMU: device addresses are guest-physical ones. RAM first, then the registers of other
 * devices through the bus; a four-byte write to 0xFEE00000 to 0xFEEFFFFF is a message-signalled interrupt
 * (SDM3 §11.11 "Message Signalled Interrupts").
 */
#ifndef DOPPEL_MACHINE_DMA_H
#define DOPPEL_MACHINE_DMA_H

#include <pthread.h>
#include <stdint.h>

#include "base/stats.h"
#include "bus/bus.h"
#include "bus/handles.h"
#include "mem/ram.h"

struct dma_space {
    struct ram *ram;
    struct bus *mmio;           /* NULL: RAM and messages only */
    void (*msi)(void *sink, uint64_t address, uint32_t data, uint16_t requester);
    void *msi_sink;
    struct counters *counters;  /* may be NULL */
    /*
     * The board lock; must be recursive, as devices do DMA with it held. It guards in_peer: an access to another
     * device's registers that itself causes DMA to registers is refused, so that no guest can build a loop of devices.
     * NULL in tests.
     */
    pthread_mutex_t *lock;
    bool in_peer;
};

extern const struct dma_ops dma_direct_ops;

static inline struct dma dma_direct(struct dma_space *space, uint16_t requester)
{
    return (struct dma){ &dma_direct_ops, space, requester };
}

#endif
