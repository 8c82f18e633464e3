#include "engine/dbt/reloc.h"

#include <string.h>

#include "engine/dbt/dbt.h"
#include "mmu/window.h"

void reloc_note(struct reloc_list *list, const uint8_t *field, enum reloc_kind kind, int64_t addend)
{
    if (!list)
        return;
    ptrdiff_t at = field - list->code;
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

void reloc_normalize(const struct reloc_list *list, uint8_t *code, uint32_t offset)
{
    for (unsigned i = 0; i < list->count; i++) {
        uint8_t *field = code + list->reloc[i].at;
        if (list->reloc[i].kind == RELOC_RELATIVE)
            add32(field, offset);
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
    uint8_t *field = place->code + reloc->at;
    uint64_t gla = place->rip + (uint64_t)(int64_t)reloc->addend;
    switch (reloc->kind) {
    case RELOC_RELATIVE:
        add32(field, -place->offset);
        return true;
    case RELOC_SITE:
        return put64(field, place->sites + (size_t)reloc->addend * place->site_size);
    case RELOC_LINK:
        return put64(field, place->links + (size_t)reloc->addend * place->link_size);
    case RELOC_GUEST64:
        return put64(field, gla);
    case RELOC_GUEST_ZERO:
        return put32(field, gla, false);
    case RELOC_GUEST_SIGN:
        return put32(field, gla, true);
    case RELOC_GUEST_CHUNK:
        return put32(field, (gla >> WINDOW_CHUNK_SHIFT) * 8 - WINDOW_BIAS, true);
    case RELOC_GUEST_JUMP:
        return put32(field, offsetof(struct jump_table, entry) + jump_index(gla) * sizeof(struct jump_entry), true);
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
