/* Between lapic.c and lapic_timer.c. All of it under the APIC's lock. */
#ifndef DOPPEL_DEV_LAPIC_INTERNAL_H
#define DOPPEL_DEV_LAPIC_INTERNAL_H

#include "dev/lapic.h"

/* SDM3 §11.5.1 "Local Vector Table" */
enum {
    LVT_VECTOR = 0xFF,
    LVT_DELIVERY = 7 << 8,
    LVT_STATUS = 1 << 12,
    LVT_POLARITY = 1 << 13,
    LVT_REMOTE_IRR = 1 << 14,
    LVT_LEVEL = 1 << 15,
    LVT_MASKED = 1 << 16,
    LVT_TIMER_MODE = 3 << 17,
};

/* What is to be done once the lock is released. */
struct lapic_after {
    uint32_t request;
    uint8_t sipi_vector;
    bool eoi, send;
    uint8_t eoi_vector;
    struct apic_message message;
};

/* --- lapic.c --- */
/* Releases the lock and does what was noted. */
void lapic_finish(struct lapic *lapic, const struct lapic_after *after);
/* A local source, with the delivery mode of its LVT entry. */
void lapic_deliver_local(struct lapic *lapic, enum lapic_lvt n, struct lapic_after *after);

/* --- lapic_timer.c --- */
/* Is it in TSC-deadline mode? */
bool lapic_timer_has_deadline(const struct lapic *lapic);
/* The current-count register. */
uint32_t lapic_timer_current(struct lapic *lapic);
void lapic_timer_write_initial(struct lapic *lapic, uint32_t value);
void lapic_timer_write_divide(struct lapic *lapic, uint32_t value);
/* Its LVT entry has another mode than `old_lvt`. */
void lapic_timer_mode_changed(struct lapic *lapic, uint32_t old_lvt);
/* The host's timer for the next expiry, in ns of the machine's clock; CLOCK_NEVER: none. */
void lapic_timer_arm(struct lapic *lapic, uint64_t deadline_ns);
/* The same by lapic->tsc_deadline; expires at once if that has passed. */
void lapic_timer_arm_deadline(struct lapic *lapic, struct lapic_after *after);
/* The host's timer, with the APIC for `owner`; without the lock, on the loop's thread. */
void lapic_timer_fired(void *owner);

#endif
