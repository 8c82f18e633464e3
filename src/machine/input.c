#include "machine/input.h"

#include "dev/i8042.h"
#include "dev/usb/xhci.h"

enum { USB_KEYBOARD_DEVICE, USB_TABLET_DEVICE };

static bool configured(const struct machine *machine, unsigned device)
{
    return machine->xhci && ((struct xhci *)machine->xhci)->device[device].configuration;
}

bool input_key(struct machine *machine, enum key key, bool down)
{
    pthread_mutex_lock(&machine->lock);
    bool taken = configured(machine, USB_KEYBOARD_DEVICE) ? xhci_key((struct xhci *)machine->xhci, key, down)
                                                          : i8042_key((struct i8042 *)machine->i8042, key, down);
    pthread_mutex_unlock(&machine->lock);
    return taken;
}

bool input_move(struct machine *machine, int dx, int dy, int wheel, uint8_t buttons)
{
    pthread_mutex_lock(&machine->lock);
    bool mouse = !configured(machine, USB_TABLET_DEVICE);
    if (mouse)
        i8042_move((struct i8042 *)machine->i8042, dx, dy, wheel, buttons);
    pthread_mutex_unlock(&machine->lock);
    return mouse;
}

bool input_point(struct machine *machine, unsigned x, unsigned y, unsigned width, unsigned height, int wheel, uint8_t buttons)
{
    unsigned right = width > 1 ? width - 1 : 1, bottom = height > 1 ? height - 1 : 1;
    pthread_mutex_lock(&machine->lock);
    bool tablet = configured(machine, USB_TABLET_DEVICE);
    if (tablet)
        xhci_point((struct xhci *)machine->xhci, (uint16_t)(x * USB_TABLET_MAX / right), (uint16_t)(y * USB_TABLET_MAX / bottom), wheel, buttons);
    pthread_mutex_unlock(&machine->lock);
    return tablet;
}
