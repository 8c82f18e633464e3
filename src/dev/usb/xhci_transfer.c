/*
 * Transfers (§4.11 "TRBs", §3.2.9, §3.2.10). A control transfer is a setup block, perhaps a data block, and a status block; the request is carried out
 * when what it needs is there. An interrupt endpoint's blocks wait until there is a report. Those of a disk's bulk endpoints are moved in pieces, as far
 * as the disk goes along.
 */
#include "dev/usb/xhci_internal.h"

static void post_transfer(struct xhci *xhci, unsigned slot, unsigned dci, uint64_t at, enum xhci_code code, uint32_t left)
{
    xhci_post_event(xhci, TRB_TRANSFER_EVENT, at, (uint32_t)code << 24 | (left & 0xFFFFFF), slot << 24 | dci << 16);
}

/* An event for a block that is done, if the driver wants one. */
static void finish(struct xhci *xhci, unsigned slot, unsigned dci, const struct xhci_trb *trb, uint64_t at, uint32_t left)
{
    bool is_short = left && trb->control & TRB_SHORT;
    if (is_short || trb->control & TRB_IOC)
        post_transfer(xhci, slot, dci, at, left ? CODE_SHORT_PACKET : CODE_SUCCESS, left);
}

/* The device refuses: the endpoint halts at the block, until the driver has reset it. */
static void stall(struct xhci *xhci, unsigned slot, unsigned dci, const struct xhci_ring *where, uint64_t at)
{
    struct xhci_endpoint *endpoint = &xhci->slot[slot].endpoint[dci];
    endpoint->ring = *where;
    endpoint->state = ENDPOINT_HALTED;
    xhci_show_endpoint(xhci, slot, dci);
    post_transfer(xhci, slot, dci, at, CODE_STALL, 0);
}

/* --- control --- */

static struct usb_setup setup_of(const uint8_t raw[8])
{
    return (struct usb_setup){ raw[0], raw[1], (uint16_t)(raw[2] | raw[3] << 8), (uint16_t)(raw[4] | raw[5] << 8), (uint16_t)(raw[6] | raw[7] << 8) };
}

static bool to_host(const struct xhci_slot *slot) { return slot->setup[0] & 0x80; }

/* False: refused. */
static bool request(struct xhci *xhci, struct xhci_slot *slot)
{
    struct usb_device *device = xhci_device(xhci, slot->port);
    const struct usb_setup setup = setup_of(slot->setup);
    return device && usb_control(device, &setup, slot->data, &slot->data_size);
}

static bool take_setup(struct xhci *xhci, struct xhci_slot *slot, const struct xhci_trb *trb)
{
    memcpy(slot->setup, &trb->parameter, sizeof(slot->setup));
    slot->setup_valid = true;
    slot->data_size = 0;
    return !to_host(slot) || request(xhci, slot);
}

/* Moves the data; *left is what of the block's length did not. False: the guest's memory cannot be reached. */
static bool move_data(struct xhci *xhci, struct xhci_slot *slot, const struct xhci_trb *trb, uint32_t *left)
{
    uint32_t length = trb->status & TRB_LENGTH, part;
    const struct dma *dma = &xhci->pci.device.dma;
    if (to_host(slot)) {
        part = (uint32_t)min_u64(length, slot->data_size);
        *left = length - part;
        bool written = !part || dma_write(dma, trb->parameter, slot->data, part);
        memmove(slot->data, slot->data + part, slot->data_size - part);
        slot->data_size -= part;
        return written;
    }
    part = (uint32_t)min_u64(length, USB_CONTROL_MAX - slot->data_size);
    *left = 0;
    if (trb->control & TRB_IMMEDIATE)
        memcpy(slot->data + slot->data_size, &trb->parameter, part = (uint32_t)min_u64(part, sizeof(trb->parameter)));
    else if (part && !dma_read(dma, trb->parameter, slot->data + slot->data_size, part))
        return false;
    slot->data_size += part;
    return true;
}

static void control_block(struct xhci *xhci, unsigned number, const struct xhci_trb *trb, uint64_t at, const struct xhci_ring *where)
{
    struct xhci_slot *slot = &xhci->slot[number];
    uint32_t left = 0;
    switch (xhci_type(trb)) {
    case TRB_SETUP:
        if (!take_setup(xhci, slot, trb))
            stall(xhci, number, DCI_CONTROL, where, at);
        else
            finish(xhci, number, DCI_CONTROL, trb, at, 0);
        break;
    case TRB_DATA: case TRB_NORMAL:
        if (!move_data(xhci, slot, trb, &left))
            xhci_host_error(xhci);
        else
            finish(xhci, number, DCI_CONTROL, trb, at, left);
        break;
    case TRB_STATUS:
        if (!slot->setup_valid || (!to_host(slot) && !request(xhci, slot)))
            stall(xhci, number, DCI_CONTROL, where, at);
        else
            finish(xhci, number, DCI_CONTROL, trb, at, 0);
        slot->setup_valid = false;
        break;
    default: finish(xhci, number, DCI_CONTROL, trb, at, 0); break;
    }
}

/* --- interrupt --- */

/* False: there is no report, and the block waits. */
static bool interrupt_block(struct xhci *xhci, unsigned number, unsigned dci, const struct xhci_trb *trb, uint64_t at)
{
    struct usb_device *device = xhci_device(xhci, xhci->slot[number].port);
    uint32_t length = trb->status & TRB_LENGTH, size;
    uint8_t report[8];
    if (xhci_type(trb) != TRB_NORMAL) {
        finish(xhci, number, dci, trb, at, 0);
        return true;
    }
    if (!device || xhci->slot[number].endpoint[dci].type != TYPE_INTERRUPT_IN || !(size = usb_report(device, report)))
        return false;
    size = (uint32_t)min_u64(size, length);
    if (size && !dma_write(&xhci->pci.device.dma, trb->parameter, report, size))
        xhci_host_error(xhci);
    else
        finish(xhci, number, dci, trb, at, length - size);
    return true;
}

/* --- bulk --- */

enum { PIECE = 4096 };

static struct usb_storage *disk_of(struct xhci *xhci, unsigned number)
{
    struct usb_device *device = xhci_device(xhci, xhci->slot[number].port);
    return device && device->kind == USB_DISK ? device->storage : NULL;
}

/* One piece of a block; *moved of it went. *ends: the disk has no more, whatever the block has room for. */
static enum usb_answer move_piece(struct xhci *xhci, struct usb_storage *disk, bool in, uint64_t address, uint32_t size, uint32_t *moved, bool *ends)
{
    uint8_t piece[PIECE];
    *moved = (uint32_t)min_u64(size, PIECE);
    *ends = false;
    if (!in && !dma_read(&xhci->pci.device.dma, address, piece, *moved)) {
        xhci_host_error(xhci);
        return USB_NOT_NOW;
    }
    enum usb_answer answer = in ? usb_storage_in(disk, piece, moved, ends) : usb_storage_out(disk, piece, moved);
    if (answer != USB_MOVED || !in || !*moved)
        return answer == USB_MOVED && !*moved && !*ends ? USB_NOT_NOW : answer;
    if (dma_write(&xhci->pci.device.dma, address, piece, *moved))
        return USB_MOVED;
    xhci_host_error(xhci);
    return USB_NOT_NOW;
}

/* §4.10.1.1 "Short Transfers": the rest of the transfer's blocks is passed over. */
static bool skipped(struct xhci_endpoint *endpoint, const struct xhci_trb *trb)
{
    bool skips = endpoint->skips;
    if (skips)
        endpoint->skips = trb->control & TRB_CHAIN;
    return skips;
}

/* False: it waits. */
static bool bulk_block(struct xhci *xhci, unsigned number, unsigned dci, const struct xhci_trb *trb, uint64_t at, const struct xhci_ring *where)
{
    struct xhci_endpoint *endpoint = &xhci->slot[number].endpoint[dci];
    struct usb_storage *disk = disk_of(xhci, number);
    uint32_t length = trb->status & TRB_LENGTH, moved;
    bool ends = false;
    if (skipped(endpoint, trb) || xhci_type(trb) != TRB_NORMAL || !disk) {
        if (disk && xhci_type(trb) != TRB_NORMAL)
            finish(xhci, number, dci, trb, at, 0);
        return disk;
    }
    while (endpoint->done < length && !ends)
        switch (move_piece(xhci, disk, endpoint->type == TYPE_BULK_IN, trb->parameter + endpoint->done, length - endpoint->done, &moved, &ends)) {
        case USB_MOVED: endpoint->done += moved; break;
        case USB_NOT_NOW: return false;
        case USB_REFUSED:
            endpoint->done = 0;
            stall(xhci, number, dci, where, at);
            return true;
        }
    uint32_t left = length - (uint32_t)min_u64(endpoint->done, length);
    endpoint->skips = left && trb->control & TRB_CHAIN;
    endpoint->done = 0;
    finish(xhci, number, dci, trb, at, left);
    return true;
}

/* --- all --- */

/* False: the block waits. */
static bool take_block(struct xhci *xhci, unsigned number, unsigned dci, const struct xhci_trb *trb, uint64_t at, const struct xhci_ring *where)
{
    unsigned type = xhci->slot[number].endpoint[dci].type;
    if (type == TYPE_BULK_IN || type == TYPE_BULK_OUT)
        return bulk_block(xhci, number, dci, trb, at, where);
    return interrupt_block(xhci, number, dci, trb, at);
}

bool xhci_transfer(struct xhci *xhci, unsigned number, unsigned dci, unsigned *budget)
{
    struct xhci_endpoint *endpoint = &xhci->slot[number].endpoint[dci];
    for (; *budget && endpoint->state == ENDPOINT_RUNNING && xhci->reg[XHCI_USBCMD] & CMD_RUN; --*budget) {
        struct xhci_ring before = endpoint->ring;
        struct xhci_trb trb;
        uint64_t at;
        if (!xhci_fetch(xhci, &endpoint->ring, &trb, &at))
            return false;
        if (dci == DCI_CONTROL) {
            control_block(xhci, number, &trb, at, &before);
        } else if (!take_block(xhci, number, dci, &trb, at, &before)) {
            endpoint->ring = before;
            return false;
        }
    }
    return endpoint->state == ENDPOINT_RUNNING && !*budget;
}
