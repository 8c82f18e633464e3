/* A disk file in memory, which can keep a record of what was written to it, and fail on command. */
#ifndef DOPPEL_TESTS_DISK_MEMORY_FILE_H
#define DOPPEL_TESTS_DISK_MEMORY_FILE_H

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk_file.h"
#include "base/base.h"

/* What happened to a file, in order. size 0: a flush. */
struct memory_event {
    uint64_t offset, size;
    uint8_t *bytes;
};

struct memory_store {
    uint8_t *bytes;
    uint64_t size, limit;               /* limit: a write beyond it fails with ENOSPC */
    bool record;
    struct memory_event *event;
    size_t events, room;
    int fail_writes, fail_flushes;      /* errno */
    pthread_mutex_t lock;
};

/* The store outlives the file, as a disk outlives who has it open. */
struct memory_file {
    struct disk_file file;
    struct memory_store *store;
};

static inline void memory_note(struct memory_store *store, uint64_t offset, const void *bytes, uint64_t size)
{
    if (!store->record)
        return;
    if (store->events == store->room) {
        store->room = store->room ? store->room * 2 : 1024;
        store->event = realloc(store->event, store->room * sizeof(*store->event));
    }
    struct memory_event event = { offset, size, size ? malloc(size) : NULL };
    if (size)
        memcpy(event.bytes, bytes, size);
    store->event[store->events++] = event;
}

static inline void memory_put(struct memory_store *store, const void *bytes, uint64_t size, uint64_t offset)
{
    if (offset + size > store->size) {
        store->bytes = realloc(store->bytes, offset + size);
        memset(store->bytes + store->size, 0, offset + size - store->size);
        store->size = offset + size;
    }
    if (size)
        memcpy(store->bytes + offset, bytes, size);
}

static inline int memory_read(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    struct memory_store *store = ((struct memory_file *)file)->store;
    pthread_mutex_lock(&store->lock);
    for (int i = 0; i < count; i++) {
        uint64_t there = offset < store->size ? min_u64(iov[i].iov_len, store->size - offset) : 0;
        memset(iov[i].iov_base, 0, iov[i].iov_len);
        if (there)
            memcpy(iov[i].iov_base, store->bytes + offset, there);
        offset += iov[i].iov_len;
    }
    pthread_mutex_unlock(&store->lock);
    return 0;
}

static inline int memory_write(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    struct memory_store *store = ((struct memory_file *)file)->store;
    pthread_mutex_lock(&store->lock);
    int status = file->read_only ? EBADF : store->fail_writes;
    for (int i = 0; i < count && !status; i++) {
        if (offset > store->limit || iov[i].iov_len > store->limit - offset) {
            status = ENOSPC;
            break;
        }
        memory_put(store, iov[i].iov_base, iov[i].iov_len, offset);
        memory_note(store, offset, iov[i].iov_base, iov[i].iov_len);
        offset += iov[i].iov_len;
    }
    pthread_mutex_unlock(&store->lock);
    return status;
}

static inline int memory_flush(struct disk_file *file)
{
    struct memory_store *store = ((struct memory_file *)file)->store;
    pthread_mutex_lock(&store->lock);
    memory_note(store, 0, NULL, 0);
    int status = store->fail_flushes;
    pthread_mutex_unlock(&store->lock);
    return status;
}

/* Punched bytes become something that nobody could mistake for data or zeroes. */
static inline void memory_punch(struct disk_file *file, uint64_t offset, uint64_t size)
{
    struct memory_store *store = ((struct memory_file *)file)->store;
    pthread_mutex_lock(&store->lock);
    uint64_t there = offset < store->size ? min_u64(size, store->size - offset) : 0;
    if (there) {
        memset(store->bytes + offset, 0xDD, there);
        memory_note(store, offset, store->bytes + offset, there);
    }
    pthread_mutex_unlock(&store->lock);
}

static inline int memory_truncate(struct disk_file *file, uint64_t size)
{
    return ENOTSUP;
}

static inline uint64_t memory_size(struct disk_file *file)
{
    return ((struct memory_file *)file)->store->size;
}

static inline void memory_close(struct disk_file *file)
{
    free(file);
}

static inline void memory_store_init(struct memory_store *store)
{
    *store = (struct memory_store){ .limit = GiB };
    pthread_mutex_init(&store->lock, NULL);
}

static inline void memory_store_free(struct memory_store *store)
{
    for (size_t i = 0; i < store->events; i++)
        free(store->event[i].bytes);
    free(store->event);
    free(store->bytes);
    pthread_mutex_destroy(&store->lock);
}

static inline struct disk_file *memory_file_open(struct memory_store *store, bool read_only)
{
    static const struct disk_file_ops ops = {
        .read = memory_read, .write = memory_write, .flush = memory_flush, .punch = memory_punch, .truncate = memory_truncate,
        .size = memory_size, .close = memory_close,
    };
    struct memory_file *file = calloc(1, sizeof(*file));
    *file = (struct memory_file){ { &ops, "memory", read_only, true }, store };
    return &file->file;
}

#endif
