/*
 * qcow2 images against a model: random requests on an image and on an array must come to the same, over reopening, with
 * every cluster size, with and without something behind the image; and qemu-img, which is not ours, agrees.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "backend/block.h"
#include "backend/qcow2.h"
#include "base/error.h"
#include "base/loop.h"
#include "disk/memory_file.h"
#include "fuzz/mutate.h"

static char directory[] = "/tmp/doppel-qcow2-XXXXXX";

/* --- helpers --- */

static const char *path_of(const char *name)
{
    static char path[8][128];
    static unsigned next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof(path[0]), "%s/%s", directory, name);
    return out;
}

static int shell(const char *format, ...)
{
    char command[1024];
    va_list args;
    va_start(args, format);
    int used = snprintf(command, sizeof(command), "cd %s && ", directory);
    vsnprintf(command + used, sizeof(command) - (size_t)used, format, args);
    va_end(args);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static struct disk_image *open_ok(const char *path, struct disk_image_options options)
{
    struct error err = { "" };
    struct disk_image *image = disk_image_open(path, &options, &err);
    if (!image)
        fail_msg("%s", err.text);
    return image;
}

static void refused(const char *path, struct disk_image_options options, const char *reason)
{
    struct error err = { "" };
    struct disk_image *image = disk_image_open(path, &options, &err);
    if (image || !strstr(err.text, reason))
        fail_msg("'%s' instead of '%s'", err.text, reason);
}

static void make(const char *name, struct disk_image_plan plan)
{
    struct error err = { "" };
    plan.format = plan.format ? plan.format : DISK_FORMAT_QCOW2;
    if (!disk_image_create(path_of(name), &plan, &err))
        fail_msg("%s", err.text);
}

/* --- the model --- */

struct model {
    struct memory_store store;
    struct disk_image *image;
    uint8_t *bytes;
    uint64_t size, cluster, seed;
    struct memory_store behind_store;
    struct disk_image *behind;
    bool lazy;
};

static void model_open(struct model *m)
{
    struct error err = { "" };
    m->image = qcow2_open(memory_file_open(&m->store, false), false, &err);
    if (!m->image)
        fail_msg("%s", err.text);
    if (m->behind) {
        m->image->backing = qcow2_open(memory_file_open(&m->behind_store, true), true, &err);
        assert_non_null(m->image->backing);
    }
}

static void model_check(struct model *m, bool exact)
{
    struct qcow2_findings found;
    assert_int_equal(qcow2_check(qcow2_of(m->image), &found), 0);
    assert_int_equal(found.broken, 0);
    if (exact)
        assert_true(found.missing == 0 && found.leaks == 0);
}

static void model_compare(struct model *m)
{
    uint8_t *back = malloc(m->size);
    assert_int_equal(disk_image_read(m->image, back, m->size, 0), 0);
    for (uint64_t i = 0; i < m->size; i++)
        if (back[i] != m->bytes[i])
            fail_msg("byte %lu is %02x, not %02x", i, back[i], m->bytes[i]);
    free(back);
}

static void model_close(struct model *m)
{
    assert_int_equal(disk_image_close(m->image), 0);
}

static void random_range(struct model *m, uint64_t *offset, uint64_t *size)
{
    uint64_t sectors = m->size / 512, most = fuzz_below(&m->seed, 4) ? 3 * m->cluster / 512 + 4 : sectors;
    *offset = fuzz_below(&m->seed, sectors);
    *size = 1 + fuzz_below(&m->seed, min_u64(most, sectors - *offset));
    if (!fuzz_below(&m->seed, 4)) {         /* whole clusters */
        *offset = align_down(*offset * 512, m->cluster) / 512;
        *size = align_up(*size * 512, m->cluster) / 512;
    }
    *size = min_u64(*size, sectors - *offset) * 512;
    *offset *= 512;
}

static void random_write(struct model *m, uint64_t offset, uint64_t size)
{
    for (uint64_t i = 0; i < size; i += 8) {
        uint64_t value = fuzz_random(&m->seed);
        memcpy(m->bytes + offset + i, &value, 8);
    }
    uint64_t cut = fuzz_below(&m->seed, size + 1);
    const struct iovec iov[] = { { m->bytes + offset, cut }, { m->bytes + offset + cut, size - cut } };
    assert_int_equal(m->image->ops->write(m->image, iov, 2, offset), 0);
}

static void random_step(struct model *m)
{
    uint64_t offset, size;
    random_range(m, &offset, &size);
    switch (fuzz_below(&m->seed, 12)) {
    case 0: {
        assert_int_equal(m->image->ops->discard(m->image, offset, size), 0);
        /* What a discarded part reads as is the image's affair, but it must stay the same. */
        assert_int_equal(disk_image_read(m->image, m->bytes + offset, size, offset), 0);
        break;
    }
    case 1:
        assert_int_equal(m->image->ops->write_zeroes(m->image, offset, size, fuzz_below(&m->seed, 2)), 0);
        memset(m->bytes + offset, 0, size);
        break;
    case 2: assert_int_equal(m->image->ops->flush(m->image), 0); break;
    case 3:
        model_compare(m);
        if (fuzz_below(&m->seed, 4))
            break;
        model_close(m);
        model_open(m);
        model_check(m, true);
        break;
    default: random_write(m, offset, size); break;
    }
}

/* Something behind, of another size, that has data of its own. */
static void model_put_behind(struct model *m)
{
    struct error err;
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = m->size / 2 + 512, .cluster_size = 4096 };
    memory_store_init(&m->behind_store);
    struct disk_file *file = memory_file_open(&m->behind_store, false);
    assert_int_equal(qcow2_create(file, &plan), 0);
    m->behind = qcow2_open(file, false, &err);
    for (uint64_t offset = 0; offset + 1024 <= plan.size; offset += 2048) {
        memset(m->bytes + offset, 1 + (int)(offset / 2048 % 200), 1024);
        assert_int_equal(disk_image_write(m->behind, m->bytes + offset, 1024, offset), 0);
    }
    assert_int_equal(disk_image_close(m->behind), 0);
}

static void run_model(uint32_t cluster, uint64_t size, bool lazy, bool behind, unsigned steps)
{
    struct model m = { .size = size, .cluster = cluster, .seed = 0x9E3779B97F4A7C15ull + cluster + lazy * 2 + behind, .bytes = calloc(1, size) };
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = size, .cluster_size = cluster, .lazy_refcounts = lazy };
    memory_store_init(&m.store);
    struct disk_file *file = memory_file_open(&m.store, false);
    assert_int_equal(qcow2_create(file, &plan), 0);
    disk_file_close(file);
    if (behind)
        model_put_behind(&m);
    model_open(&m);
    for (unsigned i = 0; i < steps; i++)
        random_step(&m);
    model_compare(&m);
    model_close(&m);
    model_open(&m);
    model_compare(&m);
    model_check(&m, true);
    model_close(&m);
    memory_store_free(&m.store);
    if (behind)
        memory_store_free(&m.behind_store);
    free(m.bytes);
}

static void small_clusters_equal_the_model(void **state)
{
    run_model(512, 2 * MiB + 512, false, false, 600);
    run_model(512, 2 * MiB + 512, true, true, 600);
}

static void usual_clusters_equal_the_model(void **state)
{
    run_model(4096, 4 * MiB, false, true, 400);
    run_model(64 * KiB, 8 * MiB + 1024, false, false, 400);
    run_model(64 * KiB, 8 * MiB + 1024, true, true, 300);
}

static void large_clusters_equal_the_model(void **state)
{
    run_model(2 * MiB, 32 * MiB, false, true, 60);
}

/* --- growing and shrinking --- */

static void resizing_keeps_what_fits(void **state)
{
    struct memory_store store;
    struct error err;
    memory_store_init(&store);
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = 64 * KiB, .cluster_size = 512 };
    struct disk_file *file = memory_file_open(&store, false);
    assert_int_equal(qcow2_create(file, &plan), 0);
    struct disk_image *image = qcow2_open(file, false, &err);
    uint8_t data[8192], back[8192];
    memset(data, 0x5A, sizeof(data));
    assert_int_equal(disk_image_write(image, data, sizeof(data), 56 * KiB), 0);
    assert_int_equal(image->ops->resize(image, 60 * KiB), 0);
    assert_int_equal(image->ops->resize(image, 64 * MiB), 0);       /* its L1 table moves */
    assert_int_equal(disk_image_write(image, data, sizeof(data), 60 * MiB), 0);
    assert_int_equal(disk_image_close(image), 0);
    image = qcow2_open(memory_file_open(&store, false), false, &err);
    assert_int_equal(image->size, 64 * MiB);
    assert_int_equal(disk_image_read(image, back, sizeof(back), 56 * KiB), 0);
    memset(data + 4096, 0, 4096);           /* cut off */
    assert_memory_equal(back, data, sizeof(data));
    struct qcow2_findings found;
    assert_int_equal(qcow2_check(qcow2_of(image), &found), 0);
    assert_true(!found.broken && !found.missing && !found.leaks);
    assert_int_equal(disk_image_close(image), 0);
    memory_store_free(&store);
}

/* A row of clusters for a table may be longer than what one block of counts covers. */
static void long_tables_find_their_place(void **state)
{
    struct memory_store store;
    struct error err;
    memory_store_init(&store);
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = MiB, .cluster_size = 512 };
    struct disk_file *file = memory_file_open(&store, false);
    assert_int_equal(qcow2_create(file, &plan), 0);
    struct disk_image *image = qcow2_open(file, false, &err);
    assert_int_equal(image->ops->resize(image, 4 * GiB), 0);        /* an L1 table of 2048 clusters, where 256 have one block */
    uint8_t data[4096], back[4096];
    memset(data, 0x77, sizeof(data));
    struct qcow2 *q = qcow2_of(image);
    uint64_t offset;
    pthread_mutex_lock(&q->lock);
    assert_int_equal(qcow2_allocate_row(q, 700, &offset), 0);
    qcow2_release(q, offset, 700);
    pthread_mutex_unlock(&q->lock);
    assert_int_equal(disk_image_write(image, data, sizeof(data), 3 * GiB), 0);
    assert_int_equal(disk_image_close(image), 0);
    image = qcow2_open(memory_file_open(&store, false), false, &err);
    assert_int_equal(disk_image_read(image, back, sizeof(back), 3 * GiB), 0);
    assert_memory_equal(back, data, sizeof(data));
    struct qcow2_findings found;
    assert_int_equal(qcow2_check(qcow2_of(image), &found), 0);
    assert_true(!found.broken && !found.missing && !found.leaks);
    assert_int_equal(disk_image_close(image), 0);
    memory_store_free(&store);
}

/* --- errors of the host --- */

static void a_full_host_is_an_error_and_harms_nothing(void **state)
{
    struct memory_store store;
    struct error err;
    memory_store_init(&store);
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = 16 * MiB };
    struct disk_file *file = memory_file_open(&store, false);
    assert_int_equal(qcow2_create(file, &plan), 0);
    struct disk_image *image = qcow2_open(file, false, &err);
    uint8_t *data = malloc(MiB), *back = malloc(MiB);
    memset(data, 7, MiB);
    assert_int_equal(disk_image_write(image, data, MiB, 0), 0);
    assert_int_equal(image->ops->flush(image), 0);
    store.limit = store.size + 100 * KiB;
    assert_int_equal(disk_image_write(image, data, MiB, 4 * MiB), ENOSPC);
    assert_int_equal(disk_image_read(image, back, MiB, 0), 0);
    assert_memory_equal(back, data, MiB);
    store.limit = GiB;
    assert_int_equal(disk_image_write(image, data, MiB, 4 * MiB), 0);
    assert_int_equal(disk_image_close(image), 0);
    image = qcow2_open(memory_file_open(&store, false), false, &err);
    struct qcow2_findings found;
    assert_int_equal(qcow2_check(qcow2_of(image), &found), 0);
    assert_true(!found.broken && !found.missing && !found.leaks);
    assert_int_equal(disk_image_read(image, back, MiB, 4 * MiB), 0);
    assert_memory_equal(back, data, MiB);
    assert_int_equal(disk_image_close(image), 0);
    memory_store_free(&store);
    free(data);
    free(back);
}

static void nothing_is_built_on_a_barrier_that_failed(void **state)
{
    struct memory_store store;
    struct error err;
    memory_store_init(&store);
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = 16 * MiB };
    struct disk_file *file = memory_file_open(&store, false);
    assert_int_equal(qcow2_create(file, &plan), 0);
    struct disk_image *image = qcow2_open(file, false, &err);
    uint8_t data[4096] = { 1 };
    assert_int_equal(disk_image_write(image, data, sizeof(data), 0), 0);
    store.fail_flushes = EIO;
    assert_int_equal(image->ops->flush(image), EIO);
    store.fail_flushes = 0;
    assert_int_equal(image->ops->flush(image), EIO);
    assert_int_equal(disk_image_write(image, data, sizeof(data), MiB), EIO);
    assert_int_equal(disk_image_close(image), EIO);
    image = qcow2_open(memory_file_open(&store, false), false, &err);       /* and it can be put right */
    assert_non_null(image);
    struct qcow2_findings found;
    assert_int_equal(qcow2_check(qcow2_of(image), &found), 0);
    assert_true(!found.broken && !found.missing && !found.leaks);
    assert_int_equal(disk_image_close(image), 0);
    memory_store_free(&store);
}

/* --- with qemu-img --- */

static void same_as_raw(const char *name, const char *raw, struct disk_image_options options)
{
    struct disk_image *image = open_ok(path_of(name), options);
    const struct disk_image_options plain = { .format = DISK_FORMAT_RAW, .read_only = true };
    struct disk_image *other = open_ok(path_of(raw), plain);
    static uint8_t a[MiB], b[MiB];
    assert_int_equal(image->size, other->size);
    for (uint64_t offset = 0; offset < image->size; offset += MiB) {
        uint64_t size = min_u64(MiB, image->size - offset);
        assert_int_equal(disk_image_read(image, a, size, offset), 0);
        assert_int_equal(disk_image_read(other, b, size, offset), 0);
        if (memcmp(a, b, size))
            fail_msg("%s differs within a MiB at %lu", name, (unsigned long)offset);
    }
    disk_image_close(image);
    disk_image_close(other);
}

/* Half of it text, half random, with holes. */
static void make_raw(void)
{
    assert_int_equal(shell("{ seq 1 400000; head -c 3000000 /dev/urandom; } >raw.img && truncate -s 20M raw.img && "
                           "{ head -c 1000000 /dev/urandom; seq 1 9999; } | dd of=raw.img bs=4096 seek=3000 conv=notrunc status=none"), 0);
}

static void images_of_qemu_are_read(void **state)
{
    static const char *const how[] = {
        "-o compat=0.10",
        "-o compat=1.1",
        "-c -o compat=0.10",
        "-c",
        "-c -o cluster_size=2M",
        "-c -o cluster_size=4k",
        "-c -o compression_type=zstd",
        "-c -o compression_type=zstd,cluster_size=512",
        "-o refcount_bits=1",
        "-o refcount_bits=64,cluster_size=1k",
        "-S 4k -o preallocation=metadata",
    };
    make_raw();
    for (size_t i = 0; i < ARRAY_SIZE(how); i++) {
        assert_int_equal(shell("qemu-img convert -q -f raw -O qcow2 %s raw.img q.qcow2", how[i]), 0);
        same_as_raw("q.qcow2", "raw.img", (struct disk_image_options){ .read_only = true });
    }
}

/* Writes over what qemu-img made, and has it judge the result. */
static void images_of_qemu_are_written(void **state)
{
    static const char *const how[] = { "-o lazy_refcounts=on", "-c", "-c -o compression_type=zstd", "-o refcount_bits=1", "-o refcount_bits=2",
                                       "-o refcount_bits=64,cluster_size=1k", "-o cluster_size=512" };
    for (size_t i = 0; i < ARRAY_SIZE(how); i++) {
        uint64_t seed = 77 + i;
        static uint8_t data[200 * 1024];
        make_raw();
        assert_int_equal(shell("qemu-img convert -q -f raw -O qcow2 %s raw.img q.qcow2", how[i]), 0);
        struct disk_image *image = open_ok(path_of("q.qcow2"), (struct disk_image_options){ 0 });
        struct disk_image *raw = open_ok(path_of("raw.img"), (struct disk_image_options){ 0 });
        for (int n = 0; n < 60; n++) {
            uint64_t size = 512 + fuzz_below(&seed, (sizeof(data) - 512) / 512) * 512, offset = fuzz_below(&seed, (20 * MiB - size) / 512) * 512;
            memset(data, n + 1, size);
            bool zero = n % 8 == 7;
            for (struct disk_image *one = image;; one = raw) {
                assert_int_equal(zero ? one->ops->write_zeroes(one, offset, size, n % 16 == 7) : disk_image_write(one, data, size, offset), 0);
                if (one == raw)
                    break;
            }
            if (n % 10 == 9)
                assert_int_equal(image->ops->flush(image), 0);
        }
        assert_int_equal(disk_image_close(image), 0);
        assert_int_equal(disk_image_close(raw), 0);
        assert_int_equal(shell("qemu-img check -q q.qcow2"), 0);
        assert_int_equal(shell("qemu-img compare -q -f qcow2 -F raw q.qcow2 raw.img"), 0);
    }
}

static void our_empty_images_are_good(void **state)
{
    const uint32_t clusters[] = { 512, 4096, 65536, 2 << 20 };
    for (size_t i = 0; i < ARRAY_SIZE(clusters); i++) {
        make("e.qcow2", (struct disk_image_plan){ .size = clusters[i] == 512 ? 40 * MiB : 3 * GiB, .cluster_size = clusters[i],
                                                  .lazy_refcounts = i % 2 });
        assert_int_equal(shell("qemu-img check -q e.qcow2"), 0);
        unlink(path_of("e.qcow2"));
    }
}

static void what_we_cannot_do_is_refused_by_name(void **state)
{
    static const struct {
        const char *make, *reason;
        bool read_only;
    } cases[] = {
        { "qemu-img create -q -f qcow2 r.qcow2 1M && printf '\\002' | dd of=r.qcow2 bs=1 seek=35 conv=notrunc status=none", "encrypted", true },
        { "qemu-img create -q -f qcow2 r.qcow2 1M && qemu-img snapshot -c one r.qcow2", "internal snapshots", true },
        { "qemu-img create -q -f qcow2 -o data_file=d.raw r.qcow2 1M", "another file", true },
        { "qemu-img create -q -f qcow2 -o extended_l2=on r.qcow2 1M", "extended L2", true },
        { "qemu-img create -q -f qcow2 -o compat=0.10 r.qcow2 1M", "version 2, which Doppel only reads", false },
        { "qemu-img create -q -f qcow2 r.qcow2 1M && qemu-img bitmap --add r.qcow2 b", "bitmaps", false },
        { "head -c 70000 /dev/zero >r.qcow2", "no qcow2 image", true },
        { "qemu-img create -q -f qcow2 r.qcow2 1M && printf '\\377' | dd of=r.qcow2 bs=1 seek=36 conv=notrunc status=none", "larger tables", true },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        shell("rm -f r.qcow2 d.raw");
        assert_int_equal(shell("%s", cases[i].make), 0);
        refused(path_of("r.qcow2"), (struct disk_image_options){ .read_only = cases[i].read_only }, cases[i].reason);
    }
}

/* --- which format, and what lies behind --- */

static void a_raw_disk_is_not_taken_for_qcow2(void **state)
{
    shell("rm -f x.img x.qcow2");
    assert_int_equal(shell("qemu-img create -q -f qcow2 x.img 1M && cp x.img x.qcow2"), 0);
    refused(path_of("x.img"), (struct disk_image_options){ 0 }, "say format=qcow2, or format=raw");
    struct disk_image *image = open_ok(path_of("x.img"), (struct disk_image_options){ .format = DISK_FORMAT_RAW });
    assert_true(image->ops->format == DISK_FORMAT_RAW && image->size < MiB);
    disk_image_close(image);
    image = open_ok(path_of("x.img"), (struct disk_image_options){ .format = DISK_FORMAT_QCOW2 });
    assert_int_equal(image->size, MiB);
    disk_image_close(image);
    image = open_ok(path_of("x.qcow2"), (struct disk_image_options){ 0 });
    assert_int_equal(image->size, MiB);
    disk_image_close(image);
}

static void backing_files_need_leave(void **state)
{
    shell("rm -f *");
    make_raw();
    assert_int_equal(shell("qemu-img create -q -f qcow2 -b raw.img -F raw mid.qcow2 && qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2"), 0);
    refused(path_of("top.qcow2"), (struct disk_image_options){ 0 }, "backing=on");
    same_as_raw("top.qcow2", "raw.img", (struct disk_image_options){ .backing = true });
    same_as_raw("top.qcow2", "raw.img", (struct disk_image_options){ .backing = true, .ephemeral = true });
    same_as_raw("top.qcow2", "raw.img", (struct disk_image_options){ .base_path = path_of("raw.img"), .base_format = DISK_FORMAT_RAW });
    /* Tricks with names. */
    assert_int_equal(shell("qemu-img create -q -f qcow2 -u -b circle.qcow2 -F qcow2 c.qcow2 1M && mv c.qcow2 circle.qcow2"), 0);
    refused(path_of("circle.qcow2"), (struct disk_image_options){ .read_only = true, .backing = true }, "form a circle");
    assert_int_equal(shell("qemu-img create -q -f qcow2 -u -b nbd://localhost/x -F raw net.qcow2 1M"), 0);
    refused(path_of("net.qcow2"), (struct disk_image_options){ .backing = true }, "by a protocol");
    assert_int_equal(shell("qemu-img create -q -f qcow2 -u -b 'json:{}' -F raw json.qcow2 1M"), 0);
    refused(path_of("json.qcow2"), (struct disk_image_options){ .backing = true }, "by a protocol");
    assert_int_equal(shell("mkfifo pipe && qemu-img create -q -f qcow2 -u -b pipe -F raw p.qcow2 1M"), 0);
    refused(path_of("p.qcow2"), (struct disk_image_options){ .backing = true }, "neither a file nor a block device");
    assert_int_equal(shell("qemu-img create -q -f qcow2 -u -b raw.img -F raw f.qcow2 1M && "
                           "qemu-img rebase -u -b raw.img -F vmdk f.qcow2"), 0);
    refused(path_of("f.qcow2"), (struct disk_image_options){ .backing = true }, "does not say which format");
}

/* --- through the block layer --- */

struct tracked {
    struct block_request request;
    struct iovec iov;
    int status;                 /* -1: under way */
};

static void on_done(struct block_request *request, int status)
{
    ((struct tracked *)request->owner)->status = status;
}

static void start(struct block *block, struct tracked *t, enum block_op op, uint64_t offset, void *data, uint64_t size)
{
    *t = (struct tracked){ .iov = { data, size }, .status = -1 };
    t->request = (struct block_request){ .op = op, .offset = offset, .size = size, .iov = &t->iov, .iov_count = 1, .done = on_done, .owner = t };
    block_submit(block, &t->request);
}

static int run(struct block *block, enum block_op op, uint64_t offset, void *data, uint64_t size)
{
    struct tracked t;
    start(block, &t, op, offset, data, size);
    block_drain(block);
    return t.status;
}

static struct block *open_block(const char *name, struct disk_image_options image, struct loop *loop)
{
    struct error err = { "" };
    const struct block_options options = { .path = path_of(name), .image = image };
    struct block *block = block_open(&options, loop, NULL, NULL, &err);
    if (!block)
        fail_msg("%s", err.text);
    return block;
}

enum { PARALLEL = 200 };

/* Neighbours in one cluster, flushes in between, all under way at once. */
static void many_requests_at_once(void **state)
{
    struct loop *loop = loop_create(NULL);
    shell("rm -f many.qcow2");
    make("many.qcow2", (struct disk_image_plan){ .size = 64 * MiB });
    struct block *block = open_block("many.qcow2", (struct disk_image_options){ 0 }, loop);
    static struct tracked write[PARALLEL], flush[PARALLEL];
    static uint8_t data[PARALLEL][8192];
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < PARALLEL; i++) {
            memset(data[i], i + 1 + round, sizeof(data[i]));
            start(block, &write[i], BLOCK_WRITE, (uint64_t)(i * (round % 2 ? 1 : 37) % PARALLEL) * 8192, data[i], sizeof(data[i]));
            start(block, &flush[i], i % 16 ? BLOCK_DISCARD : BLOCK_FLUSH, i % 16 ? 32 * MiB + (uint64_t)i * 64 * KiB : 0, NULL, i % 16 ? 64 * KiB : 0);
        }
        block_drain(block);
        for (int i = 0; i < PARALLEL; i++)
            assert_true(write[i].status == 0 && flush[i].status == 0);
    }
    static uint8_t back[8192];
    for (int i = 0; i < PARALLEL; i++) {
        assert_int_equal(run(block, BLOCK_READ, (uint64_t)(i * 37 % PARALLEL) * 8192, back, sizeof(back)), 0);
        assert_memory_equal(back, data[i], sizeof(back));
    }
    block_close(block);
    loop_destroy(loop);
    assert_int_equal(shell("qemu-img check -q many.qcow2"), 0);
}

static void ephemeral_leaves_the_image_alone(void **state)
{
    struct loop *loop = loop_create(NULL);
    make_raw();
    shell("cp raw.img before.img; qemu-img convert -f raw -O qcow2 raw.img eph.qcow2; cp eph.qcow2 before.qcow2");
    static const char *const name[] = { "raw.img", "eph.qcow2" }, *const before[] = { "before.img", "before.qcow2" };
    for (int i = 0; i < 2; i++) {
        struct block *block = open_block(name[i], (struct disk_image_options){ .ephemeral = true }, loop);
        struct block *other = open_block(name[i], (struct disk_image_options){ .ephemeral = true }, loop);
        static uint8_t data[65536], back[65536];
        memset(data, 0xEE, sizeof(data));
        assert_int_equal(run(block, BLOCK_WRITE, 4096, data, sizeof(data)), 0);
        assert_int_equal(run(block, BLOCK_FLUSH, 0, NULL, 0), 0);
        assert_int_equal(run(block, BLOCK_READ, 4096, back, sizeof(back)), 0);
        assert_memory_equal(back, data, sizeof(data));
        assert_int_equal(run(other, BLOCK_READ, 4096, back, sizeof(back)), 0);
        assert_memory_not_equal(back, data, sizeof(data));
        block_close(block);
        block_close(other);
        assert_int_equal(shell("cmp %s %s", name[i], before[i]), 0);
    }
    loop_destroy(loop);
}

/* A running disk goes over to an overlay, twice, and each state before can be opened. */
static void switch_to_overlay(const char *name)
{
    struct loop *loop = loop_create(NULL);
    struct error err = { "" };
    shell("rm -f o1.qcow2 o2.qcow2");
    struct block *block = open_block(name, (struct disk_image_options){ 0 }, loop);
    static uint8_t data[4][65536], back[65536];
    for (int i = 0; i < 4; i++)
        memset(data[i], 0x10 + i, sizeof(data[i]));
    assert_int_equal(run(block, BLOCK_WRITE, 512, data[0], 65536), 0);
    assert_false(block_switch_to_overlay(block, path_of("no/such.qcow2"), &err));
    assert_int_equal(run(block, BLOCK_WRITE, 65536 * 3, data[0], 65536), 0);
    assert_true(block_switch_to_overlay(block, path_of("o1.qcow2"), &err));
    assert_int_equal(run(block, BLOCK_WRITE, 1024, data[1], 65536 - 1024), 0);
    assert_true(block_switch_to_overlay(block, path_of("o2.qcow2"), &err));
    assert_string_equal(block_path(block), path_of("o2.qcow2"));
    assert_int_equal(run(block, BLOCK_WRITE, 2048, data[2], 4096), 0);
    assert_int_equal(run(block, BLOCK_READ, 512, back, 8192), 0);
    assert_true(back[0] == 0x10 && back[512] == 0x11 && back[1536] == 0x12 && back[1536 + 4096] == 0x11);
    /* The first state, while the disk runs on: the base by itself. */
    struct disk_image *base = open_ok(path_of(name), (struct disk_image_options){ .read_only = true });
    assert_int_equal(disk_image_read(base, back, 65536, 512), 0);
    assert_memory_equal(back, data[0], 65536);
    disk_image_close(base);
    block_close(block);
    /* All of it again. */
    block = open_block("o2.qcow2", (struct disk_image_options){ .backing = true }, loop);
    assert_int_equal(run(block, BLOCK_READ, 512, back, 8192), 0);
    assert_true(back[0] == 0x10 && back[512] == 0x11 && back[1536] == 0x12 && back[1536 + 4096] == 0x11);
    block_close(block);
    loop_destroy(loop);
    assert_int_equal(shell("qemu-img check -q o1.qcow2 && qemu-img check -q o2.qcow2"), 0);
}

static void a_raw_disk_goes_over_to_an_overlay(void **state)
{
    make_raw();
    switch_to_overlay("raw.img");
}

static void a_qcow2_disk_goes_over_to_an_overlay(void **state)
{
    shell("rm -f sw.qcow2");
    make("sw.qcow2", (struct disk_image_plan){ .size = 8 * MiB });
    switch_to_overlay("sw.qcow2");
}

static int begin(void **state)
{
    return mkdtemp(directory) ? 0 : -1;
}

static int end(void **state)
{
    shell("rm -rf %s", directory);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_clusters_equal_the_model),
        cmocka_unit_test(usual_clusters_equal_the_model),
        cmocka_unit_test(large_clusters_equal_the_model),
        cmocka_unit_test(resizing_keeps_what_fits),
        cmocka_unit_test(long_tables_find_their_place),
        cmocka_unit_test(a_full_host_is_an_error_and_harms_nothing),
        cmocka_unit_test(nothing_is_built_on_a_barrier_that_failed),
        cmocka_unit_test(our_empty_images_are_good),
        cmocka_unit_test(images_of_qemu_are_read),
        cmocka_unit_test(images_of_qemu_are_written),
        cmocka_unit_test(what_we_cannot_do_is_refused_by_name),
        cmocka_unit_test(a_raw_disk_is_not_taken_for_qcow2),
        cmocka_unit_test(backing_files_need_leave),
        cmocka_unit_test(many_requests_at_once),
        cmocka_unit_test(ephemeral_leaves_the_image_alone),
        cmocka_unit_test(a_raw_disk_goes_over_to_an_overlay),
        cmocka_unit_test(a_qcow2_disk_goes_over_to_an_overlay),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
