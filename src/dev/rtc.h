/* The MC146818 real-time clock and CMOS memory. */
#ifndef DOPPEL_DEV_RTC_H
#define DOPPEL_DEV_RTC_H

#include "dev/device.h"

enum { RTC_CMOS_SIZE = 128 };

struct rtc {
    struct device device;
    /* --- configuration --- */
    struct irq_line irq;        /* IRQ 8 */
    /* --- state --- */
    uint8_t index;
    uint8_t cmos[RTC_CMOS_SIZE];        /* time registers count only while SET is 1 */
    uint64_t offset_ns;         /* guest's time minus the clock's wall time, modulo 2^64 */
    uint64_t seen_second;       /* update and alarm flags are worked out until here */
    uint64_t seen_ns;           /* periodic flag, until here (clock_ns) */
    /* --- not state --- */
    struct region region;
    struct timer timer;
};

/* The machine's part at the factory: CMOS memory from `index` on, little-endian; a reset keeps it. Board lock held. */
void rtc_store(struct rtc *rtc, unsigned index, unsigned size, uint64_t value);

#endif
