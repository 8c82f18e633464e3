/*
 * 8254 Programmable Interval Timer (Intel 231164-005, September 1993) at ports 0x40 to 0x43, with channel 2's gate and
 * output and the refresh toggle in port B, 0x61 (Intel ICH9 datasheet §13.7.1 NMI_SC).
 *
 * Nothing counts: the count is computed from the clock when somebody looks, and a timer stands for channel 0's next
 * rising edge. NOTE(spec): a count that is written while modes 2 or 3 run takes effect at once, not at the end of the
 * present period. Not modelled: the speaker, parity and channel checks (NMI sources).
 */
#include "dev/pit.h"

#include <string.h>

#include "base/base.h"

enum pit_port { PIT_COUNTER0, PIT_COUNTER1, PIT_COUNTER2, PIT_CONTROL };

/* "Control Word Format", figure 7 */
enum { CONTROL_BCD = 1 << 0, CONTROL_KEPT = 0x3F };
enum pit_rw { RW_LATCH, RW_LOW, RW_HIGH, RW_BOTH };
enum pit_mode { MODE_TERMINAL_COUNT, MODE_ONE_SHOT, MODE_RATE, MODE_SQUARE, MODE_SOFT_STROBE, MODE_HARD_STROBE };
/* "Read-Back Command", figure 11; the status byte, figure 12 */
enum { READ_BACK = 3, READ_BACK_NO_COUNT = 1 << 5, READ_BACK_NO_STATUS = 1 << 4 };
enum { STATUS_OUTPUT = 1 << 7, STATUS_NULL_COUNT = 1 << 6 };

/* ICH9 §13.7.1 NMI_SC */
enum {
    PORT_B_TIMER2_GATE = 1 << 0,
    PORT_B_SPEAKER = 1 << 1,
    PORT_B_WRITABLE = 0x0F,
    PORT_B_REFRESH = 1 << 4,
    PORT_B_TIMER2_OUT = 1 << 5,
};

enum { REFRESH_NS = 15085 };    /* channel 1's usual period: 18 ticks */
/* The host's timer is set no nearer than this, whatever the guest programs; edges in between coalesce. */
enum { EDGE_MIN_NS = 20000 };

static const uint64_t pit_base = 0x40, port_b_base = 0x61;

/* --- helpers: one channel at one time --- */

static enum pit_mode mode(const struct pit_channel *c)
{
    unsigned m = c->control >> 1 & 7;
    return m > 5 ? m - 4 : m;       /* 6 and 7 are 2 and 3 */
}

static enum pit_rw rw(const struct pit_channel *c) { return c->control >> 4 & 3; }

static uint32_t from_bcd(uint16_t v) { return (v >> 12) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15); }

static uint16_t to_bcd(uint32_t v)
{
    v %= 10000;
    return (uint16_t)(v / 1000 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

static uint32_t modulus(const struct pit_channel *c) { return c->control & CONTROL_BCD ? 10000 : 65536; }

static uint32_t initial(const struct pit_channel *c)
{
    uint32_t n = c->control & CONTROL_BCD ? from_bcd(c->reload) : c->reload;
    return n ? n : modulus(c);
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_SECOND + PIT_HZ - 1) / PIT_HZ);
}

static uint64_t ticks(const struct pit_channel *c, uint64_t now)
{
    if (!c->running)
        return c->held_ticks;
    return now <= c->start_ns ? 0 : (uint64_t)((unsigned __int128)(now - c->start_ns) * PIT_HZ / NS_PER_SECOND);
}

static bool counts(const struct pit_channel *c)
{
    return c->loaded && ((mode(c) != MODE_ONE_SHOT && mode(c) != MODE_HARD_STROBE) || c->triggered);
}

static bool output(const struct pit_channel *c, uint64_t now)
{
    uint64_t t = ticks(c, now), n = initial(c);
    bool active = counts(c);
    switch (mode(c)) {
    case MODE_TERMINAL_COUNT: return active && t >= n;
    case MODE_ONE_SHOT: return !active || t >= n;
    case MODE_RATE: return !active || !c->gate || t % n != n - 1;
    case MODE_SQUARE: return !active || !c->gate || t % n < (n + 1) / 2;
    default: return !active || t != n;
    }
}

static uint16_t count(const struct pit_channel *c, uint64_t now)
{
    uint64_t t = ticks(c, now), n = initial(c), left;
    switch (mode(c)) {
    case MODE_RATE: left = n - t % n; break;
    case MODE_SQUARE: left = n - 2 * (t % n) % n; break;
    default: left = (n + modulus(c) - t % modulus(c)) % modulus(c); break;
    }
    return c->control & CONTROL_BCD ? to_bcd((uint32_t)left) : (uint16_t)left;
}

static void start(struct pit_channel *c, uint64_t now, uint64_t already)
{
    uint64_t passed = ticks_to_ns(already);
    c->start_ns = now > passed ? now - passed : 0;
    c->running = true;
}

static void hold(struct pit_channel *c, uint64_t now)
{
    c->held_ticks = ticks(c, now);
    c->running = false;
}

static void set_gate(struct pit_channel *c, bool gate, uint64_t now)
{
    bool rises = gate && !c->gate, falls = !gate && c->gate;
    c->gate = gate;
    switch (mode(c)) {
    case MODE_TERMINAL_COUNT: case MODE_SOFT_STROBE:
        if (rises && c->loaded && !c->running)
            start(c, now, c->held_ticks);
        else if (falls && c->running)
            hold(c, now);
        break;
    case MODE_RATE: case MODE_SQUARE:
        if (rises && c->loaded)
            start(c, now, 0);
        else if (falls && c->running)
            hold(c, now);
        break;
    case MODE_ONE_SHOT: case MODE_HARD_STROBE:
        if (rises && c->loaded) {
            c->triggered = true;
            start(c, now, 0);
        }
        break;
    }
}

/* --- channel 0's interrupt --- */

/* Ticks from the load to the next rising edge after t, or 0 if there is none. */
static uint64_t next_rise(const struct pit_channel *c, uint64_t t)
{
    uint64_t n = initial(c);
    switch (mode(c)) {
    case MODE_TERMINAL_COUNT: case MODE_ONE_SHOT: return t < n ? n : 0;
    case MODE_RATE: case MODE_SQUARE: return (t / n + 1) * n;
    default: return t <= n ? n + 1 : 0;
    }
}

static void set_irq(struct pit *pit, bool level)
{
    if (pit->irq_level == level)
        return;
    pit->irq_level = level;
    irq_set(&pit->irq, level);
}

static void arm(struct pit *pit, uint64_t now, uint64_t not_before)
{
    struct pit_channel *c = &pit->channel[0];
    uint64_t rise = c->running && counts(c) ? next_rise(c, ticks(c, now)) : 0;
    pit->next_ns = rise ? max_u64(c->start_ns + ticks_to_ns(rise), not_before) : CLOCK_NEVER;
    timer_arm(&pit->timer, pit->next_ns);
}

/* After any change of channel 0. */
static void update(struct pit *pit)
{
    uint64_t now = clock_ns(pit->device.world.clock);
    set_irq(pit, output(&pit->channel[0], now));
    arm(pit, now, 0);
}

/* A rising edge is due. The low part of a pulse may be shorter than we can see: it is made here. */
static void timer_fired(void *owner)
{
    struct pit *pit = owner;
    uint64_t now = clock_ns(pit->device.world.clock);
    trace(pit->device.world.log, timer, "8254 channel 0");
    set_irq(pit, false);
    set_irq(pit, true);
    set_irq(pit, output(&pit->channel[0], now));
    arm(pit, now, now + EDGE_MIN_NS);
}

/* --- registers --- */

static void load(struct pit *pit, unsigned n, uint16_t value)
{
    struct pit_channel *c = &pit->channel[n];
    uint64_t now = clock_ns(pit->device.world.clock);
    c->reload = value;
    c->loaded = true;
    if (mode(c) == MODE_ONE_SHOT || mode(c) == MODE_HARD_STROBE)
        return;                         /* waits for the gate */
    c->held_ticks = 0;
    c->running = false;
    if (c->gate)
        start(c, now, 0);
}

static void write_counter(struct pit *pit, unsigned n, uint8_t value)
{
    struct pit_channel *c = &pit->channel[n];
    switch (rw(c)) {
    case RW_LOW: load(pit, n, value); break;
    case RW_HIGH: load(pit, n, (uint16_t)(value << 8)); break;
    default:
        if (c->write_high) {
            load(pit, n, (uint16_t)(c->write_low | value << 8));
        } else {
            c->write_low = value;
            /* "Mode 0": the first byte stops the count; output goes low at once. */
            if (mode(c) == MODE_TERMINAL_COUNT) {
                c->loaded = c->running = false;
                c->held_ticks = 0;
            }
        }
        c->write_high = !c->write_high;
        break;
    }
}

static uint8_t read_counter(struct pit *pit, unsigned n)
{
    struct pit_channel *c = &pit->channel[n];
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    uint16_t value = c->latched ? c->latch : count(c, clock_ns(pit->device.world.clock));
    bool high = rw(c) == RW_HIGH || (rw(c) == RW_BOTH && c->read_high);
    if (rw(c) == RW_BOTH)
        c->read_high = !c->read_high;
    if (rw(c) != RW_BOTH || !c->read_high)
        c->latched = false;
    return (uint8_t)(high ? value >> 8 : value);
}

static void latch_count(struct pit_channel *c, uint64_t now)
{
    if (c->latched)
        return;         /* the first latch stays until it is read */
    c->latch = count(c, now);
    c->latched = true;
}

static void latch_status(struct pit_channel *c, uint64_t now)
{
    if (c->status_latched)
        return;
    c->status = (c->control & CONTROL_KEPT) | (output(c, now) ? STATUS_OUTPUT : 0) | (c->loaded ? 0 : STATUS_NULL_COUNT);
    c->status_latched = true;
}

static void write_control(struct pit *pit, uint8_t value)
{
    uint64_t now = clock_ns(pit->device.world.clock);
    unsigned n = value >> 6;
    if (n == READ_BACK) {
        for (unsigned i = 0; i < PIT_CHANNELS; i++) {
            if (!(value >> (i + 1) & 1))
                continue;
            if (!(value & READ_BACK_NO_COUNT))
                latch_count(&pit->channel[i], now);
            if (!(value & READ_BACK_NO_STATUS))
                latch_status(&pit->channel[i], now);
        }
        return;
    }
    struct pit_channel *c = &pit->channel[n];
    if ((value >> 4 & 3) == RW_LATCH) {
        latch_count(c, now);
        return;
    }
    *c = (struct pit_channel){ .control = value & CONTROL_KEPT, .gate = c->gate, .reload = c->reload };
}

/* --- access --- */

static enum access_result pit_access(void *owner, struct access *access)
{
    struct pit *pit = owner;
    unsigned port = access->address & 3;
    if (!access->write) {
        access->value = port == PIT_CONTROL ? 0xFF : read_counter(pit, port);
        return ACCESS_OK;
    }
    if (port == PIT_CONTROL)
        write_control(pit, (uint8_t)access->value);
    else
        write_counter(pit, port, (uint8_t)access->value);
    update(pit);
    return ACCESS_OK;
}

static enum access_result port_b_access(void *owner, struct access *access)
{
    struct pit *pit = owner;
    uint64_t now = clock_ns(pit->device.world.clock);
    if (access->write) {
        pit->port_b = (uint8_t)access->value & PORT_B_WRITABLE;
        set_gate(&pit->channel[2], pit->port_b & PORT_B_TIMER2_GATE, now);
        return ACCESS_OK;
    }
    access->value = pit->port_b | (now / REFRESH_NS & 1 ? PORT_B_REFRESH : 0) |
                    (output(&pit->channel[2], now) ? PORT_B_TIMER2_OUT : 0);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void pit_reset(struct device *device)
{
    struct pit *pit = (struct pit *)device;
    memset(pit->channel, 0, sizeof(pit->channel));
    /* Undefined on the chip until programmed; firmware leaves all three as mode 3 without a running count of ours. */
    for (unsigned n = 0; n < PIT_CHANNELS; n++)
        pit->channel[n] = (struct pit_channel){ .control = RW_BOTH << 4 | MODE_SQUARE << 1, .gate = n != 2 };
    pit->port_b = 0;
    pit->irq_level = false;
    irq_set(&pit->irq, false);
    pit->next_ns = CLOCK_NEVER;
    timer_disarm(&pit->timer);
}

static bool pit_init(struct device *device, struct error *err)
{
    struct pit *pit = (struct pit *)device;
    timer_init(&pit->timer, device->world.clock, timer_fired, pit);
    pit->region = (struct region){ .name = "pit", .base = pit_base, .size = 4, .access_max = 1, .access = pit_access,
                                   .owner = pit, .lock = device->world.lock };
    pit->port_b_region = (struct region){ .name = "port-b", .base = port_b_base, .size = 1, .access_max = 1,
                                          .access = port_b_access, .owner = pit, .lock = device->world.lock };
    bus_map(device->world.ports, &pit->region);
    bus_map(device->world.ports, &pit->port_b_region);
    return true;
}

static void pit_quiesce(struct device *device) { timer_disarm(&((struct pit *)device)->timer); }

static void pit_resume(struct device *device)
{
    struct pit *pit = (struct pit *)device;
    pit->port_b &= PORT_B_WRITABLE;
    for (unsigned n = 0; n < PIT_CHANNELS; n++)
        pit->channel[n].control &= CONTROL_KEPT;
    irq_set(&pit->irq, pit->irq_level);
    timer_arm(&pit->timer, pit->next_ns);
}

static void pit_fini(struct device *device)
{
    struct pit *pit = (struct pit *)device;
    bus_unmap(device->world.ports, &pit->region);
    bus_unmap(device->world.ports, &pit->port_b_region);
    timer_disarm(&pit->timer);
}

/* --- state list, type --- */

static const struct state_field channel_fields[] = {
    STATE_SCALAR(struct pit_channel, reload),
    STATE_SCALAR(struct pit_channel, control),
    STATE_SCALAR(struct pit_channel, gate),
    STATE_SCALAR(struct pit_channel, loaded),
    STATE_SCALAR(struct pit_channel, write_high),
    STATE_SCALAR(struct pit_channel, read_high),
    STATE_SCALAR(struct pit_channel, write_low),
    STATE_SCALAR(struct pit_channel, latched),
    STATE_SCALAR(struct pit_channel, status_latched),
    STATE_SCALAR(struct pit_channel, latch),
    STATE_SCALAR(struct pit_channel, status),
    STATE_SCALAR(struct pit_channel, triggered),
    STATE_SCALAR(struct pit_channel, start_ns),
    STATE_SCALAR(struct pit_channel, held_ticks),
    STATE_SCALAR(struct pit_channel, running),
};
static const struct state_list channel_state = STATE_LIST("pit-channel", 1, channel_fields);

static const struct state_field pit_fields[] = {
    STATE_NESTED_ARRAY(struct pit, channel, channel_state),
    STATE_SCALAR(struct pit, port_b),
    STATE_SCALAR(struct pit, irq_level),
    STATE_SCALAR(struct pit, next_ns),
};
static const struct state_list pit_state = STATE_LIST("pit", 1, pit_fields);

const struct device_type device_pit = {
    .name = "pit",
    .text = "8254 interval timer and port B",
    .size = sizeof(struct pit),
    .state = &pit_state,
    .init = pit_init,
    .reset = pit_reset,
    .quiesce = pit_quiesce,
    .resume = pit_resume,
    .fini = pit_fini,
};
