/* The PVH, Multiboot and flat loaders: what the guest finds, and that each malformed image is refused with a reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "boot_images.h"

static struct image image;

static bool boot(const struct boot_target *target, const struct machine_config *config, const struct blob *initrd,
                 struct boot_entry *entry, struct error *err)
{
    const struct blob kernel = image_blob(&image);
    err->text[0] = 0;
    return boot_load(config, &kernel, initrd, target, entry, err);
}

static void refused_as(enum boot_method method, const char *reason)
{
    const struct machine_config config = { .boot = method, .append = "" };
    struct boot_target target = target_create(16 * MiB);
    struct boot_entry entry;
    struct error err;
    assert_false(boot(&target, &config, NULL, &entry, &err));
    if (!strstr(err.text, reason))
        fail_msg("said \"%s\", not \"%s\"", err.text, reason);
    ram_destroy(target.ram);
}

static void pvh_start_info_is_whole(void **state)
{
    struct boot_target target = target_create(16 * MiB);
    const struct blob initrd[] = { { (const uint8_t *)"disk", 5, "a" } };
    struct machine_config config = { .append = "hello", .initrd_count = 1 };
    struct boot_entry entry;
    struct error err;
    char text[16];
    image_elf64(&image, true);
    assert_true(boot(&target, &config, initrd, &entry, &err));
    assert_int_equal(entry.mode, BOOT_ENTRY_PROTECTED);
    assert_int_equal(entry.rip, ELF_ADDRESS + 0x40);
    uint64_t info = entry.rbx;
    assert_int_equal(guest32(&target, info), 0x336EC578);
    assert_int_equal(guest32(&target, info + 4), 1);
    assert_int_equal(guest32(&target, info + 12), 1);
    uint64_t module = guest64(&target, info + 16);
    assert_int_equal(guest64(&target, module + 8), 5);
    assert_string_equal(guest_text(&target, guest64(&target, module), text, sizeof(text)), "disk");
    assert_string_equal(guest_text(&target, guest64(&target, info + 24), text, sizeof(text)), "hello");
    assert_int_equal(guest64(&target, info + 32), 0xE0000);
    assert_int_equal(guest32(&target, info + 48), 4);
    assert_int_equal(guest64(&target, guest64(&target, info + 40) + 2 * 24), 0x100000);
    ram_destroy(target.ram);
}

/* Packs the ELF image in one of the ways a kernel build does; returns the size. */
static size_t pack(const char *how, uint8_t *out, size_t room)
{
    if (!strcmp(how, "zstd"))
        return ZSTD_compress(out, room, image.bytes, image.size, 3);
    if (!strcmp(how, "lz4")) {
        put32(out, 0x184C2102);
        int size = LZ4_compress_default((const char *)image.bytes, (char *)out + 8, (int)image.size, (int)room - 8);
        put32(out + 4, (uint32_t)size);
        put32(out + 8 + size, (uint32_t)image.size);
        return (size_t)size + 12;
    }
    if (!strcmp(how, "xz")) {
        size_t size = 0;
        assert_int_equal(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, image.bytes, image.size, out, &size, room), LZMA_OK);
        put32(out + size, (uint32_t)image.size);
        return size + 4;
    }
    z_stream stream = { .next_in = image.bytes, .avail_in = (uInt)image.size, .next_out = out, .avail_out = (uInt)room };
    assert_int_equal(deflateInit2(&stream, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    deflateEnd(&stream);
    return stream.total_out;
}

static void pvh_unpacks_every_kind_of_bzimage(void **state)
{
    static const char *const ways[] = { "gzip", "xz", "lz4", "zstd" };
    const struct machine_config config = { .boot = BOOT_PVH, .append = "" };
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        static uint8_t packed[IMAGE_MAX / 2];
        struct boot_target target = target_create(16 * MiB);
        struct boot_entry entry;
        struct error err;
        image_elf64(&image, true);
        size_t size = pack(ways[i], packed, sizeof(packed));
        image_bzimage_packed(&image, packed, size);
        if (!boot(&target, &config, NULL, &entry, &err))
            fail_msg("%s: %s", ways[i], err.text);
        assert_int_equal(entry.rip, ELF_ADDRESS + 0x40);
        assert_int_equal(guest8(&target, ELF_ADDRESS + 5), 0x90);
        image.bytes[IMAGE_SETUP + 256 + 20] ^= 0xFF;
        boot(&target, &config, NULL, &entry, &err);
        put32(image.bytes + 0x24C, (uint32_t)size / 2);
        assert_false(boot(&target, &config, NULL, &entry, &err));
        ram_destroy(target.ram);
    }
}

static void pvh_refuses_what_it_cannot_start(void **state)
{
    image_elf64(&image, false);
    refused_as(BOOT_PVH, "no PVH entry point");
    image_elf64(&image, true);
    put32(image.bytes + ELF_NOTE_OFFSET + 4, 0xFFFFFFF0);
    refused_as(BOOT_PVH, "no PVH entry point");
    image_elf64(&image, true);
    put64(image.bytes + 64 + 24, 0x100000000);
    refused_as(BOOT_PVH, "no RAM");
    image_elf64(&image, true);
    put64(image.bytes + 64 + 40, UINT64_MAX);
    refused_as(BOOT_PVH, "no RAM");
    image_elf64(&image, true);
    put64(image.bytes + 64 + 8, UINT64_MAX - 4);
    refused_as(BOOT_PVH, "past the end");
    image_elf64(&image, true);
    put64(image.bytes + 32, UINT64_MAX - 4);
    refused_as(BOOT_PVH, "program headers");
    image_elf64(&image, true);
    put16(image.bytes + 18, 183);
    refused_as(BOOT_PVH, "another kind of processor");
    image_elf64(&image, true);
    image.size = 40;
    refused_as(BOOT_PVH, "truncated");
    image_bzimage(&image, true);
    refused_as(BOOT_PVH, "not whole");
    put32(image.bytes + 0x24C, 100);
    refused_as(BOOT_PVH, "cannot unpack");
}

static void multiboot_checks(void (*make)(struct image *image), uint64_t rip)
{
    struct boot_target target = target_create(16 * MiB);
    const struct blob initrd[] = { { (const uint8_t *)"module", 7, "m" } };
    struct machine_config config = { .append = "one two", .initrd_count = 1, .initrd = { "m.bin arg" } };
    struct boot_entry entry;
    struct error err;
    char text[32];
    make(&image);
    if (!boot(&target, &config, initrd, &entry, &err))
        fail_msg("%s", err.text);
    assert_int_equal(entry.mode, BOOT_ENTRY_PROTECTED);
    assert_int_equal(entry.rax, 0x2BADB002);
    assert_int_equal(entry.rip, rip);
    assert_int_equal(guest32(&target, 0x40E) & 0xFFFF, 0x9FC0);
    assert_int_equal(guest32(&target, 0x413) & 0xFFFF, 639);
    uint64_t info = entry.rbx;
    assert_int_equal(guest32(&target, info), 0x24D);
    assert_int_equal(guest32(&target, info + 8), 15 * 1024);
    assert_string_equal(guest_text(&target, guest32(&target, info + 16), text, sizeof(text)), "image one two");
    assert_int_equal(guest32(&target, info + 20), 1);
    uint64_t module = guest32(&target, info + 24), start = guest32(&target, module);
    assert_int_equal(start % PAGE_SIZE, 0);
    assert_int_equal(guest32(&target, module + 4) - start, 7);
    assert_string_equal(guest_text(&target, start, text, sizeof(text)), "module");
    assert_string_equal(guest_text(&target, guest32(&target, module + 8), text, sizeof(text)), "m.bin arg");
    assert_int_equal(guest32(&target, info + 44), 4 * 24);
    uint64_t map = guest32(&target, info + 48);
    assert_int_equal(guest32(&target, map), 20);
    assert_int_equal(guest64(&target, map + 48 + 4), 0x100000);
    ram_destroy(target.ram);
}

static void make_multiboot_elf64(struct image *made)
{
    image_elf64(made, false);
    uint8_t *m = made->bytes + ELF_TEXT_OFFSET;
    put32(m, 0x1BADB002), put32(m + 4, 3), put32(m + 8, -(0x1BADB002u + 3));
}

static void multiboot_loads_elf_and_flat(void **state)
{
    multiboot_checks(image_multiboot_elf32, ELF_ADDRESS + 0x10);
    multiboot_checks(make_multiboot_elf64, ELF_ADDRESS + 0x10);
    multiboot_checks(image_multiboot_flat, 0x100080);
}

static void multiboot_refuses_malformed_headers(void **state)
{
    image_multiboot_flat(&image);
    image.bytes[0x48] ^= 1;
    refused_as(BOOT_MULTIBOOT, "no Multiboot header");
    image_multiboot_flat(&image);
    put32(image.bytes + 0x44, 0x10008), put32(image.bytes + 0x48, -(0x1BADB002u + 0x10008));
    refused_as(BOOT_MULTIBOOT, "requires Multiboot features 0x8");
    image_multiboot_flat(&image);
    put32(image.bytes + 0x50, 0x100041);
    refused_as(BOOT_MULTIBOOT, "before its start");
    image_multiboot_flat(&image);
    put32(image.bytes + 0x50, 0xF0000);
    refused_as(BOOT_MULTIBOOT, "before its start");
    image_multiboot_flat(&image);
    put32(image.bytes + 0x54, 0x200000);
    refused_as(BOOT_MULTIBOOT, "truncated");
    image_multiboot_flat(&image);
    put32(image.bytes + 0x58, 0x100100);
    refused_as(BOOT_MULTIBOOT, "before it starts");
    image_multiboot_flat(&image);
    put32(image.bytes + 0x4C, 0xA0040), put32(image.bytes + 0x50, 0xA0000), put32(image.bytes + 0x58, 0);
    refused_as(BOOT_MULTIBOOT, "overlaps");
    image_multiboot_flat(&image);
    image.size = 0x50;
    refused_as(BOOT_MULTIBOOT, "truncated");
}

static void flat_goes_where_it_is_told(void **state)
{
    struct boot_target target = target_create(16 * MiB);
    struct machine_config config = { .boot = BOOT_FLAT, .flat_address = 0x7C00 };
    struct boot_entry entry;
    struct error err;
    memset(&image, 0xF4, 512);
    image.size = 512;
    assert_true(boot(&target, &config, NULL, &entry, &err));
    assert_int_equal(entry.mode, BOOT_ENTRY_REAL);
    assert_int_equal(entry.rip, 0x7C00);
    assert_int_equal(entry.cs, 0);
    assert_int_equal(guest8(&target, 0x7DFF), 0xF4);
    config.flat_address = 0x20008;
    assert_true(boot(&target, &config, NULL, &entry, &err));
    assert_int_equal(entry.cs, 0x2000);
    assert_int_equal(entry.rip, 8);
    config.flat_address = 0x300000;
    assert_true(boot(&target, &config, NULL, &entry, &err));
    assert_int_equal(entry.mode, BOOT_ENTRY_PROTECTED);
    assert_int_equal(entry.rip, 0x300000);
    config.flat_address = 16 * MiB - 511;
    assert_false(boot(&target, &config, NULL, &entry, &err));
    config.flat_address = UINT64_MAX - 100;
    assert_false(boot(&target, &config, NULL, &entry, &err));
    ram_destroy(target.ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pvh_start_info_is_whole),          cmocka_unit_test(pvh_unpacks_every_kind_of_bzimage),
        cmocka_unit_test(pvh_refuses_what_it_cannot_start), cmocka_unit_test(multiboot_loads_elf_and_flat),
        cmocka_unit_test(multiboot_refuses_malformed_headers), cmocka_unit_test(flat_goes_where_it_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
