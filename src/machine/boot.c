#include "machine/boot.h"

#include <string.h>

#include "machine/boot_elf.h"
#include "machine/boot_place.h"
#include "machine/layout.h"
#include "mem/ram.h"

const char *boot_command_line(const struct machine_config *config)
{
    if (config->append)
        return config->append;
    return config->console && strcmp(config->console, "none") ? "console=ttyS0" : "";
}

/* The first that fits; an ELF kernel with a PVH note may carry a Multiboot header too. */
static enum boot_method recognise(const struct blob *kernel)
{
    if (boot_linux_probe(kernel))
        return BOOT_LINUX;
    if (boot_pvh_probe(kernel))
        return BOOT_PVH;
    if (boot_multiboot_probe(kernel))
        return BOOT_MULTIBOOT;
    return elf_probe(kernel) ? BOOT_LINUX : BOOT_AUTO;
}

/*
 * What a BIOS leaves at 0x400 and kernels still look at (IBM PS/2 and PC BIOS Interface Technical Reference, "BIOS Data
 * Area"): the first serial port, the segment of the extended area, what there is, and how far conventional memory goes.
 */
static bool write_bios_data_area(const struct boot_target *target, struct error *err)
{
    enum { BDA = 0x400, BDA_SIZE = 0x100, COM1 = 0x00, EBDA_SEGMENT = 0x0E, EQUIPMENT = 0x10, BASE_MEMORY_KIB = 0x13,
           ONE_SERIAL_PORT = 1 << 9 };
    uint8_t area[BDA_SIZE] = { 0 };
    const uint8_t ebda_size_kib = 1;
    put16(area + COM1, (uint16_t)PORT_UART0_BASE);
    put16(area + EBDA_SEGMENT, CONVENTIONAL_END >> 4);
    put16(area + EQUIPMENT, ONE_SERIAL_PORT);
    put16(area + BASE_MEMORY_KIB, CONVENTIONAL_END / 1024);
    return (ram_load(target->ram, BDA, area, sizeof(area)) &&
            ram_load(target->ram, CONVENTIONAL_END, &ebda_size_kib, 1)) || error_set(err, "a machine has at least 1M of memory");
}

bool boot_load(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
               const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    enum boot_method method = config->boot == BOOT_AUTO ? recognise(kernel) : config->boot;
    if (!write_bios_data_area(target, err))
        return false;
    switch (method) {
    case BOOT_LINUX:
        return boot_linux(config, kernel, initrd, target, entry, err);
    case BOOT_PVH:
        return boot_pvh(config, kernel, initrd, target, entry, err);
    case BOOT_MULTIBOOT:
        return boot_multiboot(config, kernel, initrd, target, entry, err);
    case BOOT_FLAT:
        return boot_flat(config, kernel, initrd, target, entry, err);
    case BOOT_AUTO:
        break;
    }
    return error_set(err, "%s is not a kernel that Doppel recognises (bzImage, ELF or Multiboot; for anything else say "
                          "--boot flat=ADDRESS)", kernel->name);
}
