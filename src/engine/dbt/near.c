/*
 * Neighbouring accesses in checked code. Fields of a structure and words of the stack are reached off the same register, one after the
 * other: the first access looks the TLB up for all of them, from the lowest byte to the highest, and where these lie in one page that
 * serves reads, or writes if there are some among them, the others need no look-up.
 *
 * From the first to the last such access S2 holds the page's addend and S3 is 0, and the operand is [base + S2 + disp]. Whatever else is in
 * S3 says that the look-up failed: each access then makes one of its own, out of the line (dbt->look_up), and comes back with
 * its addend in S2. S3 is not 0 either behind a helper: it may have changed the TLB, so an addend is never older than the last helper.
 *
 * A page that may be written may be read: a tag for writing without slow bits stands beside one for reading (mmu/fill.c).
 */
#include "engine/dbt/plan.h"

enum { SPAN_MOST = 256, DISPLACEMENT_MOST = 1 << 20 };         /* few structures cross pages; no address of the kernel's own (kept.c) */

/* An access off a register that the host has. */
struct access_off {
    uint8_t base;
    int32_t disp;
    unsigned size;
    enum mmu_use use;
};

static bool by_operand(const struct planned *p, const ZydisDecodedOperand *operand, struct access_off *to)
{
    const ZydisDecodedOperandMem *m = &operand->mem;
    if (m->base == ZYDIS_REGISTER_NONE || m->base == ZYDIS_REGISTER_RIP || m->index != ZYDIS_REGISTER_NONE ||
        m->segment == ZYDIS_REGISTER_FS || m->segment == ZYDIS_REGISTER_GS || p->noted || plan_is_locked(p) ||
        m->disp.value < -DISPLACEMENT_MOST || m->disp.value > DISPLACEMENT_MOST)
        return false;
    *to = (struct access_off){
        .base = (uint8_t)ZydisRegisterGetId(m->base), .disp = (int32_t)m->disp.value, .size = operand->size / 8u,
        .use = plan_writes(operand) ? MMU_WRITE : MMU_READ,
    };
    return host_register(to->base) != HOST_NONE;
}

/* What the instruction does to memory, if that is one such access and no other. */
static bool only_access(const struct planned *p, struct access_off *to)
{
    switch (p->kind) {
    case KIND_MODRM:
        return by_operand(p, p->memory, to);
    case KIND_PUSH: case KIND_CALL:
        *to = (struct access_off){ .base = RSP, .disp = -8, .size = 8, .use = MMU_WRITE };
        return !p->memory;
    case KIND_POP: case KIND_RET:
        *to = (struct access_off){ .base = RSP, .disp = 0, .size = 8, .use = MMU_READ };
        return true;
    default:
        return false;
    }
}

static bool touches_memory(const struct planned *p)
{
    return p->kind == KIND_MODRM ? p->memory != NULL : p->kind == KIND_PUSH || p->kind == KIND_POP || p->kind == KIND_CALL || p->kind == KIND_RET;
}

/* Is S2 behind it what it was, and S3? Those who use them for registers or flags say so themselves. */
static bool leaves_scratch(const struct planned *p)
{
    switch (p->kind) {
    case KIND_NOTHING: case KIND_VERBATIM: case KIND_OPCODE_REG: case KIND_LEA: case KIND_JCC:
        return true;
    case KIND_MODRM:
        return !p->noted;
    case KIND_PUSH:
        return !p->memory;
    case KIND_POP:
        return true;
    case KIND_JMP: case KIND_CALL:
        return p->follows == FOLLOWS_TARGET;
    default:
        return false;
    }
}

/* How far the instruction moves the register; false: it is another one behind it. */
static bool follow(const struct planned *p, unsigned base, int32_t *drift)
{
    if (!(p->writes & 1u << base))
        return true;
    if (p->adjusted != base || !p->adjust || p->adjust < -SPAN_MOST || p->adjust > SPAN_MOST)
        return false;
    *drift += p->adjust;
    return true;
}

/* The access grows by what comes behind the present instruction. False: nothing does. */
static bool gather(const struct work *w, struct access_off *all)
{
    int32_t low = all->disp, high = all->disp + (int32_t)all->size, drift = 0;
    enum mmu_use use = all->use;
    bool any = false;
    for (unsigned i = w->i; leaves_scratch(&w->plan[i]) && follow(&w->plan[i], all->base, &drift) && i + 1 < w->count; i++) {
        struct access_off next;
        if (!touches_memory(&w->plan[i + 1]))
            continue;
        if (!only_access(&w->plan[i + 1], &next) || next.base != all->base)
            break;
        int32_t from = drift + next.disp, to = from + (int32_t)next.size;
        if ((to > high ? to : high) - (from < low ? from : low) > SPAN_MOST)
            break;
        low = from < low ? from : low;
        high = to > high ? to : high;
        use = next.use == MMU_WRITE ? MMU_WRITE : use;
        any = true;
    }
    *all = (struct access_off){ .base = all->base, .disp = low, .size = (unsigned)(high - low), .use = use };
    return any;
}

static struct rm operand_of(const struct access_off *access)
{
    return (struct rm){ .kind = RM_MEMORY, .base = (uint8_t)host_register(access->base), .index = S2, .disp = access->disp };
}

static bool is_among(const struct work *w, const struct access_off *access)
{
    int32_t from = w->drift + access->disp;
    return w->addend_of == access->base && from >= w->near_low && from + (int32_t)access->size <= w->near_high &&
           (access->use == MMU_READ || w->near_use == MMU_WRITE);
}

static void emit_slow_near(struct work *w, const struct access_off *access)
{
    emit_slow(w, CC_NZ);
    struct slow *slow = &w->slow[w->slow_count - 1];
    slow->use = access->use;
    slow->size = (uint8_t)access->size;
    slow->address = rm_mem(host_register(access->base), access->disp);
}

/* As the look-up of memory.c, for all of them. */
static void emit_first(struct work *w, const struct access_off *access, const struct access_off *all)
{
    struct emitter *e = &w->e;
    unsigned base = host_register(all->base);
    struct rm entry = { .kind = RM_MEMORY, .base = S3, .index = S2, .disp = (int32_t)all->use * 8 };
    if (all->disp)
        emit_lea(e, S1, rm_mem(base, all->disp));
    emit_tlb_offset(e, S2, all->disp ? S1 : base);
    emit_load(e, S3, rm_frame(FRAME_TLB));
    emit_lea(e, S1, rm_mem(base, all->disp + (int32_t)all->size - 1));
    emit_alu_constant(e, ALU_AND, S1, -(int32_t)PAGE_SIZE);
    emit_insn(e, EMIT_W, 0x3B, S1, entry, 0);           /* cmp */
    emit_slow_near(w, access);
    entry.disp = offsetof(struct tlb_entry, addend);
    emit_load(e, S2, entry);
    emit_insn(e, 0, 0x33, S3, rm_reg(S3), 0);           /* xor */
    w->addend_of = all->base;
    w->drift = 0;
    w->near_low = all->disp;
    w->near_high = all->disp + (int32_t)all->size;
    w->near_use = all->use;
}

static bool emit_near(struct work *w, const struct access_off *access, struct rm *rm)
{
    struct access_off all = *access;
    if (is_among(w, access)) {
        lose_host_flags_near(w);
        emit_insn(&w->e, EMIT_W, 0x85, S3, rm_reg(S3), 0);                      /* test */
        emit_slow_near(w, access);
    } else if (gather(w, &all)) {
        lose_host_flags(w);
        emit_first(w, access, &all);
    } else {
        return false;
    }
    w->slow[w->slow_count - 1].again = emit_here(&w->e);
    *rm = operand_of(access);
    return true;
}

bool emit_near_memory(struct work *w, const ZydisDecodedOperand *memory, struct rm *rm)
{
    struct access_off access;
    return !w->narrow && by_operand(present(w), memory, &access) && emit_near(w, &access, rm);
}

bool emit_near_stack(struct work *w, unsigned guest, int32_t offset, enum mmu_use use, struct rm *rm)
{
    const struct access_off access = { .base = (uint8_t)guest, .disp = offset, .size = 8, .use = use };
    return !w->narrow && emit_near(w, &access, rm);
}

void drop_near_now(struct work *w)
{
    if (!w->window)
        w->addend_of = NO_ADDEND;
}

void drop_near(struct work *w)
{
    if (!leaves_scratch(present(w)))
        drop_near_now(w);
}

/* Looks the access up alone; behind the site S3 must not be 0. */
void emit_slow_near_way(struct work *w, const struct slow *slow)
{
    struct rm last = slow->address;
    last.disp += slow->size - 1;
    emit_lea(&w->e, S1, slow->address);
    emit_lea(&w->e, S3, last);
    emit_jump(&w->e, CALL, w->dbt->look_up[slow->use]);
    emit_jcc(&w->e, CC_Z, slow->again);
}
