#include "engine/interp/block.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "engine/interp/bind.h"
#include "engine/interp/native.h"
#include "mem/code_map.h"
#include "x86/templates.h"

/* --- the cache --- */

struct block_cache *block_cache_create(struct vcpu *vcpu)
{
    struct block_cache *cache = calloc(1, sizeof(*cache));
    if (!cache)
        return NULL;
    cache->arena = mmap(NULL, BLOCK_ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cache->arena == MAP_FAILED) {
        free(cache);
        return NULL;
    }
    madvise(cache->arena, BLOCK_ARENA_SIZE, MADV_HUGEPAGE);
    cache->granted = (struct ahead_arena){ .base = cache->arena, .size = BLOCK_ARENA_SIZE };
    for (unsigned mode = MODE_REAL; mode <= MODE_LONG64; mode++)
        decoder_init(&cache->decoder[mode], vcpu, mode);
    cache->decoder[MODE_LONG64].templates = templates_create(decoder_zydis(&cache->decoder[MODE_LONG64]));
    return cache;
}

void block_cache_destroy(struct block_cache *cache)
{
    if (!cache)
        return;
    munmap(cache->arena, BLOCK_ARENA_SIZE);
    templates_destroy(cache->decoder[MODE_LONG64].templates);
    free(cache);
}

void block_flush(struct vcpu *vcpu)
{
    struct interp *interp = interp_of(vcpu);
    memset(interp->cache->hash, 0, sizeof(interp->cache->hash));
    memset(interp->cache->part, 0, sizeof(interp->cache->part));
    memset(interp->cache->rest, 0, sizeof(interp->cache->rest));
    memset(interp->cache->live, 0, sizeof(interp->cache->live));
    memset(interp->cache->heat, 0, sizeof(interp->cache->heat));
    interp->cache->used = 0;
    interp->cache->flushes++;
    interp->link_from = NULL;
}

void block_flush_stubs(struct vcpu *vcpu)
{
    struct interp *interp = interp_of(vcpu);
    block_flush(vcpu);
    interp->cache->stub_flushes++;
    native_cache_reset(interp->native);
}

static unsigned page_hash(uint64_t gpa)
{
    return (gpa >> PAGE_SHIFT) & ((1u << BLOCK_PAGE_BITS) - 1);
}

static struct block **part_of(struct block_cache *cache, uint64_t gpa) { return &cache->part[(gpa >> BLOCK_PART_SHIFT) & ((1u << BLOCK_PART_BITS) - 1)]; }

static void unhook_hash(struct block_cache *cache, struct block *block)
{
    struct block **at = &cache->hash[block_hash(block->gpa, block->key)];
    while (*at && *at != block)
        at = &(*at)->hash_next;
    if (*at)
        *at = block->hash_next;
}

static void make_stale(struct vcpu *vcpu, struct block *block)
{
    for (unsigned i = 0; i < block->op_count; i++)
        block->op[i].run = op_stale;
    block->stale = true;
    counter_add(&vcpu->counters, COUNTER_blocks_dropped, 1);
}

/* Its bytes have changed for good. */
static void discard(struct vcpu *vcpu, struct block *block)
{
    if (!block->stale)
        make_stale(vcpu, block);
    unhook_hash(interp_of(vcpu)->cache, block);
    block->gpa = BLOCK_DROPPED;
}

static bool overlaps(const struct block *block, uint64_t gpa, uint64_t size)
{
    uint64_t page_end = (block->gpa | PAGE_MASK) + 1, end = min_u64(block->gpa + block->bytes, page_end);
    if (block->gpa < gpa + size && gpa < end)
        return true;
    if (block->gpa2 == BLOCK_DROPPED)
        return false;
    uint64_t rest = block->gpa + block->bytes - page_end;
    return block->gpa2 < gpa + size && gpa < block->gpa2 + rest;
}

/* --- dropping --- */

void block_watch(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    if (code_map_add(vcpu->ram, gpa, size))
        mmu_unshare_writes(vcpu, gpa);
}

/* A bit for each granule of a page that these bytes of it are in. */
static uint64_t granules(uint64_t gpa, uint64_t size)
{
    unsigned first = (gpa & PAGE_MASK) >> CODE_GRANULE_SHIFT;
    unsigned last = (unsigned)min_u64((gpa & PAGE_MASK) + size - 1, PAGE_MASK) >> CODE_GRANULE_SHIFT;
    return (~0ull << first) & (~0ull >> (63 - last));
}
static_assert(PAGE_SIZE >> CODE_GRANULE_SHIFT == 64, "a bit for each granule");

/* Of its bytes in the page of gpa, or in that of gpa2. */
static uint64_t block_granules(const struct block *block, unsigned which)
{
    return which ? granules(0, block->bytes - (PAGE_SIZE - (block->gpa & PAGE_MASK))) : granules(block->gpa, block->bytes);
}

static void note_live(struct block_cache *cache, const struct block *block)
{
    for (unsigned which = 0; which < (block->gpa2 == BLOCK_DROPPED ? 1 : 2); which++)
        cache->live[page_hash(which ? block->gpa2 : block->gpa)] |= block_granules(block, which);
}

/* Of one list; the granules of the blocks there that are not stale. Dropped blocks stay in the other list that they may be in until somebody comes by there. */
static uint64_t drop_in_list(struct vcpu *vcpu, struct block **at, unsigned which, uint64_t gpa, uint64_t size, bool watched)
{
    uint64_t live = 0;
    while (*at) {
        struct block *block = *at;
        if (block->gpa != BLOCK_DROPPED && overlaps(block, gpa, size)) {
            block->watched = watched && (block->watched || !block->stale);
            if (!block->stale)
                make_stale(vcpu, block);
        }
        if (!block->stale)
            live |= block_granules(block, which);
        if (block->gpa == BLOCK_DROPPED)
            *at = block->page_next[which];
        else
            at = &block->page_next[which];
    }
    return live;
}

enum { BYTES_MOST = BLOCK_OPS_MAX * INSN_LENGTH_MAX };      /* of a block */

/*
 * A page of a kernel's code has a hundred blocks, whose headers are in none of the processor's caches: so only those parts of it are gone through
 * in which a block may begin that has bytes in the same granules. A page whose code is written anew, piece by piece, has long lists and few live granules.
 */
static void drop_in_page(struct vcpu *vcpu, uint64_t gpa, uint64_t size, bool watched)
{
    struct block_cache *cache = interp_of(vcpu)->cache;
    uint64_t *live = &cache->live[page_hash(gpa)], touched = granules(gpa, size), still = 0;
    if (watched && !(*live & touched))
        return;                         /* stale ones stay watched */
    uint64_t first = gpa & ~(uint64_t)(CODE_GRANULE - 1), page = gpa & ~PAGE_MASK;
    first = first - page < BYTES_MOST ? page : first - BYTES_MOST;
    for (uint64_t part = first >> BLOCK_PART_SHIFT; part <= (gpa + size - 1) >> BLOCK_PART_SHIFT; part++)
        still |= drop_in_list(vcpu, part_of(cache, part << BLOCK_PART_SHIFT), 0, gpa, size, watched);
    if (touched & 1)
        still |= drop_in_list(vcpu, &cache->rest[page_hash(gpa)], 1, gpa, size, watched);
    *live = (*live & ~touched) | (still & touched);
}
static_assert((int)INSN_LENGTH_MAX <= (int)CODE_GRANULE && (int)CODE_GRANULE <= 1 << BLOCK_PART_SHIFT, "a block has a rest in the first granule only, and granules lie in one part");

static void drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size, bool watched)
{
    for (uint64_t part; size; gpa += part, size -= part) {
        part = min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
        drop_in_page(vcpu, gpa, part, watched);
    }
}

void block_drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size) { drop(vcpu, gpa, size, false); }

/*
 * Only what the bytes touch goes: the granule is still watched, so its other blocks stay. A whole page is one that the code map forgot with this
 * write: another vCPU may have marked some of it since, and not what these blocks are of.
 */
void block_overwritten(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    drop(vcpu, gpa, size, size < PAGE_SIZE && code_map_hit(vcpu->ram, gpa, size));
}

/* --- the key --- */

static bool flat_data(const struct segment *s)
{
    uint32_t want = SEG_S | SEG_P | SEG_WRITABLE;
    uint32_t unwanted = SEG_CODE | SEG_EXPAND_DOWN | SEG_UNUSABLE;
    return s->base == 0 && s->limit == 0xFFFFFFFF && (s->attr & (want | unwanted)) == want;
}

uint32_t block_mode_key(const struct vcpu *vcpu)
{
    uint32_t key = vcpu->mode | (vcpu->mmu->alignment_check ? KEY_ALIGNMENT : 0);
    if (vcpu->mode == MODE_LONG64)
        return key;
    if (flat_data(&vcpu->seg[ES]) && flat_data(&vcpu->seg[SS]) && flat_data(&vcpu->seg[DS]))
        key |= KEY_FLAT_DATA;
    if (vcpu->seg[SS].attr & SEG_DB)
        key |= KEY_STACK32;
    if (vcpu->seg[CS].base == 0 && vcpu->seg[CS].limit == 0xFFFFFFFF)
        key |= KEY_FLAT_CODE;
    return key;
}

/* --- decoding --- */

/* Where the bytes of a block come from. */
struct source {
    uint64_t gla, gpa;
    const uint8_t *host;        /* NULL: not RAM, fetch byte-wise */
    uint64_t limit;             /* bytes from gla that the code segment still holds */
    uint64_t watched;           /* bytes from gla that the code map knows */
    uint64_t gpa2;              /* next page, if the first instruction was fetched from there, too, and it is RAM */
};

/* Watches as far as the next instruction may reach. */
static void watch_ahead(struct vcpu *vcpu, struct source *source, unsigned where)
{
    unsigned granule = 1u << CODE_GRANULE_SHIFT;
    uint64_t in_page = PAGE_SIZE - (source->gpa & PAGE_MASK), want = min_u64(where + INSN_LENGTH_MAX, in_page);
    while (source->watched < want) {
        uint64_t gpa = source->gpa + source->watched, part = granule - (gpa & (granule - 1));
        block_watch(vcpu, gpa, part);
        source->watched += part;
    }
}

static bool watch_next_page(struct vcpu *vcpu, struct source *source, uint64_t gla)
{
    bool mmio;
    if (!mmu_fetch_page(vcpu, gla, &source->gpa2, &mmio)) {
        source->gpa2 = BLOCK_DROPPED;
        return mmio;
    }
    source->gpa2 &= ~PAGE_MASK;
    block_watch(vcpu, source->gpa2, INSN_LENGTH_MAX);
    return true;
}

/*
 * Copies the bytes of the instruction at `where` that can be had without leaving its page and segment. For the first
 * instruction of a block `cross` fetches beyond the page; a fault there is pending when it returns -1.
 */
static int fetch(struct vcpu *vcpu, struct source *source, unsigned where, uint8_t *bytes, bool cross)
{
    uint64_t in_page = PAGE_SIZE - (source->gla & PAGE_MASK);
    if (where >= source->limit || (where >= in_page && where))
        return 0;
    unsigned size = (unsigned)min_u64(min_u64(in_page, source->limit) - where, INSN_LENGTH_MAX);
    if (source->host) {
        watch_ahead(vcpu, source, where);
        memcpy(bytes, source->host + where, size);
    } else if (!mmu_fetch_bytes(vcpu, source->gla + where, bytes, size)) {
        return -1;
    }
    if (!cross || size == INSN_LENGTH_MAX || source->limit <= in_page)
        return (int)size;
    unsigned more = (unsigned)min_u64(INSN_LENGTH_MAX - size, source->limit - in_page);
    if (!watch_next_page(vcpu, source, source->gla + in_page))
        return -1;
    return mmu_fetch_bytes(vcpu, source->gla + in_page, bytes + size, more) ? (int)(size + more) : -1;
}

static struct block *arena_reserve(struct vcpu *vcpu)
{
    struct block_cache *cache = interp_of(vcpu)->cache;
    size_t most = sizeof(struct block) + (BLOCK_OPS_MAX + 1) * sizeof(struct op) + BLOCK_OPS_MAX * INSN_LENGTH_MAX;
    if (cache->used + most > BLOCK_ARENA_SIZE)
        block_flush(vcpu);
    ahead_of_arena(cache->ahead, &cache->granted, cache->used);
    return (struct block *)(cache->arena + cache->used);
}

static void close_block(struct block *block, bool open_ended, unsigned where)
{
    if (open_ended) {
        struct op *op = &block->op[block->op_count++];
        memset(op, 0, sizeof(*op));
        op->run = op_fallthrough;
        op->where = (uint16_t)where;
    }
    for (unsigned i = 0; i < block->op_count; i++) {
        block->op[i].back = (uint16_t)((char *)&block->op[i] - (char *)block);
        block->op[i].handler = (int32_t)((intptr_t)block->op[i].run - (intptr_t)op_stale);
    }
}

static void raise_op(struct block *block, op_fn *run, int size)
{
    block->op[0] = (struct op){ .run = run };
    block->op_count = block->count = 1;
    block->bytes = (uint16_t)size;
}

enum step { STEP_MORE, STEP_END, STEP_CLOSED, STEP_FULL, STEP_FAULT };

/* Decodes the instruction at `where` into the block's next op; its bytes go to code + where. */
static enum step decode_one(struct vcpu *vcpu, struct source *source, struct block *block, unsigned where, uint8_t *code)
{
    uint8_t *bytes = code + where;
    struct insn insn;
    bool first = block->count == 0;
    const struct decoder *decoder = &interp_of(vcpu)->cache->decoder[block->key & KEY_MODE];
    int size = fetch(vcpu, source, where, bytes, false);
    if (size <= 0)
        return first ? STEP_FAULT : STEP_END;
    enum decode_result result = decode(decoder, bytes, (size_t)size, &insn);
    if (result == DECODE_MORE && first) {
        size = fetch(vcpu, source, where, bytes, true);
        if (size < 0)
            return STEP_FAULT;
        result = decode(decoder, bytes, (size_t)size, &insn);
        if (result == DECODE_MORE)
            result = size == INSN_LENGTH_MAX ? DECODE_TOO_LONG : DECODE_MORE;
    }
    if (result == DECODE_MORE && first) {
        x86_raise_error(vcpu, VEC_GP, 0);      /* the instruction runs over the code segment's limit */
        return STEP_FAULT;
    }
    if (result != DECODE_OK) {
        if (first)
            raise_op(block, result == DECODE_TOO_LONG ? op_too_long : op_undefined, size);
        return first ? STEP_CLOSED : STEP_END;
    }
    enum bind_result bound = bind_op(vcpu, &insn, &block->op[block->op_count], where, block->key, decoder);
    if (bound == BIND_FULL)
        return STEP_FULL;
    block->op_count++;
    block->count++;
    block->bytes = (uint16_t)(where + insn.length);
    return bound == BIND_FLOWS ? STEP_MORE : STEP_CLOSED;
}

/* Decodes at most `most` instructions, the last of which begins before `end`; false: fault pending, or (flushed) start again. */
static bool decode_block(struct vcpu *vcpu, struct source *source, struct block *block, unsigned most, unsigned end, bool *flushed)
{
    uint8_t code[(BLOCK_OPS_MAX + 1) * INSN_LENGTH_MAX];
    unsigned where = 0;
    enum step step = STEP_MORE;
    *flushed = false;
    while (step == STEP_MORE && block->count < most && where < end) {
        step = decode_one(vcpu, source, block, where, code);
        if (step == STEP_FAULT)
            return false;
        if (step == STEP_FULL) {
            block_flush_stubs(vcpu);
            *flushed = true;
            return false;
        }
        where = block->bytes;
    }
    close_block(block, step != STEP_CLOSED, where);
    memcpy(block_code(block), code, block->bytes);
    return true;
}

static void start_block(struct block *block, const struct source *source, uint32_t key)
{
    memset(block, 0, sizeof(*block));
    block->gpa = source->gpa;
    block->gpa2 = BLOCK_DROPPED;
    block->key = key;
    block->linkable = (key & KEY_MODE) == MODE_LONG64 || (key & KEY_FLAT_CODE);
}

static size_t block_size(const struct block *block)
{
    return align_up(sizeof(*block) + block->op_count * sizeof(struct op) + block->bytes, 16);
}

static void hook(struct block_cache *cache, struct block *block)
{
    struct block **bucket = &cache->hash[block_hash(block->gpa, block->key)];
    block->hash_next = *bucket;
    *bucket = block;
    for (unsigned which = 0; which < (block->gpa2 == BLOCK_DROPPED ? 1 : 2); which++) {
        struct block **list = which ? &cache->rest[page_hash(block->gpa2)] : part_of(cache, block->gpa);
        block->page_next[which] = *list;
        *list = block;
    }
    cache->used += block_size(block);
    note_live(cache, block);
}

/* Puts the new block where the stale one lies, lists and links to it unchanged, if there is room. */
static bool replace(struct block *old, const struct block *new)
{
    if (old->gpa2 != BLOCK_DROPPED || new->gpa2 != BLOCK_DROPPED || block_size(new) > block_size(old))
        return false;
    struct block kept = *old;
    memcpy(old, new, block_size(new));
    old->hash_next = kept.hash_next;
    old->page_next[0] = kept.page_next[0];
    return true;
}

static bool crosses_page(const struct block *block)
{
    return (block->gpa & PAGE_MASK) + block->bytes > PAGE_SIZE;
}

/*
 * Code outside RAM and single steps run from the scratch block, decoded each time: such bytes may change without anybody
 * telling.
 */
static struct block *decode_scratch(struct vcpu *vcpu, struct source *source, uint32_t key)
{
    struct interp *interp = interp_of(vcpu);
    bool flushed;
    do {
        start_block(interp->scratch, source, key);
        if (!decode_block(vcpu, source, interp->scratch, 1, PAGE_SIZE, &flushed) && !flushed)
            return NULL;
    } while (flushed);
    interp->scratch->linkable = false;
    return interp->scratch;
}

/*
 * An instruction that crosses into another page has a block of its own, which remembers that page's guest-physical address
 * and is not linked: the page may be mapped elsewhere the next time.
 */
static bool crossing_holds(struct vcpu *vcpu, const struct block *block, const struct source *source)
{
    uint64_t gpa;
    bool mmio;
    return mmu_fetch_page(vcpu, source->gla + block->bytes - 1, &gpa, &mmio) && (gpa & ~PAGE_MASK) == block->gpa2;
}

/* The op of the instruction that is in memory now, if it can take the old one's place. */
static bool decode_again(struct vcpu *vcpu, const struct block *block, const struct op *old, const uint8_t *bytes, struct op *op)
{
    const struct decoder *decoder = &interp_of(vcpu)->cache->decoder[block->key & KEY_MODE];
    bool last = old == &block->op[block->op_count - 1];
    struct insn insn;
    if (decode(decoder, bytes, old->length, &insn) != DECODE_OK || insn.length != old->length)
        return false;
    enum bind_result bound = bind_op(vcpu, &insn, op, old->where, block->key, decoder);
    if (bound == BIND_FULL || (bound == BIND_ENDS) != last)
        return false;
    op->back = old->back;
    op->handler = (int32_t)((intptr_t)op->run - (intptr_t)op_stale);
    op->run = op_stale;
    return true;
}

/*
 * Decodes anew just the instructions of a stale block whose bytes have changed: constants and displacements do, mostly. False: it is
 * another block now.
 */
static bool patch(struct vcpu *vcpu, struct block *block, const struct source *source)
{
    uint8_t bytes[INSN_LENGTH_MAX];
    if (block->gpa2 != BLOCK_DROPPED || crosses_page(block))
        return false;
    for (unsigned i = 0; i < block->count; i++) {
        struct op *op = &block->op[i], now = { 0 };
        if (op->length && memcmp(source->host + op->where, block_code(block) + op->where, op->length) == 0)
            continue;
        memcpy(bytes, source->host + op->where, op->length);
        if (!op->length || !decode_again(vcpu, block, op, bytes, &now))
            return false;
        *op = now;
        memcpy(block_code(block) + now.where, bytes, now.length);
    }
    memset(block->link, 0, sizeof(block->link));
    block->heat = 0;
    return true;
}

/* Watches the bytes of a stale block again and compares them with what it was decoded from. */
static bool revive(struct vcpu *vcpu, struct block *block, const struct source *source)
{
    uint8_t rest_of_it[INSN_LENGTH_MAX];
    unsigned in_page = (unsigned)(PAGE_SIZE - (block->gpa & PAGE_MASK));
    if (!block->watched) {
        block_watch(vcpu, block->gpa, min_u64(block->bytes, in_page));
        if (block->bytes > in_page)
            block_watch(vcpu, block->gpa2, block->bytes - in_page);
    }
    unsigned first = min_u64(block->bytes, in_page), rest = block->bytes - first;
    if (rest && !mmu_fetch_bytes(vcpu, source->gla + first, rest_of_it, rest))
        return false;
    bool same = !memcmp(source->host, block_code(block), first) && !memcmp(rest_of_it, block_code(block) + first, rest);
    if (!same && !patch(vcpu, block, source))
        return false;
    for (unsigned i = 0; i < block->op_count; i++)
        block->op[i].run = (op_fn *)((intptr_t)op_stale + block->op[i].handler);
    block->stale = false;
    note_live(interp_of(vcpu)->cache, block);
    return true;
}

/* Counts a block that is decoded, and whether in place of one whose bytes have changed; true: keep it short. */
static bool heat(struct block_cache *cache, uint64_t gpa, bool changed)
{
    uint8_t *page = &cache->heat[page_hash(gpa)];
    if (++cache->decoded == BLOCK_COOLING) {
        memset(cache->heat, 0, sizeof(cache->heat));
        cache->decoded = 0;
    }
    *page += changed && *page < BLOCK_HEAT;
    return *page == BLOCK_HEAT;
}

/* `old` is a stale block of the same address and key whose bytes have changed, or NULL. */
static struct block *decode_cached(struct vcpu *vcpu, struct source *source, uint32_t key, struct block *old)
{
    struct interp *interp = interp_of(vcpu);
    struct block *block;
    uint64_t flushes = interp->cache->flushes;
    enum { GRANULE = 1 << CODE_GRANULE_SHIFT };
    bool flushed, hot = heat(interp->cache, source->gpa, old);
    unsigned end = hot ? (unsigned)(GRANULE - (source->gpa & (GRANULE - 1))) : PAGE_SIZE;
    do {
        block = arena_reserve(vcpu);
        start_block(block, source, key);
        if (!decode_block(vcpu, source, block, BLOCK_OPS_MAX, end, &flushed) && !flushed)
            return NULL;
    } while (flushed);
    counter_add(&vcpu->counters, COUNTER_blocks_decoded, 1);
    if (crosses_page(block)) {
        if (source->gpa2 == BLOCK_DROPPED)
            return decode_scratch(vcpu, source, key);
        block->gpa2 = source->gpa2;
        block->linkable = false;
    }
    if (old && interp->cache->flushes == flushes) {
        if (replace(old, block)) {
            note_live(interp->cache, old);
            return old;
        }
        discard(vcpu, old);
    }
    hook(interp->cache, block);
    return block;
}

static bool find_source(struct vcpu *vcpu, struct source *source)
{
    bool mmio;
    vcpu->insn_length = 0;          /* what a fault of the fetch tells: none was decoded */
    source->gla = vcpu->rip;
    source->limit = PAGE_SIZE * 2;
    if (vcpu->mode == MODE_LONG64) {
        if (!canonical(vcpu, vcpu->rip))
            return x86_raise_error(vcpu, VEC_GP, 0);
    } else {
        vcpu->rip = (uint32_t)vcpu->rip;
        if (!x86_linear_fetch(vcpu, vcpu->rip, &source->gla))
            return false;
        source->limit = (uint64_t)vcpu->seg[CS].limit - vcpu->rip + 1;
    }
    source->watched = 0;
    source->gpa2 = BLOCK_DROPPED;
    source->host = mmu_fetch_page(vcpu, source->gla, &source->gpa, &mmio);
    if (!source->host && !mmio)
        return false;
    source->gpa = (source->gpa & ~PAGE_MASK) | (source->gla & PAGE_MASK);
    if (source->host)
        source->host += source->gla & PAGE_MASK;
    return true;
}

/* The first instruction of a cached block, alone, for a single step. */
static struct block *copy_first(struct interp *interp, const struct block *block)
{
    struct block *scratch = interp->scratch;
    *scratch = (struct block){ .gpa = block->gpa, .gpa2 = BLOCK_DROPPED, .key = block->key, .count = 1, .op_count = 1 };
    scratch->op[0] = block->op[0];
    scratch->bytes = scratch->op[0].length;
    close_block(scratch, true, scratch->bytes);
    return scratch;
}

/* Is what the cache has for this address and key still what memory holds? False with a fault pending, too. */
static bool still_good(struct vcpu *vcpu, struct block *block, const struct source *source)
{
    if (block->gpa2 != BLOCK_DROPPED && !crossing_holds(vcpu, block, source))
        return false;
    return !block->stale || revive(vcpu, block, source);
}

struct block *block_get(struct vcpu *vcpu, bool one)
{
    struct interp *interp = interp_of(vcpu);
    struct source source;
    if (!find_source(vcpu, &source))
        return NULL;
    if (!source.host)
        return decode_scratch(vcpu, &source, interp->key);
    struct block *block = block_lookup(interp->cache, source.gpa, interp->key), *old = NULL;
    if (block && !still_good(vcpu, block, &source)) {
        if (vcpu->pending.kind != EVENT_NONE)
            return NULL;
        old = block;
        block = NULL;
    }
    if (!block && one)
        return decode_scratch(vcpu, &source, interp->key);
    if (!block)
        block = decode_cached(vcpu, &source, interp->key, old);
    if (!block || block == interp->scratch)
        return block;
    /* What was decoded under another limit may run over this one. */
    if (one || block->bytes > source.limit) {
        if (block->op[0].length > source.limit) {
            x86_raise_error(vcpu, VEC_GP, 0);
            return NULL;
        }
        return copy_first(interp, block);
    }
    return block;
}
