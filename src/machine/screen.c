#include "machine/screen.h"

#include <png.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dev/display/vga.h"
#include "dev/i8042.h"
#include "machine/input.h"
#include "machine/keymap.h"

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
    if (!((struct i8042 *)machine->i8042)->plugged)
        return error_set(err, "this machine has no keyboard");
    for (unsigned waited = 0; waited < PATIENCE_MS; waited += KEY_MS) {
        if (input_key(machine, which, down))
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

/* Of the character there, in UTF-8. */
static int character_bytes(const char *at)
{
    int bytes = 1;
    while ((at[bytes] & 0xC0) == 0x80)
        bytes++;
    return bytes;
}

bool screen_type(struct machine *machine, const char *text, struct error *err)
{
    for (const char *at = text; *at; at++) {
        bool shift;
        enum key which = keymap_of_character(*at, &shift);
        if (which == KEY_COUNT)
            return error_set(err, "'%.*s' is on no key of a US keyboard", character_bytes(at), at);
        const enum key both[2] = { KEY_SHIFT, which };
        if (!strike(machine, shift ? both : &which, shift ? 2 : 1, err))
            return false;
        wait_ms(KEY_MS);
    }
    return true;
}

/* --- the mouse --- */

static uint8_t button_of(const char *name)
{
    return !strcmp(name, "left") ? MOUSE_LEFT : !strcmp(name, "middle") ? MOUSE_MIDDLE : !strcmp(name, "right") ? MOUSE_RIGHT : 0;
}

/* Buttons that nobody has told it to release stay down. False: the guest has a tablet. */
static bool move(struct machine *machine, int dx, int dy, int dz, uint8_t press, uint8_t release)
{
    pthread_mutex_lock(&machine->lock);
    uint8_t buttons = ((struct i8042 *)machine->i8042)->mouse.buttons;
    pthread_mutex_unlock(&machine->lock);
    return input_move(machine, dx, dy, dz, (buttons | press) & (uint8_t)~release);
}

static bool act_with(struct machine *machine, const char *verb, uint8_t button)
{
    bool moved = true;
    if (strcmp(verb, "release"))
        moved = move(machine, 0, 0, 0, button, 0);
    if (!strcmp(verb, "click"))
        wait_ms(KEY_MS);
    if (strcmp(verb, "press"))
        moved = move(machine, 0, 0, 0, 0, button);
    return moved;
}

/* One action; *used: how much of the text it is. */
static bool act(struct machine *machine, const char *action, int *used, struct error *err)
{
    char verb[16] = "", name[16] = "";
    bool moved;
    int dx, dy;
    *used = 0;
    if (sscanf(action, "move %6d %6d%n", &dx, &dy, used) == 2)
        moved = move(machine, dx, dy, 0, 0, 0);
    else if (sscanf(action, "wheel %6d%n", &dx, used) == 1)
        moved = move(machine, 0, 0, dx, 0, 0);
    else if (sscanf(action, "%15s %15s%n", verb, name, used) == 2 && button_of(name) &&
             (!strcmp(verb, "press") || !strcmp(verb, "release") || !strcmp(verb, "click")))
        moved = act_with(machine, verb, button_of(name));
    else
        return error_set(err, "'%.40s' is nothing that a mouse does; there are move DX DY, wheel N, and press, release and click with left, middle or "
                              "right", action);
    return moved || error_set(err, "the guest uses a tablet (--input usb), which only VNC viewers can move");
}

bool screen_pointer(struct machine *machine, const char *actions, struct error *err)
{
    if (!((struct i8042 *)machine->i8042)->plugged)
        return error_set(err, "this machine has no mouse");
    const char *at = actions + strspn(actions, " ");
    if (!*at)
        return error_set(err, "no action of the mouse is named");
    for (int used; *at; at += used, at += strspn(at, " "))
        if (!act(machine, at, &used, err))
            return false;
    return true;
}
