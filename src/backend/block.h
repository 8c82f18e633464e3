/*
 * Block backends: what a disk device talks to on the host. Requests are asynchronous; they complete on the event loop's
 * thread, a thread of the backend's or in block_unplug, with the board lock held. A raw image goes through io_uring (what io_uring would have to do with
 * threads: through a thread pool), or all through the pool where io_uring is forbidden; a qcow2 image (disk_image.h) goes through a thread pool. Write order: a flush completes after every write that
 * completed before it was submitted is on stable storage.
 */
#ifndef DOPPEL_BACKEND_BLOCK_H
#define DOPPEL_BACKEND_BLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backend/disk_image.h"

struct error;
struct loop;
struct log;

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_request {
    enum block_op op;
    uint64_t offset, size;              /* bytes; multiples of 512 */
    const struct iovec *iov;            /* READ, WRITE: total `size`; valid until completion */
    int iov_count;                      /* at most DISK_IOV_MAX */
    bool unmap;                         /* WRITE_ZEROES: may deallocate */
    void (*done)(struct block_request *request, int status);    /* 0, or a positive errno */
    void *owner;
    struct block_request *next;         /* the backend's */
    void *backend;                      /* the backend's */
    int64_t progress;                   /* the backend's */
};

struct block_options {
    const char *path;
    struct disk_image *opened;          /* the image, opened as `image` says; the block's from now on, even where that fails; NULL: block_open does it */
    struct disk_image_options image;    /* format, read_only, direct, backing, ephemeral, ... */
    enum { BLOCK_ENGINE_AUTO, BLOCK_ENGINE_URING, BLOCK_ENGINE_THREADS } engine;    /* raw images only */
};

struct block;

/* Opens and locks the image (F_OFD_SETLK: shared when read-only, else exclusive). NULL: err names file and reason. */
struct block *block_open(const struct block_options *options, struct loop *loop, pthread_mutex_t *lock, struct log *log,
                         struct error *err);
/* Waits for what is under way, flushes, unlocks. */
void block_close(struct block *block);

uint64_t block_size(const struct block *block);         /* bytes */
bool block_read_only(const struct block *block);
bool block_can_discard(const struct block *block);
const char *block_engine_name(const struct block *block);
/* The image that is written to now, as it was named when it was opened (an ephemeral one: the directory of the overlay). */
const char *block_path(const struct block *block);
enum disk_format block_format(const struct block *block);

/* Board lock held. `done` never runs before submit returns. */
void block_submit(struct block *block, struct block_request *request);
/*
 * Board lock held. What is submitted between the two reaches the host at once and as one; what the host had at hand is complete when
 * block_unplug returns, its `done` having run there, on the caller's thread, instead of on the loop's.
 */
void block_plug(struct block *block);
void block_unplug(struct block *block);
/* Board lock held: waits until nothing is under way (completions run). For quiesce and reset. */
void block_drain(struct block *block);

/*
 * Board lock held, nothing under way: afterwards the file of the image is complete, as if it had been closed, until the next request.
 * For who copies it. False: err tells why.
 */
bool block_settle(struct block *block, struct error *err);
/*
 * Board lock held, the device quiesced: nothing is under way, and nothing is submitted until this returns. Makes the
 * qcow2 file `path`, which must not be there yet, over the image that was written to so far. From now on writes go to `path`;
 * what it covers is complete on stable storage, will not change any more, and can be opened (read-only) by others. The new file names it by
 * its absolute path and format, so that `path` with backing=on, or with image.base_path where it was moved, is the
 * same disk again. Works on a disk that is an overlay already. False: err names file and reason, and nothing has changed.
 */
bool block_switch_to_overlay(struct block *block, const char *path, struct error *err);

#endif
