/*
 * Watchdog timer of the 6300ESB (6300ESB §16): two stages, the first of which may interrupt,
 * the second of which resets the machine, or does what the user asked for. Linux' driver is i6300esb.
 *
 * Not modelled: the interrupt as SMI; the free-running mode, in which nothing happens when the time is over; that TIMEOUT outlives the reset.
 */
#include "dev/pci/watchdog.h"

/* --- registers --- */

enum { WATCHDOG_VENDOR = 0x8086, WATCHDOG_DEVICE = 0x25AB, WATCHDOG_CLASS = 0x088000, WATCHDOG_BAR = 0, WATCHDOG_BAR_SIZE = 16 };

/* 6300ESB §16, its configuration registers. */
enum { CONFIG_OUTPUT = 0x60, CONFIG_LOCK = 0x68 };
enum { OUTPUT_INTERRUPT_TYPE = 3 << 0, OUTPUT_INTERRUPT_IRQ = 0, OUTPUT_FAST_CLOCK = 1 << 2, OUTPUT_DISABLED = 1 << 5,
       OUTPUT_WRITABLE = OUTPUT_INTERRUPT_TYPE | OUTPUT_FAST_CLOCK | OUTPUT_DISABLED };
enum { LOCK_LOCKED = 1 << 0, LOCK_ENABLED = 1 << 1, LOCK_FREE_RUNNING = 1 << 2, LOCK_WRITABLE = 7 };

/* 6300ESB §16, its memory-mapped registers. */
enum watchdog_register { PRELOAD_1 = 0x0, PRELOAD_2 = 0x4, INTERRUPT_STATUS = 0x8, RELOAD = 0xC };
enum { PRELOAD_MASK = 0xFFFFF, INTERRUPT_ACTIVE = 1 << 0, RELOAD_RELOAD = 1 << 8, RELOAD_TIMEOUT = 1 << 9, UNLOCK_1 = 0x80, UNLOCK_2 = 0x86 };

/* The 33 MHz clock is divided by 2^15, or by 2^5. */
enum { CLOCK_HZ = 33000000, DIVIDER_SLOW = 15, DIVIDER_FAST = 5 };

/* --- helpers --- */

static void update_interrupt(struct watchdog *watchdog)
{
    bool irq = (watchdog->pci.config[CONFIG_OUTPUT] & OUTPUT_INTERRUPT_TYPE) == OUTPUT_INTERRUPT_IRQ;
    pci_intx(&watchdog->pci, irq && watchdog->interrupt);
}

static bool enabled(const struct watchdog *watchdog)
{
    uint8_t lock = watchdog->pci.config[CONFIG_LOCK];
    return lock & LOCK_ENABLED && !(lock & LOCK_FREE_RUNNING);
}

static void begin_stage(struct watchdog *watchdog, uint8_t stage)
{
    unsigned divider = watchdog->pci.config[CONFIG_OUTPUT] & OUTPUT_FAST_CLOCK ? DIVIDER_FAST : DIVIDER_SLOW;
    uint64_t ticks = (uint64_t)watchdog->preload[stage - 1] << divider;
    watchdog->stage = stage;
    watchdog->deadline_ns = clock_ns(watchdog->pci.device.world.clock) + max_u64(ticks, 1) * NS_PER_SECOND / CLOCK_HZ;
    timer_arm(&watchdog->timer, watchdog->deadline_ns);
}

static void stop(struct watchdog *watchdog)
{
    watchdog->stage = 0;
    watchdog->deadline_ns = 0;
    timer_disarm(&watchdog->timer);
}

/* It counts on from the beginning after the second stage. */
static void ran_out(void *owner)
{
    struct watchdog *watchdog = owner;
    if (watchdog->stage == 1) {
        watchdog->interrupt = true;
        update_interrupt(watchdog);
        begin_stage(watchdog, 2);
        return;
    }
    watchdog->timed_out = true;
    stop(watchdog);
    if (!(watchdog->pci.config[CONFIG_OUTPUT] & OUTPUT_DISABLED))
        system_signal_send(&watchdog->signal, SYSTEM_REQUEST_WATCHDOG, 0);
}

/* --- access --- */

static void write_register(struct watchdog *watchdog, enum watchdog_register offset, uint32_t value)
{
    bool unlocked = watchdog->unlock == 2;
    watchdog->unlock = offset != RELOAD ? 0 : value == UNLOCK_1 ? 1 : value == UNLOCK_2 && watchdog->unlock == 1 ? 2 : 0;
    if (offset == INTERRUPT_STATUS && value & INTERRUPT_ACTIVE) {
        watchdog->interrupt = false;
        update_interrupt(watchdog);
    }
    if (!unlocked)
        return;
    if (offset == PRELOAD_1 || offset == PRELOAD_2)
        watchdog->preload[offset == PRELOAD_2] = value & PRELOAD_MASK;
    if (offset == RELOAD && value & RELOAD_TIMEOUT)
        watchdog->timed_out = false;
    if (offset == RELOAD && value & RELOAD_RELOAD && enabled(watchdog))
        begin_stage(watchdog, 1);
}

static uint32_t read_register(const struct watchdog *watchdog, enum watchdog_register offset)
{
    switch (offset) {
    case PRELOAD_1: return watchdog->preload[0];
    case PRELOAD_2: return watchdog->preload[1];
    case INTERRUPT_STATUS: return watchdog->interrupt ? INTERRUPT_ACTIVE : 0;
    case RELOAD: return watchdog->timed_out ? RELOAD_TIMEOUT : 0;
    }
    return 0;
}

/* Drivers write words and double words. */
static enum access_result watchdog_access(void *owner, struct access *access)
{
    enum watchdog_register offset = (enum watchdog_register)(access->address & ~3u);
    if (access->write && !(access->address & 3))
        write_register(owner, offset, (uint32_t)access->value);
    else if (!access->write)
        access->value = (read_register(owner, offset) >> (8 * (access->address & 3))) & size_mask(access->size);
    return ACCESS_OK;
}

/* The lock bit makes its register read-only until a reset. */
static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
    struct watchdog *watchdog = (struct watchdog *)function;
    if (function->config[CONFIG_LOCK] & LOCK_LOCKED)
        function->write_mask[CONFIG_LOCK] = 0;
    if (enabled(watchdog) && !watchdog->stage)
        begin_stage(watchdog, 1);
    else if (!enabled(watchdog) && watchdog->stage)
        stop(watchdog);
    update_interrupt(watchdog);
}

/* --- reset, init --- */

static void watchdog_reset(struct device *device)
{
    struct watchdog *watchdog = (struct watchdog *)device;
    watchdog->pci.write_mask[CONFIG_LOCK] = LOCK_WRITABLE;
    pci_function_reset(&watchdog->pci);
    watchdog->preload[0] = watchdog->preload[1] = PRELOAD_MASK;
    watchdog->interrupt = watchdog->timed_out = false;
    watchdog->unlock = 0;
    stop(watchdog);
    update_interrupt(watchdog);
}

static bool watchdog_init(struct device *device, struct error *err)
{
    struct watchdog *watchdog = (struct watchdog *)device;
    static const struct pci_identity identity = { WATCHDOG_VENDOR, WATCHDOG_DEVICE, 0x8086, 0x25AB, WATCHDOG_CLASS, 2 };
    watchdog->pci.conventional = true;
    if (!pci_function_init(&watchdog->pci, &identity, err))
        return false;
    watchdog->pci.write_mask[CONFIG_OUTPUT] = OUTPUT_WRITABLE;
    watchdog->pci.write_mask[CONFIG_LOCK] = LOCK_WRITABLE;
    watchdog->pci.config_written = config_written;
    pci_bar_init(&watchdog->pci, WATCHDOG_BAR, "watchdog", WATCHDOG_BAR_SIZE, false, false, watchdog_access, watchdog);
    watchdog->pci.bar[WATCHDOG_BAR].region.access_max = 4;
    timer_init(&watchdog->timer, device->world.clock, ran_out, watchdog);
    return true;
}

static void watchdog_resume(struct device *device)
{
    struct watchdog *watchdog = (struct watchdog *)device;
    watchdog->pci.write_mask[CONFIG_LOCK] = watchdog->pci.config[CONFIG_LOCK] & LOCK_LOCKED ? 0 : LOCK_WRITABLE;
    if (watchdog->stage > 2)
        watchdog->stage = 0;
    pci_function_resume(&watchdog->pci);
    update_interrupt(watchdog);
    if (watchdog->stage)
        timer_arm(&watchdog->timer, watchdog->deadline_ns);
}

static void watchdog_fini(struct device *device)
{
    struct watchdog *watchdog = (struct watchdog *)device;
    timer_disarm(&watchdog->timer);
    pci_function_fini(&watchdog->pci);
}

/* --- state list, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct watchdog, pci, pci_function_state),
    STATE_ARRAY(struct watchdog, preload),    STATE_SCALAR(struct watchdog, interrupt),
    STATE_SCALAR(struct watchdog, timed_out), STATE_SCALAR(struct watchdog, unlock),
    STATE_SCALAR(struct watchdog, stage),     STATE_SCALAR(struct watchdog, deadline_ns),
};
static const struct state_list state = STATE_LIST("watchdog", 1, fields);

const struct device_type device_watchdog = {
    .name = "watchdog",
    .text = "watchdog timer (6300ESB)",
    .size = sizeof(struct watchdog),
    .state = &state,
    .init = watchdog_init,
    .reset = watchdog_reset,
    .resume = watchdog_resume,
    .fini = watchdog_fini,
};
