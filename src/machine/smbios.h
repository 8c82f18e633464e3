/* System Management BIOS tables, as firmware publishes them: fw_cfg carries them. */
#ifndef DOPPEL_MACHINE_SMBIOS_H
#define DOPPEL_MACHINE_SMBIOS_H

#include <stdbool.h>
#include <stdint.h>

enum { SMBIOS_TABLES_SIZE = 8192, SMBIOS_ANCHOR_SIZE = 31 };

struct smbios {
    uint8_t tables[SMBIOS_TABLES_SIZE];
    uint32_t size;
    uint8_t anchor[SMBIOS_ANCHOR_SIZE];     /* its table address and checksums are firmware's to fill in */
};

struct smbios_config {
    uint64_t memory, low_memory;            /* bytes; of all RAM, and of RAM below 4 GiB */
    unsigned cpus;
};

/* False: they do not fit. */
bool smbios_build(const struct smbios_config *config, struct smbios *smbios);

#endif
