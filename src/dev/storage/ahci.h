/* The AHCI host bus adapter with its drives. */
#ifndef DOPPEL_DEV_STORAGE_AHCI_H
#define DOPPEL_DEV_STORAGE_AHCI_H

#include "dev/pci/pci.h"
#include "dev/storage/ata.h"

enum { AHCI_PORTS = 6, AHCI_SLOTS = 32, AHCI_DEVFN = 31 << 3 | 2 };

/* Registers by name, in the order of ahci_registers.def. */
enum ahci_hba_register {
#define HBA(name, offset, reset, rw, w1c, section) HBA_##name,
#include "dev/storage/ahci_registers.def"
    HBA_REGISTERS
};
enum ahci_port_register {
#define PORT(name, offset, reset, rw, w1c, w1s, section) PORT_##name,
#include "dev/storage/ahci_registers.def"
    PORT_REGISTERS
};

struct ahci_transfer;

struct ahci_port {
    /* --- state --- */
    uint32_t reg[PORT_REGISTERS];
    struct ata_drive drive;
    bool soft_reset;                    /* SRST was set and not yet cleared */
    /* --- not state: what is under way; none is while the state is saved --- */
    struct ahci *ahci;
    uint8_t index;
    struct ahci_transfer *transfer[AHCI_SLOTS];
    bool busy;                          /* with a command that is not queued */
};

struct ahci {
    struct pci_function pci;
    /* --- state --- */
    uint32_t reg[HBA_REGISTERS];
    struct ahci_port port[AHCI_PORTS];
    /* --- not state --- */
    bool level;                         /* of the interrupt */
};

/*
 * Another medium for the CD-ROM drive at the port, borrowed; NULL: none. Board lock held; waits for what is under way with the old one, which is not used
 * any more afterwards.
 */
void ahci_change_medium(struct ahci *ahci, unsigned port, struct block *block);

#endif
