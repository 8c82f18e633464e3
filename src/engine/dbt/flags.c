/*
 * Where the guest's flags are. They are in H after the instruction that wrote them, and stay there as long as code of ours
 * clobbers none. Before it does (the check of an access, which may leave), they must be elsewhere as well: in M, or in the
 * registers of the instruction that wrote them, from which it can be made again (`replay`) as long as these are as they were. That
 * costs nothing unless somebody reads them or the access leaves (replay.c). With windows no code of ours touches flags, so they are always in H.
 */
#include "engine/dbt/plan.h"

#include "engine/interp/flags.h"

void emit_pack_flags(struct emitter *e)
{
    emit8(e, 0x9F);                                     /* lahf */
    emit_insn(e, EMIT_0F, 0x90, 0, rm_reg(RAX), 0);     /* seto al */
}

void emit_unpack_flags(struct emitter *e)
{
    emit8(e, 0x04);                                     /* add al, 7Fh: sets OF if AL was 1 */
    emit8(e, 0x7F);
    emit8(e, 0x9E);                                     /* sahf */
}

/* --- what this host makes of undefined ones --- */

#define SHIFT(name, count) \
    static uint32_t name##count(uint32_t value, uint16_t before) \
    { \
        uint32_t packed = before; \
        asm(FLAGS_LOAD #name " $" #count ", %[v]\n\t" FLAGS_SAVE : [v] "+r"(value), "+&a"(packed) : : "cc"); \
        return (uint16_t)packed; \
    }
SHIFT(shl, 1) SHIFT(shl, 5) SHIFT(shr, 1) SHIFT(shr, 5) SHIFT(sar, 1) SHIFT(sar, 5)

bool dbt_shifts_write_all_flags(void)
{
    enum { NONE_SET = 0x0200, ALL_SET = 0xD701 };       /* packed as in flags.h */
    static uint32_t (*const shift[])(uint32_t, uint16_t) = { shl1, shl5, shr1, shr5, sar1, sar5 };
    static const uint32_t value[] = { 0, 1, 0x10, 0x40000000, 0x80000000, 0x5A5A5A5A, 0xFFFFFFFF };
    bool same = true;
    for (unsigned i = 0; i < ARRAY_SIZE(shift); i++)
        for (unsigned j = 0; j < ARRAY_SIZE(value); j++)
            same = same && shift[i](value[j], NONE_SET) == shift[i](value[j], ALL_SET);
    return same;
}

/* --- moving them --- */

static void emit_flags_to_memory(struct work *w, unsigned scratch)
{
    emit_move(&w->e, scratch, RAX);
    emit_pack_flags(&w->e);
    emit_insn(&w->e, 0, 0x89, RAX, rm_data(&w->dbt->flags), 0);
    emit_move(&w->e, RAX, scratch);
    w->in_memory = true;
}

void want_flags_in_memory(struct work *w)
{
    if (w->in_memory)
        return;
    if (!w->in_host)
        emit_replay(w, w->replay);
    w->in_host = true;
    drop_near_now(w);
    emit_flags_to_memory(w, S3);
}

void emit_flags_to_host(struct work *w)
{
    emit_move(&w->e, S3, RAX);
    emit_insn(&w->e, 0, 0x8B, RAX, rm_data(&w->dbt->flags), 0);
    emit_unpack_flags(&w->e);
    emit_move(&w->e, RAX, S3);
}

void want_flags_in_host(struct work *w)
{
    if (w->in_host)
        return;
    if (w->in_memory) {
        drop_near_now(w);
        emit_flags_to_host(w);
    } else {
        assert(w->replay != NO_REPLAY);
        emit_replay(w, w->replay);
    }
    w->in_host = true;
}

void lose_host_flags(struct work *w)
{
    if (w->in_host && w->replay == NO_REPLAY)
        want_flags_in_memory(w);
    w->in_host = false;
}

void lose_host_flags_near(struct work *w)
{
    if (w->in_host && w->replay == NO_REPLAY && !w->in_memory)
        emit_flags_to_memory(w, S1);
    w->in_host = false;
}

/* --- what the present instruction does to all that --- */

static void keep_replay(struct work *w, const struct planned *p)
{
    if (w->replay == NO_REPLAY || !(p->writes & replay_registers(&w->plan[w->replay])))
        return;
    bool overwritten = p->writes_flags && !p->reads_flags;
    if (!w->in_host && p->flags_needed && !overwritten)
        want_flags_in_memory(w);
    w->replay = NO_REPLAY;
}

enum { DRIFT_MAX = 32 << 10 };  /* of the room that a window has on both sides for displacements */

static unsigned registers_of(struct indexed indexed)
{
    return 1u << indexed.base | (indexed.index == HOST_NONE ? 0 : 1u << indexed.index);
}

static void keep_addend(struct work *w, const struct planned *p)
{
    if (w->indexed.base != HOST_NONE && (p->writes & registers_of(w->indexed)))
        lose_held(w);
    if (w->addend_of >= ADDEND_INDEXED || !(p->writes & 1u << w->addend_of))
        return;
    if (p->adjust && p->adjust == (int16_t)p->adjust && p->adjusted == w->addend_of) {
        w->drift += p->adjust;
        if (w->drift <= DRIFT_MAX && w->drift >= -DRIFT_MAX)
            return;
    }
    w->addend_of = NO_ADDEND;
}

void registers_written(struct work *w)
{
    keep_replay(w, present(w));
    keep_addend(w, present(w));
}

void flags_written(struct work *w)
{
    const struct planned *p = present(w);
    if (!p->writes_flags)
        return;
    w->in_host = true;
    w->in_memory = false;
    w->replay = is_replayable(p) ? (uint16_t)w->i : NO_REPLAY;
}
