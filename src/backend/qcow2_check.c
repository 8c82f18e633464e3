/*
 * Counting references. The check compares what refers to each cluster with the counts in the file. Where an image was not closed,
 * its references are right (qcow2.h) and its counts may not be: they are then made anew, in clusters that nothing uses, and the header
 * is switched over to them in one write.
 */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* Counters for the clusters of a file: four bytes each, untouched pages cost nothing. */
#define CLUSTERS_MAX (1ull << 30)

struct survey {
    struct qcow2 *q;
    uint32_t *count;
    uint64_t clusters;
    struct qcow2_findings *found;
};

static void refer(struct survey *s, uint64_t offset, uint64_t size)
{
    uint64_t first = offset >> s->q->cluster_bits, last = (offset + size - 1) >> s->q->cluster_bits;
    if (!size)
        return;
    if (offset + size < offset || last >= s->clusters) {
        s->found->broken++;
        return;
    }
    for (uint64_t i = first; i <= last; i++)
        s->count[i] += s->count[i] < UINT32_MAX;
}

/* A whole cluster that an entry names. False: it cannot lie there. */
static bool refer_cluster(struct survey *s, uint64_t offset)
{
    if (offset & (s->q->cluster_size - 1) || (offset >> s->q->cluster_bits) >= s->clusters) {
        s->found->broken++;
        return false;
    }
    refer(s, offset, s->q->cluster_size);
    return true;
}

static void survey_entry(struct survey *s, uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED) {
        uint64_t offset, size;
        qcow2_packed_place(s->q, entry, &offset, &size);
        s->found->data++;
        s->found->compressed++;
        refer(s, offset, size);
    } else if (entry & QCOW2_OFFSET_MASK && refer_cluster(s, entry & QCOW2_OFFSET_MASK)) {
        s->found->data++;
    }
}

static int survey_l2(struct survey *s, uint64_t offset)
{
    struct qcow2 *q = s->q;
    uint8_t *bytes = malloc(q->cluster_size);
    if (!bytes)
        return ENOMEM;
    int status = disk_file_read(q->image.file, bytes, q->cluster_size, offset);
    const struct qcow2_table table = { .bytes = bytes };
    for (uint64_t i = 0; !status && i < BIT(q->l2_bits); i++)
        survey_entry(s, qcow2_entry(&table, i));
    free(bytes);
    return status;
}

/* Everything but the refcount structures. */
static int survey_data(struct survey *s)
{
    struct qcow2 *q = s->q;
    int status = 0;
    refer(s, 0, q->cluster_size);
    refer(s, q->l1.offset, q->l1.size);
    for (uint64_t i = 0; i < q->l1.size / 8 && !status; i++) {
        uint64_t offset = qcow2_entry(&q->l1, i) & QCOW2_OFFSET_MASK;
        if (offset && refer_cluster(s, offset))
            status = survey_l2(s, offset);
    }
    return status;
}

static void survey_counts(struct survey *s)
{
    const struct qcow2 *q = s->q;
    refer(s, q->reftable.offset, q->reftable_room);
    for (uint64_t i = 0; i < q->reftable.size / 8; i++)
        if (qcow2_entry(&q->reftable, i))
            refer_cluster(s, qcow2_entry(&q->reftable, i));
}

static int survey_begin(struct survey *s, struct qcow2 *q, struct qcow2_findings *found)
{
    memset(found, 0, sizeof(*found));
    *s = (struct survey){ .q = q, .found = found };
    /* The last cluster of a file may be cut short. */
    s->clusters = align_up(q->image.file->ops->size(q->image.file), q->cluster_size) >> q->cluster_bits;
    if (s->clusters > CLUSTERS_MAX)
        return EFBIG;
    found->clusters = s->clusters;
    s->count = calloc(s->clusters + 1, sizeof(*s->count));
    return s->count ? 0 : ENOMEM;
}

/* --- check --- */

static int compare(struct survey *s)
{
    for (uint64_t i = 0; i < s->clusters; i++) {
        uint64_t count;
        int status = qcow2_count_get(s->q, i, &count);
        if (status)
            return status;
        s->found->leaks += count > s->count[i];
        s->found->missing += count < s->count[i];
    }
    return 0;
}

int qcow2_check(struct qcow2 *q, struct qcow2_findings *findings)
{
    struct survey s;
    int status = survey_begin(&s, q, findings);
    if (!status)
        status = survey_data(&s);
    if (!status) {
        survey_counts(&s);
        pthread_mutex_lock(&q->lock);
        status = compare(&s);
        pthread_mutex_unlock(&q->lock);
    }
    free(s.count);
    return status;
}

/* --- new counts --- */

static int clear_table(struct qcow2 *q)
{
    uint8_t *bytes = calloc(1, q->cluster_size);
    if (!bytes)
        return ENOMEM;
    qcow2_cache_free(&q->blocks);
    free(q->reftable.bytes);
    /* No room: so it gets a new place, and the header is written last. */
    q->reftable = (struct qcow2_table){ .bytes = bytes, .size = (uint32_t)q->cluster_size };
    q->reftable_room = 0;
    return 0;
}

/* New blocks go behind everything that is in use; what they replace is not counted any more. */
static int enter_counts(struct survey *s)
{
    struct qcow2 *q = s->q;
    uint64_t next = s->clusters;
    int status = 0;
    for (uint64_t i = 0; i < s->clusters && !status; i++)
        if (s->count[i])
            status = s->count[i] >> min_u64(31, BIT(q->refcount_order)) ? EILSEQ : qcow2_count_put(q, i, s->count[i], &next);
    for (uint64_t i = s->clusters; i < next && !status; i++)
        status = qcow2_count_put(q, i, 1, &next);
    return status;
}

int qcow2_recount(struct qcow2 *q)
{
    struct qcow2_findings found;
    struct survey s;
    int status = survey_begin(&s, q, &found);
    if (!status)
        status = survey_data(&s);
    if (!status && found.broken)
        status = EILSEQ;
    if (!status) {
        pthread_mutex_lock(&q->lock);
        status = clear_table(q);
        if (!status)
            status = enter_counts(&s);
        pthread_mutex_unlock(&q->lock);
    }
    free(s.count);
    return status ? status : qcow2_flush(q, true);
}
