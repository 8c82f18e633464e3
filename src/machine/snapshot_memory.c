/*
 * Memory in a snapshot: a file for each slot, as long as the slot, in which a page lies at its own offset; what is zero is a
 * hole. A section of the state lists the runs of pages that the file holds. So a full file can be mapped as it is, and a
 * differential one laid over it run by run. With compression the runs lie one after the other, each a zstd frame.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/base.h"
#include "machine/snapshot_internal.h"
#include "mem/fetch.h"

/*
 * Runs shorter than this are read into place rather than mapped: each mapping costs the host a kernel object, and a process
 * may have some 65,000 of them.
 */
enum { MAPPED_RUN_MIN = 64, MAPPINGS_MAX = 16384, COMPRESSION_LEVEL = 1, EXTENT_WORDS = 5 };

/* --- the section: a head, then the extents as one array --- */

struct head {
    char name[32];
    uint64_t gpa, size;
    bool differential, compressed;
    uint64_t extents;
};

static const struct state_field head_fields[] = {
    STATE_BLOB(struct head, name), STATE_SCALAR(struct head, gpa), STATE_SCALAR(struct head, size),
    STATE_SCALAR(struct head, differential), STATE_SCALAR(struct head, compressed), STATE_SCALAR(struct head, extents),
};
static const struct state_list head_list = STATE_LIST("ram", 1, head_fields);

_Static_assert(sizeof(struct snapshot_extent) == EXTENT_WORDS * sizeof(uint64_t), "an extent is an array of words in the stream");

/* The list of `count` extents: page, pages, offset, size, checksum of each. */
struct extents_list {
    struct state_field field;
    struct state_list list;
};

static const struct state_list *extents_list(struct extents_list *storage, uint64_t count)
{
    storage->field = (struct state_field){ "extent", STATE_UINT, 0, sizeof(uint64_t), (uint32_t)(count * EXTENT_WORDS), 1, NULL };
    storage->list = (struct state_list){ "ram-extents", 1, &storage->field, 1 };
    return &storage->list;
}

static void section_name(char name[CONTAINER_NAME_MAX], unsigned i) { snprintf(name, CONTAINER_NAME_MAX, "ram/%u", i); }
static void file_name(char name[CONTAINER_NAME_MAX], unsigned i) { snprintf(name, CONTAINER_NAME_MAX, "ram-%u", i); }

/* --- saving --- */

struct writer {
    const struct ram_slot *slot;
    const uint64_t *pages;          /* one bit each: those that are looked at */
    bool differential;              /* all of them are written; else those that are not zero */
    int fd;
    bool compress;
    ZSTD_CCtx *zstd;
    uint8_t *buffer;                /* of a compressed extent */
    uint64_t used;                  /* compressed: bytes of the file */
    struct snapshot_extent *extent;
    uint64_t count, room;
    struct error *err;
};

static const uint8_t *page_at(const struct writer *writer, uint64_t page) { return writer->slot->host + (page << PAGE_SHIFT); }

static bool is_zero(const uint8_t *page)
{
    const uint64_t *word = (const uint64_t *)page;
    return !word[0] && !memcmp(page, page + sizeof(*word), PAGE_SIZE - sizeof(*word));
}

static bool write_at(struct writer *writer, const uint8_t *data, uint64_t size, uint64_t offset)
{
    while (size) {
        ssize_t wrote = pwrite(writer->fd, data, size, (off_t)offset);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0)
            return error_errno(writer->err, errno, "cannot write the memory of the snapshot");
        data += wrote;
        offset += (uint64_t)wrote;
        size -= (uint64_t)wrote;
    }
    return true;
}

static bool write_compressed(struct writer *writer, struct snapshot_extent *extent, const uint8_t *data, uint64_t size)
{
    size_t packed = ZSTD_compressCCtx(writer->zstd, writer->buffer, ZSTD_compressBound(EXTENT_PAGES_MAX * PAGE_SIZE), data, size,
                                      COMPRESSION_LEVEL);
    if (ZSTD_isError(packed))
        return error_set(writer->err, "cannot compress the memory of the snapshot: %s", ZSTD_getErrorName(packed));
    extent->offset = writer->used;
    extent->size = packed;
    writer->used += packed;
    return write_at(writer, writer->buffer, packed, extent->offset);
}

/* In a differential file a page may have become zero: it stays a hole. */
static bool write_plain(struct writer *writer, const struct snapshot_extent *extent)
{
    for (uint64_t page = extent->page, end = page + extent->pages; page < end;) {
        uint64_t first = page;
        while (page < end && !(writer->differential && is_zero(page_at(writer, page))))
            page++;
        if (!write_at(writer, page_at(writer, first), (page - first) << PAGE_SHIFT, first << PAGE_SHIFT))
            return false;
        page += page < end;
    }
    return true;
}

static bool write_extent(struct writer *writer, uint64_t page, uint64_t pages)
{
    if (writer->count == writer->room) {
        uint64_t room = writer->room ? writer->room * 2 : 256;
        struct snapshot_extent *extent = realloc(writer->extent, room * sizeof(*extent));
        if (!extent)
            return error_set(writer->err, "no memory for the snapshot");
        writer->extent = extent;
        writer->room = room;
    }
    uint64_t size = pages << PAGE_SHIFT;
    struct snapshot_extent *extent = &writer->extent[writer->count++];
    *extent = (struct snapshot_extent){ page, pages, page << PAGE_SHIFT, size, XXH3_64bits(page_at(writer, page), size) };
    return writer->compress ? write_compressed(writer, extent, page_at(writer, page), size) : write_plain(writer, extent);
}

static bool wanted(const struct writer *writer, uint64_t page)
{
    return (writer->pages[page / 64] >> page % 64 & 1) && (writer->differential || !is_zero(page_at(writer, page)));
}

static bool write_extents(struct writer *writer)
{
    for (uint64_t page = 0, end = writer->slot->size >> PAGE_SHIFT; page < end;) {
        uint64_t first = page;
        while (page < end && page - first < EXTENT_PAGES_MAX && wanted(writer, page))
            page++;
        if (page > first && !write_extent(writer, first, page - first))
            return false;
        page += page == first;
    }
    return true;
}

static bool write_file(struct writer *writer)
{
    if (writer->compress) {
        writer->zstd = ZSTD_createCCtx();
        writer->buffer = malloc(ZSTD_compressBound(EXTENT_PAGES_MAX * PAGE_SIZE));
        if (!writer->zstd || !writer->buffer)
            return error_set(writer->err, "no memory for the snapshot");
    } else if (ftruncate(writer->fd, (off_t)writer->slot->size) < 0) {
        return error_errno(writer->err, errno, "cannot write the memory of the snapshot");
    }
    return write_extents(writer);
}

static void save_section(struct container *state, const struct writer *writer, unsigned i)
{
    const struct ram_slot *slot = writer->slot;
    char name[CONTAINER_NAME_MAX];
    struct extents_list storage;
    struct head head = { .gpa = slot->gpa, .size = slot->size, .differential = writer->differential,
                         .compressed = writer->compress, .extents = writer->count };
    strncpy(head.name, slot->name, sizeof(head.name) - 1);
    section_name(name, i);
    struct state_buffer *section = container_add(state, name);
    state_save(&head_list, &head, section);
    state_save(extents_list(&storage, writer->count), writer->extent, section);
}

/* The granted pages of a slot, one bit each. NULL: no memory. */
static uint64_t *granted_pages(const struct ram_slot *slot)
{
    uint64_t *bitmap = calloc((slot->size >> PAGE_SHIFT) / 64 + 1, sizeof(*bitmap));
    if (bitmap)
        ram_find_granted(slot, bitmap);
    return bitmap;
}

bool snapshot_save_slot(struct container *state, int directory, const struct ram_slot *slot, unsigned i, const uint64_t *dirty,
                        bool compress, struct error *err)
{
    char name[CONTAINER_NAME_MAX];
    file_name(name, i);
    uint64_t *granted = dirty ? NULL : granted_pages(slot);
    struct writer writer = { .slot = slot, .pages = dirty ? dirty : granted, .differential = dirty, .compress = compress, .err = err };
    if (!writer.pages)
        return error_set(err, "no memory for the snapshot");
    writer.fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool ok = writer.fd >= 0 ? write_file(&writer) : error_errno(err, errno, "cannot write the file %s", name);
    if (ok)
        save_section(state, &writer, i);
    ZSTD_freeCCtx(writer.zstd);
    free(writer.buffer);
    free(writer.extent);
    free(granted);
    if (writer.fd >= 0)
        close(writer.fd);
    return ok;
}

/* --- reading the section --- */

static bool extents_make_sense(const struct snapshot_slot *slot, struct error *err)
{
    uint64_t end = 0, pages = slot->size >> PAGE_SHIFT;
    for (uint64_t i = 0; i < slot->extent_count; i++) {
        const struct snapshot_extent *extent = &slot->extent[i];
        bool place = extent->page >= end && extent->page < pages && extent->pages && extent->pages <= EXTENT_PAGES_MAX &&
                     extent->pages <= pages - extent->page;
        bool plain = extent->offset == extent->page << PAGE_SHIFT && extent->size == extent->pages << PAGE_SHIFT;
        if (!place || (!slot->compressed && !plain) || extent->size > ZSTD_COMPRESSBOUND(EXTENT_PAGES_MAX * PAGE_SIZE))
            return error_set(err, "the snapshot is damaged: run %llu of the memory %s makes no sense", (unsigned long long)i,
                             slot->name);
        end = extent->page + extent->pages;
    }
    return true;
}

static bool read_slot(const struct container *state, unsigned i, struct snapshot_slot *slot, struct error *err)
{
    char name[CONTAINER_NAME_MAX];
    struct head head = { .gpa = 0 };
    size_t used;
    section_name(name, i);
    const struct state_buffer *section = container_find(state, name);
    if (!section || !state_load(&head_list, &head, section->data, section->size, &used, err))
        return false;
    *slot = (struct snapshot_slot){ .gpa = head.gpa, .size = head.size, .differential = head.differential,
                                    .compressed = head.compressed, .extent_count = head.extents };
    memcpy(slot->name, head.name, sizeof(slot->name) - 1);
    if (head.extents > section->size / sizeof(struct snapshot_extent) || head.extents > UINT32_MAX / EXTENT_WORDS)
        return error_set(err, "the snapshot is damaged: section %s has too few runs", name);
    slot->extent = calloc(head.extents + 1, sizeof(*slot->extent));
    if (!slot->extent)
        return error_set(err, "no memory for the snapshot");
    struct extents_list storage;
    return state_load(extents_list(&storage, head.extents), slot->extent, section->data + used, section->size - used, NULL, err) &&
           extents_make_sense(slot, err);
}

/* --- giving it back --- */

static bool read_at(int fd, uint8_t *data, uint64_t size, uint64_t offset)
{
    while (size) {
        ssize_t got = pread(fd, data, size, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        data += got;
        offset += (uint64_t)got;
        size -= (uint64_t)got;
    }
    return true;
}

/* Reads an extent's pages to `to`; buffer: room for a compressed one. */
static bool read_extent(int fd, const struct snapshot_slot *slot, const struct snapshot_extent *extent, uint8_t *buffer, uint8_t *to,
                        struct error *err)
{
    uint64_t size = extent->pages << PAGE_SHIFT;
    bool ok = read_at(fd, slot->compressed ? buffer : to, extent->size, extent->offset);
    if (ok && slot->compressed)
        ok = ZSTD_decompress(to, size, buffer, extent->size) == size;
    return ok || error_set(err, "the snapshot is damaged: the memory %s cannot be read at %#llx", slot->name,
                           (unsigned long long)(slot->gpa + (extent->page << PAGE_SHIFT)));
}

static uint8_t *compressed_buffer(struct error *err)
{
    uint8_t *buffer = malloc(ZSTD_compressBound(EXTENT_PAGES_MAX * PAGE_SIZE));
    if (!buffer)
        error_set(err, "no memory for the snapshot");
    return buffer;
}

/*
 * Runs that lie close together are mapped together; what is between them must be in the file as it is wanted: zero in a full
 * one, so there a gap may be bridged, and the larger the memory the wider, as mappings are counted.
 */
static uint64_t joined_end(const struct snapshot_slot *saved, uint64_t first, uint64_t *last)
{
    uint64_t gap = saved->differential ? 0 : max_u64(MAPPED_RUN_MIN, saved->size / MAPPINGS_MAX >> PAGE_SHIFT);
    uint64_t end = saved->extent[first].page + saved->extent[first].pages;
    for (*last = first; *last + 1 < saved->extent_count && saved->extent[*last + 1].page - end <= gap; ++*last)
        end = saved->extent[*last + 1].page + saved->extent[*last + 1].pages;
    return end;
}

static bool lay_over(struct ram_slot *slot, int fd, const struct snapshot_slot *saved, struct error *err)
{
    uint8_t *buffer = compressed_buffer(err), *to = slot->source ? slot->source : slot->host;
    bool ok = buffer;
    for (uint64_t i = 0, last; ok && i < saved->extent_count; i = last + 1) {
        uint64_t start = saved->extent[i].page, end = joined_end(saved, i, &last);
        if (slot->source && !saved->compressed && (end - start >= MAPPED_RUN_MIN || !saved->differential)) {
            ok = ram_map_file(slot, start << PAGE_SHIFT, (end - start) << PAGE_SHIFT, fd, err);
            continue;
        }
        for (uint64_t n = i; ok && n <= last; n++)
            ok = read_extent(fd, saved, &saved->extent[n], buffer, to + (saved->extent[n].page << PAGE_SHIFT), err);
    }
    free(buffer);
    return ok;
}

static bool same_place(const struct ram_slot *slot, const struct snapshot_slot *saved, struct error *err)
{
    return (slot->gpa == saved->gpa && slot->size == saved->size) ||
           error_set(err, "the snapshot's memory %s is not where this machine has it", saved->name);
}

static bool load_slot(struct ram *ram, unsigned i, const struct snapshot_layer *layer, unsigned count, enum restore_memory how,
                      struct error *err)
{
    struct ram_slot *slot = &ram->slot[i];
    bool ok = true;
    if (how != RESTORE_COPIED && !layer[count - 1].slot[i].compressed)
        ok = ram->fetcher ? ram_fetcher_add(ram->fetcher, slot, err) : ram_make_private(slot, err);
    for (unsigned n = count; ok && n-- > 0;)
        ok = same_place(slot, &layer[n].slot[i], err) && lay_over(slot, layer[n].ram[i], &layer[n].slot[i], err);
    return ok;
}

bool snapshot_load_memory(struct ram *ram, const struct snapshot_layer *layer, unsigned count, enum restore_memory how,
                          struct error *err)
{
    struct error not_allowed;
    for (unsigned n = 0; n < count; n++)
        if (layer[n].slot_count != ram->slot_count)
            return error_set(err, "the snapshot %s has %u pieces of memory, the machine %u", layer[n].path, layer[n].slot_count,
                             ram->slot_count);
    if (how == RESTORE_ON_DEMAND)
        ram->fetcher = ram_fetcher_create(&not_allowed);
    for (unsigned i = 0; i < ram->slot_count; i++)
        if (!load_slot(ram, i, layer, count, how, err))
            return false;
    return !ram->fetcher || ram_fetcher_start(ram->fetcher, err);
}

struct ram *snapshot_memory(const struct snapshot *snapshot, struct error *err)
{
    const struct snapshot_layer *newest = &snapshot->layer[0];
    struct ram *ram = ram_create();
    bool ok = ram || error_set(err, "no memory for the snapshot");
    for (unsigned i = 0; ok && i < newest->slot_count; i++)
        ok = ram_add(ram, newest->slot[i].name, newest->slot[i].gpa, newest->slot[i].size, false, err);
    if (ok && snapshot_load_memory(ram, snapshot->layer, snapshot->layers, RESTORE_SHARED, err))
        return ram;
    ram_destroy(ram);
    return NULL;
}

static bool verify_slot(int fd, const struct snapshot_slot *slot, uint8_t *buffer, uint8_t *pages, const char *path, struct error *err)
{
    for (uint64_t i = 0; i < slot->extent_count; i++) {
        const struct snapshot_extent *extent = &slot->extent[i];
        if (!read_extent(fd, slot, extent, buffer, pages, err))
            return false;
        if (XXH3_64bits(pages, extent->pages << PAGE_SHIFT) != extent->checksum)
            return error_set(err, "the snapshot %s is damaged: the checksum of the memory %s does not match at %#llx", path, slot->name,
                             (unsigned long long)(slot->gpa + (extent->page << PAGE_SHIFT)));
    }
    return true;
}

bool snapshot_verify_memory(const struct snapshot_layer *layer, struct error *err)
{
    uint8_t *buffer = compressed_buffer(err), *pages = malloc(EXTENT_PAGES_MAX * PAGE_SIZE);
    bool ok = buffer && (pages || error_set(err, "no memory for the snapshot"));
    for (unsigned i = 0; ok && i < layer->slot_count; i++)
        ok = verify_slot(layer->ram[i], &layer->slot[i], buffer, pages, layer->path, err);
    free(buffer);
    free(pages);
    return ok;
}

/* --- the files --- */

/* A file that is too short would be a signal later, when the guest touches what is not there. */
static bool check_length(const struct snapshot_layer *layer, unsigned i, const char *name, struct error *err)
{
    const struct snapshot_slot *slot = &layer->slot[i];
    struct stat st;
    if (fstat(layer->ram[i], &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, "the snapshot %s is damaged: %s is not a regular file", layer->path, name);
    for (uint64_t n = 0; n < slot->extent_count; n++)
        if (slot->extent[n].offset > (uint64_t)st.st_size || slot->extent[n].size > (uint64_t)st.st_size - slot->extent[n].offset)
            return error_set(err, "the snapshot %s is damaged: the file %s is too short", layer->path, name);
    if (!slot->compressed && (uint64_t)st.st_size != slot->size)
        return error_set(err, "the snapshot %s is damaged: the file %s has %lld bytes and should have %llu", layer->path, name,
                         (long long)st.st_size, (unsigned long long)slot->size);
    return true;
}

bool snapshot_open_memory(struct snapshot_layer *layer, struct error *err)
{
    char name[CONTAINER_NAME_MAX];
    for (unsigned i = 0; i < RAM_SLOTS_MAX; i++) {
        section_name(name, i);
        if (!container_find(&layer->state, name))
            break;
        layer->slot_count = i + 1;
        file_name(name, i);
        layer->ram[i] = openat(layer->directory, name, O_RDONLY | O_CLOEXEC);
        if (layer->ram[i] < 0)
            return error_errno(err, errno, "cannot open the file %s of the snapshot %s", name, layer->path);
        if (!read_slot(&layer->state, i, &layer->slot[i], err) || !check_length(layer, i, name, err))
            return false;
    }
    return layer->slot_count || error_set(err, "the snapshot %s holds no memory", layer->path);
}

void snapshot_close_memory(struct snapshot_layer *layer)
{
    for (unsigned i = 0; i < layer->slot_count; i++) {
        free(layer->slot[i].extent);
        if (layer->ram[i] >= 0)
            close(layer->ram[i]);
    }
}
