/* What the files of the USB host controller share with each other only. Sections are of the xHCI specification 1.2. */
#ifndef DOPPEL_DEV_USB_XHCI_INTERNAL_H
#define DOPPEL_DEV_USB_XHCI_INTERNAL_H

#include <string.h>

#include "dev/usb/xhci.h"

/* Transfer request block, §4.11.1 and §6.4. */
struct xhci_trb {
    uint64_t parameter;
    uint32_t status, control;
};
enum { TRB_SIZE = 16, TRB_CYCLE = 1 << 0, TRB_TOGGLE = 1 << 1, TRB_SHORT = 1 << 2, TRB_CHAIN = 1 << 4, TRB_IOC = 1 << 5, TRB_IMMEDIATE = 1 << 6,
       TRB_TYPE_SHIFT = 10, TRB_TYPE = 0x3F, TRB_LENGTH = 0x1FFFF };

/* §6.4.6 table 6-91 */
enum xhci_trb_type {
    TRB_NORMAL = 1, TRB_SETUP, TRB_DATA, TRB_STATUS, TRB_ISOCH, TRB_LINK, TRB_EVENT_DATA, TRB_NOOP,
    TRB_ENABLE_SLOT, TRB_DISABLE_SLOT, TRB_ADDRESS_DEVICE, TRB_CONFIGURE_ENDPOINT, TRB_EVALUATE_CONTEXT, TRB_RESET_ENDPOINT, TRB_STOP_ENDPOINT,
    TRB_SET_DEQUEUE, TRB_RESET_DEVICE, TRB_NOOP_COMMAND = 23,
    TRB_TRANSFER_EVENT = 32, TRB_COMMAND_COMPLETION, TRB_PORT_CHANGE, TRB_HOST_EVENT = 37,
};

/* §6.4.5 table 6-90 */
enum xhci_code {
    CODE_SUCCESS = 1, CODE_TRANSACTION_ERROR = 4, CODE_TRB_ERROR = 5, CODE_STALL = 6, CODE_NO_SLOTS = 9, CODE_SLOT_NOT_ENABLED = 11,
    CODE_ENDPOINT_NOT_ENABLED = 12, CODE_SHORT_PACKET = 13, CODE_PARAMETER_ERROR = 17, CODE_CONTEXT_STATE = 19, CODE_EVENT_RING_FULL = 21,
    CODE_COMMAND_RING_STOPPED = 24,
};

enum { SLOT_DEFAULT = 1, SLOT_ADDRESSED, SLOT_CONFIGURED };
enum { ENDPOINT_DISABLED, ENDPOINT_RUNNING, ENDPOINT_HALTED, ENDPOINT_STOPPED, ENDPOINT_ERROR };
enum { TYPE_CONTROL = 4, TYPE_BULK_OUT = 2, TYPE_BULK_IN = 6, TYPE_INTERRUPT_IN = 7, DCI_CONTROL = 1 };
enum { CONTEXT_SIZE = 32 };
enum { CMD_RUN = 1 << 0, STS_HCH = 1 << 0, STS_HSE = 1 << 2 };
/* PORTSC, §5.4.8 */
enum { PORT_CCS = 1 << 0, PORT_PED = 1 << 1, PORT_PP = 1 << 9 };

static inline uint64_t xhci_wide(const struct xhci *xhci, enum xhci_register low)
{
    return xhci->reg[low] | (uint64_t)xhci->reg[low + 1] << 32;
}

static inline enum xhci_trb_type xhci_type(const struct xhci_trb *trb) { return (enum xhci_trb_type)(trb->control >> TRB_TYPE_SHIFT & TRB_TYPE); }

/* xhci.c */
/* The next block that the driver has given, links followed; *at is where it is. False: there is none. */
bool xhci_fetch(struct xhci *xhci, struct xhci_ring *ring, struct xhci_trb *trb, uint64_t *at);
void xhci_post_event(struct xhci *xhci, enum xhci_trb_type type, uint64_t parameter, uint32_t status, uint32_t control);
/* The guest's memory is not where the driver says: the controller stops (§4.10.2.6 "Host Controller Error"). */
void xhci_host_error(struct xhci *xhci);
/* The device at a root hub port; NULL: none. */
struct usb_device *xhci_device(struct xhci *xhci, unsigned port);

/* xhci_command.c: one block of the command ring */
void xhci_command(struct xhci *xhci, const struct xhci_trb *trb, uint64_t at);
void xhci_forget_slots(struct xhci *xhci);
/* Writes the endpoint's state and dequeue pointer where the driver sees them. */
void xhci_show_endpoint(struct xhci *xhci, unsigned slot, unsigned dci);

/* xhci_transfer.c: as much of an endpoint's ring as can be done, at most *budget blocks. True: there is more to do now. */
bool xhci_transfer(struct xhci *xhci, unsigned slot, unsigned dci, unsigned *budget);

#endif
