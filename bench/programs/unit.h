/*
 * How the programs of this folder measure: a unit of fixed work, again and again until $BENCH_SECONDS (0.3) are over, and
 * twice at least. The figure is the lower quartile of the units' times, so that neither the first unit, which finds caches
 * cold, nor one that other work disturbed counts. It is printed as
 *
 *     VALUE seconds check mean
 *
 * seconds a unit, the unit's result, which has to be the same on every machine, and the mean of all units but the first.
 */
#ifndef BENCH_UNIT_H
#define BENCH_UNIT_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_UNITS = 4096 };

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline int by_size(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static inline _Noreturn void give_up(const char *what)
{
    perror(what);
    exit(1);
}

/* Runs units and prints the figure. A unit whose result differs from the first one's ends the program. */
static inline int measure(uint64_t (*unit)(void))
{
    static double times[MOST_UNITS];
    const char *limit = getenv("BENCH_SECONDS");
    double seconds = limit ? atof(limit) : 0.3, begin = now(), sum = 0;
    uint64_t first = 0;
    int count = 0;

    while (count < 2 || (count < MOST_UNITS && now() < begin + seconds)) {
        double from = now();
        uint64_t check = unit();
        times[count] = now() - from;
        if (count == 0)
            first = check;
        else
            sum += times[count];
        count++;
        if (check != first) {
            printf("unit %d gave %llx, the first %llx\n", count, (unsigned long long)check, (unsigned long long)first);
            return 1;
        }
    }
    qsort(times, (size_t)count, sizeof(times[0]), by_size);
    printf("VALUE %.9f %llx %.9f\n", times[count / 4], (unsigned long long)first, sum / (count - 1));
    return 0;
}

/* Bits of a floating-point result, to be compared. */
static inline uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* Which of the words the program's argument is; ends with the list of them when it is none. */
static inline int chosen(int argc, char **argv, const char *const *words)
{
    for (int i = 0; words[i]; i++)
        if (argc > 1 && strcmp(argv[1], words[i]) == 0)
            return i;
    fprintf(stderr, "usage: %s", argv[0]);
    for (int i = 0; words[i]; i++)
        fprintf(stderr, "%c%s", i ? '|' : ' ', words[i]);
    fprintf(stderr, "\n");
    exit(2);
}
#endif
