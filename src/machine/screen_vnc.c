/*
 * Between a VNC server and the devices. A viewer says characters, already shifted by its user's keyboard; the guest has a US keyboard. So that
 * the character that was meant arrives, Shift is pressed or released around a key where that keyboard needs it otherwise than the user has it.
 */
#include "machine/screen_vnc.h"

#include <stdlib.h>

#include "backend/vnc.h"
#include "dev/display/vga.h"
#include "machine/input.h"
#include "machine/keymap.h"

/* Buttons as RFC 6143 §7.5.5 counts them. */
enum { VNC_LEFT = 1 << 0, VNC_MIDDLE = 1 << 1, VNC_RIGHT = 1 << 2, VNC_WHEEL_UP = 1 << 3, VNC_WHEEL_DOWN = 1 << 4 };

struct screen_vnc {
    struct machine *machine;
    struct vnc *vnc;
    struct vga_picture picture;
    bool shift;                         /* a viewer holds it */
    unsigned x, y, buttons;             /* of the last pointer event */
    bool pointed;
};

static struct vga *vga_of(struct screen_vnc *screen) { return (struct vga *)screen->machine->vga; }

static uint64_t changes(void *owner) { return vga_changes(vga_of(owner)); }

static const uint32_t *draw(void *owner, unsigned *width, unsigned *height)
{
    struct screen_vnc *screen = owner;
    if (!vga_draw(vga_of(screen), &screen->picture))
        return NULL;
    *width = screen->picture.width;
    *height = screen->picture.height;
    return screen->picture.pixel;
}

/* What the guest does not take is lost, as on a real keyboard whose buffer is full. */
static void press(struct screen_vnc *screen, enum key key, bool down)
{
    input_key(screen->machine, key, down);
}

static void press_character(struct screen_vnc *screen, char character, bool down)
{
    bool shift;
    enum key key = keymap_of_character(character, &shift);
    bool other = down && shift != screen->shift;
    if (key == KEY_COUNT)
        return;
    if (other)
        press(screen, KEY_SHIFT, shift);
    press(screen, key, down);
    if (other)
        press(screen, KEY_SHIFT, screen->shift);
}

static void on_key(void *owner, uint32_t keysym, bool down)
{
    struct screen_vnc *screen = owner;
    enum key key = keymap_is_character(keysym) ? KEY_COUNT : keymap_of_keysym(keysym);
    if (keymap_is_character(keysym))
        press_character(screen, (char)keysym, down);
    else if (key != KEY_COUNT)
        press(screen, key, down);
    if (key == KEY_SHIFT || key == KEY_SHIFT_R)
        screen->shift = down;
}

static uint8_t mouse_buttons(unsigned buttons)
{
    return (uint8_t)((buttons & VNC_LEFT ? MOUSE_LEFT : 0) | (buttons & VNC_MIDDLE ? MOUSE_MIDDLE : 0) |
                     (buttons & VNC_RIGHT ? MOUSE_RIGHT : 0));
}

/* A turn of the wheel is a button that goes down. */
static int wheel(unsigned before, unsigned now)
{
    unsigned pressed = now & ~before;
    return (pressed & VNC_WHEEL_DOWN ? 1 : 0) - (pressed & VNC_WHEEL_UP ? 1 : 0);
}

static void on_pointer(void *owner, unsigned x, unsigned y, unsigned width, unsigned height, unsigned buttons)
{
    struct screen_vnc *screen = owner;
    int dx = screen->pointed ? (int)x - (int)screen->x : 0, dy = screen->pointed ? (int)y - (int)screen->y : 0;
    int turned = wheel(screen->buttons, buttons);
    if (!input_point(screen->machine, x, y, width, height, turned, mouse_buttons(buttons)))
        input_move(screen->machine, dx, dy, turned, mouse_buttons(buttons));
    screen->x = x;
    screen->y = y;
    screen->buttons = buttons;
    screen->pointed = true;
}

struct screen_vnc *screen_vnc_open(struct machine *machine, struct error *err)
{
    struct screen_vnc *screen = machine->vga ? calloc(1, sizeof(*screen)) : NULL;
    if (!screen) {
        error_set(err, machine->vga ? "no memory for a VNC server" : "this machine has no display to show by VNC");
        return NULL;
    }
    screen->machine = machine;
    const struct vnc_source source = { changes, draw, on_key, on_pointer, screen };
    screen->vnc = vnc_open(machine->config.vnc, &source, err);
    if (screen->vnc)
        return screen;
    screen_vnc_close(screen);
    return NULL;
}

void screen_vnc_close(struct screen_vnc *screen)
{
    if (!screen)
        return;
    vnc_close(screen->vnc);
    vga_picture_free(&screen->picture);
    free(screen);
}
