/*
 * Keys and the pointer to whichever devices the guest uses: the USB ones once its driver has configured them, until then those behind the
 * keyboard controller. Any thread, board lock not held.
 */
#ifndef DOPPEL_MACHINE_INPUT_H
#define DOPPEL_MACHINE_INPUT_H

#include "dev/ps2_keyboard.h"
#include "dev/ps2_mouse.h"
#include "machine/machine.h"

/* False: the guest has not taken what was typed before, and this is lost. */
bool input_key(struct machine *machine, enum key key, bool down);
/* Moves a mouse by so much; with a tablet there is no such thing, and false is returned. buttons: MOUSE_LEFT ... that are down from now on. */
bool input_move(struct machine *machine, int dx, int dy, int wheel, uint8_t buttons);
/* Puts a tablet's pen to a place in a picture of that size. False: the guest has a mouse. */
bool input_point(struct machine *machine, unsigned x, unsigned y, unsigned width, unsigned height, int wheel, uint8_t buttons);

#endif
