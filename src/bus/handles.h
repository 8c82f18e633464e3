/*
 * What a device holds of the world (DESIGN D8): an interrupt line, a DMA handle that carries the requester id, and the
 * clock (base/clock.h). A device can be tested with no machine around it by giving it handles of the test's own.
 */
#ifndef DOPPEL_BUS_HANDLES_H
#define DOPPEL_BUS_HANDLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* An interrupt line. `set` may be NULL: not connected. */
struct irq_line {
    void (*set)(void *sink, unsigned n, bool level);
    void *sink;
    unsigned n;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->sink, line->n, level);
}

/*
 * DMA. Addresses are the device's (bus addresses: guest-physical, or IOVAs where an IOMMU stands before the device).
 * Each function returns false if any byte of the range cannot be reached; nothing may then be assumed about the rest.
 * A write to 0xFEEx_xxxx of four bytes is a message-signalled interrupt. Any thread.
 */
struct dma {
    const struct dma_ops *ops;
    void *space;                /* the address space behind it */
    uint16_t requester;         /* bus << 8 | device << 3 | function */
};

struct dma_ops {
    bool (*read)(const struct dma *dma, uint64_t address, void *buffer, size_t size);
    bool (*write)(const struct dma *dma, uint64_t address, const void *buffer, size_t size);
    /*
     * Pins a range for the host to read or write in place. Returns the number of iovecs used (at most `max`), or -1 if
     * the range is not all RAM or needs more. Each successful map is ended by unmap with the same arguments, which
     * marks pages dirty and drops translated code when `device_writes`.
     */
    int (*map)(const struct dma *dma, uint64_t address, size_t size, bool device_writes, struct iovec *iov, int max);
    void (*unmap)(const struct dma *dma, uint64_t address, size_t size, bool device_writes);
};

static inline bool dma_read(const struct dma *dma, uint64_t address, void *buffer, size_t size)
{
    return dma->ops->read(dma, address, buffer, size);
}

static inline bool dma_write(const struct dma *dma, uint64_t address, const void *buffer, size_t size)
{
    return dma->ops->write(dma, address, buffer, size);
}

static inline int dma_map(const struct dma *dma, uint64_t address, size_t size, bool device_writes, struct iovec *iov, int max)
{
    return dma->ops->map(dma, address, size, device_writes, iov, max);
}

static inline void dma_unmap(const struct dma *dma, uint64_t address, size_t size, bool device_writes)
{
    dma->ops->unmap(dma, address, size, device_writes);
}

#endif
