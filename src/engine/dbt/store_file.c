#include "engine/dbt/store_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

const char store_magic[8] = "DoppelT1";

uint64_t store_hash(const void *bytes, size_t size) { return XXH3_64bits(bytes, size); }

/* --- reading --- */

static bool check_index(const struct store_view *view, struct error *err)
{
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < view->header->entries; i++) {
        uint32_t size = view->index[i].size;
        if (!size || size > STORE_ENTRY_MOST || size % 8)
            return error_set(err, "entry %llu has %u bytes", (unsigned long long)i, size);
        bytes += size;
    }
    return bytes == view->header->bytes || error_set(err, "its entries have another size than its header says");
}

bool store_parse(const void *file, size_t size, struct store_view *view, struct error *err)
{
    const struct store_header *header = file;
    if (size < sizeof(*header) || memcmp(header->magic, store_magic, sizeof(store_magic)))
        return error_set(err, "it is no file of translations");
    if (header->checksum != store_hash(header, offsetof(struct store_header, checksum)))
        return error_set(err, "its header is damaged");
    if (header->entries > STORE_ENTRIES_MOST || header->bytes > STORE_BYTES_MOST)
        return error_set(err, "it is larger than any that Doppel writes");
    size_t index_size = header->entries * sizeof(struct store_index);
    if (size != sizeof(*header) + index_size + header->bytes)
        return error_set(err, "it was cut off, or something was added");
    view->header = header;
    view->index = (const struct store_index *)(header + 1);
    view->bytes = (const uint8_t *)view->index + index_size;
    if (header->index_checksum != store_hash(view->index, index_size))
        return error_set(err, "its index is damaged");
    return check_index(view, err);
}

/* --- whose it is --- */

static bool ours_alone(const struct stat *stat, struct error *err)
{
    if (stat->st_uid != geteuid())
        return error_set(err, "it belongs to another user");
    if (stat->st_mode & (S_IWGRP | S_IWOTH))
        return error_set(err, "others may write it: chmod go-w");
    return true;
}

static bool make_directories(const char *path)
{
    char *copy = strdup(path);
    bool ok = copy != NULL;
    for (char *at = copy ? copy + 1 : NULL; ok && (at = strchr(at, '/')); at++) {
        *at = 0;
        ok = !mkdir(copy, 0700) || errno == EEXIST;
        *at = '/';
    }
    ok = ok && (!mkdir(path, 0700) || errno == EEXIST);
    free(copy);
    return ok;
}

int store_open_directory(const char *path, struct error *err)
{
    struct stat stat;
    struct error why = { .text = "" };
    if (!*path || !make_directories(path)) {
        error_errno(err, *path ? errno : ENOENT, "cannot make the directory '%s' for translations", path);
        return -1;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &stat)) {
        error_errno(err, errno, "cannot open the directory '%s' for translations", path);
    } else if (!ours_alone(&stat, &why)) {
        error_set(err, "the directory '%s' is not used for translations: %s", path, why.text);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool map(int fd, struct store_file *file, struct error *err)
{
    struct stat stat;
    if (fstat(fd, &stat))
        return error_errno(err, errno, "fstat");
    if (!S_ISREG(stat.st_mode))
        return error_set(err, "it is no regular file");
    if (!ours_alone(&stat, err))
        return false;
    file->size = (size_t)stat.st_size;
    file->inode = stat.st_ino;
    if (!file->size)
        return error_set(err, "it is empty");
    file->at = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file->at != MAP_FAILED)
        return true;
    file->at = NULL;
    return error_errno(err, errno, "mmap");
}

bool store_map(int directory, const char *name, struct store_file *file, struct error *err)
{
    *file = (struct store_file){ .at = NULL };
    err->text[0] = 0;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return errno != ENOENT && error_errno(err, errno, "open");
    bool ok = map(fd, file, err) && store_parse(file->at, file->size, &file->view, err);
    if (ok)
        futimens(fd, NULL);                     /* it is in use: store_evict */
    if (!ok)
        store_unmap(file);
    close(fd);
    return ok;
}

void store_unmap(struct store_file *file)
{
    if (file->at)
        munmap(file->at, file->size);
    file->at = NULL;
}

/* --- writing --- */

static void fill_index(struct store_index *index, struct store_header *header, const struct store_entry *const *entries, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        index[i] = (struct store_index){ .key = entries[i]->key, .size = entries[i]->size, .age = entries[i]->age,
                                         .checksum = entries[i]->checksum };
        header->bytes += entries[i]->size;
    }
    header->index_checksum = store_hash(index, count * sizeof(*index));
    header->checksum = store_hash(header, offsetof(struct store_header, checksum));
}

static bool write_all(FILE *out, const struct store_shape *shape, const struct store_entry *const *entries, size_t count)
{
    struct store_header header = { .shape = *shape, .entries = count };
    struct store_index *index = calloc(count + 1, sizeof(*index));
    if (!index)
        return false;
    memcpy(header.magic, store_magic, sizeof(store_magic));
    fill_index(index, &header, entries, count);
    bool ok = fwrite(&header, sizeof(header), 1, out) == 1 && fwrite(index, sizeof(*index), count, out) == count;
    for (size_t i = 0; ok && i < count; i++)
        ok = fwrite(entries[i]->bytes, entries[i]->size, 1, out) == 1;
    free(index);
    return ok;
}

bool store_write(int directory, const char *name, const struct store_shape *shape, const struct store_entry *const *entries,
                 size_t count, struct error *err)
{
    char temporary[64];
    snprintf(temporary, sizeof(temporary), ".%s.%ld", name, (long)getpid());
    unlinkat(directory, temporary, 0);          /* of one that was killed and had our number */
    int fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    FILE *out = fd < 0 ? NULL : fdopen(fd, "w");
    if (!out) {
        error_errno(err, errno, "cannot write translations to %s", temporary);
        if (fd >= 0)
            close(fd);
        return false;
    }
    bool ok = write_all(out, shape, entries, count);
    ok = fclose(out) == 0 && ok;
    if (ok && renameat(directory, temporary, directory, name) == 0)
        return true;
    error_errno(err, errno, "cannot write translations to %s", name);
    unlinkat(directory, temporary, 0);
    return false;
}

/* --- other files --- */

struct other {
    char name[64];
    uint64_t size;
    int64_t used;
};

static int by_use(const void *a, const void *b)
{
    int64_t x = ((const struct other *)a)->used, y = ((const struct other *)b)->used;
    return x < y ? 1 : x > y ? -1 : 0;          /* last used first */
}

/* Ours by name: translations, the locks and what killed programs left. */
static bool is_ours(const char *name)
{
    return strstr(name, "translations-") == (name[0] == '.' ? name + 1 : name) && strlen(name) < sizeof(((struct other *)0)->name);
}

void store_evict(int directory, const char *keep, uint64_t bytes_most)
{
    enum { OTHERS_MOST = 256 };
    struct other *others = calloc(OTHERS_MOST, sizeof(*others));
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    size_t count = 0;
    struct stat stat;
    for (struct dirent *entry; dir && others && count < OTHERS_MOST && (entry = readdir(dir));) {
        if (!is_ours(entry->d_name) || !strcmp(entry->d_name, keep) || fstatat(directory, entry->d_name, &stat, AT_SYMLINK_NOFOLLOW))
            continue;
        others[count].size = (uint64_t)stat.st_size;
        others[count].used = stat.st_mtim.tv_sec;
        strcpy(others[count++].name, entry->d_name);
    }
    if (others)
        qsort(others, count, sizeof(*others), by_use);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        bytes += others[i].size;
        if (bytes > bytes_most)
            unlinkat(directory, others[i].name, 0);
    }
    if (dir)
        closedir(dir);
    else if (fd >= 0)
        close(fd);
    free(others);
}
