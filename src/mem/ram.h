/*
 * Guest RAM: pages with a state, not one array (DESIGN D6). A machine has a few slots of guest-physical address space,
 * each backed by a lazily granted memfd mapping, with a word of metadata for each page. All access goes through the
 * software TLB, a lookup here, or an explicit pin, so that a page can change its state under a running guest.
 */
#ifndef DOPPEL_MEM_RAM_H
#define DOPPEL_MEM_RAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

struct counters;
struct error;
struct ram;

/* Independent clients of dirty tracking, a bit each in the page word. */
enum dirty_client { DIRTY_MIGRATION, DIRTY_SNAPSHOT, DIRTY_DISPLAY, DIRTY_CLIENTS };

/* Bits of a page word. */
enum {
    PAGE_DIRTY = 1u << 0,           /* DIRTY_CLIENTS bits from here: written since the client last looked */
    PAGE_LARGE_WANTED = 1u << 4,    /* of the first page of RAM_LARGE: gather.h has it on its list */
    PAGE_LARGE = 1u << 5,           /* of the first page of RAM_LARGE: it was made one large page, ... */
    PAGE_LARGE_REFUSED = 1u << 6,   /* ... or the host did not */
    PAGE_GRANTED = 1u << 7,         /* of the first page of a piece: ram_grant has seen to the piece */
    PAGE_CODE = 1u << 8,            /* some vCPU has decoded or translated code from it: writes are watched */
    PAGE_HIDDEN = 1u << 9,          /* in a mixed slot: not RAM at present, accesses go to the bus */
    PAGE_ROM = 1u << 10,            /* in a mixed slot: guest writes go to the bus */
    PAGE_CODE_HIT = 1u << 11,       /* counts, up to PAGE_CODE_HITS, the writes to marked granules: code_map.h */
    PAGE_CODE_HITS = 31u << 11,
    PAGE_WRITER = 1u << 16,         /* << (vCPU index mod 16): its software TLB may hold a direct-write entry for it */
    PAGE_WRITE_CACHED = 0xFFFF0000u,
};

enum {
    RAM_SLOTS_MAX = 16, PAGE_WRITERS = 16,
    RAM_PIECE = 16 * PAGE_SIZE,
    RAM_LARGE = 512 * PAGE_SIZE,        /* a large page of the host's */
};

struct ram_slot {
    const char *name;
    uint64_t gpa, size;             /* page-aligned */
    uint8_t *host;                  /* the mapping, `size` bytes */
    _Atomic uint32_t *page;         /* a word for each page */
    _Atomic uint64_t *code;         /* code_map.h: a bit for each 64 bytes of each page */
    bool rom;                       /* guest writes go to the bus */
    bool mixed;                     /* its pages have PAGE_HIDDEN and PAGE_ROM of their own: ram_set_pages */
    /*
     * The memfd behind `host`, for whoever needs the pages a second time (vhost-user, other mappings). With private_mapping
     * there is none, and fd is -1: pages are those of a snapshot's files, copied when they are written (ram_map_file).
     */
    int fd;
    uint64_t fd_offset;             /* of the slot's first byte: congruent with gpa modulo RAM_LARGE, as `host` is */
    bool private_mapping;
    /*
     * A private mapping of what a snapshot holds: `host` itself with private_mapping, else where pages that were not touched yet come
     * from (fetch.h). NULL: neither.
     */
    uint8_t *source;
    uint64_t *of_file;              /* with a source: a bit for each page that a file has */
};

/*
 * Called on the writer's thread after decoded code was written, by a vCPU or by DMA: every vCPU must drop all code that
 * touches [gpa, gpa+size), which are whole granules of code_map.h or a whole page, at its next block border.
 */
struct ram_watcher {
    void (*code_written)(void *owner, uint64_t gpa, uint64_t size);
    void *owner;
};

struct ram {
    struct ram_slot slot[RAM_SLOTS_MAX];
    unsigned slot_count;
    _Atomic uint32_t dirty_clients;     /* mask of PAGE_DIRTY << client bits that somebody wants */
    struct ram_watcher watcher;
    struct counters *counters;          /* the set that any thread may add to; NULL: nobody counts */
    pthread_mutex_t code_mutex;         /* orders code_map_add and code_map_remove */
    struct ram_gatherer *gatherer;      /* gather.h; NULL: nothing is gathered */
    struct ram_stretches *stretches;    /* stretch.h; NULL: nothing is granted ahead */
    struct ram_fetcher *fetcher;        /* fetch.h; NULL: nothing is fetched on demand */
};

struct ram *ram_create(void);
void ram_destroy(struct ram *ram);
/* Adds a slot before the machine runs; name for the monitor; rom: guest writes go to the bus. */
bool ram_add(struct ram *ram, const char *name, uint64_t gpa, uint64_t size, bool rom, struct error *err);
/*
 * Before the machine runs: the slot becomes private memory, all zero, in which parts of files can be mapped. Its memfd goes.
 */
bool ram_make_private(struct ram_slot *slot, struct error *err);
/*
 * Before the machine runs: [offset, offset + size) of a slot with a source becomes what the file has there. Pages are read when they are
 * touched; with a private mapping they are copied when they are written, so that machines which map the same file share what they do not
 * change. The file itself is never written. It must not become shorter while it is mapped.
 */
bool ram_map_file(struct ram_slot *slot, uint64_t offset, uint64_t size, int fd, struct error *err);
/* Sets the bits (one for each page) of pages that may be something else than zero. Its words are zero before. */
void ram_find_granted(const struct ram_slot *slot, uint64_t *bitmap);
uint64_t ram_total(const struct ram *ram);
/*
 * Any thread: somebody is about to touch the page. The host is asked once for the whole piece of RAM_PIECE bytes around it, which costs a
 * fraction of as many faults. Pages that are a snapshot's come one by one as they are touched.
 */
void ram_grant_piece(struct ram *ram, struct ram_slot *slot, uint64_t gpa);
/* Any thread. The same of the piece at `offset` of the slot, for somebody who may touch it later. */
void ram_populate_piece(struct ram *ram, struct ram_slot *slot, uint64_t offset);
static inline void ram_grant(struct ram *ram, struct ram_slot *slot, uint64_t gpa)
{
    uint64_t first = align_down(gpa - slot->gpa, RAM_PIECE) >> PAGE_SHIFT;
    if (unlikely(!(atomic_load_explicit(&slot->page[first], memory_order_relaxed) & PAGE_GRANTED)))
        ram_grant_piece(ram, slot, gpa);
}
/*
 * Any thread. The RAM_LARGE around gpa, most of which is in use, becomes a large page of the host's, unless that was tried before: false then, or
 * where none can be. True: the host was asked, which takes a while (large.c), whatever it answered.
 */
bool ram_make_large(struct ram *ram, struct ram_slot *slot, uint64_t gpa);
/* Any thread: is there a RAM_LARGE around gpa that could become one? Has it? */
bool ram_can_be_large(const struct ram_slot *slot, uint64_t gpa);
bool ram_is_large(const struct ram_slot *slot, uint64_t gpa);
/* Bytes of RAM that the host has granted so far: pages touched, or with a private mapping pages written. */
uint64_t ram_granted(const struct ram *ram);

static inline _Atomic uint32_t *ram_page(const struct ram_slot *slot, uint64_t gpa)
{
    return &slot->page[(gpa - slot->gpa) >> PAGE_SHIFT];
}

static inline bool ram_page_has(const struct ram_slot *slot, uint64_t gpa, uint32_t bit)
{
    return unlikely(slot->mixed) && atomic_load_explicit(ram_page(slot, gpa), memory_order_relaxed) & bit;
}

/* Any thread, lock-free. NULL if the address is not RAM, or a hidden page of it. */
static inline struct ram_slot *ram_find(struct ram *ram, uint64_t gpa)
{
    for (unsigned i = 0; i < ram->slot_count; i++)
        if (gpa - ram->slot[i].gpa < ram->slot[i].size)
            return ram_page_has(&ram->slot[i], gpa, PAGE_HIDDEN) ? NULL : &ram->slot[i];
    return NULL;
}

/*
 * For who maps pages from slot->fd a second time: afterwards they are there. (A page that is fetched on demand comes when it is touched
 * through slot->host, and only then.)
 */
static inline void ram_fetch(const struct ram_slot *slot, uint64_t offset, uint64_t size)
{
    if (likely(!slot->source))
        return;
    for (uint64_t at = offset; at < offset + size; at += PAGE_SIZE)
        (void)*(const volatile uint8_t *)(slot->host + at);
}

/* Do the guest's writes to this page of the slot go to the bus? */
static inline bool ram_is_rom(const struct ram_slot *slot, uint64_t gpa)
{
    return slot->rom || ram_page_has(slot, gpa, PAGE_ROM);
}

/* Bytes from gpa on that are as ram_find found the first of them. */
static inline uint64_t ram_span(const struct ram_slot *slot, uint64_t gpa)
{
    return unlikely(slot->mixed) ? PAGE_SIZE - (gpa & PAGE_MASK) : slot->gpa + slot->size - gpa;
}

/*
 * Whole pages of one slot become hidden, read-only or plain RAM: bits are PAGE_HIDDEN, PAGE_ROM or 0. Board lock held. Decoded
 * code is dropped through the watcher; if true is returned something changed, and the caller has every vCPU flush its
 * TLB. The first call for a slot, which makes it mixed, comes before the machine runs.
 */
bool ram_set_pages(struct ram *ram, uint64_t gpa, uint64_t size, uint32_t bits);

/* Host address of one byte, or NULL if not RAM. Valid to the end of its page. Does not mark dirty: see ram_written. */
static inline uint8_t *ram_host(struct ram *ram, uint64_t gpa)
{
    struct ram_slot *slot = ram_find(ram, gpa);
    return slot ? slot->host + (gpa - slot->gpa) : NULL;
}

/*
 * Copies in and out, any thread; false if any byte is not RAM (nothing may be assumed about the rest). ram_write marks
 * pages dirty and tells the watcher about code; writes to ROM are dropped and count as done.
 */
bool ram_read(struct ram *ram, uint64_t gpa, void *buffer, size_t size);
bool ram_write(struct ram *ram, uint64_t gpa, const void *buffer, size_t size);
/* The loader's write: goes into ROM and hidden pages as well. */
bool ram_load(struct ram *ram, uint64_t gpa, const void *buffer, size_t size);

/* After a write through a host pointer: dirty bits, and the watcher if code was there. */
void ram_written(struct ram *ram, uint64_t gpa, size_t size);

/*
 * A vCPU has written to the page, which holds decoded code. True: it has worn out (code_map_wear). Its marks are gone, and the watcher was told; the writer
 * drops all its code of the page before it goes on.
 */
bool ram_wear_code(struct ram *ram, uint64_t gpa);

/*
 * Dirty tracking. Starting a client marks nothing; `collect` moves the client's bits to the bitmap (one bit a page) and
 * returns how many were set. Software TLBs may hold direct-write entries that were made before: after `start` and after
 * each `collect` the caller makes every vCPU drop them (mmu_drop_all_write_entries by vcpu_run_on), and only then reads
 * the collected pages. Each entry is made after its page's dirty bits were set, on the vCPU's thread, and dropped on the same
 * thread after the bits were cleared; so a write is either in what the caller reads then or marks the page again.
 */
void ram_dirty_start(struct ram *ram, enum dirty_client client);
void ram_dirty_stop(struct ram *ram, enum dirty_client client);
uint64_t ram_dirty_collect(struct ram *ram, enum dirty_client client, const struct ram_slot *slot, uint64_t *bitmap);

#endif
