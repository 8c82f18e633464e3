#include "machine/screen.h"

#include <png.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dev/display/vga.h"
#include "dev/i8042.h"

enum { KEYS_AT_ONCE = 8, KEY_MS = 15, PATIENCE_MS = 10000 };

/* --- pictures --- */

static bool draw(struct machine *machine, struct vga_picture *picture, struct error *err)
{
    if (!machine->vga)
        return error_set(err, "this machine has no display");
    return vga_draw((struct vga *)machine->vga, picture) || error_set(err, "no memory for a picture");
}

static uint8_t *bytes_of(const struct vga_picture *picture)
{
    size_t pixels = (size_t)picture->width * picture->height;
    uint8_t *rgb = malloc(pixels * 3);
    for (size_t i = 0; rgb && i < pixels; i++) {
        rgb[3 * i] = (uint8_t)(picture->pixel[i] >> 16);
        rgb[3 * i + 1] = (uint8_t)(picture->pixel[i] >> 8);
        rgb[3 * i + 2] = (uint8_t)picture->pixel[i];
    }
    return rgb;
}

bool screen_save(struct machine *machine, const char *path, struct error *err)
{
    struct vga_picture picture = { 0 };
    if (!draw(machine, &picture, err))
        return false;
    png_image png = { .version = PNG_IMAGE_VERSION, .width = picture.width, .height = picture.height, .format = PNG_FORMAT_RGB };
    uint8_t *rgb = bytes_of(&picture);
    bool ok = rgb && png_image_write_to_file(&png, path, 0, rgb, 0, NULL);
    if (!rgb)
        error_set(err, "no memory for a picture");
    else if (!ok)
        error_set(err, "cannot write the picture %s: %s", path, png.message);
    free(rgb);
    vga_picture_free(&picture);
    return ok;
}

/* --- keys --- */

static void wait_ms(unsigned ms)
{
    nanosleep(&(struct timespec){ .tv_nsec = (long)ms * 1000000 }, NULL);
}

/* Waits while the guest has not taken what was typed before. */
static bool key(struct machine *machine, enum key which, bool down, struct error *err)
{
    if (!((struct i8042 *)machine->i8042)->has_keyboard)
        return error_set(err, "this machine has no keyboard");
    for (unsigned waited = 0; waited < PATIENCE_MS; waited += KEY_MS) {
        pthread_mutex_lock(&machine->lock);
        bool taken = i8042_key((struct i8042 *)machine->i8042, which, down);
        pthread_mutex_unlock(&machine->lock);
        if (taken)
            return true;
        wait_ms(KEY_MS);
    }
    return error_set(err, "the guest does not read its keyboard");
}

/* Presses all in turn and releases them backwards. */
static bool strike(struct machine *machine, const enum key *keys, unsigned count, struct error *err)
{
    for (unsigned i = 0; i < count; i++)
        if (!key(machine, keys[i], true, err))
            return false;
    wait_ms(KEY_MS);
    for (unsigned i = count; i-- > 0;)
        if (!key(machine, keys[i], false, err))
            return false;
    return true;
}

bool screen_send_keys(struct machine *machine, const char *combination, struct error *err)
{
    enum key keys[KEYS_AT_ONCE];
    unsigned count = 0;
    for (const char *at = combination; *at; count++) {
        char name[32];
        size_t length = strcspn(at, "-");
        if (count == KEYS_AT_ONCE)
            return error_set(err, "'%s' is more than %d keys at once", combination, KEYS_AT_ONCE);
        snprintf(name, sizeof(name), "%.*s", (int)length, at);
        keys[count] = key_find(name);
        if (keys[count] == KEY_COUNT)
            return error_set(err, "there is no key '%s'; keys are named like a, 1, f1, ret, spc, esc, tab, ctrl, alt, delete, and "
                                  "joined by '-'", name);
        at += length + (at[length] == '-');
    }
    return count ? strike(machine, keys, count, err) : error_set(err, "no key is named");
}

/* The key of a character on a US keyboard, and whether Shift goes with it. */
static enum key key_of(char character, bool *shift)
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

bool screen_type(struct machine *machine, const char *text, struct error *err)
{
    for (const char *at = text; *at; at++) {
        bool shift;
        enum key which = key_of(*at, &shift);
        if (which == KEY_COUNT)
            return error_set(err, "'%c' is on no key of a US keyboard", *at);
        const enum key both[2] = { KEY_SHIFT, which };
        if (!strike(machine, shift ? both : &which, shift ? 2 : 1, err))
            return false;
        wait_ms(KEY_MS);
    }
    return true;
}
