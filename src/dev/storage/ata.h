/*
 * ATA and ATAPI drives behind a host bus adapter: what a command means. A drive turns a command into a plan, which the adapter
 * carries out: it alone knows where the guest's memory for the data is.
 */
#ifndef DOPPEL_DEV_STORAGE_ATA_H
#define DOPPEL_DEV_STORAGE_ATA_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/block.h"
#include "state/state.h"

enum { ATA_SECTOR = 512, CD_SECTOR = 2048, ATA_PACKET_SIZE = 16, ATA_SENSE_SIZE = 18, ATA_ANSWER_MAX = 512 };

/* ATA8-ACS §7.1.7 "Status field", §7.1.6 "Error field". */
enum { ATA_ERR = 1 << 0, ATA_DRQ = 1 << 3, ATA_DSC = 1 << 4, ATA_DF = 1 << 5, ATA_DRDY = 1 << 6, ATA_BSY = 1 << 7 };
enum { ATA_ABRT = 1 << 2, ATA_IDNF = 1 << 4, ATA_UNC = 1 << 6 };

struct ata_drive {
    /* --- configuration --- */
    struct block *block;        /* NULL: there is no drive, or, of a CD-ROM drive, no medium */
    const char *serial;         /* NULL: a general one */
    bool present, cdrom;
    /* --- state --- */
    uint8_t multiple;           /* sectors of READ MULTIPLE's blocks */
    bool write_cache;
    bool tray_open, tray_locked, medium_changed;
    uint8_t media_event;        /* ATAPI: what the next GET EVENT STATUS NOTIFICATION tells; its code */
    uint8_t sense_key, asc, ascq;               /* ATAPI: of the last command */
    uint8_t queue_error_tag;                    /* of the queued command that failed; 0xFF: none did */
    uint64_t queue_error_lba;
};
extern const struct state_list ata_drive_state;

/* A command as the guest gave it. */
struct ata_command {
    uint8_t command, device, control;
    uint16_t features, count;
    uint64_t lba;               /* 48 bits */
    uint8_t packet[ATA_PACKET_SIZE];
};

/* What is to be done, and what the drive's registers say then (after an I/O error: ata_failed). */
enum ata_plan_kind {
    ATA_PLAN_DONE,              /* nothing more; or the command was refused */
    ATA_PLAN_ANSWER,            /* `answer` goes to the guest, `size` bytes */
    ATA_PLAN_BLOCK,             /* op on the drive's block, `size` bytes from `offset` on */
};
struct ata_plan {
    enum ata_plan_kind kind;
    bool pio, queued, packet;
    uint8_t tag;                /* queued */
    uint8_t status, error;
    uint16_t count;
    uint64_t lba;
    enum block_op op;
    uint64_t offset, size;
    uint8_t answer[ATA_ANSWER_MAX];
};

void ata_reset(struct ata_drive *drive);
/* Sets the plan's registers as after a reset: by them software tells a disk from a CD-ROM drive (ATA8-ACS §6.2). */
void ata_signature(const struct ata_drive *drive, struct ata_plan *plan);
void ata_execute(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan);
/* The block backend failed: registers and sense data for that. */
void ata_failed(struct ata_drive *drive, struct ata_plan *plan);
/* The guest gave too little memory for the data. */
void ata_refuse(struct ata_plan *plan, uint8_t error);
/* A packet for a CD-ROM drive (atapi.c). */
void atapi_execute(struct ata_drive *drive, const uint8_t packet[ATA_PACKET_SIZE], struct ata_plan *plan);
void atapi_failed(struct ata_drive *drive, struct ata_plan *plan);

/* --- what a person does at a CD-ROM drive (atapi.c): board lock held, and nothing is under way --- */

/* Another medium, borrowed, behind a closed tray; NULL: none, and the tray is open. */
void atapi_change_medium(struct ata_drive *drive, struct block *block);
/* There is a medium, and the guest does not want it to be taken away. */
bool atapi_medium_is_locked(const struct ata_drive *drive);
/* The button of a locked drive: the guest is told that somebody wants the medium. */
void atapi_press_eject(struct ata_drive *drive);

#endif
