/* The qcow2 header and its extensions: reading one that nobody vouches for, and writing that of an empty image. */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"

/* --- reading --- */

/* What we cannot do, by name. */
static bool refuse_features(const struct qcow2 *q, const struct qcow2_header *h, struct error *err)
{
    const char *name = q->image.file->name;
    uint64_t unknown = q->incompatible & ~(uint64_t)(QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT |
                                                     QCOW2_INCOMPATIBLE_COMPRESSION);
    if (be32toh(h->crypt_method))
        return error_set(err, "%s is encrypted, which Doppel does not support", name);
    if (be32toh(h->nb_snapshots))
        return error_set(err, "%s has internal snapshots, which Doppel does not support; 'qemu-img snapshot' lists and deletes them", name);
    if (q->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE)
        return error_set(err, "%s keeps its data in another file, which Doppel does not support", name);
    if (q->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2)
        return error_set(err, "%s has extended L2 entries (subclusters), which Doppel does not support", name);
    if (unknown)
        return error_set(err, "%s has incompatible features that Doppel does not know (0x%lx)", name, (unsigned long)unknown);
    if (q->compression > QCOW2_COMPRESSION_ZSTD)
        return error_set(err, "%s is compressed by a method that Doppel does not know (%u)", name, q->compression);
    return true;
}

static bool refuse_writing(const struct qcow2 *q, const struct qcow2_header *h, struct error *err)
{
    const char *name = q->image.file->name;
    if (q->version < 3)
        return error_set(err, "%s is a qcow2 image of version 2, which Doppel only reads; use it with ro, or make a new one of it "
                              "with 'doppel disk convert'", name);
    if (q->incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
        return error_set(err, "%s is marked as corrupt; 'doppel disk check' says more", name);
    if (h->autoclear_features)
        return error_set(err, "%s has bitmaps or other parts that would go stale if Doppel wrote to it; use it with ro, or remove them "
                              "('qemu-img bitmap --remove')", name);
    return true;
}

static bool refuse_geometry(const struct qcow2 *q, const struct qcow2_header *h, struct error *err)
{
    const char *name = q->image.file->name;
    uint64_t l1 = be32toh(h->l1_size), covered = q->l2_bits + q->cluster_bits;
    uint64_t l1_offset = be64toh(h->l1_table_offset), table_offset = be64toh(h->refcount_table_offset);
    uint64_t table = (uint64_t)be32toh(h->refcount_table_clusters) << q->cluster_bits;
    if (q->refcount_order > 6)
        return error_set(err, "%s is no valid qcow2 image: its reference counts have 2^%u bits", name, q->refcount_order);
    if (l1 * 8 > QCOW2_L1_BYTES_MAX || table > QCOW2_REFTABLE_BYTES_MAX)
        return error_set(err, "%s has larger tables than Doppel takes", name);
    if (q->image.size > (uint64_t)INT64_MAX || ((q->image.size + BIT(covered) - 1) >> covered) > l1)
        return error_set(err, "%s is no valid qcow2 image: its L1 table is too small for its size", name);
    if ((l1_offset | table_offset) & (q->cluster_size - 1) || (l1 && !l1_offset) || !table_offset || !table ||
        (l1_offset | table_offset) >> 56)
        return error_set(err, "%s is no valid qcow2 image: its tables lie where none can", name);
    return true;
}

static int load_table(struct qcow2 *q, struct qcow2_table *table, uint64_t offset, uint64_t size)
{
    table->offset = offset;
    table->size = (uint32_t)size;
    table->bytes = malloc(size ? size : 1);
    if (!table->bytes)
        return ENOMEM;
    return disk_file_read(q->image.file, table->bytes, size, offset);
}

/* QCOW2 §"Header extensions": we look for the format of the backing file. */
static void read_extensions(struct qcow2 *q, const uint8_t *cluster, uint64_t at, uint64_t end)
{
    while (at + 8 <= end) {
        uint32_t type, length;
        memcpy(&type, cluster + at, 4);
        memcpy(&length, cluster + at + 4, 4);
        type = be32toh(type);
        length = be32toh(length);
        at += 8;
        if (type == QCOW2_EXTENSION_END || length > end - at)
            return;
        char name[16] = "";
        if (type == QCOW2_EXTENSION_BACKING_FORMAT && length < sizeof(name)) {
            memcpy(name, cluster + at, length);
            disk_format_parse(name, &q->image.backing_format);
        }
        at = align_up(at + length, 8);
    }
}

static bool read_names(struct qcow2 *q, const struct qcow2_header *h, uint64_t header_length, struct error *err)
{
    uint64_t offset = be64toh(h->backing_file_offset), size = be32toh(h->backing_file_size);
    if (offset && (size > QCOW2_BACKING_NAME_MAX || !size || offset > q->cluster_size || size > q->cluster_size - offset))
        return error_set(err, "%s is no valid qcow2 image: the name of its backing file does not fit", q->image.file->name);
    uint8_t *cluster = malloc(q->cluster_size);
    if (!cluster)
        return error_set(err, "out of memory");
    int status = disk_file_read(q->image.file, cluster, q->cluster_size, 0);
    if (!status)
        read_extensions(q, cluster, header_length, offset ? offset : q->cluster_size);
    if (!status && offset) {
        q->image.backing_name = strndup((char *)cluster + offset, size);
        status = q->image.backing_name ? 0 : ENOMEM;
    }
    free(cluster);
    return status ? error_errno(err, status, "cannot read %s", q->image.file->name) : true;
}

static void take_fields(struct qcow2 *q, const struct qcow2_header *h)
{
    q->image.size = align_down(be64toh(h->size), DISK_SECTOR);
    q->cluster_size = BIT(q->cluster_bits);
    q->l2_bits = q->cluster_bits - 3;
    q->refcount_order = 4;
    if (q->version < 3)
        return;
    q->incompatible = be64toh(h->incompatible_features);
    q->lazy = be64toh(h->compatible_features) & QCOW2_COMPATIBLE_LAZY_REFCOUNTS;
    q->refcount_order = be32toh(h->refcount_order);
    if (q->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION)
        q->compression = h->compression_type;
}

bool qcow2_read_header(struct qcow2 *q, struct error *err)
{
    struct qcow2_header h;
    const char *name = q->image.file->name;
    int status = disk_file_read(q->image.file, &h, sizeof(h), 0);
    if (status)
        return error_errno(err, status, "cannot read %s", name);
    if (be32toh(h.magic) != QCOW2_MAGIC)
        return error_set(err, "%s is no qcow2 image", name);
    q->version = be32toh(h.version);
    q->cluster_bits = be32toh(h.cluster_bits);
    if (q->version < 2 || q->version > 3)
        return error_set(err, "%s is a qcow2 image of version %u; Doppel knows versions 2 and 3", name, q->version);
    if (q->cluster_bits < QCOW2_CLUSTER_BITS_MIN || q->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return error_set(err, "%s is no valid qcow2 image: its clusters have 2^%u bytes", name, q->cluster_bits);
    take_fields(q, &h);
    uint64_t length = q->version < 3 ? 72 : be32toh(h.header_length);
    if (length < (q->version < 3 ? 72u : 104u) || length > q->cluster_size || length % 8)
        return error_set(err, "%s is no valid qcow2 image: its header has %lu bytes", name, (unsigned long)length);
    if (!refuse_features(q, &h, err) || !refuse_geometry(q, &h, err) || (!q->image.read_only && !refuse_writing(q, &h, err)))
        return false;
    q->block_bits = q->cluster_bits + 3 - q->refcount_order;
    q->reftable_room = (uint64_t)be32toh(h.refcount_table_clusters) << q->cluster_bits;
    status = load_table(q, &q->l1, be64toh(h.l1_table_offset), (uint64_t)be32toh(h.l1_size) * 8);
    if (!status)
        status = load_table(q, &q->reftable, be64toh(h.refcount_table_offset), q->reftable_room);
    return status ? error_errno(err, status, "cannot read the tables of %s", name) : read_names(q, &h, length, err);
}

/* --- creating --- */

/* The clusters of an empty image: header, refcount table, refcount blocks, L1. */
struct layout {
    uint64_t cluster, table_clusters, blocks, l1_entries, l1_clusters, used;
};

static struct layout lay_out(uint64_t size, uint64_t cluster)
{
    uint64_t per_l2 = cluster / 8 * cluster, per_block = cluster / 2;     /* counts of 16 bits */
    struct layout l = { .cluster = cluster, .table_clusters = 1, .blocks = 1, .l1_entries = max_u64(1, (size + per_l2 - 1) / per_l2) };
    l.l1_clusters = (l.l1_entries * 8 + cluster - 1) / cluster;
    for (;;) {
        l.used = 1 + l.table_clusters + l.blocks + l.l1_clusters;
        uint64_t blocks = (l.used + per_block - 1) / per_block, table = (blocks * 8 + cluster - 1) / cluster;
        if (blocks <= l.blocks && table <= l.table_clusters)
            return l;
        l.blocks = blocks;
        l.table_clusters = table;
    }
}

/* Table, blocks and L1 as one buffer: everything after the header's cluster. */
static int write_tables(struct disk_file *file, const struct layout *l)
{
    uint64_t size = (l->used - 1) * l->cluster;
    uint8_t *bytes = calloc(1, size);
    if (!bytes)
        return ENOMEM;
    uint64_t *table = (uint64_t *)bytes;
    uint16_t *counts = (uint16_t *)(bytes + l->table_clusters * l->cluster);
    for (uint64_t i = 0; i < l->blocks; i++)
        table[i] = htobe64((1 + l->table_clusters + i) * l->cluster);
    for (uint64_t i = 0; i < l->used; i++)
        counts[i] = htobe16(1);
    int status = disk_file_write(file, bytes, size, l->cluster);
    free(bytes);
    return status;
}

static void put_extension(uint8_t *cluster, uint64_t *at, uint32_t type, const char *text)
{
    uint32_t head[2] = { htobe32(type), htobe32((uint32_t)strlen(text)) };
    memcpy(cluster + *at, head, sizeof(head));
    memcpy(cluster + *at + sizeof(head), text, strlen(text));
    *at = align_up(*at + sizeof(head) + strlen(text), 8);
}

static int write_header(struct disk_file *file, const struct disk_image_plan *plan, const struct layout *l)
{
    uint8_t *cluster = calloc(1, l->cluster);
    if (!cluster)
        return ENOMEM;
    struct qcow2_header h = {
        .magic = htobe32(QCOW2_MAGIC), .version = htobe32(3), .size = htobe64(plan->size),
        .cluster_bits = htobe32((uint32_t)__builtin_ctzll(l->cluster)),
        .l1_size = htobe32((uint32_t)l->l1_entries), .l1_table_offset = htobe64((1 + l->table_clusters + l->blocks) * l->cluster),
        .refcount_table_offset = htobe64(l->cluster), .refcount_table_clusters = htobe32((uint32_t)l->table_clusters),
        .compatible_features = htobe64(plan->lazy_refcounts ? QCOW2_COMPATIBLE_LAZY_REFCOUNTS : 0),
        .refcount_order = htobe32(4), .header_length = htobe32(sizeof(h)),
    };
    uint64_t at = sizeof(h);
    int status = 0;
    if (plan->backing_name) {
        put_extension(cluster, &at, QCOW2_EXTENSION_BACKING_FORMAT, disk_format_name(plan->backing_format));
        at += 8;                                /* the end of the extensions */
        uint64_t length = strlen(plan->backing_name);
        h.backing_file_offset = htobe64(at);
        h.backing_file_size = htobe32((uint32_t)length);
        if (length > QCOW2_BACKING_NAME_MAX || length > l->cluster - at)
            status = ENAMETOOLONG;
        else
            memcpy(cluster + at, plan->backing_name, length);
    }
    memcpy(cluster, &h, sizeof(h));
    if (!status)
        status = disk_file_write(file, cluster, l->cluster, 0);
    free(cluster);
    return status;
}

int qcow2_create(struct disk_file *file, const struct disk_image_plan *plan)
{
    struct layout l = lay_out(plan->size, plan->cluster_size ? plan->cluster_size : 64 * KiB);
    if (l.l1_entries * 8 > QCOW2_L1_BYTES_MAX)
        return EFBIG;
    int status = write_tables(file, &l);
    if (!status)
        status = file->ops->flush(file);
    if (!status)
        status = write_header(file, plan, &l);
    return status ? status : file->ops->flush(file);
}
