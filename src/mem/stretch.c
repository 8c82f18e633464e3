#include "mem/stretch.h"

#include <stdlib.h>

#include "base/ahead.h"

enum {
    STRETCHES = 4,                          /* that are gone through at the same time */
    AHEAD_MOST = 1 << 20,
};

/* Pieces of a slot that were touched one after the other, upwards or downwards. */
struct stretch {
    struct ram_slot *slot;                  /* NULL: none */
    uint64_t low, high;                     /* offsets: all between was touched, or asked for */
    uint64_t ahead;                         /* bytes asked for the last time; RAM_PIECE at its beginning */
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

static void grant_pieces(struct ram *ram, struct ram_slot *slot, uint64_t from, uint64_t to)
{
    for (uint64_t offset = from; offset < to; offset += RAM_PIECE)
        if (!(atomic_load_explicit(&slot->page[offset >> PAGE_SHIFT], memory_order_relaxed) & PAGE_GRANTED))
            ram_populate_piece(ram, slot, offset);
}

/*
 * On the thread: pieces of one slot, the farther half first. Who touches memory as fast as the host grants it does the nearer half himself meanwhile,
 * where both would otherwise wait for each other at each page.
 */
static void grant_upwards(void *owner, uint8_t *at, size_t size)
{
    struct ram_slot *slot = slot_of(owner, at);
    uint64_t from = (uint64_t)(at - slot->host), half = from + align_down(size / 2, RAM_PIECE);
    grant_pieces(owner, slot, half, from + size);
    grant_pieces(owner, slot, from, half);
}

static void grant_downwards(void *owner, uint8_t *at, size_t size)
{
    struct ram_slot *slot = slot_of(owner, at);
    uint64_t from = (uint64_t)(at - slot->host), half = from + align_up(size / 2, RAM_PIECE);
    grant_pieces(owner, slot, from, half);
    grant_pieces(owner, slot, half, from + size);
}

/* Mutex held. The one that the piece at `offset` is of or beside, or one that begins there. */
static struct stretch *stretch_at(struct ram_stretches *stretches, struct ram_slot *slot, uint64_t offset)
{
    for (unsigned i = 0; i < STRETCHES; i++) {
        struct stretch *stretch = &stretches->stretch[i];
        if (stretch->slot == slot && offset + RAM_PIECE >= stretch->low && offset <= stretch->high)
            return stretch;
    }
    struct stretch *stretch = &stretches->stretch[stretches->oldest++ % STRETCHES];
    *stretch = (struct stretch){ .slot = slot, .low = offset, .high = offset + RAM_PIECE, .ahead = RAM_PIECE };
    return stretch;
}

/* Mutex held. At most so many bytes are wanted ahead. */
static uint64_t how_far(struct stretch *stretch, uint64_t most)
{
    stretch->ahead = min_u64(2 * stretch->ahead, AHEAD_MOST);
    return min_u64(stretch->ahead, most);
}

/* Who comes to what the thread has no time for grants it himself. */
void ram_stretch_to(struct ram_stretches *stretches, struct ram_slot *slot, uint64_t offset)
{
    pthread_mutex_lock(&stretches->mutex);
    struct stretch *stretch = stretch_at(stretches, slot, offset);
    if (offset == stretch->high && offset + RAM_PIECE < slot->size) {
        uint64_t next = offset + RAM_PIECE, size = how_far(stretch, slot->size - next);
        stretch->high = next + size;
        ahead_ask(stretches->ahead, grant_upwards, stretches->ram, slot->host + next, size);
    } else if (offset + RAM_PIECE == stretch->low && offset) {
        uint64_t size = how_far(stretch, offset);
        stretch->low = offset - size;
        ahead_ask(stretches->ahead, grant_downwards, stretches->ram, slot->host + stretch->low, size);
    }
    pthread_mutex_unlock(&stretches->mutex);
}
