/* Changing the size that the guest sees. Nobody else uses the image meanwhile. */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* The fields from size to l1_table_offset, in one write within one sector: they only make sense together. */
static int write_size(struct qcow2 *q, uint64_t size)
{
    struct {
        uint64_t size;
        uint32_t crypt_method, l1_size;
        uint64_t l1_table_offset;
    } fields = { htobe64(size), 0, htobe32(q->l1.size / 8), htobe64(q->l1.offset) };
    int status = disk_file_write(q->image.file, &fields, sizeof(fields), offsetof(struct qcow2_header, size));
    return status ? status : q->image.file->ops->flush(q->image.file);
}
_Static_assert(offsetof(struct qcow2_header, l1_table_offset) == offsetof(struct qcow2_header, size) + 16, "QCOW2 \"Header\"");

/* A larger L1 table in another place; the header does not know it yet. */
static int move_l1(struct qcow2 *q, uint64_t entries)
{
    uint64_t clusters = (entries * 8 + q->cluster_size - 1) >> q->cluster_bits, offset;
    uint8_t *bytes = calloc(clusters, q->cluster_size);
    if (!bytes)
        return ENOMEM;
    memcpy(bytes, q->l1.bytes, q->l1.size);
    pthread_mutex_lock(&q->lock);
    int status = qcow2_allocate_row(q, clusters, &offset);
    pthread_mutex_unlock(&q->lock);
    if (!status)
        status = disk_file_write(q->image.file, bytes, clusters << q->cluster_bits, offset);
    if (!status)
        status = qcow2_flush(q, true);
    if (status) {
        free(bytes);
        return status;
    }
    free(q->l1.bytes);
    q->l1 = (struct qcow2_table){ .offset = offset, .size = (uint32_t)(entries * 8), .bytes = bytes };
    return 0;
}

static int grow_l1(struct qcow2 *q, uint64_t size)
{
    uint64_t covered = BIT(q->l2_bits + q->cluster_bits), entries = (size + covered - 1) / covered;
    struct qcow2_table old = q->l1;
    if (entries * 8 <= q->l1.size)
        return write_size(q, size);
    if (entries * 8 > QCOW2_L1_BYTES_MAX)
        return EFBIG;
    int status = move_l1(q, entries);
    if (!status)
        status = write_size(q, size);
    if (!status && old.size)
        status = qcow2_free_later(q, old.offset, (old.size + q->cluster_size - 1) >> q->cluster_bits);
    return status;
}

int qcow2_resize(struct disk_image *image, uint64_t size)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t old = image->size;
    if (size % DISK_SECTOR || size > INT64_MAX)
        return EINVAL;
    int status = size < old ? qcow2_discard(image, size, old - size) : 0;
    if (!status)
        status = qcow2_flush(q, true);
    if (!status)
        status = grow_l1(q, size);
    if (status)
        return status;
    image->size = size;
    /* What lies behind must not show in the new part. */
    if (size > old && image->backing && image->backing->size > old)
        status = qcow2_write_zeroes(image, old, min_u64(size, image->backing->size) - old, true);
    return status ? status : qcow2_flush(q, true);
}
