#include "machine/boot_place.h"

#include <stdlib.h>
#include <string.h>

#include "machine/layout.h"
#include "mem/ram.h"

void place_init(struct placement *place, const struct boot_target *target)
{
    *place = (struct placement){
        .target = target,
        .count = 2,
        .claim = { { 0, 0x1000, "the interrupt vectors" },
                   { CONVENTIONAL_END, HIGH_MEMORY_START, "the BIOS area" } },
    };
}

/* The end of the RAM that holds `start`, or 0 if it is not RAM. */
static uint64_t ram_end_of(const struct boot_target *target, uint64_t start)
{
    if (start < target->low_ram_end)
        return target->low_ram_end;
    if (start >= PLACE_4G && start < target->high_ram_end)
        return target->high_ram_end;
    return 0;
}

/* The claim that [start, start+size) touches, or NULL. */
static const struct place_claim *claimed(const struct placement *place, uint64_t start, uint64_t size)
{
    for (unsigned i = 0; i < place->count; i++) {
        const struct place_claim *claim = &place->claim[i];
        if (start < claim->end && claim->start < start + size)
            return claim;
    }
    return NULL;
}

bool place_claim(struct placement *place, uint64_t start, uint64_t size, const char *what, struct error *err)
{
    if (!size)
        return true;
    uint64_t end = ram_end_of(place->target, start);
    if (!end || size > end - start)
        return error_set(err, "%s wants memory from 0x%llx for 0x%llx bytes, where this machine has no RAM (try more --memory)",
                         what, (unsigned long long)start, (unsigned long long)size);
    const struct place_claim *other = claimed(place, start, size);
    if (other)
        return error_set(err, "%s at 0x%llx overlaps %s", what, (unsigned long long)start, other->what);
    if (place->count == PLACE_CLAIMS_MAX)
        return error_set(err, "the image has too many parts");
    place->claim[place->count++] = (struct place_claim){ start, start + size, what };
    return true;
}

static bool load(struct ram *ram, uint64_t start, const void *data, size_t size, const char *what, struct error *err)
{
    if (size && !ram_load(ram, start, data, size))
        return error_set(err, "%s does not fit in RAM", what);
    return true;
}

/* Clears memory that a run before a reset may have used. */
static bool clear(struct ram *ram, uint64_t start, uint64_t size, const char *what, struct error *err)
{
    static const uint8_t zeros[65536];
    while (size) {
        size_t part = (size_t)min_u64(size, sizeof(zeros));
        if (!load(ram, start, zeros, part, what, err))
            return false;
        start += part;
        size -= part;
    }
    return true;
}

bool place_put(struct placement *place, uint64_t start, const void *data, size_t size, uint64_t total, const char *what,
               struct error *err)
{
    total = max_u64(total, size);
    return place_claim(place, start, total, what, err) &&
           load(place->target->ram, start, data, size, what, err) &&
           clear(place->target->ram, start + size, total - size, what, err);
}

static bool no_room(uint64_t size, const char *what, struct error *err)
{
    return error_set(err, "there is no room in memory for %s (%llu KiB); give the machine more --memory", what,
                     (unsigned long long)((size + 1023) / 1024));
}

/* Both searches jump from one claim to the next; claims are finite, so they end. */
bool place_low(struct placement *place, uint64_t size, uint64_t align, uint64_t min, uint64_t max, const char *what,
               uint64_t *start, struct error *err)
{
    uint64_t limit = min_u64(max, place->target->low_ram_end), at = align_up(min, align);
    while (size <= limit && at <= limit - size) {
        const struct place_claim *other = claimed(place, at, size);
        if (!other) {
            *start = at;
            return place_claim(place, at, size, what, err);
        }
        at = align_up(other->end, align);
    }
    return no_room(size, what, err);
}

bool place_high(struct placement *place, uint64_t size, uint64_t align, uint64_t min, uint64_t max, const char *what,
                uint64_t *start, struct error *err)
{
    uint64_t limit = min_u64(max, place->target->low_ram_end);
    while (size <= limit && align_down(limit - size, align) >= min) {
        uint64_t at = align_down(limit - size, align);
        const struct place_claim *other = claimed(place, at, size);
        if (!other) {
            *start = at;
            return place_claim(place, at, size, what, err);
        }
        limit = other->start;
    }
    return no_room(size, what, err);
}

bool place_structure(struct placement *place, const void *data, size_t size, const char *what, uint64_t *start,
                     struct error *err)
{
    return place_low(place, size, 16, 0x1000, CONVENTIONAL_END, what, start, err) &&
           load(place->target->ram, *start, data, size, what, err);
}

unsigned place_memory_map(const struct boot_target *target, struct e820_range map[E820_MAX])
{
    unsigned n = 0;
    map[n++] = (struct e820_range){ 0, CONVENTIONAL_END, E820_RAM };
    map[n++] = (struct e820_range){ CONVENTIONAL_END, HIGH_MEMORY_START - CONVENTIONAL_END, E820_RESERVED };
    if (target->low_ram_end > HIGH_MEMORY_START)
        map[n++] = (struct e820_range){ HIGH_MEMORY_START, target->low_ram_end - HIGH_MEMORY_START, E820_RAM };
    map[n++] = (struct e820_range){ ECAM_BASE, ECAM_SIZE, E820_RESERVED };
    if (target->high_ram_end > PLACE_4G)
        map[n++] = (struct e820_range){ PLACE_4G, target->high_ram_end - PLACE_4G, E820_RAM };
    return n;
}

/* SDM3 §3.4.5 "Segment Descriptors": flat, present, DPL 0, accessed; code is readable and data writable. */
static const uint64_t flat_code32 = 0x00CF9B000000FFFFull, flat_code64 = 0x00AF9B000000FFFFull,
                      flat_data = 0x00CF93000000FFFFull;

bool place_gdt(struct placement *place, bool code64, struct boot_entry *entry, struct error *err)
{
    const uint64_t gdt[] = { 0, 0, code64 ? flat_code64 : flat_code32, flat_data };
    entry->gdt_limit = sizeof(gdt) - 1;
    entry->cs = BOOT_CS;
    entry->ds = BOOT_DS;
    return place_structure(place, gdt, sizeof(gdt), "the descriptor table", &entry->gdt_base, err);
}

/* SDM3 §4.5 "4-Level Paging and 5-Level Paging": present, writable; 2 MiB pages. */
bool place_identity_map(struct placement *place, struct boot_entry *entry, struct error *err)
{
    enum { PRESENT_WRITABLE = 3, LARGE = 0x80, ENTRIES = 512, GIGABYTES = 4, TABLES = 2 + GIGABYTES };
    uint64_t base;
    if (!place_low(place, TABLES * PAGE_SIZE, PAGE_SIZE, 0x1000, CONVENTIONAL_END, "the page tables", &base, err))
        return false;
    uint64_t *table = calloc(TABLES, PAGE_SIZE);
    if (!table)
        return error_set(err, "out of memory");
    uint64_t *pdpt = table + ENTRIES, *pd = table + 2 * ENTRIES;
    table[0] = (base + PAGE_SIZE) | PRESENT_WRITABLE;
    for (unsigned i = 0; i < GIGABYTES; i++)
        pdpt[i] = (base + (2 + i) * PAGE_SIZE) | PRESENT_WRITABLE;
    for (uint64_t i = 0; i < GIGABYTES * ENTRIES; i++)
        pd[i] = i << 21 | LARGE | PRESENT_WRITABLE;
    entry->cr3 = base;
    bool done = load(place->target->ram, base, table, TABLES * PAGE_SIZE, "the page tables", err);
    free(table);
    return done;
}
