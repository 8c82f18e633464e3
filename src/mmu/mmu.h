/*
 * The software MMU: translation contexts, the software TLB with tags (DESIGN D7), and guest memory access for engines.
 *
 * An entry of the TLB says: for this 4 KiB page of linear addresses, reads, writes or fetches of this class may go straight
 * to host memory at gla + addend. A tag that does not match sends the access to the slow path here, which walks,
 * raises faults, dispatches MMIO, splits page-crossing accesses, drops overwritten code and honours breakpoints.
 */
#ifndef DOPPEL_MMU_MMU_H
#define DOPPEL_MMU_MMU_H

#include <string.h>

#include "mmu/formats.h"
#include "vcpu/vcpu.h"

/* Who accesses: picks the table of entries. SMAP is checked for SUPERVISOR_SMAP, not for SUPERVISOR (AC=1 or no SMAP). */
enum mmu_class { MMU_SUPERVISOR, MMU_SUPERVISOR_SMAP, MMU_USER, MMU_CLASSES };
enum mmu_use { MMU_READ, MMU_WRITE, MMU_FETCH };

/*
 * A tag is the page's linear address, with TLB_SLOW bits where the page is mapped and the access allowed but must take the
 * slow path each time. TLB_INVALID never equals a page. The slow bits lie above the bits that the fast path compares to find
 * misaligned accesses (up to 64 bytes), so they always miss there.
 */
#define TLB_INVALID (~0ull)
enum {
    TLB_WATCHED = 1u << 6,      /* write: code may be decoded from the page */
    TLB_MMIO = 1u << 7,         /* not RAM: goes to the bus */
    TLB_ROM = 1u << 8,          /* write: goes to the bus */
    TLB_TRAP = 1u << 9,         /* a data breakpoint lies in the page */
    TLB_APIC_ACCESS = 1u << 10, /* the APIC-access page of a VT-x guest */
    TLB_SLOW = TLB_WATCHED | TLB_MMIO | TLB_ROM | TLB_TRAP | TLB_APIC_ACCESS,
};

struct tlb_entry {
    uint64_t tag[3];            /* by enum mmu_use */
    uintptr_t addend;           /* host = gla + addend */
};

enum { TLB_BITS = 12, TLB_SIZE = 1 << TLB_BITS, TLB_PIECE = 8, TLB_CONTEXTS = 16 };

/* Bits of tlb_table.info beside the guest-physical page address. */
enum { TLB_GLOBAL = 1u << 0, TLB_LISTED = 1u << 1, TLB_LARGE_SHIFT = 2, TLB_LARGE = 3u << TLB_LARGE_SHIFT };

struct tlb_table {
    struct tlb_entry entry[TLB_SIZE];
    uint64_t info[TLB_SIZE];            /* guest-physical page | TLB_GLOBAL.. */
    uint32_t write_frame[TLB_SIZE];     /* low bits of the frame number while the write tag is set: for scans by frame */
    uint16_t local[TLB_SIZE];           /* indices of the entries that a flush that keeps global pages must look at */
    uint16_t local_count;
    uint64_t filled[TLB_SIZE / TLB_PIECE / 64];         /* a bit for each piece of so many entries in which one was made since it was cleared */
};

/* Large pages seen: one bit for each hashed page number, for sizes 2 MiB, 4 MiB and 1 GiB. */
enum { LARGE_SIZES = 3, LARGE_BITS = 1024 };
struct large_filter {
    uint64_t bit[LARGE_SIZES][LARGE_BITS / 64];
    uint64_t lowest, highest;           /* ends of the range that they all lie in; lowest > highest: none */
};

/* Whose translations count: all zero outside VMX non-root operation (SDM3 §29.4 "Caching Translation Information"). */
struct mmu_space {
    uint16_t vpid;
    bool ept;                           /* addresses of the guest's paging go through EPT */
    bool mode_based_execute;
    uint64_t eptp;
};

struct tlb_context {
    uint16_t pcid, vpid;
    uint64_t eptp;                      /* 0: without EPT */
    uint64_t rule_bits;                 /* under which its entries were made */
    bool used;
    bool stale;                         /* flushed: it is emptied when it comes back */
    uint64_t last_use;
    struct window_space *space;         /* window.h; NULL: none yet */
    uint32_t fetch_epoch;               /* changes when a fetch of a page that is not global may find something else */
    struct large_filter large;          /* non-global large pages */
    struct tlb_table table[MMU_CLASSES];
};

enum { FETCHED_BITS = 1 << 15 };

/*
 * How long cached translations are kept. MMU_STALE: as long as the manual lets a processor keep them, paging structures and
 * guest-physical mappings included. MMU_FRESH: everything goes at each change of an address space or mode, VM entry, VM exit,
 * invalidation of whatever kind, and wherever the loop looks for events.
 */
enum mmu_policy { MMU_NORMAL, MMU_STALE, MMU_FRESH };

struct mmu {
    struct tlb_context *context;        /* the present one, in `contexts` */
    enum mmu_class data_class;
    bool alignment_check;       /* CR0.AM && RFLAGS.AC && CPL 3 */
    bool nx, smep, wp, pge, pke;        /* the rules in force, from CR0, CR4 and EFER */
    uint32_t pkru;
    struct paging_format format;        /* with the reserved bits of this processor and mode */
    struct mmu_space space;
    struct paging_format ept_format;
    uint64_t rule_bits;         /* what `format` and the rules were made from: see tlb.c */
    uint64_t cr3;               /* for which `context` was chosen */
    bool pcide;
    bool limits_known;
    struct paging_mode mode;    /* its CPUID part is read once */
    bool watching;              /* any data breakpoint */
    uint64_t watch_page[4];
    uint16_t pkeys_seen;        /* protection keys of the pages in the TLB */
    struct large_filter large;  /* global large pages */
    uint64_t ticks;             /* for last_use */
    uint32_t fetch_epoch;       /* changes when a fetch of any page, in any context, may find something else */
    uint64_t fetched[2][FETCHED_BITS / 64];     /* pages that mmu_note_fetch was told of, hashed; global ones apart */
    struct tlb_context *contexts;
    struct windows *windows;    /* window.h; NULL: none yet */
    enum mmu_policy policy;
    struct walk_cache *walk_cache;              /* walk_cache.h; NULL: no walk is remembered */
    pthread_mutex_t bus_mutex;  /* of vCPU 0: mmu_bus_lock */
};

/*
 * Whoever keeps the outcome of a fetch (linear address to code) notes the page here, and looks at the epochs of the present
 * context and of the MMU before using it again: as long as neither has changed it holds (SDM3 §4.10.4 lets it).
 */
static inline unsigned mmu_fetched_bit(uint64_t gla) { return ((gla >> PAGE_SHIFT) ^ (gla >> 28)) % FETCHED_BITS; }
static inline void mmu_note_fetch(struct vcpu *vcpu, uint64_t gla, bool global)
{
    unsigned bit = mmu_fetched_bit(gla);
    vcpu->mmu->fetched[global][bit / 64] |= 1ull << (bit % 64);
}

struct mmu *mmu_create(void);
void mmu_destroy(struct mmu *mmu);
bool mmu_set_policy(struct mmu *mmu, enum mmu_policy policy);          /* before it is used; false: no memory */

/* --- all of the rest: on the vCPU's thread --- */

/*
 * After a change of CR0, CR3, CR4, EFER, PKRU, DR0-3 or DR7 (and once before anything else): picks context and tables, flushes
 * what must go. Cheap when nothing relevant changed.
 */
void mmu_mode_changed(struct vcpu *vcpu);
/* CPL or RFLAGS.AC only: cheap. */
static inline void mmu_privilege_changed(struct vcpu *vcpu)
{
    struct mmu *mmu = vcpu->mmu;
    if (vcpu->cpl == 3) {
        mmu->data_class = MMU_USER;
        mmu->alignment_check = (vcpu->rflags & RFLAGS_AC) && (vcpu->cr0 & CR0_AM);
        vcpu->tlb_data = vcpu->tlb_code = &mmu->context->table[MMU_USER];
        return;
    }
    mmu->data_class = (vcpu->cr4 & CR4_SMAP) && !(vcpu->rflags & RFLAGS_AC) ? MMU_SUPERVISOR_SMAP : MMU_SUPERVISOR;
    mmu->alignment_check = false;
    vcpu->tlb_data = &mmu->context->table[mmu->data_class];
    vcpu->tlb_code = &mmu->context->table[MMU_SUPERVISOR];
}
void mmu_load_cr3(struct vcpu *vcpu, bool keep);        /* vcpu->cr3 is new; keep: bit 63 of the source was set with PCIDE */
/*
 * Reads vcpu->pdpte for PAE paging at CR3; false: a reserved bit is set (#GP is the caller's), or with EPT an exit is pending;
 * nothing was loaded.
 */
bool mmu_load_pdptes(struct vcpu *vcpu, uint64_t cr3);
void mmu_flush_page(struct vcpu *vcpu, uint64_t gla);           /* INVLPG: all contexts' global entries, too */
void mmu_flush_pcid_page(struct vcpu *vcpu, uint16_t pcid, uint64_t gla);
/*
 * The address cannot be used as it is and the VT-x guest leaves, by an EPT violation or a page fault: nothing stays cached for it in the
 * present context (SDM3 §29.4.3.1, §4.10.4.1), and no speculation brings it back. So the hypervisor may change it with no invalidation.
 */
void mmu_forget_page(struct vcpu *vcpu, uint64_t gla);
void mmu_flush_pcid(struct vcpu *vcpu, uint16_t pcid);
void mmu_flush_linear(struct vcpu *vcpu);       /* everything of the present VPID, global pages too */
void mmu_flush_all(struct vcpu *vcpu);          /* everything, whosever it is */
/* Between two instructions: what MMU_FRESH asks for. */
static inline void mmu_border(struct vcpu *vcpu)
{
    if (unlikely(vcpu->mmu->policy == MMU_FRESH))
        mmu_flush_all(vcpu);
}

/*
 * VM entry and exit: from now on addresses belong to this space; CR0, CR3, CR4 and EFER are already those that go with it.
 * Flushes nothing: translations of both sides stay, told apart by VPID and EPTP.
 */
void mmu_enter_space(struct vcpu *vcpu, const struct mmu_space *space);
/* INVVPID and INVEPT (SDM3 §29.4.3.3, §29.4.3.4). */
void mmu_flush_vpid_page(struct vcpu *vcpu, uint16_t vpid, uint64_t gla);
void mmu_flush_vpid(struct vcpu *vcpu, uint16_t vpid, bool keep_global);
void mmu_flush_all_vpids(struct vcpu *vcpu);    /* but VPID 0 */
void mmu_flush_ept(struct vcpu *vcpu, uint64_t eptp);
void mmu_flush_all_epts(struct vcpu *vcpu);

/* The class of an implicit supervisor access (descriptor tables, TSS): SDM3 §4.6. */
static inline enum mmu_class mmu_implicit(const struct vcpu *vcpu)
{
    return (vcpu->cr4 & CR4_SMAP) ? MMU_SUPERVISOR_SMAP : MMU_SUPERVISOR;
}

/*
 * Neighbours never share an entry: translated code takes that of an access' first byte and compares its tag with the page of the last one
 * (engine/dbt/memory.c, which computes the same).
 */
static inline unsigned tlb_index(uint64_t gla)
{
    return (gla >> PAGE_SHIFT) & (TLB_SIZE - 1);
}

/* Slow paths: any size up to 64, any alignment. False: fault pending. A store that faults has written nothing. */
bool mmu_load_slow(struct vcpu *vcpu, uint64_t gla, void *out, unsigned size, enum mmu_class class);
bool mmu_store_slow(struct vcpu *vcpu, uint64_t gla, const void *in, unsigned size, enum mmu_class class);

/*
 * A host pointer for reading and then writing `size` bytes in place (LOCK, XCHG and other read-modify-write). Write
 * permission is checked first, as the processor does. NULL with *fault false: MMIO or page-crossing, use load and store
 * under mmu_bus_lock. Overwritten code is dropped and dirty bits set here.
 */
void *mmu_modify(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class, bool *fault);
/* A lock against every other vCPU for split and MMIO read-modify-writes. */
void mmu_bus_lock(struct vcpu *vcpu);
void mmu_bus_unlock(struct vcpu *vcpu);
/* Would a store of size bytes fault? Raises it if so. For instructions that must check before they have side effects. */
bool mmu_probe(struct vcpu *vcpu, uint64_t gla, unsigned size, bool write, enum mmu_class class);

/*
 * Host pointer to the page of code at gla for fetching at the present CPL, and that page's guest-physical address; NULL:
 * fault pending, or with *mmio set the page is not RAM (fetch byte-wise by mmu_fetch_bytes).
 */
const uint8_t *mmu_fetch_slow(struct vcpu *vcpu, uint64_t gla, uint64_t *gpa, bool *mmio);
static inline const uint8_t *mmu_fetch_page(struct vcpu *vcpu, uint64_t gla, uint64_t *gpa, bool *mmio)
{
    uint64_t page = gla & ~PAGE_MASK;
    const struct tlb_table *table = vcpu->tlb_code;
    unsigned i = tlb_index(gla);
    if (likely(table->entry[i].tag[MMU_FETCH] == page)) {
        *mmio = false;
        *gpa = table->info[i] & ~PAGE_MASK;
        return (const uint8_t *)(page + table->entry[i].addend);
    }
    return mmu_fetch_slow(vcpu, gla, gpa, mmio);
}
bool mmu_fetch_bytes(struct vcpu *vcpu, uint64_t gla, void *out, unsigned size);

/* Translation without side effects, for the monitor and GDB: no A/D bits, no faults. False: not mapped. */
bool mmu_translate(struct vcpu *vcpu, uint64_t gla, uint64_t *gpa);

/* Physical accesses of the processor itself, past any EPT. MMIO is dispatched. */
void mmu_phys_read(struct vcpu *vcpu, uint64_t gpa, void *out, unsigned size);
void mmu_phys_write(struct vcpu *vcpu, uint64_t gpa, const void *in, unsigned size);
/* Host pointer to `size` bytes in one page of RAM, about to be written; NULL: not RAM, or ROM. */
void *mmu_phys_host(struct vcpu *vcpu, uint64_t gpa, unsigned size);

/* Makes every other vCPU drop its direct-write entries for the page and waits until it has (mem/code_map.h). */
void mmu_unshare_writes(struct vcpu *vcpu, uint64_t gpa);
/* Drops this vCPU's direct-write entries for one guest-physical page, or all of them (dirty tracking: mem/ram.h). */
void mmu_drop_write_entries(struct vcpu *vcpu, uint64_t gpa);
void mmu_drop_all_write_entries(struct vcpu *vcpu);

/* --- the fast paths --- */
#define MMU_DEFINE_ACCESS(bits_)                                                                                  \
    static inline bool mmu_load##bits_(struct vcpu *vcpu, uint64_t gla, uint##bits_##_t *out)                     \
    {                                                                                                             \
        const struct tlb_entry *entry = &vcpu->tlb_data->entry[tlb_index(gla)];                                   \
        if (likely(entry->tag[MMU_READ] == (gla & ~(PAGE_MASK & ~(uint64_t)(bits_ / 8 - 1))))) {                  \
            *out = *(const volatile uint##bits_##_t *)(gla + entry->addend);                                      \
            return true;                                                                                          \
        }                                                                                                         \
        return mmu_load_slow(vcpu, gla, out, bits_ / 8, vcpu->mmu->data_class);                                   \
    }                                                                                                             \
    static inline bool mmu_store##bits_(struct vcpu *vcpu, uint64_t gla, uint##bits_##_t value)                   \
    {                                                                                                             \
        const struct tlb_entry *entry = &vcpu->tlb_data->entry[tlb_index(gla)];                                   \
        if (likely(entry->tag[MMU_WRITE] == (gla & ~(PAGE_MASK & ~(uint64_t)(bits_ / 8 - 1))))) {                 \
            *(volatile uint##bits_##_t *)(gla + entry->addend) = value;                                           \
            return true;                                                                                          \
        }                                                                                                         \
        return mmu_store_slow(vcpu, gla, &value, bits_ / 8, vcpu->mmu->data_class);                               \
    }
/* Unaligned accesses miss these on purpose: the slow path serves them within a page almost as fast. */
MMU_DEFINE_ACCESS(8)
MMU_DEFINE_ACCESS(16)
MMU_DEFINE_ACCESS(32)
MMU_DEFINE_ACCESS(64)

/* Accesses by size, for rules that are not hot. Values are zero-extended. */
bool mmu_load(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class, uint64_t *out);
bool mmu_store(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class, uint64_t value);

#endif
