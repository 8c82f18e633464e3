/*
 * A driver of the test's own for virtio over PCI: it does what VIRTIO §3.1 "Device Initialization" says, and keeps split
 * and packed rings in the rig's RAM. Independent of the device's code, so that both must have read the same document.
 */
#ifndef DOPPEL_TESTS_DEV_VIRTIO_DRIVER_H
#define DOPPEL_TESTS_DEV_VIRTIO_DRIVER_H

#include "dev/rig.h"
#include "dev/virtio/devices.h"

enum { DRIVER_QUEUES = 2, DRIVER_SLOT = 4 << 3, DRIVER_SEGMENTS = 300 };

struct driver_segment {
    uint64_t address;
    uint32_t size;
    bool writable;
};

struct driver_queue {
    uint16_t size;
    uint64_t desc, avail, used, indirect;
    uint16_t next, used_next;           /* split: indices; packed: slots */
    bool wrap, used_wrap;
    uint16_t free[256], free_count;     /* split: descriptors; packed: buffer ids */
    uint16_t chain_next[256];           /* split: our own copy of the links; 0xFFFF ends */
    uint16_t slots[256];                /* packed: by id */
    uint16_t free_slots;
    uint16_t added_since_kick;
};

struct driver {
    struct rig *rig;
    struct pci_function *function;
    uint64_t bar, memory;               /* memory: where the next allocation goes */
    uint64_t features;
    struct driver_queue queue[DRIVER_QUEUES];
};

static inline bool driver_has(const struct driver *d, unsigned bit) { return d->features & BIT(bit); }

static inline uint64_t driver_alloc(struct driver *d, uint64_t size)
{
    uint64_t at = align_up(d->memory, 64);
    d->memory = at + size;
    assert_true(d->memory <= RIG_RAM);
    return at;
}

static inline void poke(struct driver *d, uint64_t address, unsigned size, uint64_t value)
{
    assert_true(ram_write(d->rig->ram, address, &value, size));
}

static inline uint64_t peek(struct driver *d, uint64_t address, unsigned size)
{
    uint64_t value = 0;
    assert_true(ram_read(d->rig->ram, address, &value, size));
    return value;
}

static inline uint32_t common_read(struct driver *d, unsigned offset, unsigned size)
{
    return (uint32_t)rig_read(d->rig, d->bar + offset, size);
}

static inline void common_write(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
    rig_write(d->rig, d->bar + offset, size, value);
}

static inline uint8_t driver_status(struct driver *d) { return (uint8_t)common_read(d, 20, 1); }

static inline void driver_setup_queue(struct driver *d, unsigned index, uint16_t size)
{
    struct driver_queue *q = &d->queue[index];
    memset(q, 0, sizeof(*q));
    q->size = size;
    q->desc = driver_alloc(d, 16u * size);
    q->avail = driver_alloc(d, 6 + 2u * size);
    q->used = driver_alloc(d, 6 + 8u * size);
    q->indirect = driver_alloc(d, 16u * DRIVER_SEGMENTS * 4);
    for (uint64_t i = q->desc; i < q->indirect; i++)
        poke(d, i, 1, 0);
    q->wrap = q->used_wrap = true;
    for (uint16_t i = 0; i < size; i++)
        q->free[q->free_count++] = i;
    q->free_slots = size;
    common_write(d, 22, 2, index);
    common_write(d, 24, 2, size);
    common_write(d, 26, 2, index + 1);          /* vector; refused without MSI-X */
    common_write(d, 32, 4, (uint32_t)q->desc);
    common_write(d, 36, 4, q->desc >> 32);
    common_write(d, 40, 8, q->avail);
    common_write(d, 48, 8, q->used);
    common_write(d, 28, 2, 1);
}

/* From reset to DRIVER_OK with the wanted features that are offered. */
static inline void driver_start(struct driver *d, uint64_t wanted, uint16_t size)
{
    uint64_t offered = 0;
    d->memory = 0x1000;
    common_write(d, 20, 1, 0);
    assert_int_equal(driver_status(d), 0);
    common_write(d, 20, 1, 1);
    common_write(d, 20, 1, 3);
    for (unsigned i = 0; i < 2; i++) {
        common_write(d, 0, 4, i);
        offered |= (uint64_t)common_read(d, 4, 4) << 32 * i;
    }
    assert_true(offered & BIT(VIRTIO_F_VERSION_1) && offered & BIT(VIRTIO_F_ACCESS_PLATFORM));
    d->features = offered & (wanted | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ACCESS_PLATFORM));
    for (unsigned i = 0; i < 2; i++) {
        common_write(d, 8, 4, i);
        common_write(d, 12, 4, d->features >> 32 * i);
    }
    common_write(d, 20, 1, 11);
    assert_int_equal(driver_status(d), 11);
    unsigned queues = common_read(d, 18, 2);
    for (unsigned i = 0; i < queues && i < DRIVER_QUEUES; i++)
        driver_setup_queue(d, i, size);
    common_write(d, 20, 1, 15);
    assert_int_equal(driver_status(d), 15);
}

static inline void driver_create(struct driver *d, struct rig *rig, const struct device_type *type,
                                 void (*configure)(struct device *device, void *opaque), void *opaque)
{
    memset(d, 0, sizeof(*d));
    d->rig = rig;
    d->function = rig_add(rig, type, DRIVER_SLOT, configure, opaque);
    d->bar = rig_bar(rig, DRIVER_SLOT, 4);
}

static inline void driver_use_msix(struct driver *d, unsigned vectors)
{
    uint64_t table = rig_bar(d->rig, DRIVER_SLOT, 1);
    unsigned at = rig_capability(d->rig, DRIVER_SLOT, PCI_CAP_ID_MSIX, 0);
    for (unsigned i = 0; i < vectors; i++) {
        rig_write(d->rig, table + 16 * i, 8, 0xFEE00000);
        rig_write(d->rig, table + 16 * i + 8, 4, 0x40 + i);
        rig_write(d->rig, table + 16 * i + 12, 4, 0);
    }
    rig_config_write(d->rig, DRIVER_SLOT, at + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
}

/* --- adding buffers; -1: no room --- */

static inline void write_desc(struct driver *d, uint64_t at, uint64_t address, uint32_t size, uint16_t third, uint16_t fourth)
{
    poke(d, at, 8, address);
    poke(d, at + 8, 4, size);
    poke(d, at + 12, 2, third);
    poke(d, at + 14, 2, fourth);
}

static inline uint64_t write_indirect(struct driver *d, struct driver_queue *q, uint16_t id, const struct driver_segment *s,
                                      unsigned count)
{
    uint64_t table = q->indirect + 16ull * 8 * id % (16ull * DRIVER_SEGMENTS * 3);
    for (unsigned i = 0; i < count; i++) {
        uint16_t write = s[i].writable ? VRING_DESC_F_WRITE : 0, next = i + 1 < count ? VRING_DESC_F_NEXT : 0;
        if (driver_has(d, VIRTIO_F_RING_PACKED))
            write_desc(d, table + 16 * i, s[i].address, s[i].size, 0, write);
        else
            write_desc(d, table + 16 * i, s[i].address, s[i].size, write | next, (uint16_t)(i + 1));
    }
    return table;
}

static inline int add_split(struct driver *d, struct driver_queue *q, const struct driver_segment *s, unsigned count, bool indirect)
{
    unsigned needed = indirect ? 1 : count;
    if (q->free_count < needed)
        return -1;
    uint16_t head = q->free[q->free_count - 1];
    if (indirect) {
        q->free_count--;
        q->chain_next[head] = 0xFFFF;
        write_desc(d, q->desc + 16u * head, write_indirect(d, q, head, s, count), 16 * count, VRING_DESC_F_INDIRECT, 0);
    }
    for (unsigned i = 0; i < needed && !indirect; i++) {
        uint16_t at = q->free[--q->free_count], next = i + 1 < needed ? q->free[q->free_count - 1] : 0xFFFF;
        q->chain_next[at] = next;
        write_desc(d, q->desc + 16u * at, s[i].address, s[i].size,
                   (uint16_t)((s[i].writable ? VRING_DESC_F_WRITE : 0) | (next != 0xFFFF ? VRING_DESC_F_NEXT : 0)), next);
    }
    poke(d, q->avail + 4 + 2u * (q->next % q->size), 2, head);
    q->next++;
    poke(d, q->avail + 2, 2, q->next);
    return head;
}

static inline int add_packed(struct driver *d, struct driver_queue *q, const struct driver_segment *s, unsigned count, bool indirect)
{
    unsigned needed = indirect ? 1 : count;
    if (q->free_slots < needed || !q->free_count)
        return -1;
    uint16_t id = q->free[--q->free_count], first = q->next, first_flags = 0;
    q->slots[id] = (uint16_t)needed;
    q->free_slots = (uint16_t)(q->free_slots - needed);
    for (unsigned i = 0; i < needed; i++) {
        uint16_t flags = q->wrap ? 1 << 7 : 1 << 15;
        uint64_t at = q->desc + 16u * q->next;
        if (indirect) {
            flags |= VRING_DESC_F_INDIRECT;
            poke(d, at, 8, write_indirect(d, q, id, s, count));
            poke(d, at + 8, 4, 16 * count);
        } else {
            flags |= (uint16_t)((s[i].writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < needed ? VRING_DESC_F_NEXT : 0));
            poke(d, at, 8, s[i].address);
            poke(d, at + 8, 4, s[i].size);
        }
        poke(d, at + 12, 2, id);
        if (i == 0)
            first_flags = flags;
        else
            poke(d, at + 14, 2, flags);
        if (++q->next == q->size) {
            q->next = 0;
            q->wrap = !q->wrap;
        }
    }
    poke(d, q->desc + 16u * first + 14, 2, first_flags);
    return id;
}

static inline int driver_add(struct driver *d, unsigned index, const struct driver_segment *s, unsigned count, bool indirect)
{
    struct driver_queue *q = &d->queue[index];
    int id = driver_has(d, VIRTIO_F_RING_PACKED) ? add_packed(d, q, s, count, indirect) : add_split(d, q, s, count, indirect);
    q->added_since_kick += id >= 0;
    return id;
}

static inline void driver_notify(struct driver *d, unsigned index) { rig_write(d->rig, d->bar + 0x3000 + 4 * index, 2, index); }

/* Notifies only if the device asked for it, as a driver should; returns whether it did. */
static inline bool driver_kick(struct driver *d, unsigned index)
{
    struct driver_queue *q = &d->queue[index];
    bool wanted;
    if (driver_has(d, VIRTIO_F_RING_PACKED)) {
        wanted = peek(d, q->used + 2, 2) != 1;
    } else if (driver_has(d, VIRTIO_RING_F_EVENT_IDX)) {
        uint16_t event = (uint16_t)peek(d, q->used + 4 + 8u * q->size, 2);
        wanted = (uint16_t)(q->next - event - 1) < q->added_since_kick;
    } else {
        wanted = !(peek(d, q->used, 2) & 1);
    }
    q->added_since_kick = 0;
    if (wanted)
        driver_notify(d, index);
    return wanted;
}

/* --- getting them back --- */

/* Returns the id, or -1. */
static inline int driver_get(struct driver *d, unsigned index, uint32_t *written)
{
    struct driver_queue *q = &d->queue[index];
    if (driver_has(d, VIRTIO_F_RING_PACKED)) {
        uint64_t at = q->desc + 16u * q->used_next;
        uint16_t flags = (uint16_t)peek(d, at + 14, 2);
        if (!!(flags & 1 << 7) != q->used_wrap || !!(flags & 1 << 15) != q->used_wrap)
            return -1;
        uint16_t id = (uint16_t)peek(d, at + 12, 2);
        assert_true(id < q->size && q->slots[id]);
        *written = (uint32_t)peek(d, at + 8, 4);
        q->used_next = (uint16_t)(q->used_next + q->slots[id]);
        q->free_slots = (uint16_t)(q->free_slots + q->slots[id]);
        if (q->used_next >= q->size) {
            q->used_next = (uint16_t)(q->used_next - q->size);
            q->used_wrap = !q->used_wrap;
        }
        q->slots[id] = 0;
        q->free[q->free_count++] = id;
        return id;
    }
    if ((uint16_t)peek(d, q->used + 2, 2) == q->used_next)
        return -1;
    uint64_t at = q->used + 4 + 8u * (q->used_next % q->size);
    uint32_t id = (uint32_t)peek(d, at, 4);
    *written = (uint32_t)peek(d, at + 4, 4);
    assert_true(id < q->size);
    q->used_next++;
    for (uint16_t i = (uint16_t)id; i != 0xFFFF; i = q->chain_next[i])
        q->free[q->free_count++] = i;
    return (int)id;
}

/* Asks for an interrupt at the next buffer that comes back. */
static inline void driver_ask_interrupt(struct driver *d, unsigned index)
{
    struct driver_queue *q = &d->queue[index];
    if (driver_has(d, VIRTIO_F_RING_PACKED)) {
        poke(d, q->avail, 2, q->used_next | (unsigned)q->used_wrap << 15);
        poke(d, q->avail + 2, 2, driver_has(d, VIRTIO_RING_F_EVENT_IDX) ? 2 : 0);
    } else if (driver_has(d, VIRTIO_RING_F_EVENT_IDX)) {
        poke(d, q->avail + 4 + 2u * q->size, 2, q->used_next);
    } else {
        poke(d, q->avail, 2, 0);
    }
}

#endif
