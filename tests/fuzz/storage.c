/*
 * Hostile drivers of disk controllers: commands of half-truths (lists, tables and data that overlap, point at registers, at the
 * device itself, at nothing; any opcode, any packet; registers written in between). The device must stay in bounds
 * (sanitizers), finish each access in bounded time, and work again after a reset.
 *
 * Usage: fuzz-storage [commands [seed]]
 */
#include <time.h>

#include "dev/ahci_driver.h"
#include "dev/nvme_driver.h"
#include "mutate.h"

enum { COMMANDS = 60000, SLOW_MS = 2000 };

static uint64_t below(uint64_t *seed, uint64_t limit) { return fuzz_below(seed, limit); }
static bool one_in(uint64_t *seed, uint64_t n) { return below(seed, n) == 0; }

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Mostly memory; sometimes the lists themselves, the device, configuration space, or nowhere. */
static uint64_t some_address(uint64_t *seed, uint64_t bar)
{
    switch (below(seed, 12)) {
    case 0: return bar + below(seed, 0x1000);
    case 1: return AHCI_LIST + below(seed, 0x12000);
    case 2: return RIG_ECAM + below(seed, 0x200000);
    case 3: return RIG_RAM - below(seed, 0x2000);
    case 4: return fuzz_random(seed);
    default: return AHCI_BUFFER + below(seed, 0x10000);
    }
}

/* --- AHCI --- */

static const uint8_t opcodes[] = { 0x08, 0x20, 0x24, 0x25, 0x27, 0x29, 0x2F, 0x30, 0x34, 0x35, 0x39, 0x3D, 0x40, 0x42, 0x60, 0x61, 0x90,
                                   0x91, 0xA0, 0xA0, 0xA0, 0xA1, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0xE0, 0xE5, 0xE7, 0xEA, 0xEC, 0xEF, 0xF8 };
static const uint8_t packets[] = { 0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2B, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA8, 0xBD };

static void put_command(struct ahci_rig *r, uint64_t *seed, unsigned port, unsigned slot)
{
    uint8_t packet[12];
    for (unsigned i = 0; i < sizeof(packet); i++)
        packet[i] = (uint8_t)(one_in(seed, 3) ? fuzz_random(seed) : 0);
    packet[0] = one_in(seed, 20) ? (uint8_t)fuzz_random(seed) : packets[below(seed, sizeof(packets))];
    struct ahci_shot shot = { .command = one_in(seed, 20) ? (uint8_t)fuzz_random(seed) : opcodes[below(seed, sizeof(opcodes))],
                              .lba = one_in(seed, 8) ? fuzz_random(seed) : below(seed, IMAGE_SECTORS + 8), .packet = packet,
                              .count = (uint16_t)(one_in(seed, 8) ? fuzz_random(seed) : below(seed, 20)),
                              .features = (uint16_t)(one_in(seed, 8) ? fuzz_random(seed) : below(seed, 20)),
                              .size = (uint32_t)(one_in(seed, 8) ? fuzz_random(seed) : below(seed, 20) * 512),
                              .buffer = some_address(seed, r->bar) };
    bool right = one_in(seed, 2);       /* this one is as it should be, so that the depths are reached too */
    if (right) {
        shot.lba = below(seed, IMAGE_SECTORS - 20);
        shot.count = shot.features = (uint16_t)(1 + below(seed, 20));
        shot.size = shot.count * 512u;
        shot.buffer = AHCI_BUFFER + 2 * below(seed, 0x8000);
    }
    if ((shot.command & 0xFE) == 0x60)
        shot.count = (uint16_t)((one_in(seed, 10) ? below(seed, 32) : slot) << 3);
    ahci_put(r, port, slot, &shot);
    if (right)
        return;
    if (one_in(seed, 4)) {      /* more table entries than one, some of them leftovers */
        uint16_t entries = (uint16_t)(one_in(seed, 10) ? fuzz_random(seed) : below(seed, 40));
        uint64_t entry[2] = { some_address(seed, r->bar), fuzz_random(seed) };
        ram_write(r->rig.ram, AHCI_LIST + port * 0x400 + slot * 32 + 2, &entries, 2);
        ram_write(r->rig.ram, AHCI_TABLES + slot * AHCI_TABLE_SIZE + 0x80 + 16 * below(seed, 40), entry, sizeof(entry));
    }
    if (one_in(seed, 10)) {
        uint64_t word = one_in(seed, 2) ? some_address(seed, r->bar) : fuzz_random(seed);
        ram_write(r->rig.ram, AHCI_LIST + port * 0x400 + slot * 32 + 4 * below(seed, 4), &word, 8);
    }
}

static void poke(struct ahci_rig *r, uint64_t *seed)
{
    uint64_t value = one_in(seed, 2) ? fuzz_random(seed) : one_in(seed, 2) ? 0x11 : some_address(seed, r->bar);
    switch (below(seed, 8)) {
    case 0:
        if (one_in(seed, 4))
            rig_config_write(&r->rig, AHCI_DEVFN, (unsigned)below(seed, 64) * 4, 4, (uint32_t)value);
        break;
    case 1: rig_read(&r->rig, r->bar + below(seed, 0x1000), 1u << below(seed, 4)); break;
    case 2: rig_write(&r->rig, r->bar + 4 * below(seed, 12), 4, value); break;
    default: port_write(r, (unsigned)below(seed, 2), (unsigned)below(seed, 16) * 4, (uint32_t)value); break;
    }
}

/* What a driver does that gives up: everything from the beginning. */
static void start_again(struct ahci_rig *r)
{
    device_ahci.reset(&r->ahci->pci.device);
    rig_assign(&r->rig);
    rig_bus_master(&r->rig, AHCI_DEVFN, true);
    r->bar = rig_bar(&r->rig, AHCI_DEVFN, 5);
    ahci_start(r);
}

static void fuzz_ahci(unsigned commands, uint64_t *seed)
{
    struct ahci_rig r;
    ahci_rig_create(&r);
    for (unsigned i = 0; i < commands; i++) {
        uint64_t start = now_ms();
        unsigned port = (unsigned)below(seed, 2), slots = (unsigned)below(seed, 8) + 1;
        uint32_t issued = 0;
        for (unsigned n = 0; n < slots; n++) {
            unsigned slot = (unsigned)below(seed, AHCI_SLOTS);
            put_command(&r, seed, port, slot);
            issued |= 1u << slot;
        }
        if (one_in(seed, 3))
            port_write(&r, port, P_SACT, issued);
        port_write(&r, port, P_CI, issued);
        if (one_in(seed, 12))
            poke(&r, seed);
        loop_run_once(r.rig.loop, 0);
        if (port_read(&r, port, P_TFD) & 1)
            ahci_recover(&r, port);
        if (one_in(seed, 20))
            start_again(&r);
        if (one_in(seed, 20))
            ahci_change_medium(r.ahci, 1, one_in(seed, 3) ? NULL : r.cd);
        if (now_ms() - start > SLOW_MS)
            fail_msg("command %u took %lu ms", i, (unsigned long)(now_ms() - start));
    }
    start_again(&r);
    assert_true(ahci_do(&r, 0, &(struct ahci_shot){ .command = 0xEC, .size = 512 }));
    ahci_rig_destroy(&r);
}

/* --- NVMe --- */

static const uint8_t admin_opcodes[] = { 0x00, 0x01, 0x01, 0x02, 0x04, 0x05, 0x05, 0x06, 0x06, 0x08, 0x09, 0x0A, 0x0C };
static const uint8_t data_opcodes[] = { 0x00, 0x01, 0x01, 0x02, 0x02, 0x02, 0x08, 0x09 };

static uint64_t some_page(uint64_t *seed, uint64_t bar)
{
    return one_in(seed, 6) ? some_address(seed, bar) : NVME_BUFFER + 0x1000 * below(seed, 64) + (one_in(seed, 4) ? 4 * below(seed, 1024) : 0);
}

static uint32_t some_number(uint64_t *seed, uint32_t usual)
{
    return (uint32_t)(one_in(seed, 10) ? fuzz_random(seed) : below(seed, usual));
}

static struct nvme_command some_command(struct nvme_rig *r, uint64_t *seed, unsigned queue)
{
    const uint8_t *opcode = queue ? data_opcodes : admin_opcodes;
    unsigned count = queue ? sizeof(data_opcodes) : sizeof(admin_opcodes);
    struct nvme_command command = {
        .opcode = one_in(seed, 20) ? (uint8_t)fuzz_random(seed) : opcode[below(seed, count)],
        .flags = one_in(seed, 20) ? (uint8_t)fuzz_random(seed) : 0,
        .namespace_id = some_number(seed, 4),
        .prp1 = some_page(seed, r->bar), .prp2 = some_page(seed, r->bar),
        .dword10 = some_number(seed, queue ? NVME_IMAGE_SECTORS : 12),
        .dword11 = queue ? some_number(seed, 8) >> 2 : some_number(seed, 4) << 16 | 3,
        .dword12 = queue ? some_number(seed, 300) : 0, .dword13 = one_in(seed, 20) ? (uint32_t)fuzz_random(seed) : 0,
    };
    if (!queue && (command.opcode == 0x01 || command.opcode == 0x05)) {
        unsigned n = (unsigned)below(seed, NVME_QUEUE);
        command.dword10 = (one_in(seed, 8) ? some_number(seed, 2000) : NVME_QUEUE - 1) << 16 | n;
        if (!one_in(seed, 4))
            command.prp1 = command.opcode == 0x01 ? nvme_sq(n) : nvme_cq(n);
    } else if (!queue && command.opcode == 0x02) {
        command.dword10 |= some_number(seed, 1024) << 16;
    } else if (queue && command.opcode == 0x09) {
        command.dword10 = some_number(seed, 256);
        command.dword11 = some_number(seed, 8);
    }
    return command;
}

/* A list of pages, or of ranges, where commands look for one. */
static void scatter(struct nvme_rig *r, uint64_t *seed)
{
    uint64_t at = NVME_BUFFER + 0x1000 * below(seed, 64) + (one_in(seed, 2) ? 0xFC0 : 0);
    for (unsigned i = 0; i < 12; i++) {
        uint64_t word = one_in(seed, 2) ? NVME_BUFFER + 0x1000 * below(seed, 64) : some_number(seed, NVME_IMAGE_SECTORS);
        ram_write(r->rig.ram, at + 8 * i, &word, 8);
    }
}

static void poke_nvme(struct nvme_rig *r, uint64_t *seed)
{
    uint32_t value = (uint32_t)(one_in(seed, 2) ? fuzz_random(seed) : below(seed, NVME_QUEUE));
    switch (below(seed, 8)) {
    case 0:
        if (one_in(seed, 8))
            rig_config_write(&r->rig, NVME_DEVFN, (unsigned)below(seed, 64) * 4, 4, value);
        break;
    case 1: rig_read(&r->rig, r->bar + below(seed, 0x4000), 1u << below(seed, 4)); break;
    case 2:
        if (one_in(seed, 8))
            nvme_set(r, (unsigned)below(seed, 16) * 4, value);
        break;
    case 3: nvme_set(r, R_DOORBELL + 4 * (unsigned)below(seed, 40), value); break;
    case 4:
        if (one_in(seed, 8))
            nvme_set(r, R_CC, CC_ENABLE | (one_in(seed, 2) ? CC_SHUTDOWN : 0));
        break;
    default: scatter(r, seed); break;
    }
}

static void start_nvme_again(struct nvme_rig *r)
{
    device_nvme.reset(&r->nvme->pci.device);
    rig_assign(&r->rig);
    rig_bus_master(&r->rig, NVME_DEVFN, true);
    r->bar = rig_bar(&r->rig, NVME_DEVFN, 0);
    nvme_start(r);
    for (unsigned n = 1; n < 4; n++)
        nvme_make_queues(r, n, 0);
}

static void read_answers(struct nvme_rig *r, unsigned queue)
{
    struct nvme_answer answer;
    for (unsigned i = 0; i < NVME_QUEUE && nvme_next(r, queue, &answer); i++)
        ;
}

static void fuzz_nvme(unsigned commands, uint64_t *seed)
{
    struct nvme_rig r = { .next_id = 0 };
    unsigned done = 0;
    nvme_rig_create(&r);
    for (unsigned i = 0; i < commands; i++) {
        uint64_t start = now_ms();
        unsigned queue = (unsigned)below(seed, 4), count = (unsigned)below(seed, NVME_QUEUE);
        if (i % 64 == 0)
            start_nvme_again(&r);
        for (unsigned n = 0; n < count; n++)
            nvme_put(&r, queue, some_command(&r, seed, queue));
        nvme_ring(&r, queue);
        done += count;
        if (one_in(seed, 3))
            poke_nvme(&r, seed);
        loop_run_once(r.rig.loop, 0);
        if (!one_in(seed, 4))
            read_answers(&r, queue);
        if (now_ms() - start > SLOW_MS)
            fail_msg("NVMe round %u took %lu ms", i, (unsigned long)(now_ms() - start));
    }
    start_nvme_again(&r);
    assert_int_equal(nvme_do(&r, 1, (struct nvme_command){ .opcode = 0x02, .namespace_id = 1, .prp1 = NVME_BUFFER }), 0);
    nvme_rig_destroy(&r);
    printf("nvme: %u commands\n", done);
}

int main(int argc, char **argv)
{
    unsigned commands = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : COMMANDS;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x5A7A5A7A;
    fuzz_ahci(commands, &seed);
    printf("ahci: %u rounds of commands\n", commands);
    fuzz_nvme(commands, &seed);
    return 0;
}
