/* The debug console: bytes written to a port. */
#ifndef DOPPEL_DEV_DEBUGCON_H
#define DOPPEL_DEV_DEBUGCON_H

#include "dev/device.h"

struct chardev;

struct debugcon {
    struct device device;
    /* --- configuration --- */
    struct chardev *chardev;        /* NULL: bytes are counted and forgotten */
    /* --- state --- */
    uint64_t written;               /* bytes so far */
    /* --- not state --- */
    struct region region[2];
};

#endif
