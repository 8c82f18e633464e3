#include "state/container.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/base.h"
#include "base/error.h"
#include "base/io.h"

static const char magic[8] = { 'D', 'O', 'P', 'P', 'E', 'L', 'S', '\n' };

/* The beginning of the file; rows follow, then the sections' bytes. Little-endian, as the host is. */
struct header {
    char magic[8];
    uint32_t version, count;
    uint64_t file_size;
    uint64_t checksum;          /* XXH3 of the header with this field zero, and of all rows */
};

struct row {
    char name[CONTAINER_NAME_MAX];
    uint64_t offset, size, checksum;
};
_Static_assert(sizeof(struct header) == 32 && sizeof(struct row) == 64, "the format of docs/snapshots.md");

void container_free(struct container *container)
{
    for (unsigned i = 0; i < container->count; i++)
        state_buffer_free(&container->section[i].content);
    free(container->section);
    *container = (struct container){ 0 };
}

struct state_buffer *container_add(struct container *container, const char *name)
{
    assert(strlen(name) < CONTAINER_NAME_MAX && container->count < CONTAINER_SECTIONS_MAX);
    struct container_section *grown = realloc(container->section, (container->count + 1) * sizeof(*grown));
    if (!grown)
        abort();        /* some kilobytes, by the board's parts and not the guest's doing */
    container->section = grown;
    struct container_section *section = &grown[container->count++];
    *section = (struct container_section){ 0 };
    strcpy(section->name, name);
    return &section->content;
}

const struct state_buffer *container_find(const struct container *container, const char *name)
{
    for (unsigned i = 0; i < container->count; i++)
        if (!strcmp(container->section[i].name, name))
            return &container->section[i].content;
    return NULL;
}

static uint64_t head_checksum(struct header header, const void *rows)
{
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        abort();
    header.checksum = 0;
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, &header, sizeof(header));
    XXH3_64bits_update(state, rows, header.count * sizeof(struct row));
    uint64_t sum = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return sum;
}

/* --- writing --- */

static void serialise(const struct container *container, struct state_buffer *out)
{
    struct header header = { .version = CONTAINER_VERSION, .count = container->count };
    memcpy(header.magic, magic, sizeof(magic));
    size_t rows_size = container->count * sizeof(struct row);
    memset(state_buffer_append(out, sizeof(header) + rows_size), 0, sizeof(header) + rows_size);
    for (unsigned i = 0; i < container->count; i++) {
        const struct container_section *section = &container->section[i];
        struct row row = { .offset = out->size, .size = section->content.size };
        row.checksum = XXH3_64bits(section->content.data, section->content.size);
        memcpy(row.name, section->name, sizeof(row.name));
        memcpy(out->data + sizeof(header) + i * sizeof(row), &row, sizeof(row));
        if (section->content.size)
            memcpy(state_buffer_append(out, section->content.size), section->content.data, section->content.size);
    }
    header.file_size = out->size;
    header.checksum = head_checksum(header, out->data + sizeof(header));
    memcpy(out->data, &header, sizeof(header));
}

bool container_write(const struct container *container, int directory, const char *name, struct error *err)
{
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_errno(err, errno, "cannot write the file %s", name);
    struct state_buffer bytes = { 0 };
    serialise(container, &bytes);
    bool ok = io_write_all(fd, bytes.data, bytes.size);
    if (!ok)
        error_errno(err, errno, "cannot write the file %s", name);
    state_buffer_free(&bytes);
    close(fd);
    return ok;
}

/* --- reading --- */

static bool check_header(const struct header *header, size_t size, const char *what, struct error *err)
{
    if (memcmp(header->magic, magic, sizeof(magic)))
        return error_set(err, "%s is not the state of a machine", what);
    if (header->version != CONTAINER_VERSION)
        return error_set(err, "%s has format %u; this program knows format %u", what, header->version, CONTAINER_VERSION);
    if (header->count > CONTAINER_SECTIONS_MAX || sizeof(*header) + header->count * sizeof(struct row) > size)
        return error_set(err, "%s is damaged: its table of sections does not fit into it", what);
    return true;
}

static bool take_section(struct container *container, const struct row *row, const uint8_t *data, size_t size, const char *what,
                         struct error *err)
{
    if (!memchr(row->name, 0, sizeof(row->name)))
        return error_set(err, "%s is damaged: the name of a section has no end", what);
    if (container_find(container, row->name))
        return error_set(err, "%s is damaged: it has two sections %s", what, row->name);
    if (row->offset > size || row->size > size - row->offset)
        return error_set(err, "%s is damaged: section %s is cut off", what, row->name);
    if (XXH3_64bits(data + row->offset, row->size) != row->checksum)
        return error_set(err, "%s is damaged: the checksum of section %s does not match", what, row->name);
    struct state_buffer *content = container_add(container, row->name);
    if (row->size)
        memcpy(state_buffer_append(content, row->size), data + row->offset, row->size);
    return true;
}

bool container_parse(struct container *container, const uint8_t *data, size_t size, const char *what, struct error *err)
{
    struct header header;
    if (size < sizeof(header))
        return error_set(err, "%s is not the state of a machine: it is too short", what);
    memcpy(&header, data, sizeof(header));
    if (!check_header(&header, size, what, err))
        return false;
    if (head_checksum(header, data + sizeof(header)) != header.checksum)
        return error_set(err, "%s is damaged: the checksum of its table of sections does not match", what);
    if (header.file_size != size)
        return error_set(err, "%s is damaged: it has %zu bytes and should have %llu", what, size,
                         (unsigned long long)header.file_size);
    for (unsigned i = 0; i < header.count; i++) {
        struct row row;
        memcpy(&row, data + sizeof(header) + i * sizeof(row), sizeof(row));
        if (!take_section(container, &row, data, size, what, err)) {
            container_free(container);
            return false;
        }
    }
    return true;
}

bool container_read(struct container *container, int directory, const char *name, struct error *err)
{
    struct stat st;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, errno, "cannot open the file %s", name);
    uint8_t *data = NULL;
    bool ok = false;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        error_set(err, "%s is not a regular file", name);
    else if (st.st_size > CONTAINER_SIZE_MAX)
        error_set(err, "%s is not the state of a machine: it is too long", name);
    else if (!(data = malloc((size_t)st.st_size + 1)))
        error_set(err, "no memory to read %s", name);
    else if (!io_read_all(fd, data, (size_t)st.st_size))
        error_set(err, "cannot read %s", name);
    else
        ok = container_parse(container, data, (size_t)st.st_size, name, err);
    free(data);
    close(fd);
    return ok;
}
