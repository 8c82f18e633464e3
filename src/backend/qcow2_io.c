/*
 * Reading and writing guest data. What is mapped is used in place, several requests at once. A write to what is not goes to new clusters:
 * whole ones, filled up with what the guest saw there before; only then is the map changed.
 */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

#include "backend/iov.h"

/* One request, or the part of it that is looked at. */
struct transfer {
    const struct iovec *iov;
    int count;
    uint64_t offset, size;              /* guest bytes; the first is the first of iov */
};

/* --- reading --- */

static int read_packed(struct qcow2 *q, const struct qcow2_extent *extent, const struct iovec *iov, int count, uint64_t offset)
{
    uint8_t *cluster = malloc(q->cluster_size);
    if (!cluster)
        return ENOMEM;
    int status = qcow2_unpack(q, extent->entry, cluster);
    if (!status)
        iov_fill(iov, count, cluster + (offset & (q->cluster_size - 1)));
    free(cluster);
    return status;
}

static int read_extent(struct qcow2 *q, const struct qcow2_extent *extent, const struct iovec *iov, int count, uint64_t offset)
{
    switch (extent->kind) {
    case QCOW2_HOLE: return disk_image_read_behind(q->image.backing, iov, count, offset);
    case QCOW2_DATA: return q->image.file->ops->read(q->image.file, iov, count, extent->host);
    case QCOW2_PACKED: return read_packed(q, extent, iov, count, offset);
    case QCOW2_ZEROES: break;
    }
    iov_clear(iov, count);
    return 0;
}

/* The range is locked by the caller. */
static int read_range(struct qcow2 *q, const struct transfer *t)
{
    struct iovec part[DISK_IOV_MAX];
    for (uint64_t done = 0; done < t->size;) {
        struct qcow2_extent extent;
        int status = qcow2_map(q, t->offset + done, t->size - done, &extent);
        if (!status)
            status = read_extent(q, &extent, part, iov_slice(t->iov, t->count, done, extent.size, part), t->offset + done);
        if (status)
            return status;
        done += extent.size;
    }
    return 0;
}

int qcow2_read(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset)
{
    struct qcow2 *q = qcow2_of(image);
    const struct transfer t = { iov, count, offset, iov_size(iov, count) };
    struct qcow2_range range;
    if (!t.size)
        return 0;
    qcow2_range_lock(q, &range, offset, t.size, false);
    int status = read_range(q, &t);
    qcow2_range_unlock(q, &range);
    return status;
}

/* --- writing in place --- */

static bool in_place(const struct qcow2_extent *extent)
{
    return extent->kind == QCOW2_DATA && !extent->shared;
}

static int write_in_place(struct qcow2 *q, const struct transfer *t, uint64_t done, const struct qcow2_extent *extent)
{
    struct iovec part[DISK_IOV_MAX];
    int parts = iov_slice(t->iov, t->count, done, extent->size, part);
    return q->image.file->ops->write(q->image.file, part, parts, extent->host);
}

/* With the range shared, as far as everything has its place already. *done: how far that was. */
static int write_mapped(struct qcow2 *q, const struct transfer *t, uint64_t *done)
{
    while (*done < t->size) {
        struct qcow2_extent extent;
        int status = qcow2_map(q, t->offset + *done, t->size - *done, &extent);
        if (!status && !in_place(&extent))
            return 0;
        if (!status)
            status = write_in_place(q, t, *done, &extent);
        if (status)
            return status;
        *done += extent.size;
    }
    return 0;
}

/* --- writing to new clusters --- */

/* New clusters in a row for guest clusters in a row; all in one L2 table. */
struct fresh {
    uint64_t guest, clusters;           /* guest: offset of the first cluster */
    uint64_t host;
    bool zeroed;                        /* what is not written reads as zeroes */
    bool kept;                          /* the cluster was there already, and read as zeroes */
};

/* A zero cluster that keeps its place in the file is written there. */
static bool keeps_place(const struct qcow2_extent *extent)
{
    return extent->kind == QCOW2_ZEROES && extent->entry & QCOW2_COPIED && extent->entry & QCOW2_OFFSET_MASK;
}

static int take_clusters(struct qcow2 *q, const struct qcow2_extent *extent, uint64_t want, struct fresh *fresh)
{
    if (keeps_place(extent)) {
        fresh->host = extent->entry & QCOW2_OFFSET_MASK;
        fresh->clusters = 1;
        fresh->kept = true;
        bool broken = fresh->host & (q->cluster_size - 1) || qcow2_is_metadata(q, fresh->host, q->cluster_size);
        return broken ? EIO : 0;
    }
    pthread_mutex_lock(&q->lock);
    struct qcow2_table *table;
    uint64_t end = q->end;
    int status = qcow2_l2_of(q, fresh->guest, true, &table);
    if (!status)
        status = qcow2_allocate(q, want, &fresh->host, &fresh->clusters);
    fresh->zeroed = fresh->host >= end && q->image.file->grows_with_zeroes;
    pthread_mutex_unlock(&q->lock);
    return status;
}

/* Makes the clusters the guest's, or gives back those that cannot be: all of them if `status` says that writing them failed. */
static int enter(struct qcow2 *q, const struct fresh *fresh, int status)
{
    pthread_mutex_lock(&q->lock);
    struct qcow2_table *table;
    uint64_t index = bits(fresh->guest, q->cluster_bits + q->l2_bits - 1, q->cluster_bits), entered = 0;
    if (!status)
        status = qcow2_l2_of(q, fresh->guest, true, &table);
    while (!status && entered < fresh->clusters) {
        status = qcow2_replace(q, table, index + entered, (fresh->host + (entered << q->cluster_bits)) | QCOW2_COPIED);
        entered += !status;
    }
    if (!fresh->kept)
        qcow2_release(q, fresh->host + (entered << q->cluster_bits), fresh->clusters - entered);
    pthread_mutex_unlock(&q->lock);
    return status;
}

/* What the guest sees at `offset` now, up to the end of the image and zeroes from there. *zero: nothing but zeroes, and not read. */
static int old_contents(struct qcow2 *q, uint64_t offset, uint64_t size, uint8_t *bytes, bool *zero)
{
    *zero = true;
    memset(bytes, 0, size);
    uint64_t inside = offset < q->image.size ? min_u64(size, q->image.size - offset) : 0;
    for (uint64_t done = 0; done < inside;) {
        struct qcow2_extent extent;
        int status = qcow2_map(q, offset + done, inside - done, &extent);
        if (status)
            return status;
        if (extent.kind != QCOW2_ZEROES && (extent.kind != QCOW2_HOLE || q->image.backing)) {
            *zero = false;
            status = read_extent(q, &extent, &(struct iovec){ bytes + done, extent.size }, 1, offset + done);
        }
        if (status)
            return status;
        done += extent.size;
    }
    return 0;
}

/* Writes the guest's bytes and what the clusters hold before and behind them, in one go. */
static int fill(struct qcow2 *q, const struct transfer *t, uint64_t done, uint64_t size, const struct fresh *fresh)
{
    uint64_t from = t->offset + done, head = from - fresh->guest;
    uint64_t tail = (fresh->clusters << q->cluster_bits) - head - size;
    struct iovec part[DISK_IOV_MAX + 2];
    uint8_t *edges = malloc(head + tail + 1);
    if (!edges)
        return ENOMEM;
    bool head_zero, tail_zero;
    int parts = 0, status = old_contents(q, fresh->guest, head, edges, &head_zero);
    if (!status)
        status = old_contents(q, from + size, tail, edges + head, &tail_zero);
    if (!status) {
        bool skip_head = head_zero && fresh->zeroed;
        if (head && !skip_head)
            part[parts++] = (struct iovec){ edges, head };
        parts += iov_slice(t->iov, t->count, done, size, part + parts);
        if (tail && !(tail_zero && fresh->zeroed))
            part[parts++] = (struct iovec){ edges + head, tail };
        status = q->image.file->ops->write(q->image.file, part, parts, fresh->host + (skip_head ? head : 0));
    }
    free(edges);
    return status;
}

/* With the range exclusive: gives part of it a place. *done moves on. */
static int write_new(struct qcow2 *q, const struct transfer *t, uint64_t *done, const struct qcow2_extent *extent)
{
    uint64_t from = t->offset + *done, within = from & (q->cluster_size - 1);
    struct fresh fresh = { .guest = from - within };
    int status = take_clusters(q, extent, (within + extent->size + q->cluster_size - 1) >> q->cluster_bits, &fresh);
    if (status)
        return status;
    uint64_t size = min_u64(extent->size, (fresh.clusters << q->cluster_bits) - within);
    status = enter(q, &fresh, fill(q, t, *done, size, &fresh));
    if (!status)
        *done += size;
    return status;
}

static int write_rest(struct qcow2 *q, const struct transfer *t, uint64_t *done)
{
    while (*done < t->size) {
        struct qcow2_extent extent;
        int status = qcow2_map(q, t->offset + *done, t->size - *done, &extent);
        if (!status && in_place(&extent)) {
            status = write_in_place(q, t, *done, &extent);
            *done += extent.size;
        } else if (!status) {
            status = write_new(q, t, done, &extent);
        }
        if (status)
            return status;
    }
    return 0;
}

int qcow2_write(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset)
{
    struct qcow2 *q = qcow2_of(image);
    const struct transfer t = { iov, count, offset, iov_size(iov, count) };
    struct qcow2_range range;
    uint64_t done = 0;
    if (!t.size)
        return 0;
    qcow2_range_lock(q, &range, offset, t.size, false);
    int status = write_mapped(q, &t, &done);
    qcow2_range_unlock(q, &range);
    if (status || done == t.size)
        return status;
    qcow2_range_lock(q, &range, offset + done, t.size - done, true);
    status = write_rest(q, &t, &done);
    qcow2_range_unlock(q, &range);
    return status ? status : qcow2_relieve(q);
}
