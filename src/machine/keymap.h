/* From what somebody types to the keys of a US keyboard, which is the one that the guest has. */
#ifndef DOPPEL_MACHINE_KEYMAP_H
#define DOPPEL_MACHINE_KEYMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "dev/ps2_keyboard.h"

/* The key of an ASCII character, and whether Shift goes with it; KEY_COUNT: it is on none. */
enum key keymap_of_character(char character, bool *shift);
/* The key of an X11 keysym that is no character; KEY_COUNT: there is none. */
enum key keymap_of_keysym(uint32_t keysym);
/* Whether the keysym is an ASCII character: those have their own codes (X Window System Protocol, Appendix A). */
static inline bool keymap_is_character(uint32_t keysym) { return keysym >= 0x20 && keysym < 0x7F; }

#endif
