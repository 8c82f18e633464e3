/*
 * The file of a store (store.h):
 *   header       magic, shape, number of entries, bytes of all of them, checksum of the index, checksum of the header
 *   index        for each entry key, size, age, checksum
 *   entries      one behind the other
 * Numbers are little-endian. The size of the file follows from the header.
 */
#ifndef DOPPEL_DBT_STORE_FILE_H
#define DOPPEL_DBT_STORE_FILE_H

#include <stddef.h>

#include "engine/dbt/store.h"

struct store_header {
    char magic[8];
    struct store_shape shape;
    uint64_t entries, bytes;
    uint64_t index_checksum;
    uint64_t checksum;                          /* of the fields before it */
};
extern const char store_magic[8];

struct store_index {
    uint32_t key, size, age, reserved;
    uint64_t checksum;
};

/* Sums of a file that is right as a whole; entries are not looked at. */
struct store_view {
    const struct store_header *header;
    const struct store_index *index;
    const uint8_t *bytes;
};
/* `size` bytes of a file at an address aligned to 8; false: err says what is wrong with it. */
bool store_parse(const void *file, size_t size, struct store_view *view, struct error *err);

/* A file that was mapped. */
struct store_file {
    void *at;                                   /* NULL: none */
    size_t size;
    uint64_t inode;
    struct store_view view;
};
/*
 * Opens the directory, making it if it is not there; -1: err says why it can not be used (also: others may write it).
 */
int store_open_directory(const char *path, struct error *err);
/* False: not there (err empty), or not fit for use (err says why). */
bool store_map(int directory, const char *name, struct store_file *file, struct error *err);
void store_unmap(struct store_file *file);
/* Writes entries under another name and renames that. */
bool store_write(int directory, const char *name, const struct store_shape *shape, const struct store_entry *const *entries,
                 size_t count, struct error *err);
/* Deletes the files of other shapes in the directory that have not been used for the longest time, beyond so many bytes. */
void store_evict(int directory, const char *keep, uint64_t bytes_most);

#endif
