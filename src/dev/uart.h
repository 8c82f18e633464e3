/* The 16550A serial port. */
#ifndef DOPPEL_DEV_UART_H
#define DOPPEL_DEV_UART_H

#include "dev/device.h"

struct chardev;

enum { UART_FIFO_SIZE = 16 };

struct uart {
    struct device device;
    /* --- configuration --- */
    struct irq_line irq;
    struct chardev *chardev;    /* NULL: nothing connected */
    uint64_t base;              /* 0: port 0x3F8 */
    /* --- state --- */
    uint8_t rx[UART_FIFO_SIZE], tx[UART_FIFO_SIZE];
    uint8_t rx_count, tx_count;
    uint8_t ier, fcr, lcr, mcr, msr_delta, scr;
    uint8_t line_errors;        /* LSR bits that a read clears */
    uint16_t divisor;
    bool thre_pending;          /* transmitter-empty interrupt not yet read from IIR */
    bool rx_timeout;            /* character timeout: bytes below the trigger level have waited */
    /* --- not state --- */
    struct region region;
    struct timer rx_timer, tx_timer;
};

#endif
