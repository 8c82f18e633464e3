/* Bytes that wait to be taken, in order. One thread at a time. All zero: empty. */
#ifndef DOPPEL_BASE_BYTE_QUEUE_H
#define DOPPEL_BASE_BYTE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct byte_queue {
    uint8_t *data;
    size_t first, size, capacity;       /* what waits begins at data + first */
};

/* Room for so many bytes more, so that adding them cannot fail. False: no memory. */
bool byte_queue_reserve(struct byte_queue *queue, size_t size);
/* At the end; room was reserved. */
void byte_queue_add(struct byte_queue *queue, const void *data, size_t size);
static inline const uint8_t *byte_queue_first(const struct byte_queue *queue) { return queue->data + queue->first; }
/* The first `size` bytes, at most all, have been taken. */
void byte_queue_drop(struct byte_queue *queue, size_t size);
/* Empties it, and gives the memory back. */
void byte_queue_free(struct byte_queue *queue);

#endif
