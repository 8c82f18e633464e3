/*
 * Split rings (VIRTIO §2.7 "Split Virtqueues"):
 *   descriptor table   size * { address 64, length 32, flags 16, next 16 }
 *   available ring     flags 16, index 16, size * head 16, used_event 16
 *   used ring          flags 16, index 16, size * { id 32, length 32 }, avail_event 16
 */
#include "dev/virtio/ring.h"

enum { DESC_SIZE = 16, INDEX = 2, RING = 4 };

static uint64_t used_event(const struct virtio_queue *queue) { return queue->driver + RING + 2u * queue->size; }
static uint64_t avail_event(const struct virtio_queue *queue) { return queue->device + RING + 8u * queue->size; }

static bool split_available(struct virtio_queue *queue)
{
    return ring_read16(queue, queue->driver + INDEX) != queue->avail_next;
}

/* A table that descriptors are taken from: the queue's own, or an indirect one (§2.7.5.3). */
struct table {
    uint64_t address;
    uint32_t entries;
    bool indirect;
};

static bool enter_indirect(struct virtio_queue *queue, struct table *table, const struct vring_desc *desc)
{
    if (table->indirect || desc->flags & VRING_DESC_F_NEXT || !virtio_has(queue->virtio, VIRTIO_RING_F_INDIRECT_DESC))
        return ring_broken(queue, "an indirect descriptor stands where none may");
    if (!desc->len || desc->len % DESC_SIZE)
        return ring_broken(queue, "an indirect table has an odd size");
    *table = (struct table){ desc->addr, desc->len / DESC_SIZE, true };
    return true;
}

/* Every round appends a segment or enters the one indirect table, so a loop of descriptors ends at the segments' limit. */
static bool walk_chain(struct virtio_queue *queue, uint16_t head, struct virtio_chain *chain)
{
    struct table table = { queue->desc, queue->size, false };
    struct vring_desc desc;
    uint32_t i = head;
    do {
        if (i >= table.entries)
            return ring_broken(queue, "a descriptor's number is too large");
        if (!ring_read(queue, table.address + (uint64_t)i * DESC_SIZE, &desc, sizeof(desc)))
            return false;
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            if (!enter_indirect(queue, &table, &desc))
                return false;
            desc.flags = VRING_DESC_F_NEXT;
            desc.next = 0;
        } else if (!chain_append(queue, chain, desc.addr, desc.len, desc.flags & VRING_DESC_F_WRITE)) {
            return false;
        }
        i = desc.next;
    } while (desc.flags & VRING_DESC_F_NEXT);
    return true;
}

static bool split_pop(struct virtio_queue *queue, struct virtio_chain *chain)
{
    uint16_t ahead = (uint16_t)(ring_read16(queue, queue->driver + INDEX) - queue->avail_next);
    if (!ahead || !virtio_queue_live(queue))
        return false;
    if (ahead > queue->size)
        return ring_broken(queue, "the available index runs too far ahead");
    ring_acquire();
    uint16_t head = ring_read16(queue, queue->driver + RING + 2u * (queue->avail_next % queue->size));
    if (!virtio_queue_live(queue) || !walk_chain(queue, head, chain))
        return false;
    chain->id = head;
    queue->avail_next++;
    return true;
}

static void split_fill(struct virtio_queue *queue, uint16_t id, uint16_t slots, uint32_t written)
{
    struct vring_used_elem element = { id, written };
    uint16_t at = (uint16_t)(queue->used_next + queue->filled) % queue->size;
    ring_write(queue, queue->device + RING + 8u * at, &element, sizeof(element));
    queue->filled++;
}

static void split_publish(struct virtio_queue *queue)
{
    queue->used_next = (uint16_t)(queue->used_next + queue->filled);
    ring_release();
    ring_write16(queue, queue->device + INDEX, queue->used_next);
}

static bool split_wants_interrupt(struct virtio_queue *queue)
{
    if (!virtio_has(queue->virtio, VIRTIO_RING_F_EVENT_IDX))
        return !(ring_read16(queue, queue->driver) & VRING_AVAIL_F_NO_INTERRUPT);
    uint16_t old = (uint16_t)(queue->used_next - queue->unsignalled);
    return ring_passes(ring_read16(queue, used_event(queue)), queue->used_next, old);
}

/* With the event index there is no need to say no: the event stays where it is, behind the driver's index. */
static void split_want_notify(struct virtio_queue *queue, bool on)
{
    if (!virtio_has(queue->virtio, VIRTIO_RING_F_EVENT_IDX))
        ring_write16(queue, queue->device, on ? 0 : VRING_USED_F_NO_NOTIFY);
    else if (on)
        ring_write16(queue, avail_event(queue), queue->avail_next);
}

const struct ring_ops ring_split = {
    .pop = split_pop,
    .available = split_available,
    .fill = split_fill,
    .publish = split_publish,
    .wants_interrupt = split_wants_interrupt,
    .want_notify = split_want_notify,
};
