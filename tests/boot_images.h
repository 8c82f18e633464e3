/*
 * Small valid images of every kind that the loaders know, made in memory, and a target to load them into.
 * Used by tests/unit/boot_*.c and tests/fuzz/fuzz_boot.c.
 */
#ifndef DOPPEL_TESTS_BOOT_IMAGES_H
#define DOPPEL_TESTS_BOOT_IMAGES_H

#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "machine/boot.h"
#include "machine/boot_place.h"
#include "mem/ram.h"

#include <elf.h>         /* last: its macros PF_* are also names of ours */

enum { IMAGE_MAX = 65536, IMAGE_SETUP = 5 * 512, IMAGE_PAYLOAD = 8192 };

struct image {
    uint8_t bytes[IMAGE_MAX];
    size_t size;
};

static inline struct blob image_blob(const struct image *image)
{
    return (struct blob){ image->bytes, image->size, "image" };
}

/* A bzImage of protocol 2.15; its kernel is a pattern of bytes. */
static inline void image_bzimage(struct image *image, bool entry64)
{
    memset(image, 0, sizeof(*image));
    uint8_t *b = image->bytes;
    image->size = IMAGE_SETUP + IMAGE_PAYLOAD;
    b[0x1F1] = 4;
    put32(b + 0x1F4, IMAGE_PAYLOAD / 16);
    put16(b + 0x1FE, 0xAA55);
    b[0x200] = 0xEB;
    b[0x201] = 0x6A;
    memcpy(b + 0x202, "HdrS", 4);
    put16(b + 0x206, 0x020F);
    b[0x211] = 1;
    put32(b + 0x214, 0x100000);
    put32(b + 0x22C, 0x7FFFFFFF);
    put32(b + 0x230, 0x200000);
    b[0x234] = 1;
    b[0x235] = 21;
    put16(b + 0x236, entry64 ? 1 : 0);
    put32(b + 0x238, 2047);
    put64(b + 0x258, 0x1000000);
    put32(b + 0x260, 0x100000);
    for (unsigned i = 0; i < IMAGE_PAYLOAD; i++)
        b[IMAGE_SETUP + i] = (uint8_t)(i * 7 + 1);
}

/* The same with `packed` as the kernel within. */
static inline void image_bzimage_packed(struct image *image, const uint8_t *packed, size_t size)
{
    image_bzimage(image, true);
    memcpy(image->bytes + IMAGE_SETUP + 256, packed, size);
    put32(image->bytes + 0x248, 256);
    put32(image->bytes + 0x24C, (uint32_t)size);
    image->size = IMAGE_SETUP + align_up(256 + size, 16);
    put32(image->bytes + 0x1F4, (uint32_t)((image->size - IMAGE_SETUP) / 16));
}

enum { ELF_TEXT_OFFSET = 0x1000, ELF_TEXT_SIZE = 0x800, ELF_TEXT_MEMORY = 0x3000, ELF_NOTE_OFFSET = 0x400, ELF_ADDRESS = 0x200000 };

/* One segment of text and bss at 2 MiB, and a Xen note if asked for. */
static inline void image_elf64(struct image *image, bool note)
{
    memset(image, 0, sizeof(*image));
    Elf64_Ehdr head = { .e_ident = { 0x7F, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 }, .e_type = ET_EXEC,
                        .e_machine = EM_X86_64, .e_version = 1, .e_entry = ELF_ADDRESS + 0x10, .e_phoff = sizeof(head),
                        .e_ehsize = sizeof(head), .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = note ? 2 : 1 };
    Elf64_Phdr row[2] = {
        { .p_type = PT_LOAD, .p_offset = ELF_TEXT_OFFSET, .p_vaddr = 0xFFFFFFFF81000000, .p_paddr = ELF_ADDRESS,
          .p_filesz = ELF_TEXT_SIZE, .p_memsz = ELF_TEXT_MEMORY },
        { .p_type = PT_NOTE, .p_offset = ELF_NOTE_OFFSET, .p_filesz = 44 },
    };
    memcpy(image->bytes, &head, sizeof(head));
    memcpy(image->bytes + sizeof(head), row, sizeof(row));
    uint8_t *n = image->bytes + ELF_NOTE_OFFSET;
    put32(n, 4), put32(n + 4, 4), put32(n + 8, 5), memcpy(n + 12, "GNU", 4), put32(n + 16, 1);
    n += 20;
    put32(n, 4), put32(n + 4, 8), put32(n + 8, 18), memcpy(n + 12, "Xen", 4), put64(n + 16, ELF_ADDRESS + 0x40);
    memset(image->bytes + ELF_TEXT_OFFSET, 0x90, ELF_TEXT_SIZE);
    image->size = ELF_TEXT_OFFSET + ELF_TEXT_SIZE;
}

/* A 32-bit ELF file with a Multiboot header at the start of its text. */
static inline void image_multiboot_elf32(struct image *image)
{
    memset(image, 0, sizeof(*image));
    Elf32_Ehdr head = { .e_ident = { 0x7F, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, 1 }, .e_type = ET_EXEC,
                        .e_machine = EM_386, .e_version = 1, .e_entry = ELF_ADDRESS + 0x10, .e_phoff = sizeof(head),
                        .e_ehsize = sizeof(head), .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = 1 };
    Elf32_Phdr row = { .p_type = PT_LOAD, .p_offset = ELF_TEXT_OFFSET, .p_vaddr = ELF_ADDRESS, .p_paddr = ELF_ADDRESS,
                       .p_filesz = ELF_TEXT_SIZE, .p_memsz = ELF_TEXT_MEMORY };
    memcpy(image->bytes, &head, sizeof(head));
    memcpy(image->bytes + sizeof(head), &row, sizeof(row));
    uint8_t *m = image->bytes + ELF_TEXT_OFFSET;
    put32(m, 0x1BADB002), put32(m + 4, 3), put32(m + 8, -(0x1BADB002u + 3));
    image->size = ELF_TEXT_OFFSET + ELF_TEXT_SIZE;
}

/* Multiboot by addresses: header at 0x40, loaded whole to 1 MiB, 4 KiB of bss. */
static inline void image_multiboot_flat(struct image *image)
{
    memset(image, 0, sizeof(*image));
    uint8_t *m = image->bytes + 0x40;
    put32(m, 0x1BADB002), put32(m + 4, 0x10003), put32(m + 8, -(0x1BADB002u + 0x10003));
    put32(m + 12, 0x100040), put32(m + 16, 0x100000), put32(m + 20, 0), put32(m + 24, 0x103000), put32(m + 28, 0x100080);
    memset(image->bytes + 0x80, 0xF4, 0x1F80);
    image->size = 0x2000;
}

/* A machine of `memory` bytes below 4 GiB with nothing else in it. */
static inline struct boot_target target_create(uint64_t memory)
{
    struct ram *ram = ram_create();
    struct error err;
    if (!ram || !ram_add(ram, "ram", 0, memory, false, &err))
        abort();
    return (struct boot_target){ .ram = ram, .low_ram_end = memory, .high_ram_end = PLACE_4G, .rsdp = 0xE0000 };
}

static inline uint32_t guest32(const struct boot_target *target, uint64_t address)
{
    uint32_t value = 0;
    ram_read(target->ram, address, &value, sizeof(value));
    return value;
}

static inline uint64_t guest64(const struct boot_target *target, uint64_t address)
{
    return guest32(target, address) | (uint64_t)guest32(target, address + 4) << 32;
}

static inline uint8_t guest8(const struct boot_target *target, uint64_t address)
{
    uint8_t value = 0;
    ram_read(target->ram, address, &value, 1);
    return value;
}

/* The string at the address, at most size-1 characters of it. */
static inline const char *guest_text(const struct boot_target *target, uint64_t address, char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (!(text[i] = (char)guest8(target, address + i)))
            break;
    text[size - 1] = 0;
    return text;
}

#endif
