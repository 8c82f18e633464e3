/*
 * Clusters that the guest gives up, or wants to read as zeroes. A cluster that once hid the backing file's bytes goes on hiding
 * them: what was discarded must not turn into something older.
 */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* --- whole clusters --- */

enum wish { DISCARD, ZERO, ZERO_KEEPING_SPACE };

/* Something lies behind the image, opened or not. */
static bool hides(const struct qcow2 *q)
{
    return q->image.backing || q->image.backing_name;
}

/* The entry that the cluster gets. */
static uint64_t emptied(const struct qcow2 *q, uint64_t entry, enum wish wish)
{
    bool mapped = entry & (QCOW2_COMPRESSED | QCOW2_ZERO | QCOW2_OFFSET_MASK);
    bool own = !(entry & QCOW2_COMPRESSED) && entry & QCOW2_COPIED && entry & QCOW2_OFFSET_MASK;
    if (!hides(q))
        return wish == ZERO_KEEPING_SPACE && own ? entry | QCOW2_ZERO : 0;
    if (wish == DISCARD && !mapped)
        return entry;
    return wish == ZERO_KEEPING_SPACE && own ? entry | QCOW2_ZERO : QCOW2_ZERO;
}

/* The clusters of one L2 table. */
static int empty_table(struct qcow2 *q, uint64_t offset, uint64_t clusters, enum wish wish)
{
    struct qcow2_table *table;
    pthread_mutex_lock(&q->lock);
    int status = qcow2_l2_of(q, offset, wish != DISCARD && hides(q), &table);
    /* With a flag of its entry missing the table may be changed no more than make_l2 allows. */
    if (!status && table)
        status = qcow2_l2_of(q, offset, true, &table);
    uint64_t index = bits(offset, q->cluster_bits + q->l2_bits - 1, q->cluster_bits);
    for (uint64_t i = 0; !status && table && i < clusters; i++) {
        uint64_t entry = qcow2_entry(table, index + i), now = emptied(q, entry, wish);
        if (entry != now)
            status = qcow2_mark(q, true);
        if (!status && entry != now)
            status = qcow2_replace(q, table, index + i, now);
    }
    pthread_mutex_unlock(&q->lock);
    return status;
}

static int empty(struct qcow2 *q, uint64_t offset, uint64_t size, enum wish wish)
{
    struct qcow2_range range;
    int status = 0;
    if (!size)
        return 0;
    qcow2_range_lock(q, &range, offset, size, true);
    while (size && !status) {
        uint64_t covered = BIT(q->l2_bits + q->cluster_bits);
        uint64_t piece = min_u64(size, covered - (offset & (covered - 1)));
        status = empty_table(q, offset, piece >> q->cluster_bits, wish);
        offset += piece;
        size -= piece;
    }
    qcow2_range_unlock(q, &range);
    return status;
}

/* --- requests --- */

/* The end of the image counts as the end of its cluster. */
static void whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t size, uint64_t *first, uint64_t *end)
{
    *first = align_up(offset, q->cluster_size);
    *end = offset + size == q->image.size ? align_up(offset + size, q->cluster_size) : align_down(offset + size, q->cluster_size);
    if (*end < *first)
        *end = *first;
}

int qcow2_discard(struct disk_image *image, uint64_t offset, uint64_t size)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t first, end;
    whole_clusters(q, offset, size, &first, &end);
    int status = empty(q, first, end - first, DISCARD);
    return status ? status : qcow2_relieve(q);
}

static int write_zero_bytes(struct disk_image *image, uint64_t offset, uint64_t size)
{
    if (!size)
        return 0;
    uint8_t *zeroes = calloc(1, size);
    if (!zeroes)
        return ENOMEM;
    int status = disk_image_write(image, zeroes, size, offset);
    free(zeroes);
    return status;
}

int qcow2_write_zeroes(struct disk_image *image, uint64_t offset, uint64_t size, bool unmap)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t first, end;
    whole_clusters(q, offset, size, &first, &end);
    if (first >= end)
        return write_zero_bytes(image, offset, size);
    int status = write_zero_bytes(image, offset, first - offset);
    if (!status)
        status = empty(q, first, end - first, unmap ? ZERO : ZERO_KEEPING_SPACE);
    if (!status && end < offset + size)
        status = write_zero_bytes(image, end, offset + size - end);
    return status ? status : qcow2_relieve(q);
}
