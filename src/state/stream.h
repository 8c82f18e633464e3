/* Looks into saved state without the lists that made it: the stream describes itself (state.h). */
#ifndef DOPPEL_STATE_STREAM_H
#define DOPPEL_STATE_STREAM_H

#include "state/state.h"

struct error;

/* One field of a stream: "seg[2].base". `data` holds `count` elements of `size` bytes. */
struct stream_field {
    const char *path;
    enum state_kind kind;       /* never STATE_STRUCT: those are gone into */
    uint32_t size, count;
    const uint8_t *data;
};

/* Calls `visit` for each field of the objects that data holds one after the other. False: err says what is wrong in them. */
bool stream_visit(const uint8_t *data, size_t size, void (*visit)(void *owner, const struct stream_field *field), void *owner,
                  struct error *err);

#endif
