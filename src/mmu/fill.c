/*
 * TLB entries are made here. The rules for a direct-write tag, which lets stores go to the host page unseen:
 *   - the page's D bit is set in the guest's tables (the walk for a write sees to it; a read installs a write tag
 *     only where D was set already);
 *   - the page holds no decoded code. PAGE_CODE and our PAGE_WRITER bit are in one word, each set by an atomic
 *     read-modify-write: if code_map_add comes later in the word's order it sees our bit and has the entry dropped (mmu_unshare_writes);
 *     if it came earlier we see PAGE_CODE and install a TLB_WATCHED tag instead;
 *   - the page is marked dirty for every active client of dirty tracking, before the tag is set (mem/ram.h);
 *   - it is not ROM, and no data breakpoint lies in it.
 */
#include "mmu/tlb.h"

#include "mem/ram.h"
#include "mmu/walk.h"
#include "mmu/writer.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

static bool watched_by_breakpoint(const struct mmu *mmu, uint64_t page)
{
    for (unsigned i = 0; mmu->watching && i < 4; i++)
        if (mmu->watch_page[i] == page)
            return true;
    return false;
}

static void set_write_tag(struct tlb_table *table, unsigned index, uint64_t tag)
{
    table->entry[index].tag[MMU_WRITE] = tag;
    table->write_frame[index] = (uint32_t)(table->info[index] >> PAGE_SHIFT);
}

static void install_write(struct vcpu *vcpu, struct tlb_table *table, unsigned index, uint64_t tag, struct ram_slot *slot)
{
    if (ram_is_rom(slot, table->info[index] & ~PAGE_MASK)) {
        set_write_tag(table, index, tag | TLB_ROM);
        return;
    }
    _Atomic uint32_t *page = ram_page(slot, table->info[index] & ~PAGE_MASK);
    uint32_t missing = writer_dirty_missing(vcpu->ram, page);
    if (missing)
        atomic_fetch_or(page, missing);
    set_write_tag(table, index, writer_claim(vcpu, page) ? tag : tag | TLB_WATCHED);
}

/* A read of a page that could be written at once saves the miss of the first write, if that costs nobody anything. */
static bool write_tag_is_free(struct vcpu *vcpu, const struct walk *walk, struct ram_slot *slot)
{
    if (!walk->writable || !walk->dirty || ram_is_rom(slot, walk->gpa))
        return false;
    return writer_is_free(vcpu->ram, ram_page(slot, walk->gpa));
}

/* Makes the entry the page's own, keeping tags that are there for the same translation. */
static void claim_entry(struct vcpu *vcpu, struct tlb_table *table, unsigned index, const struct walk *walk)
{
    struct mmu *mmu = vcpu->mmu;
    struct tlb_entry *entry = &table->entry[index];
    uint64_t frame = walk->gpa & ~PAGE_MASK;
    bool same = (table->info[index] & ~PAGE_MASK) == frame
                && (tlb_tag_maps(entry->tag[MMU_READ], walk->gla) || tlb_tag_maps(entry->tag[MMU_WRITE], walk->gla)
                    || tlb_tag_maps(entry->tag[MMU_FETCH], walk->gla));
    if (!same)
        tlb_entry_clear(table, index);
    uint64_t listed = table->info[index] & TLB_LISTED;
    if (!walk->global && !listed) {
        table->local[table->local_count++] = index;
        listed = TLB_LISTED;
    }
    uint64_t large = 0;
    if (walk->page_shift > PAGE_SHIFT) {
        large = walk->page_shift == 21 ? 1 : walk->page_shift == 22 ? 2 : 3;
        large_filter_add(walk->global ? &mmu->large : &mmu->context->large, walk->page_shift, walk->gla);
    }
    table->info[index] = frame | listed | (walk->global ? TLB_GLOBAL : 0) | large << TLB_LARGE_SHIFT;
    tlb_note_filled(table, index);
    mmu->pkeys_seen |= 1u << walk->pkey;
}

bool tlb_fill(struct vcpu *vcpu, uint64_t gla, enum mmu_use use, enum mmu_class class)
{
    struct mmu *mmu = vcpu->mmu;
    struct walk walk = { .gla = gla, .use = use, .class = class };
    counter_add(&vcpu->counters, COUNTER_tlb_misses, 1);
    struct tlb_table *table = &mmu->context->table[class];
    unsigned index = tlb_index(gla);
    if (!mmu_walk(vcpu, &walk)) {
        if (likely(!walk.exits))
            return x86_raise_page_fault(vcpu, gla, walk.error);
        mmu_forget_page(vcpu, gla);
        return false;
    }
    struct tlb_entry *entry = &table->entry[index];
    claim_entry(vcpu, table, index, &walk);
    uint64_t page = gla & ~PAGE_MASK;
    uint64_t tag = page | (watched_by_breakpoint(mmu, page) ? TLB_TRAP : 0);
    struct ram_slot *slot = ram_find(vcpu->ram, walk.gpa);
    if (vmx_is_apic_access_page(vcpu, walk.gpa)) {
        entry->tag[use] = tag | TLB_MMIO | TLB_APIC_ACCESS;
        return true;
    }
    if (!slot) {
        entry->tag[use] = tag | TLB_MMIO;
        return true;
    }
    ram_grant(vcpu->ram, slot, walk.gpa);
    entry->addend = (uintptr_t)(slot->host + ((walk.gpa & ~PAGE_MASK) - slot->gpa)) - page;
    if (use == MMU_FETCH) {
        entry->tag[MMU_FETCH] = page;
        return true;
    }
    entry->tag[MMU_READ] = tag;
    if (use == MMU_WRITE || write_tag_is_free(vcpu, &walk, slot))
        install_write(vcpu, table, index, tag, slot);
    return true;
}

void tlb_try_unwatch(struct vcpu *vcpu, struct tlb_table *table, unsigned index)
{
    struct ram_slot *slot = ram_find(vcpu->ram, table->info[index] & ~PAGE_MASK);
    if (slot && !(atomic_load_explicit(ram_page(slot, table->info[index] & ~PAGE_MASK), memory_order_relaxed) & PAGE_CODE))
        install_write(vcpu, table, index, table->entry[index].tag[MMU_WRITE] & ~(uint64_t)TLB_WATCHED, slot);
}
