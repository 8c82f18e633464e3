/* A qcow2 image from opening to closing. */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"

enum { CACHE_BYTES = 4 << 20, CACHE_TABLES_MIN = 8, CLOSING_ROUNDS = 4 };

int qcow2_mark(struct qcow2 *q, bool dirty)
{
    if (q->dirty == dirty)
        return 0;
    uint64_t bits_now = dirty ? q->incompatible | QCOW2_INCOMPATIBLE_DIRTY : q->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY;
    uint64_t field = htobe64(bits_now);
    int status = disk_file_write(q->image.file, &field, sizeof(field), offsetof(struct qcow2_header, incompatible_features));
    if (!status)
        status = q->image.file->ops->flush(q->image.file);
    if (status)
        return status;
    q->incompatible = bits_now;
    q->dirty = dirty;
    return 0;
}

/* --- closing --- */

/* Each flush may free clusters, whose counts then have to be written. */
static int settle(struct disk_image *image)
{
    struct qcow2 *q = qcow2_of(image);
    int status = qcow2_flush(q, true);
    for (int i = 0; i < CLOSING_ROUNDS && !status && (q->blocks.dirty || q->reftable.dirty_to || q->freed.count); i++)
        status = qcow2_flush(q, true);
    if (!status)
        status = qcow2_mark(q, false);
    return status;
}

static void destroy(struct qcow2 *q)
{
    qcow2_cache_free(&q->l2);
    qcow2_cache_free(&q->blocks);
    pthread_mutex_destroy(&q->flush_lock);
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->range_free);
    free(q->l1.bytes);
    free(q->reftable.bytes);
    free(q->freed.item);
    free(q->image.backing_name);
    free(q);
}

static int close_image(struct disk_image *image)
{
    int status = image->read_only ? 0 : settle(image);
    destroy(qcow2_of(image));
    return status;
}

/* --- operations --- */

static int flush(struct disk_image *image)
{
    return image->read_only ? 0 : qcow2_flush(qcow2_of(image), false);
}

static int is_own(struct disk_image *image, uint64_t offset, uint64_t *size, bool *own)
{
    struct qcow2_extent extent;
    int status = qcow2_map(qcow2_of(image), offset, *size, &extent);
    *own = extent.kind != QCOW2_HOLE;
    *size = extent.size;
    return status;
}

const struct disk_image_ops qcow2_ops = {
    .format = DISK_FORMAT_QCOW2,
    .read = qcow2_read,
    .write = qcow2_write,
    .flush = flush,
    .discard = qcow2_discard,
    .write_zeroes = qcow2_write_zeroes,
    .is_own = is_own,
    .resize = qcow2_resize,
    .settle = settle,
    .close = close_image,
};

/* --- opening --- */

static bool load(struct qcow2 *q, struct error *err)
{
    const char *name = q->image.file->name;
    if (!qcow2_read_header(q, err))
        return false;
    unsigned tables = (unsigned)max_u64(CACHE_TABLES_MIN, CACHE_BYTES >> q->cluster_bits);
    q->l2.limit = q->blocks.limit = tables;
    q->end = align_up(q->image.file->ops->size(q->image.file), q->cluster_size);
    q->hint = 1;
    q->dirty = q->incompatible & QCOW2_INCOMPATIBLE_DIRTY;
    if (q->image.read_only || !q->dirty)
        return true;
    /* It was not closed: the references hold, their counts may not. */
    int status = qcow2_recount(q);
    if (status == EILSEQ)
        return error_set(err, "%s was not closed properly and is damaged; 'doppel disk check' says more", name);
    return status ? error_errno(err, status, "%s was not closed properly and cannot be put right", name) : true;
}

struct disk_image *qcow2_open(struct disk_file *file, bool read_only, struct error *err)
{
    struct qcow2 *q = calloc(1, sizeof(*q));
    if (!q) {
        disk_file_close(file);
        error_set(err, "out of memory");
        return NULL;
    }
    q->image = (struct disk_image){ .ops = &qcow2_ops, .file = file, .read_only = read_only };
    pthread_mutex_init(&q->flush_lock, NULL);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->range_free, NULL);
    if (load(q, err))
        return &q->image;
    destroy(q);
    disk_file_close(file);
    return NULL;
}
