/*
 * xHCI USB host controller (eXtensible Host Controller Interface for Universal Serial Bus 1.2): the registers, the root hub's ports, doorbells, and the one
 * interrupter with its event ring. Commands are in xhci_command.c, transfers in xhci_transfer.c, the devices in hid.c. Ports 1 to 4 are USB 2, with a
 * keyboard at the first and a tablet at the second, if they are wanted, and disks at the others; 5 to 8 are USB 3, and empty.
 *
 * Not modelled: contexts of 64 bytes, scratchpad buffers, streams, isochronous endpoints, more than one interrupter and segment of the event ring, holding
 * interrupts back, bandwidth, the controller's own save and restore, and power management of the ports beyond keeping the state that is asked for.
 */
#include "dev/usb/xhci_internal.h"

/* --- registers --- */

static const struct row { uint32_t offset, reset, rw, w1c; } rows[XHCI_REGISTERS] = {
#define REG(name, offset, reset, rw, w1c, section) [XHCI_##name] = { offset, reset, rw, w1c },
#include "dev/usb/xhci_registers.def"
};
static const struct port_row { uint32_t rw, w1c; } port_rows[XHCI_PORT_REGISTERS] = {
#define PORT(name, offset, rw, w1c, section) [XHCI_##name] = { rw, w1c },
#include "dev/usb/xhci_registers.def"
};

enum { XHCI_VENDOR = 0x1B36, XHCI_DEVICE = 0x000D, XHCI_CLASS = 0x0C0330, XHCI_BAR_SIZE = 0x4000 };
enum { CAPABILITIES_SIZE = 0x40, PORTS_BASE = 0x440, PORTS_SIZE = 16 * XHCI_PORTS, EXTENDED_BASE = 0x600, DOORBELLS_BASE = 0x2000 };
enum { CMD_HCRST = 1 << 1, CMD_INTE = 1 << 2, STS_EINT = 1 << 3, STS_PCD = 1 << 4, IMAN_IP = 1 << 0, IMAN_IE = 1 << 1, ERDP_EHB = 1 << 3 };
enum { CRCR_CYCLE = 1 << 0, CRCR_STOP = 1 << 1, CRCR_ABORT = 1 << 2, CRCR_RUNNING = 1 << 3 };
/* PORTSC, §5.4.8 */
enum { PORT_PR = 1 << 4, PORT_PLS_SHIFT = 5, PORT_PLS = 15 << PORT_PLS_SHIFT, PLS_RX_DETECT = 5, PLS_POLLING = 7, PORT_SPEED_FULL = 1 << 10, PORT_SPEED_HIGH = 3 << 10,
       PORT_LWS = 1 << 16, PORT_CSC = 1 << 17, PORT_PRC = 1 << 21, PORT_CHANGES = 0x7F << 17 };
enum { BLOCKS_AT_ONCE = 256, LINKS_MAX = 16 };

/* §5.3 capability registers, and §7.2 supported protocols at EXTENDED_BASE; four bytes each. */
static const uint32_t capabilities[] = {
    0x01000000 | CAPABILITIES_SIZE,                             /* version 1.0 */
    (uint32_t)XHCI_PORTS << 24 | 1 << 8 | XHCI_SLOTS,
    0,                                                          /* one segment of the event ring, no scratchpads */
    0,
    (uint32_t)EXTENDED_BASE / 4 << 16 | 1,                      /* addresses of 64 bits */
    DOORBELLS_BASE,
    0x1000,
    0,
};
static const uint32_t extended[] = {
    0x02000002 | 4 << 8, 0x20425355, 4 << 8 | 1, 0,             /* USB 2.0, ports 1 to 4 */
    0x03000002, 0x20425355, 4 << 8 | 5, 0,                      /* USB 3.0, ports 5 to 8 */
};

/* --- interrupts and events: §4.9.4, §4.17 --- */

static void update_interrupt(struct xhci *xhci, bool event)
{
    uint32_t *iman = &xhci->reg[XHCI_IMAN];
    bool level = *iman & IMAN_IP && *iman & IMAN_IE && xhci->reg[XHCI_USBCMD] & CMD_INTE;
    if (pci_msi_enabled(&xhci->pci) && level && event) {
        *iman &= ~(uint32_t)IMAN_IP;                            /* §4.17.5: the message acknowledges itself */
        pci_msi_send(&xhci->pci, 0);
    }
    pci_intx(&xhci->pci, level && !pci_msi_enabled(&xhci->pci));
}

static void pend(struct xhci *xhci)
{
    xhci->reg[XHCI_USBSTS] |= STS_EINT;
    if (!(xhci->reg[XHCI_ERDP] & ERDP_EHB)) {
        xhci->reg[XHCI_ERDP] |= ERDP_EHB;
        xhci->reg[XHCI_IMAN] |= IMAN_IP;
        update_interrupt(xhci, true);
    }
}

void xhci_host_error(struct xhci *xhci)
{
    guest_error(xhci->pci.device.world.log, "%s: a ring or a buffer is not in memory", xhci->pci.device.name);
    xhci->reg[XHCI_USBCMD] &= ~(uint32_t)CMD_RUN;
    xhci->reg[XHCI_USBSTS] |= STS_HSE | STS_HCH;
}

static uint64_t event_address(const struct xhci *xhci, uint32_t n) { return xhci->event_base + (uint64_t)n * TRB_SIZE; }

static void write_event(struct xhci *xhci, enum xhci_trb_type type, uint64_t parameter, uint32_t status, uint32_t control)
{
    const struct xhci_trb trb = { parameter, status, control | (uint32_t)type << TRB_TYPE_SHIFT | xhci->event_cycle };
    uint64_t at = event_address(xhci, xhci->event_at);
    /* The cycle bit last: by it the driver sees that there is an event. */
    if (!dma_write(&xhci->pci.device.dma, at, &trb, 12) || !dma_write(&xhci->pci.device.dma, at + 12, &trb.control, 4)) {
        xhci_host_error(xhci);
        return;
    }
    if (++xhci->event_at >= xhci->event_size) {
        xhci->event_at = 0;
        xhci->event_cycle = !xhci->event_cycle;
    }
}

/* §4.9.4: the last free place is for the event that says so; what comes then is lost until the driver has made room. */
void xhci_post_event(struct xhci *xhci, enum xhci_trb_type type, uint64_t parameter, uint32_t status, uint32_t control)
{
    uint64_t dequeue = xhci_wide(xhci, XHCI_ERDP) & ~15ull;
    if (!xhci->event_size)
        return;
    uint32_t next = (xhci->event_at + 1) % xhci->event_size, after = (xhci->event_at + 2) % xhci->event_size;
    bool last = event_address(xhci, after) == dequeue;
    if (event_address(xhci, next) == dequeue || (last && xhci->event_lost))
        return;
    if (last) {
        xhci->event_lost = true;
        write_event(xhci, TRB_HOST_EVENT, 0, (uint32_t)CODE_EVENT_RING_FULL << 24, 0);
    } else {
        xhci->event_lost = false;
        write_event(xhci, type, parameter, status, control);
    }
    pend(xhci);
}

/* §5.5.2.3.2: the table has one row, the segment's address and size. */
static void start_event_ring(struct xhci *xhci)
{
    struct { uint64_t base; uint32_t size, reserved; } row = { 0 };
    xhci->event_size = 0;
    if (!xhci->reg[XHCI_ERSTSZ])
        return;
    if (!dma_read(&xhci->pci.device.dma, xhci_wide(xhci, XHCI_ERSTBA), &row, sizeof(row))) {
        xhci_host_error(xhci);
        return;
    }
    xhci->event_base = row.base & ~63ull;
    xhci->event_size = row.size & 0xFFFF;
    xhci->event_at = 0;
    xhci->event_cycle = true;
    xhci->event_lost = false;
}

static void dequeue_written(struct xhci *xhci)
{
    bool busy = xhci->reg[XHCI_ERDP] & ERDP_EHB;
    if (!busy && xhci->event_size && (xhci_wide(xhci, XHCI_ERDP) & ~15ull) != event_address(xhci, xhci->event_at))
        pend(xhci);                     /* the driver stopped before the end */
}

/* --- rings: §4.9 --- */

bool xhci_fetch(struct xhci *xhci, struct xhci_ring *ring, struct xhci_trb *trb, uint64_t *at)
{
    for (unsigned links = 0; links < LINKS_MAX; links++) {
        if (!dma_read(&xhci->pci.device.dma, ring->dequeue, trb, sizeof(*trb))) {
            xhci_host_error(xhci);
            return false;
        }
        if ((trb->control & TRB_CYCLE) != ring->cycle)
            return false;
        *at = ring->dequeue;
        if (xhci_type(trb) != TRB_LINK) {
            ring->dequeue += TRB_SIZE;
            return true;
        }
        ring->dequeue = trb->parameter & ~15ull;
        ring->cycle ^= (trb->control & TRB_TOGGLE) != 0;
    }
    guest_error(xhci->pci.device.world.log, "%s: a ring of nothing but links", xhci->pci.device.name);
    xhci_host_error(xhci);
    return false;
}

/* --- work --- */

static bool running(const struct xhci *xhci) { return xhci->reg[XHCI_USBCMD] & CMD_RUN; }

static void run_commands(struct xhci *xhci, unsigned *budget)
{
    struct xhci_trb trb;
    uint64_t at;
    for (; *budget && running(xhci); --*budget) {
        if (!xhci_fetch(xhci, &xhci->command_ring, &trb, &at)) {
            xhci->pending[0] = 0;
            return;
        }
        xhci_command(xhci, &trb, at);
    }
}

/* Everything that was rung for; what is too much for now goes on from the clock. */
static void work(struct xhci *xhci)
{
    unsigned budget = BLOCKS_AT_ONCE;
    bool more = false;
    if (xhci->pending[0] && running(xhci))
        run_commands(xhci, &budget);
    more = xhci->pending[0] && running(xhci);
    for (unsigned slot = 1; slot <= XHCI_SLOTS; slot++)
        for (unsigned dci = 1; dci < XHCI_ENDPOINTS && xhci->pending[slot]; dci++) {
            if (!(xhci->pending[slot] & 1u << dci))
                continue;
            bool again = running(xhci) && xhci_transfer(xhci, slot, dci, &budget);
            if (!again)
                xhci->pending[slot] &= ~(1u << dci);
            more |= again;
        }
    if (more)
        timer_arm(&xhci->more, clock_ns(xhci->pci.device.world.clock));
}

static void work_more(void *owner) { work(owner); }

/* §4.7 "Doorbells": a stopped endpoint runs again. */
static void ring_doorbell(struct xhci *xhci, unsigned slot, uint32_t value)
{
    unsigned target = value & 0xFF;
    if (!running(xhci) || slot > XHCI_SLOTS || target >= XHCI_ENDPOINTS)
        return;
    if (slot == 0) {
        if (target)
            return;
        xhci->reg[XHCI_CRCR] |= CRCR_RUNNING;
        xhci->pending[0] = 1;
    } else {
        struct xhci_endpoint *endpoint = &xhci->slot[slot].endpoint[target];
        if (!target || (endpoint->state != ENDPOINT_RUNNING && endpoint->state != ENDPOINT_STOPPED))
            return;
        if (endpoint->state == ENDPOINT_STOPPED) {
            endpoint->state = ENDPOINT_RUNNING;
            xhci_show_endpoint(xhci, slot, target);
        }
        xhci->pending[slot] |= 1u << target;
    }
    work(xhci);
}

/* --- ports: §4.19 --- */

struct usb_device *xhci_device(struct xhci *xhci, unsigned port)
{
    return port >= 1 && port <= XHCI_DEVICES && xhci->device[port - 1].kind ? &xhci->device[port - 1] : NULL;
}

static void port_changed(struct xhci *xhci, unsigned n)
{
    xhci->reg[XHCI_USBSTS] |= STS_PCD;
    if (running(xhci))
        xhci_post_event(xhci, TRB_PORT_CHANGE, (uint64_t)(n + 1) << 24, (uint32_t)CODE_SUCCESS << 24, 0);
}

static void connect_port(struct xhci *xhci, unsigned n)
{
    bool there = xhci_device(xhci, n + 1);
    memset(xhci->port[n], 0, sizeof(xhci->port[n]));
    uint32_t speed = n < XHCI_INPUTS ? PORT_SPEED_FULL : PORT_SPEED_HIGH;
    xhci->port[n][XHCI_PORTSC] = PORT_PP | (there ? PORT_CCS | PORT_CSC | speed | PLS_POLLING << PORT_PLS_SHIFT : PLS_RX_DETECT << PORT_PLS_SHIFT);
}

static void reset_port(struct xhci *xhci, unsigned n)
{
    uint32_t *portsc = &xhci->port[n][XHCI_PORTSC];
    if (!xhci_device(xhci, n + 1))
        return;
    usb_reset(xhci_device(xhci, n + 1));
    *portsc = (*portsc & ~(uint32_t)PORT_PLS) | PORT_PED | PORT_PRC;
    port_changed(xhci, n);
}

static void write_port(struct xhci *xhci, unsigned n, enum xhci_port_register which, uint32_t value)
{
    const struct port_row *row = &port_rows[which];
    uint32_t *reg = &xhci->port[n][which];
    *reg = ((*reg & ~row->rw) | (value & row->rw)) & ~(value & row->w1c);
    if (which != XHCI_PORTSC)
        return;
    if (value & PORT_LWS)
        *reg = (*reg & ~(uint32_t)PORT_PLS) | (value & PORT_PLS);
    if (value & PORT_PR)
        reset_port(xhci, n);
}

/* --- access --- */

static void reset_controller(struct xhci *xhci)
{
    timer_disarm(&xhci->more);
    for (unsigned i = 0; i < XHCI_REGISTERS; i++)
        xhci->reg[i] = rows[i].reset;
    xhci->command_ring = (struct xhci_ring){ 0 };
    xhci->event_base = xhci->event_size = xhci->event_at = 0;
    xhci->event_cycle = xhci->event_lost = false;
    xhci_forget_slots(xhci);
    for (unsigned i = 0; i < XHCI_DEVICES; i++)
        usb_reset(&xhci->device[i]);
    for (unsigned i = 0; i < XHCI_PORTS; i++)
        connect_port(xhci, i);
    update_interrupt(xhci, false);
}

static void command_written(struct xhci *xhci, uint32_t before, uint32_t value)
{
    if (value & CMD_HCRST) {
        reset_controller(xhci);
        return;
    }
    xhci->reg[XHCI_USBSTS] = (xhci->reg[XHCI_USBSTS] & ~(uint32_t)STS_HCH) | (running(xhci) ? 0 : STS_HCH);
    if (!running(xhci))
        xhci->reg[XHCI_CRCR] &= ~(uint32_t)CRCR_RUNNING;
    for (unsigned i = 0; running(xhci) && !(before & CMD_RUN) && i < XHCI_PORTS; i++)
        if (xhci->port[i][XHCI_PORTSC] & PORT_CHANGES)
            port_changed(xhci, i);
}

/* §5.4.5: the pointer can be written while the ring stands still; what stops it is over at once. */
static void command_ring_written(struct xhci *xhci, uint32_t value)
{
    if (!(xhci->reg[XHCI_CRCR] & CRCR_RUNNING)) {
        xhci->command_ring.dequeue = (xhci->command_ring.dequeue & ~0xFFFFFFFFull) | (value & ~63u);
        xhci->command_ring.cycle = value & CRCR_CYCLE;
    } else if (value & (CRCR_STOP | CRCR_ABORT)) {
        xhci->reg[XHCI_CRCR] &= ~(uint32_t)CRCR_RUNNING;
        xhci->pending[0] = 0;
        xhci_post_event(xhci, TRB_COMMAND_COMPLETION, xhci->command_ring.dequeue, (uint32_t)CODE_COMMAND_RING_STOPPED << 24, 0);
    }
}

static void write_row(struct xhci *xhci, enum xhci_register n, uint32_t value)
{
    const struct row *row = &rows[n];
    uint32_t before = xhci->reg[n];
    xhci->reg[n] = ((before & ~row->rw) | (value & row->rw)) & ~(value & row->w1c);
    switch (n) {
    case XHCI_USBCMD: command_written(xhci, before, value); break;
    case XHCI_CRCR: command_ring_written(xhci, value); break;
    case XHCI_CRCR_HIGH:
        if (!(xhci->reg[XHCI_CRCR] & CRCR_RUNNING))
            xhci->command_ring.dequeue = (xhci->command_ring.dequeue & 0xFFFFFFFF) | (uint64_t)value << 32;
        break;
    case XHCI_ERSTBA_HIGH: start_event_ring(xhci); break;
    case XHCI_ERDP: dequeue_written(xhci); break;
    default: break;
    }
    update_interrupt(xhci, false);
}

static unsigned find_row(uint32_t offset)
{
    unsigned n = 0;
    while (n < XHCI_REGISTERS && rows[n].offset != offset)
        n++;
    return n;
}

static uint32_t read_register(struct xhci *xhci, uint32_t offset)
{
    enum { MICROFRAME_NS = 125000, MFINDEX_MASK = 0x3FFF };
    unsigned n = find_row(offset);
    if (n == XHCI_MFINDEX)
        return (uint32_t)(clock_ns(xhci->pci.device.world.clock) / MICROFRAME_NS) & MFINDEX_MASK;
    if (n < XHCI_REGISTERS)
        return xhci->reg[n];
    if (offset < sizeof(capabilities))
        return capabilities[offset / 4];
    if (offset - EXTENDED_BASE < sizeof(extended))
        return extended[(offset - EXTENDED_BASE) / 4];
    if (offset - PORTS_BASE < PORTS_SIZE)
        return xhci->port[(offset - PORTS_BASE) / 16][(offset - PORTS_BASE) % 16 / 4];
    return 0;
}

static void write_register(struct xhci *xhci, uint32_t offset, uint32_t value)
{
    unsigned n = find_row(offset);
    if (n < XHCI_REGISTERS)
        write_row(xhci, (enum xhci_register)n, value);
    else if (offset - PORTS_BASE < PORTS_SIZE)
        write_port(xhci, (offset - PORTS_BASE) / 16, (enum xhci_port_register)((offset - PORTS_BASE) % 16 / 4), value);
    else if (offset - DOORBELLS_BASE < 4 * (XHCI_SLOTS + 1))
        ring_doorbell(xhci, (offset - DOORBELLS_BASE) / 4, value);
}

/* Some capability registers are bytes and words; all else is read and written by four bytes, which the bus makes of eight. */
static enum access_result xhci_access(void *owner, struct access *access)
{
    uint32_t offset = (uint32_t)access->address & ~3u, shift = 8 * ((uint32_t)access->address & 3);
    if (!access->write)
        access->value = (read_register(owner, offset) >> shift) & size_mask(access->size);
    else if (access->size == 4)
        write_register(owner, offset, (uint32_t)access->value);
    return ACCESS_OK;
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size) { update_interrupt((struct xhci *)function, false); }

/* --- what is plugged in --- */

/* A disk can go on; later, for the caller may be in the middle of something. */
static void disk_ready(void *owner)
{
    enum { DCI_BULK_IN = 3, DCI_BULK_OUT = 4 };
    struct xhci *xhci = owner;
    for (unsigned slot = 1; slot <= XHCI_SLOTS; slot++)
        if (xhci->slot[slot].port > XHCI_INPUTS)
            xhci->pending[slot] |= 1u << DCI_BULK_IN | 1u << DCI_BULK_OUT;
    timer_arm(&xhci->more, clock_ns(xhci->pci.device.world.clock));
}

/* The endpoint that waits for a report is the one interrupt endpoint that the device has: DCI 3. */
static void report_ready(struct xhci *xhci, unsigned port)
{
    enum { DCI_REPORT = 3 };
    for (unsigned slot = 1; slot <= XHCI_SLOTS; slot++)
        if (xhci->slot[slot].port == port && xhci->slot[slot].endpoint[DCI_REPORT].state == ENDPOINT_RUNNING)
            xhci->pending[slot] |= 1u << DCI_REPORT;
    work(xhci);
}

bool xhci_key(struct xhci *xhci, enum key key, bool down)
{
    bool taken = usb_key(&xhci->device[0], key, down);
    report_ready(xhci, 1);
    return taken;
}

bool xhci_point(struct xhci *xhci, uint16_t x, uint16_t y, int wheel, uint8_t buttons)
{
    bool taken = usb_point(&xhci->device[1], x, y, wheel, buttons);
    report_ready(xhci, 2);
    return taken;
}

/* --- reset, init --- */

static void xhci_reset(struct device *device)
{
    struct xhci *xhci = (struct xhci *)device;
    pci_function_reset(&xhci->pci);
    reset_controller(xhci);
}

static bool xhci_init(struct device *device, struct error *err)
{
    enum { PCI_SERIAL_BUS_RELEASE = 0x60, USB_3_0 = 0x30 };     /* §5.2.3 SBRN */
    struct xhci *xhci = (struct xhci *)device;
    static const struct pci_identity identity = { XHCI_VENDOR, XHCI_DEVICE, 0x1AF4, 0x1100, XHCI_CLASS, 1 };
    xhci->pci.conventional = true;
    if (!pci_function_init(&xhci->pci, &identity, err))
        return false;
    xhci->pci.config[PCI_SERIAL_BUS_RELEASE] = USB_3_0;
    xhci->pci.config_written = config_written;
    pci_add_msi(&xhci->pci);
    pci_bar_init(&xhci->pci, 0, "xhci", XHCI_BAR_SIZE, true, false, xhci_access, xhci);
    xhci->pci.bar[0].region.access_max = 4;
    if (xhci->inputs) {
        xhci->device[0].kind = USB_KEYBOARD;
        xhci->device[1].kind = USB_TABLET;
    }
    for (unsigned i = 0; i < XHCI_DISKS; i++) {
        xhci->storage[i].ready = disk_ready;
        xhci->storage[i].owner = xhci;
        xhci->device[XHCI_INPUTS + i].storage = &xhci->storage[i];
        if (xhci->storage[i].block)
            xhci->device[XHCI_INPUTS + i].kind = USB_DISK;
    }
    timer_init(&xhci->more, device->world.clock, work_more, xhci);
    return true;
}

static void xhci_quiesce(struct device *device)
{
    for (unsigned i = 0; i < XHCI_DISKS; i++)
        usb_storage_quiesce(&((struct xhci *)device)->storage[i]);
}

/* What was loaded may be anything: sizes and places are brought into their bounds. */
static void xhci_resume(struct device *device)
{
    struct xhci *xhci = (struct xhci *)device;
    xhci->event_size &= 0xFFFF;
    xhci->event_at = xhci->event_size ? xhci->event_at % xhci->event_size : 0;
    for (unsigned i = 0; i <= XHCI_SLOTS; i++)
        xhci->slot[i].data_size = (uint32_t)min_u64(xhci->slot[i].data_size, USB_CONTROL_MAX);
    for (unsigned i = 0; i < XHCI_DEVICES; i++)
        usb_resume(&xhci->device[i]);
    for (unsigned i = 0; i < XHCI_DISKS; i++)
        usb_storage_resume(&xhci->storage[i]);
    disk_ready(xhci);
    pci_function_resume(&xhci->pci);
    update_interrupt(xhci, false);
}

static void xhci_fini(struct device *device)
{
    struct xhci *xhci = (struct xhci *)device;
    xhci_quiesce(device);
    timer_disarm(&xhci->more);
    pci_function_fini(&xhci->pci);
}

/* --- state list, type --- */

static const struct state_field ring_fields[] = { STATE_SCALAR(struct xhci_ring, dequeue), STATE_SCALAR(struct xhci_ring, cycle) };
static const struct state_list ring_state = STATE_LIST("xhci-ring", 1, ring_fields);

static const struct state_field endpoint_fields[] = {
    STATE_SCALAR(struct xhci_endpoint, state), STATE_SCALAR(struct xhci_endpoint, type), STATE_NESTED(struct xhci_endpoint, ring, ring_state),
    STATE_SCALAR(struct xhci_endpoint, done), STATE_SCALAR(struct xhci_endpoint, skips),
};
static const struct state_list endpoint_state = STATE_LIST("xhci-endpoint", 1, endpoint_fields);

static const struct state_field slot_fields[] = {
    STATE_SCALAR(struct xhci_slot, state),       STATE_SCALAR(struct xhci_slot, enabled),
    STATE_SCALAR(struct xhci_slot, port),        STATE_NESTED_ARRAY(struct xhci_slot, endpoint, endpoint_state),
    STATE_BLOB(struct xhci_slot, setup),         STATE_SCALAR(struct xhci_slot, setup_valid),
    STATE_BLOB(struct xhci_slot, data),          STATE_SCALAR(struct xhci_slot, data_size),
};
static const struct state_list slot_state = STATE_LIST("xhci-slot", 1, slot_fields);

static const struct state_field fields[] = {
    STATE_NESTED(struct xhci, pci, pci_function_state),
    STATE_ARRAY(struct xhci, reg),
    { "port", STATE_UINT, offsetof(struct xhci, port), sizeof(uint32_t), XHCI_PORTS * XHCI_PORT_REGISTERS, 1, NULL },
    STATE_NESTED(struct xhci, command_ring, ring_state),
    STATE_SCALAR(struct xhci, event_base),       STATE_SCALAR(struct xhci, event_size),
    STATE_SCALAR(struct xhci, event_at),         STATE_SCALAR(struct xhci, event_cycle),
    STATE_SCALAR(struct xhci, event_lost),
    STATE_NESTED_ARRAY(struct xhci, slot, slot_state),
    STATE_ARRAY(struct xhci, pending),
    STATE_NESTED_ARRAY(struct xhci, device, usb_device_state),
    STATE_NESTED_ARRAY(struct xhci, storage, usb_storage_state),
};
static const struct state_list state = STATE_LIST("xhci", 1, fields);

const struct device_type device_xhci = {
    .name = "xhci",
    .text = "USB host controller (xHCI) with a keyboard, a tablet and disks",
    .size = sizeof(struct xhci),
    .state = &state,
    .init = xhci_init,
    .reset = xhci_reset,
    .quiesce = xhci_quiesce,
    .resume = xhci_resume,
    .fini = xhci_fini,
};
