/* What the files of the display adapter share with each other only. */
#ifndef DOPPEL_DEV_DISPLAY_VGA_INTERNAL_H
#define DOPPEL_DEV_DISPLAY_VGA_INTERNAL_H

#include <stdatomic.h>
#include <string.h>

#include "dev/display/vga.h"

/* Indices of registers, by the names of the IBM VGA Technical Reference (1992), "VGA Function". */
enum { SEQ_RESET, SEQ_CLOCKING, SEQ_MAP_MASK, SEQ_CHARACTER_MAP, SEQ_MEMORY_MODE };
enum { GR_SET_RESET, GR_ENABLE_SET_RESET, GR_COLOR_COMPARE, GR_DATA_ROTATE, GR_READ_MAP, GR_MODE, GR_MISC, GR_DONT_CARE, GR_BIT_MASK };
enum { CR_DISPLAY_END = 0x01, CR_OVERFLOW = 0x07, CR_PRESET_ROW = 0x08, CR_MAX_SCAN = 0x09, CR_CURSOR_START = 0x0A,
       CR_CURSOR_END = 0x0B, CR_START_HIGH = 0x0C, CR_START_LOW = 0x0D, CR_CURSOR_HIGH = 0x0E, CR_CURSOR_LOW = 0x0F,
       CR_RETRACE_END = 0x11, CR_VERTICAL_END = 0x12, CR_OFFSET = 0x13, CR_MODE = 0x17, CR_LINE_COMPARE = 0x18 };
enum { AT_MODE = 0x10, AT_OVERSCAN = 0x11, AT_PLANE_ENABLE = 0x12, AT_PANNING = 0x13, AT_COLOR_SELECT = 0x14 };
enum { SEQ_CHAIN4 = 1 << 3, SEQ_ODD_EVEN_OFF = 1 << 2, SEQ_DOT_8 = 1 << 0, SEQ_SCREEN_OFF = 1 << 5, SEQ_DOT_HALF = 1 << 3 };
enum { GR_MODE_READ1 = 1 << 3, GR_MODE_SHIFT_CGA = 1 << 5, GR_MODE_SHIFT_256 = 1 << 6, GR_MISC_GRAPHICS = 1 << 0 };
enum { DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK, DISPI_VIRT_WIDTH, DISPI_VIRT_HEIGHT, DISPI_X_OFFSET,
       DISPI_Y_OFFSET, DISPI_MEMORY_64K };
enum { DISPI_ENABLED = 1 << 0, DISPI_GETCAPS = 1 << 1, DISPI_8BIT_DAC = 1 << 5, DISPI_NOCLEAR = 1 << 7 };

static inline bool vga_dispi_on(const struct vga *vga) { return vga->dispi[DISPI_ENABLE] & DISPI_ENABLED; }

/* To be called after everything that may change the picture. */
static inline void vga_changed(struct vga *vga) { atomic_fetch_add_explicit(&vga->changes, 1, memory_order_release); }

/* vga_memory.c: one byte of the window at 0xA0000; offset up to 0x1FFFF. */
uint8_t vga_window_read(struct vga *vga, unsigned offset);
void vga_window_write(struct vga *vga, unsigned offset, uint8_t value);

/* vga_dispi.c */
uint16_t vga_dispi_read(const struct vga *vga, unsigned index);
void vga_dispi_write(struct vga *vga, unsigned index, uint16_t value);
/* Bytes of a line of the virtual screen. */
unsigned vga_dispi_stride(const struct vga *vga);

#endif
