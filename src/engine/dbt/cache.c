/*
 * Memory and bookkeeping of translations. The engine's state lies directly before the executable view of the code, so that
 * code can address it relative to RIP. The code is one memory object seen twice: executable here, writable elsewhere.
 */
#include "engine/dbt/plan.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mem/code_map.h"

enum { CODE_MOST = 96 << 10, DATA_MOST = 32 << 10 };     /* of one translation */

static size_t state_size(void) { return align_up(sizeof(struct dbt), PAGE_SIZE); }

static bool map_code(struct dbt *dbt, uint8_t *execute)
{
    int fd = memfd_create("doppel-dbt", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    void *write = MAP_FAILED, *there = MAP_FAILED;
    if (ftruncate(fd, DBT_CODE_SIZE) == 0) {
        write = mmap(NULL, DBT_CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        there = mmap(execute, DBT_CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
    }
    close(fd);
    if (write == MAP_FAILED)
        return false;
    dbt->code_base = dbt->code = write;
    dbt->shift = execute - (uint8_t *)write;
    return there != MAP_FAILED;
}

struct dbt *dbt_create(void)
{
    size_t size = state_size() + DBT_CODE_SIZE;
    uint8_t *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    struct dbt *dbt = (struct dbt *)at;
    if (mprotect(at, state_size(), PROT_READ | PROT_WRITE)) {
        munmap(at, size);
        return NULL;
    }
    dbt->data = mmap(NULL, DBT_DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (dbt->data == MAP_FAILED)
        dbt->data = NULL;
    dbt->mini = calloc(1, sizeof(*dbt->mini));
    dbt->work = calloc(1, sizeof(*dbt->work));
    dbt->sign = 1ull << 63;
    dbt->jumps = dbt->jump;
    dbt->hot = DBT_HOT;
    if (!dbt->data || !dbt->mini || !dbt->work || !map_code(dbt, at + state_size())) {
        dbt_destroy(dbt);
        return NULL;
    }
    return dbt;
}

void dbt_destroy(struct dbt *dbt)
{
    if (dbt->code_base)
        munmap(dbt->code_base, DBT_CODE_SIZE);
    if (dbt->data)
        munmap(dbt->data, DBT_DATA_SIZE);
    free(dbt->mini);
    free(dbt->work);
    munmap(dbt, state_size() + DBT_CODE_SIZE);
}

void dbt_flush(struct dbt *dbt)
{
    dbt->code = dbt->code_start;
    dbt->data_used = 0;
    dbt->flushes = dbt->interp.cache ? dbt->interp.cache->flushes : 0;
    memset(dbt->hash, 0, sizeof(dbt->hash));
    memset(dbt->page, 0, sizeof(dbt->page));
    memset(dbt->jump, 0, sizeof(dbt->jump));
    memset(dbt->drops, 0, sizeof(dbt->drops));
}

void *dbt_alloc(struct dbt *dbt, size_t size)
{
    void *at = dbt->data + dbt->data_used;
    dbt->data_used += align_up(size, 16);
    memset(at, 0, size);
    return at;
}

void dbt_make_room(struct dbt *dbt)
{
    if (dbt->code + CODE_MOST > dbt->code_base + DBT_CODE_SIZE || dbt->data_used + DATA_MOST > DBT_DATA_SIZE)
        dbt_flush(dbt);
}

/* --- finding --- */

static unsigned hash_of(uint64_t gpa, uint64_t rip)
{
    uint64_t h = gpa ^ (gpa >> DBT_HASH_BITS) ^ (rip >> PAGE_SHIFT) * 0x9E3779B1u;
    return (unsigned)(h & ((1u << DBT_HASH_BITS) - 1));
}

struct translation *dbt_find(const struct dbt *dbt, uint64_t gpa, uint64_t rip)
{
    struct translation *t = dbt->hash[hash_of(gpa, rip)];
    while (t && (t->gpa != gpa || t->rip != rip))
        t = t->hash_next;
    return t;
}

void dbt_add(struct dbt *dbt, struct translation *t)
{
    struct translation **bucket = &dbt->hash[hash_of(t->gpa, t->rip)], **page = &dbt->page[dbt_page(t->gpa)];
    t->hash_next = *bucket;
    *bucket = t;
    t->page_next = *page;
    *page = t;
}

void dbt_remember_jump(struct dbt *dbt, struct translation *t, const uint8_t *host)
{
    *dbt_jump(dbt, t->rip) = (struct jump){ .rip = t->rip, .host = (uintptr_t)host, .code = t->indirect_entry, .translation = t };
}

/* --- links --- */

static void retarget(const struct dbt *dbt, struct link *link, const uint8_t *target)
{
    struct emitter e = { .shift = dbt->shift };
    emit_target(&e, link->field, target);
}

void dbt_link(struct dbt *dbt, struct link *link, struct translation *to)
{
    if (link->patched || link->from->dropped)
        return;
    link->patched = true;
    link->next = to->incoming;
    to->incoming = link;
    retarget(dbt, link, to->entry);
}

/* --- dropping --- */

static void unhook(struct dbt *dbt, struct translation *t)
{
    struct translation **at = &dbt->hash[hash_of(t->gpa, t->rip)];
    while (*at != t)
        at = &(*at)->hash_next;
    *at = t->hash_next;
    struct jump *jump = dbt_jump(dbt, t->rip);
    if (jump->code == t->indirect_entry)
        *jump = (struct jump){ 0 };
    for (struct link *link = t->incoming; link; link = link->next) {
        link->patched = false;
        retarget(dbt, link, link->stub);
    }
    t->incoming = NULL;
    t->dropped = true;
}

/* Whole granules, as the code map forgets them. */
void dbt_drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    struct dbt *dbt = dbt_of(vcpu);
    uint64_t end = align_up(gpa + size, CODE_GRANULE);
    gpa = align_down(gpa, CODE_GRANULE);
    for (uint64_t page = gpa & ~PAGE_MASK; page < end; page += PAGE_SIZE) {
        struct translation **at = &dbt->page[dbt_page(page)];
        while (*at) {
            struct translation *t = *at;
            if (t->gpa < end && gpa < t->gpa + t->bytes) {
                unhook(dbt, t);
                if (dbt->drops[dbt_page(page)] < UINT8_MAX)
                    dbt->drops[dbt_page(page)]++;
                *at = t->page_next;
            } else {
                at = &t->page_next;
            }
        }
    }
}
