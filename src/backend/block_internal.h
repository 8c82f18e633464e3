/* What the files of the block backend share with each other only. */
#ifndef DOPPEL_BACKEND_BLOCK_INTERNAL_H
#define DOPPEL_BACKEND_BLOCK_INTERNAL_H

#include "backend/block.h"
#include "base/base.h"
#include "base/loop.h"

/* How requests reach the host. Board lock held, stop excepted. */
struct block_engine {
    const char *name;
    bool (*start)(struct block *block, struct error *err);
    void (*stop)(struct block *block);          /* nothing is under way */
    void (*submit)(struct block *block, struct block_request *request);
    void (*wait)(struct block *block);          /* until at least one completion ran; something is under way */
    void (*plug)(struct block *block);          /* NULL: it has nothing to gain */
    void (*unplug)(struct block *block);
};
extern const struct block_engine block_uring, block_threads;

/*
 * A few threads that carry out requests with ordinary calls. They run `done` themselves where nobody has the board lock just then; else
 * the loop's thread does, or who waits. Board lock held, but for destroy, when nothing is under way.
 */
struct block_pool;
struct block_pool *block_pool_create(struct block *block, unsigned threads, struct error *err);
void block_pool_destroy(struct block_pool *pool);
void block_pool_submit(struct block_pool *pool, struct block_request *request);
bool block_pool_busy(const struct block_pool *pool);
void block_pool_wait(struct block_pool *pool);          /* it is busy: until at least one completion ran */

struct block {
    struct disk_image *image;
    int fd;                             /* raw images */
    bool direct;
    struct loop *loop;
    pthread_mutex_t *lock;
    struct log *log;
    const struct block_engine *engine;
    void *engine_state;
    /* A raw image's, after the switch to an overlay: it has nothing to do, but the loop may be about to look at it. */
    const struct block_engine *retired;
    void *retired_state;
    unsigned under_way;
    uint64_t failures;
    struct block_request *refused, *refused_last;
    struct loop_work refused_work;
};

/*
 * The host call that comes next for a request. A request may need several: short transfers, zeroes written because the
 * host cannot make a hole, a bounce buffer for O_DIRECT.
 */
enum block_call { CALL_READV, CALL_WRITEV, CALL_FSYNC, CALL_FALLOCATE };
struct block_part {
    enum block_call call;
    uint64_t offset, size;
    struct iovec *iov;          /* a copy, moved forward as the transfer goes on */
    int iov_count;
    int mode;                   /* CALL_FALLOCATE */
    int attempt;                /* which way of discarding or zeroing */
    void *bounce;               /* O_DIRECT with memory that is not aligned for it */
    uint8_t *zeroes;
    struct iovec own[16];
};

/* Sets up request->backend, the first part. False: out of memory. */
bool block_part_init(struct block *block, struct block_request *request);
void block_part_free(struct block_request *request);
/*
 * The host returned `result` (a count, or a negative errno) for the part. True: the part now describes the next call to
 * make. False: the request is finished, *status says how.
 */
bool block_part_next(struct block_request *request, int64_t result, int *status);

/* A raw image in a file of the host: requests are made of parts for io_uring or preadv(); else block_call_image carries out a whole one. */
bool block_is_raw(const struct block *block);
int block_call_image(struct block *block, const struct block_request *request);

void block_complete(struct block *block, struct block_request *request, int status);
const char *block_op_name(enum block_op op);
void block_board_lock(struct block *block);
bool block_board_trylock(struct block *block);          /* false where there is no lock: then all is left to the loop's thread */
void block_board_unlock(struct block *block);

#endif
