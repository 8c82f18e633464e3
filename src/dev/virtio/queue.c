/* What both ring formats share: chains and their memory, and who is to be told when. */
#include "dev/virtio/ring.h"

#include <string.h>

static const struct ring_ops *ring_of(const struct virtio_queue *queue)
{
    return virtio_has(queue->virtio, VIRTIO_F_RING_PACKED) ? &ring_packed : &ring_split;
}

static const struct dma *dma_of(const struct virtio_queue *queue) { return &queue->virtio->pci.device.dma; }

/* --- ring memory --- */

bool ring_broken(struct virtio_queue *queue, const char *why)
{
    virtio_break(queue->virtio, why);
    return false;
}

bool ring_read(struct virtio_queue *queue, uint64_t address, void *buffer, size_t size)
{
    if (dma_read(dma_of(queue), address, buffer, size))
        return true;
    memset(buffer, 0, size);
    return ring_broken(queue, "a ring lies where there is no memory");
}

bool ring_write(struct virtio_queue *queue, uint64_t address, const void *buffer, size_t size)
{
    return dma_write(dma_of(queue), address, buffer, size) || ring_broken(queue, "a ring lies where there is no memory");
}

uint16_t ring_read16(struct virtio_queue *queue, uint64_t address)
{
    uint16_t value;
    ring_read(queue, address, &value, sizeof(value));
    return value;
}

void ring_write16(struct virtio_queue *queue, uint64_t address, uint16_t value)
{
    ring_write(queue, address, &value, sizeof(value));
}

/* --- chains --- */

/* VIRTIO §2.7.5.3.1: readable parts first, at most 2^32 bytes in all. */
bool chain_append(struct virtio_queue *queue, struct virtio_chain *chain, uint64_t address, uint32_t size, bool writable)
{
    unsigned count = chain->out_count + chain->in_count;
    if (count == VIRTIO_SEGMENTS_MAX)
        return ring_broken(queue, "a chain of descriptors is longer than the queue");
    if (!writable && chain->in_count)
        return ring_broken(queue, "a readable descriptor follows a writable one");
    if (chain->out_size + chain->in_size + size > UINT32_MAX)
        return ring_broken(queue, "a chain describes more than 4 GiB");
    chain->segment[count] = (struct virtio_segment){ address, size };
    *(writable ? &chain->in_count : &chain->out_count) += 1;
    *(writable ? &chain->in_size : &chain->out_size) += size;
    return true;
}

/* One contiguous piece of a chain at a time: what `step` does with it decides whether to go on. */
struct piece {
    uint64_t address;
    uint64_t size;
};

struct walk {
    const struct virtio_segment *at, *end;
    uint64_t offset, left;
};

static bool walk_begin(struct walk *walk, const struct virtio_chain *chain, bool writes, uint64_t offset, uint64_t size)
{
    uint64_t total = writes ? chain->in_size : chain->out_size;
    walk->at = chain->segment + (writes ? chain->out_count : 0);
    walk->end = walk->at + (writes ? chain->in_count : chain->out_count);
    walk->offset = offset;
    walk->left = size;
    return offset <= total && size <= total - offset;
}

static bool walk_next(struct walk *walk, struct piece *piece)
{
    while (walk->at < walk->end && walk->offset >= walk->at->size)
        walk->offset -= (walk->at++)->size;
    if (!walk->left || walk->at == walk->end)
        return false;
    piece->address = walk->at->address + walk->offset;
    piece->size = min_u64(walk->left, walk->at->size - walk->offset);
    walk->left -= piece->size;
    walk->offset += piece->size;
    return true;
}

bool virtio_chain_read(struct virtio_queue *queue, const struct virtio_chain *chain, uint64_t offset, void *buffer, size_t size)
{
    struct walk walk;
    struct piece piece;
    uint8_t *to = buffer;
    if (!walk_begin(&walk, chain, false, offset, size))
        return false;
    for (; walk_next(&walk, &piece); to += piece.size)
        if (!dma_read(dma_of(queue), piece.address, to, piece.size))
            return false;
    return true;
}

bool virtio_chain_write(struct virtio_queue *queue, const struct virtio_chain *chain, uint64_t offset, const void *buffer,
                        size_t size)
{
    struct walk walk;
    struct piece piece;
    const uint8_t *from = buffer;
    if (!walk_begin(&walk, chain, true, offset, size))
        return false;
    for (; walk_next(&walk, &piece); from += piece.size)
        if (!dma_write(dma_of(queue), piece.address, from, piece.size))
            return false;
    return true;
}

int virtio_chain_map(struct virtio_queue *queue, const struct virtio_chain *chain, bool writes, uint64_t offset, uint64_t size,
                     struct iovec *iov, int max)
{
    struct walk walk;
    struct piece piece;
    uint64_t mapped = 0;
    int used = 0;
    if (!walk_begin(&walk, chain, writes, offset, size))
        return -1;
    while (walk_next(&walk, &piece)) {
        int count = dma_map(dma_of(queue), piece.address, piece.size, writes, iov + used, max - used);
        if (count < 0) {
            virtio_chain_unmap(queue, chain, writes, offset, mapped);
            return -1;
        }
        used += count;
        mapped += piece.size;
    }
    return used;
}

void virtio_chain_unmap(struct virtio_queue *queue, const struct virtio_chain *chain, bool writes, uint64_t offset,
                        uint64_t size)
{
    struct walk walk;
    struct piece piece;
    if (!walk_begin(&walk, chain, writes, offset, size))
        return;
    while (walk_next(&walk, &piece))
        dma_unmap(dma_of(queue), piece.address, piece.size, writes);
}

/* --- taking and giving back --- */

bool virtio_queue_live(const struct virtio_queue *queue)
{
    return queue->enabled && queue->virtio->status & VIRTIO_CONFIG_S_DRIVER_OK &&
           !(queue->virtio->status & VIRTIO_CONFIG_S_NEEDS_RESET);
}

bool virtio_queue_pop(struct virtio_queue *queue, struct virtio_chain *chain)
{
    chain->out_count = chain->in_count = 0;
    chain->out_size = chain->in_size = 0;
    chain->slots = 1;
    if (!virtio_queue_live(queue) || !ring_of(queue)->pop(queue, chain))
        return false;
    queue->in_flight = (uint16_t)(queue->in_flight + chain->slots);
    if (queue->in_flight > queue->size)
        return ring_broken(queue, "more buffers are available than the queue has room for");
    return true;
}

bool virtio_queue_empty(struct virtio_queue *queue)
{
    return !virtio_queue_live(queue) || !ring_of(queue)->available(queue);
}

struct virtio_queue_mark virtio_queue_mark(const struct virtio_queue *queue)
{
    return (struct virtio_queue_mark){ queue->avail_next, queue->in_flight, queue->avail_wrap };
}

void virtio_queue_rewind(struct virtio_queue *queue, struct virtio_queue_mark mark)
{
    queue->avail_next = mark.avail_next;
    queue->in_flight = mark.in_flight;
    queue->avail_wrap = mark.avail_wrap;
}

void virtio_queue_fill(struct virtio_queue *queue, uint16_t id, uint16_t slots, uint32_t written)
{
    if (virtio_queue_live(queue))
        ring_of(queue)->fill(queue, id, slots, written);
}

void virtio_queue_publish(struct virtio_queue *queue)
{
    if (!virtio_queue_live(queue) || !queue->filled)
        return;
    ring_of(queue)->publish(queue);
    queue->in_flight = (uint16_t)(queue->in_flight - min_u64(queue->in_flight, queue->filled));
    queue->unsignalled = (uint16_t)(queue->unsignalled + queue->filled);
    queue->filled = 0;
}

void virtio_queue_push(struct virtio_queue *queue, const struct virtio_chain *chain, uint32_t written)
{
    virtio_queue_fill(queue, chain->id, chain->slots, written);
    virtio_queue_publish(queue);
}

void virtio_queue_signal(struct virtio_queue *queue)
{
    if (!virtio_queue_live(queue) || !queue->unsignalled)
        return;
    ring_full_fence();          /* what was published is visible before the driver's wish is read */
    bool wanted = ring_of(queue)->wants_interrupt(queue);
    queue->unsignalled = 0;
    if (wanted)
        virtio_interrupt_queue(queue);
}

void virtio_queue_want_notify(struct virtio_queue *queue, bool on)
{
    if (!virtio_queue_live(queue))
        return;
    ring_of(queue)->want_notify(queue, on);
    ring_full_fence();          /* our wish is visible before the caller looks again */
}
