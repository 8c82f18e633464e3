/*
 * testdev, compatible with QEMU's pc-testdev in what test guests rely on:
 *   0xE0-0xE3, 0xE8-0xEB   one latch of four bytes seen at both places, by bytes, words or as a whole
 *   0xE4-0xE7              a guest-physical address whose page is to lose its host mapping: accepted, nothing to do,
 *                          since a page of ours never changes its contents by that
 *   0x2000+n               drives interrupt line n (n < 24): any value but zero asserts it
 *   0xFF000000             64 KiB that remember what is written
 */
#include "dev/testdev.h"

#include <string.h>

#include "base/base.h"

static const uint64_t latch_base[2] = { 0xE0, 0xE8 }, latch_size = 4, flush_base = 0xE4, flush_size = 4, irq_base = 0x2000,
                      mmio_base = 0xFF000000;

static enum access_result latch_access(void *owner, struct access *access)
{
    struct testdev *testdev = owner;
    unsigned shift = (access->address & 3) * 8;
    uint32_t mask = (uint32_t)size_mask(access->size) << shift;
    if (access->write)
        testdev->latch = (testdev->latch & ~mask) | ((uint32_t)access->value << shift & mask);
    else
        access->value = (testdev->latch & mask) >> shift;
    return ACCESS_OK;
}

static enum access_result flush_access(void *owner, struct access *access)
{
    access->value = 0;
    return ACCESS_OK;
}

static enum access_result irq_access(void *owner, struct access *access)
{
    struct testdev *testdev = owner;
    unsigned n = access->address % TESTDEV_IRQS;
    if (!access->write) {
        access->value = testdev->irq_levels >> n & 1;
        return ACCESS_OK;
    }
    bool level = access->value;
    testdev->irq_levels = (testdev->irq_levels & ~(1u << n)) | (uint32_t)level << n;
    irq_set(&testdev->irq[n], level);
    return ACCESS_OK;
}

static enum access_result mmio_access(void *owner, struct access *access)
{
    struct testdev *testdev = owner;
    if (access->address + access->size > TESTDEV_MMIO_SIZE)
        return ACCESS_UNHANDLED;
    if (access->write) {
        memcpy(testdev->memory + access->address, &access->value, access->size);
    } else {
        access->value = 0;
        memcpy(&access->value, testdev->memory + access->address, access->size);
    }
    return ACCESS_OK;
}

static void drive_lines(struct testdev *testdev)
{
    for (unsigned n = 0; n < TESTDEV_IRQS; n++)
        irq_set(&testdev->irq[n], testdev->irq_levels >> n & 1);
}

static void testdev_reset(struct device *device)
{
    struct testdev *testdev = (struct testdev *)device;
    testdev->latch = 0;
    /* Lines are shared with real devices: only those that this one holds are let go. */
    for (unsigned n = 0; n < TESTDEV_IRQS; n++)
        if (testdev->irq_levels >> n & 1)
            irq_set(&testdev->irq[n], false);
    testdev->irq_levels = 0;
    memset(testdev->memory, 0, sizeof(testdev->memory));
}

static bool testdev_init(struct device *device, struct error *err)
{
    struct testdev *testdev = (struct testdev *)device;
    struct region region = { .access_max = 4, .owner = testdev, .lock = device->world.lock };
    for (unsigned n = 0; n < 2; n++) {
        region.name = "testdev-latch";
        region.base = latch_base[n];
        region.size = latch_size;
        region.access = latch_access;
        testdev->latch_port[n] = region;
        bus_map(device->world.ports, &testdev->latch_port[n]);
    }
    region.name = "testdev-flush";
    region.base = flush_base;
    region.size = flush_size;
    region.access = flush_access;
    testdev->flush_port = region;
    bus_map(device->world.ports, &testdev->flush_port);
    region.name = "testdev-irq";
    region.base = irq_base;
    region.size = TESTDEV_IRQS;
    region.access_max = 1;
    region.access = irq_access;
    testdev->irq_port = region;
    bus_map(device->world.ports, &testdev->irq_port);
    region.name = "testdev-memory";
    region.base = mmio_base;
    region.size = TESTDEV_MMIO_SIZE;
    region.access_max = 8;
    region.access = mmio_access;
    testdev->mmio = region;
    bus_map(device->world.mmio, &testdev->mmio);
    return true;
}

static void testdev_resume(struct device *device)
{
    struct testdev *testdev = (struct testdev *)device;
    testdev->irq_levels &= BIT(TESTDEV_IRQS) - 1;
    if (testdev->irq_levels)
        drive_lines(testdev);
}

static void testdev_fini(struct device *device)
{
    struct testdev *testdev = (struct testdev *)device;
    for (unsigned n = 0; n < 2; n++)
        bus_unmap(device->world.ports, &testdev->latch_port[n]);
    bus_unmap(device->world.ports, &testdev->flush_port);
    bus_unmap(device->world.ports, &testdev->irq_port);
    bus_unmap(device->world.mmio, &testdev->mmio);
}

static const struct state_field testdev_fields[] = {
    STATE_SCALAR(struct testdev, latch),
    STATE_SCALAR(struct testdev, irq_levels),
    STATE_BLOB(struct testdev, memory),
};
static const struct state_list testdev_state = STATE_LIST("testdev", 1, testdev_fields);

const struct device_type device_testdev = {
    .name = "testdev",
    .text = "latches and interrupt lines for test guests (as pc-testdev)",
    .size = sizeof(struct testdev),
    .state = &testdev_state,
    .init = testdev_init,
    .reset = testdev_reset,
    .resume = testdev_resume,
    .fini = testdev_fini,
};
