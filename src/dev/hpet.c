/*
 * HPET: "IA-PC HPET (High Precision Event Timers) Specification", revision 1.0a, October 2004. A 64-bit counter at 100 MHz
 * and three timers, all able to be periodic, to be routed and to send messages (FSB).
 *
 * The counter is computed from the clock: `counter` holds its value while it stands, and the difference to the clock's
 * ticks while it runs.
 */
#include "dev/hpet.h"

#include <string.h>

#include "base/base.h"

/* §2.3 "Memory-Mapped Registers" */
enum hpet_register { GCAP_ID = 0x000, GEN_CONF = 0x010, GINTR_STA = 0x020, MAIN_CNT = 0x0F0, TIMER_FIRST = 0x100, TIMER_STRIDE = 0x20 };
enum hpet_timer_register { TN_CONF = 0x00, TN_COMP = 0x08, TN_FSB = 0x10 };

enum { CONF_ENABLE = 1 << 0, CONF_LEGACY = 1 << 1, CONF_WRITABLE = 3 };

/* §2.3.8 "Timer N Configuration and Capabilities Register" */
enum {
    TN_LEVEL = 1 << 1,          /* Tn_INT_TYPE_CNF */
    TN_ENABLE = 1 << 2,         /* Tn_INT_ENB_CNF */
    TN_PERIODIC = 1 << 3,       /* Tn_TYPE_CNF */
    TN_PERIODIC_CAP = 1 << 4,
    TN_SIZE_CAP = 1 << 5,
    TN_VAL_SET = 1 << 6,
    TN_32BIT = 1 << 8,
    TN_FSB_ENABLE = 1 << 14,
    TN_FSB_CAP = 1 << 15,
    TN_WRITABLE = TN_LEVEL | TN_ENABLE | TN_PERIODIC | TN_VAL_SET | TN_32BIT | 0x1F << 9 | TN_FSB_ENABLE,
};
/* I/O APIC inputs 20 to 23, as the ICH9 has it. */
static const uint64_t route_capability = 0x00F00000ull << 32;

/* Revision 1, three timers, 64-bit counter, legacy replacement; period in femtoseconds. */
static const uint64_t capabilities = 0x8086A001ull | (uint64_t)(HPET_TIMERS - 1) << 8 | (uint64_t)HPET_TICK_NS * 1000000 << 32;

/* Matches nearer to each other than this coalesce, so that a guest cannot keep the event loop busy. */
enum { MATCH_MIN_NS = 20000 };

static const uint64_t hpet_base_default = 0xFED00000, hpet_size = 0x400;

/* --- helpers --- */

static bool running(const struct hpet *hpet) { return hpet->config & CONF_ENABLE; }
static uint64_t clock_ticks(const struct hpet *hpet) { return clock_ns(hpet->device.world.clock) / HPET_TICK_NS; }
static uint64_t counter(const struct hpet *hpet) { return hpet->counter + (running(hpet) ? clock_ticks(hpet) : 0); }
static unsigned timer_number(const struct hpet_timer *timer) { return (unsigned)(timer - timer->hpet->timer); }

static uint64_t timer_mask(const struct hpet_timer *timer) { return timer->config & TN_32BIT ? UINT32_MAX : UINT64_MAX; }

static bool periodic(const struct hpet_timer *timer)
{
    return timer->config & TN_PERIODIC && timer->period & timer_mask(timer);
}

static const struct irq_line *line_of(const struct hpet_timer *timer)
{
    const struct hpet *hpet = timer->hpet;
    unsigned n = timer_number(timer);
    if (hpet->config & CONF_LEGACY && n < 2)
        return &hpet->irq[n == 0 ? 0 : 8];
    return &hpet->irq[bits(timer->config, 13, 9) % HPET_LINES];
}

/* The level of a level-triggered timer's line; edge-triggered ones rest low. */
static void drive_level(const struct hpet_timer *timer)
{
    bool status = timer->hpet->status >> timer_number(timer) & 1;
    irq_set(line_of(timer), status && timer->config & TN_LEVEL && timer->config & TN_ENABLE);
}

static void interrupt(struct hpet_timer *timer)
{
    struct hpet *hpet = timer->hpet;
    if (timer->config & TN_LEVEL)
        hpet->status |= BIT(timer_number(timer));
    if (!(timer->config & TN_ENABLE) || !running(hpet))
        return;
    if (timer->config & TN_FSB_ENABLE && hpet->device.dma.ops) {
        uint32_t value = (uint32_t)timer->fsb;
        dma_write(&hpet->device.dma, timer->fsb >> 32, &value, sizeof(value));
    } else if (timer->config & TN_LEVEL) {
        drive_level(timer);
    } else {
        irq_set(line_of(timer), true);
        irq_set(line_of(timer), false);
    }
}

/*
 * Does a match do anything at once? An edge-triggered timer without interrupts only moves its comparator if it is periodic, and that waits until
 * somebody looks (catch_up). Kernels leave such timers running.
 */
static bool is_noticed(const struct hpet_timer *timer) { return timer->config & (TN_ENABLE | TN_LEVEL); }

static void arm_host(struct hpet_timer *timer)
{
    uint64_t deadline = is_noticed(timer) ? timer->next_ns : CLOCK_NEVER;
    if (deadline != CLOCK_NEVER || timer_armed(&timer->timer))
        timer_arm(&timer->timer, deadline);
}

static void arm(struct hpet_timer *timer, uint64_t not_before_ns)
{
    struct hpet *hpet = timer->hpet;
    timer->next_ns = CLOCK_NEVER;
    if (running(hpet)) {
        uint64_t left = (timer->comparator - counter(hpet)) & timer_mask(timer);
        if (left < UINT64_MAX / HPET_TICK_NS / 2)       /* else centuries away: never */
            timer->next_ns = max_u64((clock_ticks(hpet) + left) * HPET_TICK_NS, not_before_ns);
    }
    arm_host(timer);
}

/* A periodic comparator moves to the first multiple after the counter, of which it is `late` ticks behind. */
static void advance(struct hpet_timer *timer, uint64_t late)
{
    uint64_t mask = timer_mask(timer), period = timer->period & mask;
    timer->comparator = (timer->comparator + (late / period + 1) * period) & mask;
}

static void catch_up(struct hpet_timer *timer)
{
    struct hpet *hpet = timer->hpet;
    uint64_t now = clock_ticks(hpet), due = timer->next_ns / HPET_TICK_NS;
    if (is_noticed(timer) || !periodic(timer) || now < due)
        return;
    advance(timer, now - due);
    arm(timer, 0);
}

/* A match. */
static void matched(void *owner)
{
    struct hpet_timer *timer = owner;
    struct hpet *hpet = timer->hpet;
    uint64_t now = clock_ns(hpet->device.world.clock);
    trace(hpet->device.world.log, timer, "HPET timer %u", timer_number(timer));
    if (periodic(timer)) {
        advance(timer, (counter(hpet) - timer->comparator) & timer_mask(timer));
        arm(timer, now + MATCH_MIN_NS);
    } else if (timer->config & TN_32BIT) {
        arm(timer, now + MATCH_MIN_NS);         /* comes round when the low half wraps */
        if (timer->next_ns < now + BIT(31))
            timer->next_ns += BIT(32) * HPET_TICK_NS;
        timer_arm(&timer->timer, timer->next_ns);
    } else {
        timer->next_ns = CLOCK_NEVER;
    }
    interrupt(timer);
}

/* --- registers: 64 bits each, written through a mask of the bytes meant --- */

static uint64_t merge(uint64_t old, uint64_t value, uint64_t mask) { return (old & ~mask) | (value & mask); }

static void write_gen_conf(struct hpet *hpet, uint64_t value)
{
    uint64_t old = hpet->config, now = counter(hpet);
    value &= CONF_WRITABLE;
    if ((old ^ value) & CONF_LEGACY)
        for (unsigned n = 0; n < HPET_TIMERS; n++)
            irq_set(line_of(&hpet->timer[n]), false);
    hpet->config = value;
    hpet->counter = running(hpet) ? now - clock_ticks(hpet) : now;
    irq_set(&hpet->legacy, value & CONF_LEGACY);
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        drive_level(&hpet->timer[n]);
        arm(&hpet->timer[n], 0);
    }
}

static void write_timer_conf(struct hpet_timer *timer, uint64_t value)
{
    irq_set(line_of(timer), false);     /* of the route that was */
    timer->config = value & TN_WRITABLE;
    if (!(timer->config & TN_PERIODIC))
        timer->config &= ~(uint64_t)TN_VAL_SET;
    timer->comparator &= timer_mask(timer);
    drive_level(timer);
    arm(timer, 0);
}

/* §2.3.9.2.2: in periodic mode the register's write sets the period, or with VAL_SET the comparator itself. */
static void write_comparator(struct hpet_timer *timer, uint64_t value, uint64_t mask)
{
    if (timer->config & TN_32BIT) {
        value &= UINT32_MAX;
        mask |= ~(uint64_t)UINT32_MAX;
    }
    if (!(timer->config & TN_PERIODIC) || timer->config & TN_VAL_SET)
        timer->comparator = merge(timer->comparator, value, mask);
    if (!(timer->config & TN_VAL_SET))
        timer->period = merge(timer->period, value, mask);
    timer->config &= ~(uint64_t)TN_VAL_SET;
    arm(timer, 0);
}

static void write_status(struct hpet *hpet, uint64_t value)
{
    hpet->status &= ~value;
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        if (value >> n & 1)
            drive_level(&hpet->timer[n]);
}

static void write_register(struct hpet *hpet, unsigned at, uint64_t value, uint64_t mask)
{
    if (at >= TIMER_FIRST) {
        unsigned n = (at - TIMER_FIRST) / TIMER_STRIDE;
        struct hpet_timer *timer = n < HPET_TIMERS ? &hpet->timer[n] : NULL;
        if (!timer)
            return;
        switch ((at - TIMER_FIRST) % TIMER_STRIDE) {
        case TN_CONF: write_timer_conf(timer, merge(timer->config, value, mask)); break;
        case TN_COMP: write_comparator(timer, value, mask); break;
        case TN_FSB: timer->fsb = merge(timer->fsb, value, mask); break;
        default: break;
        }
        return;
    }
    switch (at) {
    case GEN_CONF: write_gen_conf(hpet, merge(hpet->config, value, mask)); break;
    case GINTR_STA: write_status(hpet, value & mask); break;
    case MAIN_CNT:
        if (running(hpet))
            guest_error(hpet->device.world.log, "HPET: the counter is written while it runs");
        value = merge(counter(hpet), value, mask);
        hpet->counter = running(hpet) ? value - clock_ticks(hpet) : value;
        for (unsigned n = 0; n < HPET_TIMERS; n++)
            arm(&hpet->timer[n], 0);
        break;
    default: break;
    }
}

static uint64_t read_register(const struct hpet *hpet, unsigned at)
{
    if (at >= TIMER_FIRST) {
        unsigned n = (at - TIMER_FIRST) / TIMER_STRIDE;
        if (n >= HPET_TIMERS)
            return 0;
        const struct hpet_timer *timer = &hpet->timer[n];
        switch ((at - TIMER_FIRST) % TIMER_STRIDE) {
        case TN_CONF:
            return timer->config | TN_PERIODIC_CAP | TN_SIZE_CAP | (hpet->device.dma.ops ? TN_FSB_CAP : 0) | route_capability;
        case TN_COMP: return timer->comparator;
        case TN_FSB: return timer->fsb;
        default: return 0;
        }
    }
    switch (at) {
    case GCAP_ID: return capabilities;
    case GEN_CONF: return hpet->config;
    case GINTR_STA: return hpet->status;
    case MAIN_CNT: return counter(hpet);
    default: return 0;
    }
}

/* --- access --- */

static enum access_result hpet_access(void *owner, struct access *access)
{
    struct hpet *hpet = owner;
    unsigned at = access->address & 0x3F8, shift = (access->address & 7) * 8;
    uint64_t mask = size_mask(access->size) << shift;
    for (unsigned n = 0; (access->write || at >= TIMER_FIRST) && n < HPET_TIMERS; n++)
        catch_up(&hpet->timer[n]);
    if (access->write)
        write_register(hpet, at, access->value << shift, mask);
    else
        access->value = read_register(hpet, at) >> shift & size_mask(access->size);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void hpet_reset(struct device *device)
{
    struct hpet *hpet = (struct hpet *)device;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        struct hpet_timer *timer = &hpet->timer[n];
        irq_set(line_of(timer), false);
        timer_disarm(&timer->timer);
        timer->config = timer->period = timer->fsb = 0;
        timer->comparator = UINT64_MAX;
        timer->next_ns = CLOCK_NEVER;
    }
    hpet->config = hpet->status = hpet->counter = 0;
    irq_set(&hpet->legacy, false);
}

static bool hpet_init(struct device *device, struct error *err)
{
    struct hpet *hpet = (struct hpet *)device;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        hpet->timer[n].hpet = hpet;
        timer_init(&hpet->timer[n].timer, device->world.clock, matched, &hpet->timer[n]);
    }
    hpet->region = (struct region){ .name = "hpet", .base = hpet->base ? hpet->base : hpet_base_default, .size = hpet_size,
                                    .access = hpet_access, .owner = hpet, .lock = device->world.lock };
    bus_map(device->world.mmio, &hpet->region);
    return true;
}

static void hpet_quiesce(struct device *device)
{
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        timer_disarm(&((struct hpet *)device)->timer[n].timer);
}

static void hpet_resume(struct device *device)
{
    struct hpet *hpet = (struct hpet *)device;
    hpet->config &= CONF_WRITABLE;
    hpet->status &= BIT(HPET_TIMERS) - 1;
    irq_set(&hpet->legacy, hpet->config & CONF_LEGACY);
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        hpet->timer[n].config &= TN_WRITABLE;
        drive_level(&hpet->timer[n]);
        arm_host(&hpet->timer[n]);
    }
}

static void hpet_fini(struct device *device)
{
    struct hpet *hpet = (struct hpet *)device;
    bus_unmap(device->world.mmio, &hpet->region);
    hpet_quiesce(device);
}

/* --- state list, type --- */

static const struct state_field timer_fields[] = {
    STATE_SCALAR(struct hpet_timer, config), STATE_SCALAR(struct hpet_timer, comparator),
    STATE_SCALAR(struct hpet_timer, period), STATE_SCALAR(struct hpet_timer, fsb),
    STATE_SCALAR(struct hpet_timer, next_ns),
};
static const struct state_list timer_state = STATE_LIST("hpet-timer", 1, timer_fields);

static const struct state_field hpet_fields[] = {
    STATE_SCALAR(struct hpet, config),
    STATE_SCALAR(struct hpet, status),
    STATE_SCALAR(struct hpet, counter),
    STATE_NESTED_ARRAY(struct hpet, timer, timer_state),
};
static const struct state_list hpet_state = STATE_LIST("hpet", 1, hpet_fields);

static const struct config_field hpet_config[] = {
    { "base", CONFIG_UINT, offsetof(struct hpet, base), "guest-physical address" },
    { NULL },
};

const struct device_type device_hpet = {
    .name = "hpet",
    .text = "high-precision event timer",
    .size = sizeof(struct hpet),
    .config = hpet_config,
    .state = &hpet_state,
    .init = hpet_init,
    .reset = hpet_reset,
    .quiesce = hpet_quiesce,
    .resume = hpet_resume,
    .fini = hpet_fini,
};
