#include "machine/firmware_choice.h"

#include <string.h>

#include "backend/disk_image.h"
#include "backend/disk_vhost_user.h"
#include "machine/machine.h"

/* A boot record with a signature but no code is one that only UEFI boots (UEFI 2.10 §5.2.3 "Protective MBR"). */
static bool record_is_for_uefi(struct disk_image *image)
{
    enum { CODE_SIZE = 440, SIGNATURE = 510 };
    static const uint8_t no_code[CODE_SIZE];
    _Alignas(DISK_SECTOR) uint8_t sector[DISK_SECTOR];
    return image->size >= sizeof(sector) && disk_image_read(image, sector, sizeof(sector), 0) == 0 && sector[SIGNATURE] == 0x55 &&
           sector[SIGNATURE + 1] == 0xAA && !memcmp(sector, no_code, CODE_SIZE);
}

/* So is a CD whose boot catalog begins with an entry for UEFI (El Torito 1.0 §2.0, §2.1: the platform of the validation entry). */
static bool catalog_is_for_uefi(struct disk_image *image)
{
    enum { BLOCK = 2048, RECORD = 17 * BLOCK, CATALOG = 0x47, PLATFORM = 1, PLATFORM_EFI = 0xEF };
    _Alignas(DISK_SECTOR) uint8_t sector[DISK_SECTOR];
    uint32_t catalog;
    if (image->size < RECORD + BLOCK || disk_image_read(image, sector, sizeof(sector), RECORD))
        return false;
    memcpy(&catalog, sector + CATALOG, sizeof(catalog));
    return catalog < image->size / BLOCK && disk_image_read(image, sector, sizeof(sector), (uint64_t)catalog * BLOCK) == 0 &&
           sector[PLATFORM] == PLATFORM_EFI;
}

/* A disk in another process is connected to again: when its descriptors are handed over the machine has no memory yet to give away. */
static void keep(struct machine *machine, struct disk_image *image)
{
    if (disk_vhost_user_is(machine->config.disk[0].path))
        disk_image_close(image);
    else
        machine->first_image = image;
}

bool firmware_choose(struct machine *machine, struct error *err)
{
    struct machine_config *config = &machine->config;
    if (!config->firmware || strcmp(config->firmware, FIRMWARE_BY_DISK))
        return true;
    config->firmware = "bios";
    if (!config->disk_count || !config->disk[0].path)
        return true;
    struct disk_image *image = disk_image_open(config->disk[0].path, &config->disk[0].image, err);
    if (!image)
        return false;
    if (config->disk[0].bus == DISK_CDROM ? catalog_is_for_uefi(image) : record_is_for_uefi(image))
        config->firmware = "uefi";
    keep(machine, image);
    return true;
}
