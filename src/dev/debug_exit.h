/* The debug-exit port: a guest that writes to it ends the machine with a code. */
#ifndef DOPPEL_DEV_DEBUG_EXIT_H
#define DOPPEL_DEV_DEBUG_EXIT_H

#include "dev/device.h"
#include "dev/system_signal.h"

struct debug_exit {
    struct device device;
    /* --- configuration --- */
    struct system_signal signal;    /* SYSTEM_REQUEST_DEBUG_EXIT, code: the value written */
    uint64_t port;                  /* 0: 0xF4 */
    /* --- state --- */
    uint32_t code;                  /* last value written */
    /* --- not state --- */
    struct region region;
};

#endif
