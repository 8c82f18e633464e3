/*
 * 16550A UART with FIFOs (Texas Instruments PC16550D, SNLS378). Characters go out at once, whatever the baud rate; the
 * divisor only sets the receive timeout. Where the host takes no more, they wait in the transmitter and are tried again.
 *
 * Not modelled: parity and framing errors, break reception, DMA mode, the ring indicator's input.
 */
#include "dev/uart.h"

#include <string.h>

#include "backend/chardev.h"
#include "base/base.h"

/* §8.0 "Registers", table 2 */
enum uart_register { UART_RBR_THR_DLL, UART_IER_DLM, UART_IIR_FCR, UART_LCR, UART_MCR, UART_LSR, UART_MSR, UART_SCR };

enum { IER_ERBFI = 1 << 0, IER_ETBEI = 1 << 1, IER_ELSI = 1 << 2, IER_EDSSI = 1 << 3, IER_WRITABLE = 0x0F };
enum { IIR_NONE = 1, IIR_MSR = 0, IIR_THRE = 2, IIR_RDA = 4, IIR_TIMEOUT = 12, IIR_LSR = 6, IIR_FIFOS = 0xC0 };
enum { FCR_ENABLE = 1 << 0, FCR_RESET_RX = 1 << 1, FCR_RESET_TX = 1 << 2, FCR_KEPT = 0xC9 };
enum { LCR_DLAB = 1 << 7 };
enum { MCR_DTR = 1 << 0, MCR_RTS = 1 << 1, MCR_OUT1 = 1 << 2, MCR_OUT2 = 1 << 3, MCR_LOOP = 1 << 4, MCR_WRITABLE = 0x1F };
enum { LSR_DR = 1 << 0, LSR_OE = 1 << 1, LSR_THRE = 1 << 5, LSR_TEMT = 1 << 6 };
enum { MSR_DELTA = 0x0F, MSR_TERI = 1 << 2, MSR_CTS = 1 << 4, MSR_DSR = 1 << 5, MSR_RI = 1 << 6, MSR_DCD = 1 << 7 };

enum { UART_CLOCK_HZ = 1843200, TX_RETRY_NS = 1000000 };

static const uint64_t uart_base_default = 0x3F8;

/* --- helpers --- */

static bool fifos(const struct uart *uart) { return uart->fcr & FCR_ENABLE; }
static unsigned fifo_room(const struct uart *uart) { return fifos(uart) ? UART_FIFO_SIZE : 1; }

static unsigned rx_trigger(const struct uart *uart)
{
    static const uint8_t levels[4] = { 1, 4, 8, 14 };
    return fifos(uart) ? levels[uart->fcr >> 6] : 1;
}

/* What the interrupt identification register shows: the highest of §8.6, table 5. */
static uint8_t interrupt_id(const struct uart *uart)
{
    if (uart->ier & IER_ELSI && uart->line_errors)
        return IIR_LSR;
    if (uart->ier & IER_ERBFI && uart->rx_count >= rx_trigger(uart))
        return IIR_RDA;
    if (uart->ier & IER_ERBFI && uart->rx_timeout)
        return IIR_TIMEOUT;
    if (uart->ier & IER_ETBEI && uart->thre_pending)
        return IIR_THRE;
    if (uart->ier & IER_EDSSI && uart->msr_delta)
        return IIR_MSR;
    return IIR_NONE;
}

/* On a PC the OUT2 pin gates the interrupt line. NOTE(spec): but guests exist that never set it, so it is not looked at. */
static void update_irq(struct uart *uart) { irq_set(&uart->irq, interrupt_id(uart) != IIR_NONE); }

/* Four character times (§8.11 FIFO timeout), at least what the clock can do well. */
static uint64_t timeout_ns(const struct uart *uart)
{
    uint64_t divisor = uart->divisor ? uart->divisor : 1;
    return 4 * 10 * 16 * divisor * NS_PER_SECOND / UART_CLOCK_HZ;
}

static void arm_rx_timeout(struct uart *uart)
{
    uart->rx_timeout = false;
    if (uart->rx_count && fifos(uart))
        timer_arm(&uart->rx_timer, clock_ns(uart->device.world.clock) + timeout_ns(uart));
    else
        timer_disarm(&uart->rx_timer);
}

static void rx_timed_out(void *owner)
{
    struct uart *uart = owner;
    uart->rx_timeout = uart->rx_count != 0;
    update_irq(uart);
}

static void push_rx(struct uart *uart, uint8_t byte)
{
    if (uart->rx_count >= fifo_room(uart)) {
        uart->line_errors |= LSR_OE;
        return;
    }
    uart->rx[uart->rx_count++] = byte;
}

static uint8_t pop_rx(struct uart *uart)
{
    if (!uart->rx_count)
        return 0;
    uint8_t byte = uart->rx[0];
    memmove(uart->rx, uart->rx + 1, --uart->rx_count);
    arm_rx_timeout(uart);
    if (uart->chardev && !(uart->mcr & MCR_LOOP))
        chardev_accept_input(uart->chardev);
    return byte;
}

/* Hands waiting characters to the host. The transmitter's interrupt comes when it has become empty. */
static void transmit(struct uart *uart)
{
    size_t taken = uart->chardev ? chardev_write(uart->chardev, uart->tx, uart->tx_count) : uart->tx_count;
    taken = min_u64(taken, uart->tx_count);
    uart->tx_count -= taken;
    memmove(uart->tx, uart->tx + taken, uart->tx_count);
    if (uart->tx_count)
        timer_arm(&uart->tx_timer, clock_ns(uart->device.world.clock) + TX_RETRY_NS);
    else
        uart->thre_pending = true;
}

static void tx_retry(void *owner)
{
    struct uart *uart = owner;
    transmit(uart);
    update_irq(uart);
}

static uint8_t modem_lines(const struct uart *uart)
{
    uint8_t mcr = uart->mcr;
    if (mcr & MCR_LOOP)     /* §8.7: the outputs are connected to the inputs */
        return (mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) | (mcr & MCR_OUT1 ? MSR_RI : 0) |
               (mcr & MCR_OUT2 ? MSR_DCD : 0);
    return MSR_CTS | MSR_DSR | MSR_DCD;
}

/* --- registers --- */

static void write_thr(struct uart *uart, uint8_t value)
{
    uart->thre_pending = false;
    if (uart->mcr & MCR_LOOP) {
        push_rx(uart, value);
        arm_rx_timeout(uart);
        uart->thre_pending = true;
        return;
    }
    if (uart->tx_count < UART_FIFO_SIZE)
        uart->tx[uart->tx_count++] = value;     /* more than the FIFO holds is lost, as on the chip */
    transmit(uart);
}

static void write_fcr(struct uart *uart, uint8_t value)
{
    bool toggled = (value ^ uart->fcr) & FCR_ENABLE;
    if (toggled || value & FCR_RESET_RX)
        uart->rx_count = 0;
    if ((toggled || value & FCR_RESET_TX) && uart->tx_count) {
        uart->tx_count = 0;
        uart->thre_pending = true;
        timer_disarm(&uart->tx_timer);
    }
    uart->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
    arm_rx_timeout(uart);
    if (uart->chardev)
        chardev_accept_input(uart->chardev);
}

static void write_mcr(struct uart *uart, uint8_t value)
{
    uint8_t before = modem_lines(uart);
    uart->mcr = value & MCR_WRITABLE;
    uint8_t after = modem_lines(uart), changed = before ^ after;
    uart->msr_delta |= (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4;
    if (before & MSR_RI && !(after & MSR_RI))
        uart->msr_delta |= MSR_TERI;
    if (uart->chardev && !(value & MCR_LOOP))
        chardev_accept_input(uart->chardev);
}

static uint8_t read_register(struct uart *uart, enum uart_register reg)
{
    uint8_t value;
    switch (reg) {
    case UART_RBR_THR_DLL: return uart->lcr & LCR_DLAB ? (uint8_t)uart->divisor : pop_rx(uart);
    case UART_IER_DLM: return uart->lcr & LCR_DLAB ? uart->divisor >> 8 : uart->ier;
    case UART_IIR_FCR:
        value = interrupt_id(uart);
        if (value == IIR_THRE)
            uart->thre_pending = false;
        return value | (fifos(uart) ? IIR_FIFOS : 0);
    case UART_LCR: return uart->lcr;
    case UART_MCR: return uart->mcr;
    case UART_LSR:
        value = uart->line_errors | (uart->rx_count ? LSR_DR : 0) | (uart->tx_count ? 0 : LSR_THRE | LSR_TEMT);
        uart->line_errors = 0;
        return value;
    case UART_MSR:
        value = modem_lines(uart) | uart->msr_delta;
        uart->msr_delta = 0;
        return value;
    default: return uart->scr;
    }
}

static void write_register(struct uart *uart, enum uart_register reg, uint8_t value)
{
    bool dlab = uart->lcr & LCR_DLAB;
    switch (reg) {
    case UART_RBR_THR_DLL:
        if (dlab)
            uart->divisor = (uart->divisor & 0xFF00) | value;
        else
            write_thr(uart, value);
        break;
    case UART_IER_DLM:
        if (dlab) {
            uart->divisor = (uint16_t)((uart->divisor & 0xFF) | value << 8);
            break;
        }
        /* Enabling the transmitter's interrupt while it is empty raises it. */
        if (value & IER_ETBEI && !(uart->ier & IER_ETBEI) && !uart->tx_count)
            uart->thre_pending = true;
        uart->ier = value & IER_WRITABLE;
        break;
    case UART_IIR_FCR: write_fcr(uart, value); break;
    case UART_LCR: uart->lcr = value; break;
    case UART_MCR: write_mcr(uart, value); break;
    case UART_SCR: uart->scr = value; break;
    default: break;     /* LSR and MSR: factory test only */
    }
}

/* --- access --- */

static enum access_result uart_access(void *owner, struct access *access)
{
    struct uart *uart = owner;
    enum uart_register reg = access->address & 7;
    if (access->write)
        write_register(uart, reg, (uint8_t)access->value);
    else
        access->value = read_register(uart, reg);
    update_irq(uart);
    return ACCESS_OK;
}

/* --- the host's side --- */

static size_t uart_room(void *owner)
{
    struct uart *uart = owner;
    return uart->mcr & MCR_LOOP || uart->rx_count >= fifo_room(uart) ? 0 : fifo_room(uart) - uart->rx_count;
}

static void uart_receive(void *owner, const uint8_t *data, size_t size)
{
    struct uart *uart = owner;
    for (size_t i = 0; i < size; i++)
        push_rx(uart, data[i]);
    arm_rx_timeout(uart);
    update_irq(uart);
}

/* --- reset, init --- */

static void uart_reset(struct device *device)
{
    struct uart *uart = (struct uart *)device;
    uart->rx_count = uart->tx_count = 0;
    memset(uart->rx, 0, sizeof(uart->rx));
    memset(uart->tx, 0, sizeof(uart->tx));
    uart->ier = uart->fcr = uart->lcr = uart->mcr = uart->msr_delta = uart->scr = uart->line_errors = 0;
    uart->divisor = 12;         /* 9600 baud, as firmware leaves it */
    uart->thre_pending = uart->rx_timeout = false;
    timer_disarm(&uart->rx_timer);
    timer_disarm(&uart->tx_timer);
    irq_set(&uart->irq, false);
}

static bool uart_init(struct device *device, struct error *err)
{
    struct uart *uart = (struct uart *)device;
    timer_init(&uart->rx_timer, device->world.clock, rx_timed_out, uart);
    timer_init(&uart->tx_timer, device->world.clock, tx_retry, uart);
    uart->region = (struct region){ .name = "uart", .base = uart->base ? uart->base : uart_base_default, .size = 8,
                                    .access_max = 1, .access = uart_access, .owner = uart, .lock = device->world.lock };
    bus_map(device->world.ports, &uart->region);
    if (uart->chardev)
        chardev_connect(uart->chardev, &(struct chardev_client){ .room = uart_room, .receive = uart_receive, .owner = uart });
    return true;
}

static void uart_quiesce(struct device *device)
{
    struct uart *uart = (struct uart *)device;
    timer_disarm(&uart->rx_timer);
    timer_disarm(&uart->tx_timer);
}

static void uart_resume(struct device *device)
{
    struct uart *uart = (struct uart *)device;
    uart->rx_count = (uint8_t)min_u64(uart->rx_count, fifo_room(uart));
    uart->tx_count = (uint8_t)min_u64(uart->tx_count, UART_FIFO_SIZE);
    if (!uart->rx_timeout)
        arm_rx_timeout(uart);
    if (uart->tx_count)
        transmit(uart);
    update_irq(uart);
}

static void uart_fini(struct device *device)
{
    struct uart *uart = (struct uart *)device;
    if (uart->chardev)
        chardev_connect(uart->chardev, NULL);
    uart_quiesce(device);
    bus_unmap(device->world.ports, &uart->region);
}

/* --- state list, type --- */

static const struct state_field uart_fields[] = {
    STATE_ARRAY(struct uart, rx),          STATE_ARRAY(struct uart, tx),         STATE_SCALAR(struct uart, rx_count),
    STATE_SCALAR(struct uart, tx_count),   STATE_SCALAR(struct uart, ier),       STATE_SCALAR(struct uart, fcr),
    STATE_SCALAR(struct uart, lcr),        STATE_SCALAR(struct uart, mcr),       STATE_SCALAR(struct uart, msr_delta),
    STATE_SCALAR(struct uart, scr),        STATE_SCALAR(struct uart, line_errors), STATE_SCALAR(struct uart, divisor),
    STATE_SCALAR(struct uart, thre_pending), STATE_SCALAR(struct uart, rx_timeout),
};
static const struct state_list uart_state = STATE_LIST("uart", 1, uart_fields);

static const struct config_field uart_config[] = {
    { "base", CONFIG_UINT, offsetof(struct uart, base), "first port" },
    { "chardev", CONFIG_POINTER, offsetof(struct uart, chardev), "what it is connected to" },
    { NULL },
};

const struct device_type device_uart = {
    .name = "uart",
    .text = "16550A serial port",
    .size = sizeof(struct uart),
    .config = uart_config,
    .state = &uart_state,
    .init = uart_init,
    .reset = uart_reset,
    .quiesce = uart_quiesce,
    .resume = uart_resume,
    .fini = uart_fini,
};
