/*
 * A flat binary: its bytes at config->flat_address, and execution starts at the first of them. Below 1 MiB in real mode, as a
 * boot sector would; from 1 MiB on in flat 32-bit protected mode, with a stack below 640 KiB.
 */
#include "machine/boot_place.h"
#include "mem/ram.h"

static bool real_mode_entry(uint64_t address, struct boot_entry *entry)
{
    bool segment_zero = address < 0x10000;      /* 0000:7C00 rather than 07C0:0000 */
    entry->mode = BOOT_ENTRY_REAL;
    entry->cs = segment_zero ? 0 : (uint16_t)(address >> 4);
    entry->rip = segment_zero ? address : address & 0xF;
    return true;
}

bool boot_flat(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
               const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    uint64_t address = config->flat_address;
    *entry = (struct boot_entry){ 0 };
    if (config->initrd_count)
        return error_set(err, "a flat binary cannot be given an initrd");
    if (!kernel->size)
        return error_set(err, "%s is empty", kernel->name);
    if (address >= target->low_ram_end || kernel->size > target->low_ram_end - address)
        return error_set(err, "%s (%zu bytes) does not fit in memory at 0x%llx", kernel->name, kernel->size,
                         (unsigned long long)address);
    if (address < HIGH_MEMORY_START)
        return (ram_load(target->ram, address, kernel->data, kernel->size) || error_set(err, "no RAM at 0x%llx", (unsigned long long)address)) &&
               real_mode_entry(address, entry);
    struct placement place;
    place_init(&place, target);
    entry->mode = BOOT_ENTRY_PROTECTED;
    entry->rip = address;
    entry->rsp = CONVENTIONAL_END - 16;
    return place_put(&place, address, kernel->data, kernel->size, 0, "the flat binary", err) &&
           place_gdt(&place, false, entry, err);
}
