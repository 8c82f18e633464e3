/* The display: modes as firmware and drivers set them, seen through the pictures that are made of them. */
#include "dev/rig.h"
#include "dev/display/vga.h"

enum { SLOT = 4 << 3 };

struct fixture {
    struct rig rig;
    struct vga *vga;
    struct vga_picture picture;
};
static struct fixture f;

static void port(uint16_t at, uint8_t value) { rig_access(f.rig.ports, at, 1, true, value); }
static void dispi(uint16_t index, uint16_t value)
{
    rig_access(f.rig.ports, 0x1CE, 2, true, index);
    rig_access(f.rig.ports, 0x1CF, 2, true, value);
}
static uint16_t dispi_get(uint16_t index)
{
    rig_access(f.rig.ports, 0x1CE, 2, true, index);
    return (uint16_t)rig_access(f.rig.ports, 0x1CF, 2, false, 0);
}

static int setup(void **state)
{
    memset(&f, 0, sizeof(f));
    rig_create(&f.rig);
    f.vga = (struct vga *)rig_add(&f.rig, &device_vga, SLOT, NULL, NULL);
    for (unsigned i = 0; i < 16; i++) {         /* palette entry i is grey 4 * i */
        rig_access(f.rig.ports, 0x3DA, 1, false, 0);
        port(0x3C0, (uint8_t)i);
        port(0x3C0, (uint8_t)i);
        port(0x3C8, (uint8_t)i);
        for (unsigned c = 0; c < 3; c++)
            port(0x3C9, (uint8_t)(4 * i));
    }
    rig_access(f.rig.ports, 0x3DA, 1, false, 0);
    port(0x3C0, 0x12);
    port(0x3C0, 0x0F);
    port(0x3C0, 0x20);
    return 0;
}

static int teardown(void **state)
{
    vga_picture_free(&f.picture);
    device_destroy(&f.vga->pci.device);
    rig_destroy(&f.rig);
    return 0;
}

static void indexed(uint16_t at, const uint8_t *pairs, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        port(at, pairs[2 * i]);
        port(at + 1, pairs[2 * i + 1]);
    }
}

static uint32_t pixel(unsigned x, unsigned y) { return f.picture.pixel[y * f.picture.width + x]; }
static uint32_t grey(unsigned i)
{
    unsigned v = (4 * i) << 2 | (4 * i) >> 4;
    return v << 16 | v << 8 | v;
}

static void text_shows_font_and_attributes(void **state)
{
    static const uint8_t seq_font[] = { 2, 4, 4, 6 }, gr_font[] = { 5, 0, 6, 4, 8, 0xFF }, seq_text[] = { 1, 1, 2, 3, 4, 2 };
    static const uint8_t gr_text[] = { 5, 0x10, 6, 0x0E }, crtc[] = { 0x11, 0, 1, 79, 7, 0x1F, 9, 15, 0x12, 0x8F, 0x13, 40, 0x0A, 0x20 };
    indexed(0x3C4, seq_font, 2);
    indexed(0x3CE, gr_font, 3);
    rig_write(&f.rig, 0xA0000 + 32 * 'A' + 3, 1, 0x81);
    indexed(0x3C4, seq_text, 3);
    indexed(0x3CE, gr_text, 2);
    indexed(0x3D4, crtc, 7);
    rig_write(&f.rig, 0xB8000 + 2 * 81, 2, 'A' | 0x2700);       /* row 1, column 1; colour 7 on 2 */
    assert_int_equal(rig_read(&f.rig, 0xB8000 + 2 * 81, 2), 'A' | 0x2700);
    assert_true(vga_draw(f.vga, &f.picture));
    assert_int_equal(f.picture.width, 640);
    assert_int_equal(f.picture.height, 400);
    assert_int_equal(pixel(8, 16 + 3), grey(7));
    assert_int_equal(pixel(9, 16 + 3), grey(2));
    assert_int_equal(pixel(15, 16 + 3), grey(7));
    assert_int_equal(pixel(8, 16 + 4), grey(2));
    assert_int_equal(pixel(0, 16 + 3), grey(0));
}

static void planar_writes_go_through_masks_and_latches(void **state)
{
    static const uint8_t seq[] = { 1, 1, 2, 0x0F, 4, 6 }, gr[] = { 0, 0, 1, 0, 5, 2, 6, 5, 8, 0x80 };
    static const uint8_t crtc[] = { 0x11, 0, 1, 79, 7, 0x3E, 9, 0, 0x12, 0xDF, 0x13, 40, 0x17, 0xE3 };
    indexed(0x3C4, seq, 3);
    indexed(0x3CE, gr, 5);
    indexed(0x3D4, crtc, 7);
    (void)rig_read(&f.rig, 0xA0000 + 80, 1);
    rig_write(&f.rig, 0xA0000 + 80, 1, 5);                      /* write mode 2: colour 5 at the leftmost pixel of line 1 */
    assert_true(vga_draw(f.vga, &f.picture));
    assert_int_equal(f.picture.height, 480);
    assert_int_equal(pixel(0, 1), grey(5));
    assert_int_equal(pixel(1, 1), grey(0));
}

static void dispi_sets_modes_of_any_depth(void **state)
{
    uint64_t memory = rig_bar(&f.rig, SLOT, 0), registers = rig_bar(&f.rig, SLOT, 2);
    assert_int_equal(dispi_get(0), 0xB0C5);
    assert_int_equal(rig_read(&f.rig, registers + 0x500, 2), 0xB0C5);
    dispi(1, 100);
    dispi(2, 50);
    dispi(3, 32);
    dispi(4, 0x41);
    rig_write(&f.rig, memory + 4 * (100 * 7 + 3), 4, 0x00123456);
    assert_true(vga_draw(f.vga, &f.picture));
    assert_int_equal(f.picture.width, 100);
    assert_int_equal(f.picture.height, 50);
    assert_int_equal(pixel(3, 7), 0x123456);
    dispi(9, 7);                                                /* the screen begins at line 7 */
    assert_true(vga_draw(f.vga, &f.picture));
    assert_int_equal(pixel(3, 0), 0x123456);
    dispi(4, 0);
    dispi(3, 16);
    dispi(4, 0xC1);                                             /* not cleared */
    rig_write(&f.rig, memory, 2, 0xF800);
    assert_true(vga_draw(f.vga, &f.picture));
    assert_int_equal(pixel(0, 0), 0xFF0000);
}

static void impossible_modes_are_refused(void **state)
{
    dispi(1, 2560);
    dispi(2, 1600);
    dispi(3, 32);
    dispi(4, 0x41);                                             /* more than there is memory */
    assert_int_equal(dispi_get(4) & 1, 0);
    dispi(3, 7);
    dispi(4, 0x41);
    assert_int_equal(dispi_get(4) & 1, 0);
    dispi(1, 0);
    dispi(3, 8);
    dispi(4, 0x41);
    assert_int_equal(dispi_get(4) & 1, 0);
}

/* Whatever is in the registers, a picture can be made of it. */
static void any_state_can_be_drawn(void **state)
{
    uint64_t seed = 0x1234567;
    for (unsigned i = 0; i < 300; i++) {
        for (unsigned n = 0; n < 60; n++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            if (seed & 1)
                port((uint16_t)(0x3B0 + (seed >> 8) % 0x30), (uint8_t)(seed >> 20));
            else
                dispi((uint16_t)((seed >> 8) % 11), (uint16_t)((seed >> 20) % 2048));
        }
        assert_true(vga_draw(f.vga, &f.picture));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(text_shows_font_and_attributes, setup, teardown),
        cmocka_unit_test_setup_teardown(planar_writes_go_through_masks_and_latches, setup, teardown),
        cmocka_unit_test_setup_teardown(dispi_sets_modes_of_any_depth, setup, teardown),
        cmocka_unit_test_setup_teardown(impossible_modes_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(any_state_can_be_drawn, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
