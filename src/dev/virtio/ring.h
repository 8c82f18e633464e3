/* The two ring formats behind queue.c. */
#ifndef DOPPEL_DEV_VIRTIO_RING_H
#define DOPPEL_DEV_VIRTIO_RING_H

#include "dev/virtio/virtio.h"

struct ring_ops {
    bool (*pop)(struct virtio_queue *queue, struct virtio_chain *chain);
    bool (*available)(struct virtio_queue *queue);
    void (*fill)(struct virtio_queue *queue, uint16_t id, uint16_t slots, uint32_t written);
    void (*publish)(struct virtio_queue *queue);
    bool (*wants_interrupt)(struct virtio_queue *queue);
    void (*want_notify)(struct virtio_queue *queue, bool on);
};
extern const struct ring_ops ring_split, ring_packed;

/* Memory of the rings. On failure the device is broken: the value read is then 0. */
bool ring_read(struct virtio_queue *queue, uint64_t address, void *buffer, size_t size);
bool ring_write(struct virtio_queue *queue, uint64_t address, const void *buffer, size_t size);
uint16_t ring_read16(struct virtio_queue *queue, uint64_t address);
void ring_write16(struct virtio_queue *queue, uint64_t address, uint16_t value);

/* Marks the queue broken and returns false. */
bool ring_broken(struct virtio_queue *queue, const char *why);
/* Appends a segment; false if the chain breaks a rule. */
bool chain_append(struct virtio_queue *queue, struct virtio_chain *chain, uint64_t address, uint32_t size, bool writable);

/*
 * Both ring formats leave this to the processor's order: what the other side wrote before it raised an index or a flag is
 * read after it. x86 keeps loads in order and stores in order; a store followed by a load of another place it does not.
 */
static inline void ring_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline void ring_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void ring_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* VIRTIO §2.7.7.1, §2.7.10: does moving from `old` to `new` pass `event`? All modulo 2^16. */
static inline bool ring_passes(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

#endif
