/*
 * USB devices, as a host controller reaches them: control requests, and reports to be fetched. A keyboard, a tablet and disks (Universal Serial Bus
 * Specification 2.0 §9; Device Class Definition for HID 1.11). Board lock held.
 */
#ifndef DOPPEL_DEV_USB_USB_H
#define DOPPEL_DEV_USB_USB_H

#include <stdbool.h>
#include <stdint.h>

#include "dev/ps2_keyboard.h"
#include "state/state.h"

enum { USB_QUEUE = 64, USB_KEYS = 6, USB_TABLET_MAX = 0x7FFF, USB_CONTROL_MAX = 256 };

enum usb_kind { USB_NOTHING, USB_KEYBOARD, USB_TABLET, USB_DISK };

struct usb_setup {
    uint8_t type, request;
    uint16_t value, index, length;
};

/* What somebody did, not yet reported. */
struct usb_event {
    uint8_t usage, buttons;     /* keyboard: the key; tablet: all that are down */
    bool down;
    uint8_t wheel;              /* two's complement, towards the user is positive */
    uint16_t x, y;
};

struct usb_storage;

struct usb_device {
    /* --- configuration --- */
    enum usb_kind kind;
    struct usb_storage *storage;        /* of a disk */
    /* --- state --- */
    uint8_t configuration, protocol, idle;
    uint8_t modifiers, keys[USB_KEYS];
    struct usb_event queue[USB_QUEUE];
    uint8_t first, count;
};
extern const struct state_list usb_device_state;

void usb_reset(struct usb_device *device);
/* After its state was loaded. */
void usb_resume(struct usb_device *device);
/*
 * A control request. To the host: fills data and *size, at most USB_CONTROL_MAX and what the request asks for. From the host: *size bytes
 * came with it. False: the request is refused (STALL).
 */
bool usb_control(struct usb_device *device, const struct usb_setup *setup, uint8_t *data, uint32_t *size);
/* The next report of the interrupt endpoint; 0: there is none now. */
uint32_t usb_report(struct usb_device *device, uint8_t report[8]);

/* False: the guest has not taken what came before, and this is lost. */
bool usb_key(struct usb_device *keyboard, enum key key, bool down);
/* x, y: 0 to USB_TABLET_MAX. */
bool usb_point(struct usb_device *tablet, uint16_t x, uint16_t y, int wheel, uint8_t buttons);

#endif
