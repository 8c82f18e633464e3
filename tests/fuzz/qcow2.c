/*
 * Hostile qcow2 images: whatever the bytes are, opening refuses them with a sentence or gives an image on which any requests can be made;
 * under the address and undefined-behaviour sanitizers. Every so often the image lies in a file, and then nothing but that file may be
 * opened, whatever it names as its backing file.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>
#include <zlib.h>

#include "backend/qcow2.h"
#include "base/error.h"
#include "disk/memory_file.h"
#include "mutate.h"

enum { IMAGE_MAX = 96 * 1024, BUFFER = 64 * 1024, STORE_LIMIT = 1 << 20 };

static char image_path[] = "/dev/shm/doppel-fuzz-qcow2-XXXXXX.qcow2";       /* where a flush takes no time */
static const char *may_open;        /* NULL: anything */
static unsigned long watched, usable;       /* opens while they were watched; images that were not refused */

/* The linker sends open(), which is open64() here, to this (--wrap). */
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, int) : 0;
    va_end(args);
    if (may_open && strcmp(path, may_open)) {
        fprintf(stderr, "opened %s\n", path);
        abort();
    }
    watched += may_open != NULL;
    return __real_open64(path, flags, mode);
}

/* --- what a guest does --- */

static void request(struct disk_image *image, uint64_t *seed, uint8_t *buffer)
{
    uint64_t sectors = image->size / DISK_SECTOR;
    if (!sectors)
        return;
    uint64_t offset = fuzz_below(seed, fuzz_below(seed, 2) ? sectors : min_u64(sectors, 256));
    uint64_t count = 1 + fuzz_below(seed, min_u64(sectors - offset, BUFFER / DISK_SECTOR));
    offset *= DISK_SECTOR;
    uint64_t size = count * DISK_SECTOR;
    switch (image->read_only ? 0 : fuzz_below(seed, 8)) {
    case 0: disk_image_read(image, buffer, size, offset); break;
    case 1: image->ops->discard(image, offset, size); break;
    case 2: image->ops->write_zeroes(image, offset, size, count & 1); break;
    case 3: image->ops->flush(image); break;
    case 4: image->ops->settle(image); break;
    default: disk_image_write(image, buffer, size, offset); break;
    }
}

static void look_at(struct disk_image *image, uint64_t seed)
{
    static uint8_t buffer[BUFFER];
    struct qcow2_findings found;
    usable++;
    for (unsigned i = 0; i < 12; i++)
        request(image, &seed, buffer);
    qcow2_check(qcow2_of(image), &found);
    if (!image->read_only && fuzz_below(&seed, 4) == 0)
        image->ops->resize(image, fuzz_below(&seed, 4096) * DISK_SECTOR);
    if (!image->read_only && fuzz_below(&seed, 4) == 0 && qcow2_mark(qcow2_of(image), true) == 0)
        qcow2_recount(qcow2_of(image));
    for (unsigned i = 0; i < 4; i++)
        request(image, &seed, buffer);
}

static void check_refusal(const struct disk_image *image, const struct error *err)
{
    if (!image && !*err->text) {
        fprintf(stderr, "refused without a reason\n");
        abort();
    }
}

static void in_memory(const uint8_t *data, size_t size, uint64_t seed)
{
    struct memory_store store;
    struct error err = { "" };
    memory_store_init(&store);
    store.limit = STORE_LIMIT;
    memory_put(&store, data, size, 0);
    struct disk_image *image = qcow2_open(memory_file_open(&store, seed & 1), seed & 1, &err);
    check_refusal(image, &err);
    if (image)
        look_at(image, seed);
    disk_image_close(image);
    memory_store_free(&store);
}

static void in_a_file(const uint8_t *data, size_t size, uint64_t seed)
{
    struct error err = { "" };
    int fd = open(image_path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    close(fd);
    bool leave = seed & 2;
    const struct disk_image_options options = { .read_only = seed & 1, .backing = leave };
    may_open = leave ? NULL : image_path;
    struct disk_image *image = disk_image_open(image_path, &options, &err);
    check_refusal(image, &err);
    if (image && image->backing_name && !leave) {
        fprintf(stderr, "an image with a backing file was opened without leave\n");
        abort();
    }
    if (image && image->size < 16 * MiB)
        look_at(image, seed);
    disk_image_close(image);
    may_open = NULL;
}

/* The first eight bytes choose what is done, the rest is the image. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t seed;
    if (size < sizeof(seed))
        return 0;
    memcpy(&seed, data, sizeof(seed));
    seed |= 1ull << 63;
    (seed & 0xF0 ? in_memory : in_a_file)(data + sizeof(seed), size - sizeof(seed), seed);
    return 0;
}

#ifndef FUZZ_LIBFUZZER

/* --- valid images to begin with --- */

static size_t deflate_cluster(const uint8_t *cluster, size_t size, uint8_t *out, size_t room)
{
    z_stream stream = { .next_in = (uint8_t *)cluster, .avail_in = (uInt)size, .next_out = out, .avail_out = (uInt)room };
    deflateInit2(&stream, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY);
    deflate(&stream, Z_FINISH);
    deflateEnd(&stream);
    return stream.total_out;
}

/* Makes one guest cluster a compressed one, which lies in a cluster of its own. */
static void compress_one(struct qcow2 *q, uint64_t guest)
{
    uint8_t cluster[4096], packed[8192];
    struct qcow2_table *table;
    uint64_t offset, got;
    for (unsigned i = 0; i < sizeof(cluster); i++)
        cluster[i] = (uint8_t)(i / 16);
    size_t size = deflate_cluster(cluster, q->cluster_size, packed, sizeof(packed));
    if (qcow2_allocate(q, 1, &offset, &got) || qcow2_l2_of(q, guest, true, &table) || size > q->cluster_size)
        abort();
    disk_file_write(q->image.file, packed, size, offset);
    uint64_t sectors = (size - 1) / DISK_SECTOR, index = bits(guest, q->cluster_bits + q->l2_bits - 1, q->cluster_bits);
    qcow2_replace(q, table, index, QCOW2_COMPRESSED | sectors << (62 - (q->cluster_bits - 8)) | offset);
}

static size_t make_seed(uint8_t *out, unsigned kind)
{
    static const char *const backing[] = { NULL, "/etc/passwd", "../../../../../etc/hostname", "/dev/zero", "json:{\"driver\":\"raw\"}" };
    struct memory_store store;
    struct error err;
    memory_store_init(&store);
    struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = 256 * KiB, .cluster_size = 512u << kind % 4,
                                    .lazy_refcounts = kind & 4, .backing_name = backing[kind / 8 % 5], .backing_format = DISK_FORMAT_RAW };
    struct disk_file *file = memory_file_open(&store, false);
    if (qcow2_create(file, &plan))
        abort();
    struct disk_image *image = qcow2_open(file, false, &err);
    uint8_t data[8192];
    memset(data, 0x5A, sizeof(data));
    disk_image_write(image, data, sizeof(data), 0);
    disk_image_write(image, data, 1024, 200 * KiB);
    image->ops->write_zeroes(image, 4096, 4096, kind & 1);
    compress_one(qcow2_of(image), 64 * KiB);
    if (kind & 16)
        image->ops->flush(image);       /* and not closed: dirty */
    else
        image->ops->settle(image);
    if (store.size > IMAGE_MAX)
        abort();
    memcpy(out, store.bytes, store.size);
    size_t size = store.size;
    disk_image_close(image);
    memory_store_free(&store);
    return size;
}

int main(int argc, char **argv)
{
    enum { SEEDS = 40 };
    static uint8_t seeds[SEEDS][IMAGE_MAX], input[8 + IMAGE_MAX];
    size_t sizes[SEEDS];
    uint64_t seed = 0x9E3779B97F4A7C15ull + (argc > 2 ? strtoull(argv[2], NULL, 0) : 0);
    unsigned long rounds = fuzz_rounds(argc, argv, 30000);
    int fd = mkstemps(image_path, 6);
    if (fd < 0)
        return 1;
    close(fd);
    for (unsigned kind = 0; kind < SEEDS; kind++)
        sizes[kind] = make_seed(seeds[kind], kind);
    for (unsigned long round = 0; round < rounds; round++) {
        unsigned kind = (unsigned)(round % SEEDS);
        size_t size = sizes[kind], hot = fuzz_below(&seed, 3) ? 160 : min_u64(size, 12 * (512u << kind % 4));
        uint64_t how = fuzz_random(&seed);
        memcpy(input + 8, seeds[kind], size);
        for (uint64_t changes = fuzz_below(&seed, 6); changes; changes--)
            size = fuzz_mutate(input + 8, size, hot, &seed);
        memcpy(input, &how, 8);
        LLVMFuzzerTestOneInput(input, 8 + size);
    }
    unlink(image_path);
    printf("%lu images, %lu of them usable; %lu opens watched\n", rounds, usable, watched);
    return usable && watched ? 0 : 1;
}
#endif
