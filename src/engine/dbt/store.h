/*
 * Translations kept for the next time: those of this run, which any vCPU of the machine may use again, and those of earlier runs, from
 * a file. To the store an entry is a key, by which it is looked for, and bytes; kept.c knows what they mean.
 *
 * The file is machine code that we are going to run, so whose it is matters more than what is in it: it is opened only in a directory,
 * and as a file, that belong to the user who runs Doppel and that nobody else may write. Whoever can write there can do anything in
 * the user's name anyhow. Beyond that it may be damaged in any way: its size, its index and each entry have checksums, and what does
 * not match is not used. An entry that matches is still checked for its bounds by who uses it. A file is never changed in place; a new
 * one is renamed over it, so several machines may use it, and each adds at its end what it has that is not there yet.
 *
 * Rules of threads: entries are never changed or moved once they can be found, and live as long as the store. Buckets are lists whose
 * heads are written with the lock held and read without it (release and acquire). So are the bits that say for most keys that there is no
 * entry: who reads them too early finds none yet. What changes in an entry are two flags of its own, both atomic. So vCPUs look things up
 * without waiting for anybody.
 */
#ifndef DOPPEL_DBT_STORE_H
#define DOPPEL_DBT_STORE_H

#include <stdatomic.h>

#include "base/ahead.h"
#include "base/error.h"
#include "base/log.h"

enum {
    STORE_ENTRY_MOST = 64 << 10,                /* bytes */
    STORE_BYTES_MOST = 64 << 20,                /* of the entries in the file, and of those of a run */
    STORE_ENTRIES_MOST = 1 << 18,
};

/* Everything that shapes the code of all entries: they are good for this only. */
struct store_shape {
    uint64_t hash[2];
};

struct store_entry {
    uint32_t key;
    uint32_t size;
    uint64_t checksum;                          /* of the bytes */
    const uint8_t *bytes;
    struct store_entry *next;                   /* of the bucket */
    uint32_t age;                               /* runs that had no use for it */
    atomic_bool used;                           /* in this run */
    _Atomic uint8_t state;                      /* enum in store.c: has its checksum been compared? */
};

struct store;

/* --- machine thread --- */

/* NULL: no memory. Without a directory nothing is read or written; the directory is made if it is not there. */
struct store *store_create(const char *directory, uint64_t bytes_most, struct log *log);
/* False: the directory can not be used, and err says why; the store works without it. */
bool store_check_directory(struct store *store, struct error *err);
/* Will its entries be there for later runs? */
bool store_is_saved(const struct store *store);
/* Writes the file if there is anything new, and frees everything. No vCPU uses the store any more. */
void store_destroy(struct store *store);

/* --- any thread --- */

/* Reads the file for this shape. False: the store holds entries of another one. Only the first call does anything. */
bool store_open(struct store *store, const struct store_shape *shape);

/* It will be looked for: what says whether there is any such entry comes nearer. */
void store_expect(const struct store *store, uint32_t key);
/* The entries with the key, newest first. */
const struct store_entry *store_first(const struct store *store, uint32_t key);
const struct store_entry *store_next(const struct store_entry *entry);
/* Is the entry what was once written? If not, it is never used again. */
bool store_good(struct store *store, const struct store_entry *entry);
/* Has somebody said before that its contents are right, too? */
bool store_fits(const struct store_entry *entry);
void store_note_fit(const struct store_entry *entry);
/* It is not, for another reason. */
void store_refuse(struct store *store, const struct store_entry *entry);
/* It is of use in this run. */
void store_use(const struct store_entry *entry);
/*
 * Copies the bytes, to memory that `ahead`, if there is one, has granted; they are dropped without a word when the store is full, or somebody
 * else is adding some.
 */
void store_add(struct store *store, uint32_t key, const void *bytes, uint32_t size, struct ahead *ahead);

struct store_stats {
    unsigned read, added, refused;              /* entries: from the file, of this run, damaged */
    uint64_t bytes;
};
struct store_stats store_stats(struct store *store);

/* The checksum of everything here. */
uint64_t store_hash(const void *bytes, size_t size);

#endif
