/*
 * Multiboot v1: a kernel with a header in its first 8 KiB, loaded by the addresses there (the "a.out kludge") or as ELF,
 * started in 32-bit protected mode with EBX at the information structure.
 * Multiboot Specification 0.6.96; 64-bit ELF files are loaded by their physical addresses and started the same way.
 */
#include <stdio.h>
#include <string.h>

#include "machine/boot_elf.h"
#include "machine/boot_place.h"
#include "mem/ram.h"

enum { SEARCH_SIZE = 8192, HEADER_MAGIC = 0x1BADB002, LOADER_MAGIC = 0x2BADB002, HEADER_SIZE = 12, ADDRESSES_SIZE = 32 };
/* Header flags: pages aligned, memory information, video mode; the rest of the low half must be understood. */
enum { WANT_ALIGNED = 1, WANT_MEMORY = 2, WANT_VIDEO = 4, WANT_UNKNOWN = 0xFFF8, HAS_ADDRESSES = 0x10000 };
/* Information flags. */
enum { INFO_MEMORY = 1, INFO_CMDLINE = 4, INFO_MODS = 8, INFO_MMAP = 0x40, INFO_LOADER_NAME = 0x200 };

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr,
             drives_length, drives_addr, config_table, boot_loader_name, apm_table, vbe[4];
};
struct multiboot_module {
    uint32_t start, end, string, reserved;
};
struct multiboot_mmap {
    uint32_t size;              /* of the rest of the row */
    uint64_t addr, length;
    uint32_t type;
} __attribute__((packed));
_Static_assert(sizeof(struct multiboot_info) == 88 && sizeof(struct multiboot_mmap) == 24, "layouts are the specification's");

static bool find_header(const struct blob *kernel, uint32_t *offset)
{
    for (uint32_t at = 0; at < SEARCH_SIZE && blob_has(kernel, at, HEADER_SIZE); at += 4) {
        const uint8_t *row = kernel->data + at;
        if (get32(row) == HEADER_MAGIC && get32(row) + get32(row + 4) + get32(row + 8) == 0) {
            *offset = at;
            return true;
        }
    }
    return false;
}

bool boot_multiboot_probe(const struct blob *kernel)
{
    uint32_t offset;
    return find_header(kernel, &offset);
}

/* The "a.out kludge": the header says which part of the file goes where. */
static bool load_by_addresses(struct placement *place, const struct blob *kernel, uint32_t offset, uint64_t *entry,
                              struct error *err)
{
    if (!blob_has(kernel, offset, ADDRESSES_SIZE))
        return error_set(err, "%s is truncated: it ends within its Multiboot header", kernel->name);
    const uint8_t *row = kernel->data + offset;
    uint64_t header = get32(row + 12), load = get32(row + 16), load_end = get32(row + 20), bss_end = get32(row + 24);
    if (load > header || header - load > offset)
        return error_set(err, "%s is damaged: its Multiboot header says that it is loaded from before its start", kernel->name);
    uint64_t from = offset - (header - load);
    uint64_t size = load_end ? load_end - load : kernel->size - from;
    if ((load_end && load_end < load) || !blob_has(kernel, from, size))
        return error_set(err, "%s is truncated: its Multiboot header promises more than the file has", kernel->name);
    if (bss_end && bss_end < load + size)
        return error_set(err, "%s is damaged: its Multiboot header ends the bss before it starts", kernel->name);
    *entry = get32(row + 28);
    return place_put(place, load, kernel->data + from, size, bss_end ? bss_end - load : size, "the kernel", err);
}

static bool load_kernel(struct placement *place, const struct blob *kernel, uint64_t *entry, struct error *err)
{
    uint32_t offset;
    if (!find_header(kernel, &offset))
        return error_set(err, "%s has no Multiboot header in its first 8 KiB", kernel->name);
    uint32_t flags = get32(kernel->data + offset + 4);
    if (flags & WANT_UNKNOWN)
        return error_set(err, "%s requires Multiboot features 0x%x, which Doppel does not know", kernel->name, flags & WANT_UNKNOWN);
    if (flags & WANT_VIDEO)
        log_message(place->target->log, LOG_INFO, "%s asks for a video mode; there is no display", kernel->name);
    if (flags & HAS_ADDRESSES)
        return load_by_addresses(place, kernel, offset, entry, err);
    struct elf elf;
    if (!elf_parse(kernel, &elf, err) || !elf_load(&elf, place, err))
        return false;
    *entry = elf_physical_entry(&elf);
    return *entry < PLACE_4G || error_set(err, "%s starts above 4 GiB", kernel->name);
}

/* A string of the information structure. */
static bool place_text(struct placement *place, const char *text, uint32_t *address, struct error *err)
{
    uint64_t start = 0;
    if (!place_structure(place, text, strlen(text) + 1, "a command line", &start, err))
        return false;
    *address = (uint32_t)start;
    return true;
}

/* Modules lie above the kernel, each on a page border; the string is what was given on the command line. */
static bool place_modules(struct placement *place, const struct machine_config *config, const struct blob *initrd,
                          struct multiboot_info *info, struct error *err)
{
    struct multiboot_module list[MACHINE_INITRDS_MAX] = { 0 };
    uint64_t from = HIGH_MEMORY_START, start;
    for (unsigned i = 0; i < place->count; i++)
        if (place->claim[i].end <= place->target->low_ram_end)
            from = max_u64(from, place->claim[i].end);
    for (unsigned i = 0; i < config->initrd_count; i++) {
        if (!place_low(place, max_u64(initrd[i].size, 1), PAGE_SIZE, from, PLACE_4G, "a module", &start, err) ||
            !place_text(place, config->initrd[i] ? config->initrd[i] : "", &list[i].string, err))
            return false;
        if (initrd[i].size && !ram_load(place->target->ram, start, initrd[i].data, initrd[i].size))
            return error_set(err, "the module does not fit in memory");
        list[i].start = (uint32_t)start;
        list[i].end = (uint32_t)(start + initrd[i].size);
    }
    uint64_t table = 0;
    info->flags |= INFO_MODS;
    info->mods_count = config->initrd_count;
    if (config->initrd_count && !place_structure(place, list, config->initrd_count * sizeof(list[0]), "the module list", &table, err))
        return false;
    info->mods_addr = (uint32_t)table;
    return true;
}

static bool place_map(struct placement *place, struct multiboot_info *info, struct error *err)
{
    struct e820_range map[E820_MAX];
    struct multiboot_mmap rows[E820_MAX];
    unsigned count = place_memory_map(place->target, map);
    uint64_t start;
    for (unsigned i = 0; i < count; i++)
        rows[i] = (struct multiboot_mmap){ sizeof(rows[i]) - sizeof(rows[i].size), map[i].start, map[i].size, map[i].type };
    if (!place_structure(place, rows, count * sizeof(rows[0]), "the memory map", &start, err))
        return false;
    info->flags |= INFO_MEMORY | INFO_MMAP;
    info->mmap_addr = (uint32_t)start;
    info->mmap_length = count * (uint32_t)sizeof(rows[0]);
    info->mem_lower = CONVENTIONAL_END / 1024;
    info->mem_upper = (uint32_t)((place->target->low_ram_end - HIGH_MEMORY_START) / 1024);
    return true;
}

/* Convention of loaders: the first word is the file's name, then what the user gave. */
static bool place_command_line(struct placement *place, const struct machine_config *config, const struct blob *kernel,
                               struct multiboot_info *info, struct error *err)
{
    char text[16384];
    const char *append = config->append ? config->append : "";
    int length = snprintf(text, sizeof(text), "%s%s%s", kernel->name, *append ? " " : "", append);
    if (length < 0 || (size_t)length >= sizeof(text))
        return error_set(err, "the command line is too long");
    info->flags |= INFO_CMDLINE;
    return place_text(place, text, &info->cmdline, err);
}

bool boot_multiboot(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                    const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    struct multiboot_info info = { .flags = INFO_LOADER_NAME };
    struct placement place;
    place_init(&place, target);
    *entry = (struct boot_entry){ .mode = BOOT_ENTRY_PROTECTED, .rax = LOADER_MAGIC };
    if (target->low_ram_end <= HIGH_MEMORY_START)
        return error_set(err, "a Multiboot kernel needs more than 1 MiB of memory");
    if (!load_kernel(&place, kernel, &entry->rip, err) || !place_gdt(&place, false, entry, err) ||
        !place_modules(&place, config, initrd, &info, err) || !place_map(&place, &info, err) ||
        !place_command_line(&place, config, kernel, &info, err) || !place_text(&place, "Doppel", &info.boot_loader_name, err))
        return false;
    entry->rsp = CONVENTIONAL_END - 16;
    trace(target->log, boot, "Multiboot %s: entry 0x%llx", kernel->name, (unsigned long long)entry->rip);
    return place_structure(&place, &info, sizeof(info), "the Multiboot information", &entry->rbx, err);
}
