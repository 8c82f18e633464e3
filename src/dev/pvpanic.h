/* Through which a guest's kernel says that it has panicked. */
#ifndef DOPPEL_DEV_PVPANIC_H
#define DOPPEL_DEV_PVPANIC_H

#include "dev/device.h"
#include "dev/system_signal.h"

struct pvpanic {
    struct device device;
    /* --- configuration --- */
    struct system_signal signal;
    /* --- state --- */
    uint8_t events;             /* the last that were told */
    /* --- not state --- */
    struct region region;
};

#endif
