/*
 * A CD-ROM drive's packet commands (Multi-Media Commands, MMC-5, T10/1675D revision 4; SCSI Primary Commands, SPC-3, for the general
 * ones). The medium is a data disc of one track, whatever the image holds.
 * Not modelled: audio, writing, changing of the drive's modes.
 */
#include <string.h>

#include "base/base.h"
#include "dev/storage/ata.h"

enum packet_command {
    TEST_UNIT_READY = 0x00,
    REQUEST_SENSE = 0x03,
    INQUIRY = 0x12,
    MODE_SENSE_6 = 0x1A,
    START_STOP_UNIT = 0x1B,
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E,
    READ_CAPACITY = 0x25,
    READ_10 = 0x28,
    SEEK_10 = 0x2B,
    READ_TOC = 0x43,
    GET_CONFIGURATION = 0x46,
    GET_EVENT_STATUS = 0x4A,
    READ_DISC_INFORMATION = 0x51,
    MODE_SENSE_10 = 0x5A,
    READ_12 = 0xA8,
    MECHANISM_STATUS = 0xBD,
};

/* SPC-3 §4.5.6 "Sense key and sense code definitions" */
enum { NO_SENSE = 0, NOT_READY = 2, MEDIUM_ERROR = 3, ILLEGAL_REQUEST = 5, UNIT_ATTENTION = 6 };
enum { ASC_UNRECOVERED_READ = 0x11, ASC_INVALID_OPCODE = 0x20, ASC_LBA_RANGE = 0x21, ASC_INVALID_FIELD = 0x24,
       ASC_MEDIUM_CHANGED = 0x28, ASC_NO_MEDIUM = 0x3A, ASC_REMOVAL_PREVENTED = 0x53 };
enum { ASCQ_TRAY_CLOSED = 1, ASCQ_TRAY_OPEN = 2, ASCQ_PREVENTED = 2 };
enum { PROFILE_CD_ROM = 0x0008, TRACK_DATA = 0x14, LEAD_OUT = 0xAA, PAGE_CAPABILITIES = 0x2A, PAGE_ALL = 0x3F };
enum { CHECK_CONDITION = ATA_DRDY | ATA_ERR };
/* MMC-5 §6.7 "GET EVENT STATUS NOTIFICATION Command": codes of media events */
enum { EVENT_NONE = 0, EVENT_EJECT_REQUEST = 1, EVENT_NEW_MEDIA = 2, EVENT_MEDIA_REMOVAL = 3 };

static void put_be(uint8_t *at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
}

static uint64_t get_be(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

/* --- ends --- */

static void check(struct ata_drive *drive, struct ata_plan *plan, uint8_t key, uint8_t asc, uint8_t ascq)
{
    drive->sense_key = key;
    drive->asc = asc;
    drive->ascq = ascq;
    plan->kind = ATA_PLAN_DONE;
    plan->status = CHECK_CONDITION;
    plan->error = (uint8_t)(key << 4 | (key == ILLEGAL_REQUEST ? ATA_ABRT : 0));
}

/* `size` bytes were prepared, the guest allows for `allocated`. */
static void answer(struct ata_plan *plan, uint64_t size, uint64_t allocated)
{
    plan->size = min_u64(size, allocated);
    plan->kind = plan->size ? ATA_PLAN_ANSWER : ATA_PLAN_DONE;
}

void atapi_failed(struct ata_drive *drive, struct ata_plan *plan)
{
    check(drive, plan, MEDIUM_ERROR, ASC_UNRECOVERED_READ, 0);
}

/* --- the medium --- */

static uint64_t blocks(const struct ata_drive *drive) { return drive->block ? block_size(drive->block) / CD_SECTOR : 0; }
static bool has_medium(const struct ata_drive *drive) { return drive->block && !drive->tray_open; }

static bool ready(struct ata_drive *drive, struct ata_plan *plan)
{
    if (!has_medium(drive)) {
        check(drive, plan, NOT_READY, ASC_NO_MEDIUM, drive->tray_open ? ASCQ_TRAY_OPEN : ASCQ_TRAY_CLOSED);
        return false;
    }
    if (drive->medium_changed) {
        drive->medium_changed = false;
        check(drive, plan, UNIT_ATTENTION, ASC_MEDIUM_CHANGED, 0);
        return false;
    }
    return true;
}

void atapi_change_medium(struct ata_drive *drive, struct block *block)
{
    drive->media_event = !block && has_medium(drive) ? EVENT_MEDIA_REMOVAL : EVENT_NONE;
    drive->block = block;
    drive->tray_open = !block;
    drive->medium_changed = block;
}

bool atapi_medium_is_locked(const struct ata_drive *drive) { return drive->tray_locked && has_medium(drive); }
void atapi_press_eject(struct ata_drive *drive) { drive->media_event = EVENT_EJECT_REQUEST; }

static void read_blocks(struct ata_drive *drive, struct ata_plan *plan, uint64_t lba, uint64_t count)
{
    if (!ready(drive, plan))
        return;
    if (lba > blocks(drive) || count > blocks(drive) - lba) {
        check(drive, plan, ILLEGAL_REQUEST, ASC_LBA_RANGE, 0);
        return;
    }
    if (!count)
        return;
    plan->kind = ATA_PLAN_BLOCK;
    plan->op = BLOCK_READ;
    plan->offset = lba * CD_SECTOR;
    plan->size = count * CD_SECTOR;
}

static void read_capacity(struct ata_drive *drive, struct ata_plan *plan)
{
    if (!ready(drive, plan))
        return;
    put_be(plan->answer, blocks(drive) - 1, 4);
    put_be(plan->answer + 4, CD_SECTOR, 4);
    answer(plan, 8, 8);
}

static void start_stop(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    enum { START = 1, LOAD_EJECT = 2 };
    if (!(packet[4] & LOAD_EJECT))
        return;
    if (!(packet[4] & START) && drive->tray_locked) {
        check(drive, plan, ILLEGAL_REQUEST, ASC_REMOVAL_PREVENTED, ASCQ_PREVENTED);
        return;
    }
    bool open = !(packet[4] & START);
    drive->medium_changed |= drive->block && drive->tray_open && !open;
    drive->tray_open = open;
}

/* --- information --- */

/* SPC-3 §6.4.2 "Standard INQUIRY data": a removable CD-ROM drive. */
static void inquiry(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    static const uint8_t head[8] = { 0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0 };
    if (packet[1] & 1) {            /* vital product data: there are none */
        check(drive, plan, ILLEGAL_REQUEST, ASC_INVALID_FIELD, 0);
        return;
    }
    memcpy(plan->answer, head, sizeof(head));
    memcpy(plan->answer + 8, "DOPPEL  CD-ROM          1.0 ", 28);
    answer(plan, 36, get_be(packet + 3, 2));
}

static void request_sense(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    plan->answer[0] = 0x70;         /* fixed format, the current error */
    plan->answer[2] = drive->sense_key;
    plan->answer[7] = ATA_SENSE_SIZE - 8;
    plan->answer[12] = drive->asc;
    plan->answer[13] = drive->ascq;
    drive->sense_key = drive->asc = drive->ascq = 0;
    answer(plan, ATA_SENSE_SIZE, packet[4]);
}

static void put_address(uint8_t *at, bool msf, uint64_t lba)
{
    enum { FRAMES = 75, PREGAP = 150 };
    if (!msf) {
        put_be(at, lba, 4);
        return;
    }
    lba += PREGAP;
    at[1] = (uint8_t)(lba / FRAMES / 60);
    at[2] = (uint8_t)(lba / FRAMES % 60);
    at[3] = (uint8_t)(lba % FRAMES);
}

/* MMC-5 §6.31 "READ TOC/PMA/ATIP Command": formats 0 (tracks) and 1 (sessions). */
static void read_toc(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    bool msf = packet[1] & 2;
    unsigned format = packet[2] & 0xF ? packet[2] & 0xF : packet[9] >> 6;
    uint8_t *at = plan->answer;
    if (!ready(drive, plan))
        return;
    if (format > 1 || (format == 0 && packet[6] > 1 && packet[6] != LEAD_OUT)) {
        check(drive, plan, ILLEGAL_REQUEST, ASC_INVALID_FIELD, 0);
        return;
    }
    at[2] = at[3] = 1;              /* first and last track, or session */
    unsigned size = 4;
    if (format == 1 || packet[6] <= 1) {
        at[size + 1] = TRACK_DATA;
        at[size + 2] = 1;
        put_address(at + size + 4, msf, 0);
        size += 8;
    }
    if (format == 0) {
        at[size + 1] = TRACK_DATA;
        at[size + 2] = LEAD_OUT;
        put_address(at + size + 4, msf, blocks(drive));
        size += 8;
    }
    put_be(at, size - 2, 2);
    answer(plan, size, get_be(packet + 7, 2));
}

/* MMC-5 §6.6 "GET CONFIGURATION Command": the profile list, and the core and removable medium features. */
static void get_configuration(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    static const uint8_t features[] = {
        0x00, 0x00, 0x03, 0x04, 0x00, 0x08, 0x00, 0x00,                             /* profile list: CD-ROM */
        0x00, 0x01, 0x0B, 0x08, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00,     /* core: ATAPI */
        0x00, 0x03, 0x03, 0x04, 0x29, 0x00, 0x00, 0x00,                             /* removable medium: tray, eject, lock */
    };
    put_be(plan->answer, 4 + sizeof(features), 4);
    put_be(plan->answer + 6, has_medium(drive) ? PROFILE_CD_ROM : 0, 2);
    memcpy(plan->answer + 8, features, sizeof(features));
    if (has_medium(drive))
        plan->answer[8 + 6] = 1;    /* the profile is current */
    answer(plan, 8 + sizeof(features), get_be(packet + 7, 2));
}

/* An event is told once. A new medium is told of until the unit attention was, which is what counts. */
static uint8_t take_media_event(struct ata_drive *drive)
{
    uint8_t event = drive->media_event ? drive->media_event : drive->medium_changed ? EVENT_NEW_MEDIA : EVENT_NONE;
    drive->media_event = EVENT_NONE;
    return event;
}

/* MMC-5 §6.7 "GET EVENT STATUS NOTIFICATION Command": media events, polled. */
static void get_event_status(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    enum { POLLED = 1, CLASS_MEDIA = 4, MEDIA_PRESENT = 2, TRAY_OPEN = 1 };
    if (!(packet[1] & POLLED)) {
        check(drive, plan, ILLEGAL_REQUEST, ASC_INVALID_FIELD, 0);
        return;
    }
    plan->answer[3] = 1 << CLASS_MEDIA;
    if (!(packet[4] & 1 << CLASS_MEDIA)) {
        plan->answer[1] = 2;
        plan->answer[2] = 0x80;     /* no event of these classes */
        answer(plan, 4, get_be(packet + 7, 2));
        return;
    }
    plan->answer[1] = 6;
    plan->answer[2] = CLASS_MEDIA;
    plan->answer[4] = take_media_event(drive);
    plan->answer[5] = (uint8_t)((has_medium(drive) ? MEDIA_PRESENT : 0) | (drive->tray_open ? TRAY_OPEN : 0));
    answer(plan, 8, get_be(packet + 7, 2));
}

/* MMC-5 §6.22 "READ DISC INFORMATION Command": complete, one session, one track. */
static void read_disc_information(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan)
{
    if (!ready(drive, plan))
        return;
    put_be(plan->answer, 32, 2);
    plan->answer[2] = 0x0E;
    plan->answer[3] = plan->answer[4] = plan->answer[5] = plan->answer[6] = 1;
    plan->answer[7] = 0x20;
    memset(plan->answer + 16, 0xFF, 8);
    answer(plan, 34, get_be(packet + 7, 2));
}

/* The capabilities page (MMC-3 §5.5.10), behind a header of four or eight bytes. */
static void mode_sense(struct ata_drive *drive, const uint8_t *packet, struct ata_plan *plan, unsigned header, uint64_t allocated)
{
    uint8_t *page = plan->answer + header;
    unsigned code = packet[2] & 0x3F;
    if (code != PAGE_CAPABILITIES && code != PAGE_ALL) {
        check(drive, plan, ILLEGAL_REQUEST, ASC_INVALID_FIELD, 0);
        return;
    }
    page[0] = PAGE_CAPABILITIES;
    page[1] = 18;
    page[2] = 0x03;                 /* reads CD-R and CD-RW */
    page[4] = 0x70;                 /* multi-session, both forms of mode 2 */
    page[6] = (uint8_t)(0x29 | (drive->tray_locked ? 2 : 0));      /* tray, eject, lock */
    put_be(page + 8, 706, 2);       /* KB/s: four times */
    put_be(page + 14, 706, 2);
    put_be(plan->answer, header + 20 - (header == 8 ? 2 : 1), header == 8 ? 2 : 1);
    answer(plan, header + 20, allocated);
}

void atapi_execute(struct ata_drive *drive, const uint8_t packet[ATA_PACKET_SIZE], struct ata_plan *plan)
{
    plan->kind = ATA_PLAN_DONE;
    plan->status = ATA_DRDY | ATA_DSC;
    switch ((enum packet_command)packet[0]) {
    case TEST_UNIT_READY: ready(drive, plan); break;
    case REQUEST_SENSE: request_sense(drive, packet, plan); break;
    case INQUIRY: inquiry(drive, packet, plan); break;
    case MODE_SENSE_6: mode_sense(drive, packet, plan, 4, packet[4]); break;
    case MODE_SENSE_10: mode_sense(drive, packet, plan, 8, get_be(packet + 7, 2)); break;
    case START_STOP_UNIT: start_stop(drive, packet, plan); break;
    case PREVENT_ALLOW_MEDIUM_REMOVAL: drive->tray_locked = packet[4] & 1; break;
    case READ_CAPACITY: read_capacity(drive, plan); break;
    case READ_10: read_blocks(drive, plan, get_be(packet + 2, 4), get_be(packet + 7, 2)); break;
    case READ_12: read_blocks(drive, plan, get_be(packet + 2, 4), get_be(packet + 6, 4)); break;
    case SEEK_10: ready(drive, plan); break;
    case READ_TOC: read_toc(drive, packet, plan); break;
    case GET_CONFIGURATION: get_configuration(drive, packet, plan); break;
    case GET_EVENT_STATUS: get_event_status(drive, packet, plan); break;
    case READ_DISC_INFORMATION: read_disc_information(drive, packet, plan); break;
    case MECHANISM_STATUS:
        answer(plan, 8, get_be(packet + 8, 2));
        break;
    default: check(drive, plan, ILLEGAL_REQUEST, ASC_INVALID_OPCODE, 0); break;
    }
}
