#include "dev/apic_bus.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/base.h"
#include "dev/lapic.h"
#include "bus/intc_host.h"

enum { APIC_BUS_LAPICS_MAX = 1024 };

struct apic_bus {
    struct log *log;
    struct counters *counters;
    unsigned count;
    struct lapic *lapic[APIC_BUS_LAPICS_MAX];
    struct apic_eoi_listener *listeners;
    pthread_rwlock_t lock;          /* guards what follows; a sender reads */
    const struct intc_host *host;   /* where the local APICs are; NULL: here */
    struct intc_route route[INTC_ROUTES];
    _Atomic unsigned turn;      /* where the search for the lowest priority starts: spreads equals */
};

struct apic_bus *apic_bus_create(struct log *log, struct counters *counters)
{
    struct apic_bus *bus = calloc(1, sizeof(*bus));
    if (bus) {
        bus->log = log;
        bus->counters = counters;
        pthread_rwlock_init(&bus->lock, NULL);
    }
    return bus;
}

void apic_bus_destroy(struct apic_bus *bus)
{
    if (bus)
        pthread_rwlock_destroy(&bus->lock);
    free(bus);
}

void apic_bus_attach(struct apic_bus *bus, struct lapic *lapic)
{
    assert(bus->count < APIC_BUS_LAPICS_MAX);
    bus->lapic[bus->count++] = lapic;
}

void apic_bus_detach(struct apic_bus *bus, struct lapic *lapic)
{
    for (unsigned i = 0; i < bus->count; i++)
        if (bus->lapic[i] == lapic) {
            bus->lapic[i] = bus->lapic[--bus->count];
            break;
        }
}

void apic_bus_listen(struct apic_bus *bus, struct apic_eoi_listener *listener)
{
    listener->next = bus->listeners;
    bus->listeners = listener;
}

void apic_bus_unlisten(struct apic_bus *bus, struct apic_eoi_listener *listener)
{
    for (struct apic_eoi_listener **link = &bus->listeners; *link; link = &(*link)->next)
        if (*link == listener) {
            *link = listener->next;
            break;
        }
}

void apic_bus_eoi(struct apic_bus *bus, uint8_t vector)
{
    for (struct apic_eoi_listener *listener = bus->listeners; listener; listener = listener->next)
        listener->eoi(listener->owner, vector);
}

/* SDM3 §11.6.2.4 "Lowest Priority Delivery Mode": the target whose processor priority is lowest; equals take turns. */
static bool send_lowest_priority(struct apic_bus *bus, const struct apic_message *message)
{
    struct lapic *best = NULL;
    unsigned best_priority = 256, start = atomic_fetch_add_explicit(&bus->turn, 1, memory_order_relaxed);
    for (unsigned n = 0; n < bus->count; n++) {
        struct lapic *lapic = bus->lapic[(start + n) % bus->count];
        if (lapic == message->except || !lapic_matches(lapic, message))
            continue;
        unsigned priority = lapic_priority(lapic);
        if (priority < best_priority) {
            best = lapic;
            best_priority = priority;
        }
    }
    return best && lapic_deliver(best, message);
}

/* --- local APICs that are in the host's kernel --- */

/* SDM3 §11.11.1 "Message Address Register Format", §11.11.2; bits 31:8 of the destination are in the upper half. */
static struct intc_route as_msi(const struct apic_message *message, uint32_t destination, bool logical)
{
    return (struct intc_route){
        .address = 0xFEE00000 | (uint64_t)(destination & ~0xFFu) << 32 | (destination & 0xFF) << 12 | (logical ? BIT(2) : 0),
        .data = message->vector | (uint32_t)message->delivery << 8 | (message->level ? BIT(15) | BIT(14) : 0),
    };
}

static bool send_to_host(const struct apic_bus *bus, const struct apic_message *message, uint32_t destination, bool logical)
{
    struct intc_route msi = as_msi(message, destination, logical);
    return bus->host->send(bus->host->owner, msi.address, msi.data);
}

/* An MSI knows no shorthands. */
static bool send_all_to_host(const struct apic_bus *bus, const struct apic_message *message)
{
    if (!message->only && !message->everyone)
        return send_to_host(bus, message, message->destination, message->logical);
    bool accepted = false;
    for (unsigned i = 0; i < bus->count; i++)
        if (bus->lapic[i] != message->except && (!message->only || bus->lapic[i] == message->only))
            accepted |= send_to_host(bus, message, bus->lapic[i]->apic_id, false);
    return accepted;
}

void apic_bus_reclaim(struct apic_bus *bus)
{
    pthread_rwlock_wrlock(&bus->lock);
    for (unsigned i = 0; i < bus->count; i++)
        lapic_reclaim(bus->lapic[i]);
    bus->host = NULL;
    pthread_rwlock_unlock(&bus->lock);
}

bool apic_bus_lend(struct apic_bus *bus, const struct intc_host *host)
{
    bool done = true;
    pthread_rwlock_wrlock(&bus->lock);
    for (unsigned i = 0; i < bus->count; i++)
        done = done && lapic_lend(bus->lapic[i], host);
    if (done) {
        bus->host = host;
        host->route(host->owner, bus->route);
    }
    pthread_rwlock_unlock(&bus->lock);
    if (!done)
        apic_bus_reclaim(bus);
    return done;
}

void apic_bus_route(struct apic_bus *bus, unsigned input, const struct apic_message *message)
{
    struct intc_route route = message ? as_msi(message, message->destination, message->logical) : (struct intc_route){ 0 };
    if (route.address == bus->route[input].address && route.data == bus->route[input].data)
        return;
    pthread_rwlock_wrlock(&bus->lock);
    bus->route[input] = route;
    if (bus->host)
        bus->host->route(bus->host->owner, bus->route);
    pthread_rwlock_unlock(&bus->lock);
}

/* --- messages --- */

static bool send_here(struct apic_bus *bus, const struct apic_message *message)
{
    if (message->only)
        return lapic_deliver((struct lapic *)message->only, message);
    if (message->delivery == DELIVERY_LOWEST_PRIORITY)
        return send_lowest_priority(bus, message);
    bool accepted = false;
    for (unsigned i = 0; i < bus->count; i++)
        if (bus->lapic[i] != message->except && lapic_matches(bus->lapic[i], message))
            accepted |= lapic_deliver(bus->lapic[i], message);
    return accepted;
}

/* A message that only tells of the 8259's interrupt is always for us, who have that. */
bool apic_bus_send(struct apic_bus *bus, const struct apic_message *message)
{
    pthread_rwlock_rdlock(&bus->lock);
    bool accepted = bus->host && message->delivery != DELIVERY_EXTINT ? send_all_to_host(bus, message) : send_here(bus, message);
    pthread_rwlock_unlock(&bus->lock);
    return accepted;
}

bool apic_bus_msi(struct apic_bus *bus, uint64_t address, uint32_t data)
{
    bool level = data & BIT(15), assert_level = data & BIT(14), redirection_hint = address & BIT(3);
    if (level && !assert_level)
        return true;        /* a de-assert message means nothing to these APICs */
    struct apic_message message = {
        .destination = (uint32_t)bits(address, 19, 12),
        .logical = address & BIT(2),
        .level = level,
        .delivery = (uint8_t)bits(data, 10, 8),
        .vector = (uint8_t)data,
    };
    if (message.delivery == DELIVERY_FIXED && redirection_hint && message.logical)
        message.delivery = DELIVERY_LOWEST_PRIORITY;
    if (bus->counters)
        counter_add_shared(bus->counters, COUNTER_msis, 1);
    trace(bus->log, irq_msi, "address 0x%llx data 0x%x", (unsigned long long)address, data);
    return apic_bus_send(bus, &message);
}
