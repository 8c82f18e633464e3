#include <string.h>

#include "base/base.h"
#include "dev/usb/storage.h"
#include "dev/usb/usb.h"

/* --- descriptors: USB 2.0 §9.6, HID 1.11 §6.2 --- */

static const uint8_t keyboard_report[] = {
    0x05, 0x01, 0x09, 0x06, 0xA1, 0x01,                                         /* generic desktop, keyboard, application */
    0x05, 0x07, 0x19, 0xE0, 0x29, 0xE7, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x08, 0x81, 0x02,     /* modifiers, a bit each */
    0x95, 0x01, 0x75, 0x08, 0x81, 0x01,                                         /* a byte that is reserved */
    0x95, 0x05, 0x75, 0x01, 0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02, 0x95, 0x01, 0x75, 0x03, 0x91, 0x01,     /* lamps */
    0x95, 0x06, 0x75, 0x08, 0x15, 0x00, 0x25, 0xFF, 0x05, 0x07, 0x19, 0x00, 0x29, 0xFF, 0x81, 0x00,     /* six keys that are down */
    0xC0,
};
static const uint8_t tablet_report[] = {
    0x05, 0x01, 0x09, 0x02, 0xA1, 0x01, 0x09, 0x01, 0xA1, 0x00,                 /* generic desktop, mouse, pointer */
    0x05, 0x09, 0x19, 0x01, 0x29, 0x03, 0x15, 0x00, 0x25, 0x01, 0x95, 0x03, 0x75, 0x01, 0x81, 0x02,     /* three buttons */
    0x95, 0x01, 0x75, 0x05, 0x81, 0x01,
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x15, 0x00, 0x26, 0xFF, 0x7F, 0x35, 0x00, 0x46, 0xFF, 0x7F, 0x75, 0x10, 0x95, 0x02, 0x81, 0x02,     /* where */
    0x09, 0x38, 0x15, 0x81, 0x25, 0x7F, 0x35, 0x00, 0x45, 0x00, 0x75, 0x08, 0x95, 0x01, 0x81, 0x06,     /* wheel */
    0xC0, 0xC0,
};

#define DEVICE_DESCRIPTOR(product) { 18, 1, 0x00, 0x02, 0, 0, 0, 64, 0x27, 0x06, 0x01, 0x00, 0x00, 0x01, 1, product, 0, 1 }
/* A configuration with one interface and one interrupt endpoint, which is polled every 10 ms. */
#define CONFIGURATION(subclass, protocol, report, packet)                                                           \
    { 9, 2, 34, 0, 1, 1, 0, 0xA0, 50,                                                                               \
      9, 4, 0, 0, 1, 3, subclass, protocol, 0,                                                                      \
      9, 0x21, 0x11, 0x01, 0, 1, 0x22, sizeof(report), 0,                                                           \
      7, 5, 0x81, 3, packet, 0, 10 }

/* Bulk-Only Transport 1.0 §4: two bulk endpoints of 512 bytes, as high speed has them. */
static const uint8_t disk_configuration[] = {
    9, 2, 32, 0, 1, 1, 0, 0x80, 50,
    9, 4, 0, 0, 2, 8, 6, 0x50, 0,
    7, 5, 0x81, 2, 0x00, 0x02, 0,
    7, 5, 0x02, 2, 0x00, 0x02, 0,
};

enum { KEYBOARD_PACKET = 8, TABLET_PACKET = 6 };
static const uint8_t keyboard_device[] = DEVICE_DESCRIPTOR(2), tablet_device[] = DEVICE_DESCRIPTOR(3),
                     disk_device[] = DEVICE_DESCRIPTOR(4);
static const uint8_t keyboard_configuration[] = CONFIGURATION(1, 1, keyboard_report, KEYBOARD_PACKET);
static const uint8_t tablet_configuration[] = CONFIGURATION(0, 0, tablet_report, TABLET_PACKET);
static const char *const strings[] = { NULL, "Doppel", "USB keyboard", "USB tablet", "USB disk" };

static const uint8_t usages[KEY_COUNT] = {
#define KEY(id, name, set2, set1, keysym, usage) [KEY_##id] = usage,
#include "dev/keys.def"
#undef KEY
};

/* --- control requests --- */

/* bmRequestType and bRequest as one number: USB 2.0 §9.4, HID 1.11 §7.2. */
enum usb_request {
    DEVICE_GET_STATUS = 0x8000,
    INTERFACE_GET_STATUS = 0x8100,
    ENDPOINT_GET_STATUS = 0x8200,
    DEVICE_CLEAR_FEATURE = 0x0001,
    ENDPOINT_CLEAR_FEATURE = 0x0201,
    DEVICE_SET_FEATURE = 0x0003,
    DEVICE_GET_DESCRIPTOR = 0x8006,
    INTERFACE_GET_DESCRIPTOR = 0x8106,
    DEVICE_GET_CONFIGURATION = 0x8008,
    DEVICE_SET_CONFIGURATION = 0x0009,
    INTERFACE_GET_INTERFACE = 0x810A,
    INTERFACE_SET_INTERFACE = 0x010B,
    HID_GET_REPORT = 0xA101,
    HID_GET_IDLE = 0xA102,
    HID_GET_PROTOCOL = 0xA103,
    HID_SET_REPORT = 0x2109,
    HID_SET_IDLE = 0x210A,
    HID_SET_PROTOCOL = 0x210B,
    DISK_GET_MAX_LUN = 0xA1FE,
    DISK_RESET = 0x21FF,
};
enum { DESCRIPTOR_DEVICE = 1, DESCRIPTOR_CONFIGURATION, DESCRIPTOR_STRING, DESCRIPTOR_HID = 0x21, DESCRIPTOR_REPORT = 0x22, HID_AT = 18, HID_SIZE = 9 };

/* As much as was asked for and there is. */
static bool answer(const struct usb_setup *setup, uint8_t *data, uint32_t *size, const void *from, uint32_t length)
{
    *size = (uint32_t)min_u64(min_u64(length, setup->length), USB_CONTROL_MAX);
    memcpy(data, from, *size);
    return true;
}

static bool answer_byte(const struct usb_setup *setup, uint8_t *data, uint32_t *size, uint8_t value)
{
    return answer(setup, data, size, &value, 1);
}

/* §9.6.7: UTF-16; the first says the language, which is US English. */
static bool answer_string(const struct usb_setup *setup, uint8_t *data, uint32_t *size)
{
    uint8_t text[64] = { 4, DESCRIPTOR_STRING, 0x09, 0x04 };
    unsigned index = setup->value & 0xFF;
    if (index >= ARRAY_SIZE(strings))
        return false;
    if (index) {
        unsigned length = (unsigned)strlen(strings[index]);
        text[0] = (uint8_t)(2 + 2 * length);
        for (unsigned i = 0; i < length; i++) {
            text[2 + 2 * i] = (uint8_t)strings[index][i];
            text[3 + 2 * i] = 0;
        }
    }
    return answer(setup, data, size, text, text[0]);
}

static bool answer_disk_descriptor(const struct usb_setup *setup, uint8_t *data, uint32_t *size)
{
    switch (setup->value >> 8) {
    case DESCRIPTOR_DEVICE: return answer(setup, data, size, disk_device, sizeof(disk_device));
    case DESCRIPTOR_CONFIGURATION: return answer(setup, data, size, disk_configuration, sizeof(disk_configuration));
    case DESCRIPTOR_STRING: return answer_string(setup, data, size);
    default: return false;
    }
}

static bool answer_descriptor(const struct usb_device *device, const struct usb_setup *setup, uint8_t *data, uint32_t *size)
{
    if (device->kind == USB_DISK)
        return answer_disk_descriptor(setup, data, size);
    bool keyboard = device->kind == USB_KEYBOARD;
    const uint8_t *configuration = keyboard ? keyboard_configuration : tablet_configuration;
    switch (setup->value >> 8) {
    case DESCRIPTOR_DEVICE: return answer(setup, data, size, keyboard ? keyboard_device : tablet_device, sizeof(keyboard_device));
    case DESCRIPTOR_CONFIGURATION: return answer(setup, data, size, configuration, sizeof(keyboard_configuration));
    case DESCRIPTOR_STRING: return answer_string(setup, data, size);
    case DESCRIPTOR_HID: return answer(setup, data, size, configuration + HID_AT, HID_SIZE);
    case DESCRIPTOR_REPORT:
        return keyboard ? answer(setup, data, size, keyboard_report, sizeof(keyboard_report))
                        : answer(setup, data, size, tablet_report, sizeof(tablet_report));
    default: return false;
    }
}

static uint32_t keyboard_state(const struct usb_device *device, uint8_t report[8])
{
    report[0] = device->modifiers;
    report[1] = 0;
    memcpy(report + 2, device->keys, USB_KEYS);
    return KEYBOARD_PACKET;
}

bool usb_control(struct usb_device *device, const struct usb_setup *setup, uint8_t *data, uint32_t *size)
{
    static const uint8_t nothing[8];
    uint8_t report[8];
    if (!(setup->type & 0x80))
        *size = 0;
    switch ((enum usb_request)(setup->type << 8 | setup->request)) {
    case DEVICE_GET_STATUS: case INTERFACE_GET_STATUS: case ENDPOINT_GET_STATUS: return answer(setup, data, size, nothing, 2);
    case DEVICE_CLEAR_FEATURE: case ENDPOINT_CLEAR_FEATURE: case DEVICE_SET_FEATURE: case INTERFACE_SET_INTERFACE: case HID_SET_REPORT: return true;
    case DEVICE_GET_DESCRIPTOR: case INTERFACE_GET_DESCRIPTOR: return answer_descriptor(device, setup, data, size);
    case DEVICE_GET_CONFIGURATION: return answer_byte(setup, data, size, device->configuration);
    case DEVICE_SET_CONFIGURATION:
        device->configuration = (uint8_t)setup->value;
        return setup->value <= 1;
    case INTERFACE_GET_INTERFACE: return answer_byte(setup, data, size, 0);
    case HID_GET_REPORT:
        if (device->kind == USB_KEYBOARD)
            return answer(setup, data, size, report, keyboard_state(device, report));
        return answer(setup, data, size, nothing, TABLET_PACKET);
    case HID_GET_IDLE: return answer_byte(setup, data, size, device->idle);
    case HID_GET_PROTOCOL: return answer_byte(setup, data, size, device->protocol);
    case DISK_GET_MAX_LUN: return device->kind == USB_DISK && answer_byte(setup, data, size, 0);
    case DISK_RESET:
        if (device->kind == USB_DISK)
            usb_storage_reset(device->storage);
        return device->kind == USB_DISK;
    case HID_SET_IDLE: device->idle = (uint8_t)(setup->value >> 8); return true;
    case HID_SET_PROTOCOL: device->protocol = setup->value & 1; return true;
    }
    return false;
}

/* --- reports --- */

static struct usb_event *last_event(struct usb_device *device) { return &device->queue[(device->first + device->count - 1) % USB_QUEUE]; }

static bool put(struct usb_device *device, const struct usb_event *event)
{
    if (device->count == USB_QUEUE)
        return false;
    device->count++;
    *last_event(device) = *event;
    return true;
}

bool usb_key(struct usb_device *keyboard, enum key key, bool down)
{
    return put(keyboard, &(struct usb_event){ .usage = usages[key], .down = down });
}

/* Only where it is now matters: a motion that nobody has fetched is replaced. */
bool usb_point(struct usb_device *tablet, uint16_t x, uint16_t y, int wheel, uint8_t buttons)
{
    const struct usb_event event = { .x = x, .y = y, .wheel = (uint8_t)wheel, .buttons = buttons & 7 };
    if (tablet->count && !wheel && last_event(tablet)->buttons == event.buttons && !last_event(tablet)->wheel) {
        *last_event(tablet) = event;
        return true;
    }
    return put(tablet, &event);
}

/* HID Usage Tables §10: 0xE0 to 0xE7 are the modifiers. A seventh key is not seen. */
static void apply_key(struct usb_device *device, uint8_t usage, bool down)
{
    uint8_t bit = usage >= 0xE0 ? (uint8_t)(1u << (usage & 7)) : 0;
    if (bit) {
        device->modifiers = (uint8_t)(down ? device->modifiers | bit : device->modifiers & ~bit);
        return;
    }
    for (unsigned i = 0; i < USB_KEYS; i++)
        if (device->keys[i] == usage)
            device->keys[i] = 0;
    for (unsigned i = 0; down && i < USB_KEYS; i++)
        if (!device->keys[i]) {
            device->keys[i] = usage;
            return;
        }
}

uint32_t usb_report(struct usb_device *device, uint8_t report[8])
{
    if (!device->count || !device->configuration)
        return 0;
    const struct usb_event event = device->queue[device->first];
    device->first = (device->first + 1) % USB_QUEUE;
    device->count--;
    if (device->kind == USB_KEYBOARD) {
        apply_key(device, event.usage, event.down);
        return keyboard_state(device, report);
    }
    const uint8_t tablet[TABLET_PACKET] = { event.buttons, (uint8_t)event.x, (uint8_t)(event.x >> 8), (uint8_t)event.y, (uint8_t)(event.y >> 8),
                                            (uint8_t)-event.wheel };
    memcpy(report, tablet, sizeof(tablet));
    return sizeof(tablet);
}

/* --- reset, state --- */

void usb_reset(struct usb_device *device)
{
    *device = (struct usb_device){ .kind = device->kind, .storage = device->storage, .protocol = 1 };
    if (device->kind == USB_DISK)
        usb_storage_reset(device->storage);
}

void usb_resume(struct usb_device *device)
{
    device->first %= USB_QUEUE;
    device->count = (uint8_t)min_u64(device->count, USB_QUEUE);
}

static const struct state_field event_fields[] = {
    STATE_SCALAR(struct usb_event, usage), STATE_SCALAR(struct usb_event, buttons), STATE_SCALAR(struct usb_event, down),
    STATE_SCALAR(struct usb_event, wheel), STATE_SCALAR(struct usb_event, x),       STATE_SCALAR(struct usb_event, y),
};
static const struct state_list event_state = STATE_LIST("usb-event", 1, event_fields);

static const struct state_field fields[] = {
    STATE_SCALAR(struct usb_device, configuration), STATE_SCALAR(struct usb_device, protocol), STATE_SCALAR(struct usb_device, idle),
    STATE_SCALAR(struct usb_device, modifiers),     STATE_BLOB(struct usb_device, keys),       STATE_NESTED_ARRAY(struct usb_device, queue, event_state),
    STATE_SCALAR(struct usb_device, first),         STATE_SCALAR(struct usb_device, count),
};
const struct state_list usb_device_state = STATE_LIST("usb-device", 1, fields);
