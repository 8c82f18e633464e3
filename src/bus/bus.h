/*
 * A bus is a sorted set of regions: one bus for memory-mapped registers, one for ports. RAM is not on the bus (mem/ram.h);
 * whoever has a guest-physical address asks RAM first.
 *
 * The bus splits, widens or rejects an access before a device sees it: an access wider than `access_max` becomes several,
 * a narrower one than `access_min` becomes a read-modify of the aligned unit for reads and is dropped (guest error) for
 * writes unless `accept_narrow`; one that crosses the end of a region is split at the end.
 *
 * Locking: a region whose `lock` is not NULL is entered with that mutex held (a machine gives all its devices one
 * mutex, the board lock); one with lock NULL locks for itself. Mapping and unmapping (any thread) publish a new sorted
 * table; readers never wait.
 */
#ifndef DOPPEL_BUS_BUS_H
#define DOPPEL_BUS_BUS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "bus/access.h"

struct log;
struct bus;

struct region {
    const char *name;
    uint64_t base, size;
    uint8_t access_min, access_max;     /* bytes; 0 means 1 and 8 (memory) or 4 (ports) */
    bool accept_narrow;                 /* hand accesses below access_min to the device as they are */
    bool unaligned;                     /* hand accesses over whole at any offset, not in naturally aligned pieces */
    int priority;                       /* the higher one wins where regions overlap; 0 for most */
    /* `owner` is the device; the access carries the offset within the region. */
    enum access_result (*access)(void *owner, struct access *access);
    void *owner;
    pthread_mutex_t *lock;              /* NULL: lock-free or locks for itself */
    bool mapped;                        /* kept by the bus */
};

/* Name appears in traces ("mmio", "port"). log may be NULL. The bus is freed with bus_destroy; regions are borrowed. */
struct bus *bus_create(const char *name, uint64_t size, struct log *log);
void bus_destroy(struct bus *bus);

/* Any thread. The region must stay valid until unmapped. A region of size 0 is not mapped. */
void bus_map(struct bus *bus, struct region *region);
void bus_unmap(struct bus *bus, struct region *region);

/* Any thread. access->address is the bus address. An unclaimed read fills access->value with ones. */
enum access_result bus_access(struct bus *bus, struct access *access);

/* The region that covers the address, or NULL; for the monitor. */
const struct region *bus_find(struct bus *bus, uint64_t address);
/* Calls `each` for every mapped region, sorted by base. */
void bus_for_each(struct bus *bus, void (*each)(const struct region *region, void *opaque), void *opaque);

#endif
