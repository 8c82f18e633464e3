/* DMA without an IOMMU: see dma.h. */
#include "machine/dma.h"

#include <string.h>

enum { MSI_BASE = 0xFEE00000u, MSI_SIZE = 0x100000 };

static void count(struct dma_space *space, size_t size)
{
    if (space->counters)
        counter_add_shared(space->counters, COUNTER_dma_bytes, size);
}

static bool enter_peer(struct dma_space *space)
{
    if (space->lock)
        pthread_mutex_lock(space->lock);
    if (!space->in_peer) {
        space->in_peer = true;
        return true;
    }
    if (space->lock)
        pthread_mutex_unlock(space->lock);
    return false;
}

static void leave_peer(struct dma_space *space)
{
    space->in_peer = false;
    if (space->lock)
        pthread_mutex_unlock(space->lock);
}

/* The largest power of two up to 8 that the address is aligned to and `left` has room for. */
static uint8_t natural_size(uint64_t address, size_t left)
{
    uint8_t size = 8;
    while (size > left || address & (size - 1u))
        size /= 2;
    return size;
}

/* One piece that lies in no RAM: register accesses, of natural sizes. */
static bool peer_copy(const struct dma *dma, uint64_t address, uint8_t *buffer, size_t size, bool write)
{
    struct dma_space *space = dma->space;
    bool ok = true;
    if (!space->mmio || !enter_peer(space))
        return false;
    while (size && ok) {
        struct access access = { .address = address, .requester = dma->requester, .write = write,
                                 .size = natural_size(address, size) };
        if (write)
            memcpy(&access.value, buffer, access.size);
        ok = bus_access(space->mmio, &access) == ACCESS_OK;
        if (!write)
            memcpy(buffer, &access.value, access.size);
        address += access.size;
        buffer += access.size;
        size -= access.size;
    }
    leave_peer(space);
    return ok;
}

/* Page by page, for ranges that are not all RAM; register space is never large enough to make this long. */
static bool mixed_copy(const struct dma *dma, uint64_t address, uint8_t *buffer, size_t size, bool write)
{
    struct dma_space *space = dma->space;
    if (size > UINT64_MAX - address)
        return false;
    while (size) {
        size_t piece = min_u64(size, PAGE_SIZE - (address & PAGE_MASK));
        bool ok;
        if (!ram_find(space->ram, address))
            ok = peer_copy(dma, address, buffer, piece, write);
        else if (write)
            ok = ram_write(space->ram, address, buffer, piece);
        else
            ok = ram_read(space->ram, address, buffer, piece);
        if (!ok)
            return false;
        address += piece;
        buffer += piece;
        size -= piece;
    }
    return true;
}

static bool direct_read(const struct dma *dma, uint64_t address, void *buffer, size_t size)
{
    struct dma_space *space = dma->space;
    count(space, size);
    return ram_read(space->ram, address, buffer, size) || mixed_copy(dma, address, buffer, size, false);
}

static bool direct_write(const struct dma *dma, uint64_t address, const void *buffer, size_t size)
{
    struct dma_space *space = dma->space;
    if (address - MSI_BASE < MSI_SIZE) {
        uint32_t data;
        if (size != sizeof(data) || !space->msi)
            return false;
        memcpy(&data, buffer, sizeof(data));
        space->msi(space->msi_sink, address, data, dma->requester);
        return true;
    }
    count(space, size);
    /* The buffer is only read from when `write` is set. */
    return ram_write(space->ram, address, buffer, size) || mixed_copy(dma, address, (uint8_t *)buffer, size, true);
}

static int direct_map(const struct dma *dma, uint64_t address, size_t size, bool device_writes, struct iovec *iov, int max)
{
    struct dma_space *space = dma->space;
    int used = 0;
    while (size) {
        struct ram_slot *slot = ram_find(space->ram, address);
        if (!slot || used == max)
            return -1;
        uint64_t offset = address - slot->gpa, piece = min_u64(size, ram_span(slot, address));
        if (device_writes && ram_is_rom(slot, address))
            return -1;
        iov[used++] = (struct iovec){ slot->host + offset, piece };
        address += piece;
        size -= piece;
    }
    return used;
}

static void direct_unmap(const struct dma *dma, uint64_t address, size_t size, bool device_writes)
{
    struct dma_space *space = dma->space;
    count(space, size);
    if (device_writes && size)
        ram_written(space->ram, address, size);
}

const struct dma_ops dma_direct_ops = {
    .read = direct_read,
    .write = direct_write,
    .map = direct_map,
    .unmap = direct_unmap,
};
