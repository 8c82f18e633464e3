#include "engine/dbt/reloc.h"

#include <string.h>

#include "engine/dbt/dbt.h"
#include "mmu/window.h"

static bool is_cold(const struct reloc_list *list, const uint8_t *at) { return at >= list->cold; }

size_t reloc_position(const struct reloc_list *list, const uint8_t *at)
{
    return is_cold(list, at) ? list->hot_size + (size_t)(at - list->cold) : (size_t)(at - list->code);
}

void reloc_note(struct reloc_list *list, const uint8_t *field, enum reloc_kind kind, int64_t addend)
{
    if (!list)
        return;
    size_t at = reloc_position(list, field);
    if (list->count == RELOCS_MAX || at > UINT16_MAX || addend != (int32_t)addend) {
        list->incomplete = true;
        return;
    }
    list->reloc[list->count++] = (struct reloc){ .at = (uint16_t)at, .kind = (uint16_t)kind, .addend = (int32_t)addend };
}

void reloc_note_guest(struct reloc_list *list, const uint8_t *field, enum reloc_kind kind, uint64_t gla)
{
    if (list)
        reloc_note(list, field, kind, (int64_t)(gla - list->rip));
}

void reloc_note_jump(struct reloc_list *list, const uint8_t *field, const uint8_t *target)
{
    if (list && target >= list->code && is_cold(list, field) != is_cold(list, target))
        reloc_note(list, field, RELOC_PART, 0);
}

void reloc_note_constant(struct reloc_list *list, const uint8_t *field)
{
    uint32_t value;
    memcpy(&value, field, 4);
    if (list && reloc_may_move(value))
        reloc_note(list, field, RELOC_GUEST_BYTES, NO_HOLE);
}

static void add32(uint8_t *field, uint32_t value)
{
    uint32_t old;
    memcpy(&old, field, 4);
    old += value;
    memcpy(field, &old, 4);
}

/* By how much what is relative to a field of the cold part differs from what it would be, if that followed the hot one. */
static uint32_t distance(const uint8_t *code, const uint8_t *cold, size_t hot_size) { return (uint32_t)(cold - code - (ptrdiff_t)hot_size); }

void reloc_normalize(const struct reloc_list *list, uint8_t *joined, const uint8_t *cache)
{
    uint32_t offset = (uint32_t)(list->code - cache), between = distance(list->code, list->cold, list->hot_size);
    for (unsigned i = 0; i < list->count; i++) {
        uint8_t *field = joined + list->reloc[i].at;
        bool cold = list->reloc[i].at >= list->hot_size;
        if (list->reloc[i].kind == RELOC_RELATIVE)
            add32(field, offset + (cold ? between : 0));
        else if (list->reloc[i].kind == RELOC_PART)
            add32(field, cold ? between : -between);
        else if (list->reloc[i].kind != RELOC_GUEST_BYTES)
            memset(field, 0, reloc_size(list->reloc[i].kind));
    }
}

static bool put32(uint8_t *field, uint64_t value, bool sign)
{
    uint32_t low = (uint32_t)value;
    memcpy(field, &low, 4);
    return value == (sign ? (uint64_t)(int32_t)low : low);
}

static bool put64(uint8_t *field, uint64_t value)
{
    memcpy(field, &value, 8);
    return true;
}

static bool apply(const struct reloc *reloc, const struct reloc_place *place)
{
    bool cold = reloc->at >= place->hot_size;
    uint8_t *field = cold ? place->cold + (reloc->at - place->hot_size) : place->code + reloc->at;
    uint32_t offset = (uint32_t)(place->code - place->cache), between = distance(place->code, place->cold, place->hot_size);
    uint64_t gla = place->rip + (uint64_t)(int64_t)reloc->addend;
    switch (reloc->kind) {
    case RELOC_RELATIVE:
        add32(field, -offset - (cold ? between : 0));
        return true;
    case RELOC_PART:
        add32(field, cold ? -between : between);
        return true;
    case RELOC_SITE:
        return put32(field, place->sites + (size_t)reloc->addend * place->site_size, false);
    case RELOC_LINK:
        return put32(field, place->links + (size_t)reloc->addend * place->link_size, false);
    case RELOC_GUEST64:
        return put64(field, gla);
    case RELOC_GUEST_MINUS:
        return put64(field, -gla);
    case RELOC_GUEST_ZERO:
        return put32(field, gla, false);
    case RELOC_GUEST_SIGN:
        return put32(field, gla, true);
    case RELOC_GUEST_CHUNK:
        return put32(field, (gla >> WINDOW_CHUNK_SHIFT) * 8 - WINDOW_BIAS, true);
    case RELOC_GUEST_BYTES:
        memcpy(field, place->guest + reloc->addend, 4);
        return true;
    default:
        return false;
    }
}

bool reloc_apply(const struct reloc *list, unsigned count, const struct reloc_place *place)
{
    for (unsigned i = 0; i < count; i++)
        if (!apply(&list[i], place))
            return false;
    return true;
}
