/* A PS/2 keyboard, behind the keyboard controller. */
#ifndef DOPPEL_DEV_PS2_KEYBOARD_H
#define DOPPEL_DEV_PS2_KEYBOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "state/state.h"

enum key {
#define KEY(id, name, set2, set1, keysym, usage) KEY_##id,
#include "dev/keys.def"
#undef KEY
    KEY_COUNT
};

enum { PS2_QUEUE = 256 };

struct ps2_keyboard {
    /* --- state --- */
    bool scanning;              /* keys are reported */
    uint8_t set;                /* scan code set: 1 or 2 */
    uint8_t argument_of;        /* command whose argument is awaited; 0 for none */
    uint8_t last;               /* the last byte sent, for "resend" */
    uint8_t queue[PS2_QUEUE];   /* bytes for the controller */
    uint16_t first, count;
};
extern const struct state_list ps2_keyboard_state;

/* The key by its name; KEY_COUNT: there is none. */
enum key key_find(const char *name);
/* The same by its X11 keysym without Shift. */
enum key key_of_keysym(uint32_t keysym);
/* Of what the keyboard sends in set 2, the code in set 1: what the controller translates (the byte alone, no prefixes). */
uint8_t key_translate(uint8_t set2);

void ps2_keyboard_reset(struct ps2_keyboard *keyboard);
/* After its state was loaded. */
void ps2_keyboard_resume(struct ps2_keyboard *keyboard);
/* A byte from the controller. */
void ps2_keyboard_write(struct ps2_keyboard *keyboard, uint8_t value);
/* False: there is no byte for the controller. */
bool ps2_keyboard_read(struct ps2_keyboard *keyboard, uint8_t *value);
/* Somebody presses or releases a key. False: the guest has not taken what was typed before, and this is lost. */
bool ps2_keyboard_key(struct ps2_keyboard *keyboard, enum key key, bool down);

#endif
