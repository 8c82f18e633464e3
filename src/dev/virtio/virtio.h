/*
 * virtio 1.2 over PCI, modern devices only: the transport (transport.c), the rings (queue.c, queue_split.c,
 * queue_packed.c), and what a device type adds, as a record of functions. A device's own struct starts with
 * `struct virtio`, which starts with `struct pci_function`.
 *
 * Everything runs with the board lock held. A notification is handled at once, on the thread of the processor that wrote it,
 * but only for a batch of buffers; the rest is posted to the event loop, so one register access never takes unbounded time.
 *
 * The driver is the enemy: each descriptor is copied once and then checked; a ring that breaks the rules sets
 * DEVICE_NEEDS_RESET and is not looked at again until the driver resets the device.
 */
#ifndef DOPPEL_DEV_VIRTIO_VIRTIO_H
#define DOPPEL_DEV_VIRTIO_VIRTIO_H

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "dev/pci/pci.h"

enum {
    VIRTIO_QUEUES_MAX = 8,
    VIRTIO_QUEUE_SIZE = 256,            /* the most that a queue can have here */
    VIRTIO_SEGMENTS_MAX = 256,          /* of one chain; VIRTIO §2.7.5.3.1: no longer than the queue */
    VIRTIO_CONFIG_MAX = 128,
    VIRTIO_NO_VECTOR = 0xFFFF,
};

struct virtio;

/* --- rings --- */

struct virtio_queue {
    struct virtio *virtio;
    uint16_t index;
    /* Set by the driver. */
    uint16_t size, vector;
    bool enabled;
    uint64_t desc, driver, device;      /* split: descriptor table, available ring, used ring */
    /* Where we are. Split: free-running indices; packed: slots with a wrap counter each. */
    uint16_t avail_next, used_next;
    bool avail_wrap, used_wrap;
    uint16_t in_flight;                 /* taken and not yet given back: chains, packed: slots */
    uint16_t unsignalled;               /* given back since the driver was last asked whether it wants to know */
    uint16_t prompt;                    /* so many notifications are obeyed at once before one is waited with again */
    /* Written to the used ring and not yet published. */
    uint16_t filled, first_slot, first_flags;
};

struct virtio_segment {
    uint64_t address;
    uint32_t size;
};

/* A buffer of the driver: what the device may read, then what it may write. */
struct virtio_chain {
    uint16_t id, slots;                 /* what to give back; slots is 1 in a split ring */
    uint16_t out_count, in_count;       /* segments to read, to write */
    uint64_t out_size, in_size;         /* bytes */
    struct virtio_segment segment[VIRTIO_SEGMENTS_MAX];
};

/* Where a queue stood, to take buffers back that turned out not to suffice. */
struct virtio_queue_mark {
    uint16_t avail_next, in_flight;
    bool avail_wrap;
};

/* Takes the next buffer. False: there is none, or the ring is broken. */
bool virtio_queue_pop(struct virtio_queue *queue, struct virtio_chain *chain);
bool virtio_queue_empty(struct virtio_queue *queue);
struct virtio_queue_mark virtio_queue_mark(const struct virtio_queue *queue);
void virtio_queue_rewind(struct virtio_queue *queue, struct virtio_queue_mark mark);
/* Gives a buffer back: fill any number, then publish them at once. `written`: bytes from the start of the writable part. */
void virtio_queue_fill(struct virtio_queue *queue, uint16_t id, uint16_t slots, uint32_t written);
void virtio_queue_publish(struct virtio_queue *queue);
void virtio_queue_push(struct virtio_queue *queue, const struct virtio_chain *chain, uint32_t written);
/* Interrupts the driver if it wants to know of what was published. */
void virtio_queue_signal(struct virtio_queue *queue);
/* Whether the driver should notify us of new buffers. After `true`, look again whether the queue is empty. */
void virtio_queue_want_notify(struct virtio_queue *queue, bool on);

/* Copies out of the readable part, into the writable part. False: not that long, or memory that cannot be reached. */
bool virtio_chain_read(struct virtio_queue *queue, const struct virtio_chain *chain, uint64_t offset, void *buffer, size_t size);
bool virtio_chain_write(struct virtio_queue *queue, const struct virtio_chain *chain, uint64_t offset, const void *buffer,
                        size_t size);
/*
 * Pins part of a chain for the host: the number of iovecs, or -1. `writes`: the writable part, else the readable one.
 * Ended by unmap with the same arguments.
 */
int virtio_chain_map(struct virtio_queue *queue, const struct virtio_chain *chain, bool writes, uint64_t offset, uint64_t size,
                     struct iovec *iov, int max);
void virtio_chain_unmap(struct virtio_queue *queue, const struct virtio_chain *chain, bool writes, uint64_t offset,
                        uint64_t size);

/* --- devices --- */

enum virtio_progress {
    VIRTIO_TOOK,            /* one buffer was taken; there may be more */
    VIRTIO_EMPTY,           /* there was none */
    VIRTIO_STALLED,         /* the device cannot go on; it will call virtio_run_queue when it can */
};

struct virtio_ops {
    uint16_t id;            /* VIRTIO §5 "Device Types" */
    uint32_t class_code;
    uint16_t queues;
    uint64_t features;      /* beside those of every device; narrowed by init */
    uint16_t config_size;
    bool patient;           /* what is notified may wait until more has come: see wait_for_more */
    /* Handles at most one buffer of the queue. */
    enum virtio_progress (*handle)(struct virtio *virtio, struct virtio_queue *queue);
    /* Around a row of calls of handle. May be NULL. */
    void (*begin)(struct virtio *virtio);
    void (*end)(struct virtio *virtio);
    /* The driver resets the device: end what is under way. May be NULL. */
    void (*stop)(struct virtio *virtio);
    /* The driver is ready (DRIVER_OK). May be NULL. */
    void (*start)(struct virtio *virtio);
    /* The driver wrote to the device's configuration; the bytes are in config[]. May be NULL: read-only. */
    void (*config_written)(struct virtio *virtio, unsigned offset, unsigned size);
};

struct virtio {
    struct pci_function pci;
    const struct virtio_ops *ops;
    uint64_t features_off;              /* set by configure: bits not to offer */
    uint64_t offered, features;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t config_vector, queue_select;
    uint8_t status, isr, generation;
    uint8_t config[VIRTIO_CONFIG_MAX];
    uint16_t config_access;             /* where the PCI configuration access capability lies */
    struct virtio_queue queue[VIRTIO_QUEUES_MAX];
    struct loop_work work;              /* goes on with the queues in `postponed` */
    uint32_t postponed;
    uint64_t waits_since;               /* ns: the first notification that waits for more; 0: none does */
};

/* For the device types' own init, reset and so on. */
bool virtio_init(struct virtio *virtio, const struct virtio_ops *ops, struct error *err);
void virtio_reset(struct virtio *virtio);
bool virtio_accepts(struct device *device, struct error *err);
void virtio_resume(struct virtio *virtio);
void virtio_fini(struct virtio *virtio);

static inline bool virtio_has(const struct virtio *virtio, unsigned feature)
{
    return virtio->features & BIT(feature);
}

/* The queue may be worked on: enabled, the driver is ready, nothing is broken. */
bool virtio_queue_live(const struct virtio_queue *queue);
/* The next notifications are not to wait for more, of devices that are `patient`. */
void virtio_queue_be_prompt(struct virtio_queue *queue);
/* Handles what is available, as a notification does. */
void virtio_run_queue(struct virtio_queue *queue);
/* config[] was changed by the device. */
void virtio_config_changed(struct virtio *virtio);
/* The driver broke the rules. */
void virtio_break(struct virtio *virtio, const char *why);
/* Raises the interrupt of a queue (queue.c calls it). */
void virtio_interrupt_queue(struct virtio_queue *queue);

/* The state of the transport and the rings, to nest: STATE_NESTED(struct x, virtio, virtio_state). */
extern const struct state_list virtio_state;

#endif
