/* From a request to the host calls that carry it out, one after the other; the same for both engines. */
#include "backend/block_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

enum { ZERO_CHUNK = 64 * 1024, DIRECT_ALIGN = 4096 };

static bool aligned_for_direct(const struct block_request *request)
{
    for (int i = 0; i < request->iov_count; i++)
        if ((uintptr_t)request->iov[i].iov_base % DISK_SECTOR || request->iov[i].iov_len % DISK_SECTOR)
            return false;
    return true;
}

/* Between the request's buffers and the bounce buffer. */
static void bounce_copy(struct block_request *request, uint8_t *bounce, bool to_bounce)
{
    for (int i = 0; i < request->iov_count; i++) {
        const struct iovec *iov = &request->iov[i];
        memcpy(to_bounce ? bounce : iov->iov_base, to_bounce ? iov->iov_base : bounce, iov->iov_len);
        bounce += iov->iov_len;
    }
}

static bool use_bounce(struct block_request *request, struct block_part *part)
{
    if (posix_memalign(&part->bounce, DIRECT_ALIGN, request->size) != 0)
        return false;
    if (request->op == BLOCK_WRITE)
        bounce_copy(request, part->bounce, true);
    part->own[0] = (struct iovec){ part->bounce, request->size };
    part->iov = part->own;
    part->iov_count = 1;
    return true;
}

static bool use_iov(struct block_request *request, struct block_part *part)
{
    part->iov = part->own;
    part->iov_count = request->iov_count;
    if (request->iov_count > (int)ARRAY_SIZE(part->own))
        part->iov = malloc((size_t)request->iov_count * sizeof(*part->iov));
    if (!part->iov)
        return false;
    memcpy(part->iov, request->iov, (size_t)request->iov_count * sizeof(*part->iov));
    return true;
}

static bool init_transfer(struct block *block, struct block_request *request, struct block_part *part)
{
    part->call = request->op == BLOCK_READ ? CALL_READV : CALL_WRITEV;
    if (block->direct && !aligned_for_direct(request))
        return use_bounce(request, part);
    return use_iov(request, part);
}

/* The ways to discard or zero, best first; -1 ends the list. Zeroes may be deallocated only if the guest allows it. */
static int fallocate_mode(const struct block_request *request, int attempt)
{
    static const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, zero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    if (request->op == BLOCK_DISCARD || request->unmap)
        return attempt == 0 ? punch : attempt == 1 && request->op == BLOCK_WRITE_ZEROES ? zero : -1;
    return attempt == 0 ? zero : -1;
}

bool block_part_init(struct block *block, struct block_request *request)
{
    struct block_part *part = calloc(1, sizeof(*part));
    request->backend = part;
    if (!part)
        return false;
    part->offset = request->offset;
    part->size = request->size;
    switch (request->op) {
    case BLOCK_READ:
    case BLOCK_WRITE: return init_transfer(block, request, part);
    case BLOCK_FLUSH: part->call = CALL_FSYNC; break;
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        part->call = CALL_FALLOCATE;
        part->mode = fallocate_mode(request, 0);
        break;
    }
    return true;
}

void block_part_free(struct block_request *request)
{
    struct block_part *part = request->backend;
    if (!part)
        return;
    if (part->iov != part->own)
        free(part->iov);
    free(part->bounce);
    free(part->zeroes);
    free(part);
    request->backend = NULL;
}

/* Moves the buffers forward by what was transferred. */
static void advance(struct block_part *part, uint64_t done)
{
    part->offset += done;
    part->size -= done;
    struct iovec *iov = part->iov;
    int left = part->iov_count;
    while (left && done >= iov->iov_len) {
        done -= iov->iov_len;
        iov++;
        left--;
    }
    memmove(part->iov, iov, (size_t)left * sizeof(*iov));
    part->iov_count = left;
    if (left) {
        part->iov[0].iov_base = (char *)part->iov[0].iov_base + done;
        part->iov[0].iov_len -= done;
    }
}

/* The host can make neither holes nor zero ranges here: write zeroes, up to 1 MiB a call. */
static bool zeroes_next(struct block_part *part)
{
    if (!part->zeroes) {
        void *memory;
        if (posix_memalign(&memory, DIRECT_ALIGN, ZERO_CHUNK) != 0)
            return false;
        part->zeroes = memset(memory, 0, ZERO_CHUNK);
    }
    part->call = CALL_WRITEV;
    part->iov = part->own;
    part->iov_count = 0;
    for (uint64_t left = part->size; left && part->iov_count < (int)ARRAY_SIZE(part->own); part->iov_count++) {
        uint64_t piece = min_u64(left, ZERO_CHUNK);
        part->own[part->iov_count] = (struct iovec){ part->zeroes, piece };
        left -= piece;
    }
    return true;
}

static bool fallocate_next(struct block_request *request, struct block_part *part, int64_t result, int *status)
{
    bool unsupported = result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV || result == -EINVAL;
    *status = result < 0 ? (int)-result : 0;
    if (!unsupported)
        return false;
    part->mode = fallocate_mode(request, ++part->attempt);
    if (part->mode >= 0)
        return true;
    *status = 0;                /* a discard is only a hint */
    if (request->op == BLOCK_DISCARD)
        return false;
    *status = ENOMEM;
    return zeroes_next(part);
}

static bool transfer_next(struct block_request *request, struct block_part *part, int64_t result, int *status)
{
    if (result <= 0) {          /* 0: the file became shorter under us */
        *status = result ? (int)-result : EIO;
        return false;
    }
    advance(part, min_u64((uint64_t)result, part->size));
    *status = 0;
    if (part->zeroes && part->size) {
        *status = ENOMEM;
        return zeroes_next(part);
    }
    if (!part->size && request->op == BLOCK_READ && part->bounce)
        bounce_copy(request, part->bounce, false);
    return part->size != 0;
}

bool block_part_next(struct block_request *request, int64_t result, int *status)
{
    struct block_part *part = request->backend;
    if (result == -EINTR || result == -EAGAIN)
        return true;
    switch (part->call) {
    case CALL_FSYNC:
        *status = result < 0 ? (int)-result : 0;
        return false;
    case CALL_FALLOCATE: return fallocate_next(request, part, result, status);
    case CALL_READV:
    case CALL_WRITEV: break;
    }
    return transfer_next(request, part, result, status);
}
