/*
 * The window to the display memory (IBM VGA Technical Reference, "Graphics Controller Registers" and "Memory Maps"). Byte `n` of
 * plane `p` is at memory[4n + p], so that the four planes of one address are one word; chain-4 addresses are then linear.
 * NOTE(spec): odd/even addressing leaves every other byte of a plane unused, and the CRTC's word mode skips them; here neither
 * does, so that character n is word n either way.
 */
#include "dev/display/vga_internal.h"

static const uint32_t memory_mask = VGA_RAM_SIZE - 1;

/* Offset within the part of the window that the memory map field selects; false: it lies outside. */
static bool window_offset(const struct vga *vga, unsigned *offset)
{
    static const struct { uint32_t base, size; } map[4] = { { 0, 0x20000 }, { 0, 0x10000 }, { 0x10000, 0x8000 }, { 0x18000, 0x8000 } };
    unsigned n = vga->graphics[GR_MISC] >> 2 & 3;
    if (*offset - map[n].base >= map[n].size)
        return false;
    *offset -= map[n].base;
    return true;
}

static bool chained(const struct vga *vga) { return vga_dispi_on(vga) || vga->sequencer[SEQ_MEMORY_MODE] & SEQ_CHAIN4; }
static bool odd_even(const struct vga *vga) { return !(vga->sequencer[SEQ_MEMORY_MODE] & SEQ_ODD_EVEN_OFF); }

/* Linear address in chain-4 and in the dispi modes, whose bank register moves the 64 KiB window. */
static uint32_t chain4_address(const struct vga *vga, unsigned offset)
{
    return ((vga_dispi_on(vga) ? (uint32_t)vga->dispi[DISPI_BANK] << 16 : 0) + offset) & memory_mask;
}

/* --- reading --- */

static uint8_t read_planes(struct vga *vga, unsigned offset)
{
    const uint8_t *at = &vga->memory[4 * offset & memory_mask];
    memcpy(vga->latch, at, 4);
    if (!(vga->graphics[GR_MODE] & GR_MODE_READ1))
        return at[vga->graphics[GR_READ_MAP] & 3];
    uint8_t differs = 0;
    for (unsigned plane = 0; plane < 4; plane++)
        if (vga->graphics[GR_DONT_CARE] & 1u << plane)
            differs |= at[plane] ^ (vga->graphics[GR_COLOR_COMPARE] & 1u << plane ? 0xFF : 0);
    return (uint8_t)~differs;
}

uint8_t vga_window_read(struct vga *vga, unsigned offset)
{
    if (!window_offset(vga, &offset))
        return 0xFF;
    if (chained(vga))
        return vga->memory[chain4_address(vga, offset)];
    if (odd_even(vga) && !(vga->graphics[GR_MODE] & GR_MODE_READ1))
        return vga->memory[(4 * (offset >> 1) + ((vga->graphics[GR_READ_MAP] & 2) | (offset & 1))) & memory_mask];
    return read_planes(vga, offset);
}

/* --- writing --- */

static uint8_t rotated(const struct vga *vga, uint8_t value)
{
    unsigned by = vga->graphics[GR_DATA_ROTATE] & 7;
    return (uint8_t)(value >> by | value << (8 - by));
}

static uint8_t combined(const struct vga *vga, uint8_t value, uint8_t latch)
{
    switch (vga->graphics[GR_DATA_ROTATE] >> 3 & 3) {
    case 1: return value & latch;
    case 2: return value | latch;
    case 3: return value ^ latch;
    default: return value;
    }
}

/* What write modes 0, 2 and 3 put into a plane, and through which mask. */
static uint8_t plane_value(const struct vga *vga, unsigned plane, uint8_t value, uint8_t *mask)
{
    uint8_t bit = (uint8_t)(1u << plane), set = vga->graphics[GR_SET_RESET] & bit ? 0xFF : 0;
    *mask = vga->graphics[GR_BIT_MASK];
    switch (vga->graphics[GR_MODE] & 3) {
    case 2: return value & bit ? 0xFF : 0;
    case 3:
        *mask &= rotated(vga, value);
        return set;
    default: return vga->graphics[GR_ENABLE_SET_RESET] & bit ? set : rotated(vga, value);
    }
}

static void write_planes(struct vga *vga, unsigned offset, uint8_t value)
{
    uint8_t *at = &vga->memory[4 * offset & memory_mask], mask;
    for (unsigned plane = 0; plane < 4; plane++) {
        if (!(vga->sequencer[SEQ_MAP_MASK] & 1u << plane))
            continue;
        if ((vga->graphics[GR_MODE] & 3) == 1) {
            at[plane] = vga->latch[plane];
            continue;
        }
        uint8_t byte = combined(vga, plane_value(vga, plane, value, &mask), vga->latch[plane]);
        at[plane] = (uint8_t)((byte & mask) | (vga->latch[plane] & ~mask));
    }
}

void vga_window_write(struct vga *vga, unsigned offset, uint8_t value)
{
    if (!window_offset(vga, &offset))
        return;
    if (chained(vga)) {
        if (vga_dispi_on(vga) || vga->sequencer[SEQ_MAP_MASK] & 1u << (offset & 3))
            vga->memory[chain4_address(vga, offset)] = value;
    } else if (odd_even(vga)) {
        for (unsigned plane = offset & 1; plane < 4; plane += 2)
            if (vga->sequencer[SEQ_MAP_MASK] & 1u << plane)
                vga->memory[(4 * (offset >> 1) + plane) & memory_mask] = value;
    } else {
        write_planes(vga, offset, value);
    }
}
