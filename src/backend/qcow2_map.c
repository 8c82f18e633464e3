/* From guest offsets to the file (QCOW2 §"Cluster mapping"), and who may use or change which part of that map. */
#include "backend/qcow2.h"

#include <errno.h>

/* --- ranges --- */

static bool taken(const struct qcow2 *q, const struct qcow2_range *range)
{
    for (const struct qcow2_range *other = q->ranges; other; other = other->next)
        if (range->first <= other->last && other->first <= range->last && (range->exclusive || other->exclusive))
            return true;
    return false;
}

void qcow2_range_lock(struct qcow2 *q, struct qcow2_range *range, uint64_t offset, uint64_t size, bool exclusive)
{
    range->first = offset >> q->cluster_bits;
    range->last = (offset + size - 1) >> q->cluster_bits;
    range->exclusive = exclusive;
    pthread_mutex_lock(&q->lock);
    while (taken(q, range))
        pthread_cond_wait(&q->range_free, &q->lock);
    range->next = q->ranges;
    q->ranges = range;
    pthread_mutex_unlock(&q->lock);
}

void qcow2_range_unlock(struct qcow2 *q, struct qcow2_range *range)
{
    pthread_mutex_lock(&q->lock);
    struct qcow2_range **link = &q->ranges;
    while (*link != range)
        link = &(*link)->next;
    *link = range->next;
    pthread_cond_broadcast(&q->range_free);
    pthread_mutex_unlock(&q->lock);
}

/* --- looking up --- */

static int make_l2(struct qcow2 *q, uint64_t index, struct qcow2_table **table)
{
    uint64_t offset, got;
    int status = qcow2_allocate(q, 1, &offset, &got);
    if (status)
        return status;
    status = qcow2_table_make(q, &q->l2, offset, table);
    if (status) {
        qcow2_release(q, offset, 1);
        return status;
    }
    qcow2_set_entry(NULL, &q->l1, index, offset | QCOW2_COPIED);
    return 0;
}

int qcow2_l2_of(struct qcow2 *q, uint64_t offset, bool make, struct qcow2_table **table)
{
    uint64_t index = offset >> (q->l2_bits + q->cluster_bits);
    *table = NULL;
    if (index >= q->l1.size / 8)
        return EIO;
    uint64_t entry = qcow2_entry(&q->l1, index);
    if (!(entry & QCOW2_OFFSET_MASK))
        return make ? make_l2(q, index, table) : 0;
    if (make && !(entry & QCOW2_COPIED))
        return EIO;             /* shared with a snapshot, and there are none: a broken image */
    return qcow2_table_get(q, &q->l2, entry & QCOW2_OFFSET_MASK, table);
}

void qcow2_packed_place(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size)
{
    unsigned bits_of_offset = 62 - (q->cluster_bits - 8);
    *offset = bits(entry, bits_of_offset - 1, 0);
    *size = (bits(entry, 61, bits_of_offset) + 1) * DISK_SECTOR - (*offset & (DISK_SECTOR - 1));
}

static enum qcow2_kind kind_of(const struct qcow2 *q, uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED)
        return QCOW2_PACKED;
    if (q->version >= 3 && entry & QCOW2_ZERO)
        return QCOW2_ZEROES;
    return entry & QCOW2_OFFSET_MASK ? QCOW2_DATA : QCOW2_HOLE;
}

/* Whether the next cluster's entry goes on where the extent ends. */
static bool goes_on(const struct qcow2 *q, const struct qcow2_extent *extent, uint64_t entry, uint64_t clusters)
{
    if (kind_of(q, entry) != extent->kind || extent->kind == QCOW2_PACKED)
        return false;
    if (extent->kind != QCOW2_DATA)
        return true;
    uint64_t next = (extent->entry & QCOW2_OFFSET_MASK) + (clusters << q->cluster_bits);
    return (entry & QCOW2_OFFSET_MASK) == next && !(entry & QCOW2_COPIED) == extent->shared;
}

static int check_data(const struct qcow2 *q, const struct qcow2_extent *extent)
{
    uint64_t first = extent->entry & QCOW2_OFFSET_MASK;
    if (extent->kind != QCOW2_DATA)
        return 0;
    return first & (q->cluster_size - 1) || qcow2_is_metadata(q, extent->host, extent->size) ? EIO : 0;
}

static int map_locked(struct qcow2 *q, uint64_t offset, uint64_t size, struct qcow2_extent *extent)
{
    struct qcow2_table *table;
    uint64_t within = offset & (q->cluster_size - 1), index = bits(offset, q->cluster_bits + q->l2_bits - 1, q->cluster_bits);
    uint64_t last = BIT(q->l2_bits);
    *extent = (struct qcow2_extent){ .kind = QCOW2_HOLE };
    int status = qcow2_l2_of(q, offset, false, &table);
    if (status)
        return status;
    if (!table) {
        extent->size = min_u64(size, ((last - index) << q->cluster_bits) - within);
        return 0;
    }
    uint64_t entry = qcow2_entry(table, index), clusters = 1;
    extent->entry = entry;
    extent->kind = kind_of(q, entry);
    extent->shared = !(entry & QCOW2_COPIED);
    extent->host = (entry & QCOW2_OFFSET_MASK) + within;
    while (index + clusters < last && (clusters << q->cluster_bits) - within < size &&
           goes_on(q, extent, qcow2_entry(table, index + clusters), clusters))
        clusters++;
    extent->size = min_u64(size, (clusters << q->cluster_bits) - within);
    return check_data(q, extent);
}

int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t size, struct qcow2_extent *extent)
{
    pthread_mutex_lock(&q->lock);
    int status = map_locked(q, offset, size, extent);
    pthread_mutex_unlock(&q->lock);
    return status;
}

/* --- changing --- */

int qcow2_replace(struct qcow2 *q, struct qcow2_table *table, uint64_t index, uint64_t entry)
{
    uint64_t old = qcow2_entry(table, index), offset = old & QCOW2_OFFSET_MASK, size = q->cluster_size;
    if (old & QCOW2_COMPRESSED)
        qcow2_packed_place(q, old, &offset, &size);
    bool frees = offset && (old & QCOW2_COMPRESSED || offset != (entry & QCOW2_OFFSET_MASK));
    if (frees) {
        uint64_t first = align_down(offset, q->cluster_size), end = align_up(offset + size, q->cluster_size);
        int status = qcow2_free_later(q, first, (end - first) >> q->cluster_bits);
        if (status)
            return status;
    }
    qcow2_set_entry(&q->l2, table, index, entry);
    return 0;
}
