/* The keyboard controller, with a keyboard and a mouse or with nothing plugged in. */
#ifndef DOPPEL_DEV_I8042_H
#define DOPPEL_DEV_I8042_H

#include "dev/device.h"
#include "dev/ps2_keyboard.h"
#include "dev/ps2_mouse.h"
#include "dev/system_signal.h"

struct i8042 {
    struct device device;
    /* --- configuration --- */
    struct irq_line irq;            /* IRQ 1 */
    struct irq_line irq_aux;        /* IRQ 12 */
    struct system_signal signal;
    bool plugged;                   /* a keyboard and a mouse are there */
    /* --- state --- */
    uint8_t output_port;
    uint8_t output;                 /* output buffer */
    bool output_full, output_timeout;
    bool output_aux;                /* it is from the auxiliary port */
    uint8_t argument_of;            /* command whose argument is awaited at 0x60; 0 for none */
    bool last_was_command;          /* status bit A2: the last write went to 0x64 */
    uint8_t ram[32];                /* commands 0x20-0x3F and 0x60-0x7F; byte 0 is the command byte */
    struct ps2_keyboard keyboard;
    struct ps2_mouse mouse;
    bool translate_break;           /* the keyboard's break prefix went by: the next code is a release */
    /* --- not state --- */
    struct region data, control;
};

/* Board lock held. Somebody presses or releases a key; false: what was typed before has not been taken. */
bool i8042_key(struct i8042 *i8042, enum key key, bool down);
/* Board lock held. Somebody moves the mouse or changes its buttons: ps2_mouse.h. */
void i8042_move(struct i8042 *i8042, int dx, int dy, int dz, uint8_t buttons);

#endif
