/* Copying the contents of one image to another. Zeroes are not written where the target has them already. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk_image.h"
#include "base/base.h"

enum { PIECE = 1 << 20, GRAIN = 64 * 1024 };

static bool all_zero(const uint8_t *bytes, uint64_t size)
{
    return !bytes[0] && !memcmp(bytes, bytes + 1, size - 1);
}

/* To a new image: grain by grain, without those of zeroes. */
static int put_sparse(struct disk_image *to, const uint8_t *bytes, uint64_t size, uint64_t offset)
{
    int status = 0;
    for (uint64_t done = 0; done < size && !status; done += GRAIN) {
        uint64_t grain = min_u64(GRAIN, size - done);
        if (!all_zero(bytes + done, grain))
            status = disk_image_write(to, bytes + done, grain, offset + done);
    }
    return status;
}

static int put_over(struct disk_image *to, const uint8_t *bytes, uint64_t size, uint64_t offset)
{
    if (all_zero(bytes, size))
        return to->ops->write_zeroes(to, offset, size, true);
    return disk_image_write(to, bytes, size, offset);
}

/* One extent of at most `size` bytes; says how many it was. */
static int copy_extent(struct disk_image *from, struct disk_image *to, bool own_only, uint64_t offset, uint64_t *size, uint8_t *buffer)
{
    bool own;
    int status = from->ops->is_own(from, offset, size, &own);
    if (status || (!own && (own_only || !from->backing)))
        return status;
    for (uint64_t done = 0; done < *size && !status; done += PIECE) {
        uint64_t piece = min_u64(PIECE, *size - done);
        status = disk_image_read(from, buffer, piece, offset + done);
        if (!status)
            status = (own_only ? put_over : put_sparse)(to, buffer, piece, offset + done);
    }
    return status;
}

int disk_image_copy(struct disk_image *from, struct disk_image *to, bool own_only)
{
    uint8_t *buffer = malloc(PIECE);
    int status = buffer ? 0 : ENOMEM;
    for (uint64_t offset = 0, size; offset < from->size && !status; offset += size) {
        size = from->size - offset;
        status = copy_extent(from, to, own_only, offset, &size, buffer);
    }
    free(buffer);
    return status ? status : to->ops->flush(to);
}
