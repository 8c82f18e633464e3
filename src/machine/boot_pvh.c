/*
 * PVH: an ELF kernel whose Xen note gives a 32-bit entry point, started with EBX at an hvm_start_info; also a bzImage, by
 * unpacking the ELF file inside. Described in Xen's documentation: "x86/HVM direct boot ABI" (docs/misc/pvh.pandoc) and
 * public/arch-x86/hvm/start_info.h.
 */
#include <stdlib.h>
#include <string.h>

#include "machine/boot_elf.h"
#include "machine/boot_place.h"
#include "machine/boot_unpack.h"
#include "mem/ram.h"

enum { XEN_ELFNOTE_PHYS32_ENTRY = 18, START_MAGIC = 0x336EC578, START_VERSION = 1 };

struct hvm_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};
struct hvm_modlist_entry {
    uint64_t paddr, size, cmdline_paddr, reserved;
};
struct hvm_memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};
_Static_assert(sizeof(struct hvm_start_info) == 56 && sizeof(struct hvm_modlist_entry) == 32 &&
               sizeof(struct hvm_memmap_entry) == 24, "layouts are the ABI's");

static bool pvh_entry(const struct elf *elf, uint64_t *entry)
{
    uint32_t size;
    const uint8_t *note = elf_note(elf, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &size);
    if (!note || size < 4)
        return false;
    *entry = size >= 8 ? get64(note) : get32(note);
    return *entry < PLACE_4G;
}

bool boot_pvh_probe(const struct blob *kernel)
{
    struct elf elf;
    uint64_t entry;
    return elf_probe(kernel) && elf_parse(kernel, &elf, NULL) && pvh_entry(&elf, &entry);
}

static bool place_modules(struct placement *place, const struct blob *initrd, unsigned count, struct hvm_start_info *start,
                          struct error *err)
{
    struct hvm_modlist_entry list[MACHINE_INITRDS_MAX] = { 0 };
    for (unsigned i = 0; i < count; i++) {
        list[i].size = initrd[i].size;
        if (!place_high(place, initrd[i].size, PAGE_SIZE, HIGH_MEMORY_START, PLACE_4G, "the initrd", &list[i].paddr, err))
            return false;
        if (initrd[i].size && !ram_load(place->target->ram, list[i].paddr, initrd[i].data, initrd[i].size))
            return error_set(err, "the initrd does not fit in memory");
    }
    start->nr_modules = count;
    return !count || place_structure(place, list, count * sizeof(list[0]), "the module list", &start->modlist_paddr, err);
}

static bool place_map(struct placement *place, struct hvm_start_info *start, struct error *err)
{
    struct e820_range map[E820_MAX];
    struct hvm_memmap_entry rows[E820_MAX] = { 0 };
    start->memmap_entries = place_memory_map(place->target, map);
    for (unsigned i = 0; i < start->memmap_entries; i++)
        rows[i] = (struct hvm_memmap_entry){ map[i].start, map[i].size, map[i].type, 0 };
    return place_structure(place, rows, start->memmap_entries * sizeof(rows[0]), "the memory map", &start->memmap_paddr, err);
}

static bool boot_elf(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                     const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    const char *text = boot_command_line(config);
    struct hvm_start_info start = { .magic = START_MAGIC, .version = START_VERSION, .rsdp_paddr = target->rsdp };
    struct placement place;
    struct elf elf;
    place_init(&place, target);
    if (!elf_parse(kernel, &elf, err))
        return false;
    if (!pvh_entry(&elf, &entry->rip))
        return error_set(err, "%s has no PVH entry point (a Xen note of type %d with an address below 4 GiB)", kernel->name,
                         XEN_ELFNOTE_PHYS32_ENTRY);
    if (!elf_load(&elf, &place, err) || !place_gdt(&place, false, entry, err) ||
        !place_modules(&place, initrd, config->initrd_count, &start, err) || !place_map(&place, &start, err) ||
        !place_structure(&place, text, strlen(text) + 1, "the command line", &start.cmdline_paddr, err))
        return false;
    entry->mode = BOOT_ENTRY_PROTECTED;
    entry->rsp = CONVENTIONAL_END - 16;
    trace(target->log, boot, "PVH %s: entry 0x%llx", kernel->name, (unsigned long long)entry->rip);
    return place_structure(&place, &start, sizeof(start), "the start info", &entry->rbx, err);
}

bool boot_pvh(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
              const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    *entry = (struct boot_entry){ 0 };
    if (elf_probe(kernel))
        return boot_elf(config, kernel, initrd, target, entry, err);
    if (!boot_linux_probe(kernel))
        return error_set(err, "%s is neither an ELF kernel nor a bzImage, so it cannot be started through PVH", kernel->name);
    struct blob packed, unpacked;
    if (!boot_linux_payload(kernel, &packed, err) || !boot_unpack(&packed, target->low_ram_end, &unpacked, err))
        return false;
    bool done = boot_elf(config, &unpacked, initrd, target, entry, err);
    free((void *)unpacked.data);
    return done;
}
