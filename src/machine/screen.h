/*
 * What somebody sees and types: pictures of the display, and keys. Any thread but a vCPU's, board lock not held.
 */
#ifndef DOPPEL_MACHINE_SCREEN_H
#define DOPPEL_MACHINE_SCREEN_H

#include "machine/machine.h"

/* Writes a PNG picture of the screen. False: err tells why. */
bool screen_save(struct machine *machine, const char *path, struct error *err);
/* Presses the keys of a combination such as "ctrl-alt-delete" in turn, and releases them backwards. */
bool screen_send_keys(struct machine *machine, const char *combination, struct error *err);
/*
 * Types text as on a US keyboard; "\n" is Enter. Takes some milliseconds for each character, so that firmware with its small
 * buffer keeps up.
 */
bool screen_type(struct machine *machine, const char *text, struct error *err);

/*
 * Actions of the mouse, one after the other: "move DX DY" (right and down are positive), "press", "release" or "click" with "left", "middle" or
 * "right", "wheel N" (towards the user is positive).
 */
bool screen_pointer(struct machine *machine, const char *actions, struct error *err);

#endif
