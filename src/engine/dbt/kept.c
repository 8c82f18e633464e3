#include "engine/dbt/kept_entry.h"

enum { DROPS_MOST = 8 };                /* code of pages that are written to all the time is left to the interpreter */

/* The guest's bytes as they are now in `now`; true: they are what the entry was made of, but for holes. */
static bool same_code(const struct kept *k, const struct kept_parts *p, const uint8_t *page, uint64_t page_gla, uint8_t now[BYTES_MOST])
{
    unsigned bytes = 0;
    for (unsigned i = 0; i < k->ranges; bytes += p->range[i++].size)
        memcpy(now + bytes, page + p->range[i].at, p->range[i].size);
    unsigned at = 0;
    for (unsigned i = 0; i < k->holes; i++) {
        const struct kept_hole *hole = &p->hole[i];
        uint32_t value = kept_load32(now + hole->at);
        bool fits = hole->relative ? page_gla + hole->next + (uint64_t)(int32_t)value == kept_load32(p->bytes + hole->at)
                                   : value == kept_load32(now + hole->same_as) && (value == kept_load32(p->bytes + hole->at) || reloc_may_move(value));
        if (!fits || memcmp(now + at, p->bytes + at, hole->at - at))
            return false;
        at = hole->at + HOLE;
    }
    return memcmp(now + at, p->bytes + at, k->bytes - at) == 0;
}

static void watch(struct vcpu *vcpu, const struct kept *k, const struct kept_parts *p, struct translation *t)
{
    for (unsigned i = 0; i < k->ranges; i++) {
        const struct kept_range *range = &p->range[i];
        block_watch(vcpu, (t->gpa & ~PAGE_MASK) + range->at, range->size);
        t->granules[0] |= dbt_granules(0, range->at, range->at + range->size);
    }
}

static struct site *make_sites(struct dbt *dbt, const struct kept *k, const struct kept_parts *p, const struct translation *t, const uint8_t *now)
{
    uint8_t *bytes = dbt_alloc(dbt, k->bytes);
    struct site *sites = dbt_alloc(dbt, k->sites * sizeof(*sites));
    memcpy(bytes, now, k->bytes);
    for (unsigned i = 0; i < k->sites; i++) {
        const struct kept_site *from = &p->site[i];
        sites[i] = (struct site){ .translation = t, .rip = (t->rip & ~PAGE_MASK) + from->in_page, .remaining = from->remaining, .early = from->early, .x87 = from->x87 };
        sites[i].op.length = from->length;
        sites[i].op.imm = (uintptr_t)(bytes + from->bytes_at);
    }
    return sites;
}

/* Where a place in the entry's code will lie, in the writable view. */
static uint8_t *place_of(const struct dbt *dbt, const struct kept *k, unsigned at)
{
    return at < k->hot_size ? dbt->hot.next + at : dbt->cold.next + (at - k->hot_size);
}

static void make_traps(const struct dbt *dbt, const struct kept *k, const struct kept_parts *p, struct translation *t)
{
    t->trap_count = k->traps;
    memcpy(t->trap, p->trap, k->traps * sizeof(struct trap));
    for (unsigned i = 0; i < k->traps; i++)
        if (t->trap[i].stub)
            t->trap[i].stub = (uint32_t)(place_of(dbt, k, t->trap[i].stub) - dbt->hot.next);
}

static struct link *make_links(struct dbt *dbt, const struct kept *k, const struct kept_parts *p, const struct translation *t)
{
    struct link *links = dbt_alloc(dbt, k->links * sizeof(*links));
    for (unsigned i = 0; i < k->links; i++)
        links[i] = (struct link){ .field = p->link[i].field == NO_FIELD ? NULL : place_of(dbt, k, p->link[i].field),
                                  .target = t->rip + (uint64_t)(int64_t)p->link[i].target, .uncount = p->link[i].uncount, .ask = place_of(dbt, k, p->link[i].ask) + dbt->shift,
                                  .stub = place_of(dbt, k, p->link[i].stub) + dbt->shift, .from = t, .live = p->link[i].live, .far = p->link[i].far,
                                  .expected = p->link[i].expected == NO_FIELD ? NULL : place_of(dbt, k, p->link[i].expected) };
    return links;
}

static bool make_code(struct dbt *dbt, const struct kept *k, const struct kept_parts *p, struct translation *t, const uint8_t *now)
{
    struct reloc_place place = {
        .code = dbt->hot.next, .cold = dbt->cold.next, .hot_size = k->hot_size, .cache = dbt->hot.base, .rip = t->rip, .guest = now,
        .sites = (size_t)((uint8_t *)make_sites(dbt, k, p, t, now) - dbt->data), .site_size = sizeof(struct site),
        .links = (size_t)((uint8_t *)make_links(dbt, k, p, t) - dbt->data), .link_size = sizeof(struct link),
    };
    memcpy(dbt->hot.next, p->code, k->hot_size);
    memcpy(dbt->cold.next, p->code + k->hot_size, k->code_size - k->hot_size);
    return reloc_apply(p->reloc, k->relocs, &place);
}

struct translation *kept_install(struct vcpu *vcpu, struct dbt *dbt, const struct kept *k, const uint8_t *page, uint64_t gpa, uint64_t rip)
{
    struct kept_parts p = kept_parts(k);
    uint8_t now[BYTES_MOST];
    dbt_make_room(vcpu, dbt);
    size_t used = dbt->data_used;
    struct translation *t = dbt_alloc(dbt, sizeof(*t));
    t->gpa = gpa;
    t->gpa2 = BLOCK_DROPPED;
    t->rip = rip;
    t->count = k->count;
    t->mode = (uint8_t)k->mode;
    t->live = (uint8_t)k->live;
    t->code = dbt->hot.next + dbt->shift;
    t->entry = t->code + k->entry;
    t->live_entry = t->code + k->live_entry;
    t->trap = dbt_alloc(dbt, k->traps * sizeof(struct trap));
    make_traps(dbt, k, &p, t);
    watch(vcpu, k, &p, t);
    if (!same_code(k, &p, page, t->rip & ~PAGE_MASK, now) || !make_code(dbt, k, &p, t, now)) {
        dbt->data_used = used;
        return NULL;
    }
    dbt_publish(vcpu, dbt, t, dbt->hot.next + k->hot_size, dbt->cold.next + (k->code_size - k->hot_size));
    return t;
}

/* The entry that fits what is at `code`, among those with the key. */
static const struct kept *find(struct store *store, uint32_t key, uint16_t mode, const uint8_t *code, uint64_t rip)
{
    uint16_t in_page = rip & PAGE_MASK;
    uint8_t now[BYTES_MOST];
    for (const struct store_entry *entry = store_first(store, key); entry; entry = store_next(entry)) {
        const struct kept *k = (const void *)entry->bytes;
        bool fits = store_fits(entry);
        if (!store_good(store, entry))
            continue;
        if (!fits && !kept_has_shape(k, entry->size)) {
            store_refuse(store, entry);
            continue;
        }
        struct kept_parts p = kept_parts(k);
        if (k->mode != mode || k->in_page != in_page || !same_code(k, &p, code - in_page, rip & ~PAGE_MASK, now))
            continue;
        if (fits || kept_parts_fit(k)) {
            store_note_fit(entry);
            store_use(entry);
            return k;
        }
        store_refuse(store, entry);
    }
    return NULL;
}

struct translation *kept_use(struct vcpu *vcpu, struct dbt *dbt)
{
    uint64_t gpa;
    const uint8_t *code = kept_suits(dbt) ? kept_code_at(vcpu, &gpa) : NULL;
    if (!code || dbt->drops[dbt_page(gpa)] >= DROPS_MOST)
        return NULL;
    uint16_t in_page = vcpu->rip & PAGE_MASK, mode = kept_mode(dbt->mode, dbt->exact);
    const struct kept *k = NULL;
    uint32_t key[PROBES];
    for (unsigned i = 0; i < PROBES; i++) {
        key[i] = kept_key(mode, code, in_page, kept_probe[i]);
        store_expect(dbt->store, key[i]);
    }
    for (unsigned i = 0; i < PROBES && !k; i++)
        k = find(dbt->store, key[i], mode, code, vcpu->rip);
    if (!k)
        return NULL;
    struct translation *t = dbt_find(dbt, gpa, vcpu->rip, dbt->mode);
    if (t)
        return t;
    t = kept_install(vcpu, dbt, k, code - in_page, gpa, vcpu->rip);
    if (t)
        counter_add(&vcpu->counters, COUNTER_translations_reused, 1);
    return t;
}

bool kept_bind(struct vcpu *vcpu, struct site *site)
{
    struct interp *interp = interp_of(vcpu);
    const struct decoder *decoder = &interp->cache->decoder[MODE_LONG64];
    const uint8_t *bytes = (const uint8_t *)(uintptr_t)site->op.imm;
    struct insn insn;
    struct op op;
    enum decode_result result = decode(decoder, bytes, site->op.length, &insn);
    if (result != DECODE_OK) {          /* never for what we wrote */
        op = (struct op){ .run = op_undefined };
        insn.mnemonic = ZYDIS_MNEMONIC_INVALID;
    } else if (bind_op(vcpu, &insn, &op, 0, interp->key, decoder) == BIND_FULL) {
        block_flush_stubs(vcpu);
        return false;
    }
    site->op = op;
    site->mnemonic = (uint16_t)insn.mnemonic;
    return true;
}
