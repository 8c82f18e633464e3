/*
 * PS/2 keyboard (IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-Key)", October 1990). Scan code sets 1 and 2.
 * Not modelled: set 3 and its commands, the typematic repeat (the receiver repeats, where it wants to).
 */
#include "dev/ps2_keyboard.h"

#include <string.h>

#include "base/base.h"

enum ps2_command {
    PS2_SET_LEDS = 0xED,
    PS2_ECHO = 0xEE,
    PS2_SCAN_CODE_SET = 0xF0,
    PS2_READ_ID = 0xF2,
    PS2_SET_RATE = 0xF3,
    PS2_ENABLE = 0xF4,
    PS2_DISABLE = 0xF5,
    PS2_SET_DEFAULT = 0xF6,
    PS2_RESEND = 0xFE,
    PS2_RESET = 0xFF,
};
enum { PS2_ACK = 0xFA, PS2_TEST_PASSED = 0xAA, PS2_AGAIN = 0xFE, PS2_ID_1 = 0xAB, PS2_ID_2 = 0x83, BREAK_SET2 = 0xF0, BREAK_SET1 = 0x80,
       EXTENDED = 0xE0, KEY_ROOM = 6 };

static const struct {
    const char *name;
    uint16_t set2, set1, keysym;
} keys[KEY_COUNT] = {
#define KEY(id, name, set2, set1, keysym, usage) [KEY_##id] = { name, set2, set1, keysym },
#include "dev/keys.def"
#undef KEY
};

enum key key_find(const char *name)
{
    unsigned key = 0;
    while (key < KEY_COUNT && strcmp(keys[key].name, name))
        key++;
    return (enum key)key;
}

enum key key_of_keysym(uint32_t keysym)
{
    unsigned key = 0;
    while (key < KEY_COUNT && keys[key].keysym != keysym)
        key++;
    return (enum key)key;
}

uint8_t key_translate(uint8_t set2)
{
    for (unsigned key = 0; key < KEY_COUNT; key++)
        if (keys[key].set2 == set2)
            return (uint8_t)keys[key].set1;
    for (unsigned key = 0; key < KEY_COUNT; key++)
        if ((uint8_t)keys[key].set2 == set2)
            return (uint8_t)keys[key].set1;
    return set2;
}

/* --- the queue --- */

static void put(struct ps2_keyboard *keyboard, uint8_t value)
{
    if (keyboard->count < PS2_QUEUE)
        keyboard->queue[(keyboard->first + keyboard->count++) % PS2_QUEUE] = value;
}

bool ps2_keyboard_read(struct ps2_keyboard *keyboard, uint8_t *value)
{
    if (!keyboard->count)
        return false;
    *value = keyboard->last = keyboard->queue[keyboard->first];
    keyboard->first = (uint16_t)((keyboard->first + 1) % PS2_QUEUE);
    keyboard->count--;
    return true;
}

bool ps2_keyboard_key(struct ps2_keyboard *keyboard, enum key key, bool down)
{
    uint16_t code = keyboard->set == 1 ? keys[key].set1 : keys[key].set2;
    if (!keyboard->scanning)
        return true;            /* as with a real one: nobody looks */
    if (PS2_QUEUE - keyboard->count < KEY_ROOM)
        return false;
    if (code >> 8)
        put(keyboard, EXTENDED);
    if (!down && keyboard->set == 2)
        put(keyboard, BREAK_SET2);
    put(keyboard, (uint8_t)(code | (!down && keyboard->set == 1 ? BREAK_SET1 : 0)));
    return true;
}

/* --- commands --- */

static void defaults(struct ps2_keyboard *keyboard)
{
    keyboard->first = keyboard->count = 0;
    keyboard->set = 2;
    keyboard->argument_of = 0;
}

static void argument(struct ps2_keyboard *keyboard, uint8_t command, uint8_t value)
{
    put(keyboard, PS2_ACK);
    if (command != PS2_SCAN_CODE_SET)
        return;
    if (value == 0)
        put(keyboard, keyboard->set);
    else if (value <= 2)
        keyboard->set = value;
}

static void command(struct ps2_keyboard *keyboard, uint8_t value)
{
    switch ((enum ps2_command)value) {
    case PS2_SET_LEDS: case PS2_SCAN_CODE_SET: case PS2_SET_RATE:
        keyboard->argument_of = value;
        put(keyboard, PS2_ACK);
        break;
    case PS2_ECHO: put(keyboard, PS2_ECHO); break;
    case PS2_READ_ID:
        put(keyboard, PS2_ACK);
        put(keyboard, PS2_ID_1);
        put(keyboard, PS2_ID_2);
        break;
    case PS2_ENABLE:
        keyboard->scanning = true;
        put(keyboard, PS2_ACK);
        break;
    case PS2_DISABLE: case PS2_SET_DEFAULT:
        defaults(keyboard);
        keyboard->scanning = value == PS2_SET_DEFAULT;
        put(keyboard, PS2_ACK);
        break;
    case PS2_RESEND: put(keyboard, keyboard->last); break;
    case PS2_RESET:
        defaults(keyboard);
        keyboard->scanning = true;
        put(keyboard, PS2_ACK);
        put(keyboard, PS2_TEST_PASSED);
        break;
    default: put(keyboard, PS2_AGAIN); break;
    }
}

/* A byte that looks like a command ends the waiting for an argument. */
void ps2_keyboard_write(struct ps2_keyboard *keyboard, uint8_t value)
{
    uint8_t of = keyboard->argument_of;
    keyboard->argument_of = 0;
    if (of && value < PS2_SET_LEDS)
        argument(keyboard, of, value);
    else
        command(keyboard, value);
}

void ps2_keyboard_reset(struct ps2_keyboard *keyboard)
{
    memset(keyboard, 0, sizeof(*keyboard));
    keyboard->scanning = true;
    keyboard->set = 2;
}

void ps2_keyboard_resume(struct ps2_keyboard *keyboard)
{
    keyboard->first %= PS2_QUEUE;
    keyboard->count = (uint16_t)min_u64(keyboard->count, PS2_QUEUE);
    keyboard->set = keyboard->set == 1 ? 1 : 2;
}

static const struct state_field fields[] = {
    STATE_SCALAR(struct ps2_keyboard, scanning), STATE_SCALAR(struct ps2_keyboard, set),
    STATE_SCALAR(struct ps2_keyboard, argument_of), STATE_SCALAR(struct ps2_keyboard, last),
    STATE_BLOB(struct ps2_keyboard, queue), STATE_SCALAR(struct ps2_keyboard, first),
    STATE_SCALAR(struct ps2_keyboard, count),
};
const struct state_list ps2_keyboard_state = STATE_LIST("ps2-keyboard", 1, fields);
