#include "mem/stretch.h"

#include <stdlib.h>

#include "base/ahead.h"

enum {
    STRETCHES = 4,                          /* that are gone through at the same time */
    AHEAD_MOST = 1 << 20,
};

/* Pieces of a slot that were touched one after the other. */
struct stretch {
    struct ram_slot *slot;                  /* NULL: none */
    uint64_t expected;                      /* offset of the next one that nobody has granted */
    uint64_t ahead;                         /* bytes granted ahead the last time; RAM_PIECE at its beginning */
};

struct ram_stretches {
    struct ram *ram;
    struct ahead *ahead;
    pthread_mutex_t mutex;                  /* guards what follows */
    struct stretch stretch[STRETCHES];
    unsigned oldest;
};

struct ram_stretches *ram_stretches_create(struct ram *ram)
{
    struct ram_stretches *stretches = calloc(1, sizeof(*stretches));
    if (!stretches)
        return NULL;
    stretches->ram = ram;
    stretches->ahead = ahead_create();
    if (!stretches->ahead) {
        free(stretches);
        return NULL;
    }
    pthread_mutex_init(&stretches->mutex, NULL);
    return stretches;
}

void ram_stretches_destroy(struct ram_stretches *stretches)
{
    if (!stretches)
        return;
    ahead_destroy(stretches->ahead);
    pthread_mutex_destroy(&stretches->mutex);
    free(stretches);
}

static struct ram_slot *slot_of(struct ram *ram, const uint8_t *host)
{
    struct ram_slot *slot = ram->slot;
    while ((uintptr_t)host - (uintptr_t)slot->host >= slot->size)
        slot++;
    return slot;
}

/* On the thread: pieces of one slot. */
static void grant(void *owner, uint8_t *at, size_t size)
{
    struct ram *ram = owner;
    struct ram_slot *slot = slot_of(ram, at);
    uint64_t from = (uint64_t)(at - slot->host);
    for (uint64_t offset = from; offset < from + size; offset += RAM_PIECE) {
        if (!(atomic_load_explicit(&slot->page[offset >> PAGE_SHIFT], memory_order_relaxed) & PAGE_GRANTED))
            ram_populate_piece(ram, slot, offset);
    }
}

/* Mutex held. The one that goes on at `offset`, or one that begins there. */
static struct stretch *stretch_at(struct ram_stretches *stretches, struct ram_slot *slot, uint64_t offset)
{
    for (unsigned i = 0; i < STRETCHES; i++)
        if (stretches->stretch[i].slot == slot && stretches->stretch[i].expected == offset)
            return &stretches->stretch[i];
    struct stretch *stretch = &stretches->stretch[stretches->oldest++ % STRETCHES];
    *stretch = (struct stretch){ .slot = slot };
    return stretch;
}

void ram_stretch_to(struct ram_stretches *stretches, struct ram_slot *slot, uint64_t offset)
{
    uint64_t next = offset + RAM_PIECE, most = next < slot->size ? slot->size - next : 0, size = 0;
    pthread_mutex_lock(&stretches->mutex);
    struct stretch *stretch = stretch_at(stretches, slot, offset);
    if (stretch->ahead)
        size = min_u64(min_u64(2 * stretch->ahead, AHEAD_MOST), most);
    stretch->ahead = size ? size : RAM_PIECE;
    stretch->expected = next + size;
    pthread_mutex_unlock(&stretches->mutex);
    if (size)                               /* who comes to what the thread has no time for grants it himself */
        ahead_ask(stretches->ahead, grant, stretches->ram, slot->host + next, size);
}
