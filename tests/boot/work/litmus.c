/*
 * Litmus tests of memory order (SDM3 §9.2.2): threads on processors of their own race through many fresh sets of variables, and what
 * they saw is counted. An outcome that x86 forbids ends the program with 1.
 *
 *     litmus ROUNDS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SETS = 4096, MOST_THREADS = 4, TOGETHER = 8, PATIENCE = 3000 };

/* One race: two variables in lines of their own, and what each thread read. */
struct set {
    _Alignas(64) volatile int x;
    _Alignas(64) volatile int y;
    _Alignas(64) volatile int r[MOST_THREADS];
};

static struct set sets[SETS];
static pthread_barrier_t begin, end;
static _Atomic int arrived;

static inline void put(volatile int *at, int value) { __asm__ volatile("movl %1, %0" : "=m"(*at) : "r"(value)); }

static inline int get(const volatile int *at)
{
    int value;
    __asm__ volatile("movl %1, %0" : "=r"(value) : "m"(*at));
    return value;
}

static inline void fence(void) { __asm__ volatile("mfence" ::: "memory"); }

/* A locked instruction elsewhere orders as much as MFENCE does. */
static inline void locked(void) { __asm__ volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc"); }

static inline void swap(volatile int *at, int value) { __asm__ volatile("xchgl %0, %1" : "+m"(*at), "+r"(value)); }

typedef void body(struct set *s);

static void sb0(struct set *s) { put(&s->x, 1); put(&s->r[0], get(&s->y)); }
static void sb1(struct set *s) { put(&s->y, 1); put(&s->r[1], get(&s->x)); }
static void sbf0(struct set *s) { put(&s->x, 1); fence(); put(&s->r[0], get(&s->y)); }
static void sbf1(struct set *s) { put(&s->y, 1); fence(); put(&s->r[1], get(&s->x)); }
static void sbl0(struct set *s) { put(&s->x, 1); locked(); put(&s->r[0], get(&s->y)); }
static void sbl1(struct set *s) { put(&s->y, 1); locked(); put(&s->r[1], get(&s->x)); }
static void sbx0(struct set *s) { swap(&s->x, 1); put(&s->r[0], get(&s->y)); }
static void sbx1(struct set *s) { swap(&s->y, 1); put(&s->r[1], get(&s->x)); }
static void lb0(struct set *s) { int r = get(&s->x); put(&s->y, 1); put(&s->r[0], r); }
static void lb1(struct set *s) { int r = get(&s->y); put(&s->x, 1); put(&s->r[1], r); }
static void mp0(struct set *s) { put(&s->x, 1); put(&s->y, 1); }
static void mp1(struct set *s) { int a = get(&s->y), b = get(&s->x); put(&s->r[0], a); put(&s->r[1], b); }
static void ww0(struct set *s) { put(&s->x, 1); put(&s->y, 2); }
static void ww1(struct set *s) { put(&s->y, 1); put(&s->x, 2); }
static void rr0(struct set *s) { put(&s->x, 1); put(&s->x, 2); }
static void rr1(struct set *s) { int a = get(&s->x), b = get(&s->x); put(&s->r[0], a); put(&s->r[1], b); }
static void wx(struct set *s) { put(&s->x, 1); }
static void wy(struct set *s) { put(&s->y, 1); }
static void xy(struct set *s) { int a = get(&s->x), b = get(&s->y); put(&s->r[0], a); put(&s->r[1], b); }
static void yx(struct set *s) { int a = get(&s->y), b = get(&s->x); put(&s->r[2], a); put(&s->r[3], b); }

static int both_zero(const struct set *s) { return s->r[0] == 0 && s->r[1] == 0; }
static int both_one(const struct set *s) { return s->r[0] == 1 && s->r[1] == 1; }
static int one_zero(const struct set *s) { return s->r[0] == 1 && s->r[1] == 0; }
static int first_wins(const struct set *s) { return s->x == 1 && s->y == 1; }
static int backwards(const struct set *s) { return s->r[0] > s->r[1]; }
static int disagree(const struct set *s) { return s->r[0] == 1 && s->r[1] == 0 && s->r[2] == 1 && s->r[3] == 0; }

static const struct litmus {
    const char *name;
    int threads;
    body *bodies[MOST_THREADS];
    int (*weak)(const struct set *);
    int allowed;
} tests[] = {
    { "store buffering", 2, { sb0, sb1 }, both_zero, 1 },
    { "store buffering, MFENCE", 2, { sbf0, sbf1 }, both_zero, 0 },
    { "store buffering, LOCK", 2, { sbl0, sbl1 }, both_zero, 0 },
    { "store buffering, XCHG", 2, { sbx0, sbx1 }, both_zero, 0 },
    { "load buffering", 2, { lb0, lb1 }, both_one, 0 },
    { "message passing", 2, { mp0, mp1 }, one_zero, 0 },
    { "two writes each", 2, { ww0, ww1 }, first_wins, 0 },
    { "reads of one variable", 2, { rr0, rr1 }, backwards, 0 },
    { "independent reads of independent writes", 4, { wx, wy, xy, yx }, disagree, 0 },
};

struct worker { int number, rounds; const struct litmus *test; };

/*
 * Waits for the other threads, so that all of them come to the next few sets at the same time. Where they are more than the processors
 * somebody has to give his up after a while: SCHED_YIELD is for the kernel, PAUSE for the host of a guest with more processors than it has.
 */
static void meet(int all)
{
    int turn = atomic_fetch_add(&arrived, 1) / all + 1;
    for (int spins = 0; atomic_load(&arrived) < turn * all; spins++)
        if (spins >= PATIENCE) {
            __builtin_ia32_pause();
            sched_yield();
        }
}

static void *run(void *argument)
{
    const struct worker *w = argument;
    cpu_set_t mine;
    CPU_ZERO(&mine);
    CPU_SET(w->number % (int)sysconf(_SC_NPROCESSORS_ONLN), &mine);
    sched_setaffinity(0, sizeof(mine), &mine);
    for (int round = 0; round < w->rounds; round++) {
        pthread_barrier_wait(&begin);
        for (int i = 0; i < SETS; i++) {
            if (i % TOGETHER == 0)
                meet(w->test->threads);
            w->test->bodies[w->number](&sets[i]);
        }
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static long race(const struct litmus *test, int rounds)
{
    pthread_t threads[MOST_THREADS];
    struct worker workers[MOST_THREADS];
    long found = 0;
    atomic_store(&arrived, 0);
    pthread_barrier_init(&begin, NULL, (unsigned)test->threads + 1);
    pthread_barrier_init(&end, NULL, (unsigned)test->threads + 1);
    for (int i = 0; i < test->threads; i++) {
        workers[i] = (struct worker){ i, rounds, test };
        pthread_create(&threads[i], NULL, run, &workers[i]);
    }
    for (int round = 0; round < rounds; round++) {
        memset(sets, 0, sizeof(sets));
        pthread_barrier_wait(&begin);
        pthread_barrier_wait(&end);
        for (int i = 0; i < SETS; i++)
            found += test->weak(&sets[i]);
    }
    for (int i = 0; i < test->threads; i++)
        pthread_join(threads[i], NULL);
    return found;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 20, bad = 0;
    for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        long found = race(&tests[i], rounds);
        bad |= found && !tests[i].allowed;
        printf("%s: %ld of %d, %s\n", tests[i].name, found, rounds * SETS, tests[i].allowed ? "allowed" : found ? "FORBIDDEN" : "forbidden");
    }
    return bad;
}
