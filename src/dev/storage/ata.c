/*
 * ATA disks and the ATA side of ATAPI drives (ATA/ATAPI Command Set, ATA8-ACS, T13/1699-D revision 6a; section numbers are its).
 * Not modelled: SMART, security, TRIM, power conditions (commands for these are aborted or do nothing).
 */
#include "dev/storage/ata.h"

#include <string.h>

#include "base/base.h"

/* §7 "Command descriptions" */
enum ata_opcode {
    ATA_DEVICE_RESET = 0x08,
    ATA_READ_SECTORS = 0x20,
    ATA_READ_SECTORS_EXT = 0x24,
    ATA_READ_DMA_EXT = 0x25,
    ATA_READ_NATIVE_MAX_EXT = 0x27,
    ATA_READ_MULTIPLE_EXT = 0x29,
    ATA_READ_LOG_EXT = 0x2F,
    ATA_WRITE_SECTORS = 0x30,
    ATA_WRITE_SECTORS_EXT = 0x34,
    ATA_WRITE_DMA_EXT = 0x35,
    ATA_WRITE_MULTIPLE_EXT = 0x39,
    ATA_WRITE_DMA_FUA_EXT = 0x3D,
    ATA_READ_VERIFY = 0x40,
    ATA_READ_VERIFY_EXT = 0x42,
    ATA_READ_FPDMA_QUEUED = 0x60,
    ATA_WRITE_FPDMA_QUEUED = 0x61,
    ATA_EXECUTE_DIAGNOSTIC = 0x90,
    ATA_INITIALIZE_PARAMETERS = 0x91,
    ATA_PACKET = 0xA0,
    ATA_IDENTIFY_PACKET = 0xA1,
    ATA_READ_MULTIPLE = 0xC4,
    ATA_WRITE_MULTIPLE = 0xC5,
    ATA_SET_MULTIPLE = 0xC6,
    ATA_READ_DMA = 0xC8,
    ATA_WRITE_DMA = 0xCA,
    ATA_STANDBY_IMMEDIATE = 0xE0,
    ATA_IDLE_IMMEDIATE = 0xE1,
    ATA_STANDBY = 0xE2,
    ATA_IDLE = 0xE3,
    ATA_CHECK_POWER_MODE = 0xE5,
    ATA_FLUSH_CACHE = 0xE7,
    ATA_FLUSH_CACHE_EXT = 0xEA,
    ATA_IDENTIFY = 0xEC,
    ATA_SET_FEATURES = 0xEF,
    ATA_READ_NATIVE_MAX = 0xF8,
};
enum { FEATURE_WRITE_CACHE_ON = 0x02, FEATURE_TRANSFER_MODE = 0x03, FEATURE_READ_AHEAD_OFF = 0x55, FEATURE_WRITE_CACHE_OFF = 0x82,
       FEATURE_READ_AHEAD_ON = 0xAA };
enum { LOG_DIRECTORY = 0x00, LOG_NCQ_ERROR = 0x10, NO_TAG = 0xFF, MULTIPLE_MAX = 16, QUEUE_DEPTH = 32, POWER_ACTIVE = 0xFF };
static const uint64_t lba28_limit = 1ull << 28;

/* --- identification --- */

static void put16(uint8_t *answer, unsigned word, uint16_t value)
{
    answer[2 * word] = (uint8_t)value;
    answer[2 * word + 1] = (uint8_t)(value >> 8);
}

static void put_wide(uint8_t *answer, unsigned word, uint64_t value, unsigned words)
{
    for (unsigned i = 0; i < words; i++)
        put16(answer, word + i, (uint16_t)(value >> (16 * i)));
}

/* Text has its bytes swapped within each word, and is padded with spaces (§7.17.7.4 "Words 10-19"). */
static void put_text(uint8_t *answer, unsigned word, unsigned words, const char *text)
{
    size_t length = strlen(text);
    for (unsigned i = 0; i < 2 * words; i++)
        answer[2 * word + (i ^ 1)] = i < length ? (uint8_t)text[i] : ' ';
}

static uint64_t sectors(const struct ata_drive *drive) { return drive->block ? block_size(drive->block) / ATA_SECTOR : 0; }

static void identify_common(const struct ata_drive *drive, uint8_t *answer)
{
    put_text(answer, 10, 10, drive->serial ? drive->serial : "DP00001");
    put_text(answer, 23, 4, "1.0");
    put_text(answer, 27, 20, drive->cdrom ? "DOPPEL CD-ROM" : "DOPPEL HARDDISK");
    put16(answer, 53, 0x0006);              /* words 64 to 70 and 88 are valid */
    put16(answer, 63, 0x0007);              /* multiword DMA 0 to 2 */
    put16(answer, 64, 0x0003);              /* PIO 3 and 4 */
    for (unsigned word = 65; word <= 68; word++)
        put16(answer, word, 120);           /* nanoseconds of a cycle */
    put16(answer, 80, 0x01F0);              /* ATA/ATAPI-4 to ATA8-ACS */
    put16(answer, 88, 0x203F);              /* ultra DMA 0 to 5; 5 is selected */
    put16(answer, 93, 0x0000);              /* 0 of a serial drive */
}

/* §7.17.7 "IDENTIFY DEVICE data" */
static void identify_disk(const struct ata_drive *drive, uint8_t *answer)
{
    uint64_t count = sectors(drive);
    uint16_t cylinders = (uint16_t)min_u64(count / (16 * 63), 16383);
    put16(answer, 0, 0x0040);
    put16(answer, 1, cylinders);
    put16(answer, 3, 16);
    put16(answer, 6, 63);
    identify_common(drive, answer);
    put16(answer, 47, 0x8000 | MULTIPLE_MAX);
    put16(answer, 49, 0x0F00);              /* LBA, DMA, IORDY */
    put16(answer, 50, 0x4000);
    put16(answer, 59, 0x0100 | drive->multiple);
    put_wide(answer, 60, min_u64(count, lba28_limit - 1), 2);
    put16(answer, 75, QUEUE_DEPTH - 1);
    put16(answer, 76, 0x0106);              /* queued commands; 1.5 and 3 Gbit/s */
    put16(answer, 82, 0x4060);              /* NOP, look-ahead, write cache */
    put16(answer, 83, 0x7400);              /* flush, flush extended, 48-bit addresses */
    put16(answer, 84, 0x4060);              /* general-purpose logging, FUA */
    put16(answer, 85, (uint16_t)(0x4040 | (drive->write_cache ? 0x20 : 0)));
    put16(answer, 86, 0x3400);
    put16(answer, 87, 0x4060);
    put_wide(answer, 100, count, 4);
    put16(answer, 106, 0x4000);
    put16(answer, 217, 1);                  /* does not rotate */
}

/* §7.18.6 "IDENTIFY PACKET DEVICE data" */
static void identify_cdrom(const struct ata_drive *drive, uint8_t *answer)
{
    put16(answer, 0, 0x85C0);               /* ATAPI, CD-ROM, removable, 12-byte packets */
    identify_common(drive, answer);
    put16(answer, 49, 0x0F00);
    put16(answer, 76, 0x0006);
    put16(answer, 82, 0x4010);              /* NOP, PACKET */
    put16(answer, 83, 0x4000);
    put16(answer, 84, 0x4000);
    put16(answer, 85, 0x4010);
    put16(answer, 87, 0x4000);
}

/* --- plans --- */

static void done(struct ata_plan *plan)
{
    plan->kind = ATA_PLAN_DONE;
    plan->status = ATA_DRDY | ATA_DSC;
    plan->error = 0;
}

void ata_refuse(struct ata_plan *plan, uint8_t error)
{
    plan->kind = ATA_PLAN_DONE;
    plan->status = ATA_DRDY | ATA_ERR;
    plan->error = error;
}

static void answer(struct ata_plan *plan, uint64_t size)
{
    plan->kind = ATA_PLAN_ANSWER;
    plan->pio = true;
    plan->size = size;
}

/* A transfer of `count` sectors at the command's LBA. */
static void transfer(const struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan, enum block_op op,
                     uint64_t count)
{
    uint64_t limit = sectors(drive);
    if (command->lba >= limit || count > limit - command->lba) {
        ata_refuse(plan, ATA_IDNF);
        return;
    }
    if (op == BLOCK_WRITE && block_read_only(drive->block)) {
        ata_refuse(plan, ATA_ABRT);
        return;
    }
    plan->kind = ATA_PLAN_BLOCK;
    plan->op = op;
    plan->offset = command->lba * ATA_SECTOR;
    plan->size = count * ATA_SECTOR;
}

/* In 28-bit commands a count of 0 is 256, in 48-bit ones 65536. */
static uint64_t count28(const struct ata_command *command) { return command->count & 0xFF ? command->count & 0xFF : 256; }
static uint64_t count48(const struct ata_command *command) { return command->count ? command->count : 65536; }

static void transfer28(const struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan, enum block_op op)
{
    struct ata_command narrow = *command;
    narrow.lba = (command->lba & 0xFFFFFF) | (uint64_t)(command->device & 0xF) << 24;
    transfer(drive, &narrow, plan, op, count28(command));
}

/* §7.16 "READ FPDMA QUEUED": the count is in the features field, the tag in the count field. */
static void queued(const struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan, enum block_op op)
{
    plan->queued = true;
    plan->tag = (uint8_t)(command->count >> 3 & 31);
    transfer(drive, command, plan, op, command->features ? command->features : 65536);
}

static void verify(const struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan, bool wide)
{
    if (wide)
        transfer(drive, command, plan, BLOCK_READ, count48(command));
    else
        transfer28(drive, command, plan, BLOCK_READ);
    if (plan->kind == ATA_PLAN_BLOCK)
        done(plan);
}

static void set_features(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan)
{
    done(plan);
    switch (command->features & 0xFF) {
    case FEATURE_WRITE_CACHE_ON: drive->write_cache = true; break;
    case FEATURE_WRITE_CACHE_OFF: drive->write_cache = false; break;
    case FEATURE_TRANSFER_MODE: case FEATURE_READ_AHEAD_ON: case FEATURE_READ_AHEAD_OFF: break;
    default: ata_refuse(plan, ATA_ABRT); break;
    }
}

static void set_multiple(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan)
{
    uint8_t count = (uint8_t)command->count;
    done(plan);
    if (count > MULTIPLE_MAX || count & (count - 1))
        ata_refuse(plan, ATA_ABRT);
    else
        drive->multiple = count;
}

/* §7.23 "READ LOG EXT"; the queued command that failed: SATA 3.0 §13.7.4. */
static void read_log(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan)
{
    unsigned log = command->lba & 0xFF;
    if ((log != LOG_DIRECTORY && log != LOG_NCQ_ERROR) || command->count != 1) {
        ata_refuse(plan, ATA_ABRT);
        return;
    }
    answer(plan, ATA_SECTOR);
    if (log == LOG_DIRECTORY) {
        put16(plan->answer, 0, 1);
        put16(plan->answer, LOG_NCQ_ERROR, 1);
        return;
    }
    plan->answer[0] = drive->queue_error_tag == NO_TAG ? 0x80 : drive->queue_error_tag;
    plan->answer[2] = ATA_DRDY | ATA_ERR;
    plan->answer[3] = ATA_UNC;
    for (unsigned i = 0; i < 3; i++) {
        plan->answer[4 + i] = (uint8_t)(drive->queue_error_lba >> (8 * i));
        plan->answer[8 + i] = (uint8_t)(drive->queue_error_lba >> (24 + 8 * i));
    }
    uint8_t sum = 0;
    for (unsigned i = 0; i < ATA_SECTOR - 1; i++)
        sum = (uint8_t)(sum + plan->answer[i]);
    plan->answer[ATA_SECTOR - 1] = (uint8_t)-sum;
    drive->queue_error_tag = NO_TAG;
}

static void native_max(const struct ata_drive *drive, struct ata_plan *plan, uint64_t limit)
{
    done(plan);
    plan->lba = min_u64(sectors(drive), limit) - 1;
}

static void execute_disk(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan)
{
    switch ((enum ata_opcode)command->command) {
    case ATA_IDENTIFY:
        answer(plan, ATA_SECTOR);
        identify_disk(drive, plan->answer);
        break;
    case ATA_READ_SECTORS: case ATA_READ_MULTIPLE:
        plan->pio = true;
        transfer28(drive, command, plan, BLOCK_READ);
        break;
    case ATA_WRITE_SECTORS: case ATA_WRITE_MULTIPLE:
        plan->pio = true;
        transfer28(drive, command, plan, BLOCK_WRITE);
        break;
    case ATA_READ_SECTORS_EXT: case ATA_READ_MULTIPLE_EXT:
        plan->pio = true;
        transfer(drive, command, plan, BLOCK_READ, count48(command));
        break;
    case ATA_WRITE_SECTORS_EXT: case ATA_WRITE_MULTIPLE_EXT:
        plan->pio = true;
        transfer(drive, command, plan, BLOCK_WRITE, count48(command));
        break;
    case ATA_READ_DMA: transfer28(drive, command, plan, BLOCK_READ); break;
    case ATA_WRITE_DMA: transfer28(drive, command, plan, BLOCK_WRITE); break;
    case ATA_READ_DMA_EXT: transfer(drive, command, plan, BLOCK_READ, count48(command)); break;
    case ATA_WRITE_DMA_EXT: case ATA_WRITE_DMA_FUA_EXT: transfer(drive, command, plan, BLOCK_WRITE, count48(command)); break;
    case ATA_READ_FPDMA_QUEUED: queued(drive, command, plan, BLOCK_READ); break;
    case ATA_WRITE_FPDMA_QUEUED: queued(drive, command, plan, BLOCK_WRITE); break;
    case ATA_READ_VERIFY: verify(drive, command, plan, false); break;
    case ATA_READ_VERIFY_EXT: verify(drive, command, plan, true); break;
    case ATA_FLUSH_CACHE: case ATA_FLUSH_CACHE_EXT:
        plan->kind = ATA_PLAN_BLOCK;
        plan->op = BLOCK_FLUSH;
        break;
    case ATA_SET_FEATURES: set_features(drive, command, plan); break;
    case ATA_SET_MULTIPLE: set_multiple(drive, command, plan); break;
    case ATA_READ_LOG_EXT: read_log(drive, command, plan); break;
    case ATA_READ_NATIVE_MAX: native_max(drive, plan, lba28_limit); break;
    case ATA_READ_NATIVE_MAX_EXT: native_max(drive, plan, UINT64_MAX); break;
    case ATA_CHECK_POWER_MODE: plan->count = POWER_ACTIVE; break;
    case ATA_EXECUTE_DIAGNOSTIC: ata_signature(drive, plan); break;
    case ATA_INITIALIZE_PARAMETERS: case ATA_STANDBY_IMMEDIATE: case ATA_IDLE_IMMEDIATE: case ATA_STANDBY: case ATA_IDLE: break;
    default: ata_refuse(plan, ATA_ABRT); break;
    }
}

static void execute_cdrom(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan)
{
    switch ((enum ata_opcode)command->command) {
    case ATA_IDENTIFY_PACKET:
        answer(plan, ATA_SECTOR);
        identify_cdrom(drive, plan->answer);
        break;
    case ATA_PACKET:
        plan->packet = true;
        plan->pio = !(command->features & 1);
        atapi_execute(drive, command->packet, plan);
        break;
    case ATA_DEVICE_RESET: case ATA_EXECUTE_DIAGNOSTIC: ata_signature(drive, plan); break;
    case ATA_SET_FEATURES: set_features(drive, command, plan); break;
    case ATA_CHECK_POWER_MODE: plan->count = POWER_ACTIVE; break;
    case ATA_STANDBY_IMMEDIATE: case ATA_IDLE_IMMEDIATE: case ATA_STANDBY: case ATA_IDLE: break;
    case ATA_IDENTIFY:          /* §7.17.3: aborted, with the signature */
        ata_signature(drive, plan);
        ata_refuse(plan, ATA_ABRT);
        break;
    default: ata_refuse(plan, ATA_ABRT); break;
    }
}

void ata_execute(struct ata_drive *drive, const struct ata_command *command, struct ata_plan *plan)
{
    *plan = (struct ata_plan){ .lba = command->lba };
    done(plan);
    if (drive->cdrom)
        execute_cdrom(drive, command, plan);
    else
        execute_disk(drive, command, plan);
}

void ata_failed(struct ata_drive *drive, struct ata_plan *plan)
{
    if (plan->packet) {
        atapi_failed(drive, plan);
        return;
    }
    ata_refuse(plan, ATA_UNC);
    plan->lba = plan->offset / ATA_SECTOR;
    if (plan->queued) {
        drive->queue_error_tag = plan->tag;
        drive->queue_error_lba = plan->lba;
    }
}

void ata_signature(const struct ata_drive *drive, struct ata_plan *plan)
{
    plan->kind = ATA_PLAN_DONE;
    plan->status = drive->cdrom ? 0 : ATA_DRDY | ATA_DSC;
    plan->error = 1;            /* diagnostics passed */
    plan->count = 1;
    plan->lba = drive->cdrom ? 0xEB1401 : 0x000001;
}

void ata_reset(struct ata_drive *drive)
{
    drive->multiple = MULTIPLE_MAX;
    drive->write_cache = true;
    drive->tray_open = drive->tray_locked = drive->medium_changed = false;
    drive->media_event = 0;
    drive->sense_key = drive->asc = drive->ascq = 0;
    drive->queue_error_tag = NO_TAG;
    drive->queue_error_lba = 0;
}

static const struct state_field fields[] = {
    STATE_SCALAR(struct ata_drive, multiple),      STATE_SCALAR(struct ata_drive, write_cache),
    STATE_SCALAR(struct ata_drive, tray_open),     STATE_SCALAR(struct ata_drive, tray_locked),
    STATE_SCALAR(struct ata_drive, medium_changed), STATE_SCALAR(struct ata_drive, sense_key),
    STATE_SCALAR(struct ata_drive, asc),           STATE_SCALAR(struct ata_drive, ascq),
    STATE_SCALAR(struct ata_drive, queue_error_tag), STATE_SCALAR(struct ata_drive, queue_error_lba),
    STATE_SCALAR_SINCE(struct ata_drive, media_event, 2),
};
const struct state_list ata_drive_state = STATE_LIST("ata-drive", 2, fields);
