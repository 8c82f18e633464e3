#include "state/stream.h"

#include <stdio.h>

#include "base/base.h"
#include "state/reader.h"

enum { PATH_MAX_LENGTH = 1024 };

struct visitor {
    void (*visit)(void *owner, const struct stream_field *field);
    void *owner;
    char path[PATH_MAX_LENGTH];
};

static bool visit_object(struct visitor *visitor, size_t prefix, struct state_reader *reader, unsigned depth);

/* Writes the next part of the path; returns its new length. */
static size_t extend(struct visitor *visitor, size_t prefix, const char *name, int64_t index, bool inner)
{
    char number[32] = "";
    if (index >= 0)
        snprintf(number, sizeof(number), "[%lld]", (long long)index);
    int more = snprintf(visitor->path + prefix, sizeof(visitor->path) - prefix, "%s%s%s", name, number, inner ? "." : "");
    return min_u64(prefix + (size_t)more, sizeof(visitor->path) - 1);
}

static bool visit_structs(struct visitor *visitor, size_t prefix, const char *name, uint64_t count, struct state_reader *payload,
                          unsigned depth)
{
    for (uint64_t i = 0; i < count; i++) {
        size_t length = extend(visitor, prefix, name, count > 1 ? (int64_t)i : -1, true);
        if (!visit_object(visitor, length, payload, depth + 1))
            return false;
    }
    return true;
}

static bool visit_field(struct visitor *visitor, size_t prefix, struct state_reader *reader, unsigned depth)
{
    char name[UINT8_MAX + 1];
    uint64_t kind, size, count, length;
    if (!state_get_string(reader, name) || !state_get_uint(reader, 1, &kind) || !state_get_uint(reader, 4, &size) ||
        !state_get_uint(reader, 4, &count) || !state_get_uint(reader, 4, &length))
        return false;
    const uint8_t *data = state_take(reader, length);
    if (!data)
        return error_set(reader->err, "The saved state of %s ends in the middle.", reader->list);
    if (kind == STATE_STRUCT) {
        struct state_reader payload = { data, length, reader->list, reader->err };
        return visit_structs(visitor, prefix, name, count, &payload, depth);
    }
    if (kind > STATE_STRUCT || length != size * count)
        return error_set(reader->err, "The saved state of %s has a field %s that makes no sense.", reader->list, name);
    extend(visitor, prefix, name, -1, false);
    visitor->visit(visitor->owner, &(struct stream_field){ visitor->path, (enum state_kind)kind, (uint32_t)size, (uint32_t)count, data });
    return true;
}

static bool visit_object(struct visitor *visitor, size_t prefix, struct state_reader *reader, unsigned depth)
{
    uint64_t mark, version, count;
    char name[UINT8_MAX + 1];
    const char *outer = reader->list;
    if (depth > STATE_DEPTH_MAX)
        return error_set(reader->err, "The saved state of %s is nested too deeply.", reader->list);
    if (!state_get_uint(reader, 4, &mark) || !state_get_uint(reader, 2, &version) || !state_get_uint(reader, 2, &count) ||
        !state_get_string(reader, name))
        return false;
    if (mark != STATE_MAGIC)
        return error_set(reader->err, "What should be the saved state of %s is something else.", reader->list);
    reader->list = name;
    for (uint64_t i = 0; i < count; i++)
        if (!visit_field(visitor, prefix, reader, depth))
            return false;
    reader->list = outer;
    return true;
}

bool stream_visit(const uint8_t *data, size_t size, void (*visit)(void *owner, const struct stream_field *field), void *owner,
                  struct error *err)
{
    struct visitor visitor = { .visit = visit, .owner = owner };
    struct state_reader reader = { data, size, "this section", err };
    while (reader.left)
        if (!visit_object(&visitor, 0, &reader, 0))
            return false;
    return true;
}
