/*
 * Bringing changed metadata to the file, in the order that qcow2.h gives. What is to be written is copied with the lock held; the
 * I/O is done without it, and requests go on: what they change meanwhile is for the next flush.
 */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* --- what is to be written --- */

struct write_out {
    struct write_out *next;
    struct qcow2_cache *cache;          /* NULL: L1, refcount table */
    struct qcow2_table *table;
    uint64_t offset;                    /* in the file */
    uint32_t from, size;
    bool was_new;
    uint8_t bytes[];
};

struct plan {
    struct write_out *counts, *table, *map;     /* steps 1, 2, 3 */
    struct qcow2_freed_list freed;
    bool move_table;                    /* step 2: the header gets the refcount table's new place */
    uint64_t old_offset, old_room;
};

/* Whole sectors, since smaller writes cost more. */
static int take(struct write_out **list, struct qcow2_cache *cache, struct qcow2_table *table)
{
    uint32_t from = (uint32_t)align_down(table->dirty_from, DISK_SECTOR);
    uint32_t to = (uint32_t)min_u64(align_up(table->dirty_to, DISK_SECTOR), table->size);
    struct write_out *out = malloc(sizeof(*out) + (to - from));
    if (!out)
        return ENOMEM;
    *out = (struct write_out){ .next = *list, .cache = cache, .table = table, .offset = table->offset + from, .from = from,
                               .size = to - from, .was_new = table->is_new };
    memcpy(out->bytes, table->bytes + from, to - from);
    *list = out;
    table->dirty_from = table->dirty_to = 0;
    table->is_new = false;
    table->writing = true;
    if (cache)
        cache->dirty--;
    return 0;
}

/* The refcount table has outgrown its place: finds it another. To find one may make it grow further. */
static int move_table(struct qcow2 *q, struct plan *plan)
{
    while (q->reftable.size > q->reftable_room && !plan->move_table) {
        uint64_t size = q->reftable.size, offset;
        int status = qcow2_allocate_row(q, size >> q->cluster_bits, &offset);
        if (!status && size < q->reftable.size)
            status = qcow2_free_later(q, offset, size >> q->cluster_bits);
        else if (!status)
            plan->move_table = true;
        if (status)
            return status;
        if (plan->move_table) {
            plan->old_offset = q->reftable.offset;
            plan->old_room = q->reftable_room;
            q->reftable.offset = offset;
            q->reftable_room = size;
            qcow2_table_touch(NULL, &q->reftable, 0, (uint32_t)size);
        }
    }
    return 0;
}

static int take_counts(struct qcow2 *q, struct plan *plan)
{
    int status = move_table(q, plan);
    for (struct qcow2_table *table = q->blocks.first; table && !status; table = table->next)
        if (table->dirty_to)
            status = take(&plan->counts, &q->blocks, table);
    if (!status && q->reftable.dirty_to)        /* in its new place it may be written early */
        status = take(plan->move_table ? &plan->counts : &plan->table, NULL, &q->reftable);
    return status;
}

static int collect(struct qcow2 *q, bool counts, struct plan *plan)
{
    int status = counts ? take_counts(q, plan) : 0;
    for (struct qcow2_table *table = q->l2.first; table && !status; table = table->next)
        if (table->dirty_to)
            status = take(table->is_new ? &plan->counts : &plan->map, &q->l2, table);
    if (!status && q->l1.dirty_to)
        status = take(&plan->map, NULL, &q->l1);
    plan->freed = q->freed;
    q->freed = (struct qcow2_freed_list){ 0 };
    return status;
}

/* --- writing --- */

static int write_list(struct qcow2 *q, const struct write_out *list)
{
    int status = 0;
    for (const struct write_out *out = list; out && !status; out = out->next)
        status = disk_file_write(q->image.file, out->bytes, out->size, out->offset);
    return status;
}

/* Both fields in one write, within one sector. */
static int write_table_place(struct qcow2 *q)
{
    struct {
        uint64_t offset;
        uint32_t clusters;
    } __attribute__((packed)) place = { htobe64(q->reftable.offset), htobe32((uint32_t)(q->reftable_room >> q->cluster_bits)) };
    return disk_file_write(q->image.file, &place, sizeof(place), offsetof(struct qcow2_header, refcount_table_offset));
}
_Static_assert(offsetof(struct qcow2_header, refcount_table_clusters) == offsetof(struct qcow2_header, refcount_table_offset) + 8,
               "QCOW2 \"Header\": the table's place and size are neighbours");

/* After a barrier that failed nobody knows what the file holds: the kernel may have dropped what it could not write. */
static int barrier(struct qcow2 *q)
{
    int status = q->image.file->ops->flush(q->image.file);
    if (status) {
        pthread_mutex_lock(&q->lock);
        q->failed = status;
        pthread_mutex_unlock(&q->lock);
    }
    return status;
}

static int carry_out(struct qcow2 *q, const struct plan *plan)
{
    int status = write_list(q, plan->counts);
    if (!status)
        status = barrier(q);
    if (!status && (plan->table || plan->move_table)) {
        status = plan->move_table ? write_table_place(q) : write_list(q, plan->table);
        if (!status)
            status = barrier(q);
    }
    if (!status && plan->map) {
        status = write_list(q, plan->map);
        if (!status)
            status = barrier(q);
    }
    return status;
}

/* --- afterwards --- */

static void finish_list(struct write_out *list, bool written)
{
    while (list) {
        struct write_out *next = list->next;
        list->table->writing = false;
        if (!written) {
            qcow2_table_touch(list->cache, list->table, list->from, list->from + list->size);
            list->table->is_new |= list->was_new;
        }
        free(list);
        list = next;
    }
}

static void punch(struct qcow2 *q, const struct qcow2_freed_list *freed)
{
    for (size_t i = 0; i < freed->count; i++)
        if (freed->item[i].clusters)
            q->image.file->ops->punch(q->image.file, freed->item[i].offset, freed->item[i].clusters << q->cluster_bits);
}

/* Compressed clusters may share a cluster of the file, which then still has data. */
static void keep_shared(struct qcow2 *q, struct qcow2_freed_list *freed)
{
    for (size_t i = 0; i < freed->count; i++)
        for (uint64_t cluster = 0; cluster < freed->item[i].clusters; cluster++) {
            uint64_t count;
            if (qcow2_count_get(q, (freed->item[i].offset >> q->cluster_bits) + cluster, &count) || count > 1) {
                freed->item[i].clusters = cluster;
                break;
            }
        }
}

/* What is free now: nothing on disk refers to it. The host gets its space before anybody can use it again. */
static void apply_freed(struct qcow2 *q, struct qcow2_freed_list *freed)
{
    struct qcow2_freed_list alone = { calloc(freed->count + 1, sizeof(*freed->item)), freed->count, freed->count };
    if (alone.item && freed->count) {
        memcpy(alone.item, freed->item, freed->count * sizeof(*freed->item));
        pthread_mutex_lock(&q->lock);
        keep_shared(q, &alone);
        pthread_mutex_unlock(&q->lock);
        punch(q, &alone);
    }
    free(alone.item);
    pthread_mutex_lock(&q->lock);
    for (size_t i = 0; i < freed->count; i++)
        qcow2_count_down(q, &freed->item[i]);   /* on failure a leak, which the dirty bit announces */
    pthread_mutex_unlock(&q->lock);
}

static void take_back(struct qcow2 *q, struct plan *plan)
{
    if (plan->move_table) {                     /* the new place is written again, as a whole, next time */
        q->reftable.offset = plan->old_offset;
        q->reftable_room = plan->old_room;
        qcow2_table_touch(NULL, &q->reftable, 0, q->reftable.size);
    }
    for (size_t i = 0; i < plan->freed.count; i++)
        qcow2_free_later(q, plan->freed.item[i].offset, plan->freed.item[i].clusters);  /* on failure a leak */
}

int qcow2_flush(struct qcow2 *q, bool counts)
{
    struct plan plan = { 0 };
    pthread_mutex_lock(&q->flush_lock);
    pthread_mutex_lock(&q->lock);
    int status = q->failed ? q->failed : collect(q, counts || !q->lazy, &plan);
    pthread_mutex_unlock(&q->lock);
    if (!status)
        status = carry_out(q, &plan);
    pthread_mutex_lock(&q->lock);
    finish_list(plan.counts, !status);
    finish_list(plan.table, !status);
    finish_list(plan.map, !status);
    if (status)
        take_back(q, &plan);
    else if (plan.move_table)
        qcow2_free_later(q, plan.old_offset, plan.old_room >> q->cluster_bits);
    pthread_mutex_unlock(&q->lock);
    if (!status)
        apply_freed(q, &plan.freed);
    free(plan.freed.item);
    pthread_mutex_unlock(&q->flush_lock);
    return status;
}

static bool crowded(const struct qcow2_cache *cache)
{
    return cache->dirty > cache->limit / 2;
}

int qcow2_relieve(struct qcow2 *q)
{
    pthread_mutex_lock(&q->lock);
    bool counts = crowded(&q->blocks), due = counts || crowded(&q->l2);
    pthread_mutex_unlock(&q->lock);
    return due ? qcow2_flush(q, counts) : 0;
}
