/* Translations become entries. */
#include "engine/dbt/kept_entry.h"

#include "engine/dbt/kept_net.h"

/* --- guest code --- */

/* The pieces of guest code that the trace was made of, in its order; false: not of one page, or no instructions. */
static bool take_bytes(const struct work *w, struct kept *k, struct kept_range *range, uint8_t *bytes)
{
    uint16_t end = 0;
    for (unsigned i = 0; i < w->count; i++) {
        const struct planned *p = &w->plan[i];
        uint16_t at = p->rip & PAGE_MASK;
        if ((p->rip ^ w->t->rip) >= PAGE_SIZE || at + p->op->length > (int)PAGE_SIZE || !p->op->length)
            return false;
        if (!k->ranges || at != end)
            range[k->ranges++] = (struct kept_range){ .at = at };
        range[k->ranges - 1].size += p->op->length;
        memcpy(bytes + k->bytes, p->bytes, p->op->length);
        k->bytes += p->op->length;
        end = at + p->op->length;
    }
    return true;
}

/* Where the bytes of the instruction that begins there in the page are. */
static uint16_t bytes_at(const struct kept *k, const struct kept_range *range, uint16_t in_page)
{
    uint16_t before = 0;
    for (unsigned i = 0; i < k->ranges; before += range[i++].size)
        if (in_page >= range[i].at && in_page < range[i].at + range[i].size)
            return before + (in_page - range[i].at);
    return 0;
}

/* --- holes --- */

static void add_hole(struct kept *k, struct kept_hole *hole, const uint8_t *bytes, unsigned at)
{
    if (k->holes == HOLES_MOST || !reloc_may_move(kept_load32(bytes + at)))
        return;
    unsigned first = 0;
    while (first < k->holes && (hole[first].relative || kept_load32(bytes + hole[first].at) != kept_load32(bytes + at)))
        first++;
    hole[k->holes] = (struct kept_hole){ .at = (uint16_t)at, .same_as = first < k->holes ? hole[first].at : (uint16_t)at };
    k->holes++;
}

/* False: no room. */
static bool add_relative_hole(struct kept *k, struct kept_hole *hole, uint8_t *bytes, unsigned at, uint64_t next_rip, int64_t displacement)
{
    uint32_t sum = (uint32_t)(next_rip + (uint64_t)displacement);
    if (k->holes == HOLES_MOST)
        return false;
    hole[k->holes++] = (struct kept_hole){ .at = (uint16_t)at, .same_as = (uint16_t)at, .next = (uint16_t)(((next_rip - 1) & PAGE_MASK) + 1), .relative = 1 };
    memcpy(bytes + at, &sum, HOLE);
    return true;
}

/*
 * Says what the places in the host's code are that have the value of a hole. False: it is in none, although the instruction is copied, or the
 * value is somewhere where nobody noted it.
 */
static bool fill_hole(struct reloc_list *list, const uint8_t *code, size_t size, uint32_t value, unsigned at)
{
    unsigned noted = 0, there = 0;
    for (unsigned i = 0; i < list->count; i++) {
        struct reloc *reloc = &list->reloc[i];
        if (reloc->kind != RELOC_GUEST_BYTES || reloc->addend != NO_HOLE || kept_load32(code + reloc->at) != value)
            continue;
        reloc->addend = (int32_t)at;
        noted++;
    }
    for (size_t i = 0; i + HOLE <= size; i++)
        there += kept_load32(code + i) == value;
    return noted && noted == there;
}

/* Those that are no hole's are as they are. */
static void drop_unfilled(struct reloc_list *list)
{
    unsigned count = 0;
    for (unsigned i = 0; i < list->count; i++)
        if (list->reloc[i].kind != RELOC_GUEST_BYTES || list->reloc[i].addend != NO_HOLE)
            list->reloc[count++] = list->reloc[i];
    list->count = count;
}

/* Of supervisor code: constants and displacements that may be addresses in a kernel that is moved. */
static void take_holes(struct work *w, struct kept *k, struct kept_hole *hole, uint8_t *bytes, const uint8_t *code)
{
    unsigned at = 0;
    for (unsigned i = 0; i < w->count && !w->user; at += w->plan[i++].op->length) {
        const struct planned *p = &w->plan[i];
        if (p->kind == KIND_SITE || p->kind == KIND_NOTHING)    /* the site is decoded from the bytes that are there then */
            continue;
        if (plan_is_per_cpu(w, p))
            w->relocs.incomplete |= !add_relative_hole(k, hole, bytes, at + p->z.raw.disp.offset, p->next_rip, p->memory->mem.disp.value);
        else if (p->z.raw.disp.size == 32 && p->memory && p->memory->mem.base != ZYDIS_REGISTER_RIP)
            add_hole(k, hole, bytes, at + p->z.raw.disp.offset);
        if (p->z.raw.imm[0].size == 32 && !p->z.raw.imm[0].is_relative)
            add_hole(k, hole, bytes, at + p->z.raw.imm[0].offset);
    }
    for (unsigned i = 0; i < k->holes; i++)
        if (hole[i].same_as == hole[i].at && !hole[i].relative &&
            !fill_hole(&w->relocs, code, k->code_size, kept_load32(bytes + hole[i].at), hole[i].at))
            w->relocs.incomplete = true;
}

/* --- parts --- */

/* By how many bytes it is looked for. */
static unsigned probe_of(const struct kept *k, const struct kept_range *range, const struct kept_hole *hole)
{
    unsigned first = range[0].size;
    for (unsigned i = 0; i < k->holes; i++)
        if (hole[i].at + (hole[i].relative ? 0 : HOLE / 2u) < first)
            first = hole[i].at + (hole[i].relative ? 0 : HOLE / 2u);
    for (unsigned i = 0; i < PROBES; i++)
        if (kept_probe[i] <= first)
            return kept_probe[i];
    return 0;
}

static uint16_t position(const struct work *w, const uint8_t *at) { return (uint16_t)reloc_position(&w->relocs, at); }

/* False: one leads too far away. */
static bool take_links(const struct work *w, struct kept_link *out)
{
    for (unsigned i = 0; i < w->link_count; i++) {
        const struct link *link = w->link_list[i];
        int64_t target = (int64_t)(link->target - w->t->rip);
        if (target != (int32_t)target)
            return false;
        out[i] = (struct kept_link){ .field = link->field ? position(w, link->field) : NO_FIELD, .target = (int32_t)target, .uncount = link->uncount, .ask = position(w, link->ask - w->e.shift),
                                     .stub = position(w, link->stub - w->e.shift), .live = link->live, .far = link->far,
                                     .expected = link->expected ? position(w, link->expected) : NO_FIELD };
    }
    return true;
}

static void take_sites(const struct work *w, const struct kept *k, const struct kept_range *range, struct kept_site *out)
{
    for (unsigned i = 0; i < w->site_count; i++) {
        const struct site *site = w->site_list[i];
        uint16_t in_page = (site->rip + site->op.where) & PAGE_MASK;
        out[i] = (struct kept_site){ .in_page = in_page, .remaining = site->remaining, .early = site->early, .length = site->op.length,
                                     .bytes_at = bytes_at(k, range, in_page), .x87 = site->x87 };
    }
}

static void take_traps(const struct work *w, struct trap *out)
{
    memcpy(out, w->trap, w->trap_count * sizeof(*out));
    for (unsigned i = 0; i < w->trap_count; i++)
        if (out[i].stub)
            out[i].stub = position(w, w->t->code + out[i].stub - w->e.shift);
}

size_t kept_make(struct work *w, bool shared, struct kept_find *find)
{
    struct kept_range range[TRACE_MAX];
    struct kept_hole hole[HOLES_MOST];
    uint8_t bytes[BYTES_MOST];
    size_t hot_size = w->relocs.hot_size, cold_size = (size_t)(w->e.at - w->relocs.cold), code_size = hot_size + cold_size;
    struct kept k = {
        .code_size = (uint16_t)code_size, .hot_size = (uint16_t)hot_size, .entry = (uint16_t)(w->t->entry - w->t->code),
        .live_entry = (uint16_t)(w->t->live_entry - w->t->code), .in_page = w->t->rip & PAGE_MASK, .mode = kept_mode(w->t->mode, w->exact),
        .count = w->t->count, .links = (uint16_t)w->link_count,
        .sites = (uint16_t)w->site_count, .traps = (uint16_t)w->trap_count, .live = w->t->live,
    };
    if (code_size > UINT16_MAX || !take_bytes(w, &k, range, bytes))
        return 0;
    memcpy(w->joined, w->relocs.code, hot_size);
    memcpy(w->joined + hot_size, w->relocs.cold, cold_size);
    if (shared)
        take_holes(w, &k, hole, bytes, w->joined);
    drop_unfilled(&w->relocs);
    k.relocs = (uint16_t)w->relocs.count;
    size_t size = kept_parts(&k).size;
    if (w->relocs.incomplete || size > sizeof(w->entry))
        return 0;
    struct kept *out = (struct kept *)w->entry;
    memset(w->entry + size - 8, 0, 8);          /* what may be left behind the code */
    *out = k;
    struct kept_parts p = kept_parts(out);
    memcpy((void *)p.reloc, w->relocs.reloc, k.relocs * sizeof(struct reloc));
    if (!take_links(w, (void *)p.link))
        return 0;
    take_sites(w, &k, range, (void *)p.site);
    take_traps(w, (void *)p.trap);
    memcpy((void *)p.range, range, k.ranges * sizeof(*range));
    memcpy((void *)p.hole, hole, k.holes * sizeof(*hole));
    memcpy((void *)p.bytes, bytes, k.bytes);
    memcpy((void *)p.code, w->joined, code_size);
    reloc_normalize(&w->relocs, (void *)p.code, w->dbt->hot.base + (w->dbt->shift - w->e.shift));
    unsigned probed = shared ? probe_of(&k, range, hole) : 0;
    find->probed = probed && !kept_net_catches(w, p.code, code_size) ? probed : 0;
    return size;
}

void kept_share(const struct work *w, const struct kept_find *find, size_t size)
{
    const struct kept *k = (const struct kept *)w->entry;
    if (size && find->probed)
        store_add(w->dbt->store, kept_key(k->mode, find->code, k->in_page, find->probed), k, (uint32_t)size, w->dbt->ahead);
}

void kept_add(struct work *w)
{
    uint64_t gpa;
    struct kept_find find = { .code = kept_code_at(w->vcpu, &gpa) };
    if (find.code)
        kept_share(w, &find, kept_make(w, true, &find));
}
