/*
 * What is mapped in the windows, and the host's part of it.
 *
 * The books: a space has windows, a window an array of pieces (2 MiB each), a piece a view for each page. The host's mappings
 * follow the views; neighbouring views of neighbouring frames make one mapping, as the host's kernel joins them.
 *
 * The reverse index leads from a guest-physical page to the writable views of it: buckets by frame, chained through
 * piece->next_writable, where a link is piece id * PIECE_PAGES + page.
 */
#include "mmu/window_impl.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "mem/ram.h"

enum { NO_LINK = UINT32_MAX, FIRST_WRITABLE_BITS = 10 };
static const uint64_t window_size = BIT(WINDOW_CHUNK_SHIFT);
static const uint64_t guard_size = 2 * GiB + 64 * KiB;
/* The window begins at a multiple of RAM_LARGE. */
static const uint64_t reserved_size = BIT(WINDOW_CHUNK_SHIFT) + 2 * (2 * GiB + 64 * KiB) + RAM_LARGE;
static_assert(WINDOW_OPERAND <= 64 * KiB, "an operand that begins in reach ends in the guard");

/* base + poison + disp is not canonical, with 48 bits and with 57, for each base that meets it: see window.c. */
static const uint64_t poison = BIT(62);

/* Of the whole process, since that is what the host counts. */
static _Atomic uint64_t process_mappings;

uint64_t window_mappings(void) { return atomic_load_explicit(&process_mappings, memory_order_relaxed); }

/* --- the table --- */

enum { TABLE_CHUNKS = 1u << (64 - WINDOW_CHUNK_SHIFT), USER_CHUNKS = WINDOW_USER_CHUNKS };
static const uint64_t table_size = TABLE_CHUNKS * sizeof(uint64_t);
static_assert(USER_CHUNKS * sizeof(uint64_t) % PAGE_SIZE == 0, "user entries are whole pages");

static void poison_user_chunks(struct window_space *space)
{
    for (unsigned i = 0; i < USER_CHUNKS; i++)
        space->table[i] = poison;
}

static bool poison_table(struct window_space *space)
{
    uint64_t *first_after = &space->table[USER_CHUNKS], *last = &space->table[TABLE_CHUNKS - 1];
    void *last_page = (void *)align_down((uintptr_t)last, PAGE_SIZE);
    uint64_t user_size = USER_CHUNKS * sizeof(uint64_t);
    if (mprotect(space->table, user_size + PAGE_SIZE, PROT_READ | PROT_WRITE) || mprotect(last_page, PAGE_SIZE, PROT_READ | PROT_WRITE))
        return false;
    poison_user_chunks(space);
    *first_after = *last = poison;
    return !mprotect(first_after, PAGE_SIZE, PROT_READ) && !mprotect(last_page, PAGE_SIZE, PROT_READ);
}

bool window_make_table(struct window_space *space)
{
    if (space->table)
        return true;
    void *table = mmap(NULL, table_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table == MAP_FAILED)
        return false;
    madvise(table, table_size, MADV_NOHUGEPAGE);
    madvise(table, table_size, MADV_DONTDUMP);
    space->table = table;
    if (poison_table(space))
        return true;
    munmap(table, table_size);
    space->table = NULL;
    return false;
}

/* --- windows --- */

static struct window *find_window(const struct window_space *space, uint64_t chunk)
{
    for (unsigned i = 0; i < space->window_count; i++)
        if (space->window[i].chunk == chunk)
            return (struct window *)&space->window[i];
    return NULL;
}

static void *reserve(uint64_t size, int protection)
{
    void *at = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void window_free(struct window *window)
{
    if (window->reserved)
        munmap(window->reserved, reserved_size);
    if (window->piece)
        munmap(window->piece, WINDOW_PIECES * sizeof(*window->piece));
}

static struct window *new_window(struct windows *windows, struct window_space *space, uint64_t chunk)
{
    if (space->window_count == WINDOWS_PER_SPACE)
        return NULL;
    struct window window = { .chunk = chunk, .reserved = reserve(reserved_size, PROT_NONE) };
    window.piece = reserve(WINDOW_PIECES * sizeof(*window.piece), PROT_READ | PROT_WRITE);
    if (!window.reserved || !window.piece) {
        window_free(&window);
        return NULL;
    }
    window.host = (uint8_t *)align_up((uintptr_t)window.reserved + guard_size, RAM_LARGE);
    space->window[space->window_count] = window;
    space->table[chunk] = (uintptr_t)window.host - (chunk << WINDOW_CHUNK_SHIFT);
    counter_add(windows->counters, COUNTER_windows_made, 1);
    trace(windows->log, window, "window for %#llx at %p", (unsigned long long)(chunk << WINDOW_CHUNK_SHIFT), (void *)window.host);
    return &space->window[space->window_count++];
}

static struct window *make_window(struct windows *windows, struct window_space *space, uint64_t chunk)
{
    struct window *window = find_window(space, chunk);
    return window ? window : new_window(windows, space, chunk);
}

bool window_make(struct windows *windows, struct window_space *space, uint64_t chunk) { return make_window(windows, space, chunk); }

/* --- pieces --- */

static struct piece **piece_slot(const struct window *window, uint64_t gla)
{
    return &window->piece[(gla >> PIECE_SHIFT) % WINDOW_PIECES];
}

struct piece *window_find_piece(const struct window_space *space, uint64_t gla)
{
    const struct window *window = find_window(space, gla >> WINDOW_CHUNK_SHIFT);
    return window ? *piece_slot(window, gla) : NULL;
}

static bool more_ids(struct windows *windows)
{
    uint32_t count = windows->piece_count ? windows->piece_count * 2 : 64;
    struct piece **grown = count < NO_LINK / PIECE_PAGES ? realloc(windows->piece, count * sizeof(*grown)) : NULL;
    if (!grown)
        return false;
    memset(grown + windows->piece_count, 0, (count - windows->piece_count) * sizeof(*grown));
    windows->piece = grown;
    windows->piece_count = count;
    return true;
}

/* A free id, looked for from the last one on; NO_LINK: no memory. */
static uint32_t take_id(struct windows *windows)
{
    if (windows->pieces_used == windows->piece_count && !more_ids(windows))
        return NO_LINK;
    do
        windows->last_id = (windows->last_id + 1) % windows->piece_count;
    while (windows->piece[windows->last_id]);
    return windows->last_id;
}

struct piece *window_make_piece(struct windows *windows, struct window_space *space, uint64_t gla)
{
    struct window *window = make_window(windows, space, gla >> WINDOW_CHUNK_SHIFT);
    if (!window)
        return NULL;
    struct piece **slot = piece_slot(window, gla);
    if (*slot)
        return *slot;
    uint32_t id = take_id(windows);
    struct piece *piece = id == NO_LINK ? NULL : calloc(1, sizeof(*piece));
    if (!piece)
        return NULL;
    piece->space = space;
    piece->id = id;
    piece->gla = align_down(gla, BIT(PIECE_SHIFT));
    piece->host = window->host + (piece->gla & (window_size - 1));
    piece->next = space->pieces;
    if (piece->next)
        piece->next->previous = piece;
    space->pieces = piece;
    windows->piece[id] = piece;
    windows->pieces_used++;
    return *slot = piece;
}

static void piece_free(struct windows *windows, struct piece *piece)
{
    struct window_space *space = piece->space;
    if (piece->next)
        piece->next->previous = piece->previous;
    *(piece->previous ? &piece->previous->next : &space->pieces) = piece->next;
    *piece_slot(find_window(space, piece->gla >> WINDOW_CHUNK_SHIFT), piece->gla) = NULL;
    windows->piece[piece->id] = NULL;
    windows->pieces_used--;
    free(piece);
}

void window_release_piece(struct windows *windows, struct piece *piece)
{
    if (!piece->mapped)
        piece_free(windows, piece);
}

/* --- the reverse index --- */

static uint32_t *bucket(const struct windows *windows, uint64_t view)
{
    return &windows->writable[((view >> PAGE_SHIFT) * 0x9E3779B97F4A7C15ull) >> (64 - windows->writable_bits)];
}

static uint64_t frame_of(uint64_t view) { return view & ~PAGE_MASK; }

static void index_add(struct windows *windows, struct piece *piece, unsigned page)
{
    uint32_t *head = bucket(windows, piece->view[page]);
    piece->next_writable[page] = *head;
    *head = piece->id * PIECE_PAGES + page;
}

static void index_remove(struct windows *windows, struct piece *piece, unsigned page)
{
    uint32_t link = piece->id * PIECE_PAGES + page, *at = bucket(windows, piece->view[page]);
    while (*at != link)
        at = &windows->piece[*at / PIECE_PAGES]->next_writable[*at % PIECE_PAGES];
    *at = piece->next_writable[page];
}

/* So that chains stay short. If the host gives no memory for it they grow longer. */
bool window_grow_index(struct windows *windows)
{
    unsigned bits = windows->writable_bits ? windows->writable_bits + 1 : FIRST_WRITABLE_BITS;
    uint32_t *grown = malloc(sizeof(*grown) << bits);
    if (!grown)
        return false;
    memset(grown, 0xFF, sizeof(*grown) << bits);
    free(windows->writable);
    windows->writable = grown;
    windows->writable_bits = bits;
    for (uint32_t id = 0; id < windows->piece_count; id++)
        for (unsigned page = 0; windows->piece[id] && page < PIECE_PAGES; page++)
            if (windows->piece[id]->view[page] & VIEW_WRITABLE)
                index_add(windows, windows->piece[id], page);
    return true;
}

static void set_view(struct windows *windows, struct piece *piece, unsigned page, uint64_t view)
{
    uint64_t old = piece->view[page];
    if (old & VIEW_WRITABLE) {
        index_remove(windows, piece, page);
        windows->writable_pages--;
    }
    piece->view[page] = view;
    piece->mapped += (view != 0) - (old != 0);
    piece->space->pages += (view != 0) - (old != 0);
    if (view & VIEW_WRITABLE) {
        index_add(windows, piece, page);
        windows->writable_pages++;
    }
}

void window_drop_writes(struct windows *windows, uint64_t gpa)
{
    uint64_t frame = frame_of(gpa);
    if (!windows->writable_pages)
        return;
    for (uint32_t link = *bucket(windows, frame); link != NO_LINK;) {
        struct piece *piece = windows->piece[link / PIECE_PAGES];
        unsigned page = link % PIECE_PAGES;
        if (frame_of(piece->view[page]) == frame) {
            window_show(windows, piece, page, 1, &(uint64_t){ frame | VIEW_MAPPED });
            link = *bucket(windows, frame);
        } else {
            link = piece->next_writable[page];
        }
    }
}

/* --- showing --- */

static bool joined(uint64_t view, uint64_t next) { return view ? next == view + PAGE_SIZE : !next; }

static uint64_t view_at(const struct window_space *space, uint64_t gla)
{
    const struct piece *piece = window_find_piece(space, gla);
    return piece ? piece->view[(gla >> PAGE_SHIFT) % PIECE_PAGES] : 0;
}

/* Borders of mappings among the pages and at both ends. */
static int64_t count_borders(const struct piece *piece, unsigned first, unsigned count)
{
    uint64_t gla = piece->gla + first * PAGE_SIZE, end = gla + count * PAGE_SIZE;
    uint64_t before = gla & (window_size - 1) ? view_at(piece->space, gla - PAGE_SIZE) : 0;
    uint64_t after = end & (window_size - 1) ? view_at(piece->space, end) : 0;
    int64_t borders = 0;
    for (unsigned i = first; i < first + count; i++) {
        borders += !joined(before, piece->view[i]);
        before = piece->view[i];
    }
    return borders + !joined(before, after);
}

static void add_mappings(struct window_space *space, int64_t borders)
{
    space->borders += borders;
    atomic_fetch_add_explicit(&process_mappings, (uint64_t)borders, memory_order_relaxed);
}

/* ram_find but for pages that another thread is hiding just now: the flush that follows takes them away. */
static struct ram_slot *slot_of(const struct windows *windows, uint64_t view)
{
    struct ram_slot *slot = windows->ram->slot;
    while (frame_of(view) - slot->gpa >= slot->size)
        slot++;
    return slot;
}

bool window_is_large(const struct windows *windows, uint64_t view) { return ram_is_large(slot_of(windows, view), frame_of(view)); }

enum change { CHANGE_NONE, CHANGE_UNMAP, CHANGE_PROTECT, CHANGE_MAP };

static enum change change_of(uint64_t old, uint64_t view)
{
    if (old == view)
        return CHANGE_NONE;
    if (!view)
        return CHANGE_UNMAP;
    return (old ^ view) == VIEW_WRITABLE ? CHANGE_PROTECT : CHANGE_MAP;
}

static bool host_unmap(uint8_t *host, uint64_t size)
{
    return mmap(host, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static bool host_change(struct windows *windows, enum change change, uint8_t *host, uint64_t size, uint64_t view)
{
    int protection = view & VIEW_WRITABLE ? PROT_READ | PROT_WRITE : PROT_READ;
    if (change == CHANGE_UNMAP)
        return host_unmap(host, size);
    if (change == CHANGE_PROTECT)
        return !mprotect(host, size, protection);
    const struct ram_slot *slot = slot_of(windows, view);
    uint64_t offset = frame_of(view) - slot->gpa;
    ram_fetch(slot, offset, size);
    return mmap(host, size, protection, MAP_SHARED | MAP_FIXED | MAP_POPULATE, slot->fd, (off_t)(slot->fd_offset + offset)) != MAP_FAILED;
}

/* How many pages from the first on one system call can change: at most `count`, in one slot. */
static unsigned run_length(const struct windows *windows, const uint64_t *old, const uint64_t *view, unsigned count)
{
    enum change change = change_of(old[0], view[0]);
    const struct ram_slot *slot = view[0] ? slot_of(windows, view[0]) : NULL;
    unsigned n = 1;
    while (n < count && change_of(old[n], view[n]) == change && joined(view[n - 1], view[n])
           && (!slot || frame_of(view[n]) - slot->gpa < slot->size))
        n++;
    return n;
}

/* What a system call costs, in instructions of translated code: see window.c. */
enum { COST_CALL = 8000, COST_MAPPED_PAGE = 500 };

/* A whole piece of one large page takes a single entry of the host's tables. */
static uint64_t cost_of_mapping(const struct windows *windows, unsigned count, uint64_t view)
{
    bool large = count == PIECE_PAGES && frame_of(view) % RAM_LARGE == 0 && window_is_large(windows, view);
    return COST_MAPPED_PAGE * (large ? 1 : count);
}

static void show_run(struct windows *windows, struct piece *piece, unsigned first, unsigned count, const uint64_t *view)
{
    struct window_space *space = piece->space;
    enum change change = change_of(piece->view[first], view[0]);
    uint8_t *host = piece->host + first * PAGE_SIZE;
    bool done = host_change(windows, change, host, count * PAGE_SIZE, view[0]);
    if (!done && !host_unmap(host, count * PAGE_SIZE)) {
        space->refused = true;
        poison_user_chunks(space);
    }
    for (unsigned i = 0; i < count; i++)
        set_view(windows, piece, first + i, done ? view[i] : 0);
    space->cost += COST_CALL + (change == CHANGE_MAP ? cost_of_mapping(windows, count, view[0]) : 0);
    counter_add(windows->counters, change == CHANGE_MAP ? COUNTER_window_pages : COUNTER_window_drops, count);
}

void window_show(struct windows *windows, struct piece *piece, unsigned first, unsigned count, const uint64_t *view)
{
    int64_t borders = count_borders(piece, first, count);
    for (unsigned i = 0, run; i < count; i += run) {
        run = run_length(windows, &piece->view[first + i], &view[i], count - i);
        if (piece->view[first + i] != view[i])
            show_run(windows, piece, first + i, run, &view[i]);
    }
    add_mappings(piece->space, count_borders(piece, first, count) - borders);
    if (windows->writable_pages >> windows->writable_bits)
        window_grow_index(windows);
}

static bool shows_one_page(const struct piece *piece)
{
    uint64_t first = frame_of(piece->view[0]);
    return piece->large && piece->mapped == PIECE_PAGES && first % RAM_LARGE == 0 && frame_of(piece->view[PIECE_PAGES - 1]) == first + RAM_LARGE - PAGE_SIZE;
}

void window_make_large(struct windows *windows, struct window_space *space, unsigned most)
{
    for (struct piece *piece = space->pieces; piece && most; piece = piece->next)
        if (shows_one_page(piece))
            most -= ram_make_large(windows->ram, slot_of(windows, piece->view[0]), frame_of(piece->view[0]));
}

/* --- ends --- */

void window_drop_space(struct windows *windows, struct window_space *space)
{
    if (space->table)
        poison_user_chunks(space);
    while (space->pieces) {
        struct piece *piece = space->pieces;
        for (unsigned i = 0; i < PIECE_PAGES; i++)
            if (piece->view[i])
                set_view(windows, piece, i, 0);
        piece_free(windows, piece);
    }
    for (unsigned i = 0; i < space->window_count; i++)
        window_free(&space->window[i]);
    space->window_count = 0;
    add_mappings(space, -space->borders);
    space->pending_count = 0;
    space->refused = space->huge = space->global = false;
}

void window_free_space(struct windows *windows, struct window_space *space)
{
    window_drop_space(windows, space);
    if (space->table)
        munmap(space->table, table_size);
    space->table = NULL;
}
