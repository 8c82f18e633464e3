/*
 * State is declared, not written by hand (DESIGN D9). Each device and the vCPU list their fields once; that list saves,
 * loads, dumps, compares and fuzzes. Common ground: data only, any room may include it.
 */
#ifndef DOPPEL_STATE_STATE_H
#define DOPPEL_STATE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum state_kind {
    STATE_BOOL,
    STATE_UINT,         /* `size` bytes each, little-endian in the stream */
    STATE_BYTES,        /* opaque bytes, `size` of them each */
    STATE_STRUCT,       /* a nested list */
};

struct state_list;

struct state_field {
    const char *name;
    enum state_kind kind;
    uint32_t offset;
    uint32_t size;                      /* bytes of one element */
    uint32_t count;                     /* elements; 1 for a scalar */
    uint16_t since;                     /* version of the list in which the field appeared */
    const struct state_list *list;      /* STATE_STRUCT only */
};

struct state_list {
    const char *name;
    uint16_t version;
    const struct state_field *fields;
    uint32_t count;
};

#define STATE_ELEMENT_KIND(x) _Generic((x), bool: STATE_BOOL, default: STATE_UINT)

/* STATE_SCALAR(struct pit, latch): any integer, enum or bool member. */
#define STATE_SCALAR_SINCE(type, member, version)                                                        \
    { #member, STATE_ELEMENT_KIND(((type *)0)->member), offsetof(type, member), sizeof(((type *)0)->member), 1, version, NULL }
#define STATE_SCALAR(type, member) STATE_SCALAR_SINCE(type, member, 1)
/* An array of integers. */
#define STATE_ARRAY(type, member)                                                                        \
    { #member, STATE_ELEMENT_KIND(((type *)0)->member[0]), offsetof(type, member), sizeof(((type *)0)->member[0]), \
      sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), 1, NULL }
/* Bytes kept as they are: buffers, register files. */
#define STATE_BLOB(type, member) { #member, STATE_BYTES, offsetof(type, member), sizeof(((type *)0)->member), 1, 1, NULL }
/* A nested struct, and an array of them. */
#define STATE_NESTED_SINCE(type, member, nested, version)                                                \
    { #member, STATE_STRUCT, offsetof(type, member), sizeof(((type *)0)->member), 1, version, &(nested) }
#define STATE_NESTED(type, member, nested) STATE_NESTED_SINCE(type, member, nested, 1)
#define STATE_NESTED_ARRAY(type, member, nested)                                                         \
    { #member, STATE_STRUCT, offsetof(type, member), sizeof(((type *)0)->member[0]),                     \
      sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), 1, &(nested) }

#define STATE_LIST(name_, version_, fields_) { name_, version_, fields_, sizeof(fields_) / sizeof((fields_)[0]) }

/* A growing buffer that the functions below append to. Zero-initialise; free with state_buffer_free. */
struct state_buffer {
    uint8_t *data;
    size_t size, capacity;
};
void state_buffer_free(struct state_buffer *buffer);
/* Room for `size` more bytes at the end; valid until the next append. */
void *state_buffer_append(struct state_buffer *buffer, size_t size);

/* Appends the object's fields, self-describing: list name, version, then name, kind, sizes and values of each field. */
void state_save(const struct state_list *list, const void *object, struct state_buffer *out);

/*
 * Reads one object from data (size bytes), advancing *used past it. Fields are matched by name; a missing field newer
 * than the saved version keeps its present value. On false the object may be partly loaded: reset or discard it.
 */
bool state_load(const struct state_list *list, void *object, const uint8_t *data, size_t size, size_t *used, struct error *err);

/* True if both objects are equal in every listed field; else *field (if not NULL) names the first difference. */
bool state_equal(const struct state_list *list, const void *a, const void *b, const char **field);

/* Prints "name value" lines with the prefix before each, to out. */
struct _IO_FILE;
void state_dump(const struct state_list *list, const void *object, const char *prefix, struct _IO_FILE *out);

/* Fills each field from a xorshift generator (for tests): integers any value, bools 0 or 1. */
void state_randomize(const struct state_list *list, void *object, uint64_t *seed);

#endif
