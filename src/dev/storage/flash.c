/*
 * Parallel NOR flash with the Intel/Sharp command set (Intel StrataFlash Memory (J3) datasheet, 290667, §10 "Command definitions"; CFI:
 * JESD68), in the subset that EDK II's driver of virtual flash uses: read array and status, erase a block, program a byte.
 * Blocks are of 4 KiB. A reset ends a command and keeps the contents.
 * Not modelled: the identification and CFI tables, buffered programming, locks, suspending; nothing takes time.
 */
#include "dev/storage/flash.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

enum flash_command {
    FLASH_READ_ARRAY = 0xFF,
    FLASH_READ_STATUS = 0x70,
    FLASH_CLEAR_STATUS = 0x50,
    FLASH_PROGRAM = 0x10,
    FLASH_PROGRAM_ALTERNATE = 0x40,
    FLASH_ERASE = 0x20,
    FLASH_ERASE_CONFIRM = 0xD0,
};
enum flash_mode { MODE_ARRAY, MODE_STATUS, MODE_PROGRAM, MODE_ERASE, MODES };
enum { STATUS_READY = 1 << 7, STATUS_SEQUENCE_ERROR = 3 << 4, ERASED = 0xFF };

/* --- helpers --- */

static void keep(struct flash *flash, uint32_t at, uint32_t size)
{
    if (!flash->fd || pwrite(flash->fd, flash->data + at, size, at) == (ssize_t)size || flash->write_failed)
        return;
    flash->write_failed = true;
    log_message(flash->device.world.log, LOG_ERROR, "the file of UEFI's variables cannot be written: %s", strerror(errno));
}

static void erase(struct flash *flash, uint32_t at)
{
    at = (uint32_t)align_down(at, FLASH_BLOCK);
    memset(flash->data + at, ERASED, FLASH_BLOCK);
    keep(flash, at, FLASH_BLOCK);
}

/* Programming takes bits from 1 to 0 only. */
static void program(struct flash *flash, uint32_t at, uint8_t value)
{
    flash->data[at] &= value;
    keep(flash, at, 1);
}

static void begin(struct flash *flash, uint8_t command)
{
    switch ((enum flash_command)command) {
    case FLASH_READ_ARRAY: flash->mode = MODE_ARRAY; break;
    case FLASH_READ_STATUS: flash->mode = MODE_STATUS; break;
    case FLASH_CLEAR_STATUS:
        flash->status = 0;
        flash->mode = MODE_ARRAY;
        break;
    case FLASH_PROGRAM: case FLASH_PROGRAM_ALTERNATE: flash->mode = MODE_PROGRAM; break;
    case FLASH_ERASE: flash->mode = MODE_ERASE; break;
    default:
        guest_error(flash->device.world.log, "%s: command %#x", flash->device.name, command);
        flash->mode = MODE_ARRAY;
        break;
    }
}

/* --- access --- */

static void write_byte(struct flash *flash, uint32_t at, uint8_t value)
{
    switch ((enum flash_mode)flash->mode) {
    case MODE_PROGRAM:
        program(flash, at, value);
        flash->status |= STATUS_READY;
        flash->mode = MODE_STATUS;
        break;
    case MODE_ERASE:
        if (value == FLASH_ERASE_CONFIRM)
            erase(flash, at);
        else
            flash->status |= STATUS_SEQUENCE_ERROR;
        flash->status |= STATUS_READY;
        flash->mode = MODE_STATUS;
        break;
    default: begin(flash, value); break;
    }
}

static enum access_result flash_access(void *owner, struct access *access)
{
    struct flash *flash = owner;
    if (access->write) {        /* the chip is a byte wide */
        for (unsigned i = 0; i < access->size; i++)
            write_byte(flash, (uint32_t)access->address + i, (uint8_t)(access->value >> 8 * i));
        return ACCESS_OK;
    }
    memset(&access->value, flash->status, access->size);
    if (flash->mode == MODE_ARRAY)
        memcpy(&access->value, flash->data + access->address, access->size);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void flash_reset(struct device *device)
{
    struct flash *flash = (struct flash *)device;
    flash->mode = MODE_ARRAY;
    flash->status = STATUS_READY;
}

static bool flash_init(struct device *device, struct error *err)
{
    struct flash *flash = (struct flash *)device;
    flash->size = flash->size ? flash->size : FLASH_SIZE_MAX;
    if (flash->size > FLASH_SIZE_MAX || flash->size % FLASH_BLOCK)
        return error_set(err, "a flash chip of %u bytes cannot be made", flash->size);
    memset(flash->data, ERASED, sizeof(flash->data));
    if (flash->contents)
        memcpy(flash->data, flash->contents, flash->size);
    flash->region = (struct region){ .name = "flash", .base = flash->base, .size = flash->size, .access = flash_access,
                                     .owner = flash, .lock = device->world.lock };
    bus_map(device->world.mmio, &flash->region);
    return true;
}

/* The file follows what was loaded. */
static void flash_resume(struct device *device)
{
    struct flash *flash = (struct flash *)device;
    flash->mode %= MODES;
    keep(flash, 0, flash->size);
}

static void flash_fini(struct device *device)
{
    bus_unmap(device->world.mmio, &((struct flash *)device)->region);
}

/* --- state list, type --- */

static const struct state_field fields[] = {
    STATE_BLOB(struct flash, data),
    STATE_SCALAR(struct flash, mode),
    STATE_SCALAR(struct flash, status),
};
static const struct state_list flash_state = STATE_LIST("flash", 1, fields);

const struct device_type device_flash = {
    .name = "flash",
    .text = "flash chip for UEFI variables",
    .size = sizeof(struct flash),
    .state = &flash_state,
    .init = flash_init,
    .reset = flash_reset,
    .resume = flash_resume,
    .fini = flash_fini,
};
