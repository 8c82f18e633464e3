/*
 * Contexts and flushes of the software TLB (SDM3 §4.10 "Caching Translation Information").
 *
 * A context holds the translations of one PCID (0 where CR4.PCIDE is clear) under one VPID and EPT pointer (0 outside VT-x
 * guests), in one table for each class of access. Everything else that translations depend on (paging mode, WP, SMEP, NXE,
 * PGE, PKE) is common to all contexts of a VPID: when it changes, which is rare, all those are flushed. VM entry and exit
 * change it too, for another VPID; so each context also knows the rules that it was filled under, and one that comes back
 * under others is emptied then. Global pages are held by each context that used them; what must drop a global
 * translation looks into all of the VPID.
 *
 * A flush that keeps global pages visits only the entries on the table's `local` list, which every entry that is not
 * global joins when it is made. Its cost is what was filled since the last flush, not the size of the table.
 */
#include "mmu/tlb.h"

#include <emmintrin.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "mem/ram.h"
#include "mmu/window_impl.h"
#include "mmu/walk.h"
#include "mmu/walk_cache.h"
#include "vcpu/work.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

enum { NO_FRAME = 0xFFFFFFFF };

/* --- one entry, one table, one context --- */

void tlb_entry_clear(struct tlb_table *table, unsigned index)
{
    struct tlb_entry *entry = &table->entry[index];
    entry->tag[MMU_READ] = entry->tag[MMU_WRITE] = entry->tag[MMU_FETCH] = TLB_INVALID;
    table->write_frame[index] = NO_FRAME;
}

/* All of it, whatever is in there. */
static void table_clear(struct tlb_table *table)
{
    memset(table->entry, 0xFF, sizeof(table->entry));
    memset(table->info, 0, sizeof(table->info));
    memset(table->write_frame, 0xFF, sizeof(table->write_frame));
    memset(table->filled, 0, sizeof(table->filled));
    table->local_count = 0;
}

static void table_clear_filled(struct tlb_table *table)
{
    FOR_FILLED(first, table) {
        memset(&table->entry[first], 0xFF, TLB_PIECE * sizeof(table->entry[0]));
        memset(&table->info[first], 0, TLB_PIECE * sizeof(table->info[0]));
        memset(&table->write_frame[first], 0xFF, TLB_PIECE * sizeof(table->write_frame[0]));
    }
    memset(table->filled, 0, sizeof(table->filled));
    table->local_count = 0;
}

static void table_clear_local(struct tlb_table *table)
{
    for (unsigned i = 0; i < table->local_count; i++) {
        unsigned index = table->local[i];
        table->info[index] &= ~(uint64_t)TLB_LISTED;
        if (!(table->info[index] & TLB_GLOBAL))
            tlb_entry_clear(table, index);
    }
    table->local_count = 0;
}

static void context_clear(struct mmu *mmu, struct tlb_context *context)
{
    structures_forget(mmu, context);
    context->fetch_epoch++;
    for (unsigned class = 0; class < MMU_CLASSES; class++)
        if (context->used)
            table_clear_filled(&context->table[class]);
        else
            table_clear(&context->table[class]);
    large_filter_clear(&context->large);
    window_flush_context(context);
    context->stale = false;
}

static void context_clear_local(struct vcpu *vcpu, struct tlb_context *context)
{
    counter_add(&vcpu->counters, COUNTER_tlb_flushes, 1);
    structures_forget(vcpu->mmu, context);
    context->fetch_epoch++;
    for (unsigned class = 0; class < MMU_CLASSES; class++)
        table_clear_local(&context->table[class]);
    large_filter_clear(&context->large);
    window_flush_context(context);
}

/* The present one of the PCID. */
static struct tlb_context *context_find(struct mmu *mmu, uint16_t pcid)
{
    for (unsigned i = 0; i < TLB_CONTEXTS; i++) {
        struct tlb_context *context = &mmu->contexts[i];
        if (context->used && context->pcid == pcid && context->vpid == mmu->space.vpid && context->eptp == mmu->space.eptp)
            return context;
    }
    return NULL;
}

/* The next one in use after `last` (NULL: the first) of the VPID, under whatever EPT pointer. */
static struct tlb_context *context_of_vpid(struct mmu *mmu, uint16_t vpid, struct tlb_context *last)
{
    for (struct tlb_context *context = last ? last + 1 : mmu->contexts; context < mmu->contexts + TLB_CONTEXTS; context++)
        if (context->used && context->vpid == vpid)
            return context;
    return NULL;
}
#define FOR_CONTEXTS_OF_VPID(context, mmu, vpid) \
    for (struct tlb_context *context = NULL; (context = context_of_vpid(mmu, vpid, context));)

/* The context that rested longest (an unused one never ran), emptied. */
static struct tlb_context *context_take(struct mmu *mmu, uint16_t pcid)
{
    struct tlb_context *oldest = &mmu->contexts[0];
    for (unsigned i = 0; i < TLB_CONTEXTS; i++) {
        struct tlb_context *context = &mmu->contexts[i];
        if (context->last_use < oldest->last_use)
            oldest = context;
    }
    context_clear(mmu, oldest);
    oldest->used = true;
    oldest->pcid = pcid;
    oldest->vpid = mmu->space.vpid;
    oldest->eptp = mmu->space.eptp;
    oldest->rule_bits = mmu->rule_bits;
    return oldest;
}

struct mmu *mmu_create(void)
{
    struct mmu *mmu = calloc(1, sizeof(*mmu));
    if (!mmu)
        return NULL;
    void *contexts = mmap(NULL, TLB_CONTEXTS * sizeof(*mmu->contexts), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (contexts == MAP_FAILED) {
        free(mmu);
        return NULL;
    }
    mmu->contexts = contexts;
    mmu->rule_bits = ~0ull;     /* equals no mode: the first mmu_mode_changed sets everything */
    for (unsigned i = 0; i < 4; i++)
        mmu->watch_page[i] = TLB_INVALID;
    pthread_mutex_init(&mmu->bus_mutex, NULL);
    mmu->context = context_take(mmu, 0);
    large_filter_clear(&mmu->large);
    return mmu;
}

void mmu_destroy(struct mmu *mmu)
{
    if (!mmu)
        return;
    windows_destroy(mmu->windows);
    free(mmu->walk_cache);
    pthread_mutex_destroy(&mmu->bus_mutex);
    munmap(mmu->contexts, TLB_CONTEXTS * sizeof(*mmu->contexts));
    free(mmu);
}

static uint16_t pcid_of(const struct mmu *mmu, uint64_t cr3) { return mmu->pcide ? cr3 & 0xFFF : 0; }

/* Makes the context of CR3 and the present space the present one. flushed: of what the PCID had. */
static void choose_context(struct vcpu *vcpu, bool flushed)
{
    struct mmu *mmu = vcpu->mmu;
    uint16_t pcid = pcid_of(mmu, vcpu->cr3);
    struct tlb_context *context = context_find(mmu, pcid);
    if (!context)
        context = context_take(mmu, pcid);
    if (context->rule_bits != mmu->rule_bits || context->stale) {
        context_clear(mmu, context);
        context->rule_bits = mmu->rule_bits;
    }
    context->last_use = ++mmu->ticks;
    mmu->context = context;
    mmu->cr3 = vcpu->cr3;
    window_follow_cr3(vcpu, flushed);
    mmu_border(vcpu);
    mmu_privilege_changed(vcpu);
}

void mmu_load_cr3(struct vcpu *vcpu, bool keep)
{
    struct mmu *mmu = vcpu->mmu;
    if (!keep)
        mmu_flush_pcid(vcpu, pcid_of(mmu, vcpu->cr3));
    choose_context(vcpu, !keep);
}

bool mmu_load_pdptes(struct vcpu *vcpu, uint64_t cr3)
{
    uint64_t pdpte[4], reserved = paging_pdpte_reserved(x86_physical_bits(vcpu)), gpa = cr3 & 0xFFFFFFE0;
    if (vmx_proc2(vcpu, PROC2_ENABLE_EPT) && !mmu_walk_guest_physical(vcpu, &gpa))
        return false;
    mmu_phys_read(vcpu, gpa, pdpte, sizeof(pdpte));
    for (unsigned i = 0; i < 4; i++)
        if ((pdpte[i] & PTE_P) && (pdpte[i] & reserved))
            return false;
    memcpy(vcpu->pdpte, pdpte, sizeof(pdpte));
    return true;
}

/* --- changes of mode --- */

/* Every bit on which translations depend, for all contexts; packed from CR0, CR4 and EFER, whose bits do not collide here. */
static uint64_t rule_bits(const struct vcpu *vcpu)
{
    uint64_t space = vcpu->mmu->space.mode_based_execute ? BIT(63) : 0;
    if (!(vcpu->cr0 & CR0_PG))
        return space;
    return space | (vcpu->cr0 & (CR0_PG | CR0_WP))
           | (vcpu->cr4 & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_PKE)) << 32
           | (vcpu->efer & (EFER_NXE | EFER_LMA));
}

static void read_limits(struct vcpu *vcpu, struct paging_mode *mode)
{
    uint32_t basic[4], extended[4];
    x86_cpuid(vcpu, 1, 0, basic);
    x86_cpuid(vcpu, 0x80000001, 0, extended);
    mode->physical_bits = x86_physical_bits(vcpu);
    mode->pse36 = basic[3] & BIT(17);
    mode->page1gb = extended[3] & BIT(26);
    mode->ept_2m = vmx_can(vcpu, CAPABILITY_EPT_2M_PAGES);
    mode->ept_1g = vmx_can(vcpu, CAPABILITY_EPT_1G_PAGES);
    mode->ept_execute_only = vmx_can(vcpu, CAPABILITY_EPT_EXECUTE_ONLY);
}

static void set_rules(struct vcpu *vcpu, uint64_t rules)
{
    struct mmu *mmu = vcpu->mmu;
    mmu->rule_bits = rules;
    if (!mmu->limits_known) {
        read_limits(vcpu, &mmu->mode);
        paging_format_select_ept(&mmu->ept_format, &mmu->mode);
        mmu->limits_known = true;
    }
    mmu->mode.cr0 = vcpu->cr0;
    mmu->mode.cr4 = vcpu->cr4;
    mmu->mode.efer = vcpu->efer;
    paging_format_select(&mmu->format, &mmu->mode);
    mmu->wp = vcpu->cr0 & CR0_WP;
    mmu->smep = vcpu->cr4 & CR4_SMEP;
    mmu->pge = vcpu->cr4 & CR4_PGE;
    mmu->nx = (vcpu->efer & EFER_NXE) && (vcpu->cr4 & CR4_PAE);
    mmu->pke = (vcpu->cr4 & CR4_PKE) && (vcpu->efer & EFER_LMA);
    mmu->pcide = vcpu->cr4 & CR4_PCIDE;
}

/* Pages of data breakpoints (SDM3 §18.2.4): R/Wn is 1 (write) or 3 (read or write). */
static void breakpoints_changed(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    bool watching = false;
    for (unsigned i = 0; i < 4; i++) {
        bool enabled = (vcpu->dr7 >> (2 * i)) & 3;
        unsigned kind = (vcpu->dr7 >> (16 + 4 * i)) & 3;
        uint64_t page = enabled && (kind & 1) ? vcpu->dr[i] & ~PAGE_MASK : TLB_INVALID;
        watching |= page != TLB_INVALID;
        if (page == mmu->watch_page[i])
            continue;
        for (unsigned n = 0; n < TLB_CONTEXTS; n++)
            for (unsigned class = 0; mmu->contexts[n].used && class < MMU_CLASSES; class++) {
                struct tlb_table *table = &mmu->contexts[n].table[class];
                if (page != TLB_INVALID)
                    tlb_entry_clear(table, tlb_index(page));
                if (mmu->watch_page[i] != TLB_INVALID)
                    tlb_entry_clear(table, tlb_index(mmu->watch_page[i]));
            }
        mmu->watch_page[i] = page;
    }
    mmu->watching = watching;
}

static void pkru_changed(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    uint32_t changed = mmu->pkru ^ vcpu->fpu.pkru;
    mmu->pkru = vcpu->fpu.pkru;
    for (unsigned key = 0; key < 16; key++) {
        if (((changed >> (2 * key)) & 3) && (mmu->pkeys_seen & (1u << key))) {
            mmu_flush_all(vcpu);
            return;
        }
    }
}

static void rest_changed(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    if (mmu->watching || (vcpu->dr7 & 0xFF))
        breakpoints_changed(vcpu);
    if (mmu->pke && mmu->pkru != vcpu->fpu.pkru)
        pkru_changed(vcpu);
    mmu_privilege_changed(vcpu);
}

void mmu_mode_changed(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    uint64_t rules = rule_bits(vcpu);
    if (rules != mmu->rule_bits) {
        set_rules(vcpu, rules);
        mmu_flush_linear(vcpu);
        choose_context(vcpu, true);
    } else if (vcpu->cr3 != mmu->cr3) {
        mmu_load_cr3(vcpu, false);
    }
    rest_changed(vcpu);
}

void mmu_enter_space(struct vcpu *vcpu, const struct mmu_space *space)
{
    struct mmu *mmu = vcpu->mmu;
    mmu->space = *space;
    mmu->ept_format.present = EPTE_RIGHTS | (space->mode_based_execute ? EPTE_USER_EXECUTE : 0);
    mmu->ept_format.needs_read = EPTE_WRITE | (mmu->mode.ept_execute_only ? 0 : mmu->ept_format.present & ~(uint64_t)(EPTE_READ | EPTE_WRITE));
    mmu->ept_format.accessed = space->eptp & EPTP_ACCESSED_DIRTY ? EPTE_A : 0;
    mmu->ept_format.dirty = space->eptp & EPTP_ACCESSED_DIRTY ? EPTE_D : 0;
    uint64_t rules = rule_bits(vcpu);
    if (rules != mmu->rule_bits)
        set_rules(vcpu, rules);
    choose_context(vcpu, false);
    rest_changed(vcpu);
}

/* --- flushes --- */

void mmu_flush_all(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    counter_add(&vcpu->counters, COUNTER_tlb_flushes, 1);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (mmu->contexts[i].used)
            context_clear(mmu, &mmu->contexts[i]);
    mmu->fetch_epoch++;
    guest_physicals_forget_all(mmu);
    large_filter_clear(&mmu->large);
    mmu->pkeys_seen = 0;
}

/* What all contexts share, the filter of large global pages and the keys seen, stays as it is if others may need it. */
void mmu_flush_linear(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    bool others = false;
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        others |= mmu->contexts[i].used && mmu->contexts[i].vpid != mmu->space.vpid;
    if (others)
        mmu_flush_vpid(vcpu, mmu->space.vpid, false);
    else
        mmu_flush_all(vcpu);
}

static bool entry_maps(const struct tlb_entry *entry, uint64_t gla)
{
    return tlb_tag_maps(entry->tag[MMU_READ], gla) || tlb_tag_maps(entry->tag[MMU_WRITE], gla)
           || tlb_tag_maps(entry->tag[MMU_FETCH], gla);
}

/* The page that an entry maps, or TLB_INVALID. */
static uint64_t entry_page(const struct tlb_entry *entry)
{
    for (unsigned use = 0; use < 3; use++)
        if (entry->tag[use] != TLB_INVALID)
            return entry->tag[use] & ~PAGE_MASK;
    return TLB_INVALID;
}

/* Which entries of a context an invalidation is about. */
enum scope { SCOPE_LOCAL = 1, SCOPE_GLOBAL = 2 };

static bool in_scope(uint64_t info, unsigned scope)
{
    return scope & (info & TLB_GLOBAL ? SCOPE_GLOBAL : SCOPE_LOCAL);
}

static void context_flush_page(struct tlb_context *context, uint64_t gla, unsigned scope)
{
    unsigned index = tlb_index(gla);
    for (unsigned class = 0; class < MMU_CLASSES; class++) {
        struct tlb_table *table = &context->table[class];
        if (entry_maps(&table->entry[index], gla) && in_scope(table->info[index], scope))
            tlb_entry_clear(table, index);
    }
}

/* All pieces of the large pages around gla. */
static void context_flush_large(struct tlb_context *context, uint64_t gla, unsigned scope)
{
    static const uint8_t shift_of[4] = { PAGE_SHIFT, 21, 22, 30 };
    for (unsigned class = 0; class < MMU_CLASSES; class++) {
        struct tlb_table *table = &context->table[class];
        FOR_FILLED(first, table)
            for (unsigned i = first; i < first + TLB_PIECE; i++) {
                uint64_t info = table->info[i];
                unsigned shift = shift_of[(info & TLB_LARGE) >> TLB_LARGE_SHIFT];
                if (shift > PAGE_SHIFT && in_scope(info, scope) && entry_page(&table->entry[i]) >> shift == gla >> shift)
                    tlb_entry_clear(table, i);
            }
    }
}

static bool was_fetched(const struct mmu *mmu, uint64_t gla, bool global)
{
    return mmu->fetched[global][mmu_fetched_bit(gla) / 64] >> (mmu_fetched_bit(gla) % 64) & 1;
}

/* Those who keep what was fetched there are told by the epochs. */
static void note_flush(struct mmu *mmu, struct tlb_context *context, uint64_t gla, unsigned scope)
{
    if ((scope & SCOPE_LOCAL) && (was_fetched(mmu, gla, false) || large_filter_hit(&context->large, gla)))
        context->fetch_epoch++;
    if ((scope & SCOPE_GLOBAL) && (was_fetched(mmu, gla, true) || large_filter_hit(&mmu->large, gla)))
        mmu->fetch_epoch++;
}

static void context_flush(struct mmu *mmu, struct tlb_context *context, uint64_t gla, unsigned scope)
{
    context_flush_page(context, gla, scope);
    if (scope & SCOPE_LOCAL)            /* INVLPG: those of all addresses */
        structures_forget(mmu, context);
    window_flush_page(context, gla, !(scope & SCOPE_LOCAL));
    note_flush(mmu, context, gla, scope);
    if (large_filter_hit(&context->large, gla) || ((scope & SCOPE_GLOBAL) && large_filter_hit(&mmu->large, gla)))
        context_flush_large(context, gla, scope);
}

void mmu_flush_page(struct vcpu *vcpu, uint64_t gla)
{
    struct mmu *mmu = vcpu->mmu;
    FOR_CONTEXTS_OF_VPID(context, mmu, mmu->space.vpid)
        context_flush(mmu, context, gla, context->pcid == mmu->context->pcid ? SCOPE_LOCAL | SCOPE_GLOBAL : SCOPE_GLOBAL);
    mmu_border(vcpu);
}

void mmu_flush_pcid_page(struct vcpu *vcpu, uint16_t pcid, uint64_t gla)
{
    struct mmu *mmu = vcpu->mmu;
    FOR_CONTEXTS_OF_VPID(context, mmu, mmu->space.vpid)
        if (context->pcid == pcid)
            context_flush(mmu, context, gla, SCOPE_LOCAL);
    mmu_border(vcpu);
}

void mmu_flush_pcid(struct vcpu *vcpu, uint16_t pcid)
{
    struct mmu *mmu = vcpu->mmu;
    FOR_CONTEXTS_OF_VPID(context, mmu, mmu->space.vpid)
        if (context->pcid == pcid)
            context_clear_local(vcpu, context);
    mmu_border(vcpu);
}

void mmu_flush_vpid_page(struct vcpu *vcpu, uint16_t vpid, uint64_t gla)
{
    FOR_CONTEXTS_OF_VPID(context, vcpu->mmu, vpid)
        context_flush(vcpu->mmu, context, gla, SCOPE_LOCAL | SCOPE_GLOBAL);
}

void mmu_flush_vpid(struct vcpu *vcpu, uint16_t vpid, bool keep_global)
{
    counter_add(&vcpu->counters, COUNTER_tlb_flushes, 1);
    vcpu->mmu->fetch_epoch += !keep_global;
    FOR_CONTEXTS_OF_VPID(context, vcpu->mmu, vpid)
        if (keep_global)
            context_clear_local(vcpu, context);
        else if (context == vcpu->mmu->context)
            context_clear(vcpu->mmu, context);
        else
            context->stale = true;
}

void mmu_flush_all_vpids(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    mmu->fetch_epoch++;
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (mmu->contexts[i].used && mmu->contexts[i].vpid)
            context_clear(mmu, &mmu->contexts[i]);
}

/* What a large page maps beside this page goes through EPT by itself, so it stays. */
void mmu_forget_page(struct vcpu *vcpu, uint64_t gla)
{
    struct mmu *mmu = vcpu->mmu;
    struct tlb_context *context = mmu->context;
    for (unsigned class = 0; class < MMU_CLASSES; class++)
        tlb_entry_clear(&context->table[class], tlb_index(gla));
    window_flush_page(context, gla, false);
    context->fetch_epoch += was_fetched(mmu, gla, false);
    mmu->fetch_epoch += was_fetched(mmu, gla, true);
}

/* The EPT pointer's bits 51:12 alone name what is cached (SDM3 §29.4.2: "EP4TA"). */
void mmu_flush_ept(struct vcpu *vcpu, uint64_t eptp)
{
    struct mmu *mmu = vcpu->mmu;
    mmu->fetch_epoch++;
    guest_physicals_forget(mmu, eptp);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (mmu->contexts[i].used && mmu->contexts[i].eptp && (mmu->contexts[i].eptp ^ eptp) >> PAGE_SHIFT == 0)
            context_clear(mmu, &mmu->contexts[i]);
}

void mmu_flush_all_epts(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    mmu->fetch_epoch++;
    guest_physicals_forget_all(mmu);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (mmu->contexts[i].used && mmu->contexts[i].eptp)
            context_clear(mmu, &mmu->contexts[i]);
}

/* --- direct-write entries --- */

static void drop_write_tag(struct tlb_table *table, unsigned index)
{
    table->entry[index].tag[MMU_WRITE] = TLB_INVALID;
    table->write_frame[index] = NO_FRAME;
}

static_assert(TLB_PIECE == 8, "two vectors below");
static void table_drop_frame(struct tlb_table *table, uint32_t frame)
{
    const __m128i wanted = _mm_set1_epi32((int)frame);
    FOR_FILLED(i, table) {
        __m128i low = _mm_loadu_si128((const __m128i *)&table->write_frame[i]);
        __m128i high = _mm_loadu_si128((const __m128i *)&table->write_frame[i + 4]);
        __m128i equal = _mm_or_si128(_mm_cmpeq_epi32(low, wanted), _mm_cmpeq_epi32(high, wanted));
        if (likely(!_mm_movemask_epi8(equal)))
            continue;
        for (unsigned j = i; j < i + TLB_PIECE; j++)
            if (table->write_frame[j] == frame)
                drop_write_tag(table, j);
    }
}

void mmu_drop_write_entries(struct vcpu *vcpu, uint64_t gpa)
{
    struct mmu *mmu = vcpu->mmu;
    window_drop_write_access(mmu, gpa);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        for (unsigned class = 0; mmu->contexts[i].used && class < MMU_CLASSES; class++)
            table_drop_frame(&mmu->contexts[i].table[class], (uint32_t)(gpa >> PAGE_SHIFT));
}

void mmu_drop_all_write_entries(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    window_drop_all_write_access(mmu);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        for (unsigned class = 0; mmu->contexts[i].used && class < MMU_CLASSES; class++)
            FOR_FILLED(first, &mmu->contexts[i].table[class])
                for (unsigned index = first; index < first + TLB_PIECE; index++)
                    drop_write_tag(&mmu->contexts[i].table[class], index);
}

struct unshare {
    uint64_t gpa;
    _Atomic uint32_t *page;
};

/*
 * On the writer's own thread, so its bit and its entries change together: PAGE_CODE is set, so it makes no new one. The bit
 * goes only after the entries, for the sake of a second decoder that asks meanwhile. With more vCPUs than bits
 * a bit is shared and stays.
 */
static void drop_and_release(struct vcpu *vcpu, void *argument)
{
    struct unshare *unshare = argument;
    mmu_drop_write_entries(vcpu, unshare->gpa);
    if (vcpu->all_count <= PAGE_WRITERS)
        atomic_fetch_and(unshare->page, ~((uint32_t)PAGE_WRITER << (vcpu->index % PAGE_WRITERS)));
}

void mmu_unshare_writes(struct vcpu *vcpu, uint64_t gpa)
{
    struct ram_slot *slot = ram_find(vcpu->ram, gpa);
    if (!slot)
        return;
    struct unshare unshare = { .gpa = gpa, .page = ram_page(slot, gpa) };
    uint32_t word = atomic_load(unshare.page);
    drop_and_release(vcpu, &unshare);
    for (unsigned i = 0; i < vcpu->all_count; i++) {
        struct vcpu *other = vcpu->all[i];
        if (other != vcpu && (word & ((uint32_t)PAGE_WRITER << (other->index % PAGE_WRITERS))))
            vcpu_run_on(vcpu, other, drop_and_release, &unshare);
    }
}
