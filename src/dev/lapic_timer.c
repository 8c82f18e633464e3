/* The local APIC's timer: SDM3 §11.5.4 "APIC Timer". All of it under the APIC's lock but lapic_timer_fired, which takes it. */
#include "dev/lapic_internal.h"

enum lapic_timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_TSC_DEADLINE };

/*
 * A periodic timer fires at most this often, so that a guest cannot keep the event loop busy with it. Expiries that
 * fall between are one interrupt, as they are in an IRR bit that is already set.
 */
enum { PERIOD_MIN_NS = 20000 };

static enum lapic_timer_mode mode_of(uint32_t lvt) { return bits(lvt, 18, 17); }
static enum lapic_timer_mode timer_mode(const struct lapic *lapic) { return mode_of(lapic->lvt[LVT_TIMER]); }

bool lapic_timer_has_deadline(const struct lapic *lapic) { return timer_mode(lapic) == TIMER_TSC_DEADLINE; }

static uint64_t divisor(const struct lapic *lapic)
{
    unsigned code = (lapic->divide & 3) | (lapic->divide >> 1 & 4);
    return 1u << ((code + 1) & 7);
}

static uint64_t timer_hz(const struct lapic *lapic) { return lapic->timer_hz ? lapic->timer_hz : LAPIC_TIMER_HZ; }

static uint64_t ticks_to_ns(const struct lapic *lapic, uint64_t ticks)
{
    uint64_t hz = timer_hz(lapic);
    return (uint64_t)(((unsigned __int128)ticks * divisor(lapic) * NS_PER_SECOND + hz - 1) / hz);
}

static uint64_t elapsed_ticks(const struct lapic *lapic, uint64_t now)
{
    if (now <= lapic->timer_start_ns)
        return 0;
    return (uint64_t)((unsigned __int128)(now - lapic->timer_start_ns) * timer_hz(lapic) / NS_PER_SECOND / divisor(lapic));
}

/* What is left of the present period. */
static uint32_t current_in_period(const struct lapic *lapic, uint64_t now)
{
    return lapic->initial_count ? (uint32_t)(lapic->initial_count - elapsed_ticks(lapic, now) % lapic->initial_count) : 0;
}

static uint32_t current_at(const struct lapic *lapic, uint64_t now)
{
    if (!lapic->counting || !lapic->initial_count || timer_mode(lapic) >= TIMER_TSC_DEADLINE)
        return 0;
    if (timer_mode(lapic) == TIMER_PERIODIC)
        return current_in_period(lapic, now);
    uint64_t elapsed = elapsed_ticks(lapic, now);
    return elapsed >= lapic->initial_count ? 0 : (uint32_t)(lapic->initial_count - elapsed);
}

uint32_t lapic_timer_current(const struct lapic *lapic) { return current_at(lapic, clock_ns(lapic->device.world.clock)); }

void lapic_timer_arm(struct lapic *lapic, uint64_t deadline_ns)
{
    lapic->timer_next_ns = deadline_ns;
    if (deadline_ns != CLOCK_NEVER || timer_armed(&lapic->timer))
        timer_arm(&lapic->timer, deadline_ns);
}

static void expire(struct lapic *lapic, struct lapic_after *after)
{
    trace(lapic->device.world.log, timer, "%s fires vector 0x%x", lapic->device.name, lapic->lvt[LVT_TIMER] & LVT_VECTOR);
    lapic_deliver_local(lapic, LVT_TIMER, after);
}

/* The next expiry of a periodic count after `now`, in phase with its start. */
static uint64_t next_period_ns(const struct lapic *lapic, uint64_t now)
{
    uint64_t rounds = elapsed_ticks(lapic, now) / lapic->initial_count + 1;
    uint64_t next = lapic->timer_start_ns + ticks_to_ns(lapic, rounds * lapic->initial_count);
    return max_u64(next, now + PERIOD_MIN_NS);
}

static uint64_t guest_tsc(struct lapic *lapic) { return clock_tsc(lapic->device.world.clock) + lapic->tsc_offset; }

void lapic_timer_arm_deadline(struct lapic *lapic, struct lapic_after *after)
{
    if (!lapic->tsc_deadline) {
        lapic_timer_arm(lapic, CLOCK_NEVER);
        return;
    }
    struct clock *clock = lapic->device.world.clock;
    uint64_t now = guest_tsc(lapic);
    if (lapic->tsc_deadline <= now) {
        lapic->tsc_deadline = 0;
        lapic_timer_arm(lapic, CLOCK_NEVER);
        expire(lapic, after);
        return;
    }
    uint64_t wait = min_u64(lapic->tsc_deadline - now, 1ull << 60);     /* years; keeps the sum in range */
    lapic_timer_arm(lapic, clock_ns(clock) + clock_tsc_to_ns(clock, wait) + 1);
}

/* The count was loaded, or how it counts has changed. */
static void arm_count(struct lapic *lapic)
{
    uint64_t now = clock_ns(lapic->device.world.clock);
    if (!lapic->counting || !lapic->initial_count) {
        lapic_timer_arm(lapic, CLOCK_NEVER);
    } else if (timer_mode(lapic) == TIMER_PERIODIC) {
        lapic_timer_arm(lapic, next_period_ns(lapic, now));
    } else {
        lapic_timer_arm(lapic, lapic->timer_start_ns + ticks_to_ns(lapic, lapic->initial_count));
    }
}

static void count_ran_out(struct lapic *lapic, uint64_t now, struct lapic_after *after)
{
    lapic->timer_next_ns = CLOCK_NEVER;
    expire(lapic, after);
    if (timer_mode(lapic) == TIMER_PERIODIC && lapic->initial_count)
        lapic_timer_arm(lapic, next_period_ns(lapic, now));
    else
        lapic->counting = false;
}

uint32_t lapic_timer_catch_up(struct lapic *lapic, struct lapic_after *after)
{
    uint64_t now = clock_ns(lapic->device.world.clock);
    if (timer_mode(lapic) < TIMER_TSC_DEADLINE && lapic->timer_next_ns <= now)
        count_ran_out(lapic, now, after);
    return current_at(lapic, now);
}

/* On the loop's thread. May come late for a deadline that has since been moved: timer_next_ns decides. */
void lapic_timer_fired(void *owner)
{
    struct lapic *lapic = owner;
    struct lapic_after after = { 0 };
    pthread_mutex_lock(&lapic->lock);
    uint64_t now = clock_ns(lapic->device.world.clock);
    if (lapic->host) {
        lapic_finish(lapic, &after);
        return;
    }
    if (lapic->timer_next_ns == CLOCK_NEVER || now < lapic->timer_next_ns) {
        if (lapic->timer_next_ns != CLOCK_NEVER)
            lapic_timer_arm(lapic, lapic->timer_next_ns);
    } else if (timer_mode(lapic) == TIMER_TSC_DEADLINE) {
        lapic_timer_arm_deadline(lapic, &after);        /* expires, or waits on if the TSC is not there yet */
    } else {
        count_ran_out(lapic, now, &after);
    }
    lapic_finish(lapic, &after);
}

void lapic_timer_write_initial(struct lapic *lapic, uint32_t value)
{
    if (timer_mode(lapic) == TIMER_TSC_DEADLINE)
        return;         /* SDM3 §11.5.4.1: ignored in this mode */
    lapic->initial_count = value;
    lapic->counting = value;
    lapic->timer_start_ns = clock_ns(lapic->device.world.clock);
    arm_count(lapic);
}

/* The count goes on from `left`, as if it had run like that since it was loaded. */
static void restart_at(struct lapic *lapic, uint32_t left)
{
    uint64_t now = clock_ns(lapic->device.world.clock), passed = ticks_to_ns(lapic, lapic->initial_count - left);
    lapic->timer_start_ns = now > passed ? now - passed : 0;
}

void lapic_timer_write_divide(struct lapic *lapic, uint32_t value)
{
    uint32_t left = lapic_timer_current(lapic);
    lapic->divide = value & 0xB;
    if (!left)
        return;
    restart_at(lapic, left);
    arm_count(lapic);
}

/* A running count goes on in the other mode; one that has run out stays at 0. TSC-deadline mode disarms either way. */
void lapic_timer_mode_changed(struct lapic *lapic, uint32_t old_lvt)
{
    enum lapic_timer_mode old = mode_of(old_lvt);
    uint64_t now = clock_ns(lapic->device.world.clock);
    bool ran_out = elapsed_ticks(lapic, now) >= lapic->initial_count;
    if (old == TIMER_ONE_SHOT && ran_out && timer_mode(lapic) == TIMER_PERIODIC)
        lapic->counting = false;
    if (old == TIMER_PERIODIC && lapic->counting)
        restart_at(lapic, current_in_period(lapic, now));
    if (old == TIMER_TSC_DEADLINE || timer_mode(lapic) == TIMER_TSC_DEADLINE) {
        lapic->initial_count = 0;
        lapic->counting = false;
        lapic->tsc_deadline = 0;
    }
    arm_count(lapic);
}

void lapic_timer_load(struct lapic *lapic, uint32_t left)
{
    if (timer_mode(lapic) == TIMER_PERIODIC && !left)
        left = 1;
    lapic->counting = left && lapic->initial_count;
    if (lapic->counting)
        restart_at(lapic, (uint32_t)min_u64(left, lapic->initial_count));
}

void lapic_timer_resume(struct lapic *lapic, struct lapic_after *after)
{
    if (lapic_timer_has_deadline(lapic))
        lapic_timer_arm_deadline(lapic, after);
    else
        arm_count(lapic);
}
