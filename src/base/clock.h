/*
 * The machine's clock (DESIGN D10): nothing else may call the host's clock on the guest's behalf.
 * Two readings of one counter: nanoseconds since the machine was created, and TSC ticks at a stated, constant frequency.
 * A paused clock stands still. Timers fire on the event-loop thread with the board lock held.
 *
 * There is a second kind, for runs that can be repeated: a counted clock does not follow the host. Its TSC is the number of
 * instructions that the machine's one processor has retired, and what it has slept; timers fire on the processor's thread, at
 * an exact instruction.
 */
#ifndef DOPPEL_BASE_CLOCK_H
#define DOPPEL_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct clock;
struct error;
struct loop;

struct timer {
    struct clock *clock;
    void (*fire)(void *owner);
    void *owner;
    uint64_t deadline_ns;       /* CLOCK_NEVER when not armed */
    unsigned heap_index;        /* kept by the clock; UINT32_MAX when not armed */
};

#define CLOCK_NEVER UINT64_MAX

/*
 * Does the host's TSC run at one rate, without stopping, alike on all processors? Clocks follow it then. False: err (may be NULL) tells why not.
 * Any thread.
 */
bool clock_host_tsc_good(struct error *err);
/* For that: is it among Linux' clock sources, "kvm-clock tsc acpi_pm"? */
bool clock_lists_tsc(const char *sources);

/*
 * A real-time clock whose timers fire on `loop` with `lock` held (lock may be NULL in tests). tsc_hz: a frequency measured
 * before, which is taken if it is this host's; 0: none. Without one that fits, measuring takes some 20 ms.
 */
struct clock *clock_create(struct loop *loop, pthread_mutex_t *lock, uint64_t tsc_hz);
/* A clock for tests: time moves only by clock_advance, which fires due timers in order on the caller's thread. */
struct clock *clock_create_manual(void);
void clock_advance(struct clock *clock, uint64_t ns);

/* A counted clock, of so many instructions a microsecond; timers fire with `lock` held. */
struct clock *clock_create_counted(pthread_mutex_t *lock, uint64_t instructions_per_us);
bool clock_counted(const struct clock *clock);
/* Any thread may cause the call, clock->lock held: a deadline is nearer than clock_ticks_left said. */
void clock_on_earlier(struct clock *clock, void (*earlier)(void *owner), void *owner);
/* The processor's thread, of a counted clock: so many instructions are retired by now. */
void clock_count(struct clock *clock, uint64_t instructions);
/* The processor's thread, no lock held: fires what is due. Returns the ticks until the next deadline, at least 1. */
uint64_t clock_fire_due(struct clock *clock);
/* The processor's thread: it sleeps until the next deadline. False: there is none. */
bool clock_skip(struct clock *clock);

void clock_destroy(struct clock *clock);

/* Any thread. */
uint64_t clock_ns(struct clock *clock);
uint64_t clock_tsc(struct clock *clock);
/*
 * True: until the clock is paused its TSC is what RDTSC says, minus *base, on every processor of the host. False: it is not now, or
 * follows something else.
 */
bool clock_tsc_base(struct clock *clock, uint64_t *base);
uint64_t clock_tsc_hz(const struct clock *clock);
uint64_t clock_tsc_to_ns(const struct clock *clock, uint64_t tsc);
uint64_t clock_ns_to_tsc(const struct clock *clock, uint64_t ns);
/* Wall-clock time in nanoseconds since 1970, for the RTC and PV clocks. */
uint64_t clock_wall_ns(struct clock *clock);
void clock_pause(struct clock *clock);
void clock_resume(struct clock *clock);
/* Sets the reading of a paused (or manual) clock, when a snapshot is loaded; timers keep their deadlines. */
void clock_set_ns(struct clock *clock, uint64_t ns);
void clock_set_tsc(struct clock *clock, uint64_t tsc);

/* The timer is embedded in its owner; init once, disarm before the owner goes. */
void timer_init(struct timer *timer, struct clock *clock, void (*fire)(void *owner), void *owner);
/*
 * Any thread; re-arming replaces the deadline. A deadline in the past fires as soon as the loop runs. Who disarms with
 * the board lock held knows that `fire` neither runs nor will; others must expect one late call.
 */
void timer_arm(struct timer *timer, uint64_t deadline_ns);
void timer_disarm(struct timer *timer);
bool timer_armed(const struct timer *timer);

#endif
