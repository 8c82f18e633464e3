#include "engine/dbt/kept.h"

#include <elf.h>
#include <cpuid.h>
#include <link.h>

#include "engine/dbt/kept_net.h"
#include "engine/dbt/plan.h"
#include "engine/interp/native.h"
#include "x86/model.h"

enum {
    PROBE = 12,                         /* bytes of guest code that an entry is looked for by, at most */
    PROBES = 3,
    HOLE = 4,                           /* bytes */
    HOLES_MOST = 32,
    BYTES_MOST = TRACE_MAX * INSN_LENGTH_MAX,
    DROPS_MOST = 8,                     /* code of pages that are written to all the time is left to the interpreter */
};
/*
 * An entry is found by as many of the bytes from its first instruction on as are its own and lie before its first hole; half of that,
 * if it is not relative, is the same in every place that a kernel is moved to.
 */
static const uint8_t probe[PROBES] = { PROBE, 5, 3 };

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

struct parts {
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

static struct parts parts_of(const struct kept *k)
{
    struct parts p;
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

static uint16_t mode_of(const struct dbt *dbt) { return (uint16_t)(dbt->mode | (dbt->exact ? 0x100 : 0)); }

static uint32_t key_of(uint16_t mode, const uint8_t *code, uint16_t in_page, unsigned size)
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
static const uint8_t *code_at(const struct vcpu *vcpu, uint64_t *gpa)
{
    unsigned i = tlb_index(vcpu->rip);
    const struct tlb_entry *entry = &vcpu->tlb_code->entry[i];
    if (entry->tag[MMU_FETCH] != (vcpu->rip & ~PAGE_MASK) || (vcpu->rip & PAGE_MASK) > PAGE_SIZE - PROBE)
        return NULL;
    *gpa = (vcpu->tlb_code->info[i] & ~PAGE_MASK) | (vcpu->rip & PAGE_MASK);
    return (const uint8_t *)(vcpu->rip + entry->addend);
}

/* --- what shapes the code --- */

/* The linker's digest of the program (NT_GNU_BUILD_ID). */
static int find_build_id(struct dl_phdr_info *info, size_t size, void *out)
{
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        const char *at = (const char *)(info->dlpi_addr + ph->p_vaddr), *end = at + ph->p_memsz;
        while (ph->p_type == PT_NOTE && at + sizeof(ElfW(Nhdr)) <= end) {
            const ElfW(Nhdr) *note = (const void *)at;
            const char *text = at + sizeof(*note) + align_up(note->n_namesz, 4);
            if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && note->n_descsz >= 8) {
                *(uint64_t *)out = store_hash(text, note->n_descsz);
                return 1;
            }
            at = text + align_up(note->n_descsz, 4);
        }
    }
    return 1;                           /* the program is the first; libraries do not matter */
}

struct shape_parts {
    uint64_t build, zydis, code_start, vector_bytes;
    uint64_t has[ARRAY_SIZE(((struct cpu_model *)0)->has)];
    uint32_t host[6][4];                /* CPUID */
};

static void host_cpuid(struct shape_parts *parts)
{
    static const uint32_t leaf[][2] = { { 0, 0 }, { 1, 0 }, { 7, 0 }, { 7, 1 }, { 0x80000001, 0 }, { 0xD, 0 } };
    enum { CLFLUSH_SIZE = 0xFF00 };
    for (unsigned i = 0; i < ARRAY_SIZE(leaf); i++) {
        uint32_t *r = parts->host[i];
        if (!__get_cpuid_count(leaf[i][0], leaf[i][1], &r[0], &r[1], &r[2], &r[3]))
            memset(r, 0, sizeof(parts->host[i]));
    }
    parts->host[1][1] &= CLFLUSH_SIZE;  /* nothing about the processor that we happen to be on */
    memset(&parts->host[5][1], 0, 4);   /* what is enabled now */
}

void kept_attach(struct vcpu *vcpu, struct dbt *dbt)
{
    enum { VCPUS_FEW = 2 };             /* it costs about as much to keep a translation as to make another one */
    struct shape_parts parts = { .zydis = ZydisGetVersion(), .code_start = (uint64_t)(dbt->code_start - dbt->hot.base),
                                 .vector_bytes = native_host_vector_bytes() };
    dl_iterate_phdr(find_build_id, &parts.build);
    if (!vcpu->translations || !parts.build)
        return;
    memcpy(parts.has, vcpu->model->has, sizeof(parts.has));
    parts.has[FEATURE_HTT / 64] &= ~(1ull << FEATURE_HTT % 64);         /* no code depends on how many processors there are */
    host_cpuid(&parts);
    struct store_shape shape = { { store_hash(&parts, sizeof(parts)), parts.build } };
    if (store_open(vcpu->translations, &shape))
        dbt->store = vcpu->translations;
    dbt->keeps_supervisor = vcpu->all_count > VCPUS_FEW || store_is_saved(vcpu->translations);
}

/* --- keeping --- */

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

static uint32_t load32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static void add_hole(struct kept *k, struct kept_hole *hole, const uint8_t *bytes, unsigned at)
{
    if (k->holes == HOLES_MOST || !reloc_may_move(load32(bytes + at)))
        return;
    unsigned first = 0;
    while (first < k->holes && (hole[first].relative || load32(bytes + hole[first].at) != load32(bytes + at)))
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
        if (reloc->kind != RELOC_GUEST_BYTES || reloc->addend != NO_HOLE || load32(code + reloc->at) != value)
            continue;
        reloc->addend = (int32_t)at;
        noted++;
    }
    for (size_t i = 0; i + HOLE <= size; i++)
        there += load32(code + i) == value;
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
            !fill_hole(&w->relocs, code, k->code_size, load32(bytes + hole[i].at), hole[i].at))
            w->relocs.incomplete = true;
    drop_unfilled(&w->relocs);
    k->relocs = (uint16_t)w->relocs.count;
}

/* By how many bytes it is looked for. */
static unsigned probe_of(const struct kept *k, const struct kept_range *range, const struct kept_hole *hole)
{
    unsigned first = range[0].size;
    for (unsigned i = 0; i < k->holes; i++)
        if (hole[i].at + (hole[i].relative ? 0 : HOLE / 2u) < first)
            first = hole[i].at + (hole[i].relative ? 0 : HOLE / 2u);
    for (unsigned i = 0; i < PROBES; i++)
        if (probe[i] <= first)
            return probe[i];
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
        out[i] = (struct kept_link){ .field = link->field ? position(w, link->field) : NO_FIELD, .target = (int32_t)target, .uncount = link->uncount, .ask = position(w, link->ask - w->dbt->shift),
                                     .stub = position(w, link->stub - w->dbt->shift), .live = link->live, .far = link->far,
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
            out[i].stub = position(w, w->t->code + out[i].stub - w->dbt->shift);
}

void kept_add(struct work *w)
{
    struct kept_range range[TRACE_MAX];
    struct kept_hole hole[HOLES_MOST];
    uint8_t bytes[BYTES_MOST];
    size_t hot_size = w->relocs.hot_size, cold_size = (size_t)(w->e.at - w->relocs.cold), code_size = hot_size + cold_size;
    uint64_t gpa;
    const uint8_t *guest = code_at(w->vcpu, &gpa);
    struct kept k = {
        .code_size = (uint16_t)code_size, .hot_size = (uint16_t)hot_size, .entry = (uint16_t)(w->t->entry - w->t->code),
        .live_entry = (uint16_t)(w->t->live_entry - w->t->code), .in_page = w->t->rip & PAGE_MASK, .mode = mode_of(w->dbt),
        .count = w->t->count, .links = (uint16_t)w->link_count,
        .sites = (uint16_t)w->site_count, .traps = (uint16_t)w->trap_count, .live = w->t->live,
    };
    if (!guest || code_size > UINT16_MAX || !take_bytes(w, &k, range, bytes))
        return;
    memcpy(w->joined, w->relocs.code, hot_size);
    memcpy(w->joined + hot_size, w->relocs.cold, cold_size);
    take_holes(w, &k, hole, bytes, w->joined);
    unsigned probed = probe_of(&k, range, hole);
    if (w->relocs.incomplete || !probed)
        return;
    size_t size = parts_of(&k).size;
    struct kept *out = size <= STORE_ENTRY_MOST ? calloc(1, size) : NULL;
    if (!out)
        return;
    *out = k;
    struct parts p = parts_of(out);
    memcpy((void *)p.reloc, w->relocs.reloc, k.relocs * sizeof(struct reloc));
    bool near = take_links(w, (void *)p.link);
    take_sites(w, &k, range, (void *)p.site);
    take_traps(w, (void *)p.trap);
    memcpy((void *)p.range, range, k.ranges * sizeof(*range));
    memcpy((void *)p.hole, hole, k.holes * sizeof(*hole));
    memcpy((void *)p.bytes, bytes, k.bytes);
    memcpy((void *)p.code, w->joined, code_size);
    reloc_normalize(&w->relocs, (void *)p.code, w->dbt->hot.base);
    if (near && !kept_net_catches(w, p.code, code_size))
        store_add(w->dbt->store, key_of(k.mode, guest, k.in_page, probed), out, (uint32_t)size, w->dbt->ahead);
    free(out);
}

/* --- checking --- */

static bool relocs_fit(const struct kept *k, const struct parts *p)
{
    for (unsigned i = 0; i < k->relocs; i++) {
        const struct reloc *reloc = &p->reloc[i];
        unsigned numbers = reloc->kind == RELOC_SITE ? k->sites : reloc->kind == RELOC_LINK ? k->links : 0;
        bool numbered = reloc->kind == RELOC_SITE || reloc->kind == RELOC_LINK;
        if (reloc->kind == RELOC_GUEST_BYTES && (reloc->addend < 0 || reloc->addend + HOLE > k->bytes))
            return false;
        size_t end = reloc->at + reloc_size(reloc->kind);
        if (reloc->kind >= RELOC_KINDS || end > k->code_size || (reloc->at < k->hot_size && end > k->hot_size) ||
            (numbered && (reloc->addend < 0 || (unsigned)reloc->addend >= numbers)))
            return false;
    }
    return true;
}

static bool ranges_fit(const struct kept *k, const struct parts *p)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < k->ranges; i++) {
        bytes += p->range[i].size;
        if (!p->range[i].size || p->range[i].at + p->range[i].size > (int)PAGE_SIZE)
            return false;
    }
    return k->ranges && bytes == k->bytes && p->range[0].at == k->in_page;
}

/* In order, and none over another. */
static bool holes_fit(const struct kept *k, const struct parts *p)
{
    unsigned end = 0;
    for (unsigned i = 0; i < k->holes; i++) {
        if (p->hole[i].at < end || p->hole[i].at + HOLE > k->bytes || p->hole[i].same_as > p->hole[i].at)
            return false;
        end = p->hole[i].at + HOLE;
    }
    return true;
}

static bool x87_fits(const struct kept *k, struct x87_noted x87)
{
    bool nothing = x87.in_page == X87_NONE && x87.fop == 0;
    return nothing || ((x87.in_page < PAGE_SIZE || x87.in_page == X87_NONE) && (k->live & LIVE_X87));
}

static bool sites_fit(const struct kept *k, const struct parts *p)
{
    for (unsigned i = 0; i < k->sites; i++) {
        const struct kept_site *site = &p->site[i];
        if (site->in_page >= PAGE_SIZE || !site->length || site->length > INSN_LENGTH_MAX ||
            site->bytes_at + site->length > k->bytes || site->remaining > k->count || site->early > 1 || !x87_fits(k, site->x87))
            return false;
    }
    return true;
}

static bool addend_fits(const struct trap *trap)
{
    const struct indexed *indexed = &trap->indexed;
    bool none = indexed->base == HOST_NONE;
    return (trap->addend_of <= 15 || trap->addend_of == NO_ADDEND || (trap->addend_of == ADDEND_INDEXED && !none)) &&
           (none || (indexed->base <= 15 && (indexed->index <= 15 || indexed->index == HOST_NONE) && indexed->scale <= 3));
}

static bool field_fits(const struct kept *k, uint16_t at)
{
    return at == NO_FIELD || at + 4 <= k->hot_size || (at >= k->hot_size && at + 4 <= k->code_size);
}

/* What is patched of an indirect jump besides its field. */
static bool expected_fits(const struct kept *k, const struct kept_link *link)
{
    return link->expected == NO_FIELD || (link->field != NO_FIELD && link->expected + 8 <= k->hot_size && link->stub >= k->hot_size + 4);
}

static bool links_and_traps_fit(const struct kept *k, const struct parts *p)
{
    for (unsigned i = 0; i < k->links; i++)
        if (!field_fits(k, p->link[i].field) || p->link[i].uncount > k->count || p->link[i].ask >= k->code_size || p->link[i].stub >= k->code_size ||
            !expected_fits(k, &p->link[i]))
            return false;
    for (unsigned i = 0; i < k->traps; i++) {
        const struct trap *trap = &p->trap[i];
        if (trap->at >= k->hot_size || trap->back >= k->hot_size || trap->stub >= k->code_size || trap->in_page >= PAGE_SIZE ||
            trap->remaining > k->count || trap->mnemonic > ZYDIS_MNEMONIC_MAX_VALUE || !addend_fits(trap) ||
            !x87_fits(k, trap->x87))
            return false;
    }
    return true;
}

/* Do the parts lie in the entry, the ranges in a page, the holes in the bytes? */
static bool has_shape(const struct kept *k, size_t size)
{
    if (size < sizeof(*k))
        return false;
    struct parts p = parts_of(k);
    return p.size == size && k->bytes <= BYTES_MOST && ranges_fit(k, &p) && holes_fit(k, &p);
}

static bool parts_fit(const struct kept *k)
{
    struct parts p = parts_of(k);
    return k->count && k->count <= TRACE_MAX && k->hot_size <= k->code_size && k->entry < k->hot_size && k->live_entry < k->hot_size &&
           !(k->live & ~(LIVE_VECTORS | LIVE_X87)) && relocs_fit(k, &p) && sites_fit(k, &p) && links_and_traps_fit(k, &p);
}

bool kept_check(const void *bytes, size_t size) { return has_shape(bytes, size) && parts_fit(bytes); }

/* --- using --- */

/* The guest's bytes as they are now in `now`; true: they are what the entry was made of, but for holes. */
static bool same_code(const struct kept *k, const struct parts *p, const uint8_t *page, uint64_t page_gla, uint8_t now[BYTES_MOST])
{
    unsigned bytes = 0;
    for (unsigned i = 0; i < k->ranges; bytes += p->range[i++].size)
        memcpy(now + bytes, page + p->range[i].at, p->range[i].size);
    unsigned at = 0;
    for (unsigned i = 0; i < k->holes; i++) {
        const struct kept_hole *hole = &p->hole[i];
        uint32_t value = load32(now + hole->at);
        bool fits = hole->relative ? page_gla + hole->next + (uint64_t)(int32_t)value == load32(p->bytes + hole->at)
                                   : value == load32(now + hole->same_as) && (value == load32(p->bytes + hole->at) || reloc_may_move(value));
        if (!fits || memcmp(now + at, p->bytes + at, hole->at - at))
            return false;
        at = hole->at + HOLE;
    }
    return memcmp(now + at, p->bytes + at, k->bytes - at) == 0;
}

static void watch(struct vcpu *vcpu, const struct kept *k, const struct parts *p, struct translation *t)
{
    for (unsigned i = 0; i < k->ranges; i++) {
        const struct kept_range *range = &p->range[i];
        block_watch(vcpu, (t->gpa & ~PAGE_MASK) + range->at, range->size);
        t->granules[0] |= dbt_granules(0, range->at, range->at + range->size);
    }
}

static struct site *make_sites(struct dbt *dbt, const struct kept *k, const struct parts *p, const struct translation *t, const uint8_t *now)
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

static void make_traps(const struct dbt *dbt, const struct kept *k, const struct parts *p, struct translation *t)
{
    t->trap_count = k->traps;
    memcpy(t->trap, p->trap, k->traps * sizeof(struct trap));
    for (unsigned i = 0; i < k->traps; i++)
        if (t->trap[i].stub)
            t->trap[i].stub = (uint32_t)(place_of(dbt, k, t->trap[i].stub) - dbt->hot.next);
}

static struct link *make_links(struct dbt *dbt, const struct kept *k, const struct parts *p, const struct translation *t)
{
    struct link *links = dbt_alloc(dbt, k->links * sizeof(*links));
    for (unsigned i = 0; i < k->links; i++)
        links[i] = (struct link){ .field = p->link[i].field == NO_FIELD ? NULL : place_of(dbt, k, p->link[i].field),
                                  .target = t->rip + (uint64_t)(int64_t)p->link[i].target, .uncount = p->link[i].uncount, .ask = place_of(dbt, k, p->link[i].ask) + dbt->shift,
                                  .stub = place_of(dbt, k, p->link[i].stub) + dbt->shift, .from = t, .live = p->link[i].live, .far = p->link[i].far,
                                  .expected = p->link[i].expected == NO_FIELD ? NULL : place_of(dbt, k, p->link[i].expected) };
    return links;
}

static bool make_code(struct dbt *dbt, const struct kept *k, const struct parts *p, struct translation *t, const uint8_t *now)
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

/* NULL: not the code that is there, or an address does not fit. */
static struct translation *install(struct vcpu *vcpu, struct dbt *dbt, const struct kept *k, const uint8_t *page, uint64_t gpa)
{
    struct parts p = parts_of(k);
    uint8_t now[BYTES_MOST];
    dbt_make_room(vcpu, dbt);
    size_t used = dbt->data_used;
    struct translation *t = dbt_alloc(dbt, sizeof(*t));
    t->gpa = gpa;
    t->gpa2 = BLOCK_DROPPED;
    t->rip = vcpu->rip;
    t->count = k->count;
    t->mode = dbt->mode;
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
    counter_add(&vcpu->counters, COUNTER_translations_reused, 1);
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
        if (!fits && !has_shape(k, entry->size)) {
            store_refuse(store, entry);
            continue;
        }
        struct parts p = parts_of(k);
        if (k->mode != mode || k->in_page != in_page || !same_code(k, &p, code - in_page, rip & ~PAGE_MASK, now))
            continue;
        if (fits || parts_fit(k)) {
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
    const uint8_t *code = kept_suits(dbt) ? code_at(vcpu, &gpa) : NULL;
    if (!code || dbt->drops[dbt_page(gpa)] >= DROPS_MOST)
        return NULL;
    uint16_t in_page = vcpu->rip & PAGE_MASK, mode = mode_of(dbt);
    const struct kept *k = NULL;
    uint32_t key[PROBES];
    for (unsigned i = 0; i < PROBES; i++) {
        key[i] = key_of(mode, code, in_page, probe[i]);
        store_expect(dbt->store, key[i]);
    }
    for (unsigned i = 0; i < PROBES && !k; i++)
        k = find(dbt->store, key[i], mode, code, vcpu->rip);
    if (!k)
        return NULL;
    struct translation *t = dbt_find(dbt, gpa, vcpu->rip, dbt->mode);
    return t ? t : install(vcpu, dbt, k, code - in_page, gpa);
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
