/* Reading the stream of state.c piece by piece, every length checked: for the files of this room only. */
#ifndef DOPPEL_STATE_READER_H
#define DOPPEL_STATE_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"

enum { STATE_MAGIC = 0x4C505044, STATE_DEPTH_MAX = 8 };       /* "DPPL"; how deep structs may nest */

struct state_reader {
    const uint8_t *data;
    size_t left;
    const char *list;       /* for messages */
    struct error *err;
};

/* NULL: the stream ends before. */
static inline const uint8_t *state_take(struct state_reader *reader, size_t size)
{
    if (size > reader->left)
        return NULL;
    const uint8_t *data = reader->data;
    reader->data += size;
    reader->left -= size;
    return data;
}

static inline bool state_get_uint(struct state_reader *reader, unsigned size, uint64_t *value)
{
    const uint8_t *data = state_take(reader, size);
    *value = 0;
    if (!data)
        return error_set(reader->err, "The saved state of %s ends in the middle.", reader->list);
    memcpy(value, data, size);
    return true;
}

static inline bool state_get_string(struct state_reader *reader, char text[UINT8_MAX + 1])
{
    uint64_t length;
    if (!state_get_uint(reader, 1, &length))
        return false;
    const uint8_t *data = state_take(reader, length);
    if (!data)
        return error_set(reader->err, "The saved state of %s ends in the middle.", reader->list);
    memcpy(text, data, length);
    text[length] = 0;
    return true;
}

/* What an object begins with; its fields follow. */
struct state_object {
    char name[UINT8_MAX + 1];
    uint64_t version, fields;
};

static inline bool state_get_object(struct state_reader *reader, unsigned depth, struct state_object *object)
{
    uint64_t magic;
    if (depth > STATE_DEPTH_MAX)
        return error_set(reader->err, "The saved state of %s is nested too deeply.", reader->list);
    if (!state_get_uint(reader, 4, &magic) || !state_get_uint(reader, 2, &object->version) || !state_get_uint(reader, 2, &object->fields) ||
        !state_get_string(reader, object->name))
        return false;
    return magic == STATE_MAGIC || error_set(reader->err, "What should be the saved state of %s is something else.", reader->list);
}

/* A field as the stream has it: only that its bytes are there has been checked. */
struct state_stored {
    char name[UINT8_MAX + 1];
    uint64_t kind, size, count, length;         /* enum state_kind; bytes of an element, elements, bytes of all */
    const uint8_t *data;
};

static inline bool state_get_stored(struct state_reader *reader, struct state_stored *stored)
{
    if (!state_get_string(reader, stored->name) || !state_get_uint(reader, 1, &stored->kind) || !state_get_uint(reader, 4, &stored->size) ||
        !state_get_uint(reader, 4, &stored->count) || !state_get_uint(reader, 4, &stored->length))
        return false;
    stored->data = state_take(reader, stored->length);
    return stored->data || error_set(reader->err, "The saved state of %s ends in the middle.", reader->list);
}

#endif
