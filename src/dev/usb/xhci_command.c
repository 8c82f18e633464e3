/*
 * Commands (§4.6): slots come and go, devices get addresses, endpoints their rings. What the driver must see is written to the output contexts, which are
 * never read back: what is believed of a slot is kept here.
 */
#include "dev/usb/xhci_internal.h"

/* Of a command block's control word, §6.4.3. */
enum { COMMAND_SLOT_SHIFT = 24, COMMAND_ENDPOINT_SHIFT = 16, COMMAND_ENDPOINT = 0x1F, COMMAND_BLOCK_SET_ADDRESS = 1 << 9, COMMAND_DECONFIGURE = 1 << 9 };
enum { SLOT_CONTEXT_STATE_SHIFT = 27, SLOT_CONTEXT_PORT_SHIFT = 16, ENDPOINT_CONTEXT_STATE = 7, ENDPOINT_CONTEXT_TYPE_SHIFT = 3, DEQUEUE_CYCLE = 1 };

/* --- contexts: §6.2 --- */

static uint64_t output_context(struct xhci *xhci, unsigned slot, unsigned dci)
{
    uint64_t base = 0;
    dma_read(&xhci->pci.device.dma, xhci_wide(xhci, XHCI_DCBAAP) + 8 * slot, &base, sizeof(base));
    return (base & ~63ull) + CONTEXT_SIZE * dci;
}

static bool read_context(struct xhci *xhci, uint64_t at, uint32_t context[8])
{
    return dma_read(&xhci->pci.device.dma, at, context, CONTEXT_SIZE);
}

static bool write_context(struct xhci *xhci, uint64_t at, const uint32_t context[8])
{
    return dma_write(&xhci->pci.device.dma, at, context, CONTEXT_SIZE);
}

void xhci_show_endpoint(struct xhci *xhci, unsigned slot, unsigned dci)
{
    const struct xhci_endpoint *endpoint = &xhci->slot[slot].endpoint[dci];
    uint64_t at = output_context(xhci, slot, dci), dequeue = endpoint->ring.dequeue | endpoint->ring.cycle;
    uint32_t context[8];
    if (!read_context(xhci, at, context))
        return;
    context[0] = (context[0] & ~(uint32_t)ENDPOINT_CONTEXT_STATE) | endpoint->state;
    context[2] = (uint32_t)dequeue;
    context[3] = (uint32_t)(dequeue >> 32);
    write_context(xhci, at, context);
}

static void show_slot(struct xhci *xhci, unsigned number)
{
    uint64_t at = output_context(xhci, number, 0);
    uint32_t context[8];
    uint8_t state = xhci->slot[number].state;
    if (!read_context(xhci, at, context))
        return;
    context[3] = (uint32_t)state << SLOT_CONTEXT_STATE_SHIFT | (state >= SLOT_ADDRESSED ? number : 0);
    write_context(xhci, at, context);
}

/* An endpoint from an input context, which becomes the output context. */
static bool open_endpoint(struct xhci *xhci, unsigned slot, unsigned dci, uint64_t input)
{
    struct xhci_endpoint *endpoint = &xhci->slot[slot].endpoint[dci];
    uint32_t context[8];
    if (!read_context(xhci, input + CONTEXT_SIZE * (dci + 1), context))
        return false;
    uint64_t dequeue = context[2] | (uint64_t)context[3] << 32;
    *endpoint = (struct xhci_endpoint){ .state = ENDPOINT_RUNNING, .type = context[1] >> ENDPOINT_CONTEXT_TYPE_SHIFT & 7,
                                        .ring = { dequeue & ~15ull, dequeue & DEQUEUE_CYCLE } };
    context[0] = (context[0] & ~(uint32_t)ENDPOINT_CONTEXT_STATE) | endpoint->state;
    return write_context(xhci, output_context(xhci, slot, dci), context);
}

static void close_endpoint(struct xhci *xhci, unsigned slot, unsigned dci)
{
    xhci->slot[slot].endpoint[dci] = (struct xhci_endpoint){ .state = ENDPOINT_DISABLED };
    xhci_show_endpoint(xhci, slot, dci);
}

void xhci_forget_slots(struct xhci *xhci)
{
    memset(xhci->slot, 0, sizeof(xhci->slot));
    memset(xhci->pending, 0, sizeof(xhci->pending));
}

/* --- commands --- */

static enum xhci_code enable_slot(struct xhci *xhci, unsigned *number)
{
    for (unsigned i = 1; i <= min_u64(xhci->reg[XHCI_CONFIG], XHCI_SLOTS); i++)
        if (!xhci->slot[i].enabled) {
            xhci->slot[i] = (struct xhci_slot){ .enabled = true };
            *number = i;
            return CODE_SUCCESS;
        }
    return CODE_NO_SLOTS;
}

static enum xhci_code disable_slot(struct xhci *xhci, unsigned number)
{
    xhci->slot[number] = (struct xhci_slot){ 0 };
    xhci->pending[number] = 0;
    return CODE_SUCCESS;
}

/* §4.6.5. Without an address (BSR) the device stays at 0; its default pipe works either way. */
static enum xhci_code address_device(struct xhci *xhci, unsigned number, const struct xhci_trb *trb)
{
    struct xhci_slot *slot = &xhci->slot[number];
    uint64_t input = trb->parameter & ~15ull;
    uint32_t context[8];
    if (slot->state >= SLOT_ADDRESSED)
        return CODE_CONTEXT_STATE;
    if (!read_context(xhci, input + CONTEXT_SIZE, context))
        return CODE_PARAMETER_ERROR;
    unsigned port = context[1] >> SLOT_CONTEXT_PORT_SHIFT & 0xFF;
    if (!xhci_device(xhci, port) || !(xhci->port[port - 1][XHCI_PORTSC] & PORT_PED))
        return CODE_TRANSACTION_ERROR;
    slot->port = (uint8_t)port;
    slot->state = trb->control & COMMAND_BLOCK_SET_ADDRESS ? SLOT_DEFAULT : SLOT_ADDRESSED;
    if (!write_context(xhci, output_context(xhci, number, 0), context) || !open_endpoint(xhci, number, DCI_CONTROL, input))
        return CODE_PARAMETER_ERROR;
    show_slot(xhci, number);
    return CODE_SUCCESS;
}

/* §4.6.6 */
static enum xhci_code configure_endpoint(struct xhci *xhci, unsigned number, const struct xhci_trb *trb)
{
    struct xhci_slot *slot = &xhci->slot[number];
    uint64_t input = trb->parameter & ~15ull;
    uint32_t flags[8] = { 0xFFFFFFFC, 0 }, context[8];
    bool deconfigure = trb->control & COMMAND_DECONFIGURE;
    if (slot->state < SLOT_ADDRESSED)
        return CODE_CONTEXT_STATE;
    if (!deconfigure && (!read_context(xhci, input, flags) || !read_context(xhci, input + CONTEXT_SIZE, context)))
        return CODE_PARAMETER_ERROR;
    for (unsigned dci = DCI_CONTROL + 1; dci < XHCI_ENDPOINTS; dci++) {
        if (flags[0] & 1u << dci)
            close_endpoint(xhci, number, dci);
        if (!deconfigure && flags[1] & 1u << dci && !open_endpoint(xhci, number, dci, input))
            return CODE_PARAMETER_ERROR;
    }
    slot->state = deconfigure ? SLOT_ADDRESSED : SLOT_CONFIGURED;
    if (!deconfigure && flags[1] & 1)
        write_context(xhci, output_context(xhci, number, 0), context);
    show_slot(xhci, number);
    return CODE_SUCCESS;
}

/* §4.6.7: what it may change, the greatest packet and the interrupter, matters to the driver alone. */
static enum xhci_code evaluate_context(struct xhci *xhci, unsigned number, const struct xhci_trb *trb)
{
    uint64_t input = trb->parameter & ~15ull, output = output_context(xhci, number, DCI_CONTROL);
    uint32_t flags[8], from[8], to[8];
    if (!xhci->slot[number].state)
        return CODE_CONTEXT_STATE;
    if (!read_context(xhci, input, flags) || !read_context(xhci, input + 2 * CONTEXT_SIZE, from) || !read_context(xhci, output, to))
        return CODE_PARAMETER_ERROR;
    if (flags[1] & 1u << DCI_CONTROL) {
        to[1] = (to[1] & 0xFFFF) | (from[1] & 0xFFFF0000);
        write_context(xhci, output, to);
    }
    return CODE_SUCCESS;
}

/* §4.6.8, §4.6.9, §4.6.10: what an endpoint must be for the command, and what it becomes. */
static enum xhci_code change_endpoint(struct xhci *xhci, unsigned number, const struct xhci_trb *trb)
{
    unsigned dci = trb->control >> COMMAND_ENDPOINT_SHIFT & COMMAND_ENDPOINT;
    struct xhci_endpoint *endpoint = &xhci->slot[number].endpoint[dci];
    uint8_t state = endpoint->state;
    if (!dci || state == ENDPOINT_DISABLED)
        return CODE_ENDPOINT_NOT_ENABLED;
    switch (xhci_type(trb)) {
    case TRB_STOP_ENDPOINT:
        if (state != ENDPOINT_RUNNING)
            return CODE_CONTEXT_STATE;
        break;
    case TRB_RESET_ENDPOINT:
        if (state != ENDPOINT_HALTED)
            return CODE_CONTEXT_STATE;
        break;
    default:
        if (state != ENDPOINT_STOPPED && state != ENDPOINT_ERROR)
            return CODE_CONTEXT_STATE;
        endpoint->ring = (struct xhci_ring){ trb->parameter & ~15ull, trb->parameter & DEQUEUE_CYCLE };
        endpoint->done = 0;
        endpoint->skips = false;
        break;
    }
    endpoint->state = ENDPOINT_STOPPED;
    xhci->pending[number] &= ~(1u << dci);
    xhci_show_endpoint(xhci, number, dci);
    return CODE_SUCCESS;
}

/* §4.6.11 */
static enum xhci_code reset_device(struct xhci *xhci, unsigned number)
{
    if (xhci->slot[number].state < SLOT_ADDRESSED)
        return CODE_CONTEXT_STATE;
    for (unsigned dci = DCI_CONTROL + 1; dci < XHCI_ENDPOINTS; dci++)
        if (xhci->slot[number].endpoint[dci].state != ENDPOINT_DISABLED)
            close_endpoint(xhci, number, dci);
    xhci->slot[number].state = SLOT_DEFAULT;
    show_slot(xhci, number);
    return CODE_SUCCESS;
}

static enum xhci_code slot_command(struct xhci *xhci, unsigned number, const struct xhci_trb *trb)
{
    if (!number || number > XHCI_SLOTS || !xhci->slot[number].enabled)
        return CODE_SLOT_NOT_ENABLED;
    switch (xhci_type(trb)) {
    case TRB_DISABLE_SLOT: return disable_slot(xhci, number);
    case TRB_ADDRESS_DEVICE: return address_device(xhci, number, trb);
    case TRB_CONFIGURE_ENDPOINT: return configure_endpoint(xhci, number, trb);
    case TRB_EVALUATE_CONTEXT: return evaluate_context(xhci, number, trb);
    case TRB_RESET_ENDPOINT: case TRB_STOP_ENDPOINT: case TRB_SET_DEQUEUE: return change_endpoint(xhci, number, trb);
    case TRB_RESET_DEVICE: return reset_device(xhci, number);
    default: return CODE_TRB_ERROR;
    }
}

void xhci_command(struct xhci *xhci, const struct xhci_trb *trb, uint64_t at)
{
    unsigned number = trb->control >> COMMAND_SLOT_SHIFT;
    enum xhci_code code = CODE_SUCCESS;
    if (xhci_type(trb) == TRB_ENABLE_SLOT) {
        number = 0;
        code = enable_slot(xhci, &number);
    } else if (xhci_type(trb) != TRB_NOOP_COMMAND) {
        code = slot_command(xhci, number, trb);
    }
    xhci_post_event(xhci, TRB_COMMAND_COMPLETION, at, (uint32_t)code << 24, number << COMMAND_SLOT_SHIFT);
}
