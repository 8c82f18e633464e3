#include "base/byte_queue.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

bool byte_queue_reserve(struct byte_queue *queue, size_t size)
{
    size_t wanted = queue->size + size;
    if (queue->first + wanted <= queue->capacity)
        return true;
    if (queue->first && wanted <= queue->capacity / 2) {       /* half of it is free: it takes as many bytes again before that is moved once more */
        memmove(queue->data, queue->data + queue->first, queue->size);
        queue->first = 0;
        return true;
    }
    uint8_t *data = malloc(2 * wanted);
    if (!data)
        return false;
    if (queue->size)
        memcpy(data, queue->data + queue->first, queue->size);
    free(queue->data);
    *queue = (struct byte_queue){ .data = data, .size = queue->size, .capacity = 2 * wanted };
    return true;
}

void byte_queue_add(struct byte_queue *queue, const void *data, size_t size)
{
    assert(queue->first + queue->size + size <= queue->capacity);
    if (size)
        memcpy(queue->data + queue->first + queue->size, data, size);
    queue->size += size;
}

void byte_queue_drop(struct byte_queue *queue, size_t size)
{
    assert(size <= queue->size);
    queue->first += size;
    queue->size -= size;
    if (!queue->size)
        byte_queue_free(queue);
}

void byte_queue_free(struct byte_queue *queue)
{
    free(queue->data);
    *queue = (struct byte_queue){ 0 };
}
