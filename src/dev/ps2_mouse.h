/* A PS/2 mouse with a wheel, behind the keyboard controller's auxiliary port. */
#ifndef DOPPEL_DEV_PS2_MOUSE_H
#define DOPPEL_DEV_PS2_MOUSE_H

#include <stdbool.h>
#include <stdint.h>

#include "state/state.h"

enum { PS2_MOUSE_QUEUE = 16 };

/* Buttons, as in the first byte of a packet; 4 and 5 are reported by mice that were asked to. */
enum { MOUSE_LEFT = 1 << 0, MOUSE_RIGHT = 1 << 1, MOUSE_MIDDLE = 1 << 2, MOUSE_SIDE = 1 << 3, MOUSE_EXTRA = 1 << 4 };

struct ps2_mouse {
    /* --- state --- */
    bool reporting, remote, wrap, scaled;
    uint8_t id;                 /* 0: plain; 3: with a wheel; 4: with five buttons, too */
    uint8_t resolution, rate;
    uint8_t rates[3];           /* the last that were set: the knock by which a driver asks for the wheel */
    uint8_t argument_of;        /* command whose argument is awaited; 0 for none */
    uint8_t last;               /* the last byte sent, for "resend" */
    uint8_t buttons, reported;  /* now; in the last packet */
    uint32_t dx, dy, dz;        /* two's complement: moved and not yet reported; y is down, z is towards the user */
    uint8_t queue[PS2_MOUSE_QUEUE];
    uint8_t first, count;
};
extern const struct state_list ps2_mouse_state;

void ps2_mouse_reset(struct ps2_mouse *mouse);
/* After its state was loaded. */
void ps2_mouse_resume(struct ps2_mouse *mouse);
/* A byte from the controller. */
void ps2_mouse_write(struct ps2_mouse *mouse, uint8_t value);
/* False: there is no byte for the controller. */
bool ps2_mouse_read(struct ps2_mouse *mouse, uint8_t *value);
/* Somebody moves it, down and towards the user being positive, or changes its buttons. */
void ps2_mouse_move(struct ps2_mouse *mouse, int dx, int dy, int dz, uint8_t buttons);

#endif
