/* A flash chip that holds UEFI's variables. The code beside it is plain ROM. */
#ifndef DOPPEL_DEV_STORAGE_FLASH_H
#define DOPPEL_DEV_STORAGE_FLASH_H

#include "dev/device.h"

enum { FLASH_SIZE_MAX = 1024 * 1024, FLASH_BLOCK = 4096 };

struct flash {
    struct device device;
    /* --- configuration --- */
    uint64_t base;              /* guest-physical */
    uint32_t size;              /* bytes, whole blocks; 0: FLASH_SIZE_MAX */
    const uint8_t *contents;    /* `size` bytes at the start; NULL: erased */
    int fd;                     /* every change is written there, too; 0: nowhere. The owner closes it */
    /* --- state --- */
    uint8_t data[FLASH_SIZE_MAX];
    uint8_t mode, status;       /* of the command state machine */
    /* --- not state --- */
    struct region region;
    bool write_failed;          /* the host refused, and this was said */
};

#endif
