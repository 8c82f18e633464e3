/*
 * The display adapter: VGA, and the dispi interface to larger modes that SeaBIOS, EDK II and the stock drivers know. It draws
 * nothing by itself: who shows or keeps the screen asks for a picture of it.
 */
#ifndef DOPPEL_DEV_DISPLAY_VGA_H
#define DOPPEL_DEV_DISPLAY_VGA_H

#include "dev/pci/pci.h"

enum { VGA_RAM_SIZE = 8 * 1024 * 1024, VGA_WIDTH_MAX = 2560, VGA_HEIGHT_MAX = 1600 };
enum { VGA_SEQUENCER = 5, VGA_GRAPHICS = 9, VGA_CRTC = 25, VGA_ATTRIBUTE = 21, VGA_DISPI = 11 };

struct vga {
    struct pci_function pci;
    /* --- configuration --- */
    const uint8_t *rom;         /* the VGA BIOS, a power of two in size; NULL: none */
    uint32_t rom_size;
    /* --- state --- */
    uint8_t misc_output, feature;
    uint8_t sequencer_index, sequencer[VGA_SEQUENCER];
    uint8_t graphics_index, graphics[VGA_GRAPHICS];
    uint8_t crtc_index, crtc[VGA_CRTC];
    uint8_t attribute_index, attribute[VGA_ATTRIBUTE];
    bool attribute_data;        /* the next write to 0x3C0 is data */
    uint8_t dac_read_index, dac_write_index, dac_component, dac_mask, dac[768];
    bool dac_reading;
    uint8_t latch[4];
    uint16_t dispi_index, dispi[VGA_DISPI];
    uint8_t memory[VGA_RAM_SIZE];            /* outside the dispi modes the four planes' bytes are interleaved */
    /* --- not state --- */
    pthread_mutex_t mutex;      /* taken by every access, instead of the board lock: who draws a screen makes millions of them */
    _Atomic uint64_t changes;
    struct region legacy_ports, dispi_ports, window;
};

/* Any thread. Another number than before: the picture may be another one. To be read before drawing. */
static inline uint64_t vga_changes(const struct vga *vga) { return vga->changes; }

/* A picture, 0x00RRGGBB. Zero-initialise; vga_picture_free gives the pixels back. */
struct vga_picture {
    unsigned width, height;
    uint32_t *pixel;
};

/* Any thread. False: out of memory. */
bool vga_draw(struct vga *vga, struct vga_picture *picture);
void vga_picture_free(struct vga_picture *picture);

#endif
