#include "backend/disk_raw.h"

#include <errno.h>
#include <stdlib.h>

#include "base/base.h"
#include "base/error.h"

enum { ZEROES = 64 * 1024 };

static int raw_read(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset)
{
    return image->file->ops->read(image->file, iov, count, offset);
}

static int raw_write(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset)
{
    return image->file->ops->write(image->file, iov, count, offset);
}

static int raw_flush(struct disk_image *image)
{
    return image->file->ops->flush(image->file);
}

static int raw_discard(struct disk_image *image, uint64_t offset, uint64_t size)
{
    image->file->ops->punch(image->file, offset, size);
    return 0;
}

static int raw_write_zeroes(struct disk_image *image, uint64_t offset, uint64_t size, bool unmap)
{
    uint8_t *zeroes = calloc(1, ZEROES);
    int status = zeroes ? 0 : ENOMEM;
    for (uint64_t done = 0; done < size && !status; done += ZEROES)
        status = disk_file_write(image->file, zeroes, min_u64(size - done, ZEROES), offset + done);
    free(zeroes);
    return status;
}

static int raw_is_own(struct disk_image *image, uint64_t offset, uint64_t *size, bool *own)
{
    *own = true;
    return 0;
}

static int raw_resize(struct disk_image *image, uint64_t size)
{
    int status = image->file->ops->truncate(image->file, size);
    if (!status)
        image->size = size;
    return status;
}

static int raw_close(struct disk_image *image)
{
    int status = image->read_only ? 0 : raw_flush(image);
    free(image);
    return status;
}

static const struct disk_image_ops raw_ops = {
    .format = DISK_FORMAT_RAW,
    .read = raw_read,
    .write = raw_write,
    .flush = raw_flush,
    .discard = raw_discard,
    .write_zeroes = raw_write_zeroes,
    .is_own = raw_is_own,
    .resize = raw_resize,
    .settle = raw_flush,
    .close = raw_close,
};

struct disk_image *disk_raw_open(struct disk_file *file, bool read_only, struct error *err)
{
    struct disk_image *image = calloc(1, sizeof(*image));
    if (!image) {
        disk_file_close(file);
        error_set(err, "out of memory");
        return NULL;
    }
    *image = (struct disk_image){ .ops = &raw_ops, .file = file, .read_only = read_only,
                                  .size = align_down(file->ops->size(file), DISK_SECTOR) };
    return image;
}
