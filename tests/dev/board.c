#include <stdlib.h>
#include <string.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"

static void set_line(void *sink, unsigned n, bool level)
{
    struct board *board = sink;
    board->rises[n] += level && !board->level[n];
    board->level[n] = level;
}

struct irq_line board_line(struct board *board, unsigned n) { return (struct irq_line){ set_line, board, n }; }

static void request(void *owner, enum system_request request, uint32_t code)
{
    struct board *board = owner;
    board->request = request;
    board->request_code = code;
    board->requests++;
}

struct system_signal board_signal(struct board *board) { return (struct system_signal){ request, board }; }

/* --- DMA --- */

static uint8_t *reach(const struct dma *dma, uint64_t address, size_t size)
{
    struct board *board = dma->space;
    return address < BOARD_MEMORY && size <= BOARD_MEMORY - address ? board->memory + address : NULL;
}

static bool read_memory(const struct dma *dma, uint64_t address, void *buffer, size_t size)
{
    const uint8_t *host = reach(dma, address, size);
    if (host)
        memcpy(buffer, host, size);
    return host;
}

static bool write_memory(const struct dma *dma, uint64_t address, const void *buffer, size_t size)
{
    struct board *board = dma->space;
    uint8_t *host = reach(dma, address, size);
    if (host) {
        memcpy(host, buffer, size);
    } else if (address >> 20 == 0xFEE && size == 4) {
        unsigned n = board->msi_count++ % BOARD_MSIS;
        board->msi[n].address = address;
        memcpy(&board->msi[n].data, buffer, 4);
        return true;
    }
    return host;
}

static int map_memory(const struct dma *dma, uint64_t address, size_t size, bool device_writes, struct iovec *iov, int max)
{
    uint8_t *host = reach(dma, address, size);
    if (!host || max < 1)
        return -1;
    iov[0] = (struct iovec){ host, size };
    return 1;
}

static void unmap_memory(const struct dma *dma, uint64_t address, size_t size, bool device_writes) {}

static const struct dma_ops memory_ops = { read_memory, write_memory, map_memory, unmap_memory };

/* --- life --- */

struct board *board_create(void)
{
    struct board *board = calloc(1, sizeof(*board));
    pthread_mutex_init(&board->lock, NULL);
    board->log_file = fopen("/dev/null", "w");
    log_init(&board->log, board->log_file);
    board->loop = loop_create(NULL);
    board->clock = clock_create_manual();
    board->mmio = bus_create("mmio", 1ull << 52, &board->log);
    board->ports = bus_create("port", 0x10000, &board->log);
    board->dma = (struct dma){ &memory_ops, board, 8 };
    return board;
}

void board_destroy(struct board *board)
{
    bus_destroy(board->mmio);
    bus_destroy(board->ports);
    clock_destroy(board->clock);
    loop_destroy(board->loop);
    fclose(board->log_file);
    pthread_mutex_destroy(&board->lock);
    free(board);
}

void *board_device(struct board *board, const struct device_type *type, void (*configure)(struct device *, void *), void *opaque)
{
    const struct device_world world = { .mmio = board->mmio, .ports = board->ports, .clock = board->clock, .loop = board->loop,
                                        .lock = &board->lock, .log = &board->log, .counters = &board->counters };
    struct error err = { "" };
    struct device *device = device_create(type, type->name, &world, &board->dma, configure, opaque, &err);
    if (!device)
        fail_msg("%s: %s", type->name, err.text);
    return device;
}

uint64_t board_read(struct bus *bus, uint64_t address, unsigned size)
{
    struct access access = { .address = address, .size = (uint8_t)size, .requester = REQUESTER_CPU };
    bus_access(bus, &access);
    return access.value;
}

void board_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    struct access access = { .address = address, .value = value, .size = (uint8_t)size, .requester = REQUESTER_CPU, .write = true };
    bus_access(bus, &access);
}

void board_advance(struct board *board, uint64_t ns)
{
    pthread_mutex_lock(&board->lock);
    clock_advance(board->clock, ns);
    pthread_mutex_unlock(&board->lock);
}
