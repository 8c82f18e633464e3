/*
 * A file of named sections, each with a checksum: what a snapshot's state is kept in. docs/snapshots.md describes the bytes.
 * A file is written as a whole and read as a whole; it is input from outside, so everything in it is checked.
 */
#ifndef DOPPEL_STATE_CONTAINER_H
#define DOPPEL_STATE_CONTAINER_H

#include <stdbool.h>

#include "state/state.h"

struct error;

enum { CONTAINER_VERSION = 1, CONTAINER_NAME_MAX = 40, CONTAINER_SECTIONS_MAX = 1024, CONTAINER_SIZE_MAX = 1 << 30 };

struct container_section {
    char name[CONTAINER_NAME_MAX];      /* ended by a zero */
    struct state_buffer content;
};

/* Zero-initialise; free with container_free. */
struct container {
    struct container_section *section;
    unsigned count;
};

void container_free(struct container *container);

/* A new, empty section to append to; the pointer is valid until the next call. The name is shorter than CONTAINER_NAME_MAX. */
struct state_buffer *container_add(struct container *container, const char *name);
/* NULL if there is none of that name. */
const struct state_buffer *container_find(const struct container *container, const char *name);

/* Writes or reads the file `name` in a directory. False: err names what is wrong, and in which section. */
bool container_write(const struct container *container, int directory, const char *name, struct error *err);
bool container_read(struct container *container, int directory, const char *name, struct error *err);

/* The same from memory (tests, fuzzing). `what` names it in messages. */
bool container_parse(struct container *container, const uint8_t *data, size_t size, const char *what, struct error *err);

#endif
