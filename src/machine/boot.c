#include "machine/boot.h"

#include <string.h>

#include "machine/boot_elf.h"
#include "machine/boot_place.h"

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

bool boot_load(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
               const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    enum boot_method method = config->boot == BOOT_AUTO ? recognise(kernel) : config->boot;
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
