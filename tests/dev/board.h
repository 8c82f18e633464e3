/*
 * A bare board for one device: two buses, a manual clock, interrupt lines that are only recorded, and DMA into a little
 * memory. Include after cmocka's headers (unit/cmocka_all.h).
 */
#ifndef DOPPEL_TESTS_DEV_BOARD_H
#define DOPPEL_TESTS_DEV_BOARD_H

#include <stdio.h>

#include "base/base.h"
#include "dev/device.h"
#include "dev/system_signal.h"

enum { BOARD_LINES = 64, BOARD_MEMORY = 0x100000, BOARD_MSIS = 64 };

struct board {
    pthread_mutex_t lock;
    struct log log;
    FILE *log_file;
    struct counters counters;
    struct loop *loop;
    struct clock *clock;
    struct bus *mmio, *ports;
    bool level[BOARD_LINES];
    unsigned rises[BOARD_LINES];
    struct { uint64_t address; uint32_t data; } msi[BOARD_MSIS];
    unsigned msi_count;
    enum system_request request;
    uint32_t request_code;
    unsigned requests;
    struct dma dma;
    uint8_t memory[BOARD_MEMORY];
};

struct board *board_create(void);
void board_destroy(struct board *board);

/* Makes a device on it; fails the test if that fails. configure may be NULL. */
void *board_device(struct board *board, const struct device_type *type, void (*configure)(struct device *, void *), void *opaque);

struct irq_line board_line(struct board *board, unsigned n);
struct system_signal board_signal(struct board *board);

uint64_t board_read(struct bus *bus, uint64_t address, unsigned size);
void board_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value);
static inline uint8_t in8(struct board *board, uint16_t port) { return (uint8_t)board_read(board->ports, port, 1); }
static inline void out8(struct board *board, uint16_t port, uint8_t value) { board_write(board->ports, port, 1, value); }
static inline uint32_t read32(struct board *board, uint64_t gpa) { return (uint32_t)board_read(board->mmio, gpa, 4); }
static inline void write32(struct board *board, uint64_t gpa, uint32_t value) { board_write(board->mmio, gpa, 4, value); }

/* Moves the clock with the board lock held, as timers want it. */
void board_advance(struct board *board, uint64_t ns);

#endif
