/* A walk along pointers that visit every cache line of 16 KiB, 1 MiB or 64 MiB in a shuffled order. */
#include "unit.h"

enum { LINE = 64 };

static char *memory;
static size_t lines;

static uint64_t unit(void)
{
    uint64_t sum = 0;
    uint32_t line = 0;
    for (int i = 0; i < (lines > 100000 ? 100000 : 500000); i++) {
        line = *(uint32_t *)(memory + (size_t)line * LINE);
        sum += line;
    }

    return sum;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "16K", "1M", "64M", NULL };
    static const size_t sizes[] = { 16 << 10, 1 << 20, 64 << 20 };
    size_t size = sizes[chosen(argc, argv, words)];
    uint64_t random = 1;

    lines = size / LINE;
    memory = aligned_alloc(4096, size);
    uint32_t *order = malloc(lines * sizeof(*order));
    if (!memory || !order)
        give_up("malloc");
    for (uint32_t i = 0; i < lines; i++)
        order[i] = i;
    for (size_t i = lines - 1; i > 0; i--) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t j = (random >> 33) % (i + 1);
        uint32_t swap = order[i];
        order[i] = order[j], order[j] = swap;
    }
    for (size_t i = 0; i < lines; i++)
        *(uint32_t *)(memory + (size_t)order[i] * LINE) = order[(i + 1) % lines];
    free(order);
    return measure(unit);
}
