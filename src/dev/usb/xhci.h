/* The USB host controller, with a keyboard and a tablet at its first two ports, and disks at the next. */
#ifndef DOPPEL_DEV_USB_XHCI_H
#define DOPPEL_DEV_USB_XHCI_H

#include "dev/pci/pci.h"
#include "dev/usb/storage.h"
#include "dev/usb/usb.h"

enum { XHCI_SLOTS = 8, XHCI_PORTS = 8, XHCI_ENDPOINTS = 32, XHCI_INPUTS = 2, XHCI_DISKS = 2, XHCI_DEVICES = XHCI_INPUTS + XHCI_DISKS };

enum xhci_register {
#define REG(name, offset, reset, rw, w1c, section) XHCI_##name,
#include "dev/usb/xhci_registers.def"
    XHCI_REGISTERS
};
enum xhci_port_register {
#define PORT(name, offset, rw, w1c, section) XHCI_##name,
#include "dev/usb/xhci_registers.def"
    XHCI_PORT_REGISTERS
};

/* Where a ring is read next. */
struct xhci_ring {
    uint64_t dequeue;
    bool cycle;
};

struct xhci_endpoint {
    uint8_t state, type;        /* §6.2.3, table 6-8 and 6-9 */
    struct xhci_ring ring;
    uint32_t done;              /* bytes of the next block that have been moved */
    bool skips;                 /* to the end of a transfer that ended early */
};

struct xhci_slot {
    uint8_t state;              /* §4.5.3: of a slot context; disabled and enabled are both 0 there */
    bool enabled;
    uint8_t port;               /* of the root hub, from 1 on; 0: none */
    struct xhci_endpoint endpoint[XHCI_ENDPOINTS];      /* by DCI: 1 is control */
    /* The control transfer that is under way. */
    uint8_t setup[8];
    bool setup_valid;
    uint8_t data[USB_CONTROL_MAX];
    uint32_t data_size;
};

struct xhci {
    struct pci_function pci;
    /* --- configuration: a storage without an image is not there --- */
    bool inputs;                /* a keyboard and a tablet are there */
    /* --- state --- */
    struct usb_storage storage[XHCI_DISKS];
    uint32_t reg[XHCI_REGISTERS];
    uint32_t port[XHCI_PORTS][XHCI_PORT_REGISTERS];
    struct xhci_ring command_ring;
    uint64_t event_base;        /* the one segment of the event ring */
    uint32_t event_size, event_at;
    bool event_cycle, event_lost;
    struct xhci_slot slot[XHCI_SLOTS + 1];              /* from 1 on */
    uint32_t pending[XHCI_SLOTS + 1];   /* rung doorbells that are not done with; of 0 the command ring's */
    struct usb_device device[XHCI_DEVICES];
    /* --- not state --- */
    struct timer more;
};

/* Board lock held. What usb.h says of them. */
bool xhci_key(struct xhci *xhci, enum key key, bool down);
bool xhci_point(struct xhci *xhci, uint16_t x, uint16_t y, int wheel, uint8_t buttons);

#endif
