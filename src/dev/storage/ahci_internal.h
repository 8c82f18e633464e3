/* What the files of the AHCI adapter share with each other only. */
#ifndef DOPPEL_DEV_STORAGE_AHCI_INTERNAL_H
#define DOPPEL_DEV_STORAGE_AHCI_INTERNAL_H

#include "dev/storage/ahci.h"

/* PxCMD, §3.3.7 */
enum { CMD_ST = 1 << 0, CMD_CLO = 1 << 3, CMD_FRE = 1 << 4, CMD_CCS_SHIFT = 8, CMD_CCS = 31 << CMD_CCS_SHIFT, CMD_FR = 1 << 14,
       CMD_CR = 1 << 15 };
/* PxIS, §3.3.5 */
enum { PIS_DHRS = 1 << 0, PIS_PSS = 1 << 1, PIS_SDBS = 1 << 3, PIS_DPS = 1 << 5, PIS_OFS = 1 << 24, PIS_HBFS = 1 << 29,
       PIS_TFES = 1 << 30 };

/* Where a command lies in guest memory. */
struct ahci_command_memory {
    uint64_t header, table;
    uint16_t entries;           /* of the physical region descriptor table */
};

/* ahci.c */
void ahci_raise(struct ahci_port *port, uint32_t status);
void ahci_post_d2h(struct ahci_port *port, const struct ata_plan *plan);
void ahci_post_pio_setup(struct ahci_port *port, const struct ata_plan *plan, bool to_guest, uint64_t size);
void ahci_post_set_bits(struct ahci_port *port, const struct ata_plan *plan);
/* Starts issued commands as far as the rules allow. */
void ahci_run(struct ahci_port *port);

/* ahci_transfer.c: begins a command; it may end before this returns. */
void ahci_begin(struct ahci_port *port, unsigned slot, const struct ata_command *command,
                const struct ahci_command_memory *memory);
/* Waits until nothing is under way with the host; what ends is reported to the guest as ever. */
void ahci_drain(struct ahci_port *port);

#endif
