/*
 * Real-time clock and 128 bytes of CMOS memory (Motorola MC146818A, 1984; as in Intel ICH9 datasheet §13.6) at ports 0x70
 * and 0x71, with the century in byte 0x32 (the FADT says so).
 *
 * The time is the machine's wall clock plus an offset that the guest changes by setting its clock. Flags are worked out
 * when somebody looks; a timer runs only while one of them may interrupt. The battery keeps all of it over a reset.
 * Not modelled: divider-chain reset, square wave, daylight saving, NMI masking by bit 7 of the index.
 */
#include "dev/rtc.h"

#include <string.h>
#include <time.h>

#include "base/base.h"

enum rtc_register {
    RTC_SECONDS = 0,
    RTC_SECONDS_ALARM = 1,
    RTC_MINUTES = 2,
    RTC_MINUTES_ALARM = 3,
    RTC_HOURS = 4,
    RTC_HOURS_ALARM = 5,
    RTC_DAY_OF_WEEK = 6,
    RTC_DAY_OF_MONTH = 7,
    RTC_MONTH = 8,
    RTC_YEAR = 9,
    RTC_REG_A = 10,
    RTC_REG_B = 11,
    RTC_REG_C = 12,
    RTC_REG_D = 13,
    RTC_CENTURY = 0x32,
};

enum { REG_A_UIP = 1 << 7, REG_A_RS = 0x0F, REG_A_WRITABLE = 0x7F, REG_A_DEFAULT = 0x26 };
enum { REG_B_SET = 1 << 7, REG_B_PIE = 1 << 6, REG_B_AIE = 1 << 5, REG_B_UIE = 1 << 4, REG_B_SQWE = 1 << 3, REG_B_DM = 1 << 2,
       REG_B_24H = 1 << 1 };
enum { REG_C_IRQF = 1 << 7, REG_C_PF = 1 << 6, REG_C_AF = 1 << 5, REG_C_UF = 1 << 4, REG_C_FLAGS = REG_C_PF | REG_C_AF | REG_C_UF };
enum { REG_D_VRT = 1 << 7, HOURS_PM = 1 << 7, ALARM_ANY = 0xC0 };

enum { UPDATE_CYCLE_NS = 244000, OSCILLATOR_HZ = 32768, SECONDS_PER_DAY = 86400 };

static const uint64_t rtc_port = 0x70;

/* --- helpers: time --- */

static uint64_t rtc_ns(const struct rtc *rtc) { return clock_wall_ns(rtc->device.world.clock) + rtc->offset_ns; }
static int64_t rtc_second(const struct rtc *rtc) { return (int64_t)rtc_ns(rtc) / (int64_t)NS_PER_SECOND; }

static uint8_t encode(const struct rtc *rtc, unsigned value)
{
    return (uint8_t)(rtc->cmos[RTC_REG_B] & REG_B_DM ? value : (value / 10 % 10) << 4 | value % 10);
}

static unsigned decode(const struct rtc *rtc, uint8_t value)
{
    return rtc->cmos[RTC_REG_B] & REG_B_DM ? value : (value >> 4) * 10u + (value & 15);
}

static uint8_t encode_hours(const struct rtc *rtc, unsigned hours)
{
    if (rtc->cmos[RTC_REG_B] & REG_B_24H)
        return encode(rtc, hours);
    return encode(rtc, hours % 12 ? hours % 12 : 12) | (hours >= 12 ? HOURS_PM : 0);
}

static unsigned decode_hours(const struct rtc *rtc, uint8_t value)
{
    if (rtc->cmos[RTC_REG_B] & REG_B_24H)
        return decode(rtc, value);
    return decode(rtc, value & ~HOURS_PM) % 12 + (value & HOURS_PM ? 12 : 0);
}

/* The present time into the registers. */
static void show_time(struct rtc *rtc)
{
    time_t seconds = rtc_second(rtc);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm))
        return;
    rtc->cmos[RTC_SECONDS] = encode(rtc, (unsigned)tm.tm_sec);
    rtc->cmos[RTC_MINUTES] = encode(rtc, (unsigned)tm.tm_min);
    rtc->cmos[RTC_HOURS] = encode_hours(rtc, (unsigned)tm.tm_hour);
    rtc->cmos[RTC_DAY_OF_WEEK] = encode(rtc, (unsigned)tm.tm_wday + 1);
    rtc->cmos[RTC_DAY_OF_MONTH] = encode(rtc, (unsigned)tm.tm_mday);
    rtc->cmos[RTC_MONTH] = encode(rtc, (unsigned)tm.tm_mon + 1);
    rtc->cmos[RTC_YEAR] = encode(rtc, (unsigned)(tm.tm_year + 1900) % 100);
    rtc->cmos[RTC_CENTURY] = encode(rtc, (unsigned)(tm.tm_year + 1900) / 100);
}

/* The registers become the present time; the fraction of the second goes on. */
static void take_time(struct rtc *rtc)
{
    struct tm tm = {
        .tm_sec = (int)decode(rtc, rtc->cmos[RTC_SECONDS]),
        .tm_min = (int)decode(rtc, rtc->cmos[RTC_MINUTES]),
        .tm_hour = (int)decode_hours(rtc, rtc->cmos[RTC_HOURS]),
        .tm_mday = (int)decode(rtc, rtc->cmos[RTC_DAY_OF_MONTH]),
        .tm_mon = (int)decode(rtc, rtc->cmos[RTC_MONTH]) - 1,
        .tm_year = (int)(decode(rtc, rtc->cmos[RTC_CENTURY]) * 100 + decode(rtc, rtc->cmos[RTC_YEAR])) - 1900,
    };
    uint64_t second = (uint64_t)timegm(&tm);
    rtc->offset_ns += (second - (uint64_t)rtc_second(rtc)) * NS_PER_SECOND;
    rtc->seen_second = (uint64_t)rtc_second(rtc);
}

/* --- helpers: flags --- */

static bool alarm_field_matches(uint8_t alarm, unsigned wanted, unsigned now)
{
    return (alarm & ALARM_ANY) == ALARM_ANY || wanted == now;
}

static bool alarm_matches(const struct rtc *rtc, uint64_t second)
{
    unsigned of_day = (unsigned)(second % SECONDS_PER_DAY);
    const uint8_t *cmos = rtc->cmos;
    return alarm_field_matches(cmos[RTC_SECONDS_ALARM], decode(rtc, cmos[RTC_SECONDS_ALARM]), of_day % 60) &&
           alarm_field_matches(cmos[RTC_MINUTES_ALARM], decode(rtc, cmos[RTC_MINUTES_ALARM]), of_day / 60 % 60) &&
           alarm_field_matches(cmos[RTC_HOURS_ALARM], decode_hours(rtc, cmos[RTC_HOURS_ALARM]), of_day / 3600);
}

/* "Periodic interrupt rate", table 5: 0 when off, else the shift of the 32.768 kHz oscillator. */
static unsigned periodic_shift(const struct rtc *rtc)
{
    unsigned rs = rtc->cmos[RTC_REG_A] & REG_A_RS;
    return rs == 0 ? 0 : rs <= 2 ? rs + 6 : rs - 1;
}

static uint64_t oscillations(uint64_t ns) { return (uint64_t)((unsigned __int128)ns * OSCILLATOR_HZ / NS_PER_SECOND); }

static void work_out_flags(struct rtc *rtc)
{
    uint64_t now = clock_ns(rtc->device.world.clock), second = (uint64_t)rtc_second(rtc);
    unsigned shift = periodic_shift(rtc);
    if (shift && oscillations(now) >> shift != oscillations(rtc->seen_ns) >> shift)
        rtc->cmos[RTC_REG_C] |= REG_C_PF;
    rtc->seen_ns = now;
    if (!(rtc->cmos[RTC_REG_B] & REG_B_SET) && second != rtc->seen_second) {
        rtc->cmos[RTC_REG_C] |= REG_C_UF;
        /* After a day every time of day has passed once. */
        uint64_t passed = min_u64(second - rtc->seen_second, SECONDS_PER_DAY);
        for (uint64_t ago = 0; ago < passed; ago++)
            if (alarm_matches(rtc, second - ago)) {
                rtc->cmos[RTC_REG_C] |= REG_C_AF;
                break;
            }
    }
    rtc->seen_second = second;
}

/* Register B's enables have the places of register C's flags. */
static bool interrupt_wanted(const struct rtc *rtc)
{
    return rtc->cmos[RTC_REG_C] & rtc->cmos[RTC_REG_B] & REG_C_FLAGS;
}

/* For the first event behind those that are in the flags: it may have come by now. */
static void arm(struct rtc *rtc)
{
    uint64_t now = clock_ns(rtc->device.world.clock), next = CLOCK_NEVER;
    uint8_t b = rtc->cmos[RTC_REG_B];
    unsigned shift = periodic_shift(rtc);
    if (b & REG_B_PIE && shift) {
        uint64_t ticks = ((oscillations(rtc->seen_ns) >> shift) + 1) << shift;
        next = (uint64_t)((unsigned __int128)ticks * NS_PER_SECOND / OSCILLATOR_HZ) + 1;
    }
    if (b & (REG_B_UIE | REG_B_AIE) && !(b & REG_B_SET)) {
        uint64_t left = NS_PER_SECOND - rtc_ns(rtc) % NS_PER_SECOND;
        next = min_u64(next, (uint64_t)rtc_second(rtc) == rtc->seen_second ? now + left : now);
    }
    if (next != CLOCK_NEVER || timer_armed(&rtc->timer))
        timer_arm(&rtc->timer, next);
}

/*
 * Between the flags of register C and the line no time passes: a tick that came just behind a read of C would hold the line up, and an
 * input that looks for edges would never see another one.
 */
static void tell(struct rtc *rtc)
{
    irq_set(&rtc->irq, interrupt_wanted(rtc));
    arm(rtc);
}

static void update(struct rtc *rtc)
{
    work_out_flags(rtc);
    tell(rtc);
}

static void timer_fired(void *owner) { update(owner); }

/* --- registers --- */

static bool is_time(unsigned reg)
{
    return (reg < RTC_REG_A && reg != RTC_SECONDS_ALARM && reg != RTC_MINUTES_ALARM && reg != RTC_HOURS_ALARM) || reg == RTC_CENTURY;
}

static bool updating(const struct rtc *rtc)
{
    return !(rtc->cmos[RTC_REG_B] & REG_B_SET) && rtc_ns(rtc) % NS_PER_SECOND >= NS_PER_SECOND - UPDATE_CYCLE_NS;
}

static uint8_t read_register(struct rtc *rtc, unsigned reg)
{
    uint8_t value;
    if (is_time(reg) && !(rtc->cmos[RTC_REG_B] & REG_B_SET))
        show_time(rtc);
    switch (reg) {
    case RTC_REG_A: return rtc->cmos[RTC_REG_A] | (updating(rtc) ? REG_A_UIP : 0);
    case RTC_REG_C:
        value = rtc->cmos[RTC_REG_C] | (interrupt_wanted(rtc) ? REG_C_IRQF : 0);
        rtc->cmos[RTC_REG_C] = 0;
        return value;
    case RTC_REG_D: return REG_D_VRT;
    default: return rtc->cmos[reg];
    }
}

static void write_reg_b(struct rtc *rtc, uint8_t value)
{
    uint8_t old = rtc->cmos[RTC_REG_B];
    if (value & REG_B_SET && !(old & REG_B_SET))
        show_time(rtc);
    if (value & REG_B_SET)
        value &= ~REG_B_UIE;    /* SET clears UIE */
    rtc->cmos[RTC_REG_B] = value;
    if (!(value & REG_B_SET) && old & REG_B_SET)
        take_time(rtc);
}

static void write_register(struct rtc *rtc, unsigned reg, uint8_t value)
{
    switch (reg) {
    case RTC_REG_A: rtc->cmos[RTC_REG_A] = value & REG_A_WRITABLE; return;
    case RTC_REG_B: write_reg_b(rtc, value); return;
    case RTC_REG_C: case RTC_REG_D: return;     /* read-only */
    default: break;
    }
    bool runs = !(rtc->cmos[RTC_REG_B] & REG_B_SET);
    if (is_time(reg) && runs)
        show_time(rtc);
    rtc->cmos[reg] = value;
    if (is_time(reg) && runs)
        take_time(rtc);
}

void rtc_store(struct rtc *rtc, unsigned index, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size && index + i < RTC_CMOS_SIZE; i++)
        rtc->cmos[index + i] = (uint8_t)(value >> (8 * i));
}

/* --- access --- */

static enum access_result rtc_access(void *owner, struct access *access)
{
    struct rtc *rtc = owner;
    if (access->address == 0) {
        if (access->write)
            rtc->index = (uint8_t)access->value % RTC_CMOS_SIZE;
        else
            access->value = 0xFF;       /* the index cannot be read back */
        return ACCESS_OK;
    }
    work_out_flags(rtc);
    if (access->write)
        write_register(rtc, rtc->index, (uint8_t)access->value);
    else
        access->value = read_register(rtc, rtc->index);
    tell(rtc);
    return ACCESS_OK;
}

/* --- reset, init --- */

/* "RESET": interrupts are disabled and their flags cleared; time and memory are kept. */
static void rtc_reset(struct device *device)
{
    struct rtc *rtc = (struct rtc *)device;
    rtc->index = 0;
    rtc->cmos[RTC_REG_B] &= ~(REG_B_PIE | REG_B_AIE | REG_B_UIE | REG_B_SQWE);
    rtc->cmos[RTC_REG_C] = 0;
    rtc->seen_ns = clock_ns(device->world.clock);
    rtc->seen_second = (uint64_t)rtc_second(rtc);
    timer_disarm(&rtc->timer);
    irq_set(&rtc->irq, false);
}

static bool rtc_init(struct device *device, struct error *err)
{
    struct rtc *rtc = (struct rtc *)device;
    rtc->cmos[RTC_REG_A] = REG_A_DEFAULT;
    rtc->cmos[RTC_REG_B] = REG_B_24H;
    timer_init(&rtc->timer, device->world.clock, timer_fired, rtc);
    rtc->region = (struct region){ .name = "rtc", .base = rtc_port, .size = 2, .access_max = 1, .access = rtc_access,
                                   .owner = rtc, .lock = device->world.lock };
    bus_map(device->world.ports, &rtc->region);
    return true;
}

static void rtc_quiesce(struct device *device) { timer_disarm(&((struct rtc *)device)->timer); }

static void rtc_resume(struct device *device)
{
    struct rtc *rtc = (struct rtc *)device;
    rtc->index %= RTC_CMOS_SIZE;
    rtc->cmos[RTC_REG_A] &= REG_A_WRITABLE;
    update(rtc);
}

static void rtc_fini(struct device *device)
{
    struct rtc *rtc = (struct rtc *)device;
    bus_unmap(device->world.ports, &rtc->region);
    timer_disarm(&rtc->timer);
}

/* --- state list, type --- */

static const struct state_field rtc_fields[] = {
    STATE_SCALAR(struct rtc, index),
    STATE_ARRAY(struct rtc, cmos),
    STATE_SCALAR(struct rtc, offset_ns),
    STATE_SCALAR(struct rtc, seen_second),
    STATE_SCALAR(struct rtc, seen_ns),
};
static const struct state_list rtc_state = STATE_LIST("rtc", 1, rtc_fields);

const struct device_type device_rtc = {
    .name = "rtc",
    .text = "MC146818 real-time clock and CMOS memory",
    .size = sizeof(struct rtc),
    .state = &rtc_state,
    .init = rtc_init,
    .reset = rtc_reset,
    .quiesce = rtc_quiesce,
    .resume = rtc_resume,
    .fini = rtc_fini,
};
