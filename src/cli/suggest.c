#include "cli/suggest.h"

#include <stddef.h>
#include <string.h>

enum { WORD_MAX = 63, FAR = 1000 };

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    unsigned least = a < b ? a : b;
    return least < c ? least : c;
}

/* Dynamic programming over three rows: row[i % 3][j] is the distance of the first i letters of a and j of b. */
unsigned suggest_distance(const char *a, const char *b)
{
    size_t a_length = strlen(a), b_length = strlen(b);
    unsigned row[3][WORD_MAX + 1];
    if (a_length > WORD_MAX || b_length > WORD_MAX)
        return FAR;
    for (size_t j = 0; j <= b_length; j++)
        row[0][j] = (unsigned)j;
    for (size_t i = 1; i <= a_length; i++) {
        unsigned *now = row[i % 3];
        const unsigned *before = row[(i - 1) % 3], *before_that = row[(i + 1) % 3];
        now[0] = (unsigned)i;
        for (size_t j = 1; j <= b_length; j++) {
            now[j] = min3(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before_that[j - 2] + 1 < now[j])
                now[j] = before_that[j - 2] + 1;
        }
    }
    return row[a_length % 3][b_length];
}

const char *suggest(const char *word, const char *(*name)(unsigned i))
{
    const char *best = NULL, *candidate;
    unsigned best_distance = (unsigned)(strlen(word) / 3 + 1);
    for (unsigned i = 0; (candidate = name(i)); i++) {
        unsigned distance = suggest_distance(word, candidate);
        if (distance <= best_distance) {
            best_distance = distance;
            best = candidate;
            if (!distance)
                break;
            best_distance--;
        }
    }
    return best;
}
