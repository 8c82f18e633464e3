#include "machine/firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "dev/fw_cfg.h"
#include "dev/pci/pci.h"
#include "dev/storage/flash.h"
#include "dev/storage/nvme.h"
#include "dev/usb/xhci.h"
#include "dev/rtc.h"
#include "machine/firmware_acpi.h"
#include "machine/image.h"
#include "machine/layout.h"
#include "machine/smbios.h"
#include "mem/ram.h"

enum { FIRMWARE_SIZE_MAX = 16 * MiB, ROM_SIZE_MAX = 1 * MiB };

struct firmware {
    struct blob image;
    struct blob variables;      /* UEFI: what the flash chip holds at the start, right below the image; size 0: no chip */
    int variables_fd;           /* the file that keeps them; -1: none */
    struct blob vga_bios;       /* padded to a power of two; none with UEFI, which brings its own driver */
    struct blob virtio_rom, e1000_rom;  /* the same; for the cards that are booted from */
};

/* --- finding the image --- */

/* Where distributions put the images that a name stands for; the first that is there is taken. */
static const struct known {
    const char *name, *package;
    const char *path[4];
} known[] = {
    { "bios", "seabios", { "/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin" } },
    { "uefi", "ovmf", { "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd" } },
    { "uefi-variables", "ovmf", { "/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_VARS.fd",
                                  "/usr/share/edk2/x64/OVMF_VARS.4m.fd" } },
    { "virtio-boot", "ipxe-qemu", { "/usr/lib/ipxe/qemu/efi-virtio.rom", "/usr/share/qemu/efi-virtio.rom" } },
    { "e1000-boot", "ipxe-qemu", { "/usr/lib/ipxe/qemu/efi-e1000.rom", "/usr/share/qemu/efi-e1000.rom" } },
    { "vga-bios", "seabios", { "/usr/share/seabios/vgabios-stdvga.bin", "/usr/share/qemu/vgabios-stdvga.bin" } },
};

static const char *find_image(const char *name, struct error *err)
{
    for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
        if (strcmp(known[i].name, name))
            continue;
        for (unsigned n = 0; n < ARRAY_SIZE(known[i].path) && known[i].path[n]; n++)
            if (access(known[i].path[n], R_OK) == 0)
                return known[i].path[n];
        error_set(err, "there is no %s firmware on this host: install the package %s, or name an image with --firmware FILE",
                  name, known[i].package);
        return NULL;
    }
    return name;
}

/* An expansion ROM, padded to a power of two. */
static bool read_rom(const char *name, struct blob *rom, struct error *err)
{
    const char *path = find_image(name, err);
    size_t size = 2048;
    if (!path || !image_read("ROM", path, rom, err))
        return false;
    while (size < rom->size)
        size *= 2;
    uint8_t *padded = size <= ROM_SIZE_MAX ? realloc((void *)rom->data, size) : NULL;
    if (!padded)
        return error_set(err, "the ROM '%s' is too large", path);
    memset(padded + rom->size, 0xFF, size - rom->size);
    *rom = (struct blob){ padded, size, rom->name };
    return true;
}

static bool read_net_roms(struct firmware *firmware, const struct machine_config *config, struct error *err)
{
    for (unsigned i = 0; i < config->net_count; i++) {
        bool virtio = config->net[i].model == NET_MODEL_VIRTIO;
        struct blob *rom = virtio ? &firmware->virtio_rom : &firmware->e1000_rom;
        if (config->net[i].boot && !config->net[i].absent && !rom->data && !read_rom(virtio ? "virtio-boot" : "e1000-boot", rom, err))
            return false;
    }
    return true;
}

static bool is_uefi(const struct machine_config *config) { return !strcmp(config->firmware, "uefi"); }

/* --- UEFI's variables --- */

static bool is_file(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

bool firmware_variables_path(const struct machine_config *config, char *path, size_t size)
{
    if (config->uefi_variables)
        return snprintf(path, size, "%s", config->uefi_variables) < (int)size;
    for (unsigned i = 0; i < config->disk_count; i++) {
        const struct disk_config *disk = &config->disk[i];
        if (!disk->absent && !disk->image.read_only && !disk->image.ephemeral && is_file(disk->path))
            return snprintf(path, size, "%s.uefi-variables", disk->path) < (int)size;
    }
    return false;
}

/* Two machines with one file of variables would each overwrite what the other keeps. */
static bool lock_variables(int fd, const char *path, struct error *err)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    return fcntl(fd, F_OFD_SETLK, &lock) == 0 || error_set(err, "the UEFI variables %s are in use by another run", path);
}

/* A new file gets what the package gives for a start; an old one is taken as it is. */
static bool open_variables(struct firmware *firmware, const char *path, struct error *err)
{
    struct blob *variables = &firmware->variables;
    int fd = firmware->variables_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return error_errno(err, errno, "cannot open the UEFI variables %s (--uefi-variables FILE names another place)", path);
    if (!lock_variables(fd, path, err))
        return false;
    off_t size = lseek(fd, 0, SEEK_END);
    if (size == 0)
        return pwrite(fd, variables->data, variables->size, 0) == (ssize_t)variables->size ||
               error_errno(err, errno, "cannot write the UEFI variables %s", path);
    if ((size_t)size != variables->size)
        return error_set(err, "'%s' holds no UEFI variables of this firmware: it has %lld bytes, not %zu", path, (long long)size,
                         variables->size);
    return pread(fd, (void *)variables->data, variables->size, 0) == (ssize_t)variables->size ||
           error_errno(err, errno, "cannot read the UEFI variables %s", path);
}

static bool read_variables(struct firmware *firmware, const struct machine_config *config, struct error *err)
{
    char path[4096];
    const char *template = find_image("uefi-variables", err);
    if (!template || !image_read("UEFI variables", template, &firmware->variables, err))
        return false;
    if (firmware->variables.size > FLASH_SIZE_MAX || firmware->variables.size % FLASH_BLOCK)
        return error_set(err, "'%s' holds no UEFI variables", template);
    return !firmware_variables_path(config, path, sizeof(path)) || open_variables(firmware, path, err);
}

static bool read_image(struct firmware *firmware, const char *path, struct error *err)
{
    if (!image_read("firmware", path, &firmware->image, err))
        return false;
    return (firmware->image.size <= FIRMWARE_SIZE_MAX && firmware->image.size % PAGE_SIZE == 0) ||
           error_set(err, "'%s' is no firmware image: its size is not a multiple of 4K up to 16M", path);
}

struct firmware *firmware_open(const struct machine_config *config, struct error *err)
{
    const char *path = find_image(config->firmware, err);
    struct firmware *firmware = path ? calloc(1, sizeof(*firmware)) : NULL;
    if (!firmware)
        return NULL;
    firmware->variables_fd = -1;
    if (read_image(firmware, path, err) && read_net_roms(firmware, config, err) &&
        (is_uefi(config) ? read_variables(firmware, config, err) : config->no_display || read_rom("vga-bios", &firmware->vga_bios, err)))
        return firmware;
    firmware_close(firmware);
    return NULL;
}

void firmware_close(struct firmware *firmware)
{
    if (firmware) {
        free((void *)firmware->image.data);
        free((void *)firmware->vga_bios.data);
        free((void *)firmware->variables.data);
        free((void *)firmware->virtio_rom.data);
        free((void *)firmware->e1000_rom.data);
        if (firmware->variables_fd >= 0)
            close(firmware->variables_fd);
    }
    free(firmware);
}

void firmware_wire_flash(const struct firmware *firmware, struct flash *flash)
{
    flash->base = 4 * GiB - firmware->image.size - firmware->variables.size;
    flash->size = (uint32_t)firmware->variables.size;
    flash->contents = firmware->variables.data;
    flash->fd = firmware->variables_fd >= 0 ? firmware->variables_fd : 0;
}

bool firmware_has_flash(const struct firmware *firmware) { return firmware->variables.size; }

const struct blob *firmware_vga_bios(const struct firmware *firmware) { return &firmware->vga_bios; }
const struct blob *firmware_net_rom(const struct firmware *firmware, bool virtio)
{
    return virtio ? &firmware->virtio_rom : &firmware->e1000_rom;
}

bool firmware_map(struct machine *machine, struct error *err)
{
    const struct blob *image = &machine->firmware->image;
    uint64_t base = 4 * GiB - image->size;
    return ram_add(machine->ram, "firmware", base, image->size, true, err) &&
           (ram_load(machine->ram, base, image->data, image->size) || error_set(err, "the firmware cannot be placed"));
}

/* --- what it is told --- */

static struct fw_cfg *fw_cfg_of(struct machine *machine) { return (struct fw_cfg *)machine->fw_cfg; }
static uint64_t low_memory(const struct machine *machine) { return min_u64(machine->config.memory, LOW_RAM_MAX_BASE); }

static bool add_memory_map(struct machine *machine)
{
    enum { E820_RAM = 1 };
    struct {
        uint64_t start, size;
        uint32_t type;
    } __attribute__((packed)) map[2] = { { 0, low_memory(machine), E820_RAM },
                                         { HIGH_RAM_BASE, machine->config.memory - low_memory(machine), E820_RAM } };
    return fw_cfg_add_file(fw_cfg_of(machine), "etc/e820", map, sizeof(map[0]) * (map[1].size ? 2 : 1), NULL);
}

/*
 * What of the memory size and processors old interfaces find in CMOS: KiB from 1 MiB on, 64 KiB units from 16 MiB on and from
 * 4 GiB on, and the number of processors beyond the first, as SeaBIOS and EDK II read them.
 */
static void fill_cmos(struct machine *machine)
{
    enum { BASE_KIB = 0x15, EXTENDED_KIB = 0x17, EXTENDED2_KIB = 0x30, ABOVE_16M = 0x34, ABOVE_4G = 0x5B, MORE_CPUS = 0x5F,
           EQUIPMENT = 0x14, EQUIPMENT_FPU_MOUSE = 6 };
    struct rtc *rtc = (struct rtc *)machine->rtc;
    uint64_t low = low_memory(machine), extended = min_u64((low - EXTENDED_BASE) / KiB, 0xFFFF);
    uint64_t above16 = low > 16 * MiB ? min_u64((low - 16 * MiB) / (64 * KiB), 0xFFFF) : 0;
    rtc_store(rtc, BASE_KIB, 2, CONVENTIONAL_SIZE / KiB);
    rtc_store(rtc, EXTENDED_KIB, 2, extended);
    rtc_store(rtc, EXTENDED2_KIB, 2, extended);
    rtc_store(rtc, ABOVE_16M, 2, above16);
    rtc_store(rtc, ABOVE_4G, 3, (machine->config.memory - low) / (64 * KiB));
    rtc_store(rtc, MORE_CPUS, 1, machine->config.cpus - 1);
    rtc_store(rtc, EQUIPMENT, 1, EQUIPMENT_FPU_MOUSE);
}

static bool add_smbios(struct machine *machine)
{
    const struct smbios_config config = { machine->config.memory, low_memory(machine), machine->config.cpus };
    struct smbios smbios;
    return smbios_build(&config, &smbios) &&
           fw_cfg_add_file(fw_cfg_of(machine), "etc/smbios/smbios-tables", smbios.tables, smbios.size, NULL) &&
           fw_cfg_add_file(fw_cfg_of(machine), "etc/smbios/smbios-anchor", smbios.anchor, sizeof(smbios.anchor), NULL);
}

/* --- the boot order: OpenFirmware device paths, a line each --- */

struct text {
    char bytes[4096];
    size_t used;
};

static void print(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void print(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text->bytes + text->used, sizeof(text->bytes) - text->used, format, arguments);
    va_end(arguments);
    if (size > 0 && text->used + (size_t)size < sizeof(text->bytes))
        text->used += (size_t)size;
}

static bool add_boot_order(struct machine *machine)
{
    struct text text = { .used = 0 };
    unsigned port = 0, namespace = 0, usb = 0;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        const struct pci_function *function = (const struct pci_function *)machine->disk_device[i];
        if (!function)
            continue;
        unsigned slot = function->devfn >> 3;
        switch (machine->config.disk[i].bus) {
        case DISK_VIRTIO: print(&text, "/pci@i0cf8/scsi@%x/disk@0,0\n", slot); break;
        case DISK_AHCI: case DISK_CDROM:
            print(&text, "/pci@i0cf8/pci8086,2922@%x,%x/drive@%x/disk@0\n", slot, function->devfn & 7, port++);
            break;
        case DISK_NVME:         /* by this name EDK II knows that it is NVMe, whatever the device's identifiers are */
            namespace++;
            print(&text, "/pci@i0cf8/pci8086,5845@%x/namespace@%x,%lx\n", slot, namespace, (unsigned long)nvme_eui64(namespace));
            break;
        case DISK_USB: print(&text, "/pci@i0cf8/usb@%x/storage@%x/channel@0/disk@0,0\n", slot, XHCI_INPUTS + 1 + usb++); break;
        }
    }
    for (unsigned i = 0; i < machine->config.net_count; i++)
        if (machine->config.net[i].boot && machine->net_device[i])
            print(&text, "/pci@i0cf8/ethernet@%x/ethernet-phy@0\n", ((const struct pci_function *)machine->net_device[i])->devfn >> 3);
    print(&text, "HALT");       /* what is not listed is not tried */
    return fw_cfg_add_file(fw_cfg_of(machine), "bootorder", text.bytes, (uint32_t)text.used + 1, NULL);
}

bool firmware_describe(struct machine *machine, struct error *err)
{
    struct fw_cfg *fw_cfg = fw_cfg_of(machine);
    const struct machine_config *config = &machine->config;
    const uint16_t serial_console = (uint16_t)PORT_UART0_BASE;
    fill_cmos(machine);
    bool ok = fw_cfg_add_number(fw_cfg, FW_CFG_RAM_SIZE, config->memory, 8) &&
              fw_cfg_add_number(fw_cfg, FW_CFG_NB_CPUS, config->cpus, 2) &&
              fw_cfg_add_number(fw_cfg, FW_CFG_MAX_CPUS, config->cpus, 2) &&
              fw_cfg_add_number(fw_cfg, FW_CFG_BOOT_MENU, 0, 2) && add_memory_map(machine) && add_smbios(machine) &&
              add_boot_order(machine) &&
              (!machine->console || machine->vga || fw_cfg_add_file(fw_cfg, "etc/sercon-port", &serial_console, sizeof(serial_console), NULL));
    return (ok || error_set(err, "no memory for what the firmware is told")) && firmware_add_acpi(machine, err);
}
