/*
 * Which clusters of the file are in use (QCOW2 §"Host cluster management"): a count of references for each, in blocks that the
 * refcount table lists. A cluster is free when its count is 0, or when there is no block for it.
 */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

enum { TRIED_BITS = 28 };

/* Counts have 1 to 64 bits; those below a byte start at its least significant bit. */
uint64_t qcow2_count_in(const struct qcow2 *q, const uint8_t *block, uint64_t index)
{
    unsigned order = q->refcount_order;
    if (order < 3)
        return (block[index >> (3 - order)] >> ((index << order) & 7)) & (BIT(BIT(order)) - 1);
    uint64_t count = 0;
    for (uint64_t i = 0; i < BIT(order - 3); i++)
        count = count << 8 | block[(index << (order - 3)) + i];
    return count;
}

static void put_count(const struct qcow2 *q, uint8_t *block, uint64_t index, uint64_t count)
{
    unsigned order = q->refcount_order;
    if (order < 3) {
        uint8_t *byte = &block[index >> (3 - order)], mask = (uint8_t)(BIT(BIT(order)) - 1);
        unsigned shift = (index << order) & 7;
        *byte = (uint8_t)((*byte & ~(mask << shift)) | count << shift);
        return;
    }
    for (uint64_t i = BIT(order - 3); i--; count >>= 8)
        block[(index << (order - 3)) + i] = (uint8_t)count;
}

/* *block NULL: none covers the cluster. */
static int block_of(struct qcow2 *q, uint64_t cluster, struct qcow2_table **block)
{
    uint64_t index = cluster >> q->block_bits;
    *block = NULL;
    if (index >= q->reftable.size / 8)
        return 0;
    uint64_t offset = qcow2_entry(&q->reftable, index);
    return offset ? qcow2_table_get(q, &q->blocks, offset, block) : 0;
}

int qcow2_count_get(struct qcow2 *q, uint64_t cluster, uint64_t *count)
{
    struct qcow2_table *block;
    int status = block_of(q, cluster, &block);
    *count = !status && block ? qcow2_count_in(q, block->bytes, cluster & (BIT(q->block_bits) - 1)) : 0;
    return status;
}

static void set_in(struct qcow2 *q, struct qcow2_table *block, uint64_t cluster, uint64_t count)
{
    uint64_t index = cluster & (BIT(q->block_bits) - 1), bit = index << q->refcount_order;
    put_count(q, block->bytes, index, count);
    qcow2_table_touch(&q->blocks, block, (uint32_t)(bit / 8), (uint32_t)((bit + BIT(q->refcount_order) + 7) / 8));
    if (count)
        q->end = max_u64(q->end, (cluster + 1) << q->cluster_bits);
    else if (cluster < q->hint)
        q->hint = cluster;
}

int qcow2_count_set(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    struct qcow2_table *block;
    int status = block_of(q, cluster, &block);
    if (!status && !block)
        status = EIO;
    if (!status)
        set_in(q, block, cluster, count);
    return status;
}

/* In memory the refcount table grows as needed; the flush finds a new place for it. */
static int grow_table(struct qcow2 *q, uint64_t entries)
{
    uint64_t old = q->reftable.size, size = align_up(entries * 8, q->cluster_size);
    if (size <= old)
        return 0;
    if (size > QCOW2_REFTABLE_BYTES_MAX)
        return EFBIG;
    size = min_u64(QCOW2_REFTABLE_BYTES_MAX, max_u64(size, align_up(old + old / 2, q->cluster_size)));
    uint8_t *bytes = realloc(q->reftable.bytes, size);
    if (!bytes)
        return ENOMEM;
    memset(bytes + old, 0, size - old);
    q->reftable.bytes = bytes;
    q->reftable.size = (uint32_t)size;
    return 0;
}

/* The block that will cover `cluster` is put into that cluster itself. */
static int make_block(struct qcow2 *q, uint64_t cluster)
{
    struct qcow2_table *block;
    uint64_t index = cluster >> q->block_bits;
    int status = grow_table(q, index + 1);
    if (!status)
        status = qcow2_table_make(q, &q->blocks, cluster << q->cluster_bits, &block);
    if (status)
        return status;
    set_in(q, block, cluster, 1);
    qcow2_set_entry(NULL, &q->reftable, index, cluster << q->cluster_bits);
    return 0;
}

int qcow2_count_put(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *next)
{
    struct qcow2_table *block;
    uint64_t index = cluster >> q->block_bits;
    int status = block_of(q, cluster, &block);
    if (!status && !block) {
        status = grow_table(q, index + 1);
        if (!status)
            status = qcow2_table_make(q, &q->blocks, *next << q->cluster_bits, &block);
        if (status)
            return status;
        qcow2_set_entry(NULL, &q->reftable, index, (*next)++ << q->cluster_bits);
    }
    if (!status)
        set_in(q, block, cluster, count);
    return status;
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

/* A broken image can say that they are free, or that data lie there. */
bool qcow2_is_metadata(const struct qcow2 *q, uint64_t offset, uint64_t size)
{
    return offset < q->cluster_size || overlap(offset, size, q->l1.offset, q->l1.size) ||
           overlap(offset, size, q->reftable.offset, q->reftable_room);
}

static int is_free(struct qcow2 *q, uint64_t cluster, bool *free_)
{
    uint64_t count;
    int status = qcow2_count_get(q, cluster, &count);
    *free_ = !count && !qcow2_is_metadata(q, cluster << q->cluster_bits, q->cluster_size);
    return status;
}

/* The first free cluster from the hint on, whose count has a block. A hostile image must not keep us looking for ever. */
static int find_free(struct qcow2 *q, uint64_t *found)
{
    for (uint64_t cluster = q->hint, tried = 0;; cluster++, tried++) {
        struct qcow2_table *block;
        bool is = false;
        if (cluster >> (56 - q->cluster_bits) || tried >> TRIED_BITS)
            return EFBIG;
        int status = is_free(q, cluster, &is);
        if (!status && is)
            status = block_of(q, cluster, &block);
        if (!status && is && !block) {
            status = make_block(q, cluster);
            is = false;
        }
        if (status)
            return status;
        if (is) {
            *found = cluster;
            return 0;
        }
    }
}

int qcow2_allocate(struct qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *got)
{
    uint64_t first = 0;
    int status = q->failed ? q->failed : qcow2_mark(q, true);
    if (!status)
        status = find_free(q, &first);
    for (*got = 0; !status && *got < want; ++*got) {
        bool is = true;
        struct qcow2_table *block = NULL;
        if (*got)
            status = is_free(q, first + *got, &is);
        if (!status && is)
            status = block_of(q, first + *got, &block);
        if (!block)
            break;
        set_in(q, block, first + *got, 1);
    }
    *offset = first << q->cluster_bits;
    if (*got) {
        q->hint = first + *got;
        return 0;
    }
    return status ? status : EIO;
}

/*
 * Where a block is made in the row itself it would break the row, and a row longer than a block covers could never be had: so
 * it lies behind all that is in use, and the blocks that it needs lie behind the row.
 */
int qcow2_allocate_row(struct qcow2 *q, uint64_t clusters, uint64_t *offset)
{
    uint64_t first = q->end >> q->cluster_bits, next = first + clusters;
    int status = q->failed ? q->failed : qcow2_mark(q, true);
    if (!status && next >> (56 - q->cluster_bits))
        status = EFBIG;
    for (uint64_t i = first; i < next && !status; i++)
        status = qcow2_count_put(q, i, 1, &next);
    *offset = first << q->cluster_bits;
    return status;
}

void qcow2_release(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    for (uint64_t i = 0; i < clusters; i++)
        qcow2_count_set(q, (offset >> q->cluster_bits) + i, 0);     /* on failure a leak, which the dirty bit announces */
}

int qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    struct qcow2_freed_list *list = &q->freed;
    struct qcow2_freed *last = list->count ? &list->item[list->count - 1] : NULL;
    if (last && last->offset + (last->clusters << q->cluster_bits) == offset) {
        last->clusters += clusters;
        return 0;
    }
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        struct qcow2_freed *item = realloc(list->item, room * sizeof(*item));
        if (!item)
            return ENOMEM;
        list->item = item;
        list->room = room;
    }
    list->item[list->count++] = (struct qcow2_freed){ offset, clusters };
    return 0;
}

int qcow2_count_down(struct qcow2 *q, const struct qcow2_freed *freed)
{
    for (uint64_t i = 0; i < freed->clusters; i++) {
        uint64_t cluster = (freed->offset >> q->cluster_bits) + i, count;
        int status = qcow2_count_get(q, cluster, &count);
        if (!status && count)
            status = qcow2_count_set(q, cluster, count - 1);
        if (status)
            return status;
    }
    return 0;
}
