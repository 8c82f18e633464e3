/*
 * The dispi interface (Bochs, "VBE Display API", version 5; QEMU documentation, "QEMU Standard VGA"): an index and a data register
 * that select modes of any size at 4 to 32 bits, and where in the memory the screen begins.
 */
#include "dev/display/vga_internal.h"

enum { DISPI_ID_FIRST = 0xB0C0, DISPI_ID_LAST = 0xB0C5 };

/* 4-bit modes have the planes of VGA, four bits of a pixel to an address. */
static unsigned bytes_of(unsigned pixels, unsigned bpp) { return bpp == 4 ? pixels / 2 : pixels * ((bpp + 7) / 8); }
unsigned vga_dispi_stride(const struct vga *vga) { return bytes_of(vga->dispi[DISPI_VIRT_WIDTH], vga->dispi[DISPI_BPP]); }

uint16_t vga_dispi_read(const struct vga *vga, unsigned index)
{
    bool capabilities = vga->dispi[DISPI_ENABLE] & DISPI_GETCAPS;
    if (index >= VGA_DISPI)
        return 0;
    if (capabilities && index == DISPI_XRES)
        return VGA_WIDTH_MAX;
    if (capabilities && index == DISPI_YRES)
        return VGA_HEIGHT_MAX;
    if (capabilities && index == DISPI_BPP)
        return 32;
    return vga->dispi[index];
}

static bool valid_mode(const struct vga *vga)
{
    unsigned width = vga->dispi[DISPI_XRES], height = vga->dispi[DISPI_YRES], bpp = vga->dispi[DISPI_BPP];
    bool depth = bpp == 4 || bpp == 8 || bpp == 15 || bpp == 16 || bpp == 24 || bpp == 32;
    return depth && width && height && width <= VGA_WIDTH_MAX && height <= VGA_HEIGHT_MAX &&
           bytes_of(width, bpp) * height <= VGA_RAM_SIZE;
}

/* The virtual screen is as wide as asked for, and as high as the memory allows. */
static void set_virtual(struct vga *vga, unsigned width)
{
    unsigned stride = bytes_of(width, vga->dispi[DISPI_BPP]);
    if (!stride || width < vga->dispi[DISPI_XRES] || stride * vga->dispi[DISPI_YRES] > VGA_RAM_SIZE)
        return;
    vga->dispi[DISPI_VIRT_WIDTH] = (uint16_t)width;
    vga->dispi[DISPI_VIRT_HEIGHT] = (uint16_t)min_u64(VGA_RAM_SIZE / stride, UINT16_MAX);
}

static void enable(struct vga *vga, uint16_t value)
{
    bool on = value & DISPI_ENABLED;
    if (on && !valid_mode(vga)) {
        guest_error(vga->pci.device.world.log, "vga: %ux%u with %u bits is not a mode that there is", vga->dispi[DISPI_XRES],
                    vga->dispi[DISPI_YRES], vga->dispi[DISPI_BPP]);
        value &= ~DISPI_ENABLED;
        on = false;
    }
    bool begins = on && !vga_dispi_on(vga);
    vga->dispi[DISPI_ENABLE] = value;
    vga->dispi[DISPI_BANK] = 0;
    if (!begins)
        return;
    vga->dispi[DISPI_X_OFFSET] = vga->dispi[DISPI_Y_OFFSET] = 0;
    vga->dispi[DISPI_VIRT_WIDTH] = 0;
    set_virtual(vga, vga->dispi[DISPI_XRES]);
    vga->graphics[GR_MISC] = (uint8_t)((vga->graphics[GR_MISC] & ~0x0C) | 0x04 | GR_MISC_GRAPHICS);
    vga->attribute_index |= 0x20;
    if (!(value & DISPI_NOCLEAR))
        memset(vga->memory, 0, sizeof(vga->memory));
}

void vga_dispi_write(struct vga *vga, unsigned index, uint16_t value)
{
    switch (index) {
    case DISPI_ID:
        if (value >= DISPI_ID_FIRST && value <= DISPI_ID_LAST)
            vga->dispi[DISPI_ID] = value;
        break;
    case DISPI_XRES: case DISPI_YRES: case DISPI_BPP:
        if (!vga_dispi_on(vga))
            vga->dispi[index] = value;
        break;
    case DISPI_ENABLE: enable(vga, value); break;
    case DISPI_BANK:
        if (((uint32_t)value << 16) < VGA_RAM_SIZE)
            vga->dispi[DISPI_BANK] = value;
        break;
    case DISPI_VIRT_WIDTH: set_virtual(vga, value); break;
    case DISPI_X_OFFSET: case DISPI_Y_OFFSET: vga->dispi[index] = value; break;
    default: break;
    }
}
