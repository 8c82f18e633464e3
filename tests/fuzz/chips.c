/*
 * Hostile drivers of the smaller devices, under the sanitizers: registers written in any order and width, descriptors of half-truths, in between
 * what comes from outside (frames, keys, motion, pictures being made). The device must stay in bounds, finish each access in bounded time, and work
 * again after a reset.
 *
 * Usage: fuzz-chips NAME [rounds [seed]], NAME being e1000, vga, i8042, fw_cfg, flash, watchdog, pvpanic or xhci
 */
#include <time.h>
#include <unistd.h>

#include "dev/rig.h"

#include "backend/net.h"
#include "dev/display/vga.h"
#include "dev/fw_cfg.h"
#include "dev/i8042.h"
#include "dev/net/e1000.h"
#include "dev/pci/watchdog.h"
#include "dev/pvpanic.h"
#include "dev/storage/flash.h"
#include "dev/usb/xhci.h"
#include "mutate.h"

enum { SLOT = 4 << 3, SLOW_MS = 2000 };

static struct rig rig;
static uint64_t seed;

static uint64_t below(uint64_t limit) { return fuzz_below(&seed, limit); }
static bool one_in(uint64_t n) { return below(n) == 0; }

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);        /* other programs' time is not ours */
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Runs `round` so often; each must be quick. */
static void repeat(unsigned long rounds, void (*round)(void *device), void *device)
{
    for (unsigned long i = 0; i < rounds; i++) {
        uint64_t start = now_ms();
        round(device);
        if (now_ms() - start > SLOW_MS)
            fail_msg("round %lu took %lu ms", i, (unsigned long)(now_ms() - start));
    }
}

/* Mostly in memory; sometimes at its end, at the device's own registers, or nowhere. */
static uint64_t some_address(uint64_t registers)
{
    switch (below(10)) {
    case 0: return registers + below(0x1000);
    case 1: return RIG_RAM - below(0x2000);
    case 2: return fuzz_number(&seed);
    default: return below(RIG_RAM);
    }
}

static void access_any(struct bus *bus, uint64_t address, unsigned most)
{
    unsigned size = 1u << below(most);
    rig_access(bus, address, size, one_in(2), fuzz_number(&seed));
}

/* --- e1000 --- */

enum { RINGS = 0x10000, BUFFERS = 0x20000 };
static uint64_t bar;
static struct net_client client;
static bool takes_large;
static uint64_t sent;

/* The network: reads every byte of what is sent. */
void net_connect(struct net *net, const struct net_client *to) { client = to ? *to : (struct net_client){ NULL }; }
bool net_takes_large(const struct net *net) { return takes_large; }
void net_receive_ready(struct net *net) {}
void net_send(struct net *net, const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++)
        for (size_t at = 0; at < iov[i].iov_len; at++)
            sent += ((const uint8_t *)iov[i].iov_base)[at];
}

static void e1000_configure(struct device *device, void *opaque)
{
    ((struct e1000 *)device)->net = (struct net *)&rig;         /* nobody looks into it */
    memcpy(((struct e1000 *)device)->mac, "\x52\x54\x00\x12\x34\x56", 6);
}

static void e1000_write(unsigned offset, uint32_t value) { rig_write(&rig, bar + offset, 4, value); }

static void e1000_start(struct e1000 *e1000)
{
    device_e1000.reset(&e1000->pci.device);
    rig_assign(&rig);
    rig_bus_master(&rig, SLOT, true);
    bar = rig_bar(&rig, SLOT, 0);
    for (unsigned ring = 0; ring < 2; ring++) {
        unsigned base = ring ? 0x3800 : 0x2800;
        e1000_write(base, RINGS + ring * 0x1000);
        e1000_write(base + 8, 256 * (unsigned)(1 + below(16)));
        e1000_write(base + 0x18, (uint32_t)below(16));
    }
    e1000_write(0x400, 0x0A);
    e1000_write(0x100, 0x801A | (uint32_t)(fuzz_random(&seed) & 0x06030320));
    e1000_write(0xD0, 0x1FFFF);
}

static void e1000_descriptor(void)
{
    uint64_t at = RINGS + 16 * below(512), word[2] = { some_address(bar), fuzz_random(&seed) };
    if (!one_in(4))             /* a length that can be, and a kind that there is */
        word[1] = (word[1] & 0xFFFFFFFFFF000000) | below(one_in(4) ? 70000 : 2000) | (one_in(2) ? 1ull << 20 | 1ull << 29 : 0);
    if (one_in(6)) {            /* a context */
        word[0] = 14 | 24ull << 8 | 33ull << 16 | (one_in(4) ? fuzz_random(&seed) << 32 : 34ull << 32 | 50ull << 40);
        word[1] = below(70000) | (0x20ull | below(8)) << 24 | below(256) << 40 | (one_in(16) ? 0 : one_in(4) ? 64 + below(2000) : 1460ull) << 48;
    }
    ram_write(rig.ram, at, word, sizeof(word));
}

static void e1000_frame(void)
{
    static uint8_t frame[70000];
    uint32_t size = (uint32_t)(one_in(8) ? below(65550) : 14 + below(1600));
    memcpy(frame, "\xFF\xFF\xFF\xFF\xFF\xFF\x02\x00\x00\x00\x00\x01\x08\x00\x45", 15);
    for (unsigned i = 0; i < 8; i++)
        frame[below(64)] = (uint8_t)fuzz_random(&seed);
    client.receive(client.owner, frame, size, 0);
}

static void e1000_round(void *device)
{
    static const uint16_t registers[] = { 0x0, 0x10, 0x14, 0x20, 0xC0, 0xC8, 0xD0, 0xD8, 0x100, 0x400, 0x2800, 0x2808, 0x2810, 0x2818, 0x3800, 0x3808,
                                          0x3810, 0x3818, 0x5000, 0x5200, 0x5400, 0x5600 };
    takes_large = one_in(2);
    for (uint64_t i = below(8); i-- > 0;)
        e1000_descriptor();
    e1000_write(0x3818, (uint32_t)below(one_in(10) ? 70000 : 256));
    e1000_write(0x2818, (uint32_t)below(one_in(10) ? 70000 : 256));
    for (uint64_t i = below(4); i-- > 0;)
        e1000_frame();
    if (one_in(3))
        e1000_write(registers[below(ARRAY_SIZE(registers))], (uint32_t)fuzz_number(&seed));
    if (one_in(3))
        access_any(rig.mmio, bar + below(0x6000), 4);
    if (one_in(4))
        access_any(rig.ports, 0x1000 + below(0x100), 3);
    clock_advance(rig.clock, 1000);
    if (one_in(20))
        e1000_start(device);
}

static void fuzz_e1000(unsigned long rounds)
{
    struct e1000 *e1000 = (struct e1000 *)rig_add(&rig, &device_e1000, SLOT, e1000_configure, NULL);
    e1000_start(e1000);
    repeat(rounds, e1000_round, e1000);
    e1000_start(e1000);
    uint64_t word[2] = { BUFFERS, 64 | 0x09ull << 24 };
    ram_write(rig.ram, RINGS + 0x1000, word, sizeof(word));
    e1000_write(0x3810, 0);
    e1000_write(0x3818, 1);
    ram_read(rig.ram, RINGS + 0x1000, word, sizeof(word));
    assert_true(word[1] >> 32 & 1);
    device_destroy(&e1000->pci.device);
}

/* --- VGA --- */

static void vga_round(void *device)
{
    static struct vga_picture picture;
    static const uint16_t ports[] = { 0x3C0, 0x3C2, 0x3C4, 0x3C5, 0x3C8, 0x3C9, 0x3CE, 0x3CF, 0x3D4, 0x3D5, 0x1CE, 0x1CF };
    struct vga *vga = device;
    for (unsigned i = 0; i < 16; i++) {
        uint64_t value = one_in(3) ? fuzz_number(&seed) : below(32);
        rig_access(rig.ports, ports[below(ARRAY_SIZE(ports))], 1u << below(2), true, value);
    }
    access_any(rig.ports, 0x3B0 + below(0x30), 3);
    if (one_in(2)) {            /* a mode that may be one */
        rig_access(rig.ports, 0x1CE, 2, true, below(11));
        rig_access(rig.ports, 0x1CF, 2, true, one_in(2) ? below(0x100) : below(3000));
    }
    for (unsigned i = 0; i < 8; i++)
        access_any(rig.mmio, 0xA0000 + below(0x20000), 4);
    access_any(rig.mmio, rig_bar(&rig, SLOT, 0) + VGA_RAM_SIZE - below(one_in(2) ? 16 : VGA_RAM_SIZE), 4);
    access_any(rig.mmio, rig_bar(&rig, SLOT, 2) + below(0x1000), 4);
    if (one_in(40)) {           /* making a picture costs a thousand accesses */
        assert_true(vga_draw(vga, &picture));
        assert_true(picture.width && picture.height && picture.width <= VGA_WIDTH_MAX && picture.height <= VGA_HEIGHT_MAX);
    }
    if (one_in(200)) {
        vga_picture_free(&picture);
        device_vga.reset(&vga->pci.device);
        rig_assign(&rig);
        rig_bus_master(&rig, SLOT, true);
    }
}

static void fuzz_vga(unsigned long rounds)
{
    struct vga *vga = (struct vga *)rig_add(&rig, &device_vga, SLOT, NULL, NULL);
    struct vga_picture picture = { 0 };
    repeat(rounds, vga_round, vga);
    device_vga.reset(&vga->pci.device);
    assert_true(vga_draw(vga, &picture));
    vga_picture_free(&picture);
    device_destroy(&vga->pci.device);
}

/* --- keyboard controller --- */

static void i8042_configure(struct device *device, void *opaque) { ((struct i8042 *)device)->plugged = opaque; }

static void i8042_round(void *device)
{
    struct i8042 *i8042 = device;
    switch (below(8)) {
    case 0: i8042_key(i8042, (enum key)below(KEY_COUNT), one_in(2)); break;
    case 1: i8042_move(i8042, (int)fuzz_number(&seed), (int)fuzz_number(&seed), (int)below(8) - 4, (uint8_t)below(256)); break;
    case 2: rig_access(rig.ports, 0x64, 1, true, 0xD4); break;
    case 3: rig_access(rig.ports, 0x64, 1, true, fuzz_random(&seed) & 0xFF); break;
    case 4: case 5: rig_access(rig.ports, 0x60, 1, true, one_in(2) ? 0xE6 + below(26) : fuzz_random(&seed) & 0xFF); break;
    default: access_any(rig.ports, 0x60 + 4 * below(2), 1); break;
    }
    if (one_in(1000))
        device_i8042.reset(&i8042->device);
}

static void fuzz_i8042(unsigned long rounds)
{
    for (unsigned plugged = 0; plugged < 2; plugged++) {
        struct error err;
        struct device *device = device_create(&device_i8042, "i8042", &rig.world, &rig.dma, i8042_configure, (void *)(uintptr_t)plugged, &err);
        repeat(rounds / 2, i8042_round, device);
        device_i8042.reset(device);
        rig_access(rig.ports, 0x64, 1, true, 0xAA);
        assert_int_equal(rig_access(rig.ports, 0x60, 1, false, 0), 0x55);
        device_destroy(device);
    }
}

/* --- fw_cfg --- */

static void fw_cfg_round(void *device)
{
    enum { SELECT = 0x510, DATA = 0x511, DMA_HIGH = 0x514, DMA_LOW = 0x518 };
    uint64_t at = some_address(0xFEE00000);
    struct { uint32_t control, length; uint64_t address; } block = { 0 };
    block.control = __builtin_bswap32((uint32_t)(one_in(3) ? fuzz_random(&seed) : (one_in(2) ? below(0x30) << 16 : 0) | below(32)));
    block.length = __builtin_bswap32((uint32_t)(one_in(3) ? fuzz_number(&seed) : below(5000)));
    block.address = __builtin_bswap64(some_address(at));
    if (at < RIG_RAM - sizeof(block))
        ram_write(rig.ram, at, &block, sizeof(block));
    switch (below(4)) {
    case 0: rig_access(rig.ports, SELECT, 2, true, one_in(4) ? fuzz_random(&seed) : below(0x30)); break;
    case 1: access_any(rig.ports, DATA + (one_in(8) ? below(12) : 0), 3); break;
    default:
        rig_access(rig.ports, DMA_HIGH, 4, true, __builtin_bswap32((uint32_t)(at >> 32)));
        rig_access(rig.ports, DMA_LOW, 4, true, __builtin_bswap32((uint32_t)at));
        break;
    }
}

static void fuzz_fw_cfg(unsigned long rounds)
{
    static const uint8_t contents[4096];
    struct error err;
    struct fw_cfg *fw_cfg = (struct fw_cfg *)device_create(&device_fw_cfg, "fw_cfg", &rig.world, &rig.dma, NULL, NULL, &err);
    for (unsigned i = 0; i < 8; i++) {
        char name[32];
        snprintf(name, sizeof(name), "etc/file-%u", i);
        assert_true(fw_cfg_add_file(fw_cfg, name, contents, i * 500 + (i == 0), NULL));
    }
    repeat(rounds, fw_cfg_round, fw_cfg);
    device_fw_cfg.reset(&fw_cfg->device);
    rig_access(rig.ports, 0x510, 2, true, FW_CFG_SIGNATURE);
    assert_int_equal(rig_access(rig.ports, 0x511, 1, false, 0), 'Q');
    device_destroy(&fw_cfg->device);
}

/* --- the flash chip: what it holds and what is in its file are the same --- */

enum { FLASH_BASE = 0x40000000, FLASH_SIZE = 33 * FLASH_BLOCK };

static void flash_configure(struct device *device, void *opaque)
{
    struct flash *flash = (struct flash *)device;
    flash->base = FLASH_BASE;
    flash->size = FLASH_SIZE;
    flash->fd = fileno(opaque);
}

static void flash_round(void *device)
{
    static const uint8_t commands[] = { 0xFF, 0x70, 0x50, 0x10, 0x40, 0x20, 0xD0, 0x90, 0x98, 0xE8, 0x60, 0xB0 };
    uint64_t at = FLASH_BASE + (one_in(8) ? FLASH_SIZE - 1 - below(8) : below(FLASH_SIZE));
    if (one_in(3))
        access_any(rig.mmio, at, 4);
    else
        rig_write(&rig, at, 1, one_in(6) ? below(0x100) : commands[below(ARRAY_SIZE(commands))]);
}

static void fuzz_flash(unsigned long rounds)
{
    static uint8_t kept[FLASH_SIZE];
    struct error err;
    FILE *file = tmpfile();
    struct flash *flash = (struct flash *)device_create(&device_flash, "flash", &rig.world, &rig.dma, flash_configure, file, &err);
    device_flash.resume(&flash->device);        /* the file follows the chip */
    repeat(rounds, flash_round, flash);
    assert_int_equal(pread(fileno(file), kept, sizeof(kept), 0), sizeof(kept));
    assert_memory_equal(kept, flash->data, sizeof(kept));
    device_flash.reset(&flash->device);
    assert_int_equal(rig_read(&rig, FLASH_BASE + FLASH_SIZE - 1, 1), kept[FLASH_SIZE - 1]);
    device_destroy(&flash->device);
    fclose(file);
}

/* --- watchdog --- */

static unsigned signalled;

static void count_signal(void *owner, enum system_request request, uint32_t code)
{
    signalled++;
}

static void watchdog_configure(struct device *device, void *opaque)
{
    ((struct watchdog *)device)->signal = (struct system_signal){ count_signal, NULL };
}

static void watchdog_unlocked(unsigned offset, uint32_t value)
{
    rig_write(&rig, bar + 0xC, 2, 0x80);
    rig_write(&rig, bar + 0xC, 2, 0x86);
    rig_write(&rig, bar + offset, 4, value);
}

static void watchdog_round(void *device)
{
    struct watchdog *watchdog = device;
    switch (below(8)) {
    case 0: access_any(rig.mmio, bar + below(16), 4); break;
    case 1: rig_config_write(&rig, SLOT, 0x60 + (unsigned)below(12), 1, (uint32_t)below(256)); break;
    case 2: rig_config_write(&rig, SLOT, (unsigned)below(256), 1u << below(3), (uint32_t)fuzz_random(&seed)); break;
    case 3: rig_config_write(&rig, SLOT, 0x68, 1, (uint32_t)below(one_in(8) ? 8 : 4) & ~1u); break;
    case 4: clock_advance(rig.clock, one_in(4) ? fuzz_number(&seed) >> 16 : below(3000000000)); break;
    default: watchdog_unlocked(4 * (unsigned)below(4), one_in(2) ? (uint32_t)fuzz_random(&seed) : (uint32_t)below(4096)); break;
    }
    if (one_in(50)) {
        device_watchdog.reset(&watchdog->pci.device);
        rig_assign(&rig);
        rig_bus_master(&rig, SLOT, true);
    }
}

static void fuzz_watchdog(unsigned long rounds)
{
    struct watchdog *watchdog = (struct watchdog *)rig_add(&rig, &device_watchdog, SLOT, watchdog_configure, NULL);
    bar = rig_bar(&rig, SLOT, 0);
    repeat(rounds, watchdog_round, watchdog);
    device_watchdog.reset(&watchdog->pci.device);
    rig_assign(&rig);
    rig_bus_master(&rig, SLOT, true);
    signalled = 0;
    rig_config_write(&rig, SLOT, 0x68, 1, 2);
    clock_advance(rig.clock, 5000ull * 1000000000);
    assert_int_equal(signalled, 1);
    device_destroy(&watchdog->pci.device);
}

/* --- pvpanic --- */

static void pvpanic_configure(struct device *device, void *opaque)
{
    ((struct pvpanic *)device)->signal = (struct system_signal){ count_signal, NULL };
}

static void pvpanic_round(void *device) { access_any(rig.ports, 0x504 + below(3), 3); }

static void fuzz_pvpanic(unsigned long rounds)
{
    struct error err;
    struct device *device = device_create(&device_pvpanic, "pvpanic", &rig.world, &rig.dma, pvpanic_configure, NULL, &err);
    repeat(rounds, pvpanic_round, device);
    signalled = 0;
    rig_access(rig.ports, 0x505, 1, true, 1);
    assert_int_equal(signalled, 1);
    device_destroy(device);
}

/* --- xHCI --- */

/* An image of 1 MiB, whose requests are done when the clock goes on; some fail. */
static uint8_t image[1 << 20];
static struct block_request *waiting;

uint64_t block_size(const struct block *block) { return sizeof(image); }
bool block_read_only(const struct block *block) { return one_in(8); }

void block_submit(struct block *block, struct block_request *request)
{
    if (waiting || request->offset > sizeof(image) || request->size > sizeof(image) - request->offset)
        abort();
    waiting = request;
}

void block_drain(struct block *block)
{
    while (waiting) {
        struct block_request *request = waiting;
        waiting = NULL;
        if (request->op == BLOCK_READ)
            memcpy(request->iov->iov_base, image + request->offset, request->size);
        else if (request->op == BLOCK_WRITE)
            memcpy(image + request->offset, request->iov->iov_base, request->size);
        request->done(request, one_in(10) ? 5 : 0);
    }
}

enum { X_COMMANDS = 0x10000, X_EVENTS = 0x11000, X_TABLE = 0x12000, X_DCBAA = 0x13000, X_INPUT = 0x14000, X_OUTPUT = 0x15000, X_RINGS = 0x18000,
       X_USBCMD = 0x40, X_CRCR = 0x58, X_DCBAAP = 0x70, X_CONFIG = 0x78, X_PORTSC = 0x440, X_ERSTSZ = 0x1028, X_ERSTBA = 0x1030, X_ERDP = 0x1038,
       X_DOORBELL = 0x2000 };
static unsigned x_command;

static void xhci_write(unsigned offset, uint32_t value) { rig_write(&rig, bar + offset, 4, value); }

/* A context like one that a driver makes, perhaps with mistakes. */
static void xhci_input(unsigned port, bool wrong)
{
    uint32_t context[8 * 6] = { wrong && one_in(4) ? (uint32_t)fuzz_random(&seed) : 0, wrong && one_in(4) ? (uint32_t)fuzz_random(&seed) : 0x1B };
    context[9] = (wrong && one_in(10) ? (uint32_t)fuzz_random(&seed) : port) << 16;
    for (unsigned i = 2; i < 6; i++) {
        context[8 * i + 1] = (i == 2 ? 4 : port < 3 ? 7 : i == 4 ? 6 : 2) << 3;
        context[8 * i + 2] = (uint32_t)(wrong && one_in(10) ? some_address(bar) : X_RINGS + 0x400 * below(8)) | 1;
    }
    ram_write(rig.ram, X_INPUT, context, sizeof(context));
}

/* A block of the command ring; at the ring's end it begins anew. */
static void xhci_give(uint64_t parameter, uint32_t control)
{
    const uint64_t word[2] = { parameter, (uint64_t)(control | 1) << 32 }, nothing[2] = { 0 };
    if (x_command == 200) {
        xhci_write(X_USBCMD, 4);
        xhci_write(X_CRCR, X_COMMANDS | 1);
        xhci_write(X_USBCMD, 5);
        x_command = 0;
    }
    ram_write(rig.ram, X_COMMANDS + 16 * x_command++, word, sizeof(word));
    ram_write(rig.ram, X_COMMANDS + 16 * x_command, nothing, sizeof(nothing));
    xhci_write(X_DOORBELL, 0);
}

/* A disk's command with one transfer of data, as a driver has it, and the rings rung. */
static void xhci_disk_command(void)
{
    static const uint8_t commands[] = { 0x00, 0x03, 0x12, 0x1A, 0x25, 0x28, 0x28, 0x2A, 0x2A, 0x35, 0x88, 0x8A, 0x9E };
    uint32_t size = (uint32_t)(one_in(4) ? fuzz_number(&seed) : 512 * below(300)), in = (uint32_t)below(2) << 7;
    uint8_t cbw[31] = { 'U', 'S', 'B', 'C', 1, 2, 3, 4, (uint8_t)size, (uint8_t)(size >> 8), (uint8_t)(size >> 16), 0, (uint8_t)in, 0, 10 };
    cbw[15] = commands[below(sizeof(commands))];
    for (unsigned i = 16; i < 31; i++)
        cbw[i] = one_in(3) ? (uint8_t)below(one_in(3) ? 256 : 8) : 0;
    if (!one_in(4)) {           /* within the image */
        memset(cbw + 17, 0, 8);
        cbw[19] = (uint8_t)below(8);
        cbw[20] = (uint8_t)below(256);
        cbw[22] = (uint8_t)below(2);
        cbw[23] = (uint8_t)(size / 512);
        cbw[12] = cbw[15] == 0x2A || cbw[15] == 0x8A ? 0 : 0x80;
        in = cbw[12];
    }
    if (one_in(20))
        cbw[below(31)] = (uint8_t)fuzz_random(&seed);
    ram_write(rig.ram, 0x30000, cbw, sizeof(cbw));
    static const unsigned rings[2] = { X_RINGS + 0x2000, X_RINGS + 0x2400 };
    uint64_t data[2] = { 0x40000, (1ull << 10 | 1 | below(16) << 1) << 32 | below(70000) };
    uint64_t end[2] = { 0x30100, (1ull << 10 | 1 | 1 << 5) << 32 | 13 }, start[2] = { 0x30000, (1ull << 10 | 1 | 1 << 5) << 32 | (one_in(20) ? below(64) : 31) };
    for (unsigned ring = 0; ring < 2; ring++) {
        unsigned at = rings[ring];
        if (ring == 1) {
            ram_write(rig.ram, at, start, sizeof(start));
            at += 16;
        }
        if ((ring == 0) == (in != 0)) {
            ram_write(rig.ram, at, data, sizeof(data));
            at += 16;
        }
        if (ring == 0)
            ram_write(rig.ram, at, end, sizeof(end));
    }
    for (unsigned dci = 3; dci <= 4; dci++) {
        xhci_give(0, 3u << 24 | 15 << 10 | dci << 16);
        xhci_give(0, 3u << 24 | 14 << 10 | dci << 16);
        xhci_give(rings[dci - 3] | 1, 3u << 24 | 16 << 10 | dci << 16);
        xhci_write(X_DOORBELL + 12, dci);
    }
    for (unsigned i = 0; i < 6; i++) {
        block_drain(NULL);
        clock_advance(rig.clock, 1000);
    }
}

static void xhci_start(struct xhci *xhci)
{
    device_xhci.reset(&xhci->pci.device);
    rig_assign(&rig);
    rig_bus_master(&rig, SLOT, true);
    bar = rig_bar(&rig, SLOT, 0);
    const struct { uint64_t base; uint32_t size, reserved; } row = { X_EVENTS, (uint32_t)(one_in(8) ? fuzz_random(&seed) : 64), 0 };
    ram_write(rig.ram, X_TABLE, &row, sizeof(row));
    for (unsigned i = 0; i <= XHCI_SLOTS; i++) {
        uint64_t output = one_in(20) ? some_address(bar) : X_OUTPUT + 0x400 * i;
        ram_write(rig.ram, X_DCBAA + 8 * i, &output, sizeof(output));
    }
    x_command = 0;
    xhci_write(X_CONFIG, 8);
    xhci_write(X_DCBAAP, X_DCBAA);
    xhci_write(X_CRCR, X_COMMANDS | 1);
    xhci_write(X_ERSTSZ, 1);
    xhci_write(X_ERDP, X_EVENTS);
    xhci_write(X_ERSTBA, X_TABLE);
    xhci_write(X_ERSTBA + 4, 0);
    xhci_write(0x1020, 2);
    xhci_write(X_USBCMD, 5);
    xhci_write(X_PORTSC, 0x210);
    xhci_write(X_PORTSC + 16, 0x210);
    xhci_write(X_PORTSC + 32, 0x210);
    for (unsigned slot = 1; slot <= 3; slot++) {
        xhci_input(slot, false);
        xhci_give(0, 9 << 10);
        xhci_give(X_INPUT, slot << 24 | 11 << 10);
        xhci_give(X_INPUT, slot << 24 | 12 << 10);
    }
}

static void xhci_command_block(void)
{
    static const uint8_t types[] = { 11, 12, 13, 14, 15, 16, 16, 16, 23 };
    uint32_t type = one_in(12) ? (uint32_t)below(64) : types[below(sizeof(types))], slot = (uint32_t)(one_in(10) ? below(256) : 1 + below(2));
    uint64_t parameter = type == 16 ? (X_RINGS + 0x400 * below(8)) | 1 : X_INPUT;
    xhci_give(one_in(12) ? some_address(bar) : parameter, slot << 24 | (uint32_t)(one_in(10) ? below(32) : 1 + 2 * below(2)) << 16 | type << 10);
}

static void xhci_ring_blocks(void)
{
    static const uint64_t setups[] = { 0x0012000001000680, 0x0022000002000680, 0x00FF000022000681, 0x0000000000010900, 0x0001000002000921, 0x00FF000003010680 };
    for (uint64_t i = 1 + below(6); i-- > 0;) {
        uint32_t type = (uint32_t)(one_in(10) ? below(64) : 1 + below(8));
        uint64_t word[2] = { type == 2 && !one_in(6) ? setups[below(ARRAY_SIZE(setups))] : some_address(bar), below(one_in(8) ? 0x20000 : 64) };
        word[1] |= (uint64_t)(type << 10 | (one_in(10) ? 0 : 1) | below(64) << 1 | below(2) << 16) << 32;
        ram_write(rig.ram, X_RINGS + 16 * below(512), word, sizeof(word));
    }
}

static void xhci_round(void *device)
{
    struct xhci *xhci = device;
    xhci_input((unsigned)(1 + below(2)), true);
    xhci_ring_blocks();
    if (one_in(3))
        xhci_command_block();
    if (one_in(4))
        xhci_disk_command();
    xhci_write(X_DOORBELL + 4 * (unsigned)(one_in(10) ? below(12) : 1 + below(2)), (uint32_t)(one_in(10) ? below(256) : 1 + 2 * below(2)));
    xhci_key(xhci, (enum key)below(KEY_COUNT), one_in(2));
    xhci_point(xhci, (uint16_t)fuzz_random(&seed), (uint16_t)fuzz_random(&seed), (int)below(3) - 1, (uint8_t)below(256));
    if (!one_in(4))
        xhci_write(X_ERDP, (uint32_t)(X_EVENTS + 16 * below(64)) | 8);
    if (one_in(6))
        access_any(rig.mmio, bar + below(one_in(2) ? 0x80 : 0x2100), 4);
    clock_advance(rig.clock, 1000);
    bool halted = rig_read(&rig, bar + 0x44, 4) & 1;
    if (one_in(halted ? 2 : 60))
        xhci_start(xhci);
}

static void xhci_configure(struct device *device, void *opaque)
{
    struct xhci *xhci = (struct xhci *)device;
    xhci->inputs = true;
    xhci->storage[0].block = (struct block *)image;             /* nobody looks into it */
}

static void fuzz_xhci(unsigned long rounds)
{
    struct xhci *xhci = (struct xhci *)rig_add(&rig, &device_xhci, SLOT, xhci_configure, NULL);
    xhci_start(xhci);
    repeat(rounds, xhci_round, xhci);
    uint64_t word[2], row[2] = { X_EVENTS, 64 };
    xhci_start(xhci);
    ram_write(rig.ram, X_TABLE, row, sizeof(row));
    xhci_write(X_ERDP, X_EVENTS + 16 * 32);
    xhci_write(X_ERSTBA + 4, 0);
    xhci_give(0, 23 << 10);
    ram_read(rig.ram, X_EVENTS, word, sizeof(word));
    assert_int_equal(word[1] >> 24 & 0xFF, 1);
    device_destroy(&xhci->pci.device);
}

static const struct {
    const char *name;
    void (*run)(unsigned long rounds);
    unsigned long rounds;
} targets[] = {
    { "e1000", fuzz_e1000, 30000 },
    { "vga", fuzz_vga, 100000 },
    { "i8042", fuzz_i8042, 1000000 },
    { "fw_cfg", fuzz_fw_cfg, 200000 },
    { "flash", fuzz_flash, 300000 },
    { "watchdog", fuzz_watchdog, 300000 },
    { "pvpanic", fuzz_pvpanic, 100000 },
    { "xhci", fuzz_xhci, 100000 },
};

int main(int argc, char **argv)
{
    seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 0x5A7A5A7A;
    for (unsigned i = 0; i < ARRAY_SIZE(targets); i++) {
        if (argc < 2 || strcmp(argv[1], targets[i].name))
            continue;
        unsigned long rounds = fuzz_rounds(argc - 1, argv + 1, targets[i].rounds);
        rig_create(&rig);
        targets[i].run(rounds);
        rig_destroy(&rig);
        printf("%s: %lu rounds\n", targets[i].name, rounds);
        return 0;
    }
    fprintf(stderr, "usage: fuzz-chips NAME [rounds [seed]]\n");
    return 1;
}
