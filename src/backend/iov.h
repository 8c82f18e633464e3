/* Parts of scattered buffers. */
#ifndef DOPPEL_BACKEND_IOV_H
#define DOPPEL_BACKEND_IOV_H

#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "base/base.h"

static inline uint64_t iov_size(const struct iovec *iov, int count)
{
    uint64_t size = 0;
    for (int i = 0; i < count; i++)
        size += iov[i].iov_len;
    return size;
}

/* The `size` bytes from `offset` on, as far as there are any; `part` has room for `count` entries. Returns how many it got. */
static inline int iov_slice(const struct iovec *iov, int count, uint64_t offset, uint64_t size, struct iovec *part)
{
    int parts = 0;
    for (int i = 0; i < count && size; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint64_t length = min_u64(size, iov[i].iov_len - offset);
        part[parts++] = (struct iovec){ (char *)iov[i].iov_base + offset, length };
        size -= length;
        offset = 0;
    }
    return parts;
}

static inline void iov_clear(const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++)
        memset(iov[i].iov_base, 0, iov[i].iov_len);
}

/* To a buffer that is as long as they are together. */
static inline void iov_gather(const struct iovec *iov, int count, uint8_t *to)
{
    for (int i = 0; i < count; i++) {
        memcpy(to, iov[i].iov_base, iov[i].iov_len);
        to += iov[i].iov_len;
    }
}

/* From a buffer that is as long as they are together. */
static inline void iov_fill(const struct iovec *iov, int count, const uint8_t *from)
{
    for (int i = 0; i < count; i++) {
        memcpy(iov[i].iov_base, from, iov[i].iov_len);
        from += iov[i].iov_len;
    }
}

#endif
