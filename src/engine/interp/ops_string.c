/*
 * String instructions: MOVS STOS LODS CMPS SCAS, alone and repeated.
 *
 * Each element is complete when its registers have moved, so a fault or a request finds an instruction that can be
 * started again where it was (SDM1 §7.3.9.1 "String Operations"). Repeated MOVS and STOS go by whole pages while
 * the TLB lets both sides be touched directly; everything else goes element by element. A request is looked at after each
 * page or element, so that no count can hang the vCPU.
 */
#include "engine/interp/address.h"
#include "engine/interp/bind.h"
#include "engine/interp/flags.h"
#include "mem/code_map.h"

static uint64_t index_register(const struct vcpu *vcpu, const struct op *op, enum gpr reg)
{
    return vcpu->gpr[reg] & size_mask(op->address_size);
}

static void set_index(struct vcpu *vcpu, const struct op *op, enum gpr reg, uint64_t value)
{
    reg_set(vcpu, GPR_OFFSET(reg), op->address_size, value);
}

static int64_t element_step(const struct vcpu *vcpu, const struct op *op)
{
    return vcpu->rflags & RFLAGS_DF ? -(int64_t)op->size : (int64_t)op->size;
}

static void advance(struct vcpu *vcpu, const struct op *op, enum gpr reg)
{
    set_index(vcpu, op, reg, vcpu->gpr[reg] + (uint64_t)element_step(vcpu, op));
}

static struct slow_value load_element(struct vcpu *vcpu, const struct op *op, enum seg seg, enum gpr reg)
{
    uint64_t gla;
    if (!x86_linear(vcpu, seg, index_register(vcpu, op, reg), op->size, false, &gla))
        return (struct slow_value){ 0, 0 };
    return load_slow(vcpu, gla, op->size, seg);
}

static bool store_element(struct vcpu *vcpu, const struct op *op, uint64_t value)
{
    uint64_t gla;
    return x86_linear(vcpu, ES, index_register(vcpu, op, RDI), op->size, true, &gla) &&
           store_slow(vcpu, gla, value, op->size, ES);
}

/* Flags of a - b. */
#define COMPARE_CASE(w, s)                                                                                    \
    case w / 8:                                                                                               \
        asm("cmp" s " %[b], %[a]\n\t" FLAGS_SAVE                                                              \
            : "=&a"(packed) : [a] "r"((uint##w##_t)a), [b] "r"((uint##w##_t)b) : "cc");                       \
        break;
static void compare(struct vcpu *vcpu, unsigned size, uint64_t a, uint64_t b)
{
    uint32_t packed = 0;
    switch (size) { COMPARE_CASE(8, "b") COMPARE_CASE(16, "w") COMPARE_CASE(32, "l") COMPARE_CASE(64, "q") }
    flags_set(vcpu, packed);
}

/* --- one element of each --- */

static bool movs_one(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value value = load_element(vcpu, op, op->seg, RSI);
    if (!value.ok || !store_element(vcpu, op, value.value))
        return false;
    advance(vcpu, op, RSI);
    advance(vcpu, op, RDI);
    return true;
}

static bool stos_one(struct vcpu *vcpu, const struct op *op)
{
    if (!store_element(vcpu, op, vcpu->gpr[RAX]))
        return false;
    advance(vcpu, op, RDI);
    return true;
}

static bool lods_one(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value value = load_element(vcpu, op, op->seg, RSI);
    if (!value.ok)
        return false;
    reg_set(vcpu, GPR_OFFSET(RAX), op->size, value.value);
    advance(vcpu, op, RSI);
    return true;
}

/* Processors look at the destination's address first, which decides between two faults. */
static bool cmps_one(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value b = load_element(vcpu, op, ES, RDI);
    if (!b.ok)
        return false;
    struct slow_value a = load_element(vcpu, op, op->seg, RSI);
    if (!a.ok)
        return false;
    compare(vcpu, op->size, a.value, b.value);
    advance(vcpu, op, RSI);
    advance(vcpu, op, RDI);
    return true;
}

static bool scas_one(struct vcpu *vcpu, const struct op *op)
{
    struct slow_value b = load_element(vcpu, op, ES, RDI);
    if (!b.ok)
        return false;
    compare(vcpu, op->size, vcpu->gpr[RAX], b.value);
    advance(vcpu, op, RDI);
    return true;
}

typedef bool one_fn(struct vcpu *vcpu, const struct op *op);
static one_fn *const one_table[STRING_COUNT] = {
    [STRING_MOVS] = movs_one, [STRING_STOS] = stos_one, [STRING_LODS] = lods_one,
    [STRING_CMPS] = cmps_one, [STRING_SCAS] = scas_one, [STRING_INS] = ins_one, [STRING_OUTS] = outs_one,
};

OP_BODY_STATIC(op_string_once)
{
    return one_table[op->sub](vcpu, op);
}

/* --- many at once --- */

enum { CHUNK = 1 << CODE_GRANULE_SHIFT };

static bool goes_down(const struct vcpu *vcpu) { return vcpu->rflags & RFLAGS_DF; }

/* Elements from the one at gla to the end of its page (or its beginning), if the TLB allows direct use; *host is where. 0: not directly. */
static uint64_t direct_run(struct vcpu *vcpu, const struct op *op, uint64_t gla, enum mmu_use use, uint8_t **host)
{
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (!tag_hit(entry, use, gla, op->size) || vcpu->mmu->alignment_check)
        return 0;
    *host = (uint8_t *)(gla + entry->addend);
    return goes_down(vcpu) ? (gla & PAGE_MASK) / op->size + 1 : (PAGE_SIZE - (gla & PAGE_MASK)) / op->size;
}

/* Linear address of the first element, or false without a fault: then element by element, which finds the fault. */
static bool run_linear(struct vcpu *vcpu, const struct op *op, enum seg seg, enum gpr reg, uint64_t *gla)
{
    uint64_t offset = index_register(vcpu, op, reg);
    if (vcpu->mode == MODE_LONG64) {
        *gla = offset + (seg == FS || seg == GS ? vcpu->seg[seg].base : 0);
        return op->address_size == 8;
    }
    const struct segment *s = &vcpu->seg[seg];
    *gla = offset;
    return op->address_size == 4 && s->base == 0 && s->limit == 0xFFFFFFFF && !(s->attr & SEG_UNUSABLE) &&
           (interp_of(vcpu)->key & KEY_FLAT_DATA);
}

/*
 * Elements upward one after the other, as the instruction would. Where the destination begins inside the source, what was copied is
 * copied again: in pieces that end before that, it is there already.
 */
static void copy_up(uint8_t *to, const uint8_t *from, uint64_t count, unsigned size)
{
    uint64_t bytes = count * size, apart = (uint64_t)(to - from), piece = apart - apart % size;
    if (to <= from || apart >= bytes) {
        memmove(to, from, bytes);
        return;
    }
    for (; piece && bytes; bytes -= piece, to += piece, from += piece) {
        piece = min_u64(piece, bytes);
        memcpy(to, from, piece);
    }
    for (uint64_t element; bytes; bytes -= size, to += size, from += size) {        /* each overlaps its source */
        memcpy(&element, from, size);
        memcpy(to, &element, size);
    }
}

/* The same downward: the elements at `to` and `from` are the first, and the highest. */
static void copy_down(uint8_t *to, const uint8_t *from, uint64_t count, unsigned size)
{
    uint64_t before = (count - 1) * size, bytes = count * size;
    if (to >= from || to + bytes <= from) {
        memmove(to - before, from - before, bytes);
        return;
    }
    for (uint64_t element; count; count--, to -= size, from -= size) {
        memcpy(&element, from, size);
        memcpy(to, &element, size);
    }
}

static void copy_elements(const struct vcpu *vcpu, uint8_t *to, const uint8_t *from, uint64_t count, unsigned size)
{
    (goes_down(vcpu) ? copy_down : copy_up)(to, from, count, size);
}

static void fill_elements(uint8_t *to, uint64_t value, uint64_t count, unsigned size)
{
    uint64_t same = (uint8_t)value * 0x0101010101010101ull;
    if (((value ^ same) & size_mask(size)) == 0) {      /* zeroes mostly */
        memset(to, (uint8_t)value, count * size);
        return;
    }
    for (; count; count--, to += size)
        memcpy(to, &value, size);
}

/*
 * Elements from gla to the end of its granule of the code map, in RAM whose writes are watched because code lies in the page:
 * such a piece goes through the MMU's slow path, but as a whole.
 */
static uint64_t watched_run(struct vcpu *vcpu, const struct op *op, uint64_t gla, uint8_t **host)
{
    const struct tlb_entry *entry = data_entry(vcpu, gla);
    if (entry->tag[MMU_WRITE] != ((gla & ~PAGE_MASK) | TLB_WATCHED) || vcpu->mmu->alignment_check || goes_down(vcpu))
        return 0;
    *host = (uint8_t *)(gla + entry->addend);
    return (CHUNK - (gla & (CHUNK - 1))) / op->size;
}

static void advance_many(struct vcpu *vcpu, const struct op *op, enum gpr reg, uint64_t count)
{
    set_index(vcpu, op, reg, vcpu->gpr[reg] + count * (uint64_t)element_step(vcpu, op));
}

/* direct_run, after the TLB's entry has been made if that is possible. */
static uint64_t filled_run(struct vcpu *vcpu, const struct op *op, uint64_t gla, enum mmu_use use, uint8_t **host)
{
    if (!mmu_probe(vcpu, gla, 1, use == MMU_WRITE, vcpu->mmu->data_class)) {
        vcpu->pending.kind = EVENT_NONE;        /* the fault is for the element */
        return 0;
    }
    return direct_run(vcpu, op, gla, use, host);
}

/*
 * Source and destination whose pages share an entry of the TLB drive each other out of it: each is taken when it is in. What was found
 * first still holds when the other is: nothing but the walk comes between.
 */
static uint64_t contended_run(struct vcpu *vcpu, const struct op *op, uint64_t from_gla, uint64_t to_gla, uint8_t **from, uint8_t **to)
{
    uint64_t readable = filled_run(vcpu, op, from_gla, MMU_READ, from);
    return readable ? min_u64(readable, filled_run(vcpu, op, to_gla, MMU_WRITE, to)) : 0;
}

/* Moves up to `limit` elements; returns how many. */
static uint64_t movs_run(struct vcpu *vcpu, const struct op *op, uint64_t limit)
{
    uint64_t from_gla, to_gla, count;
    uint8_t *from, *to;
    if (!run_linear(vcpu, op, op->seg, RSI, &from_gla) || !run_linear(vcpu, op, ES, RDI, &to_gla))
        return 0;
    if (tlb_index(from_gla) == tlb_index(to_gla) && (from_gla ^ to_gla) >= PAGE_SIZE &&
        (count = min_u64(limit, contended_run(vcpu, op, from_gla, to_gla, &from, &to)))) {
        copy_elements(vcpu, to, from, count, op->size);
        advance_many(vcpu, op, RSI, count);
        advance_many(vcpu, op, RDI, count);
        return count;
    }
    limit = min_u64(limit, direct_run(vcpu, op, from_gla, MMU_READ, &from));
    if (limit && (count = min_u64(limit, direct_run(vcpu, op, to_gla, MMU_WRITE, &to)))) {
        copy_elements(vcpu, to, from, count, op->size);
    } else if (limit && (count = min_u64(limit, watched_run(vcpu, op, to_gla, &to)))) {
        bool apart = to + CHUNK <= from || from + CHUNK <= to;
        if (!apart || !mmu_store_slow(vcpu, to_gla, from, (unsigned)(count * op->size), vcpu->mmu->data_class))
            return 0;
    } else {
        return 0;
    }
    advance_many(vcpu, op, RSI, count);
    advance_many(vcpu, op, RDI, count);
    return count;
}

static uint64_t stos_run(struct vcpu *vcpu, const struct op *op, uint64_t limit)
{
    uint64_t gla, count;
    uint8_t *to, chunk[CHUNK];
    if (!run_linear(vcpu, op, ES, RDI, &gla))
        return 0;
    if ((count = min_u64(limit, direct_run(vcpu, op, gla, MMU_WRITE, &to)))) {
        fill_elements(goes_down(vcpu) ? to - (count - 1) * op->size : to, vcpu->gpr[RAX], count, op->size);
    } else if ((count = min_u64(limit, watched_run(vcpu, op, gla, &to)))) {
        fill_elements(chunk, vcpu->gpr[RAX], count, op->size);
        if (!mmu_store_slow(vcpu, gla, chunk, (unsigned)(count * op->size), vcpu->mmu->data_class))
            return 0;
    }
    advance_many(vcpu, op, RDI, count);
    return count;
}

static uint64_t run_many(struct vcpu *vcpu, const struct op *op, uint64_t limit)
{
    if (op->sub == STRING_MOVS)
        return movs_run(vcpu, op, limit);
    return op->sub == STRING_STOS ? stos_run(vcpu, op, limit) : 0;
}

/* --- repeated --- */

/* CMPS and SCAS end by ZF as well: REPE goes on while it is set, REPNE while it is clear. */
static bool ends_by_zero_flag(const struct vcpu *vcpu, const struct op *op)
{
    if (op->sub != STRING_CMPS && op->sub != STRING_SCAS)
        return false;
    bool zero = vcpu->rflags & RFLAGS_ZF;
    return op->flags & OP_REP ? !zero : zero;
}

enum repeat_result { REPEAT_DONE, REPEAT_FAULT, REPEAT_AGAIN };

/*
 * After an element: must the instruction leave and be started again? Not if it has just overwritten itself: processors carry it out to its end, unless
 * something interrupts it.
 */
static bool must_leave(struct vcpu *vcpu)
{
    const struct interp *interp = interp_of(vcpu);
    return interp->stepping || !interp->elements || atomic_load_explicit(&vcpu->request, memory_order_relaxed);
}

/*
 * NOTE(spec): with 32-bit addresses Intel processors write the count back, and MOVS and STOS their indices, even if no element
 * is done (count zero, a fault): the upper halves are cleared.
 */
static void clear_upper_halves(struct vcpu *vcpu, const struct op *op)
{
    set_index(vcpu, op, RCX, vcpu->gpr[RCX]);
    if (op->sub == STRING_MOVS)
        set_index(vcpu, op, RSI, vcpu->gpr[RSI]);
    if (op->sub == STRING_MOVS || op->sub == STRING_STOS)
        set_index(vcpu, op, RDI, vcpu->gpr[RDI]);
}

static __attribute__((noinline)) enum repeat_result repeat(struct vcpu *vcpu, const struct op *op)
{
    struct interp *interp = interp_of(vcpu);
    uint64_t old_rflags = vcpu->rflags;
    uint64_t count = index_register(vcpu, op, RCX);
    /* Port permission is checked even if the count is zero. */
    if (op->sub >= STRING_INS && !x86_io_allowed(vcpu, (uint16_t)vcpu->gpr[RDX], op->size))
        return REPEAT_FAULT;
    if (op->address_size == 4)
        clear_upper_halves(vcpu, op);
    while (count) {
        uint64_t done = interp->stepping ? 0 : run_many(vcpu, op, min_u64(count, interp->elements));
        if (!done) {
            if (!one_table[op->sub](vcpu, op)) {
                vcpu->rflags = old_rflags;      /* CMPS and SCAS: SDM2 REP, "EFLAGS is restored" */
                return REPEAT_FAULT;
            }
            done = 1;
        }
        count -= done;
        interp->elements -= min_u64(done, interp->elements);
        set_index(vcpu, op, RCX, count);
        if (ends_by_zero_flag(vcpu, op))
            break;
        if (count && must_leave(vcpu))
            return REPEAT_AGAIN;
    }
    return REPEAT_DONE;
}

static struct block *op_string_repeated(struct vcpu *vcpu, const struct op *op)
{
    enum repeat_result result = repeat(vcpu, op);
    if (likely(result == REPEAT_DONE))
        NEXT;
    if (result == REPEAT_FAULT)
        return leave_fault(vcpu, op);
    return leave_again(vcpu, op);
}

op_fn *pick_string(const struct insn *insn, struct op *op, enum family family, unsigned packed)
{
    op->sub = STRING_KIND(packed);
    op->size = STRING_SIZE(packed);
    return op->flags & (OP_REP | OP_REPNE) ? op_string_repeated : op_string_once;
}
