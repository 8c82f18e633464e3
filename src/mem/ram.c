#include "mem/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "mem/code_map.h"
#include "mem/fetch.h"
#include "mem/gather.h"
#include "mem/stretch.h"

/* No processor addresses more (SDM3 §4.1.4: MAXPHYADDR is at most 52). */
static const uint64_t physical_limit = BIT(52);
/* Beyond this a size is a typing error rather than a wish: address space for the page words is reserved at once. */
static const uint64_t slot_limit = 4096 * GiB;

struct ram *ram_create(void)
{
    struct ram *ram = calloc(1, sizeof(*ram));
    if (ram)
        pthread_mutex_init(&ram->code_mutex, NULL);
    return ram;
}

static uint64_t slot_pages(const struct ram_slot *slot) { return slot->size >> PAGE_SHIFT; }

static void release(void *mapping, uint64_t size)
{
    if (mapping)
        munmap(mapping, size);
}

static void slot_free(struct ram_slot *slot)
{
    release(slot->host ? slot->host - slot->fd_offset : NULL, slot->fd_offset + slot->size);
    if (slot->source != slot->host)
        release(slot->source, slot->size);
    release((void *)slot->page, slot_pages(slot) * sizeof(*slot->page));
    release((void *)slot->code, slot_pages(slot) * sizeof(*slot->code));
    free(slot->of_file);
    if (slot->fd >= 0)
        close(slot->fd);
}

void ram_destroy(struct ram *ram)
{
    if (!ram)
        return;
    ram_fetcher_destroy(ram->fetcher);
    ram_stretches_destroy(ram->stretches);
    ram_gatherer_destroy(ram->gatherer);
    for (unsigned i = 0; i < ram->slot_count; i++)
        slot_free(&ram->slot[i]);
    pthread_mutex_destroy(&ram->code_mutex);
    free(ram);
}

/* --- making slots --- */

static bool range_is_sane(const struct ram *ram, const char *name, uint64_t gpa, uint64_t size, struct error *err)
{
    if (!size || (gpa | size) & PAGE_MASK)
        return error_set(err, "memory %s: its address and size must be whole pages of 4 KiB", name);
    if (size > slot_limit)
        return error_set(err, "memory %s: %llu GiB is more than this build supports (%llu GiB)", name,
                         (unsigned long long)(size / GiB), (unsigned long long)(slot_limit / GiB));
    if (gpa >= physical_limit || size > physical_limit - gpa)
        return error_set(err, "memory %s: it would end above the physical address space", name);
    if (ram->slot_count == RAM_SLOTS_MAX)
        return error_set(err, "memory %s: there are %d memory slots already", name, RAM_SLOTS_MAX);
    for (unsigned i = 0; i < ram->slot_count; i++)
        if (gpa < ram->slot[i].gpa + ram->slot[i].size && ram->slot[i].gpa < gpa + size)
            return error_set(err, "memory %s overlaps %s", name, ram->slot[i].name);
    return true;
}

/* Zeroed, granted page by page as it is touched. NULL if the host refuses. */
static void *reserve(uint64_t size)
{
    void *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_NORESERVE | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mapping == MAP_FAILED ? NULL : mapping;
}

/* The file, at an address that is a multiple of RAM_LARGE, so that the host can use large pages. NULL if it refuses. */
static void *map_aligned(uint64_t size, int fd)
{
    uint8_t *space = mmap(NULL, size + RAM_LARGE, PROT_NONE, MAP_NORESERVE | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (space == MAP_FAILED)
        return NULL;
    uint8_t *end = space + size + RAM_LARGE, *at = (uint8_t *)align_up((uintptr_t)space, RAM_LARGE);
    if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_NORESERVE | MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(space, size + RAM_LARGE);
        return NULL;
    }
    munmap(space, (size_t)(at - space));
    munmap(at + size, (size_t)(end - at) - size);
    return at;
}

/*
 * A guest's processors share their memory without any locks of ours: what they do to it races by design, as does a device
 * that reads what a processor writes. The thread sanitizer is told to leave guest memory (and nothing else) alone.
 */
#ifdef __SANITIZE_THREAD__
void AnnotateBenignRaceSized(const char *file, int line, const volatile void *memory, size_t size, const char *description);
static void expect_races(const struct ram_slot *slot)
{
    AnnotateBenignRaceSized(__FILE__, __LINE__, slot->host, slot->size, "guest memory");
}
#else
static void expect_races(const struct ram_slot *slot) {}
#endif

static bool slot_map(struct ram_slot *slot, struct error *err)
{
    unsigned long long mib = slot->size / MiB;
    slot->fd = memfd_create(slot->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (slot->fd < 0)
        return error_errno(err, errno, "memory %s: the host gives no memory file", slot->name);
    if (ftruncate(slot->fd, (off_t)(slot->fd_offset + slot->size)) < 0)
        return error_errno(err, errno, "memory %s: the host refuses a memory file of %llu MiB", slot->name, mib);
    slot->host = map_aligned(slot->fd_offset + slot->size, slot->fd);
    if (slot->host) {
        slot->host += slot->fd_offset;
        slot->page = reserve(slot_pages(slot) * sizeof(*slot->page));
    }
    if (slot->page)
        slot->code = reserve(slot_pages(slot) * sizeof(*slot->code));
    if (!slot->code)
        return error_errno(err, errno, "memory %s: the host refuses %llu MiB of address space", slot->name, mib);
    /* Where the host allows it for shared memory, large pages make the guest's memory cheaper to reach. */
    madvise(slot->host, slot->size, MADV_HUGEPAGE);
    madvise(slot->host, slot->size, MADV_DONTDUMP);
    expect_races(slot);
    return true;
}

bool ram_add(struct ram *ram, const char *name, uint64_t gpa, uint64_t size, bool rom, struct error *err)
{
    if (!range_is_sane(ram, name, gpa, size, err))
        return false;
    struct ram_slot *slot = &ram->slot[ram->slot_count];
    *slot = (struct ram_slot){ .name = name, .gpa = gpa, .size = size, .fd = -1, .fd_offset = gpa % RAM_LARGE, .rom = rom };
    if (!slot_map(slot, err)) {
        slot_free(slot);
        return false;
    }
    ram->slot_count++;
    return true;
}

bool ram_make_private(struct ram_slot *slot, struct error *err)
{
    slot->of_file = calloc(slot_pages(slot) / 64 + 1, sizeof(*slot->of_file));
    if (!slot->of_file)
        return error_set(err, "memory %s: no memory", slot->name);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    if (mmap(slot->host, slot->size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        return error_errno(err, errno, "memory %s: the host refuses a private mapping", slot->name);
    madvise(slot->host, slot->size, MADV_DONTDUMP);
    close(slot->fd);
    slot->fd = -1;
    slot->private_mapping = true;
    slot->source = slot->host;
    return true;
}

bool ram_map_file(struct ram_slot *slot, uint64_t offset, uint64_t size, int fd, struct error *err)
{
    assert(slot->source);
    void *mapping = mmap(slot->source + offset, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset);
    if (mapping == MAP_FAILED)
        return error_errno(err, errno, "memory %s: the host refuses to map a file", slot->name);
    madvise(mapping, size, MADV_DONTDUMP);
    for (uint64_t page = offset >> PAGE_SHIFT; page < (offset + size) >> PAGE_SHIFT; page++)
        slot->of_file[page / 64] |= BIT(page % 64);
    return true;
}

uint64_t ram_total(const struct ram *ram)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < ram->slot_count; i++)
        total += ram->slot[i].size;
    return total;
}

/* --- what is granted --- */

/* Bits of /proc/self/pagemap (Linux Documentation/admin-guide/mm/pagemap.rst). */
#define PAGEMAP_PRESENT BIT(63)
#define PAGEMAP_SWAPPED BIT(62)
#define PAGEMAP_FILE BIT(61)
#define PAGEMAP_EXCLUSIVE BIT(56)       /* no one else maps it; never set for the page of zeroes */

/* Calls for each page of the slot's source that the host's page tables know something of. False: they cannot be read. */
static bool for_each_mapped(const struct ram_slot *slot, void (*call)(void *owner, uint64_t page, uint64_t entry), void *owner)
{
    uint64_t entry[512], first = (uintptr_t)slot->source >> PAGE_SHIFT;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : 0;
    for (uint64_t page = 0, pages = slot_pages(slot); got >= 0 && page < pages; page += (uint64_t)got / sizeof(*entry)) {
        got = pread(fd, entry, min_u64(pages - page, ARRAY_SIZE(entry)) * sizeof(*entry), (off_t)((first + page) * sizeof(*entry)));
        for (ssize_t i = 0; i < got / (ssize_t)sizeof(*entry); i++)
            if (entry[i])
                call(owner, page + (uint64_t)i, entry[i]);
        got = got ? got : -1;
    }
    if (fd >= 0)
        close(fd);
    return got >= 0;
}

static void count_own(void *owner, uint64_t page, uint64_t entry)
{
    uint64_t *count = owner;
    *count += (entry & (PAGEMAP_EXCLUSIVE | PAGEMAP_SWAPPED)) && !(entry & PAGEMAP_FILE);
}

uint64_t ram_granted(const struct ram *ram)
{
    uint64_t granted = 0;
    for (unsigned i = 0; i < ram->slot_count; i++) {
        const struct ram_slot *slot = &ram->slot[i];
        struct stat status;
        uint64_t pages = 0;
        if (slot->private_mapping && for_each_mapped(slot, count_own, &pages))
            granted += pages << PAGE_SHIFT;
        else if (!slot->private_mapping && fstat(slot->fd, &status) == 0)
            granted += (uint64_t)status.st_blocks * 512;
    }
    return granted;
}

static void set_bit(void *bitmap, uint64_t page, uint64_t entry) { ((uint64_t *)bitmap)[page / 64] |= BIT(page % 64); }

/* Only what the memfd has. False: it cannot be asked. */
static bool find_in_memfd(const struct ram_slot *slot, uint64_t *bitmap)
{
    for (uint64_t at = 0; at < slot->size;) {
        off_t data = lseek(slot->fd, (off_t)(slot->fd_offset + at), SEEK_DATA);
        if (data < 0)
            return errno == ENXIO;
        off_t hole = lseek(slot->fd, data, SEEK_HOLE);
        if (hole < 0)
            return false;
        at = min_u64((uint64_t)hole - slot->fd_offset, slot->size);
        for (uint64_t page = ((uint64_t)data - slot->fd_offset) >> PAGE_SHIFT; page < at >> PAGE_SHIFT; page++)
            set_bit(bitmap, page, 0);
    }
    return true;
}

void ram_find_granted(const struct ram_slot *slot, uint64_t *bitmap)
{
    if (slot->source)
        memcpy(bitmap, slot->of_file, (slot_pages(slot) + 7) / 8);
    bool known = (!slot->source || for_each_mapped(slot, set_bit, bitmap)) && (slot->private_mapping || find_in_memfd(slot, bitmap));
    if (!known)
        for (uint64_t page = 0; page < slot_pages(slot); page++)
            set_bit(bitmap, page, 0);
}

void ram_populate_piece(struct ram *ram, struct ram_slot *slot, uint64_t offset)
{
    atomic_fetch_or(&slot->page[offset >> PAGE_SHIFT], PAGE_GRANTED);
#ifdef MADV_POPULATE_WRITE
    if (!slot->source)                          /* a refusal is no harm: pages come as they are touched */
        madvise(slot->host + offset, min_u64(RAM_PIECE, slot->size - offset), MADV_POPULATE_WRITE);
#endif
    if (ram->gatherer)
        ram_gather_later(ram->gatherer, slot, slot->gpa + offset);
}

void ram_grant_piece(struct ram *ram, struct ram_slot *slot, uint64_t gpa)
{
    uint64_t offset = align_down(gpa - slot->gpa, RAM_PIECE);
    if (ram->stretches && !slot->source)
        ram_stretch_to(ram->stretches, slot, offset);
    ram_populate_piece(ram, slot, offset);
}

/* --- copies --- */

/* As ram_find, hidden pages too. */
static struct ram_slot *slot_at(struct ram *ram, uint64_t gpa)
{
    for (unsigned i = 0; i < ram->slot_count; i++)
        if (gpa - ram->slot[i].gpa < ram->slot[i].size)
            return &ram->slot[i];
    return NULL;
}

enum copy { COPY_OUT, COPY_IN, COPY_LOAD };

static bool copy_range(struct ram *ram, uint64_t gpa, void *buffer, size_t size, enum copy copy)
{
    uint8_t *bytes = buffer;
    while (size) {
        struct ram_slot *slot = copy == COPY_LOAD ? slot_at(ram, gpa) : ram_find(ram, gpa);
        if (!slot)
            return false;
        uint64_t offset = gpa - slot->gpa;
        size_t part = min_u64(size, ram_span(slot, gpa));
        if (copy == COPY_OUT) {
            memcpy(bytes, slot->host + offset, part);
        } else if (copy == COPY_LOAD || !ram_is_rom(slot, gpa)) {
            part = min_u64(part, RAM_PIECE - offset % RAM_PIECE);       /* while one is filled, the next is granted ahead */
            ram_grant(ram, slot, gpa);
            memcpy(slot->host + offset, bytes, part);
            ram_written(ram, gpa, part);
        }
        bytes += part;
        gpa += part;
        size -= part;
    }
    return true;
}

bool ram_read(struct ram *ram, uint64_t gpa, void *buffer, size_t size)
{
    return copy_range(ram, gpa, buffer, size, COPY_OUT);
}

bool ram_write(struct ram *ram, uint64_t gpa, const void *buffer, size_t size)
{
    return copy_range(ram, gpa, (void *)buffer, size, COPY_IN);
}

bool ram_load(struct ram *ram, uint64_t gpa, const void *buffer, size_t size)
{
    return copy_range(ram, gpa, (void *)buffer, size, COPY_LOAD);
}

/* --- after a write --- */

static void tell_watcher(struct ram *ram, uint64_t gpa, uint64_t size)
{
    if (ram->watcher.code_written)
        ram->watcher.code_written(ram->watcher.owner, gpa, size);
}

bool ram_wear_code(struct ram *ram, uint64_t gpa)
{
    struct ram_slot *slot = ram_find(ram, gpa);
    if (!slot || !code_map_wear(slot, gpa))
        return false;
    uint64_t page = align_down(gpa, PAGE_SIZE);
    code_map_remove(ram, page, PAGE_SIZE);
    tell_watcher(ram, page, PAGE_SIZE);
    return true;
}

/* The page's code goes, or that of the granules: see code_map_wear. */
static void drop_code(struct ram *ram, uint64_t gpa, uint64_t size)
{
    uint64_t first = align_down(gpa, CODE_GRANULE), end = align_up(gpa + size, CODE_GRANULE);
    if (!ram_wear_code(ram, gpa))
        tell_watcher(ram, first, end - first);
}

static void page_written(struct ram *ram, struct ram_slot *slot, uint64_t gpa, uint64_t size)
{
    _Atomic uint32_t *page = ram_page(slot, gpa);
    uint32_t word = atomic_load_explicit(page, memory_order_relaxed);
    uint32_t missing = atomic_load_explicit(&ram->dirty_clients, memory_order_relaxed) & ~word;
    if (unlikely(missing))
        atomic_fetch_or(page, missing);
    if (unlikely(word & PAGE_CODE) && code_map_hit(ram, gpa, size))
        drop_code(ram, gpa, size);
}

void ram_written(struct ram *ram, uint64_t gpa, size_t size)
{
    /* The bytes are visible before we look for code: see code_map.h. */
    atomic_thread_fence(memory_order_seq_cst);
    while (size) {
        struct ram_slot *slot = ram_find(ram, gpa);
        if (!slot)
            return;
        uint64_t part = min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
        page_written(ram, slot, gpa, part);
        gpa += part;
        size -= part;
    }
}

/* --- pages that come and go --- */

bool ram_set_pages(struct ram *ram, uint64_t gpa, uint64_t size, uint32_t bits)
{
    struct ram_slot *slot = slot_at(ram, gpa);
    bool changed = false;
    if (!slot)
        return false;
    slot->mixed = true;
    for (uint64_t end = gpa + size; gpa < end; gpa += PAGE_SIZE) {
        _Atomic uint32_t *page = ram_page(slot, gpa);
        uint32_t word = atomic_load_explicit(page, memory_order_relaxed);
        if ((word & (PAGE_HIDDEN | PAGE_ROM)) == bits)
            continue;
        code_map_remove(ram, gpa, PAGE_SIZE);
        atomic_fetch_or(page, bits);
        atomic_fetch_and(page, bits | ~(uint32_t)(PAGE_HIDDEN | PAGE_ROM));
        if (ram->watcher.code_written)
            ram->watcher.code_written(ram->watcher.owner, gpa, PAGE_SIZE);
        changed = true;
    }
    return changed;
}

/* --- dirty tracking --- */

static uint32_t client_bit(enum dirty_client client) { return (uint32_t)PAGE_DIRTY << client; }

void ram_dirty_start(struct ram *ram, enum dirty_client client)
{
    atomic_fetch_or(&ram->dirty_clients, client_bit(client));
}

void ram_dirty_stop(struct ram *ram, enum dirty_client client)
{
    atomic_fetch_and(&ram->dirty_clients, ~client_bit(client));
    for (unsigned i = 0; i < ram->slot_count; i++)
        ram_dirty_collect(ram, client, &ram->slot[i], NULL);
}

/* bitmap NULL: the bits are only cleared. */
uint64_t ram_dirty_collect(struct ram *ram, enum dirty_client client, const struct ram_slot *slot, uint64_t *bitmap)
{
    uint32_t bit = client_bit(client);
    uint64_t found = 0;
    for (uint64_t i = 0; i < slot_pages(slot); i++) {
        bool dirty = atomic_load_explicit(&slot->page[i], memory_order_relaxed) & bit;
        if (dirty) {
            atomic_fetch_and(&slot->page[i], ~bit);
            found++;
        }
        if (bitmap && dirty)
            bitmap[i / 64] |= BIT(i % 64);
        else if (bitmap)
            bitmap[i / 64] &= ~BIT(i % 64);
    }
    return found;
}
