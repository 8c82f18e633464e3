#include "machine/keymap.h"

#include <string.h>

#include "base/base.h"

enum key keymap_of_character(char character, bool *shift)
{
    static const char plain[] = "-=[];'`\\,./ \n\t", shifted[] = "_+{}:\"~|<>?";
    static const enum key keys[] = { KEY_MINUS, KEY_EQUAL, KEY_BRACKET_LEFT, KEY_BRACKET_RIGHT, KEY_SEMICOLON, KEY_APOSTROPHE,
                                     KEY_GRAVE, KEY_BACKSLASH, KEY_COMMA, KEY_DOT, KEY_SLASH, KEY_SPC, KEY_RET, KEY_TAB };
    static const char digits[] = ")!@#$%^&*(";
    const char *at;
    char name[2] = { character, 0 };
    *shift = false;
    if (character && (at = strchr(plain, character)))
        return keys[at - plain];
    *shift = true;
    if (character && (at = strchr(shifted, character)))
        return keys[at - shifted];
    if (character && (at = strchr(digits, character)))
        name[0] = (char)('0' + (at - digits));
    else if (character >= 'A' && character <= 'Z')
        name[0] = (char)(character - 'A' + 'a');
    else
        *shift = false;
    return key_find(name);
}

enum key keymap_of_keysym(uint32_t keysym)
{
    /* Further names of keys: X11's keysymdef.h. The keypad's are those of the keys without Num Lock. */
    static const struct { uint16_t keysym; enum key key; } others[] = {
        { 0xFF95, KEY_KP_7 }, { 0xFF96, KEY_KP_4 }, { 0xFF97, KEY_KP_8 }, { 0xFF98, KEY_KP_6 }, { 0xFF99, KEY_KP_2 },
        { 0xFF9A, KEY_KP_9 }, { 0xFF9B, KEY_KP_3 }, { 0xFF9C, KEY_KP_1 }, { 0xFF9D, KEY_KP_5 }, { 0xFF9E, KEY_KP_0 },
        { 0xFF9F, KEY_KP_DECIMAL },
        { 0xFE20, KEY_TAB },            /* ISO_Left_Tab: Tab with Shift */
        { 0xFE03, KEY_ALT_R },          /* ISO_Level3_Shift */
        { 0xFF7E, KEY_ALT_R },          /* Mode_switch */
        { 0xFFE7, KEY_ALT }, { 0xFFE8, KEY_ALT_R },     /* Meta */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
        if (others[i].keysym == keysym)
            return others[i].key;
    return keysym ? key_of_keysym(keysym) : KEY_COUNT;
}
