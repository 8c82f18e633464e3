/*
 * Within mmu/: the books of the windows. window.c decides which address spaces have windows; window_map.c maps pages in them
 * and remembers what is mapped; window_scan.c reads the guest's tables.
 */
#ifndef DOPPEL_MMU_WINDOW_IMPL_H
#define DOPPEL_MMU_WINDOW_IMPL_H

#include "mmu/window.h"

/* A view is what a window shows at one page: the guest-physical page with these bits, or 0 for nothing. */
enum { VIEW_MAPPED = 1u << 0, VIEW_WRITABLE = 1u << 1 };

enum {
    PIECE_SHIFT = 21, PIECE_PAGES = 512,        /* what one page table maps */
    WINDOW_PIECES = 1u << (WINDOW_CHUNK_SHIFT - PIECE_SHIFT),
    WINDOWS_PER_SPACE = 16,
    WINDOW_USER_CHUNKS = 1u << (47 - WINDOW_CHUNK_SHIFT),
    PENDING_PIECES = 8,
};

/* 2 MiB of an address space of which some page is mapped. */
struct piece {
    struct window_space *space;
    uint64_t gla;                       /* where it begins, and its host address */
    uint8_t *host;
    uint32_t id;                        /* its place in windows.piece */
    uint16_t mapped;                    /* pages that are */
    uint16_t fills;
    bool large;                         /* some view was taken from a large page of the guest's */
    struct piece *next, *previous;      /* of the space */
    uint64_t view[PIECE_PAGES];
    uint32_t next_writable[PIECE_PAGES];        /* window_map.c: the reverse index */
};

struct window {
    uint64_t chunk;                     /* gla >> WINDOW_CHUNK_SHIFT */
    uint8_t *reserved;                  /* guard, window, guard */
    uint8_t *host;                      /* the window */
    struct piece **piece;               /* by number, WINDOW_PIECES of them */
};

struct window_space {
    uint64_t root;                      /* guest-physical address of the top table; WINDOW_NO_ROOT: free */
    uint64_t eptp;                      /* of a VT-x guest with EPT; else 0 */
    bool hot;
    /* Before the next use: all views are to be compared with the guest's tables; or those of the `pending` pieces. */
    bool stale;
    bool doubtful;                      /* stale because nobody was told of flushes: the table may be another process's */
    uint8_t pending_count;
    uint64_t pending[PENDING_PIECES];
    bool refused;                       /* the host did not do as told: the table is poisoned, all is to be dropped */
    bool huge;                          /* some view was taken from a page of 1 GiB */
    bool global;                        /* some view was taken from a global page */
    uint64_t last_cr2;                  /* for which `anticipate` looked */
    uint64_t *table;                    /* NULL: never was hot */
    struct window window[WINDOWS_PER_SPACE];
    unsigned window_count;
    struct piece *pieces;
    int64_t borders;                    /* places where one mapping of the host ends and the next begins */
    uint64_t pages;                     /* mapped */
    /* policy: window.c */
    uint64_t last_use;
    uint64_t run, cost, threshold;
};
#define WINDOW_NO_ROOT (~0ull)

/* The windows of one vCPU. */
struct windows {
    struct window_space space[WINDOW_SPACES];
    struct counters *counters;
    struct log *log;
    struct ram *ram;
    uint64_t ticks;
    uint64_t mappings_max;
    struct piece **piece;               /* all pieces, by id; NULL: free */
    uint32_t piece_count, pieces_used, last_id;
    uint32_t *writable;                 /* heads of the reverse index, 1 << writable_bits of them */
    unsigned writable_bits;
    uint64_t writable_pages;
};

/* --- window_map.c --- */

/* The table and the windows; false: the host refuses. */
bool window_make_table(struct window_space *space);
/* Everything in the space's windows goes, and the windows; the table is left, with poison in it. */
void window_drop_space(struct windows *windows, struct window_space *space);
void window_free_space(struct windows *windows, struct window_space *space);

/* Makes a window for the chunk if there is none. False: the host refuses, or the space has as many as it can. */
bool window_make(struct windows *windows, struct window_space *space, uint64_t chunk);

struct piece *window_find_piece(const struct window_space *space, uint64_t gla);
/* The piece around gla, made with its window if need be. NULL: no room. */
struct piece *window_make_piece(struct windows *windows, struct window_space *space, uint64_t gla);
/* Frees it if nothing is mapped in it. */
void window_release_piece(struct windows *windows, struct piece *piece);

/*
 * Makes the piece show view[0..count) at its pages from `first` on, with as few system calls as that takes. What the host refuses
 * is not mapped, and if it refuses to unmap, space->refused is set and the table leads nowhere.
 */
void window_show(struct windows *windows, struct piece *piece, unsigned first, unsigned count, const uint64_t *view);

/* Is what the view shows part of a large page of the host's? */
bool window_is_large(const struct windows *windows, uint64_t view);
/* Has up to `most` pieces that show a large page of the guest's get large pages of the host's. */
void window_make_large(struct windows *windows, struct window_space *space, unsigned most);

/* Takes write access from every view of the guest-physical page. */
void window_drop_writes(struct windows *windows, uint64_t gpa);
/* Makes the reverse index, or makes it larger; false: no memory. */
bool window_grow_index(struct windows *windows);

/* Host mappings of the windows of all vCPUs of the process. */
uint64_t window_mappings(void);

/* --- window_scan.c --- */

/*
 * What the processor could hold in its TLB for user-mode data accesses in the piece at gla, going by the guest's tables as they
 * are (pages with A set, writable where D is set), as far as the host can show it. Sets nothing anywhere. Of a piece that is not one large
 * page only view[first, end) is looked at, and written.
 */
struct window_scan {
    unsigned first, end;
    uint64_t view[PIECE_PAGES];
    bool large, huge, global;           /* taken from a page of 2 MiB or more, of 1 GiB; some from a global page */
};
void window_scan(struct vcpu *vcpu, uint64_t gla, unsigned first, unsigned end, struct window_scan *scan);

/* Marks the chunks in which the guest's tables map anything for user code; used[] has WINDOW_USER_CHUNKS. */
void window_find_chunks(struct vcpu *vcpu, bool *used);

/* Makes the vCPU a writer of the view's page if it is writable; without VIEW_WRITABLE if that is not possible, or not for nothing (writer.h). */
uint64_t window_claim(struct vcpu *vcpu, uint64_t view);

/* --- window.c: what tlb.c tells --- */

void windows_destroy(struct windows *windows);
/* All translations of the context are void, or those of one address: what is shown will be compared before it is used again. */
void window_flush_context(struct tlb_context *context);
void window_flush_page(struct tlb_context *context, uint64_t gla, bool global_only);
/* mmu->context and mmu->cr3 are new; flushed: the context was. */
void window_follow_cr3(struct vcpu *vcpu, bool flushed);
/* At once: no more unseen writes to a guest-physical page, or to any. */
void window_drop_write_access(struct mmu *mmu, uint64_t gpa);
void window_drop_all_write_access(struct mmu *mmu);

#endif
