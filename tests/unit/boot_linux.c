/* The Linux loader: what it places where, and that each malformed image is refused with a reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "boot_images.h"

static struct image image;
static const struct machine_config plain = { .append = "quiet" };

static bool boot(const struct boot_target *target, const struct machine_config *config, const struct blob *initrd,
                 struct boot_entry *entry, struct error *err)
{
    const struct blob kernel = image_blob(&image);
    err->text[0] = 0;
    return boot_load(config, &kernel, initrd, target, entry, err);
}

static void refused(const char *reason)
{
    struct boot_target target = target_create(64 * MiB);
    struct boot_entry entry;
    struct error err;
    assert_false(boot(&target, &plain, NULL, &entry, &err));
    if (!strstr(err.text, reason))
        fail_msg("said \"%s\", not \"%s\"", err.text, reason);
    ram_destroy(target.ram);
}

static void enters_64_bit_kernel_with_zero_page(void **state)
{
    struct boot_target target = target_create(256 * MiB);
    const uint8_t data[] = "an initrd";
    const struct blob initrd[] = { { data, sizeof(data), "initrd" } };
    struct machine_config config = { .append = "console=ttyS0 quiet", .initrd_count = 1 };
    struct boot_entry entry;
    struct error err;
    char text[64];
    image_bzimage(&image, true);
    assert_true(boot(&target, &config, initrd, &entry, &err));
    assert_int_equal(entry.mode, BOOT_ENTRY_LONG);
    assert_int_equal(entry.rip, 0x1000200);
    assert_int_equal(entry.cs, 0x10);
    assert_int_equal(guest8(&target, 0x1000000), image.bytes[IMAGE_SETUP]);
    assert_int_equal(guest8(&target, 0x1000000 + IMAGE_PAYLOAD - 1), image.bytes[image.size - 1]);
    uint64_t zero = entry.rsi;
    assert_int_equal(guest32(&target, zero + 0x202), 0x53726448);
    assert_int_equal(guest8(&target, zero + 0x210), 0xFF);
    assert_string_equal(guest_text(&target, guest32(&target, zero + 0x228), text, sizeof(text)), config.append);
    assert_int_equal(guest32(&target, zero + 0x21C), sizeof(data));
    uint32_t ramdisk = guest32(&target, zero + 0x218);
    assert_int_equal(ramdisk, 256 * MiB - PAGE_SIZE);
    assert_string_equal(guest_text(&target, ramdisk, text, sizeof(text)), "an initrd");
    assert_int_equal(guest64(&target, zero + 0x70), 0xE0000);
    /* e820: conventional memory, BIOS, RAM, ECAM */
    assert_int_equal(guest8(&target, zero + 0x1E8), 4);
    assert_int_equal(guest64(&target, zero + 0x2D0 + 2 * 20), 0x100000);
    assert_int_equal(guest64(&target, zero + 0x2D0 + 2 * 20 + 8), 255 * MiB);
    /* identity map: page-directory entry 5 of the second gigabyte */
    uint64_t pdpt = guest64(&target, entry.cr3) & ~0xFFFull, pd = guest64(&target, pdpt + 8) & ~0xFFFull;
    assert_int_equal(guest64(&target, pd + 5 * 8), (GiB + 5 * 2 * MiB) | 0x83);
    assert_int_equal(guest64(&target, entry.gdt_base + 0x10), 0x00AF9B000000FFFFull);
    ram_destroy(target.ram);
}

static void enters_32_bit_kernel_by_the_older_way(void **state)
{
    struct boot_target target = target_create(64 * MiB);
    struct boot_entry entry;
    struct error err;
    image_bzimage(&image, false);
    assert_true(boot(&target, &plain, NULL, &entry, &err));
    assert_int_equal(entry.mode, BOOT_ENTRY_PROTECTED);
    assert_int_equal(entry.rip, 0x1000000);
    assert_int_equal(guest64(&target, entry.gdt_base + 0x10), 0x00CF9B000000FFFFull);
    ram_destroy(target.ram);
}

static void relocates_into_a_small_machine(void **state)
{
    struct boot_target target = target_create(8 * MiB);
    struct boot_entry entry;
    struct error err;
    image_bzimage(&image, true);
    assert_true(boot(&target, &plain, NULL, &entry, &err));
    assert_int_equal(entry.rip, 0x200200);
    image.bytes[0x234] = 0;
    assert_false(boot(&target, &plain, NULL, &entry, &err));
    assert_non_null(strstr(err.text, "--memory"));
    ram_destroy(target.ram);
}

static void joins_initrds_at_multiples_of_four(void **state)
{
    struct boot_target target = target_create(64 * MiB);
    const struct blob initrd[] = { { (const uint8_t *)"abcde", 5, "a" }, { (const uint8_t *)"fgh", 3, "b" } };
    struct machine_config config = { .append = "", .initrd_count = 2 };
    struct boot_entry entry;
    struct error err;
    char text[16];
    image_bzimage(&image, true);
    assert_true(boot(&target, &config, initrd, &entry, &err));
    uint32_t at = guest32(&target, entry.rsi + 0x218);
    assert_int_equal(guest32(&target, entry.rsi + 0x21C), 11);
    assert_string_equal(guest_text(&target, at, text, sizeof(text)), "abcde");
    assert_string_equal(guest_text(&target, at + 8, text, sizeof(text)), "fgh");
    ram_destroy(target.ram);
}

static void honours_initrd_addr_max(void **state)
{
    struct boot_target target = target_create(64 * MiB);
    const struct blob initrd[] = { { image.bytes, 8192, "a" } };
    struct machine_config config = { .append = "", .initrd_count = 1 };
    struct boot_entry entry;
    struct error err;
    image_bzimage(&image, true);
    put32(image.bytes + 0x22C, 0x2FFFFFF);
    assert_true(boot(&target, &config, initrd, &entry, &err));
    assert_int_equal(guest32(&target, entry.rsi + 0x218), 0x3000000 - 8192);
    ram_destroy(target.ram);
}

static void refuses_malformed_images(void **state)
{
    image_bzimage(&image, true);
    image.size = 0x220;
    refused("not a Linux bzImage");
    image_bzimage(&image, true);
    image.size = 2000;
    refused("truncated");
    image_bzimage(&image, true);
    image.size -= 100;
    refused("truncated");
    image_bzimage(&image, true);
    put16(image.bytes + 0x206, 0x0201);
    refused("too old");
    image_bzimage(&image, true);
    image.bytes[0x211] = 0;
    refused("too old");
    image_bzimage(&image, true);
    put32(image.bytes + 0x230, 0x300000);
    refused("alignment");
    image_bzimage(&image, true);
    put32(image.bytes + 0x260, 0xFFFFFFFF);
    refused("--memory");
    image_bzimage(&image, true);
    put64(image.bytes + 0x258, UINT64_MAX - 10);
    image.bytes[0x234] = 0;
    refused("no RAM");
    image_bzimage(&image, true);
    put64(image.bytes + 0x258, 0);
    image.bytes[0x234] = 0;
    refused("overlaps");
    image_bzimage(&image, true);
    put32(image.bytes + 0x238, 3);
    refused("command line is 5 characters");
    memset(&image, 0x55, sizeof(image));
    image.size = 4096;
    refused("not a kernel that Doppel recognises");
}

static void refuses_an_initrd_that_does_not_fit(void **state)
{
    struct boot_target target = target_create(64 * MiB);
    uint8_t *big = calloc(1, 63 * MiB);
    const struct blob initrd[] = { { big, 63 * MiB, "a" } };
    struct machine_config config = { .append = "", .initrd_count = 1 };
    struct boot_entry entry;
    struct error err;
    image_bzimage(&image, true);
    assert_false(boot(&target, &config, initrd, &entry, &err));
    assert_non_null(strstr(err.text, "no room in memory for the initrd"));
    free(big);
    ram_destroy(target.ram);
}

static void enters_vmlinux(void **state)
{
    struct boot_target target = target_create(64 * MiB);
    struct boot_entry entry;
    struct error err;
    image_elf64(&image, false);
    assert_true(boot(&target, &plain, NULL, &entry, &err));
    assert_int_equal(entry.mode, BOOT_ENTRY_LONG);
    assert_int_equal(entry.rip, ELF_ADDRESS + 0x10);
    assert_int_equal(guest8(&target, ELF_ADDRESS), 0x90);
    assert_int_equal(guest32(&target, entry.rsi + 0x202), 0x53726448);
    ram_destroy(target.ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enters_64_bit_kernel_with_zero_page), cmocka_unit_test(enters_32_bit_kernel_by_the_older_way),
        cmocka_unit_test(relocates_into_a_small_machine),      cmocka_unit_test(joins_initrds_at_multiples_of_four),
        cmocka_unit_test(honours_initrd_addr_max),             cmocka_unit_test(refuses_malformed_images),
        cmocka_unit_test(refuses_an_initrd_that_does_not_fit), cmocka_unit_test(enters_vmlinux),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
