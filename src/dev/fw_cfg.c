/*
 * Firmware configuration device as SeaBIOS and EDK II expect it (QEMU documentation, "QEMU Firmware Configuration (fw_cfg)
 * Device"): a selector at port 0x510, a data port at 0x511, and a DMA interface at 0x514 whose registers are big-endian.
 * NOTE(spec): a read runs on with zeros at most 16 MiB past an item's end, so that no guest can have us clear its memory for ever.
 * Not modelled: writing to items.
 */
#include "dev/fw_cfg.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

/* --- registers --- */

enum { REG_SELECTOR = 0, REG_DATA = 1, REG_DMA_HIGH = 4, REG_DMA_LOW = 8, REG_SIZE = 12 };
enum { ID_TRADITIONAL = 1 << 0, ID_DMA = 1 << 1 };
enum { DMA_ERROR = 1 << 0, DMA_READ = 1 << 1, DMA_SKIP = 1 << 2, DMA_SELECT = 1 << 3, DMA_WRITE = 1 << 4, DMA_KEY_SHIFT = 16 };
enum { ZEROES_MAX = 16 * 1024 * 1024 };

static const uint64_t fw_cfg_port = 0x510;
static const char signature[4] = { 'Q', 'E', 'M', 'U' }, dma_signature[8] = { 'Q', 'E', 'M', 'U', ' ', 'C', 'F', 'G' };

/* In guest memory, big-endian. */
struct dma_control {
    uint32_t control, length;
    uint64_t address;
};

/* An entry of the file directory, big-endian; a count of 32 bits comes first. */
struct directory_entry {
    uint32_t size;
    uint16_t select, reserved;
    char name[FW_CFG_NAME_SIZE];
};
_Static_assert(sizeof(struct directory_entry) == 64 && sizeof(struct dma_control) == 16, "as firmware lays them out");

/* --- items --- */

static struct fw_cfg_item *find(struct fw_cfg *fw_cfg, uint16_t key)
{
    for (unsigned i = 0; i < fw_cfg->items; i++)
        if (fw_cfg->item[i].key == key)
            return &fw_cfg->item[i];
    return NULL;
}

static struct fw_cfg_item *new_item(struct fw_cfg *fw_cfg, uint16_t key, const void *data, uint32_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy || fw_cfg->items == ARRAY_SIZE(fw_cfg->item)) {
        free(copy);
        return NULL;
    }
    memcpy(copy, data, size);
    struct fw_cfg_item *item = &fw_cfg->item[fw_cfg->items++];
    *item = (struct fw_cfg_item){ .key = key, .data = copy, .size = size };
    return item;
}

bool fw_cfg_add(struct fw_cfg *fw_cfg, uint16_t key, const void *data, uint32_t size)
{
    return new_item(fw_cfg, key, data, size);
}

bool fw_cfg_add_number(struct fw_cfg *fw_cfg, uint16_t key, uint64_t value, uint32_t size)
{
    const uint64_t little = htole64(value);
    return fw_cfg_add(fw_cfg, key, &little, size);
}

static bool write_directory(struct fw_cfg *fw_cfg)
{
    struct {
        uint32_t count;
        struct directory_entry entry[FW_CFG_FILES_MAX];
    } directory = { .count = htobe32(fw_cfg->files) };
    struct fw_cfg_item *item = find(fw_cfg, FW_CFG_FILE_DIR);
    for (unsigned i = 0; i < fw_cfg->files; i++) {
        const struct fw_cfg_item *file = find(fw_cfg, (uint16_t)(FW_CFG_FILE_FIRST + i));
        directory.entry[i].size = htobe32(file->size);
        directory.entry[i].select = htobe16(file->key);
        memcpy(directory.entry[i].name, file->name, FW_CFG_NAME_SIZE);
    }
    if (!item)
        return fw_cfg_add(fw_cfg, FW_CFG_FILE_DIR, &directory, sizeof(directory));
    memcpy(item->data, &directory, sizeof(directory));
    return true;
}

bool fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *data, uint32_t size,
                     const struct fw_cfg_source *source)
{
    if (fw_cfg->files == FW_CFG_FILES_MAX || strlen(name) >= FW_CFG_NAME_SIZE)
        return false;
    struct fw_cfg_item *item = new_item(fw_cfg, (uint16_t)(FW_CFG_FILE_FIRST + fw_cfg->files), data, size);
    if (!item)
        return false;
    memcpy(item->name, name, strlen(name));
    if (source)
        item->source = *source;
    fw_cfg->files++;
    return write_directory(fw_cfg);
}

void fw_cfg_refresh(struct fw_cfg *fw_cfg, const char *name, const void *data, uint32_t size)
{
    for (unsigned i = 0; i < fw_cfg->items; i++)
        if (!strcmp(fw_cfg->item[i].name, name) && fw_cfg->item[i].size == size)
            memcpy(fw_cfg->item[i].data, data, size);
}

/* --- reading --- */

static void select_item(struct fw_cfg *fw_cfg, uint16_t key)
{
    struct fw_cfg_item *item = find(fw_cfg, key);
    fw_cfg->selector = key;
    fw_cfg->offset = 0;
    if (item && item->source.refresh)
        item->source.refresh(item->source.owner);
}

/* What is left of the selected item. */
static uint32_t rest(struct fw_cfg *fw_cfg, const uint8_t **data)
{
    const struct fw_cfg_item *item = find(fw_cfg, fw_cfg->selector);
    if (!item || fw_cfg->offset >= item->size)
        return 0;
    *data = item->data + fw_cfg->offset;
    return item->size - fw_cfg->offset;
}

static uint8_t read_byte(struct fw_cfg *fw_cfg)
{
    const uint8_t *data;
    if (!rest(fw_cfg, &data))
        return 0;
    fw_cfg->offset++;
    return *data;
}

/* --- DMA --- */

static bool copy_out(struct fw_cfg *fw_cfg, uint64_t address, uint32_t length)
{
    static const uint8_t zeroes[4096];
    const uint8_t *data;
    uint32_t part = (uint32_t)min_u64(rest(fw_cfg, &data), length);
    if (part && !dma_write(&fw_cfg->device.dma, address, data, part))
        return false;
    fw_cfg->offset += part;
    if (length - part > ZEROES_MAX)
        return false;
    for (address += part, length -= part; length; address += part, length -= part) {
        part = (uint32_t)min_u64(length, sizeof(zeroes));
        if (!dma_write(&fw_cfg->device.dma, address, zeroes, part))
            return false;
    }
    return true;
}

static void skip(struct fw_cfg *fw_cfg, uint32_t length)
{
    const uint8_t *data;
    fw_cfg->offset += (uint32_t)min_u64(rest(fw_cfg, &data), length);
}

static void run_dma(struct fw_cfg *fw_cfg, uint64_t at)
{
    struct dma_control block;
    if (!dma_read(&fw_cfg->device.dma, at, &block, sizeof(block))) {
        guest_error(fw_cfg->device.world.log, "fw_cfg: no control structure at %#lx", (unsigned long)at);
        return;
    }
    uint32_t control = be32toh(block.control), length = be32toh(block.length), result = 0;
    if (control & DMA_SELECT)
        select_item(fw_cfg, (uint16_t)(control >> DMA_KEY_SHIFT));
    if (control & DMA_READ)
        result = copy_out(fw_cfg, be64toh(block.address), length) ? 0 : DMA_ERROR;
    else if (control & DMA_WRITE)
        result = DMA_ERROR;             /* no item can be written */
    else if (control & DMA_SKIP)
        skip(fw_cfg, length);
    result = htobe32(result);
    if (!dma_write(&fw_cfg->device.dma, at, &result, sizeof(result)))
        guest_error(fw_cfg->device.world.log, "fw_cfg: the control structure at %#lx cannot be written", (unsigned long)at);
}

/* --- access --- */

static void write_register(struct fw_cfg *fw_cfg, const struct access *access)
{
    uint32_t value = (uint32_t)access->value;
    if (access->address == REG_SELECTOR && access->size == 2)
        select_item(fw_cfg, (uint16_t)value);
    else if (access->address == REG_DMA_HIGH && access->size == 4)
        fw_cfg->dma_high = be32toh(value);
    else if (access->address == REG_DMA_LOW && access->size == 4) {
        uint64_t at = (uint64_t)fw_cfg->dma_high << 32 | be32toh(value);
        fw_cfg->dma_high = 0;
        run_dma(fw_cfg, at);
    }
}

static enum access_result fw_cfg_access(void *owner, struct access *access)
{
    struct fw_cfg *fw_cfg = owner;
    if (access->write) {
        write_register(fw_cfg, access);
        return ACCESS_OK;
    }
    access->value = 0;
    if (access->address >= REG_DMA_HIGH && access->address + access->size <= REG_SIZE)
        memcpy(&access->value, dma_signature + (access->address - REG_DMA_HIGH), access->size);
    else if (access->address == REG_DATA && access->size == 1)
        access->value = read_byte(fw_cfg);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void fw_cfg_reset(struct device *device)
{
    struct fw_cfg *fw_cfg = (struct fw_cfg *)device;
    fw_cfg->selector = 0;
    fw_cfg->offset = 0;
    fw_cfg->dma_high = 0;
}

static bool fw_cfg_init(struct device *device, struct error *err)
{
    struct fw_cfg *fw_cfg = (struct fw_cfg *)device;
    if (!fw_cfg_add(fw_cfg, FW_CFG_SIGNATURE, signature, sizeof(signature)) ||
        !fw_cfg_add_number(fw_cfg, FW_CFG_ID, ID_TRADITIONAL | ID_DMA, 4) || !write_directory(fw_cfg))
        return error_set(err, "out of memory for the firmware's configuration");
    fw_cfg->region = (struct region){ .name = "fw-cfg", .base = fw_cfg_port, .size = REG_SIZE, .access_max = 4,
                                      .access = fw_cfg_access, .owner = fw_cfg, .lock = device->world.lock };
    bus_map(device->world.ports, &fw_cfg->region);
    return true;
}

static void fw_cfg_fini(struct device *device)
{
    struct fw_cfg *fw_cfg = (struct fw_cfg *)device;
    bus_unmap(device->world.ports, &fw_cfg->region);
    for (unsigned i = 0; i < fw_cfg->items; i++)
        free(fw_cfg->item[i].data);
}

/* --- state list, type --- */

static const struct state_field fw_cfg_fields[] = {
    STATE_SCALAR(struct fw_cfg, selector),
    STATE_SCALAR(struct fw_cfg, offset),
    STATE_SCALAR(struct fw_cfg, dma_high),
};
static const struct state_list fw_cfg_state = STATE_LIST("fw-cfg", 1, fw_cfg_fields);

const struct device_type device_fw_cfg = {
    .name = "fw-cfg",
    .text = "firmware configuration",
    .size = sizeof(struct fw_cfg),
    .state = &fw_cfg_state,
    .init = fw_cfg_init,
    .reset = fw_cfg_reset,
    .fini = fw_cfg_fini,
};
