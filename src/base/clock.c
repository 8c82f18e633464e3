/*
 * The machine's clock. One counter, the host's TSC where it can be relied on, gives both readings, so that a guest which
 * compares its TSC with a timer never sees them drift apart:
 *
 *     tsc = host_tsc - base            ns = tsc * 10^9 / tsc_hz      (as a 32.32 fixed-point multiplication)
 *
 * Elsewhere CLOCK_MONOTONIC takes its place and the guest's TSC is made from it.
 * A pause keeps `tsc` in `frozen`; resume moves `base`. Readers use a sequence lock: they never wait for a writer that
 * was descheduled for long, since a writer changes three words and nothing else.
 *
 * Timers stand in a binary heap. Only the earliest is given to the host, as a timerfd in the loop. Its duration is
 * computed from our counter, so when the two clocks drift the timerfd fires early, nothing is due, and it is set again.
 *
 * Lock order: the board lock, then clock->lock. A timer is taken off the heap with both held, which is what makes
 * timer_disarm under the board lock final.
 */
#include "base/clock.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/base.h"
#include "base/error.h"
#include "base/loop.h"

enum { NOT_ARMED = UINT32_MAX, CALIBRATION_NS = 2 * 1000 * 1000, GLANCE_NS = 500 * 1000 };

/* What the clock reads from the host. */
enum clock_source { SOURCE_TSC, SOURCE_MONOTONIC, SOURCE_MANUAL, SOURCE_COUNTED };

/* TSC frequency where there is no TSC to follow. */
static const uint64_t synthetic_tsc_hz = 2000000000;
/* The wall time at 0 ns of clocks that do not follow the host: 2024-03-05 06:07:08 UTC. */
static const uint64_t manual_wall_base_ns = 1709618828ull * NS_PER_SECOND;

struct clock {
    enum clock_source source;
    uint64_t tsc_hz;
    uint64_t ns_per_tick;               /* 32.32 fixed point */
    pthread_mutex_t lock;               /* guards the heap, the timerfd and writers of what follows */
    _Atomic uint32_t sequence;
    _Atomic uint64_t base, frozen;      /* of the source's counter; tsc at the pause */
    atomic_bool paused;

    uint64_t instructions;              /* counted: TSC ticks that were not slept */
    void (*earlier)(void *owner);
    void *earlier_owner;

    struct loop *loop;
    pthread_mutex_t *board_lock;
    struct loop_fd timer_fd;
    uint64_t programmed_ns;             /* the deadline the timerfd stands for */
    struct timer **heap;
    unsigned heap_count, heap_room;
};

/* --- the counter --- */

static uint64_t host_monotonic_ns(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static uint64_t scale_ns_to_ticks(uint64_t ns, uint64_t hz)
{
    return (uint64_t)((unsigned __int128)ns * hz / NS_PER_SECOND);
}

static bool follows_host(const struct clock *clock)
{
    return clock->source == SOURCE_TSC || clock->source == SOURCE_MONOTONIC;
}

/*
 * The host's TSC after all loads that come before: a processor may read it early, and what another one wrote into memory about its time
 * would then be in the future (SDM2 "RDTSC").
 */
static uint64_t host_tsc(void)
{
    _mm_lfence();
    return __rdtsc();
}

/* The source's counter; the others only have `frozen`. */
static uint64_t read_source(const struct clock *clock)
{
    switch (clock->source) {
    case SOURCE_TSC: return host_tsc();
    case SOURCE_MONOTONIC: return scale_ns_to_ticks(host_monotonic_ns(CLOCK_MONOTONIC), clock->tsc_hz);
    default: return 0;
    }
}

uint64_t clock_tsc(struct clock *clock)
{
    for (;;) {
        uint32_t before = atomic_load_explicit(&clock->sequence, memory_order_acquire);
        uint64_t base = atomic_load_explicit(&clock->base, memory_order_relaxed);
        uint64_t frozen = atomic_load_explicit(&clock->frozen, memory_order_relaxed);
        bool paused = atomic_load_explicit(&clock->paused, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        if (before & 1 || atomic_load_explicit(&clock->sequence, memory_order_relaxed) != before)
            continue;
        if (paused)
            return frozen;
        /* Cores' TSCs agree to some ticks; never let a resume on one core show time before the pause on another. */
        uint64_t tsc = read_source(clock) - base;
        return (int64_t)(tsc - frozen) < 0 ? frozen : tsc;
    }
}

bool clock_tsc_base(struct clock *clock, uint64_t *base)
{
    enum { TICKS_APART = 1 << 16 };     /* far more than processors differ by: nobody sees time before the pause */
    if (clock->source != SOURCE_TSC)
        return false;
    uint32_t before = atomic_load_explicit(&clock->sequence, memory_order_acquire);
    *base = atomic_load_explicit(&clock->base, memory_order_relaxed);
    uint64_t frozen = atomic_load_explicit(&clock->frozen, memory_order_relaxed);
    bool paused = atomic_load_explicit(&clock->paused, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return !(before & 1) && atomic_load_explicit(&clock->sequence, memory_order_relaxed) == before && !paused &&
           (int64_t)(read_source(clock) - *base - frozen) > TICKS_APART;
}

uint64_t clock_tsc_to_ns(const struct clock *clock, uint64_t tsc)
{
    return (uint64_t)(((unsigned __int128)tsc * clock->ns_per_tick) >> 32);
}

/* The first tick at which the clock has reached ns. */
uint64_t clock_ns_to_tsc(const struct clock *clock, uint64_t ns)
{
    unsigned __int128 scaled = ((unsigned __int128)ns << 32) + clock->ns_per_tick - 1;
    scaled /= clock->ns_per_tick;
    return scaled > UINT64_MAX ? UINT64_MAX : (uint64_t)scaled;
}

uint64_t clock_ns(struct clock *clock) { return clock_tsc_to_ns(clock, clock_tsc(clock)); }
uint64_t clock_tsc_hz(const struct clock *clock) { return clock->tsc_hz; }

uint64_t clock_wall_ns(struct clock *clock)
{
    return follows_host(clock) ? host_monotonic_ns(CLOCK_REALTIME) : manual_wall_base_ns + clock_ns(clock);
}

/* --- the host's TSC --- */

/* SDM3 §18.17.1 "Invariant TSC". */
static bool host_tsc_invariant(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & BIT(8));
}

bool clock_lists_tsc(const char *sources)
{
    for (const char *at = sources; (at = strstr(at, "tsc")); at++)
        if ((at == sources || at[-1] == ' ') && strchr(" \n", at[strlen("tsc")]))
            return true;
    return false;
}

/*
 * Linux has watched the TSC since the host was started: one that stops, changes its rate, or differs among processors is no clock source of its any
 * more. What the processor says counts where that cannot be read: it knows nothing of other sockets, and in virtual machines it often says less
 * than is true, since they may be moved to another host.
 */
bool clock_host_tsc_good(struct error *err)
{
    char sources[256] = "";
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/available_clocksource", "re");
    bool known = file && fgets(sources, sizeof(sources), file);
    if (file)
        fclose(file);
    if (known)
        return clock_lists_tsc(sources) || error_set(err, "the host's kernel does not trust its time-stamp counter");
    return host_tsc_invariant() || error_set(err, "the host's processor does not say that its time-stamp counter is invariant");
}

/* SDM3 §20.7.3 "Determining the Processor Base Frequency": leaf 0x15; under a hypervisor leaf 0x40000010 gives kHz. */
static uint64_t tsc_hz_by_cpuid(void)
{
    unsigned a, b, c, d;
    if (__get_cpuid(0x15, &a, &b, &c, &d) && a && b && c)
        return (uint64_t)c * b / a;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & BIT(31))) {
        __cpuid(0x40000000, a, b, c, d);
        if (a >= 0x40000010 && a < 0x40000100) {
            __cpuid(0x40000010, a, b, c, d);
            return (uint64_t)a * 1000;
        }
    }
    return 0;
}

/*
 * Both clocks read as closely together as some tries allow: with 32 of them, two milliseconds apart, the frequency is right to within 1 ppm; with 8 it
 * takes twenty (a virtual Zen 4).
 */
static void read_both(uint64_t *ns, uint64_t *tsc)
{
    enum { TRIES = 32 };
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < TRIES; i++) {
        uint64_t before = __rdtsc(), now = host_monotonic_ns(CLOCK_MONOTONIC_RAW), after = __rdtsc();
        if (after - before >= best)
            continue;
        best = after - before;
        *ns = now;
        *tsc = before + best / 2;
    }
}

static uint64_t measure_tsc_hz(long duration_ns)
{
    uint64_t ns0 = 0, tsc0 = 0, ns1 = 0, tsc1 = 0;
    read_both(&ns0, &tsc0);
    nanosleep(&(struct timespec){ .tv_nsec = duration_ns }, NULL);
    read_both(&ns1, &tsc1);
    return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * NS_PER_SECOND / (ns1 - ns0));
}

/* A short look tells one host from another: frequencies differ by far more than it is wrong. */
static bool is_tsc_hz(uint64_t hz)
{
    uint64_t seen = measure_tsc_hz(GLANCE_NS);
    return (hz > seen ? hz - seen : seen - hz) < seen / 1000;
}

static uint64_t find_tsc_hz(uint64_t expected)
{
    uint64_t hz = tsc_hz_by_cpuid();
    if (hz)
        return hz;
    return expected && is_tsc_hz(expected) ? expected : measure_tsc_hz(CALIBRATION_NS);
}

/* --- the heap: parent of i is (i - 1) / 2; clock->lock held --- */

static bool comes_before(const struct timer *a, const struct timer *b) { return a->deadline_ns < b->deadline_ns; }

static void heap_place(struct clock *clock, unsigned i, struct timer *timer)
{
    clock->heap[i] = timer;
    timer->heap_index = i;
}

static void heap_up(struct clock *clock, unsigned i, struct timer *timer)
{
    while (i && comes_before(timer, clock->heap[(i - 1) / 2])) {
        heap_place(clock, i, clock->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_place(clock, i, timer);
}

static void heap_down(struct clock *clock, unsigned i, struct timer *timer)
{
    for (unsigned child; (child = 2 * i + 1) < clock->heap_count; i = child) {
        if (child + 1 < clock->heap_count && comes_before(clock->heap[child + 1], clock->heap[child]))
            child++;
        if (!comes_before(clock->heap[child], timer))
            break;
        heap_place(clock, i, clock->heap[child]);
    }
    heap_place(clock, i, timer);
}

static void heap_remove(struct clock *clock, struct timer *timer)
{
    unsigned i = timer->heap_index;
    if (i == NOT_ARMED)
        return;
    timer->heap_index = NOT_ARMED;
    struct timer *last = clock->heap[--clock->heap_count];
    if (last == timer)
        return;
    if (i && comes_before(last, clock->heap[(i - 1) / 2]))
        heap_up(clock, i, last);
    else
        heap_down(clock, i, last);
}

static void heap_insert(struct clock *clock, struct timer *timer)
{
    if (clock->heap_count == clock->heap_room) {
        unsigned room = clock->heap_room ? clock->heap_room * 2 : 32;
        struct timer **heap = realloc(clock->heap, room * sizeof(*heap));
        if (!heap)
            abort();        /* a few dozen pointers; the number of timers is the board's, not the guest's */
        clock->heap = heap;
        clock->heap_room = room;
    }
    heap_up(clock, clock->heap_count++, timer);
}

/* Gives the host the earliest deadline, if it changed. clock->lock held. */
static void program_host(struct clock *clock)
{
    if (clock->source == SOURCE_COUNTED && clock->earlier && clock->heap_count && clock->heap[0]->deadline_ns < clock->programmed_ns)
        clock->earlier(clock->earlier_owner);
    if (!follows_host(clock))
        return;
    bool stopped = atomic_load_explicit(&clock->paused, memory_order_relaxed) || !clock->heap_count;
    uint64_t deadline = stopped ? CLOCK_NEVER : clock->heap[0]->deadline_ns;
    if (deadline == clock->programmed_ns)
        return;
    clock->programmed_ns = deadline;
    struct itimerspec spec = { 0 };
    if (deadline != CLOCK_NEVER) {
        uint64_t now = clock_ns(clock);
        /* At least 1 ns: zero would disarm. At most a day: then look again. */
        uint64_t wait = deadline > now ? min_u64(deadline - now, 86400 * NS_PER_SECOND) : 1;
        spec.it_value = (struct timespec){ (time_t)(wait / NS_PER_SECOND), (long)(wait % NS_PER_SECOND) };
    }
    timerfd_settime(clock->timer_fd.fd, 0, &spec, NULL);
}

/* The writer's side of the sequence lock. clock->lock held. */
static void publish(struct clock *clock, bool paused, uint64_t base, uint64_t frozen)
{
    atomic_fetch_add_explicit(&clock->sequence, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&clock->paused, paused, memory_order_relaxed);
    atomic_store_explicit(&clock->base, base, memory_order_relaxed);
    atomic_store_explicit(&clock->frozen, frozen, memory_order_relaxed);
    atomic_fetch_add_explicit(&clock->sequence, 1, memory_order_release);
    program_host(clock);
}

/* --- timers --- */

void timer_init(struct timer *timer, struct clock *clock, void (*fire)(void *owner), void *owner)
{
    *timer = (struct timer){ .clock = clock, .fire = fire, .owner = owner, .deadline_ns = CLOCK_NEVER, .heap_index = NOT_ARMED };
}

void timer_arm(struct timer *timer, uint64_t deadline_ns)
{
    struct clock *clock = timer->clock;
    pthread_mutex_lock(&clock->lock);
    heap_remove(clock, timer);
    __atomic_store_n(&timer->deadline_ns, deadline_ns, __ATOMIC_RELAXED);
    if (deadline_ns != CLOCK_NEVER)
        heap_insert(clock, timer);
    program_host(clock);
    pthread_mutex_unlock(&clock->lock);
}

void timer_disarm(struct timer *timer)
{
    if (timer->clock)
        timer_arm(timer, CLOCK_NEVER);
}

bool timer_armed(const struct timer *timer)
{
    return __atomic_load_n(&timer->deadline_ns, __ATOMIC_RELAXED) != CLOCK_NEVER;
}

/* Takes the earliest timer if it is due at `now`. */
static struct timer *take_due(struct clock *clock, uint64_t now)
{
    pthread_mutex_lock(&clock->lock);
    struct timer *timer = clock->heap_count && clock->heap[0]->deadline_ns <= now ? clock->heap[0] : NULL;
    if (timer) {
        heap_remove(clock, timer);
        __atomic_store_n(&timer->deadline_ns, CLOCK_NEVER, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&clock->lock);
    return timer;
}

/*
 * The timerfd expired. The time is read once and the number of timers is bounded, so that a guest which keeps arming
 * a timer in the past cannot hold the loop here for ever.
 */
static void host_timer_ready(void *owner, uint32_t events)
{
    struct clock *clock = owner;
    uint64_t ignored;
    ssize_t got = read(clock->timer_fd.fd, &ignored, sizeof(ignored));
    (void)got;
    if (clock->board_lock)
        pthread_mutex_lock(clock->board_lock);
    uint64_t now = clock_ns(clock);
    for (unsigned left = 256; left && !atomic_load(&clock->paused); left--) {
        struct timer *timer = take_due(clock, now);
        if (!timer)
            break;
        timer->fire(timer->owner);
    }
    if (clock->board_lock)
        pthread_mutex_unlock(clock->board_lock);
    pthread_mutex_lock(&clock->lock);
    clock->programmed_ns = CLOCK_NEVER - 1;     /* spent, or stale: set it again */
    program_host(clock);
    pthread_mutex_unlock(&clock->lock);
}

void clock_advance(struct clock *clock, uint64_t ns)
{
    uint64_t end = clock_ns(clock) + ns;
    while (clock->heap_count && clock->heap[0]->deadline_ns <= end) {
        uint64_t due = clock->heap[0]->deadline_ns;
        struct timer *timer = take_due(clock, end);
        if (due > clock_ns(clock))
            clock_set_ns(clock, due);
        timer->fire(timer->owner);
    }
    clock_set_ns(clock, end);
}

/* --- counted time --- */

/* True: there is one, which tsc reaches first at *tsc. */
static bool next_deadline(struct clock *clock, uint64_t *tsc)
{
    pthread_mutex_lock(&clock->lock);
    uint64_t ns = clock->heap_count ? clock->heap[0]->deadline_ns : CLOCK_NEVER;
    clock->programmed_ns = ns;
    pthread_mutex_unlock(&clock->lock);
    *tsc = clock_ns_to_tsc(clock, ns);
    return ns != CLOCK_NEVER;
}

/* Bounded, so that a guest which keeps arming a timer in the past cannot hold its processor here for ever. */
uint64_t clock_fire_due(struct clock *clock)
{
    uint64_t now = clock_ns(clock), tsc;
    for (unsigned left = 256; left && next_deadline(clock, &tsc) && tsc <= clock_tsc(clock); left--) {
        pthread_mutex_lock(clock->board_lock);
        struct timer *timer = take_due(clock, now);
        if (timer)
            timer->fire(timer->owner);
        pthread_mutex_unlock(clock->board_lock);
    }
    if (!next_deadline(clock, &tsc))
        return UINT64_MAX;
    return tsc > clock_tsc(clock) ? tsc - clock_tsc(clock) : 1;
}

void clock_count(struct clock *clock, uint64_t instructions)
{
    if (instructions == clock->instructions)
        return;
    pthread_mutex_lock(&clock->lock);
    publish(clock, true, clock->base, clock->frozen + (instructions - clock->instructions));
    clock->instructions = instructions;
    pthread_mutex_unlock(&clock->lock);
}

bool clock_skip(struct clock *clock)
{
    uint64_t tsc;
    if (!next_deadline(clock, &tsc))
        return false;
    if (tsc > clock_tsc(clock))
        clock_set_tsc(clock, tsc);
    return true;
}

void clock_on_earlier(struct clock *clock, void (*earlier)(void *owner), void *owner)
{
    clock->earlier = earlier;
    clock->earlier_owner = owner;
}

bool clock_counted(const struct clock *clock) { return clock->source == SOURCE_COUNTED; }

/* --- life --- */

static struct clock *clock_alloc(enum clock_source source, uint64_t tsc_hz)
{
    struct clock *clock = calloc(1, sizeof(*clock));
    if (!clock)
        return NULL;
    clock->source = source;
    clock->tsc_hz = tsc_hz;
    clock->ns_per_tick = (NS_PER_SECOND << 32) / tsc_hz;
    clock->programmed_ns = CLOCK_NEVER;
    clock->timer_fd.fd = -1;
    pthread_mutex_init(&clock->lock, NULL);
    return clock;
}

struct clock *clock_create(struct loop *loop, pthread_mutex_t *lock, uint64_t tsc_hz)
{
    bool tsc = clock_host_tsc_good(NULL);
    struct clock *clock = clock_alloc(tsc ? SOURCE_TSC : SOURCE_MONOTONIC, tsc ? find_tsc_hz(tsc_hz) : synthetic_tsc_hz);
    if (!clock)
        return NULL;
    clock->loop = loop;
    clock->board_lock = lock;
    clock->base = read_source(clock);
    clock->timer_fd = (struct loop_fd){ .fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
                                        .events = EPOLLIN, .ready = host_timer_ready, .owner = clock };
    if (clock->timer_fd.fd < 0) {
        clock_destroy(clock);
        return NULL;
    }
    loop_add(loop, &clock->timer_fd);
    return clock;
}

struct clock *clock_create_manual(void)
{
    struct clock *clock = clock_alloc(SOURCE_MANUAL, synthetic_tsc_hz);
    if (clock)
        clock->paused = true;
    return clock;
}

struct clock *clock_create_counted(pthread_mutex_t *lock, uint64_t instructions_per_us)
{
    struct clock *clock = clock_alloc(SOURCE_COUNTED, instructions_per_us * 1000000);
    if (clock) {
        clock->paused = true;
        clock->board_lock = lock;
    }
    return clock;
}

void clock_destroy(struct clock *clock)
{
    if (!clock)
        return;
    if (clock->timer_fd.fd >= 0) {
        loop_remove(clock->loop, &clock->timer_fd);
        close(clock->timer_fd.fd);
    }
    pthread_mutex_destroy(&clock->lock);
    free(clock->heap);
    free(clock);
}

void clock_pause(struct clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    if (!clock->paused)
        publish(clock, true, clock->base, clock_tsc(clock));
    pthread_mutex_unlock(&clock->lock);
}

void clock_resume(struct clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    if (clock->paused && follows_host(clock))
        publish(clock, false, read_source(clock) - clock->frozen, clock->frozen);
    pthread_mutex_unlock(&clock->lock);
}

void clock_set_tsc(struct clock *clock, uint64_t tsc)
{
    pthread_mutex_lock(&clock->lock);
    if (clock->paused)
        publish(clock, true, clock->base, tsc);
    pthread_mutex_unlock(&clock->lock);
}

void clock_set_ns(struct clock *clock, uint64_t ns) { clock_set_tsc(clock, clock_ns_to_tsc(clock, ns)); }
