/* Arrays of 8 MiB: copied, filled, and a = b + 3c. */
#include "unit.h"

enum { COUNT = 1 << 20 };

static double *a, *b, *c;

static uint64_t copy(void) { memcpy(a, b, COUNT * sizeof(*a)); return bits_of(a[COUNT / 2]); }
static uint64_t fill(void) { memset(a, 1, COUNT * sizeof(*a)); return bits_of(a[COUNT / 2]); }

static uint64_t triad(void)
{
    for (int i = 0; i < COUNT; i++)
        a[i] = b[i] + 3 * c[i];
    return bits_of(a[COUNT / 2]);
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "copy", "fill", "triad", NULL };
    static uint64_t (*const units[])(void) = { copy, fill, triad };
    int which = chosen(argc, argv, words);
    double *all = malloc(3 * COUNT * sizeof(*all));
    if (!all)
        give_up("malloc");
    a = all, b = all + COUNT, c = all + 2 * COUNT;
    for (int i = 0; i < 3 * COUNT; i++)
        all[i] = i % 17;
    return measure(units[which]);
}
