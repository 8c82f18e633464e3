/*
 * qcow2 images, versions 2 (read only) and 3. Citations "QCOW2 §..." mean QEMU's docs/interop/qcow2.txt.
 *
 * Not done, and refused by name: encryption, internal snapshots, external data files, extended L2 entries; bitmaps and what else
 * would go stale by writing are refused for writing. Compressed clusters are read, not made.
 *
 * --- What a power cut leaves ---
 * Metadata (L1, L2, refcounts) change in memory and go to the file at a flush, in this order (qcow2_flush.c):
 *   1. refcounts (blocks), and L2 tables that nothing on disk refers to yet; barrier, which covers all data written so far
 *   2. if there are new refcount blocks: the refcount table, or the header if that moved; barrier
 *   3. L2 tables in use, L1; barrier
 *   4. clusters that step 3 has made unreachable may be used again
 * So whatever subset of the writes between two barriers arrives: what is referred to is there and counted. Entries are 8 bytes,
 * hence old or new, never torn. A write that was not flushed shows its old or its new contents, as on a disk.
 *
 * A cut may leave clusters counted that nothing refers to. Before the first allocation the header's dirty bit is therefore set; who
 * opens such an image for writing counts again (qcow2_check.c). With lazy refcounts step 1 leaves the counts out until the image
 * is closed, and the same bit covers that.
 *
 * --- Locks ---
 * flush_lock: one flush at a time, held over its I/O. lock: everything in memory; held for moments, and while a table is read.
 * A request first takes its range of guest clusters (qcow2_range_lock): shared to use what is mapped, exclusive to change the
 * mapping. Order: range, flush_lock, lock.
 */
#ifndef DOPPEL_BACKEND_QCOW2_H
#define DOPPEL_BACKEND_QCOW2_H

#include <endian.h>
#include <pthread.h>
#include <string.h>

#include "backend/disk_image.h"
#include "base/base.h"

/* QCOW2 §"Header". */
enum {
    QCOW2_MAGIC = 0x514649FB,               /* "QFI\xfb" */
    QCOW2_HEADER_SIZE = 112,                /* what we write */
    QCOW2_CLUSTER_BITS_MIN = 9,
    QCOW2_CLUSTER_BITS_MAX = 21,
    QCOW2_BACKING_NAME_MAX = 1023,
    QCOW2_L1_BYTES_MAX = 32 << 20,          /* our own limits: memory that a hostile header can ask for */
    QCOW2_REFTABLE_BYTES_MAX = 8 << 20,
};
struct qcow2_header {                       /* big-endian */
    uint32_t magic, version;
    uint64_t backing_file_offset;
    uint32_t backing_file_size, cluster_bits;
    uint64_t size;
    uint32_t crypt_method, l1_size;
    uint64_t l1_table_offset, refcount_table_offset;
    uint32_t refcount_table_clusters, nb_snapshots;
    uint64_t snapshots_offset;
    /* version 3 */
    uint64_t incompatible_features, compatible_features, autoclear_features;
    uint32_t refcount_order, header_length;
    uint8_t compression_type, padding[7];
};
_Static_assert(sizeof(struct qcow2_header) == QCOW2_HEADER_SIZE, "QCOW2 \"Header\"");

enum {
    QCOW2_INCOMPATIBLE_DIRTY = 1 << 0,
    QCOW2_INCOMPATIBLE_CORRUPT = 1 << 1,
    QCOW2_INCOMPATIBLE_DATA_FILE = 1 << 2,
    QCOW2_INCOMPATIBLE_COMPRESSION = 1 << 3,
    QCOW2_INCOMPATIBLE_EXTENDED_L2 = 1 << 4,
    QCOW2_COMPATIBLE_LAZY_REFCOUNTS = 1 << 0,
    QCOW2_EXTENSION_END = 0,
    QCOW2_COMPRESSION_ZLIB = 0,
    QCOW2_COMPRESSION_ZSTD = 1,
};
#define QCOW2_EXTENSION_BACKING_FORMAT 0xE2792ACAu

/* QCOW2 §"Cluster mapping": entries of L1 and L2. */
#define QCOW2_COPIED BIT(63)
#define QCOW2_COMPRESSED BIT(62)
#define QCOW2_ZERO BIT(0)
#define QCOW2_OFFSET_MASK 0x00FFFFFFFFFFFE00ull

/* A table of the file in memory, as it lies there. */
struct qcow2_table {
    uint64_t offset;                    /* in the file */
    uint32_t size;                      /* bytes */
    uint32_t dirty_from, dirty_to;      /* bytes that the file does not have yet; to 0: none */
    bool is_new;                        /* nothing on disk refers to it yet */
    bool writing;                       /* a flush has taken its changes, and has not written them yet */
    uint8_t *bytes;
    struct qcow2_table *next;
};

/* Tables of one kind, the last used first. */
struct qcow2_cache {
    struct qcow2_table *first;
    unsigned count, dirty, limit;       /* limit: clean tables beyond it go */
};

struct qcow2_freed {                    /* clusters to be given back once the file does not refer to them */
    uint64_t offset, clusters;
};
struct qcow2_freed_list {
    struct qcow2_freed *item;
    size_t count, room;
};

struct qcow2_range {
    uint64_t first, last;               /* guest clusters */
    bool exclusive;
    struct qcow2_range *next;
};

struct qcow2 {
    struct disk_image image;
    /* Of the header. */
    unsigned version, cluster_bits, refcount_order, l2_bits, block_bits;    /* log2 of entries in an L2 table, refcount block */
    uint64_t cluster_size, incompatible;
    uint8_t compression;
    bool lazy;

    pthread_mutex_t flush_lock;
    pthread_mutex_t lock;               /* guards what follows */
    pthread_cond_t range_free;
    struct qcow2_range *ranges;
    struct qcow2_table l1, reftable;    /* whole */
    uint64_t reftable_room;             /* bytes of it that the file has room for */
    struct qcow2_cache l2, blocks;
    struct qcow2_freed_list freed;
    uint64_t hint;                      /* no cluster below is free, as far as we know */
    uint64_t end;                       /* bytes; no cluster from here on was ever in use */
    bool dirty;                         /* the header says so */
    int failed;                         /* a barrier failed: what the file holds is not known, so nothing is built on it */
};

static inline struct qcow2 *qcow2_of(struct disk_image *image)
{
    return (struct qcow2 *)image;
}

/* --- qcow2.c --- */
/* Takes `file` over, also when it fails. Opens no backing file. */
struct disk_image *qcow2_open(struct disk_file *file, bool read_only, struct error *err);
extern const struct disk_image_ops qcow2_ops;
/* Sets the header's dirty bit, or takes it away. */
int qcow2_mark(struct qcow2 *q, bool dirty);

/* --- qcow2_header.c --- */
bool qcow2_read_header(struct qcow2 *q, struct error *err);
/* Empty images. The file's contents before do not matter. */
int qcow2_create(struct disk_file *file, const struct disk_image_plan *plan);

/* --- qcow2_table.c; lock held --- */
static inline uint64_t qcow2_entry(const struct qcow2_table *table, uint64_t index)
{
    uint64_t entry;
    memcpy(&entry, table->bytes + index * 8, 8);
    return be64toh(entry);
}
void qcow2_set_entry(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t index, uint64_t value);
void qcow2_table_touch(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from, uint32_t to);   /* cache NULL: L1 ... */
/* The cluster at `offset`, read if need be; valid until the lock is given back. */
int qcow2_table_get(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table);
/* A table of zeroes in a cluster that was just allocated. */
int qcow2_table_make(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table);
void qcow2_cache_free(struct qcow2_cache *cache);

/* --- qcow2_refcount.c; lock held --- */
uint64_t qcow2_count_in(const struct qcow2 *q, const uint8_t *block, uint64_t index);
int qcow2_count_get(struct qcow2 *q, uint64_t cluster, uint64_t *count);
int qcow2_count_set(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* As count_set; a block that is missing is made in cluster *next, which moves on and whose own count is the caller's affair. */
int qcow2_count_put(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *next);
/* Finds up to `want` clusters in a row and counts them as used. */
int qcow2_allocate(struct qcow2 *q, uint64_t want, uint64_t *offset, uint64_t *got);
/* As many clusters in a row, for a table. */
int qcow2_allocate_row(struct qcow2 *q, uint64_t clusters, uint64_t *offset);
/* The clusters were never referred to: free at once. */
void qcow2_release(struct qcow2 *q, uint64_t offset, uint64_t clusters);
/* The clusters are not referred to any more: free after the next flush. */
int qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters);
/* One reference less to each. */
int qcow2_count_down(struct qcow2 *q, const struct qcow2_freed *freed);
bool qcow2_is_metadata(const struct qcow2 *q, uint64_t offset, uint64_t size);

/* --- qcow2_map.c --- */
enum qcow2_kind { QCOW2_HOLE, QCOW2_ZEROES, QCOW2_DATA, QCOW2_PACKED };
/* Guest bytes in a row that are mapped alike. */
struct qcow2_extent {
    enum qcow2_kind kind;
    bool shared;                /* DATA: the cluster has other references: it cannot be written in place */
    uint64_t host;              /* DATA: the first byte's place in the file */
    uint64_t size;              /* bytes; PACKED: within one cluster */
    uint64_t entry;             /* of the first cluster */
};
void qcow2_range_lock(struct qcow2 *q, struct qcow2_range *range, uint64_t offset, uint64_t size, bool exclusive);
void qcow2_range_unlock(struct qcow2 *q, struct qcow2_range *range);
/* Any; takes the lock itself. What lies at `offset`, at most `size` bytes. */
int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t size, struct qcow2_extent *extent);
/* Lock held: the L2 table of a guest offset. *table NULL: there is none, and `make` is not set. */
int qcow2_l2_of(struct qcow2 *q, uint64_t offset, bool make, struct qcow2_table **table);
/* Lock held: changes an entry, and sees to it that what it referred to becomes free in time. */
int qcow2_replace(struct qcow2 *q, struct qcow2_table *table, uint64_t index, uint64_t entry);
/* Where a compressed cluster lies in the file. */
void qcow2_packed_place(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *size);

/* --- qcow2_io.c --- */
int qcow2_read(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset);
int qcow2_write(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset);

/* --- qcow2_zero.c --- */
int qcow2_discard(struct disk_image *image, uint64_t offset, uint64_t size);
int qcow2_write_zeroes(struct disk_image *image, uint64_t offset, uint64_t size, bool unmap);

/* --- qcow2_unpack.c --- */
/* Reads the compressed cluster of an entry; `cluster` has room for one. */
int qcow2_unpack(struct qcow2 *q, uint64_t entry, uint8_t *cluster);

/* --- qcow2_flush.c --- */
/* Lock not held. counts: refcounts too, lazy or not. */
int qcow2_flush(struct qcow2 *q, bool counts);
/* After a request: changes wait in memory for the guest's next flush, but not without limit. */
int qcow2_relieve(struct qcow2 *q);

/* --- qcow2_resize.c --- */
int qcow2_resize(struct disk_image *image, uint64_t size);

/* --- qcow2_check.c --- */
struct qcow2_findings {
    uint64_t clusters;          /* of the file */
    uint64_t data, compressed;  /* guest clusters allocated, and how many of them are compressed */
    uint64_t leaks;             /* counted, but not referred to (that often) */
    uint64_t missing;           /* referred to, but not counted (that often) */
    uint64_t broken;            /* entries that no valid image has */
};
/* Nobody else uses the image. */
int qcow2_check(struct qcow2 *q, struct qcow2_findings *findings);
/* Counts all references again, and writes new refcounts beside the old ones. EILSEQ: entries are broken. */
int qcow2_recount(struct qcow2 *q);

#endif
