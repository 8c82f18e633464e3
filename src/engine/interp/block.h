/*
 * The cache of decoded blocks of one vCPU, by guest-physical address and mode key. Blocks live in an arena that is thrown
 * away as a whole when it is full.
 *
 * Code is watched in granules of 64 bytes (mem/code_map.h). A vCPU's own write drops what it touches; one by another vCPU or a
 * device drops whole granules or pages, and with them code that did not change. A dropped block is therefore only made stale: when it
 * is wanted again and its bytes are as they were it is revived, which costs a comparison; if only constants in it have changed, just
 * those instructions are decoded anew. In pages where that does not help blocks end with their granule.
 */
#ifndef DOPPEL_INTERP_BLOCK_H
#define DOPPEL_INTERP_BLOCK_H

#include "base/ahead.h"
#include "engine/interp/op.h"
#include "x86/decode.h"

enum {
    BLOCK_HASH_BITS = 18,
    BLOCK_PAGE_BITS = 12,
    BLOCK_PART_SHIFT = 9,       /* of parts of a page, */
    BLOCK_PART_BITS = BLOCK_PAGE_BITS + PAGE_SHIFT - BLOCK_PART_SHIFT,
    BLOCK_ARENA_SIZE = 96 << 20,
    BLOCK_HEAT = 32,            /* blocks of a page whose bytes changed before its new ones end with their granule */
    BLOCK_COOLING = 8192,       /* after so many decoded blocks all pages are cool again */
};
#define BLOCK_DROPPED (~0ull)

struct block_cache {
    struct block *hash[1 << BLOCK_HASH_BITS];
    struct block *part[1 << BLOCK_PART_BITS];       /* lists of blocks by the part of a page that gpa is in, */
    struct block *rest[1 << BLOCK_PAGE_BITS];       /* and by gpa2 */
    uint64_t live[1 << BLOCK_PAGE_BITS];            /* of these pages: a bit for each granule that a block may be in which is not stale */
    uint8_t heat[1 << BLOCK_PAGE_BITS];             /* changed blocks, by page, saturating */
    uint8_t *arena;
    size_t used;
    struct ahead *ahead;                            /* grants of the arena what comes next; NULL: nobody does */
    struct ahead_arena granted;
    uint64_t flushes;
    uint64_t stub_flushes;                          /* how often the native stubs that ops point to were thrown away */
    unsigned decoded;                               /* blocks, since the pages cooled down */
    struct decoder decoder[MODE_LONG64 + 1];
};

struct block_cache *block_cache_create(struct vcpu *vcpu);
void block_cache_destroy(struct block_cache *cache);

/* Neighbours have neighbouring buckets, several of which one line of the processor's cache holds. */
static inline unsigned block_hash(uint64_t gpa, uint32_t key)
{
    return (unsigned)((gpa >> 2 ^ (gpa >> (BLOCK_HASH_BITS + 2)) ^ ((uint64_t)key << 8)) & ((1u << BLOCK_HASH_BITS) - 1));
}

static inline struct block *block_lookup(const struct block_cache *cache, uint64_t gpa, uint32_t key)
{
    struct block *block = cache->hash[block_hash(gpa, key)];
    while (block && (block->gpa != gpa || block->key != key))
        block = block->hash_next;
    return block;
}

/* It will be looked up. */
static inline void block_expect(const struct block_cache *cache, uint64_t gpa, uint32_t key) { __builtin_prefetch(&cache->hash[block_hash(gpa, key)]); }

/* The bytes that the block was decoded from. */
static inline uint8_t *block_code(struct block *block)
{
    return (uint8_t *)&block->op[block->op_count];
}

/* What the mode key of the vCPU's present state is. */
uint32_t block_mode_key(const struct vcpu *vcpu);

/*
 * The block at vcpu->rip, decoded if need be. NULL: a fetch fault is pending. A block that may not be kept (code outside RAM, or
 * cut short by the code segment's limit) is the scratch block, good for one run. `one` asks for a scratch copy of just
 * the first instruction.
 */
struct block *block_get(struct vcpu *vcpu, bool one);

/* Makes the code map watch bytes of one page; only after that may they be read for decoding (mem/code_map.h). */
void block_watch(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
/* Drops the blocks in the granules of the bytes, which the code map has forgotten. */
void block_drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
/* The same after a write by this vCPU itself: it is likely to want most of them again, so they are watched at once. */
void block_overwritten(struct vcpu *vcpu, uint64_t gpa, uint64_t size);
/* Drops everything; not while a block runs. */
void block_flush(struct vcpu *vcpu);
/* The native stubs as well, and with them every op that points to one. */
void block_flush_stubs(struct vcpu *vcpu);

#endif
