/*
 * PS/2 mouse (IBM PS/2 Hardware Interface Technical Reference, "Mouse", October 1990), with the wheel and the two further buttons that
 * Microsoft's IntelliMouse and its successors report once a driver has set certain sample rates in a row. What moves while a packet
 * waits is added up for the next. The sample rate and the resolution are remembered and change nothing.
 */
#include "dev/ps2_mouse.h"

#include <string.h>

#include "base/base.h"

enum ps2_mouse_command {
    MOUSE_SCALE_1 = 0xE6,
    MOUSE_SCALE_2 = 0xE7,
    MOUSE_SET_RESOLUTION = 0xE8,
    MOUSE_STATUS = 0xE9,
    MOUSE_STREAM = 0xEA,
    MOUSE_READ_DATA = 0xEB,
    MOUSE_END_WRAP = 0xEC,
    MOUSE_WRAP = 0xEE,
    MOUSE_REMOTE = 0xF0,
    MOUSE_READ_ID = 0xF2,
    MOUSE_SET_RATE = 0xF3,
    MOUSE_ENABLE = 0xF4,
    MOUSE_DISABLE = 0xF5,
    MOUSE_SET_DEFAULT = 0xF6,
    MOUSE_RESEND = 0xFE,
    MOUSE_RESET = 0xFF,
};
enum { MOUSE_ACK = 0xFA, MOUSE_TEST_PASSED = 0xAA, MOUSE_AGAIN = 0xFE, ID_PLAIN = 0, ID_WHEEL = 3, ID_FIVE_BUTTONS = 4,
       DEFAULT_RATE = 100, DEFAULT_RESOLUTION = 2, BUTTONS_3 = 7 };
/* The first byte of a packet */
enum { PACKET_ALWAYS = 1 << 3, PACKET_X_SIGN = 1 << 4, PACKET_Y_SIGN = 1 << 5, PACKET_MAX = 255, WHEEL_MAX = 7 };
/* The first byte of the status */
enum { STATUS_SCALED = 1 << 4, STATUS_REPORTING = 1 << 5, STATUS_REMOTE = 1 << 6 };

/* --- the queue --- */

static void put(struct ps2_mouse *mouse, uint8_t value)
{
    if (mouse->count < PS2_MOUSE_QUEUE)
        mouse->queue[(mouse->first + mouse->count++) % PS2_MOUSE_QUEUE] = value;
}

/* Takes what a packet holds off the sum. */
static int take(uint32_t *sum, int most)
{
    int all = (int32_t)*sum, part = all > most ? most : all < -most ? -most : all;
    *sum -= (uint32_t)part;
    return part;
}

static void put_packet(struct ps2_mouse *mouse)
{
    int dx = take(&mouse->dx, PACKET_MAX), up = -take(&mouse->dy, PACKET_MAX);
    int dz = mouse->id == ID_PLAIN ? 0 : take(&mouse->dz, WHEEL_MAX);
    put(mouse, (uint8_t)(PACKET_ALWAYS | (mouse->buttons & BUTTONS_3) | (dx < 0 ? PACKET_X_SIGN : 0) | (up < 0 ? PACKET_Y_SIGN : 0)));
    put(mouse, (uint8_t)dx);
    put(mouse, (uint8_t)up);
    if (mouse->id == ID_WHEEL)
        put(mouse, (uint8_t)dz);
    else if (mouse->id == ID_FIVE_BUTTONS)
        put(mouse, (uint8_t)((dz & 15) | (mouse->buttons & (MOUSE_SIDE | MOUSE_EXTRA)) << 1));
    mouse->reported = mouse->buttons;
}

static void forget_motion(struct ps2_mouse *mouse) { mouse->dx = mouse->dy = mouse->dz = 0; }

static void report(struct ps2_mouse *mouse)
{
    bool streams = mouse->reporting && !mouse->remote && !mouse->wrap;
    if (streams && !mouse->count && (mouse->dx || mouse->dy || mouse->dz || mouse->buttons != mouse->reported))
        put_packet(mouse);
}

bool ps2_mouse_read(struct ps2_mouse *mouse, uint8_t *value)
{
    if (!mouse->count)
        return false;
    *value = mouse->last = mouse->queue[mouse->first];
    mouse->first = (mouse->first + 1) % PS2_MOUSE_QUEUE;
    mouse->count--;
    report(mouse);
    return true;
}

void ps2_mouse_move(struct ps2_mouse *mouse, int dx, int dy, int dz, uint8_t buttons)
{
    mouse->buttons = buttons & (MOUSE_LEFT | MOUSE_RIGHT | MOUSE_MIDDLE | MOUSE_SIDE | MOUSE_EXTRA);
    if (!mouse->reporting && !mouse->remote) {
        forget_motion(mouse);   /* nobody looks */
        return;
    }
    mouse->dx += (uint32_t)dx;
    mouse->dy += (uint32_t)dy;
    mouse->dz += mouse->id == ID_PLAIN ? 0 : (uint32_t)dz;
    report(mouse);
}

/* --- commands --- */

static void defaults(struct ps2_mouse *mouse)
{
    mouse->reporting = mouse->remote = mouse->wrap = mouse->scaled = false;
    mouse->resolution = DEFAULT_RESOLUTION;
    mouse->rate = DEFAULT_RATE;
    mouse->argument_of = 0;
    mouse->first = mouse->count = 0;
    mouse->reported = mouse->buttons;
    forget_motion(mouse);
}

static void set_rate(struct ps2_mouse *mouse, uint8_t rate)
{
    static const uint8_t wheel[3] = { 200, 100, 80 }, five[3] = { 200, 200, 80 };
    memmove(mouse->rates, mouse->rates + 1, 2);
    mouse->rates[2] = mouse->rate = rate;
    if (!memcmp(mouse->rates, wheel, 3))
        mouse->id = ID_WHEEL;
    if (!memcmp(mouse->rates, five, 3) && mouse->id == ID_WHEEL)
        mouse->id = ID_FIVE_BUTTONS;
}

static void put_status(struct ps2_mouse *mouse)
{
    uint8_t left = mouse->buttons & MOUSE_LEFT ? 4 : 0, right = mouse->buttons & MOUSE_RIGHT ? 1 : 0;
    put(mouse, (uint8_t)(left | right | (mouse->scaled ? STATUS_SCALED : 0) | (mouse->reporting ? STATUS_REPORTING : 0) |
                         (mouse->remote ? STATUS_REMOTE : 0)));
    put(mouse, mouse->resolution);
    put(mouse, mouse->rate);
}

static void command(struct ps2_mouse *mouse, uint8_t value)
{
    mouse->first = mouse->count = 0;    /* a command ends what was being sent */
    put(mouse, MOUSE_ACK);
    switch ((enum ps2_mouse_command)value) {
    case MOUSE_SCALE_1: mouse->scaled = false; break;
    case MOUSE_SCALE_2: mouse->scaled = true; break;
    case MOUSE_SET_RESOLUTION: case MOUSE_SET_RATE: mouse->argument_of = value; break;
    case MOUSE_STATUS: put_status(mouse); break;
    case MOUSE_STREAM: mouse->remote = false; break;
    case MOUSE_READ_DATA: put_packet(mouse); break;
    case MOUSE_END_WRAP: mouse->wrap = false; break;
    case MOUSE_WRAP: mouse->wrap = true; break;
    case MOUSE_REMOTE: mouse->remote = true; break;
    case MOUSE_READ_ID: put(mouse, mouse->id); break;
    case MOUSE_ENABLE: mouse->reporting = true; break;
    case MOUSE_DISABLE: mouse->reporting = false; break;
    case MOUSE_SET_DEFAULT:
        defaults(mouse);
        put(mouse, MOUSE_ACK);
        break;
    case MOUSE_RESEND:
        mouse->count = 0;
        put(mouse, mouse->last);
        break;
    case MOUSE_RESET:
        ps2_mouse_reset(mouse);
        put(mouse, MOUSE_ACK);
        put(mouse, MOUSE_TEST_PASSED);
        put(mouse, mouse->id);
        break;
    default:
        mouse->count = 0;
        put(mouse, MOUSE_AGAIN);
        break;
    }
}

void ps2_mouse_write(struct ps2_mouse *mouse, uint8_t value)
{
    uint8_t of = mouse->argument_of;
    mouse->argument_of = 0;
    if (mouse->wrap && value != MOUSE_END_WRAP && value != MOUSE_RESET) {
        put(mouse, value);
    } else if (of) {
        if (of == MOUSE_SET_RATE)
            set_rate(mouse, value);
        else
            mouse->resolution = value & 3;
        put(mouse, MOUSE_ACK);
    } else {
        command(mouse, value);
    }
}

void ps2_mouse_reset(struct ps2_mouse *mouse)
{
    memset(mouse, 0, sizeof(*mouse));
    defaults(mouse);
}

void ps2_mouse_resume(struct ps2_mouse *mouse)
{
    mouse->first %= PS2_MOUSE_QUEUE;
    mouse->count = (uint8_t)min_u64(mouse->count, PS2_MOUSE_QUEUE);
    mouse->id = mouse->id == ID_WHEEL || mouse->id == ID_FIVE_BUTTONS ? mouse->id : ID_PLAIN;
}

static const struct state_field fields[] = {
    STATE_SCALAR(struct ps2_mouse, reporting),   STATE_SCALAR(struct ps2_mouse, remote),
    STATE_SCALAR(struct ps2_mouse, wrap),        STATE_SCALAR(struct ps2_mouse, scaled),
    STATE_SCALAR(struct ps2_mouse, id),          STATE_SCALAR(struct ps2_mouse, resolution),
    STATE_SCALAR(struct ps2_mouse, rate),        STATE_BLOB(struct ps2_mouse, rates),
    STATE_SCALAR(struct ps2_mouse, argument_of), STATE_SCALAR(struct ps2_mouse, last),
    STATE_SCALAR(struct ps2_mouse, buttons),     STATE_SCALAR(struct ps2_mouse, reported),
    STATE_SCALAR(struct ps2_mouse, dx),          STATE_SCALAR(struct ps2_mouse, dy),
    STATE_SCALAR(struct ps2_mouse, dz),          STATE_BLOB(struct ps2_mouse, queue),
    STATE_SCALAR(struct ps2_mouse, first),       STATE_SCALAR(struct ps2_mouse, count),
};
const struct state_list ps2_mouse_state = STATE_LIST("ps2-mouse", 1, fields);
