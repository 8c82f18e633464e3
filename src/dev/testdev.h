/* testdev: what kvm-unit-tests and the like expect beside a PC. */
#ifndef DOPPEL_DEV_TESTDEV_H
#define DOPPEL_DEV_TESTDEV_H

#include "dev/device.h"

enum { TESTDEV_IRQS = 24, TESTDEV_MMIO_SIZE = 0x10000 };

struct testdev {
    struct device device;
    /* --- configuration --- */
    struct irq_line irq[TESTDEV_IRQS];
    /* --- state --- */
    uint32_t latch;                     /* behind 0xE0-0xE3 and 0xE8-0xEB alike */
    uint32_t irq_levels;
    uint8_t memory[TESTDEV_MMIO_SIZE];
    /* --- not state --- */
    struct region latch_port[2], flush_port, irq_port, mmio;
};

#endif
