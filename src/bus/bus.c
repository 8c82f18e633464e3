/*
 * The bus keeps its regions in one list (under a mutex) and publishes a flat table of ranges that do not overlap, sorted
 * by address. Readers search the table without locks.
 *
 * How a table is replaced under its readers: there are two, and a sequence number whose low bit says which one is valid. A
 * writer fills the other table and then increments the number. A reader that finds the number unchanged after its
 * search has read a table that nobody was writing: the table of number s is written again only after the number became
 * s + 1. Tables are never freed before the bus (a table that was outgrown is kept; sizes double, so that at most as
 * much again is kept), which bounds what a guest that moves its BARs for ever can make us allocate.
 *
 * A region with a lock is looked up again once the lock is held, if the table changed meanwhile: so a device that unmaps or
 * moves its region with its lock held sees no late access at the old place.
 */
#include "bus/bus.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"

/* Fields are relaxed atomics because a reader may look at a table that is being refilled (and then throws it away). */
struct bus_range {
    _Atomic uint64_t first, last;
    _Atomic(struct region *) region;
    _Atomic uint64_t region_base;
};

struct bus_table {
    unsigned capacity;
    _Atomic unsigned count;
    struct bus_table *outgrown;     /* kept until the bus goes */
    struct bus_range range[];
};

struct bus {
    const char *name;
    uint64_t last;                  /* highest address */
    struct log *log;
    enum trace_point trace_every;
    pthread_mutex_t mutex;          /* guards the list and the making of tables */
    struct region **region;         /* sorted by priority (higher first), then by age */
    unsigned region_count, region_capacity;
    _Atomic uint64_t sequence;
    _Atomic(struct bus_table *) table[2];
};

/* What a reader found: the region that claims `first`, and how far the claim (or the hole) goes. */
struct bus_hit {
    struct region *region;
    uint64_t region_base, last;
    uint64_t sequence;
};

struct bus *bus_create(const char *name, uint64_t size, struct log *log)
{
    struct bus *bus = calloc(1, sizeof(*bus));
    if (!bus)
        return NULL;
    bus->name = name;
    bus->last = size - 1;
    bus->log = log;
    bus->trace_every = strcmp(name, "port") == 0 ? TRACE_bus_port : TRACE_bus_mmio;
    pthread_mutex_init(&bus->mutex, NULL);
    return bus;
}

void bus_destroy(struct bus *bus)
{
    if (!bus)
        return;
    for (unsigned i = 0; i < bus->region_count; i++)
        bus->region[i]->mapped = false;
    for (unsigned i = 0; i < 2; i++) {
        struct bus_table *table = atomic_load(&bus->table[i]);
        while (table) {
            struct bus_table *outgrown = table->outgrown;
            free(table);
            table = outgrown;
        }
    }
    free(bus->region);
    pthread_mutex_destroy(&bus->mutex);
    free(bus);
}

/* --- making a table; bus->mutex held --- */

static uint64_t region_last(const struct bus *bus, const struct region *region)
{
    uint64_t last = region->base + region->size - 1;
    return last < region->base || last > bus->last ? bus->last : last;
}

/* The winner at an address, and the last address up to which nothing changes. */
static struct region *winner_at(const struct bus *bus, uint64_t address, uint64_t *last)
{
    *last = bus->last;
    for (unsigned i = 0; i < bus->region_count; i++) {
        struct region *region = bus->region[i];
        if (region->base > address) {
            *last = min_u64(*last, region->base - 1);
        } else if (region_last(bus, region) >= address) {
            *last = min_u64(*last, region_last(bus, region));
            return region;
        }
    }
    return NULL;
}

static struct bus_table *table_with_room(struct bus *bus, unsigned slot, unsigned ranges)
{
    struct bus_table *table = atomic_load_explicit(&bus->table[slot], memory_order_relaxed);
    if (table && table->capacity >= ranges)
        return table;
    unsigned capacity = table ? table->capacity : 32;
    while (capacity < ranges)
        capacity *= 2;
    struct bus_table *larger = calloc(1, sizeof(*larger) + capacity * sizeof(larger->range[0]));
    if (!larger)
        return NULL;
    larger->capacity = capacity;
    larger->outgrown = table;
    atomic_store_explicit(&bus->table[slot], larger, memory_order_release);
    return larger;
}

static void range_set(struct bus_range *range, uint64_t first, uint64_t last, struct region *region)
{
    atomic_store_explicit(&range->first, first, memory_order_relaxed);
    atomic_store_explicit(&range->last, last, memory_order_relaxed);
    atomic_store_explicit(&range->region, region, memory_order_relaxed);
    atomic_store_explicit(&range->region_base, region->base, memory_order_relaxed);
}

static void publish(struct bus *bus)
{
    uint64_t sequence = atomic_load_explicit(&bus->sequence, memory_order_relaxed);
    /* n regions cut the address space into at most 2n + 1 ranges. */
    struct bus_table *table = table_with_room(bus, (sequence + 1) & 1, 2 * bus->region_count + 1);
    if (!table) {
        log_message(bus->log, LOG_ERROR, "out of memory: the %s bus keeps its old map", bus->name);
        return;
    }
    /* A late reader of this table must not take our stores for those of its own sequence number. */
    atomic_thread_fence(memory_order_seq_cst);
    unsigned count = 0;
    for (uint64_t address = 0, last; ; address = last + 1) {
        struct region *region = winner_at(bus, address, &last);
        if (region)
            range_set(&table->range[count++], address, last, region);
        if (last >= bus->last)
            break;
    }
    atomic_store_explicit(&table->count, count, memory_order_relaxed);
    atomic_store_explicit(&bus->sequence, sequence + 1, memory_order_release);
}

static bool list_has_room(struct bus *bus)
{
    if (bus->region_count < bus->region_capacity)
        return true;
    unsigned capacity = bus->region_capacity ? bus->region_capacity * 2 : 32;
    struct region **larger = realloc(bus->region, capacity * sizeof(*larger));
    if (!larger)
        return false;
    bus->region = larger;
    bus->region_capacity = capacity;
    return true;
}

void bus_map(struct bus *bus, struct region *region)
{
    if (region->size == 0 || region->mapped || region->base > bus->last)
        return;
    pthread_mutex_lock(&bus->mutex);
    if (list_has_room(bus)) {
        unsigned at = 0;
        while (at < bus->region_count && bus->region[at]->priority >= region->priority)
            at++;
        memmove(&bus->region[at + 1], &bus->region[at], (bus->region_count - at) * sizeof(bus->region[0]));
        bus->region[at] = region;
        bus->region_count++;
        region->mapped = true;
        publish(bus);
    }
    pthread_mutex_unlock(&bus->mutex);
}

void bus_unmap(struct bus *bus, struct region *region)
{
    pthread_mutex_lock(&bus->mutex);
    for (unsigned i = 0; i < bus->region_count; i++) {
        if (bus->region[i] != region)
            continue;
        bus->region_count--;
        memmove(&bus->region[i], &bus->region[i + 1], (bus->region_count - i) * sizeof(bus->region[0]));
        region->mapped = false;
        publish(bus);
        break;
    }
    pthread_mutex_unlock(&bus->mutex);
}

/* --- looking up; any thread, no locks --- */

/* Index of the first range that ends at or after the address. */
static unsigned search(const struct bus_table *table, unsigned count, uint64_t address)
{
    unsigned low = 0, high = count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (atomic_load_explicit(&table->range[middle].last, memory_order_relaxed) < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void find_once(const struct bus *bus, const struct bus_table *table, uint64_t address, struct bus_hit *hit)
{
    hit->region = NULL;
    hit->last = bus->last;
    unsigned count = table ? atomic_load_explicit(&table->count, memory_order_relaxed) : 0;
    if (count > (table ? table->capacity : 0))
        return;
    unsigned i = search(table, count, address);
    if (i == count)
        return;
    const struct bus_range *range = &table->range[i];
    uint64_t first = atomic_load_explicit(&range->first, memory_order_relaxed);
    if (first > address) {
        hit->last = first - 1;
        return;
    }
    hit->last = atomic_load_explicit(&range->last, memory_order_relaxed);
    hit->region = atomic_load_explicit(&range->region, memory_order_relaxed);
    hit->region_base = atomic_load_explicit(&range->region_base, memory_order_relaxed);
}

static bool hit_is_current(struct bus *bus, const struct bus_hit *hit)
{
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&bus->sequence, memory_order_relaxed) == hit->sequence;
}

static void find(struct bus *bus, uint64_t address, struct bus_hit *hit)
{
    do {
        hit->sequence = atomic_load_explicit(&bus->sequence, memory_order_acquire);
        const struct bus_table *table = atomic_load_explicit(&bus->table[hit->sequence & 1], memory_order_acquire);
        find_once(bus, table, address, hit);
    } while (!hit_is_current(bus, hit));
}

/* As find, but returns with the region's lock held and the answer still true. */
static void find_locked(struct bus *bus, uint64_t address, struct bus_hit *hit)
{
    for (;;) {
        find(bus, address, hit);
        if (!hit->region || !hit->region->lock)
            return;
        pthread_mutex_t *lock = hit->region->lock;
        pthread_mutex_lock(lock);
        if (hit_is_current(bus, hit))
            return;
        pthread_mutex_unlock(lock);
    }
}

/* --- access --- */

/* The largest naturally aligned piece at `offset` that is no longer than `limit` bytes. */
static unsigned piece_size(uint64_t offset, uint64_t limit)
{
    unsigned size = 8;
    while (size > 1 && (size > limit || (offset & (size - 1))))
        size /= 2;
    return size;
}

/* A read of less than the device's smallest unit: reads the unit around it and picks the bytes. */
static enum access_result read_widened(const struct region *region, struct access *access)
{
    uint64_t offset = access->address;
    unsigned shift = (offset & (region->access_min - 1)) * 8;
    struct access whole = *access;
    whole.address = align_down(offset, region->access_min);
    whole.size = region->access_min;
    if (whole.address + whole.size > region->size)
        return ACCESS_UNHANDLED;
    enum access_result result = region->access(region->owner, &whole);
    access->value = whole.value >> shift;
    return result;
}

static enum access_result enter_region(struct bus *bus, const struct region *region, struct access *piece)
{
    if (piece->size >= region->access_min || region->accept_narrow)
        return region->access(region->owner, piece);
    if (!piece->write)
        return read_widened(region, piece);
    guest_error(bus->log, "%s: write of %u bytes at offset 0x%llx dropped: the device takes %u at least", region->name,
                piece->size, (unsigned long long)piece->address, region->access_min);
    return ACCESS_OK;
}

/* Serves the first bytes of access->address..; *size says how many there are and then how many were done. */
static enum access_result access_piece(struct bus *bus, const struct access *access, uint64_t *value, unsigned *size)
{
    struct bus_hit hit;
    find_locked(bus, access->address, &hit);
    uint64_t room = min_u64(*size, hit.last - access->address + 1);
    if (access->address > bus->last) {
        room = *size;
        hit.region = NULL;
    }
    if (!hit.region) {
        *size = room;
        *value = ~0ull;
        return ACCESS_UNHANDLED;
    }
    const struct region *region = hit.region;
    unsigned max = region->access_max ? region->access_max : 8;
    struct access piece = *access;
    piece.address = access->address - hit.region_base;
    piece.size = piece_size(region->unaligned ? 0 : piece.address, min_u64(room, max));
    piece.value = access->write ? *value & size_mask(piece.size) : 0;
    enum access_result result = enter_region(bus, region, &piece);
    if (region->lock)
        pthread_mutex_unlock(region->lock);
    *value = result == ACCESS_OK ? piece.value : ~0ull;
    *size = piece.size;
    return result;
}

static void trace_access(struct bus *bus, const struct access *access, enum access_result result)
{
    if (trace_on(bus->log, bus->trace_every))
        trace_print(bus->log, bus->trace_every, "%s %s 0x%llx size %u value 0x%llx by %04x", bus->name,
                    access->write ? "write" : "read", (unsigned long long)access->address, access->size,
                    (unsigned long long)access->value, access->requester);
    if (result == ACCESS_UNHANDLED)
        trace(bus->log, bus_unassigned, "%s %s 0x%llx size %u", bus->name, access->write ? "write" : "read",
              (unsigned long long)access->address, access->size);
}

enum access_result bus_access(struct bus *bus, struct access *access)
{
    unsigned total = access->size > 8 ? 8 : access->size;
    uint64_t read_value = 0;
    enum access_result result = ACCESS_UNHANDLED;
    for (unsigned done = 0, size; done < total; done += size) {
        struct access part = *access;
        uint64_t value = access->value >> (done * 8);
        part.address += done;
        size = total - done;
        enum access_result part_result = access_piece(bus, &part, &value, &size);
        read_value |= (value & size_mask(size)) << (done * 8);
        if (part_result == ACCESS_FAULT)
            result = ACCESS_FAULT;
        else if (part_result == ACCESS_OK && result == ACCESS_UNHANDLED)
            result = ACCESS_OK;
    }
    if (!access->write)
        access->value = read_value;
    trace_access(bus, access, result);
    return result;
}

const struct region *bus_find(struct bus *bus, uint64_t address)
{
    if (address > bus->last)
        return NULL;
    struct bus_hit hit;
    find(bus, address, &hit);
    return hit.region;
}

static int by_base(const void *a, const void *b)
{
    const struct region *left = *(struct region *const *)a, *right = *(struct region *const *)b;
    return left->base < right->base ? -1 : left->base > right->base;
}

void bus_for_each(struct bus *bus, void (*each)(const struct region *region, void *opaque), void *opaque)
{
    pthread_mutex_lock(&bus->mutex);
    unsigned count = bus->region_count;
    struct region **sorted = malloc((count + 1) * sizeof(*sorted));
    if (sorted && count)
        memcpy(sorted, bus->region, count * sizeof(*sorted));
    pthread_mutex_unlock(&bus->mutex);
    if (!sorted)
        return;
    qsort(sorted, count, sizeof(*sorted), by_base);
    for (unsigned i = 0; i < count; i++)
        each(sorted[i], opaque);
    free(sorted);
}
