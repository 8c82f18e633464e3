/*
 * Block backends: what a disk device talks to on the host. Requests are asynchronous; they complete on the event loop's
 * thread with the board lock held. A raw file or block device goes through io_uring, or through a thread pool where
 * io_uring is forbidden. Write order: a flush completes after every write that completed before it was submitted is on
 * stable storage.
 */
#ifndef DOPPEL_BACKEND_BLOCK_H
#define DOPPEL_BACKEND_BLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct error;
struct loop;
struct log;

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_request {
    enum block_op op;
    uint64_t offset, size;              /* bytes; multiples of 512 */
    const struct iovec *iov;            /* READ, WRITE: total `size`; valid until completion */
    int iov_count;
    bool unmap;                         /* WRITE_ZEROES: may deallocate */
    void (*done)(struct block_request *request, int status);    /* 0, or a positive errno */
    void *owner;
    struct block_request *next;         /* the backend's */
    void *backend;                      /* the backend's */
    int64_t progress;                   /* the backend's */
};

struct block_options {
    const char *path;
    bool read_only;
    bool direct;                        /* O_DIRECT */
    enum { BLOCK_ENGINE_AUTO, BLOCK_ENGINE_URING, BLOCK_ENGINE_THREADS } engine;
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

/* Board lock held. `done` never runs before submit returns. */
void block_submit(struct block *block, struct block_request *request);
/* Board lock held: waits until nothing is under way (completions run). For quiesce and reset. */
void block_drain(struct block *block);

#endif
