/*
 * Hostile virtio drivers: for each device type, many rings made of half-truths (descriptors that loop, overlap the ring,
 * point at registers, at the device itself, at nothing; indices that run ahead; memory that changes under way). The device
 * must stay in bounds (sanitizers), finish each access in bounded time, and come back to life after a reset.
 *
 * Usage: fuzz-virtio [rings per type [seed]]
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "backend/block.h"
#include "backend/chardev.h"
#include "backend/net_internal.h"
#include "dev/virtio_driver.h"
#include "mutate.h"

enum { RINGS = 100000, IMAGE_SIZE = 256 * 1024, ZONE = 0x100000, ZONE_SIZE = 0x40000, RING_AREA = 0x20000, SLOW_MS = 2000 };

static uint64_t below(uint64_t *seed, uint64_t limit) { return fuzz_below(seed, limit); }
static bool one_in(uint64_t *seed, uint64_t n) { return below(seed, n) == 0; }

struct target {
    struct rig rig;
    struct driver d;
    struct block *block;
    struct chardev *chardev;
    struct net *net;
    int typist;                 /* our end of the console */
    bool mild;                  /* this ring is nearly right, so that the depths are reached too */
    uint64_t seed;
};

/* --- a device with a backend --- */

static void configure_device(struct device *device, void *opaque)
{
    struct target *t = opaque;
    if (device->type == &device_virtio_blk)
        ((struct virtio_blk *)device)->block = t->block;
    else if (device->type == &device_virtio_net)
        ((struct virtio_net *)device)->net = t->net;
    else if (device->type == &device_virtio_console)
        ((struct virtio_console *)device)->chardev = t->chardev;
}

static void open_backends(struct target *t, const struct device_type *type)
{
    struct error err = { "" };
    if (type == &device_virtio_blk) {
        char path[64];
        int fd = memfd_create("disk", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, IMAGE_SIZE), 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        struct block_options options = { .path = path };
        t->block = block_open(&options, t->rig.loop, NULL, &t->rig.log, &err);
        assert_non_null(t->block);
        close(fd);
    } else if (type == &device_virtio_net) {
        t->net = net_open("user,restrict=on", t->rig.loop, t->rig.clock, NULL, &t->rig.log, &err);
        assert_non_null(t->net);
    } else if (type == &device_virtio_console) {
        t->chardev = chardev_open("pty", t->rig.loop, NULL, &t->rig.log, &err);
        assert_non_null(t->chardev);
        t->typist = open(chardev_name(t->chardev), O_RDWR | O_NOCTTY | O_NONBLOCK);
    }
}

static void close_backends(struct target *t)
{
    block_close(t->block);
    chardev_close(t->chardev);
    net_close(t->net);
    if (t->typist)
        close(t->typist);
}

/* --- hostile memory --- */

static uint64_t some_address(struct target *t)
{
    uint64_t *seed = &t->seed;
    switch (t->mild ? 99 : below(seed, 24)) {
    case 0: return t->d.bar + below(seed, 0x4000);              /* the device itself */
    case 1: return rig_bar(&t->rig, DRIVER_SLOT, 1) + below(seed, 0x1000);
    case 2: return RIG_ECAM + below(seed, 0x30000);             /* configuration space, its own too */
    case 3: return 0xFEE00000 + below(seed, 0x1000);
    case 4: return RIG_RAM - below(seed, 64);                   /* across the end of RAM */
    case 5: return fuzz_random(seed);
    case 6: return UINT64_MAX - below(seed, 4096);
    case 7: return RING_AREA + below(seed, 0x4000);             /* the rings */
    default: return ZONE + below(seed, ZONE_SIZE);
    }
}

static uint32_t some_size(uint64_t *seed)
{
    static const uint32_t common[] = { 0, 1, 12, 16, 16, 17, 32, 64, 512, 512, 1024, 1526, 4096, 65536 };
    return one_in(seed, 30) ? (uint32_t)fuzz_random(seed) : common[below(seed, ARRAY_SIZE(common))];
}

static void some_descriptor(struct target *t, uint64_t at, uint16_t size, bool packed)
{
    uint64_t *seed = &t->seed;
    uint16_t flags = (uint16_t)(!t->mild && one_in(seed, 20) ? fuzz_random(seed) : below(seed, !t->mild && one_in(seed, 6) ? 8 : 4));
    uint16_t next = (uint16_t)(one_in(seed, 30) ? fuzz_random(seed) : below(seed, size));
    if (packed)
        write_desc(&t->d, at, some_address(t), some_size(seed), next, flags | (one_in(seed, 8) ? 0 : 1 << 7));
    else
        write_desc(&t->d, at, some_address(t), some_size(seed), flags, next);
}

static void some_header(struct target *t)
{
    static const uint32_t types[] = { 0, 1, 4, 8, 11, 13, 14, 99 };
    uint64_t at = ZONE + below(&t->seed, ZONE_SIZE / 16) * 16;
    poke(&t->d, at, 4, types[below(&t->seed, ARRAY_SIZE(types))]);
    poke(&t->d, at + 8, 8, one_in(&t->seed, 10) ? fuzz_random(&t->seed) : below(&t->seed, IMAGE_SIZE / 512));
}

/* A request that is right but for its surroundings, so that the depths are reached too. */
static void plausible_chain(struct target *t, uint64_t desc)
{
    uint64_t data = ZONE + below(&t->seed, ZONE_SIZE - 8192);
    uint16_t write = one_in(&t->seed, 2) ? VRING_DESC_F_WRITE : 0;
    poke(&t->d, ZONE, 4, write ? 0 : 1);
    poke(&t->d, ZONE + 8, 8, below(&t->seed, IMAGE_SIZE / 512));
    write_desc(&t->d, desc, ZONE, 16, VRING_DESC_F_NEXT, 1);
    write_desc(&t->d, desc + 16, data, 512 * (uint32_t)below(&t->seed, 9), write | VRING_DESC_F_NEXT, 2);
    write_desc(&t->d, desc + 32, data + 8191, 1, VRING_DESC_F_WRITE, 0);
}

static void fill_split(struct target *t, struct driver_queue *q)
{
    unsigned count = (unsigned)min_u64(q->size, 24);
    for (unsigned i = 0; i < count; i++)
        some_descriptor(t, q->desc + 16 * i, (uint16_t)count, false);
    if (q->size >= 4 && t->mild)
        plausible_chain(t, q->desc);
    for (unsigned i = 0; i < count; i++)
        poke(&t->d, q->avail + 4 + 2 * i, 2, one_in(&t->seed, 40) ? fuzz_random(&t->seed) : t->mild ? 0 : below(&t->seed, count));
    poke(&t->d, q->avail, 2, below(&t->seed, 2));
    poke(&t->d, q->avail + 2, 2, one_in(&t->seed, 20) ? fuzz_random(&t->seed) : 1 + below(&t->seed, one_in(&t->seed, 2) ? 2 : count));
}

static void fill_packed(struct target *t, struct driver_queue *q)
{
    for (unsigned i = 0; i < min_u64(q->size, 24); i++)
        some_descriptor(t, q->desc + 16 * i, q->size, true);
    if (q->size >= 4 && t->mild) {
        plausible_chain(t, q->desc);
        for (unsigned i = 0; i < 3; i++) {
            uint64_t at = q->desc + 16 * i;
            poke(&t->d, at + 14, 2, peek(&t->d, at + 12, 2) | 1 << 7);
        }
        poke(&t->d, q->desc + 16 * 3 + 14, 2, 0);
    }
    poke(&t->d, q->avail, 4, fuzz_random(&t->seed));
}

static void fill(struct target *t, struct driver_queue *q)
{
    if (driver_has(&t->d, VIRTIO_F_RING_PACKED))
        fill_packed(t, q);
    else
        fill_split(t, q);
    some_header(t);
}

/* --- one ring --- */

static void set_up_queue(struct target *t, unsigned index)
{
    struct driver_queue *q = &t->d.queue[index];
    bool packed = driver_has(&t->d, VIRTIO_F_RING_PACKED);
    q->size = (uint16_t)(packed ? 1 + below(&t->seed, 256) : 1u << below(&t->seed, 9));
    q->desc = RING_AREA + index * 0x4000;
    q->avail = q->desc + 0x1000 + 4 * below(&t->seed, 4);
    q->used = q->avail + 0x1000;
    common_write(&t->d, 22, 2, index);
    common_write(&t->d, 24, 2, q->size);
    common_write(&t->d, 26, 2, below(&t->seed, 5));
    common_write(&t->d, 32, 8, one_in(&t->seed, 40) ? some_address(t) : q->desc);
    common_write(&t->d, 40, 8, one_in(&t->seed, 40) ? some_address(t) : q->avail);
    common_write(&t->d, 48, 8, one_in(&t->seed, 40) ? some_address(t) : q->used);
    common_write(&t->d, 28, 2, 1);
    fill(t, q);
}

static void negotiate(struct target *t)
{
    uint64_t offered = ((struct virtio *)t->d.function)->offered;
    rig_bus_master(&t->rig, DRIVER_SLOT, true);
    common_write(&t->d, 20, 1, 0);
    if (driver_status(&t->d) != 0)
        fail_msg("the device does not reset");
    common_write(&t->d, 20, 1, 3);
    t->d.features = (offered & fuzz_random(&t->seed)) | BIT(VIRTIO_F_VERSION_1);
    for (unsigned i = 0; i < 2; i++) {
        common_write(&t->d, 8, 4, i);
        common_write(&t->d, 12, 4, t->d.features >> 32 * i);
    }
    common_write(&t->d, 20, 1, 11);
}

static void disturb(struct target *t)
{
    uint64_t *seed = &t->seed;
    switch (below(seed, 8)) {
    case 0: rig_write(&t->rig, t->d.bar + below(seed, 0x40), 1u << below(seed, 3), fuzz_random(seed)); break;
    case 1: rig_read(&t->rig, t->d.bar + below(seed, 0x4000), 1u << below(seed, 3)); break;
    case 2: rig_write(&t->rig, t->d.bar + 0x2000 + below(seed, 0x80), 1, fuzz_random(seed)); break;
    case 3: rig_bus_master(&t->rig, DRIVER_SLOT, one_in(seed, 2)); break;
    case 4: poke(&t->d, RING_AREA + below(seed, 0x8000), 2, fuzz_random(seed)); break;
    case 5:
        if (t->typist) {
            ssize_t written = write(t->typist, "keys", 1 + below(seed, 4));
            (void)written;
        } else if (t->net) {
            static const uint8_t frame[4096];
            net_deliver(t->net, frame, 1 + (uint32_t)below(seed, sizeof(frame)), 0);
        }
        break;
    case 6: clock_advance(t->rig.clock, 3000000); break;
    case 7: loop_run_once(t->rig.loop, 0); break;
    }
}

static void one_ring(struct target *t)
{
    unsigned queues = common_read(&t->d, 18, 2);
    t->mild = one_in(&t->seed, 2);
    negotiate(t);
    for (unsigned i = 0; i < queues; i++)
        set_up_queue(t, i);
    common_write(&t->d, 20, 1, 15);
    for (unsigned i = 0, rounds = 1 + (unsigned)below(&t->seed, 4); i < rounds; i++) {
        unsigned index = (unsigned)below(&t->seed, queues);
        driver_notify(&t->d, index);
        if (one_in(&t->seed, 2))
            disturb(t);
        if (one_in(&t->seed, 3))
            fill(t, &t->d.queue[index]);
    }
    if (one_in(&t->seed, 4))
        rig_spin(&t->rig, 2);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void drain_console(struct target *t)
{
    char sink[4096];
    while (t->typist && read(t->typist, sink, sizeof(sink)) > 0)
        ;
}

static void fuzz(const struct device_type *type, unsigned rings, uint64_t seed)
{
    struct target t = { .seed = seed };
    uint64_t start = now_ms(), last = start, broken = 0;
    rig_create(&t.rig);
    t.rig.space.counters = &t.rig.counters;
    open_backends(&t, type);
    driver_create(&t.d, &t.rig, type, configure_device, &t);
    driver_use_msix(&t.d, 3);
    for (unsigned i = 0; i < rings; i++) {
        uint64_t before = t.seed;
        one_ring(&t);
        broken += (driver_status(&t.d) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
        if (i % 64 == 0)
            drain_console(&t);
        uint64_t now = now_ms();
        if (now - last > SLOW_MS)
            fail_msg("%s: ring %u (seed %#lx) took %lu ms", type->name, i, (unsigned long)before, (unsigned long)(now - last));
        last = now;
    }
    printf("%s: %u rings, %lu noticed as broken; %lu blocks moved, %lu frames sent, %lu received, %lu bytes of DMA; %lu ms\n", type->name,
           rings, (unsigned long)broken,
           (unsigned long)(counter_get(&t.rig.counters, COUNTER_block_reads) + counter_get(&t.rig.counters, COUNTER_block_writes)),
           (unsigned long)counter_get(&t.rig.counters, COUNTER_net_tx_frames),
           (unsigned long)counter_get(&t.rig.counters, COUNTER_net_rx_frames),
           (unsigned long)counter_get(&t.rig.counters, COUNTER_dma_bytes), (unsigned long)(last - start));
    device_destroy(&t.d.function->device);
    close_backends(&t);
    rig_destroy(&t.rig);
}

int main(int argc, char **argv)
{
    static const struct device_type *const types[] = { &device_virtio_rng, &device_virtio_console, &device_virtio_net,
                                                       &device_virtio_blk };
    unsigned rings = argc > 1 ? (unsigned)atoi(argv[1]) : RINGS;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x9E3779B97F4A7C15;
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++)
        fuzz(types[i], rings, seed);
    return 0;
}
