#include "dev/device.h"

#include <stdlib.h>
#include <string.h>

struct device *device_create(const struct device_type *type, const char *name, const struct device_world *world,
                             const struct dma *dma, void (*configure)(struct device *device, void *opaque), void *opaque,
                             struct error *err)
{
    if (!type->state) {
        error_set(err, "The device type %s lists no state, so it cannot be saved.", type->name);
        return NULL;
    }
    /* Devices hold vectors of atomics and cache-line-aligned members; calloc's alignment would not do for all. */
    struct device *device = aligned_alloc(64, (type->size + 63) & ~(size_t)63);
    if (!device) {
        error_set(err, "out of memory for the device %s", name);
        return NULL;
    }
    memset(device, 0, type->size);
    device->type = type;
    device->world = *world;
    if (dma)
        device->dma = *dma;
    strncpy(device->name, name, sizeof(device->name) - 1);
    if (configure)
        configure(device, opaque);
    if (!type->init(device, err)) {
        free(device);
        return NULL;
    }
    type->reset(device);
    return device;
}

void device_destroy(struct device *device)
{
    if (!device)
        return;
    if (device->type->fini)
        device->type->fini(device);
    free(device);
}
