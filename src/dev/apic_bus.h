/*
 * What carries interrupt messages between local APICs, I/O APICs and devices: the system bus's role in SDM3 §11.6.2
 * "Determining IPI Destination" and §11.11 "Message Signalled Interrupts". The machine makes one, attaches every local
 * APIC and I/O APIC to it before the vCPUs run, and destroys it last.
 *
 * Any thread may send. A sender holds at most the board lock, never a local APIC's lock.
 * The local APICs may be in the host's kernel, all of them: which place a message goes to does not change while it is on its way.
 */
#ifndef DOPPEL_DEV_APIC_BUS_H
#define DOPPEL_DEV_APIC_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/stats.h"

struct apic_bus;
struct intc_host;
struct lapic;

/* SDM3 §11.6.1 "Interrupt Command Register (ICR)", delivery mode; the same encoding in LVTs, MSIs and redirections. */
enum apic_delivery {
    DELIVERY_FIXED = 0,
    DELIVERY_LOWEST_PRIORITY = 1,
    DELIVERY_SMI = 2,
    DELIVERY_NMI = 4,
    DELIVERY_INIT = 5,
    DELIVERY_START_UP = 6,
    DELIVERY_EXTINT = 7,
};

struct apic_message {
    uint32_t destination;       /* physical ID or logical destination */
    bool wide;                  /* 32-bit destination (an x2APIC's ICR): broadcast is all ones of that width */
    bool logical;
    bool level;                 /* trigger mode */
    uint8_t delivery;           /* enum apic_delivery */
    uint8_t vector;
    const struct lapic *except; /* "all excluding self": this one does not accept; NULL for none */
    const struct lapic *only;   /* "self": nobody else does; NULL for none. destination is then not looked at */
    bool everyone;              /* "all including/excluding self": destination is not looked at */
};

struct apic_bus *apic_bus_create(struct log *log, struct counters *counters);
void apic_bus_destroy(struct apic_bus *bus);

/* Before the machine runs. */
void apic_bus_attach(struct apic_bus *bus, struct lapic *lapic);
void apic_bus_detach(struct apic_bus *bus, struct lapic *lapic);
/* An I/O APIC that wants to hear of EOIs; `eoi` takes the board lock itself. */
struct apic_eoi_listener {
    void (*eoi)(void *owner, uint8_t vector);
    void *owner;
    struct apic_eoi_listener *next;
};
void apic_bus_listen(struct apic_bus *bus, struct apic_eoi_listener *listener);
void apic_bus_unlisten(struct apic_bus *bus, struct apic_eoi_listener *listener);

/*
 * Every local APIC's registers go to the host (bus/intc_host.h), and messages then, too; and back. No vCPU of the machine runs meanwhile.
 * False: nothing was done.
 */
bool apic_bus_lend(struct apic_bus *bus, const struct intc_host *host);
void apic_bus_reclaim(struct apic_bus *bus);
/* What an I/O APIC's input sends if it is level-triggered; NULL: it is not. Board lock held. */
void apic_bus_route(struct apic_bus *bus, unsigned input, const struct apic_message *message);

/* Delivers to every local APIC that the message means; false: none accepted it. */
bool apic_bus_send(struct apic_bus *bus, const struct apic_message *message);
/* A write of data to address 0xFEEx_xxxx (SDM3 §11.11.1, §11.11.2). */
bool apic_bus_msi(struct apic_bus *bus, uint64_t address, uint32_t data);
/* EOI broadcast of a level-triggered vector; the caller holds no lock. */
void apic_bus_eoi(struct apic_bus *bus, uint8_t vector);

#endif
