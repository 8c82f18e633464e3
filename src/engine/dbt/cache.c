/*
 * Memory and bookkeeping of translations. The engine's state lies directly before the executable view of the code, so that
 * code can address it relative to RIP. The code is one memory object seen twice: executable here, writable elsewhere.
 */
#include "engine/dbt/plan.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/large_page.h"
#include "base/thread.h"
#include "engine/dbt/perf.h"
#include "mem/code_map.h"

enum { CODE_MOST = 64 << 10, DATA_MOST = 64 << 10 };     /* of one translation */
enum { CODE_PIECE = 256 << 10, CODE_LARGE = 2 << 20 };   /* asked of the host at once: at first, and once a part has CODE_MUCH */
enum { CODE_MUCH = 8 << 20 };
enum { TABLES_FROM = 1024 };      /* translations */
enum { DROPS_COUNTED = 16 };
enum { ORDER_MOST = 1 << 20 };

static size_t state_size(void) { return align_up(sizeof(struct dbt), CODE_LARGE); }

/* Addresses for so many bytes, from one on at which a large page may begin. */
static uint8_t *reserve_pieces(size_t size)
{
    uint8_t *at = mmap(NULL, size + CODE_LARGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    uint8_t *start = (uint8_t *)align_up((uintptr_t)at, CODE_LARGE);
    if (start > at)
        munmap(at, (size_t)(start - at));
    munmap(start + size, (size_t)(at + CODE_LARGE - start));
    return start;
}

static bool map_code(struct dbt *dbt, uint8_t *execute)
{
    int fd = memfd_create("doppel-dbt", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    void *write = reserve_pieces(DBT_CODE_SIZE), *there = MAP_FAILED;
    if (write && ftruncate(fd, DBT_CODE_SIZE) == 0) {
        write = mmap(write, DBT_CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
        there = mmap(execute, DBT_CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
    }
    close(fd);
    if (!write || write == MAP_FAILED)
        return false;
    uint8_t *base = write;
    dbt->hot = (struct code_part){ .base = base, .next = base, .granted = base };
    base += DBT_HOT_SIZE;
    dbt->cold = (struct code_part){ .base = base, .next = base, .granted = base };
    dbt->shift = execute - (uint8_t *)write;
    return there != MAP_FAILED;
}

/* Memory that the host grants as it is touched. */
static void *reserve(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void release(void *at, size_t size)
{
    if (at)
        munmap(at, size);
}

struct dbt *dbt_create(void)
{
    size_t size = state_size() + DBT_CODE_SIZE;
    uint8_t *at = reserve_pieces(size);
    if (!at)
        return NULL;
    struct dbt *dbt = (struct dbt *)at;
    if (mprotect(at, state_size(), PROT_READ | PROT_WRITE)) {
        munmap(at, size);
        return NULL;
    }
    dbt->data = reserve(DBT_DATA_SIZE);
    if (dbt->data)
        madvise(dbt->data, DBT_DATA_SIZE, MADV_HUGEPAGE);       /* it is filled from its beginning on */
    dbt->data_granted = (struct ahead_arena){ .base = dbt->data, .size = DBT_DATA_SIZE };
    dbt->ahead = thread_processors() > 1 ? ahead_create() : NULL;        /* on one it would only take the vCPU's time */
    dbt->order = reserve(ORDER_MOST * sizeof(struct translation *));
    dbt->tables = reserve(JUMPS_TABLES * sizeof(struct jump_table));
    dbt->mini = calloc(1, sizeof(*dbt->mini));
    dbt->work = calloc(1, sizeof(*dbt->work));
    dbt->site_runs = site_runs_create();
    dbt->sign = 1ull << 63;
    dbt->host_mxcsr = 0x1F80;
    dbt->jumps = dbt->tables;
    if (dbt->tables)
        dbt_forget_jumps(dbt);
    dbt->heat_wanted = DBT_HOT;
    dbt->ask_from = UINT_MAX;
    dbt->generation = 1;
    dbt_limit(dbt, 0);
    if (!dbt->data || !dbt->order || !dbt->tables || !dbt->mini || !dbt->work || !dbt->site_runs || !map_code(dbt, at + state_size())) {
        dbt_destroy(dbt);
        return NULL;
    }
    return dbt;
}

void dbt_destroy(struct dbt *dbt)
{
    ahead_destroy(dbt->ahead);
    if (dbt->hot.base)
        munmap(dbt->hot.base, DBT_CODE_SIZE);
    release(dbt->data, DBT_DATA_SIZE);
    release(dbt->order, ORDER_MOST * sizeof(struct translation *));
    release(dbt->tables, JUMPS_TABLES * sizeof(struct jump_table));
    free(dbt->mini);
    free(dbt->work);
    free(dbt->site_runs);
    munmap(dbt, state_size() + DBT_CODE_SIZE);
}

void dbt_flush(struct dbt *dbt)
{
    dbt->hot.next = dbt->code_start;
    dbt->cold.next = dbt->cold.base;
    dbt->data_used = 0;
    dbt->stub_flushes = dbt->interp.cache->stub_flushes;
    dbt->generation++;
    dbt->keeps_supervisor = true;
    if (dbt->requests)          /* it has much code */
        dbt->ask_from = 0;
    memset(dbt->hash, 0, sizeof(dbt->hash));
    memset(dbt->page, 0, sizeof(dbt->page));
    dbt->order_count = 0;
    dbt->far = dbt->user_far = NULL;
    for (unsigned n = 0; n < JUMPS_TABLES; n++)
        if (dbt->tables[n].ready)
            dbt->tables[n].far = NULL;
    dbt_forget_jumps(dbt);
    memset(dbt->drops, 0, sizeof(dbt->drops));
}

void *dbt_alloc(struct dbt *dbt, size_t size)
{
    void *at = dbt->data + dbt->data_used;
    dbt->data_used += align_up(size, 16);
    memset(at, 0, size);
    return at;
}

void dbt_limit(struct dbt *dbt, size_t bytes)
{
    size_t most = bytes && bytes < DBT_CODE_SIZE ? bytes : DBT_CODE_SIZE;
    if (most < DBT_CODE_LEAST)
        most = DBT_CODE_LEAST;
    dbt->hot.end = dbt->hot.base + most / (DBT_CODE_SIZE >> 20) * (DBT_HOT_SIZE >> 20);
    dbt->cold.end = dbt->cold.base + most / (DBT_CODE_SIZE >> 20) * (DBT_COLD_SIZE >> 20);
    dbt->data_most = most / (DBT_CODE_SIZE >> 20) * (DBT_DATA_SIZE >> 20);
}

/*
 * Large pages for both views, which are asked for by the first page of each. Programs like compilers run through many megabytes of code, and
 * the processor's TLB reaches a few hundred small pages. A boot makes less, and each large page costs it a millisecond or two.
 */
static void grant_large(const struct dbt *dbt, uint8_t *at)
{
    ahead_touch(at);
    large_page_collapse(at, CODE_LARGE);
    large_page_collapse(at + dbt->shift, CODE_LARGE);
}

static void populate(const struct dbt *dbt, uint8_t *at, size_t size)
{
#ifdef MADV_POPULATE_WRITE
    madvise(at, size, MADV_POPULATE_WRITE);
    madvise(at + dbt->shift, size, MADV_POPULATE_READ);
#endif
}

static void grant_piece(void *owner, uint8_t *at, size_t size)
{
    const struct dbt *dbt = owner;
    if (size == CODE_LARGE)
        grant_large(dbt, at);
    populate(dbt, at, size);
}

static void have_granted(struct dbt *dbt, ahead_fn *grant, uint8_t *at, size_t size)
{
    if (!ahead_ask(dbt->ahead, grant, dbt, at, size))
        grant(dbt, at, size);
}

/*
 * Both views of what will be written next: a fault for each of its pages would cost as much as translating. No more than there is already, so that
 * machines which do little stay small.
 */
static void grant_code(struct dbt *dbt, struct code_part *part)
{
    size_t margin = dbt->ahead ? max_u64(CODE_MOST, min_u64((size_t)(part->next - part->base), AHEAD_MARGIN)) : CODE_MOST;
    while (part->next + margin > part->granted && part->granted < part->end) {
        size_t size = part->granted >= part->base + CODE_MUCH ? CODE_LARGE : CODE_PIECE;
        have_granted(dbt, grant_piece, part->granted, size);
        part->granted += size;
        for (uint8_t *at = part->base; part->granted == part->base + CODE_MUCH && at < part->granted; at += CODE_LARGE)
            have_granted(dbt, grant_piece, at, CODE_LARGE);
    }
}

static void make_large(void *owner, uint8_t *at, size_t size)
{
    (void)owner;
    large_page_collapse(at, size);
}

static void grant_for_writing(void *owner, uint8_t *at, size_t size)
{
    (void)owner;
    uint8_t *from = (uint8_t *)align_up((uintptr_t)at, PAGE_SIZE), *to = (uint8_t *)align_down((uintptr_t)(at + size), PAGE_SIZE);
#ifdef MADV_POPULATE_WRITE
    madvise(from, (size_t)(to - from), MADV_POPULATE_WRITE);
#endif
}

/*
 * The tables that find code are looked up before they are written. Each of their pages would be a page of zeroes first, and then, with word to
 * the processors that know it, another one; a few thousand translations reach them all.
 */
static void grant_tables(struct dbt *dbt)
{
    if (dbt->tables_granted || dbt->order_count < TABLES_FROM)
        return;
    dbt->tables_granted = true;
    have_granted(dbt, grant_for_writing, (uint8_t *)dbt->hash, sizeof(dbt->hash));
    have_granted(dbt, grant_for_writing, (uint8_t *)&dbt->tables[JUMPS_SUPERVISOR], sizeof(dbt->tables[JUMPS_SUPERVISOR]));
    have_granted(dbt, grant_for_writing, (uint8_t *)dbt->interp.cache, sizeof(*dbt->interp.cache));
}

/* What finds translations, too, once there are so many that the host's TLB does not reach all of it: machines that have done little stay small. */
static void grant_state(struct dbt *dbt)
{
    if (dbt->state_is_large || dbt->hot.next < dbt->hot.base + CODE_MUCH)
        return;
    dbt->state_is_large = true;
    have_granted(dbt, make_large, (uint8_t *)dbt, state_size());
}

void dbt_expect_use(struct dbt *dbt)
{
    ahead_of_arena(dbt->ahead, &dbt->interp.cache->granted, 0);
    ahead_of_arena(dbt->ahead, &dbt->data_granted, 0);
}

static bool is_full(const struct code_part *part) { return part->next + CODE_MOST > part->end; }

void dbt_make_room(struct vcpu *vcpu, struct dbt *dbt)
{
    if (is_full(&dbt->hot) || is_full(&dbt->cold) || dbt->data_used + DATA_MOST > dbt->data_most ||
        dbt->order_count == ORDER_MOST) {
        dbt_flush(dbt);
        counter_add(&vcpu->counters, COUNTER_code_flushes, 1);
    }
    grant_code(dbt, &dbt->hot);
    grant_code(dbt, &dbt->cold);
    grant_tables(dbt);
    grant_state(dbt);
    ahead_of_arena(dbt->ahead, &dbt->data_granted, dbt->data_used);
}

/* --- finding --- */

/* Neighbours have neighbouring buckets: eight of them, one line of the processor's cache, are of 32 bytes of code. */
static unsigned hash_of(uint64_t gpa, uint64_t rip)
{
    uint64_t h = gpa >> 2 ^ (gpa >> (DBT_HASH_BITS + 2)) ^ (rip >> PAGE_SHIFT) * 0x9E3779B1u;
    return (unsigned)(h & ((1u << DBT_HASH_BITS) - 1));
}

struct translation *dbt_find(const struct dbt *dbt, uint64_t gpa, uint64_t rip, uint8_t mode)
{
    struct translation *t = dbt->hash[hash_of(gpa, rip)];
    while (t && (t->gpa != gpa || t->rip != rip || t->mode != mode))
        t = t->hash_next;
    return t;
}

void dbt_expect(const struct dbt *dbt, uint64_t gpa, uint64_t rip) { __builtin_prefetch(&dbt->hash[hash_of(gpa, rip)]); }

static void name_for_perf(struct perf *perf, const struct translation *t, const char *part, const uint8_t *code, size_t size)
{
    char name[64];
    snprintf(name, sizeof(name), "%s_%llx%s%s", t->mode & MODE_USER ? "user" : "kernel", (unsigned long long)t->rip,
             t->mode & MODE_WINDOW ? "_window" : "", part);
    perf_name(perf, name, code, size);
}

static void add(struct dbt *dbt, struct translation *t)
{
    struct translation **bucket = &dbt->hash[hash_of(t->gpa, t->rip)];
    t->hash_next = *bucket;
    *bucket = t;
    for (unsigned which = 0; which < (t->gpa2 == BLOCK_DROPPED ? 1 : 2); which++) {
        struct translation **page = &dbt->page[which][dbt_page(which ? t->gpa2 : t->gpa)];
        t->page_next[which] = *page;
        *page = t;
    }
    dbt->order[dbt->order_count++] = t;
}

void dbt_publish(struct vcpu *vcpu, struct dbt *dbt, struct translation *t, uint8_t *hot_end, uint8_t *cold_end)
{
    if (unlikely(vcpu->perf)) {
        name_for_perf(vcpu->perf, t, "", t->code, (size_t)(hot_end - dbt->hot.next));
        name_for_perf(vcpu->perf, t, "_out", dbt->cold.next + dbt->shift, (size_t)(cold_end - dbt->cold.next));
    }
    dbt->hot.next = (uint8_t *)align_up((uintptr_t)hot_end, 16);
    dbt->cold.next = cold_end;
    add(dbt, t);
}

struct translation *dbt_at(const struct dbt *dbt, uintptr_t host)
{
    if (host - (uintptr_t)(dbt->code_start + dbt->shift) >= (size_t)(dbt->hot.next - dbt->code_start))
        return NULL;
    unsigned low = 0, high = dbt->order_count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if ((uintptr_t)dbt->order[middle]->code <= host)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? dbt->order[low - 1] : NULL;
}

/* --- links --- */

static void retarget(const struct dbt *dbt, struct link *link, const uint8_t *target)
{
    struct emitter e = { .shift = dbt->shift };
    emit_target(&e, link->field, target);
}

/* Where an indirect jump leads if its target is another one. */
static void retarget_missed(const struct dbt *dbt, struct link *link, const uint8_t *target)
{
    struct emitter e = { .shift = dbt->shift };
    emit_target(&e, (uint8_t *)(uintptr_t)link->stub - dbt->shift - 4, target);
}

static void unlist(struct link *link)
{
    struct link **at = &link->to->incoming;
    while (*at != link)
        at = &(*at)->next;
    *at = link->next;
}

/* Between pages of user code only with windows: what is young goes away before it has paid, and shares its code with its kin. */
static bool may_link(const struct link *link, const struct translation *to)
{
    if (link->far)
        return (link->from->mode & (MODE_USER | MODE_WINDOW)) != MODE_USER;
    return to->gpa2 == BLOCK_DROPPED;
}

/* A jump that no other address space can take holds while others run. */
static struct link **far_list(struct dbt *dbt, const struct link *link)
{
    if (!(link->from->mode & MODE_USER))
        return &dbt->far;
    return dbt_is_only_here(dbt, link->from) ? &dbt->jumps->far : &dbt->user_far;
}

static void list_far(struct dbt *dbt, struct link *link)
{
    if (link->far_listed)
        return;
    struct link **list = far_list(dbt, link);
    link->far_listed = true;
    link->far_next = *list;
    *list = link;
}

static void expect(struct link *link, uint64_t rip)
{
    uint64_t minus_rip = -rip;
    link->target = rip;
    memcpy(link->expected, &minus_rip, sizeof(minus_rip));
}

void dbt_link(struct dbt *dbt, struct link *link, struct translation *to)
{
    if (link->patched || link->from->dropped || !may_link(link, to))
        return;
    link->patched = true;
    if (link->to != to) {                       /* else it is listed, and was undone with others between pages */
        if (link->to)
            unlist(link);
        link->to = to;
        link->next = to->incoming;
        to->incoming = link;
    }
    if (link->far)
        list_far(dbt, link);
    if (link->expected)
        expect(link, to->rip);
    retarget(dbt, link, to->live & ~link->live ? to->entry : to->live_entry);
}

enum { CHANGES_MOST = 8 };      /* a table of a linker's changes once, when a function is called for the first time */

void dbt_relink(struct dbt *dbt, struct link *link, struct translation *to)
{
    if (link->patched && link->changes++ == CHANGES_MOST)
        retarget_missed(dbt, link, link->stub);
    link->patched = false;
    dbt_link(dbt, link, to);
}

static void unpatch(struct dbt *dbt, struct link *link)
{
    link->patched = false;
    retarget(dbt, link, link->ask);
}

static void unlink_all(struct dbt *dbt, struct link **list)
{
    for (struct link *link = *list; link; link = link->far_next) {
        unpatch(dbt, link);
        link->far_listed = false;
    }
    *list = NULL;
}

void dbt_unlink_far(struct dbt *dbt) { unlink_all(dbt, &dbt->far); }

void dbt_unlink_far_of(struct dbt *dbt, struct jump_table *table) { unlink_all(dbt, &table->far); }

enum { ASK_AFTER = 2 << 20 };   /* instructions of user code */

/*
 * They ask again; but when that was so just now (two processes that talk to each other), they go through the jump tables for good, unless
 * something is not found there.
 */
void dbt_unlink_user_far(struct dbt *dbt)
{
    bool quiet = dbt->user_ran - dbt->user_unlinked_at >= ASK_AFTER;
    if (!dbt->user_far)
        return;
    for (struct link *link = dbt->user_far; link; link = link->far_next) {
        link->patched = link->far_listed = false;
        retarget(dbt, link, quiet ? link->ask : link->stub);
    }
    dbt->user_far = NULL;
    dbt->user_unlinked_at = dbt->user_ran;
}

/* --- dropping --- */

static void unhook(struct dbt *dbt, struct translation *t)
{
    struct translation **at = &dbt->hash[hash_of(t->gpa, t->rip)];
    while (*at != t)
        at = &(*at)->hash_next;
    *at = t->hash_next;
    dbt_forget_jump(dbt, t);
    for (struct link *link = t->incoming; link; link = link->next) {
        unpatch(dbt, link);
        link->to = NULL;
    }
    t->incoming = NULL;
    t->dropped = true;
}

uint64_t dbt_granules(uint64_t page, uint64_t gpa, uint64_t end)
{
    uint64_t first = gpa > page ? (gpa - page) >> CODE_GRANULE_SHIFT : 0;
    uint64_t last = end < page + PAGE_SIZE ? (end - 1 - page) >> CODE_GRANULE_SHIFT : 63;
    return (~0ull << first) & (~0ull >> (63 - last));
}
static_assert(PAGE_SIZE >> CODE_GRANULE_SHIFT == 64, "a bit for each granule");

/* Those with bytes in the granules of the page; they stay in their other page's list until somebody comes by there. */
static void drop_in_page(struct dbt *dbt, uint64_t page, uint64_t granules)
{
    for (unsigned which = 0; which < 2; which++) {
        struct translation **at = &dbt->page[which][dbt_page(page)];
        while (*at) {
            struct translation *t = *at;
            uint64_t its = which ? t->gpa2 : t->gpa & ~PAGE_MASK;
            if (!t->dropped && its == page && (t->granules[which] & granules)) {
                unhook(dbt, t);
                if (dbt->drops[dbt_page(page)] < DROPS_COUNTED)
                    dbt->drops[dbt_page(page)]++;
            }
            if (t->dropped)
                *at = t->page_next[which];
            else
                at = &t->page_next[which];
        }
    }
}

/* Whole granules, as the code map forgets them. */
void dbt_drop(struct vcpu *vcpu, uint64_t gpa, uint64_t size)
{
    uint64_t end = gpa + size;
    for (uint64_t page = gpa & ~PAGE_MASK; page < end; page += PAGE_SIZE)
        drop_in_page(dbt_of(vcpu), page, dbt_granules(page, gpa, end));
}
