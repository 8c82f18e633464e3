/*
 * What depends on its surroundings in the code of a translation: noted as it is emitted, so that the code can be used again at another
 * place, in another process, for the same guest code at another linear address (store.h). The emitter notes jumps to shared code and
 * the engine's own state by itself; whoever emits an address of a site, a link or of guest code says so. What can not be noted makes
 * the translation one that is not kept.
 */
#ifndef DOPPEL_DBT_RELOC_H
#define DOPPEL_DBT_RELOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum reloc_kind {
    RELOC_RELATIVE,             /* 32 bits, relative to themselves: a place outside that is where it was, from the cache's start */
    RELOC_PART,                 /* the same: a place in the translation's other part */
    RELOC_SITE, RELOC_LINK,     /* 32 bits: where in dbt->data number `addend` is */
    RELOC_GUEST64,              /* the guest-linear address `addend` bytes from the trace's RIP */
    RELOC_GUEST_MINUS,          /* 64 bits: what makes 0 when it is added to that */
    RELOC_GUEST_ZERO, RELOC_GUEST_SIGN,         /* the same, in 32 bits that are extended by zeroes or the sign */
    RELOC_GUEST_CHUNK,          /* 32 bits: the displacement of that address's window in the table of windows */
    RELOC_GUEST_BYTES,          /* 32 bits: those of the guest's code, `addend` bytes from the start of what the entry has of it (kept.c) */
    RELOC_KINDS
};

struct reloc {
    uint16_t at;                /* bytes from the translation's code; its cold part counts as if it followed the hot one */
    uint16_t kind;
    int32_t addend;
};

enum { RELOCS_MAX = 2048 };
struct reloc_list {
    const uint8_t *code, *cold; /* the translation's code in the writable view: its hot and its cold part */
    size_t hot_size;            /* known before anything is written to the cold one */
    uint64_t rip;               /* its guest-linear address */
    bool incomplete;            /* something could not be noted */
    unsigned count;
    struct reloc reloc[RELOCS_MAX];
};

enum { NO_HOLE = -1 };

/* Where a kernel of 64 bits lies, and with it all that its code names in 32 bits that are extended by the sign. */
static inline bool reloc_may_move(uint32_t value) { return value >= 0x80000000u && value < 0xC0000000u; }

static inline size_t reloc_size(unsigned kind) { return kind == RELOC_GUEST64 || kind == RELOC_GUEST_MINUS ? 8 : 4; }

/* Bytes from the translation's code, as above. */
size_t reloc_position(const struct reloc_list *list, const uint8_t *at);
/* NULL: nobody wants to know. */
void reloc_note(struct reloc_list *list, const uint8_t *field, enum reloc_kind kind, int64_t addend);
void reloc_note_guest(struct reloc_list *list, const uint8_t *field, enum reloc_kind kind, uint64_t gla);

/* A jump leads there, both in the writable view; each is said once. */
void reloc_note_jump(struct reloc_list *list, const uint8_t *field, const uint8_t *target);

/*
 * The 32 bits at `field` have been written, and are a constant or displacement as the guest's instruction has it: RELOC_GUEST_BYTES with
 * NO_HOLE, for kept.c to say which, if it may be one that moves.
 */
void reloc_note_constant(struct reloc_list *list, const uint8_t *field);

/* Where the code lies now, and what it belongs to. */
struct reloc_place {
    uint8_t *code, *cold;       /* writable view */
    size_t hot_size;
    const uint8_t *cache;       /* its start */
    uint64_t rip;
    const uint8_t *guest;       /* the guest's bytes */
    size_t sites, links;        /* where the first ones are in dbt->data, and how large one is */
    size_t site_size, link_size;
};
/*
 * The reverse for storing: `joined`, the one part behind the other, becomes as if it lay there at the cache's start; addresses of sites and
 * links are 0.
 */
void reloc_normalize(const struct reloc_list *list, uint8_t *joined, const uint8_t *cache);
/* False: an address does not fit its field here. The list has been checked (fields in the code, numbers in range). */
bool reloc_apply(const struct reloc *list, unsigned count, const struct reloc_place *place);

#endif
