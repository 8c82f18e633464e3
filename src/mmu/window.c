/*
 * Windows onto guest memory for translated user code: the idea, the proof, the policy.
 *
 * The idea. An inline look-up in the software TLB costs eight instructions an access. Where the host's own page tables hold the
 * guest's user mappings at a fixed distance, the host's processor does the look-up. The whole range of guest-linear addresses does not fit
 * into a process, but what a program uses of it does: the 2^64 bytes are divided into chunks of 64 GiB, and a chunk that is
 * used gets a window, 64 GiB of reserved host addresses in which guest pages are mapped from the RAM slots' memory files as they
 * are touched. What is not mapped faults, and the fault handler has the access done by the exact, slow path.
 *
 * The proof that translated code reaches nothing but windows. Say b is the value of the base register, any 64-bit number; c = b >> 36 its
 * chunk; d the displacement, -2^31 <= d < 2^31; and the access touches the bytes from b + table[c] + d (modulo 2^64) on, at most
 * WINDOW_OPERAND of them. The table has an entry for each of the 2^28 values of c, so the look-up itself stays in it.
 *  1. c has a window, at host address h: table[c] = h - (c << 36). The address is h + (b mod 2^36) + d, from h - 2^31 to
 *     h + 2^36 + 2^31: in the window or one of its guards, which have 2 GiB + 64 KiB and are never mapped.
 *  2. c < 2^11 (a user address: b < 2^47) without a window: table[c] = 2^62. The address is 2^62 + b + d, between 2^62 - 2^31 and
 *     2^62 + 2^47 + 2^31: bit 63 is clear, but a bit among 57 to 62 is set: not canonical, with 48 bits or with 57.
 *  3. c = 2^11, where b + d could lie just below 2^47 in the host's user space: poisoned in the same way.
 *  4. c = 2^28 - 1, where b + d could wrap to a low address, or meet the vsyscall page: table[c] = 2^62, and the address is between
 *     2^62 - 2^36 - 2^31 and 2^62 + 2^31: not canonical either.
 *  5. Any other c: the entry is 0, as the untouched page it lies in, and the address is b + d: at least 2^47 + 2^36 - 2^31 and at most
 *     2^64 - 2^36 + 2^31. On a host with 48 bits this is not canonical or the kernel's. On a host with 57 bits, addresses from 2^47 to
 *     2^56 would be a process's, but Linux gives none out that was not asked for by a hint above 2^47
 *     (Documentation/arch/x86/x86_64/5level-paging.rst), and nobody here does.
 * Linear-address masking, which makes some of these addresses canonical, is off in a process that does not ask for it.
 * Prefetches go by the same addresses, and raise nothing where an access would fault; what their time tells of the host's kernel any process can find out.
 *
 * What may be shown. A view is no more than an entry of the software TLB could allow, by the same rules for writes (fill.c):
 * PAGE_WRITER is claimed before a page is mapped writable, a page with code in it is mapped read-only, dirty bits are set first, and what
 * takes write tags away takes write access away here (window_drop_writes). A page is only ever shown if the guest's entries have
 * A set, and writable if D is set, which the access itself or an earlier one did.
 *
 * When views go. A flush makes nothing go at once: it marks the address space (or, for INVLPG, a piece of it) as stale, and
 * before user code uses the windows again, the views are compared with the guest's tables. One that agrees is kept: the processor might
 * have loaded that very translation after the flush. So a flush of everything costs a few nanoseconds a page, not a fault for each.
 * That also makes the windows independent of PCIDs and VPIDs: a space is known by its top-level table, and in a VT-x guest with EPT by the
 * EPT pointer; a context of the TLB points to the space that it runs in, and when a context takes it up or lays it down, the space is stale.
 *
 * The policy. Windows pay for code that runs long on the same pages, and cost dearly where pages come and go: a signal, a system call and
 * the refill of the host's TLB take some 10 microseconds. So all costs are counted in instructions that could have run
 * meanwhile. A space starts cold. When it has run `threshold` instructions it turns hot; each stretch of twice the threshold, instructions
 * and costs taken together, is then judged: if costs were more than twice the instructions, it turns cold, and its threshold doubles, so
 * that what never pays is tried ever more rarely, and what has much to map is given longer; otherwise the threshold halves. Twice, although
 * user code runs only 1.2 to 1.5 times as fast with windows as with inline checks: most of what costs are counted for are a program's first
 * accesses to new pages, which fault without windows, too; and who turns cold loses all views, and pays for them again. A program that
 * grew while it ran, as a compiler does, was cold for half of its time when half the instructions was the limit.
 */
#include "mmu/window.h"

#include <stdlib.h>
#include <sys/resource.h>

#include "mem/ram.h"
#include "mmu/tlb.h"
#include "mmu/window_impl.h"
#include "vmx/vmx.h"

/* In instructions of translated code; about 2,000 are a microsecond. */
enum {
    THRESHOLD_MIN = WINDOW_HOT, THRESHOLD_MAX = 32 * THRESHOLD_MIN,
    COST_FAULT = 16000,                 /* the signal, the slow path, and coming back */
    COST_COMPARED_PIECE = 600,          /* the walk and 512 comparisons */
    COST_COMPARED_BY_EPT = 6000,        /* with up to as many walks of EPT */
};

/* That much is asked of the host after each stretch that was worth it: a tenth of its time or so, if that. */
enum { LARGE_PAGES = 2 };

/* How much a fill brings beside the page that was asked for. */
enum {
    FILL_BLOCK = 64,                    /* pages around it, at the first fills of a piece, and after one that found nothing else; later the whole piece */
    FILLS_OF_BLOCK = 2,
    FILL_RUNS = 4,                      /* mappings made on either side */
};

/* Linux's default limit is 65,530 mappings for a process (vm.max_map_count). */
enum { MAPPINGS_MAX = 40000 };

bool window_supported(void)
{
    struct rlimit limit;
    return !getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur == RLIM_INFINITY;
}

/* --- spaces --- */

static struct windows *windows_create(struct vcpu *vcpu)
{
    struct windows *windows = window_supported() ? calloc(1, sizeof(*windows)) : NULL;
    if (!windows || !window_grow_index(windows)) {
        free(windows);
        return NULL;
    }
    windows->counters = &vcpu->counters;
    windows->log = vcpu->log;
    windows->ram = vcpu->ram;
    for (unsigned i = 0; i < WINDOW_SPACES; i++)
        windows->space[i].root = WINDOW_NO_ROOT;
    return windows;
}

void windows_destroy(struct windows *windows)
{
    if (!windows)
        return;
    for (unsigned i = 0; i < WINDOW_SPACES; i++)
        window_free_space(windows, &windows->space[i]);
    free(windows->piece);
    free(windows->writable);
    free(windows);
}

static uint64_t present_root(const struct vcpu *vcpu) { return vcpu->mmu->cr3 & vcpu->mmu->format.address_mask; }

static bool is_present(const struct vcpu *vcpu, const struct window_space *space)
{
    return space->root == present_root(vcpu) && space->eptp == vcpu->mmu->space.eptp;
}

static struct window_space *find_space(const struct vcpu *vcpu)
{
    struct windows *windows = vcpu->mmu->windows;
    for (unsigned i = 0; i < WINDOW_SPACES; i++)
        if (is_present(vcpu, &windows->space[i]))
            return &windows->space[i];
    return NULL;
}

/* No context runs in it, so no flush will be told of. */
static void unlink_space(struct mmu *mmu, struct window_space *space)
{
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (mmu->contexts[i].space == space)
            mmu->contexts[i].space = NULL;
    space->stale = space->doubtful = true;
}

static bool better_victim(const struct window_space *a, const struct window_space *b)
{
    return a->hot != b->hot ? !a->hot : a->last_use < b->last_use;
}

/* The space that rested longest, cold ones first, emptied; not the one in use. It becomes the present one's. */
static struct window_space *take_space(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    struct windows *windows = mmu->windows;
    struct window_space *victim = &windows->space[0];
    for (unsigned i = 1; i < WINDOW_SPACES; i++)
        if (better_victim(&windows->space[i], victim))
            victim = &windows->space[i];
    unlink_space(mmu, victim);
    window_free_space(windows, victim);
    *victim = (struct window_space){ .root = present_root(vcpu), .eptp = mmu->space.eptp, .threshold = THRESHOLD_MIN };
    return victim;
}

/* --- hot and cold --- */

/* For all that is in use, so that a miss there has an address that tells its chunk (window_missed). */
static void make_windows(struct vcpu *vcpu, struct window_space *space)
{
    bool used[WINDOW_USER_CHUNKS] = { false };
    window_find_chunks(vcpu, used);
    for (unsigned chunk = 0; chunk < WINDOW_USER_CHUNKS; chunk++)
        if (used[chunk])
            window_make(vcpu->mmu->windows, space, chunk);
}

static void turn_hot(struct vcpu *vcpu, struct window_space *space)
{
    struct windows *windows = vcpu->mmu->windows;
    space->run = space->cost = 0;
    if (!window_make_table(space))
        return;
    space->hot = true;
    space->stale = false;
    make_windows(vcpu, space);
    counter_add(windows->counters, COUNTER_window_promotions, 1);
    trace(windows->log, window, "space %#llx turns hot after %llu instructions", (unsigned long long)space->root,
          (unsigned long long)space->threshold);
}

static void turn_cold(struct windows *windows, struct window_space *space, const char *why)
{
    trace(windows->log, window, "space %#llx turns cold: %s; %llu instructions, cost %llu, %llu pages", (unsigned long long)space->root, why,
          (unsigned long long)space->run, (unsigned long long)space->cost, (unsigned long long)space->pages);
    window_drop_space(windows, space);
    space->hot = false;
    space->run = space->cost = 0;
    counter_add(windows->counters, COUNTER_window_demotions, 1);
}

/* At the end of a stretch, or before it if the costs are beyond hope. */
static void judge(struct windows *windows, struct window_space *space)
{
    uint64_t stretch = 2 * space->threshold;
    if (space->run + space->cost < stretch && space->cost < stretch)
        return;
    if (space->cost > 2 * space->run) {
        space->threshold = min_u64(2 * space->threshold, THRESHOLD_MAX);
        turn_cold(windows, space, "it costs too much");
        return;
    }
    space->threshold = max_u64(space->threshold / 2, THRESHOLD_MIN);
    space->run = space->cost = 0;
    window_make_large(windows, space, LARGE_PAGES);
}

void window_account(struct vcpu *vcpu, uint64_t instructions)
{
    struct mmu *mmu = vcpu->mmu;
    if (unlikely(!mmu->windows) && !(mmu->windows = windows_create(vcpu)))
        return;
    struct tlb_context *context = mmu->context;
    if (!context->space)
        context->space = take_space(vcpu);
    struct window_space *space = context->space;
    space->last_use = ++mmu->windows->ticks;
    space->run += instructions;
    if (space->hot)
        judge(mmu->windows, space);
    else if (space->run >= space->threshold)
        turn_hot(vcpu, space);
}

/* --- flushes --- */

void window_flush_context(struct tlb_context *context)
{
    if (context->space)
        context->space->stale = true;
}

/*
 * A context has one space and a space one context: what one PCID may still hold is no excuse for what another sees. A cold space that is
 * entered by a context that was flushed for it is likely a new process, whose table lies where that of an old one did: its
 * count begins anew.
 */
void window_follow_cr3(struct vcpu *vcpu, bool flushed)
{
    struct mmu *mmu = vcpu->mmu;
    struct tlb_context *context = mmu->context;
    if (!mmu->windows || (context->space && is_present(vcpu, context->space)))
        return;
    window_flush_context(context);
    context->space = NULL;
    struct window_space *space = find_space(vcpu);
    if (!space)
        return;
    unlink_space(mmu, space);
    context->space = space;
    if (!space->hot && flushed && mmu->pcide)
        space->run = 0;
}

static void flush_page(struct window_space *space, uint64_t gla)
{
    const struct piece *piece = window_find_piece(space, gla);
    space->stale |= space->huge;
    if (space->stale || !piece || (!piece->large && !piece->view[(gla >> PAGE_SHIFT) % PIECE_PAGES]))
        return;
    for (unsigned i = 0; i < space->pending_count; i++)
        if (space->pending[i] == piece->gla)
            return;
    if (space->pending_count == PENDING_PIECES)
        space->stale = true;
    else
        space->pending[space->pending_count++] = piece->gla;
}

void window_flush_page(struct tlb_context *context, uint64_t gla, bool global_only)
{
    if (context->space && context->space->hot && (!global_only || context->space->global))
        flush_page(context->space, gla);
}

void window_drop_write_access(struct mmu *mmu, uint64_t gpa)
{
    if (mmu->windows)
        window_drop_writes(mmu->windows, gpa);
}

void window_drop_all_write_access(struct mmu *mmu)
{
    if (!mmu->windows)
        return;
    for (unsigned i = 0; i < WINDOW_SPACES; i++) {
        for (struct piece *piece = mmu->windows->space[i].pieces; piece; piece = piece->next) {
            uint64_t view[PIECE_PAGES];
            for (unsigned page = 0; page < PIECE_PAGES; page++)
                view[page] = piece->view[page] & ~(uint64_t)VIEW_WRITABLE;
            window_show(mmu->windows, piece, 0, PIECE_PAGES, view);
        }
    }
}

/* --- comparing with the guest's tables --- */

struct comparison {
    uint64_t kept, changed;
};

static uint64_t cost_of_scan(const struct vcpu *vcpu) { return vcpu->mmu->space.ept ? COST_COMPARED_BY_EPT : COST_COMPARED_PIECE; }

/* What to show where `old` was shown and the guest's tables now say `now`. */
static inline uint64_t compared(struct vcpu *vcpu, uint64_t old, uint64_t now)
{
    if (!old || !now)
        return 0;
    return (old ^ now) & ~PAGE_MASK ? window_claim(vcpu, now) : old & now;
}

static void compare_piece(struct vcpu *vcpu, struct piece *piece, struct comparison *result)
{
    struct windows *windows = vcpu->mmu->windows;
    struct window_scan scan;
    uint64_t changed = 0;
    window_scan(vcpu, piece->gla, 0, PIECE_PAGES, &scan);
    for (unsigned i = 0; i < PIECE_PAGES; i++) {
        scan.view[i] = compared(vcpu, piece->view[i], scan.view[i]);
        changed += scan.view[i] != piece->view[i];
    }
    result->kept += piece->mapped - changed;
    result->changed += changed;
    piece->large = scan.large;
    piece->space->huge |= scan.huge;
    piece->space->global |= scan.global;
    piece->space->cost += cost_of_scan(vcpu);
    if (changed)
        window_show(windows, piece, 0, PIECE_PAGES, scan.view);
    window_release_piece(windows, piece);
}

/*
 * A table that was out of sight may have become another process's meanwhile. If hardly anything is as it was it has, and what
 * made the old one hot says nothing of the new one.
 */
static void compare_all(struct vcpu *vcpu, struct window_space *space)
{
    enum { SAMPLE = 32 };
    struct comparison result = { 0 };
    bool doubtful = space->doubtful;
    space->stale = space->doubtful = false;
    space->pending_count = 0;
    for (struct piece *piece = space->pieces, *next; piece; piece = next) {
        next = piece->next;
        compare_piece(vcpu, piece, &result);
        if (doubtful && result.changed > SAMPLE && result.changed > 2 * result.kept) {
            space->threshold = THRESHOLD_MIN;
            turn_cold(vcpu->mmu->windows, space, "another process");
            return;
        }
    }
}

static void compare_pending(struct vcpu *vcpu, struct window_space *space)
{
    struct comparison result = { 0 };
    unsigned count = space->pending_count;
    space->pending_count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct piece *piece = window_find_piece(space, space->pending[i]);
        if (piece)
            compare_piece(vcpu, piece, &result);
    }
}

/* Pages of other protection keys than 0 are not shown, and none while there are any or key 0 itself is restricted. */
static bool keys_matter(const struct mmu *mmu)
{
    enum { KEY_0 = 1, PKRU_OF_KEY_0 = 3 };
    return mmu->pke && ((mmu->pkru & PKRU_OF_KEY_0) || (mmu->pkeys_seen & ~KEY_0));
}

/*
 * The space in which the vCPU may use windows now, with nothing in it that a flush should have taken; or NULL. On the way out of a VT-x guest
 * nothing is compared: what an EPT violation made void the hypervisor may change now with no flush after it.
 */
static struct window_space *usable_space(struct vcpu *vcpu)
{
    const struct mmu *mmu = vcpu->mmu;
    struct window_space *space = mmu->context->space;
    if (!space || !space->hot || vcpu->cpl != 3 || !vcpu_code64(vcpu) || vcpu->pending.kind == EVENT_VM_EXIT)
        return NULL;
    if (mmu->watching || mmu->alignment_check || keys_matter(mmu))
        return NULL;
    if (space->stale)
        compare_all(vcpu, space);
    else if (space->pending_count)
        compare_pending(vcpu, space);
    if (space->refused)
        turn_cold(mmu->windows, space, "the host refused");
    return space->hot ? space : NULL;
}

bool window_linear(const struct vcpu *vcpu, uintptr_t host, uint64_t *gla)
{
    const struct window_space *space = vcpu->mmu->context->space;
    for (unsigned i = 0; space && i < space->window_count; i++) {
        const struct window *window = &space->window[i];
        uint64_t offset = host - (uintptr_t)window->host;
        if (offset < 1ull << WINDOW_CHUNK_SHIFT) {
            *gla = (window->chunk << WINDOW_CHUNK_SHIFT) + offset;
            return true;
        }
    }
    return false;
}

/* --- fills --- */

/* What the TLB lets user code do at gla without being asked. */
static uint64_t view_of_tlb(const struct vcpu *vcpu, uint64_t gla)
{
    const struct tlb_table *table = &vcpu->mmu->context->table[MMU_USER];
    const struct tlb_entry *entry = &table->entry[tlb_index(gla)];
    uint64_t page = gla & ~PAGE_MASK, gpa = table->info[tlb_index(gla)] & ~PAGE_MASK;
    if (entry->tag[MMU_WRITE] == page)
        return gpa | VIEW_MAPPED | VIEW_WRITABLE;
    return entry->tag[MMU_READ] == page ? gpa | VIEW_MAPPED : 0;
}

/* A translation that the TLB still has while the tables say otherwise is not shown: large, global or not, it would be lost count of. */
static uint64_t agreed(uint64_t tlb, uint64_t tables) { return (tlb ^ tables) & ~PAGE_MASK ? 0 : tlb & tables; }

/* Pages beside the one that is asked for: shown if they are not, and made writable where writes are what misses. */
static uint64_t neighbour(struct vcpu *vcpu, uint64_t old, uint64_t now, bool write)
{
    bool more = write && now == (old | VIEW_WRITABLE);
    return !old || more ? window_claim(vcpu, now) : old;
}

/*
 * view[*first, *end) is what could be shown; it becomes what will be: the page itself, and on either side what FILL_RUNS mappings
 * bring. The range shrinks to that.
 */
static void choose_neighbours(struct vcpu *vcpu, const struct piece *piece, uint64_t *view, unsigned page, bool write, unsigned *first, unsigned *end)
{
    unsigned runs = 0, i;
    for (i = page + 1; i < *end; i++) {
        uint64_t next = neighbour(vcpu, piece->view[i], view[i], write);
        if (next != piece->view[i] && next != view[i - 1] + PAGE_SIZE && runs++ == FILL_RUNS)
            break;
        view[i] = next;
    }
    *end = i;
    runs = 0;
    for (i = page; i > *first; i--) {
        uint64_t previous = neighbour(vcpu, piece->view[i - 1], view[i - 1], write);
        if (previous != piece->view[i - 1] && previous + PAGE_SIZE != view[i] && runs++ == FILL_RUNS)
            break;
        view[i - 1] = previous;
    }
    *first = i;
}

/* Does the piece show at least that? */
static bool shown(const struct piece *piece, uint64_t gla, uint64_t wanted)
{
    uint64_t view = piece->view[(gla >> PAGE_SHIFT) % PIECE_PAGES];
    return view == wanted || view == (wanted | VIEW_WRITABLE);
}

/* What the guest's tables say of the page at gla and of those around it that a fill may bring. */
static void scan_around(struct vcpu *vcpu, const struct window_space *space, uint64_t gla, struct window_scan *scan)
{
    const struct piece *piece = window_find_piece(space, gla);
    unsigned page = (gla >> PAGE_SHIFT) % PIECE_PAGES, first = align_down(page, FILL_BLOCK);
    bool whole = piece && piece->fills >= FILLS_OF_BLOCK;
    window_scan(vcpu, gla, whole ? 0 : first, whole ? PIECE_PAGES : first + FILL_BLOCK, scan);
}

/* Shows `wanted` at gla and such neighbours as the scan found. */
static void fill(struct vcpu *vcpu, struct piece *piece, uint64_t gla, struct window_scan *scan, uint64_t wanted, bool write)
{
    unsigned page = (gla >> PAGE_SHIFT) % PIECE_PAGES, first = scan->first, end = scan->end, mapped = piece->mapped;
    if (scan->large && !window_is_large(vcpu->mmu->windows, wanted) && piece->fills < FILLS_OF_BLOCK) {
        first = align_down(page, FILL_BLOCK);
        end = first + FILL_BLOCK;
    }
    scan->view[page] = wanted;
    choose_neighbours(vcpu, piece, scan->view, page, write, &first, &end);
    piece->large |= scan->large;
    piece->space->huge |= scan->huge;
    piece->space->global |= scan->global;
    window_show(vcpu->mmu->windows, piece, first, end - first, &scan->view[first]);
    piece->fills = piece->mapped > mapped + 1 ? piece->fills + 1 : 0;
    window_release_piece(vcpu->mmu->windows, piece);
}

/* Room for what one fill may map; other spaces of this vCPU give way. */
static bool make_room(struct windows *windows, const struct window_space *space)
{
    while (window_mappings() > MAPPINGS_MAX - 4 * FILL_RUNS) {
        struct window_space *victim = NULL;
        for (unsigned i = 0; i < WINDOW_SPACES; i++)
            if (windows->space[i].hot && &windows->space[i] != space && (!victim || better_victim(&windows->space[i], victim)))
                victim = &windows->space[i];
        if (!victim)
            return false;
        turn_cold(windows, victim, "too many mappings");
    }
    return true;
}

/*
 * After a page fault the guest's handler returns to an access that will now succeed: its page is shown at once, if the handler has
 * set A, as one does that expects the access. That saves the miss.
 */
static void anticipate(struct vcpu *vcpu, struct window_space *space)
{
    struct windows *windows = vcpu->mmu->windows;
    uint64_t gla = vcpu->cr2;
    struct window_scan scan;
    if (gla >> 47 || !make_room(windows, space))
        return;
    space->cost += cost_of_scan(vcpu);
    scan_around(vcpu, space, gla, &scan);
    uint64_t wanted = window_claim(vcpu, scan.view[(gla >> PAGE_SHIFT) % PIECE_PAGES]);
    struct piece *piece = wanted ? window_make_piece(windows, space, gla) : NULL;
    if (piece && !shown(piece, gla, wanted))
        fill(vcpu, piece, gla, &scan, wanted, false);
}

uintptr_t window_table(struct vcpu *vcpu)
{
    struct window_space *space = usable_space(vcpu);
    if (!space || unlikely(vcpu->mmu->policy != MMU_NORMAL))    /* their views are neither always fresh nor as stale as can be */
        return 0;
    if (unlikely(vcpu->cr2 != space->last_cr2)) {
        space->last_cr2 = vcpu->cr2;
        anticipate(vcpu, space);
    }
    return (uintptr_t)space->table;
}

/* The space in which a miss just happened, unless that was one too many. */
static struct window_space *count_miss(struct vcpu *vcpu)
{
    struct window_space *space = usable_space(vcpu);
    if (!space)
        return NULL;
    counter_add(&vcpu->counters, COUNTER_window_faults, 1);
    space->cost += COST_FAULT;
    judge(vcpu->mmu->windows, space);
    return space->hot ? space : NULL;
}

void window_missed(struct vcpu *vcpu)
{
    struct window_space *space = count_miss(vcpu);
    if (space)
        make_windows(vcpu, space);
}

bool window_fill(struct vcpu *vcpu, uint64_t gla, bool write)
{
    struct windows *windows = vcpu->mmu->windows;
    struct window_space *space = count_miss(vcpu);
    struct window_scan scan;
    if (!space || gla >> 47 || !make_room(windows, space))
        return false;
    scan_around(vcpu, space, gla, &scan);
    uint64_t wanted = agreed(view_of_tlb(vcpu, gla), scan.view[(gla >> PAGE_SHIFT) % PIECE_PAGES]);
    struct piece *piece = wanted ? window_make_piece(windows, space, gla) : NULL;
    if (!piece)
        return false;
    if (!shown(piece, gla, wanted)) {
        fill(vcpu, piece, gla, &scan, wanted, write);
        counter_add(windows->counters, COUNTER_window_fills, 1);
    }
    return usable_space(vcpu) && (!write || (wanted & VIEW_WRITABLE));
}

/* --- for the monitor --- */

unsigned window_info(const struct vcpu *vcpu, struct window_info *info)
{
    const struct windows *windows = vcpu->mmu->windows;
    unsigned count = 0;
    for (unsigned i = 0; windows && i < WINDOW_SPACES; i++) {
        const struct window_space *space = &windows->space[i];
        if (space->root == WINDOW_NO_ROOT)
            continue;
        info[count++] = (struct window_info){
            .root = space->root, .eptp = space->eptp, .hot = space->hot, .present = space == vcpu->mmu->context->space, .windows = space->window_count,
            .pages = space->pages, .mappings = (uint64_t)space->borders, .run = space->run, .cost = space->cost, .threshold = space->threshold,
        };
    }
    return count;
}
