/*
 * I/O APIC: Intel 82093AA datasheet (290566-001), with the EOI register of version 0x20 (Intel ICH9 datasheet §13.5.5).
 *
 * Lines carry "asserted" or "not": the polarity bit is kept but changes nothing. An edge that comes while the
 * entry is masked is lost, as on the chip. Not modelled: the arbitration ID, delivery status (messages never wait).
 */
#include "dev/ioapic.h"

#include "base/base.h"
#include "bus/intc_host.h"

enum ioapic_window { IOREGSEL = 0x00, IOWIN = 0x10, IOEOI = 0x40 };
enum ioapic_register { IOAPICID = 0, IOAPICVER = 1, IOAPICARB = 2, IOREDTBL = 0x10 };

/* §3.2.4 "I/O Redirection Table Registers" */
#define REDIRECTION_LOGICAL BIT(11)
#define REDIRECTION_STATUS BIT(12)
#define REDIRECTION_REMOTE_IRR BIT(14)
#define REDIRECTION_LEVEL BIT(15)
#define REDIRECTION_MASKED BIT(16)
#define REDIRECTION_READ_ONLY (REDIRECTION_STATUS | REDIRECTION_REMOTE_IRR)
#define REDIRECTION_WRITABLE (0xFF0000000001FFFFull & ~REDIRECTION_READ_ONLY)

enum { IOAPIC_VERSION = 0x20 | (IOAPIC_PINS - 1) << 16 };

_Static_assert((int)IOAPIC_PINS == (int)INTC_ROUTES, "each input has a route");

static const uint64_t ioapic_base_default = 0xFEC00000, ioapic_size = 0x1000;

/* --- helpers --- */

static struct apic_message message_of(uint64_t entry)
{
    return (struct apic_message){
        .destination = (uint32_t)bits(entry, 63, 56),
        .logical = entry & REDIRECTION_LOGICAL,
        .level = entry & REDIRECTION_LEVEL,
        .delivery = (uint8_t)bits(entry, 10, 8),
        .vector = (uint8_t)entry,
    };
}

static bool send(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->redirection[pin];
    struct apic_message message = message_of(entry);
    trace(ioapic->device.world.log, ioapic, "input %u entry 0x%llx", pin, (unsigned long long)entry);
    return ioapic->bus && apic_bus_send(ioapic->bus, &message);
}

/* The bus is told which EOIs will be waited for. A masked entry counts: its interrupt may be in service. */
static void announce(struct ioapic *ioapic, unsigned pin)
{
    struct apic_message message = message_of(ioapic->redirection[pin]);
    if (ioapic->bus)
        apic_bus_route(ioapic->bus, pin, message.level && message.delivery <= DELIVERY_LOWEST_PRIORITY ? &message : NULL);
}

/* A level-triggered entry sends while its input is asserted and no EOI is outstanding. */
static void service_level(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->redirection[pin];
    bool wants = ioapic->lines >> pin & 1 && entry & REDIRECTION_LEVEL && !(entry & (REDIRECTION_MASKED | REDIRECTION_REMOTE_IRR));
    /* Only fixed and lowest-priority messages are answered by an EOI. */
    if (wants && send(ioapic, pin) && bits(entry, 10, 8) <= DELIVERY_LOWEST_PRIORITY)
        ioapic->redirection[pin] |= REDIRECTION_REMOTE_IRR;
}

void ioapic_set_irq(void *sink, unsigned n, bool level)
{
    struct ioapic *ioapic = sink;
    if (n >= IOAPIC_PINS)
        return;
    bool rises = level && !(ioapic->lines >> n & 1);
    ioapic->lines = level ? ioapic->lines | 1u << n : ioapic->lines & ~(1u << n);
    if (!rises)
        return;
    if (ioapic->redirection[n] & REDIRECTION_LEVEL)
        service_level(ioapic, n);
    else if (!(ioapic->redirection[n] & REDIRECTION_MASKED))
        send(ioapic, n);
}

static void end_of_interrupt(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t *entry = &ioapic->redirection[pin];
        if ((uint8_t)*entry != vector || !(*entry & REDIRECTION_REMOTE_IRR))
            continue;
        *entry &= ~REDIRECTION_REMOTE_IRR;
        service_level(ioapic, pin);
    }
}

/* From a local APIC, on its vCPU's thread. */
static void eoi_broadcast(void *owner, uint8_t vector)
{
    struct ioapic *ioapic = owner;
    pthread_mutex_t *lock = ioapic->device.world.lock;
    if (lock)
        pthread_mutex_lock(lock);
    end_of_interrupt(ioapic, vector);
    if (lock)
        pthread_mutex_unlock(lock);
}

/* --- registers --- */

static void write_redirection(struct ioapic *ioapic, unsigned pin, bool high, uint32_t value)
{
    uint64_t old = ioapic->redirection[pin], written = high ? (uint64_t)value << 32 : value;
    uint64_t writable = REDIRECTION_WRITABLE & (high ? ~0ull << 32 : UINT32_MAX);
    uint64_t entry = (old & ~writable) | (written & writable);
    /* An entry that becomes edge-triggered forgets its outstanding EOI: how kernels clear a stuck remote IRR. */
    if (!(entry & REDIRECTION_LEVEL))
        entry &= ~REDIRECTION_REMOTE_IRR;
    ioapic->redirection[pin] = entry;
    announce(ioapic, pin);
    service_level(ioapic, pin);
}

static uint32_t read_register(const struct ioapic *ioapic)
{
    unsigned n = ioapic->select - IOREDTBL;
    switch (ioapic->select) {
    case IOAPICID: case IOAPICARB: return (uint32_t)ioapic->id << 24;
    case IOAPICVER: return IOAPIC_VERSION;
    default: break;
    }
    if (ioapic->select < IOREDTBL || n >= 2 * IOAPIC_PINS)
        return 0;
    return (uint32_t)(ioapic->redirection[n / 2] >> (n % 2 * 32));
}

static void write_register(struct ioapic *ioapic, uint32_t value)
{
    unsigned n = ioapic->select - IOREDTBL;
    if (ioapic->select == IOAPICID)
        ioapic->id = value >> 24 & 0x0F;
    else if (ioapic->select >= IOREDTBL && n < 2 * IOAPIC_PINS)
        write_redirection(ioapic, n / 2, n % 2, value);
    else if (ioapic->select != IOAPICVER && ioapic->select != IOAPICARB)
        guest_error(ioapic->device.world.log, "I/O APIC: write of 0x%x to register 0x%x", value, ioapic->select);
}

/* --- access --- */

static enum access_result ioapic_access(void *owner, struct access *access)
{
    struct ioapic *ioapic = owner;
    unsigned at = access->address & 0xFC, shift = (access->address & 3) * 8;
    if (!access->write) {
        uint32_t value = at == IOREGSEL ? ioapic->select : at == IOWIN ? read_register(ioapic) : 0;
        access->value = value >> shift & size_mask(access->size);
    } else if (shift) {
        guest_error(ioapic->device.world.log, "I/O APIC: unaligned write at 0x%x", (unsigned)access->address);
    } else if (at == IOREGSEL) {
        ioapic->select = (uint8_t)access->value;
    } else if (at == IOWIN) {
        write_register(ioapic, (uint32_t)access->value);
    } else if (at == IOEOI) {
        end_of_interrupt(ioapic, (uint8_t)access->value);
    }
    return ACCESS_OK;
}

/* --- reset, init --- */

static void ioapic_reset(struct device *device)
{
    struct ioapic *ioapic = (struct ioapic *)device;
    ioapic->select = ioapic->id = 0;
    ioapic->lines = 0;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        ioapic->redirection[pin] = REDIRECTION_MASKED;
        announce(ioapic, pin);
    }
}

static bool ioapic_init(struct device *device, struct error *err)
{
    struct ioapic *ioapic = (struct ioapic *)device;
    ioapic->region = (struct region){
        .name = "ioapic", .base = ioapic->base ? ioapic->base : ioapic_base_default, .size = ioapic_size, .access_max = 4,
        .access = ioapic_access, .owner = ioapic, .lock = device->world.lock,
    };
    bus_map(device->world.mmio, &ioapic->region);
    ioapic->eoi = (struct apic_eoi_listener){ .eoi = eoi_broadcast, .owner = ioapic };
    if (ioapic->bus)
        apic_bus_listen(ioapic->bus, &ioapic->eoi);
    return true;
}

static void ioapic_resume(struct device *device)
{
    struct ioapic *ioapic = (struct ioapic *)device;
    ioapic->lines &= BIT(IOAPIC_PINS) - 1;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        ioapic->redirection[pin] &= REDIRECTION_WRITABLE | REDIRECTION_REMOTE_IRR;
        announce(ioapic, pin);
    }
}

static void ioapic_fini(struct device *device)
{
    struct ioapic *ioapic = (struct ioapic *)device;
    bus_unmap(device->world.mmio, &ioapic->region);
    if (ioapic->bus)
        apic_bus_unlisten(ioapic->bus, &ioapic->eoi);
}

/* --- state list, type --- */

static const struct state_field ioapic_fields[] = {
    STATE_SCALAR(struct ioapic, select),
    STATE_SCALAR(struct ioapic, id),
    STATE_SCALAR(struct ioapic, lines),
    STATE_ARRAY(struct ioapic, redirection),
};
static const struct state_list ioapic_state = STATE_LIST("ioapic", 1, ioapic_fields);

static const struct config_field ioapic_config[] = {
    { "base", CONFIG_UINT, offsetof(struct ioapic, base), "guest-physical address" },
    { "bus", CONFIG_POINTER, offsetof(struct ioapic, bus), "the APIC bus" },
    { NULL },
};

const struct device_type device_ioapic = {
    .name = "ioapic",
    .text = "I/O APIC, 24 inputs",
    .size = sizeof(struct ioapic),
    .config = ioapic_config,
    .state = &ioapic_state,
    .init = ioapic_init,
    .reset = ioapic_reset,
    .resume = ioapic_resume,
    .fini = ioapic_fini,
};
