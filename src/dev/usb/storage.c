/*
 * A command comes as a block of 31 bytes, then its data go one way or the other through the buffer, which is filled from the image, or written to it, in
 * pieces; a block of 13 bytes says how it went. While the image is worked on, the endpoints have nothing to say.
 *
 * Without knowing of a cache a guest does not flush it: until it has read the caching page, a write is complete when it is on stable storage.
 */
#include "dev/usb/storage.h"

#include <string.h>

#include "base/base.h"

enum phase { PHASE_COMMAND, PHASE_DATA_IN, PHASE_DATA_OUT, PHASE_STATUS };
enum { CBW_SIZE = 31, CSW_SIZE = 13, CBW_LENGTH = 8, CBW_FLAGS = 12, CBW_COMMAND = 15, FLAG_IN = 0x80, SECTOR = 512 };
static const uint32_t cbw_signature = 0x43425355, csw_signature = 0x53425355;

enum scsi_command {
    TEST_UNIT_READY = 0x00,
    REQUEST_SENSE = 0x03,
    INQUIRY = 0x12,
    MODE_SENSE_6 = 0x1A,
    START_STOP_UNIT = 0x1B,
    PREVENT_REMOVAL = 0x1E,
    READ_CAPACITY_10 = 0x25,
    READ_10 = 0x28,
    WRITE_10 = 0x2A,
    VERIFY_10 = 0x2F,
    SYNCHRONIZE_CACHE_10 = 0x35,
    READ_16 = 0x88,
    WRITE_16 = 0x8A,
    SERVICE_IN_16 = 0x9E,       /* with the action 0x10: READ CAPACITY (16) */
};
/* SPC-3 §4.5.6 sense keys, and additional codes */
enum { SENSE_MEDIUM = 3, SENSE_ILLEGAL = 5, SENSE_PROTECTED = 7, CODE_READ_ERROR = 0x11, CODE_WRITE_ERROR = 0x0C, CODE_NO_COMMAND = 0x20, CODE_RANGE = 0x21,
       CODE_FIELD = 0x24, CODE_PROTECTED = 0x27 };

/* --- helpers --- */

static uint32_t get32le(const uint8_t *at) { return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24; }
static uint64_t get_be(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

static void put_be(uint8_t *at, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
}

static void fail(struct usb_storage *storage, uint8_t sense, uint8_t code)
{
    storage->status = 1;
    storage->sense = sense;
    storage->sense_code = code;
    storage->todo = storage->filled = storage->taken = 0;
}

/* --- the image --- */

static void block_done(struct block_request *done, int status)
{
    struct usb_storage *storage = done->owner;
    if (!status && done->op == BLOCK_WRITE && !storage->cache_told) {
        done->op = BLOCK_FLUSH;
        block_submit(storage->block, done);
        return;
    }
    storage->busy = false;
    if (status)
        fail(storage, SENSE_MEDIUM, done->op == BLOCK_READ ? CODE_READ_ERROR : CODE_WRITE_ERROR);
    else if (done->op == BLOCK_READ)
        storage->filled = (uint32_t)done->size;
    else
        storage->filled = 0;
    storage->ready(storage->owner);
}

static void submit(struct usb_storage *storage, enum block_op op, uint32_t size)
{
    storage->iov = (struct iovec){ storage->buffer, size };
    storage->request = (struct block_request){ .op = op, .offset = storage->offset, .size = size, .iov = &storage->iov, .iov_count = 1,
                                               .done = block_done, .owner = storage };
    storage->taken = 0;
    storage->offset += size;
    storage->todo -= size;
    storage->busy = true;
    block_submit(storage->block, &storage->request);
}

static uint32_t piece(const struct usb_storage *storage) { return (uint32_t)min_u64(storage->todo, USB_STORAGE_BUFFER); }

static uint64_t sectors(const struct usb_storage *storage) { return storage->block ? block_size(storage->block) / SECTOR : 0; }

static void begin_transfer(struct usb_storage *storage, bool write, uint64_t lba, uint32_t count)
{
    if (storage->left && write != (storage->phase == PHASE_DATA_OUT)) {
        fail(storage, SENSE_ILLEGAL, CODE_FIELD);       /* the host's idea of the direction is another one */
    } else if (lba > sectors(storage) || count > sectors(storage) - lba) {
        fail(storage, SENSE_ILLEGAL, CODE_RANGE);
    } else if (write && block_read_only(storage->block)) {
        fail(storage, SENSE_PROTECTED, CODE_PROTECTED);
    } else {
        storage->offset = lba * SECTOR;
        storage->todo = (uint32_t)min_u64((uint64_t)count * SECTOR, storage->left & ~(SECTOR - 1u));
        if (!write && storage->todo)
            submit(storage, BLOCK_READ, piece(storage));
    }
}

static void flush(struct usb_storage *storage)
{
    if (block_read_only(storage->block))
        return;
    storage->todo = 0;
    submit(storage, BLOCK_FLUSH, 0);
}

/* --- commands that answer from here --- */

static void answer(struct usb_storage *storage, const uint8_t *data, uint32_t size, uint32_t allowed)
{
    storage->filled = (uint32_t)min_u64(min_u64(size, allowed), storage->left);
    memcpy(storage->buffer, data, storage->filled);
}

static void inquiry(struct usb_storage *storage, const uint8_t *command)
{
    uint32_t allowed = (uint32_t)get_be(command + 3, 2);
    uint8_t data[64] = { 0, 0, 5, 2, 31 };              /* a disk, SPC-3 */
    const char *serial = storage->serial ? storage->serial : "";
    if (!(command[1] & 1)) {
        memcpy(data + 8, "Doppel  USB disk        1.0 ", 28);
        answer(storage, data, 36, allowed);
    } else if (command[2] == 0x00) {                    /* which pages there are */
        answer(storage, (const uint8_t[]){ 0, 0, 0, 2, 0x00, 0x80 }, 6, allowed);
    } else if (command[2] == 0x80) {
        unsigned length = (unsigned)strnlen(serial, 32);
        memset(data, 0, sizeof(data));
        data[1] = 0x80;
        data[3] = (uint8_t)length;
        memcpy(data + 4, serial, length);
        answer(storage, data, 4 + length, allowed);
    } else {
        fail(storage, SENSE_ILLEGAL, CODE_FIELD);
    }
}

/* SPC-3 §6.9, SBC-2 §6.3.3: the caching page, with a cache that is written back. */
static void mode_sense(struct usb_storage *storage, const uint8_t *command)
{
    enum { PAGE_CACHING = 0x08, PAGE_ALL = 0x3F, WRITE_PROTECTED = 0x80, WRITE_CACHE = 0x04 };
    unsigned page = command[2] & 0x3F;
    uint8_t data[4 + 20] = { 3, 0, block_read_only(storage->block) ? WRITE_PROTECTED : 0, 0, PAGE_CACHING, 18, WRITE_CACHE };
    bool caching = page == PAGE_CACHING || page == PAGE_ALL;
    if (caching) {
        data[0] += 20;
        storage->cache_told = true;
    }
    answer(storage, data, caching ? 24 : 4, command[4]);
}

static void request_sense(struct usb_storage *storage, const uint8_t *command)
{
    uint8_t data[18] = { 0x70, 0, storage->sense, 0, 0, 0, 0, 10 };
    data[12] = storage->sense_code;
    storage->sense = storage->sense_code = 0;
    answer(storage, data, sizeof(data), command[4]);
}

static void read_capacity(struct usb_storage *storage, const uint8_t *command)
{
    uint64_t last = max_u64(sectors(storage), 1) - 1;
    uint8_t data[32] = { 0 };
    bool wide = command[0] == SERVICE_IN_16;
    put_be(data, wide ? 8 : 4, wide ? last : min_u64(last, UINT32_MAX));
    put_be(data + (wide ? 8 : 4), 4, SECTOR);
    answer(storage, data, wide ? 32 : 8, wide ? (uint32_t)get_be(command + 10, 4) : 8);
}

static void execute(struct usb_storage *storage, const uint8_t *command)
{
    switch (command[0]) {
    case TEST_UNIT_READY: case START_STOP_UNIT: case PREVENT_REMOVAL: case VERIFY_10: break;
    case REQUEST_SENSE: request_sense(storage, command); break;
    case INQUIRY: inquiry(storage, command); break;
    case MODE_SENSE_6: mode_sense(storage, command); break;
    case READ_CAPACITY_10: read_capacity(storage, command); break;
    case READ_10: case WRITE_10:
        begin_transfer(storage, command[0] == WRITE_10, get_be(command + 2, 4), (uint32_t)get_be(command + 7, 2));
        break;
    case READ_16: case WRITE_16:
        begin_transfer(storage, command[0] == WRITE_16, get_be(command + 2, 8), (uint32_t)get_be(command + 10, 4));
        break;
    case SYNCHRONIZE_CACHE_10: flush(storage); break;
    case SERVICE_IN_16:
        if ((command[1] & 0x1F) == 0x10) {
            read_capacity(storage, command);
            break;
        }
        fail(storage, SENSE_ILLEGAL, CODE_FIELD);
        break;
    default: fail(storage, SENSE_ILLEGAL, CODE_NO_COMMAND); break;
    }
}

/* --- the transport --- */

/* Bulk-Only Transport §5.1 and §6.2: what is valid and meaningful. */
static bool begin_command(struct usb_storage *storage, const uint8_t *cbw, uint32_t size)
{
    if (size != CBW_SIZE || get32le(cbw) != cbw_signature || cbw[13] & 0x0F || !storage->block)
        return false;
    storage->tag = get32le(cbw + 4);
    storage->left = get32le(cbw + CBW_LENGTH);
    storage->status = 0;
    storage->filled = storage->taken = storage->todo = 0;
    storage->phase = !storage->left ? PHASE_STATUS : cbw[CBW_FLAGS] & FLAG_IN ? PHASE_DATA_IN : PHASE_DATA_OUT;
    execute(storage, cbw + CBW_COMMAND);
    return true;
}

/* What the command has no use for is taken, too. */
static uint32_t take_data(struct usb_storage *storage, const uint8_t *data, uint32_t size)
{
    size = (uint32_t)min_u64(size, storage->left);
    if (storage->todo) {
        size = (uint32_t)min_u64(size, piece(storage) - storage->filled);
        memcpy(storage->buffer + storage->filled, data, size);
        storage->filled += size;
        if (storage->filled == piece(storage))
            submit(storage, BLOCK_WRITE, storage->filled);
    }
    storage->left -= size;
    if (!storage->left)
        storage->phase = PHASE_STATUS;
    return size;
}

enum usb_answer usb_storage_out(struct usb_storage *storage, const uint8_t *data, uint32_t *size)
{
    if (storage->busy)
        return USB_NOT_NOW;
    if (storage->phase == PHASE_DATA_OUT) {
        *size = take_data(storage, data, *size);
        return USB_MOVED;
    }
    if (storage->phase != PHASE_COMMAND)
        return USB_REFUSED;
    return begin_command(storage, data, *size) ? USB_MOVED : USB_REFUSED;
}

/* A piece of what there is; when there is no more, though the host expects some, a short packet ends the phase. */
static void give_data(struct usb_storage *storage, uint8_t *data, uint32_t *size, bool *ends)
{
    uint32_t there = storage->filled - storage->taken;
    *size = (uint32_t)min_u64(min_u64(*size, there), storage->left);
    memcpy(data, storage->buffer + storage->taken, *size);
    storage->taken += *size;
    storage->left -= *size;
    bool empty = storage->taken == storage->filled;
    if (empty && storage->todo && storage->left)
        submit(storage, BLOCK_READ, piece(storage));
    else if (empty || !storage->left)
        storage->phase = PHASE_STATUS;
    *ends = storage->phase == PHASE_STATUS;
}

static void give_status(struct usb_storage *storage, uint8_t *data)
{
    const uint32_t words[3] = { csw_signature, storage->tag, storage->left };
    memcpy(data, words, sizeof(words));
    data[12] = storage->status;
    storage->phase = PHASE_COMMAND;
}

enum usb_answer usb_storage_in(struct usb_storage *storage, uint8_t *data, uint32_t *size, bool *ends)
{
    *ends = false;
    if (storage->busy || storage->phase == PHASE_COMMAND)
        return USB_NOT_NOW;
    if (storage->phase == PHASE_DATA_IN) {
        give_data(storage, data, size, ends);
        return USB_MOVED;
    }
    if (storage->phase != PHASE_STATUS || *size < CSW_SIZE)
        return USB_REFUSED;
    give_status(storage, data);
    *ends = true;
    *size = CSW_SIZE;
    return USB_MOVED;
}

/* --- reset, state --- */

void usb_storage_quiesce(struct usb_storage *storage)
{
    if (storage->block && storage->busy)
        block_drain(storage->block);
}

void usb_storage_reset(struct usb_storage *storage)
{
    usb_storage_quiesce(storage);
    storage->phase = PHASE_COMMAND;
    storage->tag = storage->left = storage->todo = storage->filled = storage->taken = 0;
    storage->status = storage->sense = storage->sense_code = 0;
    storage->cache_told = false;
    storage->offset = 0;
    memset(storage->buffer, 0, sizeof(storage->buffer));
}

/* What was loaded may be anything: a command that cannot be is over. */
void usb_storage_resume(struct usb_storage *storage)
{
    uint64_t size = storage->block ? block_size(storage->block) : 0;
    if (storage->phase > PHASE_STATUS || storage->filled > USB_STORAGE_BUFFER || storage->taken > storage->filled || storage->offset > size ||
        storage->todo > size - storage->offset || (storage->offset | storage->todo) % SECTOR || (storage->todo && storage->filled > piece(storage)))
        usb_storage_reset(storage);
}

static const struct state_field fields[] = {
    STATE_SCALAR(struct usb_storage, phase),  STATE_SCALAR(struct usb_storage, tag),        STATE_SCALAR(struct usb_storage, left),
    STATE_SCALAR(struct usb_storage, status), STATE_SCALAR(struct usb_storage, sense),      STATE_SCALAR(struct usb_storage, sense_code),
    STATE_SCALAR(struct usb_storage, cache_told), STATE_SCALAR(struct usb_storage, offset), STATE_SCALAR(struct usb_storage, todo),
    STATE_SCALAR(struct usb_storage, filled), STATE_SCALAR(struct usb_storage, taken),      STATE_BLOB(struct usb_storage, buffer),
};
const struct state_list usb_storage_state = STATE_LIST("usb-storage", 1, fields);
