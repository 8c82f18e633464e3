/*
 * A picture of the screen, made from the display memory and the registers as the CRT would be. Every address is taken modulo the
 * size of the memory, whatever the registers say.
 */
#include <stdlib.h>

#include "dev/display/vga_internal.h"

static const uint32_t memory_mask = VGA_RAM_SIZE - 1;

static const uint8_t *cell(const struct vga *vga, uint32_t address) { return &vga->memory[4 * address & memory_mask]; }

/* --- colours --- */

static uint32_t dac_color(const struct vga *vga, unsigned index)
{
    const uint8_t *rgb = &vga->dac[3 * (index & vga->dac_mask & 0xFF)];
    if (vga->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC)
        return (uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2];
    uint32_t color = 0;
    for (unsigned i = 0; i < 3; i++)
        color = color << 8 | (uint32_t)((rgb[i] & 63) << 2 | (rgb[i] & 63) >> 4);
    return color;
}

/* A 4-bit value through the attribute controller's palette. */
static uint32_t attribute_color(const struct vga *vga, unsigned value)
{
    unsigned index = vga->attribute[value & vga->attribute[AT_PLANE_ENABLE] & 15];
    unsigned select = vga->attribute[AT_COLOR_SELECT];
    if (vga->attribute[AT_MODE] & 0x80)
        index = (index & 0x0F) | (select & 3) << 4;
    return dac_color(vga, (index & 0x3F) | (select & 0x0C) << 4);
}

/* --- geometry --- */

static unsigned lines(const struct vga *vga)
{
    unsigned overflow = vga->crtc[CR_OVERFLOW];
    return (vga->crtc[CR_VERTICAL_END] | (overflow >> 1 & 1) << 8 | (overflow >> 6 & 1) << 9) + 1;
}

static unsigned columns(const struct vga *vga) { return vga->crtc[CR_DISPLAY_END] + 1; }
static unsigned start(const struct vga *vga) { return vga->crtc[CR_START_HIGH] << 8 | vga->crtc[CR_START_LOW]; }

/* Addresses from one row to the next. */
static unsigned row_offset(const struct vga *vga) { return 2 * vga->crtc[CR_OFFSET]; }

static bool allocate(struct vga_picture *picture, unsigned width, unsigned height)
{
    uint32_t *pixel = realloc(picture->pixel, (size_t)width * height * sizeof(*pixel));
    if (!pixel)
        return false;
    *picture = (struct vga_picture){ width, height, pixel };
    return true;
}

void vga_picture_free(struct vga_picture *picture)
{
    free(picture->pixel);
    *picture = (struct vga_picture){ 0 };
}

/* --- text --- */

struct text_mode {
    unsigned columns, rows, width, height;      /* characters; pixels of one */
    uint32_t font[2];                           /* addresses in plane 2 for attribute bit 3 being 0 and 1 */
    uint32_t cursor;
    unsigned cursor_first, cursor_last;
    bool blink;                                 /* attribute bit 7 blinks: it is no colour */
};

/* The fields of the character map register, in the order of their bits: 16 KiB steps, and 8 KiB. */
static uint32_t font_address(unsigned a) { return ((a & 3) << 14) | ((a & 4) << 11); }

static void text_mode(const struct vga *vga, struct text_mode *mode)
{
    unsigned map = vga->sequencer[SEQ_CHARACTER_MAP];
    mode->columns = min_u64(columns(vga), 160);
    mode->height = (vga->crtc[CR_MAX_SCAN] & 0x1F) + 1;
    mode->rows = min_u64(lines(vga) / mode->height, 100);
    mode->width = vga->sequencer[SEQ_CLOCKING] & SEQ_DOT_8 ? 8 : 9;
    mode->font[0] = font_address((map & 3) | (map >> 2 & 4));
    mode->font[1] = font_address((map >> 2 & 3) | (map >> 3 & 4));
    mode->cursor = (uint32_t)(vga->crtc[CR_CURSOR_HIGH] << 8 | vga->crtc[CR_CURSOR_LOW]);
    mode->cursor_first = vga->crtc[CR_CURSOR_START] & 0x20 ? 32 : vga->crtc[CR_CURSOR_START] & 0x1F;
    mode->cursor_last = vga->crtc[CR_CURSOR_END] & 0x1F;
    mode->blink = vga->attribute[AT_MODE] & 8;
}

/* The ninth column repeats the eighth for line graphics, and is background for all else. */
static bool ninth(const struct vga *vga, uint8_t code, bool eighth)
{
    return eighth && vga->attribute[AT_MODE] & 4 && (code & 0xE0) == 0xC0;
}

static void draw_character(const struct vga *vga, const struct text_mode *mode, uint32_t address, uint32_t *to, unsigned stride)
{
    const uint8_t *at = cell(vga, address);
    uint8_t code = at[0], attribute = at[1];
    uint32_t front = attribute_color(vga, attribute & 15);
    uint32_t back = attribute_color(vga, attribute >> 4 & (mode->blink ? 7 : 15));
    uint32_t font = mode->font[attribute & 8 ? 0 : 1] + 32u * code;
    for (unsigned line = 0; line < mode->height; line++, to += stride) {
        uint8_t dots = cell(vga, font + line)[2];
        bool cursor = address == mode->cursor && line >= mode->cursor_first && line <= mode->cursor_last;
        for (unsigned x = 0; x < mode->width; x++) {
            bool dot = x < 8 ? dots & 0x80 >> x : ninth(vga, code, dots & 1);
            to[x] = dot || cursor ? front : back;
        }
    }
}

static bool draw_text(const struct vga *vga, struct vga_picture *picture)
{
    struct text_mode mode;
    text_mode(vga, &mode);
    if (!mode.rows || !allocate(picture, mode.columns * mode.width, mode.rows * mode.height))
        return mode.rows == 0;
    for (unsigned row = 0; row < mode.rows; row++)
        for (unsigned column = 0; column < mode.columns; column++)
            draw_character(vga, &mode, start(vga) + row * row_offset(vga) + column,
                           picture->pixel + (size_t)row * mode.height * picture->width + column * mode.width, picture->width);
    return true;
}

/* --- graphics of VGA --- */

static unsigned planar_pixel(const uint8_t *at, unsigned x)
{
    unsigned value = 0;
    for (unsigned plane = 0; plane < 4; plane++)
        value |= (at[plane] >> (7 - x) & 1u) << plane;
    return value;
}

/* CGA's four colours: two bits of a pixel, in planes 0 and 1 in turn; every other line is 8 KiB further on. */
static unsigned cga_pixel(const struct vga *vga, uint32_t row, unsigned x)
{
    uint8_t byte = cell(vga, row + x / 8)[x / 4 & 1];
    return byte >> (6 - 2 * (x & 3)) & 3;
}

static uint32_t graphics_pixel(const struct vga *vga, uint32_t row, unsigned x)
{
    if (vga->graphics[GR_MODE] & GR_MODE_SHIFT_256)
        return dac_color(vga, vga->memory[(4 * row + x) & memory_mask]);
    if (vga->graphics[GR_MODE] & GR_MODE_SHIFT_CGA)
        return attribute_color(vga, cga_pixel(vga, row, x));
    return attribute_color(vga, planar_pixel(cell(vga, row + x / 8), x & 7));
}

static uint32_t graphics_row(const struct vga *vga, unsigned y)
{
    bool interleaved = !(vga->crtc[CR_MODE] & 1), byte_mode = vga->crtc[CR_MODE] & 0x40;
    if (interleaved)            /* address bit 13 is the line's bit 0 */
        return start(vga) + (y >> 1) * row_offset(vga) + (y & 1) * (byte_mode ? 0x2000 : 0x1000);
    return start(vga) + y * row_offset(vga);
}

static bool draw_graphics(const struct vga *vga, struct vga_picture *picture)
{
    bool wide = vga->graphics[GR_MODE] & GR_MODE_SHIFT_256 || vga->sequencer[SEQ_CLOCKING] & SEQ_DOT_HALF;
    unsigned width = columns(vga) * (wide ? 4 : 8), scan = vga->crtc[CR_MAX_SCAN];
    unsigned repeat = ((scan & 0x1F) + 1) * (scan & 0x80 ? 2 : 1), height = lines(vga) / repeat;
    if (!(vga->graphics[GR_MODE] & GR_MODE_SHIFT_256) && wide)
        width = columns(vga) * 8;
    if (!(vga->crtc[CR_MODE] & 1)) {
        repeat = scan & 0x80 ? 2 : 1;
        height = lines(vga) / repeat;
    }
    if (!height || !allocate(picture, width, height))
        return height == 0;
    for (unsigned y = 0; y < height; y++)
        for (unsigned x = 0; x < width; x++)
            picture->pixel[(size_t)y * width + x] = graphics_pixel(vga, graphics_row(vga, y), x);
    return true;
}

/* --- dispi modes --- */

static unsigned spread(unsigned value, unsigned bits) { return value * 255 / ((1u << bits) - 1); }

static uint32_t rgb16(unsigned value, unsigned green_bits)
{
    unsigned red = value >> (5 + green_bits) & 31, green = value >> 5 & ((1u << green_bits) - 1), blue = value & 31;
    return spread(red, 5) << 16 | spread(green, green_bits) << 8 | spread(blue, 5);
}

static uint32_t dispi_pixel(const struct vga *vga, uint32_t line, unsigned x, unsigned bpp)
{
    const uint8_t *memory = vga->memory;
    unsigned bytes = (bpp + 7) / 8;
    uint32_t at = line + x * bytes, value = 0;
    if (bpp == 4)
        return attribute_color(vga, planar_pixel(cell(vga, (line / 4) + x / 8), x & 7));
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint32_t)memory[(at + i) & memory_mask] << (8 * i);
    switch (bpp) {
    case 8: return dac_color(vga, value);
    case 15: return rgb16(value, 5);
    case 16: return rgb16(value, 6);
    default: return value & 0xFFFFFF;
    }
}

/* The mode that systems draw in, whole lines at a time. False: it is not this one, or a line wraps. */
static bool dispi_line_32(const struct vga *vga, uint32_t line, unsigned width, unsigned bpp, uint32_t *pixel)
{
    uint32_t at = line & memory_mask;
    if (bpp != 32 || at + 4 * width > VGA_RAM_SIZE)
        return false;
    memcpy(pixel, vga->memory + at, 4 * width);
    for (unsigned x = 0; x < width; x++)
        pixel[x] &= 0xFFFFFF;
    return true;
}

static bool draw_dispi(const struct vga *vga, struct vga_picture *picture)
{
    unsigned width = min_u64(vga->dispi[DISPI_XRES], VGA_WIDTH_MAX), height = min_u64(vga->dispi[DISPI_YRES], VGA_HEIGHT_MAX);
    unsigned bpp = vga->dispi[DISPI_BPP], stride = vga_dispi_stride(vga);
    if (!width || !height || !allocate(picture, width, height))
        return !width || !height;
    uint32_t first = vga->dispi[DISPI_Y_OFFSET] * stride + vga->dispi[DISPI_X_OFFSET] * ((bpp + 7) / 8);
    for (unsigned y = 0; y < height; y++) {
        uint32_t *pixel = picture->pixel + (size_t)y * width;
        if (dispi_line_32(vga, first + y * stride, width, bpp, pixel))
            continue;
        for (unsigned x = 0; x < width; x++)
            pixel[x] = dispi_pixel(vga, first + y * stride, x, bpp);
    }
    return true;
}

static bool draw_nothing(struct vga_picture *picture)
{
    if (!allocate(picture, 720, 400))
        return false;
    memset(picture->pixel, 0, 720 * 400 * sizeof(*picture->pixel));
    return true;
}

static bool draw(const struct vga *vga, struct vga_picture *picture)
{
    bool palette_on = vga->attribute_index & 0x20;
    bool ok;
    if (vga_dispi_on(vga))
        ok = draw_dispi(vga, picture);
    else if (!palette_on || vga->sequencer[SEQ_CLOCKING] & SEQ_SCREEN_OFF)
        ok = draw_nothing(picture);
    else if (vga->graphics[GR_MISC] & GR_MISC_GRAPHICS)
        ok = draw_graphics(vga, picture);
    else
        ok = draw_text(vga, picture);
    return ok && (picture->pixel || draw_nothing(picture));
}

bool vga_draw(struct vga *vga, struct vga_picture *picture)
{
    pthread_mutex_lock(&vga->mutex);
    bool ok = draw(vga, picture);
    pthread_mutex_unlock(&vga->mutex);
    return ok;
}
