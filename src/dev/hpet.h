/* The high-precision event timer. */
#ifndef DOPPEL_DEV_HPET_H
#define DOPPEL_DEV_HPET_H

#include "dev/device.h"

enum { HPET_TIMERS = 3, HPET_LINES = 24, HPET_TICK_NS = 10 };

struct hpet;

struct hpet_timer {
    uint64_t config;            /* writable bits of Tn_CONF */
    uint64_t comparator, period;
    uint64_t fsb;               /* value 31:0, address 63:32 */
    uint64_t next_ns;           /* CLOCK_NEVER when no match is awaited */
    /* --- not state --- */
    struct hpet *hpet;
    struct timer timer;
};

struct hpet {
    struct device device;       /* device.dma, where it is set, sends FSB interrupts */
    /* --- configuration --- */
    struct irq_line irq[HPET_LINES];    /* GSIs; 0 and 8 in legacy replacement */
    struct irq_line legacy;     /* level: LEG_RT_CNF (gsi_hpet_legacy_line) */
    uint64_t base;              /* 0: 0xFED00000 */
    /* --- state --- */
    uint64_t config, status;
    uint64_t counter;           /* at stop_ns; while it runs: counter minus ticks at 0 ns */
    struct hpet_timer timer[HPET_TIMERS];
    /* --- not state --- */
    struct region region;
};

#endif
