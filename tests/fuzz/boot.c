/*
 * Hostile images: every loader takes whatever bytes come, and either refuses them with a sentence or loads them; under the address and
 * undefined-behaviour sanitizers. An entry that a loader returns must lie where the rules of that protocol allow.
 */
#include "boot_images.h"
#include "mutate.h"

static const uint64_t memory = 4 * MiB;

static struct boot_target *target(void)
{
    static struct boot_target only;
    if (!only.ram)
        only = target_create(memory);
    return &only;
}

static void check(bool done, const struct boot_entry *entry, const struct error *err)
{
    if (!done && !*err->text) {
        fprintf(stderr, "refused without a reason\n");
        abort();
    }
    if (done && entry->mode != BOOT_ENTRY_REAL && (entry->rip >= PLACE_4G || entry->rbx >= memory || entry->rsi >= memory)) {
        fprintf(stderr, "an entry out of range\n");
        abort();
    }
}

/* The first byte chooses the method, the rest is the image. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t module[5000];
    if (!size)
        return 0;
    const struct blob kernel = { data + 1, size - 1, "image" }, initrd[] = { { module, sizeof(module), "initrd" } };
    const struct machine_config config = { .boot = (enum boot_method)(data[0] % (BOOT_FLAT + 1)), .append = "words",
                                           .flat_address = size * 0x1234567, .initrd = { "initrd" },
                                           .initrd_count = data[0] % (BOOT_FLAT + 1) != BOOT_FLAT };
    struct boot_entry entry;
    struct error err = { "" };
    check(boot_load(&config, &kernel, initrd, target(), &entry, &err), &entry, &err);
    return 0;
}

#ifndef FUZZ_LIBFUZZER
#include <lz4.h>
#include <zstd.h>

static void image_packed(struct image *image, bool lz4)
{
    static struct image inner;
    uint8_t packed[16384];
    image_elf64(&inner, true);
    size_t size;
    if (lz4) {
        put32(packed, 0x184C2102);
        size = (size_t)LZ4_compress_default((const char *)inner.bytes, (char *)packed + 8, (int)inner.size, sizeof(packed) - 8);
        put32(packed + 4, (uint32_t)size);
        size += 8;
    } else {
        size = ZSTD_compress(packed, sizeof(packed), inner.bytes, inner.size, 3);
    }
    image_bzimage_packed(image, packed, size);
}

static void make(struct image *image, unsigned kind)
{
    switch (kind) {
    case 0: image_bzimage(image, true); break;
    case 1: image_bzimage(image, false); break;
    case 2: image_elf64(image, true); break;
    case 3: image_elf64(image, false); break;
    case 4: image_multiboot_elf32(image); break;
    case 5: image_multiboot_flat(image); break;
    case 6: image_packed(image, true); break;
    default: image_packed(image, false); break;
    }
}

int main(int argc, char **argv)
{
    static struct image image;
    static uint8_t input[IMAGE_MAX + 1];
    uint64_t seed = 0x9E3779B97F4A7C15ull;
    unsigned long rounds = fuzz_rounds(argc, argv, 40000);
    for (unsigned long round = 0; round < rounds; round++) {
        unsigned kind = (unsigned)(round % 8);
        make(&image, kind);
        size_t hot = kind < 2 ? 0x290 : kind >= 6 ? IMAGE_SETUP + 512 : 0x480;
        for (uint64_t changes = 1 + fuzz_below(&seed, 4); changes; changes--)
            image.size = fuzz_mutate(image.bytes, image.size, hot, &seed);
        input[0] = (uint8_t)(kind >= 6 ? BOOT_PVH : fuzz_below(&seed, 2) ? BOOT_AUTO : fuzz_random(&seed));
        memcpy(input + 1, image.bytes, image.size);
        LLVMFuzzerTestOneInput(input, image.size + 1);
    }
    printf("%lu images\n", rounds);
    return 0;
}
#endif
