/*
 * What a device is. A device sees the world only through the handles in `struct device` (DESIGN D8); it knows no vCPU and no
 * machine. A device file has the same sections in the same order: heading (part, document, edition, what is not
 * modelled), registers, state, helpers, access, reset, init, state list, type. Every type stands in dev/types.def.
 *
 * Threads: access functions of regions, timers and backend callbacks all run with the board lock held, so a device needs
 * no lock of its own, unless its file says that it does its own locking (the local APIC).
 */
#ifndef DOPPEL_DEV_DEVICE_H
#define DOPPEL_DEV_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/stats.h"
#include "bus/bus.h"
#include "bus/handles.h"
#include "state/state.h"

struct device;

/* What the machine asks for when it makes a device; the type's `init` reads what concerns it. */
enum config_kind { CONFIG_STRING, CONFIG_UINT, CONFIG_BOOL, CONFIG_POINTER };
struct config_field {
    const char *name;
    enum config_kind kind;
    uint32_t offset;        /* in the device's own struct */
    const char *text;       /* one line for help */
};

struct device_type {
    const char *name;
    const char *text;                       /* one line for help and `info devices` */
    size_t size;                            /* of the device's own struct, which starts with struct device */
    const struct config_field *config;      /* ended by a NULL name; may be NULL */
    const struct state_list *state;         /* required: a device without one cannot be made */
    /* Maps regions, sets up timers. False: err tells why. Called once, before reset. */
    bool (*init)(struct device *device, struct error *err);
    void (*reset)(struct device *device);   /* to the power-on state; also on machine reset */
    /* Before the state is saved: finish or cancel what is under way with the host. May be NULL. */
    void (*quiesce)(struct device *device);
    /* After the state was loaded, of another device of the type: can this one go on with it? False: err tells why not. May be NULL. */
    bool (*accepts)(struct device *device, struct error *err);
    /* After the state was loaded, or to go on after a save: re-arm timers, re-drive lines. May be NULL. */
    void (*resume)(struct device *device);
    void (*fini)(struct device *device);    /* unmaps, frees. May be NULL */
};

/* The world of one device; the machine fills it in. Everything is borrowed. */
struct device_world {
    struct bus *mmio, *ports;
    struct clock *clock;
    struct loop *loop;
    pthread_mutex_t *lock;      /* the board lock */
    struct log *log;
    struct counters *counters;  /* shared set: counter_add_shared */
};

struct device {
    const struct device_type *type;
    char name[32];              /* unique in the machine: "uart0", "virtio-blk1" */
    struct device_world world;
    struct dma dma;             /* for bus masters */
    struct device *next;        /* the machine's list */
};

/*
 * Makes a device of the type: zeroed, world and name set, config fields assigned by the caller through `configure`
 * (may be NULL), then init and reset. NULL: err tells why. device_destroy calls fini and frees.
 */
struct device *device_create(const struct device_type *type, const char *name, const struct device_world *world,
                             const struct dma *dma, void (*configure)(struct device *device, void *opaque), void *opaque,
                             struct error *err);
void device_destroy(struct device *device);

/* The type by name, from types.def; NULL if there is none. */
const struct device_type *device_type_find(const char *name);
const struct device_type *const *device_types(unsigned *count);

#define DEVICE_TYPE(id) extern const struct device_type device_##id;
#include "dev/types.def"
#undef DEVICE_TYPE

#endif
