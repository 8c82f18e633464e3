#include "engine/dbt/store.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "engine/dbt/store_file.h"

enum { BUCKET_BITS = 16, PRESENT_BITS = 18 };
enum { DIRECTORY_BYTES_MOST = 512 << 20 };      /* of the files of other shapes: other builds, processor models */
enum { WORTH_WRITING = 10, AGE_MOST = 32 };     /* one new entry for so many old ones is; runs in which one that is kept was of no use */
enum { LOCK_TRIES = 50, LOCK_WAIT_NS = 100000000 };
enum state { UNCHECKED, GOOD, FIT, BAD };       /* good: the checksum is right; fit: its user said so, too */

struct store {
    struct log *log;
    char *path;                                 /* of the directory; NULL: none */
    int directory;                              /* -1: none */
    char name[64];
    uint64_t bytes_most;
    pthread_mutex_t lock;                       /* guards all that follows, but heads of buckets may be read without */
    bool opened;
    struct store_shape shape;
    struct store_file file;
    struct store_entry *entries;                /* STORE_ENTRIES_MOST, granted as they are touched */
    unsigned count, read, added;
    uint64_t bytes;
    uint8_t *arena;                             /* bytes_most: of entries of this run */
    uint64_t arena_used;
    struct ahead_arena arena_granted;
    bool warned;
    atomic_uint refused;
    _Atomic(struct store_entry *) bucket[1 << BUCKET_BITS];
    _Atomic uint64_t present[1 << (PRESENT_BITS - 6)];      /* a bit for the upper bits of a key: where it is 0, there is none */
};

static void *reserve(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct store *store_create(const char *directory, uint64_t bytes_most, struct log *log)
{
    struct store *store = calloc(1, sizeof(*store));
    if (!store)
        return NULL;
    pthread_mutex_init(&store->lock, NULL);
    store->log = log;
    store->directory = -1;
    store->bytes_most = bytes_most;
    store->path = directory ? strdup(directory) : NULL;
    store->entries = reserve(STORE_ENTRIES_MOST * sizeof(*store->entries));
    store->arena = reserve(bytes_most);
    /* Its beginning page by page: machines that do little stay small. */
    if (store->arena && bytes_most > AHEAD_PIECE)
        madvise(store->arena + AHEAD_PIECE, bytes_most - AHEAD_PIECE, MADV_HUGEPAGE);
    store->arena_granted = (struct ahead_arena){ .base = store->arena, .size = bytes_most, .asked = AHEAD_PIECE };
    if (store->entries && store->arena && (!directory || store->path))
        return store;
    store_destroy(store);
    return NULL;
}

bool store_check_directory(struct store *store, struct error *err)
{
    if (store->path)
        store->directory = store_open_directory(store->path, err);
    return store->directory >= 0;
}

bool store_is_saved(const struct store *store) { return store->directory >= 0; }

/* --- finding --- */

static unsigned bucket_of(uint32_t key) { return (key ^ key >> BUCKET_BITS) & ((1u << BUCKET_BITS) - 1); }

static bool may_be_present(const struct store *store, uint32_t key)
{
    unsigned bit = key >> (32 - PRESENT_BITS);
    return atomic_load_explicit(&store->present[bit / 64], memory_order_relaxed) >> bit % 64 & 1;
}

/* With the lock held. */
static void note_present(struct store *store, uint32_t key)
{
    unsigned bit = key >> (32 - PRESENT_BITS);
    _Atomic uint64_t *word = &store->present[bit / 64];
    atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) | 1ull << bit % 64, memory_order_relaxed);
}

void store_expect(const struct store *store, uint32_t key) { __builtin_prefetch(&store->present[(key >> (32 - PRESENT_BITS)) / 64]); }

static const struct store_entry *with_key(const struct store_entry *entry, uint32_t key)
{
    while (entry && entry->key != key)
        entry = entry->next;
    return entry;
}

const struct store_entry *store_first(const struct store *store, uint32_t key)
{
    if (!may_be_present(store, key))
        return NULL;
    return with_key(atomic_load_explicit(&store->bucket[bucket_of(key)], memory_order_acquire), key);
}

const struct store_entry *store_next(const struct store_entry *entry) { return with_key(entry->next, entry->key); }

static struct store_entry *writable(const struct store_entry *entry) { return (struct store_entry *)(uintptr_t)entry; }

void store_use(const struct store_entry *entry)
{
    if (!atomic_load_explicit(&entry->used, memory_order_relaxed))
        atomic_store_explicit(&writable(entry)->used, true, memory_order_relaxed);
}

/* Several vCPUs may do this at the same time, and find the same. */
bool store_good(struct store *store, const struct store_entry *entry)
{
    enum state state = atomic_load_explicit(&entry->state, memory_order_relaxed);
    if (likely(state != UNCHECKED))
        return state != BAD;
    if (store_hash(entry->bytes, entry->size) != entry->checksum) {
        store_refuse(store, entry);
        return false;
    }
    atomic_store_explicit(&writable(entry)->state, GOOD, memory_order_relaxed);
    return true;
}

bool store_fits(const struct store_entry *entry) { return atomic_load_explicit(&entry->state, memory_order_relaxed) == FIT; }

void store_note_fit(const struct store_entry *entry)
{
    if (!store_fits(entry))
        atomic_store_explicit(&writable(entry)->state, FIT, memory_order_relaxed);
}

void store_refuse(struct store *store, const struct store_entry *entry)
{
    atomic_store_explicit(&writable(entry)->state, BAD, memory_order_relaxed);
    if (atomic_fetch_add(&store->refused, 1) == 0)
        log_message(store->log, LOG_WARNING, "translations in %s/%s are damaged: those are not used", store->path, store->name);
}

/* --- adding --- */

/* With the lock held. */
static void publish(struct store *store, const struct store_entry *what, enum state state)
{
    struct store_entry *entry = &store->entries[store->count++];
    _Atomic(struct store_entry *) *bucket = &store->bucket[bucket_of(what->key)];
    *entry = (struct store_entry){ .key = what->key, .size = what->size, .checksum = what->checksum, .bytes = what->bytes, .age = what->age };
    atomic_init(&entry->used, atomic_load_explicit(&what->used, memory_order_relaxed));
    atomic_init(&entry->state, (uint8_t)state);
    entry->next = atomic_load_explicit(bucket, memory_order_relaxed);
    atomic_store_explicit(bucket, entry, memory_order_release);
    note_present(store, what->key);
    store->bytes += what->size;
}

static bool has_room(const struct store *store, uint64_t bytes)
{
    return store->count < STORE_ENTRIES_MOST && store->arena_used + bytes <= store->bytes_most;
}

static bool is_known(const struct store *store, uint32_t key, uint32_t size, uint64_t checksum)
{
    for (const struct store_entry *entry = store_first(store, key); entry; entry = store_next(entry))
        if (entry->checksum == checksum && entry->size == size)
            return true;
    return false;
}

void store_add(struct store *store, uint32_t key, const void *bytes, uint32_t size, struct ahead *ahead)
{
    struct store_entry entry = { .key = key, .size = size, .checksum = store_hash(bytes, size), .used = true };
    if (pthread_mutex_trylock(&store->lock))    /* its holder may have no processor (beside.h): nobody waits for that */
        return;
    if (has_room(store, size) && !is_known(store, key, size, entry.checksum)) {
        entry.bytes = memcpy(store->arena + store->arena_used, bytes, size);
        store->arena_used += size;
        ahead_of_arena(ahead, &store->arena_granted, store->arena_used);
        store->added++;
        publish(store, &entry, GOOD);
    }
    pthread_mutex_unlock(&store->lock);
}

/* Entries of a file, whose mapping must live as long as the store. */
static void take_file(struct store *store, const struct store_view *view)
{
    const uint8_t *at = view->bytes;
    for (uint64_t i = 0; i < view->header->entries && store->count < STORE_ENTRIES_MOST; i++) {
        const struct store_index *index = &view->index[i];
        struct store_entry entry = { .key = index->key, .size = index->size, .checksum = index->checksum, .bytes = at, .age = index->age };
        if (!is_known(store, index->key, index->size, index->checksum))
            publish(store, &entry, UNCHECKED);
        at += index->size;
    }
}

static void refuse_file(struct store *store, const struct error *err)
{
    if (!err->text[0] || store->warned)
        return;
    store->warned = true;
    log_message(store->log, LOG_WARNING, "translations in %s/%s are not used: %s", store->path, store->name, err->text);
}

static bool map_file(struct store *store, struct store_file *file)
{
    struct error err;
    if (!store_map(store->directory, store->name, file, &err)) {
        refuse_file(store, &err);
        return false;
    }
    if (memcmp(&file->view.header->shape, &store->shape, sizeof(store->shape)) == 0)
        return true;
    error_set(&err, "they are of another build or processor");
    refuse_file(store, &err);
    store_unmap(file);
    return false;
}

bool store_open(struct store *store, const struct store_shape *shape)
{
    pthread_mutex_lock(&store->lock);
    if (!store->opened) {
        store->opened = true;
        store->shape = *shape;
        snprintf(store->name, sizeof(store->name), "translations-%016llx", (unsigned long long)shape->hash[0]);
        if (store->directory >= 0 && map_file(store, &store->file)) {
            take_file(store, &store->file.view);
            store->read = store->count;
            trace(store->log, translations, "%u read from %s/%s", store->read, store->path, store->name);
        }
    }
    bool same = memcmp(&store->shape, shape, sizeof(*shape)) == 0;
    pthread_mutex_unlock(&store->lock);
    return same;
}

struct store_stats store_stats(struct store *store)
{
    pthread_mutex_lock(&store->lock);
    struct store_stats stats = { .read = store->read, .added = store->added, .refused = atomic_load(&store->refused), .bytes = store->bytes };
    pthread_mutex_unlock(&store->lock);
    return stats;
}

/* --- saving --- */

static bool lock_directory(const struct store *store)
{
    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        if (flock(store->directory, LOCK_EX | LOCK_NB) == 0)
            return true;
        nanosleep(&(struct timespec){ .tv_nsec = LOCK_WAIT_NS }, NULL);
    }
    return false;
}

/* What was of use in this run first, then what was so most lately. */
static int by_age(const void *a, const void *b)
{
    const struct store_entry *x = *(const struct store_entry *const *)a, *y = *(const struct store_entry *const *)b;
    return x->age < y->age ? -1 : x->age > y->age;
}

/* The entries that go into the file, the most useful first. */
static size_t choose(struct store *store, struct store_entry **chosen)
{
    size_t count = 0, fit = 0;
    uint64_t bytes = 0;
    for (unsigned i = 0; i < store->count; i++) {
        struct store_entry *entry = &store->entries[i];
        if (!store_good(store, entry))
            continue;
        entry->age = atomic_load_explicit(&entry->used, memory_order_relaxed) ? 0 : entry->age + (entry->age < UINT32_MAX);
        if (entry->age <= AGE_MOST)
            chosen[count++] = entry;
    }
    qsort(chosen, count, sizeof(*chosen), by_age);
    while (fit < count && bytes + chosen[fit]->size <= store->bytes_most)
        bytes += chosen[fit++]->size;
    return fit;
}

static void write_chosen(struct store *store)
{
    struct error err;
    struct store_entry **chosen = calloc(store->count + 1, sizeof(*chosen));
    size_t count = chosen ? choose(store, chosen) : 0;
    if (chosen && !store_write(store->directory, store->name, &store->shape, (const struct store_entry *const *)chosen, count, &err))
        log_message(store->log, LOG_WARNING, "%s", err.text);
    trace(store->log, translations, "%zu written to %s/%s, %u of them new", count, store->path, store->name, store->added);
    free(chosen);
}

/* Another machine may have written the file since we read it: what it added is added here, too. */
static void save(struct store *store)
{
    struct store_file other = { .at = NULL };
    if (!lock_directory(store)) {
        log_message(store->log, LOG_WARNING, "translations are not saved: somebody keeps %s locked", store->path);
        return;
    }
    if (map_file(store, &other) && other.inode != store->file.inode)
        take_file(store, &other.view);
    write_chosen(store);
    store_evict(store->directory, store->name, DIRECTORY_BYTES_MOST);
    store_unmap(&other);
}

void store_destroy(struct store *store)
{
    if (!store)
        return;
    if (store->opened && store->directory >= 0 && store->added > store->read / WORTH_WRITING)
        save(store);
    store_unmap(&store->file);
    if (store->directory >= 0)
        close(store->directory);
    if (store->entries)
        munmap(store->entries, STORE_ENTRIES_MOST * sizeof(*store->entries));
    if (store->arena)
        munmap(store->arena, store->bytes_most);
    free(store->path);
    pthread_mutex_destroy(&store->lock);
    free(store);
}
