/*
 * Local APICs that are somewhere else for a while: in the host's kernel, with an engine that has them run there. The engine borrows the
 * registers of all of a machine's APICs at once (struct intc_ops, lend), and gives them back (reclaim); in between messages go to it.
 */
#ifndef DOPPEL_BUS_INTC_HOST_H
#define DOPPEL_BUS_INTC_HOST_H

#include <stdbool.h>
#include <stdint.h>

enum { INTC_REGISTERS = 64, INTC_ROUTES = 24 };

/* What there is to know of one. */
struct intc_registers {
    uint64_t base;                      /* IA32_APIC_BASE */
    uint64_t deadline;                  /* IA32_TSC_DEADLINE; 0: not armed */
    uint32_t reg[INTC_REGISTERS];       /* SDM3 Table 11-1 "Local APIC Register Address Map": the offset divided by 16 */
};

/* The message of an I/O APIC's level-triggered input, in the form of an MSI; address 0: the input is not such. */
struct intc_route {
    uint64_t address;
    uint32_t data;
};

/* Where they are. Processors are named by their APIC IDs. */
struct intc_host {
    /* By lend and reclaim, or on the processor's thread. False: nothing was done. */
    bool (*store)(void *owner, uint32_t apic_id, const struct intc_registers *registers);
    bool (*fetch)(void *owner, uint32_t apic_id, struct intc_registers *registers);
    /* On the processor's thread: IA32_APIC_BASE (a valid value), IA32_TSC_DEADLINE, x2APIC's. False: #GP. */
    bool (*read_msr)(void *owner, uint32_t apic_id, uint32_t msr, uint64_t *value);
    bool (*write_msr)(void *owner, uint32_t apic_id, uint32_t msr, uint64_t value);
    /* Any thread: a message as an MSI, with bits 31:8 of the destination in the address's upper half. False: nobody accepted it. */
    bool (*send)(void *owner, uint64_t address, uint32_t data);
    /* Any thread: the EOI of which vectors the I/O APIC must hear (struct intc_ops, eoi). */
    void (*route)(void *owner, const struct intc_route route[INTC_ROUTES]);
    void *owner;
};

#endif
