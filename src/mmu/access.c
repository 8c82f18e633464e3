/*
 * The slow paths of guest memory access. Order in each: find the translation of every page that is touched (raising faults before
 * anything is written), then move the bytes, then report data breakpoints, which are traps.
 */
#include "mem/code_map.h"
#include "mem/ram.h"
#include "mmu/copy.h"
#include "mmu/physical.h"
#include "mmu/tlb.h"
#include "mmu/walk.h"
#include "vmx/vmx.h"
#include "vcpu/work.h"
#include "x86/x86.h"

/* One translated piece of an access; it lies in one page. */
struct piece {
    uint8_t *host;              /* valid unless TLB_MMIO */
    uint64_t gpa;
    uint64_t slow;              /* TLB_SLOW bits */
};

static bool translate(struct vcpu *vcpu, uint64_t gla, enum mmu_use use, enum mmu_class class, struct piece *piece)
{
    struct tlb_table *table = &vcpu->mmu->context->table[class];
    unsigned index = tlb_index(gla);
    struct tlb_entry *entry = &table->entry[index];
    if (!tlb_tag_maps(entry->tag[use], gla) && !tlb_fill(vcpu, gla, use, class))
        return false;
    if (use == MMU_WRITE && unlikely(entry->tag[MMU_WRITE] & TLB_WATCHED))
        tlb_try_unwatch(vcpu, table, index);
    piece->slow = entry->tag[use] & TLB_SLOW;
    piece->gpa = (table->info[index] & ~PAGE_MASK) | (gla & PAGE_MASK);
    piece->host = (uint8_t *)(gla + entry->addend);
    return true;
}

/* Linear addresses outside 64-bit mode have 32 bits (SDM3 §3.3); 64-bit ones wrap by themselves. */
static uint64_t next_page(const struct vcpu *vcpu, uint64_t gla)
{
    uint64_t next = (gla | PAGE_MASK) + 1;
    return gla >> 32 == 0 && !vcpu_code64(vcpu) ? (uint32_t)next : next;
}

/* Bytes of the access that lie in its first page. */
static unsigned first_part(uint64_t gla, unsigned size)
{
    return min_u64(size, PAGE_SIZE - (gla & PAGE_MASK));
}

/*
 * SDM3 §6.15 "Interrupt 17": only explicit accesses at CPL 3. NOTE(spec): table 6-2 leaves the order of #AC and #PF of one
 * access to the processor; here #AC comes first. Operands above 8 bytes have rules of their own, which are the engine's.
 */
static bool misaligned(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class)
{
    return unlikely(vcpu->mmu->alignment_check) && class == MMU_USER && size <= 8 && !(size & (size - 1)) && (gla & (size - 1));
}

static void load_piece(struct vcpu *vcpu, const struct piece *piece, void *out, unsigned size)
{
    if (unlikely(piece->slow & TLB_MMIO))
        mmio_read(vcpu, piece->gpa, out, size);
    else
        copy_operand(out, piece->host, size);
}

/*
 * A page in which there was code once may be a stack or a table by now, written to all the time, and never where the code was. So some of the
 * writes that touch none wear it as well. A page of both loses its code every few thousand writes, which costs less than they do.
 */
static void wear(struct vcpu *vcpu, uint64_t gpa)
{
    enum { EACH = 256 };
    if (counter_get(&vcpu->counters, COUNTER_code_writes) % EACH == 0 && ram_wear_code(vcpu->ram, gpa) && vcpu->code_overwritten)
        vcpu->code_overwritten(vcpu, gpa & ~PAGE_MASK, PAGE_SIZE);
}

/* Others drop overwritten code at their next block border; the writer itself must not run on in it. */
static void watched_written(struct vcpu *vcpu, uint64_t gpa, unsigned size)
{
    counter_add(&vcpu->counters, COUNTER_code_writes, 1);
    vcpu->overwriting = vcpu->code_overwritten && code_map_hit(vcpu->ram, gpa, size);
    ram_written(vcpu->ram, gpa, size);
    if (vcpu->overwriting)
        vcpu->code_overwritten(vcpu, gpa, size);
    vcpu->overwriting = false;
    wear(vcpu, gpa);
}

static void store_piece(struct vcpu *vcpu, const struct piece *piece, const void *in, unsigned size)
{
    if (unlikely(piece->slow & (TLB_MMIO | TLB_ROM))) {
        mmio_write(vcpu, piece->gpa, in, size);
        return;
    }
    copy_operand(piece->host, in, size);
    if (piece->slow & TLB_WATCHED)
        watched_written(vcpu, piece->gpa, size);
}

/* Devices can be told the time, and their timers set. */
static bool device_may_be_asked(struct vcpu *vcpu, const struct piece piece[2])
{
    return likely(!((piece[0].slow | piece[1].slow) & TLB_MMIO)) || vcpu_time_known(vcpu);
}

/* The APIC-access page (SDM3 §30.4). An access that crosses into it or out of it lies in no register, so it exits. */
static bool apic_access(const struct piece piece[2]) { return unlikely((piece[0].slow | piece[1].slow) & TLB_APIC_ACCESS); }

static unsigned apic_offset(const struct piece piece[2])
{
    return piece[!(piece[0].slow & TLB_APIC_ACCESS)].gpa & PAGE_MASK;
}

bool mmu_load_slow(struct vcpu *vcpu, uint64_t gla, void *out, unsigned size, enum mmu_class class)
{
    struct piece piece[2] = { 0 };
    if (misaligned(vcpu, gla, size, class))
        return x86_raise_error(vcpu, VEC_AC, 0);
    unsigned first = first_part(gla, size);
    if (!translate(vcpu, gla, MMU_READ, class, &piece[0]))
        return false;
    if (unlikely(first < size) && !translate(vcpu, next_page(vcpu, gla), MMU_READ, class, &piece[1]))
        return false;
    if (apic_access(piece))
        return vmx_apic_read(vcpu, apic_offset(piece), size, out, false);
    if (!device_may_be_asked(vcpu, piece))
        return false;
    load_piece(vcpu, &piece[0], out, first);
    if (unlikely(first < size))
        load_piece(vcpu, &piece[1], (uint8_t *)out + first, size - first);
    if (unlikely((piece[0].slow | piece[1].slow) & TLB_TRAP))
        x86_debug_data(vcpu, gla, size, false);
    return true;
}

bool mmu_store_slow(struct vcpu *vcpu, uint64_t gla, const void *in, unsigned size, enum mmu_class class)
{
    struct piece piece[2] = { 0 };
    if (misaligned(vcpu, gla, size, class))
        return x86_raise_error(vcpu, VEC_AC, 0);
    unsigned first = first_part(gla, size);
    if (!translate(vcpu, gla, MMU_WRITE, class, &piece[0]))
        return false;
    if (unlikely(first < size) && !translate(vcpu, next_page(vcpu, gla), MMU_WRITE, class, &piece[1]))
        return false;
    if (apic_access(piece))
        return vmx_apic_write(vcpu, apic_offset(piece), size, in);
    if (!device_may_be_asked(vcpu, piece))
        return false;
    store_piece(vcpu, &piece[0], in, first);
    if (unlikely(first < size))
        store_piece(vcpu, &piece[1], (const uint8_t *)in + first, size - first);
    if (unlikely((piece[0].slow | piece[1].slow) & TLB_TRAP))
        x86_debug_data(vcpu, gla, size, true);
    return true;
}

bool mmu_probe(struct vcpu *vcpu, uint64_t gla, unsigned size, bool write, enum mmu_class class)
{
    struct piece piece;
    enum mmu_use use = write ? MMU_WRITE : MMU_READ;
    if (misaligned(vcpu, gla, size, class))
        return x86_raise_error(vcpu, VEC_AC, 0);
    if (!translate(vcpu, gla, use, class, &piece))
        return false;
    return first_part(gla, size) == size || translate(vcpu, next_page(vcpu, gla), use, class, &piece);
}

/* --- read-modify-write --- */

static void recheck_written(struct vcpu *vcpu, void *argument)
{
    uint64_t gpa = (uint64_t)argument;
    ram_written(vcpu->ram, gpa & ~(uint64_t)63, 64);
}

/*
 * The caller is about to write in place to a page with code. Overlapped code goes now; and since another vCPU may decode these
 * bytes between our look and the caller's write, we look again at our next block border, after the write.
 */
static void watched_modify(struct vcpu *vcpu, const struct piece *piece, unsigned size)
{
    watched_written(vcpu, piece->gpa, size);
    if (vcpu->all_count < 2)
        return;
    vcpu_post(vcpu, recheck_written, (void *)piece->gpa);
    if ((piece->gpa & 63) + size > 64)
        vcpu_post(vcpu, recheck_written, (void *)(piece->gpa + size - 1));
}

void *mmu_modify(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class, bool *fault)
{
    *fault = false;
    if (unlikely(first_part(gla, size) < size)) {
        *fault = !mmu_probe(vcpu, gla, size, true, class);
        return NULL;
    }
    if (misaligned(vcpu, gla, size, class)) {
        *fault = !x86_raise_error(vcpu, VEC_AC, 0);
        return NULL;
    }
    struct piece piece;
    if (!translate(vcpu, gla, MMU_WRITE, class, &piece)) {
        *fault = true;
        return NULL;
    }
    if (likely(!piece.slow))
        return piece.host;
    if (piece.slow & (TLB_MMIO | TLB_ROM))
        return NULL;
    if (piece.slow & TLB_WATCHED)
        watched_modify(vcpu, &piece, size);
    if (piece.slow & TLB_TRAP)
        x86_debug_data(vcpu, gla, size, true);
    return piece.host;
}

static pthread_mutex_t *bus_mutex(struct vcpu *vcpu)
{
    return &(vcpu->all_count ? vcpu->all[0] : vcpu)->mmu->bus_mutex;
}

void mmu_bus_lock(struct vcpu *vcpu) { pthread_mutex_lock(bus_mutex(vcpu)); }
void mmu_bus_unlock(struct vcpu *vcpu) { pthread_mutex_unlock(bus_mutex(vcpu)); }

/* --- by size --- */

/* Where the TLB lets an aligned word of 1, 2, 4 or 8 bytes go straight to memory; NULL otherwise. */
static void *direct_word(const struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_use use, enum mmu_class class)
{
    const struct tlb_entry *entry = &vcpu->mmu->context->table[class].entry[tlb_index(gla)];
    return likely(entry->tag[use] == (gla & (~PAGE_MASK | (size - 1)))) ? (void *)(gla + entry->addend) : NULL;
}

bool mmu_load(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class, uint64_t *out)
{
    uint64_t value = 0;
    const void *at = direct_word(vcpu, gla, size, MMU_READ, class);
    if (at)
        copy_operand(&value, at, size & 15);        /* as it is, but the compiler should know */
    else if (!mmu_load_slow(vcpu, gla, &value, size, class))
        return false;
    *out = value;
    return true;
}

bool mmu_store(struct vcpu *vcpu, uint64_t gla, unsigned size, enum mmu_class class, uint64_t value)
{
    void *at = direct_word(vcpu, gla, size, MMU_WRITE, class);
    if (at) {
        copy_operand(at, &value, size & 15);
        return true;
    }
    return mmu_store_slow(vcpu, gla, &value, size, class);
}

/* --- code --- */

static enum mmu_class fetch_class(const struct vcpu *vcpu) { return vcpu->cpl == 3 ? MMU_USER : MMU_SUPERVISOR; }

const uint8_t *mmu_fetch_slow(struct vcpu *vcpu, uint64_t gla, uint64_t *gpa, bool *mmio)
{
    struct piece piece;
    *mmio = false;
    if (!translate(vcpu, gla, MMU_FETCH, fetch_class(vcpu), &piece))
        return NULL;
    if (unlikely(piece.slow & TLB_APIC_ACCESS)) {
        vmx_apic_read(vcpu, gla & PAGE_MASK, 1, NULL, true);
        return NULL;
    }
    *gpa = piece.gpa & ~PAGE_MASK;
    *mmio = piece.slow & TLB_MMIO;
    return *mmio ? NULL : piece.host - (gla & PAGE_MASK);
}

bool mmu_fetch_bytes(struct vcpu *vcpu, uint64_t gla, void *out, unsigned size)
{
    uint8_t *bytes = out;
    while (size) {
        struct piece piece;
        unsigned part = first_part(gla, size);
        if (!translate(vcpu, gla, MMU_FETCH, fetch_class(vcpu), &piece))
            return false;
        if (unlikely(piece.slow & TLB_APIC_ACCESS))
            return vmx_apic_read(vcpu, gla & PAGE_MASK, 1, NULL, true);
        load_piece(vcpu, &piece, bytes, part);
        bytes += part;
        size -= part;
        gla = next_page(vcpu, gla);
    }
    return true;
}

bool mmu_translate(struct vcpu *vcpu, uint64_t gla, uint64_t *gpa)
{
    struct walk walk = { .gla = gla, .use = MMU_READ, .class = MMU_SUPERVISOR, .peek = true };
    if (!mmu_walk(vcpu, &walk))
        return false;
    *gpa = walk.gpa;
    return true;
}
