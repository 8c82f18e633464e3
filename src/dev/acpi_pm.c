/*
 * ACPI fixed hardware (ACPI 6.4 §4.8): PM1a event and control blocks, the power-management timer and GPE block 0, laid out
 * from port 0x600; and the fast-reset port 0x92 (Intel ICH9 datasheet §13.7.3). The machine is always in ACPI mode
 * (no SMI command port): SCI_EN reads 1.
 *
 * NOTE(spec): SMI_EN (ICH9 §13.8.3.6) reads as APMC_EN: there is no system management mode, and firmware that finds the bit set
 * takes it that somebody else has set that up.
 * Not modelled: sleep states but S5, the sleep button, global lock release, bus-master status.
 */
#include "dev/acpi_pm.h"

#include "base/base.h"

enum acpi_pm_port { PM1_STS = 0x00, PM1_EN = 0x02, PM1_CNT = 0x04, PM_TMR = 0x08, GPE0_STS = 0x20, GPE0_EN = 0x22, SMI_EN = 0x30, PM_SIZE = 0x40 };

/* ACPI §4.8.3.1, tables 4-13 and 4-14 */
enum {
    TMR_STS = 1 << 0,
    GBL_STS = 1 << 5,
    PWRBTN_STS = 1 << 8,
    RTC_STS = 1 << 10,
    WAK_STS = 1 << 15,
    PM1_STATUS_W1C = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS | WAK_STS,
    PM1_ENABLE_WRITABLE = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS,
};
/* ACPI §4.8.3.2.1, table 4-15 */
enum { SCI_EN = 1 << 0, SLP_EN = 1 << 13, PM1_CONTROL_WRITABLE = 0x1C06 };
enum { SMI_EN_APMC = 1 << 5 };
/* ICH9 §13.7.3 PORT92 */
enum { PORT92_INIT_NOW = 1 << 0, PORT92_A20 = 1 << 1 };

static const uint64_t pm_base_default = 0x600, port92_base = 0x92;

/* --- helpers --- */

static uint64_t timer_ticks(uint64_t ns) { return (uint64_t)((unsigned __int128)ns * ACPI_PM_TIMER_HZ / NS_PER_SECOND); }

/* ACPI §4.8.2.1: TMR_STS is set when the timer's most significant bit changes. */
static void look_at_carry(struct acpi_pm *pm, uint64_t now)
{
    if (timer_ticks(now) >> 31 != timer_ticks(pm->carry_ns) >> 31)
        pm->pm1_status |= TMR_STS;
    pm->carry_ns = now;
}

static void update(struct acpi_pm *pm)
{
    uint64_t now = clock_ns(pm->device.world.clock);
    look_at_carry(pm, now);
    irq_set(&pm->sci, (pm->pm1_status & pm->pm1_enable & PM1_ENABLE_WRITABLE) || (pm->gpe0_status & pm->gpe0_enable));
    if (!(pm->pm1_enable & TMR_STS)) {
        if (timer_armed(&pm->timer))
            timer_disarm(&pm->timer);
        return;
    }
    uint64_t next = ((timer_ticks(now) >> 31) + 1) << 31;
    timer_arm(&pm->timer, (uint64_t)((unsigned __int128)next * NS_PER_SECOND / ACPI_PM_TIMER_HZ) + 1);
}

static void carry_due(void *owner) { update(owner); }

void acpi_pm_power_button(struct acpi_pm *pm)
{
    pm->pm1_status |= PWRBTN_STS;
    update(pm);
}

void acpi_pm_gpe(struct acpi_pm *pm, unsigned n)
{
    pm->gpe0_status |= (uint16_t)(1u << (n & 15));
    update(pm);
}

void acpi_pm_gpe_line(void *sink, unsigned n, bool level)
{
    if (level)
        acpi_pm_gpe(sink, n);
}

void acpi_pm_reset_line(void *sink, unsigned n, bool level)
{
    struct acpi_pm *pm = sink;
    if (level)
        system_signal_send(&pm->signal, SYSTEM_REQUEST_RESET, 0);
}

static void write_control(struct acpi_pm *pm, uint16_t value)
{
    pm->pm1_control = value & PM1_CONTROL_WRITABLE;
    if (!(value & SLP_EN))
        return;
    unsigned type = value >> 10 & 7;
    if (type == ACPI_PM_SLP_TYP_S5 || type == ACPI_PM_SLP_TYP_OFF)
        system_signal_send(&pm->signal, SYSTEM_REQUEST_POWER_OFF, 0);
    else
        unimplemented(pm->device.world.log, "ACPI sleep type %u", type);
}

/* --- access: 16-bit registers, looked at byte by byte so that any size works --- */

static uint8_t read_byte(struct acpi_pm *pm, unsigned at)
{
    unsigned shift = (at & 1) * 8;
    switch (at & ~1u) {
    case PM1_STS: return (uint8_t)(pm->pm1_status >> shift);
    case PM1_EN: return (uint8_t)(pm->pm1_enable >> shift);
    case PM1_CNT: return (uint8_t)((pm->pm1_control | SCI_EN) >> shift);
    case GPE0_STS: return (uint8_t)(pm->gpe0_status >> shift);
    case GPE0_EN: return (uint8_t)(pm->gpe0_enable >> shift);
    case SMI_EN: return (uint8_t)(SMI_EN_APMC >> shift);
    default: return 0;
    }
}

static void write_bytes(struct acpi_pm *pm, unsigned at, uint16_t value, uint16_t mask)
{
    switch (at) {
    case PM1_STS: pm->pm1_status &= ~(value & mask & PM1_STATUS_W1C); break;
    case PM1_EN: pm->pm1_enable = ((pm->pm1_enable & ~mask) | (value & mask)) & PM1_ENABLE_WRITABLE; break;
    case PM1_CNT: write_control(pm, (pm->pm1_control & ~mask) | (value & mask)); break;
    case GPE0_STS: pm->gpe0_status &= ~(value & mask); break;
    case GPE0_EN: pm->gpe0_enable = (pm->gpe0_enable & ~mask) | (value & mask); break;
    default: break;
    }
}

static void read_access(struct acpi_pm *pm, struct access *access)
{
    if ((access->address & ~3u) == PM_TMR) {
        uint32_t now = (uint32_t)timer_ticks(clock_ns(pm->device.world.clock));
        access->value = now >> ((access->address & 3) * 8) & size_mask(access->size);
        return;
    }
    access->value = 0;
    for (unsigned i = 0; i < access->size; i++)
        access->value |= (uint64_t)read_byte(pm, (unsigned)access->address + i) << (i * 8);
}

static enum access_result acpi_pm_access(void *owner, struct access *access)
{
    struct acpi_pm *pm = owner;
    update(pm);
    if (!access->write) {
        read_access(pm, access);
        return ACCESS_OK;
    }
    /* Cut into the 16-bit registers that it touches. */
    unsigned at = (unsigned)access->address, end = at + access->size;
    for (unsigned reg = at & ~1u; reg < end; reg += 2) {
        unsigned from = reg < at ? 1 : 0, to = end - reg < 2 ? 1 : 2;
        uint16_t mask = (uint16_t)((to == 2 ? 0xFFFF : 0x00FF) & (from ? 0xFF00 : 0xFFFF));
        uint64_t value = reg < at ? access->value << 8 : access->value >> ((reg - at) * 8);
        write_bytes(pm, reg, (uint16_t)value, mask);
    }
    update(pm);
    return ACCESS_OK;
}

static enum access_result port92_access(void *owner, struct access *access)
{
    struct acpi_pm *pm = owner;
    if (!access->write) {
        access->value = pm->port92;
        return ACCESS_OK;
    }
    /* INIT_NOW acts when it goes from 0 to 1. Address line 20 is never masked; the bit is remembered. */
    bool reset = access->value & PORT92_INIT_NOW && !(pm->port92 & PORT92_INIT_NOW);
    pm->port92 = (uint8_t)access->value & (PORT92_INIT_NOW | PORT92_A20);
    if (reset)
        system_signal_send(&pm->signal, SYSTEM_REQUEST_RESET, 0);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void acpi_pm_reset(struct device *device)
{
    struct acpi_pm *pm = (struct acpi_pm *)device;
    pm->pm1_status = pm->pm1_enable = pm->pm1_control = pm->gpe0_status = pm->gpe0_enable = 0;
    pm->port92 = PORT92_A20;
    pm->carry_ns = clock_ns(device->world.clock);
    timer_disarm(&pm->timer);
    irq_set(&pm->sci, false);
}

static bool acpi_pm_init(struct device *device, struct error *err)
{
    struct acpi_pm *pm = (struct acpi_pm *)device;
    timer_init(&pm->timer, device->world.clock, carry_due, pm);
    pm->region = (struct region){ .name = "acpi-pm", .base = pm->base ? pm->base : pm_base_default, .size = PM_SIZE,
                                  .access_max = 4, .access = acpi_pm_access, .owner = pm, .lock = device->world.lock };
    pm->port92_region = (struct region){ .name = "port92", .base = port92_base, .size = 1, .access_max = 1,
                                         .access = port92_access, .owner = pm, .lock = device->world.lock };
    bus_map(device->world.ports, &pm->region);
    bus_map(device->world.ports, &pm->port92_region);
    return true;
}

static void acpi_pm_quiesce(struct device *device)
{
    struct acpi_pm *pm = (struct acpi_pm *)device;
    look_at_carry(pm, clock_ns(pm->device.world.clock));
    timer_disarm(&pm->timer);
}

static void acpi_pm_resume(struct device *device) { update((struct acpi_pm *)device); }

static void acpi_pm_fini(struct device *device)
{
    struct acpi_pm *pm = (struct acpi_pm *)device;
    bus_unmap(device->world.ports, &pm->region);
    bus_unmap(device->world.ports, &pm->port92_region);
    timer_disarm(&pm->timer);
}

/* --- state list, type --- */

static const struct state_field acpi_pm_fields[] = {
    STATE_SCALAR(struct acpi_pm, pm1_status),  STATE_SCALAR(struct acpi_pm, pm1_enable),
    STATE_SCALAR(struct acpi_pm, pm1_control), STATE_SCALAR(struct acpi_pm, gpe0_status),
    STATE_SCALAR(struct acpi_pm, gpe0_enable), STATE_SCALAR(struct acpi_pm, port92),
    STATE_SCALAR(struct acpi_pm, carry_ns),
};
static const struct state_list acpi_pm_state = STATE_LIST("acpi-pm", 1, acpi_pm_fields);

static const struct config_field acpi_pm_config[] = {
    { "base", CONFIG_UINT, offsetof(struct acpi_pm, base), "first port" },
    { NULL },
};

const struct device_type device_acpi_pm = {
    .name = "acpi-pm",
    .text = "ACPI power management and timer",
    .size = sizeof(struct acpi_pm),
    .config = acpi_pm_config,
    .state = &acpi_pm_state,
    .init = acpi_pm_init,
    .reset = acpi_pm_reset,
    .quiesce = acpi_pm_quiesce,
    .resume = acpi_pm_resume,
    .fini = acpi_pm_fini,
};
