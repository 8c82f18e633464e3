/* The 8254 programmable interval timer and port B (0x61). */
#ifndef DOPPEL_DEV_PIT_H
#define DOPPEL_DEV_PIT_H

#include "dev/device.h"

enum { PIT_HZ = 1193182, PIT_CHANNELS = 3 };

struct pit_channel {
    uint16_t reload;            /* as written; 0 means 65536 (10000 in BCD) */
    uint8_t control;            /* RW1:0, M2:0, BCD of the control word */
    bool gate;
    bool loaded;                /* a count was written since the control word */
    bool write_high, read_high; /* the second byte of two comes next */
    uint8_t write_low;
    bool latched, status_latched;
    uint16_t latch;
    uint8_t status;
    bool triggered;             /* modes 1 and 5: the gate has risen since the control word */
    uint64_t start_ns;          /* when counting began, while it runs */
    uint64_t held_ticks;        /* ticks counted, while it stands still */
    bool running;
};

struct pit {
    struct device device;
    /* --- configuration --- */
    struct irq_line irq;        /* channel 0 */
    /* --- state --- */
    struct pit_channel channel[PIT_CHANNELS];
    uint8_t port_b;             /* writable bits of port 0x61 */
    bool irq_level;
    uint64_t next_ns;           /* next change of channel 0's output that matters; CLOCK_NEVER */
    /* --- not state --- */
    struct region region, port_b_region;
    struct timer timer;
};

#endif
