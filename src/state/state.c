/*
 * The stream of one object:
 *
 *     u32 magic, u16 version, u16 number of fields, string list name
 *     for each field: string name, u8 kind, u32 size, u32 count, u32 payload bytes, payload
 *
 * Integers are little-endian, a string is one length byte and its characters. The payload of a STATE_STRUCT field is
 * `count` whole objects. The stream is input from outside: every length in it is checked before it is used.
 */
#include "state/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/error.h"
#include "state/reader.h"

enum { FIELDS_MAX = 512 };

/* --- writing --- */

void state_buffer_free(struct state_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct state_buffer){ 0 };
}

void *state_buffer_append(struct state_buffer *out, size_t size)
{
    if (out->size + size > out->capacity) {
        size_t capacity = max_u64(out->capacity * 2, align_up(out->size + size, 4096));
        uint8_t *data = realloc(out->data, capacity);
        if (!data)
            abort();        /* the host is out of memory; sizes here are the board's, not the guest's */
        out->data = data;
        out->capacity = capacity;
    }
    out->size += size;
    return out->data + out->size - size;
}

static void put_uint(struct state_buffer *out, uint64_t value, unsigned size)
{
    memcpy(state_buffer_append(out, size), &value, size);    /* the host is little-endian */
}

static void put_string(struct state_buffer *out, const char *text)
{
    size_t length = strlen(text);
    assert(length <= UINT8_MAX);
    put_uint(out, length, 1);
    memcpy(state_buffer_append(out, length), text, length);
}

static void save_payload(const struct state_field *field, const uint8_t *member, struct state_buffer *out)
{
    for (uint32_t i = 0; i < field->count; i++, member += field->size) {
        if (field->kind == STATE_STRUCT)
            state_save(field->list, member, out);
        else
            memcpy(state_buffer_append(out, field->size), member, field->size);
    }
}

void state_save(const struct state_list *list, const void *object, struct state_buffer *out)
{
    put_uint(out, STATE_MAGIC, 4);
    put_uint(out, list->version, 2);
    put_uint(out, list->count, 2);
    put_string(out, list->name);
    for (uint32_t i = 0; i < list->count; i++) {
        const struct state_field *field = &list->fields[i];
        put_string(out, field->name);
        put_uint(out, field->kind, 1);
        put_uint(out, field->size, 4);
        put_uint(out, field->count, 4);
        size_t length_at = out->size;
        put_uint(out, 0, 4);
        save_payload(field, (const uint8_t *)object + field->offset, out);
        uint32_t length = (uint32_t)(out->size - length_at - 4);
        memcpy(out->data + length_at, &length, 4);
    }
}

/* --- reading --- */

static const struct state_field *find_field(const struct state_list *list, const char *name)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (!strcmp(list->fields[i].name, name))
            return &list->fields[i];
    return NULL;
}

static bool load_object(const struct state_list *list, void *object, struct state_reader *reader, unsigned depth);

static bool load_payload(const struct state_field *field, uint8_t *member, struct state_reader *payload, unsigned depth)
{
    if (field->kind == STATE_STRUCT) {
        for (uint32_t i = 0; i < field->count; i++)
            if (!load_object(field->list, member + (size_t)i * field->size, payload, depth + 1))
                return false;
    } else if (field->kind == STATE_BOOL) {
        const uint8_t *data = state_take(payload, field->count);
        for (uint32_t i = 0; data && i < field->count; i++)
            member[i] = data[i] != 0;       /* another value in a bool would be undefined behaviour */
    } else {
        const uint8_t *data = state_take(payload, (size_t)field->size * field->count);
        if (data)
            memcpy(member, data, (size_t)field->size * field->count);
    }
    return true;
}

/* One field of the stream; fields that this version no longer has are passed over. */
static bool load_field(const struct state_list *list, void *object, struct state_reader *reader, bool *seen, unsigned depth)
{
    struct state_stored stored;
    if (!state_get_stored(reader, &stored))
        return false;
    const struct state_field *field = find_field(list, stored.name);
    if (!field)
        return true;
    bool fits = field->kind == stored.kind && field->count == stored.count &&
                (stored.kind == STATE_STRUCT || (field->size == stored.size && stored.length == stored.size * stored.count));
    if (!fits)
        return error_set(reader->err, "The saved state of %s has another layout of %s.", list->name, stored.name);
    seen[field - list->fields] = true;
    struct state_reader payload = { stored.data, stored.length, list->name, reader->err };
    return load_payload(field, (uint8_t *)object + field->offset, &payload, depth);
}

static bool load_object(const struct state_list *list, void *object, struct state_reader *reader, unsigned depth)
{
    struct state_object head;
    reader->list = list->name;          /* a struct in another one is told of by its own name */
    if (!state_get_object(reader, depth, &head))
        return false;
    if (strcmp(head.name, list->name))
        return error_set(reader->err, "Found the saved state of %s where that of %s was expected.", head.name, list->name);
    if (head.version > list->version)
        return error_set(reader->err, "The saved state of %s is version %u; this program knows up to %u.", list->name,
                         (unsigned)head.version, list->version);
    bool seen[FIELDS_MAX] = { false };
    assert(list->count <= FIELDS_MAX);
    for (uint64_t i = 0; i < head.fields; i++)
        if (!load_field(list, object, reader, seen, depth))
            return false;
    for (uint32_t i = 0; i < list->count; i++)
        if (!seen[i] && list->fields[i].since <= head.version)
            return error_set(reader->err, "The saved state of %s lacks %s.", list->name, list->fields[i].name);
    return true;
}

bool state_load(const struct state_list *list, void *object, const uint8_t *data, size_t size, size_t *used, struct error *err)
{
    struct state_reader reader = { data, size, list->name, err };
    bool ok = load_object(list, object, &reader, 0);
    if (used)
        *used = size - reader.left;
    return ok;
}

/* --- comparing, dumping, fuzzing --- */

static bool field_equal(const struct state_field *field, const uint8_t *a, const uint8_t *b, const char **differs)
{
    if (field->kind != STATE_STRUCT)
        return !memcmp(a, b, (size_t)field->size * field->count);
    for (uint32_t i = 0; i < field->count; i++)
        if (!state_equal(field->list, a + (size_t)i * field->size, b + (size_t)i * field->size, differs))
            return false;
    return true;
}

bool state_equal(const struct state_list *list, const void *a, const void *b, const char **field)
{
    for (uint32_t i = 0; i < list->count; i++) {
        const struct state_field *f = &list->fields[i];
        const char *inner = f->name;
        if (field_equal(f, (const uint8_t *)a + f->offset, (const uint8_t *)b + f->offset, &inner))
            continue;
        if (field)
            *field = inner;
        return false;
    }
    return true;
}

static void dump_field(const struct state_field *field, const uint8_t *member, const char *prefix, FILE *out)
{
    char label[256];
    for (uint32_t i = 0; i < field->count; i++, member += field->size) {
        if (field->count > 1)
            snprintf(label, sizeof(label), "%s%s[%u]", prefix, field->name, i);
        else
            snprintf(label, sizeof(label), "%s%s", prefix, field->name);
        if (field->kind == STATE_STRUCT) {
            strncat(label, ".", sizeof(label) - strlen(label) - 1);
            state_dump(field->list, member, label, out);
        } else if (field->kind == STATE_BYTES || field->size > 8) {
            fprintf(out, "%s ", label);
            for (uint32_t n = 0; n < field->size; n++)
                fprintf(out, "%02x", member[n]);
            fprintf(out, "\n");
        } else {
            uint64_t value = 0;
            memcpy(&value, member, field->size);
            fprintf(out, "%s 0x%llx\n", label, (unsigned long long)value);
        }
    }
}

void state_dump(const struct state_list *list, const void *object, const char *prefix, FILE *out)
{
    for (uint32_t i = 0; i < list->count; i++)
        dump_field(&list->fields[i], (const uint8_t *)object + list->fields[i].offset, prefix, out);
}

/* xorshift64 (Marsaglia 2003); a zero seed would stay zero. */
static uint64_t next_random(uint64_t *seed)
{
    uint64_t x = *seed ? *seed : 0x9E3779B97F4A7C15;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *seed = x;
}

static void randomize_field(const struct state_field *field, uint8_t *member, uint64_t *seed)
{
    if (field->kind == STATE_STRUCT) {
        for (uint32_t i = 0; i < field->count; i++)
            state_randomize(field->list, member + (size_t)i * field->size, seed);
        return;
    }
    for (size_t n = 0; n < (size_t)field->size * field->count; n++)
        member[n] = field->kind == STATE_BOOL ? next_random(seed) & 1 : (uint8_t)(next_random(seed) >> 32);
}

void state_randomize(const struct state_list *list, void *object, uint64_t *seed)
{
    for (uint32_t i = 0; i < list->count; i++)
        randomize_field(&list->fields[i], (uint8_t *)object + list->fields[i].offset, seed);
}
