/*
 * virtio: every ring format carries a disk's traffic through many laps; interrupts come when they were asked for; rings that
 * break the rules stop the device until it is reset.
 */
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_pci.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/block.h"
#include "backend/chardev.h"
#include "backend/net.h"
#include "dev/virtio_driver.h"

enum { IMAGE_SIZE = 1024 * 1024, DATA = 0x200000 };

#define F_PACKED BIT(VIRTIO_F_RING_PACKED)
#define F_EVENT BIT(VIRTIO_RING_F_EVENT_IDX)
#define F_INDIRECT BIT(VIRTIO_RING_F_INDIRECT_DESC)

struct disk {
    struct rig rig;
    struct driver d;
    struct block *block;
    char path[64];
};

static void configure_blk(struct device *device, void *opaque)
{
    struct virtio_blk *blk = (struct virtio_blk *)device;
    blk->block = ((struct disk *)opaque)->block;
    blk->serial = "SN-0042";
}

static void disk_create(struct disk *disk)
{
    struct error err = { "" };
    rig_create(&disk->rig);
    strcpy(disk->path, "/tmp/doppel-virtio-XXXXXX");
    int fd = mkstemp(disk->path);
    assert_int_equal(ftruncate(fd, IMAGE_SIZE), 0);
    close(fd);
    struct block_options options = { .path = disk->path };
    disk->block = block_open(&options, disk->rig.loop, NULL, &disk->rig.log, &err);
    if (!disk->block)
        fail_msg("%s", err.text);
    driver_create(&disk->d, &disk->rig, &device_virtio_blk, configure_blk, disk);
}

static void disk_destroy(struct disk *disk)
{
    device_destroy(&disk->d.function->device);
    block_close(disk->block);
    unlink(disk->path);
    rig_destroy(&disk->rig);
}

static int get_wait(struct driver *d, unsigned index, uint32_t *written)
{
    for (int i = 0; i < 2000; i++) {
        int id = driver_get(d, index, written);
        if (id >= 0)
            return id;
        loop_run_once(d->rig->loop, 5);
    }
    fail_msg("no buffer came back");
    return -1;
}

/* One request whose data lie in pieces; header and status at fixed places of the tag's. */
static int add_request(struct driver *d, unsigned tag, uint32_t type, uint64_t sector, uint64_t data, uint32_t size,
                       unsigned pieces, bool indirect)
{
    uint64_t header = DATA - 0x10000 + tag * 32;
    struct driver_segment s[20];
    unsigned n = 0;
    poke(d, header, 4, type);
    poke(d, header + 4, 4, 0);
    poke(d, header + 8, 8, sector);
    poke(d, header + 16, 1, 0xEE);
    s[n++] = (struct driver_segment){ header, 16, false };
    for (unsigned i = 0; i < pieces; i++)
        s[n++] = (struct driver_segment){ data + size / pieces * i, size / pieces, type == 0 || type == 8 };
    s[n++] = (struct driver_segment){ header + 16, 1, true };
    return driver_add(d, 0, s, n, indirect);
}

static uint8_t request_status(struct driver *d, unsigned tag) { return (uint8_t)peek(d, DATA - 0x10000 + tag * 32 + 16, 1); }

/* Random reads and writes against a model of the disk's content. */
static void check_traffic(uint64_t features, uint16_t queue_size)
{
    struct disk disk;
    uint8_t *model = calloc(1, IMAGE_SIZE), buffer[4096];
    unsigned seed = 7, finished = 0;
    disk_create(&disk);
    driver_start(&disk.d, features | BIT(9), queue_size);
    int tag_of[256];
    while (finished < 1500) {
        unsigned batch = 1 + (unsigned)rand_r(&seed) % 6, in_flight = 0;
        for (unsigned tag = 0; tag < batch; tag++) {
            bool write = rand_r(&seed) & 1, indirect = driver_has(&disk.d, VIRTIO_RING_F_INDIRECT_DESC) && rand_r(&seed) & 1;
            unsigned pieces = 1u << rand_r(&seed) % 3;
            uint64_t sector = tag * 300 + (unsigned)rand_r(&seed) % 290, data = DATA + tag * 4096;
            uint32_t size = 512 * (1 + (uint32_t)rand_r(&seed) % 8);
            for (unsigned i = 0; i < size; i++)
                buffer[i] = (uint8_t)rand_r(&seed);
            if (write)
                ram_write(disk.rig.ram, data, buffer, size);
            int id = add_request(&disk.d, tag, write, sector, data, size, pieces, indirect);
            if (id < 0)
                break;
            tag_of[id] = (int)tag;
            if (write)
                memcpy(model + sector * 512, buffer, size);
            poke(&disk.d, DATA - 0x10000 + tag * 32 + 24, 4, size | (uint32_t)write << 31);
            in_flight++;
        }
        driver_kick(&disk.d, 0);
        for (; in_flight; in_flight--, finished++) {
            uint32_t written;
            int tag = tag_of[get_wait(&disk.d, 0, &written)];
            uint64_t header = DATA - 0x10000 + (unsigned)tag * 32;
            uint32_t size = (uint32_t)peek(&disk.d, header + 24, 4);
            assert_int_equal(request_status(&disk.d, (unsigned)tag), 0);
            assert_int_equal(written, size >> 31 ? 1 : (size & 0xFFFF) + 1);
            ram_read(disk.rig.ram, DATA + (unsigned)tag * 4096, buffer, size & 0xFFFF);
            assert_memory_equal(buffer, model + peek(&disk.d, header + 8, 8) * 512, size & 0xFFFF);
        }
    }
    assert_int_equal(driver_status(&disk.d), 15);
    disk_destroy(&disk);
    free(model);
}

static void split_ring(void **state) { check_traffic(0, 16); }
static void split_ring_with_events(void **state) { check_traffic(F_EVENT, 64); }
static void split_ring_indirect(void **state) { check_traffic(F_INDIRECT | F_EVENT, 8); }
static void packed_ring(void **state) { check_traffic(F_PACKED, 17); }
static void packed_ring_with_events(void **state) { check_traffic(F_PACKED | F_EVENT, 64); }
static void packed_ring_indirect(void **state) { check_traffic(F_PACKED | F_INDIRECT | F_EVENT, 7); }

static void check_interrupts(uint64_t features)
{
    struct disk disk;
    uint32_t written;
    disk_create(&disk);
    driver_use_msix(&disk.d, 2);
    driver_start(&disk.d, features, 8);
    for (unsigned i = 0; i < 40; i++) {         /* several laps */
        unsigned before = disk.rig.msi_count;
        bool ask = i % 3 != 0;
        if (ask)
            driver_ask_interrupt(&disk.d, 0);
        else if (driver_has(&disk.d, VIRTIO_F_RING_PACKED))
            poke(&disk.d, disk.d.queue[0].avail + 2, 2, 1);
        else if (!driver_has(&disk.d, VIRTIO_RING_F_EVENT_IDX))
            poke(&disk.d, disk.d.queue[0].avail, 2, 1);
        else
            poke(&disk.d, disk.d.queue[0].avail + 4 + 16, 2, (uint16_t)(disk.d.queue[0].used_next - 5));
        add_request(&disk.d, 0, 0, 0, DATA, 512, 1, false);
        driver_kick(&disk.d, 0);
        get_wait(&disk.d, 0, &written);
        rig_spin(&disk.rig, 2);
        assert_int_equal(disk.rig.msi_count - before, ask);
        if (ask)
            assert_int_equal(disk.rig.msi[before % RIG_MSI_LOG].data, 0x41);
    }
    disk_destroy(&disk);
}

static void interrupts_come_when_asked_for(void **state)
{
    check_interrupts(0);
    check_interrupts(F_EVENT);
    check_interrupts(F_PACKED);
    check_interrupts(F_PACKED | F_EVENT);
}

static void intx_and_the_isr_register(void **state)
{
    struct disk disk;
    uint32_t written;
    disk_create(&disk);
    driver_start(&disk.d, 0, 8);
    add_request(&disk.d, 0, 0, 0, DATA, 512, 1, false);
    driver_notify(&disk.d, 0);
    get_wait(&disk.d, 0, &written);
    assert_true(disk.rig.line[4]);
    assert_int_equal(common_read(&disk.d, 0x1000, 1), 1);
    assert_false(disk.rig.line[4]);
    assert_int_equal(common_read(&disk.d, 0x1000, 1), 0);
    disk_destroy(&disk);
}

static uint8_t run_one(struct driver *d, uint32_t type, uint64_t sector, uint64_t data, uint32_t size)
{
    uint32_t written;
    assert_true(add_request(d, 0, type, sector, data, size, size ? 1 : 0, false) >= 0);
    driver_kick(d, 0);
    get_wait(d, 0, &written);
    return request_status(d, 0);
}

/* Now and then a notification waits for more requests, until somebody has nothing else to do. */
static void requests_wait_for_each_other(void **state)
{
    struct disk disk;
    uint32_t written;
    unsigned i;
    disk_create(&disk);
    driver_start(&disk.d, 0, 8);
    for (i = 0; i < 200; i++) {
        add_request(&disk.d, 0, 0, 0, DATA, 512, 1, false);
        assert_true(driver_kick(&disk.d, 0));
        if (peek(&disk.d, disk.d.queue[0].used, 2) & VRING_USED_F_NO_NOTIFY)
            break;
        get_wait(&disk.d, 0, &written);
    }
    assert_in_range(i, 1, 199);
    add_request(&disk.d, 1, 0, 8, DATA + 4096, 512, 1, false);
    assert_false(driver_kick(&disk.d, 0));
    assert_int_equal(driver_get(&disk.d, 0, &written), -1);
    loop_run_lazy(disk.rig.loop);
    get_wait(&disk.d, 0, &written);
    get_wait(&disk.d, 0, &written);
    assert_int_equal(request_status(&disk.d, 0) | request_status(&disk.d, 1), 0);
    assert_int_equal(peek(&disk.d, disk.d.queue[0].used, 2), 0);
    disk_destroy(&disk);
}

static void disk_commands(void **state)
{
    struct disk disk;
    char id[20];
    disk_create(&disk);
    driver_start(&disk.d, ~F_PACKED, 16);
    assert_int_equal(rig_read(&disk.rig, disk.d.bar + 0x2000, 4), IMAGE_SIZE / 512);
    assert_int_equal(run_one(&disk.d, 8, 0, DATA, 20), 0);
    ram_read(disk.rig.ram, DATA, id, 20);
    assert_string_equal(id, "SN-0042");
    assert_int_equal(run_one(&disk.d, 4, 0, 0, 0), 0);                          /* flush */
    assert_int_equal(run_one(&disk.d, 99, 0, 0, 0), 2);                         /* no such command */
    assert_int_equal(run_one(&disk.d, 0, IMAGE_SIZE / 512, DATA, 512), 1);      /* beyond the end */
    assert_int_equal(run_one(&disk.d, 0, UINT64_MAX, DATA, 512), 1);
    assert_int_equal(run_one(&disk.d, 0, 0, DATA, 100), 1);                     /* not whole sectors */
    assert_int_equal(run_one(&disk.d, 0, 0, 0x70000000, 512), 1);               /* no memory there */
    memset(id, 0x77, sizeof(id));
    for (unsigned i = 0; i < 4096; i += 8)
        poke(&disk.d, DATA + i, 8, 0x7777777777777777);
    assert_int_equal(run_one(&disk.d, 1, 8, DATA, 4096), 0);
    poke(&disk.d, DATA, 8, 8);
    poke(&disk.d, DATA + 8, 4, 4);
    poke(&disk.d, DATA + 12, 4, 1);
    assert_int_equal(run_one(&disk.d, 13, 0, DATA, 16), 0);                     /* zeroes, may unmap */
    assert_int_equal(run_one(&disk.d, 0, 8, DATA, 4096), 0);
    assert_int_equal(peek(&disk.d, DATA + 2040, 8), 0);
    assert_int_equal(peek(&disk.d, DATA + 2048, 4), 0x77777777);
    poke(&disk.d, DATA, 8, 0);
    poke(&disk.d, DATA + 8, 4, 8);
    poke(&disk.d, DATA + 12, 4, 0);
    assert_int_equal(run_one(&disk.d, 11, 0, DATA, 16), 0);                     /* discard */
    poke(&disk.d, DATA, 8, IMAGE_SIZE / 512);
    assert_int_equal(run_one(&disk.d, 11, 0, DATA, 16), 1);
    disk_destroy(&disk);
}

static void features_are_checked(void **state)
{
    struct disk disk;
    disk_create(&disk);
    struct driver *d = &disk.d;
    for (unsigned attempt = 0; attempt < 2; attempt++) {
        common_write(d, 20, 1, 0);
        common_write(d, 20, 1, 3);
        common_write(d, 8, 4, 1);
        common_write(d, 12, 4, attempt ? 0x80000001 : 0);       /* one that is not offered; none at all */
        common_write(d, 20, 1, 11);
        assert_int_equal(driver_status(d), 3);
    }
    disk_destroy(&disk);
}

static void window_in_configuration_space(void **state)
{
    struct disk disk;
    disk_create(&disk);
    unsigned at = 0;
    for (unsigned i = 0; i < 5; i++) {
        unsigned capability = rig_capability(&disk.rig, DRIVER_SLOT, PCI_CAP_ID_VNDR, i);
        if (rig_config_read(&disk.rig, DRIVER_SLOT, capability + 3, 1) == 5)
            at = capability;
    }
    assert_int_not_equal(at, 0);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 4, 1, 4);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 8, 4, 0x2000);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 12, 4, 4);
    assert_int_equal(rig_config_read(&disk.rig, DRIVER_SLOT, at + 16, 4), IMAGE_SIZE / 512);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 8, 4, 20);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 12, 4, 1);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 16, 1, 3);
    assert_int_equal(driver_status(&disk.d), 3);
    assert_int_equal(rig_config_read(&disk.rig, DRIVER_SLOT, at + 16, 1), 3);
    rig_config_write(&disk.rig, DRIVER_SLOT, at + 8, 4, 0xFFFFFFF0);
    rig_config_read(&disk.rig, DRIVER_SLOT, at + 16, 4);        /* nowhere: nothing happens */
    disk_destroy(&disk);
}

/* --- rings that break the rules --- */

static void split_loop(struct driver *d)
{
    struct driver_queue *q = &d->queue[0];
    write_desc(d, q->desc, DATA, 16, VRING_DESC_F_NEXT, 1);
    write_desc(d, q->desc + 16, DATA, 16, VRING_DESC_F_NEXT, 0);
    poke(d, q->avail + 4, 2, 0);
    poke(d, q->avail + 2, 2, 1);
}

static void split_head_too_large(struct driver *d)
{
    poke(d, d->queue[0].avail + 4, 2, 16);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void split_next_too_large(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 16, VRING_DESC_F_NEXT, 300);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void split_index_runs_ahead(struct driver *d) { poke(d, d->queue[0].avail + 2, 2, 17); }

static void split_order(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
    write_desc(d, d->queue[0].desc + 16, DATA, 16, 0, 0);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void indirect_in_indirect(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 32, VRING_DESC_F_INDIRECT, 0);
    write_desc(d, DATA, DATA, 32, VRING_DESC_F_INDIRECT, 0);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void indirect_of_odd_size(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 17, VRING_DESC_F_INDIRECT, 0);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void indirect_elsewhere(struct driver *d)
{
    write_desc(d, d->queue[0].desc, 0xFFFFFFFFFFFFF000, 4096, VRING_DESC_F_INDIRECT, 0);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void too_long_in_all(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 0xFFFFFFFF, VRING_DESC_F_NEXT, 1);
    write_desc(d, d->queue[0].desc + 16, DATA, 16, 0, 0);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void no_header(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 8, VRING_DESC_F_NEXT, 1);
    write_desc(d, d->queue[0].desc + 16, DATA, 1, VRING_DESC_F_WRITE, 0);
    poke(d, d->queue[0].avail + 2, 2, 1);
}

static void packed_endless(struct driver *d)
{
    for (unsigned i = 0; i < 16; i++)
        write_desc(d, d->queue[0].desc + 16 * i, DATA, 16, 0, 1 << 7 | VRING_DESC_F_NEXT);
}

static void packed_indirect_odd(struct driver *d) { write_desc(d, d->queue[0].desc, DATA, 15, 0, 1 << 7 | VRING_DESC_F_INDIRECT); }

static void packed_order(struct driver *d)
{
    write_desc(d, d->queue[0].desc, DATA, 16, 0, 1 << 7 | VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
    write_desc(d, d->queue[0].desc + 16, DATA, 16, 0, 1 << 7);
}

static void broken_rings_need_a_reset(void **state)
{
    static const struct { void (*breaks)(struct driver *d); bool packed; } cases[] = {
        { split_loop, false },       { split_head_too_large, false }, { split_next_too_large, false },
        { split_index_runs_ahead, false }, { split_order, false },    { indirect_in_indirect, false },
        { indirect_of_odd_size, false },   { indirect_elsewhere, false }, { too_long_in_all, false },
        { no_header, false },        { packed_endless, true },        { packed_indirect_odd, true },
        { packed_order, true },
    };
    struct disk disk;
    disk_create(&disk);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        driver_start(&disk.d, F_INDIRECT | (cases[i].packed ? F_PACKED : 0), 16);
        cases[i].breaks(&disk.d);
        driver_notify(&disk.d, 0);
        if (!(driver_status(&disk.d) & VIRTIO_CONFIG_S_NEEDS_RESET))
            fail_msg("case %u went unnoticed", i);
        driver_notify(&disk.d, 0);
        driver_start(&disk.d, F_INDIRECT, 16);
        assert_int_equal(run_one(&disk.d, 4, 0, 0, 0), 0);
    }
    disk_destroy(&disk);
}

static void rings_outside_memory_need_a_reset(void **state)
{
    struct disk disk;
    disk_create(&disk);
    driver_start(&disk.d, 0, 16);
    rig_bus_master(&disk.rig, DRIVER_SLOT, false);
    driver_notify(&disk.d, 0);
    assert_true(driver_status(&disk.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    disk_destroy(&disk);
}

/* --- the other devices --- */

static void entropy_differs(void **state)
{
    struct rig rig;
    struct driver d;
    uint32_t written;
    uint64_t last = 0;
    rig_create(&rig);
    driver_create(&d, &rig, &device_virtio_rng, NULL, NULL);
    driver_start(&d, F_PACKED | F_EVENT, 8);
    for (unsigned i = 0; i < 20; i++) {
        struct driver_segment s = { DATA, 64, true };
        assert_true(driver_add(&d, 0, &s, 1, false) >= 0);
        driver_kick(&d, 0);
        get_wait(&d, 0, &written);
        assert_int_equal(written, 64);
        assert_int_not_equal(peek(&d, DATA, 8), last);
        last = peek(&d, DATA, 8);
    }
    device_destroy(&d.function->device);
    rig_destroy(&rig);
}

static void configure_console(struct device *device, void *opaque) { ((struct virtio_console *)device)->chardev = opaque; }

static void console_talks_both_ways(void **state)
{
    struct rig rig;
    struct driver d;
    struct error err;
    uint32_t written;
    char back[16];
    rig_create(&rig);
    struct chardev *chardev = chardev_open("pty", rig.loop, NULL, &rig.log, &err);
    assert_non_null(chardev);
    driver_create(&d, &rig, &device_virtio_console, configure_console, chardev);
    driver_start(&d, F_EVENT, 8);
    int fd = open(chardev_name(chardev), O_RDWR | O_NOCTTY);
    assert_int_equal(write(fd, "early", 5), 5);
    rig_spin(&rig, 5);
    struct driver_segment in = { DATA, 3, true }, out = { DATA + 64, 6, false };
    driver_add(&d, 0, &in, 1, false);
    in.address += 3;
    driver_add(&d, 0, &in, 1, false);
    driver_kick(&d, 0);
    rig_spin(&rig, 5);
    get_wait(&d, 0, &written);
    assert_int_equal(written, 3);
    get_wait(&d, 0, &written);
    assert_int_equal(written, 2);
    assert_int_equal(peek(&d, DATA, 5), 0x796C726165);          /* "early" */
    ram_write(rig.ram, DATA + 64, "Hello\n", 6);
    driver_add(&d, 1, &out, 1, false);
    driver_kick(&d, 1);
    get_wait(&d, 1, &written);
    assert_int_equal(read(fd, back, sizeof(back)), 6);
    assert_memory_equal(back, "Hello\n", 6);
    close(fd);
    device_destroy(&d.function->device);
    chardev_close(chardev);
    rig_destroy(&rig);
}

struct lan {
    struct rig rig;
    struct driver d;
    struct net *net;
};

static void configure_net(struct device *device, void *opaque)
{
    struct virtio_net *net = (struct virtio_net *)device;
    net->net = ((struct lan *)opaque)->net;
    memcpy(net->mac, "\x52\x54\x00\x12\x34\x56", 6);
}

/* Who has 10.0.2.2? */
static const uint8_t arp_request[42] = {
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x06,
    0x00, 0x01, 0x08, 0x00, 6, 4, 0, 1, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2,
};

/* The buffer of an id: split rings say so themselves, packed ones were filled in the order of our free list. */
static uint64_t buffer_of(struct driver *d, int id)
{
    if (driver_has(d, VIRTIO_F_RING_PACKED))
        return DATA + 0x1000ull * (31u - (unsigned)id);
    return peek(d, d->queue[0].desc + 16u * (unsigned)id, 8);
}

/* One frame with its header; 0 if none has come. All its buffers must be there at once. */
static uint32_t receive_frame(struct driver *d, uint8_t *frame, uint32_t room)
{
    uint32_t size = 0, written;
    unsigned buffers = 1;
    for (unsigned i = 0; i < buffers; i++) {
        int id = driver_get(d, 0, &written);
        if (id < 0 && i == 0)
            return 0;
        assert_true(id >= 0 && size + written <= room);
        ram_read(d->rig->ram, buffer_of(d, id), frame + size, written);
        size += written;
        if (i == 0 && driver_has(d, 15))
            buffers = frame[10];
    }
    return size;
}

static void check_arp(uint64_t features, uint32_t buffer_size)
{
    struct lan lan;
    struct error err = { "" };
    uint32_t written;
    bool answered = false;
    rig_create(&lan.rig);
    lan.net = net_open("user", lan.rig.loop, lan.rig.clock, NULL, &lan.rig.log, &err);
    if (!lan.net)
        fail_msg("%s", err.text);
    driver_create(&lan.d, &lan.rig, &device_virtio_net, configure_net, &lan);
    driver_start(&lan.d, features | BIT(5) | BIT(16), 32);
    assert_int_equal(rig_read(&lan.rig, lan.d.bar + 0x2000, 4), 0x12005452);
    assert_int_equal(rig_read(&lan.rig, lan.d.bar + 0x2006, 2), 1);
    for (unsigned i = 0; i < 30; i++) {
        struct driver_segment in = { DATA + 0x1000 * i, buffer_size, true };
        driver_add(&lan.d, 0, &in, 1, false);
    }
    driver_kick(&lan.d, 0);
    poke(&lan.d, DATA - 64, 8, 0);
    poke(&lan.d, DATA - 56, 4, 0);
    ram_write(lan.rig.ram, DATA - 64 + 12, arp_request, sizeof(arp_request));
    struct driver_segment out[2] = { { DATA - 64, 12, false }, { DATA - 64 + 12, sizeof(arp_request), false } };
    driver_add(&lan.d, 1, out, 2, false);
    driver_kick(&lan.d, 1);
    get_wait(&lan.d, 1, &written);
    for (unsigned i = 0; i < 100 && !answered; i++) {
        uint8_t frame[2048];
        uint32_t size = receive_frame(&lan.d, frame, sizeof(frame));
        answered = size >= 12 + 42 && frame[12 + 12] == 0x08 && frame[12 + 13] == 0x06 && frame[12 + 21] == 2;
        if (size)
            assert_int_equal(frame[10], (size + buffer_size - 1) / buffer_size);
        else
            loop_run_once(lan.rig.loop, 10);
    }
    assert_true(answered);
    device_destroy(&lan.d.function->device);
    net_close(lan.net);
    rig_destroy(&lan.rig);
}

static void network_answers_arp(void **state)
{
    check_arp(BIT(15), 2048);
    check_arp(F_EVENT, 2048);
    check_arp(F_PACKED | F_EVENT, 2048);
}

static void frames_are_spread_over_mergeable_buffers(void **state)
{
    check_arp(BIT(15) | F_EVENT, 32);
    check_arp(BIT(15) | F_PACKED, 32);
}

/* VIRTIO §2.1.1, §3.1.1 */
static void agreed_features_stay_until_the_reset(void **state)
{
    struct disk disk;
    disk_create(&disk);
    driver_start(&disk.d, F_PACKED, 16);
    uint8_t status = driver_status(&disk.d);
    common_write(&disk.d, VIRTIO_PCI_COMMON_STATUS, 1, status & ~(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK));
    assert_int_equal(driver_status(&disk.d), status);
    common_write(&disk.d, VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    common_write(&disk.d, VIRTIO_PCI_COMMON_GF, 4, 1);
    assert_true(((struct virtio *)disk.d.function)->features & F_PACKED);
    common_write(&disk.d, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    common_write(&disk.d, VIRTIO_PCI_COMMON_STATUS, 1, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_int_equal(driver_status(&disk.d), VIRTIO_CONFIG_S_ACKNOWLEDGE);
    disk_destroy(&disk);
}

/* As when a machine on a network with large frames is restored onto one without. */
static void a_state_with_features_that_are_not_offered_is_not_accepted(void **state)
{
    struct error err;
    struct disk disk;
    disk_create(&disk);
    driver_start(&disk.d, 0, 16);
    struct virtio *virtio = (struct virtio *)disk.d.function;
    struct device *device = &virtio->pci.device;
    assert_true(device->type->accepts(device, &err));
    virtio->features |= BIT(VIRTIO_BLK_F_RO);
    assert_false(device->type->accepts(device, &err));
    assert_non_null(strstr(err.text, device->name));
    common_write(&disk.d, VIRTIO_PCI_COMMON_STATUS, 1, 0);      /* agrees with nothing */
    assert_true(device->type->accepts(device, &err));
    disk_destroy(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_ring),
        cmocka_unit_test(split_ring_with_events),
        cmocka_unit_test(split_ring_indirect),
        cmocka_unit_test(packed_ring),
        cmocka_unit_test(packed_ring_with_events),
        cmocka_unit_test(packed_ring_indirect),
        cmocka_unit_test(interrupts_come_when_asked_for),
        cmocka_unit_test(intx_and_the_isr_register),
        cmocka_unit_test(requests_wait_for_each_other),
        cmocka_unit_test(disk_commands),
        cmocka_unit_test(features_are_checked),
        cmocka_unit_test(window_in_configuration_space),
        cmocka_unit_test(broken_rings_need_a_reset),
        cmocka_unit_test(rings_outside_memory_need_a_reset),
        cmocka_unit_test(entropy_differs),
        cmocka_unit_test(console_talks_both_ways),
        cmocka_unit_test(network_answers_arp),
        cmocka_unit_test(frames_are_spread_over_mergeable_buffers),
        cmocka_unit_test(agreed_features_stay_until_the_reset),
        cmocka_unit_test(a_state_with_features_that_are_not_offered_is_not_accepted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
