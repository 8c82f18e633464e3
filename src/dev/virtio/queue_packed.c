/*
 * Packed rings (VIRTIO §2.8 "Packed Virtqueues"): one ring of { address 64, length 32, id 16, flags 16 } for both
 * directions. Flags carry an AVAIL and a USED bit; which value means what turns over at each lap, and each side keeps a
 * wrap counter to know. `driver` and `device` are event suppression structures: { offset and wrap 16, flags 16 }.
 *
 * Used descriptors are written in the order of completion, one for each buffer, and the place moves on by as many slots as
 * the buffer took (§2.8.6). A group that must appear at once has the flags of its first descriptor written last.
 */
#include "dev/virtio/ring.h"

enum { DESC_SIZE = 16, DESC_LEN = 8, DESC_FLAGS = 14, EVENT_FLAGS = 2 };

static bool slot_available(uint16_t flags, bool wrap)
{
    bool avail = flags & 1u << VRING_PACKED_DESC_F_AVAIL, used = flags & 1u << VRING_PACKED_DESC_F_USED;
    return avail == wrap && used != wrap;
}

static uint64_t slot_address(const struct virtio_queue *queue, uint16_t slot) { return queue->desc + (uint64_t)slot * DESC_SIZE; }

static bool packed_available(struct virtio_queue *queue)
{
    uint16_t flags = ring_read16(queue, slot_address(queue, queue->avail_next) + DESC_FLAGS);
    return virtio_queue_live(queue) && slot_available(flags, queue->avail_wrap);
}

/* §2.8.7: the entries of an indirect table follow each other; only their WRITE flag counts. */
static bool append_indirect(struct virtio_queue *queue, struct virtio_chain *chain, const struct vring_packed_desc *at)
{
    if (at->flags & VRING_DESC_F_NEXT || !virtio_has(queue->virtio, VIRTIO_RING_F_INDIRECT_DESC))
        return ring_broken(queue, "an indirect descriptor stands where none may");
    if (!at->len || at->len % DESC_SIZE)
        return ring_broken(queue, "an indirect table has an odd size");
    for (uint32_t i = 0; i < at->len / DESC_SIZE; i++) {
        struct vring_packed_desc desc;
        if (!ring_read(queue, at->addr + (uint64_t)i * DESC_SIZE, &desc, sizeof(desc)) ||
            !chain_append(queue, chain, desc.addr, desc.len, desc.flags & VRING_DESC_F_WRITE))
            return false;
    }
    return true;
}

static bool walk_chain(struct virtio_queue *queue, struct virtio_chain *chain)
{
    uint16_t slot = queue->avail_next;
    struct vring_packed_desc desc;
    chain->slots = 0;
    do {
        if (chain->slots == queue->size)
            return ring_broken(queue, "a chain of descriptors is longer than the queue");
        if (!ring_read(queue, slot_address(queue, slot), &desc, sizeof(desc)))
            return false;
        bool ok = desc.flags & VRING_DESC_F_INDIRECT
                      ? append_indirect(queue, chain, &desc)
                      : chain_append(queue, chain, desc.addr, desc.len, desc.flags & VRING_DESC_F_WRITE);
        if (!ok)
            return false;
        chain->slots++;
        if (++slot == queue->size)
            slot = 0;
    } while (desc.flags & VRING_DESC_F_NEXT);
    chain->id = desc.id;        /* §2.8.6: the last one's counts */
    return true;
}

/* Moves a place on by some slots; the wrap counter turns over at the end of the ring. */
static void move(const struct virtio_queue *queue, uint16_t *place, bool *wrap, uint16_t slots)
{
    unsigned at = *place + slots;
    if (at >= queue->size) {
        at -= queue->size;
        *wrap = !*wrap;
    }
    *place = (uint16_t)at;
}

static bool packed_pop(struct virtio_queue *queue, struct virtio_chain *chain)
{
    if (!packed_available(queue))
        return false;
    ring_acquire();
    if (!walk_chain(queue, chain))
        return false;
    move(queue, &queue->avail_next, &queue->avail_wrap, chain->slots);
    return true;
}

static void packed_fill(struct virtio_queue *queue, uint16_t id, uint16_t slots, uint32_t written)
{
    struct { uint32_t len; uint16_t id; } element = { written, id };
    uint16_t slot = queue->used_next;
    bool wrap = queue->used_wrap;
    move(queue, &slot, &wrap, queue->filled);
    uint16_t flags = wrap ? 1u << VRING_PACKED_DESC_F_AVAIL | 1u << VRING_PACKED_DESC_F_USED : 0;
    if (written)
        flags |= VRING_DESC_F_WRITE;
    if (!ring_write(queue, slot_address(queue, slot) + DESC_LEN, &element, 6))
        return;
    if (!queue->filled) {
        queue->first_slot = slot;
        queue->first_flags = flags;
    } else {
        ring_release();
        ring_write16(queue, slot_address(queue, slot) + DESC_FLAGS, flags);
    }
    queue->filled = (uint16_t)(queue->filled + slots);
}

static void packed_publish(struct virtio_queue *queue)
{
    ring_release();
    ring_write16(queue, slot_address(queue, queue->first_slot) + DESC_FLAGS, queue->first_flags);
    move(queue, &queue->used_next, &queue->used_wrap, queue->filled);
}

/* §2.8.10: an event is a slot and the lap it is meant in; one in the last lap lies a ring's length before. */
static bool packed_wants_interrupt(struct virtio_queue *queue)
{
    struct vring_packed_desc_event event;
    if (!ring_read(queue, queue->driver, &event, sizeof(event)))
        return false;
    if (event.flags != VRING_PACKED_EVENT_FLAG_DESC || !virtio_has(queue->virtio, VIRTIO_RING_F_EVENT_IDX))
        return event.flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    bool event_wrap = event.off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR;
    uint16_t at = event.off_wrap & 0x7FFF;
    if (event_wrap != queue->used_wrap)
        at = (uint16_t)(at - queue->size);
    return ring_passes(at, queue->used_next, (uint16_t)(queue->used_next - queue->unsignalled));
}

static void packed_want_notify(struct virtio_queue *queue, bool on)
{
    ring_write16(queue, queue->device + EVENT_FLAGS, on ? VRING_PACKED_EVENT_FLAG_ENABLE : VRING_PACKED_EVENT_FLAG_DISABLE);
}

const struct ring_ops ring_packed = {
    .pop = packed_pop,
    .available = packed_available,
    .fill = packed_fill,
    .publish = packed_publish,
    .wants_interrupt = packed_wants_interrupt,
    .want_notify = packed_want_notify,
};
