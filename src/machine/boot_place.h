/*
 * Where loaders put things. Every piece of an image or of a boot structure claims its range first; a range that is not RAM,
 * or that something else has claimed, is refused. So an image can ask for any address and cannot overwrite what
 * describes it.
 */
#ifndef DOPPEL_MACHINE_BOOT_PLACE_H
#define DOPPEL_MACHINE_BOOT_PLACE_H

#include "base/error.h"
#include "machine/boot.h"

enum { PLACE_CLAIMS_MAX = 96, CONVENTIONAL_END = 0x9FC00, HIGH_MEMORY_START = 0x100000 };

/* Ends of search ranges: below the EBDA, and below 4 GiB. */
#define PLACE_4G (1ull << 32)

struct placement {
    const struct boot_target *target;
    unsigned count;
    struct place_claim {
        uint64_t start, end;        /* end is the first byte after */
        const char *what;
    } claim[PLACE_CLAIMS_MAX];
};

/* The interrupt vectors and the BIOS area are claimed from the start. */
void place_init(struct placement *place, const struct boot_target *target);

/* Claims [start, start+size) for `what` (a word or two for messages, borrowed). */
bool place_claim(struct placement *place, uint64_t start, uint64_t size, const char *what, struct error *err);
/* Claims and copies; `size` bytes of data, then zeros up to `total`. */
bool place_put(struct placement *place, uint64_t start, const void *data, size_t size, uint64_t total, const char *what,
               struct error *err);
/* Finds free RAM for `size` bytes in [min, max), claims it; the lowest or the highest address there is. */
bool place_low(struct placement *place, uint64_t size, uint64_t align, uint64_t min, uint64_t max, const char *what,
               uint64_t *start, struct error *err);
bool place_high(struct placement *place, uint64_t size, uint64_t align, uint64_t min, uint64_t max, const char *what,
                uint64_t *start, struct error *err);
/* place_low in conventional memory, 16-byte aligned, and a copy of the data. */
bool place_structure(struct placement *place, const void *data, size_t size, const char *what, uint64_t *start,
                     struct error *err);

/* The memory map that every boot protocol hands over, in e820 types (ACPI 6.4 §15 "System Address Map Interfaces"). */
enum { E820_RAM = 1, E820_RESERVED = 2, E820_MAX = 8 };
struct e820_range {
    uint64_t start, size;
    uint32_t type;
};
unsigned place_memory_map(const struct boot_target *target, struct e820_range map[E820_MAX]);

/*
 * Descriptor table of the flat segments, at the selectors of the Linux boot protocol (__BOOT_CS 0x10, __BOOT_DS 0x18),
 * which suit PVH and Multiboot as well; and page tables that map the first 4 GiB one to one. Both fill in the entry.
 */
enum { BOOT_CS = 0x10, BOOT_DS = 0x18 };
bool place_gdt(struct placement *place, bool code64, struct boot_entry *entry, struct error *err);
bool place_identity_map(struct placement *place, struct boot_entry *entry, struct error *err);

/* Little-endian fields of hostile bytes; the caller has checked the bounds. */
static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t get32(const uint8_t *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }
static inline uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }
static inline void put16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, (uint16_t)v); put16(p + 2, (uint16_t)(v >> 16)); }
static inline void put64(uint8_t *p, uint64_t v) { put32(p, (uint32_t)v); put32(p + 4, (uint32_t)(v >> 32)); }

/* True if [offset, offset+size) lies within the blob, whatever the numbers. */
static inline bool blob_has(const struct blob *blob, uint64_t offset, uint64_t size)
{
    return offset <= blob->size && size <= blob->size - offset;
}

#endif
