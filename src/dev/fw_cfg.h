/*
 * The firmware configuration device, through which firmware learns what the board is made of. The machine adds items before the
 * guest runs; contents are copied. Some can only be told when firmware has placed things (ACPI tables that name ECAM): a
 * source refreshes them, in the same size, when the guest selects them.
 */
#ifndef DOPPEL_DEV_FW_CFG_H
#define DOPPEL_DEV_FW_CFG_H

#include "dev/device.h"

enum { FW_CFG_NAME_SIZE = 56, FW_CFG_FILES_MAX = 32, FW_CFG_KEYS_MAX = 16 };

/* Keys of items that are no files. */
enum fw_cfg_key {
    FW_CFG_SIGNATURE = 0x00,
    FW_CFG_ID = 0x01,
    FW_CFG_RAM_SIZE = 0x03,
    FW_CFG_NB_CPUS = 0x05,
    FW_CFG_BOOT_MENU = 0x0E,
    FW_CFG_MAX_CPUS = 0x0F,
    FW_CFG_FILE_DIR = 0x19,
    FW_CFG_FILE_FIRST = 0x20,
};

/* Called with the board lock held before the item is read from its beginning. May be NULL. */
struct fw_cfg_source {
    void (*refresh)(void *owner);
    void *owner;
};

struct fw_cfg_item {
    uint16_t key;
    char name[FW_CFG_NAME_SIZE];        /* of a file; else empty */
    uint8_t *data;
    uint32_t size;
    struct fw_cfg_source source;
};

struct fw_cfg {
    struct device device;
    /* --- state --- */
    uint16_t selector;
    uint32_t offset;                    /* in the selected item */
    uint32_t dma_high;                  /* upper half of the address of the next control structure */
    /* --- not state --- */
    struct region region;
    struct fw_cfg_item item[FW_CFG_KEYS_MAX + FW_CFG_FILES_MAX];
    unsigned items, files;
};

/* False: there are too many, or no memory. A number is stored little-endian in `size` bytes. */
bool fw_cfg_add(struct fw_cfg *fw_cfg, uint16_t key, const void *data, uint32_t size);
bool fw_cfg_add_number(struct fw_cfg *fw_cfg, uint16_t key, uint64_t value, uint32_t size);
bool fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *data, uint32_t size,
                     const struct fw_cfg_source *source);
/* New contents of the same size. */
void fw_cfg_refresh(struct fw_cfg *fw_cfg, const char *name, const void *data, uint32_t size);

#endif
