/* Entries that come from a file are the enemy's, though their checksum be right. */
#include "engine/dbt/kept_entry.h"

static bool relocs_fit(const struct kept *k, const struct kept_parts *p)
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

static bool ranges_fit(const struct kept *k, const struct kept_parts *p)
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
static bool holes_fit(const struct kept *k, const struct kept_parts *p)
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

static bool sites_fit(const struct kept *k, const struct kept_parts *p)
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

static bool links_and_traps_fit(const struct kept *k, const struct kept_parts *p)
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
bool kept_has_shape(const struct kept *k, size_t size)
{
    if (size < sizeof(*k))
        return false;
    struct kept_parts p = kept_parts(k);
    return p.size == size && k->bytes <= BYTES_MOST && ranges_fit(k, &p) && holes_fit(k, &p);
}

bool kept_parts_fit(const struct kept *k)
{
    struct kept_parts p = kept_parts(k);
    return k->count && k->count <= TRACE_MAX && k->hot_size <= k->code_size && k->entry < k->hot_size && k->live_entry < k->hot_size &&
           !(k->live & ~(LIVE_VECTORS | LIVE_X87)) && relocs_fit(k, &p) && sites_fit(k, &p) && links_and_traps_fit(k, &p);
}

bool kept_check(const void *bytes, size_t size) { return kept_has_shape(bytes, size) && kept_parts_fit(bytes); }
