/* A small AHCI driver for tests: one port, commands by hand. */
#ifndef DOPPEL_TESTS_DEV_AHCI_DRIVER_H
#define DOPPEL_TESTS_DEV_AHCI_DRIVER_H

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/block.h"
#include "dev/rig.h"
#include "dev/storage/ahci.h"

enum { AHCI_LIST = 0x10000, AHCI_FIS = 0x11000, AHCI_TABLES = 0x20000, AHCI_TABLE_SIZE = 0x1000, AHCI_BUFFER = 0x100000 };
enum { IMAGE_SECTORS = 2048 };
enum { P_CLB = 0x00, P_FB = 0x08, P_IS = 0x10, P_IE = 0x14, P_CMD = 0x18, P_TFD = 0x20, P_SIG = 0x24, P_SSTS = 0x28, P_SCTL = 0x2C,
       P_SERR = 0x30, P_SACT = 0x34, P_CI = 0x38 };

struct ahci_rig {
    struct rig rig;
    struct block *disk, *cd;
    struct ahci *ahci;
    uint64_t bar;
    int fd;                     /* both drives' image: sector n is filled with n */
};

static inline struct block *ahci_open_image(struct ahci_rig *r, bool read_only)
{
    struct error err = { "" };
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", r->fd);
    struct block_options options = { .path = path, .image = { .read_only = read_only } };
    struct block *block = block_open(&options, r->rig.loop, NULL, &r->rig.log, &err);
    if (!block)
        fail_msg("%s", err.text);
    return block;
}

static inline int ahci_image(void)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    uint8_t sector[512];
    for (unsigned i = 0; i < IMAGE_SECTORS; i++) {
        memset(sector, (int)i, sizeof(sector));
        assert_int_equal(pwrite(fd, sector, sizeof(sector), i * 512), 512);
    }
    return fd;
}

static inline void ahci_configure(struct device *device, void *opaque)
{
    struct ahci_rig *r = opaque;
    ((struct ahci *)device)->port[0].drive = (struct ata_drive){ .block = r->disk, .present = true, .serial = "S1" };
    ((struct ahci *)device)->port[1].drive = (struct ata_drive){ .block = r->cd, .present = true, .cdrom = true };
}

static inline uint32_t port_read(struct ahci_rig *r, unsigned port, unsigned reg)
{
    return (uint32_t)rig_read(&r->rig, r->bar + 0x100 + 0x80 * port + reg, 4);
}

static inline void port_write(struct ahci_rig *r, unsigned port, unsigned reg, uint32_t value)
{
    rig_write(&r->rig, r->bar + 0x100 + 0x80 * port + reg, 4, value);
}

static inline void ahci_start(struct ahci_rig *r)
{
    for (unsigned port = 0; port < 2; port++) {
        port_write(r, port, P_CLB, AHCI_LIST + port * 0x400);
        port_write(r, port, P_FB, AHCI_FIS + port * 0x100);
        port_write(r, port, P_IE, 0xFFFFFFFF);
        port_write(r, port, P_CMD, 0x11);
    }
    rig_write(&r->rig, r->bar + 4, 4, 2);
}

static inline void ahci_rig_create(struct ahci_rig *r)
{
    rig_create(&r->rig);
    r->fd = ahci_image();
    r->disk = ahci_open_image(r, false);
    int disk = r->fd;
    r->fd = ahci_image();
    r->cd = ahci_open_image(r, true);
    close(r->fd);
    r->fd = disk;
    r->ahci = (struct ahci *)rig_add(&r->rig, &device_ahci, AHCI_DEVFN, ahci_configure, r);
    r->bar = rig_bar(&r->rig, AHCI_DEVFN, 5);
    ahci_start(r);
}

static inline void ahci_rig_destroy(struct ahci_rig *r)
{
    device_destroy(&r->ahci->pci.device);
    block_close(r->disk);
    block_close(r->cd);
    close(r->fd);
    rig_destroy(&r->rig);
}

struct ahci_shot {
    uint8_t command;
    uint64_t lba;
    uint16_t count, features;
    const uint8_t *packet;
    uint32_t size;              /* of the data in the buffer; 0: no table entry */
    uint64_t buffer;            /* 0: AHCI_BUFFER */
};

/* Writes the command into the slot; the caller issues it. */
static inline void ahci_put(struct ahci_rig *r, unsigned port, unsigned slot, const struct ahci_shot *shot)
{
    uint64_t table = AHCI_TABLES + slot * AHCI_TABLE_SIZE, buffer = shot->buffer ? shot->buffer : AHCI_BUFFER;
    uint32_t header[8] = { 5 | (shot->size ? 1u << 16 : 0), 0, (uint32_t)table, 0 };
    uint8_t bytes[0x90] = { 0x27, 0x80, shot->command, (uint8_t)shot->features, (uint8_t)shot->lba, (uint8_t)(shot->lba >> 8),
                            (uint8_t)(shot->lba >> 16), 0x40, (uint8_t)(shot->lba >> 24), (uint8_t)(shot->lba >> 32),
                            (uint8_t)(shot->lba >> 40), (uint8_t)(shot->features >> 8), (uint8_t)shot->count,
                            (uint8_t)(shot->count >> 8) };
    uint32_t length = shot->size - 1;
    if (shot->packet)
        memcpy(bytes + 0x40, shot->packet, 12);
    memcpy(bytes + 0x80, &buffer, 8);
    memcpy(bytes + 0x8C, &length, 4);
    assert_true(ram_write(r->rig.ram, AHCI_LIST + port * 0x400 + slot * 32, header, sizeof(header)));
    assert_true(ram_write(r->rig.ram, table, bytes, sizeof(bytes)));
}

/* Waits until the slots are no longer under way; true: without an error. */
static inline bool ahci_wait(struct ahci_rig *r, unsigned port, uint32_t slots)
{
    for (unsigned i = 0; i < 20000; i++) {
        if (!((port_read(r, port, P_CI) | port_read(r, port, P_SACT)) & slots) || port_read(r, port, P_TFD) & 1)
            return !(port_read(r, port, P_TFD) & 1);
        loop_run_once(r->rig.loop, 10);
    }
    fail_msg("the command does not end");
    return false;
}

static inline bool ahci_do(struct ahci_rig *r, unsigned port, const struct ahci_shot *shot)
{
    ahci_put(r, port, 0, shot);
    port_write(r, port, P_IS, 0xFFFFFFFF);
    port_write(r, port, P_CI, 1);
    return ahci_wait(r, port, 1);
}

/* After an error: §6.2.2. */
static inline void ahci_recover(struct ahci_rig *r, unsigned port)
{
    port_write(r, port, P_CMD, 0x10);
    port_write(r, port, P_IS, 0xFFFFFFFF);
    port_write(r, port, P_CMD, 0x11);
}

#endif
