/*
 * crash [CUTS]: what a power cut leaves of a qcow2 image.
 *
 * A busy run of several threads writes, discards, zeroes and flushes; a file in memory records every write and barrier. Then
 * the record is cut at random places: all that lies before the last barrier has arrived, and of what comes after it either all
 * up to the cut, or any part, sector by sector. Of each such image it is demanded that
 *   - qemu-img check finds no errors, and leaks only where the dirty bit announces them (with lazy refcounts: after the
 *     image was opened for writing once);
 *   - it can be opened for writing, and then references and counts agree, by our check and by qemu-img's;
 *   - each sector holds what the last completed flush covered, or something written after that.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/qcow2.h"
#include "base/error.h"
#include "disk/memory_file.h"
#include "fuzz/mutate.h"

enum { THREADS = 4, STEPS = 220, DISK_SIZE = 8 << 20, SECTORS = DISK_SIZE / DISK_SECTOR, BLOCK = 4096, VERSIONS_MAX = 400 };

/* --- what was written when --- */

struct version {
    uint64_t number;                    /* 0: zeroes; else what the sector is filled with */
    size_t issued, completed;           /* in events */
};

struct sector {
    struct version version[VERSIONS_MAX];
    unsigned count;
};

struct flush {
    size_t began, ended;                /* in events */
};

struct run {
    const char *name;
    uint32_t cluster;
    bool lazy, overlay;
    struct memory_store store, base_store;
    uint8_t *before;                    /* the image as the run found it: empty and complete */
    uint64_t before_size;
    struct disk_image *image;
    struct sector *sector;
    struct flush flush[THREADS * STEPS];
    unsigned flushes;
    pthread_mutex_t lock;               /* guards flush */
    _Atomic uint64_t next_version;
};

static size_t now(struct run *run)
{
    pthread_mutex_lock(&run->store.lock);
    size_t events = run->store.events;
    pthread_mutex_unlock(&run->store.lock);
    return events;
}

static void demand(bool good, const char *what, const struct run *run, size_t cut)
{
    if (good)
        return;
    fprintf(stderr, "%s, cut at event %zu: %s\n", run->name, cut, what);
    exit(1);
}

static void fill_sector(uint8_t *bytes, uint64_t sector, uint64_t version)
{
    uint64_t word[2] = { version ? sector : 0, version };
    for (unsigned i = 0; i < DISK_SECTOR; i += sizeof(word))
        memcpy(bytes + i, word, sizeof(word));
}

static void note(struct run *run, uint64_t sector, uint64_t version, size_t issued)
{
    struct sector *s = &run->sector[sector];
    if (s->count == VERSIONS_MAX)
        abort();
    s->version[s->count++] = (struct version){ version, issued, now(run) };
}

/* --- the busy run: each thread has sectors of its own, side by side with the others' in one cluster or apart --- */

struct worker {
    struct run *run;
    unsigned index;
    uint64_t seed;
    pthread_t thread;
};

/* Half of the disk goes to the threads block by block, the other half in four pieces. */
static void choose(struct worker *w, uint64_t *first, uint64_t *count)
{
    uint64_t half = DISK_SIZE / 2, piece = half / THREADS;
    if (fuzz_below(&w->seed, 2)) {
        uint64_t block = fuzz_below(&w->seed, half / BLOCK / THREADS) * THREADS + w->index;
        *first = block * (BLOCK / DISK_SECTOR);
        *count = 1 + fuzz_below(&w->seed, BLOCK / DISK_SECTOR);
        return;
    }
    *first = (half + w->index * piece) / DISK_SECTOR + fuzz_below(&w->seed, piece / DISK_SECTOR);
    *count = 1 + fuzz_below(&w->seed, min_u64(400, (half + (w->index + 1) * piece) / DISK_SECTOR - *first));
}

static void do_write(struct run *run, uint64_t first, uint64_t count)
{
    static __thread uint8_t bytes[400 * DISK_SECTOR];
    uint64_t version = ++run->next_version;
    for (uint64_t i = 0; i < count; i++)
        fill_sector(bytes + i * DISK_SECTOR, first + i, version);
    size_t issued = now(run);
    if (disk_image_write(run->image, bytes, count * DISK_SECTOR, first * DISK_SECTOR))
        abort();
    for (uint64_t i = 0; i < count; i++)
        note(run, first + i, version, issued);
}

/* A discard may leave things as they are; the image says what it did. */
static void do_discard(struct run *run, uint64_t first, uint64_t count)
{
    static const uint8_t zero[DISK_SECTOR];
    uint8_t bytes[DISK_SECTOR];
    size_t issued = now(run);
    if (run->image->ops->discard(run->image, first * DISK_SECTOR, count * DISK_SECTOR))
        abort();
    for (uint64_t i = 0; i < count; i++) {
        if (disk_image_read(run->image, bytes, DISK_SECTOR, (first + i) * DISK_SECTOR))
            abort();
        if (!memcmp(bytes, zero, DISK_SECTOR))
            note(run, first + i, 0, issued);
    }
}

static void do_zero(struct run *run, uint64_t first, uint64_t count, bool unmap)
{
    size_t issued = now(run);
    if (run->image->ops->write_zeroes(run->image, first * DISK_SECTOR, count * DISK_SECTOR, unmap))
        abort();
    for (uint64_t i = 0; i < count; i++)
        note(run, first + i, 0, issued);
}

static void do_flush(struct run *run)
{
    struct flush flush = { .began = now(run) };
    if (run->image->ops->flush(run->image))
        abort();
    flush.ended = now(run);
    pthread_mutex_lock(&run->lock);
    run->flush[run->flushes++] = flush;
    pthread_mutex_unlock(&run->lock);
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    for (unsigned i = 0; i < STEPS; i++) {
        uint64_t first, count;
        choose(w, &first, &count);
        switch (fuzz_below(&w->seed, 16)) {
        case 0: do_flush(w->run); break;
        case 1: do_discard(w->run, first, count); break;
        case 2: do_zero(w->run, first, count, count & 1); break;
        default: do_write(w->run, first, count); break;
        }
    }
    return NULL;
}

static struct disk_image *open_top(struct run *run, struct memory_store *store)
{
    struct error err = { "" };
    struct disk_image *image = qcow2_open(memory_file_open(store, false), false, &err);
    if (!image)
        fprintf(stderr, "%s: %s\n", run->name, err.text);
    if (image && run->overlay)
        image->backing = qcow2_open(memory_file_open(&run->base_store, true), true, &err);
    return image;
}

static void make_image(struct run *run, struct memory_store *store, uint64_t size)
{
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = size, .cluster_size = run->cluster,
                                          .lazy_refcounts = run->lazy };
    memory_store_init(store);
    struct disk_file *file = memory_file_open(store, false);
    if (qcow2_create(file, &plan))
        abort();
    disk_file_close(file);
}

/* The base has a first version of every other block. */
static void make_base(struct run *run)
{
    struct error err;
    uint8_t bytes[DISK_SECTOR];
    make_image(run, &run->base_store, DISK_SIZE);
    struct disk_image *base = qcow2_open(memory_file_open(&run->base_store, false), false, &err);
    uint64_t version = ++run->next_version;
    for (uint64_t sector = 0; sector < SECTORS; sector += sector % 8 == 3 ? 5 : 1) {
        fill_sector(bytes, sector, version);
        if (disk_image_write(base, bytes, DISK_SECTOR, sector * DISK_SECTOR))
            abort();
        run->sector[sector].version[run->sector[sector].count++] = (struct version){ version, 0, 0 };
    }
    disk_image_close(base);
}

static void be_busy(struct run *run)
{
    struct worker worker[THREADS];
    run->sector = calloc(SECTORS, sizeof(*run->sector));
    pthread_mutex_init(&run->lock, NULL);
    for (uint64_t i = 0; i < SECTORS; i++)
        run->sector[i].count = 1;       /* zeroes from the beginning */
    if (run->overlay)
        make_base(run);
    make_image(run, &run->store, DISK_SIZE);
    run->before = malloc(run->store.size);
    run->before_size = run->store.size;
    memcpy(run->before, run->store.bytes, run->store.size);
    run->store.record = true;
    run->image = open_top(run, &run->store);
    for (unsigned i = 0; i < THREADS; i++) {
        worker[i] = (struct worker){ .run = run, .index = i, .seed = 0x9E3779B97F4A7C15ull * (i + 1) + run->cluster };
        pthread_create(&worker[i].thread, NULL, work, &worker[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(worker[i].thread, NULL);
    if (disk_image_close(run->image))
        abort();
}

/* --- a cut --- */

static void apply_part(struct memory_store *to, const struct memory_event *event, uint64_t *seed)
{
    for (uint64_t at = 0; at < event->size;) {
        uint64_t size = min_u64(event->size - at, DISK_SECTOR - (event->offset + at) % DISK_SECTOR);
        if (fuzz_below(seed, 2))
            memory_put(to, event->bytes + at, size, event->offset + at);
        at += size;
    }
}

/* The image as it may be if the power goes before event `cut`. */
static void replay(const struct run *run, size_t cut, bool partly, uint64_t *seed, struct memory_store *to)
{
    size_t barrier = cut;
    memory_store_init(to);
    memory_put(to, run->before, run->before_size, 0);
    while (barrier && run->store.event[barrier - 1].size)
        barrier--;
    for (size_t i = 0; i < cut; i++) {
        const struct memory_event *event = &run->store.event[i];
        if (i < barrier || !partly || fuzz_below(seed, 3) == 0)
            memory_put(to, event->bytes, event->size, event->offset);
        else if (fuzz_below(seed, 2))
            apply_part(to, event, seed);
    }
}

/* Whether `version` of a sector may be seen after the cut: not yet overwritten by one that was flushed. */
static bool may_be(const struct run *run, const struct sector *s, uint64_t number, size_t cut, const struct flush *flush)
{
    unsigned oldest = 0;
    for (unsigned i = 0; flush && i < s->count; i++)
        if (s->version[i].completed <= flush->began)
            oldest = i;
    for (unsigned i = oldest; i < s->count; i++)
        if (s->version[i].number == number && s->version[i].issued <= cut)
            return true;
    return false;
}

/* The last flush that was completed: of those that ended in time the one that began last. */
static const struct flush *last_flush(const struct run *run, size_t cut)
{
    const struct flush *last = NULL;
    for (unsigned i = 0; i < run->flushes; i++)
        if (run->flush[i].ended <= cut && (!last || run->flush[i].began > last->began))
            last = &run->flush[i];
    return last;
}

static void check_contents(const struct run *run, struct disk_image *image, size_t cut)
{
    uint8_t *bytes = malloc(DISK_SIZE), expected[DISK_SECTOR];
    const struct flush *flush = last_flush(run, cut);
    demand(!disk_image_read(image, bytes, DISK_SIZE, 0), "the image cannot be read", run, cut);
    for (uint64_t i = 0; i < SECTORS; i++) {
        uint64_t number;
        memcpy(&number, bytes + i * DISK_SECTOR + 8, 8);
        fill_sector(expected, i, number);
        demand(!memcmp(bytes + i * DISK_SECTOR, expected, DISK_SECTOR), "a sector holds what was never written to it", run, cut);
        demand(may_be(run, &run->sector[i], number, cut, flush), "a sector holds something older than what was flushed", run, cut);
    }
    free(bytes);
}

/* --- qemu-img --- */

static char path[] = "/dev/shm/doppel-crash-XXXXXX";

static int qemu_img_check(const struct memory_store *store)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    char command[128];
    if (fd < 0 || write(fd, store->bytes, store->size) != (ssize_t)store->size)
        abort();
    close(fd);
    snprintf(command, sizeof(command), "qemu-img check -q -f qcow2 %s >/dev/null 2>&1", path);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool marked_dirty(const struct memory_store *store)
{
    const struct qcow2_header *header = (const struct qcow2_header *)store->bytes;
    return be64toh(header->incompatible_features) & QCOW2_INCOMPATIBLE_DIRTY;
}

static void check_cut(struct run *run, size_t cut, bool partly, uint64_t *seed)
{
    enum { LEAKS = 3 };
    struct memory_store store;
    struct qcow2_findings found;
    replay(run, cut, partly, seed, &store);
    if (!run->lazy) {
        int status = qemu_img_check(&store);
        demand(!status || (status == LEAKS && marked_dirty(&store)), "qemu-img check finds errors", run, cut);
    }
    struct disk_image *image = open_top(run, &store);
    demand(image, "it cannot be opened", run, cut);
    check_contents(run, image, cut);
    demand(!qcow2_check(qcow2_of(image), &found) && !found.broken && !found.missing && !found.leaks, "our check finds errors", run, cut);
    demand(!disk_image_close(image), "it cannot be closed", run, cut);
    if (run->lazy)
        demand(!qemu_img_check(&store), "qemu-img check finds errors after it was opened", run, cut);
    memory_store_free(&store);
}

/* Anywhere, or shortly before a barrier, where order matters most: metadata are written there. */
static size_t choose_cut(const struct run *run, uint64_t *seed)
{
    size_t cut = fuzz_below(seed, run->store.events + 1);
    if (fuzz_below(seed, 3) == 0)
        return cut;
    while (cut < run->store.events && run->store.event[cut].size)
        cut++;
    return cut - min_u64(cut, fuzz_below(seed, 3));
}

int main(int argc, char **argv)
{
    static struct run runs[] = {
        { .name = "usual clusters", .cluster = 64 * KiB },
        { .name = "overlay", .cluster = 64 * KiB, .overlay = true },
        { .name = "lazy refcounts", .cluster = 64 * KiB, .lazy = true },
        { .name = "small clusters", .cluster = 512 },
        { .name = "small clusters, overlay, lazy refcounts", .cluster = 4096, .lazy = true, .overlay = true },
    };
    unsigned long cuts = fuzz_rounds(argc, argv, 100), done = 0;
    uint64_t seed = 0x2545F4914F6CDD1Dull;
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    for (unsigned i = 0; i < ARRAY_SIZE(runs); i++) {
        be_busy(&runs[i]);
        for (unsigned long n = 0; n < cuts / ARRAY_SIZE(runs); n++, done++)
            check_cut(&runs[i], choose_cut(&runs[i], &seed), n % 4, &seed);
        printf("%s: %zu writes and barriers, %u flushes\n", runs[i].name, runs[i].store.events, runs[i].flushes);
        memory_store_free(&runs[i].store);
        free(runs[i].sector);
        free(runs[i].before);
    }
    unlink(path);
    printf("%lu passed, 0 failed, 0 skipped\n", done);
    return 0;
}
