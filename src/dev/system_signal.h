/* How a chip asks the machine for something as a whole: power off, reset, an end with a code; or tells it that the
 * guest panicked, that it panicked and saves itself, that the watchdog ran out. Board lock held; returns at once. */
#ifndef DOPPEL_DEV_SYSTEM_SIGNAL_H
#define DOPPEL_DEV_SYSTEM_SIGNAL_H

#include <stdint.h>

enum system_request { SYSTEM_REQUEST_POWER_OFF, SYSTEM_REQUEST_RESET, SYSTEM_REQUEST_DEBUG_EXIT,
                      SYSTEM_REQUEST_PANICKED, SYSTEM_REQUEST_CRASH_KERNEL, SYSTEM_REQUEST_WATCHDOG };

struct system_signal {
    /* code: the value written to the debug-exit port; 0 otherwise. May be NULL: nobody listens. */
    void (*request)(void *owner, enum system_request request, uint32_t code);
    void *owner;
};

static inline void system_signal_send(const struct system_signal *signal, enum system_request request, uint32_t code)
{
    if (signal->request)
        signal->request(signal->owner, request, code);
}

#endif
