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
    struct state_stored stored;
    if (!state_get_stored(reader, &stored))
        return false;
    if (stored.kind == STATE_STRUCT) {
        struct state_reader payload = { stored.data, stored.length, reader->list, reader->err };
        return visit_structs(visitor, prefix, stored.name, stored.count, &payload, depth);
    }
    if (stored.kind > STATE_STRUCT || stored.length != stored.size * stored.count)
        return error_set(reader->err, "The saved state of %s has a field %s that makes no sense.", reader->list, stored.name);
    extend(visitor, prefix, stored.name, -1, false);
    visitor->visit(visitor->owner, &(struct stream_field){ visitor->path, (enum state_kind)stored.kind, (uint32_t)stored.size,
                                                           (uint32_t)stored.count, stored.data });
    return true;
}

static bool visit_object(struct visitor *visitor, size_t prefix, struct state_reader *reader, unsigned depth)
{
    struct state_object head;
    const char *outer = reader->list;
    if (!state_get_object(reader, depth, &head))
        return false;
    reader->list = head.name;
    for (uint64_t i = 0; i < head.fields; i++)
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
