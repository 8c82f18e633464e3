/*
 * What an entry of kept.h is made of, for the files that make (kept_add.c), check and use (kept.c) it. Of one that has not been checked only what
 * kept_has_shape has looked at may be read.
 */
#ifndef DOPPEL_DBT_KEPT_ENTRY_H
#define DOPPEL_DBT_KEPT_ENTRY_H

#include "engine/dbt/kept.h"
#include "engine/dbt/plan.h"

enum {
    PROBE = 12,                         /* bytes of guest code that an entry is looked for by, at most */
    PROBES = 3,
    HOLE = 4,                           /* bytes */
    HOLES_MOST = 32,
    BYTES_MOST = TRACE_MAX * INSN_LENGTH_MAX,
};
/*
 * An entry is found by as many of the bytes from its first instruction on as are its own and lie before its first hole; half of that,
 * if it is not relative, is the same in every place that a kernel is moved to.
 */
static const uint8_t kept_probe[PROBES] = { PROBE, 5, 3 };

struct kept_site { uint16_t in_page, remaining, bytes_at; uint8_t length, early; struct x87_noted x87; };
struct kept_link { uint16_t field, ask, stub, uncount; int32_t target; uint8_t live, far; uint16_t expected; };        /* field, expected NO_FIELD: none; target: from the trace's RIP */
enum { NO_FIELD = 0xFFFF };
struct kept_range { uint16_t at, size; };       /* of guest code in the page */
struct kept_hole {
    uint16_t at;                        /* in `bytes` */
    uint16_t same_as;                   /* the first hole with the same value; relative: itself */
    uint16_t next;                      /* relative: the place in the page that the displacement counts from; `bytes` has the sum */
    uint16_t relative;
};

/* What follows it is in this order; code last. */
struct kept {
    uint16_t code_size, hot_size;       /* both parts of the code, and the hot one, which comes first */
    uint16_t entry, live_entry;
    uint16_t in_page, mode;
    uint16_t count;                     /* guest instructions */
    uint16_t relocs, links, sites, traps, ranges, holes, bytes;
    uint16_t live, spare[1];
};

struct kept_parts {
    const struct reloc *reloc;
    const struct kept_link *link;
    const struct kept_site *site;
    const struct trap *trap;
    const struct kept_range *range;
    const struct kept_hole *hole;
    const uint8_t *bytes, *code;
    size_t size;                        /* of the whole, a multiple of 8 */
};
static_assert(sizeof(struct kept) % 8 == 0 && sizeof(struct reloc) == 8 && sizeof(struct kept_link) == 16 && sizeof(struct kept_site) == 12 &&
              sizeof(struct trap) % 4 == 0 && sizeof(struct kept_range) == 4 && sizeof(struct kept_hole) == 8, "parts follow each other without gaps");

static inline struct kept_parts kept_parts(const struct kept *k)
{
    struct kept_parts p;
    p.reloc = (const struct reloc *)(k + 1);
    p.link = (const struct kept_link *)(p.reloc + k->relocs);
    p.site = (const struct kept_site *)(p.link + k->links);
    p.trap = (const struct trap *)(p.site + k->sites);
    p.range = (const struct kept_range *)(p.trap + k->traps);
    p.hole = (const struct kept_hole *)(p.range + k->ranges);
    p.bytes = (const uint8_t *)(p.hole + k->holes);
    p.code = p.bytes + k->bytes;
    p.size = align_up((size_t)(p.code + k->code_size - (const uint8_t *)k), 8);
    return p;
}

/* What of the mode an entry depends on. */
enum { KEPT_EXACT = 0x100 };
static inline uint16_t kept_mode(uint8_t mode, bool exact) { return (uint16_t)(mode | (exact ? KEPT_EXACT : 0)); }

/* What the store finds it by: `size` bytes of guest code, at their place in the page. */
static inline uint32_t kept_key(uint16_t mode, const uint8_t *code, uint16_t in_page, unsigned size)
{
    uint64_t a = 0;
    uint32_t b = 0;
    memcpy(&a, code, size < 8 ? size : 8);
    if (size == PROBE)
        memcpy(&b, code + 8, 4);
    a = (a ^ (uint64_t)b << 23) * 0x9E3779B97F4A7C15u;
    a = (a ^ a >> 29 ^ ((uint64_t)size << 32 | (uint64_t)mode << 16 | in_page)) * 0xBF58476D1CE4E5B9u;
    return (uint32_t)(a >> 32);
}

/* The host's address of the code at rip, if the TLB knows the page and the probe lies in it. */
static inline const uint8_t *kept_code_at(const struct vcpu *vcpu, uint64_t *gpa)
{
    unsigned i = tlb_index(vcpu->rip);
    const struct tlb_entry *entry = &vcpu->tlb_code->entry[i];
    if (entry->tag[MMU_FETCH] != (vcpu->rip & ~PAGE_MASK) || (vcpu->rip & PAGE_MASK) > PAGE_SIZE - PROBE)
        return NULL;
    *gpa = (vcpu->tlb_code->info[i] & ~PAGE_MASK) | (vcpu->rip & PAGE_MASK);
    return (const uint8_t *)(vcpu->rip + entry->addend);
}

static inline uint32_t kept_load32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

/* --- kept_check.c --- */
/* Do the parts lie in the entry, the ranges in a page, the holes in the bytes? */
bool kept_has_shape(const struct kept *k, size_t size);
/* Of one that has its shape: is each of its parts something that we would write? */
bool kept_parts_fit(const struct kept *k);

#endif
